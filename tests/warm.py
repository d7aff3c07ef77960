"""Commands in processes forked from one that has imported PyTorch: the import takes seconds, and so does the clean-up at exit.

    Warm().run(["Deit/main.py", "--epochs", "1"], cwd, timeout)

The forked process runs the script as `python SCRIPT` does: as __main__, with its folder first on the path. Exit codes, uncaught
errors and exit handlers are as usual. Scripts that it starts itself, as torchrun does, are forked too. Only the command lines in
/proc differ: they are that of this file.
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import multiprocessing.util
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TextIO

# What most commands import, and parts that these import late. Nothing whose import depends on the environment.
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
    """The process from which commands are forked; it ends with the current one."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        with theirs:
            words = [sys.executable, __file__, str(theirs.fileno())]
            self.process = subprocess.Popen(words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self.answers, self.number = self.socket.makefile(), None

    def run(self, words: list[str], cwd: Path, timeout: float) -> subprocess.CompletedProcess:
        """Run `python WORDS...` and return what it printed; raise subprocess.TimeoutExpired after `timeout` seconds."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            number, late = self.start(words, cwd, out, err), threading.Event()

            def end() -> None:
                late.set()
                os.kill(number, signal.SIGKILL)

            timer = threading.Timer(timeout, end)
            timer.start()
            try:
                code = self.wait()
            finally:
                timer.cancel()
            if late.is_set():
                raise subprocess.TimeoutExpired(words, timeout)
            for file in (out, err):
                file.seek(0)
            return subprocess.CompletedProcess([sys.executable, *words], code, out.read(), err.read())

    def start(self, words: list[str], cwd: Path, out: TextIO, err: TextIO) -> int:
        """Start `python WORDS...` and return its process id. Only one runs at a time: one that was not waited for is killed."""
        if self.number:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.number, signal.SIGKILL)
            self.wait()
        request = json.dumps([words, str(cwd), dict(os.environ)]).encode()
        socket.send_fds(self.socket, [len(request).to_bytes(8, "big")], [out.fileno(), err.fileno()])
        self.socket.sendall(request)
        self.number = int(self.answers.readline())
        return self.number

    def wait(self) -> int:
        """The exit status of the started process, negative for a signal."""
        status, self.number = int(self.answers.readline()), None
        return status


def serve(connection: socket.socket) -> tuple[list[str], str, dict[str, str]]:
    """Fork a process per request and answer with its id and exit status. Returns only in the forked processes."""
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


class Popen(subprocess.Popen):
    """Forks this process for `python [-u] SCRIPT`, for which subprocess.Popen starts a new interpreter."""

    def __init__(self, args, **options) -> None:
        words = list(map(str, args)) if isinstance(args, (list, tuple)) else [args]
        if words[0] == sys.executable and any(word.endswith(".py") for word in words[1:3]):
            options["preexec_fn"] = lambda: replace(words, options.get("env"), options.get("pass_fds", ()))
        super().__init__(args, **options)


def replace(words: list[str], environment: dict[str, str] | None, keep: Sequence[int]) -> NoReturn:
    """Make the process that subprocess.Popen has forked end as `python WORDS[1:]...`, after doing what exec would do."""
    low = 3
    for file in sorted(keep):
        os.closerange(low, file)
        low = file + 1
    os.closerange(low, 1 << 16)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for name, module in list(sys.modules.items()):  # the old script's modules, whose names the new one may also use
        if str(getattr(module, "__file__", None)).startswith(sys.path[0] + os.sep) and name not in LOADED:
            del sys.modules[name]
    sys.excepthook = sys.__excepthook__
    atexit._clear()
    atexit.register(multiprocessing.util._exit_function)
    end(words[1 + (words[1] == "-u") :], os.environ if environment is None else environment)


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


def end(words: list[str], environment: dict[str, str]) -> NoReturn:
    """Run `python WORDS...` in this process and end with its exit status."""
    BUFFERS.extend((sys.stdout, sys.stderr))  # never flushed or collected here: the parent process does that
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
    environment = dict(environment)
    os.environ.clear()
    os.environ.update(environment)
    sys.modules["numpy"].random.seed()  # its global generator, which the import seeded alike for all forks
    status = execute(words)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # an orderly exit takes all modules apart, which lasts over a second


if __name__ == "__main__":
    BUFFERS: list[io.TextIOBase] = []
    subprocess.Popen = Popen
    for name in PRELOAD:
        importlib.import_module(name)
    LOADED = set(sys.modules)
    gc.collect()
    gc.freeze()
    command, folder, environment = serve(socket.socket(fileno=int(sys.argv[1])))
    os.chdir(folder)
    end(command, environment)
