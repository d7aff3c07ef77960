"""Running checkpoints over images, batch by batch: the loop of every command that runs a model."""

import argparse
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from common import distributed, options
from common.errors import InputError, say

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from checkpoints.models import logits_and_features
from checkpoints.read import Checkpoint, load_checkpoint
from images.image_set import Images
from images.transforms import normalise, transform

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Batch(NamedTuple):
    """One step of `run`: its rows in this process's share, logits (B, K) and features (B, D) float32, labels (B,); on the CPU."""

    rows: slice
    logits: Tensor
    features: Tensor
    labels: Tensor


@torch.inference_mode()
def run(
    model: nn.Module,
    images: Images,
    facts: dict,
    title: str,
    batch_size: int = 128,
    num_workers: int = 0,
    device: str = "cpu",
    amp: str = "off",
) -> Iterator[Batch]:
    """Run a model over this process's share of the images, in order. Raises InputError if logits are not finite."""
    if len(images) < distributed.count():
        raise InputError(f"{images.where}: {len(images)} images for {distributed.count()} processes; start fewer")
    rows = distributed.share(len(images))
    target = distributed.device(device)
    model = model.to(target, memory_format=torch.channels_last)
    dtype = AMP[amp]
    start = 0
    batches = _batches(images, rows, facts, batch_size, num_workers, device == "cuda")
    bar = {"total": -(-len(rows) // batch_size), "desc": title, "unit": "batch", "leave": False, "dynamic_ncols": True}
    for pixels, labels in tqdm(batches, **bar, disable=None if distributed.rank() == 0 else True):
        pixels = normalise(pixels.to(target, non_blocking=True), facts).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
            logits, features = logits_and_features(model, pixels)
        logits = logits.float().cpu()
        if not logits.isfinite().all():
            raise InputError(f"{title}: logits are NaN or infinite; the weights are damaged, or try --amp off")
        yield Batch(slice(start, start + len(labels)), logits, features.float().cpu(), labels)
        start += len(labels)


def _batches(
    images: Images, rows: range, facts: dict, batch_size: int, workers: int, pin: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    pixels = getattr(images.open_image, "pixels", None)  # (N, H, W) or (N, H, W, 3) uint8 in memory
    if pixels is not None and pixels.shape[1:3] == (facts["input_size"],) * 2 and facts["crop_ratio"] == 1:
        return _batches_in_memory(pixels, images, rows, batch_size)  # nothing to decode, resize or crop
    images.transform = transform(facts)
    # Processes under torchrun have communication threads; a forked copy could wait forever for a lock that one of them holds.
    start = multiprocessing.get_context("forkserver") if workers and distributed.count() > 1 else None
    if start:
        start.set_forkserver_preload(["torch", "torchvision", "timm.data"])  # once, not in each loading process
    worker = {"num_workers": workers, "multiprocessing_context": start, "worker_init_fn": distributed.start_worker}
    return DataLoader(Subset(images, rows), batch_size, pin_memory=pin, **worker)


def _batches_in_memory(pixels: np.ndarray, images: Images, rows: range, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(rows.start, rows.stop, size):
        part = slice(start, min(start + size, rows.stop))
        batch = torch.from_numpy(pixels[images.rows[part]])
        batch = batch.unsqueeze(3).expand(-1, -1, -1, 3) if batch.ndim == 3 else batch
        yield batch.permute(0, 3, 1, 2), torch.from_numpy(images.labels[part])


def outputs(
    model: nn.Module, images: Images, facts: dict, title: str, wanted: tuple[str, ...] = ("logits", "labels"), **loading
) -> dict[str, Tensor]:
    """The `wanted` ones of logits (N, K), features (N, D), both float32, and labels (N,), of this process's share of the images.

    loading: options of `run`.
    """
    count, found = len(distributed.share(len(images))), {}
    for batch in run(model, images, facts, title, **loading):
        for name in wanted:
            rows = getattr(batch, name)
            if name not in found:
                found[name] = torch.empty(count, *rows.shape[1:], dtype=rows.dtype)
            found[name][batch.rows] = rows
    return found


def load(path: Path, args: argparse.Namespace) -> Checkpoint:
    """A checkpoint with the command line's overrides. What had to be inferred is printed once."""
    checkpoint = load_checkpoint(path, **options.overrides(args))
    say_notes(checkpoint)
    return checkpoint


def say_notes(*found: Checkpoint | Images) -> None:
    """Print their notes, under torchrun only once."""
    for note in [note for one in found for note in one.notes] if distributed.rank() == 0 else []:
        say(note)
