"""How features lie: Table 1 of the MaxSup paper for checkpoints, and its Figure 1.

    python viz/features.py --checkpoint ls.pth maxsup.pth --names LS MaxSup --output features/

Writes features.json and features.md (intra-class variation d_within and inter-class separability R2 of penultimate features, on
training and validation images), and projection (PNG and PDF): features of three classes on the plane through the ends of their
class templates, the rows of the classifier's weights (Müller et al. 2019, section 2). Features and templates are scaled to unit
length before, as the cosine distances of the table do, so that all panels have one scale.
"""

import json
from pathlib import Path

from common import distributed, errors, options, outputs, terminal
from common.errors import InputError

import torch
from torch import Tensor, nn

from checkpoints import inference
from checkpoints.models import templates
from checkpoints.read import build_model
from drawing import projection
from drawing.projection import SPLITS
from images.find import find_images
from images.image_set import Images, check_different
from metrics.variation import variation_of_sums

POINTS = 500  # features of a class and split that a panel shows, the first ones
NOT_READ = 1e-12  # of a feature's length, below which it has no direction


def main() -> None:
    parser = options.parser(
        "Table 1 and Figure 1 of the MaxSup paper: variation, separability and projection of penultimate features."
    )
    options.add_checkpoints(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder for tables and figure")
    parser.add_argument("--classes", nargs=3, help="three class names to project; none: the first three")
    options.add_images(parser)
    args = parser.parse_args()
    options.check_images(args)
    names = options.names_of(args.checkpoint, args.names, "--checkpoint")
    with outputs.folder(args.output, "features"):
        with distributed.together():
            found = {name: measure(path, args) for name, path in zip(names, args.checkpoint, strict=True)}
        if distributed.rank() > 0:
            return
        table = {name: row for name, (row, _) in found.items()}
        outputs.write_text(args.output / "features.json", json.dumps(table, indent=1) + "\n")
        outputs.write_text(args.output / "features.md", markdown(table))
        planes = {name: plane for name, (_, plane) in found.items() if plane is not None}
        if planes:
            projection.draw(planes, args.output / "projection")
    head = ["model", "d_within train", "d_within val", "R2 train", "R2 val"]
    print(terminal.table(head, [[name, *(f"{value:.4f}" for value in cells(row))] for name, row in table.items()]))
    print(f"tables{' and figure' if planes else ''}: {args.output}/")


def measure(path: Path, args) -> tuple[dict, dict | None]:
    """The table's row for a checkpoint, and what its panels show: {split: [(N, 2) per class]}, corners (3, 2), class names."""
    checkpoint = inference.load(path, args)
    model = build_model(checkpoint)
    row, shown, corners = {"checkpoint": str(path)}, {}, None
    sets = {split: find_images(checkpoint, args.data_path, split, args.data) for split in SPLITS}
    check_different(*sets.values())
    names = three_classes(sets["train"].classes, checkpoint.facts["num_classes"], args.classes)
    wanted = [index for index, _ in names]
    for split, words in SPLITS.items():
        images = sets[split]
        sums, counts, kept = class_sums(
            model, images, checkpoint.facts, f"{words} features of {path}", wanted, options.loading(args)
        )
        row |= {f"{key}_{split}": value for key, value in variation_of_sums(sums, counts).items()}
        if len(wanted) == 3 and distributed.rank() == 0:
            weights = templates(model)[wanted].cpu()
            points, corners = projection.project(weights, kept)
            shown[split] = points
    return row, {"points": shown, "corners": corners, "classes": [name for _, name in names]} if shown else None


def class_sums(
    model: nn.Module, images: Images, facts: dict, title: str, wanted: list[int], loading: dict
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Sums (K, D) float64 of the unit features of each class and counts (K,), over all processes; of `wanted` classes the first
    POINTS unit features (n, D), on the first process. Memory: O(K D), whatever the number of images."""
    sums, counts, kept = None, torch.zeros(facts["num_classes"], dtype=torch.float64), [[] for _ in wanted]
    for batch in inference.run(model, images, facts, title, **loading):
        unit = batch.features.double()
        unit /= unit.norm(dim=1, keepdim=True).clamp(min=NOT_READ)
        if sums is None:
            sums = torch.zeros(facts["num_classes"], unit.shape[1], dtype=torch.float64)
        sums.index_add_(0, batch.labels, unit)
        counts += torch.bincount(batch.labels, minlength=len(counts))
        for index, rows in zip(wanted, kept, strict=True):
            if sum(map(len, rows)) < POINTS:
                rows.append(unit[batch.labels == index].float())
    distributed.add_up(sums, counts)
    parts = distributed.collect([torch.cat(rows)[:POINTS] for rows in kept])
    return sums, counts, [torch.cat(rows)[:POINTS] for rows in zip(*parts, strict=True)]


def three_classes(classes: list[str] | None, outputs: int, wanted: list[str] | None) -> list[tuple[int, str]]:
    """Label and name of the classes to project. Raises InputError for one that is not there."""
    classes = classes or [str(index) for index in range(outputs)]
    if wanted is None:
        return list(enumerate(classes[:3])) if len(classes) >= 3 else []
    unknown = [name for name in wanted if name not in classes]
    if unknown or len(set(wanted)) < 3:
        raise InputError(f"--classes {' '.join(wanted)}: three different ones of {', '.join(classes[:8])}, ...")
    return [(classes.index(name), name) for name in wanted]


def markdown(table: dict) -> str:
    lines = [
        "| model | intra-class var. train | intra-class var. val | inter-class sep. train | inter-class sep. val |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in table.items():
        lines.append(f"| {name} | {' | '.join(f'{value:.4f}' for value in cells(row))} |")
    return "\n".join(lines) + "\n"


def cells(row: dict) -> list[float]:
    return [row[f"{key}_{split}"] for key in ("d_within", "r2") for split in SPLITS]


if __name__ == "__main__":
    errors.run(main)
