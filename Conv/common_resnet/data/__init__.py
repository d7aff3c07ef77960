"""The data sets: where their images come from, and which of them are trained on."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from errors import InputError

import torch

import distributed
from catalogue import SMALL, SOURCES
from data import pixels
from data.folders import Pictures, open_folder
from data.label_noise import symmetric_noise
from data.large_images import LargeImages
from data.longtail import long_tailed
from data.order import generator
from data.small_images import SmallImages
from data.superclasses import group


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


def digest(images: Images) -> str:
    """Of images and their labels in their order: of pixels in memory, of names in a folder or archive."""
    content = hashlib.sha256(images.labels.cpu().numpy().tobytes())
    if isinstance(images, SmallImages):
        content.update(images.images.cpu().numpy())
    elif isinstance(images.folder, Pictures):
        content.update(images.folder.images)
    else:
        content.update("\n".join(images.folder.name(index) for index in range(len(images))).encode(errors="surrogateescape"))
    return content.hexdigest()[:16]


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
    too little for what is asked. The training images also get `digest`, of what was there before, and `class_sizes` (K,), how
    many are kept of each class by its true labels.
    """
    train = open_split(inputs, "train")
    train.digest = digest(train)
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
    train.class_sizes = torch.bincount(train.labels.cpu(), minlength=len(train.classes))
    if label_noise:
        train.set_labels(symmetric_noise(train.labels.cpu(), len(train.classes), label_noise, seed))
    mean, std = (inputs.mean, inputs.std) if inputs.mean and inputs.std else train.measure()
    for images in (train, val):
        images.normalise(inputs.mean or mean, inputs.std or std)
    return train, val, grouping


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
