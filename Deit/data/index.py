"""The index of a ZIP archive: offsets, sizes, checksums and labels of its images as one array, in ImageFolder's order.

It is stored next to the archive (.train.zip.index), created when the archive is first opened, and recreated when the archive or
a map changes. An archive with a million entries thus opens quickly, and no process keeps a list of their names.
"""

import json
import os
import zlib
from pathlib import Path

from errors import InputError

import numpy as np

import states
from data.archives import PREPARE, RECORD, ArchiveError, read_archive

VERSION = 3
CHUNK = 4 << 20  # bytes read at a time


def open_index(archive: Path, split: str) -> tuple[dict, np.ndarray]:
    """Header and records (N,) of the archive's index: from the disk if that index is intact and up to date, else a new one.

    Raises InputError for an archive or map that is missing, damaged or inconsistent.
    """
    # Flat validation entries get their class names from the training map, so changes of it matter too.
    maps = sorted({archive.with_name(f"{archive.stem}_map.txt"), archive.with_name("train_map.txt")})
    try:
        if not archive.is_file():
            read_archive(archive, split)  # raises ArchiveError
        files = {"archive": file_stat(archive), "maps": [file_stat(path) if path.exists() else None for path in maps]}
        index = index_path(archive)
        header = _read_header(index)
        if header and files.items() <= header.items() and _checksum(header, index) == header["crc"]:
            return header, map_records(index, header)
        names, records, classes, notes = read_archive(archive, split)
    except ArchiveError as error:
        raise InputError(error)
    except OSError as error:
        raise InputError(f"{archive}: cannot be read ({error.strerror or error})")
    del names
    if classes is None:
        raise InputError(
            f"{archive.with_name(f'{archive.stem}_map.txt')}: holds labels but no class names, which train_map.txt "
            f"(<class>/<file>, label) would give; {PREPARE.format(root=archive.parent)} --maps-only writes it"
        )
    header = {"version": VERSION, **files, "classes": classes, "notes": notes, "entries": len(records)}
    header["saved"] = True
    header["crc"] = zlib.crc32(records, _crc(header))
    try:
        states.write_whole(index, lambda file: (file.write(json.dumps(header).encode() + b"\n"), file.write(records)))
    except InputError:  # the folder is not writable: the records stay in this process
        header["saved"] = False
        return header, records
    return header, map_records(index, header)


def index_path(archive: Path) -> Path:
    return archive.with_name(f".{archive.name}.index")


def file_stat(file: Path | int) -> list[int]:
    status = os.stat(file)
    return [status.st_size, status.st_mtime_ns]


def map_records(path: Path, header: dict) -> np.ndarray:
    """The records, memory-mapped read-only. Raises InputError if the index on the disk no longer has this header."""
    if _read_header(path) != header:
        raise InputError(f"{path}: the index was removed or changed during the run; start the run again")
    with open(path, "rb") as file:
        start = len(file.readline())
    # A plain array over the mapping: indexing NumPy's memmap class is several times slower.
    return np.asarray(np.memmap(path, RECORD, mode="r", offset=start, shape=(header["entries"],)))


def _read_header(path: Path) -> dict | None:
    """The header of an index, if it has this version and the file has the stated size; otherwise None."""
    try:
        with open(path, "rb") as file:
            header = json.loads(file.readline(1 << 26))
            right = header["version"] == VERSION
            whole = os.fstat(file.fileno()).st_size == file.tell() + header["entries"] * RECORD.itemsize
        return header if right and whole and {"archive", "maps", "classes", "notes", "crc", "saved"} <= header.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _crc(header: dict) -> int:
    return zlib.crc32(json.dumps({key: value for key, value in header.items() if key != "crc"}).encode())


def _checksum(header: dict, path: Path) -> int:
    """The CRC-32 of header and records. Records are read, not mapped, which keeps their pages out of this process."""
    with open(path, "rb") as file:
        file.readline()
        crc = _crc(header)
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc
