"""The command line of main.py, and the recipes of the data sets with their sources."""

import argparse
import math
import os
from dataclasses import dataclass
from pathlib import Path

from errors import Formatter, InputError, Parser

from layouts import LAYOUTS

LOSSES = ("ce", "ls", "ols", "zipf", "logit-penalty", "focal", "maxsup")

# The cores that this process may use; taskset and clusters limit them.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Recipe:
    """A data set's defaults for options that the command line does not give. Sizes are (height, width) in pixels."""

    crop: list[int]
    steps: int
    batch_size: int
    opt: str
    lr: float
    weight_decay: float
    power: float
    warmup_steps: int
    drop_path: float  # for vision transformers
    logits_stride: int
    size: list[int] | None = None
    shorter_side: int | None = None
    max_class_share: float = 1.0
    scale: tuple[float, float] = (0.5, 2.0)
    jitter: float = 0.5
    eval_every: int = 1


RECIPES = {
    # This project's own: trains from random weights in minutes on a laptop's CPU.
    "camvid": Recipe(
        size=[180, 240], crop=[144, 192], steps=720, batch_size=8, opt="adamw", lr=2e-3, weight_decay=0.05,
        power=0.9, warmup_steps=50, drop_path=0.0, logits_stride=2, eval_every=5, scale=(0.75, 1.5), jitter=0.3,
    ),
    # ENSTA-U2IS-AI/Label-smoothing-Selective-classification-Code, experiments/segmentation/configs/deeplab_ls.yaml: 8 crops on
    # each of two GPUs; its schedule of 161 epochs in 30,000 steps implies 16 crops per step. Augmentation: its library's.
    "cityscapes": Recipe(
        size=[1024, 2048], crop=[512, 512], steps=30_000, batch_size=16, opt="sgd", lr=0.01, weight_decay=1e-4,
        power=1.0, warmup_steps=0, drop_path=0.0, logits_stride=8, eval_every=5,
    ),
    # open-mmlab/mmsegmentation, configs/vit/upernet_deit-s16_mln_512x512_160k_ade20k.py and its base files.
    "ade20k": Recipe(
        shorter_side=512, crop=[512, 512], steps=160_000, batch_size=16, opt="adamw", lr=6e-5, weight_decay=0.01,
        power=1.0, warmup_steps=1500, drop_path=0.1, logits_stride=16, max_class_share=0.75, eval_every=10,
    ),
}  # fmt: skip
OF_DATA = tuple(Recipe.__dataclass_fields__)
# Smallest and largest valid values.
RANGES = {
    **dict.fromkeys(("steps", "epochs", "batch_size", "eval_every", "logits_stride"), (1, 10**9)),
    **dict.fromkeys(("crop", "size", "shorter_side", "window", "window_stride"), (16, 8192)),
    **dict.fromkeys(("seed", "warmup_steps"), (0, 2**32 - 1)),
    "num_workers": (0, 1024),
    **dict.fromkeys(("momentum", "jitter", "aux_weight"), (0, 1)),
    **dict.fromkeys(("lr", "std"), (1e-30, 1e9)),
    **dict.fromkeys(("weight_decay", "power"), (0, 1e9)),
    **dict.fromkeys(("alpha", "alpha_end"), (-100, 1)),
    "scale": (0.05, 20),
    "mean": (-1e9, 1e9),
    "max_class_share": (1e-9, 1),
    "drop_path": (0, 0.9),
}


