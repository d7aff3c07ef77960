"""A .ffcv file of images and labels, verified before compiled code follows its pointers, and the JSON file that describes it."""

import json
from pathlib import Path
from typing import BinaryIO, NamedTuple

from errors import InputError

import numpy as np
from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, FieldDescType, HeaderType

FIELDS = {"image": 2, "label": 1}  # FFCV's numbers of RGBImageField and IntField, in the order of its ImageNet writer
JPEG, RAW = 0, 1
MOST_CLASSES = 10**6
IMAGE_TYPE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
RECORD_TYPE = np.dtype([("f0", IMAGE_TYPE), ("f1", "<i8")], align=True)


class File(NamedTuple):
    """records (N,): f0 is an image's mode, width, height and offset, f1 its label. named: whether the class names are known.

    source: the folder that the images came from, None if unknown.
    """

    path: Path
    records: np.ndarray
    classes: list[str]
    named: bool
    source: str | None


def read(path: Path, option: str) -> File:
    """Open a .ffcv file and its description.

    Raises InputError, naming the option that gave the path, for a file that is missing, truncated or not in this format:
    FFCV itself would hang on such files, or read beyond their end.
    """
    if not path.exists():
        raise InputError(f"{option} {path}: no such file; write_imagenet.sh writes .ffcv files")
    if not path.is_file():
        raise InputError(f"{option} {path}: a folder; name the .ffcv file")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            header = take(file, HeaderType, 1)
            if not len(header) or header[0]["version"] != CURRENT_VERSION or header[0]["num_fields"] != len(FIELDS):
                raise InputError(f"{option} {path}: not a .ffcv file of images and labels")
            fields = take(file, FieldDescType, len(FIELDS))
            names = [field["name"].tobytes().rstrip(b"\0").decode("latin1") for field in fields]
            if len(fields) == len(FIELDS) and [*zip(names, fields["type_id"], strict=True)] != [*FIELDS.items()]:
                raise InputError(f"{option} {path}: its fields are not an image and a label")
            count, table_start = int(header[0]["num_samples"]), int(header[0]["alloc_table_ptr"])
            data_start, table_bytes = file.tell() + count * RECORD_TYPE.itemsize, size - table_start
            if not data_start <= table_start < size or table_bytes % ALLOC_TABLE_TYPE.itemsize:
                raise InputError(f"{option} {path}: truncated, or not completely written; write it again")
            records = take(file, RECORD_TYPE, count)
            file.seek(table_start)
            table = take(file, ALLOC_TABLE_TYPE, table_bytes // ALLOC_TABLE_TYPE.itemsize)
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be read ({error.strerror})")
    if not count:
        raise InputError(f"{option} {path}: holds no image")
    if not consistent(records["f0"], np.sort(table, order="ptr"), table_start):
        raise InputError(f"{option} {path}: damaged, its images do not lie where it says; write it again")
    if records["f1"].min() < 0:
        raise InputError(f"{option} {path}: has labels below 0, such as {records['f1'].min()}")
    if records["f1"].max() >= MOST_CLASSES:  # a name is kept for each class up to it
        raise InputError(f"{option} {path}: has the label {records['f1'].max()}; up to {MOST_CLASSES - 1:,} they mean something")
    return File(path, records, *describe(path, records["f1"], option))


def take(file: BinaryIO, kind: np.dtype, count: int) -> np.ndarray:
    """Read the next `count` items of a file, or as many as are left."""
    content = file.read(count * kind.itemsize)
    return np.frombuffer(content[: len(content) // kind.itemsize * kind.itemsize], kind)


def consistent(images: np.ndarray, table: np.ndarray, end: int) -> bool:
    """Whether each image is a region that the table lists, inside the file, and raw images have the bytes that they need."""
    if not len(table) or (images["mode"] > RAW).any() or not (images["width"].all() and images["height"].all()):
        return False
    row = np.searchsorted(table["ptr"], images["data_ptr"]).clip(max=len(table) - 1)
    start, size = table["ptr"][row], table["size"][row]
    pixels = 3 * images["width"].astype(np.uint64) * images["height"]
    inside = (start == images["data_ptr"]) & (start < end) & (size <= end) & (start + size <= end)
    return bool((inside & ((images["mode"] == JPEG) | (size == pixels))).all())


def description_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def describe(path: Path, labels: np.ndarray, option: str) -> tuple[list[str], bool, str | None]:
    """The description written by write_imagenet.py: the classes in label order, True, and the source folder.

    For files without a description, written by other programs: the labels as text, False, None. Raises InputError for a
    description that is unreadable or belongs to another file.
    """
    description = description_path(path)
    if not description.exists():
        return [str(label) for label in range(labels.max() + 1)], False, None
    try:
        found = json.loads(description.read_text(encoding="utf-8"))
        classes, source = found["classes"], found["source"]
        sound = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
        sound = sound and isinstance(source, str | None) and found["images"] == len(labels)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{option} {path}: its description {description.name} is unreadable; remove it, or write the file again")
    if not sound or labels.max() >= len(classes):
        raise InputError(
            f"{option} {path}: its description {description.name} is of another file; remove it, or write the file again"
        )
    return classes, True, source
