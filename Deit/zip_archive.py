"""What lies on the disk: the central directory of a ZIP archive, and map files, read into arrays a million entries long."""

import array
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from errors import InputError

PREPARE = "python data/imagenet/prepare.py --root {root}"
ENDINGS = tuple(ending.encode() for ending in IMG_EXTENSIONS)
# An entry of the index: where its local header starts, bytes in the archive, bytes of the image, its checksum, ...
RECORD = np.dtype([("offset", "<i8"), ("size", "<u4"), ("raw", "<u4"), ("crc", "<u4"), ("label", "<i4"), ("deflated", "u1")])
CHUNK = 4 << 20  # bytes read at a time
LONGEST_NAME = 255  # bytes of a path: all are sorted as an array as wide as the longest


class Names:
    """Paths as arrays while they are read: a number of its folder and a file name each, for there are few folders."""

    def __init__(self):
        self.folders, self.folder, self.tails, self.chunk = {}, [], [], ([], [])

    def add(self, path: bytes) -> None:
        head, _, tail = path.rpartition(b"/")
        self.chunk[0].append(self.folders.setdefault(head, len(self.folders)))
        self.chunk[1].append(tail)
        if len(self.chunk[0]) == 1 << 16:
            self.flush()

    def flush(self) -> None:
        self.folder.append(np.array(self.chunk[0], dtype=np.int32))
        self.tails.append(np.array(self.chunk[1], dtype=np.bytes_))
        self.chunk = ([], [])

    def arrays(self) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
        """Folder numbers (N,) int32, file names (N,) bytes, and the folders."""
        self.flush()
        return np.concatenate(self.folder), np.concatenate(self.tails), list(self.folders)


def read_map(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[bytes]]:
    """Labels (N,) int64 and paths of a map file, lines of <path> tab <label>, as labels, folder numbers, file names, folders.

    Raises InputError naming the first line that is not of this form.
    """
    names, labels = Names(), array.array("q")
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            line = line.rstrip(b"\r\n")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line:
                continue
            name, tab, label = line.rpartition(b"\t")
            where = f"{path}, line {number}"
            if not tab:
                raise InputError(f"{where}: no tab; a line is <path>, a tab, and the label")
            if not label.isdigit():
                raise InputError(f"{where}: the label {as_text(label)!r} is not an integer of 0 or more")
            if len(label) > 9:
                raise InputError(f"{where}: the label {as_text(label)[:20]} is out of range")
            check_path(name, where)
            names.add(name)
            labels.append(int(label))
    if not labels:
        raise InputError(f"{path}: is empty; {how_to_remake(path)}")
    return np.array(labels), *names.arrays()


def check_path(name: bytes, where: object) -> None:
    if name[:1] in (b"/", b"\\", b"") or (b".." in name and b".." in name.replace(b"\\", b"/").split(b"/")) or b"\0" in name:
        raise InputError(f"{where}: {as_text(name)!r} is not a path inside the archive; nothing of it is used")
    if len(name) > LONGEST_NAME:
        raise InputError(f"{where}: a path of {len(name)} bytes, more than {LONGEST_NAME}: {as_text(name[:60])}...")


def read_directory(archive: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[bytes], int]:
    """The images of a ZIP archive in the directory's order, and how many other entries were left out.

    Returns records (N,) without labels, folder numbers (N,), file names (N,), folders (also those without images), left out.
    Raises InputError for a truncated or damaged archive and for entries that are encrypted, outside, or packed in unusual ways.
    """
    with open(archive, "rb") as file:
        count, start, size = _find_directory(file, archive)
        records, names, skipped, used = np.zeros(count, RECORD), Names(), 0, 0
        rows = []
        for name, flags, method, crc, packed, raw, offset in _entries(file, archive, count, start, size):
            check_path(name, archive)
            parts = name.split(b"/")
            if any(part[:1] == b"." or part == b"__MACOSX" for part in parts):
                skipped += bool(parts[-1])
                continue
            if not parts[-1]:  # a folder
                names.folders.setdefault(name[:-1], len(names.folders))
                continue
            if not name.lower().endswith(ENDINGS):
                skipped += 1
                continue
            if flags & 0x2041:
                raise InputError(f"{archive}: {as_text(name)} is encrypted; make the archive without a password")
            if method not in (0, 8):
                raise InputError(f"{archive}: {as_text(name)} is compressed by method {method}; stored and deflated are read")
            if max(packed, raw) >= 1 << 32 or offset + 30 + packed > start or (method == 0 and packed != raw):
                raise InputError(f"{archive}: {as_text(name)} does not lie inside the archive: damaged; copy or make it again")
            names.add(name)
            rows.append((offset, packed, raw, crc, 0, method == 8))
            if len(rows) == 1 << 16:
                records[used : used + len(rows)] = rows
                used, rows = used + len(rows), []
        records[used : used + len(rows)] = rows
    used += len(rows)
    folder, tails, folders = names.arrays()
    return records[:used], folder, tails, folders, skipped


