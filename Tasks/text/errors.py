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
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; --resume auto continues after the last finished epoch\n")
        sys.exit(130)
