"""The numbers of a report: of each method with an interval, and the differences between methods.

If a method is one model, the interval is a bootstrap over the test images, and a difference is taken resample by resample on the
same images. If it is several seeds, it is Student's interval over the seeds, paired if both methods have the same ones.
"""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from common.options import CORES, SEED

import numpy as np
import torch
from scipy import sparse, stats
from tqdm import tqdm

from measure import all_metrics
from metrics.calibration_error import BINS, bins_of
from metrics.resampling import interval, resamples
from metrics.risk_coverage import figures, weigh
from metrics.selection import over_splits
from report_page.inputs import Run

RESAMPLES = 1000
ROUNDING = 1e-9  # relative to a mean: 0.9 - 0.85 and 0.8 - 0.75 are not the same to the last bit
FEWER = 5  # normalised logits use one in this many resamples, because each of them costs a pass per split


class Metric(NamedTuple):
    """title, decimals, factor from measure.py's number to the printed one, its unit; better: 1 if higher, -1 if lower, 0 neither.

    means: the line that explains the metric.
    """

    title: str
    decimals: int
    scale: float
    unit: str
    better: int
    means: str


NUMBER, PERCENT, SHARE = (1, ""), (1, "\u00a0%"), (100, "\u00a0%")
METRICS = {
    "top1": Metric("accuracy", 2, *PERCENT, 1, "The share of the images whose most likely class is their label (top-1)."),
    "nll": Metric("NLL", 4, *NUMBER, -1, "Negative log-likelihood: minus the log of the label's probability, mean over images."),
    "ece": Metric("ECE", 2, *SHARE, -1, f"Expected calibration error: |confidence − accuracy| of {BINS} bins, on average."),
    "temperature": Metric(
        "temperature", 2, *NUMBER, 0, "What divides all logits: of lowest NLL on a held-out fifth of the images."
    ),
    "ece_temperature": Metric("ECE after T", 2, *SHARE, -1, "ECE of the other images at the temperature; means over ten splits."),
    "aurc": Metric("AURC", 3, *SHARE, -1, "Area under the risk-coverage curve: the share of wrong answers, mean over coverages."),
    "auroc": Metric(
        "AUROC", 2, *SHARE, 1, "Probability that a right prediction is more confident than a wrong one; 50 % is chance."
    ),
    "coverage_at_risk_1": Metric(
        "coverage at 1 % risk", 2, *SHARE, 1, "The largest share of images, the surest, of which at most 1 % are wrong."
    ),
    "risk_at_coverage_80": Metric("risk at 80 % coverage", 2, *SHARE, -1, "The share of wrong answers among the surest 80 %."),
    "aurc_normalised": Metric(
        *("AURC, normalised", 3, *SHARE, -1),
        "AURC of the other images by normalised logits, (largest − mean) / p-norm; p chosen on a held-out fifth (200 resamples).",
    ),
    "normalised_less_msp": Metric(
        *("normalised − MSP", 3, 100, "\u00a0points", -1),
        "AURC by normalised logits less AURC by MSP, both of the images that did not choose p (200 resamples).",
    ),
    "max_logit_gap": Metric(
        "max-logit gap", 3, *NUMBER, 0, "Mean largest logit of right less that of wrong predictions, at equal MSP."
    ),
    "near_zero": Metric(
        "near-zero logits", 2, *SHARE, 0, "The share of all logits z with |z| below a threshold, see the figure."
    ),
    "d_within_val": Metric(
        *("variation within classes", 4, *NUMBER, 0),
        "The mean cosine distance between the features of two images of one class; of validation images unless said.",
    ),
    "r2_val": Metric(
        "separability R²", 4, *NUMBER, 0, "1 − the distance within classes / the distance between images of any classes."
    ),
    "d_within_train": Metric("variation, training", 4, *NUMBER, 0, "The variation within classes on the training images."),
    "r2_train": Metric("R², training", 4, *NUMBER, 0, "Separability on the training images."),
}
_OF_RANKING = ("aurc", "auroc", "coverage_at_risk_1", "risk_at_coverage_80")  # of metrics.risk_coverage
# Resampling with replacement biases these (an ECE upwards, a distance within classes downwards): their intervals are shifted back
# by the mean bias.
_SHIFTED = ("ece", "ece_temperature", "d_within_val", "r2_val")


