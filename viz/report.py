"""One page that shows what models are like: accuracy, calibration, ranking of errors, logits, features, Grad-CAM, mistakes.

    python viz/report.py --checkpoint ce.pth ls.pth maxsup.pth --names CE LS MaxSup --data-path P --output report/
    python viz/report.py --input ce.pt ls.pt maxsup.pt --names CE LS MaxSup --output report/      # from logits files alone
    python viz/report.py --group CE ce-*/checkpoint.pth --group LS ls-*/checkpoint.pth --output report/      # several seeds
    python viz/report.py --input ce.pt ls.pt --figure risk_coverage --output figures/             # one figure alone

Writes index.html, one file that needs nothing else and no network, report.json with every number on it, and figures/ with PDFs.
"""

import argparse
import json
import os
import platform
import shlex
from collections.abc import Callable
from pathlib import Path

from common import errors, options, outputs, terminal
from common.errors import InputError

import torch
from jinja2 import Environment, FileSystemLoader
from tqdm import tqdm

from drawing import style
from metrics.near_zero import THRESHOLD
from report_page import inputs, sections
from report_page.answer import QUESTIONS, answer, shown
from report_page.blocks import Cell, Section, Table
from report_page.inputs import Run
from report_page.numbers import METRICS, differences, estimates, measure, resampled
from report_page.sections import FIGURES, SECTIONS, Findings

# What a command that draws one figure repeats of the command line, where it is not the default.
REPEATED = ("threshold", "data_path", "data", *options.OVERRIDES, "model_ema", "batch_size", "amp")
TERMINAL = ("top1", "aurc", "ece", "ece_temperature", "coverage_at_risk_1", "d_within_val")


def main() -> None:
    parser = options.parser("One page that compares models: index.html, report.json, figures/.")
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--checkpoint", type=Path, nargs="+", help="checkpoints of any form logits.py reads")
    models.add_argument("--input", type=Path, nargs="+", help="logits files, as viz/logits.py writes them")
    help_ = "the seeds of one method, checkpoints or logits files: a name, then the files; once per method"
    models.add_argument("--group", nargs="+", action="append", metavar=("NAME", "FILE"), help=help_)
    parser.add_argument("--names", nargs="+", help="a name for each checkpoint or input; none: file names, or their folders'")
    parser.add_argument("--output", type=Path, required=True, help="folder for index.html, report.json and figures/")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="make these sections alone")
    parser.add_argument("--skip", nargs="+", choices=SECTIONS, default=[], help="leave these sections out")
    parser.add_argument(
        "--figure", choices=FIGURES, help="draw this figure alone into --output, as PNG and PDF, and make no page"
    )
    parser.add_argument("--title", default="Model report", help="heading of the page")
    parser.add_argument("--note", action="append", default=[], help="a paragraph under the heading; may be repeated")
    parser.add_argument("--overwrite", action="store_true", help="replace the report in --output")
    help_ = "a logit z is near zero if |z| is below this"
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help=help_)
    options.add_images(parser)
    args = parser.parse_args()
    options.check_images(args)
    options.check_positive(args, "threshold")
    files = methods(args)
    wanted = [key for key in SECTIONS if key not in args.skip and (args.only is None or key in args.only)]
    if args.figure:
        wanted = [FIGURES[args.figure]]
    if not wanted:
        raise InputError("--only and --skip leave no section")
    if not args.figure:
        check_output(args.output, args.overwrite)
    with outputs.folder(args.output, "report"):
        if args.figure:
            draw_one(files, args, command_of(args, parser))
        else:
            make(files, wanted, args, command_of(args, parser))


