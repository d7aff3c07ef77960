"""Share of near-zero logits (MaxSup, arXiv:2502.15798, Figure 3)."""

from common.options import THRESHOLD

from torch import Tensor

from metrics.outputs import Outputs


def near_zero(logits: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """(N,) float64 share of a sample's K logits with |z| < threshold, compared in the logits' own dtype."""
    return (logits.abs() < threshold).double().mean(1)


def measure(test: Outputs, train: Outputs | None) -> dict[str, float]:
    return {"near_zero": test.mean(lambda logits, _: near_zero(logits))}
