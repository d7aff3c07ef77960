"""Small images as arrays: from scikit-learn, idx files, torchvision's downloads, image folders and ZIP archives."""

import gzip
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from errors import InputError, is_first

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.datasets.mnist import read_image_file, read_label_file
from tqdm import tqdm

from data.folders import Archive, Folder, open_folder
from data.image_mode import to_rgb

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # installed by Debian's package dataset-fashion-mnist
TRAIN_DIGITS = 1400  # the first 1,400; the last 397 are for validation
DOWNLOADS = Path("output/downloads")
# torchvision's class of a data set, and the folder that its download creates.
TORCHVISION = {
    "fashion-mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
}
Pixels = tuple[Tensor, Tensor, list[str]]


def read(data: str, path: Path | None, split: str, size: int) -> Pixels:
    """Images (N, size, size, 3) uint8, labels (N,) int64 and class names of a split, "train" or "val".

    path: a folder with train/ and val/, or train.zip and val.zip, or idx files, or torchvision's download; None: usual_path.
    Raises InputError if images are missing, damaged or of another size.
    """
    if path is None and data == "digits":
        return _digits(split)
    if path is None:
        path = usual_path(data)
        if path != DEBIAN:
            return _torchvision(data, path, split, download=True)
    if not path.is_dir():
        raise InputError(f"--data-path {path}: no such folder")
    if (path / split).is_dir() or (path / f"{split}.zip").is_file():
        return _decode(open_folder(path, split), size)
    if data in TORCHVISION and (path / TORCHVISION[data][1]).is_dir():
        return _torchvision(data, path, split, download=False)
    if data == "fashion-mnist" and list(path.glob("*-ubyte*")):
        return _idx(path, split, size)
    mend = "; rename its folder test to val" if split == "val" and (path / "test").is_dir() else ""
    raise InputError(f"--data-path {path}: holds neither {split}/<class>/<image> nor {split}.zip{mend}")


def _digits(split: str) -> Pixels:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("--data digits comes with scikit-learn, which is not installed: pip install scikit-learn")

    digits = load_digits()
    images = torch.from_numpy(np.round(digits.images * (255 / 16)).astype(np.uint8))
    rows = slice(TRAIN_DIGITS) if split == "train" else slice(TRAIN_DIGITS, None)
    return _grey(images[rows]), torch.from_numpy(digits.target[rows]).long(), [str(digit) for digit in range(10)]


def usual_path(data: str) -> Path | None:
    """The folder of a data set without --data-path: a system package's, or the download's. None for digits (scikit-learn)."""
    if data == "fashion-mnist" and DEBIAN.is_dir():
        return DEBIAN
    return DOWNLOADS / data if data in TORCHVISION else None


def _torchvision(data: str, folder: Path, split: str, download: bool) -> Pixels:
    """Read the folder with torchvision; with download, torchvision first downloads missing files into it."""
    try:
        found = getattr(torchvision.datasets, TORCHVISION[data][0])(folder, train=split == "train", download=download)
    except Exception as error:  # a damaged file can fail in many ways
        what = "cannot be downloaded into, or is damaged in," if download else "is damaged in"
        mend = "; remove that folder to try again, or see --data-path" if download else ""
        raise InputError(f"{data}: {what} {folder} ({(str(error) or type(error).__name__).splitlines()[0]}){mend}")
    images = torch.as_tensor(found.data)
    return _grey(images) if images.ndim == 3 else images, torch.as_tensor(found.targets).long(), list(found.classes)


def _idx(path: Path, split: str, size: int) -> Pixels:
    """Fashion-MNIST's idx files, plain or gzipped, read with torchvision."""
    stem = {"train": "train", "val": "t10k"}[split]
    images = _read_idx(path / f"{stem}-images-idx3-ubyte", read_image_file)
    labels = _read_idx(path / f"{stem}-labels-idx1-ubyte", read_label_file)
    if not len(labels) or images.shape != (len(labels), size, size):
        raise InputError(
            f"{path}: {split} images {tuple(images.shape)}, labels {tuple(labels.shape)}; wanted are (N, {size}, {size}) and (N,)"
        )
    classes = list(torchvision.datasets.FashionMNIST.classes)
    if labels.max() >= len(classes):
        raise InputError(f"{path}: {split} labels up to {labels.max()}; the classes are 0 to {len(classes) - 1}")
    return _grey(images), labels, classes


def _read_idx(file: Path, reader: Callable[[str], Tensor]) -> Tensor:
    packed = file.with_name(f"{file.name}.gz")
    if not file.is_file() and not packed.is_file():
        raise InputError(f"{file}: no such file, with or without .gz")
    try:
        if file.is_file():
            return reader(str(file))
        with tempfile.NamedTemporaryFile() as unpacked, gzip.open(packed) as content:
            shutil.copyfileobj(content, unpacked)
            unpacked.flush()
            return reader(unpacked.name)
    except Exception as error:  # a damaged file can fail in many ways
        found = file if file.is_file() else packed
        raise InputError(f"{found}: damaged, or not an idx file ({str(error) or type(error).__name__})")


def _grey(images: Tensor) -> Tensor:
    """(N, H, W) -> (N, H, W, 3)"""
    return images.unsqueeze(3).expand(-1, -1, -1, 3).contiguous()


def _decode(images: Folder | Archive, size: int) -> Pixels:
    """Decode all images of a split."""
    source = images.root
    pixels = np.empty((len(images), size, size, 3), np.uint8)
    hidden = None if is_first() else True
    for row in tqdm(range(len(images)), f"reading {source}", unit=" images", leave=False, disable=hidden, delay=2):
        name = images.name(row)
        try:
            with Image.open(images.file(row)) as picture:
                if picture.size != (size, size):
                    raise InputError(f"{source}: {name} has {picture.width}x{picture.height} pixels, not {size}x{size}")
                pixels[row] = np.asarray(to_rgb(picture))
        except InputError:
            raise
        except Exception as error:  # a damaged image can fail in many ways
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"{source}: {name} does not decode as an image ({reason}); replace or remove it")
    return torch.from_numpy(pixels), torch.tensor(images.targets), images.classes
