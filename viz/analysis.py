"""Analyse logits files: how many logits are close to zero, how that goes with confidence, and the usual metrics.

    python viz/analysis.py --input logits_labels.pt --output results_dir/
    python viz/analysis.py --input ce.pt ls.pt maxsup.pt --names CE LS MaxSup --output results_dir/

Writes near_zero_histogram, near_zero_scatter, logit_density and top_against_mean (PNG and PDF, one panel an input, the same
axes), model-NAME with the four of each input, summary.json and summary.md.
"""

import argparse
import json
import math
import re
from pathlib import Path

import errors
import inputs
import logit_figures as figures
import logits_file
import style
from errors import InputError
from logit_statistics import density, samples, summary
from outputs import make_folder, write_text


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Figures and metrics of one or more logits files.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="logits files, as viz/logits.py writes them")
    parser.add_argument("--names", nargs="+", help="a name for each input; none: the file names")
    parser.add_argument("--output", type=Path, required=True, help="folder for figures and tables")
    parser.add_argument("--threshold", type=float, default=0.01, help="a logit z is near zero if |z| is below this")
    parser.add_argument("--alpha", type=float, default=0.1, help="strength of label smoothing that its two parts are given for")
    args = parser.parse_args()
    for name, value in (("threshold", args.threshold), ("alpha", args.alpha)):
        if not 0 < value < math.inf:
            raise InputError(f"--{name} {value}: a number above 0")
    files = {name: logits_file.load(path) for name, path in zip(inputs.names_of(args), args.input)}
    inputs.same_classes(files)
    make_folder(args.output)
    try:
        found = analyse(files, args.threshold, args.output, args.alpha)
    except OSError as error:
        raise InputError(f"--output {args.output}: cannot be written ({error.strerror})")
    print((args.output / "summary.md").read_text())
    print(f"figures and tables of {len(found)} inputs: {args.output}/")


def analyse(files: dict[str, dict], threshold: float, output: Path, alpha: float = 0.1) -> dict[str, dict[str, float]]:
    """Write figures and tables of logits files by name into a folder; returns what summary.json holds."""
    rows = {name: samples(content["logits"], content["labels"], threshold) for name, content in files.items()}
    numbers = {name: summary(part, alpha) for name, part in rows.items()}
    write_text(output / "summary.json", json.dumps(numbers, indent=1) + "\n")
    write_text(output / "summary.md", markdown(numbers, threshold, alpha))

    ends = [end for content in files.values() for end in (content["logits"].min().item(), content["logits"].max().item())]
    low, high = min(ends), max(ends)
    high = high if high > low else low + 1
    densities = {name: density(content["logits"], low, high).numpy() for name, content in files.items()}
    classes = next(iter(files.values()))["logits"].shape[1]
    draw = [
        ("near_zero_histogram", lambda axes, only: figures.near_zero_histogram(axes, rows, only, classes, threshold)),
        ("near_zero_scatter", lambda axes, only: figures.near_zero_scatter(axes, rows, only, threshold)),
        ("logit_density", lambda axes, only: figures.logit_density(axes, densities, only, low, high)),
        ("top_against_mean", lambda axes, only: figures.top_against_mean(axes, rows, only)),
    ]
    for name, panel in draw:
        figure, axes = style.panels(len(rows), sharex=True, sharey=True)
        panel(axes, list(rows))
        style.save(figure, output / name)
    for name, part in file_names(rows).items():
        figure, axes = style.grid(2, 2)
        figure.suptitle(part)
        for (_, panel), axis in zip(draw, axes):
            panel([axis], [part])
        style.save(figure, output / f"model-{name}")
    return numbers


def file_names(names) -> dict[str, str]:
    """File name: model name, one a model, whatever characters these hold."""
    plain = {}
    for name in names:
        base = re.sub(r"[^\w.+-]+", "_", name).strip("._") or "model"
        while base in plain:
            base += "_"
        plain[base] = name
    return plain


def markdown(numbers: dict, threshold: float, alpha: float) -> str:
    """summary.md: two tables, the second on z_max - mean z and on label smoothing's extra term."""
    lines = [
        f"| model | images | top-1 % | top-5 % | NLL | Brier | ECE | AURC | logits under {threshold:g} % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in numbers.items():
        lines.append(
            f"| {name} | {row['images']:,} | {row['top1']:.2f} | {row['top5']:.2f} | {row['nll']:.4f} | {row['brier']:.4f} | "
            f"{row['ece']:.4f} | {row['aurc']:.5f} | {100 * row['near_zero']:.2f} |"
        )
    lines += [
        "",
        "z_max − mean z: mean, and quantiles 5 %, 25 %, 50 %, 75 %, 95 %; the two parts of label smoothing's term at "
        f"α = {alpha:g}, mean over samples.",
        "",
        "| model | right: mean | right: quantiles | wrong: mean | wrong: quantiles | regularisation | error enhancement |",
        "|---|---:|---|---:|---|---:|---:|",
    ]
    for name, row in numbers.items():
        cells = []
        for which in ("right", "wrong"):
            mean, levels = row[f"gap_{which}_mean"], row[f"gap_{which}_quantiles"]
            cells.append("–" if mean is None else f"{mean:.3f}")
            cells.append("–" if levels is None else ", ".join(f"{value:.2f}" for value in levels.values()))
        lines.append(f"| {name} | {' | '.join(cells)} | {row['ls_regularisation']:.4f} | {row['ls_error_enhancement']:.4f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    errors.run(main)
