"""The command line of main.py: DeiT's options and those of the loss. flags.py has their other spellings."""

import argparse
import os
from pathlib import Path

from errors import InputError

from flags import Parser, add_unneeded, settle

# This module imports nothing slow, so that --help answers immediately.
LOSSES = ("ce", "ls", "ols", "zipf", "logit-penalty", "focal", "maxsup", "bce")
DATA_SETS = ("image_folder", "IMNET", "CIFAR", "CIFAR10", "INAT", "INAT19")
CATEGORIES = ("name", "kingdom", "phylum", "class", "order", "supercategory", "family", "genus")

# The cores that this process may use; taskset and clusters limit them.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CPU_INFO = Path("/proc/cpuinfo")
SMALL = 32  # pixels; images up to this size are not cropped to a part of their area, which would leave too few pixels
# Settings that should not change when a run is resumed.
SETTINGS = """
    alpha alpha_end epochs global_batch lr unscale_lr weight_decay sched warmup_epochs warmup_lr min_lr clip_grad seed amp
    decay_epochs decay_rate momentum opt_eps opt_betas input_size mean std drop drop_path model_ema model_ema_decay
    no_aug color_jitter aa hflip scale train_interpolation repeated_aug
    reprob remode recount mixup cutmix cutmix_minmax mixup_prob mixup_switch_prob mixup_mode src train_mode
    freeze_backbone attn_only layer_decay lr_noise lr_noise_pct lr_noise_std
    distillation_type distillation_alpha distillation_tau teacher_path teacher_model
""".split()

# Smallest and largest valid values; None is always valid for an option that has it.
RANGES = {
    **dict.fromkeys(("epochs", "batch_size", "num_classes", "eval_every"), (1, 10**6)),
    **dict.fromkeys(("recipe_batch", "seed", "warmup_epochs"), (0, 2**32 - 1)),
    "num_workers": (0, 1024),
    "input_size": (1, 4096),
    "recount": (1, 1000),
    **dict.fromkeys(("drop", "drop_path", "hflip", "reprob", "mixup_prob", "mixup_switch_prob"), (0, 1)),
    **dict.fromkeys(("model_ema_decay", "eval_crop_ratio", "decay_rate"), (1e-9, 1)),
    **dict.fromkeys(("alpha", "alpha_end"), (0, 1)),
    **dict.fromkeys(("weight_decay", "warmup_lr", "min_lr", "color_jitter", "mixup", "cutmix", "momentum"), (0, 1e9)),
    **dict.fromkeys(("lr", "opt_eps", "clip_grad", "decay_epochs"), (1e-30, float("inf"))),
    **dict.fromkeys(("distillation_alpha", "lr_noise", "lr_noise_std", "cutmix_minmax"), (0, 1)),
    **dict.fromkeys(("distillation_tau", "layer_decay", "lr_noise_pct"), (0.01, 1000)),
    "start_epoch": (0, 10**9),
    "scale": (1e-6, 1),
    "std": (1e-9, 1e9),
    "mean": (-1e9, 1e9),
    "opt_betas": (0, 1),
}


INPUTS = {"input_size": 224, "eval_crop_ratio": 0.875, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}  # ImageNet's
ALPHAS = {"focal": (0, 100), "ls": (-100, 1)}  # focal's gamma; negative label smoothing


def fill_in(args: argparse.Namespace) -> None:
    """Set the options that depend on the machine or on one another. Raises InputError for invalid values."""
    import torch

    check(args)
    args.train_mode = args.train_mode and not args.freeze_backbone
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine has no GPU that PyTorch can use")
    native = args.device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    args.amp = args.amp or ("bf16" if native and not args.eval else "off")
    if args.amp == "bf16" and args.device == "cpu" and not cpu_has_bf16():
        args.notes.append(
            "--amp bf16: this CPU has no bfloat16 instructions (avx512_bf16, amx_bf16): float32, --amp off, is faster here"
        )
    if args.num_workers is None:
        args.num_workers = min(10, CORES)
    if args.no_aug:
        args.mixup, args.cutmix, args.cutmix_minmax, args.repeated_aug = 0.0, 0.0, None, False
    if (args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax) and args.batch_size % 2 and not args.eval:
        raise InputError(f"--batch-size {args.batch_size}: mixup pairs the images of a batch, so it must be even")
    torch.backends.cudnn.benchmark = not args.deterministic
    torch.set_float32_matmul_precision("highest" if args.deterministic else "high")
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def check(args: argparse.Namespace) -> None:
    """The first part of fill_in. It needs neither PyTorch nor the data, so mistakes are reported immediately."""
    settle(args)
    for name, value in INPUTS.items():
        if getattr(args, name) is None and not args.eval:  # with --eval, the checkpoint may have its own
            setattr(args, name, value)
    check_values(args)
    check_pairs(args)
    if not args.eval:
        args.notes += without_effect(args)


