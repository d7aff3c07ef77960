"""What the runs say about a claim: a 95 % interval over seeds, paired, and the verdict that follows from it alone."""

import math

import numpy as np
from scipy.stats import t

VERDICTS = ("supported", "contradicted", "cannot be told")


def interval(differences: list[float], level: float = 0.95) -> tuple[float, float, float]:
    """Mean of the differences (n,) over seeds and the ends of its Student t interval; needs n of 2 and more."""
    values = np.asarray(differences, dtype=np.float64)
    mean, deviation = values.mean(), values.std(ddof=1)
    half = t.ppf((1 + level) / 2, len(values) - 1) * deviation / math.sqrt(len(values))
    return float(mean), float(mean - half), float(mean + half)


def judge(claim: dict, runs: dict[str, dict[int, dict]]) -> dict | None:
    """Test a claim on one experiment's metrics, runs[method][seed]; None where the experiment does not have what it needs.

    A claim says that something is positive, for each seed: `metric` of `higher` less that of `lower`; or `metric` less
    `less_metric`, both of `method`; or the slope of `metric` over the strengths of `slope` {method: strength}; or `metric` of
    `method` itself. Supported: the whole interval is above 0; contradicted: it is below.
    """
    methods = {claim[key] for key in ("higher", "lower", "method") if key in claim} | set(claim.get("slope", {}))
    if not methods <= runs.keys():
        return None
    seeds = sorted(set.intersection(*(set(runs[method]) for method in methods)))
    try:
        found = [_of_seed(claim, {method: runs[method][seed] for method in methods}) for seed in seeds]
    except KeyError:
        return None
    if len(seeds) < 3 or any(value is None for value in found):
        return None
    mean, low, high = interval(found)
    verdict = VERDICTS[0] if low > 0 else VERDICTS[1] if high < 0 else VERDICTS[2]
    return {"verdict": verdict, "mean": mean, "low": low, "high": high, "seeds": len(seeds)}


def _of_seed(claim: dict, metrics: dict[str, dict]) -> float | None:
    key = claim["metric"]
    if "slope" in claim:
        strengths = list(claim["slope"].values())
        return float(np.polyfit(strengths, [metrics[method][key] for method in claim["slope"]], 1)[0])
    if "higher" in claim:
        values = metrics[claim["higher"]][key], metrics[claim["lower"]][key]
    else:
        own = metrics[claim["method"]]
        values = own[key], own[claim["less_metric"]] if "less_metric" in claim else 0.0
    return None if None in values else values[0] - values[1]
