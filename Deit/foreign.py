"""Checkpoints of any trainer, read from a path or URL without running any code in them.

Supported are this project's checkpoints, those of DeiT and timm (with an argparse.Namespace), of Lightning, of torchvision's
references, bare state dicts and safetensors. The prefixes of torch.compile and DistributedDataParallel are removed.
"""

import argparse
import hashlib
import http.client
import math
import re
import socket
import urllib.error
import urllib.parse
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from errors import InputError, is_first, say

import torch
from torch import Tensor

import distributed
import states

# Keys of the weights, and of their moving averages, in files of DeiT, timm, Lightning and others.
WEIGHTS = ("model", "state_dict", "net", "model_state_dict", "weights")
AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
WRAPPERS = ("module.", "model.", "net.")  # DistributedDataParallel, Lightning, and custom wrappers
OURS = {"model", "num_classes", "input_size", "crop_ratio", "interpolation", "mean", "std"}
SECONDS = 30  # without an answer before a download fails


@dataclass
class Foreign:
    """What a checkpoint contains.

    `weights` are the weights, keys without prefixes. `state` is the whole content. `facts` are those of checkpoint.facts that its
    options name: all of them in a file of this project (`ours`), perhaps model and input_size in another. `classes` are the class
    names in label order, if the file has them. `notes` are lines to show the user.
    """

    source: str
    state: dict
    weights: dict[str, Tensor]
    facts: dict
    ours: bool
    classes: list[str] | None = None
    notes: list[str] = field(default_factory=list)


def read(source: str | Path, ema: bool = False) -> Foreign:
    """Read a checkpoint, downloading it first if `source` is a URL; with `ema`, the moving average of the weights.

    Every process of a run must call this; one per machine downloads. Raises InputError for a file that is missing, is damaged,
    would run code or has no weights, and for a download that fails or does not match the checksum in its name.
    """
    source = str(source)
    _, state = open_source(source)
    weights, notes = find_weights(state, source, ema)
    facts, ours = find_facts(state, source)
    classes = state.get("classes")
    if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        classes = None
    return Foreign(source, state, weights, facts, ours, classes, notes)


def class_names(classes: list[str] | None, outputs: int, data_classes: list[str]) -> list[str] | None:
    """A model's class names in the order of its outputs, None if they are unknown.

    `classes` are the names in its file. If there are none, 1,000 outputs on ImageNet data are named by the data's sorted wnids.
    """
    imagenet = outputs == 1000 == len(data_classes) and all(re.fullmatch(r"n\d{8}", name) for name in data_classes)
    return sorted(data_classes) if classes is None and imagenet else classes


# --------------------------------------------------------------------------------------------------------- downloads


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def open_source(source: str) -> tuple[Path, dict]:
    """The path of a file, downloaded first if `source` is a URL, and its content. A damaged download is removed."""
    path = download(source) if is_url(source) else Path(source)
    try:
        return path, states.read_any(path)
    except InputError:
        if is_url(source) and path.is_file():
            html = path.open("rb").read(512).lstrip().lower().startswith((b"<!doctype", b"<html"))
            path.unlink(missing_ok=True)
            if html:
                raise InputError(f"{source}: the server sent a page of HTML, not a checkpoint; give the address of the file")
        raise


def download(url: str) -> Path:
    """The path of a URL's file in torch.hub's cache, downloaded with a progress bar if it is not there.

    A name such as deit_small_patch16_224-cd65a155.pth contains the beginning of the file's SHA-256, which is checked. To other
    names a hash of the URL is added, because many files are called checkpoint.pth.
    """
    name = Path(urllib.parse.unquote(urllib.parse.urlparse(url).path)).name or "checkpoint"
    found = re.search(r"-([0-9a-f]{8,64})\.", name)
    if not found:
        stem, dot, suffix = name.rpartition(".")
        name = f"{stem or suffix}.{hashlib.sha256(url.encode()).hexdigest()[:8]}{dot}{suffix if stem else ''}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    with distributed.local_main_first():
        if path.is_file():
            return path
        say(f"downloading {url} to {path}")
        patience = socket.getdefaulttimeout()
        socket.setdefaulttimeout(SECONDS)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), found and found.group(1), progress=is_first())
        except RuntimeError as error:  # the checksum differs from the one in the name
            raise InputError(f"{url}: {error}; it is damaged, or another file than its name says, and was not kept")
        except urllib.error.HTTPError as error:
            raise InputError(f"{url}: the server answers {error.code} {error.reason}; check the address")
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise InputError(f"{url}: cannot be downloaded ({reason}); check the address, or download it yourself")
        finally:
            socket.setdefaulttimeout(patience)
    return path


