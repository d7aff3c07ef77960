"""Reliability diagrams, before and after a temperature."""

import matplotlib.pyplot as plt
import numpy as np

from drawing import style
from drawing.panels import Panels
from metrics.calibration_error import BINS

Z = 1.96  # standard deviations of a 95 % interval
FEW = 10  # the bar of a bin with fewer images is pale


def panels(diagrams: dict[str, np.ndarray], models: dict[str, dict]) -> Panels:
    """A column per model, before and after the temperature: how often the predictions of a bin are right, with a 95 % interval.

    diagrams: (2, BINS, 3) by name, before and after, summed over splits: samples, sum of confidence, right predictions. models:
    ece before and after, and temperatures, one per split.
    """
    parts = {}
    for which, row in (("before", 0), ("after", 1)):
        for name, bins in diagrams.items():
            model = models[name]
            temperature = f", T = {np.mean(model['temperatures']):.2f}" if row else ", T = 1"
            words = f"Reliability diagram of {name} {which} the temperature"
            title = f"{style.short(name, 20)}{temperature}: ECE {100 * model[which]['ece']:.2f} %"
            parts[words] = _panel(bins[row] / len(model["temperatures"]), title)
    return Panels(parts, len(diagrams), legend=2, options={"height": 3.3})


def _panel(bins: np.ndarray, title: str):
    def draw(axis) -> None:
        edges, (count, confidence, right) = np.arange(BINS) / BINS, bins.T
        there = count > 0
        said, found = confidence[there] / count[there], right[there] / count[there]
        bars = axis.bar(
            edges[there], found, 1 / BINS, align="edge", color=style.COLOURS[5], edgecolor="white", label="share that is right"
        )
        hatched = {"color": "none", "edgecolor": style.COLOURS[4], "hatch": "///", "linewidth": 0.8}
        gaps = axis.bar(edges[there], said - found, 1 / BINS, found, align="edge", label="gap to the confidence", **hatched)
        low, high = wilson(found, count[there])
        axis.vlines(edges[there] + 0.5 / BINS, low, high, color=plt.rcParams["text.color"], linewidth=1.1, label="95 % interval")
        for bar, gap, images in zip(bars, gaps, count[there], strict=True):  # a bar of a handful of images says little
            bar.set_alpha(1 if images >= FEW else 0.35)
            gap.set_alpha(1 if images >= FEW else 0.35)
        axis.plot([0, 1], [0, 1], "--", color="0.5", linewidth=1)
        axis.stairs(
            count / count.sum(), np.arange(BINS + 1) / BINS, color=style.COLOURS[3], linewidth=1.2, label="share of the images"
        )
        axis.set(xlim=(0, 1), ylim=(0, 1), title=title, xlabel="confidence (MSP)")
        axis.set_ylabel("share that is right")

    return draw


def wilson(share: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's 95 % interval of shares (n,), each of `count` (n,) images."""
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * np.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return (centre - half).clip(0), (centre + half).clip(max=1)
