"""The claims of the papers, in our words, and the test of each: a metric whose difference is above zero if the claim holds.

"LS" and "MaxSup" stand for the arms at the strengths of a table: see `resolve`. What follows from a formula is not a claim.
"""

import re
import statistics
from dataclasses import dataclass

from experiments import EXPERIMENTS, earlier_experiment_with
from verdicts import LEVEL, VERDICTS, detectable, deviation, holm, interval, p_value

FEWEST_SEEDS = 3
UNTESTED = f"No claim is tested here: one needs all seeds of the methods that it compares, {FEWEST_SEEDS} or more."
MAXSUP, SELECTIVE, OVERVIEW = "MaxSup paper", "selective-classification paper", "commonly stated"
MUELLER = "Müller et al. 2019"
OURS = "a hypothesis of ours"  # no document states it
SCHEDULE = "0.1-0.2"  # the MaxSup paper's
# The tables in addition to the topics, at strengths other than matched constant ones: a short label, and the strengths.
OTHER_STRENGTHS = {
    "LS and MaxSup, both rising from 0.1 to 0.2": ("rising strengths", dict.fromkeys(("LS", "MaxSup"), SCHEDULE)),
    "The papers' recipes: LS at 0.1, MaxSup rising from 0.1 to 0.2": ("recipes", {"LS": "0.1", "MaxSup": SCHEDULE}),
}
BARE = re.compile(r"\b(LS|MaxSup)$")


@dataclass(frozen=True)
class Claim:
    """The tested difference is the metric of `higher` minus that of `lower` (or its `less`); without `higher`, 0 minus it.

    slope: the method whose metric is claimed to rise with its strength; CE has strength 0.
    """

    id: str
    source: str
    sentence: str
    metric: str
    higher: str | None = None
    lower: str | None = None
    less: str | None = None
    slope: str | None = None

    @property
    def compares_methods(self) -> bool:
        return {"LS", "MaxSup"} <= {(arm or "").split()[-1] for arm in (self.higher, self.lower) if arm}


