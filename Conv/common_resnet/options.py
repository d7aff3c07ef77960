"""The command line of train.py."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from errors import Formatter, InputError

import torchvision_flags
from catalogue import LARGEST_IN_MEMORY, LOSSES, NAMES, SMALL, SOURCES, Source, need_path
from command_line import Parser, add_option

# The cores that this process may use; taskset and clusters limit them.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CPU_INFO = Path("/proc/cpuinfo")
# Options whose defaults come from the data set's recipe.
OF_DATA = "epochs batch_size lr weight_decay sched mean std flip padding".split()
# Smallest and largest valid values.
RANGES = {
    **dict.fromkeys(("epochs", "batch_size", "eval_every", "decay_epochs"), (1, 10**6)),
    **dict.fromkeys(("seed", "warmup_epochs"), (0, 2**32 - 1)),
    "num_workers": (0, 1024),
    **dict.fromkeys(("padding", "cutout"), (0, 4096)),
    "width": (2, 4096),
    **dict.fromkeys(("momentum", "random_erase", "label_noise", "distillation_alpha"), (0, 1)),
    **dict.fromkeys(("weight_decay", "clip_grad_norm"), (0, 1e9)),
    "mean": (-1e9, 1e9),
    **dict.fromkeys(("alpha", "alpha_end"), (0, 1)),
    **dict.fromkeys(("lr", "std"), (1e-30, 1e9)),
    **dict.fromkeys(("crop_ratio", "decay_rate", "layer_decay"), (1e-9, 1)),
    **dict.fromkeys(("mixup_alpha", "cutmix_alpha"), (0, 1e3)),
    "distillation_tau": (1e-3, 1e3),
    "stem_stride": (1, 2),
    "input_size": (8, 4096),
    "holdout": (0, 0.9),
    "imbalance_ratio": (1, 1e6),
    "ra_magnitude": (0, 30),
    "augmix_severity": (1, 10),
}
AUGMENTATIONS = ("ra", "ta_wide", "augmix", "imagenet", "cifar10", "svhn")


def get_parser() -> Parser:
    parser = Parser(
        description="Train a ConvNet with MaxSup or one of the losses it is compared with.",
        formatter_class=_Formatter,
        epilog="The data sets' own recipes:\n"
        + "\n".join(_recipe(name) for name in SOURCES)
        + "\nThe flags of torchvision's reference script are accepted, or refused with a reason; README.md lists what differs.",
    )

    def add(name: str, *others: str, **options) -> None:
        add_option(parser, group, name, *others, **options)

    group = parser.add_argument_group("loss and model")
    add("--loss", choices=LOSSES, help="loss to minimise; if omitted: maxsup")
    add("--alpha", type=float, help="strength in the first epoch; if omitted: the published strength and schedule")
    add("--alpha-end", type=float, help="strength in the last epoch, reached linearly; if omitted: a given --alpha is constant")
    add("--prior", default="uniform", choices=("uniform", "frequency"), help="what ls smooths towards: 1/K, or class frequencies")
    add("--model", default="resnet20", metavar="NAME", help="one of " + ", ".join(NAMES))
    add("--width", type=int, default=16, help="channels of the first stage of the CIFAR ResNets")
    add("--stem-stride", type=int, default=1, help="stride of the CIFAR ResNets' first layer; 2: a quarter of the time")
    start = "initial weights: torchvision's, or any checkpoint's; if omitted: random"
    add("--init", "--finetune", metavar="imagenet|PATH|URL", help=start)
    add("--freeze-backbone", switch=True, help="train only the classifier (a linear probe)")
    add("--layer-decay", type=float, default=1.0, help="ratio of each stage's learning rate to the next stage's")
    add("--ema-decay", type=float, help="decay per step of a moving average of the weights; if omitted: no average")

    group = parser.add_argument_group("data")
    add("--data", choices=SOURCES, help="data set; folder: your own images; if omitted: digits")
    add("--data-path", type=Path, help="folder or archives; if omitted: built in, or downloaded into output/downloads/")
    ratio = "train on a long-tailed subset with this ratio of largest to smallest class size"
    add("--imbalance-ratio", type=float, default=1.0, help=ratio)
    add("--label-noise", type=float, default=0.0, metavar="R", help="share of the training images that get a wrong label")
    coarse = "train on coarse labels: the data set's own, or those of a JSON file"
    add("--superclasses", nargs="?", const="default", metavar="FILE", help=coarse)
    add("--holdout", type=float, default=0.0, help="share of the training images to validate on instead of val")
    add("--padding", type=int, help="pixels around small images for random crops; if omitted: the data set's")
    add("--flip", nargs=0, const=True, help="random horizontal flips; if omitted: as in the data set's recipe")
    add("--no-flip", nargs=0, const=False, dest="flip", help="no horizontal flips")
    add("--cutout", type=int, default=0, help="side of the square cut out of small images, pixels; 0: no cutout")
    add("--mixup-alpha", "--mixup", type=float, default=0.0, help="Beta parameter of mixup; 0: none")
    add(
        "--cutmix-alpha",
        "--cutmix",
        type=float,
        default=0.0,
        help="Beta parameter of cutmix; 0: none; with mixup, each batch takes one of the two",
    )
    add("--auto-augment", choices=AUGMENTATIONS, help="torchvision's automatic augmentation of large images")
    add("--ra-magnitude", type=int, help="magnitude of --auto-augment ra; if omitted: 9")
    add("--augmix-severity", type=int, help="severity of --auto-augment augmix; if omitted: 3")
    add("--random-erase", type=float, default=0.0, help="probability of erasing a rectangle of a large image")
    size = "side of the input, pixels; if omitted: the images' own if small, else 224"
    add("--input-size", "--train-crop-size", "--val-crop-size", type=int, help=size)
    cropped = "large images: share of the shorter side that the centre crop keeps; if omitted: 0.875"
    add("--crop-ratio", "--eval-crop-ratio", type=float, help=cropped)
    add("--mean", type=float, nargs=3, help="mean of the inputs, in [0, 1]; if omitted: the data set's")
    add("--std", type=float, nargs=3, help="standard deviation of the inputs; if omitted: the data set's")
    add("--num-workers", "--workers", "-j", type=int, default=min(8, CORES), help="data-loading workers, for large images")

    group = parser.add_argument_group("distillation")
    add(
        "--distillation-type",
        default="none",
        choices=("none", "soft", "hard"),
        help="target: the teacher's probabilities (soft; averaged over images) or predicted class (hard)",
    )
    add("--teacher-path", metavar="PATH|URL", help="the teacher's checkpoint; one from elsewhere may need --teacher-model")
    add("--teacher-model", metavar="NAME", help="the teacher's model, if its checkpoint does not name it")
    add(
        "--teacher-logits",
        type=Path,
        help="the teacher's logits on the training images, as viz/logits.py --split train writes them",
    )
    add("--distillation-alpha", type=float, help="the teacher's share of the loss; if omitted: 0.5")
    add("--distillation-tau", type=float, help="temperature, for soft distillation; if omitted: 1")

    group = parser.add_argument_group("optimisation: SGD; if omitted: the data set's recipe")
    add("--epochs", type=int, help="epochs to train")
    add("--batch-size", "-b", type=int, help="images per step, all processes together")
    add("--opt", default="sgd_nesterov", choices=("sgd_nesterov", "sgd"), help="SGD with or without Nesterov momentum")
    add("--lr", type=float, help="peak learning rate, not scaled with the batch size")
    add("--momentum", type=float, default=0.9, help="momentum of SGD")
    add("--weight-decay", "--wd", type=float, help="weight decay, except on norms and biases")
    add("--clip-grad-norm", "--clip-grad", type=float, help="maximum norm of the gradient; if omitted: no clipping")
    add("--sched", choices=("cosine", "step"), help="learning-rate schedule")
    marks = "epochs at which the rate drops, for --sched step; if omitted: the recipe's, scaled to --epochs"
    add("--decay-epochs", type=int, nargs="+", help=marks)
    add("--decay-rate", "--lr-gamma", type=float, help="factor of each drop, for --sched step; if omitted: 0.1")
    rising = "epochs of linear warm-up; if omitted: the recipe's, at most a quarter of --epochs"
    add("--warmup-epochs", "--lr-warmup-epochs", type=int, help=rising)

    group = parser.add_argument_group("run")
    add("--output-dir", type=Path, help="folder for checkpoint and log; if omitted: output/<data>-<model>-<loss>")
    add("--overwrite", switch=True, help="replace the run that --output-dir holds")
    add("--resume", metavar="auto|PATH|URL", help="continue from a checkpoint; auto: the one in --output-dir")
    add("--test-only", "--eval", switch=True, help="evaluate the checkpoint of --resume in float32 and stop; see evaluate.py")
    add("--eval-every", type=int, default=1, metavar="N", help="evaluate every N epochs, and after the last")
    add("--seed", type=int, default=0, help="seed of weights, data order and augmentation")
    add("--device", choices=("cuda", "cpu"), help="if omitted: cuda on machines with a GPU, else cpu")
    mixed = "mixed precision in training; if omitted: bf16 on GPUs that have it, else off"
    add("--amp", nargs="?", const="bf16", choices=("bf16", "off"), help=mixed)
    add("--compile", switch=True, help="compile the model with torch.compile; for small images on a GPU, with CUDA graphs")
    add("--sync-bn", switch=True, help="batch norm over the images of all processes")
    slower = "use deterministic GPU kernels, which are slower"
    add("--deterministic", "--use-deterministic-algorithms", switch=True, help=slower)
    torchvision_flags.add_flags(parser)
    return parser


def fill_in(args: argparse.Namespace) -> list[str]:
    """Set the options that depend on the data set or the machine; returns notes to print.

    Raises InputError for the first invalid value.
    """
    import torch

    flags, notes = torchvision_flags.translate(args)
    args.loss, args.data = args.loss or "maxsup", args.data or "digits"
    need_path(args.data, args.data_path)
    source = find_source(args)
    for name in OF_DATA:
        if getattr(args, name) is None:
            setattr(args, name, getattr(source, name))
    if args.warmup_epochs is None:
        args.warmup_epochs = min(source.warmup_epochs, args.epochs // 4)
    args.input_size = args.input_size or source.size
    check_ranges(args)
    torchvision_flags.translate_course(args, flags)
    check_ranges(args)
    args.ema_decay = args.ema_decay or 0.0
    settle_schedule(args, source)
    check_images(args, source)
    args.crop_ratio = 1.0 if args.in_memory else args.crop_ratio or 0.875
    check_pairs(args)
    check_distillation(args)
    args.device = choose_device(args.device)
    native = args.device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    args.amp = args.amp or ("bf16" if native else "off")
    name = args.data_path.name if args.data == "folder" else args.data
    args.output_dir = args.output_dir or Path("output") / f"{name}-{args.model}-{args.loss}"
    torch.backends.cudnn.benchmark = not args.deterministic
    torch.set_float32_matmul_precision("highest" if args.deterministic else "high")
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return notes


def choose_device(device: str | None) -> str:
    """The requested device, by default the GPU if there is one. Raises InputError for cuda without a GPU."""
    import torch

    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise InputError("--device cuda: this machine has no GPU that PyTorch can use")
    return device or ("cuda" if found else "cpu")


def cpu_has_bf16() -> bool:
    """Whether this CPU has bfloat16 instructions, according to Linux; without them, bf16 is slower than float32."""
    return not CPU_INFO.exists() or not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(CPU_INFO.read_text().split())


def check_ranges(args: argparse.Namespace) -> None:
    """Raise InputError for the first given value that is out of range."""
    for name, (low, high) in RANGES.items():
        value = getattr(args, name)
        high = 100 if name == "alpha" and args.loss == "focal" else high  # focal's gamma
        low = -100 if name in ("alpha", "alpha_end") and args.loss == "ls" else low  # negative label smoothing
        for one in value if isinstance(value, list) else [value]:
            if one is not None and not low <= one <= high:
                raise InputError(f"--{name.replace('_', '-')} {one}: must lie between {low:.10g} and {high:.10g}")


def settle_schedule(args: argparse.Namespace, source: Source) -> None:
    """Set where the learning rate drops, and by how much. Raises InputError if the schedule's options contradict one another."""
    marks = args.decay_epochs
    if args.sched != "step" and marks:
        raise InputError(f"--decay-epochs: for --sched step, not {args.sched}")
    if args.sched != "step" and args.decay_rate is not None:
        raise InputError(f"--decay-rate {args.decay_rate}: for --sched step, not {args.sched}")
    if marks is None:  # in proportion, if --epochs is not the recipe's
        args.decay_epochs = [max(1, round(mark * args.epochs / source.epochs)) for mark in source.decay_epochs]
    if args.sched == "step" and (not args.decay_epochs or (marks and min(marks) >= args.epochs)):
        raise InputError(f"--sched step: --decay-epochs has to name epochs before {args.epochs} where the rate drops")
    if args.warmup_epochs >= args.epochs:
        raise InputError(f"--warmup-epochs {args.warmup_epochs}: must be below --epochs {args.epochs}, or the rate never falls")
    args.decay_rate = 0.1 if args.decay_rate is None else args.decay_rate


