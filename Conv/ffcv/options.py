"""The configuration: every option with its default; a YAML or TOML file and --section.key=value override it."""

import argparse
import difflib
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from errors import InputError, Parser

import yaml

import original_keys

LOSSES = ("ce", "ls", "ols", "zipf", "logit-penalty", "focal", "maxsup")

CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Option:
    """kind: int, float, str, or bool, which is written 0 or 1. If the default is None, the value may be none."""

    kind: type
    default: Any
    help: str
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()


OPTIONS = {
    "model.arch": Option(str, "resnet50", "any classification model of torchvision"),
    "model.blurpool": Option(bool, False, "blur before each strided convolution"),
    "model.small_stem": Option(
        bool, False, "ResNets for small images: first convolution 3x3 without stride, no pooling after it"
    ),
    "model.init": Option(str, None, "initial weights: any checkpoint or its URL; imagenet: torchvision's; none: random"),
    "model.num_classes": Option(int, None, "size of the classifier; none: the number of classes in the training file", 1, 1e9),
    "data.train_dataset": Option(str, None, "the .ffcv file to train on"),
    "data.val_dataset": Option(str, None, "the .ffcv file to validate on"),
    "data.num_workers": Option(int, None, "loading threads per process; none: the cores, shared among the processes", 1, 1024),
    "data.in_memory": Option(
        bool, True, "1: full shuffle, the file cached in memory; 0, one process only: shuffle by pages, in fewer, longer reads"
    ),
    "resolution.min_res": Option(int, 224, "side of the training images at the start, pixels", 1, 1e5),
    "resolution.max_res": Option(int, 224, "side of the training images at the end, pixels", 1, 1e5),
    "resolution.start_ramp": Option(int, 0, "epoch until which the side stays at min_res", 0, 1e9),
    "resolution.end_ramp": Option(int, 0, "epoch from which the side is max_res; between the two, multiples of 32", 0, 1e9),
    "augmentation.min_area": Option(float, 0.08, "smallest share of an image's area that a random crop takes", 1e-6, 1),
    "augmentation.flip": Option(float, 0.5, "probability of a horizontal flip", 0, 1),
    "augmentation.mixup_alpha": Option(float, 0.0, "Beta parameter of mixup; 0: none", 0, 1000),
    "augmentation.cutmix_alpha": Option(
        float, 0.0, "Beta parameter of cutmix; 0: none; with mixup, each batch takes one of the two", 0, 1000
    ),
    "lr.lr": Option(float, 0.8, "peak learning rate for a global batch of for_batch images, scaled linearly", 1e-30, 1e30),
    "lr.for_batch": Option(int, 2048, "global batch that lr is meant for; 0: lr is not scaled", 0, 1e9),
    "lr.schedule": Option(str, "step", "step, or cyclic: linearly up and then down", choices=("step", "cyclic")),
    "lr.step_ratio": Option(float, 0.1, "factor of each drop, for schedule step", 1e-9, 1),
    "lr.step_length": Option(int, 30, "epochs between drops, for schedule step", 1, 1e9),
    "lr.peak_epoch": Option(int, 2, "epoch in which the cyclic rate is highest", 0, 1e9),
    "loss.name": Option(str, "maxsup", ", ".join(LOSSES)),
    "loss.alpha": Option(float, None, "strength in the first epoch; none: the published strength and schedule", -100, 100),
    "loss.alpha_end": Option(
        float, None, "strength in the last epoch, reached linearly; none: a given alpha is constant", -100, 1
    ),
    "loss.prior": Option(str, "uniform", "what ls smooths towards: 1/K, or class frequencies", choices=("uniform", "frequency")),
    "training.epochs": Option(int, 90, "epochs to train", 1, 1e9),
    "training.batch_size": Option(int, 512, "images per process and step", 1, 1e9),
    "training.momentum": Option(float, 0.9, "momentum of SGD", 0, 1),
    "training.weight_decay": Option(float, 1e-4, "weight decay, except on norms and biases", 0, 1e9),
    "training.seed": Option(int, 0, "seed of weights, data order and augmentation", 0, 2**32 - 1),
    "training.device": Option(str, None, "cuda or cpu; none: cuda on machines with a GPU, else cpu", choices=("cuda", "cpu")),
    "training.amp": Option(
        str, None, "mixed precision; none: bf16 for training on GPUs that have it, else off", choices=("bf16", "fp16", "off")
    ),
    "training.sync_bn": Option(bool, False, "batch norm over the images of all processes, on GPUs"),
    "training.compile": Option(bool, False, "compile the model with torch.compile"),
    "training.deterministic": Option(bool, False, "use deterministic GPU kernels, which are slower"),
    "validation.batch_size": Option(int, 512, "images per process and step", 1, 1e9),
    "validation.resolution": Option(int, 256, "side of the validation images, pixels", 1, 1e5),
    "validation.crop_ratio": Option(float, 0.875, "share of the shorter side that the centre crop keeps", 1e-6, 1),
    "validation.lr_tta": Option(bool, False, "average the logits of each image and its mirror image"),
    "logging.folder": Option(str, None, "folder for checkpoint, params.json and log.jsonl; none: output/<config>_<loss>"),
}


