"""The outputs of a model for one split of the images, in the form that the metrics take."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

from common.errors import warn
from common.options import FRACTION, REPEATS, SEED

import numpy as np
import torch
from torch import Tensor

from metrics.rankings import Model
from metrics.resampling import splits
from metrics.segmentation import EXACT, labelled_pixels, rank_file

ELEMENTS = 1 << 19  # logits processed at a time: 4 MB in float64


class Training(NamedTuple):
    """What is kept for the training images, whose logits and features would fill the memory.

    predicted (N,): classes; labels (N,): those used in training; own_labels (N,): the data set's, which differ where labels were
    changed for training; variation: of the features, see metrics.variation.
    """

    predicted: Tensor
    labels: Tensor
    own_labels: Tensor
    variation: dict[str, float | None]


class Outputs:
    """Logits (N, K) and labels (N,) of images, or (N, K, H, W) and (N, H, W), whose labelled pixels are the samples.

    content: what logits_file.load returns, with or without features (N, D). The units of splits are images in both forms.
    """

    def __init__(self, content: dict, name: str):
        self.content, self.name = content, name
        self.logits, self.labels, self.features = content["logits"], content["labels"], content.get("features")
        self.units, self.classes, self.dense = len(self.labels), self.logits.shape[1], self.logits.ndim == 4

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (n, K) in the file's own dtype and labels (n,) of all samples, a chunk at a time."""
        if self.dense:
            yield from labelled_pixels(self.content, f"metrics of {self.name}")
        else:
            step = max(1, ELEMENTS // self.classes)
            yield from zip(self.logits.split(step), self.labels.split(step), strict=True)

    def mean(self, function: Callable[[Tensor, Tensor], Tensor]) -> list[float]:
        """The means over all samples of the columns (n, C) that the function gives for logits (n, K) and labels (n,)."""
        total, count = 0, 0
        for rows, targets in self.chunks():
            total, count = total + function(rows, targets).double().sum(0), count + len(targets)
        return (total / count).tolist()

    @cached_property
    def ranked(self) -> Model:
        """The samples ranked by each confidence score."""
        return rank_file(self.content, self.name)

    @cached_property
    def held_out(self) -> np.ndarray:
        """Which units are held out in each random split (units, R) bool."""
        return splits(self.units, FRACTION, REPEATS, SEED)

    @cached_property
    def chosen(self) -> list[str]:
        """The score chosen on each split's held-out units: one of normalised logits, or MSP. Empty for two classes."""
        from metrics.selection import choose  # imported here: that module imports this one

        return choose(self.ranked, self.held_out)

    @cached_property
    def tempered(self) -> NamedTuple:
        """The samples of `sampled` at the temperature of each random split: metrics.temperature.Tempered."""
        from metrics.temperature import temper  # imported here: that module imports this one

        logits, labels, unit = self.sampled
        found = temper(logits, labels, torch.from_numpy(self.held_out)[unit].T)
        if found.note:
            warn(f"{self.name}: {found.note}")
        return found

    @cached_property
    def sampled(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, K), labels (n,) and units (n,): all images or, in segmentation, about EXACT pixels at most."""
        if not self.dense:
            return self.logits, self.labels, torch.arange(self.units)
        parts = list(labelled_pixels(self.content, f"pixels of {self.name}", -(-self.content["pixels"] // EXACT)))
        unit = torch.arange(self.units).repeat_interleave(torch.tensor([len(targets) for _, targets in parts]))
        return *(torch.cat(columns) for columns in zip(*parts, strict=True)), unit
