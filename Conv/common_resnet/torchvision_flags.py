"""Those flags of torchvision's references/classification/train.py that have no direct equivalent here, and their treatment.

Flags with an equivalent are further spellings of the options in options.py. This file has the flags that are translated, have no
effect, or are refused.
"""

import argparse
import math
import re
from typing import Any

from errors import InputError

from command_line import Parser, add_option, show

# Accepted; the run prints the reason.
WITHOUT_EFFECT = {
    "--print-freq": "a progress bar shows the loss",
    "--world-size": "torchrun sets the number of processes",
    "--dist-url": "torchrun sets the address of the processes",
    "--start-epoch": "--resume takes the epoch from the checkpoint",
    "--cache-dataset": "small images are kept in memory, and folders of large ones are listed in each run",
    "--use-v2": "both versions of torchvision's transforms give the same images",
}
# Refused with this reason, except for the values listed, which describe what this trainer does anyway.
REFUSED = {
    "--norm-weight-decay": (("0", "0.0"), "norms do not decay here"),
    "--bias-weight-decay": (("0", "0.0"), "biases do not decay here"),
    "--transformer-embedding-decay": ((), "the models here have no embeddings; see Deit/"),
    "--lr-warmup-method": (("linear",), "the rate rises linearly here"),
    "--lr-warmup-decay": ((), "the rate rises from 0 here, a step at a time"),
    "--lr-min": (("0", "0.0"), "the cosine falls to 0 here"),
    "--interpolation": (("bilinear",), "images are scaled by bilinear interpolation here"),
    "--backend": (("PIL", "pil"), "images are transformed by Pillow here"),
    "--ra-sampler": ((), "repeated augmentation is an option of Deit/ only"),
    "--ra-reps": ((), "repeated augmentation is an option of Deit/ only"),
}
SWITCHES = ("--cache-dataset", "--use-v2", "--ra-sampler")
SCHEDULES = {"steplr": "step", "cosineannealinglr": "cosine", "exponentiallr": "step"}


def add_flags(parser: Parser) -> None:
    """Add the flags, which --help does not list one by one."""

    def add(*names: str, **options: Any) -> None:
        add_option(parser, parser, *names, help=argparse.SUPPRESS, **options)

    for name in (*WITHOUT_EFFECT, *REFUSED):
        add(name, **({"switch": True} if name in SWITCHES else {}))
    add("--label-smoothing", "--smoothing", type=float)
    add("--lr-scheduler", choices=tuple(SCHEDULES))
    add("--lr-step-size", type=int)
    add("--model-ema", switch=True)
    add("--model-ema-decay", type=float)
    add("--model-ema-steps", type=int)
    add("--pretrained", switch=True)
    add("--weights")
    add("--val-resize-size", type=int)


