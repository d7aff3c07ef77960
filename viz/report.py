"""One page that describes models: accuracy, calibration, ranking of errors, logits, features, Grad-CAM, mistakes.

    python viz/report.py --checkpoint ce.pth ls.pth maxsup.pth --names CE LS MaxSup --data-path P --output report/
    python viz/report.py --input ce.pt ls.pt maxsup.pt --names CE LS MaxSup --output report/      # needs only logits files
    python viz/report.py --group CE ce-*/checkpoint.pth --group LS ls-*/checkpoint.pth --output report/      # several seeds
    python viz/report.py --input ce.pt ls.pt --figure risk_coverage --output figures/             # only one figure

Writes index.html (a single file that needs no network), report.json with every number on the page, and figures/ with PDFs.
"""

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path

from common import errors, options, outputs
from common.errors import InputError, printable

from report_page import FIGURES, SECTIONS

# Options that the commands printed on the page repeat where they differ from the default.
REPEATED = ("threshold", "data_path", "data", *options.OVERRIDES, "model_ema", "batch_size", "amp")


def main() -> None:
    parser = options.parser("One page that compares models: index.html, report.json, figures/.")
    models = options.add_models(parser, "checkpoint", "input")
    help_ = "one method: its name, then the checkpoints or logits files of its seeds; once per method"
    models.add_argument("--group", nargs="+", action="append", metavar=("NAME", "FILE"), help=help_)
    options.add_output(parser, "folder for index.html, report.json and figures/")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="make only these sections")
    parser.add_argument("--skip", nargs="+", choices=SECTIONS, default=[], help="omit these sections")
    help_ = "draw only this figure into --output, as PNG and PDF, and make no page"
    parser.add_argument("--figure", choices=FIGURES, help=help_)
    parser.add_argument("--title", default="Model report", help="heading of the page")
    parser.add_argument("--note", action="append", default=[], help="paragraph under the heading; may be repeated")
    help_ = "a logit z is near zero if |z| is below this"
    parser.add_argument("--threshold", type=float, default=options.THRESHOLD, help=help_)
    options.add_images(parser)
    args = options.parse(parser)
    if args.figure:
        options.refuse(args, "belongs to the page, which --figure does not make", "only", "skip", "title", "note")
    files = methods(args)
    wanted = [key for key in SECTIONS if key not in args.skip and (args.only is None or key in args.only)]
    if not wanted and not args.figure:
        raise InputError("--only and --skip leave no section")
    if args.figure:
        outputs.check_file(args.output / f"{args.figure}.png", args.overwrite)
    else:
        outputs.folder(args.output, "report", args.overwrite)

    from report_page import make

    if args.figure:
        make.one_figure(files, args, command_of(args))
    else:
        make.page(files, wanted, args, command_of(args))


def methods(args: argparse.Namespace) -> dict[str, list[Path]]:
    """The files of each method, by its name: a single file, or one per seed. Raises InputError."""
    if not args.group:
        return {name: [path] for name, path in options.models_of(args).items()}
    if args.names:
        raise InputError("--names goes with --checkpoint and --input; --group names its files itself")
    for name, *paths in args.group:
        if not paths:
            raise InputError(f"--group {name}: give a name, then at least one file")
    names = [printable(name) for name, *_ in args.group]
    if len(set(names)) != len(names):
        raise InputError(f"--group: the methods need different names, not {', '.join(names)}")
    return {name: list(map(Path, paths)) for name, (_, *paths) in zip(names, args.group, strict=True)}


def command_of(args: argparse.Namespace) -> Callable[[str | None], str]:
    """A function that maps a figure's name to the command that draws only this figure, and None to the command of this page."""
    words = ["python", "viz/report.py"]
    for name, *paths in args.group or []:
        words += ["--group", name, *paths]
    for key in ("checkpoint", "input", "names"):
        values = getattr(args, key)
        words += [f"--{key}", *map(str, values)] if values else []
    for key in REPEATED:
        if key in args.given:
            value = getattr(args, key)
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{key.replace('_', '-')}", *map(str, values)]

    def command(figure: str | None) -> str:
        if figure:
            return shlex.join([*words, "--figure", figure, "--output", str(args.output / "figures")])
        more = [word for key in ("only", "skip") if getattr(args, key) for word in (f"--{key}", *getattr(args, key))]
        more += ["--title", args.title] if "title" in args.given else []
        more += [word for note in args.note for word in ("--note", note)]
        return shlex.join([*words, *more, "--output", str(args.output)])

    return command


if __name__ == "__main__":
    errors.run(main)
