"""The names on the command line: losses, models, and data sets with their usual recipes. Imports nothing slow."""

from dataclasses import dataclass
from pathlib import Path

from errors import InputError

LOSSES = ("ce", "ls", "ols", "zipf", "logit-penalty", "focal", "maxsup")
CIFAR = {f"resnet{depth}": depth for depth in (8, 14, 20, 32, 44, 56, 110)}
DENSENETS = ("densenet_bc100",)
TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v2")
NAMES = (*TORCHVISION, *CIFAR, *DENSENETS)
LARGEST_IN_MEMORY = 96  # side, pixels
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@dataclass(frozen=True)
class Source:
    """Facts of a data set (size in pixels; mean and std of the inputs in [0, 1]) and its usual recipe."""

    size: int
    mean: list[float] | None  # measured on the training images
    std: list[float] | None
    flip: bool
    padding: int  # pixels, for random crops of small images
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    sched: str = "cosine"
    decay_epochs: tuple[int, ...] = ()
    warmup_epochs: int = 0


def _imagenet(**recipe) -> Source:
    return Source(224, *IMAGENET, flip=True, padding=0, **recipe)


CIFAR_RECIPE = {"epochs": 200, "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4, "warmup_epochs": 5}
SOURCES = {
    "digits": Source(8, [0.305] * 3, [0.376] * 3, False, 1, epochs=30, batch_size=64, lr=0.1, weight_decay=5e-4),
    "fashion-mnist": Source(28, [0.286] * 3, [0.353] * 3, True, 2, epochs=30, batch_size=128, lr=0.1, weight_decay=5e-4),
    "cifar10": Source(32, [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616], True, 4, **CIFAR_RECIPE),
    "cifar100": Source(32, [0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2762], True, 4, **CIFAR_RECIPE),
    "imagenet": _imagenet(epochs=90, batch_size=256, lr=0.1, weight_decay=1e-4, sched="step", decay_epochs=(30, 60)),
    "cub": _imagenet(epochs=100, batch_size=64, lr=0.01, weight_decay=5e-4, warmup_epochs=5),
    "cars": _imagenet(epochs=100, batch_size=64, lr=0.01, weight_decay=5e-4, warmup_epochs=5),
    "folder": Source(224, None, None, True, 0, epochs=100, batch_size=128, lr=0.1, weight_decay=5e-4, warmup_epochs=5),
}
SMALL = ("digits", "fashion-mnist", "cifar10", "cifar100")


def need_path(data: str, path: Path | None) -> None:
    """Raise InputError for large images without --data-path: they are neither built in nor downloaded."""
    if data == "folder" and path is None:
        raise InputError(
            "--data folder needs --data-path, a folder with train/<class>/<image> and val/, or train.zip and val.zip"
        )
    if data not in SMALL and path is None:
        raise InputError(f"--data {data} needs --data-path, a folder with train/ and val/; see data/{data}/README.md")
