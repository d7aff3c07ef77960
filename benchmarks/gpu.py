"""What needs a GPU, in slices: tests, the loss, training steps, extraction of logits, CIFAR epochs, papers' rows on CIFAR-10.

    bash benchmarks/gpu.sh --minutes 9              # runs the parts that have no fresh result for this GPU model
    bash benchmarks/gpu.sh --cpu-rehearsal          # all of it in miniature, on a CPU, in a copy of the repository
    bash benchmarks/gpu.sh --pack DIR --data-path FOLDER    # CIFAR-10 as archives, and wheels, as DIR/part1, part2, ...
    bash benchmarks/gpu.sh --fill output/gpu        # what came back becomes results/tables/gpu_*.json and results/runs/

A result is fresh if it did not fail, and if GPU model, PyTorch and the code it depends on have not changed. Finished parts are in
one file, results.json in --output: copy it to another machine to continue there. A machine without network takes its data from
--packs, a folder that holds any of the parts; those that came in earlier calls are kept in output/gpu_data.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import packs
from table import CORES, write

TOP = Path(__file__).resolve().parents[1]
MODELS = {"deit_small": 4, "resnet50": 4, "mobilenet_v2": 3, "resnet18": 2, "resnet20": 2, "resnet32": 2}
EXPERIMENTS = "cifar10-resnet20 cifar10-longtail-resnet32-50 cifar10-longtail-resnet32-100 cifar10-resnet20-paper cifar10-long"
# Each part: minutes on a GPU, folders whose code it depends on, command; {table} is the file of its table, if it makes one.
LOSS, STEP = "benchmarks/loss.py --json {table}", "benchmarks/train_step.py --json {table}"
LOGITS, CIFAR = "benchmarks/logits.py --json {table} --data-path {images}", "benchmarks/cifar.py --json {table}"
CONV, PYTEST = ["Conv/common_resnet"], "-m pytest -q -p no:cacheprovider tests/test_gpu.py -m gpu -rs"
REHEARSAL = "CPU rehearsal"  # in place of the GPU's name
PARTS = {
    "tests": (6, ["Deit", *CONV, "viz", "tests"], PYTEST + " -n 4" * bool(find_spec("xdist"))),
    "loss": (4, ["Deit"], f"{LOSS} --seconds 5"),
    **{
        f"train_step {model}": (minutes, ["Deit", *CONV], f"{STEP} --models {model} --steps {10 if minutes > 2 else 50}")
        for model, minutes in MODELS.items()
    },
    "logits": (2, ["viz"], f"{LOGITS} --workers {{cores}} --batch-size 256"),
    "cifar": (2, CONV, f"{CIFAR} --workers {{cores}}"),
}
TINY = {
    "tests": (1, [], PYTEST),
    "loss": (1, [], f"{LOSS} --shapes 8x10 8x10:amp 2x3x4x4:bf16 --seconds 0.1"),
    "train_step tiny_vit": (1, [], f"{STEP} --models tiny_vit --steps 1 --rounds 1 --modes eager"),
    "train_step tiny_resnet": (1, [], f"{STEP} --models tiny_resnet --steps 1 --rounds 1 --modes eager"),
    "logits": (1, [], f"{LOGITS} --models test_resnet --workers 0 --batch-size 2 --rounds 1"),
    "cifar": (1, [], f"{CIFAR} --steps 1 --rounds 1 --batch-size 8 --workers 0"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="stop after this many minutes; start no part that would not fit")
    parser.add_argument("--output", type=Path, help="folder for results.json and log; if omitted: output/gpu[_rehearsal]")
    parser.add_argument("--packs", type=Path, default=TOP / "gpu_packs", help="folder with the parts that --pack wrote")
    parser.add_argument("--jobs", type=int, default=4, help="training runs in parallel on the GPU")
    parser.add_argument("--cpu-rehearsal", action="store_true", help="run everything in miniature on a CPU")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="write what a machine without network needs into DIR, and stop")
    parser.add_argument("--data-path", type=Path, metavar="FOLDER", help="folder with the archives of CIFAR-10")
    parser.add_argument("--fill", type=Path, metavar="FOLDER", help="turn FOLDER's results.json into tables and runs, and stop")
    args = parser.parse_args()
    args.output = args.output or TOP / ("output/gpu_rehearsal" if args.cpu_rehearsal else "output/gpu")
    if args.pack:
        return packs.pack(args.pack, args.data_path)
    if args.fill:
        return fill(args.fill)
    if not find_spec("torch"):
        mend = "activate the environment that has it, or install requirements.txt"
        sys.exit(f"error: PyTorch is not installed for {sys.executable}; {mend}")
    if args.cpu_rehearsal and not (TOP / "rehearsal").exists():
        return rehearse(args)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command goes on"))
    measure(args, time.time() + 60 * args.minutes)


def measure(args, deadline: float) -> None:
    cifar, environment = args.data_path or packs.receive(args.packs), dict(os.environ)
    if packs.SITE.is_dir():
        environment["PYTHONPATH"] = str(packs.SITE)
    import torch

    if not args.cpu_rehearsal and not torch.cuda.is_available():
        sys.exit("error: this machine has no GPU that PyTorch can use; --cpu-rehearsal tries everything in miniature on a CPU")
    gpu = REHEARSAL if args.cpu_rehearsal else torch.cuda.get_device_name()
    cores = max(1, CORES - 1)
    args.output.mkdir(parents=True, exist_ok=True)
    results = args.output / "results.json"
    found = json.loads(results.read_text()) if results.exists() else {"parts": {}, "runs": {}}
    restore_runs(found["runs"])
    parts = TINY if args.cpu_rehearsal else PARTS
    failed = {name for name, part in found["parts"].items() if part["status"]}  # retried after the others
    for name, (minutes, folders, command) in sorted(parts.items(), key=lambda part: part[0] in failed):
        key = {"gpu": gpu, "torch": torch.__version__, "command": command, "code": digest([command.split()[0], *folders])}
        if (key | {"status": 0}).items() <= found["parts"].get(name, {}).items():
            print(f"{name}: fresh")
            continue
        if deadline - time.time() < 60 * minutes:
            if minutes < args.minutes:
                return print(f"{name}: needs {minutes} minutes, which are not left; the same command goes on")
            print(f"{name}: needs {minutes} minutes; give --minutes {minutes + 1} or more")
            continue
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "table.json"
            if "{images}" in command:
                make_images(Path(folder), 4 if args.cpu_rehearsal else 2000)
            words = [word.format(table=table, images=folder, cores=cores) for word in command.split()]
            print(f"{name}: {command}", flush=True)
            start = time.time()
            status, said = run(words, deadline, environment, args.output / "log.txt")
            if status is None:
                return print(f"{name}: stopped at the limit; the same command begins it again")
            part = key | {"seconds": round(time.time() - start, 1), "status": status, "said": said}
            part |= {"table": json.loads(table.read_text())} if table.exists() else {}
        found["parts"][name] = part
        write(results, found)
        print(f"{name}: {'done' if status == 0 else 'FAILED'} in {part['seconds']:.0f} s; {said[-1] if said else ''}", flush=True)
    if not cifar and not args.cpu_rehearsal:
        return print(f"runs: CIFAR-10 is not whole; see --data-path, and --pack for parts that go into {args.packs}")
    if deadline - time.time() < 60:
        return print("runs: less than a minute is left; the same command goes on")
    words = ["results/reproduce.py", *EXPERIMENTS.split(), "--data-path", f"cifar10={cifar}", "--device", "cuda"]
    if args.cpu_rehearsal:
        words = ["results/reproduce.py", "digits-parity", "--methods", "CE", "--seeds", "1", "--device", "cpu"]
    minutes = 0.02 if args.cpu_rehearsal else max(0.1, (deadline - time.time()) / 60 - 0.3)
    words += ["--jobs", str(args.jobs), "--minutes", f"{minutes:.2f}"]
    print(f"runs: {' '.join(words)}", flush=True)
    status, said = run(words, deadline + 60, environment, args.output / "log.txt")
    for file in (TOP / "results/runs").glob("*/*.json"):
        if json.loads(file.read_text())["hardware"]["gpu"] == gpu:
            found["runs"][str(file.relative_to(TOP))] = file.read_text()
    write(results, found)
    print(f"runs: {len(found['runs'])} of this GPU; {said[-1] if said else ''}\nresults: {results}")
    if status:
        sys.exit(f"error: the runs failed; see {args.output / 'log.txt'}")


def run(words: list[str], deadline: float, environment: dict, log: Path) -> tuple[int | None, list[str]]:
    """Exit status, or None if the deadline ended the process, and the last lines of its output, all of which is in the log."""
    with open(log, "a") as file:
        start = file.tell()
        process = subprocess.Popen(
            [sys.executable, *words], cwd=TOP, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            status = process.wait(max(1, deadline - time.time()))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
    return status, log.read_bytes()[start:].decode(errors="replace").splitlines()[-40:]


def digest(names: list[str]) -> str:
    """A hash of scripts, and of the Python files in folders, of the repository."""
    content, paths = hashlib.sha256(), [TOP / name for name in names]
    for file in sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))):
        content.update(file.read_bytes())
    return content.hexdigest()[:16]


def make_images(folder: Path, count: int) -> None:
    """An image folder of smooth noise, 500 x 375 px, JPEG: about as large and as slow to decode as ImageNet's images."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count):
        file = folder / f"val/{number % 2}/{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        small = random.integers(0, 256, (94, 125, 3), dtype=np.uint8)
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(file, quality=90)


