"""How fast do images come from a folder, from our ZIP archives, and from what others use? Images/s and memory, in one run.

    python benchmarks/loading.py --data-path data/ImageNet           # an image folder: train/<class>/<image>

All read the same images, take a random crop, resize it to 224 px and give uint8 batches through loading processes. "Our archives"
give torchvision's batches, bit for bit. FFCV runs if it is installed; it re-encodes the images and has its own crop, resizing and
threads. Rounds are interleaved; the table shows medians. Memory is the proportional set size summed over the main process and all
processes that it started: shared pages count once.
"""

import argparse
import contextlib
import importlib.util
import io
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder
from tqdm import tqdm

import table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Deit"))
from data.zip_images import ZipImages

PREPARE = Path(__file__).resolve().parents[1] / "data/imagenet/prepare.py"

SIDE = 224
PILLOW = transforms.Compose([transforms.RandomResizedCrop(SIDE), transforms.RandomHorizontalFlip(), transforms.PILToTensor()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data-path", type=Path, required=True, metavar="FOLDER", help="image folder with train/<class>/<image>")
    parser.add_argument("--workers", type=int, default=2, help="data-loading workers")
    parser.add_argument("--batch-size", type=int, default=50, help="images per batch")
    parser.add_argument("--images", type=int, default=1000, help="images per round, drawn at random")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, each with every loader once")
    table.add_option(parser)
    args = parser.parse_args()
    if not (args.data_path / "train").is_dir():
        sys.exit(f"error: --data-path {args.data_path}: no folder train/ in it; an image folder holds train/<class>/<image>")
    if args.workers < 1:
        sys.exit("error: --workers must be 1 or more")
    with tempfile.TemporaryDirectory() as scratch:
        measure(args, Path(scratch))


def measure(args, scratch: Path) -> None:
    data = subset(args.data_path / "train", args.images, scratch / "data")
    for name, words in (("plain", []), ("small", ["--shorter-side", "256"])):
        command = [sys.executable, PREPARE, "--root", data, "--output", scratch / name, *words]
        if subprocess.run([str(word) for word in command], stdout=subprocess.DEVNULL).returncode:
            sys.exit(1)  # prepare.py has said why
    plain, small = scratch / "plain", scratch / "small"
    folder = ImageFolder(data / "train", PILLOW)
    rivals = {
        "torchvision ImageFolder": folder,
        "our archives": ZipImages(plain, "train", PILLOW),
        "our archives, re-encoded at 256": ZipImages(small, "train", PILLOW),
        "a list of all bytes in each process": BytesInMemory(plain, PILLOW),
    }
    same_pixels(folder, plain)
    loaders = {name: loader(dataset, args, args.workers) for name, dataset in rivals.items()}
    if importlib.util.find_spec("ffcv"):
        loaders |= ffcv_loaders(folder, scratch, args)
    times = {name: [] for name in loaders}
    for round_ in tqdm(range(args.rounds + 1), desc="rounds", unit=" rounds", leave=False, disable=None):
        for name, batches in loaders.items():
            start, count = time.perf_counter(), 0
            for batch in batches:
                count += len(batch[0])
            if round_:  # the first round starts the processes and fills the caches
                times[name].append((time.perf_counter() - start) / count)
    del loaders, batches  # ends their processes: memory is measured one rival at a time
    memory = {}
    for name, dataset in tqdm(rivals.items(), desc="memory", leave=False, disable=None):
        memory[name] = [memory_of(loader(dataset, args, workers)) for workers in (args.workers, 2 * args.workers)]
    report(folder, times, memory, args)


def subset(folder: Path, count: int, output: Path) -> Path:
    """Links to at most `count` images of the folder, so that 140 GB of ImageNet need not be copied; val/ is a link to train/."""
    images = ImageFolder(folder).samples
    for path, _ in random.Random(0).sample(images, min(count, len(images))):
        link = output / "train" / os.path.relpath(path, folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.abspath(path))
    (output / "val").symlink_to("train")
    return output


def report(folder: ImageFolder, times: dict, memory: dict, args) -> None:
    kilobytes = sum(os.path.getsize(path) for path, _ in folder.samples) / len(folder) / 1000
    where = (
        f"{len(folder):,} images of {kilobytes:.0f} KB, {args.images:,} a round, medians of {args.rounds} interleaved rounds, "
        f"{args.workers} loading processes, uint8 batches at {SIDE} px; {table.environment()}, "
        f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}"
    )
    columns = [("loader", ""), ("images/s", ",.0f"), ("/ ImageFolder", ".2f"), (f"MB, {args.workers} processes", ".0f")]
    columns += [("of which private", ".0f"), (f"MB, {2 * args.workers} processes", ".0f")]
    base, rows = statistics.median(times["torchvision ImageFolder"]), []
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        cells = [None] * 3
        if name in memory:
            (total, private), (doubled, _) = memory[name]
            cells = [total, private, doubled]
        rows.append([name, 1 / middle, base / middle, *cells])
    table.report(where, columns, rows, args.json)


class BytesInMemory(Dataset):
    """Every file's bytes in a list, read by each process for itself, as with the original repository's --cache."""

    def __init__(self, root: Path, transform):
        self.root, self.transform, self.content = root, transform, None
        self.labels = ZipImages(root, "train").labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        if self.content is None:
            images = ZipImages(self.root, "train")
            self.content = [bytes(images.read(i)) for i in range(len(images))]
        return self.transform(Image.open(io.BytesIO(self.content[index])).convert("RGB")), self.labels[index]


def same_pixels(folder: ImageFolder, plain: Path) -> None:
    """Exit unless our images, of which up to 200 are compared, decode to ImageFolder's pixels: the work must be the same."""
    ours = ZipImages(plain, "train")
    for index in random.Random(0).sample(range(len(folder)), min(200, len(folder))):
        image = np.asarray(folder.loader(folder.samples[index][0]))
        if not np.array_equal(image, ours[index][0]):
            sys.exit(f"error: {folder.samples[index][0]}: our pixels differ from torchvision's")


def loader(dataset: Dataset, args, workers: int) -> DataLoader:
    """Batches of args.images images in random order, from processes that persist between rounds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision"])
    sampler = RandomSampler(dataset, replacement=True, num_samples=args.images)
    options = {"multiprocessing_context": context, "persistent_workers": True}
    return DataLoader(dataset, args.batch_size, sampler=sampler, num_workers=workers, **options)


def memory_of(batches: DataLoader) -> tuple[float, float]:
    """MB of this process and all that it started, in the middle of a round: proportional set size, and its anonymous part."""
    found = None
    for number, _ in enumerate(batches):
        if number == len(batches) // 2:
            found = proportional_set_size()
    return found


def proportional_set_size() -> tuple[float, float]:
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    total = private = 0
    for process in parents:
        ancestor = process
        while ancestor in parents and ancestor != os.getpid():
            ancestor = parents[ancestor]
        if ancestor == os.getpid():
            with contextlib.suppress(OSError):
                lines = (Path("/proc") / str(process) / "smaps_rollup").read_text().splitlines()
                kilobytes = {line.split()[0]: int(line.split()[1]) for line in lines[1:]}
                total += kilobytes["Pss:"]
                private += kilobytes.get("Pss_Anon:", 0)
    return total * 1024 / 1e6, private * 1024 / 1e6


def ffcv_loaders(folder: ImageFolder, scratch: Path, args) -> dict:
    """FFCV's own crop, resizing and threads: on JPEGs of full size, and on images stored as by its ImageNet recipe."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, ToTensor
    from ffcv.writer import DatasetWriter

    images = Repeated(folder.samples, args.images)
    found = {}
    for name, options in {
        "FFCV, full size, JPEG at quality 90": {"write_mode": "jpg"},
        "FFCV, side at most 500, half as JPEG at 90": {
            "write_mode": "proportion",
            "max_resolution": 500,
            "compress_probability": 0.5,
        },
    }.items():
        path = scratch / f"{len(found)}.beton"
        fields = {"image": RGBImageField(jpeg_quality=90, **options), "label": IntField()}
        with contextlib.redirect_stderr(io.StringIO()):
            DatasetWriter(str(path), fields, num_workers=args.workers).from_indexed_dataset(images)
        pipelines = {
            "image": [RandomResizedCropRGBImageDecoder((SIDE, SIDE)), RandomHorizontalFlip(), ToTensor()],
            "label": [IntDecoder(), ToTensor()],
        }
        found[name] = Loader(
            str(path),
            args.batch_size,
            args.workers,
            order=OrderOption.RANDOM,
            os_cache=True,
            pipelines=pipelines,
            drop_last=False,
        )
    return found


class Repeated(Dataset):
    """(image, label) of `length` positions in a list of (path, label), which is repeated as often as needed."""

    def __init__(self, samples: list, length: int):
        self.samples, self.length = samples, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        path, label = self.samples[index % len(self.samples)]
        return Image.open(path).convert("RGB"), label


if __name__ == "__main__":
    main()
