"""Features of three classes on the plane through their templates (Müller et al. 2019, section 2; MaxSup's Figure 1)."""

import torch
from torch import Tensor

from drawing import style
from drawing.panels import Panels

SPLITS = {"train": "training", "val": "validation"}  # a row of panels each


def project(weights: Tensor, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Unit features [(n, D)] on the plane through the ends of three unit templates (3, D): points [(n, 2)] and corners (3, 2).

    The axes are orthonormal: the first points from the first template to the second, and the third template lies above it. The
    origin is the centroid of the templates. Distances in the plane are those of feature space.
    """
    unit = weights.double() / weights.double().norm(dim=1, keepdim=True)
    centre = unit.mean(0)
    axes, triangle = torch.linalg.qr((unit[1:] - unit[0]).T)  # (D, 2)
    axes = axes * triangle.diagonal().sign()
    return [(rows.double() - centre) @ axes for rows in features], (unit - centre) @ axes


def panels(planes: dict[str, dict], splits: tuple[str, ...] = tuple(SPLITS)) -> Panels:
    """A column per model, a row per split; the same scale in all panels."""
    parts = {
        f"Features of three classes of {name} on the plane of their templates, {SPLITS[split]} images": _panel(name, plane, split)
        for split in splits
        for name, plane in planes.items()
    }
    line_break = "\n" if len(planes) == 1 else " "  # one column is narrower than the title
    title = f"Unit features on the plane{line_break}through three class templates (crosses)"
    return Panels(parts, len(planes), legend=3, legend_title="class", title=title, options={"height": 3.4})


def _panel(name: str, plane: dict, split: str):
    def draw(axis) -> None:
        for colour, points, corner, label in zip(
            style.COLOURS[:3], plane["points"][split], plane["corners"], plane["classes"], strict=True
        ):
            label = style.short(label, 18)
            axis.scatter(*points.T, s=9, alpha=0.5, color=colour, linewidths=0, rasterized=True, label=label)
            axis.scatter(*corner, s=60, marker="X", color=colour, edgecolors="black", linewidths=0.8, zorder=3)
        axis.set(title=f"{name}, {SPLITS[split]}", xlabel="first axis of the plane", ylabel="second axis of the plane")
        axis.set_aspect("equal")
        axis.locator_params(nbins=5)  # more numbers would touch: the equal aspect narrows the panel

    return draw
