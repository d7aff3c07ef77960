"""What the regulariser of a loss adds to the gradient of each logit, by its formula: which logits it suppresses, and when.

    python viz/suppression.py --output dir/

Writes suppression (PNG and PDF), whose caption gives the formulas (Xia et al. 2025, Figure 4). See also drawing/suppression.py.
"""

from common import errors, options, outputs


def main() -> None:
    parser = options.parser("The gradient that the regularisers of label smoothing, MaxSup and logit penalty add to each logit.")
    options.add_output(parser, "folder for the figure")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 1000], help="numbers of classes K, one row of maps each")
    parser.add_argument("--alpha", type=float, default=0.1, help="strength of label smoothing and MaxSup")
    parser.add_argument("--beta", type=float, default=2e-3, help="strength of the logit penalty")
    args = options.parse(parser, classes=(3, 10**6))  # from 3 classes on, a logit can be neither the largest nor the label's
    outputs.folder(args.output, "suppression", args.overwrite)

    from drawing import suppression

    suppression.draw(args.classes, args.alpha, args.beta, args.output / "suppression")
    errors.say(f"figure: {args.output}/suppression.png, .pdf")


if __name__ == "__main__":
    errors.run(main)
