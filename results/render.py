"""results/README.md, results/index.html and the blocks of all other pages, from the JSON files alone."""

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import claims
import papers
import tables
from claims import Test
from experiments import EXPERIMENTS, MANY_SEEDS
from verdicts import LEVEL, VERDICTS, wilson

TOP = Path(__file__).resolve().parents[1]
RESULTS = TOP / "results"
NEAR = 97  # % of training images right
FEW_IMAGES = 1000  # test images, below which their own uncertainty stands beside that over seeds
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
    "ece_temperature": ("ECE after it", 4),
    "confidence_wrong": ("MSP of wrong", 3),
}
MORE = {
    "aurc_split_msp": ("AURC, not normalised - normalised", 5),
    "risk_at_coverage_20": ("risk at 20 % coverage", 4),
    "max_logit_gap": ("largest logit, right - wrong at equal MSP", 3),
    "near_zero": ("share of logits near zero", 4),
}
INTRODUCTION = """\
# Which of the papers' claims hold on data that we can run

Environment, in the root of the repository:
`python3 -m venv .venv && source .venv/bin/activate && pip install -r requirements.txt`. Run the
commands there:

```
python results/reproduce.py --list              # every experiment: data, methods, seeds, minutes, what is done
python results/reproduce.py digits-parity       # runs an experiment that needs no download, then renders this page
python results/reproduce.py --render            # writes this page from the JSON files of the runs
```

[`claims.py`](claims.py) lists the claims and their tests, [`experiments.py`](experiments.py) the
experiments. [`index.html`](index.html), to be opened in a browser from a checkout, has a picture of
every interval, with filters by paper and by data set.

- **Measures.** [`viz/README.md`](../viz/README.md) defines them; ± is the standard deviation over
  seeds. AURC and ECE are of all test images. The p of logit normalisation and the temperature are
  chosen on a fifth of the test images and scored on the others, and the tables give the mean over
  ten such splits. C7 compares the two scores on the same images.
- **Matched strength.** LS and MaxSup are compared at the same strength: 0.1, or 0.2 in some
  experiments{at_02}. Only the section on the papers' recipes compares LS with MaxSup at different
  strengths.
- **Pairs.** Runs with the same seed share initial weights, data order and augmentation. A test is a
  two-sided paired t test on one difference per seed. The difference is between two methods, except
  in C7 (two scores of one model), C21a (one method, against zero) and C6b (a slope). The t test
  assumes normal differences, which five seeds are too few to check.
- **Scope.** The tests are about seeds, on these data. They do not cover the choice of the test
  images. In bank and shoppers the seed also splits the table into training and test rows.
- **Verdicts.** A claim is supported or contradicted if its corrected p is below {level:g}. Holm's
  correction covers all tests of an experiment; the tests of rising strengths and those of the
  recipes are corrected separately. The 95 % intervals are not corrected. A claim of "at least" is
  tested as "more than": equality cannot be shown by a difference test. A claim is tested when all
  planned seeds of its methods are finished, not before. A verdict says nothing about the size of a
  difference: read the interval.
- **Added seeds.** An experiment with fewer than {many} seeds may get {many} if
  `reproduce.py --power` says that they would decide further claims. Its verdicts may therefore be
  looked at twice, and its corrected p is doubled, with few seeds already. Seeds were added to
  {twice}.
- **Detectable.** For an undecided claim, the table gives the smallest true difference that these
  seeds would have shown with 80 % power, at p below {level:g} divided by the number of tests (and by
  two where p is doubled). This takes the spread over these seeds for the true one; with three
  seeds, that is a guess.
- **Choices.** Epochs, learning rates and strengths were fixed before the runs. Claims, measures and
  the families of tests were revised after the first results: nothing was preregistered.
"""
WEAK = """\
Each experiment has a level of 5 % of its own, so among all of them one or two false verdicts are to
be expected: a verdict from one experiment alone is weak evidence. Experiments on the same data share
test images, and most of them network and seeds. They are no independent repetitions.
"""
CAUTION = """\
## How to read this

{weak}
MaxSup and LS differ only where the prediction is wrong. At a training accuracy close to 100 %, they
are nearly the same loss{near}.

A temperature above 1 says that a network is overconfident, one below 1 that it is underconfident.
With CE, most of these networks are close to 1. LS and MaxSup take them far below 1, which raises
ECE. C9 and C23 therefore say little about strongly overconfident networks. Only imdb has these, and
its ECE is lower with LS and MaxSup.

LS and MaxSup lower every confidence. A lower MSP of wrong predictions (C25a) is no better ranking by
itself: AURC measures the ranking.

Most networks here are small and were trained for minutes. These runs can neither refute nor confirm
the papers' ImageNet results.
"""
PLANNED = """\
## Planned, not run

These experiments need GPUs. `python results/reproduce.py NAME --data-path imagenet=FOLDER` runs one
of those with a name on all GPUs of a machine. In the commands, `DATA` is that folder. GPU-hours are
the sum over all losses named, from published speeds: {images_per_second_source}.
The size of the .ffcv files is extrapolated: {storage_source}.

| name | experiment | command | images/s per GPU | GPU-hours | storage |
|---|---|---|---:|---:|---|
"""


