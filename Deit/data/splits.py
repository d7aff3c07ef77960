"""The training and validation images of a folder: choose the data set class that reads them, and match class orders."""

from collections.abc import Callable
from pathlib import Path

from errors import InputError

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100

from data.cifar import CifarImages
from data.folder import FolderImages
from data.inat import INatImages
from data.zip_images import ZipImages

CIFARS = {"CIFAR": CIFAR100, "CIFAR10": CIFAR10}
YEARS = {"INAT": 2018, "INAT19": 2019}
Images = FolderImages | ZipImages | CifarImages


def open_images(
    root: Path,
    split: str,
    transform: Callable | None,
    archive: bool = False,
    kind: str = "image_folder",
    inat_category: str = "name",
) -> Images:
    """A split, train or val, of the data set `kind` (one of --data-set's choices) in the folder `root`.

    An image folder is read from root/split, or from root/split.zip with `archive` or if only the archive exists.
    """
    if kind in CIFARS:
        return CifarImages(root, split, CIFARS[kind], transform)
    if kind in YEARS:
        return INatImages(root, split, YEARS[kind], inat_category, transform)
    archive = archive or ((root / f"{split}.zip").exists() and not (root / split).is_dir())
    return ZipImages(root, split, transform) if archive else FolderImages(root / split, transform)


def match_classes(dataset: Images, classes: list[str], owner: str, all_there: bool = False) -> None:
    """Remap the labels of `dataset` by name to `classes`, a list of class names in label order.

    Raises InputError if it has other classes or, with all_there, lacks one. `owner` names the source of `classes` in the message.
    """
    if dataset.classes == classes:
        return
    if not set(dataset.classes) <= set(classes) or (all_there and len(dataset.classes) < len(classes)):
        foreign = sorted(set(dataset.classes) - set(classes))[:3]
        missing = sorted(set(classes) - set(dataset.classes))[:3]
        parts = [f"only here: {', '.join(foreign)}"] * bool(foreign) + [f"only there: {', '.join(missing)}"] * bool(missing)
        raise InputError(f"{dataset.root}: {len(dataset.classes)} classes, not the {len(classes)} of {owner}; {'; '.join(parts)}")
    label = {name: index for index, name in enumerate(classes)}
    dataset.labels = np.array([label[name] for name in dataset.classes])[dataset.labels]
    dataset.classes = list(classes)
