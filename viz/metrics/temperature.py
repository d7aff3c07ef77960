"""Temperature scaling (Guo et al. 2017): T is fitted on held-out images, and the calibration is measured on the others."""

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from metrics.calibration_error import BINS, binned, bins_of
from metrics.classification import columns
from metrics.outputs import Outputs
from metrics.resampling import splits
from metrics.scores import chunks
from metrics.selection import FRACTION, REPEATS, SEED

COLDEST, HOTTEST = 0.01, 100.0  # the range of temperatures


def measure(test: Outputs, train: Outputs | None) -> dict[str, float]:
    """T, and ECE and NLL at T, means over the random splits of what comes out on the images that are not held out."""
    logits, labels, unit = test.sampled
    found = []
    for held_out in splits(test.units, FRACTION, REPEATS, SEED).T:
        held = torch.from_numpy(held_out)[unit]
        temperature = fit_temperature(logits, labels, held.nonzero().squeeze(1))
        figures, _ = at_temperature(logits, labels, (~held).nonzero().squeeze(1), temperature)
        found.append((temperature, figures["ece"], figures["nll"]))
    return dict(zip(("temperature", "ece_temperature", "nll_temperature"), np.mean(found, 0).tolist(), strict=True))


def fit_temperature(logits: Tensor, labels: Tensor, index: Tensor | None = None) -> float:
    """The T in [COLDEST, HOTTEST] of lowest NLL of softmax(z / T), for logits (N, K) and labels (N,), or their rows `index`.

    The NLL is convex in 1 / T, so the root of its slope there, E_softmax[z] - z_label on average, is the only one; where there is
    none, an end of the range is best: the coldest where every prediction is right, the hottest where the logits mislead.
    """

    def slope(log_t: float) -> float:
        total = 0.0
        for rows, targets in chunks(logits, labels, index):
            rows = rows - rows.gather(1, targets.unsqueeze(1))  # they may be the caller's own
            total += ((rows * np.exp(-log_t)).softmax(1) * rows).sum().item()
        return total

    cold, hot = np.log([COLDEST, HOTTEST])
    if slope(hot) >= 0:
        return HOTTEST
    if slope(cold) <= 0:
        return COLDEST
    return float(np.exp(brentq(slope, cold, hot, xtol=1e-9)))


def at_temperature(logits: Tensor, labels: Tensor, index: Tensor, temperature: float) -> tuple[dict[str, float], np.ndarray]:
    """ece, classwise_ece, nll and brier of logits / temperature, and the bins (BINS, 3) of the reliability diagram.

    Of logits (N, K) and labels (N,) the rows `index` (n,). Classwise ECE (Kull et al. 2019): the ECE of each class's probability
    against how often it is the label, mean over the classes. Bins: samples, sum of confidence, right predictions.
    """
    classes, count = logits.shape[1], len(index)
    gap = torch.zeros(classes * BINS, dtype=torch.float64)  # sum of probability less labels, by class and bin
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
