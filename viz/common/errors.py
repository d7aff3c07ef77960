"""The errors that the user can fix: printed as a single line, without a traceback."""

import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn


class InputError(ValueError):
    """Says in one line what is wrong, where, and what to do."""

    def __init__(self, message: object):
        text = str(message)
        if text.startswith("Caught InputError in"):  # from a loading process it comes as the last line of a traceback
            text = text.splitlines()[-1].partition("InputError: ")[2]
        super().__init__(printable(text))


def printable(text: object) -> str:
    """The text on one line: line breaks, other control characters and bytes that are not valid characters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text).replace("\u00a0", " "))


def say(line: object) -> None:
    """Print one line."""
    print(printable(line), flush=True)


def warn(line: object) -> None:
    """Print a warning as one line on stderr."""
    sys.stderr.write(f"warning: {printable(line)}\n")


def stop(message: object) -> NoReturn:
    """Print an error as one line on stderr and exit with status 1.

    The other processes of a machine wait first: if its first process fails too, torchrun ends them before they repeat the error.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(3)
    sys.stderr.write(f"error: {printable(message)}\n")  # one write: the lines of several processes must not mix
    sys.exit(1)


def run(main: Callable[[], None]) -> None:
    """Run a command. A user error, a full disk, and Ctrl-C end it with one line and without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # for characters that the terminal's encoding lacks
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        stop(error)
    except BrokenPipeError:  # the reader of the output has closed it, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
        sys.exit(141)  # the status that a shell gives a command that SIGPIPE ended
    except OSError as error:  # not expected by any part of the command
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try once more to write the output
        stop(f"{error.filename or 'the output'}: {reason(error)}")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; incomplete files were not written\n")
        sys.exit(130)


def reason(error: object) -> str:
    """A library's error, as part of one line: the first line of its message, or its type if it has none."""
    text = str(getattr(error, "strerror", None) or error)
    return text.splitlines()[0][:160] if text else type(error).__name__


def _say_what_is_missing(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """Report a package that is not installed in one line: the user can fix that, too."""
    if isinstance(error, ModuleNotFoundError):
        missing = f"the package {error.name!r} is not installed for {sys.executable}"
        sys.stderr.write(f"error: {missing}; activate the environment that has it, or install requirements.txt\n")
    else:
        sys.__excepthook__(kind, error, trace)


# It takes effect when this module is imported, so every command imports this module first (see pyproject.toml).
sys.excepthook = _say_what_is_missing
