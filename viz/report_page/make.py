"""From files to the page: read the models, measure them, make the sections, write index.html, report.json and the PDFs."""

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common import errors, options, outputs, terminal
from common.errors import InputError, printable

import torch
from jinja2 import Environment, FileSystemLoader
from tqdm import tqdm

from drawing import style
from report_page import FIGURES, inputs, sections
from report_page.answer import QUESTIONS, answer, recipes, shown
from report_page.blocks import Cell, Section, Table
from report_page.inputs import Run
from report_page.numbers import METRICS, differences, estimates, measure, resampled
from report_page.sections import MAKE, Findings

TERMINAL = ("top1", "aurc", "ece", "ece_temperature", "coverage_at_risk_1", "d_within_val")


def load(files: dict[str, list[Path]], args: argparse.Namespace, training: bool, step: Callable) -> dict[str, list[Run]]:
    """The seeds of each method, each run once over its images. Raises InputError if they cannot be compared."""
    kinds = {
        path: not args.checkpoint and (bool(args.input) or inputs.is_logits(path)) for paths in files.values() for path in paths
    }
    if len(set(kinds.values())) > 1:
        raise InputError("--group: some files are logits files and others checkpoints; take one kind for all")
    if any(kinds.values()):
        options.refuse(args, "needs checkpoints, and these are logits files", *options.OF_CHECKPOINTS)
        torch.set_num_threads(1)  # memory-bound: more threads save little, and on a busy machine they wait
    runs = {}
    for name, paths in files.items():
        for index, path in enumerate(paths):
            step(f"reading {name}")
            run = (
                inputs.of_logits(name, path, args.threshold)
                if kinds[path]
                else inputs.of_checkpoint(name, path, args, training and (index == 0 or not args.figure))
            )
            inputs.check_seed(runs.setdefault(name, []), run)
            runs[name].append(run)
            inputs.check_comparable(next(iter(runs.values()))[0], run)
    return runs


def one_figure(files: dict[str, list[Path]], args: argparse.Namespace, command: Callable) -> None:
    """Draw one figure into the output folder. Raises InputError if it cannot be made."""
    with steps(2 * sum(map(len, files.values())) + 1) as step:
        runs = load(files, args, args.figure == "projection", step)
        step(f"drawing {args.figure}")
        section = MAKE[FIGURES[args.figure]](find(runs, command, False, args.device, step))
    found = next((figure for figure in section.figures if figure.name == args.figure), None)
    if found is None:
        raise InputError(f"--figure {args.figure}: {section.missing or ' '.join(section.notes)}")
    style.save(drawn(found), args.output / args.figure)
    errors.say(f"figure: {args.output / args.figure}.png, .pdf")


def drawn(figure):
    """The whole figure, as a matplotlib figure."""
    return figure.panels.whole()[0] if figure.panels else figure.draw()


@contextmanager
def steps(count: int) -> Iterator[Callable[[str], None]]:
    """A progress bar of the report's steps, with the time left; yields the function to call when a step begins."""
    with tqdm(total=count, desc="report", unit="step", dynamic_ncols=True, disable=None, leave=False) as bar:

        def step(name: str) -> None:
            bar.set_description(printable(name))
            bar.update()

        yield step


def find(runs: dict[str, list[Run]], command: Callable, intervals: bool, device: str, step: Callable) -> Findings:
    """Measure every model. With one model per method, intervals are over the images; with several seeds, over the seeds."""
    measured, draws = {}, {}
    for name, seeds in runs.items():
        measured[name] = []
        for run in seeds:
            step(f"measuring {name}")
            measured[name].append(measure(run))
            if note := run.outputs.tempered.note:
                run.notes.append(f"{run.path}: {note}")  # the note is about one seed, not its whole group
        if intervals and all(len(seeds) == 1 for seeds in runs.values()):
            step(f"intervals of {name}")
            draws[name] = resampled(seeds[0], measured[name][0])
    return Findings(runs, estimates(measured, draws), differences(runs, measured, draws), command, device)


