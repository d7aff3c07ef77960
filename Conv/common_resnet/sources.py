"""The data sets: what is customary for each, where its images come from, and what of them is trained on."""

from dataclasses import dataclass
from pathlib import Path

import torch

import distributed
import pixels
from errors import InputError
from label_noise import symmetric_noise
from large_images import Folder, LargeImages
from longtail import long_tailed
from order import generator
from small_images import SmallImages
from superclasses import group

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@dataclass(frozen=True)
class Source:
    """Facts of a data set (size in pixels; mean and std of the inputs in [0, 1]) and its customary recipe."""

    size: int
    mean: list[float]
    std: list[float]
    flip: bool
    padding: int  # pixels, for random crops of small images
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    sched: str = "cosine"
    decay_epochs: tuple[int, ...] = ()
    warmup_epochs: int = 0


def _imagenet(size: int = 224, **recipe) -> Source:
    return Source(size, *IMAGENET, flip=True, padding=0, **recipe)


CIFAR_RECIPE = {"epochs": 200, "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4, "warmup_epochs": 5}
SOURCES = {
    "digits": Source(8, [0.305] * 3, [0.376] * 3, False, 1, epochs=30, batch_size=64, lr=0.1, weight_decay=5e-4),
    "fashion-mnist": Source(28, [0.286] * 3, [0.353] * 3, True, 2, epochs=30, batch_size=128, lr=0.1, weight_decay=5e-4),
    "cifar10": Source(32, [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616], True, 4, **CIFAR_RECIPE),
    "cifar100": Source(32, [0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2762], True, 4, **CIFAR_RECIPE),
    "imagenet": _imagenet(epochs=90, batch_size=256, lr=0.1, weight_decay=1e-4, sched="step", decay_epochs=(30, 60)),
    "cub": _imagenet(epochs=100, batch_size=64, lr=0.01, weight_decay=5e-4, warmup_epochs=5),
    "cars": _imagenet(epochs=100, batch_size=64, lr=0.01, weight_decay=5e-4, warmup_epochs=5),
}
SMALL = ("digits", "fashion-mnist", "cifar10", "cifar100")


def open_data(args) -> tuple[SmallImages | LargeImages, SmallImages | LargeImages]:
    """Training and validation images of --data, after --holdout, --superclasses, --imbalance-ratio and --label-noise in turn.

    Raises InputError for data that is missing, damaged, or too little for what is asked.
    """
    train, val = (open_split(args, split) for split in ("train", "val"))
    if set(val.classes) - set(train.classes):
        foreign = sorted(set(val.classes) - set(train.classes))[:3]
        raise InputError(f"{args.data_path}: validation has classes that training has not: {', '.join(foreign)}")
    if val.classes != train.classes:  # fewer of them, or in the order of another map
        val.relabel([train.classes.index(name) for name in val.classes], train.classes)
    if args.holdout:
        rows = torch.randperm(len(train), generator=generator(0))  # the same for every seed
        cut = int(len(train) * args.holdout)
        if cut == 0:
            raise InputError(f"--holdout {args.holdout}: no image of {len(train)}")
        val = open_split(args, "train").keep(rows[:cut].sort().values)
        train.keep(rows[cut:].sort().values)
    if args.superclasses:
        table, args.superclasses, names = group(args.data, train.classes, args.superclasses)
        train.relabel(table, names)
        val.relabel(table, names)
    if args.imbalance_ratio != 1:
        train.keep(long_tailed(train.labels.cpu(), len(train.classes), args.imbalance_ratio))
    if args.label_noise:
        train.set_labels(symmetric_noise(train.labels, len(train.classes), args.label_noise, args.seed))
    if args.data in SMALL:
        train.augment(args.padding, args.flip, args.cutout)
    return train, val


def need_path(args) -> None:
    """Raise InputError where large images have no --data-path: they are neither built in nor downloaded."""
    if args.data not in SMALL and args.data_path is None:
        raise InputError(f"--data {args.data} needs --data-path, a folder with train/ and val/; see data/{args.data}/README.md")


def open_split(args, split: str) -> SmallImages | LargeImages:
    """One split of --data with its own classes, "train" or "val"."""
    if args.data not in SMALL:
        folder = Folder(Path(args.data_path) / split)
        return LargeImages(folder, args.input_size, args.crop_ratio, args.mean, args.std, args)
    with distributed.local_main_first():  # it downloads, the others find
        images, labels, classes = pixels.read(args.data, args.data_path, split, args.input_size)
    return SmallImages(images, labels, classes, args.mean, args.std, args.device)
