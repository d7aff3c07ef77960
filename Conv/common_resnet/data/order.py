"""Which images a step sees: a function of (seed, epoch) alone, cut to this process's share."""

import numpy as np
import torch
from torch import Tensor

import distributed


def mix(*parts: int) -> int:
    """A 32-bit seed out of several numbers, none of whose bits show through.

    Zeros at the end count for nothing: the shuffle of an epoch and the augmentation of its step 0 draw from one stream.
    """
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def generator(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(*parts))


def epoch_order(images: int, batch: int, seed: int, epoch: int) -> Tensor:
    """(steps, batch / processes) int64: a shuffle of all images in global batches, this process's rows of each.

    The last partial batch is left out. What all processes see together in a step does not depend on how many they are.
    """
    steps = images // batch
    shuffled = torch.randperm(images, generator=generator(seed, epoch))[: steps * batch]
    return shuffled.view(steps, distributed.world_size(), -1)[:, distributed.rank()]


def share(x: Tensor) -> Tensor:
    """This process's rows of something (batch, ...) that was drawn for the global batch."""
    return x.view(distributed.world_size(), -1, *x.shape[1:])[distributed.rank()]
