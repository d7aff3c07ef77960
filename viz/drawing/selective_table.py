"""The tables of selective.py: figures with their intervals, which p was chosen, differences."""

from collections import Counter

from common.terminal import markdown, table

from metrics.risk_coverage import FIGURES
from metrics.scores import PLAIN
from metrics.selection import SPLIT

NAMES = PLAIN | {"split_msp": "MSP, as s_p", "normalised": "s_p"}
DIFFERENCES = ("error", "aurc", "excess_aurc", "coverage_at_risk_1", "auroc")  # summary.json has them all


def page(summary: dict) -> str:
    """The text of summary.md, from the content of summary.json."""
    resamples, repeats, models = summary["resamples"], summary["repeats"], summary["models"]
    rows = [[name, NAMES[key], *cells(found)] for name, model in models.items() for key, found in model["scores"].items()]
    text = f"In brackets: 95 % of {resamples:,} resamples of the images.\n\n" if resamples else "Without intervals.\n\n"
    text += markdown(["model", "score", *(FIGURES[f][0] for f in FIGURES)], rows, names=2)
    chosen = {name: Counter(model["chosen"]).most_common() for name, model in models.items() if model["chosen"]}
    if chosen:
        share = 100 * summary["held_out_fraction"]
        text += (
            f"\ns_p: normalised logits, p from 1 to 10 by AURC on held-out images, or MSP where no p is better; mean over "
            f"{repeats} random splits of the figures on the other {100 - share:g} % of the images, as in the row above it. The "
            "other rows: all images. Chosen were:\n\n"
        )
    for name, counts in chosen.items():
        held_out = f"{models[name]['held_out_images']:,} of {models[name]['images']:,} images held out"
        text += f"- {name} ({held_out}): {', '.join(f'{choice_name(key)} in {count}' for key, count in counts)}\n"
    rows = [[name, "s_p - MSP", *cells(models[name]["normalised_less_msp"], DIFFERENCES, "+")] for name in chosen]
    rows += differences(summary, DIFFERENCES)
    if rows:
        head = ["difference", "score", *(FIGURES[f][0] for f in DIFFERENCES)]
        text += f"\nDifferences, each on the same images:\n\n{markdown(head, rows, names=2)}"
    return text + "".join(f"\nNote: {note}.\n" for note in summary["notes"])


def terminal_tables(summary: dict) -> str:
    """What the terminal shows: each model by MSP, then MSP and s_p on the same images; and the differences between models."""
    shown = ("error", "aurc", "coverage_at_risk_1", "auroc")
    rows = []
    for name, model in summary["models"].items():
        for key in [key for key in ("msp", *SPLIT) if key in model["scores"]]:
            plain = {f: figure | {"interval": None} for f, figure in model["scores"][key].items()}
            rows.append([name, NAMES[key], *cells(plain, shown)])
    text = table(["model", "score", *(FIGURES[f][0] for f in shown)], rows, names=2)
    if any(model["chosen"] for model in summary["models"].values()):
        text += "s_p, and MSP in the row above it: the images that are not held out, mean over the splits\n"
    rows = differences(summary, ("error", "aurc"))
    return text + ("\n" + table(["difference", "score", "error %", "AURC"], rows, names=2) if rows else "")


def differences(summary: dict, figures) -> list[list[str]]:
    """A row for each pair of models and score."""
    pairs = [(f"{pair['model']} - {pair['less']}", NAMES[pair["score"]], pair["figures"]) for pair in summary["paired"]]
    return [[pair, score, *cells(found, figures, "+")] for pair, score, found in pairs]


def choice_name(key: str) -> str:
    return "MSP" if key == "msp" else f"p = {key.removeprefix('s_')}"


def cells(estimates: dict[str, dict], figures=tuple(FIGURES), sign: str = "") -> list[str]:
    """Each figure's value and, in brackets, its interval."""
    found = []
    for figure in figures:
        (_, scale, decimals), estimate = FIGURES[figure], estimates[figure]
        values = [estimate["value"], *(estimate["interval"] or ())] if estimate["value"] is not None else []
        text = [f"{scale * value:{sign}.{decimals}f}" for value in values] or ["undefined"]
        found.append(text[0] if len(text) == 1 else f"{text[0]} ({text[1]} to {text[2]})")
    return found
