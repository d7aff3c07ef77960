"""python faults.py kill|fill N SCRIPT WORDS: run a script, and interfere with the N-th file that it flushes to the disk.

kill: SIGKILL when the file is written but does not have its final name yet. fill: from then on no file can grow beyond half the
size of that one, as on a full disk.
"""

import os
import resource
import runpy
import signal
import sys
from pathlib import Path

what, number, script = sys.argv[1], int(sys.argv[2]), sys.argv[3]
flush = os.fsync


def interfere(descriptor: int) -> None:
    global number
    flush(descriptor)
    number -= 1
    if number == 0 and what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.fstat(descriptor).st_size // 2,) * 2)


os.fsync = interfere
sys.argv = sys.argv[3:]
sys.path[0] = str(Path(script).parent)
runpy.run_path(script, run_name="__main__")
