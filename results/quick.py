"""The first command: CE, label smoothing and MaxSup on digits that need no download, over a few seeds, in a few minutes.

    python results/quick.py            # what train_with_MaxSup.sh runs; it writes output/digits/

A small version of the experiment digits-parity, with the papers' recipes (LS at 0.1, MaxSup rising from 0.1 to 0.2): Deit/main.py
learns odd and even, and linear transfer from the frozen features is to the ten digits, which training never named. One more run
per loss learns all ten digits, for figures that need more than two classes. At the end it makes a page, report/index.html. After
a kill, the same command continues.
"""

import argparse
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TextIO

import errors  # noqa: F401  it reports a missing package in one line

from tqdm import tqdm

from claims import MAXSUP, OVERVIEW, SELECTIVE, TOPICS
from experiments import digits
from finished import values_of
from reproduce import STOPPED, prepare
from run import CORES, TOP, Failed, Machine, Run, together, wait_for, work
from runs_tables import COLUMNS, means, spread

METHODS = ("CE", "LS 0.1", "MaxSup 0.1-0.2")
NEAR_ZERO = "0.1"  # of ten logits hardly any is within the papers' 0.01
SHOWN = ("train_top1", "top1", "d_within_val", "r2_val", "transfer", "aurc", "ece")
IN_TERMINAL = ("top1", "d_within_val", "transfer", "aurc", "ece")  # as many as fit 100 characters
REPORTED = ("C1", "C2", "C3", "C4", "C5a", "C5b", "C6a", "C6b", "C9", "C13")  # the page and the table show them
TASK = "Training named two classes, odd and even; transfer is to the ten digits, from frozen features."
RECIPES = "LS at 0.1 and MaxSup rising from 0.1 to 0.2 are the papers' recipes: their difference mixes method and strength."
TOO_FEW = "These seeds are too few to judge the claims; results/README.md has the verdicts."
BAR = {"dynamic_ncols": True, "mininterval": 1, "disable": None}


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="seeds per loss")
    parser.add_argument("--epochs", type=int, default=12, help="epochs per run")
    parser.add_argument("--output", type=Path, default=TOP / "output/digits", help="folder for runs, tables and figures")
    parser.add_argument("--jobs", type=int, default=CORES, help="runs in parallel, one core each")
    args = parser.parse_args()
    for option, value, low in (("seeds", args.seeds, 2), ("epochs", args.epochs, 3), ("jobs", args.jobs, 1)):
        if value < low:
            sys.exit(f"error: --{option} {value}: it must be at least {low}")
    started, output = time.time(), args.output.resolve()
    parity, ten = (shorter(labels, args.epochs) for labels in ("parity", "ten"))
    runs = [Run("parity", method, seed, output, parity) for seed in range(args.seeds) for method in METHODS]
    of_ten = [Run("ten", method, 0, output, ten) for method in METHODS]
    try:
        with claim(output, runs[0].experiment.options):
            prepare(parity)
            prepare(ten)
            train([*of_ten, *runs], args.epochs, args.jobs)
            evaluate(runs, of_ten, output, args.jobs)
    except Failed as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: {error.filename or output}: {error.strerror}")
    print(summary(runs, output))
    print(f"{time.time() - started:.0f} s; all columns in summary.md, more figures in features/ and analysis/ of {args.output}")
    print(f"page: {args.output}/report/index.html")


def shorter(labels: str, epochs: int):
    experiment = digits(labels, labels, 1)
    options = experiment.options.replace(f"--epochs {experiment.epochs}", f"--epochs {epochs}")
    return dataclasses.replace(experiment, options=options)


def claim(output: Path, recipe: str) -> TextIO:
    """Make the output folder, wait for any other process there, and exit if the folder holds runs of another recipe.

    Returns the open file whose lock keeps others waiting until it is closed.
    """
    output.mkdir(parents=True, exist_ok=True)
    lock = open(output / "lock", "w")
    for _ in wait_for(lock, partial(print, flush=True)):
        time.sleep(0.2)
    note = output / "recipe.txt"
    if note.exists() and note.read_text() != recipe and any(output.glob("*/*/checkpoint.pth")):
        sys.exit(f"error: {output} holds runs of another recipe; remove it or choose another --output")
    note.write_text(recipe)
    return lock


def train(runs: list[Run], epochs: int, jobs: int) -> None:
    """Train the missing runs, with one bar over the epochs of all runs."""
    waiting = [run for run in runs if not (run.finished_epochs == epochs and (run.folder / "finished").exists())]
    with tqdm(total=epochs * len(runs), desc=f"training {len(runs)} models", unit="epoch", **BAR) as bar:
        together((trained(run) for run in waiting), jobs, lambda: bar.update(sum(run.finished_epochs for run in runs) - bar.n))


def trained(run: Run) -> Iterator[None]:
    yield from run.train(Machine())
    (run.folder / "finished").touch()


