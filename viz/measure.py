"""Measure trained models on their own images: every metric of metrics/, each by one protocol, in one JSON file.

    python viz/measure.py --checkpoint ce.pth ls.pth --names CE LS --output measured.json
    python viz/measure.py --checkpoint ls.pth --transfer --output measured.json     # adds linear transfer to the finer classes
    python viz/measure.py --input ce.pt ls.pt --output measured.json                # the metrics that need only logits

The file is {"models": {name: {"checkpoint" or "input": path, "metrics": {...}}}}. Accuracies (top1, top5, train_top1,
train_top1_clean, transfer) are percentages; risks, coverages and shares are fractions; null means not defined or not known.
Training metrics use only the images that the model was trained on, without augmentation and with the model in evaluation mode.
Metrics that require a choice (of a temperature, of p) make it on a random fifth of the validation images and are measured on the
others; they are averaged over ten such splits.
"""

import argparse
import json
import math
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from common import errors, options, outputs
from common.errors import InputError
from common.terminal import counted, number, table

if TYPE_CHECKING:
    from torch import Tensor

    from checkpoints.inference import Batch
    from images.image_set import Images
    from metrics.outputs import Outputs, Training

# The metrics that the terminal shows, and their decimals; the file has every metric.
SHOWN = {"top1": 2, "train_top1": 2, "nll": 4, "ece": 4, "aurc": 5, "d_within_val": 4, "r2_val": 4, "transfer": 2}


def main() -> None:
    parser = options.parser("Every metric of trained models on their own training and validation images.")
    options.add_models(parser, "checkpoint", "input")
    options.add_output(parser, "JSON file to write")
    help_ = f"also measure linear transfer to --transfer-labels, from at most {options.TRANSFER_IMAGES:,} training images"
    parser.add_argument("--transfer", action="store_true", help=help_)
    help_ = "classes: the data set's own, even if training used superclasses; prefix: file names up to the first _"
    parser.add_argument("--transfer-labels", choices=("classes", "prefix"), default="classes", help=help_)
    options.add_ignore_index(parser)
    options.add_images(parser)
    args = options.parse(parser)
    kind, found = "checkpoint" if args.checkpoint else "input", {}
    if args.input:
        options.refuse(args, "needs images, so --checkpoint instead of --input", "transfer", *options.OF_CHECKPOINTS)
    else:
        options.refuse(args, "goes with --input", "ignore_index")
    if not args.transfer:
        options.refuse(args, "goes with --transfer", "transfer_labels")
    if args.output.suffix != ".json":
        raise InputError(f"--output {args.output}: the name of a JSON file ends with .json")
    outputs.check_file(args.output, args.overwrite)
    for name, path in options.models_of(args).items():
        metrics = of_checkpoint(path, name, args) if args.checkpoint else of_logits(path, name, args.ignore_index)
        found[name] = {kind: str(path), "metrics": metrics}
        outputs.write_text(args.output, json.dumps({"models": found}, indent=1, allow_nan=False) + "\n")
    head = [key for key in SHOWN if any(row["metrics"].get(key) is not None for row in found.values())]
    rows = [[name, *(number(row["metrics"].get(key), SHOWN[key]) for key in head)] for name, row in found.items()]
    print(table(["model", *head], rows))
    errors.say(f"measured {counted(len(found), 'model')}: {args.output}")


def of_logits(path: Path, name: str, ignore_index: int = 255) -> dict[str, float | None]:
    """The metrics that can be computed from a logits file of images (N, K) or of pixels (N, K, H, W)."""
    from common import logits_file

    from metrics.outputs import Outputs
    from metrics.resampling import check_split

    test = Outputs(logits_file.load(path, ignore_index), name)
    check_split(test.units, options.FRACTION, str(path))
    return all_metrics(test, None)


def of_checkpoint(path: Path, name: str, args: argparse.Namespace) -> dict[str, float | None]:
    """The metrics of a checkpoint on the images that it was trained on and on the validation images."""
    import torch

    from checkpoints import inference
    from checkpoints.read import build_model
    from images.find import find_images, find_training_images
    from images.image_set import check_different
    from metrics.linear_transfer import drawn, transfer
    from metrics.outputs import Outputs
    from metrics.resampling import check_split

    checkpoint = inference.load(path, args)
    train_images, own_labels = find_training_images(checkpoint, args.data_path, args.data)
    images = {"train": train_images, "val": find_images(checkpoint, args.data_path, "val", args.data)}
    check_different(*images.values())
    check_split(len(images["val"]), options.FRACTION, str(images["val"].where))
    inference.say_notes(*images.values())
    asked = {split: asked_classes(part, args.transfer_labels) for split, part in images.items()} if args.transfer else {}
    rows = drawn(asked["train"]) if args.transfer else torch.arange(0)
    model, loading = build_model(checkpoint), options.loading(args)
    outputs_of_train = inference.run(model, train_images, checkpoint.facts, f"train images of {name}", **loading)
    labels = torch.from_numpy(train_images.labels)
    train, features = of_training_images(outputs_of_train, labels, own_labels, checkpoint.facts["num_classes"], rows)
    wanted = ("logits", "labels", "features")
    test = Outputs(inference.outputs(model, images["val"], checkpoint.facts, f"val images of {name}", wanted, **loading), name)
    metrics = all_metrics(test, train)
    if args.transfer:
        classes = [asked["train"][row] for row in rows.tolist()]
        metrics["transfer"] = transfer(features, classes, test.features, asked["val"], options.STRENGTHS)["test_top1"]
    return metrics


def of_training_images(
    batches: Iterator["Batch"], labels: "Tensor", own_labels: "Tensor", classes: int, rows: "Tensor"
) -> tuple["Training", "Tensor"]:
    """What the metrics need of the training images; and the features (n, D) of the images in `rows` (n,), in that order."""
    import torch

    from metrics.outputs import Training
    from metrics.variation import ClassSums

    sums, predicted, kept = ClassSums(classes), [], []
    ascending, place = rows.sort()
    for batch in batches:
        sums.add(batch.features, batch.labels)
        predicted.append(batch.logits.argmax(1))
        kept.append(batch.features[ascending[(ascending >= batch.rows.start) & (ascending < batch.rows.stop)] - batch.rows.start])
    training = Training(torch.cat(predicted), labels, own_labels, sums.variation())
    return training, torch.cat(kept)[place.argsort()]


def all_metrics(test: "Outputs", train: "Training | None") -> dict[str, float | None]:
    """All that measure(test, train) of each module of metrics/ returns, with None for numbers that are not finite."""
    found = {"transfer": None}
    for path in sorted((Path(__file__).parent / "metrics").glob("*.py")):
        module = import_module(f"metrics.{path.stem}")
        more = module.measure(test, train) if hasattr(module, "measure") else {}
        if found.keys() & more.keys():
            raise ValueError(f"{path.name}: {', '.join(found.keys() & more.keys())}: another file of metrics/ has that name")
        found |= more
    return {key: value if value is not None and math.isfinite(value) else None for key, value in found.items()}


def asked_classes(images: "Images", kind: str) -> list[str]:
    """The class of each image that linear transfer predicts: see --transfer-labels."""
    if kind == "classes":
        return images.own_classes
    names = [Path(images.name(index)).name for index in range(len(images))]
    without = next((name for name in names if "_" not in name), None)
    if without:
        raise InputError(f"{images.where}: {without} has no prefix before a _, which --transfer-labels prefix asks for")
    return [name.partition("_")[0] for name in names]


if __name__ == "__main__":
    errors.run(main)
