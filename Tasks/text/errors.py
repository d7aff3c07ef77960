"""What a command tells its user: lines of text, and errors that the user can fix, in one line without a traceback."""

import argparse
import difflib
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")  # for file names that the terminal's encoding lacks

batch = "its batch size"  # a trainer replaces this by the option and its value, for the messages below


class InputError(ValueError):
    """Says in one line what is wrong, where, and what to do; unprintable characters, such as in file names, are escaped."""

    def __init__(self, message: object):
        super().__init__("".join(c if c.isprintable() else _escaped(c) for c in str(message)))


def _escaped(c: str) -> str:
    return f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else repr(c)[1:-1]  # a byte that is not UTF-8


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default in the help of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse's parser without abbreviations. Mistakes raise InputError; for an unknown option, it names the nearest one."""

    def __init__(self, **options: Any):
        super().__init__(**{"allow_abbrev": False, "formatter_class": Formatter} | options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None) -> argparse.Namespace:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].split("=")[0]
            near = difflib.get_close_matches(word, self.spellings(), n=1, cutoff=0)
            raise InputError(f"{word}: no such option; the nearest is {near[0]}, and --help lists all")
        return found

    def spellings(self) -> list[str]:
        """The options that an unknown one may have been meant to be."""
        return [spelling for spelling in self._option_string_actions if spelling.startswith("--")]

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def is_first() -> bool:
    """Whether this is the process that prints and writes: the only one, or the first of those that train together."""
    distributed = sys.modules.get("torch.distributed")  # absent if torch has not been imported
    return not (distributed and distributed.is_initialized() and distributed.get_rank())


def say(text: str) -> None:
    """Print immediately, in the first process only."""
    if is_first():
        print(text, flush=True)


def stop(error: InputError) -> NoReturn:
    """Print the error as one line on stderr and exit with status 1.

    The other processes of a machine wait, so that torchrun can end them before they repeat an error of the first. In a process
    group, a process exits immediately: in an orderly exit, NCCL would wait for the other processes, which wait for this one.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(3)
    # An error in a loading process arrives as that process's traceback, which ends with the message. Message and newline are one
    # write, so that the lines of several processes do not mix. Not to sys.stderr, which torch.distributed may have replaced.
    message = str(error).rpartition("errors.InputError: ")[2].removesuffix("\\n")
    sys.__stderr__.write(f"error: {message}\n")
    distributed = sys.modules.get("torch.distributed")
    # In an orderly exit, a loading process that is still starting would find the semaphores gone and print a traceback.
    if multiprocessing.active_children() or (distributed and distributed.is_initialized()):
        sys.stdout.flush()
        sys.__stderr__.flush()
        os._exit(1)
    sys.exit(1)


def _report(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """Print an uncaught exception, as one line if its cause is known."""
    if isinstance(error, InputError):
        stop(error)
    elif type(error).__name__ == "OutOfMemoryError":
        stop(
            InputError(
                f"the GPU's memory is full at {batch}: try half of it, mixed precision, or a GPU that no other process uses"
            )
        )
    elif isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
        stop(InputError(f"this machine's memory is full at {batch}: try half of it"))
    elif isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        stop(InputError(f"batch norm gets a single value per channel at {batch}: it needs two images or more per process"))
    elif isinstance(error, RuntimeError) and re.search("(closed|reset) by peer|/gloo/transport/", str(error)):
        time.sleep(5)  # another process has ended and said why; torchrun may end this one meanwhile
        stop(InputError("another process of this run has ended; see what it, or torchrun on its machine, says"))
    elif isinstance(error, OSError) and error.filename is not None:  # such as a name that is too long, or no permission
        stop(InputError(f"{error.filename}: {error.strerror}"))
    elif isinstance(error, KeyboardInterrupt):
        sys.stderr.write("interrupted; --resume auto continues the run after its last finished epoch\n")
    elif isinstance(error, ModuleNotFoundError):
        missing = f"the package {error.name!r} is not installed for {sys.executable}"
        sys.stderr.write(f"error: {missing}; activate the environment that has it, or install requirements.txt\n")
    else:
        sys.__excepthook__(kind, error, trace)


# The hook works from the import of this module on, which is therefore the first import of every command (see pyproject.toml).
sys.excepthook = _report
