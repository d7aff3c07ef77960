"""Metrics of a classifier on a split, by the definitions of this repository."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CALIBRATION_BINS = 15


def outcomes(logits: Tensor, labels: Tensor) -> Tensor:
    """The per-sample values that the metrics need, from logits (N, K) and labels (N,): (4, N) float64.

    The rows are: right (0 or 1), maximum softmax probability (MSP) - 1, negative log-likelihood (nats), probability of the
    prediction. MSP - 1 is computed from differences to the largest logit, so that it ranks samples correctly even near certainty.
    """
    z = logits.double()
    top, predicted = z.max(1)
    odds = (z - top.unsqueeze(1)).exp().scatter_(1, predicted.unsqueeze(1), 0.0).sum(1)
    nll = F.cross_entropy(z, labels, reduction="none")
    return torch.stack([(predicted == labels).double(), -odds / (1 + odds), nll, 1 / (1 + odds)])


def summarise(found: Tensor) -> dict[str, float]:
    """top1 (percent), nll (nats), ece (15 equal-width bins) and aurc (by MSP) from outcomes (4, N)."""
    right, score, nll, confidence = found.cpu().numpy()
    index = np.ceil(confidence * CALIBRATION_BINS).astype(int).clip(1, CALIBRATION_BINS)  # bins (0, 1/15], (1/15, ...
    gaps = np.bincount(index, confidence - right)
    return {
        "top1": 100 * right.mean().item(),
        "nll": nll.mean().item(),
        "ece": np.abs(gaps).sum().item() / len(right),
        "aurc": aurc(score, 1 - right),
    }


def aurc(score: np.ndarray, wrong: np.ndarray) -> float:
    """Mean risk over the coverages 1/N to 1, most confident samples first. score, wrong: (N,).

    Samples of equal confidence count as randomly ordered; the result is the expectation over these orders.
    """
    _, group = np.unique(-score, return_inverse=True)
    expected = (np.bincount(group, wrong) / np.bincount(group))[np.sort(group)]
    return float((expected.cumsum() / np.arange(1, len(wrong) + 1)).mean())