def _find_directory(file, archive: Path) -> tuple[int, int, int]:
    """Number of entries, start and size of the central directory, from the records at the archive's end."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 22 - 65535 - 20))
    tail = file.read()
    place = tail.rfind(b"PK\5\6")
    while place >= 0 and not (
        place + 22 <= len(tail) and place + 22 + struct.unpack_from("<H", tail, place + 20)[0] == len(tail)
    ):
        place = tail.rfind(b"PK\5\6", 0, place)  # the signature may also turn up in a comment
    if place < 0:
        raise InputError(f"{archive}: truncated, or not a ZIP archive (it has no directory at its end); copy or make it again")
    count, size, start = struct.unpack_from("<10xHII", tail, place)
    stop = end - len(tail) + place
    if place >= 20 and tail[place - 20 : place - 16] == b"PK\6\7":  # zip64: the numbers are too large for the record above
        (stop,) = struct.unpack_from("<Q", tail, place - 12)
        file.seek(stop)
        record = file.read(56)
        if len(record) < 56 or record[:4] != b"PK\6\6":
            raise InputError(f"{archive}: damaged (its zip64 directory is not where it says); copy or make it again")
        count, size, start = struct.unpack_from("<QQQ", record, 32)
    if start + size != stop or count * 46 > size:
        raise InputError(f"{archive}: truncated or damaged (its directory is not where it says); copy or make it again")
    return count, start, size


def _entries(file, archive: Path, count: int, start: int, size: int) -> Iterator[tuple]:
    """Name, flags, method, checksum, packed size, size and offset of each entry of the central directory."""
    file.seek(start)
    buffer, place, left = b"", 0, size
    header = struct.Struct("<4s4xHH4xIIIHHH8xI")
    for _ in tqdm(range(count), desc=f"index of {archive.name}", unit=" entries", delay=5, leave=False, disable=None):
        # A record is at most 46 + 3 x 65,535 bytes long.
        if len(buffer) - place < 1 << 18 and left:
            chunk = file.read(min(CHUNK, left))
            buffer, place, left = buffer[place:] + chunk, 0, left - len(chunk) if chunk else 0
        if len(buffer) - place < 46 or buffer[place : place + 4] != b"PK\1\2":
            raise InputError(f"{archive}: truncated or damaged (its directory breaks off); copy or make it again")
        _, flags, method, crc, packed, raw, name_length, extra, comment, offset = header.unpack_from(buffer, place)
        name = buffer[place + 46 : place + 46 + name_length]
        if 0xFFFFFFFF in (packed, raw, offset):
            wide = buffer[place + 46 + name_length : place + 46 + name_length + extra]
            packed, raw, offset = _wide(wide, packed, raw, offset)
        if not flags & 0x800 and not name.isascii():  # the format's old code page, unless it is UTF-8 all the same
            try:
                name.decode()
            except UnicodeDecodeError:
                name = name.decode("cp437").encode()
        yield name, flags, method, crc, packed, raw, offset
        place += 46 + name_length + extra + comment


def _wide(extra: bytes, packed: int, raw: int, offset: int) -> tuple[int, int, int]:
    """Sizes and offset with those of 0xFFFFFFFF replaced by 8-byte numbers of the zip64 extra field."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            numbers = iter(struct.unpack_from(f"<{min(length, len(extra) - 4) // 8}Q", extra, 4))
            raw, packed, offset = (next(numbers, value) if value == 0xFFFFFFFF else value for value in (raw, packed, offset))
            break
        extra = extra[4 + length :]
    return packed, raw, offset


def how_to_remake(map_file: Path) -> str:
    return f"{PREPARE.format(root=map_file.parent)} --maps-only --overwrite writes the maps anew"


def as_text(name: bytes) -> str:
    return bytes(name).decode("utf-8", "backslashreplace")