def read(argv: list[str] | None = None) -> tuple[SimpleNamespace, argparse.Namespace]:
    """The configuration (config.section.key) and the command's own options: config, resume, eval, overwrite; `notes`, lines that
    a run should print; and `given`, the keys that the command line sets, as named in OPTIONS.

    The command line overrides the YAML or TOML file, which overrides the defaults. Raises InputError for a file that cannot be
    read, an unknown key (naming the nearest one) and invalid values.
    """
    parser = get_parser()
    command, unknown = parser.parse_known_args(argv)
    command.notes = []
    for word in unknown:
        key = word.removeprefix("--").split("=")[0]
        raise InputError(f"{word}: {no_such_key(key)}" if word.startswith("--") else f"{word}: expected --section.key=value")
    known = (*OPTIONS, *original_keys.KEYS, *(key.replace("-", "_") for key in original_keys.KEYS))
    sources = [(str(command.config), read_config(command.config))] if command.config is not None else []
    sources.append(("command line", {key: value for key, value in vars(command).items() if key in known}))
    flat = {key: option.default for key, option in OPTIONS.items()}
    for where, given in sources:
        command.eval |= str(given.pop("training.eval_only", 0)).lower() in ("1", "true")
        found = {key: parse(key, value, where) for key, value in original_keys.translate(given, where, command.notes).items()}
        if found.get("loss.name", flat["loss.name"]) != flat["loss.name"]:  # the strength and prior of another loss
            flat |= {"loss.alpha": None, "loss.alpha_end": None, "loss.prior": "uniform"}
        flat |= found
        command.given = set(found)  # finally the command line's, which comes last
    if flat["logging.folder"] is None:
        flat["logging.folder"] = f"output/{command.config.stem if command.config else flat['model.arch']}_{flat['loss.name']}"
    check_together(flat)
    return nested(flat), command


def get_parser() -> argparse.ArgumentParser:
    parser = Parser(
        description="Train or evaluate a ConvNet on .ffcv files, with MaxSup or one of the losses it is compared with.",
        usage="%(prog)s --config FILE [--section.key=value ...] [options]",
    )
    parser.add_argument(
        "--config", "--config-file", type=Path, metavar="FILE", help="YAML or TOML file, such as configs/rn50.yaml"
    )
    parser.add_argument("--resume", metavar="auto|PATH", help="continue from a checkpoint; auto: the one in logging.folder")
    parser.add_argument(
        "--eval", "--test-only", action="store_true", help="evaluate --resume, a path or URL, on data.val_dataset and stop"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the run that logging.folder holds")
    original_keys.add_options(parser)
    for section in dict.fromkeys(key.split(".")[0] for key in OPTIONS):
        group = parser.add_argument_group(section)
        for key, option in OPTIONS.items():
            if key.startswith(section + "."):
                default = int(option.default) if option.kind is bool else option.default
                text = f"{option.help} (default: {'none' if default is None else default})".replace("%", "%%")
                kind = "0|1" if option.kind is bool else option.kind.__name__.upper()
                group.add_argument(f"--{key}", default=argparse.SUPPRESS, metavar=kind, help=text)
    return parser


def read_config(path: Path) -> dict[str, Any]:
    """A YAML or TOML file of sections, as {"section.key": value}. Raises InputError for anything else."""
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"--config {path}: cannot be read ({error.strerror})")
    except UnicodeDecodeError:
        raise InputError(f"--config {path}: not a text file")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        kind = "TOML" if path.suffix == ".toml" else "YAML"
        raise InputError(f"--config {path}: not {kind} ({' '.join(str(error).split())[:160]})")
    if not isinstance(content, dict) or not all(isinstance(section, dict) for section in content.values()):
        raise InputError(f"--config {path}: must hold sections of keys, such as `loss:` and indented under it `name: maxsup`")
    flat = {f"{section}.{key}": value for section, keys in content.items() for key, value in keys.items()}
    for key in flat:
        if key not in OPTIONS and key not in original_keys.KEYS:
            raise InputError(f"--config {path}: {no_such_key(key)}")
        value = flat[key]
        if not isinstance(value, str | int | float | None) or (isinstance(value, int) and abs(value) > 10**18):
            raise InputError(f"--config {path}: {key}: one text or number of at most 18 digits is expected")
    return flat


