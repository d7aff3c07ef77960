"""Risk-coverage figures of weighted samples, for all resamples of a bootstrap, or all held-out splits, in one call.

Samples of equal confidence form a group without internal order. Units are resampled or split: a unit is an image, with its one
sample or, in segmentation, its pixels. Weights (units, R) say how often each unit counts in each of R draws; samples are sorted
only once, not per draw.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.special import digamma
from torch import Tensor

RISKS = (0.005, 0.01, 0.02, 0.05)
COVERAGES = (0.2, 0.8)
# The figures: heading, factor from the fraction to the printed number, decimals.
FIGURES = {
    "error": ("error %", 100, 2),
    "aurc": ("AURC", 1, 5),
    "excess_aurc": ("excess AURC", 1, 5),
    **{f"coverage_at_risk_{100 * risk:g}": (f"coverage % at {100 * risk:g} % risk", 100, 2) for risk in RISKS},
    **{f"risk_at_coverage_{100 * c:g}": (f"risk % at {100 * c:g} % coverage", 100, 2) for c in COVERAGES},
    "auroc": ("AUROC", 1, 4),
}
TABLE_SHARE = 16  # a table of harmonic numbers pays off up to this many entries per requested number


class Ranking(NamedTuple):
    """Samples and errors of each group in each unit, sparse int (groups, units), the most confident group first.

    Neighbouring groups without an error may be joined: no figure looks inside a run of right predictions.
    """

    samples: sparse.csr_array
    errors: sparse.csr_array


class Groups(NamedTuple):
    """The groups that hold errors, under each of R weightings: integers (G, R).

    before, errors_before: samples and errors in all more confident groups. total, wrong: (R,) int64, all samples and errors,
    including those of the other groups.
    """

    before: np.ndarray
    size: np.ndarray
    errors_before: np.ndarray
    errors: np.ndarray
    total: np.ndarray
    wrong: np.ndarray


def rank(score: np.ndarray, wrong: np.ndarray, unit: np.ndarray | None = None, units: int | None = None) -> Ranking:
    """The ranking of samples: score (N,), wrong (N,) bool, and unit (N,), the unit of each among `units`; None: one unit each."""
    order = np.argsort(-score, kind="stable")
    score, wrong = score[order], wrong[order]
    unit = order if unit is None else unit[order]
    starts = np.flatnonzero(np.r_[True, score[1:] != score[:-1]])
    faulty = np.add.reduceat(wrong, starts, dtype=np.int64) > 0
    starts = starts[faulty | np.r_[True, faulty[:-1]]]  # consecutive groups without errors are joined
    units = units or len(score)
    whole = np.int32 if len(score) < 2**24 else np.int64
    samples = sparse.csr_array((np.ones(len(score), whole), unit, np.r_[starts, len(score)]), (len(starts), units))
    where = np.searchsorted(starts, np.flatnonzero(wrong), side="right") - 1
    errors = sparse.coo_array((np.ones(len(where), whole), (where, unit[wrong])), samples.shape).tocsr()
    return Ranking(samples, errors)


def weigh(ranking: Ranking, weights: np.ndarray) -> Groups:
    """The ranking's groups under integer weights (units, R)."""
    size, faulty = ranking.samples @ weights, np.flatnonzero(np.diff(ranking.errors.indptr))
    upto = np.cumsum(size, axis=0, dtype=size.dtype)
    errors = ranking.errors[faulty] @ weights
    errors_upto = np.cumsum(errors, axis=0, dtype=errors.dtype)
    size, wrong = size[faulty], errors.sum(0, dtype=np.int64)
    return Groups(upto[faulty] - size, size, errors_upto - errors, errors, upto[-1].astype(np.int64), wrong)


