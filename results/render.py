"""results/README.md, results/index.html and the blocks of all other pages, from only the JSON files."""

import fcntl
import json
from pathlib import Path

import claims
import papers
import prose
import tables
from claims import Test
from claims_tables import changed, of_experiment, section, table_of_claims, tables_of_tests
from experiments import EXPERIMENTS, MANY_SEEDS
from finished import done, metrics_of, read_runs, values_of
from index_page import index_page
from run import WORK
from runs_tables import table_of_runs
from sentences import at_matched_strength, counts, nearly_calibrated, of_right_predictions, small, weak, worthwhile
from tables import RESULTS, TOP
from verdicts import LEVEL, VERDICTS

NEAR = 97  # % of training images predicted correctly


def render() -> None:
    """Write the two pages of results/, and the blocks of all other pages that show what the JSON files hold."""
    WORK.mkdir(parents=True, exist_ok=True)
    with open(WORK / "render.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two processes, the one that writes last must have read last
        for path, text in rendered().items():
            tables.write(path, text)


def rendered() -> dict[Path, str]:
    """The up-to-date text of each page. A block is named after the file, or folder, that it shows: see tables.block."""
    runs = read_runs()
    judged = claims.tables(metrics_of(runs))
    found = {RESULTS / "README.md": tables.wrap(page(runs, judged)), RESULTS / "index.html": index_page(runs, judged)}
    for path in tables.pages():
        text = path.read_text()
        for name in tables.MARK.findall(text):
            text = tables.block(text, name, tables.wrap(block(name, runs, judged)))
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
    words = {
        "weak": weak(judged),
        "nearly_calibrated": nearly_calibrated(metrics),
        "near": f": over {NEAR} % in {', '.join(near)}" if near else "",
    }
    parts.append(prose.CAUTION.format(**words, **of_right_predictions(metrics, judged)))
    first = claims.first_look(metrics)
    for name, methods in runs.items():
        parts.append(f"## {section(name)}\n\n{table_of_runs(name, methods)}")
        tests = of_experiment(name, judged)
        parts += tables_of_tests(tests) if any(tests.values()) else [f"{claims.UNTESTED}\n"]
        if EXPERIMENTS[name].first_seeds and done(methods) == EXPERIMENTS[name].planned:
            parts.append(changed(name, of_experiment(name, first), tests))
    return "\n".join([*parts, planned()])


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
