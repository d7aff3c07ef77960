"""How a checkpoint's features lie: their variation by class, and the projection of three classes, as images pass."""

from pathlib import Path

from common import distributed, options
from common.errors import InputError

import torch
from torch import Tensor, nn

from checkpoints import inference
from checkpoints.models import templates
from checkpoints.read import build_model
from drawing import projection
from drawing.projection import SPLITS
from images.find import find_images, find_training_images
from images.image_set import Images, check_different
from metrics.variation import variation_of_sums

POINTS = 500  # features of a class and split that a panel shows, the first ones


def measure(path: Path, args) -> tuple[dict, dict | None]:
    """The table's row for a checkpoint, and what its panels show: {split: [(N, 2) per class]}, corners (3, 2), class names."""
    checkpoint = inference.load(path, args)
    model = build_model(checkpoint)
    row, shown, corners = {"checkpoint": str(path)}, {}, None
    train, _ = find_training_images(checkpoint, args.data_path, args.data)
    sets = {"train": train, "val": find_images(checkpoint, args.data_path, "val", args.data)}
    check_different(*sets.values())
    inference.say_notes(*sets.values())
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
        unit = nn.functional.normalize(batch.features.double(), dim=1)
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
