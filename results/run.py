"""One run of an experiment, as processes: its trainer, then viz/measure.py; then its JSON file.

Each step is a generator that yields while a process works, so that one loop (`together`) drives many. A run's folder has a lock,
which its trainer holds, too: a trainer that outlived a killed reproduce.py, or that belongs to another one, is waited for.
"""

import fcntl
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

import tables
from experiments import EXPERIMENTS, Experiment
from tables import RESULTS, TOP

RUNS = RESULTS / "runs"
WORK = TOP / "output/results"
# What trainers know and logits do not show: accuracy of classes with many, medium or few training images, and mIoU.
FROM_TRAINER = ("many", "medium", "low", "miou")
# Packages whose versions matter for the numbers; more for some trainers.
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn")
MORE_PACKAGES = {"Tasks/segmentation/main.py": ("segmentation-models-pytorch",)}
NEEDS = re.compile(r"\{(.+?)\}")
# glibc returns the memory of large tensors to the kernel after each step, which then clears it for the next one. With these
# settings, which other C libraries ignore, a step of the small networks here takes about a fifth less time on a CPU. The results
# are the same.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the largest that glibc accepts
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
# The cores that this process may use, which taskset and clusters limit.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Failed(Exception):
    """A process of a run ended with an error: its last line, and the file that holds the others."""


@dataclass(frozen=True)
class Machine:
    """Where runs work: device, threads per run, and paths of the data, by the names of --data-path."""

    device: str = "cpu"
    threads: int = 1
    data: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A method and a seed of an experiment, whose checkpoint, log and printed lines stay in `folder`."""

    name: str
    method: str
    seed: int
    work: Path = WORK
    experiment: Experiment = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "experiment", self.experiment or EXPERIMENTS[self.name])

    @property
    def stem(self) -> str:
        return f"{self.method.replace(' ', '-')}-seed{self.seed}"

    @property
    def folder(self) -> Path:
        return self.work / self.name / self.stem

    @property
    def json(self) -> Path:
        return RUNS / self.name / f"{self.stem}.json"

    @property
    def needs(self) -> list["Run"]:
        """Runs whose checkpoints this one reads."""
        methods = NEEDS.findall(self.experiment.methods[self.method])
        return [Run(self.name, method, self.seed, self.work, self.experiment) for method in methods]

    def claim(self) -> TextIO | None:
        """Lock this run's folder. Returns the open file that holds the lock, or None if another process works there.

        That process may be another reproduce.py, or a trainer that outlived one. If locking is not supported, which wait_for
        reports, the file is returned all the same.
        """
        lock = self._lock()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        except OSError:
            pass
        return lock

    @property
    def finished_epochs(self) -> int:
        log = self.folder / "log.jsonl"
        return min(log.read_text().count("\n"), self.experiment.epochs) if log.exists() else 0

    @property
    def options(self) -> str:
        return f"{self.experiment.options} {self.experiment.methods[self.method]} --seed {self.seed}"

    @property
    def command(self) -> str:
        """The trainer's command as pages show it: without the paths of this machine."""
        path = self.experiment.path or ("PATH" if self.experiment.needed else None)
        words = f"{self.options} --data-path {path}" if path else self.options
        return f"python {self.experiment.trainer} {NEEDS.sub(lambda found: found[1].replace(' ', '-'), words)}"

    def check(self, found: dict) -> None:
        """Exit with one line if `found`, the content of its JSON file, does not come from the experiment's present recipe."""
        if found["command"] != self.command:
            old = "the recipe in experiments.py has changed since; give the new one another name, or move the old runs away"
            sys.exit(f"error: {self.json.relative_to(TOP)}: {old}")

    def train(self, machine: Machine) -> Iterator[None]:
        """Train, resume training, or wait for the process that trains."""
        with self._lock() as lock:
            yield from wait_for(lock)
            yield from self._train(machine, lock)

    def whole(self, machine: Machine, lock: TextIO | None = None) -> Iterator[None]:
        """Train, measure, and write the JSON file. `lock` is what `claim` returned."""
        with lock or self._lock() as lock:
            yield from wait_for(lock)
            if self.json.exists():  # the process that was waited for has written it
                return
            yield from self._train(machine, lock)
            start, file = time.time(), self.folder / "measured.json"
            file.unlink(missing_ok=True)
            models = ["--input", "logits.pt"] if self.experiment.logits else ["--checkpoint", "checkpoint.pth"]
            words = [models[0], str(self.folder / models[1]), "--names", self.method, "--output", str(file)]
            if not self.experiment.logits:
                words += [*self._data_path(machine), "--device", machine.device]
                words += ["--transfer", "--transfer-labels", self.experiment.transfer] if self.experiment.transfer else []
            yield from work(["viz/measure.py", *words], self.folder / "measure.txt", machine.threads)
            (model,) = json.loads(file.read_text())["models"].values()
            last = json.loads((self.folder / "log.jsonl").read_text().splitlines()[-1])
            said = {key.removeprefix("val_"): value for key, value in last.items()} | self._of_test()
            metrics = model["metrics"] | {key: said[key] for key in FROM_TRAINER if key in said}
            self._write(metrics, last["seconds"], round(time.time() - start, 1), machine)

    def _of_test(self) -> dict:
        """The results of a trainer that has a separate test split; its log is about the validation split."""
        file = self.folder / "test.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def _lock(self) -> TextIO:
        self.folder.mkdir(parents=True, exist_ok=True)
        return open(self.folder / "lock", "w")

    def _train(self, machine: Machine, lock: TextIO) -> Iterator[None]:
        words = NEEDS.sub(lambda found: str(self.folder.parent / f"{found[1].replace(' ', '-')}-seed{self.seed}"), self.options)
        words = [*words.split(), "--output_dir", str(self.folder), "--resume", "auto", "--device", machine.device]
        words += ["--logits", str(self.folder / "logits.pt")] if self.experiment.logits else ["--eval-every", "100"]
        if machine.device == "cuda" and "--amp" not in words and not self.experiment.trainer.startswith("Tasks/"):
            words += ["--amp", "off"]  # these trainers' default on a CPU; on a GPU it is bf16
        command = [self.experiment.trainer, *words, *self._data_path(machine)]
        yield from work(command, self.folder / "train.txt", machine.threads, lock.fileno())

    def _data_path(self, machine: Machine) -> list[str]:
        path = TOP / self.experiment.path if self.experiment.path else machine.data.get(self.experiment.source)
        return ["--data-path", str(path.resolve())] if path else []

    def _write(self, metrics: dict, training: float, measuring: float, machine: Machine) -> None:
        """Write the JSON file, completely or not at all."""
        content = {
            "experiment": self.name,
            "method": self.method,
            "data": self.experiment.data,
            "model": self.experiment.model,
            "seed": self.seed,
            "command": self.command,
            "metrics": metrics,
            "training_seconds": training,
            "measuring_seconds": measuring,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in PACKAGES + MORE_PACKAGES.get(self.experiment.trainer, ())},
            },
            "hardware": hardware(machine),
        }
        self.json.parent.mkdir(parents=True, exist_ok=True)
        tables.write(self.json, json.dumps(content, indent=1) + "\n")


