"""Scores by which a classifier rejects its own errors: float64 (n,) from logits (n, K), the higher the more confident.

Near certainty MSP, margin and s_p tend to 1, and rounding would lose their differences. They are therefore returned in forms
that tend to 0 and give the same ranking, computed from differences to the largest logit.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

PLAIN = {"msp": "MSP", "max_logit": "max logit", "entropy": "negative entropy", "energy": "energy", "margin": "margin"}
POWERS = range(1, 11)  # p of the normalised logits
ELEMENTS = 2**20  # logits converted to float64 at a time: 8 MB


def normalised(p: int) -> str:
    """The name of s_p among the scores."""
    return f"s_{p}"


def chunks(
    logits: Tensor, labels: Tensor, index: Tensor | None = None, title: str | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows (n, K) float64 and their labels (n,), a chunk at a time: of all samples, or those of index (M,) int64.

    title: of the progress bar; None: no bar.
    """
    rows = max(1, ELEMENTS // logits.shape[1])
    count = len(logits) if index is None else len(index)
    starts = range(0, max(count, 1), rows)  # if there are no rows, one empty chunk
    for start in tqdm(starts, desc=title, unit="chunk", disable=None if title else True, leave=False):
        part = slice(start, start + rows) if index is None else index[start : start + rows]
        yield logits[part].double(), labels[part]


def plain_scores(logits: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The scores of PLAIN, from float64 logits (n, K), and the predicted classes (n,).

    msp: max softmax - 1. max_logit: max z. entropy: -H(softmax), nats. energy: log sum exp z (Liu et al. 2020). margin:
    largest minus second largest softmax probability, - 1.
    """
    top, predicted = logits.max(1)
    gaps = top.unsqueeze(1) - logits
    odds = (-gaps).exp_()
    odds.scatter_(1, predicted.unsqueeze(1), 0.0)  # of every other class against the predicted one
    rest, second = odds.sum(1), odds.amax(1)
    gaps *= odds
    return {
        "msp": -rest / (1 + rest),
        "max_logit": top,
        "entropy": -(rest.log1p() + gaps.sum(1) / (1 + rest)),
        "energy": top + rest.log1p(),
        "margin": -(rest + second) / (1 + rest),
    }, predicted


def normalised_scores(logits: Tensor, powers: Sequence[int] = POWERS) -> dict[str, Tensor]:
    """s_p(z) = max_k (z_k - mean z) / ||z - mean z||_p for each p in `powers` (Cattelan & Silva 2023; Xia et al. 2025).

    logits: (n, K) float64. The returned value is 1 - s_p**-p, which gives the same ranking: minus the sum of
    (|z_k - mean z| / (max z - mean z))**p over all k but the largest logit's. It is rounded to 46 bits because some scores are
    equal in exact arithmetic (every s_p for two classes, s_1 for logits of which only one exceeds the mean), and rounding errors
    of about 1e-16 must not rank them. Constant logits, whose norm is 0, get -inf, the lowest score.
    """
    size = logits - logits.mean(1, keepdim=True)
    top, predicted = size.max(1)
    # Even a constant row can differ from its mean, because the mean is rounded.
    constant = (logits.amax(1) == logits.amin(1)) | (top <= 0)
    size.abs_().div_(top.masked_fill(constant, 1.0).unsqueeze(1)).scatter_(1, predicted.unsqueeze(1), 0.0)
    scores, power = {}, torch.ones_like(size)
    for p in range(1, max(powers) + 1):
        power *= size
        if p in powers:
            mantissa, exponent = power.sum(1).frexp()
            rounded = ((mantissa * 2.0**46).round() / 2.0**46).ldexp(exponent)
            scores[normalised(p)] = -rounded.masked_fill(constant, torch.inf)
    return scores


def all_scores(logits: Tensor, labels: Tensor, title: str | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """PLAIN and every s_p of logits (N, K) of any precision, each (N,) float64; and which predictions are wrong (N,) bool.

    title: of the progress bar; None: no bar.
    """
    # Columns are preallocated: small tensors kept between the large ones would fragment the memory.
    columns = {name: torch.empty(len(labels), dtype=torch.float64) for name in (*PLAIN, *map(normalised, POWERS))}
    wrong, start = torch.empty(len(labels), dtype=torch.bool), 0
    for rows, targets in chunks(logits, labels, title=title):
        part = slice(start, start := start + len(targets))
        plain, predicted = plain_scores(rows)
        for name, score in (plain | normalised_scores(rows)).items():
            columns[name][part] = score
        wrong[part] = predicted != targets
    return columns, wrong