def render() -> None:
    """Write the two pages of results/, and the blocks of all other pages that show what the JSON files hold."""
    for path, text in rendered().items():
        tables.write(path, text)


def rendered() -> dict[Path, str]:
    """The pages as they have to be. A block is named for the file, or folder, that it shows: see tables.block."""
    runs = read_runs()
    judged = claims.tables(metrics_of(runs))
    from index_page import index_page  # which imports this module

    found = {RESULTS / "README.md": page(runs, judged), RESULTS / "index.html": index_page(runs, judged)}
    for path in tables.pages():
        text = path.read_text()
        for name in tables.MARK.findall(text):
            text = tables.block(text, name, block(name, runs, judged))
        found[path] = text
    return found


def block(name: str, runs: dict, judged: dict) -> str:
    """What stands in a page between the marks of that name: the summary of all runs, the papers' figures, or a table."""
    if name == "results/runs":
        return summary(runs, judged) or "No experiment is finished yet.\n"
    if name == "results/papers.json":
        return papers.markdown(metrics_of(runs))
    if not (TOP / name).exists():
        return "Not measured yet.\n"
    return tables.markdown(json.loads((TOP / name).read_text()))


def read_runs() -> dict[str, dict[str, dict[int, dict]]]:
    """A run's JSON by experiment, method and seed, in the order of experiments.py."""
    found: dict = {}
    for name, experiment in EXPERIMENTS.items():
        of: dict = {}
        for file in sorted((RESULTS / "runs" / name).glob("*.json")):
            run = json.loads(file.read_text())
            of.setdefault(run["method"], {})[run["seed"]] = run
        if of:
            found[name] = {method: dict(sorted(of[method].items())) for method in experiment.methods if method in of}
    return found


def metrics_of(runs: dict) -> dict[str, dict[str, dict[int, dict]]]:
    return {name: {m: {s: run["metrics"] for s, run in seeds.items()} for m, seeds in of.items()} for name, of in runs.items()}


def page(runs: dict, judged: dict[str, list[Test]]) -> str:
    """results/README.md: how to read it, a table of claims per topic, then each experiment with its runs and tests."""
    stronger = [name for name in runs if EXPERIMENTS[name].strength == "0.2"]
    at_02 = f" ({', '.join(stronger)})" if stronger else ""
    metrics = metrics_of(runs)
    near = [name for name, methods in metrics.items() if min(values_of(methods, "train_top1"), default=0) > NEAR]
    twice = " and ".join(name for name, experiment in EXPERIMENTS.items() if experiment.first)
    parts = [INTRODUCTION.format(at_02=at_02, level=LEVEL, many=MANY_SEEDS, twice=twice), progress(runs) + "\n"]
    parts += [f"## {title}\n\n{table_of_claims(found)}" for title, found in judged.items() if found]
    parts.append(CAUTION.format(weak=WEAK, near=f", as in {', '.join(near)} (over {NEAR} %)" if near else ""))
    first = claims.first_look(metrics)
    for name, methods in runs.items():
        parts.append(f"## {section(name)}\n\n{table_of_runs(name, methods)}")
        tests, before = (
            {title: [test for test in found if test.experiment == name] for title, found in of.items()} for of in (judged, first)
        )
        parts += [table_of_tests(tests)] if any(tests.values()) else []
        parts += [changed(before, tests)] if any(before.values()) else []
    return "\n".join([*parts, planned()])


def values_of(methods: dict[str, dict[int, dict]], key: str) -> list[float]:
    found = [metrics.get(key) for seeds in methods.values() for metrics in seeds.values()]
    return [value for value in found if value is not None]


