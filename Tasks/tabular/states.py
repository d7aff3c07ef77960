"""Files of tensors and plain types, such as checkpoints: written completely or not at all, read without running code."""

import argparse
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from errors import InputError, say

import torch
from torch import Tensor, nn

from checksums import verify_checksums

MOST_STEPS = 1e12
# Types that checkpoints often contain in addition to the weights: a best accuracy as a NumPy scalar, an output folder as a path.
ASIDE = [f"numpy.{name}" for name in ("dtype", "core.multiarray.scalar", "_core.multiarray.scalar")]
ASIDE += [
    f"pathlib.{module}{name}Path" for module in ("", "_local.") for name in ("Posix", "Windows", "PurePosix", "PureWindows")
]
NO_WEIGHTS = ("num_batches_tracked", "relative_position_index", "attn_mask", "total_ops", "total_params", "n_averaged")


class Unread:
    """Replaces every object of a type in ASIDE: no NumPy or pathlib object is built from a file's content."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def write_whole(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file by fill(file), under a temporary name until it is on the disk: if the process is killed, the old file remains.

    Raises InputError if it cannot be written, on a full disk for example; the old file then remains, and nothing of the new one.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        while not isinstance(error, OSError) and error.__context__:  # torch.save fails a second time when it closes the file
            error = error.__context__
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be written ({reason}); the file that was there is kept")
    finally:
        temporary.unlink(missing_ok=True)


def write(content: dict, path: Path) -> None:
    """Write a dict of tensors and plain types with write_whole."""
    write_whole(path, lambda file: torch.save(content, file))


def read_any(path: Path) -> dict:
    """Read a dict with torch.load(weights_only=True), or a safetensors file, onto the CPU, after verifying its checksums.

    Raises InputError for a file that is missing, is damaged, is not a dict, would run code, or has tensors without values.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        checked = verify_checksums(path)
    except (ValueError, OSError) as error:
        raise InputError(error if isinstance(error, ValueError) else f"{path}: cannot be read ({error.strerror})")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            # DeiT's checkpoints store their command-line options as a Namespace, which only carries attributes.
            with torch.serialization.safe_globals([argparse.Namespace, *((Unread, name) for name in ASIDE)]):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))  # what the file would have called
        reason = found.group(1) if found else "not a pickle of tensors"
        raise InputError(f"{path}: refused, it holds more than tensors and plain types ({reason}); nothing in it was run")
    except Exception as error:  # a damaged file can fail in any way
        raise InputError(f"{path}: damaged, or not a PyTorch checkpoint ({_reason(error)})")
    if not isinstance(state, dict):
        raise InputError(f"{path}: a checkpoint is a dict that holds weights; this one is a {type(state).__name__}")
    if any(value.layout != torch.strided or value.device.type != "cpu" for value in tensors(state)):
        raise InputError(f"{path}: holds sparse tensors, or empty shells without values")
    if not checked:
        say(f"note: {path} has no checksums, so damage cannot be detected")
    return state


def read(path: Path) -> dict:
    """Read a checkpoint in this project's format. Raises InputError for what read_any refuses, and for other formats."""
    return check(read_any(path), path)


def check(state: dict, path: Path) -> dict:
    """Return the content of a checkpoint if it has this project's format. Raises InputError if it does not."""
    if not isinstance(state.get("model"), dict):
        raise InputError(f"{path}: a checkpoint is a dict with the weights under 'model'; this one is not")
    kinds = {"args": dict, "classes": list, "epoch": int, "optimizer": dict, "loss": dict, "scaler": dict, "lr_scheduler": dict}
    wrong = [key for key, kind in kinds.items() if key in state and (not isinstance(state[key], kind) or state[key] is True)]
    wrong += ["epoch"] * ("epoch" not in wrong and not 0 <= state.get("epoch", 0) < 10**9)
    wrong += ["classes"] * ("classes" not in wrong and not all(isinstance(name, str) for name in state.get("classes", ())))
    wrong += ["model_ema"] * (not isinstance(state.get("model_ema"), dict | None))
    wrong += ["model"] * (not all(isinstance(value, Tensor) for value in state["model"].values()))
    wrong += ["args"] * ("args" not in wrong and not is_plain(state.get("args")))
    if wrong:
        raise InputError(f"{path}: not a checkpoint of this project's format: unexpected content under {', '.join(wrong)}")
    return state


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: object) -> None:
    """Load weights that are finite and match the model, except for NO_WEIGHTS. Raises InputError naming the keys that differ."""
    expected, found = (
        {key: value for key, value in some.items() if not str(key).endswith(NO_WEIGHTS)} for some in (model.state_dict(), weights)
    )
    phrases = [f"{key} is missing" for key in expected if key not in found]
    phrases += [f"{key} is unexpected" for key in found if key not in expected]
    for key, value in expected.items():
        other = found.get(key, value)
        if not isinstance(other, Tensor):
            phrases.append(f"{key} is not a tensor")
        elif other.shape != value.shape:
            phrases.append(f"{key} is {tuple(other.shape)}, not {tuple(value.shape)}")
        elif other.is_floating_point() != value.is_floating_point():
            phrases.append(f"{key} is {other.dtype}")
    if phrases:
        more = f", and {len(phrases) - 3} more" if len(phrases) > 3 else ""
        raise InputError(f"{source}: the weights are another model's: {'; '.join(phrases[:3])}{more}")
    if broken := [key for key, value in found.items() if not value.isfinite().all()]:
        raise InputError(f"{source}: {broken[0]} holds numbers that are not finite: it is damaged, or its training diverged")
    names = model.state_dict().keys()
    model.load_state_dict({key: value for key, value in weights.items() if key in names}, strict=False)


