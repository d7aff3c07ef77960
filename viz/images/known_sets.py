"""Data sets known by name: the digits, which need no download, and three from torchvision."""

import gzip
import urllib.error
import zlib
from pathlib import Path

from common.errors import InputError, reason

import numpy as np
import torchvision
from PIL import Image

from images.image_set import Images

TRAIN_DIGITS = 1400  # of scikit-learn's 1,797, in their order; the last 397 validate


def open_known(data: str, path: Path | None, split: str) -> Images:
    """A split of one of NAMED, from the files at `path`, by default data/; missing files are downloaded. Raises InputError."""
    if data == "digits":
        return _digits(split)
    return _fashion_mnist(path, split) if data == "fashion-mnist" else _cifar(path or Path("data"), split, data)


class FromArrays:
    """Images (N, H, W) or (N, H, W, 3) uint8 in memory."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    def __call__(self, index: int, name: str) -> Image.Image:
        return Image.fromarray(self.pixels[index])


def _in_memory(where: str, pixels: np.ndarray, labels, classes: list[str]) -> Images:
    if len(pixels) != len(labels):
        raise ValueError(f"{len(pixels)} images, {len(labels)} labels")
    return Images(where, [f"{index:05d}" for index in range(len(pixels))], labels, list(classes), FromArrays(pixels))


def _digits(split: str) -> Images:
    """scikit-learn's handwritten digits, 8x8: the first 1,400 for training, the last 397 for validation."""
    from sklearn.datasets import load_digits  # imported here: it takes most of a second, and only the digits need it

    digits = load_digits()
    part = slice(None, TRAIN_DIGITS) if split == "train" else slice(TRAIN_DIGITS, None)
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return _in_memory("digits", pixels[part], digits.target[part], [str(digit) for digit in range(10)])


def _cifar(root: Path, split: str, data: str) -> Images:
    kind = torchvision.datasets.CIFAR10 if data == "cifar10" else torchvision.datasets.CIFAR100
    try:
        images = kind(root, train=split == "train", download=True)  # downloads nothing if all files are intact
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        raise InputError(f"{root / kind.base_folder}: {data} is neither there nor can it be downloaded ({reason(error)})")
    return _in_memory(data, images.data, images.targets, images.classes)


def _fashion_mnist(root: Path | None, split: str) -> Images:
    """Fashion-MNIST's idx files, compressed or not, in a folder or in torchvision's subfolder of it; else torchvision's download.

    They are read here because torchvision's own reader accepts neither compressed files, as in Debian's package, nor a folder
    with only one split.
    """
    known = torchvision.datasets.FashionMNIST
    roots = [root] if root else [Path("data"), Path("/usr/share/datasets/fashion-mnist")]
    stem = "train" if split == "train" else "t10k"
    for folder in (folder for root in roots for folder in (root, root / "FashionMNIST/raw", root / "raw")):
        found = [sorted(folder.glob(f"{stem}-{kind}-ubyte*")) for kind in ("images-idx3", "labels-idx1")]
        if all(found):
            try:
                images, labels = (gzip.open(files[-1]) if files[-1].suffix == ".gz" else open(files[-1], "rb") for files in found)
                with images, labels:
                    pixels = np.frombuffer(images.read(), np.uint8, offset=16).reshape(-1, 28, 28)
                    return _in_memory("fashion-mnist", pixels, np.frombuffer(labels.read(), np.uint8, offset=8), known.classes)
            except (OSError, ValueError, EOFError, zlib.error) as error:
                raise InputError(f"{folder}: its idx files are damaged ({error})")
    try:
        images = known(roots[0], train=split == "train", download=True)
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        raise InputError(f"{roots[0]}: fashion-mnist is neither there nor can it be downloaded ({reason(error)})")
    return _in_memory("fashion-mnist", images.data.numpy(), images.targets, known.classes)
