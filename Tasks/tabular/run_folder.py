"""The folder of a run, with checkpoint.pth and log.jsonl; it is locked and claimed before anything is computed."""

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from errors import InputError, is_first, say

import torch.distributed as dist

import checkpoint
import states

LOCK = "run.lock"


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Create the folder, keep a second run out of it, and remove files that a killed run has left half-written.

    Raises InputError if the folder cannot be written, and, naming the other process, if another run is using it.
    """
    file = None
    if is_first():
        try:
            output.mkdir(parents=True, exist_ok=True)
            file = _lock(output)
            for name in os.listdir(output):
                if re.fullmatch(r"(checkpoint\.pth|logits\.pt|(log|params|test|summary)\.jsonl?)\.tmp-\d+", name):
                    (output / name).unlink()
        except OSError as error:
            raise InputError(f"--output_dir {output}: cannot be written ({error.strerror})")
    try:
        yield
    finally:
        if file:
            (output / LOCK).unlink(missing_ok=True)
            file.close()


def _lock(output: Path) -> TextIO | None:
    """The open, locked lock file. The system unlocks it however this process ends; loading processes do not inherit the lock."""
    path = output / LOCK
    while True:
        file = open(path, "a+", encoding="utf-8")
        try:
            import fcntl  # not on every platform

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            other = file.read(200) or "another process"
            raise InputError(f"--output_dir {output}: {other} is training there; wait for it to finish, or name another folder")
        except (ImportError, OSError) as error:
            say(f"note: {output} cannot be locked ({error}); make sure that no other run uses it")
            file.close()
            path.unlink(missing_ok=True)
            return None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            break
        file.close()  # the lock of a run that has just ended and removed the file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def claim(output: Path, resume: str | None, overwrite: bool) -> Path | None:
    """The checkpoint that --resume refers to: output / checkpoint.NAME for the folder's own run, None for a fresh run.

    Raises InputError if a run in the folder would be lost.
    """
    own = output / checkpoint.NAME
    found = own.exists()
    if dist.is_initialized():
        everyone = [found] * dist.get_world_size()
        dist.all_gather_object(everyone, found)  # so that every process has checked before any of them writes
        if len(set(everyone)) > 1:
            raise InputError(f"--output_dir {output}: some processes do not see the checkpoint in it; all machines must share it")
    continues = resume == "auto" or (resume is not None and Path(resume).resolve() == own.resolve())
    if continues and overwrite:
        raise InputError(f"--resume continues the run in {output}, --overwrite replaces it: give one of them")
    if found and not continues and not overwrite:
        raise InputError(
            f"--output_dir {output} holds a run already: --resume auto goes on with it, --overwrite replaces it, "
            "another --output_dir keeps it"
        )
    if resume == "auto" and not found:
        say(f"--resume auto: no checkpoint in {output}, starting fresh")
        return None
    return own if continues else Path(resume) if resume else None


class Log:
    """log.jsonl, one JSON line per epoch, truncated to the epochs that a resumed run keeps; `seconds` is the time they took.

    Also removes what the coming epochs make obsolete: the old test.json, and the checkpoint of a run that is replaced, which
    --resume auto must not find before the new one is written. Raises InputError if a checkpoint from another folder leaves no
    epoch to train, because then nothing would replace the removed one.
    """

    def __init__(self, output: Path, resume: Path | None, start_epoch: int, epochs: int):
        self.path, self.seconds = output / "log.jsonl", 0.0
        goes_on = resume == output / checkpoint.NAME
        self.kept_epochs = start_epoch if goes_on else 0
        if start_epoch >= epochs and not goes_on:
            raise InputError(f"{resume}: has all its {epochs} epochs already, so there is nothing to train; ask for more epochs")
        if not is_first():
            return
        stale = [checkpoint.NAME] * (not goes_on) + ["test.json"] * (start_epoch < epochs)
        try:
            kept = kept_lines(self.path, self.kept_epochs)
            for name in stale:
                (output / name).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read or replaced ({error.strerror}); move it away")
        states.write_whole(self.path, lambda file: file.writelines(kept))
        seconds = json.loads(kept[-1]).get("seconds") if kept else 0
        if isinstance(seconds, int | float) and abs(seconds) < 1e12:
            self.seconds = float(seconds)

    def write(self, line: dict) -> None:
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror}); the last checkpoint is good")


def kept_lines(path: Path, epochs: int) -> list[bytes]:
    """The complete lines of a log up to an epoch: a killed process may leave a line of an unsaved epoch, or half a line."""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            epoch = json.loads(line)["epoch"]
            if line.endswith(b"\n") and type(epoch) is int and 1 <= epoch <= epochs:
                kept.append(line)
    return kept
