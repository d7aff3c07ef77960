"""Archives: an image folder or the official tars, stored in ZIP files; a killed run continues after the complete entries."""

import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from common import PART

from tqdm import tqdm

from archives import ENDINGS, LARGEST, check_path, folder_order, is_image
from maps import devkit_labels, write_maps
from reencode import reencode, reencoded
from unpack import InputError

FLUSH = 256 << 20  # bytes between syncs to the disk; a resumed run checks the last two times as many
# Part of the name of an incomplete archive, so that a run continues only one that was made with its own settings.
SETTINGS = (("shorter", "shorter_side"), ("max", "max_side"), ("q", "quality"))


def write_archives(args, output: Path) -> None:
    """Write what is missing of {train,val}.zip, then the maps."""
    sizes = [f"{name}{getattr(args, key)}" for name, key in SETTINGS if getattr(args, key)]
    todo = [split for split in ("train", "val") if args.overwrite or not (output / f"{split}.zip").exists()]
    images = {split: source(args.root, split) for split in todo}  # look for both before hours of work begin
    for split in ("train", "val"):
        archive = output / f"{split}.zip"
        if split not in todo:
            print(f"{archive} is there already and kept; --overwrite replaces it")
            continue
        images_here, read, left_out = images.pop(split)
        if left_out:
            print(f"{split}: {left_out} files are not images and are ignored")
        part = archive.with_name(".".join([archive.name, *sizes, PART]))
        write_archive(part, archive, images_here, read, (args.shorter_side, args.max_side, args.quality), args.workers)
        for stale in output.glob(f"{archive.name}.*{PART}"):
            stale.unlink()
        print(f"{archive}: {len(images_here):,} images, {archive.stat().st_size / 1e6:,.1f} MB")
    write_maps(output, args.overwrite, devkit=args.root)


def source(root: Path, split: str) -> tuple[list[tuple[str, object]], Callable[[object], bytes], int]:
    """The images of a split in ImageFolder's order, [(<class>/<file>, location)], a reader of locations, count of other files."""
    folder, tar = root / split, root / f"ILSVRC2012_img_{split}.tar"
    if folder.is_dir():
        listed, left_out = list_folder(folder)
        read = read_file
    elif tar.is_file():
        listed, left_out = list_tar(tar, of_tars=split == "train")
        file = open(tar, "rb")  # stays open for the reader

        def read(location: tuple[int, int]) -> bytes:
            return os.pread(file.fileno(), location[1], location[0])
    else:
        raise InputError(f"{root}: no folder {split}/ and no {tar.name}; see data/imagenet/README.md for where they come from")
    if not listed:
        raise InputError(f"{folder if folder.is_dir() else tar}: no images ({', '.join(ENDINGS)})")
    flat = [name for name, _ in listed if "/" not in name]
    if flat and len(flat) < len(listed):
        raise InputError(f"{folder}: {flat[0]} lies in no class folder, others do")
    if flat and split == "train":
        raise InputError(f"{folder}: its images are in no class folders, which hold the labels")
    if flat:
        wnids = devkit_labels(root, flat)
        listed = [(f"{wnids[name]}/{name}", location) for name, location in listed]
    for name, _ in listed:  # before hours of work
        check_path(name, folder if folder.is_dir() else tar)
        if any("\ud800" <= c <= "\udfff" for c in name):  # Python's surrogates for bytes that are not UTF-8
            raise InputError(f"{folder / name}: its name is not in UTF-8, as names in archives and maps are; rename it")
    listed = [listed[row] for row in folder_order([name for name, _ in listed])]
    for (name, _), (after, _) in zip(listed[:-1], listed[1:], strict=True):
        if name == after:
            raise InputError(f"{tar}: {name} is there more than once")
    return listed, read, left_out


