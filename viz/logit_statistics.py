"""What analysis.py needs to know of each sample's logits, in one pass over them: chunks in float64, the file mapped."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from metrics import aurc, ece

CHUNK = 1 << 19  # logits turned to float64 at a time: 4 MB, several times over
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
DENSITY_BINS = 200


@dataclass
class Samples:
    """A row a sample, float64 (N,) unless said: what the figures show and the table averages."""

    near_zero: Tensor  # share of the logits with |z| < threshold
    confidence: Tensor  # maximum softmax probability
    top: Tensor  # largest logit
    mean: Tensor  # mean logit
    right: Tensor  # bool: the prediction is the label
    in_top5: Tensor  # bool
    nll: Tensor  # nats
    brier: Tensor  # sum over classes
    regularisation: Tensor  # the two parts of label smoothing's extra term, for alpha 1
    error_enhancement: Tensor


def samples(logits: Tensor, labels: Tensor, threshold: float) -> Samples:
    """Logits (N, K) of any floating type and labels (N,) int64, looked at chunk by chunk: O(N K) time, O(N) memory.

    Label smoothing adds alpha (z_t - mean z) to the cross-entropy. Over the classes m below and above the target t it is a
    regularisation part, alpha/K sum_{z_m < z_t} (z_t - z_m), and an error-enhancement part, alpha/K sum_{z_m > z_t} (z_t - z_m),
    never positive (MaxSup, arXiv:2502.15798).
    """
    # Made beforehand: small results between large chunks would keep the memory of these from being used again.
    found = torch.empty(len(fields(Samples)), len(logits), dtype=torch.float64)
    step = max(1, CHUNK // logits.shape[1])
    for part, rows, targets in zip(found.split(step, 1), logits.split(step), labels.split(step)):
        z, column = rows.double(), targets.unsqueeze(1)
        target = z.gather(1, column)
        gaps = target - z
        below, above = gaps.clamp(min=0).mean(1), gaps.clamp_(max=0).mean(1)
        top, predicted = z.max(1)
        mean = z.mean(1)
        near = (rows.abs() < threshold).double().mean(1)  # in the file's own type, as near_zero of metrics.py
        in_top5 = (rows.topk(min(5, rows.shape[1])).indices == column).any(1)
        p = (z - top.unsqueeze(1)).exp_()  # float64 rows are the caller's own
        total = p.sum(1)
        nll = total.log() + top - target.squeeze(1)
        p /= total.unsqueeze(1)
        brier = p.square().sum(1) - 2 * p.gather(1, column).squeeze(1) + 1
        columns = (near, 1 / total, top, mean, predicted == targets, in_top5, nll, brier, below, above)
        for place, column in zip(part, columns):
            place.copy_(column)
    rows = Samples(*found)
    rows.right, rows.in_top5 = rows.right.bool(), rows.in_top5.bool()
    return rows


def summary(rows: Samples, alpha: float) -> dict[str, float]:
    """The numbers of the table. Quantiles and means of z_max - mean z are None where no prediction is right, or none wrong."""
    gap = rows.top - rows.mean
    numbers = {
        "images": len(gap),
        "top1": 100 * rows.right.double().mean().item(),
        "top5": 100 * rows.in_top5.double().mean().item(),
        "nll": rows.nll.mean().item(),
        "brier": rows.brier.mean().item(),
        "ece": ece(rows.confidence, rows.right),
        "aurc": aurc(rows.confidence, rows.right),
        "near_zero": rows.near_zero.mean().item(),
        "ls_regularisation": alpha * rows.regularisation.mean().item(),
        "ls_error_enhancement": alpha * rows.error_enhancement.mean().item(),
        "ls_alpha": alpha,
    }
    for name, which in (("right", rows.right), ("wrong", ~rows.right)):
        part = gap[which]
        levels = part.quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist() if 0 < len(part) < 1 << 24 else None
        numbers[f"gap_{name}_mean"] = part.mean().item() if len(part) else None
        numbers[f"gap_{name}_quantiles"] = dict(zip(map(str, QUANTILES), levels)) if levels else None
    return numbers


def density(logits: Tensor, low: float, high: float) -> Tensor:
    """Histogram (DENSITY_BINS,) float64 of all logits from low to high, as a density that sums to 1 over the bins' widths."""
    counts = torch.zeros(DENSITY_BINS, dtype=torch.float64)
    for rows in logits.split(max(1, 4 * CHUNK // logits.shape[1])):
        counts += torch.histc(rows.float(), DENSITY_BINS, low, high).double()
    return counts / logits.numel() / ((high - low) / DENSITY_BINS)
