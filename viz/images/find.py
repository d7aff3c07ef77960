"""Where the images are, and which reader opens them."""

import zipfile
from pathlib import Path

from common.errors import InputError
from common.options import NAMED

import torch
from torch import Tensor

from checkpoints.read import Checkpoint
from images.ffcv_files import ENDINGS, open_ffcv
from images.folders import open_folder
from images.image_set import Images, group_classes, match_classes
from images.known_sets import open_known
from images.zip_files import open_archive


def open_images(path: Path | None, split: str, data: str | None = None) -> Images:
    """The images of a split: from `path` if it holds the split, else of the set `data`, one of NAMED, if given, else from `path`.

    `path`: a folder holding {split}/<class>/<image> or {split}.zip, an archive, or a folder of class folders. Raises InputError.
    """
    if data in NAMED and split not in ("train", "val", "test"):
        raise InputError(f"{data} has no part {split}: train, val or test")
    if data == "digits":  # scikit-learn brings them; with a path, the images at that path are meant
        if path is None:
            return open_known(data, path, split)
        data = None
    archive = path / f"{split}.zip" if path else None
    if path and (path / split).is_dir():
        return open_folder(path / split)
    if path and (archive.is_file() or archive.with_name(f"{split}_map.txt").is_file()):
        return open_archive(archive, split)
    if data in NAMED:
        return open_known(data, path, split)
    if path is None:
        raise InputError(f"no images: --data-path names a folder or archive, --data one of {', '.join(NAMED)}")
    if path.is_file() and zipfile.is_zipfile(path):
        return open_archive(path, split)
    if path.is_file():
        raise InputError(f"{path}: neither a folder nor a whole ZIP archive (nor an FFCV file: those end with .beton or .ffcv)")
    if not path.is_dir():
        raise InputError(f"{path}: no such folder or archive; an image folder holds {split}/<class>/<image>")
    inside = [entry for entry in path.iterdir() if entry.is_dir()]
    if not inside or {"train", "val", "test"} & {entry.name for entry in inside}:
        raise InputError(f"{path / split}: no such folder; an image folder holds {split}/<class>/<image>")
    return open_folder(path)


def find_images(checkpoint: Checkpoint, path: Path | None, split: str, data: str | None = None) -> Images:
    """A split of the images given, else of those that the checkpoint names, with the checkpoint's labels. Raises InputError."""
    facts = checkpoint.facts
    if path is None and data is None:
        said = facts.get("data")
        data = said if said in NAMED else None
        path = Path(facts["data_path"]) if isinstance(facts.get("data_path"), str) else None
        if data and path and not path.exists():  # trained on another machine
            path = None
        if path is None and data is None:
            raise InputError(f"{checkpoint.path}: does not say where its images are; --data-path or --data does")
    images = open_ffcv(path) if path and path.suffix in ENDINGS else open_images(path, split, data)
    classes = checkpoint.classes
    if facts.get("superclasses") and images.classes and not set(images.classes) <= set(classes or []):
        group_classes(images, facts["superclasses"], checkpoint.path)
    match_classes(images, classes, facts["num_classes"], checkpoint.path)
    return images


def find_training_images(checkpoint: Checkpoint, path: Path | None, data: str | None = None) -> tuple[Images, Tensor]:
    """The images that the checkpoint was trained on, with their labels in training; and the data set's own labels (n,) int64.

    The two differ where labels were changed for training. Raises InputError.
    """
    images = find_images(checkpoint, path, "train", data)
    rows, labels = checkpoint.training_rows, checkpoint.training_labels
    if rows is not None:
        if rows.max() >= len(images):
            raise InputError(f"{checkpoint.path}: trained on row {rows.max():,} of {images.where}, which has {len(images):,}")
        images.keep(rows.numpy())
    own = torch.from_numpy(images.labels)
    if labels is not None:
        if len(labels) != len(images):
            raise InputError(f"{checkpoint.path}: has {len(labels):,} training labels for {len(images):,} images")
        images.labels = labels.numpy()
    return images, own
