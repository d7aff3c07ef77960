"""Calibration, before and after a temperature: reliability diagrams, ECE, classwise ECE, NLL, Brier score, ranking of errors.

    python viz/calibration.py --input ce.pt ls.pt maxsup.pt --names CE LS MaxSup --output calibration/

The temperature T divides the logits (Guo et al. 2017); it is the one of lowest NLL on held-out images. Every figure, before and
after, is the mean over --repeats random splits of what comes out on the other images. p of the normalised logits s_p is held-out
AURC's choice. A temperature keeps the order of max logits and of s_p, so it changes no ranking of theirs; MSP's it can change.
Writes reliability (PNG and PDF), summary.json, summary.md.
"""

import json
from collections import Counter

from common import errors, logits_file, options, outputs
from common.terminal import number, table

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from drawing import reliability
from metrics.calibration_error import BINS
from metrics.rankings import rank_images
from metrics.resampling import check_split, splits
from metrics.risk_coverage import aurc, weigh
from metrics.scores import POWERS, chunks, normalised, normalised_scores, plain_scores
from metrics.selection import FEW_ERRORS, FEW_HELD_OUT, TWO_CLASSES, choose
from metrics.temperature import COLDEST, HOTTEST, at_temperature, fit_temperature

# heading, decimals
FIGURES = {"ece": ("ECE", 4), "classwise_ece": ("classwise ECE", 5), "nll": ("NLL", 4), "brier": ("Brier", 4)}
RANKINGS = {"msp": "MSP", "max_logit": "max logit", "normalised": "s_p"}


def main() -> None:
    parser = options.parser("Calibration of one or more logits files, before and after a temperature.")
    options.add_inputs(parser)
    options.add_splits(parser)
    args = parser.parse_args()
    options.check_splits(args)
    files = options.load_all(args, logits_file.load)
    for name, content in files.items():
        check_split(len(content["labels"]), args.val_fraction, name)
    with outputs.folder(args.output, "calibration"):
        summary = {"held_out_fraction": args.val_fraction, "repeats": args.repeats, "seed": args.seed, "models": {}, "notes": []}
        diagrams = {}
        for name, content in files.items():
            result = calibrate(content["logits"], content["labels"], args.val_fraction, args.repeats, args.seed, name)
            diagrams[name] = result.pop("bins")
            summary["notes"] += [f"{name}: {note}" for note in result.pop("notes")]
            summary["models"][name] = result
        if next(iter(files.values()))["logits"].shape[1] < 3:
            summary["notes"].append(TWO_CLASSES)
        for note in summary["notes"]:
            options.warn(note)
        outputs.write_text(args.output / "summary.json", json.dumps(summary, indent=1) + "\n")
        outputs.write_text(args.output / "summary.md", markdown(summary))
        reliability.draw(diagrams, summary["models"], args.output / "reliability")
    print(
        table(
            ["model", "T", "ECE", "after", "NLL", "after", "AURC by MSP", "after"],
            [line(*item) for item in summary["models"].items()],
        )
    )
    print(f"figures and tables of {len(files)} inputs: {args.output}/")


