"""Does a model get the same top-1 through FFCV's loader as through Pillow?

    python benchmarks/ffcv_agreement.py                                          # trains two small models first, minutes
    python benchmarks/ffcv_agreement.py --data-path FOLDER --checkpoint C --title T   # adds: class folders, and what viz/ reads

Images are written as raw pixels at full size, so that both loaders see the same ones; the digits are first enlarged to 60 to
120 px. "FFCV" is FFCV's own loader and decoder, which crop the centre and resize; the others are viz/'s ways with Pillow. The
script writes results/tables/ffcv_agreement.json and renders the page that shows it.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

import table

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / "viz"))
from checkpoints.models import logits_and_features
from checkpoints.read import build_model, load_checkpoint
from images.transforms import normalise
from logits import extract

FFCV = TOP / "Conv/ffcv"
WORK = TOP / "output/ffcv-agreement"
WAYS = ("area", "bilinear", "bicubic")
COLUMNS = [("model", ""), ("images", ",d"), ("crop ratio", "g"), ("FFCV, top-1 %", ".2f")]
COLUMNS += [(f"Pillow `{way}`", ".2f") for way in WAYS] + [("same prediction, FFCV and `area`, %", ".2f")]
# Title: options of train_imagenet.py. The second sees digits of 64 px, where resizing matters more.
MODELS = {
    "`digits.yaml`, 8 px": [],
    "ResNet-18's usual first layer, 64 px": [
        "--model.small_stem=0",
        *("--resolution.min_res=64", "--resolution.max_res=64", "--validation.resolution=64"),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-path", type=Path, metavar="FOLDER", help="image folder with <class>/<image>; if omitted: digits")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint of any form that viz/ reads; with --data-path")
    parser.add_argument("--title", help="name of the model in the table; with --data-path")
    parser.add_argument("--model", help="architecture, if the checkpoint does not state it")
    parser.add_argument("--mean", type=float, nargs=3, help="mean of the inputs, in [0, 1], if the checkpoint does not state it")
    parser.add_argument(
        "--std", type=float, nargs=3, help="standard deviation of the inputs, if the checkpoint does not state it"
    )
    args = parser.parse_args()
    said = {"model": args.model, "mean": args.mean, "std": args.std}
    if args.data_path and not (args.checkpoint and args.title):
        parser.error("--data-path needs --checkpoint and --title")
    if not args.data_path and any([args.checkpoint, args.title, *said.values()]):
        parser.error("--checkpoint, --title, --model, --mean and --std go with --data-path")
    WORK.mkdir(parents=True, exist_ok=True)
    path = TOP / "results/tables" / "ffcv_agreement.json"
    where = f"the same files by both loaders, written as raw pixels at full size; {table.environment()}"
    old = json.loads(path.read_text()) if path.exists() else {"rows": [], "environment": where}
    titles = {args.title} if args.data_path else MODELS.keys()
    kept = [row for row in old["rows"] if row[0] not in titles]
    if kept and old["environment"] != where:
        sys.exit(
            f"error: {path} has rows of another machine or version, such as {kept[0][0]}: move it away, or measure all again"
        )
    rows = rows_of(args.title, args.checkpoint, args.data_path, **said) if args.data_path else digits()
    rows += kept
    rows.sort(key=lambda row: row[1], reverse=True)
    table.report(where, COLUMNS, rows, path)
    subprocess.run([sys.executable, TOP / "results/reproduce.py", "--render"], check=True)


def digits() -> list[list]:
    """Train both models and compare. Most of the images were trained on: this measures agreement, not accuracy."""
    enlarge(WORK / "digits")
    train, val = (write(WORK / "digits" / split) for split in ("train", "val"))
    rows = []
    for number, (title, words) in enumerate(MODELS.items()):
        folder = WORK / f"model-{number}"
        command = ["train_imagenet.py", "--config", "configs/digits.yaml", f"--data.train_dataset={train}"]
        command += [f"--data.val_dataset={val}", f"--logging.folder={folder}", "--resume=auto", "--training.device=cpu", *words]
        subprocess.run([sys.executable, *command], cwd=FFCV, check=True)
        rows += rows_of(title, folder / "checkpoint.pth", WORK / "digits/val")
    return rows


def enlarge(folder: Path) -> None:
    """The 1,797 digits with sides of 60 to 120 px; the first 1,400 also for training."""
    sides, digits = random.Random(0), load_digits()
    for index, (image, digit) in enumerate(
        zip(np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target, strict=True)
    ):
        side = sides.randint(60, 120)
        large = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        for split in ("train", "val") if index < 1400 else ("val",):
            of_class = folder / split / str(digit)
            of_class.mkdir(parents=True, exist_ok=True)
            large.save(of_class / f"{index:04d}.png")


def write(folder: Path) -> Path:
    file = folder.with_suffix(".ffcv")
    words = ["--data-path", folder, "--output", file, "--max-resolution", "0", "--compress-probability", "0", "--overwrite"]
    subprocess.run([sys.executable, FFCV / "write_imagenet.py", *words], check=True)
    return file


def rows_of(title: str, checkpoint: Path, data: Path, **overrides) -> list[list]:
    """A row for crop ratio 1, and one for 0.875."""
    file = data.with_suffix(".ffcv")
    file = file if file.exists() else write(data)
    rows = []
    for ratio in tqdm((1, 0.875), desc=title, disable=None):
        pillow = [extract(checkpoint, data, crop_ratio=ratio, interpolation=way, **overrides) for way in WAYS]
        predictions = [through_ffcv(checkpoint, file, ratio, **overrides), *(content["logits"].argmax(1) for content in pillow)]
        labels = pillow[0]["labels"]  # the file has the folder's order
        top1 = [percent(found == labels) for found in predictions]
        rows.append([title, len(labels), ratio, *top1, percent(predictions[0] == predictions[1])])
    return rows


@torch.inference_mode()
def through_ffcv(path: Path, file: Path, crop_ratio: float, **overrides) -> Tensor:
    """Predictions (N,) int64 of a checkpoint on the images that FFCV's loader reads from a .ffcv file."""
    from ffcv.fields.decoders import CenterCropRGBImageDecoder
    from ffcv.loader import Loader
    from ffcv.transforms import ToTensor

    checkpoint = load_checkpoint(path, **overrides)
    model, side = build_model(checkpoint), checkpoint.facts["input_size"]
    pipelines = {"image": [CenterCropRGBImageDecoder((side, side), crop_ratio), ToTensor()]}
    loader = Loader(str(file), 128, 1, drop_last=False, pipelines=pipelines)
    batches = (normalise(images.permute(0, 3, 1, 2), checkpoint.facts) for images, _ in loader)
    return torch.cat([logits_and_features(model, images)[0].argmax(1) for images in batches])


def percent(right: Tensor) -> float:
    return 100 * right.to(torch.float64).mean().item()


if __name__ == "__main__":
    main()
