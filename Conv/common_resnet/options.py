"""The command line of train.py."""

import argparse
import os
from pathlib import Path

import torch

from data import SMALL, SOURCES, need_path
from errors import InputError
from maxsup_loss import LOSS_NAMES

# What a data set's own recipe fills in where the command line is silent.
OF_DATA = "epochs batch_size lr weight_decay sched decay_epochs warmup_epochs mean std flip padding".split()
# Smallest and largest values that mean something.
RANGES = {
    **dict.fromkeys(("epochs", "batch_size", "eval_every", "decay_epochs"), (1, 10**9)),
    **dict.fromkeys(("seed", "warmup_epochs", "num_workers"), (0, 2**32 - 1)),
    **dict.fromkeys(("padding", "cutout"), (0, 4096)),
    "width": (2, 4096),
    "momentum": (0, 1),
    "weight_decay": (0, 1e9),
    "mean": (-1e9, 1e9),
    **dict.fromkeys(("alpha", "alpha_end"), (0, 1)),
    **dict.fromkeys(("lr", "std"), (1e-30, 1e9)),
    **dict.fromkeys(("crop_ratio", "decay_rate"), (1e-9, 1)),
    "stem_stride": (1, 2),
    "holdout": (0, 0.9),
    "imbalance_ratio": (1, 1e6),
    "label_noise": (0, 1),
}


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a ConvNet with MaxSup or one of the losses it is compared with.",
        formatter_class=_Formatter,
        epilog="The data sets' own recipes:\n" + "\n".join(_recipe(name) for name in SOURCES),
    )
    switch = argparse.BooleanOptionalAction

    group = parser.add_argument_group("loss and model")
    group.add_argument("--loss", default="maxsup", choices=LOSS_NAMES, help="what is minimised")
    group.add_argument("--alpha", type=float, help="strength in the first epoch; none: the published strength and schedule")
    group.add_argument("--alpha-end", type=float, help="strength in the last epoch, reached linearly; none: --alpha is constant")
    group.add_argument(
        "--prior",
        default="uniform",
        choices=("uniform", "frequency"),
        help="target of ls: 1/K, or the training labels' frequencies",
    )
    group.add_argument("--model", default="resnet20", metavar="NAME", help="resnet18/34/50/101, mobilenet_v2, or resnet8 to 110")
    group.add_argument("--width", type=int, default=16, help="channels of the first stage of the CIFAR ResNets")
    group.add_argument("--stem-stride", type=int, default=1, help="stride of their first layer; 2: a quarter of the time")
    group.add_argument("--init", metavar="imagenet|PATH", help="weights to start from: torchvision's, or a checkpoint's")
    group.add_argument(
        "--ema-decay", type=float, default=0.0, help="decay per step of a moving average of the weights; 0: no average"
    )

    group = parser.add_argument_group("data")
    group.add_argument("--data", default="digits", choices=SOURCES, help="data set")
    group.add_argument("--data-path", type=Path, help="folder or ZIP form; none: built in, or downloaded into output/downloads/")
    group.add_argument(
        "--imbalance-ratio",
        type=float,
        default=1.0,
        help="keep a long-tailed subset: size of the largest class over that of the smallest",
    )
    group.add_argument(
        "--label-noise", type=float, default=0.0, metavar="R", help="share of the training images that get a wrong label"
    )
    group.add_argument(
        "--superclasses", nargs="?", const="default", metavar="FILE", help="coarse labels: the data set's own, or of a JSON file"
    )
    group.add_argument("--holdout", type=float, default=0.0, help="share of the training images to validate on instead of val")
    group.add_argument("--padding", type=int, help="pixels around small images for random crops; none: by the data set")
    group.add_argument("--flip", action=switch, help="random horizontal flips; none: by the data set")
    group.add_argument("--cutout", type=int, default=0, help="side of the square that is cut out of small images, pixels")
    group.add_argument("--input-size", type=int, help="side of large images, pixels; none: 224")
    group.add_argument("--crop-ratio", type=float, default=0.875, help="crop's share of the side in evaluation of large images")
    group.add_argument("--mean", type=float, nargs=3, help="mean of the inputs, in [0, 1]; none: by the data set")
    group.add_argument("--std", type=float, nargs=3, help="their standard deviation; none: by the data set")
    group.add_argument("--num-workers", type=int, default=min(8, os.cpu_count() or 1), help="loading processes, for large images")

    group = parser.add_argument_group("optimisation: SGD with Nesterov momentum; none: by the data set")
    group.add_argument("--epochs", type=int, help="epochs to train")
    group.add_argument("--batch-size", type=int, help="images per step, all processes together")
    group.add_argument("--lr", type=float, help="highest learning rate, not rescaled")
    group.add_argument("--momentum", type=float, default=0.9, help="momentum")
    group.add_argument("--weight-decay", type=float, help="weight decay, none on norms and biases")
    group.add_argument("--sched", choices=("cosine", "step"), help="schedule of the rate")
    group.add_argument(
        "--decay-epochs", type=int, nargs="+", help="where the rate drops, for step; none: the data set's, in proportion"
    )
    group.add_argument("--decay-rate", type=float, default=0.1, help="factor of each drop")
    group.add_argument("--warmup-epochs", type=int, help="epochs in which the rate rises linearly")

    group = parser.add_argument_group("run")
    group.add_argument("--output_dir", type=Path, help="folder for checkpoint and log; none: output/<data>-<model>-<loss>")
    group.add_argument("--overwrite", action="store_true", help="replace the run that --output_dir holds")
    group.add_argument("--resume", metavar="auto|PATH", help="continue from a checkpoint; auto: the one in --output_dir")
    group.add_argument("--eval-every", type=int, default=1, metavar="N", help="evaluate every N epochs, and after the last")
    group.add_argument("--seed", type=int, default=0, help="seed of weights, data order and augmentation")
    group.add_argument("--device", choices=["cuda", "cpu"], help="none: cuda where there is one")
    group.add_argument("--amp", choices=["bf16", "off"], help="mixed precision; none: bf16 on a GPU, off on a CPU")
    group.add_argument("--compile", action="store_true", help="compile the model with torch.compile")
    group.add_argument("--sync-bn", action="store_true", help="batch norm over the images of all processes")
    group.add_argument("--deterministic", action="store_true", help="slower GPU kernels whose results never vary")
    return parser