def translate(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Translate the flags of loss, initial weights and schedule to options before defaults are set; remove all flags from args.

    Returns the values of all flags, for translate_course, and notes on flags without effect. Raises InputError for a refused flag
    and for contradictions.
    """
    names = [_name(flag) for flag in (*WITHOUT_EFFECT, *REFUSED)]
    names += "label_smoothing lr_scheduler lr_step_size model_ema model_ema_decay model_ema_steps".split()
    given = {name: vars(args).pop(name, None) for name in (*names, "pretrained", "weights", "val_resize_size")}
    notes = [
        f"note: {flag} has no effect: {reason}"
        for flag, reason in WITHOUT_EFFECT.items()
        if given[_name(flag)] not in (None, False)
    ]
    for flag, (accepted, reason) in REFUSED.items():
        value = given[_name(flag)]
        if value not in (None, False, *accepted):
            raise InputError(f"{flag}{'' if value is True else f' {value}'} is refused: {reason}")
    smoothing = given["label_smoothing"]
    if smoothing == 0 and args.loss is None:
        notes.append("note: --label-smoothing 0 is --loss ce; for MaxSup, omit it or add --loss maxsup")
    if smoothing is not None and (smoothing, args.loss) != (0, "maxsup"):
        loss, alpha = ("ls", smoothing) if smoothing else ("ce", None)
        _set(args, "loss", loss, f"--label-smoothing {smoothing:g}")
        if alpha:
            _set(args, "alpha", alpha, f"--label-smoothing {smoothing:g}")
    if given["pretrained"]:
        _set(args, "init", "imagenet", "--pretrained")
    if given["weights"]:
        _set(args, "init", _initial_weights(given["weights"], args.model), f"--weights {given['weights']}")
    if given["lr_scheduler"]:
        _set(args, "sched", SCHEDULES[given["lr_scheduler"]], f"--lr-scheduler {given['lr_scheduler']}")
    elif given["lr_step_size"] is not None:
        _set(args, "sched", "step", f"--lr-step-size {given['lr_step_size']}")
    return given, notes


def _initial_weights(weights: str, model: str) -> str:
    """The --init value for torchvision's --weights: a name such as ResNet50_Weights.IMAGENET1K_V2, a path or a URL."""
    named = re.fullmatch(r"(\w+)_Weights\.(\w+)", weights)
    if named and named[1].replace("_", "").lower() != model.replace("_", "").lower():
        raise InputError(f"--weights {weights} and --model {model} contradict: these are another model's weights")
    name = named[2] if named else weights
    return "imagenet" if name == "IMAGENET1K_V1" else name


def translate_course(args: argparse.Namespace, given: dict[str, Any]) -> None:
    """Translate the flags of schedule, averaging and resizing to options, once epochs, batch and input size are known."""
    every, first = given["lr_step_size"], args.warmup_epochs
    if every is not None and every < 1:
        raise InputError(f"--lr-step-size {every}: must be at least 1")
    if every is not None and given["lr_scheduler"] == "cosineannealinglr":
        raise InputError(f"--lr-scheduler cosineannealinglr and --lr-step-size {every} contradict: the rate falls in every epoch")
    if given["lr_scheduler"] == "exponentiallr":
        if every is not None:
            raise InputError(f"--lr-scheduler exponentiallr and --lr-step-size {every} contradict: it decays in every epoch")
        every = 1
    if every is not None:  # counted from the end of the warm-up, as torchvision's SequentialLR does
        _set(args, "decay_epochs", list(range(first + every, args.epochs, every)), "--lr-step-size")
    decay, steps = given["model_ema_decay"], given["model_ema_steps"]
    if given["model_ema"]:
        # torchvision averages every 32 steps and adapts the decay to the length of the run; this trainer averages every step.
        steps, decay = 32 if steps is None else steps, 0.99998 if decay is None else decay
        if steps < 1 or not 0 < decay < 1:
            ranges = "the first must be at least 1, the second between 0 and 1"
            raise InputError(f"--model-ema-steps {steps} --model-ema-decay {decay}: {ranges}")
        kept = 1 - min(1, (1 - decay) * args.batch_size * steps / args.epochs)
        if kept == 0:
            raise InputError(f"--model-ema: with {args.epochs} epochs torchvision's average has no memory; give --ema-decay")
        _set(args, "ema_decay", kept ** (1 / steps), "--model-ema")
    elif decay is not None or steps is not None:
        raise InputError("--model-ema-decay and --model-ema-steps need --model-ema; --ema-decay is a decay per step")
    resized = given["val_resize_size"]
    if resized is not None:
        if args.in_memory or resized < args.input_size:
            raise InputError(f"--val-resize-size {resized}: for large images, and not below --input-size {args.input_size}")
        ratio = args.input_size / resized
        ratio = math.nextafter(ratio, 0) if int(args.input_size / ratio) < resized else ratio
        _set(args, "crop_ratio", ratio, f"--val-resize-size {resized}")


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _set(args: argparse.Namespace, name: str, value: Any, flag: str) -> None:
    """Set an option to the value that a flag stands for. Raises InputError naming both if the option has another value."""
    there = getattr(args, name)
    if there is not None and there != value:
        raise InputError(f"{flag} and --{name.replace('_', '-')} {show(there)} contradict: it means {show(value)}")
    setattr(args, name, value)
