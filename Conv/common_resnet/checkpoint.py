"""Checkpoints: what they hold, written whole or not at all, and read without running anything that is in them.

A checkpoint is a dict of tensors and plain types:

    model, optimizer, lr_scheduler, scaler, loss   state dicts
    model_ema           the state dict of the moving average of the weights, or None
    epoch               the last finished epoch, counted from 0
    rng                 {"seed": ...}: every generator is reseeded from the seed and the step, so the seed is its whole state
    classes             class names in label order
    args                the options of the run, and the facts below
    training_rows       optional: int64, the rows of the training split that were trained on, where it was a part of them
    training_labels     optional: int64, the labels of those rows, where they are not the data set's own
"""

import argparse
import os
import pickle
import re
from pathlib import Path

from errors import InputError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

NAME = "checkpoint.pth"


def facts(
    *,
    model: str,
    library: str,
    num_classes: int,
    input_size: int,
    mean: list[float],
    std: list[float],
    interpolation: str,
    crop_ratio: float,
    data: str | None,
    data_path: Path | None,
    superclasses: dict[str, list[str]] | None = None,
    width: int | None = None,
    stem_stride: int | None = None,
    small_stem: bool | None = None,
    blurpool: bool | None = None,
) -> dict:
    """What another program needs to build the model and to feed it, as entries of a checkpoint's `args`.

    model, library      the model's name, and whose it is: "timm", "torchvision", or "cifar" for the ResNets of 32-pixel images
    num_classes         outputs of the classifier
    input_size          side of the square input, pixels
    mean, std           of the input's channels, for values in [0, 1]
    interpolation       "bilinear", "bicubic", ... of the resizing of images that are evaluated
    crop_ratio          the shorter side is resized to input_size / crop_ratio before the centre crop
    data, data_path     name of the data set, None for an image folder; the folder that it lies in
    superclasses        class names by superclass, where the superclasses were the labels
    width, stem_stride  of a CIFAR ResNet
    small_stem          a torchvision model whose first layers keep the resolution of small images
    blurpool            a torchvision model with BlurPool
    """
    said = {"model": model, "library": library, "num_classes": num_classes, "input_size": input_size, "mean": list(mean)}
    said |= {"std": list(std), "interpolation": interpolation, "crop_ratio": crop_ratio, "data": data}
    said |= {"data_path": str(data_path.resolve()) if data_path else None}
    optional = {"superclasses": superclasses, "width": width, "stem_stride": stem_stride}
    optional |= {"small_stem": small_stem, "blurpool": blurpool}
    return said | {name: value for name, value in optional.items() if value is not None}


def save(
    path: Path,
    model: nn.Module,
    ema: nn.Module | None,
    parts: dict[str, object],
    classes: list[str],
    epoch: int,
    seed: int,
    args: dict,
    **more: object,
) -> None:
    """Write the checkpoint of a finished epoch, counted from 0, atomically: a killed process leaves the old file in its stead.

    `parts` have a state dict each; `args` are options and facts; `more` are further entries. Raises InputError if it cannot be
    written.
    """
    state = {"model": model.state_dict(), "model_ema": ema.state_dict() if ema else None, "scaler": {}}
    state |= {name: part.state_dict() for name, part in parts.items()}
    plain = {key: str(value.resolve()) if isinstance(value, Path) else value for key, value in args.items()}
    state |= {"epoch": epoch, "rng": {"seed": seed}, "args": plain, "classes": classes, **more}
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: the checkpoint cannot be written ({error.strerror}); the one before it is kept")


def load_any(path: Path) -> dict:
    """Read a dict with weights_only=True alone, or a safetensors file, onto the CPU.

    Raises InputError for a file that is missing, truncated, not a dict, or that would run code.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # DeiT's checkpoints hold the options of their command line as this one type, which only carries attributes.
        with torch.serialization.safe_globals([argparse.Namespace]):
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
    return check(load_any(path), path)


def check(state: dict, path: Path) -> dict:
    """The content of a checkpoint, if it has this project's form. Raises InputError if it has not."""
    if not isinstance(state.get("model"), dict):
        raise InputError(f"{path}: a checkpoint is a dict with the weights under 'model'; this one is not")
    kinds = {"args": dict, "classes": list, "epoch": int, "optimizer": dict, "loss": dict, "scaler": dict, "lr_scheduler": dict}
    wrong = [key for key, kind in kinds.items() if key in state and not isinstance(state[key], kind)]
    wrong += ["epoch"] * (state.get("epoch", 0) < 0 if "epoch" not in wrong else 0)
    if wrong or not all(isinstance(value, Tensor) for value in state["model"].values()):
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
