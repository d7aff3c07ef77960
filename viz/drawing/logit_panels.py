"""The panels of analysis.py: each function fills axes with the models named in `only`, on the scales of all models.

PANELS, at the end, names those that analysis.py draws.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch

from drawing import style
from metrics.samples import DENSITY_BINS, Samples

POINTS = 5000  # more dots than these hide one another and make the PDF heavy
RIGHT, WRONG = style.COLOURS[0], style.COLOURS[4]


class Models(NamedTuple):
    """What there is to draw of models by name: their samples; densities (DENSITY_BINS,) of their logits from low to high."""

    rows: dict[str, Samples]
    densities: dict[str, np.ndarray]
    low: float
    high: float
    classes: int
    threshold: float  # a logit z is near zero if |z| is below this


def near_zero_histogram(axes, models: Models, only: list[str]) -> None:
    """How the share of near-zero logits is distributed over the samples."""
    rows, classes, threshold = models.rows, models.classes, models.threshold
    highest = max(max(part.near_zero.max().item() for part in rows.values()), 1 / classes)
    # A share is a multiple of 1 / K: with few classes each multiple gets its bar, with many a bar takes several.
    step = max(1, math.ceil(highest * classes / 40)) / classes
    edges = step * (np.arange(math.floor(highest / step + 1.5) + 1) - 0.5)
    for axis, name in zip(axes, only, strict=True):
        share = rows[name].near_zero.numpy()
        percent = 100 * np.histogram(share, edges)[0] / len(share)
        axis.bar(100 * (edges[:-1] + step / 2), percent, width=90 * step, color=_colours(rows)[name])
        axis.set(title=_title(axes, only, name, f"{100 * share.mean():.2f} % on average"), xlabel=_near_zero(threshold))
    axes[0].set_ylabel("samples (%)")


def near_zero_scatter(axes, models: Models, only: list[str]) -> None:
    """Top-1 probability against the share of near-zero logits, a dot per sample."""
    rows = models.rows
    for axis, name in zip(axes, only, strict=True):
        share, top, _, said = _drawn(rows[name].near_zero, rows[name].confidence, rows[name].right)
        axis.scatter(100 * share, top, s=8, alpha=0.4, color=_colours(rows)[name], linewidths=0, rasterized=True)
        axis.set(title=_title(axes, only, name, said), xlabel=_near_zero(models.threshold), ylim=(-0.02, 1.02))
    axes[0].set_ylabel("top-1 probability")


def logit_density(axes, models: Models, only: list[str]) -> None:
    """Density of all logits; logarithmic, for most lie close together and the largest far away."""
    densities, low, high = models.densities, models.low, models.high
    centres = np.linspace(low, high, DENSITY_BINS, endpoint=False) + (high - low) / DENSITY_BINS / 2
    held = np.concatenate([values[values > 0] for values in densities.values()])
    for axis, name in zip(axes, only, strict=True):
        axis.fill_between(centres, densities[name], held.min() / 2, step="mid", color=_colours(densities)[name], alpha=0.8, lw=0)
        axis.set(title=_title(axes, only, name, "all logits"), xlabel="logit z", yscale="log")
        axis.set_ylim(held.min() / 2, held.max() * 2)
    axes[0].set_ylabel("density (1 / logit)")


def top_against_mean(axes, models: Models, only: list[str]) -> None:
    """Logit of the top class against the mean of all; a dot per sample, right and wrong predictions."""
    rows = models.rows
    for axis, name in zip(axes, only, strict=True):
        mean, top, right, said = _drawn(rows[name].mean, rows[name].top, rows[name].right)
        for which, colour, alpha, label in ((right, RIGHT, 0.35, "right"), (~right, WRONG, 0.7, "wrong")):
            axis.scatter(mean[which], top[which], s=8, alpha=alpha, color=colour, linewidths=0, rasterized=True, label=label)
        axis.set_title(_title(axes, only, name, said), pad=20)
        axis.set_xlabel("mean of the logits")
    axes[0].set_ylabel("logit of the top class")
    # Between title and axes, where no point lies: anywhere inside it would hide some.
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 0.99), "borderaxespad": 0.1}
    legend = axes[0].legend(**above, ncols=2, fontsize=9, markerscale=2)
    for handle in legend.legend_handles:
        handle.set_alpha(1)


def _drawn(x: torch.Tensor, y: torch.Tensor, right: torch.Tensor):
    """Arrays of at most POINTS samples, drawn at random by a fixed seed, and the phrase that says how many."""
    count = len(x)
    if count <= POINTS:
        return x.numpy(), y.numpy(), right.numpy(), f"{count:,} samples"
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:POINTS]
    return x[chosen].numpy(), y[chosen].numpy(), right[chosen].numpy(), f"{POINTS:,} of {count:,} samples"


def _colours(models) -> dict[str, str]:
    return dict(zip(models, itertools.cycle(style.COLOURS), strict=False))


def _title(axes, only: list[str], name: str, said: str) -> str:
    """A model's name over its panel, but where the whole figure is of one model."""
    return said if len(only) == 1 and len(axes[0].figure.axes) > 1 else f"{name}: {said}"


def _near_zero(threshold: float) -> str:
    return f"logits with |z| < {threshold:g} (% of a sample's)"


PANELS = {panel.__name__: panel for panel in (near_zero_histogram, near_zero_scatter, logit_density, top_against_mean)}
