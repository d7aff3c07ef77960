"""Symmetric label noise: a fixed share of the training labels is replaced; for one seed, the same labels for every loss."""

import torch
from torch import Tensor

from data.order import generator

STREAM = 2**32 - 1  # generators of an epoch are seeded by (seed, epoch); no epoch has this number


def symmetric_noise(labels: Tensor, classes: int, share: float, seed: int) -> Tensor:
    """A copy of labels (N,) int64 in which exactly round(share * N) entries differ, each uniform over the other classes.

    The entries and their replacements are functions of seed, N and share. For a given seed, a larger share also replaces all
    entries that a smaller share replaces.
    """
    random = generator(seed, STREAM)
    rows = torch.randperm(len(labels), generator=random)[: round(share * len(labels))]
    steps = torch.randint(1, max(classes, 2), (len(labels),), generator=random)[: len(rows)]
    noisy = labels.clone()
    noisy[rows] = (labels[rows] + steps) % classes
    return noisy
