"""Analyse logits files: how many logits are close to zero, how that goes with confidence, and the usual metrics.

    python viz/analysis.py --input logits_labels.pt --output results_dir/
    python viz/analysis.py --input ce.pt ls.pt maxsup.pt --names CE LS MaxSup --output results_dir/

Writes near_zero_histogram and near_zero_scatter (PNG and PDF, one panel an input, the same axes), summary.json, summary.md.
"""

import argparse
import itertools
import json
import math
from pathlib import Path

import numpy as np
import torch

import errors
import logits_file
import style
from errors import InputError
from metrics import classification, confidences, near_zero

SCATTER_POINTS = 5000  # more than these hide one another and make the PDF heavy


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Figures and metrics of one or more logits files.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="logits files, as viz/logits.py writes them")
    parser.add_argument("--names", nargs="+", help="a name for each input; none: the file names")
    parser.add_argument("--output", type=Path, required=True, help="folder for figures and tables")
    parser.add_argument("--threshold", type=float, default=0.01, help="a logit z is near zero if |z| is below this")
    args = parser.parse_args()
    if not 0 < args.threshold < math.inf:
        raise InputError(f"--threshold {args.threshold}: a number above 0")
    names = args.names or [path.stem for path in args.input]
    if len(names) != len(args.input):
        raise InputError(f"--names: {len(names)} for {len(args.input)} files in --input")
    if len(set(names)) != len(names):
        raise InputError(f"the inputs need different names, not {', '.join(names)}; see --names")
    files = {name: logits_file.load(path) for name, path in zip(names, args.input)}
    classes = {name: content["logits"].shape[1] for name, content in files.items()}
    if len(set(classes.values())) > 1:
        raise InputError(f"the inputs differ in classes: {', '.join(f'{name} has {k}' for name, k in classes.items())}")
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        summary = analyse(files, args.threshold, args.output)
    except OSError as error:
        raise InputError(f"--output {args.output}: cannot be written ({error.strerror})")
    print((args.output / "summary.md").read_text())
    print(f"figures and tables of {len(summary)} inputs: {args.output}/")


def analyse(files: dict[str, dict], threshold: float, output: Path) -> dict[str, dict[str, float]]:
    """Write figures and tables of logits files by name into a folder; returns what summary.json holds."""
    summary, shares, top1 = {}, {}, {}
    for name, content in files.items():
        logits, labels = content["logits"], content["labels"]
        shares[name], top1[name] = near_zero(logits, threshold).numpy(), confidences(logits)[0].numpy()
        summary[name] = {"images": len(labels)} | classification(logits, labels) | {"near_zero": float(shares[name].mean())}
    (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (output / "summary.md").write_text(markdown(summary, threshold))
    draw_histogram(shares, next(iter(files.values()))["logits"].shape[1], threshold, output / "near_zero_histogram")
    draw_scatter(shares, top1, threshold, output / "near_zero_scatter")
    return summary


def markdown(summary: dict, threshold: float) -> str:
    lines = [
        f"| model | images | top-1 % | top-5 % | NLL | Brier | ECE | AURC | logits under {threshold:g} % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in summary.items():
        lines.append(
            f"| {name} | {row['images']:,} | {row['top1']:.2f} | {row['top5']:.2f} | {row['nll']:.4f} | {row['brier']:.4f} | "
            f"{row['ece']:.4f} | {row['aurc']:.5f} | {100 * row['near_zero']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def draw_histogram(shares: dict[str, np.ndarray], classes: int, threshold: float, path: Path) -> None:
    """One panel a model: how the share of near-zero logits is distributed over the samples."""
    highest = max(max(share.max() for share in shares.values()), 1 / classes)
    # A share is a multiple of 1 / K: with few classes each multiple gets its bar, with many a bar takes several.
    step = max(1, math.ceil(highest * classes / 40)) / classes
    edges = step * (np.arange(math.floor(highest / step + 1.5) + 1) - 0.5)
    figure, axes = style.panels(len(shares), sharex=True, sharey=True)
    for axis, colour, (name, share) in zip(axes, itertools.cycle(style.COLOURS), shares.items()):
        percent = 100 * np.histogram(share, edges)[0] / len(share)
        axis.bar(100 * (edges[:-1] + step / 2), percent, width=90 * step, color=colour)
        axis.set(
            title=f"{name}: {100 * share.mean():.2f} % on average", xlabel=f"logits with |z| < {threshold:g} (% of a sample's)"
        )
    axes[0].set_ylabel("samples (%)")
    style.save(figure, path)


def draw_scatter(shares: dict[str, np.ndarray], top1: dict[str, np.ndarray], threshold: float, path: Path) -> None:
    """One panel a model: top-1 probability against the share of near-zero logits, a dot a sample."""
    figure, axes = style.panels(len(shares), sharex=True, sharey=True)
    for axis, colour, name in zip(axes, itertools.cycle(style.COLOURS), shares):
        share, top = shares[name], top1[name]
        if len(share) > SCATTER_POINTS:
            chosen = torch.randperm(len(share), generator=torch.Generator().manual_seed(0))[:SCATTER_POINTS].numpy()
            share, top = share[chosen], top[chosen]
        axis.scatter(100 * share, top, s=8, alpha=0.4, color=colour, linewidths=0, rasterized=True)
        axis.set(title=f"{name} ({len(share):,} samples)", xlabel=xlabel(threshold))
    axes[0].set_ylabel("top-1 probability")
    style.save(figure, path)


def xlabel(threshold: float) -> str:
    return f"logits with |z| < {threshold:g} (% of a sample's)"


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        errors.stop(error)