def get_parser() -> Parser:
    parser = Parser(
        description="Train a model for semantic segmentation with MaxSup or one of the losses it is compared with.",
        formatter_class=_Formatter,
        epilog="The data sets' recipes, from sources named in options.py:\n" + "\n".join(_line(name) for name in RECIPES),
    )
    switch = argparse.BooleanOptionalAction
    pair = {"type": int, "nargs": 2, "metavar": ("HEIGHT", "WIDTH")}

    group = parser.add_argument_group("loss and model")
    group.add_argument(
        "--loss",
        default="maxsup",
        choices=LOSSES,
        help="loss to minimise; ols and zipf are refused: they need one label per image",
    )
    group.add_argument("--alpha", type=float, help="strength in the first epoch; if omitted: the published strength and schedule")
    group.add_argument(
        "--alpha-end", type=float, help="strength in the last epoch, reached linearly; if omitted: a given --alpha is constant"
    )
    group.add_argument(
        "--prior", default="uniform", choices=("uniform", "frequency"), help="what ls smooths towards: 1/K, or class frequencies"
    )
    group.add_argument(
        "--model", default="deeplabv3plus_resnet18", metavar="NAME", help="deeplabv3plus_BACKBONE or upernet_BACKBONE"
    )
    group.add_argument("--init", metavar="PATH", help="checkpoint of Deit/ or Conv/ from whose weights the backbone starts")
    group.add_argument("--encoder-weights", choices=("imagenet",), help="download pre-trained weights of the backbone")
    group.add_argument(
        "--drop-path", type=float, help="stochastic depth rate of vision transformers; if omitted: the data set's recipe"
    )
    group.add_argument("--aux-weight", type=float, help="weight of the auxiliary head of vision transformers; if omitted: 0.4")

    group = parser.add_argument_group("data; if omitted: the data set's recipe")
    group.add_argument("--data", default="camvid", choices=LAYOUTS, help="data set")
    group.add_argument(
        "--data-path", type=Path, required=True, help="folder of the data set; data/<name>/README.md shows the layout"
    )
    group.add_argument("--size", **pair, help="size to which images and labels are resized, pixels")
    group.add_argument(
        "--shorter-side", type=int, help="resize the shorter side to this many pixels; evaluation keeps the labels' size"
    )
    group.add_argument("--crop", **pair, help="size of training crops, pixels")
    group.add_argument(
        "--scale", type=float, nargs=2, metavar=("LOW", "HIGH"), help="smallest and largest factor of random scaling"
    )
    group.add_argument("--flip", action=switch, default=True, help="random horizontal flips")
    group.add_argument("--jitter", type=float, help="maximum relative change of brightness, contrast and saturation")
    group.add_argument("--max-class-share", type=float, help="share of one class above which a crop is redrawn")
    group.add_argument("--mean", type=float, nargs=3, default=[0.485, 0.456, 0.406], help="mean of the inputs, in [0, 1]")
    group.add_argument("--std", type=float, nargs=3, default=[0.229, 0.224, 0.225], help="standard deviation of the inputs")
    group.add_argument("--num-workers", type=int, help="data-loading workers per process; if omitted: up to 8 with a GPU, else 0")

    group = parser.add_argument_group("optimisation; if omitted: the data set's recipe")
    group.add_argument("--steps", type=int, help="steps to train")
    group.add_argument("--epochs", type=int, help="epochs to train, instead of --steps")
    group.add_argument("--batch-size", type=int, help="crops per step, all processes together")
    group.add_argument("--opt", "--optimizer", choices=("sgd", "adamw"), help="optimiser")
    group.add_argument("--lr", type=float, help="peak learning rate, not scaled with the batch size")
    group.add_argument("--momentum", type=float, help="momentum of SGD; if omitted: 0.9")
    group.add_argument("--weight-decay", type=float, help="weight decay, except on norms, biases and position embeddings")
    group.add_argument("--power", type=float, help="exponent of the decay: rate * (1 - step / steps) ** power")
    group.add_argument("--warmup-steps", type=int, help="steps of linear warm-up")

    group = parser.add_argument_group("evaluation; if omitted: the data set's recipe")
    group.add_argument("--predict", default="whole", choices=("whole", "sliding"), help="whole images, or a sliding window")
    group.add_argument("--window", **pair, help="size of the sliding window, pixels; if omitted: --crop")
    group.add_argument("--window-stride", **pair, help="stride of the sliding window, pixels; if omitted: two thirds of its size")
    group.add_argument("--eval-every", type=int, metavar="N", help="evaluate every N epochs, and after the last")
    group.add_argument("--logits", type=Path, metavar="FILE", help="write logits and labels of the test split to this .pt file")
    group.add_argument("--logits-stride", type=int, metavar="S", help="keep every S-th row and column of the logits")

    group = parser.add_argument_group("run")
    group.add_argument(
        "--output_dir", "--output-dir", type=Path, help="folder for checkpoint and log; if omitted: output/<data>-<model>-<loss>"
    )
    group.add_argument("--overwrite", action="store_true", help="replace the run that --output_dir holds")
    group.add_argument("--resume", metavar="auto|PATH", help="continue from a checkpoint; auto: the one in --output_dir")
    group.add_argument("--seed", type=int, default=0, help="seed of weights, data order and augmentation")
    group.add_argument("--device", choices=["cuda", "cpu"], help="if omitted: cuda on machines with a GPU, else cpu")
    group.add_argument(
        "--amp",
        choices=["bf16", "off"],
        help="mixed precision in training; if omitted: bf16 on GPUs and CPUs that have it, else off",
    )
    group.add_argument("--compile", action="store_true", help="compile the model with torch.compile")
    group.add_argument("--sync-bn", action=switch, help="batch norm over all processes' crops; if omitted: on with several GPUs")
    group.add_argument("--deterministic", action="store_true", help="use deterministic GPU kernels, which are slower")
    return parser


