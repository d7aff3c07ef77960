"""Image folders: <class>/<anything>/<image>, in the order of torchvision's ImageFolder."""

import os
from pathlib import Path

from common.errors import InputError

from images.archives import ENDINGS
from images.image_set import Images


def open_folder(folder: Path) -> Images:
    """The images of a folder of class folders. Other files are left out, with a note. Raises InputError."""
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    names, labels, left_out = [], [], [entry.name for entry in os.scandir(folder) if not entry.is_dir()]
    if not classes and any(name.lower().endswith(ENDINGS) for name in left_out):
        raise InputError(f"{folder}: its images lie in no class folders, so they have no labels; <class>/<image> is needed")
    for label, name in enumerate(classes):
        for path, _, files in sorted(os.walk(folder / name, onerror=_refuse, followlinks=True)):
            paths = [os.path.relpath(os.path.join(path, file), folder) for file in sorted(files)]
            left_out += [path for path in paths if not path.lower().endswith(ENDINGS)]
            names += [path for path in paths if path.lower().endswith(ENDINGS)]
        labels += [label] * (len(names) - len(labels))
        if not labels or labels[-1] != label:
            raise InputError(f"{folder}: no image in the class folder {name}; remove the folder or add its images")
    return Images(folder, names, labels, classes, FromFolder(folder), left_out)


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read ({error.strerror})")


class FromFolder:
    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, index: int, name: str) -> str:
        return os.path.join(self.folder, name)
