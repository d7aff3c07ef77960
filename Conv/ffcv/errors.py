"""The one kind of error that is the user's to mend: printed as a single line, without a traceback."""

import os
import sys
import time
from pathlib import Path
from typing import NoReturn


class InputError(ValueError):
    """Says what is wrong, where, and what to do."""


def stop(error: InputError) -> NoReturn:
    """Print the error as one line on stderr and exit with status 1.

    Where the first process of a machine finds it too, torchrun ends the others before they repeat it.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(3)
    # One write, newline and all: the lines of several processes must not run into each other.
    sys.stderr.write(f"error: {error}\n")
    sys.exit(1)


def no_ffcv(error: ImportError) -> NoReturn:
    """Say that FFCV does not import, why, and what installs it."""
    reason = str(error).splitlines()[0]
    stop(InputError(f"FFCV does not import here ({reason}); install it with: bash {Path(__file__).parent / 'install.sh'}"))
