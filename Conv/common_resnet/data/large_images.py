"""Large images: an image folder through loading processes, cropped at random, normalised on the training device."""

import multiprocessing
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

import distributed
from data.archives import is_image
from data.order import epoch_order, generator
from errors import InputError


class LargeImages:
    """Batches of a folder of images: (B, 3, size, size) float32, normalised, channels last in memory.

    Training: a random resized crop of 8 % of the area or more and, where flip is set, a random horizontal flip. Evaluation: the
    shorter side is scaled to size / crop_ratio, bilinear, and the centre is cropped.
    """

    def __init__(
        self,
        folder: "Folder",
        size: int,
        crop_ratio: float,
        mean: list[float],
        std: list[float],
        device: str,
        num_workers: int = 0,
    ):
        self.folder, self.size, self.crop_ratio, self.device, self.num_workers = folder, size, crop_ratio, device, num_workers
        self.labels, self.classes = torch.tensor(folder.targets), folder.classes
        self.scale = 1 / (255 * torch.tensor(std, device=device)).view(3, 1, 1)
        self.shift = -torch.tensor(mean, device=device).view(3, 1, 1) * 255 * self.scale
        self.flip, self.loader, self.rows = False, None, None

    def __len__(self) -> int:
        return len(self.folder)

    def keep(self, rows: Tensor) -> "LargeImages":
        """Keep only the images of these indices; returns itself. self.rows (n,) are theirs in the split, None for all."""
        self.folder.samples = [self.folder.samples[row] for row in rows.tolist()]
        self.labels = self.labels[rows]
        self.rows = rows if self.rows is None else self.rows[rows]
        return self

    def relabel(self, table: list[int], classes: list[str]) -> None:
        """Replace each label by table[label], which counts in `classes`."""
        self.set_labels(torch.tensor(table)[self.labels])
        self.classes = classes

    def set_labels(self, labels: Tensor) -> None:
        """Replace all labels, (N,) int64."""
        self.folder.samples = [(path, label) for (path, _), label in zip(self.folder.samples, labels.tolist(), strict=True)]
        self.labels = labels

    def training_batches(self, batch: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of each global batch of an epoch, augmented; see epoch_order."""
        if self.loader is None:
            flip = [transforms.RandomHorizontalFlip()] if self.flip else []
            transform = transforms.Compose([transforms.RandomResizedCrop(self.size), *flip])
            self.order = SeededOrder(len(self), batch, seed)
            self.loader = self._loader(Seeded(self.folder, transform), batch_sampler=self.order)
        self.order.epoch = epoch
        return self._on_device(self.loader)

    def evaluation_batches(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once over all processes, its centre."""
        resize = transforms.Resize(int(self.size / self.crop_ratio))
        images = Seeded(self.folder, transforms.Compose([resize, transforms.CenterCrop(self.size)]))
        mine = Subset(images, [(index, 0) for index in range(distributed.rank(), len(self), distributed.world_size())])
        return self._on_device(self._loader(mine, batch_size=batch))

    def _loader(self, dataset: Dataset, **options) -> DataLoader:
        if self.num_workers:
            # Not forked from this process: its communication threads may hold a lock that the copy would wait for for ever.
            workers = multiprocessing.get_context("forkserver")
            workers.set_forkserver_preload(["torch", "torchvision"])
            options |= {"multiprocessing_context": workers, "persistent_workers": "batch_sampler" in options}
        options["worker_init_fn"] = distributed.start_worker
        return DataLoader(dataset, num_workers=self.num_workers, pin_memory=self.device == "cuda", **options)

    def _on_device(self, loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels in loader:
            pixels = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float()
            yield torch.addcmul(self.shift, pixels, self.scale), labels.to(self.device, non_blocking=True)


class SeededOrder:
    """Batches of (index, seed): the seed of an image's augmentation is a function of (seed, epoch, position in the epoch)."""

    def __init__(self, images: int, batch: int, seed: int):
        self.images, self.batch, self.seed, self.epoch = images, batch, seed, 0

    def __len__(self) -> int:
        return self.images // self.batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        indices = epoch_order(self.images, self.batch, self.seed, self.epoch)
        draws = torch.randint(2**32, (len(self), self.batch), generator=generator(self.seed, self.epoch, 1))
        seeds = draws.view(len(self), distributed.world_size(), -1)[:, distributed.rank()]
        for batch, batch_seeds in zip(indices.tolist(), seeds.tolist(), strict=True):
            yield list(zip(batch, batch_seeds, strict=True))


class Seeded(Dataset):
    """Takes (index, seed): seeds what the transforms draw from, and gives the image as (H, W, 3) uint8 with its label."""

    def __init__(self, folder: "Folder", transform):
        self.folder, self.transform = folder, transform

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = item
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        image, label = self.folder[index]
        return torch.from_numpy(np.array(self.transform(image))), label


class Folder(ImageFolder):
    """torchvision's image folder without hidden files and folders. Folder(path)[i] -> (PIL image in RGB, label).

    Raises InputError where the folder, or a class in it, has no image.
    """

    def __init__(self, path: Path):
        if not path.is_dir():
            raise InputError(f"{path}: no such folder; an image folder holds train/<class>/<image> and val/<class>/<image>")
        try:
            super().__init__(path, loader=load_rgb, is_valid_file=lambda file: is_image(file[len(str(path)) :]))
        except FileNotFoundError as error:
            raise InputError(f"{path}: {str(error).splitlines()[0]}")

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        classes = [name for name in super().find_classes(directory)[0] if not name.startswith(".")]
        return classes, {name: label for label, name in enumerate(classes)}


def load_rgb(path: str) -> Image.Image:
    """Read an image file as RGB. Raises InputError naming the file if it does not decode."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # a damaged image can fail in many ways
        raise InputError(f"{path}: does not decode as an image ({error}); replace or remove the file")
