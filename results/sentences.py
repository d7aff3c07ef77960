"""Sentences about the verdicts, with numbers that come from the runs."""

import statistics

import claims
import prose
from claims import Test
from experiments import EXPERIMENTS, MANY_SEEDS
from finished import values_of
from verdicts import LEVEL, VERDICTS, deviation, seeds_needed


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


def nearly_calibrated(metrics: dict[str, dict[str, dict[int, dict]]]) -> str:
    """In how many experiments the mean temperature of CE is between 0.9 and 1.3."""
    found = [values_of({"CE": of["CE"]}, "temperature") for of in metrics.values() if "CE" in of]
    means = [statistics.fmean(values) for values in found if values]
    return f"{sum(0.9 <= mean <= 1.3 for mean in means)} of {len(means)}"


def worthwhile(judged: dict[str, list[Test]]) -> list[str]:
    """Experiments with fewer than MANY_SEEDS seeds in which that many would decide a further claim, by reproduce.py --power."""
    every = [test for found in judged.values() for test in found if test.verdict == VERDICTS[2] and not test.nothing]
    few = [test for test in every if EXPERIMENTS[test.experiment].seeds < MANY_SEEDS]
    found = {t.experiment for t in few if (seeds_needed(t.mean, deviation(t.values), t.level) or 1000) <= MANY_SEEDS}
    return [name for name in EXPERIMENTS if name in found]
