"""The two parts of the term that label smoothing adds to the cross-entropy (MaxSup, arXiv:2502.15798)."""

from common.options import ALPHA

import torch
from torch import Tensor

from metrics.outputs import Outputs


def terms(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Regularisation and error enhancement of logits (n, K), labels (n,), for alpha 1: two columns (n,) float64.

    Label smoothing adds alpha (z_t - mean z), t the target. The classes m with smaller logits contribute the regularisation,
    alpha/K sum_{z_m < z_t} (z_t - z_m); those with larger logits contribute the error enhancement, which is never positive,
    alpha/K sum_{z_m > z_t} (z_t - z_m).
    """
    z = logits.double()
    gaps = z.gather(1, labels.unsqueeze(1)) - z
    return gaps.clamp(min=0).mean(1), gaps.clamp_(max=0).mean(1)


def measure(test: Outputs, train: Outputs | None) -> dict[str, float]:
    below, above = test.mean(lambda logits, labels: torch.stack(terms(logits, labels), 1))
    return {"regularisation": ALPHA * below, "error_enhancement": ALPHA * above}
