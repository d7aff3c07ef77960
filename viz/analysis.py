"""Analyse logits files: how many logits are close to zero, how this relates to confidence, and the usual metrics.

    python viz/analysis.py --input logits_labels.pt --output results_dir/
    python viz/analysis.py --input ce.pt ls.pt maxsup.pt --names CE LS MaxSup --output analysis/

Writes near_zero_histogram, near_zero_scatter, logit_density and top_against_mean (PNG and PDF, one panel per input, on the
same axes), model-NAME with all four panels of each input, summary.json and summary.md.
"""

import json
import re
from pathlib import Path

from common import errors, options, outputs
from common.terminal import counted, markdown, number, table


def main() -> None:
    parser = options.parser("Figures and metrics of one or more logits files.")
    options.add_models(parser, "input")
    options.add_output(parser, "folder for figures and tables")
    help_ = "a logit z is near zero if |z| is below this"
    parser.add_argument("--threshold", type=float, default=options.THRESHOLD, help=help_)
    help_ = "strength of label smoothing at which its two parts are computed"
    parser.add_argument("--alpha", type=float, default=options.ALPHA, help=help_)
    args = options.parse(parser)
    files = options.load_all(args)
    outputs.folder(args.output, "analysis", args.overwrite)
    found = analyse(files, args.threshold, args.output, args.alpha)
    head = ["model", "images", "top-1 %", "NLL", "ECE", "AURC", f"|z| < {args.threshold:g} %"]
    decimals = {"images": 0, "top1": 2, "nll": 4, "ece": 4, "aurc": 5, "near_zero_percent": 2}
    print(table(head, [[name, *numbers(row, decimals)] for name, row in found.items()]))
    errors.say(f"figures and tables of {counted(len(found), 'input')}: {args.output}/")


def analyse(files: dict[str, dict], threshold: float, output: Path, alpha: float = options.ALPHA) -> dict[str, dict[str, float]]:
    """Write figures and tables of logits files, given by name, into a folder; returns the content of summary.json."""
    from drawing.logit_panels import PANELS, Models, of_model, of_models
    from metrics.samples import density, samples, summary

    rows = {name: samples(content["logits"], content["labels"], threshold) for name, content in files.items()}
    found = {name: summary(part, alpha) for name, part in rows.items()}
    outputs.write_text(output / "summary.json", json.dumps(found, indent=1) + "\n")
    outputs.write_text(output / "summary.md", page(found, threshold, alpha))
    ends = [end for content in files.values() for end in (content["logits"].min().item(), content["logits"].max().item())]
    low, high = min(ends), max(ends)
    high = high if high > low else low + 1
    densities = {name: density(content["logits"], low, high).numpy() for name, content in files.items()}
    models = Models(rows, densities, low, high, next(iter(files.values()))["logits"].shape[1], threshold)
    for key in PANELS:
        of_models(key, models).save(output / key)
    for file_name, name in file_names(rows).items():
        of_model(models, name).save(output / f"model-{file_name}")
    return found


def file_names(names) -> dict[str, str]:
    """Model names by file name: one distinct, valid file name per model, whatever characters the model's name contains."""
    plain = {}
    for name in names:
        base = re.sub(r"[^\w.+-]+", "_", name).strip("._") or "model"
        while base in plain:
            base += "_"
        plain[base] = name
    return plain


def numbers(row: dict, decimals: dict[str, int]) -> list[str]:
    row = row | {"near_zero_percent": 100 * row["near_zero"]}
    return [number(row[key], places) for key, places in decimals.items()]


def page(found: dict, threshold: float, alpha: float) -> str:
    """The text of summary.md: two tables, the second on z_max - mean z and on the two parts of label smoothing's term."""
    head = ["model", "images", "top-1 %", "top-5 %", "NLL", "Brier", "ECE", "AURC", f"logits under {threshold:g} %"]
    decimals = {"images": 0, "top1": 2, "top5": 2, "nll": 4, "brier": 4, "ece": 4, "aurc": 5, "near_zero_percent": 2}
    first = markdown(head, [[name, *numbers(row, decimals)] for name, row in found.items()])
    rows = []
    for name, row in found.items():
        cells = []
        for which in ("right", "wrong"):
            levels = row[f"gap_{which}_quantiles"]
            cells.append(number(row[f"gap_{which}_mean"], 3))
            cells.append("–" if levels is None else ", ".join(f"{value:.2f}" for value in levels.values()))
        rows.append([name, *cells, *(number(row[key], 4) for key in ("regularisation", "error_enhancement"))])
    words = "z_max − mean z: mean, and quantiles 5 %, 25 %, 50 %, 75 %, 95 %; the two parts of label smoothing's term at "
    words += f"α = {alpha:g}, mean over samples."
    gaps = [f"{which}: {what}" for which in ("right", "wrong") for what in ("mean", "quantiles")]
    return f"{first}\n{words}\n\n{markdown(['model', *gaps, 'regularisation', 'error enhancement'], rows)}"


if __name__ == "__main__":
    errors.run(main)
