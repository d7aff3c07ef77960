"""Where the tools write: a folder made on the way in, files that have their final name only when they are whole."""

import os
from pathlib import Path

from errors import InputError


def make_folder(path: Path) -> None:
    """Make the folder for the output. Raises InputError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
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
