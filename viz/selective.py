"""Selective classification: which model best rejects its own errors, what label smoothing costs, what normalised logits recover.

    python viz/selective.py --input ce.pt ls.pt maxsup.pt --names CE LS MaxSup --output dir/
    python viz/selective.py --input ls_0.0.pt ls_0.1.pt ls_0.2.pt ls_0.3.pt --output dir/

Logits are (N, K), or (N, K, H, W) for segmentation, where pixels are the samples but images are split and resampled. The p of the
normalised logits s_p minimises the AURC on held-out images; MSP is used where no p improves on it. The numbers for s_p, and those
for MSP next to them, are measured on the other images and averaged over --repeats random splits. Intervals are 95 % percentile
intervals over --bootstrap resamples of the images, with splits and p fixed. Differences between models are taken resample by
resample, on the same images. Writes risk_coverage and max_logit (PNG and PDF), summary.json, summary.md.
"""

import json
from pathlib import Path

from common import errors, options, outputs


def main() -> None:
    parser = options.parser("Risk-coverage figures of one or more logits files, with and without normalised logits.")
    options.add_models(parser, "input")
    options.add_output(parser, "folder for figures and tables")
    options.add_splits(parser)
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of the images for the intervals; 0: no intervals")
    options.add_ignore_index(parser)
    parser.add_argument("--log-risk", action="store_true", help="draw the risk on a logarithmic scale")
    args = options.parse(parser)

    from drawing.selective_table import terminal_tables
    from metrics import segmentation
    from metrics.resampling import check_split
    from metrics.selection import analyse

    files = options.load_all(args)
    for name, content in files.items():
        check_split(len(content["labels"]), args.val_fraction, name)
    outputs.folder(args.output, "selective", args.overwrite)
    models = {name: segmentation.rank_file(content, name) for name, content in files.items()}
    summary = analyse(models, args.val_fraction, args.repeats, args.bootstrap, args.seed)
    write(summary, models, args.log_risk, args.output)
    print(terminal_tables(summary))
    errors.say(f"figures and tables of {len(models)} inputs: {args.output}/")


def write(summary: dict, models: dict, log_risk: bool, output: Path) -> None:
    """Write the tables and figures into a folder. models: metrics.rankings.Model by name."""
    from drawing import max_logit, risk_coverage
    from drawing.selective_table import page
    from metrics.resampling import splits

    for note in summary["notes"]:
        errors.warn(note)
    outputs.write_text(output / "summary.json", json.dumps(summary, indent=1) + "\n")
    outputs.write_text(output / "summary.md", page(summary))
    curves = {}
    for name, model in models.items():
        scored = ~splits(model.units, summary["held_out_fraction"], summary["repeats"], summary["seed"])
        curves[name] = risk_coverage.curves(model, summary["models"][name]["chosen"], scored)
    risk_coverage.draw(curves, log_risk, output / "risk_coverage")
    max_logit.panels({name: model.given_odds for name, model in models.items()}).save(output / "max_logit")


if __name__ == "__main__":
    errors.run(main)