def measure(run: Run) -> dict[str, float | None]:
    """Every metric of measure.py that can be computed from a report's input."""
    found = all_metrics(run.outputs, None) | {"near_zero": run.samples.near_zero.mean().item()}
    if found["aurc_normalised"] is not None:
        found["normalised_less_msp"] = found["aurc_normalised"] - found["aurc_split_msp"]
    return found | {f"{key}_train": (run.train_variation or {}).get(key) for key in ("d_within", "r2")}


def resampled(run: Run, metrics: dict[str, float | None], count: int = RESAMPLES) -> dict[str, np.ndarray]:
    """The metrics (count,) on resamples of the images. Models of equally many images share the resamples, which pairs them."""
    model, units = run.outputs.ranked, run.outputs.units
    means = sparse.csr_array(torch.stack([run.samples.nll, run.samples.near_zero]).numpy())
    scored = (~run.outputs.tempered.held_out).double().numpy()  # (splits, units)
    # Not a dense product: its threads would wait for each other.
    sums = sparse.vstack([means, sparse.csr_array(scored), _calibration_gaps(run)]).tocsr()

    def part(index: int) -> dict[str, np.ndarray]:
        weights = draws[index]()  # (units, R)
        of_all = figures(weigh(model.rankings["msp"], weights))
        found = {key: of_all[key] for key in _OF_RANKING} | {"top1": 100 * (1 - of_all["error"])}
        mean_sums, images, gaps = np.split(sums @ weights, [2, 2 + len(scored)])
        found["nll"], found["near_zero"] = mean_sums / units
        errors = np.abs(np.reshape(gaps, (-1, BINS, weights.shape[1]))).sum(1)
        found["ece"], found["ece_temperature"] = errors[0] / units, (errors[1:] / np.maximum(images, 1)).mean(0)
        if run.outputs.chosen and index < fewer:
            scores = over_splits(model, run.outputs.chosen, ~run.outputs.held_out, weights)
            normal, plain = scores["normalised"]["aurc"], scores["split_msp"]["aurc"]
            found["aurc_normalised"], found["normalised_less_msp"] = normal, normal - plain
        return found

    draws = resamples(units, count, SEED)
    fewer = -(-len(draws) // FEWER)
    with ThreadPoolExecutor(min(4, CORES)) as pool:  # NumPy releases the GIL while it computes
        parts = list(tqdm(pool.map(part, range(len(draws))), f"intervals of {run.method}", len(draws), disable=None, leave=False))
    found = {key: np.concatenate([part[key] for part in parts if key in part]) for key in parts[0]}
    for key in {"aurc_normalised", "normalised_less_msp"} & found.keys():
        found[key] = found[key][: count // FEWER]
    if run.content.get("features") is not None:
        found |= _resampled_features(run.content["features"], run.content["labels"], count)
    for key in _SHIFTED:
        if key in found and metrics[key] is not None:
            found[key] = found[key] - np.nanmean(found[key]) + metrics[key]
    return found


def _calibration_gaps(run: Run) -> sparse.csr_array:
    """((1 + splits) BINS, N): each image's confidence minus its correctness (0 or 1), in the row of its bin: first all images
    without a temperature, then, for each split, the images that are not held out, at its temperature."""
    tempered, right = run.outputs.tempered, run.samples.right.double()
    confidence = 1 + torch.cat([run.samples.msp[None], tempered.msp])
    rows = bins_of(confidence) + BINS * torch.arange(len(confidence))[:, None]
    values = confidence - right
    values[1:][tempered.held_out] = 0
    images = torch.arange(len(right)).expand_as(rows)
    index = tuple(part.flatten().numpy() for part in (rows, images))
    found = sparse.coo_array((values.flatten().numpy(), index), (BINS * len(confidence), len(right))).tocsr()
    found.eliminate_zeros()
    return found


def _resampled_features(features: torch.Tensor, labels: torch.Tensor, count: int) -> dict[str, np.ndarray]:
    """d_within_val and r2_val: class by class, the weighted sums of unit features are one matrix product for many resamples."""
    weights = torch.from_numpy(np.concatenate([draw().T for draw in resamples(len(labels), count, SEED)]).astype(np.int16))
    within, classes, means = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64), 0
    for label in labels.unique():
        rows = (labels == label).nonzero().squeeze(1)
        drawn = weights[:, rows].float()
        images = drawn.sum(1, keepdim=True)
        mean = drawn @ torch.nn.functional.normalize(features[rows].float(), dim=1) / images.clamp(min=1)
        there = (images > 0).squeeze(1)
        within += torch.where(there, 1 - mean.double().square().sum(1), 0)
        classes += there
        means = means + mean.double()
    within /= classes
    total = 1 - (means / classes.unsqueeze(1)).square().sum(1)
    return {"d_within_val": within.numpy(), "r2_val": (1 - within / total).numpy()}


def estimates(methods: dict[str, list[dict]], draws: dict[str, dict]) -> dict[str, dict[str, dict]]:
    """value, interval and, for several seeds, spread (standard deviation) and the seeds' values, by method and metric.

    methods: measure() of each seed; draws: resampled() of each method that is one model.
    """
    found = {}
    for name, seeds in methods.items():
        found[name] = {}
        for key in METRICS:
            values = [row[key] for row in seeds if row.get(key) is not None]
            if len(values) < len(seeds):
                found[name][key] = {"value": None, "interval": None}
            elif len(seeds) == 1:
                drawn = draws.get(name, {}).get(key)
                ends = None if drawn is None else interval(drawn)
                if ends and key in ("ece", "ece_temperature"):  # shifting a resampled ECE to its value may take it below 0
                    ends = [max(0.0, end) for end in ends]
                found[name][key] = {"value": values[0], "interval": ends}
            else:
                spread = float(np.std(values, ddof=1))
                found[name][key] = _student(np.mean(values), spread / len(values) ** 0.5, len(values) - 1)
                found[name][key] |= {"spread": spread, "seeds": values}
    return found


def differences(runs: dict[str, list[Run]], methods: dict[str, list[dict]], draws: dict[str, dict]) -> list[dict]:
    """For each pair of methods and metric: model, less, metric, value, interval, told (the interval excludes 0), and how."""
    found = []
    for (a, b), key in itertools.product(itertools.combinations(methods, 2), METRICS):
        values = [[row.get(key) for row in methods[name]] for name in (b, a)]
        if any(value is None for column in values for value in column):
            continue
        first, second = values
        row = {"model": b, "less": a, "metric": key, "value": float(np.mean(first) - np.mean(second))}
        row |= {"interval": None, "how": None}
        if len(first) == len(second) == 1:
            if all(key in draws.get(name, {}) for name in (a, b)):
                row |= {"interval": interval(draws[b][key] - draws[a][key]), "how": "images"}
        elif min(len(first), len(second)) > 1:
            row |= _over_seeds(first, second, *([run.said.get("seed") for run in runs[name]] for name in (b, a)))
        ends = row["interval"]
        found.append(row | {"told": ends is not None and (ends[0] > 0 or ends[1] < 0)})
    return found


def _over_seeds(first: list[float], second: list[float], seeds: list, others: list) -> dict:
    """The difference of the means, paired by seed if both are known to have the same seeds, else with Welch's interval."""
    if None not in [*seeds, *others] and len(set(seeds)) == len(seeds) and sorted(seeds) == sorted(others):
        pairs = [value - second[others.index(seed)] for seed, value in zip(seeds, first, strict=True)]
        error = np.std(pairs, ddof=1) / len(pairs) ** 0.5
        return _student(np.mean(pairs), error, len(pairs) - 1) | {"how": "paired seeds"}
    a, b = (np.var(part, ddof=1) / len(part) for part in (first, second))
    freedom = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1)) if a + b > 0 else 1
    return _student(np.mean(first) - np.mean(second), math.sqrt(a + b), freedom) | {"how": "seeds"}


def _student(mean: float, error: float, freedom: float) -> dict:
    if error < ROUNDING * abs(mean):  # all equal but for rounding: nothing is known about their spread
        return {"value": float(mean), "interval": None}
    half = stats.t.ppf(0.975, freedom) * error
    return {"value": float(mean), "interval": [float(mean - half), float(mean + half)]}
