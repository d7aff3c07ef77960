"""The training and validation images of a folder: which data set reads them, and whose class order their labels follow."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.folder import FolderImages
from data.zip_images import ZipImages
from errors import InputError


def open_images(root: Path, split: str, transform: Callable | None, archive: bool = False) -> FolderImages | ZipImages:
    """root/split as a folder, or root/split.zip with `archive` or where there is no such folder."""
    archive = archive or ((root / f"{split}.zip").exists() and not (root / split).is_dir())
    return ZipImages(root, split, transform) if archive else FolderImages(root / split, transform)


def match_classes(dataset: FolderImages | ZipImages, classes: list[str], owner: str) -> None:
    """Make the labels of `dataset` follow `classes`, a list of names in label order, remapping them by name.

    Raises InputError if the names differ. `owner` says in the message whose classes they are.
    """
    if dataset.classes == classes:
        return
    if set(dataset.classes) != set(classes):
        foreign = sorted(set(dataset.classes) - set(classes))[:3]
        missing = sorted(set(classes) - set(dataset.classes))[:3]
        parts = [f"only here: {', '.join(foreign)}"] * bool(foreign) + [f"only there: {', '.join(missing)}"] * bool(missing)
        raise InputError(f"{dataset.root}: {len(dataset.classes)} classes, not the {len(classes)} of {owner}; {'; '.join(parts)}")
    label = {name: index for index, name in enumerate(classes)}
    dataset.labels = np.array([label[name] for name in dataset.classes])[dataset.labels]
    dataset.classes = list(classes)
