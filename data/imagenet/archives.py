"""Archives: an image folder or the official tars, stored into ZIP files; a killed run goes on from what is whole."""

import io
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from common import ENDINGS, PART, InputError, in_folder_order, is_hidden, is_image
from maps import devkit_labels, write_maps
from reencode import reencoded

FLUSH = 256 << 20  # bytes between writes to the disk itself, and half of what a resumed run reads again
# In the name of what is not whole yet, so that a run goes on with its own.
SETTINGS = (("shorter", "shorter_side"), ("max", "max_side"), ("q", "quality"))
DATE = 33  # of every entry: 1 January 1980, the format's first day


def write_archives(args, output: Path) -> None:
    """Write what is missing of {train,val}.zip, then the maps."""
    sizes = [f"{name}{getattr(args, key)}" for name, key in SETTINGS if getattr(args, key)]
    todo = [split for split in ("train", "val") if args.overwrite or not (output / f"{split}.zip").exists()]
    images = {split: source(args.root, split) for split in todo}  # both are looked for before hours of work begin
    for split in ("train", "val"):
        archive = output / f"{split}.zip"
        if split not in todo:
            print(f"{archive} is there already and kept; --overwrite replaces it")
            continue
        entries, read, left_out = images.pop(split)
        if left_out:
            print(f"{split}: {left_out} files are no images and are left out")
        part = archive.with_name(".".join([archive.name, *sizes, PART]))
        write_archive(part, archive, entries, read, args)
        for stale in output.glob(f"{archive.name}.*{PART}"):
            stale.unlink()
        print(f"{archive}: {len(entries):,} images, {archive.stat().st_size / 1e6:,.1f} MB")
    write_maps(output, args.overwrite, devkit=args.root)


def source(root: Path, split: str) -> tuple[list[tuple[str, object]], Callable[[object], bytes], int]:
    """The images of a split in an image folder's order, [(<class>/<file>, place)], a reader of places, and files left out."""
    folder, tar = root / split, root / f"ILSVRC2012_img_{split}.tar"
    if folder.is_dir():
        listed, left_out = list_folder(folder)
        read = read_file
    elif tar.is_file():
        file = open(tar, "rb")  # stays open for the reader
        listed, left_out = (list_tar_of_tars if split == "train" else list_tar)(file, tar)

        def read(place: tuple[int, int]) -> bytes:
            return os.pread(file.fileno(), place[1], place[0])
    else:
        raise InputError(f"{root}: no folder {split}/ and no {tar.name}; see data/imagenet/README.md for where they come from")
    if not listed:
        raise InputError(f"{folder if folder.is_dir() else tar}: no images ({', '.join(ENDINGS)})")
    flat = [name for name, _ in listed if "/" not in name]
    if flat and len(flat) < len(listed):
        raise InputError(f"{folder}: {flat[0]} lies in no class folder, others do")
    if flat:
        wnids = devkit_labels(root, flat)
        listed = [(f"{wnids[name]}/{name}", place) for name, place in listed]
    listed.sort(key=lambda item: in_folder_order(item[0]))
    for (name, _), (after, _) in zip(listed, listed[1:]):
        if name == after:
            raise InputError(f"{tar}: {name} is there more than once")
    return listed, read, left_out


def read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def list_folder(folder: Path) -> tuple[list[tuple[str, str]], int]:
    listed, left_out = [], 0
    with tqdm(desc=f"listing {folder.name}/", unit=" files", delay=2, leave=False, disable=None) as bar:
        for path, _, files in os.walk(folder, followlinks=True):
            inside = os.path.relpath(path, folder)
            for file in files:
                name = file if inside == "." else f"{inside}/{file}"
                if is_image(file) and not is_hidden(name):
                    listed.append((name, os.path.join(path, file)))
                else:
                    left_out += 1
            bar.update(len(files))
    return listed, left_out


def list_tar(file, path: Path, start: int = 0, size: int | None = None) -> tuple[list[tuple[str, tuple[int, int]]], int]:
    """File names and places (offset, size) of a tar's images; the tar may lie inside another one, at `start`."""
    listed, left_out = [], 0
    size = os.fstat(file.fileno()).st_size if size is None else size
    try:
        with tarfile.open(fileobj=Window(file, start, size), mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    name = os.path.basename(member.name)
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError("it ends early")
                    if is_image(name) and not is_hidden(name):
                        listed.append((name, (start + member.offset_data, member.size)))
                    else:
                        left_out += 1
                tar.members = []  # tarfile would keep them all
    except tarfile.TarError as error:
        raise InputError(f"{path}: truncated or no tar ({error}); download it again")
    return listed, left_out


def list_tar_of_tars(file, path: Path) -> tuple[list[tuple[str, tuple[int, int]]], int]:
    """ILSVRC2012_img_train.tar: a tar a class, named by its wnid."""
    listed, left_out, inner = [], 0, []
    try:
        with tarfile.open(fileobj=Window(file, 0, os.fstat(file.fileno()).st_size), mode="r:") as tar:
            for member in tar:
                inner += [(member.name, member.offset_data, member.size)] * member.name.endswith(".tar")
                left_out += member.isfile() and not member.name.endswith(".tar")
    except tarfile.TarError as error:
        raise InputError(f"{path}: truncated or no tar ({error}); download it again")
    for name, start, size in tqdm(inner, desc=f"listing {path.name}", unit=" classes", leave=False, disable=None):
        images, others = list_tar(file, path, start, size)
        wnid = os.path.basename(name).removesuffix(".tar")
        listed += [(f"{wnid}/{image}", place) for image, place in images]
        left_out += others
    return listed, left_out


class Window(io.RawIOBase):
    """A stretch of a file as a file of its own, read without moving the file's place."""

    def __init__(self, file, start: int, size: int):
        self.descriptor, self.start, self.size, self.place = file.fileno(), start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        return self.place

    def readinto(self, buffer) -> int:
        data = os.pread(self.descriptor, max(0, min(len(buffer), self.size - self.place)), self.start + self.place)
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)


