"""The command lines: options that several commands share, and the checks on them before anything is read."""

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from common.errors import InputError, printable

# The cores that this process may use, which taskset and clusters limit.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
NAMED = ("digits", "cifar10", "cifar100", "fashion-mnist")  # what --data knows
INTERPOLATIONS = ("bilinear", "bicubic", "area")  # area: FFCV's, which crops before it resizes
OVERRIDES = ("model", "input_size", "crop_ratio", "interpolation", "mean", "std")  # of a checkpoint's facts
# Options that do nothing for logits files.
OF_CHECKPOINTS = ("data_path", "data", *OVERRIDES, "model_ema", "batch_size", "num_workers", "amp")
THRESHOLD = 0.01  # the MaxSup repository's: a logit z is near zero if |z| is below this
ALPHA = 0.1  # of label smoothing
FRACTION, REPEATS, SEED = 0.2, 10, 0  # the share of images held out for fitting, the number of random splits, their seed
TRANSFER_IMAGES = 10_000  # maximum number of training images in measure.py's linear transfer
STRENGTHS = [10.0**power for power in range(-5, 3)]  # C of a logistic regression: the larger, the weaker the penalty
KINDS = {
    "checkpoint": "checkpoints of any form: .pth, .pt, .ckpt, .safetensors",
    "input": "logits files, as viz/logits.py writes them",
}
# The smallest and largest value of each numeric option, whichever command has it.
RANGES = {
    "val_fraction": (1e-6, 1 - 1e-6),
    "repeats": (1, 1000),
    "bootstrap": (0, 100_000),
    "seed": (0, 2**32 - 1),  # NumPy's range
    "ignore_index": (-(2**31), 2**31),
    "threshold": (1e-30, 1e30),
    "alpha": (1e-30, 1e30),
    "beta": (1e-30, 1e30),
    "strengths": (1e-30, 1e30),
    "batch_size": (1, 2**20),
    "num_workers": (0, 1024),
    "input_size": (1, 4096),
    "crop_ratio": (1e-3, 1),
    "mean": (0, 1e6),
    "std": (1e-6, 1e6),
}


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows in the help the defaults of the options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse's parser, but it raises InputError for a mistake; for an unknown option, the message names the nearest one."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None) -> argparse.Namespace:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].split("=")[0]
            near = difflib.get_close_matches(word, [*self._option_string_actions], n=1, cutoff=0)
            raise InputError(f"{word}: no such option; the nearest is {near[0]}, and --help lists all")
        return found

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def parser(description: str) -> Parser:
    return Parser(description=description, formatter_class=Formatter, allow_abbrev=False)


def add_models(to: argparse.ArgumentParser, *kinds: str) -> argparse._ActionsContainer:
    """--checkpoint or --input or, for both kinds, exactly one of them; and --names. Returns the group of the former."""
    group = to.add_mutually_exclusive_group(required=True) if len(kinds) > 1 else to
    for kind in kinds:
        group.add_argument(f"--{kind}", type=Path, nargs="+", help=KINDS[kind], **{} if len(kinds) > 1 else {"required": True})
    to.add_argument("--names", nargs="+", help="a name for each model; if omitted: the file names, or their folders'")
    return group


def add_output(to: argparse.ArgumentParser, what: str) -> None:
    to.add_argument("--output", type=Path, required=True, help=what)
    to.add_argument("--overwrite", action="store_true", help="replace what this command has written to --output before")


def add_splits(to: argparse.ArgumentParser) -> None:
    """The held-out splits on which a temperature, or the power p of normalised logits, is chosen."""
    to.add_argument(
        "--val-fraction", type=float, default=FRACTION, help="share of the images held out for fitting, between 0 and 1"
    )
    to.add_argument("--repeats", type=int, default=REPEATS, help="number of random splits over which the results are averaged")
    to.add_argument("--seed", type=int, default=SEED, help="seed of splits and resamples")


def add_ignore_index(to: argparse.ArgumentParser) -> None:
    to.add_argument("--ignore-index", type=int, default=255, help="segmentation: label of pixels that are not counted")


def add_images(to: argparse.ArgumentParser) -> None:
    """The options of every command that runs checkpoints over sets of images."""
    data = to.add_argument_group("images")
    data.add_argument("--data-path", type=Path, help="image folder, ZIP archives or FFCV file; if omitted: the checkpoint's own")
    data.add_argument("--data", choices=NAMED, help="known data set, at --data-path or downloaded into data/")
    add_preprocessing(to)
    speed = to.add_argument_group("speed")
    speed.add_argument("--batch-size", type=int, default=128, help="images per batch")
    speed.add_argument("--num-workers", type=int, default=min(8, CORES), help="data-loading workers per process")
    speed.add_argument("--amp", choices=("off", "bf16", "fp16"), default="off", help="mixed precision, faster and less exact")


