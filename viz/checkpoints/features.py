"""Geometry of a checkpoint's features: their variation by class, and the projection of three classes, batch by batch."""

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
from metrics.variation import ClassSums

POINTS = 500  # features per class and split that a panel shows, the first ones


def measure(path: Path, args) -> tuple[dict, dict | None]:
    """The table's row for a checkpoint; and what its panels show, see `plane`, or None for fewer than three classes."""
    checkpoint = inference.load(path, args)
    model = build_model(checkpoint)
    row, kept = {"checkpoint": str(path)}, {}
    train, _ = find_training_images(checkpoint, args.data_path, args.data)
    sets = {"train": train, "val": find_images(checkpoint, args.data_path, "val", args.data)}
    check_different(*sets.values())
    inference.say_notes(*sets.values())
    wanted = three_classes(sets["train"].classes, checkpoint.facts["num_classes"], args.classes)
    for split, words in SPLITS.items():
        title = f"{words} features of {path}"
        sums, kept[split] = class_sums(model, sets[split], checkpoint.facts, title, list(wanted), options.loading(args))
        row |= {f"{key}_{split}": value for key, value in sums.variation().items()}
    return row, plane(model, wanted, kept) if wanted and distributed.rank() == 0 else None


def class_sums(
    model: nn.Module, images: Images, facts: dict, title: str, wanted: list[int], loading: dict
) -> tuple[ClassSums, list[Tensor]]:
    """The sums of each class's unit features over all processes; and, on the first process, the first POINTS unit features (n, D)
    of each `wanted` class. Memory: O(K D), whatever the number of images."""
    sums, kept = ClassSums(facts["num_classes"]), [[] for _ in wanted]
    for batch in inference.run(model, images, facts, title, **loading):
        unit = sums.add(batch.features, batch.labels)
        for index, rows in zip(wanted, kept, strict=True):
            if sum(map(len, rows)) < POINTS:
                rows.append(unit[batch.labels == index].float())
    distributed.add_up(sums.sums, sums.counts)
    parts = distributed.collect([torch.cat(rows)[:POINTS] for rows in kept])
    return sums, [torch.cat(rows)[:POINTS] for rows in zip(*parts, strict=True)]


def plane(model: nn.Module, classes: dict[int, str], features: dict[str, list[Tensor]]) -> dict:
    """What drawing.projection draws. classes: three names by label; features: for each split, their unit features [(n, D)]."""
    weights, points = templates(model)[list(classes)].cpu(), {}
    for split, rows in features.items():
        points[split], corners = projection.project(weights, rows)
    return {"points": points, "corners": corners, "classes": list(classes.values())}


def three_classes(classes: list[str] | None, outputs: int, wanted: list[str] | None) -> dict[int, str]:
    """Names by label of the classes to project, {} if there are fewer than three. Raises InputError for unknown or equal ones."""
    classes = classes or [str(index) for index in range(outputs)]
    if wanted is None:
        return dict(enumerate(classes[:3])) if len(classes) >= 3 else {}
    unknown = [name for name in wanted if name not in classes]
    if unknown or len(set(wanted)) < 3:
        raise InputError(f"--classes {' '.join(wanted)}: name three different ones of {', '.join(classes[:8])}, ...")
    return {classes.index(name): name for name in wanted}
