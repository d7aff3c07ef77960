"""The one kind of error that is the user's to mend: printed as a single line, without a traceback."""

import os
import re
import sys
import time
from collections.abc import Callable
from typing import NoReturn


class InputError(ValueError):
    """Says what is wrong, where, and what to do."""


def stop(error: InputError) -> NoReturn:
    """Print the error as one line on stderr and exit with status 1.

    Where the first process of a machine finds it too, torchrun ends the others before they repeat it.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(3)
    # From a loading process it comes with that one's traceback; the message is the last line of it. One write, newline and
    # all: the lines of several processes must not run into each other.
    message = re.sub(r"^[\w.]*\bInputError: ", "", str(error).splitlines()[-1])
    sys.stderr.write(f"error: {message}\n")
    sys.exit(1)


def run(main: Callable[[], None]) -> None:
    """Run a command; a mistake of the user, and Ctrl-C, end it with one line and without a traceback."""
    try:
        main()
    except InputError as error:
        stop(error)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was not whole was not written\n")
        sys.exit(130)


def reason(error: object) -> str:
    """What a library says of a failure, as part of one line: its message's first line, or its kind where it has none."""
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__


def _say_what_is_missing(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """A package that is not installed is the user's to mend, too."""
    if isinstance(error, ModuleNotFoundError):
        missing = f"the package {error.name!r} is not installed for {sys.executable}"
        sys.stderr.write(f"error: {missing}; activate the environment that has it, or install requirements.txt\n")
    else:
        sys.__excepthook__(kind, error, trace)


# It takes effect with the import of this module, which is therefore the first of every command (see pyproject.toml).
sys.excepthook = _say_what_is_missing
