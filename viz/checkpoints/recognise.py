"""Which architecture do these weights belong to? Found by keys and shapes among models of timm, torchvision and this project.

The construction of every model is started, without memory for its weights, and stopped once it has created a few parameters of
shapes that the checkpoint lacks. Most are stopped within a millisecond, so that all 1,400 take a few seconds.
"""

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import InputError

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from checkpoints import models

CLASSES = 1000  # of a candidate, until the classifier of the weights is known
STRANGE = 6  # parameters of an unknown shape that a candidate may create: position embeddings, layers built on trial
NEAREST = 3  # models named if none fits
# Written by some versions of a library and not by others, or by tools that count operations; none is a weight.
NO_WEIGHTS = ("num_batches_tracked", "relative_position_index", "attn_mask", "total_ops", "total_params")


class GivenUp(Exception):
    """Carries how many parameters of the candidate had a shape that the checkpoint has."""


def recognise(weights: dict[str, Tensor], names: list[tuple[str, str]] | None = None) -> tuple[dict, list[str], dict]:
    """Find the architecture whose keys and shapes are those of the weights, whose keys have no prefixes.

    Returns facts (library, model, num_classes, input_size in px, and width, small_stem or blurpool where they apply), notes to
    print, and the weights under the architecture's own keys. `names`: pairs of library and model to try instead of all. If
    several fit, one whose own input size matches is preferred, then the shortest name, then torchvision's; a note says so. If
    none fits, raises InputError, which names the nearest models and the first keys that differ.
    """
    weights, variant, notes = as_torchvision(weights)
    shapes = Counter(tuple(value.shape) for value in weights.values())
    fitting, near = [], []
    for library, name in _progress(names or candidates(weights, variant)):
        try:
            model, facts, native = build(weights, library, name, variant, None if names else shapes)
        except GivenUp as found:
            near.append((found.args[0], library, name))
            continue
        if differences(weights, model):
            near.append((len(weights), library, name))
        else:
            fitting.append((not native, len(name), library == "timm", name, facts))
    if not fitting:
        raise InputError(_no_fit(weights, variant, near))
    fitting.sort(key=lambda row: row[:4])
    facts = fitting[0][-1]
    others = list(dict.fromkeys(row[3] for row in fitting if row[0] == fitting[0][0] and row[3] != facts["model"]))
    if others:
        more = f" and {len(others) - 4} more" if len(others) > 4 else ""
        notes.append(f"the weights fit {facts['model']}, and as well {', '.join(others[:4])}{more}; --model takes another")
    return facts, notes, weights


def as_torchvision(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict, list[str]]:
    """Weights under torchvision's keys, how their model differs from torchvision's of that name, and a note on renamed keys."""
    notes, variant = [], {}
    deep = any(key.startswith("layer4.") for key in weights)
    if deep and "linear.weight" in weights:  # TorchUncertainty's ResNets: the same layers under other names
        weights = {re.sub(r"^linear\.", "fc.", key.replace(".shortcut.", ".downsample.")): weights[key] for key in weights}
        notes.append("the keys are TorchUncertainty's; read as torchvision's ResNet")
    first = weights.get("conv1.weight")
    if any(key.endswith(".blur_filter") for key in weights):
        variant["blurpool"] = True
    if deep and first is not None and tuple(first.shape[1:]) == (3, 3, 3):
        variant["small_stem"] = True
    if not deep and first is not None and "linear.weight" in weights:
        variant["width"] = first.shape[0]
    return weights, variant, notes


def candidates(weights: dict[str, Tensor], variant: dict) -> list[tuple[str, str]]:
    """(library, model) of all models that the weights may belong to."""
    if "features.denseblock1.denselayer1.norm1.weight" in weights and "features.norm0.weight" not in weights:
        return [("cifar", name) for name in models.DENSENETS]
    if "width" in variant:
        blocks = len({key.split(".")[1] for key in weights if key.startswith("layer1.")})
        return [("cifar", f"resnet{6 * max(blocks, 1) + 2}")]
    names = [("torchvision", name) for name in models.torchvision_names()]
    if variant:
        return [pair for pair in names if "res" in pair[1] or not variant.get("small_stem")]
    return names + [("timm", name) for name in timm.list_models()]


def build(weights: dict, library: str, name: str, variant: dict, shapes: Counter | None = None) -> tuple[nn.Module, dict, bool]:
    """A model without memory, with the classes and position embeddings of the weights; its facts; whether its size is its own.

    Raises GivenUp once more than STRANGE of its parameters have shapes that are not among `shapes`, if these are given.
    """
    facts = {"library": library, "model": name}
    if library == "cifar" and name not in models.DENSENETS:
        facts["width"] = variant.get("width", 16)
    elif library == "torchvision":
        facts |= {key: True for key in ("small_stem", "blurpool") if variant.get(key) and (key != "small_stem" or "res" in name)}
    options = {key: value for key, value in facts.items() if key not in ("library", "model")}
    with giving_up(shapes):
        model = _without_memory(library, name, CLASSES, **options)
    own = default_size(model, library, name)
    facts |= {"num_classes": classes_of(weights, model), "input_size": input_size(weights, model, own)}
    native = facts["input_size"] == own
    same_keys = _compared(model.state_dict()).keys() == _compared(weights).keys()
    if same_keys and not (native and facts["num_classes"] == CLASSES):
        model = _without_memory(library, name, facts["num_classes"], None if native else facts["input_size"], **options)
    if facts.get("small_stem"):
        facts["input_size"] = 32
    return model, facts, native


