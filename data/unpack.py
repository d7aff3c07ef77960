"""Unpack the images of a tar archive into an image folder: what cub/prepare.py and cars/prepare.py share."""

import os
import shutil
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import errors  # noqa: F401  it says in one line which package is missing

from tqdm import tqdm


class DataError(ValueError):
    """Says what is wrong, where, and what to do."""


def image_path(split: str, class_name: str, file: str) -> str:
    """<split>/<class>/<file>, which names a file inside the folder whatever an archive says. Raises DataError."""
    parts = [split, class_name, file]
    if any(part in ("", ".", "..") or "/" in part or "\\" in part or "\0" in part for part in parts):
        raise DataError(f"{'/'.join(parts)!r}: not a path that an image may have")
    return "/".join(parts)


def unpack(archive: Path, targets: dict[str, str], folder: Path) -> None:
    """Write each member that `targets` names to folder/target, reading the archive once from beginning to end.

    Raises DataError where the archive is missing or damaged, or lacks a member.
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
        raise DataError(f"{archive}: lacks {len(left)} of {len(targets)} images, {next(iter(left))} first")


def members(archive: Path):
    """(name, open file) of every regular file in a tar archive, compressed or not. Raises DataError if it is damaged."""
    if not archive.is_file():
        raise DataError(f"{archive}: no such file; the README beside this script says where it comes from")
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile():
                    yield str(PurePosixPath(member.name)), tar.extractfile(member)
            while tar.fileobj.read(1 << 20):  # the checksum of a compressed archive stands at its end
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive}: damaged, or not a tar archive ({error})")


def printable(text: str) -> str:
    """The text on one line, for a terminal: what does not print, as line breaks and foreign bytes in names, is escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def run(prepare: Callable[[Path], str], root: Path) -> None:
    """Let prepare(temporary folder) fill root, which appears whole or not at all; print what it returns, or one line of error."""
    if (root / "train").exists() or (root / "val").exists():
        sys.exit(f"error: {root} holds images already; remove train/ and val/, or choose another --root")
    temporary = root / f"unpacking-{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
        said = prepare(temporary)
        for split in ("val", "train"):  # train last: a folder that has it has both
            os.replace(temporary / split, root / split)
        print(f"{said} in {root}/")
    except DataError as error:
        sys.exit(f"error: {printable(str(error))}")
    except (tarfile.TarError, EOFError, zlib.error) as error:  # in the middle of a file that is read as a whole
        sys.exit(f"error: the archive is damaged, or ends too early ({error}); download it again")
    except OSError as error:
        sys.exit(f"error: {error.filename or root}: {error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was left behind")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
