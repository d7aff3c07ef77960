"""Unpack a tar archive into the folder of a data set: what cub/, cars/ and imdb/prepare.py share."""

import os
import shutil
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import errors  # noqa: F401  it reports a missing package in one line

from tqdm import tqdm


class InputError(ValueError):
    """An error that the user can fix: says in one line what is wrong, where, and what to do."""


def image_path(split: str, class_name: str, file: str) -> str:
    """<split>/<class>/<file>, which cannot lead out of the folder, whatever an archive says. Raises InputError."""
    parts = [split, class_name, file]
    if any(part in ("", ".", "..") or "/" in part or "\\" in part or "\0" in part for part in parts):
        raise InputError(f"{'/'.join(parts)!r}: not a path that an image may have")
    return "/".join(parts)


def unpack(archive: Path, targets: dict[str, str], folder: Path) -> None:
    """Write each member that `targets` names to folder/target, reading the archive once from beginning to end.

    Raises InputError if the archive is missing or damaged, or lacks a member.
    """
    left = dict(targets)
    with tqdm(total=len(left), desc=archive.name, unit=" images", leave=False, disable=None) as bar:
        for name, file in members(archive):
            target = left.pop(name, None)
            if target is not None:
                (folder / target).parent.mkdir(parents=True, exist_ok=True)
                with open(folder / target, "wb") as out:
                    shutil.copyfileobj(file, out)
                bar.update()
    if left:
        raise InputError(f"{archive}: lacks {len(left)} of {len(targets)} images, {next(iter(left))} first")


def members(archive: Path):
    """(name, open file) of every regular file in a tar archive, compressed or not. Raises InputError if it is damaged."""
    if not archive.is_file():
        raise InputError(f"{archive}: no such file; the README next to this script says where it comes from")
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile():
                    yield str(PurePosixPath(member.name)), tar.extractfile(member)
            while tar.fileobj.read(1 << 20):  # the checksum of a compressed archive is at its end
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise InputError(f"{archive}: damaged, or not a tar archive ({error})")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file through a temporary one: completely or not at all."""
    temporary = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def printable(text: str) -> str:
    """The text on one line, for a terminal: unprintable characters, such as line breaks or foreign bytes, are escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def run(prepare: Callable[[Path], str], root: Path, folders: tuple[str, ...] = ("val", "train")) -> None:
    """Let prepare(temporary folder) make `folders`, which appear in root complete or not at all; print what it returns.

    The last of them appears last: if it is there, all are. A user error ends the command with one line.
    """
    there = [name for name in folders if (root / name).exists()]
    if there:
        sys.exit(f"error: {root / there[0]} exists already; remove {' and '.join(there)}, or choose another --root")
    temporary = root / f"unpacking-{os.getpid()}"
    try:
        with in_one_line(root):
            temporary.mkdir(parents=True)
            said = prepare(temporary)
            for name in folders:
                os.replace(temporary / name, root / name)
            print(f"{said} in {root}/")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def in_one_line(where: Path) -> Iterator[None]:
    """End the command with one line on a user error, a damaged archive, a full disk, and Ctrl-C."""
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {printable(str(error))}")
    except (tarfile.TarError, EOFError, zlib.error) as error:  # in the middle of a file that is read as a whole
        sys.exit(f"error: the archive is damaged, or ends too early ({error}); download it again")
    except OSError as error:
        sys.exit(f"error: {error.filename or where}: {error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was left behind")
