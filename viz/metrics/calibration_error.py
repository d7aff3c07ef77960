"""Expected calibration error (Guo et al. 2017)."""

import torch
from torch import Tensor

from metrics.outputs import Outputs

BINS = 15


def bins_of(probability: Tensor, bins: int = BINS) -> Tensor:
    """The bin, 0 to bins - 1, of each probability: (0, 1/bins], (1/bins, 2/bins], ..."""
    return (probability * bins).ceil().long().clamp(1, bins) - 1


def ece(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """The absolute gap between confidence (N,) and accuracy, from right (N,) bool, per equal-width bin, averaged over samples."""
    return binned(confidence, right, bins)[:, 3].abs().sum().item() / len(confidence)


def binned(confidence: Tensor, right: Tensor, bins: int = BINS) -> Tensor:
    """(bins, 4) float64 sums over the samples of each bin: number, confidence, right ones, confidence minus right ones."""
    confidence, right = confidence.double(), right.double()
    rows = torch.stack([torch.ones_like(confidence), confidence, right, confidence - right], 1)
    return torch.zeros(bins, 4, dtype=torch.float64).index_add_(0, bins_of(confidence, bins), rows)


def measure(test: Outputs, train: Outputs | None) -> dict[str, float]:
    sums = 0
    for rows, labels in test.chunks():
        probability, predicted = rows.double().softmax(1).max(1)
        sums = sums + binned(probability, predicted == labels)
    return {"ece": (sums[:, 3].abs().sum() / sums[:, 0].sum()).item()}
