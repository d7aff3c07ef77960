"""Checkpoints from anywhere: read without running what is in them, and turned back into models.

A file that describes itself (this project's trainers; ffcv-imagenet's with params.json next to it; DeiT's `args`) is believed;
any other is recognised by its weights (recognise.py).
"""

import argparse
import json
import reprlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import InputError, reason
from common.options import INTERPOLATIONS

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from checkpoints import models, torch_file
from checkpoints.recognise import NO_WEIGHTS, differences, recognise

# Keys under which files of DeiT, timm, Lightning, He's CIFAR models and others hold weights; and their moving averages.
WEIGHTS = ("model", "state_dict", "net", "model_state_dict", "weights")
AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
WRAPPERS = ("module.", "model.", "net.")  # of DistributedDataParallel, of Lightning, and of users' own code
OURS = {"model", "num_classes", "input_size", "crop_ratio", "interpolation", "mean", "std", "data_path"}
SAID = ("loss", "alpha", "alpha_end", "epochs", "seed", "data")
VARIANTS = ("small_stem", "blurpool", "width", "stem_stride")


@dataclass
class Checkpoint:
    """What a checkpoint states, completed by what its weights show.

    `facts`: library, model, num_classes, input_size (px), crop_ratio, interpolation (of INTERPOLATIONS), mean, std, and
    where they apply width, stem_stride, small_stem, blurpool, data_path, data, superclasses ({name: [class, ...]}). `classes`:
    names in label order, if it has them.
    """

    path: Path
    weights: dict[str, Tensor]
    facts: dict
    trained_size: int | None = None  # px that position embeddings are for; facts["input_size"] may differ
    classes: list[str] | None = None
    training_rows: Tensor | None = None  # (n,) int64, rows of the training split that were trained on; None: all
    training_labels: Tensor | None = None  # (n,) int64, their labels; None: the data set's own
    notes: list[str] = field(default_factory=list)
    args: dict = field(default_factory=dict)  # what the file says about its training


def load_checkpoint(path: Path, ema: bool = False, model: str | None = None, **overrides) -> Checkpoint:
    """Read a checkpoint and determine all that its model and preprocessing need; `ema`: take the moving average of its weights.

    `model`, the name of a model of timm or torchvision or of a CIFAR ResNet, takes precedence over what the file states and what
    its weights look like; so do `overrides` of facts that are not None. Raises InputError for a file that is missing, damaged,
    would run code, holds no weights, or fits no model.
    """
    state = torch_file.read(path, "checkpoint")
    if not isinstance(state, dict):
        raise InputError(
            f"{path}: holds a {type(state).__name__}; a checkpoint is a dict of weights, or one that has them inside"
        )
    weights, notes = find_weights(state, path, ema)
    if not ema and any(isinstance(state.get(key), dict) and state[key] for key in AVERAGES):
        notes.append(f"{path.name} also holds a moving average of the weights, which --model-ema takes")
    said, classes = facts_said(state, path)
    if "library" in said and model is None:  # the file states everything
        facts, size = said, said["input_size"]
    else:
        found, more, weights = identify(path, weights, model, said)
        size = found["input_size"]
        shown_at = overrides.get("input_size") or said.get("input_size")
        facts = default_facts(found, shown_at) | {key: value for key, value in said.items() if key not in ("model", "library")}
        notes += more
    facts |= {key: value for key, value in overrides.items() if value is not None}
    check_facts(facts, classes, path)
    check_facts(facts | {"input_size": size}, classes, path)
    if "library" not in said or model is not None:
        notes.append(f"{path.name} is taken for {describe(facts)}")
    trained_on = [state.get(key) for key in ("training_rows", "training_labels")]
    for key, value, end in zip(("training_rows", "training_labels"), trained_on, (2**40, facts["num_classes"]), strict=True):
        if value is None:
            continue
        if not torch_file.is_ordinary(value) or value.dtype != torch.int64 or value.ndim != 1 or not len(value):
            raise InputError(f"{path}: its {key} are not whole numbers in a tensor (n,)")
        if not 0 <= value.min() <= value.max() < end:
            raise InputError(f"{path}: its {key} reach from {value.min()} to {value.max()}, beyond what there is")
    return Checkpoint(path, weights, facts, size, classes, *trained_on, notes, args_of(state))


