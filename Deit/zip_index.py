"""The index of a ZIP archive: places, sizes and labels of its images as arrays, in an image folder's order.

It lies beside the archive (.train.zip.index), made at the first opening and renewed when the archive or a map changes, so that a
million entries are opened in a moment and no process holds a list of them.
"""

import json
import os
import zlib
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from errors import InputError
from zip_archive import CHUNK, PREPARE, RECORD, as_text, how_to_remake, read_directory, read_map

INDEX_VERSION = 1


def open_index(root: Path, split: str) -> tuple[dict, np.ndarray]:
    """Header and records (N,) of the archive's index: the one on the disk where it is whole and of these files, else made anew.

    Raises InputError for an archive or map that is missing, damaged or contradictory.
    """
    archive, map_file = root / f"{split}.zip", root / f"{split}_map.txt"
    if not archive.is_file():
        if map_file.exists():
            raise InputError(f"{archive}: no such archive, though {map_file.name} is there; {PREPARE.format(root=root)} makes it")
        raise InputError(f"{archive}: no such archive; {PREPARE.format(root=root)} makes it from an image folder")
    # Flat validation entries get their class names from the training map, so its changes count too.
    maps = sorted({map_file, root / "train_map.txt"})
    try:
        stat = {"archive": file_stat(archive), "maps": [file_stat(path) if path.exists() else None for path in maps]}
    except OSError as error:
        raise InputError(f"{archive}: cannot be read ({error.strerror})")
    index = index_path(archive)
    header = _read_header(index)
    if header and {key: header[key] for key in stat} == stat and _checksum(index, header) == header["crc"]:
        return header, map_records(index, header)

    try:
        classes, notes, records = build(root, split)
    except OSError as error:
        raise InputError(f"{error.filename or archive}: cannot be read ({error.strerror or error})")
    header = {"version": INDEX_VERSION, **stat, "classes": classes, "notes": notes, "entries": len(records)}
    header |= {"crc": zlib.crc32(records), "saved": True}
    try:
        _write_index(index, header, records)
    except OSError:  # a folder that cannot be written: this process keeps the records to itself
        header["saved"] = False
        return header, records
    return header, map_records(index, header)


def index_path(archive: Path) -> Path:
    return archive.with_name(f".{archive.name}.index")


def file_stat(file: Path | int) -> list[int]:
    status = os.stat(file)
    return [status.st_size, status.st_mtime_ns]


