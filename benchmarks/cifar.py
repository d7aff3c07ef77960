"""How long does an epoch of CIFAR-10 take with the images in memory, compared with torchvision's data set and transforms?

    python benchmarks/cifar.py                                  # synthetic images; the same work
    python benchmarks/cifar.py --data-path FOLDER               # CIFAR-10 as Conv/common_resnet reads it

Model, loss, batch size and number of steps are the same; only the way in which images are loaded differs. The two take turns,
epoch by epoch, so that both meet the same disturbances; the table gives medians and ratios. The rival is what most CIFAR trainers
do: PIL images, RandomCrop with padding, RandomHorizontalFlip, ToTensor, Normalize, in a DataLoader with worker processes.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Conv/common_resnet"))
from cifar_resnet import CifarResNet
from data import SOURCES, pixels
from data.small_images import SmallImages
from maxsup_loss import MaxSupLoss

CIFAR = SOURCES["cifar10"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Time CIFAR-10 epochs with the images in memory, compared with torchvision's pipeline.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data-path", type=Path, help="folder or archives of CIFAR-10; if omitted: random images")
    parser.add_argument("--steps", type=int, default=60, help="steps per round; an epoch has 390")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per loader, interleaved")
    parser.add_argument("--batch-size", type=int, default=128, help="images per step")
    parser.add_argument("--workers", type=int, default=2, help="data-loading workers of torchvision's pipeline")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    table.add_option(parser)
    args = parser.parse_args()
    images = args.steps * args.batch_size
    if args.data_path:
        pixel, labels, classes = pixels.read("cifar10", args.data_path, "train", 32)
        if len(labels) < images:
            parser.error(f"--steps {args.steps} of --batch-size {args.batch_size} need {images:,} images, not {len(labels):,}")
        pixel, labels = pixel[:images], labels[:images]
    else:
        random = torch.Generator().manual_seed(0)
        pixel = torch.randint(256, (images, 32, 32, 3), dtype=torch.uint8, generator=random)
        labels, classes = torch.randint(10, (images,), generator=random), [str(label) for label in range(10)]

    ours = SmallImages(pixel, labels, classes, CIFAR.mean, CIFAR.std, args.device).augment(CIFAR.padding, True, 0)
    theirs = DataLoader(
        TorchvisionStyle(pixel.numpy(), labels.tolist()),
        args.batch_size,
        shuffle=True,
        num_workers=args.workers,
        drop_last=True,
        persistent_workers=args.workers > 0,
        pin_memory=args.device == "cuda",
    )
    rivals = {
        "in memory (ours)": lambda epoch: ours.training_batches(args.batch_size, 0, epoch),
        f"torchvision, {args.workers} workers": lambda epoch: iter(theirs),
    }
    models = {
        "no model": None,
        "resnet8, stem stride 2": (8, 16, 2),
        "resnet8, width 32, stem stride 2": (8, 32, 2),
        "resnet20": (20, 16, 1),
    }
    times = {(name, model): [] for model in models for name in rivals}
    for epoch in range(args.rounds + 1):  # the first warms up
        for model_name, shape in models.items():
            for name, batches in rivals.items():
                seconds = one_epoch(batches(epoch), shape, args.device)
                if epoch:
                    times[name, model_name].append(seconds)

    where = f"{args.steps} steps of {args.batch_size} images, medians of {args.rounds} rounds; {table.environment(args.device)}"
    columns = [("model", ""), ("images", ""), ("s", ".2f"), ("images/s", ",.0f"), ("speed / torchvision", ".2f")]
    rows = []
    for model_name in models:
        medians = {name: statistics.median(times[name, model_name]) for name in rivals}
        for name, median in medians.items():
            rows.append([model_name, name, median, images / median, list(medians.values())[1] / median])
    where += f", torchvision {torchvision.__version__}"
    table.report(where, columns, rows, args.json)


class TorchvisionStyle(Dataset):
    """What torchvision.datasets.CIFAR10 does with an array of images, and the customary transforms."""

    def __init__(self, images: np.ndarray, labels: list[int]):
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=CIFAR.padding),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(CIFAR.mean, CIFAR.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def one_epoch(batches, shape: tuple[int, int, int] | None, device: str) -> float:
    """Seconds for all batches, each through a training step of the model if there is one."""
    torch.manual_seed(0)
    if shape:
        depth, width, stride = shape
        model = CifarResNet(depth, 10, width, stride).to(device, memory_format=torch.channels_last)
        optimizer, criterion = torch.optim.SGD(model.parameters(), 0.1, 0.9), MaxSupLoss()
    start = time.perf_counter()
    for images, labels in batches:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        if shape:
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
