"""The one kind of error that is the user's to mend: printed as a single line, without a traceback."""

import multiprocessing
import os
import sys
import time
from typing import NoReturn


class InputError(ValueError):
    """Says what is wrong, where, and what to do."""


def stop(error: InputError) -> NoReturn:
    """Print the error as one line on stderr and exit with status 1.

    Where the first process of a machine finds it too, torchrun ends the others before they repeat it. A process among others
    leaves at once: to take leave in order, NCCL would wait for them, and they wait for this one.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(3)
    # From a loading process it comes with that one's traceback; the message is the last line of it. One write, newline and
    # all: the lines of several processes must not run into each other.
    sys.stderr.write(f"error: {str(error).splitlines()[-1].removeprefix('errors.InputError: ')}\n")
    distributed = sys.modules.get("torch.distributed")  # not imported for a mistake that was found before torch was needed
    # A loading process that is still starting would find this one's semaphores gone, and say so with a traceback.
    if multiprocessing.active_children() or (distributed and distributed.is_initialized()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    sys.exit(1)


def stop_if_memory_is_full(error: RuntimeError, batch: str) -> None:
    """End with one line if PyTorch found no room, on a GPU or in this machine; `batch` is the option and its value."""
    on_gpu = type(error).__name__ == "OutOfMemoryError"
    if on_gpu or "DefaultCPUAllocator" in str(error):
        where = "the GPU's memory" if on_gpu else "this machine's memory"
        more = ", mixed precision, or a GPU that no other process uses" if on_gpu else ""
        stop(InputError(f"{where} is full at {batch}: try half of it{more}"))


def _say_what_is_missing(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """A package that is not installed is the user's to mend, too."""
    if isinstance(error, ModuleNotFoundError):
        missing = f"the package {error.name!r} is not installed for {sys.executable}"
        sys.stderr.write(f"error: {missing}; activate the environment that has it, or install requirements.txt\n")
    else:
        sys.__excepthook__(kind, error, trace)


# It takes effect with the import of this module, which is therefore the first of every command (see pyproject.toml).
sys.excepthook = _say_what_is_missing
