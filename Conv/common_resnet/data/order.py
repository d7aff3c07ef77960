"""The images of each step, which depend only on (seed, epoch), and this process's share of them."""

import numpy as np
import torch
from torch import Tensor

import distributed


def mix(*parts: int) -> int:
    """A 32-bit seed, hashed from several numbers.

    Trailing zeros do not change it: the shuffle of an epoch and the augmentation of its step 0 use the same stream.
    """
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def generator(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(mix(*parts))


def epoch_order(images: int, batch: int, seed: int, epoch: int) -> Tensor:
    """(steps, batch / processes) int64: this process's rows of each global batch of a shuffle of all images.

    An incomplete last batch is omitted. The images of a global batch do not depend on the number of processes.
    """
    steps = images // batch
    shuffled = torch.randperm(images, generator=generator(seed, epoch))[: steps * batch]
    return shuffled.view(steps, distributed.world_size(), -1)[:, distributed.rank()]


def share(x: Tensor) -> Tensor:
    """This process's rows of a tensor (batch, ...) that was drawn for the global batch."""
    return x.view(distributed.world_size(), -1, *x.shape[1:])[distributed.rank()]
