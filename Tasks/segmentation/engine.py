"""The loops: one epoch of training, one evaluation; and predictions from whole images or from a sliding window."""

import time
from collections.abc import Iterable

from errors import InputError, is_first

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import distributed
from data import Batches, mix
from layouts import IGNORE
from metrics import PixelMetrics

CHECK_EVERY = 50  # steps between checks of the losses


def train_one_epoch(model: nn.Module, criterion: nn.Module, data: Batches, optimizer, scheduler, args, epoch: int) -> dict:
    """Train for one epoch, which ends early if --steps is reached. Returns loss (mean over steps and processes) and
    images_per_second (all processes together). Raises InputError naming epoch and step if the loss is not finite.
    """
    model.train()
    criterion.train()
    if hasattr(criterion, "set_epoch"):
        criterion.set_epoch(epoch, args.epochs)
    steps = min(len(data.order), args.steps - epoch * len(data.order))
    losses = []
    start = time.perf_counter()
    batches = progress(data.training(epoch), f"epoch {epoch + 1}/{args.epochs}", steps, args.batch_size)
    for step, (images, labels) in zip(range(steps), batches, strict=False):
        torch.manual_seed(mix(args.seed, epoch, step, distributed.rank()))  # for dropout: a resumed run needs no history
        optimizer.zero_grad()  # before the forward pass, so that activations can reuse the gradients' memory
        with torch.autocast(args.device, torch.bfloat16, enabled=args.amp == "bf16"):
            output = model(images)
        outputs = output if isinstance(output, tuple) else (output,)
        loss = pixel_loss(criterion, outputs, labels, args.aux_weight)
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            first = step - step % CHECK_EVERY
            check_finite(torch.stack(losses[first:]), epoch, first)
            batches.set_postfix(loss=f"{losses[-1].item():.3f}", refresh=False)
    batches.close()
    seconds = time.perf_counter() - start
    mean_loss = distributed.sum_over_processes(torch.stack(losses).double().mean()).item() / distributed.world_size()
    return {"loss": mean_loss, "images_per_second": steps * args.batch_size / seconds}


def pixel_loss(criterion: nn.Module, outputs: tuple[Tensor, ...], labels: Tensor, aux_weight: float) -> Tensor:
    """The criterion's mean over labelled pixels, plus that of an auxiliary head times aux_weight.

    outputs: logits (N, K, H, W), the model's own first; labels (N, H, W) uint8 with IGNORE. DistributedDataParallel averages
    gradients over processes, which have unequal numbers of labelled pixels. Each process's loss is therefore scaled so that the
    average over processes is the mean over the labelled pixels of all of them.
    """
    labelled = (labels != IGNORE).sum()
    if labelled == 0:  # a mean over no pixels would be NaN
        return sum(logits.sum() for logits in outputs) * 0 * _share(labelled)
    targets = labels.long()
    if torch.are_deterministic_algorithms_enabled():  # GPUs have deterministic losses only for logits (N, K)
        outputs, targets = [logits.movedim(1, -1).flatten(0, 2) for logits in outputs], targets.flatten()
    losses = [criterion(logits.float(), targets) for logits in outputs]
    return (losses[0] + aux_weight * sum(losses[1:])) * _share(labelled)


def _share(labelled: Tensor) -> Tensor | float:
    if distributed.world_size() == 1:
        return 1.0
    total = distributed.sum_over_processes(labelled.clone())
    return labelled * distributed.world_size() / total.clamp(min=1)


