"""Checkpoints over images, batch by batch: the options that the tools share, and the loop below all of them."""

import argparse
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from tqdm import tqdm

import image_sets
import processes
from architectures import logits_and_features
from area import AreaCentre
from checkpoints import INTERPOLATIONS, Checkpoint, load_checkpoint
from errors import InputError
from ffcv_images import ENDINGS, open_ffcv
from image_sets import Images, group_classes, match_classes, open_images

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Batch(NamedTuple):
    """One step of `run`: places in this process's share, logits (B, K) and features (B, D) float32, labels (B,); on the CPU."""

    rows: slice
    logits: Tensor
    features: Tensor
    labels: Tensor


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of every tool that runs checkpoints over images."""
    data = parser.add_argument_group("images")
    data.add_argument("--data-path", type=Path, help="image folder, ZIP archives or FFCV file; none: the checkpoint's own")
    data.add_argument("--data", choices=image_sets.NAMED, help="a set known by name, at --data-path or fetched into data/")
    model = parser.add_argument_group("in place of what the checkpoint says, or of what its weights look like")
    model.add_argument("--model", help="architecture: a name of timm's, of torchvision's, or a CIFAR ResNet's (resnet20, ...)")
    model.add_argument("--input-size", type=int, help="pixels a side that the model sees")
    model.add_argument("--crop-ratio", type=float, help="share of the shorter side that the central crop keeps, 0 to 1")
    model.add_argument("--interpolation", choices=INTERPOLATIONS, help="how images are scaled")
    model.add_argument("--mean", type=float, nargs=3, help="mean of the pixels, 0 to 1, red green blue")
    model.add_argument("--std", type=float, nargs=3, help="standard deviation of the pixels, 0 to 1, red green blue")
    model.add_argument("--model-ema", action="store_true", help="use the moving average of the weights")
    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch-size", type=int, default=128, help="images a batch")
    speed.add_argument("--num-workers", type=int, default=min(8, os.cpu_count() or 1), help="loading processes")
    speed.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    speed.add_argument("--amp", choices=AMP, help="mixed precision; none: bf16 on GPUs, off on the CPU")


def check_options(args) -> None:
    if args.batch_size < 1 or args.num_workers < 0:
        raise InputError(f"--batch-size {args.batch_size} --num-workers {args.num_workers}: from 1, and from 0, on")
    if args.device not in ("cpu", "cuda") or (args.device == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"--device {args.device}: cpu, or cuda on a machine with a GPU that PyTorch can use")

    local = int(os.environ.get("LOCAL_RANK", "0"))
    if args.device == "cuda" and local >= torch.cuda.device_count():
        raise InputError(f"process {local + 1} of this machine finds {torch.cuda.device_count()} GPU(s): start as many processes")


def overrides(args) -> dict:
    """The options that load_checkpoint takes."""
    names = ("model", "input_size", "crop_ratio", "interpolation", "mean", "std")
    return {"ema": args.model_ema} | {name: getattr(args, name) for name in names}


def loading(args) -> dict:
    """The options that run takes."""
    return {name: getattr(args, name) for name in ("batch_size", "num_workers", "device", "amp")}


def find_images(checkpoint: Checkpoint, path: Path | None, split: str, data: str | None = None) -> Images:
    """A split of the images given, or of those the checkpoint was trained on, with the checkpoint's labels. Raises InputError."""
    facts = checkpoint.facts
    if path is None and data is None:
        said = facts.get("data")
        data = said if said in image_sets.NAMED else None
        path = Path(facts["data_path"]) if isinstance(facts.get("data_path"), str) else None
        if path is None and data is None:
            raise InputError(f"{checkpoint.path}: does not say where its images are; --data-path or --data does")
    images = open_ffcv(path) if path and path.suffix in ENDINGS else open_images(path, split, data)
    classes = checkpoint.classes
    if facts.get("superclasses") and images.classes and not set(images.classes) <= set(classes or []):
        group_classes(images, facts["superclasses"], checkpoint.path)
    match_classes(images, classes, facts["num_classes"], checkpoint.path)
    return images


def transform(facts: dict) -> Callable[[Image.Image], Tensor]:
    """Scale the shorter side to input_size / crop_ratio and cut the centre: (3, input_size, input_size) uint8.

    For models trained through FFCV ("area") the other way round, see AreaCentre.
    """
    size = facts["input_size"]
    if facts["interpolation"] == "area":
        return AreaCentre(size, facts["crop_ratio"])
    scaled = transforms.Resize(int(size / facts["crop_ratio"]), transforms.InterpolationMode(facts["interpolation"]))
    return transforms.Compose([scaled, transforms.CenterCrop(size), transforms.PILToTensor()])


def normalise(images: Tensor, facts: dict) -> Tensor:
    """Images (B, 3, H, W) uint8 as the model wants them: float32 of the checkpoint's mean and standard deviation."""
    mean, std = (images.new_tensor(facts[key], dtype=torch.float32).view(3, 1, 1) for key in ("mean", "std"))
    return images.float().div_(255).sub_(mean).div_(std)


@torch.inference_mode()
def run(
    model: nn.Module,
    images: Images,
    facts: dict,
    title: str,
    batch_size: int = 128,
    num_workers: int = 0,
    device: str = "cpu",
    amp: str | None = None,
) -> Iterator[Batch]:
    """Show this process's share of the images to a model, in order. Raises InputError where logits are not finite."""
    if len(images) < processes.count():
        raise InputError(f"{images.where}: {len(images)} images for {processes.count()} processes; start fewer")
    rows = processes.share(len(images))
    place = processes.device(device)
    model = model.to(place, memory_format=torch.channels_last)
    dtype = AMP[amp] if amp else torch.bfloat16 if device == "cuda" else None
    start = 0
    batches = _batches(images, rows, facts, batch_size, num_workers, device == "cuda")
    bar = {"total": -(-len(rows) // batch_size), "desc": title, "unit": "batch", "leave": False, "dynamic_ncols": True}
    for pixels, labels in tqdm(batches, **bar, disable=None if processes.rank() == 0 else True):
        pixels = normalise(pixels.to(place, non_blocking=True), facts).contiguous(memory_format=torch.channels_last)
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
    images.transform = transform(facts)
    options = {}
    if workers and processes.count() > 1:
        # Not forked from this process: its communication threads may hold a lock that the copy would wait for for ever.
        options["multiprocessing_context"] = multiprocessing.get_context("forkserver")
    options["worker_init_fn"] = processes.start_worker
    return DataLoader(Subset(images, rows), batch_size, num_workers=workers, pin_memory=pin, **options)


def load(path: Path, args) -> Checkpoint:
    """A checkpoint with the command line's overrides; what had to be found out is printed once."""
    checkpoint = load_checkpoint(path, **overrides(args))
    if processes.rank() == 0:
        for note in checkpoint.notes:
            print(note)
    return checkpoint


def model_names(paths: list[Path], names: list[str] | None) -> list[str]:
    """A name for each checkpoint: those given, else file names, or the folders' where these are alike. Raises InputError."""
    if names is None:
        names = [path.stem for path in paths]
        if len(set(names)) != len(names):
            names = [path.resolve().parent.name for path in paths]
    if len(names) != len(paths):
        raise InputError(f"--names: {len(names)} for {len(paths)} files in --checkpoint")
    if len(set(names)) != len(names):
        raise InputError(f"the checkpoints need different names, not {', '.join(names)}; see --names")
    return names
