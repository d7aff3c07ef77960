"""Intra-class variation and inter-class separability of penultimate features (Kornblith et al., NeurIPS 2021)."""

import torch
from torch import Tensor

from metrics.outputs import Outputs

CHUNK = 8192  # rows turned to float64 at a time
ROUNDING = 1e-12  # distances of unit vectors in float64 are right to about 1e-15


def feature_variation(features: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Intra-class variation d_within, d_total and inter-class separability R2 = 1 - d_within / d_total (Kornblith et al.).

    Distances are cosine distances between penultimate features (N, D), pairs with themselves included; classes count
    equally. With unit features both are functions of the class means alone, so the cost is O(N D).
    """
    classes, index = labels.unique(return_inverse=True)
    sums = torch.zeros(len(classes), features.shape[1], dtype=torch.float64)
    for rows, which in zip(features.split(CHUNK), index.split(CHUNK), strict=True):
        sums.index_add_(0, which, torch.nn.functional.normalize(rows.double(), dim=1))
    return variation_of_sums(sums, torch.bincount(index))


def variation_of_sums(sums: Tensor, counts: Tensor) -> dict[str, float | None]:
    """feature_variation from the sums (K, D) float64 of each class's unit features and the counts (K,), as images pass.

    Classes without samples do not count. R2 is None where all features are one.
    """
    there = counts > 0
    means = sums[there] / counts[there].unsqueeze(1)
    within = 1 - means.square().sum(1).mean().item()
    total = 1 - means.mean(0).square().sum().item()
    return {"d_within": within, "d_total": total, "r2": 1 - within / total if total > ROUNDING else None}


def measure(test: Outputs, train: Outputs | None) -> dict[str, float | None]:
    found = {}
    for split, outputs in (("train", train), ("val", test)):
        known = outputs is not None and outputs.features is not None
        variation = feature_variation(outputs.features, outputs.labels) if known else {}
        found |= {f"{key}_{split}": variation.get(key) for key in ("d_within", "r2")}
    return found
