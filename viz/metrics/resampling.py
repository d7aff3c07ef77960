"""Resampling: the bootstrap's weights and intervals, and the random splits into held-out and scored units."""

from collections.abc import Callable
from functools import partial

from common.errors import InputError

import numpy as np

AT_ONCE = 16  # resamples drawn together: enough to keep vector operations long, few enough for a CPU's cache


def resamples(units: int, count: int, seed: int) -> list[Callable[[], np.ndarray]]:
    """Functions that each draw weights (units, <= AT_ONCE) int32, `count` columns in all: how often each unit is drawn.

    A column draws `units` times with replacement. Equal arguments give equal resamples, in whatever order the functions are
    called, so figures of two models over the same images are paired.
    """

    def draw(start: int) -> np.ndarray:
        generator = np.random.default_rng([seed, 0, start])
        weights = np.empty((units, min(AT_ONCE, count - start)), np.int32)
        for column in weights.T:
            column[:] = np.bincount(generator.integers(0, units, units), minlength=units)
        return weights

    return [partial(draw, start) for start in range(0, count, AT_ONCE)]


def interval(values: np.ndarray, level: float = 0.95) -> list[float] | None:
    """Percentile interval of bootstrapped values (R,), of those that are defined; None where that is fewer than half of them."""
    defined = values[np.isfinite(values)]
    if not len(defined) or 2 * len(defined) < len(values):
        return None
    return np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]).tolist()


def splits(units: int, fraction: float, repeats: int, seed: int) -> np.ndarray:
    """(units, repeats) bool: True where held out, the same number in each column. Equal arguments give equal splits."""
    generator = np.random.default_rng([seed, 1])  # another stream than the resamples
    held_out = np.zeros((units, repeats), bool)
    for column in range(repeats):
        held_out[generator.permutation(units)[: held_out_count(units, fraction)], column] = True
    return held_out


def held_out_count(units: int, fraction: float) -> int:
    """How many of the units are held out: the nearest whole number."""
    return round(fraction * units)


def check_split(units: int, fraction: float, name: str) -> None:
    """Raise InputError where one side of the splits would be empty."""
    if held_out_count(units, fraction) in (0, units):
        raise InputError(f"{name}: {fraction} of {units} images, the share to hold out, leaves one side of the split empty")
