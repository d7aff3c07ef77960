"""Selective classification: which model rejects its own errors best, what label smoothing cost, what normalised logits give back.

    python viz/selective.py --input ce.pt ls.pt maxsup.pt --names CE LS MaxSup --output dir/
    python viz/selective.py --input ls_0.0.pt ls_0.1.pt ls_0.2.pt ls_0.3.pt --output dir/

Logits (N, K), or (N, K, H, W) for segmentation, where pixels are the samples and images are split and resampled. p of the
normalised logits s_p is the one of lowest AURC on held-out images, MSP where none is lower than MSP's; its figures, and MSP's
beside it, are the mean over --repeats random splits of what comes out on the other images. Intervals are 95 % percentiles over
--bootstrap resamples of the images, splits and p kept; differences between models are taken resample by resample, on the same
images. Writes risk_coverage and max_logit (PNG and PDF), summary.json, summary.md.
"""

import json
from pathlib import Path

from common import errors, options, outputs
from common.errors import InputError

from drawing import max_logit, risk_coverage
from drawing.selective_table import markdown, terminal_tables
from metrics import segmentation
from metrics.rankings import Model
from metrics.resampling import check_split, splits
from metrics.selection import analyse


def main() -> None:
    parser = options.parser("Risk-coverage figures of one or more logits files, with and without normalised logits.")
    options.add_inputs(parser)
    options.add_splits(parser)
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of the images for the intervals; 0: no intervals")
    parser.add_argument("--ignore-index", type=int, default=255, help="segmentation: label of pixels that are not counted")
    parser.add_argument("--log-risk", action="store_true", help="draw the risk on a logarithmic scale")
    args = parser.parse_args()
    options.check_splits(args)
    if args.bootstrap < 0:
        raise InputError(f"--bootstrap {args.bootstrap}: from 0 on")
    files = options.load_all(args, lambda path: segmentation.load(path, args.ignore_index))
    for name, content in files.items():
        check_split(len(content["labels"]), args.val_fraction, name)
    with outputs.folder(args.output, "selective"):
        models = {name: segmentation.rank_file(content, name) for name, content in files.items()}
        summary = analyse(models, args.val_fraction, args.repeats, args.bootstrap, args.seed)
        write(summary, models, args.log_risk, args.output)
    print(terminal_tables(summary))
    print(f"figures and tables of {len(models)} inputs: {args.output}/")


def write(summary: dict, models: dict[str, Model], log_risk: bool, output: Path) -> None:
    """Write the tables and figures into a folder."""
    for note in summary["notes"]:
        options.warn(note)
    outputs.write_text(output / "summary.json", json.dumps(summary, indent=1) + "\n")
    outputs.write_text(output / "summary.md", markdown(summary))
    curves = {}
    for name, model in models.items():
        scored = ~splits(model.units, summary["held_out_fraction"], summary["repeats"], summary["seed"])
        curves[name] = risk_coverage.curves(model, summary["models"][name]["chosen"], scored)
    risk_coverage.draw(curves, log_risk, output / "risk_coverage")
    max_logit.draw({name: model.given_odds for name, model in models.items()}, output / "max_logit")


if __name__ == "__main__":
    errors.run(main)