def summary(runs: dict, judged: dict[str, list[Test]]) -> str:
    """For the main README: how the tests at matched strength came out, and the claims that were decided, by how."""
    matched = [test for title, found in judged.items() if title in claims.TOPICS for test in found]
    tested = [test for test in matched if not test.nothing]
    if not matched:
        return ""
    count = {word: sum(test.verdict == word for test in tested) for word in VERDICTS}
    verdicts = ", ".join(f"{word} {count[word]}" for word in VERDICTS)
    text = f"Tests at matched strength: {len(tested)}. After correction for many tests: {verdicts}.\n{progress(runs)}\n"
    text += f"\n{WEAK}"
    supported, contradicted = ({test.claim for test in matched if test.verdict == word} for word in VERDICTS[:2])
    for title, words, which in (
        ("Supported in some experiments, contradicted in none", VERDICTS[:1], supported - contradicted),
        ("Contradicted in some experiments, supported in none", VERDICTS[1:2], contradicted - supported),
        ("Supported in some experiments, contradicted in others", VERDICTS[:2], supported & contradicted),
        ("Undecided in all experiments", (), {test.claim for test in matched} - supported - contradicted),
    ):
        found = [test for test in matched if test.claim in which]
        text += f"\n**{title}**\n\n{table_of_claims(found, words, link=False)}" if found else ""
    return text


def progress(runs: dict) -> str:
    """How many experiments are finished, and which of them are under way, in one line."""
    counts = {name: (done(of), EXPERIMENTS[name].planned) for name, of in runs.items()}
    under_way = [f"{name} ({found} of {planned})" for name, (found, planned) in counts.items() if found < planned]
    text = f"Experiments: {len(runs) - len(under_way)} of {len(EXPERIMENTS)} are finished."
    for state, names in (("Under way", under_way), ("Not begun", [name for name in EXPERIMENTS if name not in runs])):
        text += f" {state}: {', '.join(names)}." if names else ""
    return text


def done(methods: dict[str, dict[int, dict]]) -> int:
    """How many runs of an experiment are finished."""
    return sum(map(len, methods.values()))


def table_of_claims(found: list[Test], words: Sequence[str] = VERDICTS[:2], link: bool = True) -> str:
    """A row for each claim: the experiments with the verdicts of `words`, and in how many it is undecided."""
    lines = [
        f"| id | claim | source | {' | '.join(f'{word} in' for word in (*words, VERDICTS[2]))} |",
        f"|{'---|' * (len(words) + 4)}",
    ]
    rows = {test.claim: [] for test in found}
    for test in found:
        rows[test.claim].append(test)
    for claim, group in rows.items():
        by = {word: [test for test in group if test.verdict == word] for word in VERDICTS}
        names = [
            ", ".join(f"[{t.experiment}](#{anchor(t.experiment)})" if link else t.experiment for t in by[word]) for word in words
        ]
        open_ = f"{len(by[VERDICTS[2]])} of {len(group)}"
        kept = sum(test.kept_msp for test in group)
        open_ += f", {kept} of them without a test, because MSP was kept" if kept else ""
        lines.append(f"| {claim.id} | {claim.sentence} | {claim.source} | {' | '.join([*names, open_])} |")
    return "\n".join(lines) + "\n"


def anchor(experiment: str) -> str:
    """Of the experiment's section in this page, as GitHub makes it of the heading."""
    return re.sub(r"[^\w -]", "", section(experiment).lower()).replace(" ", "-")


def section(experiment: str) -> str:
    return f"{experiment}: {EXPERIMENTS[experiment].data}, {EXPERIMENTS[experiment].title}"


def table_of_tests(groups: dict[str, list[Test]]) -> str:
    """The numbers of an experiment's tests."""
    lines = [
        "| id | measured as | difference | 95 % interval | p | p, corrected | verdict | detectable |",
        "|---|---|---:|---:|---:|---:|---|---:|",
    ]
    for title, found in groups.items():
        for test in found:
            if test.nothing:
                lines.append(f"| {test.claim.id} | {what(test)} | {test.nothing} | | | | {VERDICTS[2]} | |")
                continue
            places = places_of(test.claim)
            mean, low, high = (f"{value:+.{places}f}" for value in (test.mean, test.low, test.high))
            least = f"{test.detectable:.{places}f}" if test.verdict == VERDICTS[2] else ""
            label = " (recipes)" if title not in claims.TOPICS and "recipes" in title else ""
            cells = [test.claim.id, what(test) + label, mean, f"{low} to {high}", f"{test.p:.2g}", f"{test.corrected:.3g}"]
            lines.append(f"| {' | '.join([*cells, test.verdict, least])} |")
    return "\n".join(lines) + "\n"