# Options that have no effect without the switch that they belong to.
OF_SWITCHES = {"model_ema": ("model_ema_decay", "model_ema_force_cpu"), "lr_noise": ("lr_noise_pct", "lr_noise_std")}


def without_effect(args: argparse.Namespace) -> list[str]:
    """A line for each training option that has no effect in combination with the other options."""
    notes, options, default = [], [], get_parser().get_default
    if args.src or args.input_size <= SMALL:
        options += [name for name in ("scale", "train_interpolation") if getattr(args, name) != default(name)]
    if args.input_size <= SMALL and args.eval_crop_ratio != INPUTS["eval_crop_ratio"]:
        options.append("eval_crop_ratio")
    if options:
        why = "--src crops squares of one size" if args.src else f"images of up to {SMALL} px are padded and shifted, not cropped"
        notes.append(f"{', '.join('--' + name.replace('_', '-') for name in options)}: no effect, {why}")
    for switch, names in OF_SWITCHES.items():
        for name in names:
            if getattr(args, name) != default(name) and not getattr(args, switch):
                notes.append(f"--{name.replace('_', '-')}: no effect without --{switch.replace('_', '-')}")
    distilling = {"none": ("distillation_alpha", "distillation_tau"), "hard": ("distillation_tau",), "soft": ()}
    for name in distilling[args.distillation_type]:
        if getattr(args, name) != default(name):
            notes.append(f"--{name.replace('_', '-')}: no effect with --distillation-type {args.distillation_type}")
    if args.epochs <= args.warmup_epochs:
        notes.append(
            f"--epochs {args.epochs} ends within the warm-up, --warmup-epochs {args.warmup_epochs}: the rate never reaches --lr"
        )
    return notes


def cpu_has_bf16() -> bool:
    """Whether this CPU has bfloat16 instructions, according to Linux; without them, bf16 is slower than float32."""
    return not CPU_INFO.exists() or not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(CPU_INFO.read_text().split())


def check_values(args: argparse.Namespace) -> None:
    """Raise InputError for the first option with an invalid value."""
    for name, (low, high) in RANGES.items():
        value = getattr(args, name)
        if name in ("alpha", "alpha_end"):
            low, high = ALPHAS.get(args.loss, (low, high))
        for one in value if isinstance(value, list) else [value]:
            if one is not None and not low <= one <= high:
                flag = name if name == "num_workers" else name.replace("_", "-")  # DeiT's spelling
                raise InputError(f"--{flag} {one}: must lie between {low:g} and {high:g}")
    if args.loss not in LOSSES:
        raise InputError(f"--loss {args.loss}: choose from {', '.join(LOSSES)}")
    if args.scale[0] > args.scale[1]:
        raise InputError(f"--scale {args.scale[0]:g} {args.scale[1]:g}: the smaller share comes first")
    if args.cutmix_minmax and args.cutmix_minmax[0] > args.cutmix_minmax[1]:
        raise InputError(f"--cutmix-minmax {args.cutmix_minmax[0]:g} {args.cutmix_minmax[1]:g}: the smaller share comes first")
    if args.lr_noise and len(args.lr_noise) > 2:
        raise InputError("--lr-noise: one or two shares of the epochs, where the noise begins and ends")
    if args.sched not in ("cosine", "step", "tanh", "poly"):
        raise InputError(f"--sched {args.sched}: choose cosine, step, tanh or poly")
    if args.opt_betas and len(args.opt_betas) != 2:
        raise InputError("--opt-betas: two numbers")


