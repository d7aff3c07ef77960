"""Intra-class variation and inter-class separability of penultimate features (Kornblith et al., NeurIPS 2021)."""

import torch
from torch import Tensor

from metrics.outputs import Outputs, Training

CHUNK = 8192  # rows converted to float64 at a time
ROUNDING = 1e-12  # distances of unit vectors in float64 are accurate to about 1e-15


class ClassSums:
    """For each class, the sum (K, D) float64 of its unit features and their number (K,), batch by batch: memory O(K D)."""

    def __init__(self, classes: int):
        self.sums, self.counts = None, torch.zeros(classes, dtype=torch.float64)

    def add(self, features: Tensor, labels: Tensor) -> Tensor:
        """Add a batch's features (B, D) with labels (B,). Returns its unit features, float64."""
        unit = torch.nn.functional.normalize(features.double(), dim=1)
        if self.sums is None:
            self.sums = torch.zeros(len(self.counts), unit.shape[1], dtype=torch.float64)
        self.sums.index_add_(0, labels, unit)
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        return unit

    def variation(self) -> dict[str, float | None]:
        """feature_variation of all that was added. Classes without samples do not count. R2 is None if all features coincide."""
        there = self.counts > 0
        means = self.sums[there] / self.counts[there].unsqueeze(1)
        within = 1 - means.square().sum(1).mean().item()
        total = 1 - means.mean(0).square().sum().item()
        return {"d_within": within, "d_total": total, "r2": 1 - within / total if total > ROUNDING else None}


def feature_variation(features: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Intra-class variation d_within, d_total and inter-class separability R2 = 1 - d_within / d_total (Kornblith et al.).

    Distances are cosine distances between penultimate features (N, D), including the pairs of a feature with itself; classes
    count equally. With unit features, both depend only on the class means, so the cost is O(N D).
    """
    classes, index = labels.unique(return_inverse=True)
    found = ClassSums(len(classes))
    for rows, which in zip(features.split(CHUNK), index.split(CHUNK), strict=True):
        found.add(rows, which)
    return found.variation()


def measure(test: Outputs, train: Training | None) -> dict[str, float | None]:
    of_test = feature_variation(test.features, test.labels) if test.features is not None else {}
    of_both = {"train": train.variation if train else {}, "val": of_test}
    return {f"{key}_{split}": found.get(key) for split, found in of_both.items() for key in ("d_within", "r2")}
