"""The uses of a checkpoint: to evaluate it, to resume it, to fine-tune it, or to distil from it as a teacher."""

import difflib
import sys
from functools import partial
from pathlib import Path

from errors import InputError, say

import timm
import torch
import torchvision
from timm.models import vision_transformer
from torch import Tensor, nn

import foreign
import states
from distillation import Teacher, match_columns
from foreign import Foreign
from models import create_model
from options import SETTINGS

# ------------------------------------------------------------------------------------------------------- fine-tuning


def finetune(model: nn.Module, found: Foreign, input_size: int, classes: list[str], mean: list[float], std: list[float]) -> None:
    """Load a checkpoint's weights into a model as DeiT does; classes and input size may differ, and a line says so.

    Position embeddings are resized. If the checkpoint has other classes, the classifier keeps its fresh weights; if it has the
    same classes in another order, its rows are reordered by name. Raises InputError if the rest does not fit.
    """
    say("\n".join([f"fine-tuning {found.source}", *found.notes]))
    weights = adapted(found, model, input_size)
    expected, heads = model.state_dict(), head_names(model)
    head = [name for name in expected if name.rpartition(".")[0] in heads]
    if not head:
        raise InputError(f"--finetune {found.source}: timm does not say which layer of this model is the classifier")
    rows = next((len(weights[name]) for name in head if name in weights and weights[name].ndim), 0)
    names = foreign.class_names(found.classes if found.classes and len(found.classes) == rows else None, rows, classes)
    if rows != len(expected[head[0]]) or (names and set(names) != set(classes)):
        old = f"{rows} classes" if rows != len(expected[head[0]]) else "other classes"
        say(f"the classifier is new: {old if rows else 'none'} in {found.source}, {len(expected[head[0]])} classes here")
        weights = {key: value for key, value in weights.items() if key not in head} | {key: expected[key] for key in head}
    elif names and names != classes:
        order = torch.tensor([names.index(name) for name in classes])
        weights |= {key: weights[key][order] for key in head if key in weights}
    states.load_weights(model, weights, found.source)
    for key, here in (("mean", mean), ("std", std)):
        if found.ours and list(found.facts[key]) != list(here):
            say(f"warning: {found.source} was trained with --{key} {' '.join(map(str, found.facts[key]))}, unlike this run")


def adapted(found: Foreign, model: nn.Module, input_size: int) -> dict[str, Tensor]:
    """The weights with the names and shapes of the installed timm; position embeddings are resized to the model's input."""
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if isinstance(model, vision_transformer.VisionTransformer):  # DeiT III's names of layer scale, DeiT's interpolation
        rename = partial(vision_transformer.checkpoint_filter_fn, adapt_layer_scale=True, antialias=False)
    try:
        weights = rename(found.weights, model) if rename else found.weights
    except Exception as error:  # a filter can fail in any way on weights of another model
        raise InputError(f"{found.source}: the weights are another model's ({str(error).splitlines()[0][:120]})")
    before, after = found.weights.get("pos_embed"), weights.get("pos_embed")
    if before is not None and after is not None and before.shape != after.shape:
        say(f"position embeddings resized from {before.shape[1]} to {after.shape[1]} tokens for {input_size} px")
    return weights


def head_names(model: nn.Module) -> list[str]:
    """Names of a model's classifiers: one, or two in DeiT's distilled models."""
    heads = model.get_classifier()
    heads = heads if isinstance(heads, tuple) else (heads,)
    return [name for name, layer in model.named_modules() if any(layer is head for head in heads)]


def freeze(model: nn.Module, attention_too: bool) -> None:
    """Freeze all but the classifier and, with attention_too, attention and position embeddings, as DeiT's --attn-only does."""
    heads = tuple(f"{name}." for name in head_names(model))
    for name, parameter in model.named_parameters():
        attention = attention_too and (".attn." in name or name == "pos_embed")
        parameter.requires_grad = attention or name.startswith(heads)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    say(f"trained are {trained:,} of {sum(p.numel() for p in model.parameters()):,} parameters")


# --------------------------------------------------------------------------------------------------------- rebuilding


def rebuild(found: Foreign, name: str, input_size: int | None = None) -> tuple[nn.Module, int]:
    """Build the timm or torchvision model of this name with a checkpoint's weights; returns it and its number of outputs.

    The number of outputs is that of the weights. input_size None: the model's own. Raises InputError for a name that neither
    library has and for weights that do not fit.
    """
    library = found.facts.get("library") if found.ours and name == found.facts["model"] else None
    if library == "cifar":
        raise InputError(
            f"{found.source}: a CIFAR ResNet of Conv/common_resnet, which only that trainer can build; this one uses timm models"
        )
    variants = {"blurpool": "BlurPool", "small_stem": "first layers for small images"}
    variant = [text for key, text in variants.items() if found.ours and found.facts.get(key)]
    if variant and library == "torchvision":
        mend = "a model of --model.blurpool=0 --model.small_stem=0 fits"
        raise InputError(f"{found.source}: a model with {' and '.join(variant)}, which only Conv/ builds; {mend}")
    if library != "torchvision" and timm.is_model(name):
        make = partial(_timm_model, name, input_size)
    elif name in torchvision.models.list_models(module=torchvision.models):
        make = partial(_torchvision_model, name)
    else:
        near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=3)) or "timm.list_models() lists those of timm"
        raise InputError(f"{found.source}: neither timm nor torchvision has a model {name[:80]!r}; near names: {near}")
    model = make(1000)
    outputs = found.facts["num_classes"] if found.ours else _outputs(found.weights, model)
    if found.ours and outputs > max((len(value) for value in found.weights.values() if value.ndim), default=0):
        raise InputError(f"{found.source}: none of its weights has the {outputs:,} rows of its num_classes")
    if outputs != 1000:
        model = make(outputs)
    weights = adapted(found, model, input_size) if library != "torchvision" and input_size else found.weights
    states.load_weights(model, weights, found.source)
    return model.eval(), outputs


