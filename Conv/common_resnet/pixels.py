"""Small images as arrays: from scikit-learn, idx files, torchvision's downloads, image folders and ZIP archives."""

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

import distributed
from errors import InputError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where the package dataset-fashion-mnist puts it
TRAIN_DIGITS = 1400  # the first ones; the last 397 were written by other people
FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
Pixels = tuple[Tensor, Tensor, list[str]]


def read(data: str, path: Path | None, split: str, size: int) -> Pixels:
    """Images (N, size, size, 3) uint8, labels (N,) int64 and class names of a split, "train" or "val".

    path: a folder that holds train/ and val/, or train.zip and val.zip, or idx files; None: the data set's own place, or its
    download into data/. Raises InputError where images are missing, damaged or of another size.
    """
    if path is None and data == "digits":
        return _digits(split)
    if path is None and data == "fashion-mnist" and DEBIAN.is_dir():
        path = DEBIAN
    if path is None:
        return _download(data, split)
    if not path.is_dir():
        raise InputError(f"--data-path {path}: no such folder")
    if (path / split).is_dir():
        return _decode(*_folder(path / split), size, str(path / split))
    if (path / f"{split}.zip").is_file():
        return _archive(path, split, size)
    if data == "fashion-mnist" and list(path.glob("*-ubyte*")):
        return _idx(path, split, size)
    raise InputError(f"--data-path {path}: holds neither {split}/<class>/<image> nor {split}.zip")


def _digits(split: str) -> Pixels:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("--data digits comes with scikit-learn, which is not installed: pip install scikit-learn")

    digits = load_digits()
    images = torch.from_numpy(np.round(digits.images * (255 / 16)).astype(np.uint8))
    rows = slice(TRAIN_DIGITS) if split == "train" else slice(TRAIN_DIGITS, None)
    images = images[rows].unsqueeze(3).expand(-1, -1, -1, 3).contiguous()
    return images, torch.from_numpy(digits.target[rows]).long(), [str(digit) for digit in range(10)]


