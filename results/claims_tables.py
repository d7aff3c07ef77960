"""Tables of claims and of their tests."""

import re
from collections.abc import Sequence

import claims
from claims import Test
from experiments import EXPERIMENTS
from runs_tables import COLUMNS
from verdicts import VERDICTS

# metrics that only tests have: heading, decimals
MORE = {
    "aurc_split_msp": ("AURC, not normalised - normalised", 5),
    "risk_at_coverage_20": ("risk at 20 % coverage", 4),
    "max_logit_gap": ("largest logit, right - wrong at equal MSP", 3),
    "near_zero": ("share of logits near zero", 4),
}


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


def of_experiment(name: str, judged: dict[str, list[Test]]) -> dict[str, list[Test]]:
    return {title: [test for test in found if test.experiment == name] for title, found in judged.items()}


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