TOPICS = {
    "Features": [
        Claim("C1", MAXSUP, "LS lowers intra-class variation compared with CE", "d_within_val", "CE", "LS"),
        Claim("C2", MAXSUP, "MaxSup keeps more intra-class variation than LS", "d_within_val", "MaxSup", "LS"),
        Claim("C11", MAXSUP, "MaxSup separates the classes better than LS", "r2_val", "MaxSup", "LS"),
        Claim("C12", MAXSUP, "MaxSup separates the classes better than CE", "r2_val", "MaxSup", "CE"),
        Claim("C27", MAXSUP, "LS separates the classes better than CE", "r2_val", "LS", "CE"),
        Claim("C3", MAXSUP, "LS lowers linear transfer accuracy compared with CE", "transfer", "CE", "LS"),
        Claim("C4", MAXSUP, "MaxSup keeps more linear transfer accuracy than LS", "transfer", "MaxSup", "LS"),
    ],
    "Accuracy": [
        Claim("C5a", MAXSUP, "MaxSup is more accurate than LS", "top1", "MaxSup", "LS"),
        Claim("C5b", MAXSUP, "MaxSup is more accurate than CE", "top1", "MaxSup", "CE"),
        Claim("C13", OVERVIEW, "LS generalises better than CE", "top1", "LS", "CE"),
        Claim("C14", OVERVIEW, "too much smoothing (0.3 against 0.1) lowers accuracy", "top1", "LS 0.1", "LS 0.3"),
        Claim(
            "C15",
            OVERVIEW,
            "class-prior LS (--prior frequency) is more accurate than uniform LS on imbalanced data",
            "top1",
            "class-prior LS",
            "LS",
        ),
        Claim("C16", MAXSUP, "MaxSup is more accurate than focal loss on long-tailed data", "top1", "MaxSup", "focal"),
        Claim(
            "C17a",
            MUELLER,
            "students of an LS teacher are less accurate than those of a CE teacher",
            "top1",
            "student of CE",
            "student of LS",
        ),
        Claim(
            "C17b",
            OURS,
            "students of a MaxSup teacher are more accurate than those of an LS teacher",
            "top1",
            "student of MaxSup",
            "student of LS",
        ),
        Claim(
            "C18",
            OVERVIEW,
            "distillation from a CE teacher is more accurate than LS without a teacher",
            "top1",
            "student of CE",
            "LS",
        ),
    ],
    "Selective classification": [
        Claim("C6a", SELECTIVE, "LS raises AURC compared with CE", "aurc", "LS", "CE"),
        Claim("C6b", SELECTIVE, "AURC rises with the strength of LS", "aurc", slope="LS"),
        Claim("C19", SELECTIVE, "LS lowers the coverage at 1 % risk compared with CE", "coverage_at_risk_1", "CE", "LS"),
        Claim("C20", SELECTIVE, "LS raises the risk at low coverage (20 %) compared with CE", "risk_at_coverage_20", "LS", "CE"),
        Claim("C7", SELECTIVE, "logit normalisation lowers the AURC of LS", "aurc_split_msp", "LS", "LS", "aurc_normalised"),
        Claim(
            "C21a", SELECTIVE, "under LS, at equal MSP, wrong predictions have the larger max logit", "max_logit_gap", None, "LS"
        ),
        Claim(
            "C21b",
            SELECTIVE,
            "at equal MSP, the max logit of wrong predictions exceeds that of right ones by more under LS than under CE",
            "max_logit_gap",
            "CE",
            "LS",
        ),
        Claim(
            "C22",
            OURS,
            "at equal MSP, the max logit of wrong predictions exceeds that of right ones by less under MaxSup than under LS",
            "max_logit_gap",
            "MaxSup",
            "LS",
        ),
        Claim("C8", OURS, "the AURC of MaxSup is lower than that of LS", "aurc", "LS", "MaxSup"),
    ],
    "Calibration and confidence": [
        Claim("C9", OVERVIEW, "LS lowers ECE compared with CE", "ece", "CE", "LS"),
        # The MaxSup repository says "improved calibration" without saying compared with what.
        Claim("C23a", MAXSUP, "MaxSup is better calibrated than LS", "ece", "LS", "MaxSup"),
        Claim("C23b", MAXSUP, "MaxSup is better calibrated than CE", "ece", "CE", "MaxSup"),
        # Documents combine a temperature with LS, but state no direction.
        Claim("C24", OURS, "after temperature scaling, LS has a lower ECE than CE", "ece_temperature", "CE", "LS"),
        Claim("C25a", MAXSUP, "wrong predictions are more confident under LS than under CE", "confidence_wrong", "LS", "CE"),
        Claim(
            "C25b", MAXSUP, "wrong predictions are more confident under LS than under MaxSup", "confidence_wrong", "LS", "MaxSup"
        ),
        # The MaxSup repository draws this share and states no direction.
        Claim("C26", OURS, "LS leaves more logits near zero than MaxSup", "near_zero", "LS", "MaxSup"),
    ],
}


def resolve(arm: str | None, strengths: dict[str, str]) -> str | None:
    """The arm's name with the strength after a final "LS" or "MaxSup": "student of LS" becomes "student of LS 0.1"."""
    return arm and BARE.sub(lambda found: f"{found[1]} {strengths[found[1]]}", arm)


def arms_of(claim: Claim, strengths: dict[str, str], methods) -> list[str | None]:
    """The arms that a claim compares: two, or for a slope CE and all constant strengths among an experiment's methods."""
    if claim.slope:
        constant = re.compile(rf"{claim.slope} [\d.]+")
        return ["CE", *sorted(method for method in methods if constant.fullmatch(method))]
    return [resolve(claim.higher, strengths), resolve(claim.lower, strengths)]


def differences(claim: Claim, arms: list[str | None], runs: dict[str, dict[int, dict]]) -> list[float] | None:
    """One for each seed that all arms have, from runs[method][seed]; None if an arm, the metric or enough seeds are missing."""
    named = [arm for arm in arms if arm]
    if any(arm not in runs for arm in named) or (claim.slope and len(arms) < 3):
        return None
    found = []
    for seed in sorted(set.intersection(*(set(runs[arm]) for arm in named))):
        keys = [claim.metric, claim.less or claim.metric] if not claim.slope else [claim.metric] * len(arms)
        values = [runs[arm][seed].get(key) if arm else 0.0 for arm, key in zip(arms, keys, strict=True)]
        if None in values:
            return None
        found.append(slope(arms, values) if claim.slope else values[0] - values[1])
    return found if len(found) >= FEWEST_SEEDS else None