def restore_runs(runs: dict[str, str]) -> None:
    for name, content in runs.items():
        if re.fullmatch(r"results/runs/[\w.-]+/[\w.-]+\.json", name) and not (TOP / name).exists():
            (TOP / name).parent.mkdir(parents=True, exist_ok=True)
            (TOP / name).write_text(content)


def fill(folder: Path) -> None:
    """Write the tables, with those of several models merged into one, and the runs."""
    file, tables, measured_on = folder / "results.json", {}, {}
    if not file.is_file():
        sys.exit(f"error: {folder}: no results.json in it")
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        sys.exit(f"error: {file}: not a whole JSON file ({error})")
    for name, part in found["parts"].items():
        if part["gpu"] == REHEARSAL:
            sys.exit(f"error: {file}: of a rehearsal on a CPU, whose numbers are no results; see --output")
        if "table" in part and part["status"] == 0:
            kind, machine = name.split()[0], f"{part['gpu']} with torch {part['torch']}"
            if measured_on.setdefault(kind, machine) != machine:
                sys.exit(f"error: {file}: {kind} was measured on {measured_on[kind]} and on {machine}; one table has one machine")
            tables[kind] = part["table"] | {"rows": tables.get(kind, {}).get("rows", []) + part["table"]["rows"]}
            tables[kind]["command"] = re.sub(r" --models \S+", "", tables[kind]["command"])
    for kind, table in tables.items():
        write(TOP / f"results/tables/gpu_{kind}.json", table)
    restore_runs(found["runs"])
    print(f"{len(tables)} tables and {len(found['runs'])} runs; python results/reproduce.py --render shows them")


def rehearse(args) -> None:
    """Run this script in a copy of the repository, which it may write to."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        # With the finished runs of the digits, the rehearsal would have none to start.
        unwanted = shutil.ignore_patterns(".git", ".venv", "output", "__pycache__", "*.zip", "digits-parity")
        shutil.copytree(TOP, copy, ignore=unwanted, symlinks=True)
        (copy / "rehearsal").touch()
        words = ["--cpu-rehearsal", "--output", args.output.resolve(), "--packs", args.packs.resolve()]
        words += ["--jobs", "1", "--minutes", str(args.minutes)]
        sys.exit(subprocess.run([sys.executable, copy / "benchmarks/gpu.py", *words]).returncode)


if __name__ == "__main__":
    main()
