"""Run the experiments that test the papers' claims, and render the results.

    python results/reproduce.py --list                     # every experiment: data, methods, seeds, minutes, what is done
    python results/reproduce.py fashion-coarse             # runs what is missing, also after a kill, then renders
    python results/reproduce.py cifar10-fine --data-path cifar10=FOLDER --jobs 2 --nice 10
    python results/reproduce.py cifar10-resnet20 --device cuda --jobs 4 --minutes 9   # as much as fits, then stops
    python results/reproduce.py imagenet-resnet50 --data-path imagenet=FOLDER       # a planned one, where there are GPUs
    python results/reproduce.py --power fashion-coarse     # how many seeds each claim would need, from the finished runs
    python results/reproduce.py --render                   # the pages of results/ and the blocks of all others, from the JSON

Several of these commands may work on one experiment, also on machines that share the folder: each takes runs that no other has.
A finished run is results/runs/<experiment>/<method>-seed<n>.json; its checkpoint stays in output/results/.
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import errors  # noqa: F401  it reports a missing package in one line

from tqdm import tqdm

from experiments import EXPERIMENTS, Experiment
from run import CORES, TOP, Failed, Machine, Run, together

ON_A_GPU = 4  # runs at a time: small networks leave a GPU idle, and many would fill its memory
STOPPED = "stopped; the same command goes on where it was"


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))  # so that child processes are stopped, too
    parser = argparse.ArgumentParser(description="Run the experiments that test the papers' claims, and render the results.")
    parser.add_argument(
        "experiments", nargs="*", metavar="EXPERIMENT", help="experiments to run (see --list); finished runs are kept"
    )
    parser.add_argument("--list", action="store_true", help="list the experiments and how many of their runs are finished")
    parser.add_argument(
        "--render", action="store_true", help="only write results/README.md, index.html and the blocks of other pages"
    )
    parser.add_argument("--power", metavar="EXPERIMENT", help="print how many seeds each claim would need")
    parser.add_argument(
        "--data-path", nargs="+", default=[], metavar="NAME=PATH", help="location of a data set, such as cifar10=FOLDER"
    )
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="run only these methods, such as CE 'LS 0.1'; if omitted: all"
    )
    parser.add_argument(
        "--seeds", type=int, help="seeds per method; if omitted: the experiment's number; pages show no seeds beyond it"
    )
    help_ = f"runs in parallel, which share the cores; if omitted: {CORES}, or {ON_A_GPU} with --device cuda"
    parser.add_argument("--jobs", type=int, help=help_)
    parser.add_argument("--minutes", type=float, help="stop after this many minutes; start no run that would not fit")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train and measure (%(default)s)")
    parser.add_argument("--nice", type=int, default=0, metavar="N", help="lower the priority of all runs by N, 0 to 19")
    args = parser.parse_args()
    check(args)
    args.jobs = args.jobs or (ON_A_GPU if args.device == "cuda" else CORES)
    if args.list:
        return show(args.jobs)
    if args.power:
        from power import power

        return print(power(args.power))
    if not args.experiments and not args.render:
        parser.error("name an experiment, or give --list, --power or --render")
    os.nice(args.nice)
    paths = dict(words.split("=", 1) for words in args.data_path)
    machine = Machine(args.device, max(1, CORES // args.jobs), {name: Path(path) for name, path in paths.items()})
    deadline = time.time() + 60 * args.minutes if args.minutes is not None else math.inf
    for name in args.experiments:
        if name in EXPERIMENTS:
            runs = chosen(name, args)
            left = finish(name, runs, machine, args, deadline)
            if left:
                why = "they need runs that --methods leaves out" if blocked(runs) else "the same command goes on"
                print(f"{name}: {left} of the runs asked for are left; {why}")
        else:
            run_planned(name, planned()[name], machine.data["imagenet"])
    from render import render

    render()


def check(args) -> None:
    """Exit with one line for unknown names and methods, for missing paths, and for options without effect."""
    plans = planned()
    instead = [name for name in ("list", "power", "render") if getattr(args, name)]
    others = [*(f"--{name}" for name in instead[1:]), *args.experiments]
    if instead and others:
        sys.exit(f"error: --{instead[0]} and {others[0]}: give one of them; the first runs no experiment")
    idle = [name for name in ("data_path", "methods", "seeds", "minutes", "nice") if getattr(args, name) and instead]
    if idle:
        sys.exit(f"error: --{idle[0].replace('_', '-')}: goes with experiments to run, not with --{instead[0]}")
    for name in [*args.experiments, *([args.power] if args.power else [])]:
        if name not in EXPERIMENTS and (name not in plans or name == args.power):
            sys.exit(f"error: {name}: no such experiment; there are {', '.join([*EXPERIMENTS, *plans])}")
    known = {experiment.source for experiment in EXPERIMENTS.values()} - {None} | {"imagenet"}
    paths = {}
    for words in args.data_path:
        name, mark, path = words.partition("=")
        if not mark or name not in known:
            sys.exit(f"error: --data-path {words}: NAME=PATH, where NAME is one of {', '.join(sorted(known))}")
        if not Path(path).exists():
            sys.exit(f"error: --data-path {words}: {path} does not exist")
        paths[name] = Path(path)
    for name in args.experiments:
        if name in plans:
            if not (paths.get("imagenet", Path("-")) / "train").is_dir():
                sys.exit(f"error: {name}: give --data-path imagenet=FOLDER, where FOLDER holds train/ and val/")
            for option in ("methods", "seeds", "minutes", "jobs"):
                if getattr(args, option) is not None:
                    sys.exit(f"error: --{option}: {name} is one command that runs as a whole; omit the option")
        if name in EXPERIMENTS:
            experiment = EXPERIMENTS[name]
            if experiment.needed and experiment.source not in paths:
                sys.exit(f"error: {name}: give --data-path {experiment.source}=PATH; see data/{experiment.source}/README.md")
            unknown = [method for method in args.methods or [] if method not in experiment.methods]
            if unknown:
                sys.exit(f"error: --methods {unknown[0]}: {name} has {', '.join(experiment.methods)}")
    for option, value, low in (
        ("jobs", args.jobs, 1),
        ("seeds", args.seeds, 1),
        ("minutes", args.minutes, 0),
        ("nice", args.nice, 0),
    ):
        if value is not None and value < low:
            sys.exit(f"error: --{option} {value}: it must be at least {low}")
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            sys.exit("error: --device cuda: this machine has no GPU that PyTorch can use")


def chosen(name: str, args) -> list[Run]:
    """The runs of an experiment that were asked for, seed by seed, so that finished runs are paired."""
    methods = [method for method in EXPERIMENTS[name].methods if method in (args.methods or EXPERIMENTS[name].methods)]
    return [Run(name, method, seed) for seed in range(args.seeds or EXPERIMENTS[name].seeds) for method in methods]


def blocked(runs: list[Run]) -> bool:
    """Whether one of the runs needs another that is neither finished nor asked for."""
    needs = [need for run in runs if not run.json.exists() for need in run.needs]
    return any(not need.json.exists() and need not in runs for need in needs)


def show(jobs: int) -> None:
    width = shutil.get_terminal_size((100, 24)).columns
    print(f"{'experiment':32} {'runs done':>10} {f'minutes left, {jobs} at once':>26}")
    for name, experiment in EXPERIMENTS.items():
        runs = [Run(name, method, seed) for method in experiment.methods for seed in range(experiment.seeds)]
        done = sum(run.json.exists() for run in runs)
        left = (len(runs) - done) * experiment.minutes / jobs
        print(f"{name:32} {f'{done} / {len(runs)}':>10} {left:26.0f}")
        what = f"{experiment.data}, {experiment.title}; {experiment.seeds} seeds of {', '.join(experiment.methods)}"
        for text in (what, f"{experiment.trainer} {experiment.options}"):
            print(textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False))
    print("\nplanned, with --data-path imagenet=FOLDER:")
    for name, plan in planned().items():
        print(f"{name:32} {plan['experiment']}")


def planned() -> dict[str, dict]:
    """The experiments of results/papers.json that have a command, by name."""
    return {plan["name"]: plan for plan in json.loads((TOP / "results/papers.json").read_text())["planned"] if "command" in plan}


def run_planned(name: str, plan: dict, data_path: Path) -> None:
    """Run a planned experiment's command; its trainers show their progress, and resume where they stopped."""
    environment = os.environ | {"DATA": str(data_path.resolve()), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if subprocess.run(["bash", "-c", plan["command"]], cwd=TOP, env=environment).returncode:
        sys.exit(f"error: {name} failed; see above")


def finish(name: str, runs: list[Run], machine: Machine, args, deadline: float) -> int:
    """Train and measure the missing runs, each of which writes its JSON file only when complete. Returns how many are left."""
    missing = [run for run in runs if not run.json.exists()]
    for run in runs:
        if run not in missing:
            run.check(json.loads(run.json.read_text()))
    if not missing:
        print(f"{name}: nothing to run, all {len(runs)} runs asked for are finished")
        return 0
    prepare(EXPERIMENTS[name])
    for need in (need for run in missing for need in run.needs if need.json.exists()):
        if not (need.folder / "checkpoint.pth").exists():
            why = f"others read its checkpoint, which is not in {need.folder}"
            sys.exit(f"error: {name}: {need.method} is finished, but {why}; to train it again, move {need.json} away")
    epochs, started = EXPERIMENTS[name].epochs, {}

    def starts() -> Iterator[Iterator[None] | None]:
        waiting = list(missing)
        while waiting:
            waiting = [run for run in waiting if not run.json.exists()]  # another process may have finished some
            ready = [run for run in waiting if all(need.json.exists() for need in run.needs) and fits(run)]
            if ready:  # runs that another process works on come last
                run, lock = next(((run, lock) for run in ready if (lock := run.claim())), (ready[0], None))
                waiting.remove(run)
                started[run] = time.time() if lock else None  # None: trained by another process, for an unknown time
                yield run.whole(machine, lock)
            elif any(not run.json.exists() for run in started):
                yield None  # a run that others need is under way
            else:
                return

    def fits(run: Run) -> bool:
        """Whether a run would end before the deadline. A run that is longer than the whole time is started all the same."""
        took = [run.json.stat().st_mtime - start for run, start in started.items() if start and run.json.exists()]
        seconds = max(took) if took else 60 * EXPERIMENTS[name].minutes
        left = deadline - time.time()
        return left > 0 and (seconds * (1 - run.finished_epochs / epochs) < left or seconds > 60 * args.minutes)

    pause = 1 if sys.stderr.isatty() else 60  # seconds between updates of the bar: a log file keeps every one
    with tqdm(total=epochs * len(missing), desc=name, unit="epoch", dynamic_ncols=True, mininterval=pause) as bar:

        def tick() -> None:
            bar.update(sum(run.finished_epochs for run in missing) - bar.n)

        try:
            together(starts(), args.jobs, tick, deadline)
        except Failed as error:
            sys.exit(f"error: {name}: {error}")
    return sum(not run.json.exists() for run in missing)


def prepare(experiment: Experiment) -> None:
    if experiment.prepare and not (TOP / experiment.path).exists():
        script, *words = experiment.prepare.split()
        if subprocess.run([sys.executable, TOP / script, *words], stdout=subprocess.DEVNULL).returncode:
            sys.exit(1)  # the script has said why


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(STOPPED)
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
        sys.exit(141)  # the status that a shell gives a command that SIGPIPE ended
