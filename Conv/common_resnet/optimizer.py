"""SGD, and the course of its learning rate."""

import math

import torch
from torch import nn


def build_optimizer(model: nn.Module, lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum; norms and biases, the parameters of one dimension, do not decay."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


def rate(step: int, steps: int, epochs: int, warmup_epochs: int, sched: str, decay_epochs: list[int], decay_rate: float) -> float:
    """The learning rate as a share of the highest one, before step `step` of a run whose epochs have `steps` steps.

    It rises linearly over warmup_epochs. sched "step" then multiplies it by decay_rate at each of decay_epochs; "cosine" lets it
    fall to 0 at the end.
    """
    epoch = step / steps
    if epoch < warmup_epochs:
        return (step + 1) / (steps * warmup_epochs)
    if sched == "step":
        return decay_rate ** sum(epoch >= mark for mark in decay_epochs)
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)))
