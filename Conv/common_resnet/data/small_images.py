"""Small images: all of them in the training device's memory as uint8, augmented there one batch at a time."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import distributed
from data.folders import mean_and_deviation, scale_and_shift
from data.order import epoch_order, generator, share


class SmallImages:
    """Batches of images that fit in memory; no loading processes, no copies except the batch itself.

    images (N, H, W, 3) uint8 and labels (N,) int64. Batches are (B, 3, H, W) float32, normalised, channels last in memory.
    Augmentation in training: padding by `padding` black pixels and a random crop of the original size, a horizontal flip with
    probability 1/2, and a square of side `cutout` set to the mean; each is drawn independently for every image.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: list[str],
        mean: list[float] | None,
        std: list[float] | None,
        device: str,
    ):
        self.images, self.labels, self.classes = images.to(device), labels.to(device), classes
        self.device = device
        if mean and std:
            self.normalise(mean, std)
        self.rows = None
        self.augment(padding=0, flip=False, cutout=0)

    def normalise(self, mean: list[float], std: list[float]) -> None:
        """Set mean and standard deviation, of values in [0, 1], for normalising the batches."""
        self.mean, self.std = mean, std
        self.scale, self.shift = scale_and_shift(mean, std, self.device)

    def measure(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of the channels, over all images; see mean_and_deviation."""
        counts = torch.stack([torch.bincount(self.images[..., c].flatten().cpu(), minlength=256) for c in range(3)]).double()
        values = torch.arange(256, dtype=torch.float64)
        sums, squares = (counts @ values).numpy(), (counts @ values.square()).numpy()
        return mean_and_deviation(sums, squares, counts[0].sum().item())

    def keep(self, rows: Tensor) -> "SmallImages":
        """Keep only the images with these indices; returns itself. self.rows (n,): their rows in the split, None for all."""
        self.images, self.labels = self.images[rows.to(self.device)], self.labels[rows.to(self.device)]
        self.rows = rows if self.rows is None else self.rows[rows]
        return self.augment(self.padding, self.flip, self.cutout)

    def relabel(self, table: list[int], classes: list[str]) -> None:
        """Replace each label by table[label], an index into `classes`."""
        self.labels, self.classes = torch.tensor(table, device=self.device)[self.labels], classes

    def set_labels(self, labels: Tensor) -> None:
        """Replace all labels, (N,) int64."""
        self.labels = labels.to(self.device)

    def augment(self, padding: int, flip: bool, cutout: int) -> "SmallImages":
        """Set the augmentation of training batches; returns itself."""
        self.padding, self.flip, self.cutout = padding, flip, cutout
        self.padded = F.pad(self.images, (0, 0, padding, padding, padding, padding)) if padding else self.images
        return self

    def __len__(self) -> int:
        return len(self.labels)

    def training_batches(self, batch: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of each global batch of an epoch, augmented; see epoch_order."""
        for step, indices in enumerate(epoch_order(len(self), batch, seed, epoch).to(self.device)):
            yield self._augmented(indices, batch, generator(seed, epoch, step)), self.labels[indices]

    def evaluation_batches(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once over all processes, without augmentation."""
        rank, processes = distributed.rank(), distributed.world_size()
        for start in range(0, len(self), batch * processes):
            rows = slice(start + rank, min(start + batch * processes, len(self)), processes)
            if len(self.labels[rows]):
                yield self._normalised(self.images[rows]), self.labels[rows]

    def _augmented(self, indices: Tensor, batch: int, random: torch.Generator) -> Tensor:
        """An augmented batch; a single gather of pixels crops and flips each image by its own offsets."""
        height, width = self.images.shape[1:3]

        def draw(high: int) -> Tensor:  # for the global batch, on the CPU: independent of device and number of processes
            return share(torch.randint(high, (batch,), generator=random)).to(self.device, non_blocking=True)

        spots = 2 * self.padding + 1
        rows = draw(spots).unsqueeze(1) + torch.arange(height, device=self.device)
        columns = torch.arange(width, device=self.device).repeat(len(indices), 1)
        if self.flip:
            columns = torch.where(draw(2).unsqueeze(1) == 1, columns.flip(1), columns)
        columns = columns + draw(spots).unsqueeze(1)
        pixels = self.padded[indices.view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)]
        images = self._normalised(pixels)
        if self.cutout:
            inside = [self._near(draw(side), side) for side in (height, width)]
            hole = inside[0].unsqueeze(2) & inside[1].unsqueeze(1)
            images.masked_fill_(hole.unsqueeze(1), 0)
        return images

    def _near(self, centre: Tensor, side: int) -> Tensor:
        """(B, side) bool: the positions within the cutout around each centre; it may extend beyond the edge."""
        distance = torch.arange(side, device=self.device) - centre.unsqueeze(1) + self.cutout // 2
        return (distance >= 0) & (distance < self.cutout)

    def _normalised(self, pixels: Tensor) -> Tensor:
        return torch.addcmul(self.shift, pixels.permute(0, 3, 1, 2).float(), self.scale)