def methods(args: argparse.Namespace) -> dict[str, list[Path]]:
    """The files by the name of their method, one each or several seeds. Raises InputError."""
    if not args.group:
        paths, kind = (args.checkpoint, "--checkpoint") if args.checkpoint else (args.input, "--input")
        return {name: [path] for name, path in zip(options.names_of(paths, args.names, kind), paths, strict=True)}
    if args.names:
        raise InputError("--names goes with --checkpoint and --input; --group names its files itself")
    for name, *paths in args.group:
        if not paths:
            raise InputError(f"--group {name}: a name and then at least one file")
    names = [name for name, *_ in args.group]
    if len(set(names)) != len(names):
        raise InputError(f"--group: the methods need different names, not {', '.join(names)}")
    return {name: list(map(Path, paths)) for name, *paths in args.group}


def check_output(output: Path, overwrite: bool) -> None:
    """Raise InputError where another report would be lost."""
    if not overwrite and any((output / name).exists() for name in ("index.html", "report.json")):
        raise InputError(f"--output {output}: holds a report already; --overwrite replaces it")


def command_of(args: argparse.Namespace, parser: argparse.ArgumentParser) -> Callable[[str | None], str]:
    """The function from a figure's name to the command that draws it alone; from None to the command of this page."""
    words = ["python", "viz/report.py"]
    for name, *paths in args.group or []:
        words += ["--group", name, *paths]
    for key in ("checkpoint", "input", "names"):
        values = getattr(args, key)
        words += [f"--{key}", *map(str, values)] if values else []
    for key in REPEATED:
        value = getattr(args, key)
        if value != parser.get_default(key):
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{key.replace('_', '-')}", *map(str, values)]

    def command(figure: str | None) -> str:
        if figure:
            return shlex.join([*words, "--figure", figure, "--output", str(args.output / "figures")])
        more = [word for key in ("only", "skip") if getattr(args, key) for word in (f"--{key}", *getattr(args, key))]
        return shlex.join([*words, *more, "--output", str(args.output)])

    return command


def load(files: dict[str, list[Path]], args: argparse.Namespace, training: bool, step: Callable) -> dict[str, list[Run]]:
    """The seeds of each method, each shown its images once. Raises InputError where they cannot be compared."""
    kinds = {
        path: not args.checkpoint and (bool(args.input) or inputs.is_logits(path)) for paths in files.values() for path in paths
    }
    if len(set(kinds.values())) > 1:
        raise InputError("--group: some files are logits files and others checkpoints; take one kind for all")
    if any(kinds.values()):
        torch.set_num_threads(1)  # passes over memory: more threads save little, and where others compute too they wait
    runs = {}
    for name, paths in files.items():
        for index, path in enumerate(paths):
            step(f"reading {name}")
            run = (
                inputs.of_logits(name, path, args.threshold)
                if kinds[path]
                else inputs.of_checkpoint(name, path, args, training and (index == 0 or not args.figure))
            )
            runs.setdefault(name, []).append(run)
            inputs.check_comparable([next(iter(runs.values()))[0], run])
    return runs


def draw_one(files: dict[str, list[Path]], args: argparse.Namespace, command: Callable) -> None:
    """Draw one figure into the output folder. Raises InputError where it cannot be made."""
    with Steps(2 * sum(map(len, files.values())) + 1) as step:
        runs = load(files, args, args.figure == "projection", step)
        step(f"drawing {args.figure}")
        section = SECTIONS[FIGURES[args.figure]](find(runs, command, False, args.device, step))
    found = next((figure for figure in section.figures if figure.name == args.figure), None)
    if found is None:
        raise InputError(f"--figure {args.figure}: {section.missing or ' '.join(section.notes)}")
    for suffix in (".png", ".pdf"):
        write_figure(found, args.output / f"{args.figure}{suffix}")
    print(f"figure: {args.output / args.figure}.png, .pdf")


def write_figure(figure, path: Path) -> None:
    style.save_one(figure.panels.whole()[0] if figure.panels else figure.draw(), path)


