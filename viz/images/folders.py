"""Image folders: <class>/<anything>/<image>, in the order of torchvision's ImageFolder, without hidden files and folders."""

import os
from collections.abc import Iterator
from pathlib import Path

from common.errors import InputError

from images.archives import is_hidden, is_image
from images.image_set import Images


def open_folder(folder: Path) -> Images:
    """The images of a folder of class folders. Files that are not images are omitted, with a note. Raises InputError."""
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(f"{entry.name}/"))
    names, labels, left_out = [], [], [entry.name for entry in os.scandir(folder) if not entry.is_dir()]
    if not classes and any(is_image(name) for name in left_out):
        raise InputError(f"{folder}: its images are in no class folders, so they have no labels; <class>/<image> is needed")
    for label, name in enumerate(classes):
        for path, files in sorted(_walk(folder / name)):
            paths = [os.path.relpath(os.path.join(path, file), folder) for file in sorted(files)]
            left_out += [path for path in paths if not is_image(path)]
            names += [path for path in paths if is_image(path)]
        labels += [label] * (len(names) - len(labels))
        if not labels or labels[-1] != label:
            raise InputError(f"{folder}: no image in the class folder {name}; remove the folder or add its images")
    return Images(folder, names, labels, classes, FromFolder(folder), left_out)


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    seen = set()
    for path, _, files in os.walk(folder, onerror=_refuse, followlinks=True):
        if (real := os.path.realpath(path)) in seen:
            raise InputError(f"{path}: is a link to a folder that has been read already; remove it")
        seen.add(real)
        yield path, files


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read ({error.strerror})")


class FromFolder:
    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, index: int, name: str) -> str:
        path = os.path.join(self.folder, name)
        if not os.path.isfile(path):  # reading a named pipe would block
            raise InputError(f"{path}: no such file, or not an ordinary one")
        return path
