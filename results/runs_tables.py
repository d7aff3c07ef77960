"""Tables of an experiment's runs: mean and standard deviation over seeds, command, machines, time."""

import statistics
from collections.abc import Sequence

from experiments import EXPERIMENTS, earlier_experiment_with
from finished import done, metrics_of, values_of
from verdicts import wilson

FEW_IMAGES = 1000  # for fewer test images, the uncertainty over images is shown in addition to that over seeds
# metric: heading, decimals
COLUMNS = {
    "train_top1": ("train top-1 %", 2),
    "train_top1_clean": ("train top-1, true labels %", 2),
    "top1": ("test top-1 %", 2),
    "many": ("many %", 1),
    "medium": ("medium %", 1),
    "low": ("low %", 1),
    "miou": ("mIoU %", 2),
    "d_within_val": ("d_within test", 4),
    "r2_val": ("R2 test", 4),
    "transfer": ("transfer %", 2),
    "aurc": ("AURC", 5),
    "aurc_normalised": ("AURC, normalised", 5),
    "coverage_at_risk_1": ("coverage at 1 % risk", 3),
    "ece": ("ECE", 4),
    "temperature": ("temperature", 2),
    "ece_temperature": ("ECE after scaling", 4),
    "confidence_wrong": ("MSP of wrong", 3),
}


def table_of_runs(experiment: str, methods: dict) -> str:
    """The results of an experiment's runs, and the time that they took."""
    some = next(iter(next(iter(methods.values())).values()))
    metrics = metrics_of({experiment: methods})[experiment]
    shown = [key for key in COLUMNS if values_of(metrics, key)]
    if "medium" not in shown and "low" not in shown:  # all classes have many images
        shown = [key for key in shown if key != "many"]
    lines = means(metrics, shown)
    runs = [run for seeds in methods.values() for run in seeds.values()]
    seconds = statistics.median(run["training_seconds"] for run in runs)  # one run on a machine that slept spoils a mean
    took = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.3g} seconds"
    if {run["data"] for run in runs} != {EXPERIMENTS[experiment].data}:
        raise ValueError(f"{experiment}: runs on {sorted({run['data'] for run in runs})}, not {EXPERIMENTS[experiment].data}")
    kinds = sorted(set().union(*map(machines_of, methods.values())))
    prepare = EXPERIMENTS[experiment].prepare
    first = [f"python {prepare}"] if prepare else []
    lines += ["", f"Model: {some['model']}. The first run:", "", "```", *first, some["command"], "```", ""]
    lines += [f"Median training time of a run: {took} ({'; '.join(kinds)}), torch {some['versions']['torch']}."]
    if {"Conv/common_resnet/train.py", "bf16"} <= set(some["command"].split()):
        lines += ["On a CPU without bfloat16 instructions, float32 is rounded to bfloat16 in the same places."]
    mixed = seeds_on_several_machines(methods)
    if mixed:
        all_seeds = len(mixed) == EXPERIMENTS[experiment].seeds
        seeds = "every seed" if all_seeds else f"seed{'s' * (len(mixed) > 1)} {', '.join(map(str, mixed))}"
        lines += [f"The runs of {seeds} come from different machines: they also differ in rounding, which training amplifies."]
        of = {kind: ", ".join(m for m in methods if kind in machines_of(methods[m])) for kind in kinds}
        if len(set(of.values())) > 1:
            lines += [f"Methods by machine: {'; '.join(f'{names} on {kind}' for kind, names in of.items())}."]
    if done(methods) < EXPERIMENTS[experiment].planned:
        lines += [
            "",
            f"{done(methods)} of {EXPERIMENTS[experiment].planned} runs are finished: further tests may change verdicts.",
        ]
    again = {method: name for method in methods if (name := earlier_experiment_with(experiment, [method]))}
    if again:
        where = " and ".join(dict.fromkeys(again.values()))
        lines += ["", f"{', '.join(again)}: the same commands as in {where}, where the claims about them are tested. Runs on"]
        lines += ["another CPU differ in their rounding, which training amplifies."]
    return "\n".join([*lines, *of_images(metrics)]) + "\n"


def seeds_on_several_machines(methods: dict[str, dict[int, dict]]) -> list[int]:
    found: dict[int, set[str]] = {}
    for seeds in methods.values():
        for seed, run in seeds.items():
            found.setdefault(seed, set()).add(machine(run["hardware"]))
    return sorted(seed for seed, machines in found.items() if len(machines) > 1)


def machines_of(seeds: dict[int, dict]) -> set[str]:
    """The machines on which the runs of a method, by seed, were trained."""
    return {machine(run["hardware"]) for run in seeds.values()}


def machine(hardware: dict) -> str:
    threads = f"{hardware['threads']} thread{'s' * (hardware['threads'] > 1)}"
    instructions = hardware["instructions"] + " and bfloat16" * hardware.get("bfloat16", False)  # the first runs do not say
    return hardware["gpu"] or f"{hardware['cpu']} with {instructions}, {threads}"


def of_images(metrics: dict[str, dict[int, dict]]) -> list[str]:
    """If test images are few: the uncertainty of the top-1 over images. metrics[method][seed]."""
    some = next(iter(next(iter(metrics.values())).values()))
    images = some.get("images") or FEW_IMAGES
    if images >= FEW_IMAGES or "miou" in some:  # pixels of an image are not independent trials
        return []
    parts = []
    for method, seeds in metrics.items():
        low, high = wilson(statistics.fmean(values_of({method: seeds}, "top1")), images)
        parts.append(f"{method} {low:.1f} to {high:.1f}")
    return [
        "",
        f"The {images} test images add uncertainty. Wilson's 95 % intervals of the mean top-1 over images are,",
        f"in %, {', '.join(parts)}.",
    ]


def means(methods: dict[str, dict[int, dict]], shown: Sequence[str]) -> list[str]:
    """The rows of a table: mean and standard deviation over seeds of the metrics shown, one per method."""
    lines = [f"| method | seeds | {' | '.join(COLUMNS[key][0] for key in shown)} |", f"|---|---:|{'---:|' * len(shown)}"]
    for method, seeds in methods.items():
        cells = [spread(values_of({method: seeds}, key), COLUMNS[key][1]) for key in shown]
        lines.append(f"| {method} | {len(seeds)} | {' | '.join(cells)} |")
    return lines


def spread(values: list[float], places: int) -> str:
    if not values:
        return ""
    return f"{statistics.fmean(values):.{places}f}" + (f" ± {statistics.stdev(values):.{places}f}" if len(values) > 1 else "")