def page(files: dict[str, list[Path]], wanted: list[str], args: argparse.Namespace, command: Callable) -> None:
    """Make the page, report.json and the PDFs."""
    count, single = sum(map(len, files.values())), all(len(paths) == 1 for paths in files.values())
    with steps(2 * count + (count if single else 0) + 2 * len(wanted) + 1) as step:
        runs = load(files, args, "features" in wanted, step)
        found = find(runs, command, True, args.device, step)
        made = []
        for key in wanted:
            step(f"section {key}")
            made.append(MAKE[key](found))
        (args.output / "figures").mkdir(exist_ok=True)
        for name in FIGURES:
            (args.output / f"figures/{name}.pdf").unlink(missing_ok=True)
        for section in made:
            step(f"PDFs of {section.key}")
            for figure in section.figures:
                style.save_one(drawn(figure), args.output / f"figures/{figure.name}.pdf")
        step("page")
        html, content = render(found, made, args, command(None))
        outputs.write_text(args.output / "report.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
        outputs.write_text(args.output / "index.html", html)
    shown_keys = [key for key in TERMINAL if any(found.values(name, key) is not None for name in runs)]
    rows = [[name, *(shown(key, found.values(name, key)) for key in shown_keys)] for name in runs]
    print(terminal.table(["model", *(METRICS[key].title for key in shown_keys)], rows))
    for sentence in content["answer"]:
        errors.say(sentence)
    errors.say("")
    errors.say(f"page: {args.output / 'index.html'}")


def render(found: Findings, made: list[Section], args: argparse.Namespace, command: str) -> tuple[str, dict]:
    """The page and what report.json holds."""
    first = next(iter(found.first.values()))
    images, classes = first.content["logits"].shape
    seeds = [len(runs) for runs in found.runs.values()]
    evidence = (
        f"{min(seeds)} to {max(seeds)} seeds"
        if len(set(seeds)) > 1
        else f"{seeds[0]} seeds"
        if found.several_seeds
        else f"{images:,} images"
    )
    said = {name: runs[0].said for name, runs in found.runs.items()}
    losses = {name: (facts.get("loss"), strength(facts)) for name, facts in said.items() if facts.get("alpha") is not None}
    sentences = answer(found.estimates, found.differences, evidence) + recipes(losses)
    answered = [
        question.metric for question in QUESTIONS if any(found.values(name, question.metric) is not None for name in found.runs)
    ]
    explained = {*answered, "temperature"}
    for section in made:
        section.terms = [
            key for key in section.terms if key not in explained and any(found.values(n, key) is not None for n in found.runs)
        ]
        explained.update(section.terms)
    empty = classes - len(first.content["labels"].unique())
    notes = [f"{empty:,} of the {classes:,} classes have no image here."] * bool(empty)
    notes += [
        f"{name}: {note}" for name, runs in found.runs.items() for note in dict.fromkeys(n for run in runs for n in run.notes)
    ]
    terms = [key for key in METRICS if key in answered or (key == "temperature" and "ece_temperature" in answered)]
    parts = (
        (answered, "The differences behind these sentences", False),
        ([key for key in METRICS if key not in answered], "Differences of the other measures", True),
    )
    tables = [sections.differences_table(found, *part) for part in parts]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    page = environment.get_template("page.html.j2").render(
        title=args.title,
        subtitle=f"{', '.join(found.runs)} on {images:,} images of {classes:,} classes",
        notes=args.note,
        sentences=sentences,
        intervals=intervals_said(found),
        answered=terms,
        tables=[table for table in tables if table],
        models=models_table(found),
        model_notes=notes,
        sections=made,
        metrics=METRICS,
        command=command,
    )
    content = {
        "command": command,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "images": images,
        "classes": classes,
        "answer": [sentence.lead + sentence.rest for sentence in sentences],
        "models": {
            name: [{"file": str(run.path), "architecture": run.architecture} | run.said for run in runs]
            for name, runs in found.runs.items()
        },
        "metrics": {
            key: {"title": m.title, "unit": m.unit.strip(), "scale": m.scale, "means": m.means} for key, m in METRICS.items()
        },
        "estimates": found.estimates,
        "differences": found.differences,
        "sections": {
            section.key: {"missing": section.missing, "notes": section.notes, "content": section.numbers} for section in made
        },
        "notes": notes,
    }
    return page, content


def intervals_said(found: Findings) -> str:
    """One paragraph: what the intervals are."""
    hows = {row["how"] for row in found.differences if row["how"]}
    if found.several_seeds:
        text = "In brackets: 95 % intervals over the seeds of each method (Student). After ±: the standard deviation over them."
        paired = "paired by seed" + " where both methods have the same seeds" * ("seeds" in hows)
        text += f" Differences are {paired if 'paired seeds' in hows else 'taken between unpaired seeds'}." if hows else ""
    else:
        text = "In brackets: 95 % intervals by 1,000 resamples of the test images; differences are taken on the same resamples."
    if len(found.runs) > 1:
        text += (
            " A difference whose interval holds 0 cannot be told. The intervals are not corrected for the number of comparisons."
        )
    return text


def strength(said: dict) -> str:
    """The strength of a loss in words, from what a file says about its training."""
    start, end = (said.get(key) for key in ("alpha", "alpha_end"))
    return f"{start} to {end}" if end not in (None, start) else f"{start}"


def models_table(found: Findings) -> Table:
    """A row per model or seed: file, architecture, loss."""
    rows = []
    for name, runs in found.runs.items():
        for run in runs:
            said = run.said
            loss = str(said.get("loss", "not said"))
            if said.get("alpha") is not None and loss != "ce":
                loss += f", alpha {strength(said)}"
            size = f"{run.checkpoint.facts['input_size']} px" if run.checkpoint else "–"
            words = [
                str(run.path),
                run.architecture or "not said",
                size,
                loss,
                *(str(said.get(k, "–")) for k in ("epochs", "seed")),
            ]
            rows.append([Cell(name, strong=True), *words])
    return Table("What was compared", ["model", "file", "architecture", "input", "loss", "epochs", "seed"], rows, kind="words")
