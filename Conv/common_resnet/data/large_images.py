"""Large images: read from an image folder by loading processes, randomly cropped, normalised on the training device."""

import multiprocessing
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms

import distributed
from data.folders import Archive, Folder, Pictures, mean_and_deviation, scale_and_shift
from data.order import epoch_order, generator

MEASURED = 1000  # images used to measure mean and standard deviation


class LargeImages:
    """Batches of a folder of images: (B, 3, size, size) float32, normalised, channels last in memory.

    Training: a random resized crop of at least 8 % of the area and, if flip is set, a random horizontal flip. Evaluation: the
    shorter side is resized to size / crop_ratio, bilinearly, and the centre is cropped.
    """

    def __init__(
        self,
        folder: Folder | Archive | Pictures,
        size: int,
        crop_ratio: float,
        mean: list[float] | None,
        std: list[float] | None,
        device: str,
        num_workers: int = 0,
    ):
        self.folder, self.size, self.crop_ratio, self.device, self.num_workers = folder, size, crop_ratio, device, num_workers
        self.labels, self.classes = torch.tensor(folder.targets), folder.classes
        self.flip, self.more, self.erase, self.loader, self.rows = False, None, 0.0, None, None
        if mean and std:
            self.normalise(mean, std)

    def normalise(self, mean: list[float], std: list[float]) -> None:
        """Set mean and standard deviation, of values in [0, 1], for normalising the batches."""
        self.mean, self.std = mean, std
        self.scale, self.shift = scale_and_shift(mean, std, self.device)

    def measure(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of the channels, over centre crops of at most MEASURED training images."""
        rows = torch.randperm(len(self), generator=generator(0))[:MEASURED].sort().values.tolist()
        images = Seeded(self.folder, self._centre())
        sums, squares, count = np.zeros(3), np.zeros(3), 0
        for pixels, _ in self._loader(Subset(images, [(row, 0) for row in rows]), batch_size=50):
            values = pixels.double().flatten(0, 2).numpy()
            sums, squares, count = sums + values.sum(0), squares + (values**2).sum(0), count + len(values)
        return mean_and_deviation(sums, squares, count)

    def augment(self, flip: bool, more: Callable | None = None, erase: float = 0.0) -> "LargeImages":
        """Set the augmentation after the crop: a flip, a transform of PIL images, random erasing; returns itself."""
        self.flip, self.more, self.erase = flip, more, erase
        return self

    def __len__(self) -> int:
        return len(self.folder)

    def keep(self, rows: Tensor) -> "LargeImages":
        """Keep only the images with these indices; returns itself. self.rows (n,): their rows in the split, None for all."""
        self.folder.samples = [self.folder.samples[row] for row in rows.tolist()]
        self.labels = self.labels[rows]
        self.rows = rows if self.rows is None else self.rows[rows]
        return self

    def relabel(self, table: list[int], classes: list[str]) -> None:
        """Replace each label by table[label], an index into `classes`."""
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
            more = [self.more] if self.more else []
            transform = transforms.Compose([transforms.RandomResizedCrop(self.size), *flip, *more])
            erase = transforms.RandomErasing(self.erase, value=[round(255 * x) for x in self.mean]) if self.erase else None
            self.order = SeededOrder(len(self), batch, seed)
            self.loader = self._loader(Seeded(self.folder, transform, erase), batch_sampler=self.order)
        self.order.epoch = epoch
        return self._on_device(self.loader)

    def evaluation_batches(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The centre crop of every image, once over all processes."""
        images = Seeded(self.folder, self._centre())
        mine = Subset(images, [(index, 0) for index in range(distributed.rank(), len(self), distributed.world_size())])
        return self._on_device(self._loader(mine, batch_size=batch))

    def _centre(self) -> Callable:
        return transforms.Compose([transforms.Resize(int(self.size / self.crop_ratio)), transforms.CenterCrop(self.size)])

    def _loader(self, dataset: Dataset, **options) -> DataLoader:
        if self.num_workers:
            # Not forked from this process: its communication threads may hold a lock, for which a copy would wait forever.
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
    """Indexed by (index, seed): seeds the generators of the transforms; returns the image (H, W, 3) uint8 and its label."""

    def __init__(self, folder: Folder | Archive | Pictures, transform: Callable, erase: Callable | None = None):
        self.folder, self.transform, self.erase = folder, transform, erase

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = item
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        image, label = self.folder[index]
        pixels = torch.from_numpy(np.array(self.transform(image)))
        return (self.erase(pixels.permute(2, 0, 1)).permute(1, 2, 0) if self.erase else pixels), label