def _download(data: str, split: str) -> Pixels:
    kind = {"fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}[data]
    place = Path("data") / data
    try:
        found = getattr(torchvision.datasets, kind)(place, train=split == "train", download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{data}: cannot be downloaded into {place} ({str(error).splitlines()[0]}); see --data-path")
    images = torch.as_tensor(found.data)
    if images.ndim == 3:
        images = images.unsqueeze(3).expand(-1, -1, -1, 3).contiguous()
    return images, torch.as_tensor(found.targets).long(), list(found.classes)


def _idx(path: Path, split: str, size: int) -> Pixels:
    """The files of MNIST's form, as they are or gzipped; Fashion-MNIST's names for the classes."""
    stem = {"train": "train", "val": "t10k"}[split]
    images, labels = (_idx_array(path, f"{stem}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    if labels.ndim != 1 or not len(labels) or images.shape != (len(labels), size, size):
        raise InputError(f"{path}: {split} images {images.shape}, labels {labels.shape}; wanted are (N, {size}, {size}) and (N,)")
    if labels.max() >= len(FASHION):
        raise InputError(f"{path}: {split} labels up to {labels.max()}; the classes are 0 to {len(FASHION) - 1}")
    images = torch.from_numpy(images).unsqueeze(3).expand(-1, -1, -1, 3).contiguous()
    return images, torch.from_numpy(labels).long(), FASHION


def _idx_array(path: Path, name: str) -> np.ndarray:
    place = next((place for place in (path / name, path / f"{name}.gz") if place.is_file()), None)
    if place is None:
        raise InputError(f"{path / name}: no such file, nor with .gz")
    try:
        content = gzip.decompress(place.read_bytes()) if place.suffix == ".gz" else place.read_bytes()
        if content[:3] != b"\0\0\x08":
            raise ValueError("its numbers are not unsigned bytes")
        dimensions = content[3]
        shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()
    except (OSError, EOFError, zlib.error, struct.error, IndexError, ValueError) as error:
        raise InputError(f"{place}: damaged, or not an idx file ({error})")


def _folder(folder: Path) -> tuple[Iterator[bytes], list[str], list[int], list[str]]:
    classes = sorted(place.name for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
    names, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(file for file in (folder / name).rglob("*") if _is_image(file.name) and file.is_file())
        if not found:
            raise InputError(f"{folder / name}: no images in it")
        names += [str(file.relative_to(folder)) for file in found]
        labels += [label] * len(found)
    return map(_content, (folder / name for name in names)), names, labels, classes


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})")


def _is_image(name: str) -> bool:
    """Whether a file counts as an image by its name; what macOS adds to archives and folders does not."""
    return name.lower().endswith(IMG_EXTENSIONS) and not name.startswith("._")


def _archive(path: Path, split: str, size: int) -> Pixels:
    """A split of the ZIP form: entries train/<class>/<image>; labels by class name, or by the map beside the archive."""
    place = path / f"{split}.zip"
    try:
        with zipfile.ZipFile(place) as archive:
            entries = [entry for entry in archive.namelist() if _is_image(entry.split("/")[-1]) and "__MACOSX" not in entry]
            if not entries:
                raise InputError(f"{place}: no images in it")
            names = _without_split(entries, split)
            of_map = _read_map(path, split)
            of_names = [name.split("/")[0] if "/" in name else None for name in names]
            if of_map is None and None in of_names:
                raise InputError(
                    f"{place}: {names[of_names.index(None)]} lies in no class folder, and no {split}_map.txt names it"
                )
            if of_map is None:
                classes = sorted(set(of_names))
                odd = {"", ".", ".."} & {part for name in names for part in name.split("/")}
                deep = any(name.startswith(f"{split}/") and name.count("/") > 1 for name in names)  # not in all, or twice
                if odd or deep or len(classes) < 2:
                    raise InputError(f"{place}: entries are {split}/<class>/<image>, of two classes or more; not {entries[:1]}")
                labels = [classes.index(name) for name in of_names]
            else:
                absent = [name for name in names if name not in of_map and name.split("/")[-1] not in of_map]
                if absent:
                    raise InputError(f"{path / f'{split}_map.txt'}: has no line for {absent[0]}, which {place.name} holds")
                labels = [of_map.get(name, of_map.get(name.split("/")[-1])) for name in names]
                classes = _classes_of_map(path, split)
                if max(labels) >= len(classes):
                    raise InputError(f"{path}: a label {max(labels)}, but the maps name {len(classes)} classes")
            return _decode((archive.read(entry) for entry in entries), names, labels, classes, size, str(place))
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{place}: damaged, or not an archive that can be read ({str(error)[:120]})")


def _without_split(names: list[str], split: str) -> list[str]:
    """File names without the folder `split` that all of them lie in; a class may have its name, as CIFAR-100's train has."""
    return [name.removeprefix(f"{split}/") for name in names] if all(name.startswith(f"{split}/") for name in names) else names


def _read_map(path: Path, split: str) -> dict[str, int] | None:
    """<file> -> label from the lines `<file> TAB <label>` of a map, the split's name before the file left out."""
    place = path / f"{split}_map.txt"
    if not place.is_file():
        return None
    labels: dict[str, int] = {}
    for number, line in enumerate(place.read_text("utf-8-sig", errors="replace").splitlines(), 1):
        name, tab, label = line.partition("\t")
        label = label.strip()
        if not tab or not (label.isascii() and label.isdigit() and len(label) < 8):
            raise InputError(f"{place}, line {number}: not '<file> TAB <label>'")
        if labels.setdefault(name, int(label)) != int(label):
            raise InputError(f"{place}, line {number}: a second label for {name}")
    return dict(zip(_without_split(list(labels), split), labels.values()))


def _classes_of_map(path: Path, split: str) -> list[str]:
    """Class names in label order, from the map that has class folders: this split's, or the training one's."""
    for place in (split, "train"):
        lines = (_read_map(path, place) or {}).items()
        pairs = {(label, name.split("/")[0]) for name, label in lines if "/" in name}
        named = dict(pairs)
        if len({name for _, name in pairs}) == len(pairs) == len(named) and sorted(named) == list(range(len(named))) and named:
            return [named[label] for label in range(len(named))]
    raise InputError(f"{path / f'{split}_map.txt'}: does not give each label from 0 on one class folder, nor does train_map.txt")


def _decode(contents: Iterator[bytes], names: list[str], labels: list[int], classes: list[str], size: int, where: str) -> Pixels:
    if not names:
        raise InputError(f"{where}: no images in it")
    images = np.empty((len(names), size, size, 3), np.uint8)
    show = None if distributed.is_main() else True
    for row, (content, name) in enumerate(
        zip(tqdm(contents, f"reading {where}", len(names), unit=" images", leave=False, disable=show, delay=2), names)
    ):
        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.size != (size, size):
                    raise InputError(f"{where}: {name} has {image.width}x{image.height} pixels, not {size}x{size}")
                if image.mode.startswith(("I", "F")):
                    raise InputError(f"{where}: {name} has more than 8 bits a channel")
                images[row] = np.asarray(image.convert("RGB"))
        except InputError:
            raise
        except Exception:  # a damaged image can fail in many ways
            raise InputError(f"{where}: {name} does not decode as an image; replace or remove it")
    return torch.from_numpy(images), torch.tensor(labels), classes
