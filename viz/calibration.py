"""Calibration, before and after a temperature: reliability diagrams, ECE, classwise ECE, NLL, Brier score, ranking of errors.

    python viz/calibration.py --input ce.pt ls.pt maxsup.pt --names CE LS MaxSup --output calibration/

The temperature T divides the logits (Guo et al. 2017) and minimises the NLL on held-out images. Every number, before and after,
is measured on the other images and averaged over --repeats random splits. The p of the normalised logits s_p is chosen by the
AURC on held-out images. A temperature preserves the ranking by max logit and by s_p; it can change the ranking by MSP.
Writes reliability (PNG and PDF), summary.json, summary.md.
"""

import json
from collections import Counter
from statistics import fmean

from common import errors, options, outputs
from common.terminal import markdown, number, table

# heading, decimals
FIGURES = {"ece": ("ECE", 4), "classwise_ece": ("classwise ECE", 5), "nll": ("NLL", 4), "brier": ("Brier", 4)}


def main() -> None:
    parser = options.parser("Calibration of one or more logits files, before and after temperature scaling.")
    options.add_models(parser, "input")
    options.add_output(parser, "folder for figures and tables")
    options.add_splits(parser)
    args = options.parse(parser)

    from drawing import reliability
    from metrics.calibration import RANKINGS, calibrate
    from metrics.resampling import check_split
    from metrics.selection import TWO_CLASSES

    files = options.load_all(args)
    for name, content in files.items():
        check_split(len(content["labels"]), args.val_fraction, name)
    outputs.folder(args.output, "calibration", args.overwrite)
    summary = {"held_out_fraction": args.val_fraction, "repeats": args.repeats, "seed": args.seed, "models": {}, "notes": []}
    diagrams = {}
    for name, content in files.items():
        result = calibrate(content["logits"], content["labels"], args.val_fraction, args.repeats, args.seed, name)
        diagrams[name] = result.pop("bins")
        summary["notes"] += [f"{name}: {note}" for note in result.pop("notes")]
        summary["models"][name] = result
    if next(iter(files.values()))["logits"].shape[1] < 3:
        summary["notes"].append(TWO_CLASSES)
    for note in summary["notes"]:
        errors.warn(note)
    outputs.write_text(args.output / "summary.json", json.dumps(summary, indent=1) + "\n")
    outputs.write_text(args.output / "summary.md", page(summary, RANKINGS))
    reliability.panels(diagrams, summary["models"]).save(args.output / "reliability")
    shown = {"ece": 4, "nll": 4, "aurc_msp": 5}
    rows = [[name, number(fmean(row["temperatures"]), 3), *pairs(row, shown)] for name, row in summary["models"].items()]
    print(table(["model", "T", "ECE", "after", "NLL", "after", "AURC by MSP", "after"], rows))
    errors.say(f"figures and tables of {len(files)} inputs: {args.output}/")


def pairs(row: dict, decimals: dict[str, int]) -> list[str]:
    """Each number before and after the temperature."""
    return [number(row[key].get(figure), places) for figure, places in decimals.items() for key in ("before", "after")]


def page(summary: dict, rankings: dict[str, str]) -> str:
    """The text of summary.md, from the content of summary.json. rankings: titles, by name, of the scores whose AURC it holds."""
    share = 100 * (1 - summary["held_out_fraction"])
    first, second = [], []
    for name, row in summary["models"].items():
        found = row["temperatures"]
        spread = f"{fmean(found):.3f} ({min(found):.3f} to {max(found):.3f})"
        decimals = {figure: places for figure, (_, places) in FIGURES.items()}
        first.append([name, f"{row['images']:,}", spread, *pairs(row, decimals)])
        powers = Counter(score.removeprefix("s_") for score in row["chosen"]).most_common()
        ranked = pairs(row, {f"aurc_{score}": 5 for score in rankings})
        second.append([name, *ranked, ", ".join(f"{p} in {count}" for p, count in powers) or "–"])
    titles = [title for title, _ in FIGURES.values()], rankings.values()
    heads = [[word for title in part for word in (title, "after")] for part in titles]
    words = "What the temperature does to the ranking of errors, AURC (s_p: normalised logits, the best p on held-out images):"
    return (
        f"Mean over {summary['repeats']} random splits, on the {share:g} % of the images that are not held out.\n\n"
        + markdown(["model", "images", "T", *heads[0]], first)
        + f"\n{words}\n\n"
        + markdown(["model", *heads[1], "p"], second, text=1)
        + "".join(f"\nNote: {note}.\n" for note in summary["notes"])
    )


if __name__ == "__main__":
    errors.run(main)