def check_pairs(args: argparse.Namespace) -> None:
    """Raise InputError for options that contradict one another, or that require another option."""
    if args.finetune and args.resume not in (None, "auto"):
        raise InputError(
            f"--finetune {args.finetune} and --resume {args.resume}: the first starts a run from weights, the second continues "
            "one with its optimiser; give one of them (with --resume auto the weights are for a run that has no checkpoint yet)"
        )
    if args.freeze_backbone and args.attn_only:
        raise InputError("--freeze-backbone and --attn-only: the first trains only the classifier; give one of them")
    if args.distillation_type == "none" and (args.teacher_path or args.teacher_model):
        name = "--teacher-path" if args.teacher_path else "--teacher-model"
        raise InputError(f"{name} without --distillation-type: give --distillation-type soft or hard")
    if args.distillation_type != "none" and not args.teacher_path:
        raise InputError(f"--distillation-type {args.distillation_type} needs --teacher-path, a checkpoint or its URL")
    if args.alpha is not None and args.loss in ("ce", "bce"):
        raise InputError(f"--alpha {args.alpha:g}: --loss {args.loss} has no strength to set")
    if args.alpha_end is not None and args.loss not in ("ls", "maxsup"):
        raise InputError(f"--alpha-end {args.alpha_end:g}: for --loss ls and maxsup, not for {args.loss}")
    if args.prior != "uniform" and args.loss != "ls":
        raise InputError(f"--prior {args.prior}: for --loss ls, not for {args.loss}")
    if args.inat_category != "name" and args.data_set not in ("INAT", "INAT19"):
        raise InputError(f"--inat-category {args.inat_category} is for --data-set INAT and INAT19, not {args.data_set}")
    if args.cache and args.data_set not in ("IMNET", "image_folder"):
        raise InputError(f"--cache reads archives of an image folder, and --data-set {args.data_set} is none")


