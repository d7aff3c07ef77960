"""Check images and their annotations for semantic segmentation: what camvid/, cityscapes/ and ade20k/prepare.py share."""

import argparse
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import errors  # noqa: F401  it reports a missing package in one line

import numpy as np
from PIL import Image
from tqdm import tqdm

from unpack import InputError, printable

Pair = tuple[Path, Path]


def pairs(images: Path, suffixes: tuple[str, ...], annotations: Path, suffix: str, count: int) -> list[Pair]:
    """(image, annotation) of a split, sorted. Raises InputError for a missing folder or partner, or a wrong number of images."""
    for folder in (images, annotations):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; the README next to this script shows the layout")
    found = []
    for path in sorted(images.rglob("*")):
        ending = next((ending for ending in suffixes if path.name.endswith(ending)), None)
        if ending and not path.name.startswith("."):
            partner = annotations / (path.relative_to(images).as_posix().removesuffix(ending) + suffix)
            if not partner.is_file():
                raise InputError(f"{path}: its annotation {partner} is missing")
            if found and found[-1][1] == partner:
                raise InputError(f"{path}: another image has the same name, {found[-1][0].name}; remove one of them")
            found.append((path, partner))
    partners = {partner for _, partner in found}
    for path in sorted(annotations.rglob(f"*{suffix}")):
        if path not in partners and not path.name.startswith("."):
            raise InputError(f"{path}: its image in {images} is missing")
    if len(found) != count:
        raise InputError(f"{images}: {len(found):,} images, not {count:,}; unpack the archive again")
    return found


def check(pairs: list[Pair], values: Iterable[int]) -> np.ndarray:
    """Read every pair; returns how many pixels have each value, (256,) int64.

    Raises InputError naming the first file that does not decode, differs in size from its image, or holds any other value.
    """
    allowed = np.isin(np.arange(256), list(values))
    with ThreadPoolExecutor() as pool:
        counts = pool.map(lambda pair: _count(*pair, allowed), pairs)
        return sum(tqdm(counts, total=len(pairs), unit=" images", leave=False, disable=None), np.zeros(256, np.int64))


def _count(image_path: Path, annotation_path: Path, allowed: np.ndarray) -> np.ndarray:
    opened = []
    for path in (image_path, annotation_path):
        try:
            with Image.open(path) as image:
                image.load()
                opened.append(image.copy())
        except Exception as error:  # a damaged file can raise any exception
            raise InputError(f"{path}: does not decode as an image ({error})")
    image, annotation = opened
    if annotation.mode not in ("L", "P"):
        raise InputError(f"{annotation_path}: an image in mode {annotation.mode}, not one class index of 8 bits per pixel")
    if annotation.size != image.size:
        raise InputError(f"{annotation_path}: {annotation.size} pixels, but its image has {image.size}")
    counts = np.bincount(np.asarray(annotation).ravel(), minlength=256)
    if counts[~allowed].any():
        raise InputError(f"{annotation_path}: holds the value {np.flatnonzero(counts * ~allowed)[0]}, which is not a class")
    return counts


def run(what: str, splits: dict[str, tuple[str, str, int]], suffixes: tuple[str, ...], suffix: str, values: dict) -> None:
    """The command of a prepare.py: check the data set under --root, print what each split holds, or one line of error.

    splits: folders of images and annotations below the root, and the number of images. suffixes, suffix: how their files end.
    values: "classes", the values of classes in annotations, and "ignored", those of pixels without a label.
    """
    parser = argparse.ArgumentParser(description=f"Check {what}: every image, every annotation, their number and values.")
    parser.add_argument("--root", type=Path, required=True, help="folder of the data set")
    root = parser.parse_args().root
    try:
        for name, (images, annotations, count) in splits.items():
            found = pairs(root / images, suffixes, root / annotations, suffix, count)
            counts = check(found, [*values["classes"], *values["ignored"]])
            unlabelled = counts[list(values["ignored"])].sum() / counts.sum()
            classes = np.count_nonzero(counts[list(values["classes"])])
            print(f"{name}: {len(found):,} images, {classes} classes, {unlabelled:.1%} of the pixels without a label", flush=True)
    except InputError as error:
        sys.exit(f"error: {printable(str(error))}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
