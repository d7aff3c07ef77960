"""ZIP archives of image folders, by the rules of archives.py, which every reader in this repository follows."""

import io
import os
from pathlib import Path

from common.errors import InputError

import numpy as np

from images.archives import ArchiveError, read_archive, read_image
from images.image_set import Images


def open_archive(path: Path, split: str) -> Images:
    """The images of a ZIP archive, labelled by the map file next to it or by their class folders. Raises InputError."""
    try:
        contents = read_archive(path, split)
    except ArchiveError as error:
        raise InputError(str(error))
    reader = FromArchive(path, contents.records)
    images = Images(path, contents.names, contents.records["label"], contents.classes, reader)
    images.notes = contents.notes
    return images


class FromArchive:
    """Returns the bytes of an entry, checked. Each process opens the archive itself. records: see archives.py."""

    def __init__(self, path: Path, records: np.ndarray):
        self.path, self.records, self.file = path, records, None

    def __call__(self, index: int, name: str) -> io.BytesIO:
        try:
            if self.file is None or self.file[0] != os.getpid():
                self.file = os.getpid(), open(self.path, "rb")
            descriptor = self.file[1].fileno()
            return io.BytesIO(read_image(lambda offset, length: os.pread(descriptor, length, offset), self.records[index]))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: {name} is damaged ({error}); copy or make the archive again")

    def __getstate__(self) -> dict:
        return {**self.__dict__, "file": None}
