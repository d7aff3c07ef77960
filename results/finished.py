"""The JSON files of finished runs."""

import json

from experiments import EXPERIMENTS
from run import RUNS, Run


def read_runs() -> dict[str, dict[str, dict[int, dict]]]:
    """A run's JSON by experiment, method and seed, in the order of experiments.py.

    Seeds beyond the planned ones are omitted: if each of them could change verdicts, one could stop at a lucky one.
    """
    found: dict = {}
    for name, experiment in EXPERIMENTS.items():
        of: dict = {}
        for file in sorted((RUNS / name).glob("*.json")):
            run = json.loads(file.read_text())
            if run["seed"] < experiment.seeds and run["method"] in experiment.methods:
                Run(name, run["method"], run["seed"]).check(run)
                of.setdefault(run["method"], {})[run["seed"]] = run
        if of:
            found[name] = {method: dict(sorted(of[method].items())) for method in experiment.methods if method in of}
    return found


def metrics_of(runs: dict) -> dict[str, dict[str, dict[int, dict]]]:
    return {name: {m: {s: run["metrics"] for s, run in seeds.items()} for m, seeds in of.items()} for name, of in runs.items()}


def values_of(methods: dict[str, dict[int, dict]], key: str) -> list[float]:
    found = [metrics.get(key) for seeds in methods.values() for metrics in seeds.values()]
    return [value for value in found if value is not None]


def done(methods: dict[str, dict[int, dict]]) -> int:
    """How many runs of an experiment are finished."""
    return sum(map(len, methods.values()))
