"""The models of a report: checkpoints, each run once over its images, or logits files; and whether they can be compared."""

import argparse
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from common import logits_file, options
from common.errors import InputError

import torch
from torch import Tensor

from checkpoints import inference, torch_file
from checkpoints.features import POINTS, class_sums, plane
from checkpoints.read import Checkpoint, args_of, build_model, training_said
from images.find import find_images, find_training_images
from images.image_set import Images, check_different
from metrics.outputs import Outputs
from metrics.resampling import check_split
from metrics.samples import Samples, samples


@dataclass
class Run:
    """One model of the report: a checkpoint or a logits file. method: the name that all seeds of one method share."""

    method: str
    path: Path
    threshold: float  # a logit z is near zero if |z| is below this
    content: dict  # of a logits file: logits (N, K), labels (N,), and perhaps features, classes, paths
    said: dict = field(default_factory=dict)  # what the file says about its training, see training_said
    architecture: str | None = None
    checkpoint: Checkpoint | None = None
    images: Images | None = None
    train_variation: dict | None = None  # d_within and r2 of the training images
    plane: dict | None = None  # what drawing.projection draws
    notes: list[str] = field(default_factory=list)

    @cached_property
    def outputs(self) -> Outputs:
        return Outputs(self.content, f"{self.method} ({self.path})")

    @cached_property
    def samples(self) -> Samples:
        return samples(self.content["logits"], self.content["labels"], self.threshold)

    @cached_property
    def predicted(self) -> Tensor:
        """(N,) int64."""
        return torch.cat([rows.argmax(1) for rows in self.content["logits"].split(4096)])

    @property
    def classes(self) -> list[str]:
        """Names in label order; "class 3" where the file has none."""
        names = self.content.get("classes") or []
        return names + [f"class {index}" for index in range(len(names), self.content["logits"].shape[1])]

    @property
    def paths(self) -> list[str] | None:
        return self.content.get("paths")


def is_logits(path: Path) -> bool:
    """Whether a file holds logits rather than weights; a file that cannot be read is neither, and its reader says why."""
    try:
        content = torch_file.read(path, "checkpoint or logits file", memory_map=True, verify=False)
    except InputError:
        return False
    return isinstance(content, dict) and {"logits", "labels"} <= content.keys()


def of_logits(method: str, path: Path, threshold: float) -> Run:
    content = logits_file.load(path)
    model = content.get("model")
    return Run(method, path, threshold, content, training_said(args_of(content)), model if isinstance(model, str) else None)


def of_checkpoint(method: str, path: Path, args: argparse.Namespace, with_training_images: bool) -> Run:
    """A checkpoint's outputs for the validation images, in one pass; if asked, also its features on the training images."""
    checkpoint = inference.load(path, args)
    images = find_images(checkpoint, args.data_path, "val", args.data)
    model = build_model(checkpoint)
    loading, title = options.loading(args), f"images by {path}"
    content = inference.outputs(model, images, checkpoint.facts, title, ("logits", "labels", "features"), **loading)
    content["paths"] = [images.name(index) for index in range(len(images))]
    content["classes"] = images.classes or checkpoint.classes
    said = training_said(checkpoint.args)
    run = Run(method, path, args.threshold, content, said, checkpoint.facts["model"], checkpoint, images)
    run.notes += [*checkpoint.notes, *images.notes]
    if with_training_images:
        _add_training_images(run, model, args, title)
    checkpoint.classes = checkpoint.classes or images.classes  # the names under Grad-CAM's maps
    return run


def _add_training_images(run: Run, model: torch.nn.Module, args: argparse.Namespace, title: str) -> None:
    """Add the features' variation on the training images, in one pass, and the projection; a note if there are no such images."""
    checkpoint, images, content, loading = run.checkpoint, run.images, run.content, options.loading(args)
    classes = dict(enumerate(run.classes[:3])) if len(run.classes) >= 3 else {}
    kept = {"val": [_unit(content["features"][content["labels"] == label][:POINTS]) for label in classes]}
    try:
        train, _ = find_training_images(checkpoint, args.data_path, args.data)
        check_different(train, images)
    except InputError as error:
        run.notes.append(f"no training images, so no features of them: {error}")
    else:
        sums, kept["train"] = class_sums(model, train, checkpoint.facts, f"training {title}", list(classes), loading)
        run.train_variation = sums.variation()
    if classes:
        run.plane = plane(model, classes, kept)


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.double(), dim=1).float()


def check_seed(others: list[Run], run: Run) -> None:
    """Raise InputError if a run repeats another of its method, or was trained differently, as far as the files say."""
    for other in others:
        if torch.equal(run.content["logits"], other.content["logits"]):
            raise InputError(f"{other.path} and {run.path}: the same logits, so they are not two seeds of {run.method}")
        for key in ("loss", "alpha", "alpha_end", "epochs", "data"):
            if key in run.said and key in other.said and run.said[key] != other.said[key]:
                pair = f"{other.said[key]} and {run.said[key]}"
                raise InputError(f"{other.path} and {run.path}: trained with {key} {pair}, so they are not seeds of one method")


def check_comparable(first: Run, run: Run) -> None:
    """Raise InputError, which names both, unless both have the same classes and were shown the same images in the same order."""
    check_split(len(run.content["labels"]), options.FRACTION, str(run.path))
    logits, labels = ([part.content[key] for part in (first, run)] for key in ("logits", "labels"))
    for what, (ours, theirs) in (
        ("have different classes", [list(range(part.shape[1])) for part in logits]),
        ("have different classes", [part.classes if part.content.get("classes") else None for part in (first, run)]),
        ("were shown different images", [list(range(len(part))) for part in labels]),
        ("were shown different images", (first.paths, run.paths)),
        ("were shown different images, whose labels differ", [part.tolist() for part in labels]),
    ):
        if ours is None or theirs is None or ours == theirs:
            continue
        if len(ours) != len(theirs):
            raise InputError(f"{first.path} and {run.path} {what}: {len(ours):,} and {len(theirs):,}")
        pair = next((a, b) for a, b in zip(ours, theirs, strict=True) if a != b)
        raise InputError(f"{first.path} and {run.path} {what}: {pair[0]!r} where the other has {pair[1]!r}, or another order")
