"""The teacher that a student learns from: a model, or its logits on the training images, read from a file."""

import argparse
from pathlib import Path

from errors import InputError, say

import torch
from torch import Tensor, nn

import foreign
import states
from data import Images
from distillation import Distillation, Teacher, match_columns
from models import create_model, model_facts, outputs


class StoredTeacher(nn.Module):
    """Logits (N, K) of unaugmented training images. at(rows) sets the rows of the next batch; then call it like a model."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.register_buffer("logits", logits, persistent=False)
        self.rows = None

    def at(self, rows: Tensor) -> None:
        self.rows = rows.to(self.logits.device)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[self.rows]


def build_distillation(args: argparse.Namespace, train_data: Images) -> Distillation | None:
    """The requested distillation, None for --distillation-type none. Raises InputError for a teacher that does not fit."""
    if args.distillation_type == "none":
        return None
    if args.teacher_logits:
        teacher = stored_teacher(args.teacher_logits, train_data, args.label_noise)
    else:
        teacher = build_teacher(args.teacher_path, args.teacher_model, args.input_size, (args.mean, args.std), train_data.classes)
    teacher = teacher.to(args.device)
    return Distillation(teacher, args.distillation_type, args.distillation_alpha, args.distillation_tau)


def build_teacher(
    source: str, name: str | None, input_size: int, stats: tuple[list[float], list[float]], classes: list[str]
) -> Teacher:
    """The model of a checkpoint, for images normalised by `stats`. name: the model, for a file that does not name it.

    Raises InputError for a file that does not load, and for a teacher with other classes or another input size.
    """
    found = foreign.read(source)
    for note in found.notes:
        say(f"note: {source}: {note}")
    facts = found.facts
    if found.ours and name not in (None, facts["model"]):
        raise InputError(f"--teacher-model {name}: {source} says that it is a {facts['model']}; omit the option")
    name = name or facts.get("model")
    if name is None:
        raise InputError(f"{source}: does not say what it is; --teacher-model names the model")
    size = facts.get("input_size", input_size)
    if size != input_size:
        raise InputError(f"{source}: the teacher was trained on {size} px, the student gets {input_size} px")
    try:
        facts = facts if found.ours else model_facts(name, input_size)
        count = facts.get("num_classes") or outputs(found.weights, source)
        model = _create(facts, count, source)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source}: describes no model that can be built here ({str(error).splitlines()[0][:120]})")
    states.load_weights(model, found.weights, source)
    columns = match_columns(foreign.class_names(found.classes, count, classes), count, classes, source)
    theirs = (facts["mean"], facts["std"]) if found.ours else None
    if theirs is None:
        say(f"{source}: the teacher gets images with the student's mean and standard deviation")
    return Teacher(model.to(memory_format=torch.channels_last), columns, stats, theirs)


def _create(facts: dict, count: int, source: str) -> nn.Module:
    other = facts["library"] == "timm" or facts.get("blurpool")
    if other:
        raise InputError(
            f"{source}: {facts['model']} of {facts['library']} cannot be built here; viz/logits.py --split train writes its "
            "logits for --teacher-logits"
        )
    return create_model({"small_stem": False} | facts, count)


def stored_teacher(path: Path, train_data: Images, label_noise: float) -> StoredTeacher:
    """The teacher of a logits file, whose rows must be those of the training split or of the part of it that is trained on.

    Raises InputError if the file is not a logits file, or if its rows, classes or labels are not those of the training images.
    """
    state = states.read_any(path)
    logits, labels, names = state.get("logits"), state.get("labels"), state.get("classes")
    right = isinstance(logits, Tensor) and logits.ndim == 2 and logits.is_floating_point() and isinstance(labels, Tensor)
    if not right or labels.shape != logits.shape[:1] or labels.is_floating_point() or not logits.isfinite().all():
        raise InputError(f"--teacher-logits {path}: not a logits file, a dict of logits (N, K), finite, and labels (N,)")
    names = names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
    columns = match_columns(names, logits.shape[1], train_data.classes, str(path))
    rows = train_data.rows
    if rows is not None and len(logits) != len(train_data) and len(logits) > rows.max():
        logits, labels = logits[rows], labels[rows]
    if len(logits) != len(train_data):
        raise InputError(f"--teacher-logits {path}: {len(logits):,} rows for {len(train_data):,} training images")
    own = train_data.labels.cpu()
    theirs = own if columns is None else torch.tensor(columns)[own]
    differing = (theirs != labels).double().mean().item()
    if differing > label_noise + 1 / len(own):  # the number of wrong labels is rounded
        raise InputError(
            f"--teacher-logits {path}: {differing:.1%} of its labels are not those of the training images; its rows have to be "
            "in the order of the training split, without augmentation"
        )
    return StoredTeacher((logits if columns is None else logits[:, columns]).float())