def check_images(args: argparse.Namespace, source: Source) -> None:
    """Raise InputError for options of the other kind of images: small images, held in memory, or large images."""
    if args.in_memory and args.crop_ratio not in (None, 1):
        raise InputError(f"--crop-ratio {args.crop_ratio}: for large images; {args.data}, in memory, is not cropped")
    if args.data in SMALL and not args.in_memory and args.input_size <= LARGEST_IN_MEMORY:
        larger = f"it is enlarged to {LARGEST_IN_MEMORY + 1} px and more only"
        raise InputError(f"--input-size {args.input_size}: {args.data} has {source.size} px; {larger}")
    if not args.in_memory and (args.cutout or args.padding):
        raise InputError(f"--cutout and --padding are for small images, not for {args.data}")
    if args.in_memory and (args.auto_augment or args.random_erase):
        raise InputError(f"--auto-augment and --random-erase are for large images; {args.data}, in memory, has --cutout")
    for name, kind in (("ra_magnitude", "ra"), ("augmix_severity", "augmix")):
        if getattr(args, name) is not None and args.auto_augment != kind:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: for --auto-augment {kind}")
    for name in ("cutout", "padding"):
        if getattr(args, name) > args.input_size:
            raise InputError(f"--{name} {getattr(args, name)}: larger than the images, {args.input_size} pixels")


