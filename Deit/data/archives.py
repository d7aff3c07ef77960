"""Reading an image folder that is stored as a ZIP archive, by the same rules in the whole repository.

    archive = Path("data/ImageNet/val.zip")               # labelled by val_map.txt next to it, if there is one
    contents = read_archive(archive, "val")
    contents.names[0], contents.records["label"][0], contents.classes, contents.notes
    with open(archive, "rb") as file:
        data = read_image(lambda offset, length: os.pread(file.fileno(), length, offset), contents.records[0])

The images are in the order of torchvision's ImageFolder on the unpacked folder. read_archive reports every error as ArchiveError
with a one-line message. This file is the same in each folder that reads archives; it needs NumPy and the standard library.
"""

import struct
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # as in torchvision
LARGEST = 1 << 30  # bytes of one image
LONGEST = 255  # characters of one path
PREPARE = "python data/imagenet/prepare.py --root {root}"
# Offset of the entry's local header, bytes in the archive, bytes of the image, their CRC-32, the name's CRC-32, label, method.
RECORD = np.dtype(
    [("offset", "<i8"), *((key, "<u4") for key in ("packed", "size", "crc", "name")), ("label", "<i4"), ("method", "u1")]
)
HEADER = struct.Struct(
    "<4s2x2H4x3I2H"
)  # local header of an entry: signature, flags, method, CRC-32, packed, size, length of name and extra field


class ArchiveError(ValueError):
    """Says in one line what is wrong, where, and what to do."""


class Contents(NamedTuple):
    """The images of an archive, N of them in ImageFolder's order."""

    names: list[str]  # N paths inside the archive, without the prefix `train/` or `val/`
    records: np.ndarray  # (N,) RECORD
    classes: list[str] | None  # class names in label order; None if neither class folders nor train_map.txt name them
    notes: list[str]  # lines to show the user


def read_archive(archive: Path, split: str) -> Contents:
    """Read the directory of an archive, and the labels from its map file or, without one, from the sorted class folders.

    Paths may begin with the name of the split ("train", "val"). Raises ArchiveError for an archive or map that is missing,
    damaged, or inconsistent, and for entries that are encrypted or use an unsupported compression method.
    """
    map_file, prepare = archive.with_name(f"{archive.stem}_map.txt"), PREPARE.format(root=archive.parent)
    if not archive.is_file():
        beside = f", though {map_file.name} is there" if map_file.exists() else ""
        raise ArchiveError(f"{archive}: no such archive{beside}; {prepare} makes it from an image folder")
    names, records, left_out = read_directory(archive, split)
    notes = [f"{archive}: {left_out} entries are not images and are ignored"] if left_out else []
    flat = "/" not in names[0]
    if not map_file.exists():
        if flat:
            reason = f"are in no class folders and {map_file.name} is missing; {prepare} --maps-only writes it"
            raise ArchiveError(f"{archive}: its images {reason}")
        classes = sorted({name.partition("/")[0] for name in names})
        label = {name: number for number, name in enumerate(classes)}
        records["label"] = [label[name.partition("/")[0]] for name in names]
        return Contents(names, records, classes, notes)

    paths, labels = read_map(map_file, split)
    rows = _matching_rows(archive, names, map_file, paths)
    records["label"] = labels = labels[rows]
    if not flat or "/" in paths[0]:
        paths = [paths[row] for row in rows] if flat else names
        classes = _classes_by_label(paths, labels, map_file)
    else:
        classes = _classes_of_training_map(map_file, labels)
        paths = names if classes is None else [f"{classes[label]}/{name}" for label, name in zip(labels, names, strict=True)]
    if flat:
        order = folder_order(paths)
        names, records = [names[row] for row in order], records[order]
    if classes and classes != sorted(classes):
        notes.append(f"{map_file}: its labels are not in sorted class order; the classes keep the map's order")
    return Contents(names, records, classes, notes)


def read_directory(archive: Path, split: str) -> tuple[list[str], np.ndarray, int]:
    """Names and records (N,), without labels, of the images in ImageFolder's order, and the number of other files omitted."""
    try:
        with zipfile.ZipFile(archive) as file:
            entries, end = file.infolist()[::-1], file.start_dir
            # zipfile reads all entries that exist, whatever number the end record states (modulo 65,536 in old archives).
            stated = zipfile._EndRecData(file.fp)[zipfile._ECD_ENTRIES_TOTAL]
        del file  # it also references all entries
        if (stated - len(entries)) % 65536:
            raise ValueError(f"{stated:,} entries are stated, {len(entries):,} are there")
    except OSError as error:
        raise ArchiveError(f"{archive}: cannot be read ({error.strerror or error})")
    except Exception as error:  # a damaged directory can fail in many ways
        raise ArchiveError(f"{archive}: truncated or damaged, or not a ZIP archive ({error}); copy or make it again")
    names, folders, left_out, records = [], [], 0, np.zeros(len(entries), RECORD)
    while entries:
        entry = entries.pop()  # freed as soon as it is read: the entries of ImageNet take 600 MB
        name = _name(entry)
        check_path(name, archive)
        if is_image(name):
            records[len(names)] = _record(name, entry, end, archive)
            names.append(name)
        elif not name.endswith("/"):
            left_out += 1
        elif not is_hidden(name):
            folders.append(name)
    if not names:
        raise ArchiveError(f"{archive}: holds no images ({', '.join(ENDINGS)}), {left_out} other entries")
    paths = _inside_split(names + folders, split, archive)
    names, folders = paths[: len(names)], paths[len(names) :]
    _check_unique(names, archive)
    if empty := {folder.split("/")[0] for folder in folders if folder} - {name.split("/")[0] for name in names}:
        raise ArchiveError(f"{archive}: no image in the class folder {min(empty)}; remove the folder or add its images")
    order = folder_order(names)
    return [names[row] for row in order], records[order], left_out