def _without_memory(*what, **options) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the initialisation of weights, which do not exist
        try:
            with _ParametersOnMeta():
                return models.create(*what, **options)
        except RuntimeError:  # a few models compute with their parameters during construction: use the meta device for all
            with torch.device("meta"):
                return models.create(*what, **options)


class _ParametersOnMeta(TorchFunctionMode):
    """torch.empty, which creates parameters, gives shapes without memory; what models compute to plan their layers is real."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.empty:
            kwargs = {**(kwargs or {}), "device": "meta"}
        return function(*args, **(kwargs or {}))


@contextmanager
def giving_up(shapes: Counter | None) -> Iterator[None]:
    """Raise GivenUp while a model is built inside, once more than STRANGE parameters are not, or no longer, among the shapes."""
    left, known, strange = Counter(shapes), 0, 0

    def look(layer: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal known, strange
        if parameter is None or parameter.shape[:1] == (CLASSES,):
            return
        left[tuple(parameter.shape)] -= 1
        known += left[tuple(parameter.shape)] >= 0
        strange += left[tuple(parameter.shape)] < 0
        if strange > STRANGE:
            raise GivenUp(known)

    if shapes is None:
        yield
        return
    hook = register_module_parameter_registration_hook(look)
    try:
        yield
    finally:
        hook.remove()


def classes_of(weights: dict[str, Tensor], model: nn.Module) -> int | None:
    """Rows of the classifier's weights; None if the weights lack that layer."""
    head = models.classifier(model)
    name = next(name for name, layer in model.named_modules() if layer is head)
    matrix = weights.get(f"{name}.weight")
    return matrix.shape[0] if matrix is not None and matrix.ndim >= 2 else None


def default_size(model: nn.Module, library: str, name: str) -> int:
    """Pixels per side that an architecture is designed for."""
    if library == "cifar":
        return 32
    if library == "timm":
        return model.pretrained_cfg["input_size"][-1]
    return getattr(model, "image_size", 299 if name == "inception_v3" else 224)


def input_size(weights: dict[str, Tensor], model: nn.Module, own: int) -> int:
    """Pixels per side that position embeddings were trained for, inferred from their number; else the architecture's default."""
    for key, value in model.state_dict().items():
        if key.endswith(("pos_embed", "pos_embedding")) and value.ndim == 3 and key in weights and weights[key].ndim == 3:
            patches = getattr(model, "patch_embed", None)
            patch = patches.patch_size[0] if hasattr(patches, "patch_size") else getattr(model, "patch_size", None)
            there = weights[key].shape[1]
            if patch and value.shape[1] != there:
                others = value.shape[1] - (own // patch) ** 2  # class and register tokens
                side = math.isqrt(max(there - others, 1))
                return side * patch if side**2 + others == there else own
    return own


def differences(weights: dict[str, Tensor], model: nn.Module) -> list[str]:
    """Why weights do not fit a model, one phrase per key: of another shape, missing, or unexpected. Empty if they fit."""
    expected, found = _compared(model.state_dict()), _compared(weights)
    phrases = [
        f"{key} is {tuple(found[key].shape)}, not {tuple(value.shape)}"
        for key, value in expected.items()
        if key in found and found[key].shape != value.shape
    ]
    phrases += [f"{key} is missing" for key in expected if key not in found]
    return phrases + [f"{key} is unexpected" for key in found if key not in expected]


def _compared(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if not key.endswith(NO_WEIGHTS)}


def _no_fit(weights: dict, variant: dict, near: list) -> str:
    """The message when no model fits: the nearest ones, by the share of common keys and shapes, and how the first differs."""
    rows = []
    for _, library, name in sorted(near, key=lambda row: (-row[0], len(row[2]), row[1] == "timm"))[: 4 * NEAREST]:
        try:
            model, *_ = build(weights, library, name, variant)
        except (InputError, RuntimeError):
            continue
        ours = {(key, tuple(value.shape)) for key, value in _compared(weights).items()}
        theirs = {(key, tuple(value.shape)) for key, value in _compared(model.state_dict()).items()}
        rows.append((len(ours & theirs) / len(ours | theirs), f"{library}'s {name}", differences(weights, model)))
    rows.sort(key=lambda row: -row[0])
    if not rows or rows[0][0] == 0:
        return f"its weights ({', '.join(list(weights)[:3])}, ...) have no key in common with any model of timm and torchvision"
    nearest = ", ".join(f"{name} ({int(1000 * share) / 10:g} %)" for share, name, _ in rows[:NEAREST])
    first = rows[0][2]
    more = f", and {len(first) - 3} more" if len(first) > 3 else ""
    return (
        f"its weights fit no model; nearest by keys and shapes in common: {nearest}; in the first {'; '.join(first[:3])}{more}; "
        "--model names another"
    )


def _progress(models: list) -> tqdm:
    return tqdm(models, desc="which model is it", unit=" models", delay=3, leave=False, disable=None)
