"""Run the experiments that test the papers' claims, and write down what came out.

    python results/reproduce.py --list                 # every experiment: data, methods, seeds, minutes, what is done
    python results/reproduce.py fashion-coarse         # runs what is missing, goes on after a kill, then renders
    python results/reproduce.py imagenet-resnet50 --data-path ImageNet     # one of the planned ones, where there are GPUs
    python results/reproduce.py --render               # results/README.md and the tables of the main README, from the JSON alone

A finished run is results/runs/<experiment>/<method>-seed<n>.json; its checkpoint stays in output/results/.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

import digits_parity
import tables
from experiments import EXPERIMENTS, Experiment

TOP = Path(__file__).resolve().parents[1]
RUNS = TOP / "results/runs"
WORK = TOP / "output/results"
STOPPED = "stopped; the same command goes on where it was"


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))  # so that what was started is stopped too
    parser = argparse.ArgumentParser(description="Run the experiments behind the claims, and render what came out.")
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="see --list; their missing runs are run")
    parser.add_argument("--list", action="store_true", help="list the experiments and what of them is done")
    parser.add_argument("--render", action="store_true", help="only write results/README.md and the main README's tables")
    parser.add_argument(
        "--cifar10", type=Path, metavar="FOLDER", help="CIFAR-10, folder or ZIP form; none: torchvision downloads it"
    )
    parser.add_argument("--cifar10-name", default="CIFAR-10", metavar="NAME", help="what the pages call it (%(default)s)")
    parser.add_argument("--data-path", type=Path, metavar="FOLDER", help="ImageNet, for the planned experiments")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once, a core each (%(default)s)")
    args = parser.parse_args()
    plans = planned()
    unknown = [name for name in args.experiments if name not in EXPERIMENTS and name not in plans]
    if unknown:
        sys.exit(f"error: {unknown[0]}: no such experiment; there are {', '.join([*EXPERIMENTS, *plans])}")
    large = [name for name in args.experiments if name in plans]
    if large and not (args.data_path and (args.data_path / "train").is_dir()):
        sys.exit(f"error: --data-path {args.data_path}: {large[0]} needs ImageNet, a folder with train/ and val/")
    if args.jobs < 1:
        sys.exit(f"error: --jobs {args.jobs}: from 1 on")
    if args.list:
        return show(args.jobs)
    if not args.experiments and not args.render:
        parser.error("name an experiment, or give --list or --render")
    for name in args.experiments:
        if name in plans:
            run_planned(name, plans[name], args.data_path)
        elif name == "digits-parity":
            run_digits(EXPERIMENTS[name], args.jobs)
        else:
            cifar10 = name.startswith("cifar10")
            data_name = args.cifar10_name if cifar10 else EXPERIMENTS[name].data
            run(name, EXPERIMENTS[name], data_name, args.cifar10 if cifar10 else None, args.jobs)
    from render import render

    render()


def show(jobs: int) -> None:
    print(f"{'experiment':22} {'runs done':>10} {f'minutes left, {jobs} at once':>24}   what")
    for name, experiment in EXPERIMENTS.items():
        total = len(experiment.methods) * experiment.seeds
        done = sum(path(name, method, seed).exists() for method in experiment.methods for seed in range(experiment.seeds))
        left = (total - done) * experiment.minutes / jobs
        what = f"{experiment.data}, {experiment.title}; {experiment.seeds} seeds of {', '.join(experiment.methods)}"
        print(f"{name:22} {f'{done} / {total}':>10} {left:24.0f}   {what}")
        print(f"{'':61}{experiment.options or 'see results/digits_parity.py'}")
    print("\nplanned, with --data-path ImageNet:")
    for name, plan in planned().items():
        print(f"{name:22} {plan['experiment']}")


def planned() -> dict[str, dict]:
    """The experiments of results/papers.json that have a command, by name."""
    return {plan["name"]: plan for plan in json.loads((TOP / "results/papers.json").read_text())["planned"] if "command" in plan}


def run_planned(name: str, plan: dict, data_path: Path) -> None:
    """Run a planned experiment's command; its trainers say how far they are, and go on where they were."""
    environment = os.environ | {"DATA": str(data_path.resolve()), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if subprocess.run(["bash", "-c", plan["command"]], cwd=TOP, env=environment).returncode:
        sys.exit(f"error: {name} failed; see above")


def path(name: str, method: str, seed: int) -> Path:
    return RUNS / name / f"{method.replace(' ', '-')}-seed{seed}.json"


def run(name: str, experiment: Experiment, data_name: str, data_path: Path | None, jobs: int) -> None:
    """Train and measure what is missing, `jobs` runs at once; each leaves its JSON file only when it is whole."""
    missing = [
        (method, seed)
        for seed in range(experiment.seeds)
        for method in experiment.methods
        if not path(name, method, seed).exists()
    ]
    others = {json.loads(file.read_text())["data"] for file in (RUNS / name).glob("*.json")} - {data_name}
    if missing and others:
        sys.exit(f"error: {RUNS / name} holds runs on {others.pop()}: move them away, or give --cifar10-name that name")
    going: dict[subprocess.Popen, tuple[str, int]] = {}
    with tqdm(total=len(missing), desc=name, unit="run", dynamic_ncols=True) as bar:
        try:
            while missing or going:
                while missing and len(going) < jobs:
                    method, seed = missing.pop(0)
                    words = [name, method, str(seed), data_name] + ([str(data_path.resolve())] if data_path else [])
                    threads = max(1, (os.cpu_count() or 1) // jobs)
                    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
                    process = subprocess.Popen([sys.executable, TOP / "results/one_run.py", *words], env=environment)
                    going[process] = method, seed
                time.sleep(0.2)
                for process in [process for process in going if process.poll() is not None]:
                    method, seed = going.pop(process)
                    if process.returncode:
                        sys.exit(f"error: {name}, {method}, seed {seed} failed; see {WORK / name}")
                    bar.update()
        finally:
            for process in going:
                process.terminate()


def run_digits(experiment: Experiment, jobs: int) -> None:
    """The main job's comparison with more seeds: it trains through Deit/ and has its own measuring."""
    output = WORK / "digits-parity"
    command = [sys.executable, TOP / "results/digits_parity.py", "--seeds", str(experiment.seeds), "--output", output]
    if subprocess.run([*command, "--jobs", str(jobs)]).returncode:
        sys.exit("error: digits-parity failed; see above")
    summary = json.loads((output / "summary.json").read_text())
    for method, rows in summary["runs"].items():
        for row in rows:
            metrics = {key: value for key, value in row.items() if key not in ("seed", "seconds")}
            options = f"{summary['recipe']} {' '.join(digits_parity.LOSSES[method])} --seed {row['seed']}"
            command = f"python Deit/main.py --data-path data/digits/parity {options}"
            write("digits-parity", method, row["seed"], experiment.data, command, metrics, row["seconds"])


def write(
    name: str, method: str, seed: int, data: str, command: str, metrics: dict, seconds: float, measuring: float | None = None
) -> None:
    """Write a run's JSON file, whole or not at all."""
    import torch

    content = {
        "experiment": name,
        "method": method,
        "data": data,
        "model": EXPERIMENTS[name].model,
        "seed": seed,
        "command": command,
        "metrics": metrics,
        "training_seconds": seconds,
        "measuring_seconds": measuring,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "hardware": f"{platform.machine()} CPU, {torch.get_num_threads()} threads a run, {os.cpu_count()} cores, shared",
    }
    target = path(name, method, seed)
    target.parent.mkdir(parents=True, exist_ok=True)
    tables.write(target, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(STOPPED)
