"""Checkpoints: written whole or not at all, read without running what is in them."""

import argparse
import os
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

from errors import InputError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import foreign

NAME = "checkpoint.pth"


def facts(
    model: SimpleNamespace, validation: SimpleNamespace, mean: tuple[float, ...], std: tuple[float, ...], source: str | None
) -> dict:
    """What another program needs to build the model and to feed it, as entries of a checkpoint's `args`.

    model, library        the model's name in torchvision; "torchvision"
    num_classes           outputs of the classifier; the checkpoint's entry `classes` has their names in label order
    blurpool, small_stem  whether the model has BlurPool, and a stem that keeps the resolution of small images
    input_size            side of the square input, pixels
    crop_ratio            share of the shorter side that the central square takes, which is then scaled to input_size
    interpolation         "area": OpenCV's INTER_AREA, of the central square cut first
    mean, std             of the input's channels, for values in [0, 1]
    data_path             the image folder that the validation file was written from, None where it is not known

    model, validation: those sections of the configuration; source: the folder of the validation images.
    """
    folder = Path(source) if source else None
    return {
        "library": "torchvision",
        "model": model.arch,
        "num_classes": model.num_classes,
        "blurpool": model.blurpool,
        "small_stem": model.small_stem,
        "input_size": validation.resolution,
        "crop_ratio": validation.crop_ratio,
        "interpolation": "area",
        "mean": list(mean),
        "std": list(std),
        "data_path": str(folder.parent) if folder and folder.name == "val" else None,
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
    """Read a checkpoint: ours, or weights in one of the forms in use elsewhere, see foreign.py; the result then has only 'model'.

    Raises InputError for what load_any refuses, and for a file without weights.
    """
    state = load_any(path)
    ours = {"model": dict, "args": dict, "classes": list, "epoch": int, "optimizer": dict, "loss": dict, "scaler": dict}
    if ours.keys() <= state.keys():
        wrong = [key for key, kind in ours.items() if not isinstance(state[key], kind)]
        if wrong or not all(isinstance(value, Tensor) for value in state["model"].values()):
            raise InputError(
                f"{path}: not a checkpoint of this project's form: {', '.join(wrong) or 'model'} holds something else"
            )
        return state
    found = next((state[key] for key in foreign.WEIGHTS if isinstance(state.get(key), dict)), state)
    weights = {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not weights:
        raise InputError(f"{path}: holds no weights of a classifier")
    return {"model": foreign.without_prefixes(weights)[0]}


def load_weights(model: nn.Module, weights: dict, path: Path) -> None:
    """Load a state dict that must fit exactly. Raises InputError naming the keys and shapes that differ."""
    expected = model.state_dict()
    differences = [f"{key} is missing" for key in expected if key not in weights]
    differences += [f"{key} is foreign" for key in weights if key not in expected]
    differences += [
        f"{key} is {tuple(weights[key].shape)}, not {tuple(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise InputError(f"{path}: the weights are another model's: {'; '.join(differences[:3])}{more}")
    model.load_state_dict(weights)


def classes_of(weights: dict[str, Tensor], path: Path) -> int:
    """How many outputs the model of bare weights has: the length of their last bias."""
    biases = [value for key, value in weights.items() if key.endswith("bias") and value.ndim == 1]
    if not biases:
        raise InputError(f"{path}: holds no weights of a classifier")
    return len(biases[-1])
