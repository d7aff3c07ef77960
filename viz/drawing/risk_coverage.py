"""Risk against coverage, by MSP and by normalised logits (Xia et al. 2025, Figure 3)."""

import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from drawing import style
from metrics.rankings import Model
from metrics.risk_coverage import curve, weigh

LOW = 0.2  # coverage up to which the inset shows the curves


def curves(model: Model, chosen: list[str], scored: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Coverages (C,), and the risk there of MSP and of normalised logits, (C,) each: the mean over the splits' scored images.

    Two classes have no normalised logits: None.
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
    """All models on the same axes, MSP solid and normalised logits dashed; low coverage once more, larger, beside them."""
    # Beside the curves, not among them, where it would hide those of a model that ranks badly.
    figure, parts = plt.subplot_mosaic([["all", "low"], ["all", "legend"]], figsize=(8.4, 4.2), width_ratios=[2.4, 1])
    axis, inset = parts["all"], parts["low"]
    parts["legend"].axis("off")
    for colour, (name, (coverages, msp, normal)) in zip(itertools.cycle(style.COLOURS), models.items(), strict=False):
        low = coverages <= LOW
        name += " (MSP kept)" * (normal is not None and np.array_equal(msp, normal))  # no dashed line is to be seen then
        for risk, dashes, label in ((msp, "-", name), (normal, "--", None))[: 1 if normal is None else 2]:
            drawn = 100 * (np.where(risk > 0, risk, np.nan) if log_risk else risk)
            axis.plot(100 * coverages, drawn, dashes, color=colour, linewidth=1.6, label=label)
            inset.plot(100 * coverages[low], drawn[low], dashes, color=colour, linewidth=1.2)
    axis.plot([], [], "-", color="0.4", label="MSP")
    if any(normal is not None for _, _, normal in models.values()):
        axis.plot([], [], "--", color="0.4", label="normalised logits")
    axis.set(
        xlim=(0, 100), xlabel="coverage (% of the samples that are answered)", ylabel="risk (% of the answers that are wrong)"
    )
    inset.set(xlim=(0, 100 * LOW), xticks=np.linspace(0, 100 * LOW, 5))
    inset.set_title(f"the first {100 * LOW:g} %", size=9)
    inset.tick_params(labelsize=8)
    for where in (axis, inset):
        if log_risk:
            where.set_yscale("log")
            where.yaxis.set_major_formatter("{x:g}")
        else:
            where.set_ylim(bottom=0)
    if max(risk[coverages <= LOW].max() for coverages, *risks in models.values() for risk in risks if risk is not None) == 0:
        inset.set_yticks([])
        inset.text(0.5, 0.5, "no errors", transform=inset.transAxes, ha="center", color="0.4")
    parts["legend"].legend(*axis.get_legend_handles_labels(), loc="upper left", fontsize=9, ncols=1 + (len(models) > 5))
    style.save(figure, path)
