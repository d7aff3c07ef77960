"""torchvision's mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019), as functions of (seed, epoch, step)."""

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

STREAM = 2**32 - 2  # a stream that dropout and augmentation do not use


class Mixing:
    """mixing(images (N, 3, H, W), targets (N,), epoch, step) -> mixed images, and targets (N, num_classes) of probabilities.

    Each batch is mixed with itself rotated by one image, with a share drawn from Beta(alpha, alpha). If both kinds are on, each
    batch uses one of them, with equal probability. An alpha of 0 disables that kind. All processes draw the same numbers; each
    mixes its own images.
    """

    def __init__(self, mixup_alpha: float, cutmix_alpha: float, num_classes: int, seed: int):
        kinds = [v2.MixUp(alpha=mixup_alpha, num_classes=num_classes)] if mixup_alpha else []
        kinds += [v2.CutMix(alpha=cutmix_alpha, num_classes=num_classes)] if cutmix_alpha else []
        self.mix, self.seed = v2.RandomChoice(kinds) if kinds else None, seed

    def __bool__(self) -> bool:
        return self.mix is not None

    def __call__(self, images: Tensor, targets: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        number = int(np.random.SeedSequence((self.seed, epoch, step, STREAM)).generate_state(1)[0])
        with torch.random.fork_rng(devices=[]):  # preserves the CPU generator's state, for dropout
            torch.default_generator.manual_seed(number)
            return self.mix(images, targets)
