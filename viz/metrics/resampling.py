"""Resampling: the bootstrap's weights and intervals, and the random splits into held-out and scored units."""

from collections.abc import Callable
from functools import partial

from common.errors import InputError

import numpy as np

AT_ONCE = 16  # resamples drawn together: enough to keep vector operations long, few enough for a CPU's cache


def resamples(units: int, count: int, seed: int) -> list[Callable[[], np.ndarray]]:
    """Functions that each draw weights (units, <= AT_ONCE) int32, `count` columns in all: how often each unit is drawn.

    Each column is `units` draws with replacement. Equal arguments give equal resamples, in whatever order the functions are
    called, so the figures of two models on the same images are paired.
    """

    def draw(start: int) -> np.ndarray:
        generator = np.random.default_rng([seed, 0, start])
        weights = np.empty((units, min(AT_ONCE, count - start)), np.int32)
        for column in weights.T:
            column[:] = np.bincount(generator.integers(0, units, units), minlength=units)
        return weights

    return [partial(draw, start) for start in range(0, count, AT_ONCE)]


def interval(values: np.ndarray, level: float = 0.95) -> list[float] | None:
    """Percentile interval of the defined ones among bootstrapped values (R,); None if fewer than half of them are defined."""
    defined = values[np.isfinite(values)]
    if not len(defined) or 2 * len(defined) < len(values):
        return None
    return np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]).tolist()


def splits(units: int, fraction: float, repeats: int, seed: int) -> np.ndarray:
    """(units, repeats) bool: True where held out, the same number in each column. Equal arguments give equal splits."""
    generator = np.random.default_rng([seed, 1])  # a different stream from that of the resamples
    held_out = np.zeros((units, repeats), bool)
    for column in range(repeats):
        held_out[generator.permutation(units)[: held_out_count(units, fraction)], column] = True
    return held_out


def held_out_count(units: int, fraction: float) -> int:
    """The number of units that are held out, rounded to the nearest integer."""
    return round(fraction * units)


def check_split(units: int, fraction: float, name: str) -> None:
    """Raise InputError if one side of the splits would be empty."""
    if held_out_count(units, fraction) in (0, units):
        raise InputError(f"{name}: {fraction} of {units} images, the share to hold out, leaves one side of the split empty")
