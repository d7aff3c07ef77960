"""What a command tells its user: lines of text, and the one kind of error that the user can mend, without a traceback."""

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
        stream.reconfigure(errors="backslashreplace")  # a name of a file that the terminal's encoding does not have

batch = "its batch size"  # the option and its value, as a trainer puts them here, for the line on full memory


class InputError(ValueError):
    """Says in one line what is wrong, where, and what to do; line breaks and odd bytes in names of files are escaped."""

    def __init__(self, message: object):
        super().__init__("".join(c if c.isprintable() else _escaped(c) for c in str(message)))


def _escaped(c: str) -> str:
    return f"\\x{ord(c) - 0xDC00:02x}" if 0xDC80 <= ord(c) <= 0xDCFF else repr(c)[1:-1]  # a byte that is not UTF-8


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults in the help, of the options that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse's, without abbreviations. Raises InputError for a mistake; for an unknown option with the nearest one's name."""

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
        """What an unknown option may have meant."""
        return [spelling for spelling in self._option_string_actions if spelling.startswith("--")]

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def is_first() -> bool:
    """Whether this is the process that prints and writes: the only one, or the first of those that train together."""
    distributed = sys.modules.get("torch.distributed")  # not imported before torch is needed
    return not (distributed and distributed.is_initialized() and distributed.get_rank())


def say(text: str) -> None:
    """Print in the first process, at once."""
    if is_first():
        print(text, flush=True)


def stop(error: InputError) -> NoReturn:
    """Print the error as one line on stderr and exit with status 1.

    Where the first process of a machine finds it too, torchrun ends the others before they repeat it. A process among others
    leaves at once: to take leave in order, NCCL would wait for them, and they wait for this one.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(3)
    # From a loading process it comes with that one's traceback, at whose end it stands. One write, newline and all: the lines
    # of several processes must not run into each other. Not to sys.stderr, which torch.distributed replaces meanwhile.
    message = str(error).rpartition("errors.InputError: ")[2].removesuffix("\\n")
    sys.__stderr__.write(f"error: {message}\n")
    distributed = sys.modules.get("torch.distributed")
    # A loading process that is still starting would find this one's semaphores gone, and say so with a traceback.
    if multiprocessing.active_children() or (distributed and distributed.is_initialized()):
        sys.stdout.flush()
        sys.__stderr__.flush()
        os._exit(1)
    sys.exit(1)


def _report(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """What an exception that nobody catches prints."""
    if isinstance(error, InputError):
        stop(error)
    elif type(error).__name__ == "OutOfMemoryError":
        stop(InputError(f"the GPU's memory is full at {batch}: try half of it, mixed precision, or a GPU that nobody else uses"))
    elif isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
        stop(InputError(f"this machine's memory is full at {batch}: try half of it"))
    elif isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        stop(InputError(f"batch norm gets a single value per channel at {batch}: it needs two images or more per process"))
    elif isinstance(error, RuntimeError) and re.search("(closed|reset) by peer|/gloo/transport/", str(error)):
        time.sleep(5)  # another process has gone, and has said why; torchrun ends this one meanwhile
        stop(InputError("another process of this run has ended; see what it, or torchrun on its machine, says"))
    elif isinstance(error, OSError) and error.filename is not None:  # a name that is too long, a folder that may not be read
        stop(InputError(f"{error.filename}: {error.strerror}"))
    elif isinstance(error, KeyboardInterrupt):
        sys.stderr.write("interrupted; --resume auto continues a training after its last finished epoch\n")
    elif isinstance(error, ModuleNotFoundError):
        missing = f"the package {error.name!r} is not installed for {sys.executable}"
        sys.stderr.write(f"error: {missing}; activate the environment that has it, or install requirements.txt\n")
    else:
        sys.__excepthook__(kind, error, trace)


# It takes effect with the import of this module, which is therefore the first of every command (see pyproject.toml).
sys.excepthook = _report