def slope(arms: list[str], values: list[float]) -> float:
    """The least-squares slope over the strengths; CE has strength 0."""
    x = [0.0 if arm == "CE" else float(arm.split()[1]) for arm in arms]
    return statistics.linear_regression(x, values).slope


@dataclass
class Test:
    """A claim in an experiment. p is from the paired t test; `corrected`, for all tests and looks of its table, decides."""

    claim: Claim
    experiment: str
    arms: list[str | None]
    values: list[float]
    kept_msp: bool  # logit normalisation changed nothing in any split
    corrected: float = 1.0
    level: float = LEVEL  # the family's smallest p must be below this

    def __post_init__(self) -> None:
        self.mean, self.low, self.high = interval(self.values)
        self.p = p_value(self.values)

    @property
    def nothing(self) -> str | None:
        """Why there is nothing to test, in words."""
        if self.kept_msp:
            return "MSP was kept in every split"
        return None if any(self.values) else "equal in every seed"

    @property
    def detectable(self) -> float:
        """The true difference that these seeds detect with 80 % power, as the first in the order of Holm's correction."""
        return detectable(deviation(self.values), len(self.values), self.level)

    @property
    def verdict(self) -> str:
        return VERDICTS[2] if self.corrected >= LEVEL else VERDICTS[0] if self.mean > 0 else VERDICTS[1]


def tests(claims: list[Claim], metrics: dict[str, dict], strengths_of, unfinished: bool) -> list[Test]:
    """All tests of some claims, not corrected yet. metrics[experiment][method][seed]; strengths_of(experiment): for `resolve`.

    A claim is tested only when its arms have all seeds of the experiment: tests after each run could be stopped at a lucky one.
    """
    found = []
    for claim in claims:
        for name, runs in metrics.items():
            experiment = EXPERIMENTS[name]
            arms = arms_of(claim, strengths_of(name), experiment.methods)
            values = differences(claim, arms, runs)
            if not values or (len(values) < experiment.seeds and not unfinished) or earlier_experiment_with(name, arms):
                continue
            kept = claim.less == "aurc_normalised" and all(one.get("normalised_kept_msp") == 1 for one in runs[arms[0]].values())
            found.append(Test(claim, name, arms, values, kept))
    return found


def correct(found: list[Test]) -> None:
    """Holm's correction over the tests of each experiment in a table: verdicts must not depend on which others have been run.

    A second look at verdicts, after seeds were added, is a second chance to be wrong. If seeds may be added, each of the two
    looks has half the level (Bonferroni).
    """
    for name in {test.experiment for test in found}:
        family, looks = [test for test in found if test.experiment == name], EXPERIMENTS[name].looks
        for test, adjusted in zip(family, holm([test.p for test in family]), strict=True):
            test.corrected, test.level = min(1.0, looks * adjusted), LEVEL / (looks * len(family))


def matched(name: str) -> dict[str, str]:
    """The same strength for both methods: that of the experiment."""
    return dict.fromkeys(("LS", "MaxSup"), EXPERIMENTS[name].strength)


def tables(metrics: dict[str, dict], unfinished: bool = False) -> dict[str, list[Test]]:
    """Tests by the title of their table. Only the last table compares recipes, at unmatched strengths. All topics together, the
    rising strengths, and the recipes are corrected separately.

    unfinished: also test claims whose seeds are not complete, from FEWEST_SEEDS on.
    """
    between = [claim for claims in TOPICS.values() for claim in claims if claim.compares_methods]
    found = {title: tests(claims, metrics, matched, unfinished) for title, claims in TOPICS.items()}
    correct([test for of_topic in found.values() for test in of_topic])
    for title, (_, strengths) in OTHER_STRENGTHS.items():
        found[title] = tests(between, metrics, lambda name, strengths=strengths: strengths, unfinished)
        correct(found[title])
    return found


def first_look(metrics: dict[str, dict]) -> dict[str, list[Test]]:
    """The same tables from the seeds that experiments had before more were added, and only for these experiments."""
    few = {
        name: {m: {seed: one for seed, one in seeds.items() if seed < EXPERIMENTS[name].first_seeds} for m, seeds in of.items()}
        for name, of in metrics.items()
        if EXPERIMENTS[name].first_seeds
    }
    return tables(few, unfinished=True)
