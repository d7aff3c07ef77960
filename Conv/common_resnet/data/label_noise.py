"""Symmetric label noise: a fixed share of the training labels is replaced, the same for every loss of a seed."""

import torch
from torch import Tensor

from data.order import generator

STREAM = 2**32 - 1  # the generators of an epoch are seeded by (seed, epoch), and no epoch has this number


def symmetric_noise(labels: Tensor, classes: int, share: float, seed: int) -> Tensor:
    """A copy of labels (N,) int64 in which exactly round(share * N) entries differ, each uniform over the other classes.

    Which entries, and what replaces them, is a function of seed, N and share, and for a given seed a larger share replaces the
    entries of a smaller one too.
    """
    random = generator(seed, STREAM)
    rows = torch.randperm(len(labels), generator=random)[: round(share * len(labels))]
    steps = torch.randint(1, max(classes, 2), (len(labels),), generator=random)[: len(rows)]
    noisy = labels.clone()
    noisy[rows] = (labels[rows] + steps) % classes
    return noisy
