"""Tables of claims and of their tests, and the sentences that count verdicts."""

import re
import statistics
from collections.abc import Sequence

import claims
import prose
from claims import Test
from experiments import EXPERIMENTS, MANY_SEEDS
from finished import values_of
from runs_tables import COLUMNS
from verdicts import LEVEL, VERDICTS, deviation, seeds_needed

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


def weak(judged: dict[str, list[Test]]) -> str:
    """How much a single verdict is worth. Each experiment has one table at constant strength, and one of each other kind."""
    tested = len({test.experiment for test in at_matched_strength(judged)})
    others = {(title, test.experiment) for title, found in judged.items() if title not in claims.TOPICS for test in found}
    tables = tested + len(others)
    words = {"experiments": tested, "expected": LEVEL * tested, "tables": tables, "all_expected": LEVEL * tables}
    return prose.WEAK.format(percent=100 * LEVEL, **words)


def of_right_predictions(metrics: dict, judged: dict[str, list[Test]]) -> dict[str, str]:
    """In how many experiments of C25b MaxSup also has the lower MSP of right predictions; in how many of them by more."""
    tests = [test for test in at_matched_strength(judged) if test.claim.id == "C25b"]
    means = [
        [statistics.fmean(values_of({arm: metrics[test.experiment][arm]}, "confidence_right")) for arm in test.arms]
        for test in tests
    ]
    lower = [(ls - maxsup, test.mean) for test, (ls, maxsup) in zip(tests, means, strict=True) if ls > maxsup]
    return {"right_too": f"{len(lower)} of {len(tests)}", "right_more": str(sum(right > wrong for right, wrong in lower))}


def worthwhile(judged: dict[str, list[Test]]) -> list[str]:
    """Experiments with fewer than MANY_SEEDS seeds in which that many would decide a further claim, by reproduce.py --power."""
    every = [test for found in judged.values() for test in found if test.verdict == VERDICTS[2] and not test.nothing]
    few = [test for test in every if EXPERIMENTS[test.experiment].seeds < MANY_SEEDS]
    found = {t.experiment for t in few if (seeds_needed(t.mean, deviation(t.values), t.level) or 1000) <= MANY_SEEDS}
    return [name for name in EXPERIMENTS if name in found]