def check_finite(losses: Tensor, epoch: int, first_step: int) -> None:
    """Raise InputError if one of the losses (steps,) is not finite; epochs and steps are counted from 1 in the message."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = first_step + bad[0].item() + 1
        raise InputError(
            f"the loss is {losses[bad[0]].item()} in epoch {epoch + 1}, step {step}; nothing of this epoch was saved: the last "
            "checkpoint is good. Try a lower --lr, or --warmup-steps"
        )


@torch.inference_mode()
def evaluate(model: nn.Module, data: Batches, args, collect: "LogitsGrid | None" = None) -> dict:
    """PixelMetrics over all images of all processes, each counted once, in float32; `collect` also gathers the logits."""
    model.eval()
    metrics = PixelMetrics(len(data.images.classes), args.device)
    rounds = -(-len(data) // distributed.world_size())
    seen = 0
    for index, image, labels in progress(data.evaluation(), "evaluate", len(data.indices), 1):
        logits = predict(model, image, labels.shape[1:], args)
        metrics.update(logits, labels)
        seen += 1
        if collect is not None:
            collect.add(index, logits[0], labels[0])
    if collect is not None and seen < rounds:  # every process must take part in every round of gathering
        collect.add(None, None, None)
    return metrics.compute()


def predict(model: nn.Module, image: Tensor, size: tuple[int, int], args) -> Tensor:
    """Logits (1, K, *size) float32 of an image (1, 3, H, W): of the whole image or, by --predict, of a sliding window."""
    logits = sliding(model, image, args.window, args.window_stride) if args.predict == "sliding" else model(image).float()
    return logits if logits.shape[2:] == size else F.interpolate(logits, size, mode="bilinear")


def sliding(model: nn.Module, image: Tensor, window: list[int], stride: list[int]) -> Tensor:
    """Mean logits (1, K, H, W) over windows (height, width); the last row and column of windows end at the image's edge."""
    starts = []
    for side, length, step in zip(image.shape[2:], window, stride, strict=True):
        last = max(side - length, 0)
        starts.append([*range(0, last, step), last])
    total, count = 0, image.new_zeros(1, 1, *image.shape[2:])
    for top in starts[0]:
        for left in starts[1]:
            part = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            logits = model(image[part]).float()
            if not count.any():
                total = logits.new_zeros(1, logits.shape[1], *image.shape[2:])
            total[part] += logits
            count[part] += 1
    return total / count


class LogitsGrid:
    """Every stride-th pixel of every image's logits, gathered in the main process: logits (N, K, h, w), labels (N, h, w).

    Smaller images fill the upper left part of their grid; the rest has the label IGNORE and logits of 0.
    """

    def __init__(self, images: int, classes: int, size: tuple[int, int], stride: int, device: str):
        self.stride, self.device = stride, device
        self.shape = (classes, *(len(range(stride // 2, side, stride)) for side in size))
        if is_first():
            self.logits = torch.zeros(images, *self.shape)
            self.labels = torch.full((images, *self.shape[1:]), IGNORE, dtype=torch.int64)

    def add(self, index: int | None, logits: Tensor | None, labels: Tensor | None) -> None:
        """Add an image's logits (K, H, W) and labels (H, W). All processes must call this equally often, with None if need be."""
        grid = torch.zeros(self.shape, device=self.device)
        targets = torch.full(self.shape[1:], IGNORE, dtype=torch.int64, device=self.device)
        if index is not None:
            half, step = self.stride // 2, self.stride
            part = logits[:, half::step, half::step]
            grid[:, : part.shape[1], : part.shape[2]] = part
            targets[: part.shape[1], : part.shape[2]] = labels[half::step, half::step]
        number = torch.tensor(-1 if index is None else index, device=self.device)
        gathered = zip(*(gather(x) for x in (number, grid, targets)), strict=True)
        for row, one, other in gathered if is_first() else ():
            if row >= 0:
                self.logits[row], self.labels[row] = one.cpu(), other.cpu()


def gather(x: Tensor) -> list[Tensor]:
    """One tensor of the same shape from each process, in the main process; an empty list in the others."""
    if not dist.is_initialized():
        return [x]
    parts = [torch.empty_like(x) for _ in range(distributed.world_size())] if is_first() else None
    dist.gather(x, parts)
    return parts or []


def progress(batches: Iterable, title: str, steps: int, images_per_step: int) -> tqdm:
    """A progress bar over batches, in images/s with the time left; only in the main process."""
    return tqdm(
        batches,
        title,
        steps,
        unit=" images",
        unit_scale=images_per_step,
        leave=False,
        dynamic_ncols=True,
        mininterval=0.5,
        disable=None if is_first() else True,
    )
