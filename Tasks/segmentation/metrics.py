"""Metrics with pixels as samples: mIoU, pixel accuracy, calibration and likelihood, over all images and processes."""

from errors import InputError

import torch
import torch.nn.functional as F
from torch import Tensor

import distributed
from layouts import IGNORE

CALIBRATION_BINS = 15


class PixelMetrics:
    """Sums over the labelled pixels of all images: update() for each image, compute() once in every process."""

    def __init__(self, classes: int, device: str):
        self.classes = classes
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)  # truth, prediction
        self.bins = torch.zeros(2, CALIBRATION_BINS, dtype=torch.float64, device=device)  # confidence, right
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # negative log-likelihood, images

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """logits (N, K, H, W) floating point, labels (N, H, W) with IGNORE. Raises InputError if logits are not finite."""
        kept = labels != IGNORE
        rows = logits.movedim(1, -1)[kept].float()  # (pixels, K)
        targets = labels[kept].long()
        self.sums[1] += len(logits)
        if not len(targets):
            return
        if not rows.isfinite().all():
            raise InputError("the model's logits are not finite: the training has diverged. Try a lower --lr, or --warmup-steps")
        confidence, prediction = rows.softmax(1).max(1)
        right = (prediction == targets).double()
        self.sums[0] += F.cross_entropy(rows, targets, reduction="none").double().sum()
        self.confusion += torch.bincount(targets * self.classes + prediction, minlength=self.classes**2).view_as(self.confusion)
        index = (confidence.double() * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1  # (0, 1/15], (1/15, ...
        self.bins[0].index_add_(0, index, confidence.double())
        self.bins[1].index_add_(0, index, right)

    def compute(self) -> dict:
        """Over all processes: images, pixels, miou and pixel_accuracy (%), iou (%, None for an absent class), ece, nll (nats).

        mIoU is the mean over the classes that occur in truth or prediction. Raises InputError if no pixel has a label.
        """
        for part in (self.confusion, self.bins, self.sums):
            distributed.sum_over_processes(part)
        pixels = int(self.confusion.sum())
        if not pixels:
            raise InputError("no pixel of the evaluated images has a label; nothing can be measured")
        hits = self.confusion.diagonal().double()
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        iou = [100 * hit / area if area else None for hit, area in zip(hits.tolist(), union.tolist(), strict=True)]
        present = [value for value in iou if value is not None]
        return {
            "images": int(self.sums[1]),
            "pixels": pixels,
            "miou": sum(present) / len(present),
            "pixel_accuracy": 100 * hits.sum().item() / pixels,
            "ece": (self.bins[0] - self.bins[1]).abs().sum().item() / pixels,
            "nll": self.sums[0].item() / pixels,
            "iou": iou,
        }