# ----------------------------------------------------------------------------------------------- what a file holds


def find_weights(state: dict, source: str, ema: bool = False) -> tuple[dict[str, Tensor], list[str]]:
    """The weights in a checkpoint's content, keys without prefixes, and notes on what was omitted. Raises InputError."""
    if ema:
        found = next((state[key] for key in AVERAGES if isinstance(state.get(key), dict)), None)
        if found is None:
            raise InputError(f"{source}: holds no moving average of the weights; omit --model-ema or --ema")
        found = next((found[key] for key in WEIGHTS if isinstance(found.get(key), dict)), found)
    else:
        found = next((state[key] for key in WEIGHTS if isinstance(state.get(key), dict)), state)
    weights = {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not any(value.ndim >= 2 for value in weights.values()):
        keys = ", ".join(str(key)[:40] for key in list(state)[:5]) or "nothing"
        raise InputError(f"{source}: holds no weights, neither bare nor under {', '.join(WEIGHTS)} (it holds {keys})")
    return without_prefixes(weights)


def without_prefixes(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Remove the prefixes of wrappers, however nested; tensors outside the wrapped model (a loss's, say) are omitted."""
    weights = {key.replace("_orig_mod.", ""): value for key, value in weights.items()}
    notes = []
    while prefix := _wrapper(weights):
        others = [key for key in weights if not key.startswith(prefix)]
        if others:
            notes.append(f"{len(others)} tensors do not belong to the model and are ignored ({', '.join(others[:3])})")
        weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return weights, notes


def _wrapper(keys: Collection[str]) -> str | None:
    """One of WRAPPERS that most keys begin with, or else the first part common to all keys: the attribute with the model."""
    known = next((prefix for prefix in WRAPPERS if 2 * sum(key.startswith(prefix) for key in keys) > len(keys)), None)
    first = {key.split(".")[0] for key in keys}
    # Not "encoder", which begins all keys of some of timm's ViTs; and fc.weight and fc.bias are a layer, not a wrapped model.
    alone = len(first) == 1 and first != {"encoder"} and any(key.count(".") > 1 for key in keys)
    return known or (f"{first.pop()}." if alone else None)


def find_facts(state: dict, source: str) -> tuple[dict, bool]:
    """The facts in a checkpoint's `args` (see checkpoint.facts), checked, and whether all are there, as in this project's files.

    An invalid fact is omitted if the file is another trainer's, and raises InputError if it is this project's.
    """
    args = state.get("args")
    args = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}
    ours = args.keys() >= OURS
    if args.get("library") in ("smp", "text", "tabular"):
        raise InputError(f"{source}: a model of Tasks/, no classifier of images; its trainer there reads it")
    checks = {
        "model": lambda value: isinstance(value, str) and len(value) < 200,
        "library": lambda value: value in ("timm", "torchvision", "cifar"),
        "input_size": lambda value: type(value) is int and 1 <= value <= 4096,
        "num_classes": lambda value: type(value) is int and 1 <= value <= 10**7,
        "crop_ratio": lambda value: isinstance(value, int | float) and 0 < value <= 1,
        "interpolation": lambda value: isinstance(value, str) and 0 < len(value) < 200,  # timm's default is ""
        "mean": _three_numbers,
        "std": lambda value: _three_numbers(value) and min(value) > 0,
        **dict.fromkeys(("width", "stem_stride"), lambda value: type(value) is int and 1 <= value <= 4096),
        **dict.fromkeys(("small_stem", "blurpool"), lambda value: isinstance(value, bool)),
    }
    facts = {}
    for key, right in checks.items():
        if args.get(key) is not None:
            if right(args[key]):
                facts[key] = args[key]
            elif ours:
                shown = f"{args[key]!s:.80}" if states.is_plain(args[key]) else type(args[key]).__name__
                raise InputError(f"{source}: its {key} is {shown!r}, which is invalid")
    return facts, ours


def _three_numbers(value: object) -> bool:
    right = isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(v, int | float) for v in value)
    return right and all(map(math.isfinite, value))
