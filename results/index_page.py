"""results/index.html: claims as rows, experiments as columns, and in each cell a picture of the interval.

The template is index.html.j2, which escapes all text; index.js adds the filters. The page needs no network and no other file.
"""

import base64
import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

import claims
import claims_tables
import sentences
from claims import Claim, Test
from experiments import EXPERIMENTS
from finished import done
from verdicts import LEVEL, VERDICTS

FOLDER = Path(__file__).parent
HALF = 54  # half the width of a picture's axis, in the units of its viewBox
WIDEST = 2  # an axis ends at this many times the median interval's end at most; arrows mark longer intervals
# The template's kinds of cell, by verdict.
KINDS = dict(zip(VERDICTS, ("supported", "contradicted", "open"), strict=True))


@dataclass
class Interval:
    """An interval on an axis from -HALF to HALF, and which of its ends are beyond the axis."""

    low: float
    mean: float
    high: float
    beyond_low: bool
    beyond_high: bool


@dataclass
class Cell:
    """A test: what the cell says, what its picture's title says, and the picture, or None if there is nothing to draw."""

    experiment: str
    data: str
    kind: str = ""
    verdict: str = ""
    value: str = ""
    title: str = ""
    picture: Interval | None = None


@dataclass
class Row:
    claim: Claim
    measure: str
    axis: str
    cells: list[Cell]


def index_page(runs: dict, judged: dict[str, list[Test]]) -> str:
    """The page. runs[experiment][method][seed] is a run's JSON; judged: the tests of each table, by its title."""
    tested = {test.experiment for found in judged.values() for test in found}
    data_sets = dict.fromkeys(experiment.data for experiment in EXPERIMENTS.values())
    columns = [
        name for data in data_sets for name, experiment in EXPERIMENTS.items() if experiment.data == data and name in tested
    ]
    groups = {data: sum(EXPERIMENTS[name].data == data for name in columns) for data in data_sets}
    seen = {test.claim for found in judged.values() for test in found}
    untested = {title: [claim for claim in found if claim not in seen] for title, found in claims.TOPICS.items()}
    script = (FOLDER / "index.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("index.html.j2").render(
        summary=sentences.counts(judged) if tested else "",
        small=sentences.small(judged).strip(),
        weak=sentences.weak(judged),
        level=LEVEL,
        half=HALF,
        kinds=KINDS,
        legend=Interval(-16, 10, 36, False, False),
        groups={data: count for data, count in groups.items() if count},
        columns=[(name, EXPERIMENTS[name], claims_tables.anchor(name)) for name in columns],
        tables={title: rows(found, columns) for title, found in judged.items() if found},
        untested={title: found for title, found in untested.items() if found},
        experiments=[(name, one, done(runs.get(name, {})), one.planned) for name, one in EXPERIMENTS.items()],
        script=Markup(script),  # ours, so not escaped; the page's policy holds its hash
        digest=digest,
    )


def rows(found: list[Test], columns: Sequence[str]) -> list[Row]:
    """A row for each claim that has a test, with a cell for each column."""
    by_claim: dict[Claim, dict[str, Test]] = {}
    for test in found:
        by_claim.setdefault(test.claim, {})[test.experiment] = test
    return [row(claim, tests, columns) for claim, tests in by_claim.items()]


def row(claim: Claim, tests: dict[str, Test], columns: Sequence[str]) -> Row:
    """A claim's row. All its pictures share one axis."""
    ends = [max(abs(test.low), abs(test.high)) for test in tests.values() if not test.nothing]
    bound = min(max(ends), WIDEST * statistics.median(ends)) if ends else 0
    measure = claims_tables.heading(claim.metric)[0]
    measure = f"slope of {measure}" if claim.slope else measure
    axis = f"axis: ±{bound:.2g}" if bound else ""
    return Row(claim, measure, axis, [cell(tests.get(name), name, bound) for name in columns])


def cell(test: Test | None, name: str, bound: float) -> Cell:
    empty = Cell(name, EXPERIMENTS[name].data)
    if test is None:
        return empty
    if test.nothing:
        return Cell(name, empty.data, KINDS[VERDICTS[2]], "no test", test.nothing)
    places = claims_tables.places_of(test.claim)
    mean, low, high = (f"{value:+.{places}f}".replace("-", "−") for value in (test.mean, test.low, test.high))
    words = f"{name}. {claims_tables.what(test).replace(' - ', ' − ')}: {mean}; 95 % interval {low} to {high} over "
    words += f"{len(test.values)} seeds; p {test.p:.2g}, corrected {test.corrected:.3g}: {test.verdict}."
    if test.verdict == VERDICTS[2]:
        words += (
            f" These seeds would have shown a difference of {test.detectable:.{places}f} with 80 % power, as the first in the "
        )
        words += "order of Holm's correction."
    return Cell(name, empty.data, KINDS[test.verdict], test.verdict, mean, words, interval(test, bound))


def interval(test: Test, bound: float) -> Interval:
    scaled = [HALF * value / bound if bound else 0.0 for value in (test.low, test.mean, test.high)]
    low, mean, high = (round(min(max(value, -HALF), HALF), 1) for value in scaled)
    return Interval(low, mean, high, scaled[0] < -HALF, scaled[2] > HALF)