COUNTERS = ("step", "lookahead_step")  # timm's LAMB, Adan and Lookahead store them among their options


def load_parts(parts: dict[str, object], state: dict, source: object) -> None:
    """Restore the state of a run's parts: the loss, the gradient scaler of mixed precision, and the optimiser.

    The optimiser's learning rates and weight decay, and the schedule, remain those of this run, because they follow from the
    command line; its step counters are restored. Raises InputError for a state that does not fit its part or is not finite.
    """
    for name, part in parts.items():
        try:
            if name == "lr_scheduler" or (name == "scaler" and state[name] == {}):  # empty if the run did not use fp16
                continue
            if name == "scaler" and not all(isinstance(value, int | float) for value in state[name].values()):
                raise ValueError("it holds something other than numbers")
            if isinstance(part, torch.optim.Optimizer):
                groups, kept = part.state_dict()["param_groups"], state[name]["param_groups"]
                if [len(group["params"]) for group in kept] != [len(group["params"]) for group in groups]:
                    raise ValueError("its parameter groups differ; it was trained with other options")
                for group, old in zip(groups, kept, strict=True):
                    group |= {key: old[key] for key in COUNTERS if _is_count(old.get(key))}
                weights = dict(enumerate(weight for group in part.param_groups for weight in group["params"]))
                _check_memory([(weights[index], memory) for index, memory in state[name]["state"].items()])
                part.load_state_dict({"state": state[name]["state"], "param_groups": groups})
            else:
                part.load_state_dict(state[name])
            if not all(value.isfinite().all() for value in tensors(part.state_dict())):
                raise ValueError("it holds numbers that are not finite")
        except Exception as error:  # another program's state can fail in any way
            raise InputError(f"{source}: the state of its {name} does not fit ({_reason(error)})")


def _is_count(value: object) -> bool:
    return type(value) is int or (isinstance(value, Tensor) and value.ndim == 0)


def _check_memory(memories: list[tuple[Tensor, dict]]) -> None:
    """Raise ValueError if an optimiser's state for some weight would make the next step fail or compute nonsense."""
    kinds: dict[str, str] = {}
    for weight, memory in memories:
        for key, value in memory.items():
            kind = _kind(value, weight)
            if isinstance(value, str | bytes) or (weight.numel() > 1 and kinds.setdefault(key, kind) != kind):
                raise ValueError(f"{key} is {kind} for one of the weights")
            if key == "step" and not 0 <= value <= MOST_STEPS:
                raise ValueError(f"{key} is {value}")
            if isinstance(value, Tensor) and value.numel() == 0:
                raise ValueError(f"{key} is empty")
            # As large as the weight, one number, or one value per row or column, as factored optimisers store.
            if isinstance(value, Tensor) and value.numel() > 1 and any(side not in (1, *weight.shape) for side in value.shape):
                raise ValueError(f"{key} is {tuple(value.shape)} for a weight of {tuple(weight.shape)}")


def _kind(value: object, weight: Tensor) -> str:
    """The type of a state entry, and whether it has the weight's shape: an optimiser's entries of one name agree in both."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{value.dtype} of {'the same' if value.shape == weight.shape else 'another'} shape"


def tensors(content: object) -> list[Tensor]:
    """All tensors in nested dicts and lists."""
    found, left, seen = [], [content], set()
    while left:
        one = left.pop()
        if isinstance(one, Tensor):
            found.append(one)
        elif isinstance(one, dict | list | tuple) and id(one) not in seen:  # a list may contain itself
            seen.add(id(one))
            left.extend(one.values() if isinstance(one, dict) else one)
    return found


def is_plain(value: object, depth: int = 5) -> bool:
    """Whether a value can be printed: it is text, a number or None, or dicts and lists of these, not nested deeply."""
    if isinstance(value, dict | list | tuple):
        return depth > 0 and all(is_plain(one, depth - 1) for one in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, str | float | None) or (isinstance(value, int) and abs(value) < 10**100)


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
