"""Logits files (.pt): a dict with logits float32 (N, K), labels int64 (N,), and optionally features, classes, paths, model, args.

In segmentation: logits (N, K, H, W) and labels (N, H, W). A file may be larger than memory: its tensors stay on disk.
"""

from pathlib import Path

from common.errors import InputError
from common.outputs import whole

import torch

from checkpoints import torch_file

CHUNK = 1024  # rows checked at a time, so that checking a large file needs no second copy of it
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load(path: Path, ignore_index: int | None = None) -> dict:
    """Read and check a logits file of images from any source; with ignore_index, also one of pixels. Raises InputError.

    A file of pixels also gets the keys `path`, `ignore_index` and `pixels`, the number of labelled pixels; whether its logits are
    finite is checked later, image by image.
    """
    content = torch_file.read(path, "logits file", memory_map=True)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), torch.Tensor) for key in ("logits", "labels")):
        raise InputError(f"{path}: a logits file is a dict with the tensors 'logits' (N, K) and 'labels' (N,)")
    if not all(torch_file.is_ordinary(content[key]) for key in ("logits", "labels")):
        raise InputError(f"{path}: 'logits' and 'labels' must be ordinary tensors, not sparse, complex, expanded or empty shells")
    logits, labels = content["logits"].detach(), content["labels"].detach()
    dense, form = logits.ndim == 4 and ignore_index is not None, "(N, K)" if ignore_index is None else "(N, K) or (N, K, H, W)"
    if logits.ndim != 2 and not dense or logits.dtype not in FLOATS:
        raise InputError(f"{path}: 'logits' is {tuple(logits.shape)} {logits.dtype}, not {form} floating point")
    count, classes, *size = logits.shape
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != (count, *size):
        raise InputError(f"{path}: 'labels' is {tuple(labels.shape)} {labels.dtype}, not {(count, *size)} class indices")
    if logits.numel() == 0 or classes < 2:
        raise InputError(f"{path}: 'logits' is {tuple(logits.shape)}; at least 1 sample and 2 classes are needed")
    content |= {"logits": logits, "labels": labels}
    _check_optional(path, content, count, classes)
    parts = (rows for image in logits for rows in image.flatten(1).T.split(CHUNK)) if dense else logits.split(CHUNK)
    if all(map(_are_probabilities, parts)):
        raise InputError(f"{path}: its logits are probabilities, for every row sums to 1; their logarithms serve as logits")
    if dense:
        pixels = sum(_check_labels(f"{path}, image {image}", part, classes, ignore_index) for image, part in enumerate(labels))
        if not pixels:
            raise InputError(f"{path}: every label is {ignore_index}, --ignore-index; no labelled pixel remains")
        return content | {"path": path, "ignore_index": ignore_index, "pixels": pixels}
    _check_finite(path, "logits", logits)
    _check_labels(str(path), labels, classes, None)
    return content | {"labels": labels.long()}


def _check_optional(path: Path, content: dict, count: int, classes: int) -> None:
    for key, least, most in (("paths", count, count), ("classes", 1, classes)):
        value = content.setdefault(key, None)
        right = isinstance(value, list) and least <= len(value) <= most and all(isinstance(name, str) for name in value)
        if value is not None and not right:
            up_to = "up to " * (least < most)
            raise InputError(f"{path}: its {key} are not a list of {up_to}{most:,} names")
    features = content.get("features")
    if features is not None:
        if not torch_file.is_ordinary(features) or features.ndim != 2 or len(features) != count or features.dtype not in FLOATS:
            raise InputError(f"{path}: its features are not a floating-point tensor ({count:,}, D)")
        _check_finite(path, "features", features)


def _check_finite(path: Path, key: str, values: torch.Tensor) -> None:
    # No model puts out values beyond float32's range, and squares of such values could overflow.
    broken = sum(int((~rows.float().isfinite()).any(1).sum()) for rows in values.split(CHUNK))
    if broken:
        raise InputError(f"{path}: {broken} samples have {key} that are NaN or infinite in float32")


def _are_probabilities(rows: torch.Tensor) -> bool:
    """Whether all rows (n, K) are probabilities, up to the rounding of half precision."""
    return bool((rows >= 0).all()) and bool(((rows.double().sum(1) - 1).abs() < 0.01).all())


def _check_labels(where: str, labels: torch.Tensor, classes: int, ignore_index: int | None) -> int:
    """The number of labels, without those to ignore. Raises InputError for a label that is not a class."""
    labels = labels.long()
    labels = labels if ignore_index is None else labels[labels != ignore_index]
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        only = "" if ignore_index is None else f"; --ignore-index {ignore_index} is the only other"
        raise InputError(f"{where}: labels from {labels.min()} to {labels.max()}, but the classes are 0 to {classes - 1}{only}")
    return len(labels)


def save(content: dict, path: Path) -> None:
    """Write a logits file completely or not at all."""
    with whole(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)
