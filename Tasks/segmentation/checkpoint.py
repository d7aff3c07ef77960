"""Checkpoints: written whole or not at all, read without running what is in them; and the lines of the log that go with one."""

import contextlib
import json
import os
import pickle
import re
from pathlib import Path

from errors import InputError

import torch
from torch import nn

NAME = "checkpoint.pth"


def facts(args, num_classes: int) -> dict:
    """What others need to rebuild and to feed the model; it is written into the checkpoint's `args`.

    A checkpoint is a dict with `model` (the state dict of models.Segmenter), `optimizer`, `lr_scheduler`, `loss`, `model_ema`
    (None), `scaler` (empty), `epoch` (counted from 0), `rng` (the seed, from which every generator is seeded at each step),
    `classes` (names in label order) and `args`: the command line as plain types and the facts below.

    model           decoder_backbone, for models.create_model     library         "smp", segmentation-models-pytorch
    num_classes     channels of the logits                        input_size      (height, width) of training crops, pixels
    mean, std       of the inputs in [0, 1], R, G, B              interpolation   of images that are resized
    crop_ratio      1: images are evaluated whole                 data, data_path the data set and its folder
    superclasses    None: labels are the data set's own           size, shorter_side  how images are resized, or None
    """
    return {
        "model": args.model,
        "library": "smp",
        "num_classes": num_classes,
        "input_size": list(args.crop),
        "mean": args.mean,
        "std": args.std,
        "interpolation": "bilinear",
        "crop_ratio": 1.0,
        "data": args.data,
        "data_path": str(args.data_path),
        "superclasses": None,
        "size": args.size,
        "shorter_side": args.shorter_side,
    }


def save(state: dict, path: Path) -> None:
    """Write a dict of tensors and plain types under `path`, atomically: a killed process leaves the old file in place."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_any(path: Path) -> dict:
    """Read a dict with weights_only=True alone, onto the CPU.

    Raises InputError for a file that is missing, truncated, not a dict, or that would run code.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))  # what the file would have had called
        reason = found.group(1) if found else "no pickle of tensors"
        raise InputError(f"{path}: refused, it holds more than tensors and plain types ({reason}); nothing in it was run")
    except Exception as error:  # a damaged file can fail in any way
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"{path}: damaged, or not a PyTorch checkpoint ({reason})")
    if not isinstance(state, dict):
        raise InputError(f"{path}: a checkpoint is a dict that holds weights; this one is a {type(state).__name__}")
    return state


def load(path: Path) -> dict:
    """Read a checkpoint of this project's form. Raises InputError for what load_any refuses, and for another form."""
    state = load_any(path)
    if not isinstance(state.get("model"), dict):
        raise InputError(f"{path}: a checkpoint is a dict with the weights under 'model'; this one is not")
    kinds = {"args": dict, "classes": list, "epoch": int, "optimizer": dict, "loss": dict, "scaler": dict, "lr_scheduler": dict}
    wrong = [key for key, kind in kinds.items() if key in state and not isinstance(state[key], kind)]
    wrong += ["epoch"] * (state.get("epoch", 0) < 0 if "epoch" not in wrong else 0)
    if wrong or not all(isinstance(value, torch.Tensor) for value in state["model"].values()):
        raise InputError(f"{path}: not a checkpoint of this project's form: {', '.join(wrong) or 'model'} holds something else")
    return state


def load_weights(model: nn.Module, weights: dict, path: Path) -> None:
    """Load a state dict that must fit exactly. Raises InputError naming the keys and shapes that differ."""
    expected = model.state_dict()
    differences = [f"{key} is missing" for key in expected if key not in weights]
    differences += [f"{key} is foreign" for key in weights if key not in expected]
    for key, value in expected.items():
        found = weights.get(key, value)
        if found.shape != value.shape:
            differences.append(f"{key} is {tuple(found.shape)}, not {tuple(value.shape)}")
        elif found.layout != torch.strided or found.is_floating_point() != value.is_floating_point():
            differences.append(f"{key} is {found.dtype}, {found.layout}")
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise InputError(f"{path}: the weights are another model's: {'; '.join(differences[:3])}{more}")
    model.load_state_dict(weights)


def kept_lines(path: Path, epochs: int) -> list[str]:
    """Whole lines of a log up to an epoch: a killed process may leave one for an epoch that it has not saved, or half of one."""
    kept = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if line.endswith("\n") and json.loads(line)["epoch"] <= epochs:
                kept.append(line)
    return kept
