"""Keys and options of ffcv-imagenet, the original MaxSup repository and this project's other trainers, and their translation."""

import argparse
from typing import Any

from errors import InputError

RENAMED = {
    "loss.loss_type": "loss.name",
    "lr.lr_schedule_type": "lr.schedule",
    "lr.lr_peak_epoch": "lr.peak_epoch",
    "training.use_blurpool": "model.blurpool",
    "loss": "loss.name",
    "alpha": "loss.alpha",
    "alpha-end": "loss.alpha_end",
    "prior": "loss.prior",
    "model": "model.arch",
    "init": "model.init",
    "finetune": "model.init",
    "mixup": "augmentation.mixup_alpha",
    "cutmix": "augmentation.cutmix_alpha",
    "mixup-alpha": "augmentation.mixup_alpha",
    "cutmix-alpha": "augmentation.cutmix_alpha",
    "epochs": "training.epochs",
    "momentum": "training.momentum",
    "weight-decay": "training.weight_decay",
    "wd": "training.weight_decay",
    "seed": "training.seed",
    "device": "training.device",
    "amp": "training.amp",
    "num-workers": "data.num_workers",
    "workers": "data.num_workers",
    "crop-ratio": "validation.crop_ratio",
    "eval-crop-ratio": "validation.crop_ratio",
    "output-dir": "logging.folder",
    "compile": "training.compile",
    "deterministic": "training.deterministic",
    "sync-bn": "training.sync_bn",
}
SWITCHES = ("compile", "deterministic", "sync-bn")  # given without a value, they mean 1
LOSSES = {"ms": "maxsup", "label_smoothing": "ls", "cross_entropy": "ce", "logit_penalty": "logit-penalty", "lp": "logit-penalty"}
# Accepted; the run prints the reason.
WITHOUT_EFFECT = {
    "training.distributed": "torchrun starts the processes",
    "dist.world_size": "torchrun sets the number of processes",
    "dist.address": "torchrun sets the address of the processes",
    "dist.port": "torchrun sets the address of the processes",
    "data.gpu": "training.device=cuda and CUDA_VISIBLE_DEVICES choose a GPU",
    "training.bn_wd": "weight decay spares norms and biases, as in ffcv-imagenet, regardless of this key",
    "logging.log_level": "log.jsonl has a line per epoch",
    "experiment.experiment_name": "logging.folder names a run",
}
# Refused with this reason, except for these values.
ONLY = {"training.optimizer": (("sgd",), "the optimiser is SGD")}
REFUSED = {
    "batch-size": "training.batch_size counts the images of one process, --batch-size of Conv/common_resnet those of all",
    "lr": "lr.lr is scaled by the batch, --lr of Conv/common_resnet is not; --lr.lr=X --lr.for_batch=0 takes it as it is",
}
SMOOTHING = ("training.label_smoothing", "label-smoothing", "smoothing")
TRANSLATED = (*SMOOTHING, "model.pretrained", "training.eval_only")
KEYS = (*RENAMED, *WITHOUT_EFFECT, *ONLY, *REFUSED, *TRANSLATED)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the keys as options that --help does not list; those with dashes also with underscores."""
    for key in KEYS:
        for spelling in dict.fromkeys((key, key.replace("-", "_"))):
            switch = {"nargs": "?", "const": "1"} if key in SWITCHES else {}
            parser.add_argument(f"--{spelling}", dest=spelling, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **switch)


def translate(given: dict[str, Any], where: str, notes: list[str]) -> dict[str, Any]:
    """{key: value} of one source with keys translated to this trainer's; others are kept. Adds keys without effect to `notes`.

    Raises InputError for a refused key, and, naming both, for two keys that contradict.
    """
    found: dict[str, Any] = {}
    spelled: dict[str, str] = {}

    def put(key: str, value: Any, spelling: str) -> None:
        if key in found and str(found[key]) != str(value):
            raise InputError(f"{where}: {spelled[key]} and {spelling} contradict: they set {key} to {found[key]} and to {value}")
        found[key], spelled[key] = value, spelling

    for spelling, value in given.items():
        key = spelling.replace("_", "-") if "." not in spelling else spelling
        said = f"{spelling}={value}"
        if key in WITHOUT_EFFECT:
            notes.append(f"{where}: {key} has no effect: {WITHOUT_EFFECT[key]}")
        elif key in ONLY and str(value).lower() not in ONLY[key][0]:
            raise InputError(f"{where}: {said}: {ONLY[key][1]} here")
        elif key in REFUSED:
            raise InputError(f"{where}: {said}: {REFUSED[key]}")
        elif key in SMOOTHING:
            if number(value, said, where):
                put("loss.name", "ls", said)
                put("loss.alpha", number(value, said, where), said)
        elif key == "model.pretrained":
            if number(value, said, where):
                put("model.init", "imagenet", said)
        elif key in RENAMED or key == "loss.name":
            target = RENAMED.get(key, key)
            put(target, LOSSES.get(str(value), value) if target == "loss.name" else value, said)
        elif key not in ONLY:
            put(spelling, value, said)
    return found


def number(value: Any, said: str, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{where}: {said}: a number is expected")
