"""Where the commands write: an output folder, and files that have their final name only when they are whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import InputError

# The commands that write summary.json and summary.md, by a figure that each of them alone writes beside these.
FIGURES = {"analysis": "near_zero_histogram.png", "selective": "risk_coverage.png", "calibration": "reliability.png"}


@contextmanager
def folder(path: Path, command: str) -> Iterator[None]:
    """Make the output folder of a command and write into it. Raises InputError where that cannot be done.

    A folder that holds another command's summary is refused, since this one would replace it.
    """
    for other, figure in FIGURES.items():
        if command in FIGURES and other != command and (path / figure).exists():
            raise InputError(f"--output {path}: holds the output of viz/{other}.py; choose another --output")
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(f"--output {path}: cannot be written ({error.strerror})")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})")
