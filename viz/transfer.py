"""Linear transfer (Table 2 of the MaxSup paper): what frozen features tell of data that the model was not trained on.

    python viz/transfer.py --checkpoint ls.pth maxsup.pth --names LS MaxSup --data cifar10 --output transfer/
    python viz/transfer.py --checkpoint ls.pth --data-path other/ --output transfer/      # train/ and val/ of any image folder

Penultimate features, standardised by the training images' mean and deviation; multinomial logistic regression whose L2 strength
is chosen on a fifth of the training images, then fitted to all of them; accuracy on the test images (--test-split). Nothing is
random but the choice of that fifth, by a fixed seed. Writes transfer.json and transfer.md.
"""

import json
from pathlib import Path

from common import errors, options, outputs, terminal
from common.errors import InputError

import numpy as np
from torch import Tensor

from checkpoints import inference
from checkpoints.read import Checkpoint, build_model
from images.ffcv_files import ENDINGS
from images.find import open_images
from images.image_set import Images, check_different
from metrics.linear_transfer import STRENGTHS, transfer


def main() -> None:
    parser = options.parser("Table 2 of the MaxSup paper: accuracy of a logistic regression on frozen features.")
    options.add_checkpoints(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--test-split", default="val", help="test images: a folder or archive in --data-path")
    parser.add_argument(
        "--strengths", type=float, nargs="+", default=STRENGTHS, help="values of C, the inverse L2 strength, to choose from"
    )
    options.add_images(parser)
    args = parser.parse_args()
    options.check_images(args)
    if args.data is None and args.data_path is None:
        raise InputError("transfer to what? --data cifar10 (or another known set), or --data-path to an image folder")
    if not all(0 < strength < np.inf for strength in args.strengths):
        raise InputError(f"--strengths {' '.join(map(str, args.strengths))}: numbers above 0")
    names = options.names_of(args.checkpoint, args.names, "--checkpoint")
    sets = {split: open_split(split, args) for split in ("train", args.test_split)}
    check_different(sets["train"], sets[args.test_split])
    table = {}
    with outputs.folder(args.output, "transfer"):
        for name, path in zip(names, args.checkpoint, strict=True):
            checkpoint = inference.load(path, args)
            train, test = (features_of(checkpoint, split, images, args) for split, images in sets.items())
            table[name] = {"checkpoint": str(path)} | transfer(*train, *test, sorted(args.strengths))
            outputs.write_text(args.output / "transfer.json", json.dumps(table, indent=1) + "\n")
        outputs.write_text(args.output / "transfer.md", markdown(table))
    rows = [[name, f"{row['test_top1']:.2f}", f"{row['C']:g}", f"{row['held_out_top1']:.2f}"] for name, row in table.items()]
    print(terminal.table(["model", "transfer, top-1 %", "C", "held-out top-1 %"], rows))
    print(f"tables: {args.output}/")


def open_split(split: str, args) -> Images:
    """A part of the target data, whose classes have nothing to do with a checkpoint's. Raises InputError."""
    if args.data_path and args.data_path.suffix in ENDINGS:
        raise InputError(f"{args.data_path}: transfer wants an image folder or ZIP archives, with a training and a test part")
    images = open_images(args.data_path, split, args.data)
    if images.classes is None:
        raise InputError(f"{images.where}: its classes have no names; train_map.txt would give them")
    return images


def features_of(checkpoint: Checkpoint, split: str, images: Images, args) -> tuple[Tensor, list[str]]:
    """Features (N, D) float32 and class names (N,) of a part of the target data."""
    model, title = build_model(checkpoint), f"{split} features of {checkpoint.path}"
    found = inference.outputs(model, images, checkpoint.facts, title, ("features",), **options.loading(args))["features"]
    return found, [images.classes[label] for label in images.labels]


def markdown(table: dict) -> str:
    lines = [
        "| model | linear transfer, top-1 % | C | held-out top-1 % | training images | test images |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in table.items():
        lines.append(
            f"| {name} | {row['test_top1']:.2f} | {row['C']:g} | {row['held_out_top1']:.2f} | {row['train_images']:,} | "
            f"{row['test_images']:,} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    errors.run(main)
