"""The one kind of error that is the user's to mend: printed as a single line, without a traceback."""

import os
import sys
import time
from typing import NoReturn

import torch.distributed as dist


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
    if dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    sys.exit(1)
