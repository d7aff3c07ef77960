"""Extract the logits of a checkpoint: one file that the other tools of viz/ read.

    python viz/logits.py --checkpoint output/digits/ls-seed0/checkpoint.pth --output logits_labels.pt

The file is a dict: logits float32 (N, K), labels int64 (N,), classes, paths, model, args, and features (N, D) with --features.
"""

import argparse
import os
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from tqdm import tqdm

import errors
from checkpoints import build_model, load_checkpoint, logits_and_features
from errors import InputError
from logits_file import save
from metrics import classification


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Extract logits and labels from a checkpoint of this project's trainers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint.pth as the trainers write it")
    parser.add_argument("--output", type=Path, required=True, help="file to write, .pt")
    parser.add_argument("--data-path", type=Path, help="image folder; none: the one that the checkpoint was trained on")
    parser.add_argument("--split", default="val", help="folder in --data-path")
    parser.add_argument("--features", action="store_true", help="also store the penultimate features")
    parser.add_argument("--model-ema", action="store_true", help="use the moving average of the weights")
    parser.add_argument("--batch-size", type=int, default=128, help="images a batch")
    parser.add_argument("--num-workers", type=int, default=min(8, os.cpu_count() or 1), help="loading processes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--overwrite", action="store_true", help="replace --output where it exists")
    args = parser.parse_args()
    if args.batch_size < 1 or args.num_workers < 0:
        raise InputError(f"--batch-size {args.batch_size} --num-workers {args.num_workers}: from 1, and from 0, on")
    if args.device not in ("cpu", "cuda") or (args.device == "cuda" and not torch.cuda.is_available()):
        raise InputError(f"--device {args.device}: cpu, or cuda on a machine with a GPU that PyTorch can use")
    if args.output.exists() and args.checkpoint.exists() and args.output.samefile(args.checkpoint):
        raise InputError(f"--output {args.output} is the checkpoint itself; choose another name")
    if args.output.is_dir():
        raise InputError(f"--output {args.output} is a folder; name a file, such as {args.output / 'logits_labels.pt'}")
    if args.output.exists() and not args.overwrite:
        raise InputError(f"{args.output} is there already; --overwrite replaces it")
    if not args.output.parent.is_dir():
        raise InputError(f"{args.output.parent}: no such folder to write to")

    content = extract(
        args.checkpoint,
        args.data_path,
        args.split,
        features=args.features,
        ema=args.model_ema,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        device=args.device,
    )
    save(content, args.output)
    result = classification(content["logits"], content["labels"])
    count, classes = content["logits"].shape
    print(
        f"{content['model']} on {count:,} images of {classes} classes: top-1 {result['top1']:.2f} %  "
        f"top-5 {result['top5']:.2f} %\nlogits and labels: {args.output}"
    )


@torch.inference_mode()
def extract(
    checkpoint: Path,
    data_path: Path | None = None,
    split: str = "val",
    features: bool = False,
    ema: bool = False,
    batch_size: int = 128,
    num_workers: int = 0,
    device: str = "cpu",
) -> dict:
    """Run a checkpoint over an image folder in file order; returns the content of a logits file (see above).

    Labels follow the checkpoint's class order, whatever the folder's. Raises InputError for input that cannot be used.
    """
    state = load_checkpoint(checkpoint)
    facts = state["args"]
    model = build_model(state, checkpoint, ema).to(device)
    dataset = open_folder(data_path or Path(facts["data_path"]), split, state["classes"], checkpoint)
    dataset.transform = transforms.Compose(
        [
            transforms.Resize(
                int(facts["input_size"] / facts["crop_ratio"]), transforms.InterpolationMode(facts["interpolation"])
            ),
            transforms.CenterCrop(facts["input_size"]),
            transforms.ToTensor(),
            transforms.Normalize(facts["mean"], facts["std"]),
        ]
    )
    loader = DataLoader(dataset, batch_size, num_workers=num_workers, pin_memory=device == "cuda")
    all_logits = torch.empty(len(dataset), facts["num_classes"])
    all_labels = torch.empty(len(dataset), dtype=torch.int64)
    all_features, start = None, 0
    for images, labels in tqdm(loader, desc=f"logits of {checkpoint}", unit="batch", disable=None, leave=False):
        rows = slice(start, start := start + len(labels))
        logits, penultimate = logits_and_features(model, images.to(device, non_blocking=True))
        all_logits[rows], all_labels[rows] = logits.cpu(), labels
        if features:
            if all_features is None:
                all_features = torch.empty(len(dataset), penultimate.shape[1])
            all_features[rows] = penultimate.cpu()
    content = {"logits": all_logits, "labels": all_labels, "classes": state["classes"], "model": facts["model"], "args": facts}
    content["paths"] = [str(Path(path).relative_to(dataset.root)) for path, _ in dataset.samples]
    return content | ({"features": all_features} if features else {})


def load_rgb(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: does not decode as an image ({error}); replace or remove the file")


def open_folder(root: Path, split: str, classes: list[str], checkpoint: Path) -> ImageFolder:
    """root/split as an image folder whose labels follow `classes`. Raises InputError if that cannot be."""
    folder = root / split
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; --data-path wants one that holds {split}/<class>/<image>")
    try:
        dataset = ImageFolder(folder, loader=load_rgb)
    except FileNotFoundError as error:
        raise InputError(f"{folder}: {str(error).splitlines()[0]}")
    if set(dataset.classes) != set(classes):
        raise InputError(
            f"{folder}: its {len(dataset.classes)} classes are not the {len(classes)} that {checkpoint} was trained on "
            f"(here: {', '.join(dataset.classes[:3])} ...; there: {', '.join(classes[:3])} ...)"
        )
    table = [classes.index(name) for name in dataset.classes]
    dataset.target_transform = table.__getitem__
    return dataset


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        errors.stop(error)
