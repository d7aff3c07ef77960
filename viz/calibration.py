"""Calibration, before and after a temperature: reliability diagrams, ECE, classwise ECE, NLL, Brier score, ranking of errors.

    python viz/calibration.py --input ce.pt ls.pt maxsup.pt --names CE LS MaxSup --output dir/

The temperature T divides the logits (Guo et al. 2017); it is the one of lowest NLL on held-out images. Every figure, before and
after, is the mean over --repeats random splits of what comes out on the other images. p of the normalised logits s_p is held-out
AURC's choice. A temperature keeps the order of max logits and of s_p, so it changes no ranking of theirs; MSP's it can change.
Writes reliability (PNG and PDF), summary.json, summary.md.
"""

import argparse
import json
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor
from tqdm import tqdm

import errors
import inputs
import logits_file
import style
from bootstrap import splits
from errors import InputError
from outputs import make_folder, write_text
from rankings import rank_images
from risk_coverage import figures, rank, weigh
from scores import POWERS, chunks, normalised, normalised_scores, plain_scores
from selective import choose

BINS = 15
COLDEST, HOTTEST = 0.01, 100.0  # the range of temperatures
# heading, decimals
FIGURES = {"ece": ("ECE", 4), "classwise_ece": ("classwise ECE", 5), "nll": ("NLL", 4), "brier": ("Brier", 4)}
RANKINGS = {"msp": "MSP", "max_logit": "max logit", "normalised": "s_p"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Calibration of one or more logits files, before and after a temperature.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    inputs.add_arguments(parser)
    args = parser.parse_args()
    inputs.check(args)
    files = inputs.load_all(args, logits_file.load)
    make_folder(args.output)
    summary = {"held_out_fraction": args.val_fraction, "repeats": args.repeats, "seed": args.seed, "models": {}, "notes": []}
    diagrams = {}
    for name, content in files.items():
        result = calibrate(content["logits"], content["labels"], args.val_fraction, args.repeats, args.seed, name)
        diagrams[name] = result.pop("bins")
        summary["notes"] += [f"{name}: {note}" for note in result.pop("notes")]
        summary["models"][name] = result
    for note in summary["notes"]:
        inputs.warn(note)
    try:
        write_text(args.output / "summary.json", json.dumps(summary, indent=1) + "\n")
        write_text(args.output / "summary.md", markdown(summary))
        draw(diagrams, summary["models"], args.output / "reliability")
    except OSError as error:
        raise InputError(f"--output {args.output}: cannot be written ({error.strerror})")
    print((args.output / "summary.md").read_text())
    print(f"figures and tables of {len(files)} inputs: {args.output}/")


def calibrate(logits: Tensor, labels: Tensor, fraction: float, repeats: int, seed: int, name: str) -> dict:
    """Figures before and after a temperature, mean over the splits, of logits (N, K) and labels (N,).

    Returns temperatures and chosen (one a split), before and after (FIGURES, and the AURC of RANKINGS), bins (2, BINS, 3): before
    and after, samples, sum of confidence and right predictions in each bin of all splits' scored images; and notes.
    """
    held_out = splits(len(labels), fraction, repeats, seed)
    model = rank_images(logits, labels, name)
    chosen = choose(model, held_out, [*map(normalised, POWERS)])
    rows = {"before": [], "after": []}
    bins, temperatures, notes = np.zeros((2, BINS, 3)), [], []
    for split, score in enumerate(tqdm(chosen, desc=f"temperature of {name}", unit="split", disable=None, leave=False)):
        held, scored = (torch.from_numpy(np.flatnonzero(mask)) for mask in (held_out[:, split], ~held_out[:, split]))
        temperatures.append(fit_temperature(logits, labels, held))
        for which, (key, temperature) in enumerate({"before": 1.0, "after": temperatures[-1]}.items()):
            measured, counts = measure(logits, labels, scored, temperature, score)
            rows[key].append(measured)
            bins[which] += counts
    held = weigh(model.rankings["msp"], held_out.astype(np.int32))
    few = len(labels) - len(scored)
    if few < inputs.FEW_HELD_OUT or held.wrong.min() < inputs.FEW_ERRORS:
        notes.append(f"T and p are chosen on {few:,} held-out images with as few as {held.wrong.min()} errors: too few to tell")
    at_the_end = sum(temperature in (COLDEST, HOTTEST) for temperature in temperatures)
    if at_the_end:
        notes.append(
            f"the NLL falls up to the end of the range, T from {COLDEST:g} to {HOTTEST:g}, in {at_the_end} of the splits"
        )
    mean = {key: {f: float(np.mean([row[f] for row in measured])) for f in measured[0]} for key, measured in rows.items()}
    return (
        {"images": len(labels), "held_out_images": few, "temperatures": temperatures, "chosen": chosen}
        | mean
        | {
            "bins": bins,
            "notes": notes,
        }
    )


def fit_temperature(logits: Tensor, labels: Tensor, index: Tensor | None = None) -> float:
    """The T in [COLDEST, HOTTEST] of lowest NLL of softmax(z / T), for logits (N, K) and labels (N,), or their rows `index`.

    The NLL is convex in 1 / T, so the root of its slope there, E_softmax[z] - z_label on average, is the only one; where there is
    none, an end of the range is best: the coldest where every prediction is right, the hottest where the logits mislead.
    """

    def slope(log_t: float) -> float:
        total = 0.0
        for rows, targets in chunks(logits, labels, index):
            rows = rows - rows.gather(1, targets.unsqueeze(1))  # they may be the caller's own
            total += ((rows * np.exp(-log_t)).softmax(1) * rows).sum().item()
        return total

    cold, hot = np.log([COLDEST, HOTTEST])
    if slope(hot) >= 0:
        return HOTTEST
    if slope(cold) <= 0:
        return COLDEST
    return float(np.exp(brentq(slope, cold, hot, xtol=1e-9)))


def measure(logits: Tensor, labels: Tensor, index: Tensor, temperature: float, score: str) -> tuple[dict[str, float], np.ndarray]:
    """FIGURES and the AURC of RANKINGS of logits / temperature, and the bins (BINS, 3) of the reliability diagram.

    Of logits (N, K) and labels (N,) the rows `index` (n,). score: the s_p that stands for normalised logits. Classwise ECE (Kull
    et al. 2019): the ECE of each class's probability against how often it is the label, mean over the classes.
    """
    classes = logits.shape[1]
    nll = brier = 0.0
    gap = torch.zeros(classes * BINS, dtype=torch.float64)  # sum of probability less labels, by class and bin
    top = torch.zeros(BINS, 3, dtype=torch.float64)
    columns = {key: torch.empty(len(index), dtype=torch.float64) for key in RANKINGS}
    wrong, start = torch.empty(len(index), dtype=torch.bool), 0
    for rows, targets in chunks(logits, labels, index):
        part = slice(start, start := start + len(targets))
        rows /= temperature
        log_p = rows.log_softmax(1)
        at_target = log_p.gather(1, targets.unsqueeze(1))
        p = log_p.exp_()
        nll -= at_target.sum().item()
        brier += (p.square().sum() - 2 * at_target.exp().sum() + len(targets)).item()
        bins = bins_of(p) + BINS * torch.arange(classes)
        gap.index_add_(0, bins.flatten(), p.flatten())
        gap.index_add_(0, bins.gather(1, targets.unsqueeze(1)).squeeze(1), -torch.ones(len(targets), dtype=torch.float64))
        scores, predicted = plain_scores(rows)
        scores["normalised"] = normalised_scores(rows, powers=[int(score.removeprefix("s_"))])[score]
        wrong[part] = predicted != targets
        confidence = p.gather(1, predicted.unsqueeze(1)).squeeze(1)
        facts = torch.stack([torch.ones_like(confidence), confidence, (~wrong[part]).double()], 1)
        top.index_add_(0, bins_of(confidence), facts)
        for key in RANKINGS:
            columns[key][part] = scores[key]
    count, everything = len(index), np.ones((len(index), 1), np.int32)
    result = {
        "ece": (top[:, 1] - top[:, 2]).abs().sum().item() / count,
        "classwise_ece": gap.abs().sum().item() / count / classes,
        "nll": nll / count,
        "brier": brier / count,
    }
    for key, column in columns.items():
        result[f"aurc_{key}"] = float(figures(weigh(rank(column.numpy(), wrong.numpy()), everything))["aurc"][0])
    return result, top.numpy()


def bins_of(probability: Tensor) -> Tensor:
    """The bin, 0 to BINS - 1, of each probability: (0, 1/BINS], (1/BINS, 2/BINS], ..."""
    return (probability * BINS).ceil_().long().clamp_(1, BINS) - 1


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
        pairs = [f"{row[key][f'aurc_{score}']:.5f}" for score in RANKINGS for key in ("before", "after")]
        powers = Counter(score.removeprefix("s_") for score in row["chosen"]).most_common()
        lines.append(f"| {name} | {' | '.join(pairs)} | {', '.join(f'{p} in {count}' for p, count in powers)} |")
    return "\n".join(lines + [""] * bool(summary["notes"]) + [f"Note: {note}." for note in summary["notes"]]) + "\n"


def draw(diagrams: dict[str, np.ndarray], models: dict[str, dict], path: Path) -> None:
    """Reliability diagrams, a column a model, before and after the temperature: how often the predictions of a bin are right."""
    figure, axes = plt.subplots(
        2, len(diagrams), figsize=(max(3.3 * len(diagrams), 4), 6.2), squeeze=False, sharex=True, sharey=True
    )
    edges = np.arange(BINS) / BINS
    for column, (name, bins) in enumerate(diagrams.items()):
        for axis, (count, confidence, right), which in zip(axes[:, column], bins.transpose(0, 2, 1), ("before", "after")):
            filled = count > 0
            said, found = confidence[filled] / count[filled], right[filled] / count[filled]
            axis.bar(edges[filled], found, 1 / BINS, align="edge", color=style.COLOURS[5], edgecolor="white", label="right")
            axis.bar(
                edges[filled],
                said - found,
                1 / BINS,
                found,
                align="edge",
                color="none",
                edgecolor=style.COLOURS[4],
                hatch="///",
                linewidth=0.8,
                label="gap to the confidence",
            )
            axis.plot([0, 1], [0, 1], "--", color="0.4", linewidth=1)
            axis.stairs(count / count.sum(), np.arange(BINS + 1) / BINS, color="black", linewidth=1, label="share of the samples")
            ece = models[name][which]["ece"]
            temperature = f", T = {np.mean(models[name]['temperatures']):.2f}" if which == "after" else ""
            axis.set(xlim=(0, 1), ylim=(0, 1), title=f"{name}{temperature}: ECE {ece:.4f}")
        axes[1, column].set_xlabel("confidence (MSP)")
    for axis, which in zip(axes[:, 0], ("before", "after the temperature")):
        axis.set_ylabel(f"{which}\nshare that is right")
    axes[0, 0].legend(loc="upper left", fontsize=8)
    style.save(figure, path)


if __name__ == "__main__":
    errors.run(main)
