"""Selective classification: which model rejects its own errors best, what label smoothing cost, what normalised logits give back.

    python viz/selective.py --input ce.pt ls.pt maxsup.pt --names CE LS MaxSup --output dir/
    python viz/selective.py --input ls_0.0.pt ls_0.1.pt ls_0.2.pt ls_0.3.pt --output dir/

Logits (N, K), or (N, K, H, W) for segmentation, where pixels are the samples and images are split and resampled. p of the
normalised logits s_p is the one of lowest AURC on held-out images, MSP where none is lower than MSP's; its figures, and MSP's
beside it, are the mean over --repeats random splits of what comes out on the other images. Intervals are 95 % percentiles over
--bootstrap resamples of the images, splits and p kept; differences between models are taken resample by resample, on the same
images. Writes risk_coverage and max_logit (PNG and PDF), summary.json, summary.md.
"""

import argparse
import itertools
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import errors
import inputs
import segmentation
import selective_figures
import selective_tables
from bootstrap import interval, resamples, splits
from errors import InputError
from outputs import make_folder, write_text
from rankings import Model, rank_images
from risk_coverage import FIGURES, figures, weigh
from scores import PLAIN, POWERS, normalised

SPLIT = ("split_msp", "normalised")  # the scores whose figures are means over splits, beside PLAIN on all images


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Risk-coverage figures of one or more logits files, with and without normalised logits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    inputs.add_arguments(parser)
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of the images for the intervals; 0: no intervals")
    parser.add_argument("--ignore-index", type=int, default=255, help="segmentation: the label of pixels that do not count")
    parser.add_argument("--log-risk", action="store_true", help="draw the risk on a logarithmic scale")
    args = parser.parse_args()
    inputs.check(args)
    if args.bootstrap < 0:
        raise InputError(f"--bootstrap {args.bootstrap}: from 0 on")
    files = inputs.load_all(args, lambda path: segmentation.load(path, args.ignore_index))
    make_folder(args.output)
    models = {name: rank_file(content, name) for name, content in files.items()}
    summary = analyse(models, args.val_fraction, args.repeats, args.bootstrap, args.seed)
    try:
        write(summary, models, args.log_risk, args.output)
    except OSError as error:
        raise InputError(f"--output {args.output}: cannot be written ({error.strerror})")
    print((args.output / "summary.md").read_text())
    print(f"figures and tables of {len(models)} inputs: {args.output}/")


def rank_file(content: dict, name: str) -> Model:
    """The rankings of a logits file of either form."""
    if content["logits"].ndim == 4:
        return segmentation.rank_pixels(content, name)
    return rank_images(content["logits"], content["labels"], name)


def analyse(models: dict[str, Model], fraction: float = 0.2, repeats: int = 10, bootstrap: int = 1000, seed: int = 0) -> dict:
    """What summary.json holds of models by name. fraction, repeats: of the held-out splits; bootstrap: resamples, 0 for none.

    A figure is {"value", "interval"}, fractions, None where it is not defined; FIGURES lists them.
    """
    rows, points, draws, notes = {}, {}, {}, []
    for name, model in models.items():
        held_out = splits(model.units, fraction, repeats, seed)
        chosen = choose(model, held_out, ["msp", *map(normalised, POWERS)])
        everything = np.ones((model.units, 1), np.int32)
        points[name] = measure(model, chosen, ~held_out, everything)
        draws[name] = resample(name, model, chosen, ~held_out, bootstrap, seed) if bootstrap else {}
        rows[name] = {
            "images": model.units,
            "samples": model.samples,
            "held_out_images": int(held_out[:, 0].sum()),
            "chosen": chosen,
            "scores": {key: compare(points[name][key], draws[name].get(key)) for key in points[name]},
            "normalised_less_msp": contrast(points[name], draws[name], "normalised", points[name], draws[name], "split_msp"),
            "aurc_by_p": {p: figures(weigh(model.rankings[normalised(p)], everything))["aurc"][0] for p in POWERS},
        }
        notes += [f"{name}: {note}" for note in doubts(model, held_out)]
    paired = []
    for a, b in itertools.combinations(models, 2):
        if models[a].units != models[b].units or not torch.equal(models[a].labels, models[b].labels):
            notes.append(f"{a} and {b} are not of the same images (their labels differ): no paired differences")
            continue
        for key in ("msp", "normalised"):
            difference = contrast(points[b], draws[b], key, points[a], draws[a], key)
            paired.append({"model": b, "less": a, "score": key, "figures": difference})
    settings = {"held_out_fraction": fraction, "repeats": repeats, "resamples": bootstrap, "seed": seed}
    return settings | {"models": rows, "paired": paired, "notes": notes}


