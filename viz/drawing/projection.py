"""Features of three classes on the plane through their templates (Müller et al. 2019, section 2; MaxSup's Figure 1)."""

from pathlib import Path

import torch
from torch import Tensor

from drawing import style

SPLITS = {"train": "training", "val": "validation"}  # a row of panels each


def project(weights: Tensor, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Unit features [(n, D)] on the plane through the ends of three unit templates (3, D): points [(n, 2)] and corners (3, 2).

    Orthonormal axes: the first from the first template to the second, the third template above it; origin at the templates'
    centre of mass. Distances in the plane are those in the space of features.
    """
    unit = weights.double() / weights.double().norm(dim=1, keepdim=True)
    centre = unit.mean(0)
    axes, triangle = torch.linalg.qr((unit[1:] - unit[0]).T)  # (D, 2)
    axes = axes * triangle.diagonal().sign()
    return [(rows.double() - centre) @ axes for rows in features], (unit - centre) @ axes


def draw(planes: dict[str, dict], path: Path) -> None:
    """A column per model, a row per split; the same scale in all panels."""
    figure, axes = style.grid(len(SPLITS), len(planes), height=3.4, sharex=True, sharey=True)
    for column, (name, plane) in enumerate(planes.items()):
        for line, (split, words) in enumerate(SPLITS.items()):
            axis = axes[line * len(planes) + column]
            for colour, points, corner, label in zip(
                style.COLOURS[:3], plane["points"][split], plane["corners"], plane["classes"], strict=True
            ):
                axis.scatter(*points.T, s=9, alpha=0.5, color=colour, linewidths=0, rasterized=True, label=label)
                axis.scatter(*corner, s=60, marker="X", color=colour, edgecolors="black", linewidths=0.8, zorder=3)
            axis.set(title=f"{name}, {words}", aspect="equal")
            if column == 0:
                axis.set_ylabel("second axis of the plane")
            if line == len(SPLITS) - 1:
                axis.set_xlabel("first axis of the plane")
    legend = axes[0].legend(title="class", markerscale=2, frameon=True, framealpha=0.8, edgecolor="none", loc="best")
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    line_break = "\n" if len(planes) == 1 else " "  # one column is narrower than the title
    figure.suptitle(f"Unit features on the plane{line_break}through three class templates (crosses)")
    style.save(figure, path)
