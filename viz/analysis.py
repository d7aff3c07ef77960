"""Analyse logits files: how many logits are close to zero, how that goes with confidence, and the usual metrics.

    python viz/analysis.py --input logits_labels.pt --output results_dir/
    python viz/analysis.py --input ce.pt ls.pt maxsup.pt --names CE LS MaxSup --output analysis/

Writes near_zero_histogram, near_zero_scatter, logit_density and top_against_mean (PNG and PDF, one panel per input, the
same axes), model-NAME with all of them for each input, summary.json and summary.md.
"""

import json
import math
import re
from pathlib import Path

from common import errors, logits_file, options, outputs
from common.terminal import number, table

from drawing import style
from drawing.logit_panels import PANELS, Models
from metrics.label_smoothing_terms import ALPHA
from metrics.near_zero import THRESHOLD
from metrics.samples import density, samples, summary


def main() -> None:
    parser = options.parser("Figures and metrics of one or more logits files.")
    options.add_inputs(parser)
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="a logit z is near zero if |z| is below this")
    parser.add_argument(
        "--alpha", type=float, default=ALPHA, help="strength of label smoothing at which its two parts are computed"
    )
    args = parser.parse_args()
    options.check_positive(args, "threshold", "alpha")
    files = options.load_all(args, logits_file.load)
    with outputs.folder(args.output, "analysis"):
        found = analyse(files, args.threshold, args.output, args.alpha)
    head = ["model", "images", "top-1 %", "NLL", "ECE", "AURC", f"|z| < {args.threshold:g} %"]
    rows = [
        [
            name,
            f"{row['images']:,}",
            *map(number, (row["top1"], row["nll"], row["ece"], row["aurc"], 100 * row["near_zero"]), (2, 4, 4, 5, 2)),
        ]
        for name, row in found.items()
    ]
    print(table(head, rows))
    print(f"figures and tables of {len(found)} inputs: {args.output}/")


def analyse(files: dict[str, dict], threshold: float, output: Path, alpha: float = ALPHA) -> dict[str, dict[str, float]]:
    """Write figures and tables of logits files by name into a folder; returns what summary.json holds."""
    rows = {name: samples(content["logits"], content["labels"], threshold) for name, content in files.items()}
    numbers = {name: summary(part, alpha) for name, part in rows.items()}
    outputs.write_text(output / "summary.json", json.dumps(numbers, indent=1) + "\n")
    outputs.write_text(output / "summary.md", markdown(numbers, threshold, alpha))

    ends = [end for content in files.values() for end in (content["logits"].min().item(), content["logits"].max().item())]
    low, high = min(ends), max(ends)
    high = high if high > low else low + 1
    densities = {name: density(content["logits"], low, high).numpy() for name, content in files.items()}
    models = Models(rows, densities, low, high, next(iter(files.values()))["logits"].shape[1], threshold)
    for name, panel in PANELS.items():
        figure, axes = style.panels(len(rows), sharex=True, sharey=True)
        panel(axes, models, list(rows))
        style.save(figure, output / name)
    for name, model in file_names(rows).items():
        figure, axes = style.grid(math.ceil(len(PANELS) / 2), 2)
        figure.suptitle(model)
        for panel, axis in zip(PANELS.values(), axes, strict=False):  # of an odd number of panels the last axis stays empty
            panel([axis], models, [model])
        for axis in axes[len(PANELS) :]:
            axis.set_axis_off()
        style.save(figure, output / f"model-{name}")
    return numbers


def file_names(names) -> dict[str, str]:
    """File name: model name, one per model, whatever characters these hold."""
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