def find_weights(state: dict, path: Path, ema: bool) -> tuple[dict[str, Tensor], list[str]]:
    """The weights inside a checkpoint's content under bare keys, and notes on what was omitted. Raises InputError."""
    if ema:
        found = next((state[key] for key in AVERAGES if isinstance(state.get(key), dict)), None)
        if found is None:
            raise InputError(f"{path}: holds no moving average of the weights; omit --model-ema")
    else:
        found = next((state[key] for key in WEIGHTS if isinstance(state.get(key), dict)), state)
    weights = {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not any(value.ndim >= 2 for value in weights.values()):
        keys = ", ".join(str(key)[:40] for key in list(state)[:5]) or "nothing"
        raise InputError(f"{path}: holds no weights, neither bare nor under {', '.join(WEIGHTS)} (it holds {keys})")
    for key, value in weights.items():
        if not torch_file.is_ordinary(value):
            raise InputError(
                f"{path}: {key[:80]} is not an ordinary tensor: sparse, quantised, complex, expanded or an empty shell"
            )
        if value.is_floating_point() and not key.endswith(NO_WEIGHTS) and not value.sum(dtype=torch.float64).isfinite():
            raise InputError(f"{path}: {key[:80]} holds numbers that are NaN or infinite; the weights are damaged")
    return without_prefixes(weights)


def without_prefixes(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Remove the prefixes that wrappers add to keys, in any nesting; tensors outside a wrapped model (a loss's) are omitted."""
    weights = {key.replace("_orig_mod.", ""): value for key, value in weights.items()}
    notes = []
    while prefix := _wrapper(weights):
        beside = [key for key in weights if not key.startswith(prefix)]
        if beside:
            notes.append(f"{len(beside)} tensors do not belong to the model and are ignored ({', '.join(beside[:3])})")
        weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return weights, notes


def _wrapper(keys: Collection[str]) -> str | None:
    """The one of WRAPPERS that most keys begin with, else the name of the attribute, holding the model, that all begin with."""
    known = next((prefix for prefix in WRAPPERS if 2 * sum(key.startswith(prefix) for key in keys) > len(keys)), None)
    first = {key.split(".")[0] for key in keys}
    # Not encoder, which holds all weights of some of timm's ViTs. And fc.weight with fc.bias is a layer, not a wrapped model.
    alone = len(first) == 1 and first != {"encoder"} and any(key.count(".") > 1 for key in keys)
    return known or (f"{first.pop()}." if alone else None)


def args_of(state: dict) -> dict:
    """The options of the command line that wrote a file; {} if it does not hold them."""
    args = state.get("args")
    return vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}


def training_said(args: dict) -> dict:
    """Loss, alpha, alpha_end, epochs, seed and data of a training run, as far as its options state them."""
    found = {key: args[key] for key in SAID if isinstance(args.get(key), str | int | float)}
    return {key: value[:200] if isinstance(value, str) else value for key, value in found.items() if _can_be_said(value)}


def _can_be_said(value: str | float) -> bool:
    return isinstance(value, str) or abs(value) < 1e15  # JSON has no NaN, and Python prints no integers of thousands of digits


def facts_said(state: dict, path: Path) -> tuple[dict, list[str] | None]:
    """What a file says about its model, and its class names if it has them.

    Files of this project's trainers give all facts and the library. Other files give what DeiT's options or ffcv-imagenet's
    params.json say.
    """
    args = args_of(state)
    classes = state.get("classes") if isinstance(state.get("classes"), list) else None
    if args.get("library") in ("smp", "text", "tabular"):
        raise InputError(f"{path}: a model of Tasks/, no classifier of images; --logits of its trainer writes a file for --input")
    if args.keys() >= OURS:
        kept = {key: args[key] for key in (*VARIANTS, "data", "superclasses") if args.get(key) is not None}
        return {key: args[key] for key in OURS} | kept | {"library": args.get("library") or "timm"}, classes
    params = path.parent / "params.json"
    if not args and params.is_file():
        return ffcv_facts(params), classes
    said = {key: args[key] for key in ("model", "input_size") if isinstance(args.get(key), str | int)}
    return said if isinstance(said.get("model"), str) and timm.is_model(said["model"]) else {}, classes


def ffcv_facts(path: Path) -> dict:
    """What the parameters of an ffcv-imagenet run say: the model, and the resolution and file of its validation."""
    try:
        params = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: does not read as JSON ({reason(error)}); move it away to have the model recognised by its weights"
        )
    if not isinstance(params, dict) or not isinstance(params.get("model.arch"), str):
        return {}
    facts = {"model": params["model.arch"], "crop_ratio": 224 / 256, "interpolation": "area"}
    if isinstance(params.get("validation.resolution"), int):
        facts["input_size"] = params["validation.resolution"]
    if isinstance(params.get("data.val_dataset"), str):
        facts["data_path"] = params["data.val_dataset"]
    return facts


def identify(path: Path, weights: dict[str, Tensor], model: str | None, said: dict) -> tuple[dict, list[str], dict]:
    """Facts, notes and weights of the architecture: the one that `model` names, else the file states, else the weights fit."""
    names = [(library, model or said.get("model", "")) for library in ("cifar", "torchvision", "timm")]
    names = [pair for pair in names if models.known(*pair)]
    if model and not names:
        raise InputError(f"--model {model}: no model of timm {timm.__version__}, of torchvision, or CIFAR ResNet (resnet20, ...)")
    if names:
        try:
            return recognise(weights, names)
        except InputError as error:
            if model:
                raise InputError(f"{path}: {error}")
    try:
        return recognise(weights)
    except InputError as error:
        raise InputError(f"{path}: {error}")


def default_facts(found: dict, input_size: object = None) -> dict:
    """The preprocessing for a recognised model about which no more is known: that of the papers of these models.

    input_size: pixels that replace the model's own size, not checked yet; None: its own.
    """
    from_ffcv = bool(found.get("blurpool"))
    if from_ffcv and found["input_size"] == 224:  # ffcv-imagenet validates at 256 px
        found = found | {"input_size": 256}
    return found | {
        "crop_ratio": 1.0 if (input_size if isinstance(input_size, int) else found["input_size"]) <= 64 else 0.875,
        "interpolation": "area" if from_ffcv else "bicubic" if found["library"] == "timm" else "bilinear",
        "mean": list(IMAGENET_DEFAULT_MEAN),
        "std": list(IMAGENET_DEFAULT_STD),
        "data_path": None,
    }


def check_facts(facts: dict, classes: list | None, path: Path) -> None:
    """Raise InputError if a checkpoint's facts, or the command line's overrides of them, cannot be used."""

    def numbers(values: object, kind: type, low: float, high: float) -> bool:
        return all(isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high for value in values)

    def need(right: bool, key: str, wanted: str) -> None:
        if not right:
            raise InputError(f"{path}: its {key} is {reprlib.repr(facts[key])}, not {wanted}")

    for key, low in (("mean", 0), ("std", 1e-6)):
        three = isinstance(facts[key], list | tuple) and len(facts[key]) == 3
        need(three and numbers(facts[key], int | float, low, 1e6), key, f"three numbers from {low:g} to 1e+06; see --{key}")
    ranges = {"input_size": (int, 1, 4096), "num_classes": (int, 1, 10**7), "crop_ratio": (int | float, 1e-3, 1)}
    for key, limits in (ranges | dict.fromkeys(("width", "stem_stride"), (int, 1, 4096))).items():
        need(key not in facts or numbers([facts[key]], *limits), key, f"a number from {limits[1]:g} to {limits[2]:g}")
    need(facts["interpolation"] in INTERPOLATIONS, "interpolation", f"one of {', '.join(INTERPOLATIONS)}")
    need(facts["library"] in models.LIBRARIES, "library", f"one of {', '.join(models.LIBRARIES)}")
    known = isinstance(facts["model"], str) and models.known(facts["library"], facts["model"])
    need(known, "model", f"one of {facts['library']} (timm {timm.__version__})")
    if classes is not None and (len(classes) > facts["num_classes"] or not distinct_names(classes)):
        raise InputError(f"{path}: names {len(classes)} classes for a model of {facts['num_classes']}, or one of them twice")
    groups = facts.get("superclasses") or {}
    right = isinstance(groups, dict) and all(isinstance(group, list) for group in groups.values())
    right = right and all(map(distinct_names, [list(groups), *groups.values()]))
    need(right, "superclasses", "class names by superclass")


def distinct_names(values: list) -> bool:
    """Whether these are strings, each of them only once."""
    return all(isinstance(value, str) for value in values) and len(set(values)) == len(values)


def describe(facts: dict) -> str:
    """One line: the model and its preprocessing."""
    variant = [f"width {facts['width']}"] if "width" in facts else []
    variant += [text for key, text in (("small_stem", "3x3 stem"), ("blurpool", "BlurPool")) if facts.get(key)]
    imagenet = list(facts["mean"]) == list(IMAGENET_DEFAULT_MEAN) and list(facts["std"]) == list(IMAGENET_DEFAULT_STD)
    shown = "ImageNet mean and std" if imagenet else f"mean {list(facts['mean'])}, std {list(facts['std'])}"
    return (
        f"{facts['library']}'s {' with '.join([facts['model'], *variant])}, {facts['num_classes']} classes, at "
        f"{facts['input_size']} px, crop ratio {facts['crop_ratio']:g}, {facts['interpolation']}, {shown}"
    )


def build_model(checkpoint: Checkpoint) -> nn.Module:
    """The model that a checkpoint describes, with its weights, ready to evaluate. Raises InputError if they do not fit."""
    facts, path = checkpoint.facts, checkpoint.path
    size, name = facts["input_size"], facts["model"]
    variant = {key: facts[key] for key in VARIANTS if key in facts}
    # Checked before memory is allocated for what a file only claims.
    if facts["num_classes"] > max((len(value) for value in checkpoint.weights.values() if value.ndim), default=0):
        raise InputError(f"{path}: none of its weights has the {facts['num_classes']:,} rows of its num_classes")
    try:
        model = models.create(facts["library"], name, facts["num_classes"], checkpoint.trained_size, **variant)
        different = differences(checkpoint.weights, model)
        if different:
            raise InputError(f"{path}: its weights do not fit {name}: {'; '.join(different[:3])}")
        model.load_state_dict(checkpoint.weights, strict=False)  # differences() was strict, except about NO_WEIGHTS
        if size != checkpoint.trained_size and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=size)  # position embeddings are interpolated
        with torch.inference_mode():
            model(torch.zeros(1, 3, size, size))
    except InputError:
        raise
    except Exception as error:  # libraries may refuse a size with any exception
        raise InputError(f"{path}: {name} does not run at {size} px: {reason(error)}; see --input-size")
    return model