def changed(before: dict[str, list[Test]], now: dict[str, list[Test]]) -> str:
    """How the verdicts of the first seeds differ from those with the added ones. Both: an experiment's tests by title."""
    found = []
    for title, tests in before.items():
        verdicts = {test.claim: test for test in now[title]}
        for old in tests:
            new = verdicts.get(old.claim, old)
            if new.verdict != old.verdict:
                where = "" if title in claims.TOPICS else " (recipes)" if "recipes" in title else " (rising strengths)"
                found.append(f"{old.claim.id}{where} from {old.verdict} to {new.verdict}")
    seeds = max(len(test.values) for tests in before.values() for test in tests)
    return f"Verdicts that the seeds added to the first {seeds} changed: {', '.join(found) or 'none'}.\n"


def what(test: Test) -> str:
    """The quantity whose sign decides, in words."""
    title = heading(test.claim.metric)[0]
    if test.claim.slope:
        return f"slope of {title} over the strength of {test.claim.slope}, CE being 0"
    higher, lower = test.arms
    if test.claim.less:
        return f"{higher}: {title}"
    return f"{title}: {higher} - {lower}" if higher else f"-({title}): {lower}"


def places_of(claim: claims.Claim) -> int:
    """Decimals of a claim's differences. A slope is larger: it is per unit of strength, and strengths are about 0.1."""
    return heading(claim.metric)[1] - 2 * (claim.slope is not None)


def heading(metric: str) -> tuple[str, int]:
    return (COLUMNS | MORE)[metric]


def table_of_runs(experiment: str, methods: dict) -> str:
    """What the runs of an experiment gave, and what they took."""
    some = next(iter(next(iter(methods.values())).values()))
    metrics = metrics_of({experiment: methods})[experiment]
    shown = [key for key in COLUMNS if values_of(metrics, key)]
    if "medium" not in shown and "low" not in shown:  # all classes have many images
        shown = [key for key in shown if key != "many"]
    lines = means(metrics, shown)
    every = [run for seeds in methods.values() for run in seeds.values()]
    seconds = statistics.median(run["training_seconds"] for run in every)  # a machine that slept in one run spoils a mean
    took = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.3g} seconds"
    if {run["data"] for run in every} != {EXPERIMENTS[experiment].data}:
        raise ValueError(f"{experiment}: runs on {sorted({run['data'] for run in every})}, not {EXPERIMENTS[experiment].data}")
    kinds = sorted({machine(run["hardware"]) for run in every})
    lines += ["", f"Model: {some['model']}. The first run:", "", "```", some["command"], "```", ""]
    planned = EXPERIMENTS[experiment].planned
    if len(every) < planned:
        lines += [f"{len(every)} of {planned} runs are finished: verdicts may change as tests are added.", ""]
    lines += [f"Median training time of a run: {took} ({'; '.join(kinds)}), torch {some['versions']['torch']}."]
    again = [method for method in methods if claims.repeats(experiment, [method])]
    if again:
        where = claims.repeats(experiment, again)
        lines += ["", f"{', '.join(again)}: the same runs as in {where}, where the claims about them are tested."]
    images = some["metrics"].get("images") or FEW_IMAGES
    if images < FEW_IMAGES and "miou" not in some["metrics"]:  # pixels of an image are no independent trials
        parts = []
        for method, seeds in metrics.items():
            low, high = wilson(statistics.fmean(values_of({method: seeds}, "top1")), images)
            parts.append(f"{method} {low:.1f} to {high:.1f}")
        lines += ["", f"The {images} test images add uncertainty. Wilson's 95 % intervals of the mean top-1 over images are,"]
        lines += [f"in %, {', '.join(parts)}."]
    return "\n".join(lines) + "\n"


def machine(hardware: dict) -> str:
    threads = f"{hardware['threads']} thread{'s' * (hardware['threads'] > 1)}"
    return hardware["gpu"] or f"{hardware['cpu']} with {hardware['instructions']}, {threads}"


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


def planned() -> str:
    content = json.loads((RESULTS / "papers.json").read_text())
    lines = []
    for row in content["planned"]:
        cells = ["", row["experiment"], "", "", ""]
        if "command" in row:
            hours = row["losses"] * row["epochs"] * row["images"] / row["images_per_second"] / 3600
            command = row["command"].replace("|", "\\|")  # a bar would end the cell
            cells = [row["name"], row["experiment"], f"`{command}`", f"{row['images_per_second']:,.0f}", f"{hours:,.0f}"]
        lines.append(f"| {' | '.join([*cells, row['storage']])} |")
    return PLANNED.format(**content) + "\n".join(lines) + "\n"