def figures(groups: Groups) -> dict[str, np.ndarray]:
    """Every entry of FIGURES, (R,) float64 fractions, NaN where it is not defined.

    aurc: expected risk of the n most confident samples, averaged over n (Geifman & El-Yaniv 2017). excess_aurc: aurc minus that
    of the best ranking of as many errors (Geifman et al. 2019). coverage_at_risk: the largest coverage whose risk does not exceed
    the level, only at boundaries of groups; 0 if there is none. risk_at_coverage_20: of the ceil(0.2 N) most confident samples.
    auroc: the probability that a right prediction ranks above a wrong one.
    """
    before, size, errors_before, errors, total, wrong = groups
    right = total - wrong
    harmonic = _harmonic(int(total.max(initial=0)), before.size)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 gives the NaN that means: not defined
        # An error at rank j counts in the risk at n = j, ..., N, in total H(N) - H(j - 1). Averaged over the ranks of its group,
        # this is H(N) - H(end) + 1 - before * (H(end) - H(before)) / size.
        end = harmonic(before + size)
        counted = harmonic(total) - end + 1 - before * (end - harmonic(before)) / np.maximum(size, 1)
        aurc = np.einsum("gr,gr->r", errors, counted) / total
        best = (wrong - right * (harmonic(total) - harmonic(right))) / total
        result = {"error": wrong / total, "aurc": aurc, "excess_aurc": aurc - best}
        # Risk falls along a run without errors, so the largest coverage ends where a group with errors begins, or at N. It
        # cannot end after more than max(RISKS) N errors: even at coverage 1 the risk would be too high.
        rows = max(
            np.searchsorted(column, max(RISKS) * all_, "right") for column, all_ in zip(errors_before.T, total, strict=True)
        )
        risk_before = errors_before[:rows] / before[:rows]
        for level in RISKS:
            largest = np.where(risk_before <= level, before[:rows], 0).max(0, initial=0)
            result[f"coverage_at_risk_{100 * level:g}"] = np.where(wrong / total <= level, total, largest) / total
        for share in COVERAGES:
            answered = -(-round(5 * share) * total // 5)  # in integers: 0.2 N in floating point may exceed N/5
            result[f"risk_at_coverage_{100 * share:g}"] = errors_among(groups, answered[None])[0] / answered
        above = np.einsum("gr,gr->r", errors, before - errors_before + (size - errors) / 2)  # right predictions above wrong ones
        result["auroc"] = above / (wrong * right)
    return result


def errors_among(groups: Groups, answered: np.ndarray) -> np.ndarray:
    """(C, R) expected number of errors among the `answered` (C, R), each at least 1, most confident samples. The order within a
    group is random."""
    if not len(groups.before):
        return np.zeros(answered.shape)
    found = np.empty(answered.shape)
    for column, limits in enumerate(answered.T):
        before, size, errors_before, errors = (part[:, column] for part in groups[:4])
        row = np.searchsorted(before, limits) - 1  # the last group that begins before the limit
        share = (limits - before[row]) / np.maximum(size[row], 1)
        found[:, column] = np.where(row < 0, 0, errors_before[row] + errors[row] * share.clip(0, 1))
    return found


def aurc(confidence: Tensor, right: Tensor) -> float:
    """Only the figure of this name, of confidence (N,) and right (N,) bool."""
    groups = weigh(rank(confidence.double().numpy(), ~right.numpy()), np.ones((len(right), 1), np.int32))
    return figures(groups)["aurc"].item()


def curve(groups: Groups, coverages: np.ndarray) -> np.ndarray:
    """(C, R) expected risk of the ceil(c N) most confident samples, at each coverage c of `coverages` (C,)."""
    answered = np.ceil(np.round(coverages[:, None] * groups.total, 9)).clip(1)
    return errors_among(groups, answered) / answered


def _harmonic(largest: int, asked: int) -> Callable[[np.ndarray], np.ndarray]:
    """The function n -> 1 + 1/2 + ... + 1/n for integers up to `largest`, to be evaluated at about `asked` of them."""
    if largest > TABLE_SHARE * asked:
        return lambda n: digamma(n + 1.0) + np.euler_gamma
    return np.r_[0.0, np.cumsum(1 / np.arange(1.0, largest + 1))].__getitem__
