"""The data sets: opening their images, and choosing those to train on."""

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
    """The source of images and their preprocessing: size in pixels; mean and std of the inputs in [0, 1].

    in_memory: whether the images are small, all of one size, and kept decoded in memory; None: only for the data sets in SMALL.
    If mean and std are None, open_data measures them.
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
    """A digest of the images and labels in their order: of pixels in memory, or of names in a folder or archive."""
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
    """Training images, validation images, and the grouping of their classes, which is None without superclasses.

    In this order: a share `holdout` of the training images, the same for every seed, replaces the validation images; coarse
    labels replace the classes (see group); a long-tailed subset of the training images is kept (see long_tailed); a share
    `label_noise` of their labels is replaced, depending on seed (see symmetric_noise). Raises InputError for data that is
    missing, damaged or insufficient for these steps. The training images also get `digest`, computed before these steps, and
    `class_sizes` (K,), the number of images kept of each class by their true labels.
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
        raise InputError(f"{inputs.path}: validation has classes that training lacks: {', '.join(foreign)}")
    if val.classes != train.classes:  # fewer classes, or another map's order
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
    with distributed.local_main_first():  # it downloads for the others
        images, labels, classes = pixels.read(data, path, split, size)
    return SmallImages(images, labels, classes, mean, std, device)
