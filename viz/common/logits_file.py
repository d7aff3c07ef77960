"""Logits files (.pt): a dict with logits float32 (N, K), labels int64 (N,), and optionally features, classes, paths, model."""

import os
import pickle
import zipfile
from pathlib import Path

from common.errors import InputError, reason

import torch

CHUNK = 1024  # rows looked at at a time, so that checking a large file needs no second copy of it


def load(path: Path) -> dict:
    """Read and check a logits file, ours or not. Raises InputError saying what is wrong with it."""
    if not path.is_file():
        raise InputError(f"{path}: no such logits file; viz/logits.py writes one")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise InputError(f"{path}: refused, it holds more than tensors and plain types; nothing in it was run")
    except Exception as error:  # a damaged file can fail in any way
        raise InputError(f"{path}: damaged, or not a PyTorch file ({reason(error)})")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), torch.Tensor) for key in ("logits", "labels")):
        raise InputError(f"{path}: a logits file is a dict with the tensors 'logits' (N, K) and 'labels' (N,)")
    logits, labels = content["logits"].detach(), content["labels"].detach()
    if logits.layout != torch.strided or labels.layout != torch.strided or "meta" in (logits.device.type, labels.device.type):
        raise InputError(f"{path}: 'logits' and 'labels' must be ordinary tensors, not sparse or empty shells")
    if logits.ndim != 2 or logits.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise InputError(f"{path}: 'logits' is {tuple(logits.shape)} {logits.dtype}, not (N, K) floating point")
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or len(labels) != len(logits):
        raise InputError(f"{path}: 'labels' is {tuple(labels.shape)} {labels.dtype}, not {len(logits)} class indices")
    if len(logits) == 0 or logits.shape[1] < 2:
        raise InputError(f"{path}: {len(logits)} samples of {logits.shape[1]} classes; at least 1 of 2 are needed")
    # Beyond float32's range nothing that a model puts out lies, and squares of it would overflow.
    broken = sum(int((~rows.float().isfinite()).any(1).sum()) for rows in logits.split(CHUNK))
    if broken:
        raise InputError(f"{path}: {broken} samples have logits that are NaN or infinite in float32")
    labels = labels.long()
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise InputError(f"{path}: labels from {labels.min()} to {labels.max()}, but the classes are 0 to {logits.shape[1] - 1}")
    return content | {"logits": logits, "labels": labels}


def save(content: dict, path: Path) -> None:
    """Write a logits file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        torch.save(content, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({reason(error)})")


def check_output(output: Path, checkpoint: Path, overwrite: bool) -> None:
    """Raise InputError unless a file can be written at `output` without the loss of another."""
    if output.exists() and checkpoint.exists() and output.samefile(checkpoint):
        raise InputError(f"--output {output} is the checkpoint itself; choose another name")
    if output.is_dir():
        raise InputError(f"--output {output} is a folder; name a file, such as {output / 'logits_labels.pt'}")
    if output.exists() and not overwrite:
        raise InputError(f"{output} is there already; --overwrite replaces it")
    if not output.parent.is_dir():
        raise InputError(f"{output.parent}: no such folder to write to")
