"""results/README.md and the results in the main README, from the JSON files alone."""

import json
from collections.abc import Sequence
from pathlib import Path

import tables
from experiments import EXPERIMENTS
from verdicts import VERDICTS, judge

TOP = Path(__file__).resolve().parents[1]
RESULTS = TOP / "results"
NEAR = 97  # % of training images right
# metric: heading, decimals
COLUMNS = {
    "train_top1": ("train top-1 %", 2),
    "top1": ("test top-1 %", 2),
    "many": ("many %", 1),
    "medium": ("medium %", 1),
    "low": ("low %", 1),
    "d_within_train": ("d_within train", 4),
    "d_within_val": ("d_within test", 4),
    "r2_train": ("R2 train", 4),
    "r2_val": ("R2 test", 4),
    "transfer": ("transfer %", 2),
    "aurc": ("AURC", 5),
    "aurc_normalised": ("AURC, normalised", 5),
    "nll": ("NLL", 4),
    "ece": ("ECE", 4),
}
INTRODUCTION = """\
# What of the papers' claims holds on data that we can run

Rendered by `python results/reproduce.py --render` from the JSON files in [`runs/`](runs); the claims and their tests are in
[`claims.json`](claims.json). A cell gives the mean difference over seeds and its 95 % interval (Student's t, paired by seed: the
same initial weights and data order). **Supported**: the interval is above zero; **contradicted**: below; else it cannot be told
from these runs. "At least" and "at most" are tested as more and less. The test data chose nothing: epochs, rates and strengths
were fixed beforehand; the p of logit normalisation is chosen on a fifth of the test images and scored on the others.
"""
CAUTION = """\
C10 follows from the formula: the error-enhancement part is there wherever a model errs, however it was trained, and MaxSup has no
such part. What is measured is its size.

Of twenty such intervals one excludes zero by chance. MaxSup and LS differ only where the prediction is wrong: where the training
accuracy nears 100 %{near} they are nearly the same loss. Many-shot classes have over 100 training images, medium-shot ones 20 to
100; no class here has fewer.

Small networks, minutes of training, small images: where these runs and the papers disagree, the papers' ImageNet results are not
refuted, and where they agree, not confirmed. None of these experiments is one of the papers', so no figure of theirs stands
beside ours here; the [main README](../README.md) has them.
"""
PLANNED = """\
## Planned, not run

They need ImageNet and GPUs. `python results/reproduce.py NAME --data-path ImageNet` runs one of them on all GPUs of a machine;
`DATA` is that folder. GPU-hours are of all losses named, from published speeds: {images_per_second_source}.
Storage: {storage_source}.

| name | experiment | command | images/s a GPU | GPU-hours | storage | the paper's figure |
|---|---|---|---:|---:|---|---|
"""


def render() -> None:
    """Write results/README.md, and the blocks of all other pages that show what the JSON files hold."""
    for path, text in rendered().items():
        tables.write(path, text)


def rendered() -> dict[Path, str]:
    """The pages as they have to be. A block is named for the file, or folder, that it shows: see tables.block."""
    runs = read_runs()
    verdicts = judge_all(metrics_of(runs))
    found = {RESULTS / "README.md": page(runs, verdicts)}
    for path in tables.pages():
        text = path.read_text()
        for name in tables.MARK.findall(text):
            text = tables.block(text, name, block(name, verdicts))
        found[path] = text
    return found


def block(name: str, verdicts: list) -> str:
    if name == "results/runs":
        return table_of_verdicts(verdicts)
    if not (TOP / name).exists():
        return "Not measured yet.\n"
    return tables.markdown(json.loads((TOP / name).read_text()))


def read_runs() -> dict[str, dict[str, dict[int, dict]]]:
    """metrics by experiment, method and seed, in the order of experiments.py."""
    found: dict = {}
    for name, experiment in EXPERIMENTS.items():
        for file in sorted((RESULTS / "runs" / name).glob("*.json")):
            run = json.loads(file.read_text())
            found.setdefault(name, {}).setdefault(run["method"], {})[run["seed"]] = run
        if name in found:
            of = found[name]
            found[name] = {method: dict(sorted(of[method].items())) for method in experiment.methods if method in of}
    return found


def metrics_of(runs: dict) -> dict[str, dict[str, dict[int, dict]]]:
    return {name: {m: {s: run["metrics"] for s, run in seeds.items()} for m, seeds in of.items()} for name, of in runs.items()}


def judge_all(metrics: dict) -> list[tuple[dict, dict, dict[str, dict]]]:
    """(claim, test, {experiment: verdict}) for every test of every claim, from metrics by experiment, method and seed."""
    judged = []
    for claim in json.loads((RESULTS / "claims.json").read_text()):
        for test in claim["tests"]:
            found = {name: judge(test, metrics[name]) for name in metrics}
            judged.append((claim, test, {name: verdict for name, verdict in found.items() if verdict}))
    return judged