def add_preprocessing(to: argparse.ArgumentParser) -> None:
    """The options of every command that shows images to checkpoints."""
    model = to.add_argument_group("model and preprocessing, to override what the checkpoint states")
    model.add_argument("--model", help="architecture: a model of timm or torchvision, or a CIFAR ResNet (resnet20, ...)")
    model.add_argument("--input-size", type=int, help="side of the input, pixels")
    model.add_argument("--crop-ratio", type=float, help="share of the shorter side that the centre crop keeps")
    model.add_argument("--interpolation", choices=INTERPOLATIONS, help="how images are resized")
    model.add_argument("--mean", type=float, nargs=3, help="mean of the inputs, in [0, 1]")
    model.add_argument("--std", type=float, nargs=3, help="standard deviation of the inputs")
    model.add_argument("--model-ema", action="store_true", help="use the moving average of the weights")
    model.add_argument("--device", help="cpu or cuda; if omitted: cuda on machines with a GPU, else cpu")


def parse(to: argparse.ArgumentParser, shared: bool = False, **ranges: tuple[float, float]) -> argparse.Namespace:
    """The parsed command line; its `given` holds the names of the options that are not at their default.

    shared: whether the command shares its work among the processes of torchrun. Raises InputError if there are several and it
    does not, for a number outside RANGES or `ranges`, and for a --device that is not available.
    """
    args = to.parse_args()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not shared:
        raise InputError("this command runs in one process; torchrun is for viz/logits.py and viz/features.py alone")
    args.given = {name for name, value in vars(args).items() if value != to.get_default(name)}
    for name, (low, high) in (RANGES | ranges).items():
        value = getattr(args, name, None)
        for number in value if isinstance(value, list | tuple) else [] if value is None else [value]:
            if not low <= number <= high:
                raise InputError(f"--{name.replace('_', '-')} {number:g}: a number from {low:g} to {high:g} is needed")
    if hasattr(args, "device"):
        import torch

        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        args.device = args.device or ("cuda" if found else "cpu")
        if args.device not in ("cpu", "cuda") or (args.device == "cuda" and not found):
            raise InputError(f"--device {args.device}: cpu, or cuda on a machine with a GPU that PyTorch can use")
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if args.device == "cuda" and local >= found:
            raise InputError(f"process {local + 1} of this machine finds {found} GPU(s): start as many processes")
    return args


def refuse(args: argparse.Namespace, why: str, *names: str) -> None:
    """Raise InputError for an option that is given where it has no effect, because whoever gives it expects one."""
    for name in names:
        if name in args.given:
            raise InputError(f"--{name.replace('_', '-')}: {why}")


def models_of(args: argparse.Namespace) -> dict[str, Path]:
    """The files of --checkpoint or --input by name: --names, else file names, or their folders' if file names are equal.

    Raises InputError.
    """
    option = "checkpoint" if getattr(args, "checkpoint", None) else "input"
    paths = getattr(args, option)
    names = [printable(name) for name in args.names or [path.stem for path in paths]]
    if args.names is None and len(set(names)) != len(names):
        names = [printable(path.resolve().parent.name) for path in paths]
    if len(names) != len(paths):
        raise InputError(f"--names: {len(names)} for {len(paths)} files in --{option}")
    if len(set(names)) != len(names):
        raise InputError(f"the files in --{option} need different names, not {', '.join(names)}; see --names")
    return dict(zip(names, paths, strict=True))


def load_all(args: argparse.Namespace) -> dict[str, dict]:
    """The logits files by name. Raises InputError if one cannot be read, or if they differ in their number of classes."""
    from common import logits_file

    import torch

    torch.set_num_threads(1)  # memory-bound: more threads save little, and on a busy machine they wait
    files = {name: logits_file.load(path, getattr(args, "ignore_index", None)) for name, path in models_of(args).items()}
    classes = {name: content["logits"].shape[1] for name, content in files.items()}
    if len(set(classes.values())) > 1:
        raise InputError(f"the inputs differ in classes: {', '.join(f'{name} has {k}' for name, k in classes.items())}")
    return files


def overrides(args: argparse.Namespace) -> dict:
    """The options that load_checkpoint takes."""
    return {"ema": args.model_ema} | {name: getattr(args, name) for name in OVERRIDES}


def loading(args: argparse.Namespace) -> dict:
    """The options that inference.run takes."""
    return {name: getattr(args, name) for name in ("batch_size", "num_workers", "device", "amp")}
