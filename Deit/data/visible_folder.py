"""torchvision's image folder without hidden files and folders."""

import os
from collections.abc import Callable
from pathlib import Path

from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader, is_image_file


class VisibleFolder(ImageFolder):
    """ImageFolder without the hidden files of systems and editors: .DS_Store, ._1.jpg, .ipynb_checkpoints, __MACOSX.

    Archives are read without them too (archives.py), so that both have the same images in the same order. Raises
    FileNotFoundError if there is no class folder, or a class folder without images.
    """

    def __init__(self, root: Path, loader: Callable = default_loader):
        root = os.fspath(root)
        super().__init__(root, loader=loader, is_valid_file=lambda path: is_image_file(path) and not hidden(path[len(root) :]))

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        classes = [name for name in super().find_classes(directory)[0] if not hidden(name)]
        if not classes:
            raise FileNotFoundError(f"no class folder in {directory}")
        return classes, {name: label for label, name in enumerate(classes)}


def hidden(path: str) -> bool:
    """Whether a part of a path inside the image folder is hidden."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split(os.sep))
