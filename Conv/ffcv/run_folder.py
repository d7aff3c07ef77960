"""The folder of a run: claimed before anything is computed, with params.json, log.jsonl and the checkpoint in it."""

import contextlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

from errors import InputError

from torch import nn

import checkpoint
import distributed
import options
from models import bare_model

# What a resumed run must have as it was, and what it is warned about: options, or whole sections of them.
MUST_MATCH = ("model.arch", "model.blurpool", "model.small_stem", "loss.name")
SHOULD_MATCH = ("lr", "loss", "resolution", "augmentation", "training")


def claim(output: Path, resume: str | None, overwrite: bool) -> bool:
    """Make the folder; returns whether --resume continues the run in it, if there is one.

    Raises InputError where the folder cannot be written and where a run in it would be lost.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"logging.folder={output}: cannot be written ({error.strerror})")
    own = output / checkpoint.NAME
    continues = resume == "auto" or (resume is not None and Path(resume).resolve() == own.resolve())
    if continues and overwrite:
        raise InputError(f"--resume continues the run in {output}, --overwrite replaces it: give one of them")
    if own.exists() and not continues and not overwrite:
        raise InputError(
            f"logging.folder={output} holds a run already: --resume auto goes on with it, --overwrite replaces it, "
            "another logging.folder leaves it alone"
        )
    distributed.barrier()  # every process has looked before one of them writes
    return continues


def find_checkpoint(output: Path, resume: str | None) -> Path | None:
    """The checkpoint that --resume means: the path given, or with "auto" the folder's own where there is one."""
    if resume != "auto":
        return Path(resume) if resume else None
    path = output / checkpoint.NAME
    if path.exists():
        return path
    distributed.say(f"--resume auto: no checkpoint in {output}, starting fresh")
    return None


def remove_checkpoint(output: Path) -> None:
    """Delete the checkpoint of a run that is replaced: --resume auto must not find it before the new run's first."""
    if distributed.is_main():
        (output / checkpoint.NAME).unlink(missing_ok=True)


def write_params(output: Path, config) -> None:
    """params.json: the whole configuration, as it came to be."""
    if not distributed.is_main():
        return
    temporary = output / "params.json.tmp"
    temporary.write_text(json.dumps(options.plain(config), indent=1) + "\n")
    os.replace(temporary, output / "params.json")


def save(output: Path, model: nn.Module, parts: dict, classes: list[str], epoch: int, seed: int, args: dict) -> None:
    """Write the checkpoint of a finished epoch, counted from 0, in the form of all trainers of this project."""
    state = {"model": bare_model(model).state_dict(), "model_ema": None}
    state |= {name: part.state_dict() for name, part in parts.items()}
    # Rate, order, crops and dropout are functions of (seed, epoch), so the seed is the state of all generators.
    state |= {"lr_scheduler": {"epoch": epoch + 1}, "epoch": epoch, "rng": {"seed": seed}, "args": args, "classes": classes}
    path = output / checkpoint.NAME
    try:
        checkpoint.save(state, path)
    except OSError as error:
        raise InputError(f"{path}: the checkpoint cannot be written ({error.strerror}); the one before it is kept")


def restore(state: dict, path: Path, model: nn.Module, parts: dict, global_batch: int, config: SimpleNamespace) -> int:
    """Put a checkpoint's state back; returns the epoch to go on with. Raises InputError where it is another run's."""
    missing = [key for key in ("epoch", "classes", "args", *parts) if key not in state]
    if missing or not isinstance(state["args"].get("config"), dict):
        raise InputError(f"{path}: cannot be resumed, it holds no {', '.join(missing) or 'configuration'}; --eval reads it")
    was, now = flat(state["args"]["config"]), flat(options.plain(config))
    for key in MUST_MATCH:
        if was.get(key) != now[key]:
            raise InputError(f"{path}: trained with {key}={was.get(key)}, not {now[key]}")
    for key, value in now.items():
        if key.split(".")[0] in SHOULD_MATCH and key in was and was[key] != value:
            distributed.say(f"warning: {key} was {was[key]} in {path}, now it is {value}")
    if state["args"].get("global_batch") != global_batch:
        distributed.say(f"warning: the global batch was {state['args'].get('global_batch')} in {path}, now it is {global_batch}")
    if state["epoch"] + 1 > config.training.epochs:
        raise InputError(f"{path}: has {state['epoch'] + 1} epochs already, more than training.epochs={config.training.epochs}")
    checkpoint.load_weights(model, state["model"], path)
    # The configuration, not the checkpoint, has the last word on rates and weight decay.
    optimizer = parts["optimizer"]
    groups = optimizer.state_dict()["param_groups"]
    try:
        optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        if state["scaler"]:  # empty where the run so far did without fp16
            parts["scaler"].load_state_dict(state["scaler"])
        parts["loss"].load_state_dict(state["loss"])
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: its optimiser or loss is another run's ({str(error).splitlines()[0][:120]})")
    distributed.say(f"resuming {path} after epoch {state['epoch'] + 1} of {config.training.epochs}")
    return state["epoch"] + 1


def flat(sections: dict[str, dict]) -> dict:
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


class Log:
    """log.jsonl, one JSON object per line and epoch, cut back to the epochs that a resumed run keeps; `seconds` they took."""

    def __init__(self, output: Path, kept_epochs: int):
        self.path, self.seconds = output / "log.jsonl", 0.0
        if distributed.is_main():
            kept = kept_lines(self.path, kept_epochs)
            self.seconds = json.loads(kept[-1]).get("seconds", 0.0) if kept else 0.0
            temporary = self.path.with_name("log.jsonl.tmp")
            temporary.write_text("".join(kept))
            os.replace(temporary, self.path)

    def write(self, line: dict) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")


def kept_lines(path: Path, epochs: int) -> list[str]:
    """Whole lines of a log up to an epoch: a killed process may leave one for an epoch that it has not saved, or half of one."""
    kept = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if line.endswith("\n") and json.loads(line)["epoch"] <= epochs:
                kept.append(line)
    return kept
