"""The output folder of a run: claimed before anything is computed, with its checkpoint and its log."""

import json
from pathlib import Path

from errors import InputError

import checkpoint


def claim(output: Path, resume: str | None, overwrite: bool) -> Path | None:
    """Create the folder `output` and return the checkpoint to resume from, or None for a fresh run.

    Raises InputError if the folder cannot be written, or holds a run that would be lost.
    """
    own = output / checkpoint.NAME
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"--output_dir {output}: cannot be written ({error.strerror}); choose another folder")
    resuming = resume is not None and (resume == "auto" or Path(resume).resolve() == own.resolve())
    if resuming and overwrite:
        raise InputError(f"--resume continues the run in {output}, --overwrite replaces it: give only one of them")
    if own.exists() and not resuming and not overwrite:
        raise InputError(
            f"--output_dir {output}: holds a run already; --resume auto continues it, --overwrite replaces it, "
            "another --output_dir keeps it"
        )
    if resume not in (None, "auto"):
        return Path(resume)
    return own if resume == "auto" and own.exists() else None


class Log:
    """log.jsonl: one JSON object per epoch, cut back to the epochs that a resumed run keeps.

    A fresh run removes an old checkpoint: --resume auto must not find it before the new run has written its first one.
    """

    def __init__(self, output: Path, kept_epochs: int):
        self.path = output / "log.jsonl"
        try:
            lines = self.path.read_text(errors="replace").splitlines(keepends=True) if self.path.exists() else []
            kept = [line for line in lines if epoch_of(line) in range(1, kept_epochs + 1)]
            temporary = self.path.with_name("log.jsonl.tmp")
            temporary.write_text("".join(kept))
            if not kept_epochs:
                (output / checkpoint.NAME).unlink(missing_ok=True)
            temporary.replace(self.path)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read or written ({error.strerror}); move it away")

    def write(self, line: dict) -> None:
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); the last checkpoint is good")


def epoch_of(line: str) -> int | None:
    """The epoch of a whole line of the log; None for half a line, which a killed process may leave, or a foreign one."""
    try:
        return json.loads(line)["epoch"] if line.endswith("\n") else None
    except (ValueError, KeyError, TypeError):
        return None
