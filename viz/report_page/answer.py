"""The answer of a report in a few sentences, each derived from numbers and their intervals."""

from typing import NamedTuple

from report_page.numbers import METRICS


class Question(NamedTuple):
    """metric, and the words: "A {more} than B", "A {most}", and what is measured."""

    metric: str
    more: str
    most: str
    measured: str


QUESTIONS = (
    Question("top1", "is more accurate", "is the most accurate", "accuracy"),
    Question("auroc", "ranks its own errors better", "ranks its own errors best", "AUROC"),
    Question("aurc", "errs less over all coverages", "errs least over all coverages", "AURC"),
    Question("ece", "is better calibrated before a temperature", "is the best calibrated before a temperature", "ECE"),
    Question(
        "ece_temperature", "is better calibrated after a temperature", "is the best calibrated after a temperature", "ECE after T"
    ),
    Question("d_within_val", "keeps more variation within classes", "keeps the most variation within classes", "variation"),
)


class Sentence(NamedTuple):
    """lead: the finding; rest: its numbers; told: whether every difference behind it has an interval that excludes 0."""

    lead: str
    rest: str
    told: bool


def shown(metric: str, value: float | None, sign: bool = False, unit: bool = True) -> str:
    """A number of a metric as the page prints it; "–" where it is not defined."""
    if value is None:
        return "–"
    _, decimals, scale, suffix, *_ = METRICS[metric]
    text = f"{scale * value:{'+' if sign else ''}.{decimals}f}"
    text = text.lstrip("-+") if float(text) == 0 else text
    # A difference between two percentages is in percentage points.
    suffix = suffix.replace("%", "points") if sign else suffix
    return text.replace("-", "−") + (suffix if unit else "")


def between(metric: str, ends: list[float] | None) -> str:
    return "no interval" if ends is None else f"{shown(metric, ends[0], unit=False)} to {shown(metric, ends[1], unit=False)}"


def answer(estimates: dict[str, dict], differences: list[dict], evidence: str) -> list[Sentence]:
    """The sentences. evidence: what the intervals are over, such as "397 images"."""
    if len(estimates) == 1:
        ((name, found),) = estimates.items()
        return _alone(name, found) + _normalised(estimates)
    sentences, asked = [], {question.metric for question in QUESTIONS}
    for question in QUESTIONS:
        found = _compare(question, estimates, [row for row in differences if row["metric"] == question.metric])
        if found:
            sentences.append(found)
    told = sum(row["told"] for row in differences if row["metric"] in asked)
    count = sum(row["metric"] in asked for row in differences)
    if count:
        others = f"; the other {count - told} cannot be told" if told < count else ""
        rest = f" of {count} such differences between these models{others}."
        sentences.append(Sentence(f"These {evidence} show {told}", rest, told == count))
    return sentences + _normalised(estimates)


def _compare(question: Question, estimates: dict, rows: list[dict]) -> Sentence | None:
    """The sentence about one metric and the model with its best value; None if fewer than two models have a value."""
    key = question.metric
    values = {name: found[key]["value"] for name, found in estimates.items() if found[key]["value"] is not None}
    if len(values) < 2:
        return None
    lowest = METRICS[key].better < 0
    best = min(values, key=values.get) if lowest else max(values, key=values.get)
    told, untold = [], []
    for row in rows:
        if best not in (row["model"], row["less"]):
            continue
        other, flip = (row["less"], 1) if row["model"] == best else (row["model"], -1)
        ends = row["interval"] and sorted(flip * end for end in row["interval"])
        piece = f"{shown(key, flip * row['value'], sign=True)} against {other} ({between(key, ends)})"
        (told if row["told"] else untold).append((other, piece))
    if not told + untold:
        return None
    value = f"{question.measured} {shown(key, values[best])}"
    told_words, untold_words = (", ".join(piece for _, piece in part) for part in (told, untold))
    if not untold:
        lead = f"{best} {question.most}" if len(told) > 1 else f"{best} {question.more} than {told[0][0]}"
        sentence = Sentence(lead, f": {value}, {told_words}.", True)
    elif told:
        names = _and([other for other, _ in told])
        rest = (
            f": {value}, {told_words}; the difference from {_and([other for other, _ in untold])} cannot be told: {untold_words}."
        )
        sentence = Sentence(f"{best} {question.more} than {names}", rest, False)
    else:
        which = "Which model " + (question.most if len(untold) > 1 else question.more)
        sentence = Sentence(f"{which} cannot be told", f": {best} has {value}, {untold_words}.", False)
    return sentence


def _alone(name: str, found: dict) -> list[Sentence]:
    """For a single model: its numbers, without comparisons."""
    words = {
        "top1": "of its predictions are right",
        "aurc": "is its AURC, the share of wrong answers averaged over all coverages",
        "coverage_at_risk_1": "of the images can be answered with at most 1 % of the answers wrong",
        "ece": "is its calibration error before a temperature",
        "ece_temperature": "is its calibration error after a temperature",
        "d_within_val": "is its variation within classes",
    }
    return [
        Sentence(shown(key, found[key]["value"]), f" ({between(key, found[key]['interval'])}) {said}.", True)
        for key, said in words.items()
        if found[key]["value"] is not None and found[key]["interval"] is not None
    ]


def _normalised(estimates: dict[str, dict]) -> list[Sentence]:
    """What the logit normalisation of Xia et al. (2025) gives each model: one sentence, or none if no model has an interval."""
    key = "normalised_less_msp"
    ends = {name: found[key]["interval"] for name, found in estimates.items() if found[key]["interval"]}
    if not ends:
        return []
    better = [name for name in ends if ends[name][1] < 0]
    others = [name for name in ends if name not in better]

    def pieces(names: list[str]) -> str:
        values = {name: shown(key, estimates[name][key]["value"], sign=True) for name in names}
        return ", ".join(f"{values[name]} for {name} ({between(key, ends[name])})" for name in names)

    if not better:
        return [Sentence("No gain from normalised logits can be told", f": AURC {pieces(others)}.", False)]
    lead, rest = f"Normalised logits rank the errors of {_and(better)} better than MSP", f": AURC {pieces(better)}"
    rest += f"; no gain can be told: {pieces(others)}." if others else "."
    return [Sentence(lead, rest, not others)]


def recipes(losses: dict[str, tuple[str, str]]) -> list[Sentence]:
    """A caution if models of label smoothing and of MaxSup differ in strength. losses: loss and strength, by model."""
    of = {loss: {name: found[1] for name, found in losses.items() if found[0] == loss} for loss in ("ls", "maxsup")}
    if all(ours == theirs for ours in of["ls"].values() for theirs in of["maxsup"].values()):
        return []
    strengths = ", ".join(f"{strength} for {name}" for name, strength in (of["ls"] | of["maxsup"]).items())
    rest = f": {strengths}. Between label smoothing and MaxSup, this compares recipes, not methods."
    return [Sentence("The strengths differ", rest, False)]


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
