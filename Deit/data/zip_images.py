"""Images from ZIP archives, root/{train,val}.zip, in ImageFolder's order, memory-mapped: all processes share one copy.

Stored entries are slices of the mapping; deflated entries are inflated when they are read.
"""

import io
import mmap
import struct
from collections.abc import Callable
from pathlib import Path

from errors import InputError

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from data.archives import read_image
from data.image_mode import to_rgb
from data.index import CHUNK, file_stat, index_path, map_records, open_index


class ZipImages(Dataset):
    """The images of root/{split}.zip, labelled by root/{split}_map.txt or, without one, by sorted class folder names.

    ZipImages(root, "train")[i] -> (transform(image), label). Images are RGB, as from torchvision's loader, in the order of
    ImageFolder on the unpacked folder. `classes` are the class names in label order, `notes` are lines to show the user.
    """

    def __init__(self, root: Path, split: str, transform: Callable | None = None):
        self.root, self.transform = root / f"{split}.zip", transform
        self._archive = self._file = None
        self._header, self._records = open_index(self.root, split)
        self.classes, self.notes = list(self._header["classes"]), list(self._header["notes"])
        self.labels = self._records["label"].astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        data = self.read(index)
        try:
            image = _decode(data)
        except Exception as error:  # decoding a damaged file can fail in any way
            reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise InputError(f"{self.root}: {self.name(index)} does not decode as an image ({reason}); replace or remove it")
        return self.transform(image) if self.transform else image, int(self.labels[index])

    def read(self, index: int) -> memoryview | bytes:
        """The bytes of an image file: a slice of the mapping if the entry is stored, inflated if it is deflated.

        Raises InputError if they do not match the checksum in the archive.
        """
        self._open()
        try:
            return read_image(self._fetch, self._records[index])
        except ValueError as error:
            self._check_unchanged()
            raise InputError(f"{self.root}: {self.name(index)} is damaged ({error}); copy or make the archive again")

    def name(self, index: int) -> str:
        """The entry's path in the archive, from its local header: the index holds no names."""
        self._open()
        offset = int(self._records[index]["offset"])
        header = self._archive[offset : offset + 30]
        if header[:4] != b"PK\3\4" or len(header) < 30:
            return f"the entry at byte {offset:,}"
        (length,) = struct.unpack_from("<H", header, 26)
        return self._archive[offset + 30 : offset + 30 + length].decode("utf-8", "backslashreplace")

    def _fetch(self, offset: int, length: int) -> memoryview:
        return memoryview(self._archive)[offset : offset + length]

    def _open(self) -> None:
        """Map the archive once per process, and in a loading process the index too. Check that neither has changed."""
        if self._archive is None:
            try:
                self._file = open(self.root, "rb")
                self._check_unchanged()
                self._archive = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise InputError(f"{self.root}: cannot be read ({error.strerror})")
        self._check_unchanged()
        if self._records is None:
            self._records = map_records(index_path(self.root), self._header)

    def _check_unchanged(self) -> None:
        # Before every access: reading mapped pages of a truncated file would kill the process without a message.
        if file_stat(self._file.fileno()) != self._header["archive"]:
            raise InputError(f"{self.root}: the archive has changed while it was in use; start the run again")

    def __getstate__(self) -> dict:
        """For loading processes, which map archive and index themselves; only records of an unsaved index are sent to them."""
        state = {**self.__dict__, "_archive": None, "_file": None}
        if self._header["saved"]:
            state["_records"] = None
        return state


def _decode(data: memoryview | bytes) -> Image.Image:
    """Like torchvision's pil_loader, but without copying an image that is already RGB."""
    with Image.open(io.BytesIO(data)) as image:
        return to_rgb(image)


def warm(*archives: Path, show: bool = True) -> str | None:
    """Read archives once from end to end into the page cache, with a progress bar; to be called in one process per machine.

    If they are larger than the free memory, reads as much as fits and returns a one-line warning.
    """
    total, free = sum(path.stat().st_size for path in archives), available_memory()
    buffer, left = memoryview(bytearray(4 * CHUNK)), total if free is None else min(total, free)
    bar = {"unit": "B", "unit_scale": True, "leave": False, "dynamic_ncols": True, "disable": None if show else True}
    with tqdm(total=left, desc="reading archives", **bar) as bar:
        for path in archives:
            with open(path, "rb", buffering=0) as file:
                while left > 0 and (count := file.readinto(buffer)):
                    left -= count
                    bar.update(count)
    if free is not None and total > free:
        return (
            f"warning: the archives take {total / 1e9:.1f} GB, the free memory is {free / 1e9:.1f} GB: what does not fit is read "
            "from the disk again in each epoch. prepare.py --shorter-side 256 makes smaller ones"
        )
    return None


def available_memory() -> int | None:
    """Bytes available for the page cache, within the limit of this process's container; None if the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    try:
        return min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no limit
        return free
