"""The one kind of error that the user can correct: printed as a single line, without a traceback."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Says what is wrong, where, and what to do."""


def run(main: Callable[[], None]) -> None:
    """Run a command. A mistake of the user, or Ctrl-C, ends it with one line and without a traceback."""
    try:
        main()
    except InputError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        sys.stderr.write("error: the GPU's memory is full: try half of --batch-size, or a GPU that no other process uses\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; --resume auto continues after the last finished epoch\n")
        sys.exit(130)


def _say_what_is_missing(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """A package that is not installed is the user's to mend, too."""
    if isinstance(error, ModuleNotFoundError):
        missing = f"the package {error.name!r} is not installed for {sys.executable}"
        sys.stderr.write(f"error: {missing}; activate the environment that has it, or install requirements.txt\n")
    else:
        sys.__excepthook__(kind, error, trace)


# It takes effect with the import of this module, which is therefore the first of every command (see pyproject.toml).
sys.excepthook = _say_what_is_missing
