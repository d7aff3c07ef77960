"""Selective classification: how well a model's confidence ranks its errors, and what normalised logits recover."""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from common.options import CORES, FRACTION, REPEATS, SEED

import numpy as np
import torch
from tqdm import tqdm

from metrics.outputs import Outputs
from metrics.rankings import Model
from metrics.resampling import interval, resamples, splits
from metrics.risk_coverage import FIGURES, figures, weigh
from metrics.scores import PLAIN, POWERS, normalised

FEW_HELD_OUT = 100  # on fewer held-out samples than this, p or T is chosen by chance
FEW_ERRORS = 10  # likewise on fewer held-out errors than this
FEW_IMAGES = 30  # resamples of fewer images than this give only rough intervals
SPLIT = ("split_msp", "normalised")  # the scores whose figures are means over splits; those of PLAIN are on all images
TWO_CLASSES = "normalised logits need three classes or more: with two, s_p is the same for every sample"


def analyse(
    models: dict[str, Model], fraction: float = FRACTION, repeats: int = REPEATS, bootstrap: int = 1000, seed: int = SEED
) -> dict:
    """The content of summary.json for models by name. fraction, repeats: of held-out splits; bootstrap: resamples, 0 for none.

    Each figure of FIGURES is {"value", "interval"}, as fractions, None where it is not defined.
    """
    rows, points, draws, notes = {}, {}, {}, []
    for name, model in models.items():
        held_out = splits(model.units, fraction, repeats, seed)
        chosen = choose(model, held_out)
        everything = np.ones((model.units, 1), np.int32)
        points[name] = weighted(model, chosen, ~held_out, everything)
        draws[name] = resample(name, model, chosen, ~held_out, bootstrap, seed) if bootstrap else {}
        rows[name] = {
            "images": model.units,
            "samples": model.samples,
            "held_out_images": int(held_out[:, 0].sum()),
            "chosen": chosen,
            "scores": {key: compare(points[name][key], draws[name].get(key)) for key in points[name]},
        }
        if chosen:
            less_msp = contrast(points[name], draws[name], "normalised", points[name], draws[name], "split_msp")
            by_p = {p: figures(weigh(model.rankings[normalised(p)], everything))["aurc"][0] for p in POWERS}
            rows[name] |= {"normalised_less_msp": less_msp, "aurc_by_p": by_p}
        notes += [f"{name}: {note}" for note in doubts(model, held_out, bootstrap)]
    paired = []
    for a, b in itertools.combinations(models, 2):
        if models[a].units != models[b].units or not torch.equal(models[a].labels, models[b].labels):
            notes.append(f"{a} and {b} are not of the same images (their labels differ): no paired differences")
            continue
        for key in ("msp", *["normalised"] * ("normalised" in points[a])):
            difference = contrast(points[b], draws[b], key, points[a], draws[a], key)
            paired.append({"model": b, "less": a, "score": key, "figures": difference})
    notes += [TWO_CLASSES] * any(model.classes < 3 for model in models.values())
    settings = {"held_out_fraction": fraction, "repeats": repeats, "resamples": bootstrap, "seed": seed}
    return settings | {"models": rows, "paired": paired, "notes": notes}


def measure(test: Outputs, train: Outputs | None) -> dict[str, float | None]:
    """Risk, coverage and AUROC as fractions, by MSP unless the name says another score.

    aurc_split_msp and aurc_normalised: by MSP, and by the score chosen on the held-out fifth, both on the other images, averaged
    over the splits. normalised_kept_msp: the share of the splits that chose MSP.
    """
    model = analyse({"": test.ranked}, bootstrap=0)["models"][""]

    def value(score: str, figure: str) -> float | None:
        return model["scores"][score][figure]["value"] if score in model["scores"] else None

    found = {"aurc": value("msp", "aurc"), "excess_aurc": value("msp", "excess_aurc")}
    found |= {f"aurc_{score}": value(score, "aurc") for score in (*PLAIN, *SPLIT) if score != "msp"}
    chosen = model["chosen"]
    found["normalised_kept_msp"] = chosen.count("msp") / len(chosen) if chosen else None
    found |= {key: value("msp", key) for key in ("coverage_at_risk_1", "coverage_at_risk_0.5")}
    found["coverage_at_risk_1_normalised"] = value("normalised", "coverage_at_risk_1")
    return found | {key: value("msp", key) for key in ("risk_at_coverage_20", "risk_at_coverage_80", "auroc")}


