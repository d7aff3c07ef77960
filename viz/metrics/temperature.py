"""Temperature scaling (Guo et al. 2017): T is fitted on held-out images, and the calibration is measured on the others."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metrics.calibration_error import BINS, binned, bins_of, ece
from metrics.classification import columns
from metrics.outputs import Outputs
from metrics.scores import chunks

COLDEST, HOTTEST = 0.01, 100.0  # the range of temperatures
TOLERANCE = 1e-8  # of a temperature, relative


def measure(test: Outputs, train: Outputs | None) -> dict[str, float | None]:
    """T, and ECE and NLL at T on the images that are not held out, averaged over the random splits.

    Splits that hold out all labelled pixels, or none, are skipped; None if all splits are.
    """
    found, right = test.tempered, test.sampled[0].argmax(1) == test.sampled[1]
    rows = []
    for temperature, msp, nll, held in zip(found.temperatures, found.msp, found.nll, found.held_out, strict=True):
        kept = ~held
        if kept.all() or held.all():
            continue
        rows.append((temperature, ece(1 + msp[kept], right[kept]), nll[kept].mean().item()))
    names = ("temperature", "ece_temperature", "nll_temperature")
    return dict(zip(names, np.mean(rows, 0).tolist(), strict=True)) if rows else dict.fromkeys(names)


class Tempered(NamedTuple):
    """temperatures (R,), one per usable split; MSP - 1 and NLL (R, N) float64 of every sample at it; held_out (R, N) bool.

    note: about the splits that are not usable, if there are any.
    """

    temperatures: list[float]
    msp: Tensor
    nll: Tensor
    held_out: Tensor
    note: str | None


def temper(logits: Tensor, labels: Tensor, held_out: Tensor) -> Tempered:
    """Fit a temperature to each split, held_out (R, N) bool, of logits (N, K) and labels (N,), and apply it to all samples."""
    temperatures, kept, note = fit_each(logits, labels, held_out)
    temperatures, held_out = [temperatures[split] for split in kept], held_out[kept]
    msp, nll = torch.empty(2, *held_out.shape, dtype=torch.float64)
    row = 0
    for rows, targets in chunks(logits, labels):
        part = slice(row, row := row + len(rows))
        top, predicted = rows.max(1)
        gaps = (rows - top.unsqueeze(1)).scatter_(1, predicted.unsqueeze(1), -torch.inf)  # of the other logits to the largest
        at_target = torch.where(predicted == targets, 0.0, gaps.gather(1, targets.unsqueeze(1)).squeeze(1))
        for split, temperature in enumerate(temperatures):
            rest = (gaps / temperature).exp_().sum(1)
            msp[split, part] = -rest / (1 + rest)
            nll[split, part] = rest.log1p() - at_target / temperature
    return Tempered(temperatures, msp, nll, held_out, note)


def fit_each(logits: Tensor, labels: Tensor, held_out: Tensor) -> tuple[list[float], list[int], str | None]:
    """The temperature of each split, held_out (R, N) bool, of logits (N, K) and labels (N,); and the result of `usable`."""
    start = fit_temperature(logits, labels)  # near the optimum of every split
    temperatures = [fit_temperature(logits, labels, held.nonzero().squeeze(1), start) for held in held_out]
    return temperatures, *usable(temperatures)


def usable(temperatures: list[float]) -> tuple[list[int], str | None]:
    """The splits whose NLL has a minimum between COLDEST and HOTTEST; and a note on the others, if there are any.

    There is no minimum if, for example, all held-out predictions are right: the NLL then falls as T falls, down to T = 0. If no
    split has a minimum, all splits count, each with the end of the range towards which its NLL falls.
    """
    inside = [split for split, temperature in enumerate(temperatures) if COLDEST < temperature < HOTTEST]
    if len(inside) == len(temperatures):
        return inside, None
    others = f"{len(temperatures) - len(inside)} of {len(temperatures)} splits"
    note = f"the NLL falls up to the end of the range, T from {COLDEST:g} to {HOTTEST:g}, in {others}"
    return (inside, f"{note}, which are omitted") if inside else (list(range(len(temperatures))), f"{note}: T says little")


def fit_temperature(logits: Tensor, labels: Tensor, index: Tensor | None = None, start: float | None = None) -> float:
    """The T in [COLDEST, HOTTEST] that minimises the NLL of softmax(z / T), for logits (N, K) and labels (N,), or rows `index`.

    The NLL is convex in 1 / T, so its slope in 1 / T, the mean of E_softmax[z] - z_label, has at most one root. If it has none,
    an end of the range is best: the coldest if every prediction is right, the hottest if the logits mislead.
    start: where the search begins, if a value near the optimum is known.
    """

    def slopes(inverse: float) -> tuple[float, float]:
        """The NLL's first and second derivative in 1 / T, summed over the samples: E[z] - z_label and Var[z]."""
        first = second = 0.0
        for rows, targets in chunks(logits, labels, index):
            rows = rows - rows.gather(1, targets.unsqueeze(1))  # not in place: the rows may be the caller's own
            weighted = (rows * inverse).softmax(1).mul_(rows)
            mean = weighted.sum(1)
            first += mean.sum().item()
            second += ((weighted * rows).sum(1) - mean.square()).sum().item()
        return first, second

    low, high = 1 / HOTTEST, 1 / COLDEST
    if start is None and slopes(low)[0] >= 0:
        return HOTTEST
    if slopes(high)[0] <= 0:  # checked with a start, too: a slope that reaches 0 on the way would look like the minimum
        return COLDEST
    at = min(max(1 / start if start else 1.0, low), high)
    for _ in range(200):  # Newton's method inside the bracket given by the signs of the slope; bisection if a step leaves it
        first, second = slopes(at)
        low, high = (at, high) if first < 0 else (low, at)
        step = at - first / second if second > 0 else low
        following = step if low < step < high else (low * high) ** 0.5
        if abs(following / at - 1) < TOLERANCE:
            break
        at = following
    if start is not None and following < 1.0001 / HOTTEST:
        return fit_temperature(logits, labels, index)  # perhaps the end of the range: search again without a start
    return 1 / following


