"""The command lines: options that several commands have, and what is checked of them before anything is read."""

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from common.errors import InputError

import torch

# The cores that this process may use, which taskset and clusters limit.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
NAMED = ("digits", "cifar10", "cifar100", "fashion-mnist")  # what --data knows
INTERPOLATIONS = ("bilinear", "bicubic", "area")  # area: FFCV's, which cuts before it scales
AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}
OVERRIDES = ("model", "input_size", "crop_ratio", "interpolation", "mean", "std")  # of a checkpoint's facts


def parser(description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)


def add_inputs(to: argparse.ArgumentParser) -> None:
    """--input and --names: the logits files of several models, and --output."""
    to.add_argument("--input", type=Path, nargs="+", required=True, help="logits files, as viz/logits.py writes them")
    to.add_argument("--names", nargs="+", help="a name for each input; none: the file names")
    to.add_argument("--output", type=Path, required=True, help="folder for figures and tables")


def add_splits(to: argparse.ArgumentParser) -> None:
    """The held-out splits on which a temperature, or the power p of normalised logits, is chosen."""
    to.add_argument("--val-fraction", type=float, default=0.2, help="share of the images held out for fitting, between 0 and 1")
    to.add_argument("--repeats", type=int, default=10, help="random splits over which the figures are averaged")
    to.add_argument("--seed", type=int, default=0, help="seed of splits and resamples, at least 0")


def check_splits(args: argparse.Namespace) -> None:
    """Raise InputError for options of add_inputs and add_splits that mean nothing."""
    if not 0 < args.val_fraction < 1:
        raise InputError(f"--val-fraction {args.val_fraction}: above 0 and below 1")
    if args.repeats < 1 or args.seed < 0:
        raise InputError(f"--repeats {args.repeats} --seed {args.seed}: from 1, and from 0, on")
    names_of(args.input, args.names, "--input")


def check_positive(args: argparse.Namespace, *names: str) -> None:
    """Raise InputError unless these options are finite numbers above 0."""
    for name in names:
        if not 0 < getattr(args, name) < math.inf:
            raise InputError(f"--{name} {getattr(args, name)}: a number above 0")


def names_of(paths: list[Path], names: list[str] | None, option: str) -> list[str]:
    """A name for each file: those given, else file names, or their folders' where these are alike. Raises InputError."""
    if names is None:
        names = [path.stem for path in paths]
        if len(set(names)) != len(names):
            names = [path.resolve().parent.name for path in paths]
    if len(names) != len(paths):
        raise InputError(f"--names: {len(names)} for {len(paths)} files in {option}")
    if len(set(names)) != len(names):
        raise InputError(f"the files in {option} need different names, not {', '.join(names)}; see --names")
    return names


def load_all(args: argparse.Namespace, load: Callable[[Path], dict]) -> dict[str, dict]:
    """The logits files by name. Raises InputError where one cannot be read, or they differ in their number of classes."""
    torch.set_num_threads(1)  # passes over memory: more threads save little, and where others compute too they wait
    files = {name: load(path) for name, path in zip(names_of(args.input, args.names, "--input"), args.input, strict=True)}
    classes = {name: content["logits"].shape[1] for name, content in files.items()}
    if len(set(classes.values())) > 1:
        raise InputError(f"the inputs differ in classes: {', '.join(f'{name} has {k}' for name, k in classes.items())}")
    return files


def warn(line: str) -> None:
    """Print a doubt about the figures as one line on stderr."""
    sys.stderr.write(f"warning: {line}\n")


def add_checkpoints(to: argparse.ArgumentParser) -> None:
    """--checkpoint and --names: several models."""
    to.add_argument(
        "--checkpoint", type=Path, nargs="+", required=True, help="checkpoints from anywhere, as logits.py reads them"
    )
    to.add_argument("--names", nargs="+", help="a name for each checkpoint; none: file or folder names")


def add_images(to: argparse.ArgumentParser) -> None:
    """The options of every command that runs checkpoints over images."""
    data = to.add_argument_group("images")
    data.add_argument("--data-path", type=Path, help="image folder, ZIP archives or FFCV file; none: the checkpoint's own")
    data.add_argument("--data", choices=NAMED, help="a known data set, at --data-path or downloaded into data/")
    model = to.add_argument_group("model and preprocessing, to override what the checkpoint states")
    model.add_argument("--model", help="architecture: a name of timm's, of torchvision's, or a CIFAR ResNet's (resnet20, ...)")
    model.add_argument("--input-size", type=int, help="pixels per side that the model sees")
    model.add_argument("--crop-ratio", type=float, help="share of the shorter side that the central crop keeps, 0 to 1")
    model.add_argument("--interpolation", choices=INTERPOLATIONS, help="how images are scaled")
    model.add_argument("--mean", type=float, nargs=3, help="mean of the pixels, 0 to 1, red green blue")
    model.add_argument("--std", type=float, nargs=3, help="standard deviation of the pixels, 0 to 1, red green blue")
    model.add_argument("--model-ema", action="store_true", help="use the moving average of the weights")
    speed = to.add_argument_group("speed")
    speed.add_argument("--batch-size", type=int, default=128, help="images per batch")
    speed.add_argument("--num-workers", type=int, default=min(8, CORES), help="loading processes")
    speed.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    speed.add_argument("--amp", choices=AMP, help="mixed precision; none: bf16 on GPUs, off on the CPU")


def check_images(args: argparse.Namespace) -> None:
    """Raise InputError for options of add_images that cannot be followed."""
    if args.batch_size < 1 or args.num_workers < 0:
        raise InputError(f"--batch-size {args.batch_size} --num-workers {args.num_workers}: from 1, and from 0, on")
    if args.device not in ("cpu", "cuda") or (args.device == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"--device {args.device}: cpu, or cuda on a machine with a GPU that PyTorch can use")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if args.device == "cuda" and local >= torch.cuda.device_count():
        raise InputError(f"process {local + 1} of this machine finds {torch.cuda.device_count()} GPU(s): start as many processes")


def overrides(args: argparse.Namespace) -> dict:
    """The options that load_checkpoint takes."""
    return {"ema": args.model_ema} | {name: getattr(args, name) for name in OVERRIDES}


def loading(args: argparse.Namespace) -> dict:
    """The options that inference.run takes."""
    return {name: getattr(args, name) for name in ("batch_size", "num_workers", "device", "amp")}
