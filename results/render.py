"""results/README.md, results/index.html and the blocks of all other pages, from only the JSON files."""

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import claims
import papers
import prose
import tables
from claims import Test
from experiments import EXPERIMENTS, MANY_SEEDS
from run import Run
from verdicts import LEVEL, VERDICTS, deviation, seeds_needed, wilson

TOP = Path(__file__).resolve().parents[1]
RESULTS = TOP / "results"
NEAR = 97  # % of training images predicted correctly
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
MORE = {
    "aurc_split_msp": ("AURC, not normalised - normalised", 5),
    "risk_at_coverage_20": ("risk at 20 % coverage", 4),
    "max_logit_gap": ("largest logit, right - wrong at equal MSP", 3),
    "near_zero": ("share of logits near zero", 4),
}


def render() -> None:
    """Write the two pages of results/, and the blocks of all other pages that show what the JSON files hold."""
    for path, text in rendered().items():
        tables.write(path, text)


def rendered() -> dict[Path, str]:
    """The up-to-date text of each page. A block is named after the file, or folder, that it shows: see tables.block."""
    runs = read_runs()
    judged = claims.tables(metrics_of(runs))
    from index_page import index_page  # imported here: it imports this module

    found = {RESULTS / "README.md": page(runs, judged), RESULTS / "index.html": index_page(runs, judged)}
    for path in tables.pages():
        text = path.read_text()
        for name in tables.MARK.findall(text):
            text = tables.block(text, name, block(name, runs, judged))
        found[path] = text
    return found


def block(name: str, runs: dict, judged: dict) -> str:
    """The content of a page between the marks of that name: the summary of all runs, the papers' numbers, or tables."""
    if name == "results/runs":
        return summary(runs, judged) or "No experiment is finished yet.\n"
    if name == "results/papers.json":
        return papers.markdown(metrics_of(runs))
    found = [tables.markdown(json.loads(path.read_text())) for path in sorted(TOP.glob(name))]
    return "\n".join(found) or "Not measured yet.\n"


def read_runs() -> dict[str, dict[str, dict[int, dict]]]:
    """A run's JSON by experiment, method and seed, in the order of experiments.py.

    Seeds beyond the planned ones are omitted: if each of them could change verdicts, one could stop at a lucky one.
    """
    found: dict = {}
    for name, experiment in EXPERIMENTS.items():
        of: dict = {}
        for file in sorted((RESULTS / "runs" / name).glob("*.json")):
            run = json.loads(file.read_text())
            if run["seed"] < experiment.seeds and run["method"] in experiment.methods:
                Run(name, run["method"], run["seed"]).check(run)
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
    both = {name: methods for name, methods in metrics.items() if {"LS", "MaxSup"} <= {arm.split()[0] for arm in methods}}
    near = [name for name, methods in both.items() if min(values_of(methods, "train_top1"), default=0) > NEAR]
    added = ", ".join(name for name, experiment in EXPERIMENTS.items() if experiment.first_seeds)
    words = {"at_02": at_02, "level": LEVEL, "many": MANY_SEEDS, "added": added, "worthwhile": ", ".join(worthwhile(judged))}
    parts = [prose.INTRODUCTION.format(**words), progress(runs) + "\n"]
    parts += [f"## {title}\n\n{table_of_claims(found)}" for title, found in judged.items() if found]
    words = {"weak": weak(judged), "near": f": over {NEAR} % in {', '.join(near)}" if near else ""}
    parts.append(prose.CAUTION.format(**words, **of_right_predictions(metrics, judged)))
    first = claims.first_look(metrics)
    for name, methods in runs.items():
        parts.append(f"## {section(name)}\n\n{table_of_runs(name, methods)}")
        tests = of_experiment(name, judged)
        parts += tables_of_tests(tests) if any(tests.values()) else [f"{claims.UNTESTED}\n"]
        parts += [changed(name, of_experiment(name, first), tests)] if EXPERIMENTS[name].first_seeds else []
    return "\n".join([*parts, planned()])


def worthwhile(judged: dict[str, list[Test]]) -> list[str]:
    """Experiments with fewer than MANY_SEEDS seeds in which that many would decide a further claim, by reproduce.py --power."""
    every = [test for found in judged.values() for test in found if test.verdict == VERDICTS[2] and not test.nothing]
    few = [test for test in every if EXPERIMENTS[test.experiment].seeds < MANY_SEEDS]
    found = {t.experiment for t in few if (seeds_needed(t.mean, deviation(t.values), t.level) or 1000) <= MANY_SEEDS}
    return [name for name in EXPERIMENTS if name in found]


