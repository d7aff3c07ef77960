"""What analysis.py draws for each sample and averages in its table, computed in one pass over the logits."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from metrics.calibration_error import ece
from metrics.classification import columns
from metrics.label_smoothing_terms import terms
from metrics.near_zero import near_zero
from metrics.outputs import ELEMENTS
from metrics.risk_coverage import aurc

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DENSITY_BINS = 200


@dataclass
class Samples:
    """One entry per sample, float64 (N,) unless noted."""

    msp: Tensor  # largest softmax probability, minus 1
    right: Tensor  # bool: the prediction is the label
    in_top5: Tensor  # bool
    nll: Tensor  # nats
    brier: Tensor  # sum over classes
    near_zero: Tensor  # share of the logits with |z| < threshold
    top: Tensor  # largest logit
    mean: Tensor  # mean logit
    regularisation: Tensor  # the two parts of label smoothing's extra term, for alpha 1
    error_enhancement: Tensor

    @property
    def confidence(self) -> Tensor:
        return 1 + self.msp


def samples(logits: Tensor, labels: Tensor, threshold: float) -> Samples:
    """From logits (N, K) of any floating type and labels (N,) int64, processed in chunks: O(N K) time, O(N) memory."""
    # Allocated first: small results between large chunks would keep the memory of the chunks from being reused.
    found = torch.empty(len(fields(Samples)), len(logits), dtype=torch.float64)
    step = max(1, ELEMENTS // logits.shape[1])
    for part, rows, targets in zip(found.split(step, 1), logits.split(step), labels.split(step), strict=True):
        part[:5] = columns(rows, targets).T
        part[5], part[6], part[7] = near_zero(rows, threshold), rows.amax(1), rows.double().mean(1)
        part[8], part[9] = terms(rows, targets)
    rows = Samples(*found)
    rows.right, rows.in_top5 = rows.right.bool(), rows.in_top5.bool()
    return rows


def summary(rows: Samples, alpha: float) -> dict[str, float]:
    """The numbers of the table. Means and quantiles of z_max - mean z are None if no prediction is right, or none wrong.

    The quantiles are also None from 2**24 predictions on.
    """
    gap = rows.top - rows.mean
    numbers = {
        "images": len(gap),
        "top1": 100 * rows.right.double().mean().item(),
        "top5": 100 * rows.in_top5.double().mean().item(),
        "nll": rows.nll.mean().item(),
        "brier": rows.brier.mean().item(),
        "ece": ece(rows.confidence, rows.right),
        "aurc": aurc(rows.msp, rows.right),
        "near_zero": rows.near_zero.mean().item(),
        "regularisation": alpha * rows.regularisation.mean().item(),
        "error_enhancement": alpha * rows.error_enhancement.mean().item(),
        "alpha": alpha,
    }
    for name, which in (("right", rows.right), ("wrong", ~rows.right)):
        part = gap[which]
        levels = part.quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist() if 0 < len(part) < 1 << 24 else None
        numbers[f"gap_{name}_mean"] = part.mean().item() if len(part) else None
        numbers[f"gap_{name}_quantiles"] = dict(zip(map(str, QUANTILES), levels, strict=True)) if levels else None
    return numbers


def density(logits: Tensor, low: float, high: float) -> Tensor:
    """Histogram (DENSITY_BINS,) float64 of all logits from low to high, as a density whose integral is 1."""
    counts = torch.zeros(DENSITY_BINS, dtype=torch.float64)
    for rows in logits.split(max(1, 4 * ELEMENTS // logits.shape[1])):
        counts += torch.histc(rows.float(), DENSITY_BINS, low, high).double()
    return counts / logits.numel() / ((high - low) / DENSITY_BINS)