def at_temperature(logits: Tensor, labels: Tensor, index: Tensor, temperature: float) -> tuple[dict[str, float], np.ndarray]:
    """ece, classwise_ece, nll and brier of logits / temperature, and the bins (BINS, 3) of the reliability diagram.

    Only the rows `index` (n,) of logits (N, K) and labels (N,) count. Classwise ECE (Kull et al. 2019): the ECE of each class's
    probability with respect to how often the class is the label, averaged over classes. Bins: samples, sum of confidence, right
    predictions.
    """
    classes, count = logits.shape[1], len(index)
    gap = torch.zeros(classes * BINS, dtype=torch.float64)  # sum of probabilities minus number of labels, by class and bin
    sums, top = torch.zeros(2, dtype=torch.float64), torch.zeros(BINS, 4, dtype=torch.float64)
    for rows, targets in chunks(logits, labels, index):
        rows = rows / temperature
        found, p = columns(rows, targets), rows.softmax(1)
        sums += found[:, 3:].sum(0)
        top += binned(1 + found[:, 0], found[:, 1])
        bins = bins_of(p) + BINS * torch.arange(classes)
        gap.index_add_(0, bins.flatten(), p.flatten())
        gap.index_add_(0, bins.gather(1, targets.unsqueeze(1)).squeeze(1), -torch.ones(len(targets), dtype=torch.float64))
    nll, brier = (sums / count).tolist()
    ece, classwise = top[:, 3].abs().sum().item() / count, gap.abs().sum().item() / count / classes
    return {"ece": ece, "classwise_ece": classwise, "nll": nll, "brier": brier}, top[:, :3].numpy()
