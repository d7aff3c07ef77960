"""Linear transfer (Table 2 of the MaxSup repository): what frozen features tell about data that the model was not trained on.

    python viz/transfer.py --checkpoint ls.pth maxsup.pth --names LS MaxSup --data cifar10 --output transfer/
    python viz/transfer.py --checkpoint ls.pth --data-path other/ --output transfer/      # train/ and val/ of any image folder

Penultimate features are standardised by the mean and standard deviation of the training images. The L2 strength of a multinomial
logistic regression is chosen on a held-out fifth of the training images; the regression is then fitted to all of them and scored
on the test images (--test-split). Only the choice of that fifth is random, with a fixed seed. Writes transfer.json, transfer.md.
"""

import json

from common import errors, options, outputs, terminal
from common.errors import InputError


def main() -> None:
    parser = options.parser("Table 2 of the MaxSup repository: accuracy of a logistic regression on frozen features.")
    options.add_models(parser, "checkpoint")
    options.add_output(parser, "folder for the tables")
    parser.add_argument("--test-split", default="val", help="test images: a folder or archive in --data-path")
    help_ = "values of C, the inverse L2 strength, to choose from"
    parser.add_argument("--strengths", type=float, nargs="+", default=options.STRENGTHS, help=help_)
    options.add_images(parser)
    args = options.parse(parser)
    if args.data is None and args.data_path is None:
        raise InputError("transfer to what? --data cifar10 (or another known set), or --data-path to an image folder")
    if args.test_split == "train":
        raise InputError("--test-split train: the logistic regression learns from these images; name another split")
    models = options.models_of(args)

    from checkpoints import inference
    from checkpoints.read import build_model
    from images.image_set import check_different
    from metrics.linear_transfer import transfer

    sets = {split: open_split(split, args) for split in ("train", args.test_split)}
    check_different(*sets.values())
    inference.say_notes(*sets.values())
    outputs.folder(args.output, "transfer", args.overwrite)
    table = {}
    for name, path in models.items():
        checkpoint, parts = inference.load(path, args), []
        model = build_model(checkpoint)
        for split, images in sets.items():
            title = f"{split} features of {path}"
            found = inference.outputs(model, images, checkpoint.facts, title, ("features",), **options.loading(args))
            parts += [found["features"], [images.classes[label] for label in images.labels]]
        table[name] = {"checkpoint": str(path)} | transfer(*parts, sorted(args.strengths))
        outputs.write_text(args.output / "transfer.json", json.dumps(table, indent=1) + "\n")
    numbers = [[name, f"{row['test_top1']:.2f}", f"{row['C']:g}", f"{row['held_out_top1']:.2f}"] for name, row in table.items()]
    counts = [[f"{row['train_images']:,}", f"{row['test_images']:,}"] for row in table.values()]
    head = ["model", "linear transfer, top-1 %", "C", "held-out top-1 %"]
    whole = terminal.markdown([*head, "training images", "test images"], [a + b for a, b in zip(numbers, counts, strict=True)])
    outputs.write_text(args.output / "transfer.md", whole)
    print(terminal.table(head, numbers))
    errors.say(f"tables: {args.output}/")


def open_split(split: str, args):
    """The images of one split of the target data, whose classes are unrelated to a checkpoint's. Raises InputError."""
    from images.find import ENDINGS, open_images

    if args.data_path and args.data_path.suffix in ENDINGS:
        raise InputError(f"{args.data_path}: transfer needs an image folder or ZIP archives, with a training and a test split")
    images = open_images(args.data_path, split, args.data)
    if images.classes is None:
        raise InputError(f"{images.where}: its classes have no names; train_map.txt would give them")
    return images


if __name__ == "__main__":
    errors.run(main)