def read_map(path: Path, split: str) -> tuple[list[str], np.ndarray]:
    """Paths without the name of the split, and labels (N,) int64, from a map file with lines <path>, a tab, <label>."""
    paths, labels = [], []
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                name, tab, label = line.rstrip("\n").rpartition("\t")
                if not (tab or label):  # an empty line
                    continue
                if not tab:
                    raise ArchiveError(f"{path}, line {number}: no tab; a line is <path>, a tab, and the label")
                if not (label.isascii() and label.isdigit()):
                    raise ArchiveError(f"{path}, line {number}: the label {label[:60]!r} is not an integer of 0 or more")
                if len(label) > 9:
                    raise ArchiveError(f"{path}, line {number}: the label {label[:20]} is out of range")
                check_path(name, f"{path}, line {number}")
                paths.append(name)
                labels.append(int(label))
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read ({error.strerror})")
    except UnicodeDecodeError:
        raise ArchiveError(f"{path}: is not in UTF-8; save it as such, or {_how_to_remake(path)}")
    if not paths:
        raise ArchiveError(f"{path}: is empty; {_how_to_remake(path)}")
    return _inside_split(paths, split, path), np.array(labels)


def read_image(fetch: Callable[[int, int], bytes | memoryview], record: np.void) -> bytes | memoryview:
    """The bytes of one image. fetch(offset, length) returns the archive's bytes from offset on, fewer at its end.

    Raises ValueError, with a reason that names neither archive nor image, if they differ from what the directory states.
    """
    offset, packed, size, crc, name, _, method = record.item()
    header = fetch(offset, HEADER.size)
    if header[:4] != b"PK\3\4" or len(header) < HEADER.size:
        raise ValueError("no entry at the offset that the directory states")
    _, flags, *stated, name_length, extra_length = HEADER.unpack(header)
    data = memoryview(fetch(offset + HEADER.size, name_length + extra_length + packed))
    # With flag 8, CRC-32 and sizes follow the data; 0xFFFFFFFF means that they are in the extra field.
    wanted = [method, crc, packed, size][: 1 if flags & 8 else 4]
    if zlib.crc32(data[:name_length]) != name or any(a not in (b, 0xFFFFFFFF) for a, b in zip(stated, wanted, strict=False)):
        raise ValueError("not the name, size and checksum that the directory states")
    data = data[name_length + extra_length :]
    if method:
        try:
            data = zlib.decompressobj(-15).decompress(data, size + 1)  # one byte more, to detect data longer than stated
        except zlib.error as error:
            raise ValueError(str(error))
    if len(data) != size or zlib.crc32(data) != crc:
        raise ValueError("not the size and checksum that the directory states")
    return data


def folder_order(paths: list[str]) -> list[int]:
    """The indices of paths in ImageFolder's order: by class, then by folder within the class, then by file name."""
    rows = defaultdict(list)
    for row, path in enumerate(paths):
        rows[path.rpartition("/")[0]].append(row)
    folders = sorted(rows, key=lambda folder: (folder.split("/")[0], folder))
    return [row for folder in folders for row in sorted(rows[folder], key=paths.__getitem__)]


def is_image(path: str) -> bool:
    """Whether a file counts as an image: by its ending, and if neither it nor a folder that contains it is hidden."""
    return path.lower().endswith(ENDINGS) and not is_hidden(path)


def is_hidden(path: str) -> bool:
    """Whether a part of the path begins with a dot or is __MACOSX, which macOS adds to archives."""
    return "/." in f"/{path}" or "/__MACOSX/" in f"/{path}"


def _name(entry: zipfile.ZipInfo) -> str:
    """The name, decoded from UTF-8 even if undeclared: `zip` omits the flag, and zipfile then decodes as code page 437."""
    name = entry.orig_filename  # entry.filename ends at a zero byte
    try:
        return name if name.isascii() or entry.flag_bits & 0x800 else name.encode("cp437").decode()
    except UnicodeError:
        return name


def check_path(name: str, where: object) -> None:
    """Raise ArchiveError for a path that is not allowed in an archive or map."""
    outside = name[:1] in ("/", "\\", "") or (".." in name and ".." in name.replace("\\", "/").split("/"))
    if outside or "\0" in name or "\n" in name or "\r" in name:
        raise ArchiveError(f"{where}: {name!r} is not a path inside the archive; nothing was read")
    if len(name) > LONGEST:
        raise ArchiveError(f"{where}: a path of {len(name)} characters, more than {LONGEST}: {name[:60]}...")


