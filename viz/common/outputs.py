"""Where the commands write: an output folder, and files that have their final name only when they are whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import InputError, reason

# The commands that write summary.json and summary.md, by a figure that each of them alone writes beside these.
FIGURES = {"analysis": "near_zero_histogram.png", "selective": "risk_coverage.png", "calibration": "reliability.png"}


def folder(path: Path, command: str) -> None:
    """Make the output folder of a command. Raises InputError where that cannot be done, or where another command's summary is."""
    for other, figure in FIGURES.items():
        if command in FIGURES and other != command and (path / figure).exists():
            raise InputError(f"--output {path}: holds the output of viz/{other}.py; choose another --output")
    make_folder(path, path)


def check_file(output: Path, overwrite: bool, *inputs: Path) -> None:
    """Make the folder of a file. Raises InputError unless a file can be written at `output` without the loss of another."""
    if any(output.exists() and path.exists() and output.samefile(path) for path in inputs):
        raise InputError(f"--output {output} is one of the files to read; choose another name")
    if output.is_dir():
        raise InputError(f"--output {output} is a folder; name a file in it")
    if output.exists() and not overwrite:
        raise InputError(f"{output} is there already; --overwrite replaces it")
    make_folder(output.parent, output)


def make_folder(path: Path, output: Path) -> None:
    """Make a folder for `output`. Raises InputError where that cannot be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written ({reason(error)})")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary file to write, which gets the name `path` if it becomes whole and is removed if not. Raises InputError."""
    temporary = path.with_name(f".viz-{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # some disks say only now that they are full
        os.replace(temporary, path)
    except Exception as error:
        cause = error
        while cause and not isinstance(cause, OSError):
            cause = cause.__context__  # libraries fail once more in clearing up after a full disk
        if cause is None:
            raise
        raise InputError(f"{path}: cannot be written ({reason(cause)})")
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, whole or not at all; bytes of file names that are no characters are escaped."""
    with whole(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
