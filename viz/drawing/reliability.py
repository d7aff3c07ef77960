"""Reliability diagrams, before and after a temperature."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from drawing import style
from metrics.calibration_error import BINS


def draw(diagrams: dict[str, np.ndarray], models: dict[str, dict], path: Path) -> None:
    """A column per model, before and after the temperature: how often the predictions of a bin are right. bins: (2, BINS, 3)."""
    figure, axes = plt.subplots(
        2, len(diagrams), figsize=(max(3.3 * len(diagrams), 4), 6.2), squeeze=False, sharex=True, sharey=True
    )
    edges = np.arange(BINS) / BINS
    for column, (name, bins) in enumerate(diagrams.items()):
        for axis, (count, confidence, right), which in zip(
            axes[:, column], bins.transpose(0, 2, 1), ("before", "after"), strict=True
        ):
            filled = count > 0
            said, found = confidence[filled] / count[filled], right[filled] / count[filled]
            axis.bar(edges[filled], found, 1 / BINS, align="edge", color=style.COLOURS[5], edgecolor="white", label="right")
            hatched = {"color": "none", "edgecolor": style.COLOURS[4], "hatch": "///", "linewidth": 0.8}
            axis.bar(edges[filled], said - found, 1 / BINS, found, align="edge", label="gap to the confidence", **hatched)
            axis.plot([0, 1], [0, 1], "--", color="0.4", linewidth=1)
            axis.stairs(count / count.sum(), np.arange(BINS + 1) / BINS, color="black", linewidth=1, label="share of the samples")
            ece = models[name][which]["ece"]
            temperature = f", T = {np.mean(models[name]['temperatures']):.2f}" if which == "after" else ""
            axis.set(xlim=(0, 1), ylim=(0, 1), title=f"{name}{temperature}: ECE {ece:.4f}")
        axes[1, column].set_xlabel("confidence (MSP)")
    for axis, which in zip(axes[:, 0], ("before", "after the temperature"), strict=True):
        axis.set_ylabel(f"{which}\nshare that is right")
    axes[0, 0].legend(loc="upper left", fontsize=8)
    style.save(figure, path)