def check_pairs(args: argparse.Namespace) -> None:
    """Raise InputError for options of the model, the loss and the run that contradict one another."""
    if not 0 <= args.ema_decay < 1:
        raise InputError(f"--ema-decay {args.ema_decay}: must be at least 0 and below 1")
    if args.width % 2:
        raise InputError(f"--width {args.width}: must be even, because the shortcuts pad half the channels on either side")
    if args.loss == "ce" and args.alpha is not None:
        raise InputError(f"--alpha {args.alpha}: cross-entropy has no strength to set")
    if args.alpha_end is not None and args.loss not in ("ls", "maxsup"):
        raise InputError(f"--alpha-end {args.alpha_end}: for --loss ls and maxsup, not for {args.loss}")
    if args.prior != "uniform" and args.loss != "ls":
        raise InputError(f"--prior {args.prior}: for --loss ls, not for {args.loss}")
    if args.test_only and args.resume in (None, "auto"):
        raise InputError("--test-only needs --resume PATH, the checkpoint to evaluate")


def check_distillation(args: argparse.Namespace) -> None:
    """Set the options of distillation. Raises InputError if they are inconsistent, or do not name exactly one teacher."""
    kind = args.distillation_type
    if args.distillation_alpha is not None and kind == "none":
        raise InputError(f"--distillation-alpha {args.distillation_alpha}: needs --distillation-type soft or hard")
    if args.distillation_tau is not None and kind != "soft":
        raise InputError(f"--distillation-tau {args.distillation_tau}: for --distillation-type soft, not {kind}")
    args.distillation_alpha = 0.5 if args.distillation_alpha is None else args.distillation_alpha
    args.distillation_tau = 1.0 if args.distillation_tau is None else args.distillation_tau
    teachers = [name for name in ("teacher_path", "teacher_logits") if getattr(args, name) is not None]
    if kind == "none" and teachers:
        raise InputError(f"--{teachers[0].replace('_', '-')}: needs --distillation-type soft or hard")
    if kind != "none" and len(teachers) != 1:
        raise InputError(f"--distillation-type {kind}: give either --teacher-path or --teacher-logits")
    if args.teacher_model is not None and args.teacher_path is None:
        raise InputError(f"--teacher-model {args.teacher_model}: names the model of --teacher-path, which is not given")
    if args.teacher_logits is not None and (args.mixup_alpha or args.cutmix_alpha):
        raise InputError("--teacher-logits holds logits of whole images, not of mixed ones; omit mixup and cutmix")


