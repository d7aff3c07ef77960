"""The Markdown of selective.py: figures with their intervals, which p was chosen, differences."""

from collections import Counter

from common.terminal import table

from metrics.risk_coverage import FIGURES
from metrics.scores import PLAIN

NAMES = PLAIN | {"split_msp": "MSP, as s_p", "normalised": "s_p"}
DIFFERENCES = ("error", "aurc", "excess_aurc", "coverage_at_1%_risk", "auroc")  # summary.json has them all


def markdown(summary: dict) -> str:
    """summary.md from what summary.json holds."""
    resamples, repeats = summary["resamples"], summary["repeats"]
    models = summary["models"]
    lines = [f"In brackets: 95 % of {resamples:,} resamples of the images." if resamples else "Without intervals.", ""]
    lines += header(["model", "score"], FIGURES)
    for name, model in models.items():
        lines += [row([name, NAMES[key]], figures, FIGURES) for key, figures in model["scores"].items()]
    chosen = {name: Counter(model["chosen"]).most_common() for name, model in models.items() if model["chosen"]}
    if chosen:
        share = 100 * summary["held_out_fraction"]
        lines += [
            "",
            f"s_p: normalised logits, p from 1 to 10 by AURC on held-out images, or MSP where no p is better; mean over "
            f"{repeats} random splits of the figures on the other {100 - share:g} % of the images, as in the row above it. The "
            "other rows: all images. Chosen were:",
            "",
        ]
    for name, counts in chosen.items():
        held_out = f"{models[name]['held_out_images']:,} of {models[name]['images']:,} images held out"
        lines.append(f"- {name} ({held_out}): " + ", ".join(f"{choice_name(key)} in {count}" for key, count in counts))
    lines += ["", "Differences, each on the same images:", ""] + header(["difference", "score"], DIFFERENCES)
    for name in chosen:
        lines.append(row([name, "s_p - MSP"], models[name]["normalised_less_msp"], DIFFERENCES, sign="+"))
    for pair in summary["paired"]:
        names = [f"{pair['model']} - {pair['less']}", NAMES[pair["score"]]]
        lines.append(row(names, pair["figures"], DIFFERENCES, sign="+"))
    return "\n".join(lines + [""] * bool(summary["notes"]) + [f"Note: {note}." for note in summary["notes"]]) + "\n"


def terminal_tables(summary: dict) -> str:
    """What the terminal shows: each model by MSP and by s_p, and the differences between models with their intervals."""
    shown = ("error", "aurc", "coverage_at_1%_risk", "auroc")
    rows = []
    for name, model in summary["models"].items():
        for key in ("msp", *["normalised"] * ("normalised" in model["scores"])):
            values = [cell(model["scores"][key][f] | {"interval": None}, f) for f in shown]
            rows.append([name, NAMES[key], *values])
    text = table(["model", "score", *(FIGURES[f][0] for f in shown)], rows, names=2)
    rows = []
    for pair in summary["paired"]:
        figures = pair["figures"]
        rows.append(
            [f"{pair['model']} - {pair['less']}", NAMES[pair["score"]], *(cell(figures[f], f, "+") for f in ("error", "aurc"))]
        )
    return text + ("\n" + table(["difference", "score", "error %", "AURC"], rows, names=2) if rows else "")


def choice_name(key: str) -> str:
    return "MSP" if key == "msp" else f"p = {key.removeprefix('s_')}"


def header(first: list[str], figures) -> list[str]:
    titles = first + [FIGURES[f][0] for f in figures]
    return [f"| {' | '.join(titles)} |", "|" + "---|" * len(first) + "---:|" * len(figures)]


def row(first: list[str], values: dict[str, dict], figures, sign: str = "") -> str:
    return f"| {' | '.join(first + [cell(values[f], f, sign) for f in figures])} |"


def cell(estimate: dict, figure: str, sign: str = "") -> str:
    _, scale, decimals = FIGURES[figure]
    if estimate["value"] is None:
        return "undefined"
    text = [f"{scale * value:{sign}.{decimals}f}" for value in (estimate["value"], *(estimate["interval"] or ()))]
    return text[0] if len(text) == 1 else f"{text[0]} ({text[1]} to {text[2]})"
