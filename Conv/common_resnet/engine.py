"""The loops: one epoch of training, one evaluation."""

import math
import time
from collections.abc import Iterable, Iterator

from errors import InputError, is_first

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

import distributed
from data import Images
from data.order import epoch_order, mix
from distillation import Distillation
from mixing import Mixing
from models import bare_model
from optimizer import use_frozen_statistics
from precision import autocast
from teacher import StoredTeacher

CALIBRATION_BINS = 15
CHECK_EVERY = 50  # steps between checks of the losses: each check waits for the GPU


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    data: Images,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    ema: AveragedModel | None,
    *,
    epoch: int,
    epochs: int,
    batch_size: int,
    seed: int,
    amp: str,
    mixing: Mixing | None = None,
    distillation: Distillation | None = None,
    clip_grad_norm: float | None = None,
) -> dict:
    """Train for one epoch. model(images) returns logits (N, K), or (logits, dense logits), as WithDenseLogits does.

    batch_size is the global batch size; epoch counts from 0. Returns loss (mean over all processes), top1 (%, by the labels
    trained on; None if images are mixed), images_per_second (all processes together). Raises InputError naming epoch and step if
    the loss is not finite.
    """
    model.train()
    use_frozen_statistics(model)
    criterion.train()
    stored = distillation.teacher if distillation and isinstance(distillation.teacher, StoredTeacher) else None
    order = epoch_order(len(data), batch_size, seed, epoch) if stored else None
    if hasattr(criterion, "set_epoch"):
        criterion.set_epoch(epoch, epochs)

    losses, right = [], torch.zeros((), device=data.device)
    steps = len(data) // batch_size
    bar = progress(data.training_batches(batch_size, seed, epoch), f"epoch {epoch + 1}/{epochs}", steps, batch_size)
    start = time.perf_counter()
    for step, (images, targets) in enumerate(bar):
        torch.manual_seed(mix(seed, epoch, step, distributed.rank()))  # for dropout: a resumed run needs no history
        if mixing:
            images, targets = mixing(images, targets, epoch, step)
        if stored:
            stored.at(order[step])
        optimizer.zero_grad()  # before the forward pass, so that activations can reuse the gradients' memory
        with autocast(data.device, amp):
            output = model(images)
            logits, *dense = output if isinstance(output, tuple) else (output,)
            if distillation:
                loss = distillation(criterion, images, targets, logits, *dense)
            else:
                loss = criterion(logits, targets, *dense)
        losses.append(loss.detach())
        if not mixing:
            right += (logits.detach().argmax(1) == targets).sum()
        loss.backward()
        if clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
        optimizer.step()
        scheduler.step()
        if ema is not None:
            ema.update_parameters(bare_model(model))
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            first = step - step % CHECK_EVERY
            check_finite(torch.stack(losses[first:]), epoch, first)
            bar.set_postfix(loss=f"{losses[-1].item():.3f}", refresh=False)

    if hasattr(criterion, "renew"):
        criterion.renew()
    seconds = time.perf_counter() - start
    images_seen = steps * batch_size
    mean_loss = distributed.sum_over_processes(torch.stack(losses).double().mean()).item() / distributed.world_size()
    top1 = None if mixing else 100 * distributed.sum_over_processes(right).item() / images_seen
    return {"loss": mean_loss, "top1": top1, "images_per_second": images_seen / seconds}


def check_finite(losses: Tensor, epoch: int, first_step: int) -> None:
    """Raise InputError if one of the losses (steps,) is not finite; epochs and steps are counted from 1 in the message."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = first_step + bad[0].item() + 1
        raise InputError(
            f"the loss is {losses[bad[0]].item()} in epoch {epoch + 1}, step {step}; nothing of this epoch was saved: the last "
            "checkpoint is good. Try a lower --lr, or --warmup-epochs"
        )


def check_weights(model: nn.Module, epoch: int, val_nll: float) -> None:
    """Raise InputError if the model has diverged in the last step of an epoch, which no loss of that epoch shows."""
    finite = torch.stack([p.isfinite().all() for p in model.state_dict().values()]).all()
    if not finite or not math.isfinite(val_nll):
        raise InputError(
            f"weights or validation loss are not finite after epoch {epoch + 1}; stopped before this epoch was saved: the last "
            "checkpoint is good. Try a lower --lr, or --warmup-epochs"
        )


@torch.inference_mode()
def evaluate(model: nn.Module, data: Images, classes: int, batch_size: int, amp: str = "off") -> tuple[dict, Tensor, Tensor]:
    """Metrics over all images, each counted once; and the numbers of correct predictions and of images per class (classes,).

    batch_size is the global batch size. The metrics: images, top1 and top5 (%), nll (the cross-entropy, nats), ece (15
    equal-width bins).
    """
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=data.device)  # right in the top 5, cross-entropy
    bins = torch.zeros(2, CALIBRATION_BINS, dtype=torch.float64, device=data.device)  # confidence, right
    counts = torch.zeros(2, classes, dtype=torch.float64, device=data.device)  # right, images
    batch = max(1, batch_size // distributed.world_size())
    steps = -(-len(data) // (batch * distributed.world_size()))
    for images, targets in progress(data.evaluation_batches(batch), "evaluate", steps, batch * distributed.world_size()):
        with autocast(data.device, amp):
            logits = model(images)
        logits = logits.float()
        top5 = logits.topk(min(5, logits.shape[1])).indices == targets.unsqueeze(1)
        right = (logits.argmax(1) == targets).double()  # topk may order ties differently
        sums += torch.stack([top5.sum(), F.cross_entropy(logits, targets, reduction="sum")])
        counts[0].index_add_(0, targets, right)
        counts[1].index_add_(0, targets, torch.ones_like(right))
        confidence = logits.softmax(1).amax(1).double()
        index = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1  # bins (0, 1/15], (1/15, ...
        bins[0].index_add_(0, index, confidence)
        bins[1].index_add_(0, index, right)
    for part in (sums, bins, counts):
        distributed.sum_over_processes(part)
    images_seen, (top5, nll) = counts[1].sum().item(), sums.tolist()
    metrics = {
        "images": int(images_seen),
        "top1": 100 * counts[0].sum().item() / images_seen,
        "top5": 100 * top5 / images_seen,
        "nll": nll / images_seen,
        "ece": (bins[0] - bins[1]).abs().sum().item() / images_seen,
    }
    return metrics, counts[0].cpu(), counts[1].cpu()


def progress(batches: Iterable, title: str, steps: int, images_per_step: int) -> Iterator:
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
