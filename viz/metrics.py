"""The papers' numbers, from logits (N, K), labels (N,) and features (N, D): float64 inside, plain floats out.

Definitions are those of the project's README; each function names where its own comes from.
"""

import torch
from torch import Tensor

CHUNK = 8192  # rows turned to float64 at a time, so that 50,000 x 1,000 logits need no second copy


def confidences(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum softmax probability (N,) float64, and the predicted class (N,) int64."""
    parts = [rows.double().softmax(1).max(1) for rows in logits.split(CHUNK)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def classification(logits: Tensor, labels: Tensor, bins: int = 15) -> dict[str, float]:
    """top1 and top5 (%), nll (nats), brier (sum over classes, mean over samples), ece (fraction), aurc (fraction)."""
    nll = brier = top5 = 0.0
    for rows, targets in zip(logits.split(CHUNK), labels.split(CHUNK)):
        log_p = rows.double().log_softmax(1)
        nll -= log_p.gather(1, targets.unsqueeze(1)).sum().item()
        p = log_p.exp()
        brier += (p.square().sum() - 2 * p.gather(1, targets.unsqueeze(1)).sum() + len(targets)).item()
        top5 += (rows.topk(min(5, rows.shape[1])).indices == targets.unsqueeze(1)).sum().item()
    confidence, predicted = confidences(logits)
    right = predicted == labels
    return {
        "top1": 100 * right.double().mean().item(),
        "top5": 100 * top5 / len(labels),
        "nll": nll / len(labels),
        "brier": brier / len(labels),
        "ece": ece(confidence, right, bins),
        "aurc": aurc(confidence, right),
    }


def ece(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017) over equal-width bins (0, 1/bins], ...: confidence (N,), right (N,) bool."""
    index = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.float64)
    gap.index_add_(0, index, confidence.double() - right.double())
    return gap.abs().sum().item() / len(confidence)


def risk_coverage(confidence: Tensor, right: Tensor) -> Tensor:
    """Risk (N,) float64 at coverages 1/N, ..., 1, answering the most confident first (Geifman & El-Yaniv 2017).

    Samples of equal confidence have no order: inside such a group stands the expected risk of a random one.
    """
    order = confidence.argsort(descending=True)
    _, group, size = torch.unique_consecutive(confidence[order], return_inverse=True, return_counts=True)
    errors = torch.zeros(len(size), dtype=torch.float64).index_add_(0, group, (~right[order]).double())
    expected = (errors / size)[group]
    return expected.cumsum(0) / torch.arange(1, len(order) + 1, dtype=torch.float64)


def aurc(confidence: Tensor, right: Tensor) -> float:
    """Area under the risk-coverage curve: the mean of risk_coverage. Smaller is better."""
    return risk_coverage(confidence, right).mean().item()


def feature_variation(features: Tensor, labels: Tensor) -> dict[str, float]:
    """Intra-class variation d_within, d_total and inter-class separability R2 = 1 - d_within / d_total (Kornblith et al. 2021).

    Distances are cosine distances between penultimate features (N, D), pairs with themselves included; classes count
    equally. With unit features both are functions of the class means alone, so the cost is O(N D).
    """
    classes, index = labels.unique(return_inverse=True)
    sums = torch.zeros(len(classes), features.shape[1], dtype=torch.float64)
    for rows, which in zip(features.split(CHUNK), index.split(CHUNK)):
        rows = rows.double()
        sums.index_add_(0, which, rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12))
    return variation_of_sums(sums, torch.bincount(index))


def variation_of_sums(sums: Tensor, counts: Tensor) -> dict[str, float]:
    """feature_variation from the sums (K, D) float64 of each class's unit features and the counts (K,), as images pass.

    Classes without samples do not count.
    """
    there = counts > 0
    means = sums[there] / counts[there].unsqueeze(1)
    within = 1 - means.square().sum(1).mean().item()
    total = 1 - means.mean(0).square().sum().item()
    return {"d_within": within, "d_total": total, "r2": 1 - within / total if total > 0 else float("nan")}


def near_zero(logits: Tensor, threshold: float = 0.01) -> Tensor:
    """(N,) share of a sample's K logits with |z| < threshold (MaxSup's Figure 3)."""
    return (logits.abs() < threshold).double().mean(1)