def fill_in(args: argparse.Namespace) -> None:
    """Set the options that depend on the data set or the machine. Raises InputError for the first invalid value."""
    import torch

    from models import is_transformer, split_name

    recipe = RECIPES[args.data]
    if args.epochs and args.steps:
        raise InputError("--epochs and --steps both say how long to train: give one of them")
    if args.size and args.shorter_side:
        raise InputError("--size and --shorter-side both say how images are resized: give one of them")
    sized = args.size or args.shorter_side
    transformer = is_transformer(split_name(args.model)[1])
    for name in ("drop_path", "aux_weight") if not transformer else ():
        if getattr(args, name):
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: for vision transformers, not for {args.model}")
        setattr(args, name, 0.0)
    args.aux_weight = 0.4 if args.aux_weight is None else args.aux_weight
    if args.logits_stride and not args.logits:
        raise InputError("--logits-stride: for --logits")
    if args.predict == "whole" and (args.window or args.window_stride):
        raise InputError("--window and --window-stride: for --predict sliding")
    for name in OF_DATA:
        given = sized if name in ("size", "shorter_side") else getattr(args, name)
        if given is None:
            setattr(args, name, getattr(recipe, name))
    if args.momentum is not None and args.opt != "sgd":
        raise InputError(f"--momentum {args.momentum}: for --opt sgd, not {args.opt}")
    args.momentum = 0.9 if args.momentum is None else args.momentum
    args.window = args.window or list(args.crop)
    args.window_stride = args.window_stride or [max(16, side * 2 // 3) for side in args.window]
    for name, (low, high) in RANGES.items():
        value = getattr(args, name)
        high = 100 if name == "alpha" and args.loss == "focal" else high  # focal's gamma
        low = low if args.loss == "ls" or "alpha" not in name else 0  # negative label smoothing
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if one is not None and not low <= one <= high:
                raise InputError(f"--{name.replace('_', '-')} {one}: must lie between {low:.10g} and {high:.10g}")
    if args.loss in ("ols", "zipf"):
        raise InputError(f"--loss {args.loss}: defined for one label per image, not for pixels; see --help for the others")
    args.scale = list(args.scale)
    if args.scale[0] > args.scale[1]:
        raise InputError(f"--scale {args.scale[0]} {args.scale[1]}: the lower end comes first")
    if args.alpha is not None and args.loss == "ce":
        raise InputError(f"--alpha {args.alpha}: cross-entropy has no strength to set")
    if args.alpha_end is not None and args.loss not in ("ls", "maxsup"):
        raise InputError(f"--alpha-end {args.alpha_end}: for --loss ls and maxsup, not for {args.loss}")
    if args.prior == "frequency" and args.loss != "ls":
        raise InputError(f"--prior frequency: for --loss ls, not for {args.loss}")
    if args.init and args.encoder_weights:
        raise InputError("--init and --encoder-weights both say where the backbone's weights come from: give one of them")
    if args.logits and (args.logits.is_dir() or not args.logits.absolute().parent.is_dir()):
        raise InputError(f"--logits {args.logits}: must name a file in a folder that exists")
    if args.logits and args.logits.name in ("checkpoint.pth", "log.jsonl", "test.json"):
        raise InputError(f"--logits {args.logits}: {args.logits.name} is the name of a run's own file; choose another")
    if any(step > side for step, side in zip(args.window_stride, args.window, strict=True)):
        raise InputError(f"--window-stride {args.window_stride}: larger than the window {args.window} would leave gaps")
    args.data_path = args.data_path.resolve()
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no GPU that PyTorch can use")
    native = torch.cuda.is_bf16_supported(including_emulation=False) if args.device == "cuda" else cpu_has_bf16()
    args.amp = args.amp or ("bf16" if native else "off")
    if args.num_workers is None:
        args.num_workers = min(8, CORES) if args.device == "cuda" else 0
    if args.sync_bn and args.device == "cpu":
        raise InputError("--sync-bn: PyTorch synchronises batch norm on GPUs only")
    args.output_dir = args.output_dir or Path("output") / f"{args.data}-{args.model}-{args.loss}"
    torch.backends.cudnn.benchmark = not args.deterministic
    torch.set_float32_matmul_precision("highest" if args.deterministic else "high")
    if args.deterministic and args.device == "cuda" and args.model.startswith("upernet"):
        raise InputError(f"--deterministic: PyTorch has no deterministic pooling on GPUs as {args.model} needs it; see --model")
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def cpu_has_bf16() -> bool:
    """Whether this CPU has bfloat16 instructions, according to Linux; without them, bf16 is slower than float32."""
    return not CPU_INFO.exists() or not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(CPU_INFO.read_text().split())


def settle_length(args: argparse.Namespace, steps_per_epoch: int) -> None:
    """Set --steps from --epochs or vice versa; the last epoch may be incomplete."""
    if args.epochs:
        args.steps = args.epochs * steps_per_epoch
    args.epochs = math.ceil(args.steps / steps_per_epoch)
    if args.warmup_steps >= args.steps:
        raise InputError(
            f"--warmup-steps {args.warmup_steps}: a run of {args.steps} steps needs a shorter warm-up, or more steps"
        )


def rate(step: int, args: argparse.Namespace) -> float:
    """The learning rate at a step, counted from 0, relative to --lr: polynomial decay times a linear warm-up."""
    decay = (1 - min(step / args.steps, 1)) ** args.power
    return decay * min(1, (step + 1) / (args.warmup_steps + 1))


def get_maps_parser() -> Parser:
    """The command line of uncertainty_maps.py."""
    parser = Parser(
        description="Draw image, truth, prediction, errors and uncertainty of each pixel, one row per model.",
    )
    parser.add_argument("--checkpoint", type=Path, nargs="+", required=True, help="checkpoints of main.py, one row each")
    parser.add_argument("--names", nargs="+", help="titles of the rows; if omitted: the losses of the models")
    parser.add_argument("--data-path", type=Path, help="folder of the data set; if omitted: the one each model was trained on")
    parser.add_argument("--image", default="0", help="number of the test image, from 0, or part of its file name")
    parser.add_argument("--output", type=Path, default=Path("maps.png"), help="figure to write, .png or .pdf")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing --output")
    return parser


class _Formatter(Formatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults in the help and keeps the epilog's line breaks."""


def _line(name: str) -> str:
    recipe = RECIPES[name]
    return (
        f"  {name:11} {recipe.steps:,} steps of {recipe.batch_size} crops of {recipe.crop[0]} x {recipe.crop[1]}, "
        f"{recipe.opt}, lr {recipe.lr:g}, weight decay {recipe.weight_decay:g}, power {recipe.power:g}"
    )
