"""An image folder as a data set."""

import os
from collections.abc import Callable
from pathlib import Path

from errors import InputError

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from data.image_mode import to_rgb
from data.visible_folder import VisibleFolder

LAYOUT = "an image folder holds train/<class>/<image> and val/<class>/<image>"


class FolderImages(Dataset):
    """An image folder as arrays of paths and labels, fast to send to loading processes: ImageNet's paths take 100 MB as an array.

    FolderImages(root / "train")[i] -> (transform(image), label), images as RGB. `classes` are the class names in label order,
    `notes` are lines to show the user.
    """

    def __init__(self, root: Path, transform: Callable | None = None):
        if not root.is_dir():
            raise InputError(f"{root}: no such folder; {LAYOUT}")
        try:
            folder = VisibleFolder(root)
        except OSError as error:
            raise InputError(f"{root}: {str(error).splitlines()[0]}; {LAYOUT}")
        self.root, self.classes, self.transform, self.notes = root, folder.classes, transform, []
        self.paths = np.array([os.fsencode(os.path.relpath(path, root)) for path, _ in folder.samples])
        self.labels = np.array(folder.targets, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        path = self.root / os.fsdecode(self.paths[index])
        try:
            with Image.open(path) as image:
                image = to_rgb(image)
        except Exception as error:  # a damaged image can fail in many ways
            raise InputError(f"{path}: does not decode as an image ({error}); replace or remove the file")
        return self.transform(image) if self.transform else image, int(self.labels[index])