def find_source(args: argparse.Namespace) -> Source:
    """The data set's facts and recipe; sets args.in_memory and makes args.data_path absolute.

    For --data folder, the images are searched for a common size (see common_size). Small images count as large if --input-size is
    not their own size.
    """
    source = SOURCES[args.data]
    args.in_memory = args.data in SMALL and args.input_size in (None, source.size)
    if args.data_path is not None:
        args.data_path = args.data_path.resolve()
    if args.data == "folder":
        from data.folders import common_size

        side = common_size(args.data_path)
        args.in_memory = side is not None and args.input_size in (None, side)
        source = replace(source, size=side, padding=side // 8) if args.in_memory else source
    return source if args.in_memory else replace(source, padding=0)


class _Formatter(Formatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults in the help and keeps the epilog's line breaks."""


def _recipe(name: str) -> str:
    source = SOURCES[name]
    marks = f" at {', '.join(map(str, source.decay_epochs))}" if source.decay_epochs else ""
    size = f"{source.size} px" if source.mean else "its own size"
    return (
        f"  {name:14} {size}, {source.epochs} epochs, batch {source.batch_size}, lr {source.lr:g}, "
        f"weight decay {source.weight_decay:g}, {source.sched}{marks}, "
        f"warm-up {source.warmup_epochs}"
    )