def of_experiment(name: str, judged: dict[str, list[Test]]) -> dict[str, list[Test]]:
    return {title: [test for test in found if test.experiment == name] for title, found in judged.items()}


def values_of(methods: dict[str, dict[int, dict]], key: str) -> list[float]:
    found = [metrics.get(key) for seeds in methods.values() for metrics in seeds.values()]
    return [value for value in found if value is not None]


def at_matched_strength(judged: dict[str, list[Test]]) -> list[Test]:
    return [test for title, found in judged.items() if title in claims.TOPICS for test in found]


def counts(judged: dict[str, list[Test]]) -> str:
    """The verdicts of the tests at matched strength, in one line."""
    verdicts = [test.verdict for test in at_matched_strength(judged) if not test.nothing]
    each = ", ".join(f"{word} {verdicts.count(word)}" for word in VERDICTS)
    return f"{len(verdicts)} tests at constant strengths, after correction for multiple testing: {each}."


def small(judged: dict[str, list[Test]]) -> str:
    """What small networks can show, with the share of the contradicted tests that calibrated networks explain."""
    contradicted = [test for test in at_matched_strength(judged) if test.verdict == VERDICTS[1]]
    of_confidence = sum(test.claim.id in ("C9", "C23a", "C23b", "C25a") for test in contradicted)
    return prose.SMALL.format(of_confidence=of_confidence, contradicted=len(contradicted))


def of_right_predictions(metrics: dict, judged: dict[str, list[Test]]) -> dict[str, str]:
    """In how many experiments of C25b MaxSup also has the lower MSP of right predictions; in how many of them by more."""
    tests = [test for test in at_matched_strength(judged) if test.claim.id == "C25b"]
    means = [
        [statistics.fmean(values_of({arm: metrics[test.experiment][arm]}, "confidence_right")) for arm in test.arms]
        for test in tests
    ]
    lower = [(ls - maxsup, test.mean) for test, (ls, maxsup) in zip(tests, means, strict=True) if ls > maxsup]
    return {"right_too": f"{len(lower)} of {len(tests)}", "right_more": str(sum(right > wrong for right, wrong in lower))}


def weak(judged: dict[str, list[Test]]) -> str:
    """How much a single verdict is worth. Each experiment has one table at constant strength, and one of each other kind."""
    tested = len({test.experiment for test in at_matched_strength(judged)})
    others = {(title, test.experiment) for title, found in judged.items() if title not in claims.TOPICS for test in found}
    tables = tested + len(others)
    words = {"experiments": tested, "expected": LEVEL * tested, "tables": tables, "all_expected": LEVEL * tables}
    return prose.WEAK.format(percent=100 * LEVEL, **words)


def summary(runs: dict, judged: dict[str, list[Test]]) -> str:
    """For the main README: the verdicts of the tests at matched strength, and the claims, grouped by verdict."""
    matched = at_matched_strength(judged)
    if not matched:
        return ""
    text = f"{counts(judged)}\n{progress(runs)}\n\n{weak(judged)}\n{small(judged)}"
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
    for state, names in (("Under way", under_way), ("Not started", [name for name in EXPERIMENTS if name not in runs])):
        text += f" {state}: {', '.join(names)}." if names else ""
    return text


def done(methods: dict[str, dict[int, dict]]) -> int:
    """How many runs of an experiment are finished."""
    return sum(map(len, methods.values()))


def table_of_claims(found: list[Test], words: Sequence[str] = VERDICTS[:2], link: bool = True) -> str:
    """A row for each claim: in how many experiments the mean is as claimed, those with the verdicts of `words`, and the rest."""
    lines = [
        f"| id | claim | source | mean as claimed in | {' | '.join(f'{word} in' for word in (*words, VERDICTS[2]))} |",
        f"|{'---|' * (len(words) + 5)}",
    ]
    rows = {test.claim: [] for test in found}
    for test in found:
        rows[test.claim].append(test)
    for claim, group in rows.items():
        places = {
            test.experiment: f"[{test.experiment}](#{anchor(test.experiment)})" if link else test.experiment for test in group
        }
        names = [", ".join(places[test.experiment] for test in group if test.verdict == word) for word in words]
        equal, tested = [test.nothing for test in group if test.nothing], [test for test in group if not test.nothing]
        as_claimed = f"{sum(test.mean > 0 for test in tested)} of {len(tested)}"
        open_ = f"{sum(test.verdict == VERDICTS[2] for test in tested)} of {len(tested)}"
        open_ += f"; no test in {len(equal)}: {' or '.join(sorted(set(equal)))}" if equal else ""
        lines.append(f"| {claim.id} | {claim.sentence} | {claim.source} | {' | '.join([as_claimed, *names, open_])} |")
    return "\n".join(lines) + "\n"