def choose(model: Model, held_out: np.ndarray, names: list[str]) -> list[str]:
    """For each split, held_out (units, repeats) bool, which of the scores has the lowest AURC there, the first of equals."""
    weights = held_out.astype(np.int32)
    aurc = np.stack([figures(weigh(model.rankings[name], weights))["aurc"] for name in names])
    return [names[index] for index in aurc.argmin(0)]


def measure(model: Model, chosen: list[str], scored: np.ndarray, weights: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Every figure (R,) of every score under weights (units, R): of PLAIN on all images; of SPLIT the mean over the splits.

    chosen: the score of each split; scored (units, repeats) bool: the images that it is scored on, those not held out. A figure
    that is not defined in some split is the mean over the others.
    """
    result = {name: figures(weigh(model.rankings[name], weights)) for name in PLAIN}
    by_split = {key: [] for key in SPLIT}
    for name, kept in zip(chosen, scored.T):
        weights_here = weights * kept[:, None]
        by_split["split_msp"].append(figures(weigh(model.rankings["msp"], weights_here)))
        normal = by_split["split_msp"][-1] if name == "msp" else figures(weigh(model.rankings[name], weights_here))
        by_split["normalised"].append(normal)
    return result | {key: {f: mean_of_defined([row[f] for row in rows]) for f in FIGURES} for key, rows in by_split.items()}


def mean_of_defined(rows: list[np.ndarray]) -> np.ndarray:
    values = np.stack(rows)
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):  # 0 / 0 where no split defines it
        return np.where(defined, values, 0).sum(0) / defined.sum(0)


def resample(name: str, model: Model, chosen: list[str], scored: np.ndarray, count: int, seed: int) -> dict:
    """measure() of `count` resamples of the images; equal numbers of images and equal seeds give the same resamples."""

    def part(draw: Callable[[], np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
        return measure(model, chosen, scored, draw())

    draws = resamples(model.units, count, seed)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # NumPy lets other threads run while it computes
        bar = tqdm(pool.map(part, draws), f"bootstrap of {name}", len(draws), disable=None, leave=False)
        parts = list(bar)
    return {key: {f: np.concatenate([part[key][f] for part in parts]) for f in FIGURES} for key in parts[0]}


def compare(point: dict[str, np.ndarray], drawn: dict[str, np.ndarray] | None) -> dict[str, dict]:
    """Each figure's value, from point (1,), and interval, from its resamples (R,), None without; undefined ones as None."""
    finite = {f: float(point[f][0]) if np.isfinite(point[f][0]) else None for f in FIGURES}
    return {
        f: {"value": value, "interval": interval(drawn[f]) if drawn and value is not None else None}
        for f, value in finite.items()
    }


def contrast(point: dict, drawn: dict, key: str, other_point: dict, other_drawn: dict, other_key: str) -> dict[str, dict]:
    """compare() of the differences of one score's figures less another's, resample by resample."""
    difference = {f: point[key][f] - other_point[other_key][f] for f in FIGURES}
    paired = {f: drawn[key][f] - other_drawn[other_key][f] for f in FIGURES} if drawn else None
    return compare(difference, paired)


def doubts(model: Model, held_out: np.ndarray) -> list[str]:
    """What the reader of this model's figures should know."""
    held = weigh(model.rankings["msp"], held_out.astype(np.int32))
    samples, wrong = int(held.total.min()), int(held.wrong.min())
    few = samples < inputs.FEW_HELD_OUT or wrong < inputs.FEW_ERRORS
    notes = [f"p is chosen on as few as {samples:,} held-out samples with {wrong} errors, which is too few to tell"] * few
    notes += [f"{model.units} images are few to resample: the intervals are rough"] * (model.units < inputs.FEW_IMAGES)
    everything = weigh(model.rankings["msp"], np.ones((model.units, 1), np.int32))
    errors_in_all = int(everything.wrong[0])
    if errors_in_all in (0, model.samples):
        notes.append(f"all predictions are {'wrong' if errors_in_all else 'right'}: AUROC is undefined, no ranking is better")
    return notes


def write(summary: dict, models: dict[str, Model], log_risk: bool, output: Path) -> None:
    """Write the tables and figures into a folder."""
    for note in summary["notes"]:
        inputs.warn(note)
    write_text(output / "summary.json", json.dumps(summary, indent=1) + "\n")
    write_text(output / "summary.md", selective_tables.markdown(summary))
    curves = {}
    for name, model in models.items():
        scored = ~splits(model.units, summary["held_out_fraction"], summary["repeats"], summary["seed"])
        curves[name] = selective_figures.curves(model, summary["models"][name]["chosen"], scored)
    selective_figures.draw_risk_coverage(curves, log_risk, output / "risk_coverage")
    selective_figures.draw_max_logit({name: model.given_msp for name, model in models.items()}, output / "max_logit")


if __name__ == "__main__":
    errors.run(main)