def write_archive(part: Path, archive: Path, entries: list, read: Callable, args) -> None:
    """Write stored entries into `part`, after those that it holds already, and rename it to `archive` when it is whole.

    The bytes are a function of the images alone: a fixed order and fixed dates. `part` needs no journal: an entry's own header
    says how long it is, so a run that goes on keeps the entries that are whole and are the first of this list.
    """
    shrinks = bool(args.shorter_side or args.max_side or args.quality)
    with open(part, "r+b" if part.exists() else "w+b") as file:
        directory, done = kept_entries(file, archive.stem, entries, read if not shrinks else None)
        if done:
            print(f"going on after {done:,} of {len(entries):,} images in {part.name}")
        place = flushed = file.seek(0, os.SEEK_CUR)
        settings = (args.shorter_side, args.max_side, args.quality)
        todo = entries[done:]
        images = reencoded(todo, read, settings, args.workers) if shrinks else (read(where) for _, where in todo)
        bar = tqdm(total=len(entries), initial=done, desc=archive.name, unit=" images", dynamic_ncols=True, disable=None)
        with bar:
            for (name, _), data in zip(todo, images):
                path = f"{archive.stem}/{name}".encode()
                if len(data) >= 0xFFFFFFFF or len(path) > 0xFFFF:
                    raise InputError(f"{name}: too large for an entry")
                crc = zlib.crc32(data)
                file.write(local_header(path, len(data), crc))
                file.write(data)
                directory.append((path, len(data), crc, place))
                place += 30 + len(path) + len(data)
                if place - flushed > FLUSH:
                    file.flush()
                    os.fsync(file.fileno())
                    flushed = place
                bar.update()
        write_directory(file, directory, place)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, archive)


def local_header(path: bytes, size: int, crc: int) -> bytes:
    utf8 = 0 if path.isascii() else 0x800
    return struct.pack("<4s5H3I2H", b"PK\3\4", 20, utf8, 0, 0, DATE, crc, size, size, len(path), 0) + path


def write_directory(file, directory: list[tuple[bytes, int, int, int]], start: int) -> None:
    """The central directory, with 64-bit numbers where 32 bits do not hold them."""
    size = 0
    for path, length, crc, offset in directory:
        utf8 = 0 if path.isascii() else 0x800
        wide = struct.pack("<HHQ", 1, 8, offset) if offset >= 0xFFFFFFFF else b""
        version = 45 if wide else 20
        # Made on Unix (3), a plain file that all may read: what unpacking it gives.
        fixed = (b"PK\1\2", 3 << 8 | version, version, utf8, 0, 0, DATE, crc, length, length, len(path), len(wide), 0, 0, 0)
        size += file.write(struct.pack("<4s6H3I5H2I", *fixed, 0o100644 << 16, min(offset, 0xFFFFFFFF)) + path + wide)
    count, end = len(directory), start + size
    if count >= 0xFFFF or end >= 0xFFFFFFFF:
        file.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, end, 1))
    short = min(count, 0xFFFF)
    file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, short, short, min(size, 0xFFFFFFFF), min(start, 0xFFFFFFFF), 0))


def kept_entries(file, split: str, entries: list, read: Callable | None) -> tuple[list[tuple[bytes, int, int, int]], int]:
    """What a killed run left whole: its directory, and how many of `entries` it covers. Cuts the file there.

    Entries must have the expected names; the last 2 x FLUSH bytes, which a power failure may have lost, are read and checked.
    """
    end, place, directory = file.seek(0, os.SEEK_END), 0, []
    for name, _ in tqdm(entries, desc="what is there", unit=" images", delay=2, leave=False, disable=None):
        path = f"{split}/{name}".encode()
        header = os.pread(file.fileno(), 30 + len(path), place)
        if len(header) < 30 + len(path) or header[:4] != b"PK\3\4" or header[30:] != path:
            break
        crc, size = struct.unpack_from("<II", header, 14)
        if header != local_header(path, size, crc) or place + len(header) + size > end:
            break
        if place > end - 2 * FLUSH and zlib.crc32(os.pread(file.fileno(), size, place + len(header))) != crc:
            break
        directory.append((path, size, crc, place))
        place += len(header) + size
    if read and directory:  # the images may have been exchanged meanwhile: compare one that costs little
        size, crc = directory[-1][1:3]
        if zlib.crc32(read(entries[len(directory) - 1][1])) != crc:
            directory, place = [], 0
    file.truncate(place)
    file.seek(place)
    return directory, len(directory)
