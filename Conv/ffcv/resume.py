"""Resuming a run from its checkpoint."""

from pathlib import Path
from types import SimpleNamespace

from errors import InputError, say

from torch import nn

import options
import states

# Options, or whole sections, that must be the same in a resumed run, and those that cause a warning if they differ.
MUST_MATCH = ("model.arch", "model.blurpool", "model.small_stem", "loss.name")
SHOULD_MATCH = ("lr", "loss", "resolution", "augmentation", "training", "validation", "data.in_memory")


def restore(state: dict, path: Path, model: nn.Module, parts: dict, global_batch: int, config: SimpleNamespace) -> int:
    """Restore a checkpoint's state; returns the epoch to continue with. Raises InputError if it does not fit this run."""
    missing = [key for key in ("epoch", "args", *parts) if key not in state]
    config_was = state.get("args", {}).get("config")
    sound = isinstance(config_was, dict) and all(isinstance(keys, dict) for keys in config_was.values())
    if missing or not sound:
        raise InputError(f"{path}: cannot be resumed, it holds no {', '.join(missing) or 'configuration'}; --eval reads it")
    was, now = flat(config_was), flat(options.plain(config))
    for key in MUST_MATCH:
        if was.get(key) != now[key]:
            raise InputError(f"{path}: trained with {key}={was.get(key)}, not {now[key]}")
    for key, value in now.items():
        if (key in SHOULD_MATCH or key.split(".")[0] in SHOULD_MATCH) and key in was and was[key] != value:
            say(f"warning: {key} was {was[key]} in {path}, now it is {value}")
    if state["args"].get("global_batch") != global_batch:
        say(f"warning: the global batch was {state['args'].get('global_batch')} in {path}, now it is {global_batch}")
    if state["epoch"] + 1 > config.training.epochs:
        raise InputError(f"{path}: has {state['epoch'] + 1} epochs already, more than training.epochs={config.training.epochs}")
    if config.model.init not in (None, was.get("model.init")):
        say(f"--init {config.model.init}: no effect, {path} already has the weights")
    config.model.init = was.get("model.init")
    states.load_weights(model, state["model"], path)
    states.load_parts(parts, state, path)
    say(f"resuming {path} after epoch {state['epoch'] + 1} of {config.training.epochs}")
    return state["epoch"] + 1


def flat(sections: dict[str, dict]) -> dict:
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}