def read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def list_folder(folder: Path) -> tuple[list[tuple[str, str]], int]:
    """[(path inside the folder, path on disk)] of a folder's images, and the number of other files in it."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})")

    listed, left_out, seen = [], 0, {}
    with tqdm(desc=f"listing {folder.name}/", unit=" files", delay=2, leave=False, disable=None) as bar:
        for path, _, files in os.walk(folder, onerror=refuse, followlinks=True):
            other = seen.setdefault(os.path.realpath(path), path)
            if other != path and path.startswith(f"{other}{os.sep}"):
                raise InputError(f"{path}: is a link to a folder that it lies in; remove it")
            inside = os.path.relpath(path, folder)
            for file in files:
                name = file if inside == "." else f"{inside}/{file}"
                if is_image(name):
                    listed.append((name, os.path.join(path, file)))
                else:
                    left_out += 1
            bar.update(len(files))
    return listed, left_out


def list_tar(path: Path, of_tars: bool) -> tuple[list[tuple[str, tuple[int, int]]], int]:
    """Names and locations (offset, size) of a tar's images; of_tars: of a tar that holds one tar per class, named by its wnid."""
    listed, left_out = [], 0

    def read(tar: tarfile.TarFile, folder: str, start: int, nested: bool) -> None:
        nonlocal left_out
        for member in tar:
            name = os.path.basename(member.name)
            if nested and name.endswith(".tar"):
                with tar.extractfile(member) as file, tarfile.open(fileobj=file, mode="r:") as inner:
                    read(inner, name.removesuffix(".tar") + "/", member.offset_data, nested=False)
                bar.update()
            elif not nested and member.isfile() and is_image(name):
                listed.append((folder + name, (start + member.offset_data, member.size)))
            else:
                left_out += member.isfile()
            tar.members = []  # tarfile would keep them all

    try:
        with (
            tarfile.open(path, "r:") as tar,
            tqdm(desc=f"listing {path.name}", unit=" classes", leave=False, disable=None) as bar,
        ):
            read(tar, "", 0, of_tars)
    except tarfile.TarError as error:
        raise InputError(f"{path}: truncated, or not a tar archive ({error}); download it again")
    return listed, left_out


def write_archive(part: Path, archive: Path, images: list, read: Callable, settings: tuple, workers: int) -> None:
    """Store images in `part`, after those that it already holds, and rename it to `archive` when it is complete.

    The bytes depend only on the images and `settings` (shorter side, longer side, quality): order and dates are fixed.
    zipfile writes the entries and the directory. It cannot continue a file that lacks the directory. A resumed run therefore
    finds the complete entries, which must be the first of `images`, by their own headers, and passes them to zipfile.
    """
    with open(part, "r+b" if part.exists() else "w+b") as file:

        def content(name: str, location: object) -> bytes:
            try:
                return reencode(name, read(location), *settings) if any(settings) else read(location)
            except ValueError as error:
                raise InputError(error)

        kept = kept_entries(file, archive.stem, images, content)
        if kept:
            print(f"continuing after {len(kept):,} of {len(images):,} images in {part.name}")
        todo = images[len(kept) :]
        contents = reencoded(todo, read, settings, workers) if any(settings) else (read(location) for _, location in todo)
        bar = tqdm(total=len(images), initial=len(kept), desc=archive.name, unit=" images", dynamic_ncols=True, disable=None)
        flushed = file.tell()
        with bar, zipfile.ZipFile(file, "w") as target:  # begins at the file's position
            target.filelist += kept
            for (name, _), data in zip(todo, contents, strict=True):
                if len(data) > LARGEST:
                    raise InputError(f"{name}: larger than {LARGEST >> 20} MiB")
                target.writestr(new_entry(archive.stem, name), data)
                if file.tell() - flushed > FLUSH:
                    file.flush()
                    os.fsync(file.fileno())
                    flushed = file.tell()
                bar.update()
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, archive)


def new_entry(split: str, name: str) -> zipfile.ZipInfo:
    """A stored entry, dated the format's first day: a plain file that everyone may read."""
    entry = zipfile.ZipInfo(f"{split}/{name}", (1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o100644 << 16
    return entry


def kept_entries(file, split: str, images: list, content: Callable) -> list[zipfile.ZipInfo]:
    """The complete entries that a killed run left, the first of `images`. Truncates the file after them and moves to its end.

    content(name, location): the bytes of an image in the archive. The last 2 x FLUSH bytes, which a power failure may have lost,
    are read and checked.
    """
    end, offset, kept = file.seek(0, os.SEEK_END), 0, []
    for name, _ in tqdm(images, desc="what is there", unit=" images", delay=2, leave=False, disable=None):
        entry = new_entry(split, name)
        length = 30 + len(entry.filename.encode())
        header = os.pread(file.fileno(), length, offset)
        if len(header) < length:
            break
        entry.CRC, entry.compress_size, entry.file_size = struct.unpack_from("<3I", header, 14)
        after = offset + length + entry.file_size
        if header != entry.FileHeader() or after > end:
            break
        if after > end - 2 * FLUSH and zlib.crc32(os.pread(file.fileno(), entry.file_size, offset + length)) != entry.CRC:
            break
        entry.header_offset, offset = offset, after
        kept.append(entry)
    # The images may have been replaced meanwhile: compare one, which costs little.
    if kept and zlib.crc32(content(*images[len(kept) - 1])) != kept[-1].CRC:
        kept, offset = [], 0
    file.truncate(offset)
    file.seek(offset)
    return kept