def calibrate(logits: Tensor, labels: Tensor, fraction: float, repeats: int, seed: int, name: str) -> dict:
    """Figures before and after a temperature, mean over the splits, of logits (N, K) and labels (N,).

    Returns temperatures and chosen (one per split; no s_p is chosen for two classes), before and after (FIGURES, and the AURC of
    RANKINGS), bins (2, BINS, 3): before and after, samples, sum of confidence and right predictions in each bin of all splits'
    scored images; and notes.
    """
    held_out = splits(len(labels), fraction, repeats, seed)
    model = rank_images(logits, labels, name)
    chosen = choose(model, held_out, [*map(normalised, POWERS)]) if model.classes > 2 else []
    rows = {"before": [], "after": []}
    bins, temperatures, notes = np.zeros((2, BINS, 3)), [], []
    for split in tqdm(range(repeats), desc=f"temperature of {name}", unit="split", disable=None, leave=False):
        held, scored = (torch.from_numpy(np.flatnonzero(mask)) for mask in (held_out[:, split], ~held_out[:, split]))
        temperatures.append(fit_temperature(logits, labels, held))
        for which, (key, temperature) in enumerate({"before": 1.0, "after": temperatures[-1]}.items()):
            measured, counts = at_temperature(logits, labels, scored, temperature)
            score = chosen[split] if chosen else None
            rows[key].append(measured | rankings_at(logits, labels, scored, temperature, score))
            bins[which] += counts
    held = weigh(model.rankings["msp"], held_out.astype(np.int32))
    few = len(labels) - len(scored)
    if few < FEW_HELD_OUT or held.wrong.min() < FEW_ERRORS:
        notes.append(f"T and p are chosen on {few:,} held-out images with as few as {held.wrong.min()} errors: too few to tell")
    at_the_end = sum(temperature in (COLDEST, HOTTEST) for temperature in temperatures)
    if at_the_end:
        notes.append(
            f"the NLL falls up to the end of the range, T from {COLDEST:g} to {HOTTEST:g}, in {at_the_end} of the splits"
        )
    mean = {key: {f: float(np.mean([row[f] for row in measured])) for f in measured[0]} for key, measured in rows.items()}
    settings = {"images": len(labels), "held_out_images": few, "temperatures": temperatures, "chosen": chosen}
    return settings | mean | {"bins": bins, "notes": notes}


def rankings_at(logits: Tensor, labels: Tensor, index: Tensor, temperature: float, score: str | None) -> dict[str, float]:
    """The AURC of RANKINGS of logits (N, K) / temperature, rows `index` (n,). score: the s_p of normalised logits, None: none."""
    columns = {key: [] for key in RANKINGS if score or key != "normalised"}
    wrong = []
    for rows, targets in chunks(logits, labels, index):
        rows = rows / temperature
        scores, predicted = plain_scores(rows)
        if score:
            scores["normalised"] = normalised_scores(rows, powers=[int(score.removeprefix("s_"))])[score]
        wrong.append(predicted != targets)
        for key, column in columns.items():
            column.append(scores[key])
    return {f"aurc_{key}": aurc(torch.cat(column), ~torch.cat(wrong)) for key, column in columns.items()}


def line(name: str, row: dict) -> list[str]:
    """A model's row in the terminal."""
    pairs = [
        number(row[key][f], decimals) for f, decimals in (("ece", 4), ("nll", 4), ("aurc_msp", 5)) for key in ("before", "after")
    ]
    return [name, number(np.mean(row["temperatures"]), 3), *pairs]


def markdown(summary: dict) -> str:
    """summary.md from what summary.json holds."""
    share = 100 * (1 - summary["held_out_fraction"])
    titles = [title for title, _ in FIGURES.values()]
    lines = [
        f"Mean over {summary['repeats']} random splits, on the {share:g} % of the images that are not held out.",
        "",
        f"| model | images | T | {' | '.join(f'{title} | after' for title in titles)} |",
        "|---|" + "---:|" * (2 + 2 * len(titles)),
    ]
    for name, row in summary["models"].items():
        pairs = [f"{row[key][f]:.{decimals}f}" for f, (_, decimals) in FIGURES.items() for key in ("before", "after")]
        temperatures = row["temperatures"]
        spread = f"{np.mean(temperatures):.3f} ({min(temperatures):.3f} to {max(temperatures):.3f})"
        lines.append(f"| {name} | {row['images']:,} | {spread} | {' | '.join(pairs)} |")
    lines += [
        "",
        "What the temperature does to the ranking of errors, AURC (s_p: normalised logits, the best p on held-out images):",
        "",
        f"| model | {' | '.join(f'{title} | after' for title in RANKINGS.values())} | p |",
        "|---|" + "---:|" * (2 * len(RANKINGS)) + "---|",
    ]
    for name, row in summary["models"].items():
        found = [row[key].get(f"aurc_{score}") for score in RANKINGS for key in ("before", "after")]
        pairs = ["–" if value is None else f"{value:.5f}" for value in found]
        powers = Counter(score.removeprefix("s_") for score in row["chosen"]).most_common()
        lines.append(f"| {name} | {' | '.join(pairs)} | {', '.join(f'{p} in {count}' for p, count in powers) or '–'} |")
    return "\n".join(lines + [""] * bool(summary["notes"]) + [f"Note: {note}." for note in summary["notes"]]) + "\n"


if __name__ == "__main__":
    errors.run(main)
