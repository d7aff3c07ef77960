"""A missing package ends a command with one line, without a traceback."""

import sys


def _say_what_is_missing(kind: type[BaseException], error: BaseException, trace: object) -> None:
    """A package that is not installed is the user's to mend, too."""
    if isinstance(error, ModuleNotFoundError):
        missing = f"the package {error.name!r} is not installed for {sys.executable}"
        sys.stderr.write(f"error: {missing}; activate the environment that has it, or install requirements.txt\n")
    else:
        sys.__excepthook__(kind, error, trace)


# It takes effect with the import of this module, which is therefore the first of every command (see pyproject.toml).
sys.excepthook = _say_what_is_missing
