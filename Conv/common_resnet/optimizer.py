"""SGD and its learning-rate schedule."""

import math

import torch
from torch import nn


def build_optimizer(
    model: nn.Module, lr: float, momentum: float, weight_decay: float, nesterov: bool = True, layer_decay: float = 1.0
) -> torch.optim.SGD:
    """SGD over the trainable parameters; norms and biases, the parameters of one dimension, have no weight decay.

    layer_decay: ratio of each stage's learning rate to that of the next stage; the classifier's rate is `lr`.
    """
    trained = [(stage(name), p) for name, p in model.named_parameters() if p.requires_grad]
    order = list(dict.fromkeys(where for where, _ in trained)) if layer_decay != 1 else [None]
    groups = []
    for number, current in enumerate(order, 1):
        for decays in (True, False):
            members = [p for where, p in trained if (p.ndim > 1) == decays and current in (None, where)]
            factor, decay = layer_decay ** (len(order) - number), weight_decay if decays else 0.0
            if members:
                groups.append({"params": members, "weight_decay": decay, "lr": lr * factor})
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0)


def stage(name: str) -> str:
    """The stage of a parameter: stem, layer1, ... and fc in ResNets; features.0, ... and classifier in other models."""
    parts = name.split(".")
    if parts[0] in ("conv1", "bn1"):
        return "stem"
    return ".".join(parts[:2]) if parts[0] == "features" else parts[0]


def freeze_backbone(model: nn.Module, head: nn.Module) -> None:
    """Make only the classifier `head` trainable."""
    model.requires_grad_(False)
    head.requires_grad_(True)


def use_frozen_statistics(model: nn.Module) -> None:
    """Put layers whose parameters are all frozen into evaluation mode, so that their statistics do not change."""
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(p.requires_grad for p in own):
            module.eval()


def rate(step: int, steps: int, epochs: int, warmup_epochs: int, sched: str, decay_epochs: list[int], decay_rate: float) -> float:
    """The learning rate at step `step`, relative to the peak; an epoch has `steps` steps.

    It rises linearly over warmup_epochs. After that, sched "step" multiplies it by decay_rate at each of decay_epochs; "cosine"
    lowers it to 0 at the end.
    """
    epoch = step / steps
    if epoch < warmup_epochs:
        return (step + 1) / (steps * warmup_epochs)
    if sched == "step":
        return decay_rate ** sum(epoch >= mark for mark in decay_epochs)
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)))
