"""The panels of analysis.py: each function draws one model on an axis and returns a phrase for its title.

PANELS lists those that analysis.py draws.
"""

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from drawing import style
from drawing.panels import Panels
from metrics.samples import DENSITY_BINS, Samples

POINTS = 5000  # more dots would hide one another and make the PDF large


class Models(NamedTuple):
    """What the panels draw, by model name: the samples; densities (DENSITY_BINS,) of the logits from low to high."""

    rows: dict[str, Samples]
    densities: dict[str, np.ndarray]
    low: float
    high: float
    classes: int
    threshold: float  # a logit z is near zero if |z| is below this

    def colour(self, name: str) -> str:
        return style.COLOURS[list(self.rows).index(name) % len(style.COLOURS)]


def near_zero_histogram(axis, models: Models, name: str) -> str:
    """How the share of near-zero logits is distributed over the samples."""
    highest = max(max(part.near_zero.max().item() for part in models.rows.values()), 1 / models.classes)
    # A share is a multiple of 1 / K: with few classes each multiple gets a bar, with many a bar covers several.
    most = round(highest * models.classes)
    step = max(1, math.ceil(most / 40))
    edges = (step * np.arange(most // step + 2) - 0.5) / models.classes
    share = models.rows[name].near_zero.numpy()
    percent = 100 * np.histogram(share, edges)[0] / len(share)
    axis.bar(50 * (edges[:-1] + edges[1:]), percent, width=90 * step / models.classes, color=models.colour(name))
    axis.set(xlabel=_near_zero(models.threshold), ylabel="samples (%)")
    return f"{100 * share.mean():.2f} % on average"


def near_zero_scatter(axis, models: Models, name: str) -> str:
    """Top-1 probability against the share of near-zero logits, a dot per sample.

    A share is a multiple of 1 / K. Each dot is shifted a little at random, because with few classes many share the same value.
    """
    rows = models.rows[name]
    share, top, _, said = _drawn(rows.near_zero, rows.confidence, rows.right)
    share = share + np.random.default_rng(0).uniform(-0.3, 0.3, len(share)) / models.classes
    axis.scatter(100 * share, top, s=8, alpha=0.4, color=models.colour(name), linewidths=0, rasterized=True)
    axis.set(xlabel=_near_zero(models.threshold), ylabel="top-1 probability", ylim=(-0.02, 1.02))
    return said


def logit_density(axis, models: Models, name: str) -> str:
    """Density of all logits, on a logarithmic scale because most lie close together and the largest far away."""
    densities, low, high = models.densities, models.low, models.high
    centres = np.linspace(low, high, DENSITY_BINS, endpoint=False) + (high - low) / DENSITY_BINS / 2
    held = np.concatenate([values[values > 0] for values in densities.values()])
    axis.fill_between(centres, densities[name], held.min() / 2, step="mid", color=models.colour(name), alpha=0.8, lw=0)
    axis.set(xlabel="logit z", ylabel="density (1 / logit)", yscale="log", ylim=(held.min() / 2, held.max() * 2))
    axis.yaxis.set_major_formatter("{x:g}")  # powers would be formulas, which style.py does not typeset
    return "all logits"


def top_against_mean(axis, models: Models, name: str) -> str:
    """Logit of the top class against the mean of all; a dot per sample, right and wrong predictions."""
    rows = models.rows[name]
    mean, top, right, said = _drawn(rows.mean, rows.top, rows.right)
    for which, colour, alpha, label in ((right, style.RIGHT, 0.35, "right"), (~right, style.WRONG, 0.7, "wrong")):
        axis.scatter(mean[which], top[which], s=8, alpha=alpha, color=colour, linewidths=0, rasterized=True, label=label)
    axis.set(xlabel="mean of the logits", ylabel="logit of the top class")
    return said


PANELS = {panel.__name__: panel for panel in (near_zero_histogram, near_zero_scatter, logit_density, top_against_mean)}


def of_models(key: str, models: Models, words: str = "", title: str = "{name}: {said}") -> Panels:
    """One panel of PANELS for each model, all with the same scales. words: what they show."""
    names = list(models.rows)
    parts = {f"{words} {name}": partial(_draw, PANELS[key], models, name, title) for name in names}
    legend = 2 * (key == "top_against_mean")
    return Panels(parts, len(names), legend=legend, options={"width": max(3.6, 5 / len(names)), "height": 3.4})


def of_model(models: Models, name: str) -> Panels:
    """Every panel of PANELS for one model."""
    parts = {key: partial(_draw, panel, models, name, "{said}") for key, panel in PANELS.items()}
    return Panels(parts, 2, shared=False, legend=2, title=name)


def _draw(panel, models: Models, name: str, title: str, axis) -> None:
    axis.set_title(title.format(name=style.short(name, 28), said=panel(axis, models, name)))


def _drawn(x: torch.Tensor, y: torch.Tensor, right: torch.Tensor):
    """Arrays of at most POINTS samples, drawn at random with a fixed seed, and the phrase that says how many."""
    count = len(x)
    if count <= POINTS:
        return x.numpy(), y.numpy(), right.numpy(), f"{count:,} samples"
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:POINTS]
    return x[chosen].numpy(), y[chosen].numpy(), right[chosen].numpy(), f"{POINTS:,} of {count:,} samples"


def _near_zero(threshold: float) -> str:
    return f"logits with |z| < {threshold:g} (% of a sample's)"
