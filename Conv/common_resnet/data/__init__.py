"""The data sets: what is customary for each, where its images come from, and which of them are trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from errors import InputError

import torch

import distributed
from data import pixels
from data.folders import Pictures, open_folder
from data.label_noise import symmetric_noise
from data.large_images import LargeImages
from data.longtail import long_tailed
from data.order import generator
from data.small_images import SmallImages
from data.superclasses import group

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@dataclass(frozen=True)
class Source:
    """Facts of a data set (size in pixels; mean and std of the inputs in [0, 1]) and its customary recipe."""

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
    "folder": Source(224, None, None, True, 0, epochs=100, batch_size=128, lr=0.1, weight_decay=5e-4, warmup_epochs=5),
}
SMALL = ("digits", "fashion-mnist", "cifar10", "cifar100")


class Inputs(NamedTuple):
    """Where images come from and how a model gets them: size in pixels; mean and std of the inputs in [0, 1].

    in_memory: whether they are small, all of one size, and kept decoded; None: whether the data set is one of SMALL. Without mean
    and std, open_data measures them.
    """

    data: str
    path: Path | None
    size: int
    crop_ratio: float
    mean: list[float] | None
    std: list[float] | None
    device: str
    num_workers: int = 0
    in_memory: bool | None = None


Images = SmallImages | LargeImages


def open_data(
    inputs: Inputs,
    holdout: float = 0.0,
    superclasses: str | None = None,
    imbalance_ratio: float = 1.0,
    label_noise: float = 0.0,
    seed: int = 0,
) -> tuple[Images, Images, dict[str, list[str]] | None]:
    """Training images, validation images, and the grouping of their classes, None without superclasses.

    In this order: a share `holdout` of the training images replaces the validation images, the same for every seed; coarse labels
    replace the classes (see group); of the training images a long tail is kept (see long_tailed), and a share `label_noise` of
    their labels is replaced, a function of seed (see symmetric_noise). Raises InputError for data that is missing, damaged, or
    too little for what is asked.
    """
    train = open_split(inputs, "train")
    val = open_split(inputs, "train" if holdout else "val")
    if len(train.classes) < 2:
        raise InputError(
            f"{inputs.path}: one class, {train.classes[0]}; images are train/<class>/<image>, of two classes or more"
        )
    if set(val.classes) - set(train.classes):
        foreign = sorted(set(val.classes) - set(train.classes))[:3]
        raise InputError(f"{inputs.path}: validation has classes that training has not: {', '.join(foreign)}")
    if val.classes != train.classes:  # fewer of them, or in the order of another map
        val.relabel([train.classes.index(name) for name in val.classes], train.classes)
    if holdout:
        rows = torch.randperm(len(train), generator=generator(0))
        cut = int(len(train) * holdout)
        if cut == 0:
            raise InputError(f"--holdout {holdout}: no image of {len(train)}")
        val.keep(rows[:cut].sort().values)
        train.keep(rows[cut:].sort().values)
    grouping = None
    if superclasses:
        table, grouping, names = group(inputs.data, train.classes, superclasses)
        train.relabel(table, names)
        val.relabel(table, names)
    if imbalance_ratio != 1:
        train.keep(long_tailed(train.labels.cpu(), len(train.classes), imbalance_ratio))
    if label_noise:
        train.set_labels(symmetric_noise(train.labels.cpu(), len(train.classes), label_noise, seed))
    mean, std = (inputs.mean, inputs.std) if inputs.mean and inputs.std else train.measure()
    for images in (train, val):
        images.normalise(inputs.mean or mean, inputs.std or std)
    return train, val, grouping


def need_path(data: str, path: Path | None) -> None:
    """Raise InputError where large images have no --data-path: they are neither built in nor downloaded."""
    if data == "folder" and path is None:
        raise InputError(
            "--data folder needs --data-path, a folder with train/<class>/<image> and val/, or train.zip and val.zip"
        )
    if data not in SMALL and path is None:
        raise InputError(f"--data {data} needs --data-path, a folder with train/ and val/; see data/{data}/README.md")


def open_split(inputs: Inputs, split: str) -> Images:
    """One split, "train" or "val", with its own classes."""
    data, path, size, crop_ratio, mean, std, device, num_workers, in_memory = inputs
    if not (data in SMALL if in_memory is None else in_memory):
        if data in SMALL:  # enlarged
            with distributed.local_main_first():
                folder = Pictures(*pixels.read(data, path, split, SOURCES[data].size))
        else:
            folder = open_folder(Path(path), split)
        return LargeImages(folder, size, crop_ratio, mean, std, device, num_workers)
    with distributed.local_main_first():  # it downloads, the others find
        images, labels, classes = pixels.read(data, path, split, size)
    return SmallImages(images, labels, classes, mean, std, device)