def get_parser() -> Parser:
    parser = Parser(
        description="Train or evaluate a timm model with MaxSup or one of the losses it is compared with.",
        epilog="DeiT's options are accepted, with - or _. README.md says where they differ.",
    )
    switch = argparse.BooleanOptionalAction

    group = parser.add_argument_group("loss")
    group.add_argument("--loss", metavar="NAME", help=f"one of {', '.join(LOSSES)}; if omitted: maxsup")
    group.add_argument(
        "--alpha",
        type=float,
        help="strength in the first epoch; if omitted: the published strength and schedule (maxsup: 0.1 -> 0.2)",
    )
    group.add_argument(
        "--alpha-end", type=float, help="strength in the last epoch, reached linearly; if omitted: a given --alpha is constant"
    )
    group.add_argument(
        "--prior",
        default="uniform",
        choices=["uniform", "frequency"],
        help="what ls smooths towards: 1/K, or class frequencies",
    )
    group.add_argument("--smoothing", type=float, metavar="X", help="DeiT's name for --loss ls --alpha X; 0: --loss ce")
    group.add_argument("--bce-loss", action="store_true", help="DeiT's name for --loss bce, binary cross-entropy per class")

    group = parser.add_argument_group("distillation")
    group.add_argument(
        "--distillation-type",
        default="none",
        choices=["none", "soft", "hard"],
        help="target: the teacher's probabilities (soft; averaged over images and classes, as in DeiT) or predicted class (hard)",
    )
    group.add_argument("--teacher-path", metavar="PATH|URL", help="the teacher's checkpoint, of any trainer")
    group.add_argument(
        "--teacher-model",
        metavar="NAME",
        help="the teacher's model, of timm or torchvision; if omitted: the one that the file names",
    )
    group.add_argument("--distillation-alpha", type=float, default=0.5, help="the teacher's share of the loss")
    group.add_argument("--distillation-tau", type=float, default=1.0, help="temperature, for soft distillation")

    group = parser.add_argument_group("model")
    group.add_argument("--model", default="deit_small_patch16_224", metavar="NAME", help="any timm model")
    group.add_argument("--num-classes", type=int, help="size of the classifier; if omitted: the number of classes in the data")
    group.add_argument(
        "--input-size", type=int, help="side of the input, pixels; if omitted: 224, or the checkpoint's with --eval"
    )
    group.add_argument("--drop", type=float, default=0.0, help="dropout rate")
    group.add_argument("--drop-path", type=float, default=0.1, help="stochastic depth rate")
    group.add_argument("--model-ema", action=switch, default=False, help="keep an exponential moving average of the weights")
    group.add_argument("--model-ema-decay", type=float, default=0.99996, help="decay of the moving average, per step")
    group.add_argument("--model-ema-force-cpu", action="store_true", help="keep the moving average in CPU memory")

    group = parser.add_argument_group("fine-tuning")
    group.add_argument("--finetune", metavar="PATH|URL", help="start from the weights of a checkpoint of any trainer")
    group.add_argument("--freeze-backbone", action="store_true", help="train only the classifier (a linear probe)")
    group.add_argument("--attn-only", action="store_true", help="train only attention, position embeddings and the classifier")
    group.add_argument("--layer-decay", type=float, help="ratio of each layer's learning rate to the next layer's; if omitted: 1")
    group.add_argument("--train-mode", action=switch, default=True, help="train with dropout and stochastic depth enabled")

    group = parser.add_argument_group("optimisation")
    group.add_argument("--epochs", type=int, default=300, help="epochs to train")
    group.add_argument("--batch-size", type=int, default=64, help="images per process and step")
    group.add_argument("--recipe-batch", type=int, default=1024, help="warn if the global batch differs from this; 0: never")
    group.add_argument("--opt", default="adamw", metavar="NAME", help="any timm optimiser")
    group.add_argument("--opt-eps", type=float, default=1e-8, help="epsilon of the optimiser")
    group.add_argument("--opt-betas", type=float, nargs="+", help="betas of the optimiser; if omitted: its defaults")
    group.add_argument("--momentum", type=float, default=0.9, help="momentum of SGD")
    group.add_argument(
        "--weight-decay", type=float, default=0.05, help="weight decay, except on norms, biases and position embeddings"
    )
    group.add_argument("--clip-grad", type=float, help="maximum norm of the gradient; if omitted: no clipping")
    group.add_argument("--lr", type=float, default=5e-4, help="peak learning rate for a global batch of 512, scaled linearly")
    group.add_argument("--unscale-lr", action="store_true", help="do not scale --lr with the batch size")
    group.add_argument("--sched", default="cosine", metavar="NAME", help="cosine, step, tanh or poly; updated once per epoch")
    group.add_argument("--warmup-epochs", type=int, default=5, help="epochs of linear warm-up")
    group.add_argument("--warmup-lr", type=float, default=1e-6, help="learning rate at the start of the warm-up")
    group.add_argument("--min-lr", type=float, default=1e-5, help="final learning rate")
    group.add_argument("--decay-epochs", type=float, default=30, help="epochs between drops, for --sched step")
    group.add_argument("--decay-rate", type=float, default=0.1, help="factor of each drop, for --sched step; exponent, for poly")
    group.add_argument(
        "--lr-noise",
        type=float,
        nargs="+",
        metavar="SHARE",
        help="shares of the epochs at which learning-rate noise begins and, if given, ends",
    )
    group.add_argument("--lr-noise-pct", type=float, default=0.67, help="maximum relative noise")
    group.add_argument("--lr-noise-std", type=float, default=1.0, help="standard deviation of the noise")
    group.add_argument("--start_epoch", type=int, default=0, help="first epoch, counted from 0, of a run that is not resumed")

    group = parser.add_argument_group("augmentation")
    group.add_argument("--no-aug", action="store_true", help="resize and centre crop only, no mixing, no repeated augmentation")
    group.add_argument("--color-jitter", type=float, default=0.3, help="strength of colour jitter, for --aa none or 3a")
    group.add_argument("--aa", default="rand-m9-mstd0.5-inc1", metavar="POLICY", help="timm's AutoAugment policy, or none")
    group.add_argument("--ThreeAugment", action="store_true", help="DeiT III's: grey, solarise or blur (--aa 3a), no erasing")
    group.add_argument("--src", action="store_true", help="DeiT III's simple random crop instead of random resized crops")
    group.add_argument("--hflip", type=float, default=0.5, help="probability of a horizontal flip")
    group.add_argument("--scale", type=float, nargs=2, default=[0.08, 1.0], help="range of area shares of random resized crops")
    group.add_argument(
        "--train-interpolation",
        default="bicubic",
        choices=["random", "bilinear", "bicubic"],
        help="interpolation of random resized crops",
    )
    group.add_argument("--repeated-aug", action=switch, default=True, help="show each drawn image 3 times per epoch")
    group.add_argument("--reprob", type=float, default=0.25, help="probability of random erasing")
    group.add_argument(
        "--remode",
        default="pixel",
        choices=["const", "rand", "pixel"],
        help="fill of erased areas: zeros, one random colour, or noise",
    )
    group.add_argument("--recount", type=int, default=1, help="areas to erase per image")
    group.add_argument("--mixup", type=float, default=0.8, help="Beta parameter of mixup; 0: none")
    group.add_argument("--cutmix", type=float, default=1.0, help="Beta parameter of cutmix; 0: none")
    group.add_argument(
        "--cutmix-minmax",
        type=float,
        nargs=2,
        metavar="SHARE",
        help="range of the share of each side that cutmix replaces, instead of --cutmix",
    )
    group.add_argument("--mixup-prob", type=float, default=1.0, help="probability of mixing a batch")
    group.add_argument("--mixup-switch-prob", type=float, default=0.5, help="probability of cutmix, not mixup, if both are on")
    group.add_argument("--mixup-mode", default="batch", choices=["batch", "pair", "elem"], help="scope of one mixing ratio")

    group = parser.add_argument_group("data")
    group.add_argument(
        "--data-path",
        type=Path,
        required=True,
        help="folder with train/ and val/, their archives, or the files of CIFAR or iNaturalist",
    )
    group.add_argument(
        "--data-set", default="image_folder", choices=DATA_SETS, help="IMNET is an image folder; CIFAR is CIFAR-100"
    )
    group.add_argument("--inat-category", default="name", choices=CATEGORIES, help="level of the taxonomy that gives the labels")
    group.add_argument("--cache", action="store_true", help="train from the archives, read into memory once per machine")
    group.add_argument("--num_workers", type=int, help="data-loading workers per process; if omitted: one per core, at most 10")
    group.add_argument("--pin-mem", action=switch, default=True, help="load batches into pinned memory, on GPUs")
    group.add_argument(
        "--mean", type=float, nargs=3, help="mean of the inputs; if omitted: ImageNet's, or the checkpoint's with --eval"
    )
    group.add_argument("--std", type=float, nargs=3, help="standard deviation of the inputs; if omitted: as for --mean")
    group.add_argument(
        "--eval-crop-ratio",
        type=float,
        help="share of the shorter side that the centre crop keeps; if omitted: 0.875, or the checkpoint's with --eval",
    )

    group = parser.add_argument_group("run")
    group.add_argument("--output_dir", type=Path, default=Path("output/deit"), help="folder for checkpoint and log")
    group.add_argument("--overwrite", action="store_true", help="replace the run that --output_dir holds")
    group.add_argument("--resume", metavar="auto|PATH|URL", help="continue from a checkpoint; auto: the one in --output_dir")
    group.add_argument("--eval", action="store_true", help="evaluate the checkpoint of --resume on val/ and stop")
    group.add_argument("--dist-eval", action=switch, default=True, help="share the validation images among the processes")
    group.add_argument("--eval-every", type=int, default=1, metavar="N", help="evaluate every N epochs, and after the last")
    group.add_argument("--seed", type=int, default=0, help="seed of weights, data order and augmentation")
    group.add_argument("--device", choices=["cuda", "cpu"], help="if omitted: cuda on machines with a GPU, else cpu")
    help_ = "mixed precision; if omitted: bf16 for training on GPUs that have it, else off"
    group.add_argument("--amp", choices=["bf16", "fp16", "off"], help=help_)
    group.add_argument("--compile", action="store_true", help="compile the model with torch.compile")
    group.add_argument("--deterministic", action="store_true", help="use deterministic GPU kernels, which are slower")
    group.add_argument("--tensorboard", action="store_true", help="also log to TensorBoard, in --output_dir")
    add_unneeded(parser)
    return parser