def page(runs: dict, verdicts: list) -> str:
    near = [name for name, methods in metrics_of(runs).items() if min(train_top1(methods)) > NEAR]
    caution = CAUTION.format(near=f" (over {NEAR} %: {', '.join(near)})" if near else "")
    parts = [INTRODUCTION, table_of_claims(verdicts), caution]
    for name, methods in runs.items():
        parts += [f"## {name}: {short(data_of(methods))}, {EXPERIMENTS[name].title}", "", table_of_runs(name, methods), ""]
    return "\n".join([*parts, planned()])


def train_top1(methods: dict[str, dict[int, dict]]) -> list[float]:
    return [metrics["train_top1"] for seeds in methods.values() for metrics in seeds.values()]


def table_of_claims(verdicts: list) -> str:
    names = [name for name in EXPERIMENTS if any(name in found for *_, found in verdicts)]
    links = [f"[{name}](runs/{name})" for name in names]
    lines = [f"| | claim | measured as | {' | '.join(links)} |", f"|---|---|---|{'---|' * len(names)}"]
    for claim, test, found in verdicts:
        cells = [cell(test, found[name]) if name in found else "" for name in names]
        lines.append(f"| {claim['id']} | {sentence(claim, test)} ({claim['source']}) | {what(test)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def table_of_verdicts(verdicts: list) -> str:
    """The same in short, for the main README: how often each claim was supported, contradicted, or could not be told."""
    lines = [f"| | claim | measured as | {' | '.join(VERDICTS)} |", "|---|---|---|---|---|---|"]
    for claim, test, found in verdicts:
        by = [[name for name, verdict in found.items() if verdict["verdict"] == word] for word in VERDICTS]
        cells = [", ".join(names) for names in by]
        lines.append(f"| {claim['id']} | {sentence(claim, test)} ({claim['source']}) | {what(test)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def sentence(claim: dict, test: dict) -> str:
    """The claim, or the part of it that the test is about."""
    return test.get("part", claim["claim"])


def what(test: dict) -> str:
    """The quantity whose sign decides, in words."""
    title = COLUMNS.get(test["metric"], (test["metric"].replace("_", " "), 4))[0]
    if "slope" in test:
        return f"slope of {title} over alpha"
    if "higher" in test:
        return f"{title}: {test['higher']} - {test['lower']}"
    return f"{test['method']}: {title}" + (f" - {test['less_metric'].replace('_', ' ')}" if "less_metric" in test else "")


def cell(test: dict, verdict: dict) -> str:
    places = COLUMNS.get(test["metric"], ("", 5 if test["metric"].startswith("aurc") else 3))[1]
    mean, low, high = (f"{verdict[key]:+.{places}f}" for key in ("mean", "low", "high"))
    return f"**{verdict['verdict']}** {mean} ({low} to {high})"


def table_of_runs(name: str, methods: dict) -> str:
    """What the runs of an experiment gave, and what they took."""
    some = next(iter(next(iter(methods.values())).values()))
    lines = means(metrics_of({name: methods})[name], [key for key in COLUMNS if some["metrics"].get(key) is not None])
    minutes = sum(run["training_seconds"] for seeds in methods.values() for run in seeds.values()) / 60
    lines += ["", f"Data: {some['data']}. Model: {some['model']}. `{some['command']}`, and so on."]
    lines += [f"{minutes:.0f} minutes of training in all; {some['hardware']}, torch {some['versions']['torch']}."]
    return "\n".join(lines) + "\n"


def data_of(methods: dict) -> str:
    """The data of an experiment, of which its runs may have only one."""
    names = {run["data"] for seeds in methods.values() for run in seeds.values()}
    if len(names) > 1:
        raise ValueError(f"one experiment was run on different data: {', '.join(sorted(names))}")
    return names.pop()


def short(data: str) -> str:
    """Its name without what is said of it in brackets."""
    return data.split(" (")[0]


def means(methods: dict[str, dict[int, dict]], shown: Sequence[str]) -> list[str]:
    """The rows of a table: mean and standard deviation over seeds of the metrics shown, a row a method."""
    lines = [f"| method | seeds | {' | '.join(COLUMNS[key][0] for key in shown)} |", f"|---|---:|{'---:|' * len(shown)}"]
    for method, seeds in methods.items():
        cells = [spread([metrics[key] for metrics in seeds.values()], COLUMNS[key][1]) for key in shown]
        lines.append(f"| {method} | {len(seeds)} | {' | '.join(cells)} |")
    return lines


def spread(values: list[float], places: int) -> str:
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{places}f}"
    deviation = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return f"{mean:.{places}f} ± {deviation:.{places}f}"


def planned() -> str:
    papers = json.loads((RESULTS / "papers.json").read_text())
    lines = []
    for row in papers["planned"]:
        cells = ["", row["experiment"], "no trainer for it here", "", ""]
        if "command" in row:
            hours = row["losses"] * row["epochs"] * row["images"] / row["images_per_second"] / 3600
            command = row["command"].replace("|", "\\|")  # a bar would end the cell
            cells = [row["name"], row["experiment"], f"`{command}`", f"{row['images_per_second']:,.0f}", f"{hours:,.0f}"]
        lines.append(f"| {' | '.join([*cells, row['storage'], row['paper']])} |")
    return PLANNED.format(**papers) + "\n".join(lines) + "\n"