def _write_index(path: Path, header: dict, records: np.ndarray) -> None:
    """One line of JSON, then the records as they lie in memory; written aside and renamed, so that it is whole or not there."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(json.dumps(header).encode() + b"\n")
            file.write(records)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _read_header(path: Path) -> dict | None:
    """The header of an index of this version and of the size it states; None for anything else."""
    try:
        with open(path, "rb") as file:
            header = json.loads(file.readline(1 << 26))
            right = header["version"] == INDEX_VERSION
            whole = os.fstat(file.fileno()).st_size == file.tell() + header["entries"] * RECORD.itemsize
        return header if right and whole and {"archive", "maps", "classes", "notes", "crc", "saved"} <= header.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _checksum(path: Path, header: dict) -> int:
    with open(path, "rb") as file:  # read rather than mapped: pages that nobody needs yet stay out of this process
        file.readline()
        crc = 0
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def map_records(path: Path, header: dict) -> np.ndarray:
    """The records as a read-only mapping. Raises InputError if the index is no longer the one that has this header."""
    if _read_header(path) != header:
        raise InputError(f"{path}: the index has gone or changed while it was in use; start the run again")
    with open(path, "rb") as file:
        start = len(file.readline())
    # A plain array over the mapping: indexing numpy's memmap class takes several times longer.
    return np.asarray(np.memmap(path, RECORD, mode="r", offset=start, shape=(header["entries"],)))


def build(root: Path, split: str) -> tuple[list[str], list[str], np.ndarray]:
    """Read archive and map: class names in label order, notes, and records (N,) sorted by class name, folder and file name."""
    archive, map_file = root / f"{split}.zip", root / f"{split}_map.txt"
    records, folder, tails, folders, skipped = read_directory(archive)
    if not len(records):
        raise InputError(f"{archive}: holds no images ({', '.join(IMG_EXTENSIONS)}), {skipped} other entries")
    notes = [f"{archive}: {skipped} entries are no images and are left out"] if skipped else []
    folders = _without_prefix(folders, split, archive)
    holding = {folders[index] for index in np.unique(folder)}
    if empty := {name.split(b"/")[0] for name in folders if name} - {name.split(b"/")[0] for name in holding}:
        raise InputError(f"{archive}: no image in the class folder {as_text(min(empty))}; remove the folder or add its images")
    if not map_file.exists():
        if b"" in holding:
            raise InputError(
                f"{archive}: its images lie in no class folders and {map_file.name} is missing; "
                f"{PREPARE.format(root=root)} --maps-only writes it"
            )
        names, ids = _class_ids(folders, folder)
        order = np.lexsort((tails, _rank(folders)[folder]))
        records["label"] = ids
        return [as_text(name) for name in names], notes, records[order]

    labels, map_folder, map_tails, map_folders = read_map(map_file)
    map_folders = _without_prefix(map_folders, split, map_file)
    flat, map_flat = holding == {b""}, map_folders == [b""]
    if (b"" in holding and not flat) or (b"" in map_folders and not map_flat):
        raise InputError(f"{archive if not flat else map_file}: some images lie in class folders, others in none")
    # Where only one of the two knows class folders, file names alone have to do, and the other's order is followed.
    by_name = flat or map_flat
    order, map_order = _matched(archive, map_file, (folders, folder, tails), (map_folders, map_folder, map_tails), by_name)
    del map_tails  # and one array at a time below: each takes tens of MB for ImageNet
    records = records[order]
    tails = tails[order]
    folder, labels, map_folder = folder[order], labels[map_order], map_folder[map_order]
    if flat and map_flat:
        classes = _classes_from_training_map(root, split, labels)
        rank = np.argsort(np.argsort([name.encode() for name in classes]))[labels]
    else:
        folders, folder = (map_folders, map_folder) if flat else (folders, folder)
        names, ids = _class_ids(folders, folder)
        classes = _classes_by_label(names, ids, labels, map_file)
        rank = _rank(folders)[folder]
    if classes != sorted(classes):
        notes.append(f"{map_file}: its labels are not in sorted class order; they are followed, by class name")
    records["label"] = labels
    return classes, notes, records[np.lexsort((tails, rank))]


def _without_prefix(folders: list[bytes], split: str, where: Path) -> list[bytes]:
    """Folder paths without the `train/` or `val/` that `zip -r` puts before all of them; before some only is an error.

    A class may have that name, as CIFAR-100's `train`: then no class folder lies in it.
    """
    prefixed = [name == split.encode() or name.startswith(split.encode() + b"/") for name in folders]
    if any(name.startswith(split.encode() + b"/") for name in folders) and not all(prefixed):
        odd = folders[prefixed.index(False)]
        raise InputError(
            f"{where}: some paths begin with {split}/ and others do not, such as those in {as_text(odd) or 'no folder'}"
        )
    return [name[len(split) + 1 :] for name in folders] if all(prefixed) else folders


def _class_ids(folders: list[bytes], folder: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """Sorted class names, the first parts of the folder paths, and the place in them of each image's class (N,)."""
    names = sorted({folders[index].split(b"/")[0] for index in np.unique(folder)})
    place = {name: index for index, name in enumerate(names)}
    return names, np.array([place.get(path.split(b"/")[0], -1) for path in folders], dtype=np.int32)[folder]


def _rank(folders: list[bytes]) -> np.ndarray:
    """The place of each folder in ImageFolder's walk: by class name, then by the path below."""
    order = sorted(range(len(folders)), key=lambda index: (folders[index].split(b"/")[0], folders[index]))
    rank = np.empty(len(folders), dtype=np.int32)
    rank[order] = np.arange(len(folders))
    return rank