def find(runs: dict[str, list[Run]], command: Callable, intervals: bool, device: str, step: Callable) -> Findings:
    """Measure every model; intervals are over the images of single models, over the seeds of several."""
    measured, draws = {}, {}
    for name, seeds in runs.items():
        measured[name] = []
        for run in seeds:
            step(f"measuring {name}")
            measured[name].append(measure(run))
        if intervals and all(len(seeds) == 1 for seeds in runs.values()):
            step(f"intervals of {name}")
            draws[name] = resampled(seeds[0], measured[name][0])
    return Findings(runs, estimates(measured, draws), differences(runs, measured, draws), command, device)


def make(files: dict[str, list[Path]], wanted: list[str], args: argparse.Namespace, command: Callable) -> None:
    """Make the page, report.json and the PDFs."""
    count, single = sum(map(len, files.values())), all(len(paths) == 1 for paths in files.values())
    with Steps(2 * count + (count if single else 0) + 2 * len(wanted) + 1) as step:
        runs = load(files, args, "features" in wanted, step)
        found = find(runs, command, True, args.device, step)
        made = []
        for key in wanted:
            step(f"section {key}")
            made.append(SECTIONS[key](found))
        (args.output / "figures").mkdir(exist_ok=True)
        for name in FIGURES:
            (args.output / f"figures/{name}.pdf").unlink(missing_ok=True)
        for section in made:
            step(f"PDFs of {section.key}")
            for figure in section.figures:
                write_figure(figure, args.output / f"figures/{figure.name}.pdf")
        step("page")
        page, content = render(found, made, args, command(None))
        # A file name may hold bytes that are no characters.
        outputs.write_text(args.output / "report.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
        outputs.write_text(args.output / "index.html", page.encode("utf-8", "replace").decode())
    shown_keys = [key for key in TERMINAL if any(found.values(name, key) is not None for name in runs)]
    rows = [[name, *(shown(key, found.values(name, key)) for key in shown_keys)] for name in runs]
    print(terminal.table(["model", *(METRICS[key].title for key in shown_keys)], rows))
    for sentence in content["answer"]:
        print(sentence)
    print(f"\npage: {args.output / 'index.html'}")


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
    sentences = answer(found.estimates, found.differences, evidence)
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
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "report_page"), autoescape=True, trim_blocks=True)
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
        paired = "paired by seed" if hows == {"paired seeds"} else "taken between unpaired seeds"
        text = "In brackets: 95 % intervals over the seeds of each method (Student). After ±: the standard deviation over them. "
        text += f"Differences are {paired}."
    else:
        text = "In brackets: 95 % intervals by 1,000 resamples of the test images; differences are taken on the same resamples."
    if len(found.runs) > 1:
        text += (
            " A difference whose interval holds 0 cannot be told. The intervals are not corrected for the number of comparisons."
        )
    return text


def models_table(found: Findings) -> Table:
    """A row per model or seed: file, architecture, loss."""
    rows = []
    for name, runs in found.runs.items():
        for run in runs:
            said = run.said
            loss = str(said.get("loss", "not said"))
            if said.get("alpha") is not None and loss != "ce":
                end = said.get("alpha_end")
                loss += f", alpha {said['alpha']}" + (f" to {end}" if end is not None else "")
            size = f"{run.checkpoint.facts['input_size']} px" if run.checkpoint else "–"
            rows.append(
                [
                    Cell(name, strong=True),
                    str(run.path),
                    run.architecture or "not said",
                    size,
                    loss,
                    str(said.get("epochs", "–")),
                    str(said.get("seed", "–")),
                ]
            )
    return Table("What was compared", ["model", "file", "architecture", "input", "loss", "epochs", "seed"], rows, kind="words")


class Steps:
    """A progress bar of the report's steps, with the time left; calling it names the next one."""

    def __init__(self, count: int):
        self.bar = tqdm(total=count, desc="report", unit="step", dynamic_ncols=True, disable=None, leave=False)
        self.started = False

    def __enter__(self) -> "Steps":
        return self

    def __call__(self, name: str) -> None:
        self.bar.update(self.started)
        self.started = True
        self.bar.set_description(name)

    def __exit__(self, *_) -> None:
        self.bar.close()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    errors.run(main)