def no_such_key(key: str) -> str:
    known = [*OPTIONS, *original_keys.KEYS, "config", "resume", "eval", "overwrite"]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
    return f"no such key {key!r}; the nearest is {near!r} (--help lists all)"


def parse(key: str, value: Any, where: str) -> Any:
    """A value converted to its option's type. Raises InputError if that fails or the value is out of range."""
    option = OPTIONS[key]
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
        if option.default is not None:
            raise InputError(f"{where}: {key} needs a value")
        return None
    try:
        if option.kind is bool:
            found = {"0": False, "1": True, "false": False, "true": True}[str(value).lower()]
        elif option.kind is int:
            found = int(str(value))
        else:
            found = option.kind(value)
    except (ValueError, TypeError, KeyError):
        kind = {bool: "0 or 1", int: "a whole number", float: "a number", str: "text"}[option.kind]
        raise InputError(f"{where}: {key}={value}: {kind} is expected")
    if option.choices and found not in option.choices:
        raise InputError(f"{where}: {key}={value}: choose from {', '.join(option.choices)}")
    if option.kind in (int, float) and not option.low <= found <= option.high:
        raise InputError(f"{where}: {key}={value}: must lie between {option.low:g} and {option.high:g}")
    return found


def check_together(flat: dict[str, Any]) -> None:
    """Raise InputError for values that are valid individually but not in combination."""
    name = flat["loss.name"]
    if name not in LOSSES:
        raise InputError(f"loss.name={name}: choose from {', '.join(LOSSES)}")
    low, high = -100 if name == "ls" else 0, 100 if name == "focal" else 1  # negative label smoothing; focal's gamma
    for key in ("loss.alpha", "loss.alpha_end"):
        if not low <= (flat[key] or 0) <= high:
            raise InputError(f"{key}={flat[key]:g}: must lie between {low} and {high} for {name}")
    if flat["loss.alpha"] is not None and name == "ce":
        raise InputError(f"loss.alpha={flat['loss.alpha']:g}: cross-entropy has no strength to set")
    if flat["loss.alpha_end"] is not None and name not in ("ls", "maxsup"):
        raise InputError(f"loss.alpha_end={flat['loss.alpha_end']:g}: for ls and maxsup, not for {name}")
    if flat["loss.prior"] != "uniform" and name != "ls":
        raise InputError(f"loss.prior={flat['loss.prior']}: for ls, not for {name}")
    if flat["lr.schedule"] == "cyclic" and flat["lr.peak_epoch"] >= flat["training.epochs"]:
        last = flat["training.epochs"]
        raise InputError(f"lr.peak_epoch={flat['lr.peak_epoch']}: must be below training.epochs={last}, or the rate never falls")
    low, high = flat["resolution.min_res"], flat["resolution.max_res"]
    if low > high:
        raise InputError(f"resolution.min_res={low} is larger than resolution.max_res={high}")
    if flat["resolution.start_ramp"] > flat["resolution.end_ramp"]:
        raise InputError(
            f"resolution.start_ramp={flat['resolution.start_ramp']} comes after end_ramp={flat['resolution.end_ramp']}"
        )


def nested(flat: dict[str, Any]) -> SimpleNamespace:
    sections = {}
    for key, value in flat.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    return SimpleNamespace(**{section: SimpleNamespace(**keys) for section, keys in sections.items()})


def plain(config: SimpleNamespace) -> dict[str, dict[str, Any]]:
    """The configuration as nested dicts of plain values, for params.json and checkpoints."""
    return {section: dict(vars(keys)) for section, keys in vars(config).items()}


def cpu_has_bf16() -> bool:
    """Whether this CPU has bfloat16 instructions, according to Linux; without them, bf16 is slower than float32."""
    return not CPU_INFO.exists() or not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(CPU_INFO.read_text().split())
