"""The images of one split with their names and labels, read from class folders, from an archive, or from memory."""

import io
import os
from pathlib import Path

from errors import InputError, say

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from catalogue import LARGEST_IN_MEMORY
from data import archives
from data.image_mode import to_rgb
from data.visible_folder import VisibleFolder


class Folder(VisibleFolder):
    """torchvision's image folder without hidden files and folders. Folder(path)[i] -> (PIL image in RGB, label).

    Raises InputError if the folder, or a class folder in it, has no images.
    """

    def __init__(self, path: Path):
        if not path.is_dir():
            raise InputError(f"{path}: no such folder; an image folder holds train/<class>/<image> and val/<class>/<image>")
        try:
            super().__init__(path, load_rgb)
        except FileNotFoundError as error:
            raise InputError(f"{path}: {str(error).splitlines()[0]}")

    def name(self, index: int) -> str:
        return os.path.relpath(self.samples[index][0], self.root)

    def file(self, index: int) -> str:
        """What Pillow opens."""
        return self.samples[index][0]


class Archive(Dataset):
    """The same for a ZIP archive, by the rules of archives.py: Archive(path, "train")[i] -> (PIL image in RGB, label).

    Raises InputError for an archive that is missing or damaged, or that has no class names.
    """

    def __init__(self, path: Path, split: str):
        try:
            found = archives.read_archive(path, split)
        except archives.ArchiveError as error:
            raise InputError(str(error))
        if found.classes is None:
            map_file = path.with_name(f"{split}_map.txt")
            raise InputError(f"{map_file}: names no class folders, and there is no train_map.txt")
        for note in found.notes:
            say(f"note: {note}")
        self.root, self.names, self.records, self.classes = path, found.names, found.records, found.classes
        self.targets = found.records["label"].tolist()
        self.samples = list(enumerate(self.targets))
        self.descriptor, self.owner = None, None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        row, label = self.samples[index]
        try:
            return decoded(self._content(row)), label
        except Exception as error:  # a damaged image can fail in many ways
            raise InputError(f"{self.root}: {self.names[row]} does not decode as an image ({error}); make the archive again")

    def name(self, index: int) -> str:
        return self.names[self.samples[index][0]]

    def file(self, index: int) -> io.BytesIO:
        """What Pillow opens."""
        return self._content(self.samples[index][0])

    def _content(self, row: int) -> io.BytesIO:
        if self.owner != os.getpid():  # each loading process opens the file itself
            self.descriptor, self.owner = os.open(self.root, os.O_RDONLY), os.getpid()

        def fetch(offset: int, length: int) -> bytes:
            return os.pread(self.descriptor, length, offset)

        return io.BytesIO(archives.read_image(fetch, self.records[row]))


class Pictures(Dataset):
    """The same of images in memory: Pictures(images (N, H, W, 3) uint8, labels (N,), classes)[i] -> (PIL image in RGB, label)."""

    def __init__(self, images: Tensor, labels: Tensor, classes: list[str]):
        self.images, self.targets, self.classes = images.numpy(), labels.tolist(), classes
        self.samples = list(enumerate(self.targets))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        row, label = self.samples[index]
        return Image.fromarray(self.images[row]), label


def open_folder(path: Path, split: str) -> Folder | Archive:
    """The split of an image folder or, if there is only an archive of it, of that archive. Raises InputError."""
    archive = path / f"{split}.zip"
    return Archive(archive, split) if archive.is_file() and not (path / split).is_dir() else Folder(path / split)


def load_rgb(path: str) -> Image.Image:
    """Read an image file as RGB. Raises InputError naming the file if it does not decode."""
    try:
        return decoded(path)
    except Exception as error:  # a damaged image can fail in many ways
        raise InputError(f"{path}: does not decode as an image ({error}); replace or remove the file")


def decoded(file: str | io.BytesIO) -> Image.Image:
    with Image.open(file) as image:
        return to_rgb(image)


def common_size(path: Path, split: str = "train") -> int | None:
    """The side, 8 to 96 pixels, of the images of a split if all are squares of one size; else None.

    Files are opened until one differs, without decoding pixels. Raises InputError for a file that is not an image.
    """
    images = open_folder(path, split)
    side = None
    for index in range(len(images)):
        try:
            with Image.open(images.file(index)) as image:
                width, height = image.size
        except Exception as error:  # a damaged image can fail in many ways
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"{images.root}: {images.name(index)} does not decode as an image ({reason}); replace or remove it")
        side = side or width
        if not (width == height == side and 8 <= side <= LARGEST_IN_MEMORY):
            return None
    return side


def scale_and_shift(mean: list[float], std: list[float], device: str) -> tuple[Tensor, Tensor]:
    """Scale and shift, both (3, 1, 1), that normalise pixels x from 0 to 255 as x * scale + shift; mean and std: in [0, 1]."""
    scale = 1 / (255 * torch.tensor(std, device=device)).view(3, 1, 1)
    return scale, -torch.tensor(mean, device=device).view(3, 1, 1) * 255 * scale


def mean_and_deviation(sums: np.ndarray, squares: np.ndarray, count: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel in [0, 1], from sums and sums of squares (3,) of values from 0 to 255.

    Rounded to four decimals, as is usual. A channel without contrast gets a deviation of 1.
    """
    mean = sums / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return [round(x, 4) for x in (mean / 255).tolist()], [round(x, 4) or 1.0 for x in (deviation / 255).tolist()]
