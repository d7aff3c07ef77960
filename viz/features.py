"""How features lie: Table 1 of the MaxSup paper for checkpoints, and its Figure 1.

    python viz/features.py --checkpoint ls.pth maxsup.pth --names LS MaxSup --output features/

Writes features.json and features.md (intra-class variation d_within and inter-class separability R2 of penultimate features, on
training and validation images), and projection (PNG and PDF): features of three classes on the plane through the ends of their
class templates, the rows of the classifier's weights (Müller et al. 2019, section 2). Features and templates are scaled to unit
length before, as the cosine distances of the table do, so that all panels have one scale.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

import errors
import inference
import processes
import style
from architectures import templates
from checkpoints import build_model
from errors import InputError
from image_sets import check_different
from metrics import variation_of_sums
from outputs import make_folder, write_text

SPLITS = {"train": "training", "val": "validation"}
POINTS = 500  # features of a class and split that a panel shows, the first ones
NOT_READ = 1e-12  # of a feature's length, below which it has no direction


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Table 1 and Figure 1: variation, separability and projection of penultimate features.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, nargs="+", required=True, help="checkpoints of any form logits.py reads")
    parser.add_argument("--names", nargs="+", help="a name for each; none: file names, or those of their folders")
    parser.add_argument("--output", type=Path, required=True, help="folder for tables and figure")
    parser.add_argument("--classes", nargs=3, help="three class names to project; none: the first three")
    inference.add_options(parser)
    args = parser.parse_args()
    inference.check_options(args)
    names = inference.model_names(args.checkpoint, args.names)
    make_folder(args.output)
    with processes.together():
        found = {name: measure(path, args) for name, path in zip(names, args.checkpoint)}
    if processes.rank() > 0:
        return
    table = {name: row for name, (row, _) in found.items()}
    write_text(args.output / "features.json", json.dumps(table, indent=1) + "\n")
    write_text(args.output / "features.md", markdown(table))
    planes = {name: plane for name, (_, plane) in found.items() if plane is not None}
    if planes:
        draw(planes, args.output / "projection")
    print(markdown(table))
    print(f"tables{' and figure' if planes else ''}: {args.output}/")


def measure(path: Path, args) -> tuple[dict, dict | None]:
    """The table's row for a checkpoint, and what its panels show: {split: [(N, 2) a class]}, corners (3, 2), class names."""
    checkpoint = inference.load(path, args)
    model = build_model(checkpoint)
    row, shown, corners = {"checkpoint": str(path)}, {}, None
    sets = {split: inference.find_images(checkpoint, args.data_path, split, args.data) for split in SPLITS}
    check_different(*sets.values())
    names = three_classes(sets["train"].classes, checkpoint.facts["num_classes"], args.classes)
    wanted = [index for index, _ in names]
    for split, words in SPLITS.items():
        images = sets[split]
        sums, counts, kept = class_sums(model, images, checkpoint.facts, f"{words} features of {path}", wanted, args)
        row |= {f"{key}_{split}": value for key, value in variation_of_sums(sums, counts).items()}
        if len(wanted) == 3 and processes.rank() == 0:
            weights = templates(model)[wanted].cpu()
            points, corners = project(weights, kept)
            shown[split] = points
    return row, {"points": shown, "corners": corners, "classes": [name for _, name in names]} if shown else None


def class_sums(model, images, facts: dict, title: str, wanted: list[int], args) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Sums (K, D) float64 of the unit features of each class and counts (K,), over all processes; of `wanted` classes the first
    POINTS unit features (n, D), on the first process. Memory: O(K D), whatever the number of images."""
    sums, counts, kept = None, torch.zeros(facts["num_classes"], dtype=torch.float64), [[] for _ in wanted]
    for batch in inference.run(model, images, facts, title, **inference.loading(args)):
        unit = batch.features.double()
        unit /= unit.norm(dim=1, keepdim=True).clamp(min=NOT_READ)
        if sums is None:
            sums = torch.zeros(facts["num_classes"], unit.shape[1], dtype=torch.float64)
        sums.index_add_(0, batch.labels, unit)
        counts += torch.bincount(batch.labels, minlength=len(counts))
        for index, rows in zip(wanted, kept):
            if sum(map(len, rows)) < POINTS:
                rows.append(unit[batch.labels == index].float())
    processes.add_up(sums, counts)
    parts = processes.collect([torch.cat(rows)[:POINTS] for rows in kept])
    return sums, counts, [torch.cat(rows)[:POINTS] for rows in zip(*parts)]


def three_classes(classes: list[str] | None, outputs: int, wanted: list[str] | None) -> list[tuple[int, str]]:
    """Label and name of the classes to project. Raises InputError for one that is not there."""
    classes = classes or [str(index) for index in range(outputs)]
    if wanted is None:
        return list(enumerate(classes[:3])) if len(classes) >= 3 else []
    unknown = [name for name in wanted if name not in classes]
    if unknown or len(set(wanted)) < 3:
        raise InputError(f"--classes {' '.join(wanted)}: three different ones of {', '.join(classes[:8])}, ...")
    return [(classes.index(name), name) for name in wanted]


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
    """A column a model, a row a split; the same scale in all panels."""
    figure, axes = style.grid(len(SPLITS), len(planes), height=3.4, sharex=True, sharey=True)
    for column, (name, plane) in enumerate(planes.items()):
        for line, (split, words) in enumerate(SPLITS.items()):
            axis = axes[line * len(planes) + column]
            for colour, points, corner, label in zip(style.COLOURS, plane["points"][split], plane["corners"], plane["classes"]):
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


def markdown(table: dict) -> str:
    lines = [
        "| model | intra-class var. train | intra-class var. val | inter-class sep. train | inter-class sep. val |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in table.items():
        cells = [row[f"{key}_{split}"] for key in ("d_within", "r2") for split in SPLITS]
        lines.append(f"| {name} | {' | '.join(f'{value:.4f}' for value in cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    errors.run(main)
