"""Images and annotations: checked when read, augmented as a function of (seed, epoch, position), normalised on the device."""

import hashlib
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from errors import InputError

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import distributed
from image_mode import to_rgb
from layouts import IGNORE, LAYOUTS, class_names, find_pairs


def mix(*parts: int) -> int:
    """A 32-bit seed, hashed from several numbers. Trailing zeros do not change it."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class Images(Dataset):
    """A split of a data set. Images(args, split)[index, seed] -> (image (H, W, 3) uint8, labels (H, W) uint8).

    In training, the pair is augmented by `seed` and has the size --crop. In evaluation, the image has the size that --size or
    --shorter-side requests; the labels have --size or, if that is not given, their own size.
    Raises InputError naming a file that does not decode, or an annotation that does not consist of class indices.
    """

    def __init__(self, args, split: str):
        self.args, self.split = args, split
        self.pairs = find_pairs(args.data, Path(args.data_path), split)
        self.classes = class_names(args.data, Path(args.data_path))
        self.table = LAYOUTS[args.data].table()

    def __len__(self) -> int:
        return len(self.pairs)

    def digest(self) -> str:
        """The SHA-256 of the images' names, which tells a resumed run whether they are the same."""
        return hashlib.sha256("\n".join(image.name for image, _ in self.pairs).encode(errors="surrogateescape")).hexdigest()

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = item
        image, labels = self.read(index)
        if self.split == "train":
            image, labels = augment(image, labels, self.args, random.Random(seed))
        else:
            height, width = base_size(image, self.args)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            if self.args.size:
                labels = labels.resize((width, height), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(image)), torch.from_numpy(np.array(labels))

    def read(self, index: int) -> tuple[Image.Image, Image.Image]:
        """The image in RGB and its labels (mode "L": classes, or IGNORE), both in their original size."""
        path = self.pairs[index][0]
        try:
            image = to_rgb(_open(path))
        except ValueError as error:
            raise error if isinstance(error, InputError) else InputError(f"{path}: {error}")
        if max(image.size) > 100 * min(image.size):
            raise InputError(f"{path}: {image.width} x {image.height} pixels; no side may be more than 100 times the other")
        return image, self.read_labels(index, image.size)

    def read_labels(self, index: int, size: tuple[int, int] | None = None) -> Image.Image:
        """The labels of an image; their size must be `size` (width, height) if it is given. Raises InputError."""
        image_path, annotation_path = self.pairs[index]
        annotation = _open(annotation_path)
        if annotation.mode not in ("L", "P"):
            raise InputError(
                f"{annotation_path}: an image in mode {annotation.mode}; an annotation holds one class index per pixel, 8 bits"
            )
        if size is not None and annotation.size != size:
            sizes = [f"{width} x {height}" for width, height in (annotation.size, size)]
            raise InputError(f"{annotation_path}: {sizes[0]} pixels, but its image {image_path} has {sizes[1]}")
        values = np.asarray(annotation)
        labels = self.table[values]
        if labels.min() < 0:
            value = int(values[labels < 0].max())
            raise InputError(f"{annotation_path}: holds the value {value}, which is not a class of {self.args.data}")
        return Image.fromarray(labels.astype(np.uint8))

    def label_size(self, index: int) -> tuple[int, int]:
        """(height, width) of the labels in evaluation, from --size or the file's header."""
        if self.args.size:
            return tuple(self.args.size)
        try:
            with Image.open(self.pairs[index][1]) as annotation:
                return annotation.height, annotation.width
        except Exception as error:
            raise InputError(f"{self.pairs[index][1]}: does not decode as an image ({error}); replace the file")


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
        return image
    except Exception as error:  # a damaged image can fail in many ways
        raise InputError(f"{path}: does not decode as an image ({error}); replace the file")


def base_size(image: Image.Image, args) -> tuple[int, int]:
    """(height, width) before random scaling: --size, the image's size scaled to --shorter-side, or its own size."""
    if args.size:
        return tuple(args.size)
    if args.shorter_side:
        ratio = args.shorter_side / min(image.size)
        return round(image.height * ratio), round(image.width * ratio)
    return image.height, image.width


