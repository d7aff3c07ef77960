"""Checkpoints: written whole or not at all, and read without running what is in them. Logits files are written the same way."""

import hashlib
import os
from pathlib import Path

from errors import InputError

import torch
from torch import nn

from data import Texts

NAME = "checkpoint.pth"


def facts(args, texts: Texts) -> dict:
    """What the checkpoint says under `args`, as plain types: the command line, and what rebuilds the model.

    model "lstm" or "lstm-lm", library "text", num_classes, input_size (tokens per text or window), words (size of the vocabulary,
    special ones included), embedding_size, hidden_size, data_digest (of the numbered training texts). The words themselves are
    the checkpoint's `vocabulary`, or a language model's `classes`.
    """
    plain = {key: str(value.resolve()) if isinstance(value, Path) else value for key, value in vars(args).items()}
    digest = hashlib.sha256(texts.train.tokens.numpy().tobytes() + "\n".join(texts.words).encode()).hexdigest()[:16]
    of_model = {"library": "text", "num_classes": len(texts.classes), "input_size": args.max_tokens, "words": len(texts.words)}
    return plain | of_model | {"data_digest": digest}


def save(content: dict, path: Path) -> None:
    """Write a dict of tensors and plain types under `path` atomically: a killed process leaves the old file unchanged."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be written ({error}); free some space, or choose another folder")


def load(path: Path) -> dict:
    """Read a checkpoint of this trainer onto the CPU with weights_only=True.

    Raises InputError for a file that is missing, damaged, of another form, or that would run code.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"{path}: refused; it is damaged, or holds more than tensors and plain types ({reason})")
    kinds = {"model": dict, "optimizer": dict, "loss": dict, "epoch": int, "classes": list, "args": dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(state, dict) or not isinstance(state.get(key), kind)]
    if wrong:
        raise InputError(f"{path}: not a checkpoint of this trainer; it has no valid {', '.join(wrong)}")
    return state


def restore(state: dict, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, criterion: nn.Module) -> None:
    """Load weights, optimiser and loss, all in place. Raises InputError where they do not fit."""
    try:
        model.load_state_dict(state["model"])
        criterion.load_state_dict(state["loss"])
        groups = optimizer.state_dict()["param_groups"]  # the learning rate is the command line's
        optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path}: belongs to another model or loss ({' '.join(str(error).split())[:200]})")
