"""Long-tailed training sets (Cui et al. 2019): class sizes fall exponentially from the first class to the last."""

from errors import InputError

import torch
from torch import Tensor

from data.order import generator

# Liu et al. 2019: classes with more than 100 training images, with 20 to 100, and with fewer.
SHOTS = {"many": (101, float("inf")), "medium": (20, 100), "low": (0, 19)}


def long_tailed(labels: Tensor, classes: int, ratio: float) -> Tensor:
    """Indices (n,) of a long-tailed subset: class k of K keeps smallest_class * ratio^(-k / (K-1)) images, at least 1.

    labels (N,) int64. The images are drawn at random, the same ones for every seed of a run. Raises InputError if a class is
    empty.
    """
    counts = torch.bincount(labels, minlength=classes)
    if counts.min() == 0:
        raise InputError(f"--imbalance-ratio: class {counts.argmin().item()} has no training images")
    largest = counts.min().item()
    kept = []
    for label in range(classes):
        size = max(1, int(largest * ratio ** (-label / max(classes - 1, 1)) + 1e-9))  # the power may round below whole numbers
        rows = (labels == label).nonzero().squeeze(1)
        kept.append(rows[torch.randperm(len(rows), generator=generator(0, label))[:size]])
    return torch.cat(kept).sort().values


def by_shots(right: Tensor, images: Tensor, training_images: Tensor) -> dict[str, float | None]:
    """Accuracy (%) over the classes with many, medium and low numbers of training images; None if there is no such class.

    right, images: (K,) correct predictions and validation images of each class; training_images (K,).
    """
    accuracies = {}
    for name, (low, high) in SHOTS.items():
        group = (training_images >= low) & (training_images <= high)
        total = images[group].sum().item()
        accuracies[name] = 100 * right[group].sum().item() / total if total else None
    return accuracies