def hardware(machine: Machine) -> dict:
    """CPU, instruction set that torch uses (with another one, the same seed gives other weights), GPU, threads, cores.

    bfloat16: whether the CPU has bfloat16 instructions; without them, the trainers of Tasks/ compute in float32.
    """
    import torch

    gpu = torch.cuda.get_device_name() if machine.device == "cuda" else None
    instructions = torch.backends.cpu.get_cpu_capability()
    return {
        "cpu": cpu_name(),
        "instructions": instructions,
        "bfloat16": not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(cpu_info().split()),
        "gpu": gpu,
        "threads": machine.threads,
        "cores": CORES,
    }


def cpu_name() -> str:
    models = (line.split(": ")[1] for line in cpu_info().splitlines() if line.startswith("model name"))
    return next(models, platform.processor())


def cpu_info() -> str:
    return Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""


def work(command: list[str], printed: Path, threads: int, lock: int | None = None) -> Iterator[None]:
    """Run a script of the repository; what it prints is appended to a file. Closing the generator ends the process."""
    environment = KEEP_MEMORY | os.environ | {"OMP_NUM_THREADS": str(threads)}
    keep = [lock] if lock is not None else []
    with open(printed, "a") as file:
        start, words = file.tell(), [sys.executable, *command]
        process = subprocess.Popen(words, cwd=TOP, env=environment, stdout=file, stderr=file, pass_fds=keep)
    try:
        while process.poll() is None:
            yield
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode < 0:
        raise Failed(
            f"{command[0]}: killed by signal {-process.returncode}, perhaps because memory ran out; see --jobs, and {printed}"
        )
    if process.returncode:
        lines = printed.read_bytes()[start:].decode(errors="replace").splitlines() or [f"status {process.returncode}"]
        raise Failed(f"{command[0]}: {lines[-1].removeprefix('error: ')} (see {printed})")


def together(waiting: Iterator[Iterator[None] | None], jobs: int, tick: Callable[[], object], deadline: float = math.inf) -> None:
    """Drive generators, at most `jobs` at once; `waiting` yields the next, or None while there is none to start.

    tick() is called five times per second, to update a bar. At the deadline (in the seconds of time.time()) all are stopped.
    """
    going: list[Iterator[None]] = []
    ended = False
    try:
        while going or not ended:
            while len(going) < jobs and not ended:
                try:
                    new = next(waiting)
                except StopIteration:
                    ended = True
                    break
                if new is None:
                    break
                going.append(new)
            for job in list(going):
                try:
                    next(job)
                except StopIteration:
                    going.remove(job)
            tick()
            if time.time() > deadline:
                return
            time.sleep(0.2)
    finally:
        for job in going:
            job.close()


def over_the_bar(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def wait_for(lock: TextIO, tell: Callable[[str], None] = over_the_bar) -> Iterator[None]:
    """Wait for the lock of an open file and take it; if locking is not supported, continue with a note."""
    said, folder = False, Path(lock.name).parent
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not said:
                tell(f"another process is working in {folder}; waiting for it to end")
            said = True
            yield
        except OSError as error:
            return tell(f"note: {folder} cannot be locked ({error.strerror}); make sure that no second process works there")
