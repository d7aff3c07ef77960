"""Slow, plain implementations with which the tests compare the fast ones."""

import torch
from torch import Tensor


def risk_coverage(confidence: Tensor, right: Tensor) -> Tensor:
    """Risk (N,) float64 at coverages 1/N, ..., 1: within equal confidences the expected risk of a random order."""
    order = confidence.argsort(descending=True)
    _, group, size = torch.unique_consecutive(confidence[order], return_inverse=True, return_counts=True)
    errors = torch.zeros(len(size), dtype=torch.float64).index_add_(0, group, (~right[order]).double())
    expected = (errors / size)[group]
    return expected.cumsum(0) / torch.arange(1, len(order) + 1, dtype=torch.float64)


def aurc(confidence: Tensor, right: Tensor) -> float:
    """Area under the risk-coverage curve: the mean of risk_coverage."""
    return risk_coverage(confidence, right).mean().item()


def ece(confidence: Tensor, right: Tensor) -> float:
    """Expected calibration error with 15 bins (low, high]: the mean over samples of |confidence - accuracy| of its bin."""
    total = 0.0
    for bin in range(15):
        inside = (confidence > bin / 15) & (confidence <= (bin + 1) / 15)
        total += (confidence[inside].double().sum() - right[inside].double().sum()).abs().item()
    return total / len(confidence)
