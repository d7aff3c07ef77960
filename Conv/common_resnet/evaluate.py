"""Evaluate a checkpoint: accuracy, calibration, and robustness to corruptions.

python evaluate.py --checkpoint output/digits-resnet20-maxsup/checkpoint.pth
python evaluate.py --checkpoint resnet20.th --model resnet20 --data cifar10 --data-path P   # other trainers' files
python evaluate.py --checkpoint C --corruptions CIFAR-10-C/
"""

import argparse
import json
import math
from pathlib import Path

import errors
from errors import InputError, is_first, say

from evaluate_options import check_options, get_parser, within

if __name__ == "__main__":  # before the slow imports: --help and mistakes are answered immediately
    ARGS = get_parser().parse_args()

import torch

import corruptions
import distributed
import foreign
import states
from catalogue import IMAGENET, NAMES, SMALL, SOURCES, need_path
from data import Images, Inputs, open_split
from data.folders import common_size
from data.longtail import by_shots
from data.small_images import SmallImages
from data.superclasses import coarse_labels
from engine import evaluate
from models import create_model, model_facts, outputs
from options import RANGES, choose_device

MODEL_FACTS = ("model", "library", "width", "stem_stride", "small_stem")
FACTS = ("model", "library", "num_classes", "input_size", "crop_ratio", "mean", "std", "data", "superclasses")


def main(args: argparse.Namespace) -> None:
    if args.checkpoint is None:
        raise InputError("--checkpoint is missing: the file to evaluate")
    check_options(args)
    errors.batch = f"--batch-size {args.batch_size}"
    device = choose_device(args.device)
    distributed.start(device)
    found = foreign.read(args.checkpoint, args.ema)
    for note in found.notes:
        say(f"note: {args.checkpoint}: {note}")
    state, weights, said = found.state, found.weights, found.facts if found.ours else {}
    if isinstance(state.get("args"), dict) and "superclasses" in state["args"] and isinstance(state.get("classes"), list):
        facts, classes = read_own(state, args.checkpoint)
        refuse(args, facts)
    elif args.data is None or not (args.model or said.get("model") in NAMES):
        named = f"is of {said['model']}" if "model" in said else "does not say what it is"
        raise InputError(f"{args.checkpoint}: {named}; give --model and --data, and see --mean and --std")
    else:
        side = common_size(args.data_path, args.split) if args.data == "folder" and args.data_path else None
        size = args.input_size or said.get("input_size") or side or SOURCES[args.data].size
        in_memory = size == (SOURCES[args.data].size if args.data in SMALL else side)
        crop_ratio = 1.0 if in_memory else args.crop_ratio or said.get("crop_ratio", 0.875)
        description = model_facts(args.model or said["model"], size, args.width or 16, args.stem_stride or 1)
        num_classes = outputs(weights, args.checkpoint)
        mean, std = args.mean or said.get("mean", IMAGENET[0]), args.std or said.get("std", IMAGENET[1])
        if said.get("interpolation", "bilinear") != "bilinear":
            say(f"note: {args.checkpoint} says {said['interpolation']} interpolation; images are resized bilinearly here")
        say(f"inputs normalised by mean {mean} and std {std}; --mean and --std change that")
        facts = {"num_classes": num_classes, "input_size": size, "crop_ratio": crop_ratio, "mean": mean, "std": std}
        facts, classes = description | facts | {"data": args.data, "superclasses": None, "in_memory": in_memory}, found.classes
    model = build(facts, weights, args.checkpoint).to(device, memory_format=torch.channels_last)

    trained_on = facts["data"] or "folder"
    data, path = args.data or trained_on, args.data_path
    if path is None and data == trained_on and facts.get("data_path"):
        path = Path(facts["data_path"])
        if data in SMALL and not path.exists():  # trained on another machine
            path = None
    small = facts.get("in_memory", trained_on in SMALL) and (data in SMALL or data == "folder")
    if args.corruptions is not None and (not small or (not args.corruptions and facts["input_size"] < 32)):
        raise InputError(f"--corruptions: {data} has {facts['input_size']} px; they are for small images, and made from 32x32 on")
    need_path(data, path)
    size, crop_ratio, mean, std = (facts[name] for name in ("input_size", "crop_ratio", "mean", "std"))
    images = open_split(Inputs(data, path, size, crop_ratio, mean, std, device, args.num_workers, small), args.split)
    match_classes(images, facts, classes, path or data, args.checkpoint)

    metrics, right, counts = evaluate(model, images, facts["num_classes"], args.batch_size)
    if not math.isfinite(metrics["nll"]):
        raise InputError(f"{args.checkpoint}: the NLL is {metrics['nll']}: damaged weights, or a wrong --mean or --std")
    if facts.get("imbalance_ratio", 1) != 1 and len(facts.get("training_images", [])) == facts["num_classes"]:
        metrics |= by_shots(right, counts, torch.tensor(facts["training_images"]))
    description = {key: facts[key] for key in MODEL_FACTS if key in facts}
    result = {"checkpoint": str(args.checkpoint), **description, "data": data, "split": args.split, "clean": metrics}
    say(f"{facts['model']} on {metrics['images']:,} images of {data}: {line(metrics)}")
    if args.corruptions is not None:
        result |= corrupted(model, images, facts, args.corruptions, args.batch_size)
    if args.output and is_first():
        text = json.dumps(result, indent=1, allow_nan=False) + "\n"
        states.write_whole(args.output, lambda file: file.write(text.encode()))
    distributed.stop()


