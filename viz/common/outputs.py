"""Where the commands write: an output folder, and files that get their final name only when they are complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import InputError, reason

SUMMARIES = ("analysis", "selective", "calibration")  # the commands that write summary.json and summary.md
# A file that only this command writes into its output folder.
OWN = {
    "analysis": "near_zero_histogram.png",
    "selective": "risk_coverage.png",
    "calibration": "reliability.png",
    "features": "features.md",
    "transfer": "transfer.md",
    "report": "index.html",
    "suppression": "suppression.png",
}


def folder(path: Path, command: str, overwrite: bool) -> None:
    """Make the output folder of a command.

    Raises InputError if that fails, if the folder holds another command's summary, or an output of this command and `overwrite`
    is false.
    """
    for other in SUMMARIES if command in SUMMARIES else ():
        if other != command and (path / OWN[other]).exists():
            raise InputError(f"--output {path}: holds the output of viz/{other}.py; choose another --output")
    if (path / OWN[command]).exists() and not overwrite:
        raise InputError(f"--output {path}: holds an output of viz/{command}.py already; --overwrite replaces it")
    make_folder(path, path)


def check_file(output: Path, overwrite: bool, *inputs: Path) -> None:
    """Make the folder of an output file. Raises InputError unless `output` can be written without the loss of another file."""
    if any(output.exists() and path.exists() and output.samefile(path) for path in inputs):
        raise InputError(f"--output {output} is one of the files to read; choose another name")
    if output.is_dir():
        raise InputError(f"--output {output} is a folder; name a file in it")
    if output.exists() and not overwrite:
        raise InputError(f"{output} is there already; --overwrite replaces it")
    make_folder(output.parent, output)


def make_folder(path: Path, output: Path) -> None:
    """Make a folder for `output`. Raises InputError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written ({reason(error)})")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary file to write. It is renamed to `path` when it is complete, and removed on failure. Raises InputError."""
    temporary = path.with_name(f".viz-{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())  # some file systems report only now that the disk is full
        os.replace(temporary, path)
    except Exception as error:
        cause = error
        while cause and not isinstance(cause, OSError):
            cause = cause.__context__  # libraries fail again when they clean up after a full disk
        if cause is None:
            raise
        raise InputError(f"{path}: cannot be written ({reason(cause)})")
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, completely or not at all; bytes of file names that are not valid characters are escaped."""
    with whole(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