def evaluate(runs: list[Run], of_ten: list[Run], output: Path, jobs: int) -> None:
    """Measure all models and make their page; at the same time, draw the other figures."""
    steps = [measured(runs, output)]
    words = ["--checkpoint", *(str(run.folder / "checkpoint.pth") for run in of_ten), "--names", *METHODS, "--device", "cpu"]
    words += ["--output", str(output / "features"), "--overwrite"]
    steps += [printed(["viz/features.py", *words], output / "features.txt")]
    steps += [analysis(of_ten, output)]
    with tqdm(desc="measuring and drawing", total=len(steps), unit="command", **BAR) as bar:

        def counted(step: Iterator[None]) -> Iterator[None]:
            yield from step
            bar.update()

        together((counted(step) for step in steps), max(jobs, 2), bar.refresh)


def analysis(of_ten: list[Run], output: Path) -> Iterator[None]:
    """The logits of each model, then the figures of near-zero logits."""
    files = [str(run.folder / "logits.pt") for run in of_ten]
    for run, file in zip(of_ten, files, strict=True):
        words = ["--checkpoint", str(run.folder / "checkpoint.pth"), "--output", file, "--overwrite", "--device", "cpu"]
        yield from printed(["viz/logits.py", *words], output / "logits.txt")
    words = ["--input", *files, "--names", *METHODS, "--threshold", NEAR_ZERO, "--overwrite"]
    words += ["--output", str(output / "analysis")]
    yield from printed(["viz/analysis.py", *words], output / "analysis.txt")


def measured(runs: list[Run], output: Path) -> Iterator[None]:
    """One measurement of all models, and the page that compares the methods over their seeds."""
    file = output / "measured.json"
    file.unlink(missing_ok=True)
    words = ["--checkpoint", *(str(run.folder / "checkpoint.pth") for run in runs), "--names", *(run.stem for run in runs)]
    words += ["--transfer", "--transfer-labels", "prefix", "--device", "cpu", "--output", str(file)]
    yield from printed(["viz/measure.py", *words], output / "measure.txt")
    words = ["--output", str(output / "report"), "--overwrite", "--device", "cpu"]
    words += ["--title", "First command: three losses on digits"]
    for method in METHODS:
        words += ["--group", method, *(str(run.folder / "checkpoint.pth") for run in runs if run.method == method)]
    for note in (transfer(metrics_of(runs, output)), *reported(), TOO_FEW):
        words += ["--note", note]
    yield from printed(["viz/report.py", *words], output / "report.txt")


def metrics_of(runs: list[Run], output: Path) -> dict[str, dict[int, dict]]:
    """The metrics in measured.json, by method and seed."""
    models = json.loads((output / "measured.json").read_text())["models"]
    return {method: {run.seed: models[run.stem]["metrics"] for run in runs if run.method == method} for method in METHODS}


def transfer(found: dict[str, dict[int, dict]]) -> str:
    """A paragraph of the page about linear transfer, which the page does not measure itself."""
    parts = [f"{method} {spread(values_of({method: seeds}, 'transfer'), 2)} %" for method, seeds in found.items()]
    return (
        f"Training named two classes, odd and even. A linear classifier on the frozen features recognises the ten digits, which "
        f"training never named, with these accuracies (mean ± standard deviation): {', '.join(parts)}."
    )


def reported() -> Iterator[str]:
    """What each paper reports and what is commonly stated, one sentence each, from the claims that results/ tests."""
    every = [claim for found in TOPICS.values() for claim in found if claim.id in REPORTED]
    for source in (MAXSUP, SELECTIVE, OVERVIEW):
        sentences = [f"that {claim.sentence}" for claim in every if claim.source == source]
        said = f"{', '.join(sentences[:-1])}{',' * (len(sentences) > 2)} and {sentences[-1]}"
        yield f"It is {source} {said}." if source == OVERVIEW else f"The {source} reports {said}."


def printed(command: list[str], file: Path) -> Iterator[None]:
    return work(command, file, 1)


def summary(runs: list[Run], output: Path) -> str:
    """Write summary.json, and summary.md with all columns; return what the terminal shows."""
    found = metrics_of(runs, output)
    (output / "summary.json").write_text(json.dumps({"recipe": runs[0].experiment.options, "runs": found}, indent=1) + "\n")
    over = f"Mean ± standard deviation over {len(found['CE'])} seeds."
    page = [f"{over} {TASK}", "", *means(found, SHOWN), "", *reported(), "", RECIPES, TOO_FEW]
    (output / "summary.md").write_text("\n".join(page) + "\n")
    return "\n".join(["", over, TASK, "", *aligned(found), "", RECIPES, TOO_FEW])


def aligned(found: dict[str, dict[int, dict]]) -> list[str]:
    """A table of means and spreads whose columns are aligned, for the terminal."""
    rows = [["method", *(COLUMNS[key][0] for key in IN_TERMINAL)]]
    for method, seeds in found.items():
        rows.append([method, *(spread(values_of({method: seeds}, key), COLUMNS[key][1]) for key in IN_TERMINAL)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers in rows:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]))
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(STOPPED)