def _timm_model(name: str, input_size: int | None, outputs: int) -> nn.Module:
    return create_model(name, outputs, input_size, 0.0, 0.0) if input_size else timm.create_model(name, num_classes=outputs)


def _torchvision_model(name: str, outputs: int) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, num_classes=outputs)


def _outputs(weights: dict[str, Tensor], model: nn.Module) -> int:
    """Rows of the classifier's weight, 1000 if there is none. Unlike a stated number, rows cannot exceed what the file stores."""
    if hasattr(model, "get_classifier"):
        name = head_names(model)[:1]
    else:
        layers = list(model.named_modules())
        name = [name for kind in (nn.Conv2d, nn.Linear) for name, layer in layers if isinstance(layer, kind)][-1:]
    matrix = weights.get(f"{name[0]}.weight") if name else None
    return len(matrix) if matrix is not None and matrix.ndim >= 2 and len(matrix) else 1000


# -------------------------------------------------------------------------------------------------------- a teacher


def build_teacher(args, classes: list[str]) -> Teacher:
    """The teacher of --teacher-path, for the student's input. Raises InputError if it cannot teach this student."""
    found = foreign.read(args.teacher_path)
    name = args.teacher_model or found.facts.get("model")
    if name is None:
        raise InputError(f"--teacher-path {args.teacher_path}: the file does not say which model it is of; see --teacher-model")
    say("\n".join([f"teacher        {name}, {args.teacher_path}", *found.notes]))
    size = found.facts.get("input_size")
    model, _ = rebuild(found, name, size)
    native = size or getattr(model, "default_cfg", {}).get("input_size", (args.input_size,))[-1]
    try:
        with torch.no_grad():
            outputs = model(torch.zeros(1, 3, args.input_size, args.input_size)).shape[1]
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(
            f"--teacher-path {args.teacher_path}: {name} takes {native} px, not --input-size {args.input_size} ({reason})"
        )
    if native != args.input_size:
        say(f"the teacher was trained at {native} px and sees the student's {args.input_size} px")
    names = foreign.class_names(found.classes, outputs, classes)
    columns = match_columns(names, outputs, classes, f"--teacher-path {args.teacher_path}")
    if names is None:
        say("the teacher's file has no class names: its outputs are assumed to be in the student's order")
    stats = [[float(value) for value in found.facts[key]] for key in ("mean", "std")] if found.ours else None
    if stats is None:
        say("the teacher gets images with the student's mean and standard deviation; many timm ViTs expect 0.5 and 0.5")
    return Teacher(model, columns, (args.mean, args.std), tuple(stats) if stats else None)


# --------------------------------------------------------------------------------------------------------- continuing


def restore(found: Foreign, model: nn.Module, averaged: nn.Module | None, parts: dict, args) -> int:
    """Restore a checkpoint's state; returns the epoch to continue with. Raises InputError if it does not fit this run.

    Files of DeiT and timm, which have an optimiser and an epoch but no loss and no classes, can be resumed too.
    """
    state, path, was = found.state, found.source, found.state.get("args", {}) if found.ours else found.facts
    needed = ("epoch", "classes", *parts)
    missing = [key for key in needed if key not in state]
    elsewhere = not found.ours and type(state.get("epoch")) is int and isinstance(state.get("optimizer"), dict)
    if missing and not elsewhere:
        raise InputError(f"{path}: cannot be resumed, it holds no {', '.join(missing)}; --eval reads it")
    if was.get("model", args.model) != args.model:
        raise InputError(f"{path}: a checkpoint of {was['model']}, not of --model {args.model}")
    states.load_weights(model, found.weights, path)
    if elsewhere:
        say(f"{path} is another trainer's: weights, optimiser and epoch are continued, with --loss {args.loss} from here on")
    else:
        _compare(was, path, args)
    states.load_parts({name: part for name, part in parts.items() if name in state}, state, path)
    if averaged is not None:
        weights, _ = foreign.find_weights(state, path, ema=True)
        states.load_weights(averaged, weights, path)
    if state["epoch"] + 1 > args.epochs:
        raise InputError(f"{path}: has {state['epoch'] + 1} epochs already, more than --epochs {args.epochs}")
    say(f"resuming {path} after epoch {state['epoch'] + 1} of {args.epochs}")
    args.finetune = was.get("finetune")
    return state["epoch"] + 1


def _compare(was: dict, path: str, args) -> None:
    """Raise InputError if an option makes the saved state unusable; print which others differ."""
    for name in ("loss", "prior", "opt"):
        if was.get(name, "uniform" if name == "prior" else None) != getattr(args, name):
            raise InputError(
                f"{path}: trained with --{name} {was.get(name)}, not {getattr(args, name)}, which cannot use its state"
            )
    for name in SETTINGS:
        if name in was and was[name] != getattr(args, name):
            say(f"warning: {name} was {was[name]} in {path}, now it is {getattr(args, name)}")


def read_to_continue(source: str) -> Foreign:
    """Read a checkpoint to resume, in this project's format or DeiT's. Raises InputError."""
    found = foreign.read(source)
    if found.ours or "classes" in found.state:
        states.check(found.state, Path(source))
    epoch = found.state.get("epoch", 0)
    if type(epoch) is not int or epoch < 0:
        raise InputError(f"{source}: its epoch is {str(epoch)[:80]}, not a number from 0 on")
    return found