def choose(model: Model, held_out: np.ndarray, msp: bool = True) -> list[str]:
    """For each split, held_out (units, repeats) bool, the s_p (or MSP, with `msp`) of lowest held-out AURC, the first of equals.

    For two classes there is nothing to choose, and the list is empty.
    """
    if model.classes < 3:
        return []
    names = [*["msp"] * msp, *map(normalised, POWERS)]
    weights = held_out.astype(np.int32)
    aurc = np.stack([figures(weigh(model.rankings[name], weights))["aurc"] for name in names])
    return [names[index] for index in aurc.argmin(0)]


def weighted(model: Model, chosen: list[str], scored: np.ndarray, weights: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Every figure (R,) of every score under weights (units, R): for PLAIN on all images; for SPLIT, see over_splits."""
    result = {name: figures(weigh(model.rankings[name], weights)) for name in PLAIN}
    return result | over_splits(model, chosen, scored, weights)


def over_splits(model: Model, chosen: list[str], scored: np.ndarray, weights: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Every figure (R,) of SPLIT under weights (units, R), averaged over the splits. Empty for two classes.

    chosen: the score of each split, empty for two classes; scored (units, repeats) bool: the images on which it is evaluated,
    those not held out. A figure that is not defined in some splits is averaged over the others.
    """
    if not chosen:
        return {}
    by_split = {key: [] for key in SPLIT}
    for name, kept in zip(chosen, scored.T, strict=True):
        weights_here = weights * kept[:, None]
        by_split["split_msp"].append(figures(weigh(model.rankings["msp"], weights_here)))
        normal = by_split["split_msp"][-1] if name == "msp" else figures(weigh(model.rankings[name], weights_here))
        by_split["normalised"].append(normal)
    return {key: {f: mean_of_defined([row[f] for row in rows]) for f in FIGURES} for key, rows in by_split.items()}


def mean_of_defined(rows: list[np.ndarray]) -> np.ndarray:
    values = np.stack(rows)
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):  # 0 / 0 where it is defined in no split
        return np.where(defined, values, 0).sum(0) / defined.sum(0)


def resample(name: str, model: Model, chosen: list[str], scored: np.ndarray, count: int, seed: int) -> dict:
    """weighted() of `count` resamples of the images; equal numbers of images and equal seeds give the same resamples."""

    def part(draw: Callable[[], np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
        return weighted(model, chosen, scored, draw())

    draws = resamples(model.units, count, seed)
    with ThreadPoolExecutor(min(4, CORES)) as pool:  # NumPy releases the GIL while it computes
        bar = tqdm(pool.map(part, draws), f"bootstrap of {name}", len(draws), disable=None, leave=False)
        parts = list(bar)
    return {key: {f: np.concatenate([part[key][f] for part in parts]) for f in FIGURES} for key in parts[0]}


def compare(point: dict[str, np.ndarray], drawn: dict[str, np.ndarray] | None) -> dict[str, dict]:
    """Each figure's value, from point (1,), and interval, from its resamples (R,); None if undefined or without resamples."""
    finite = {f: float(point[f][0]) if np.isfinite(point[f][0]) else None for f in FIGURES}
    return {
        f: {"value": value, "interval": interval(drawn[f]) if drawn and value is not None else None}
        for f, value in finite.items()
    }


def contrast(point: dict, drawn: dict, key: str, other_point: dict, other_drawn: dict, other_key: str) -> dict[str, dict]:
    """compare() of the differences between one score's figures and another's (first minus second), resample by resample."""
    difference = {f: point[key][f] - other_point[other_key][f] for f in FIGURES}
    paired = {f: drawn[key][f] - other_drawn[other_key][f] for f in FIGURES} if drawn else None
    return compare(difference, paired)


def doubts(model: Model, held_out: np.ndarray, bootstrap: int) -> list[str]:
    """Caveats for readers of this model's figures. bootstrap: number of resamples, 0 for figures without intervals."""
    held = weigh(model.rankings["msp"], held_out.astype(np.int32))
    samples, wrong = int(held.total.min()), int(held.wrong.min())
    few = model.classes > 2 and (samples < FEW_HELD_OUT or wrong < FEW_ERRORS)
    notes = [f"p is chosen on as few as {samples:,} held-out samples with {wrong} errors, which is too few to tell"] * few
    rough = bootstrap > 0 and model.units < FEW_IMAGES
    notes += [f"{model.units} images are few to resample: the intervals are rough"] * rough
    everything = weigh(model.rankings["msp"], np.ones((model.units, 1), np.int32))
    errors_in_all = int(everything.wrong[0])
    if errors_in_all in (0, model.samples):
        notes.append(f"all predictions are {'wrong' if errors_in_all else 'right'}: AUROC is undefined, no ranking is better")
    return notes
