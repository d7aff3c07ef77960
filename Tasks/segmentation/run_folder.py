"""The folder of a run: claimed without loss of another run, searched for a checkpoint to go on from, and its log."""

import json
import os
from pathlib import Path

from errors import InputError

import checkpoint
import distributed

LOG, TEST = "log.jsonl", "test.json"


def claim(output: Path, resume: str | None, overwrite: bool) -> None:
    """Make the folder. Raises InputError where it cannot be written, or where a run in it would be lost."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"--output_dir {output}: cannot be written ({error.strerror})")
    own = output / checkpoint.NAME
    goes_on = resume == "auto" or (resume is not None and Path(resume).resolve() == own.resolve())
    if goes_on and overwrite:
        raise InputError(f"--resume goes on with the run in {output}, --overwrite starts anew: give one of them")
    if own.exists() and not goes_on and not overwrite:
        raise InputError(
            f"--output_dir {output} holds a run already: --resume auto goes on with it, --overwrite replaces it, "
            "another --output_dir keeps it"
        )
    distributed.barrier()


def find_checkpoint(output: Path, resume: str | None) -> Path | None:
    """The checkpoint that --resume names; None where training starts fresh."""
    if resume != "auto":
        return Path(resume) if resume else None
    path = output / checkpoint.NAME
    return path if path.exists() else None


class Log:
    """log.jsonl, one JSON object per epoch, cut back to the epochs that a resumed run keeps; `seconds` is what those took.

    Where a run is replaced, its checkpoint goes too: --resume auto must not find it before the new one's first.
    """

    def __init__(self, output: Path, kept_epochs: int):
        self.path, self.seconds = output / LOG, 0.0
        if not distributed.is_main():
            return
        try:
            kept = checkpoint.kept_lines(self.path, kept_epochs)
            self.seconds = float(json.loads(kept[-1])["seconds"]) if kept else 0.0
            temporary = self.path.with_name(f"{LOG}.tmp")
            temporary.write_text("".join(kept))
            if not kept_epochs:
                for old in (checkpoint.NAME, TEST):
                    (output / old).unlink(missing_ok=True)
            os.replace(temporary, self.path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path}: not a log of this trainer, or cannot be written ({error}); move it away")

    def write(self, line: dict) -> None:
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); the last checkpoint is good")