def _record(name: str, entry: zipfile.ZipInfo, end: int, archive: Path) -> tuple:
    offset, packed, size, method = entry.header_offset, entry.compress_size, entry.file_size, entry.compress_type
    raw = entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
    if entry.flag_bits & 0x2041:
        raise ArchiveError(f"{archive}: {name} is encrypted; make the archive without a password")
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(f"{archive}: {name} is compressed by method {method}; only stored and deflated entries are read")
    if max(packed, size) > LARGEST:
        raise ArchiveError(f"{archive}: {name} claims to be an image of {max(packed, size) / 1e9:.1f} GB")
    if offset < 0 or offset + 30 + packed > end or (method == zipfile.ZIP_STORED and packed != size):
        raise ArchiveError(f"{archive}: {name} does not lie inside the archive: damaged; copy or make it again")
    return offset, packed, size, entry.CRC, zlib.crc32(raw), 0, method


def _inside_split(paths: list[str], split: str, where: Path) -> list[str]:
    """Paths without the prefix `train/` or `val/` of `zip -r`. Raises ArchiveError if only some are in class folders.

    A class may have the split's name (CIFAR-100 has a class `train`); it then contains no class folders.
    """
    prefix = f"{split}/"
    other = next((path for path in paths if not path.startswith(prefix)), None)
    if other is None:
        paths = [path[len(prefix) :] for path in paths]
    elif any(path.startswith(prefix) and "/" in path[len(prefix) :] for path in paths):
        outside = sum(not path.startswith(prefix) for path in paths)
        raise ArchiveError(f"{where}: some paths begin with {prefix} and others do not: {outside:,}, such as {other}")
    flat = next((path for path in paths if path and "/" not in path), None)
    if flat and any("/" in path for path in paths):
        raise ArchiveError(f"{where}: {flat} lies in no class folder, others do")
    return paths


def _check_unique(names: list[str], where: Path) -> None:
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise ArchiveError(f"{where}: {twice} is there more than once; an image has one entry and one label")


def _matching_rows(archive: Path, names: list[str], map_file: Path, paths: list[str]) -> list[int]:
    """The row of the map for each image, matched by path or, if only one of the two has class folders, by file name."""
    if ("/" in names[0]) != ("/" in paths[0]):
        names, paths = ([path.rpartition("/")[2] for path in both] for both in (names, paths))
        _check_unique(names, archive)
    row = {path: number for number, path in enumerate(paths)}
    if len(row) < len(paths):
        _check_unique(paths, map_file)
    rows = [row.get(name, -1) for name in names]
    if len(rows) == len(row) and min(rows) >= 0:
        return rows
    lacks = []
    only = {"the map but not in the archive": row.keys() - set(names), "the archive but not in the map": set(names) - row.keys()}
    for where, missing in only.items():
        first = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        lacks += [f"{len(missing)} in {where} ({first})"] * bool(missing)
    raise ArchiveError(f"{archive} and {map_file.name} differ: {'; '.join(lacks)}; {_how_to_remake(map_file)}")


def _classes_by_label(paths: list[str], labels: np.ndarray, map_file: Path) -> list[str]:
    """Class names in label order. Raises ArchiveError unless classes and the labels 0 ... K-1 correspond one to one."""
    pairs = sorted(set(zip((path.partition("/")[0] for path in paths), labels.tolist(), strict=True)))
    count, label_of, name_of = len({name for name, _ in pairs}), {}, {}
    for name, label in pairs:
        if label >= count:
            raise ArchiveError(f"{map_file}: label {label} of {name} is out of range: {count} classes, 0 to {count - 1}")
        if label_of.setdefault(name, label) != label:
            reason = f"the class folder {name} has the labels {label_of[name]} and {label}"
            raise ArchiveError(f"{map_file}: {reason}; {_how_to_remake(map_file)}")
    for name, label in pairs:
        if name_of.setdefault(label, name) != name:
            raise ArchiveError(f"{map_file}: label {label} is both {name_of[label]} and {name}; {_how_to_remake(map_file)}")
    return [name_of[label] for label in range(count)]


def _classes_of_training_map(map_file: Path, labels: np.ndarray) -> list[str] | None:
    """Class names in label order, from train_map.txt next to the map of flat validation images; None if there is none."""
    path = map_file.with_name("train_map.txt")
    if map_file == path or not path.exists():
        return None
    paths, train_labels = read_map(path, "train")
    if "/" not in paths[0]:
        raise ArchiveError(f"{path}: a line without class folder; its lines are <class>/<file>, a tab, and the label")
    classes = _classes_by_label(paths, train_labels, path)
    if labels.max() >= len(classes):
        raise ArchiveError(f"{map_file}: label {labels.max()} is out of range: {path.name} has {len(classes)} classes")
    return classes


def _how_to_remake(map_file: Path) -> str:
    return f"{PREPARE.format(root=map_file.parent)} --maps-only --overwrite rewrites the maps"
