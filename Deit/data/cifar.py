"""torchvision's CIFAR-10 and CIFAR-100, in memory."""

from collections.abc import Callable
from pathlib import Path

from errors import InputError

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, CIFAR100


class CifarImages(Dataset):
    """A split of CIFAR-10 or CIFAR-100 (`kind`), downloaded into `root` if it is not there.

    Labels are in the authors' order. torchvision verifies the files' checksums before it reads them.
    """

    def __init__(self, root: Path, split: str, kind: type[CIFAR10] | type[CIFAR100], transform: Callable | None = None):
        self.root, self.transform, self.notes = root / kind.base_folder, transform, []
        try:
            images = kind(root, train=split == "train", download=True)  # does nothing if all files are intact
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0][:120]
            raise InputError(f"{self.root}: {kind.__name__} is neither there nor can it be downloaded ({reason})")
        self.pixels, self.classes = images.data, list(images.classes)  # (N, 32, 32, 3) uint8
        self.labels = np.array(images.targets, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        image = Image.fromarray(self.pixels[index])
        return self.transform(image) if self.transform else image, int(self.labels[index])
