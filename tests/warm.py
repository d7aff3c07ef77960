"""Commands in processes forked from one that has imported PyTorch: the import takes seconds, and taking it apart at exit, too.

    Warm().run(["Deit/main.py", "--epochs", "1"], cwd, timeout)

The forked process runs the script as `python SCRIPT` does: as __main__, with its folder first on the path. Exit codes, uncaught
errors and what waits for the exit are as ever. Only its command line in /proc is that of this file.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

# What most commands import, and its parts that are imported late. Nothing that depends on the environment at its import.
PRELOAD = (
    "torch",
    "torch._dynamo",
    "torchvision",
    "torchvision.transforms.v2",
    "timm",
    "sklearn.datasets",
    "sklearn.linear_model",
)


class Warm:
    """The process that is forked from; it ends with this one."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        with theirs:
            words = [sys.executable, __file__, str(theirs.fileno())]
            self.process = subprocess.Popen(words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self.answers = self.socket.makefile()

    def run(self, words: list[str], cwd: Path, timeout: float) -> subprocess.CompletedProcess:
        """Run `python WORDS...` and return what it printed; subprocess.TimeoutExpired after so many seconds."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            request = json.dumps([words, str(cwd), dict(os.environ)]).encode()
            socket.send_fds(self.socket, [len(request).to_bytes(8, "big")], [out.fileno(), err.fileno()])
            self.socket.sendall(request)
            number, late = int(self.answers.readline()), threading.Event()

            def end() -> None:
                late.set()
                os.kill(number, signal.SIGKILL)

            timer = threading.Timer(timeout, end)
            timer.start()
            code = int(self.answers.readline())
            timer.cancel()
            if late.is_set():
                raise subprocess.TimeoutExpired(words, timeout)
            for file in (out, err):
                file.seek(0)
            return subprocess.CompletedProcess([sys.executable, *words], code, out.read(), err.read())


def serve(connection: socket.socket) -> tuple[list[str], str, dict[str, str]]:
    """Fork a process per request and answer with its number and exit status. Returns in the forked processes only."""
    while True:
        size, files, *_ = socket.recv_fds(connection, 8, 2)
        if not size:
            os._exit(0)  # the tests are over
        request = json.loads(connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
        number = os.fork()
        if number == 0:
            connection.close()
            for file, standard in zip(files, (1, 2), strict=True):
                os.dup2(file, standard)
        for file in files:
            os.close(file)
        if number == 0:
            return request
        connection.sendall(b"%d\n" % number)
        connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]))


def execute(words: list[str]) -> int:
    """Run `python WORDS...` in this process and return its exit status."""
    sys.argv = words[words[0] == "-m" :]
    try:
        if words[0] == "-m":
            sys.path[0] = os.getcwd()
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(words[0]).resolve().parent)
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as leaving:
        if isinstance(leaving.code, int | None):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    for name in PRELOAD:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    command, folder, environment = serve(socket.socket(fileno=int(sys.argv[1])))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.modules["numpy"].random.seed()  # its global generator, which the import has seeded for all of them
    status = execute(command)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # an orderly end takes all modules apart, for more than a second
