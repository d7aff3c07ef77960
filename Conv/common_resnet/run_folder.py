"""The folder of a run: claimed before anything is computed, with checkpoint.pth and log.jsonl in it."""

import contextlib
import json
import os
from pathlib import Path

from errors import InputError

import checkpoint
import distributed


def claim(output: Path, resume: str | None, overwrite: bool) -> bool:
    """Make --output_dir; returns whether --resume continues the run in it, if there is one.

    Raises InputError where the folder cannot be written and where a run in it would be lost.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"--output_dir {output}: cannot be written ({error.strerror})")
    own = output / checkpoint.NAME
    continues = resume == "auto" or (resume is not None and Path(resume).resolve() == own.resolve())
    if continues and overwrite:
        raise InputError(f"--resume continues the run in {output}, --overwrite replaces it: give one of them")
    if own.exists() and not continues and not overwrite:
        raise InputError(
            f"--output_dir {output} holds a run already: --resume auto goes on with it, --overwrite replaces it, "
            "another --output_dir leaves it alone"
        )
    distributed.barrier()  # every process has looked before one of them writes
    return continues


def find_checkpoint(output: Path, resume: str | None) -> Path | None:
    """The checkpoint that --resume means: the path given, or with "auto" the folder's own where there is one."""
    if resume != "auto":
        return Path(resume) if resume else None
    path = output / checkpoint.NAME
    if path.exists():
        return path
    distributed.say(f"--resume auto: no checkpoint in {output}, starting fresh")
    return None


def remove_checkpoint(output: Path) -> None:
    """Delete the checkpoint of a run that is replaced: --resume auto must not find it before the new run's first."""
    if distributed.is_main():
        (output / checkpoint.NAME).unlink(missing_ok=True)


class Log:
    """log.jsonl, one JSON object per line and epoch, cut back to the epochs that a resumed run keeps; `seconds` they took."""

    def __init__(self, output: Path, kept_epochs: int):
        self.path, self.seconds = output / "log.jsonl", 0.0
        if not distributed.is_main():
            return
        try:
            kept = kept_lines(self.path, kept_epochs)
            self.seconds = float(json.loads(kept[-1]).get("seconds", 0)) if kept else 0.0
            temporary = self.path.with_name("log.jsonl.tmp")
            temporary.write_text("".join(kept))
            os.replace(temporary, self.path)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{self.path}: not a log of this trainer, or cannot be written ({error}); move it away")

    def write(self, line: dict) -> None:
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); the last checkpoint is good")


def kept_lines(path: Path, epochs: int) -> list[str]:
    """Whole lines of a log up to an epoch: a killed process may leave one for an epoch that it has not saved, or half of one."""
    kept = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if line.endswith("\n") and json.loads(line)["epoch"] <= epochs:
                kept.append(line)
    return kept
