"""Statistics of differences that are paired by seed: interval, p-value, Holm's correction, power."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct, t

VERDICTS = ("supported", "contradicted", "undecided")
LEVEL = 0.05  # of a test, two-sided, and of a family of tests, which is one table of an experiment
POWER = 0.8
ROUNDING = 1e-9  # relative to a difference: 0.9 - 0.85 and 0.8 - 0.75 are not the same to the last bit


def deviation(differences: Sequence[float]) -> float:
    """Standard deviation of the differences (n,) over seeds; 0 if they are equal but for rounding."""
    values = np.asarray(differences, dtype=np.float64)
    found = float(values.std(ddof=1))
    return found if found > ROUNDING * abs(values.mean()) else 0.0


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the differences (n,) over seeds and the ends of its 95 % Student t interval; n must be at least 2."""
    values = np.asarray(differences, dtype=np.float64)
    half = t.ppf(1 - LEVEL / 2, len(values) - 1) * deviation(values) / math.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def p_value(differences: Sequence[float]) -> float:
    """Two-sided p of the paired t test; 1 if all differences are equal, because nothing is then known about their spread."""
    values = np.asarray(differences, dtype=np.float64)
    error = deviation(values) / math.sqrt(len(values))
    return float(2 * t.sf(abs(values.mean()) / error, len(values) - 1)) if error > 0 else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for all tests of a family (Holm 1979): reject if the adjusted one is below the level."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(np.argsort(p, kind="stable")):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def power_of(difference: float, deviation: float, seeds: int, level: float = LEVEL) -> float:
    """Probability that the two-sided paired t test over `seeds` detects a true mean difference, by the noncentral t distribution.

    deviation: standard deviation of the differences over seeds, above 0.
    """
    shift, limit = abs(difference) / deviation * math.sqrt(seeds), t.ppf(1 - level / 2, seeds - 1)
    wrong_sign = np.nan_to_num(nct.cdf(-limit, seeds - 1, shift))  # SciPy gives NaN if it is close to 0
    return float(nct.sf(limit, seeds - 1, shift) + wrong_sign)


def detectable(deviation: float, seeds: int, level: float = LEVEL) -> float:
    """The smallest true difference that this many seeds detect with 80 % power at a level of p."""
    if deviation == 0:
        return 0.0
    return deviation * brentq(lambda size: power_of(size, 1.0, seeds, level) - POWER, 1e-9, 1e3)


def seeds_needed(difference: float, deviation: float, level: float = LEVEL, most: int = 1000) -> int | None:
    """The fewest seeds, at least 3, that detect this difference with 80 % power; None if even `most` do not."""
    if deviation == 0 or power_of(difference, deviation, most, level) < POWER:
        return None
    low, high = 2, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(difference, deviation, middle, level) >= POWER else (middle, high)
    return high


def wilson(percent: float, images: int) -> tuple[float, float]:
    """95 % interval (%) of an accuracy over test images (Wilson 1927)."""
    share, z = percent / 100, 1.959963984540054
    centre = (share + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(share * (1 - share) / images + z * z / (4 * images**2))
    return 100 * (centre - half), 100 * (centre + half)