def _matched(archive: Path, map_file: Path, ours: tuple, theirs: tuple, by_name: bool) -> tuple[np.ndarray, np.ndarray]:
    """Orders (N,), (N,) that bring archive and map to the same sequence of paths, or of file names alone.

    Raises InputError for paths that are twice in one of them, and for those in one that the other lacks.
    """
    known = {name: index for index, name in enumerate(sorted({*ours[0], *theirs[0]}))}
    keys, orders = [], []
    for where, (folders, folder, tails) in ((archive, ours), (map_file, theirs)):
        number = np.zeros(len(folder), np.int32) if by_name else np.array([known[name] for name in folders], np.int32)[folder]
        order = np.lexsort((tails, number))
        for part in _parts(len(order), overlap=1):
            n, t = number[order[part]], tails[order[part]]
            twice = np.flatnonzero((n[1:] == n[:-1]) & (t[1:] == t[:-1]))
            if len(twice):
                raise InputError(f"{where}: {as_text(t[twice[0]])} is there more than once; an image has one entry and one label")
        keys.append((number, tails))
        orders.append(order)
    if len(orders[0]) != len(orders[1]) or not all(
        np.array_equal(a[orders[0][part]], b[orders[1][part]]) for part in _parts(len(orders[0])) for a, b in zip(*keys)
    ):
        names = sorted(known)
        ours, theirs = (set(zip(number.tolist(), tails.tolist())) for number, tails in keys)
        lacks = []
        for only, text in (
            (theirs - ours, "in the map but not in the archive"),
            (ours - theirs, "in the archive but not in the map"),
        ):
            first = ", ".join(as_text(t if by_name or not names[n] else names[n] + b"/" + t) for n, t in sorted(only)[:3])
            lacks += [f"{len(only)} {text} ({first}{', ...' if len(only) > 3 else ''})"] * bool(only)
        raise InputError(f"{archive} and {map_file.name} differ: {'; '.join(lacks)}; {how_to_remake(map_file)}")
    return orders[0], orders[1]


def _parts(length: int, overlap: int = 0) -> list[slice]:
    """Slices that cover a long array: comparing part by part keeps a million paths from being copied."""
    return [slice(start, start + (1 << 16) + overlap) for start in range(0, length, 1 << 16)]


def _classes_by_label(names: list[bytes], ids: np.ndarray, labels: np.ndarray, map_file: Path) -> list[str]:
    """Class names in label order. Raises InputError unless each class has one label of 0 ... K-1 and each label one class."""
    beyond = np.flatnonzero(labels >= len(names))
    if len(beyond):
        name = as_text(names[ids[beyond[0]]])
        raise InputError(
            f"{map_file}: label {labels[beyond[0]]} of {name} is out of range: {len(names)} classes, 0 to {len(names) - 1}"
        )
    label = np.zeros(len(names), dtype=np.int64)
    label[ids] = labels
    mixed = np.flatnonzero(label[ids] != labels)
    if len(mixed):
        this, name = labels[mixed[0]], as_text(names[ids[mixed[0]]])
        raise InputError(
            f"{map_file}: the class folder {name} has the labels {this} and {label[ids[mixed[0]]]}; {how_to_remake(map_file)}"
        )
    by_label = np.argsort(label, kind="stable")
    twice = np.flatnonzero(np.diff(label[by_label]) == 0)
    if len(twice):
        a, b = (as_text(names[by_label[twice[0] + step]]) for step in (0, 1))
        raise InputError(f"{map_file}: label {label[by_label[twice[0]]]} is both {a} and {b}; {how_to_remake(map_file)}")
    return [as_text(names[index]) for index in by_label]


def _classes_from_training_map(root: Path, split: str, labels: np.ndarray) -> list[str]:
    """Class names in label order for images that lie in no class folders, from the relation that the training map holds."""
    path = root / "train_map.txt"
    if split == "train" or not path.exists():
        raise InputError(
            f"{root / f'{split}_map.txt'}: holds labels but no class names, which train_map.txt (<class>/<file>, label) "
            f"would give; {PREPARE.format(root=root)} --maps-only writes it"
        )
    train_labels, folder, _, folders = read_map(path)
    folders = _without_prefix(folders, "train", path)
    if b"" in folders:
        raise InputError(f"{path}: a line without class folder; its lines are <class>/<file>, a tab, and the label")
    classes = _classes_by_label(*_class_ids(folders, folder), train_labels, path)
    if labels.max() >= len(classes):
        raise InputError(
            f"{root / f'{split}_map.txt'}: label {labels.max()} is out of range: {path.name} has {len(classes)} classes"
        )
    return classes
