"""Risk against coverage, by MSP and by normalised logits (Xia et al. 2025, Figure 3)."""

import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from drawing import style
from drawing.panels import Panels
from metrics.rankings import Model
from metrics.risk_coverage import curve, weigh

LOW = 0.2  # coverage up to which the second panel shows the curves
STEADY = 0.01  # below this coverage single errors make the risk jump, so it does not set the scale of the axis


def curves(model: Model, chosen: list[str], scored: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Coverages (C,), and the risk there by MSP and by normalised logits, (C,) each: on the scored images, averaged over splits.

    The risk by normalised logits is None for two classes.
    """
    weights = scored.astype(np.int32)
    samples = min(int(weigh(model.rankings["msp"], weights).total.min()), 10**6)
    coverages = np.unique(np.r_[np.geomspace(1 / max(samples, 1), 1, 300), np.linspace(0, 1, 501)[1:]])
    risks = {name: curve(weigh(model.rankings[name], weights), coverages) for name in {"msp", *chosen}}
    if model.classes < 3:
        return coverages, risks["msp"].mean(1), None
    normal = np.stack([risks[name][:, split] for split, name in enumerate(chosen)], 1)
    return coverages, risks["msp"].mean(1), normal.mean(1)


def draw(models: dict[str, tuple], log_risk: bool, path: Path) -> None:
    """All models on the same axes, MSP solid and normalised logits dashed; a second panel enlarges low coverage."""
    # Next to the curves, not among them, where it would hide those of a model that ranks badly.
    figure, parts = plt.subplot_mosaic([["all", "low"], ["all", "legend"]], figsize=(8.4, 4.2), width_ratios=[2.4, 1])
    parts["legend"].axis("off")
    lines(parts["all"], models, 1, log_risk)
    lines(parts["low"], models, LOW, log_risk)
    parts["low"].set(xlabel="", ylabel="")
    parts["low"].set_title(f"the first {100 * LOW:g} %", size=9)
    parts["low"].tick_params(labelsize=9)
    handles = parts["all"].get_legend_handles_labels()
    parts["legend"].legend(*handles, loc="upper left", fontsize=9, ncols=1 + (len(models) > 5))
    style.save(figure, path)


def panels(models: dict[str, tuple], log_risk: bool = False) -> Panels:
    """The same two panels for a page."""
    names = ", ".join(models)
    words = {1: f"Risk against coverage of {names}", LOW: f"Risk at coverages up to {100 * LOW:g} % of {names}"}
    parts = {said: lambda axis, up_to=up_to: lines(axis, models, up_to, log_risk) for up_to, said in words.items()}
    return Panels(parts, 2, shared=False, legend=2)


def lines(axis, models: dict[str, tuple], up_to: float, log_risk: bool) -> None:
    """The curves up to a coverage, on axes with labels."""
    highest, top = 0.0, 0.0
    for colour, (name, (coverages, msp, normal)) in zip(itertools.cycle(style.COLOURS), models.items(), strict=False):
        shown = coverages <= up_to
        name += " (MSP kept)" * (normal is not None and np.array_equal(msp, normal))  # the dashed line is then hidden
        for risk, dashes, label in ((msp, "-", name), (normal, "--", None))[: 1 if normal is None else 2]:
            drawn = 100 * (np.where(risk > 0, risk, np.nan) if log_risk else risk)
            highest = max(highest, risk[shown].max())
            top = max(top, 110 * risk[shown & (coverages >= STEADY)].max())
            axis.plot(100 * coverages[shown], drawn[shown], dashes, color=colour, linewidth=1.6, label=label)
    if any(normal is not None and not np.array_equal(msp, normal) for _, msp, normal in models.values()):
        axis.plot([], [], "-", color="0.5", label="MSP")
        axis.plot([], [], "--", color="0.5", label="normalised logits")
    axis.set(xlim=(0, 100 * up_to), xlabel="coverage: answered samples (%)", ylabel="risk: wrong answers (%)")
    if up_to < 1:
        axis.set(xticks=np.linspace(0, 100 * up_to, 5), title=f"the first {100 * up_to:g} %")
    if log_risk:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
    else:
        axis.set_ylim(bottom=0)
    if top:
        axis.set_ylim(top=top)
    if highest == 0:
        axis.set_yticks([])
        axis.text(0.5, 0.5, "no errors", transform=axis.transAxes, ha="center", color="0.5")
