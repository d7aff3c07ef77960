"""How many seeds a claim would need, from the finished runs of an experiment."""

import sys

import claims
from claims import UNTESTED
from claims_tables import what
from finished import metrics_of, read_runs
from verdicts import LEVEL, deviation, seeds_needed


def power(name: str) -> str:
    """A table of how many seeds would detect each claim's present mean difference with 80 % power: as a single test, and as the
    first in the order of Holm's correction. The difference is itself an estimate: read the numbers as orders of magnitude."""
    metrics = metrics_of(read_runs())
    if name not in metrics:
        sys.exit(f"error: {name} has no finished runs; `python results/reproduce.py {name}` makes them")
    lines = [f"{name}: seeds for 80 % power if the true difference and its spread are those of the finished runs", ""]
    lines.append(f"{'':5}{'measured as':76}{'seeds now':>10}{'by itself':>11}{'corrected':>11}")
    for title, found in claims.tables(metrics, unfinished=True).items():
        own = [test for test in found if test.experiment == name]
        lines += [f"{title}:"] if own else []
        for test in own:
            spread = deviation(test.values)
            alone, corrected = (seeds_needed(test.mean, spread, level) for level in (LEVEL, test.level))
            cells = "".join(f"{'> 1000' if seeds is None else seeds:>11}" for seeds in (alone, corrected))
            needed = f"  {test.nothing}" if test.nothing else cells
            lines.append(f"{test.claim.id:5}{what(test):76}{len(test.values):10}{needed}")
    return "\n".join(lines if len(lines) > 3 else [*lines[:2], UNTESTED])