def read_own(state: dict, path: Path) -> tuple[dict, list[str]]:
    """The facts of a checkpoint of train.py, and its class names in label order."""
    was = states.check(state, path)["args"]
    missing = [key for key in FACTS if key not in was]
    if missing or not (was["data"] is None or (isinstance(was["data"], str) and was["data"] in SOURCES)):
        raise InputError(f"{path}: not a checkpoint of this trainer, it lacks {', '.join(missing) or 'a known data set'}")
    check_facts(was, path)
    return was, state["classes"]


def refuse(args: argparse.Namespace, facts: dict) -> None:
    """Raise InputError for an option that contradicts the facts in a checkpoint of train.py."""
    for name in ("model", "width", "stem_stride", "input_size", "crop_ratio", "mean", "std"):
        value = getattr(args, name)
        if value not in (None, facts.get(name)):
            said = " ".join(map(str, value)) if isinstance(value, list) else value
            raise InputError(f"--{name.replace('_', '-')} {said}: {args.checkpoint} states it; omit the option")


def build(facts: dict, weights: dict, path: Path) -> torch.nn.Module:
    """The model that the facts describe, with these weights. Raises InputError if the two do not fit."""
    try:
        model = create_model(facts, facts["num_classes"])
    except (KeyError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise InputError(f"{path}: describes no model that can be built ({str(error).splitlines()[0][:120]})")
    states.load_weights(model, weights, path)
    return model


def match_classes(images: Images, facts: dict, classes: list[str] | None, source: object, path: Path) -> None:
    """Relabel the images by the checkpoint's classes, matched by name where the names are known (None: unknown)."""
    if grouping := facts["superclasses"]:
        try:
            images.relabel(coarse_labels(grouping, images.classes), list(grouping))
        except KeyError as error:
            raise InputError(f"{source}: its class {error.args[0]} is in no superclass of {path} ({', '.join(grouping)})")
    classes = foreign.class_names(classes, facts["num_classes"], images.classes)
    if classes is not None and set(images.classes) - set(classes):
        unknown = ", ".join(sorted(set(images.classes) - set(classes))[:3])
        raise InputError(f"{source}: has classes that {path} was not trained on: {unknown}")
    if classes is not None and images.classes != classes:
        images.relabel([classes.index(name) for name in images.classes], classes)
    if len(images.classes) != facts["num_classes"]:  # for unknown class names, only their number can be compared
        raise InputError(f"{source}: {len(images.classes)} classes, the model has {facts['num_classes']}")


def check_facts(was: dict, path: Path) -> None:
    """Raise InputError for the first invalid fact of a checkpoint, which may be any file."""
    ranges = {
        name: RANGES[name] for name in ("input_size", "crop_ratio", "mean", "std", "width", "stem_stride", "imbalance_ratio")
    }
    ranges["num_classes"] = (1, 10**6)
    for name, (low, high) in ranges.items():
        value = was.get(name, low)
        if not within(value, low, high) or isinstance(value, list) != (name in ("mean", "std")):
            raise InputError(f"{path}: its {name} is {str(value)[:80]!r}")
    for name in ("num_classes", "input_size", "width", "stem_stride"):
        if not isinstance(was.get(name, 1), int):
            raise InputError(f"{path}: its {name} is {was[name]!r}, not a whole number")
    if was["library"] not in ("cifar", "torchvision") or not isinstance(was["model"], str):
        raise InputError(f"{path}: its model is {was['model']!r} of {was['library']!r}; viz/logits.py knows more models")
    if not isinstance(was.get("data_path"), (str, type(None))):
        raise InputError(f"{path}: its data_path is {was['data_path']!r}")
    grouping, counts = was["superclasses"], was.get("training_images", [])
    lists = grouping.values() if isinstance(grouping, dict) else [] if grouping is None else [None]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise InputError(f"{path}: its superclasses are not class names by name")
    if not isinstance(counts, list) or not all(isinstance(count, int) for count in counts):
        raise InputError(f"{path}: its training_images are not numbers")


def corrupted(model: torch.nn.Module, clean: SmallImages, facts: dict, source: str, batch_size: int) -> dict:
    """Metrics for each corruption and severity, their mean, and the source of the images; printed as they are computed.

    source: the folder of the published arrays; if empty, the images are generated from the clean ones.
    """
    folder, classes = Path(source), facts["num_classes"]
    if source:
        batches, source = corruptions.published(folder, facts["input_size"]), str(folder)
        order = torch.tensor([clean.classes.index(name) for name in sorted(clean.classes)])  # they index the sorted names
    else:
        order = torch.arange(classes)
        batches = corruptions.generated(clean.images.cpu(), clean.labels.cpu())
        source = "imagecorruptions-imaug, at ImageNet-C's strengths"
    found: dict[str, list[dict]] = {}
    for name, severity, images, labels in batches:
        if labels.max() + 1 != classes or labels.min() < 0:
            raise InputError(f"{folder}: labels from {labels.min()} to {labels.max()}, the model has {classes} classes")
        images = SmallImages(images, order[labels], clean.classes, facts["mean"], facts["std"], clean.device)
        found.setdefault(name, []).append(evaluate(model, images, classes, batch_size)[0])
        if severity == corruptions.SEVERITIES[-1]:
            say(f"{name:18} {line(mean(found[name]))}")
    overall = mean([metrics for severities in found.values() for metrics in severities])
    say(f"{'mean':18} {line(overall)}   ({source})")
    return {"corruptions": found, "corrupted": overall, "corruptions_from": source}


def mean(metrics: list[dict]) -> dict:
    return {key: sum(one[key] for one in metrics) / len(metrics) for key in metrics[0]}


def line(metrics: dict) -> str:
    shots = "  ".join(f"{name} {metrics[name]:.2f} %" for name in ("many", "medium", "low") if metrics.get(name) is not None)
    return (
        f"top-1 {metrics['top1']:.2f} %  top-5 {metrics['top5']:.2f} %  NLL {metrics['nll']:.4f}  "
        f"ECE {metrics['ece']:.4f}  {shots}".rstrip()
    )


if __name__ == "__main__":
    main(ARGS)