def anchor(experiment: str) -> str:
    """The anchor of the experiment's section on this page, as GitHub derives it from the heading."""
    return re.sub(r"[^\w -]", "", section(experiment).lower()).replace(" ", "-")


def section(experiment: str) -> str:
    return f"{experiment}: {EXPERIMENTS[experiment].data}, {EXPERIMENTS[experiment].title}"


def tables_of_tests(groups: dict[str, list[Test]]) -> list[str]:
    """The numbers of an experiment's tests, a table for each family that Holm's correction covers."""
    matched = [test for title in claims.TOPICS for test in groups[title]]
    parts = [table_of_tests(matched)] if matched else []
    return parts + [f"**{title}**\n\n{table_of_tests(groups[title])}" for title in claims.OTHER_STRENGTHS if groups[title]]


def table_of_tests(found: list[Test]) -> str:
    lines = [
        "| id | measured as | difference | 95 % interval | p | p, corrected | verdict | detectable |",
        "|---|---|---:|---:|---:|---:|---|---:|",
    ]
    for test in found:
        if test.nothing:
            lines.append(f"| {test.claim.id} | {what(test)} | {test.nothing} | | | | no test | |")
            continue
        places = places_of(test.claim)
        mean, low, high = (f"{value:+.{places}f}" for value in (test.mean, test.low, test.high))
        least = f"{test.detectable:.{places}f}" if test.verdict == VERDICTS[2] else ""
        cells = [test.claim.id, what(test), mean, f"{low} to {high}", f"{test.p:.2g}", f"{test.corrected:.3g}"]
        lines.append(f"| {' | '.join([*cells, test.verdict, least])} |")
    return "\n".join(lines) + "\n"


def changed(name: str, before: dict[str, list[Test]], now: dict[str, list[Test]]) -> str:
    """Which verdicts of an experiment would have differed with only its first seeds. before, now: its tests by title."""
    found = []
    for title, tests in before.items():
        verdicts = {test.claim: test.verdict for test in now[title]}
        found += [
            f"{old.claim.id}{label(title)} {old.verdict}" for old in tests if verdicts.get(old.claim, old.verdict) != old.verdict
        ]
    few = f"By the same rules, the first {EXPERIMENTS[name].first_seeds} seeds alone would have given"
    return f"{few} other verdicts on these claims: {', '.join(found)}.\n" if found else f"{few} the same verdicts.\n"


def label(title: str) -> str:
    """What distinguishes a claim at other strengths from the same one at matched constant strengths."""
    return f" ({claims.OTHER_STRENGTHS[title][0]})" if title in claims.OTHER_STRENGTHS else ""


def what(test: Test) -> str:
    """The quantity whose sign decides, in words."""
    title = heading(test.claim.metric)[0]
    if test.claim.slope:
        return f"slope of {title} over the strength of {test.claim.slope}, CE being 0"
    higher, lower = test.arms
    if test.claim.less:
        return f"{higher}: {title}"
    return f"{title}: {higher} - {lower}" if higher else f"{title}, negated: {lower}"


def places_of(claim: claims.Claim) -> int:
    """Decimals of a claim's differences. A slope is larger: it is per unit of strength, and strengths are about 0.1."""
    return heading(claim.metric)[1] - 2 * (claim.slope is not None)


def heading(metric: str) -> tuple[str, int]:
    return (COLUMNS | MORE).get(metric, (metric, 4))


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
    if {"Conv/common_resnet/train.py", "bf16"} <= set(some["command"].split()) and any("AVX2" in kind for kind in kinds):
        lines += ["A CPU with only AVX2 has no bfloat16 instructions: float32 is rounded to bfloat16 in the same places there."]
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
    again = {method: name for method in methods if (name := claims.earlier_experiment_with(experiment, [method]))}
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
            command = row["command"].replace("|", "\\|")  # a | would end the cell
            cells = [row["name"], row["experiment"], f"`{command}`", f"{row['images_per_second']:,.0f}", f"{hours:,.0f}"]
        lines.append(f"| {' | '.join([*cells, row['storage']])} |")
    return prose.PLANNED.format(**content) + "\n".join(lines) + "\n"
