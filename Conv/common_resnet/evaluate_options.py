"""The command line of evaluate.py."""

import argparse
from pathlib import Path

from errors import InputError

from catalogue import NAMES, SOURCES
from command_line import Parser, add_option
from options import CORES, RANGES


def get_parser() -> Parser:
    parser = Parser(
        description="Evaluate a checkpoint of train.py, or the weights of a model that --model names.",
    )

    def add(name: str, *others: str, **options) -> None:
        add_option(parser, group, name, *others, **options)

    group = parser
    add("--checkpoint", "--resume", metavar="PATH|URL", help="checkpoint.pth, or weights from elsewhere")
    add("--ema", switch=True, help="use the moving average of the weights")
    add("--data", choices=SOURCES, help="data set; if omitted: the checkpoint's")
    add("--data-path", type=Path, help="folder or archives; if omitted: the checkpoint's, built in, or downloaded")
    add("--split", choices=("val", "train"), default="val", help="images to evaluate on")
    corrupted = "also evaluate on 15 corruptions: CIFAR-10-C's .npy files or, without a folder, made from the test images"
    add("--corruptions", nargs="?", const="", metavar="FOLDER", help=corrupted)
    add("--output", type=Path, help="also write the metrics to this JSON file")
    add("--batch-size", "-b", type=int, default=256, help="images per batch")
    add("--num-workers", "--workers", "-j", type=int, default=min(8, CORES), help="data-loading workers, for large images")
    add("--device", choices=("cuda", "cpu"), help="if omitted: cuda on machines with a GPU, else cpu")
    group = parser.add_argument_group("for weights from elsewhere")
    add("--model", metavar="NAME", help="one of " + ", ".join(NAMES))
    add("--width", type=int, help="channels of the first stage of the CIFAR ResNets; if omitted: 16")
    add("--stem-stride", type=int, help="stride of the CIFAR ResNets' first layer; if omitted: 1")
    add("--input-size", type=int, help="side of the input, pixels; if omitted: the images' own if small, else 224")
    add("--mean", type=float, nargs=3, help="mean of the inputs, in [0, 1]; if omitted: ImageNet's")
    add("--std", type=float, nargs=3, help="standard deviation of the inputs; if omitted: ImageNet's")
    cropped = "large images: share of the shorter side that the centre crop keeps; if omitted: 0.875"
    add("--crop-ratio", "--eval-crop-ratio", type=float, help=cropped)
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Raise InputError, before any work, for invalid values, for missing folders, and for an --output that cannot be a file."""
    for name in ("batch_size", "num_workers", "width", "stem_stride", "input_size", "crop_ratio", "mean", "std"):
        (low, high), value = RANGES[name], getattr(args, name)
        if value is not None and not within(value, low, high):
            raise InputError(f"--{name.replace('_', '-')} {value}: must lie between {low:g} and {high:g}")
    if args.output and (args.output.is_dir() or not args.output.parent.is_dir()):
        raise InputError(f"--output {args.output}: a file in a folder that exists")
    if args.corruptions and not Path(args.corruptions).is_dir():
        raise InputError(f"--corruptions {args.corruptions}: no such folder; CIFAR-10-C is one of .npy files")


def within(value: object, low: float, high: float) -> bool:
    """Whether a number, or each of three in a list, lies between low and high."""
    numbers, count = (value, 3) if isinstance(value, list) else ([value], 1)
    plain = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in numbers)
    return plain and len(numbers) == count and all(low <= one <= high for one in numbers)