def augment(image: Image.Image, labels: Image.Image, args, rng: random.Random) -> tuple[Image.Image, Image.Image]:
    """Random scale, crop, flip and colour, drawn from `rng`. Both results have the size --crop.

    The crop is cut from the source and scaled in one step. If the scaled image is smaller than the crop, the rest is filled with
    the mean colour and IGNORE. If one class has more than --max-class-share of a crop, another is drawn, at most ten in all.
    """
    scale = rng.uniform(*args.scale)
    height, width = (max(1, round(side * scale)) for side in base_size(image, args))
    rows, columns = min(args.crop[0], height), min(args.crop[1], width)
    for _ in range(10):
        top, left = rng.randint(0, height - rows), rng.randint(0, width - columns)
        y, x = image.height / height, image.width / width  # source pixels per scaled pixel
        box = (left * x, top * y, min((left + columns) * x, image.width), min((top + rows) * y, image.height))
        part = labels.resize((columns, rows), Image.Resampling.NEAREST, box)
        counts = np.bincount(np.asarray(part).ravel(), minlength=256)[:IGNORE]
        if counts.max() <= args.max_class_share * counts.sum():
            break
    image = image.resize((columns, rows), Image.Resampling.BILINEAR, box)
    if rng.random() < 0.5 and args.flip:
        image, part = (one.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for one in (image, part))
    kinds = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    rng.shuffle(kinds)
    for kind in kinds:
        factor = rng.uniform(1 - args.jitter, 1 + args.jitter)
        image = kind(image).enhance(factor) if args.jitter else image
    if (rows, columns) != tuple(args.crop):
        canvas = Image.new("RGB", (args.crop[1], args.crop[0]), tuple(round(255 * value) for value in args.mean))
        canvas.paste(image)
        ignored = Image.new("L", canvas.size, IGNORE)
        ignored.paste(part)
        image, part = canvas, ignored
    return image, part


class SeededOrder:
    """Batches of (index, seed) of an epoch: this process's share of each global batch of a shuffle of all images.

    Both depend only on (seed, epoch); the content of a global batch does not depend on the number of processes.
    An incomplete last batch is omitted.
    """

    def __init__(self, images: int, batch: int, seed: int):
        self.images, self.batch, self.seed, self.epoch = images, batch, seed, 0

    def __len__(self) -> int:
        return self.images // self.batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.images)[: len(self) * self.batch].reshape(len(self), -1)
        seeds = rng.integers(2**32, size=order.shape)
        share = slice(distributed.rank(), None, distributed.world_size())
        for indices, draws in zip(order, seeds, strict=True):
            yield list(zip(indices[share].tolist(), draws[share].tolist(), strict=True))


class Batches:
    """Batches from loading processes: images (B, 3, H, W) float32, normalised, and labels (B, H, W) uint8."""

    def __init__(self, images: Images, args):
        self.images, self.args = images, args
        self.scale = 1 / (255 * torch.tensor(args.std, device=args.device)).view(3, 1, 1)
        self.shift = -torch.tensor(args.mean, device=args.device).view(3, 1, 1) * 255 * self.scale
        self.order = SeededOrder(len(images), args.batch_size, args.seed)
        if images.split == "train":
            self.loader = self._loader(batch_sampler=self.order)
        else:
            self.choose(range(distributed.rank(), len(images), distributed.world_size()))

    def __len__(self) -> int:
        return len(self.images)

    def choose(self, indices: Sequence[int]) -> None:
        """Evaluate only these images, instead of this process's share of all images."""
        self.indices = indices
        self.loader = self._loader(sampler=[(index, 0) for index in indices], batch_size=1)

    def training(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of each global batch of an epoch, augmented."""
        self.order.epoch = epoch
        return self._on_device()

    def evaluation(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(index, image, labels) of this process's images, one at a time; every image once over all processes."""
        for index, (image, labels) in zip(self.indices, self._on_device(), strict=True):
            yield index, image, labels

    def _loader(self, **options) -> DataLoader:
        if self.args.num_workers:
            # Not forked from this process: its communication threads may hold a lock, for which a copy would wait forever.
            workers = multiprocessing.get_context("forkserver")
            workers.set_forkserver_preload(["torch"])
            options |= {"multiprocessing_context": workers, "persistent_workers": True}
        options["worker_init_fn"] = distributed.start_worker
        return DataLoader(self.images, num_workers=self.args.num_workers, pin_memory=self.args.device == "cuda", **options)

    def _on_device(self) -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels in self.loader:
            pixels = pixels.to(self.args.device, non_blocking=True).permute(0, 3, 1, 2).float()
            yield torch.addcmul(self.shift, pixels, self.scale), labels.to(self.args.device, non_blocking=True)


def class_frequencies(images: Images) -> Tensor:
    """(K,) float32: the share of each class in the labelled pixels of a split; reads every annotation once."""
    counts = torch.zeros(len(images.classes), dtype=torch.float64)
    for index in range(distributed.rank(), len(images), distributed.world_size()):
        labels = np.asarray(images.read_labels(index))
        counts += torch.from_numpy(np.bincount(labels[labels != IGNORE], minlength=len(counts)))
    if images.args.device == "cuda":
        counts = counts.cuda()
    counts = distributed.sum_over_processes(counts).cpu()
    return (counts / counts.sum()).float()