def fill_in(args: argparse.Namespace) -> None:
    """Settle what the data set or the machine decides. Raises InputError for the first value that means nothing."""
    source, given, marks = SOURCES[args.data], args.warmup_epochs, args.decay_epochs
    for name in OF_DATA:
        if getattr(args, name) is None:
            setattr(args, name, getattr(source, name))
    if marks is None:  # in proportion, where --epochs is another number
        args.decay_epochs = [max(1, round(mark * args.epochs / source.epochs)) for mark in source.decay_epochs]
    args.warmup_epochs = min(source.warmup_epochs, args.epochs // 4) if given is None else given
    for name, (low, high) in RANGES.items():
        value = getattr(args, name)
        high = 100 if name == "alpha" and args.loss == "focal" else high  # its gamma
        low = -100 if name in ("alpha", "alpha_end") and args.loss == "ls" else low  # negative label smoothing
        for one in value if isinstance(value, list) else [value]:
            if one is not None and not low <= one <= high:
                raise InputError(f"--{name.replace('_', '-')} {one}: goes from {low:.10g} to {high:.10g}")
    if not 0 <= args.ema_decay < 1:
        raise InputError(f"--ema-decay {args.ema_decay}: from 0 to below 1")
    if args.width % 2:
        raise InputError(f"--width {args.width}: even, for the shortcuts pad half the channels on either side")
    if args.loss == "ce" and args.alpha is not None:
        raise InputError(f"--alpha {args.alpha}: cross-entropy has no strength to set")
    if args.prior != "uniform" and args.loss != "ls":
        raise InputError(f"--prior {args.prior}: for --loss ls, not {args.loss}")
    if marks and args.sched != "step":
        raise InputError(f"--decay-epochs: for --sched step, not {args.sched}")
    if args.sched == "step" and (not args.decay_epochs or (marks and min(marks) >= args.epochs)):
        raise InputError(f"--sched step: --decay-epochs has to name epochs before {args.epochs} where the rate drops")
    if args.warmup_epochs >= args.epochs:
        raise InputError(f"--warmup-epochs {args.warmup_epochs}: fewer than --epochs {args.epochs}, or the rate never falls")
    if args.data in SMALL:
        if args.input_size not in (None, source.size):
            raise InputError(f"--input-size {args.input_size}: {args.data} has {source.size} px; the option is for large images")
        args.crop_ratio = 1.0
    need_path(args.data, args.data_path)
    if args.data not in SMALL and (args.cutout or args.padding):
        raise InputError(f"--cutout and --padding are for small images, not for {args.data}")
    args.input_size = args.input_size or source.size
    if not 8 <= args.input_size <= 4096:
        raise InputError(f"--input-size {args.input_size}: goes from 8 to 4096")
    for name in ("cutout", "padding"):
        if getattr(args, name) > args.input_size:
            raise InputError(f"--{name} {getattr(args, name)}: larger than the images, {args.input_size} pixels")
    if args.data_path is not None:
        args.data_path = args.data_path.resolve()
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no GPU that PyTorch can use")
    args.amp = args.amp or ("bf16" if args.device == "cuda" else "off")
    args.output_dir = args.output_dir or Path("output") / f"{args.data}-{args.model}-{args.loss}"
    torch.set_float32_matmul_precision("highest" if args.deterministic else "high")
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults in the help, and line breaks in the epilog."""


def _recipe(name: str) -> str:
    source = SOURCES[name]
    marks = f" at {', '.join(map(str, source.decay_epochs))}" if source.decay_epochs else ""
    return (
        f"  {name:14} {source.size} px, {source.epochs} epochs, batch {source.batch_size}, lr {source.lr:g}, "
        f"weight decay {source.weight_decay:g}, {source.sched}{marks}"
    )
