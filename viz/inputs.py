"""What selective.py and calibration.py share of their command line: which models, which held-out splits, where to write."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from bootstrap import held_out_count
from errors import InputError

FEW_HELD_OUT = 100  # fewer held-out units than this choose p or T by chance
FEW_ERRORS = 10  # likewise, fewer held-out errors than this
FEW_IMAGES = 30  # resamples of fewer images than this hardly differ in what they can say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that both tools have."""
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="logits files, as viz/logits.py writes them")
    parser.add_argument("--names", nargs="+", help="a name for each input; none: the file names")
    parser.add_argument("--output", type=Path, required=True, help="folder for figures and tables")
    parser.add_argument("--val-fraction", type=float, default=0.2, help="held-out share of the images, from above 0 to below 1")
    parser.add_argument("--repeats", type=int, default=10, help="random splits, whose figures are averaged")
    parser.add_argument("--seed", type=int, default=0, help="seed of splits and resamples, from 0 on")


def check(args: argparse.Namespace) -> None:
    """Raise InputError for options that mean nothing."""
    if not 0 < args.val_fraction < 1:
        raise InputError(f"--val-fraction {args.val_fraction}: above 0 and below 1")
    if args.repeats < 1 or args.seed < 0:
        raise InputError(f"--repeats {args.repeats} --seed {args.seed}: from 1, and from 0, on")
    names_of(args)


def names_of(args: argparse.Namespace) -> list[str]:
    """A name for each input, --names or the file names. Raises InputError where they are too few or alike."""
    names = args.names or [path.stem for path in args.input]
    if len(names) != len(args.input):
        raise InputError(f"--names: {len(names)} for {len(args.input)} files in --input")
    if len(set(names)) != len(names):
        raise InputError(f"the inputs need different names, not {', '.join(names)}; see --names")
    return names


def same_classes(files: dict[str, dict]) -> None:
    """Raise InputError where the logits files differ in their number of classes."""
    classes = {name: content["logits"].shape[1] for name, content in files.items()}
    if len(set(classes.values())) > 1:
        raise InputError(f"the inputs differ in classes: {', '.join(f'{name} has {k}' for name, k in classes.items())}")


def load_all(args: argparse.Namespace, load: Callable[[Path], dict]) -> dict[str, dict]:
    """The logits files by name. Raises InputError where one cannot be read, or they differ in classes, or cannot be split."""
    torch.set_num_threads(1)  # passes over memory: more threads save little, and where others compute too they wait
    files = {name: load(path) for name, path in zip(names_of(args), args.input)}
    same_classes(files)
    for name, content in files.items():
        images = len(content["logits"])
        if held_out_count(images, args.val_fraction) in (0, images):
            raise InputError(f"{name}: --val-fraction {args.val_fraction} of {images} images leaves one side of the split empty")
    return files


def warn(line: str) -> None:
    """Print a doubt about the figures as one line on stderr."""
    sys.stderr.write(f"warning: {line}\n")
