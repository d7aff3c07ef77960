"""The loops: one epoch of training, one evaluation; and the schedules of learning rate and image size."""

import math
import time
from collections.abc import Iterable
from types import SimpleNamespace

from errors import InputError, is_first

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import distributed
from mixing import Mixing

CALIBRATION_BINS = 15
CHECK_EVERY = 50  # steps between checks of the losses: each check waits for the GPU


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    batches,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    rate: float,
    lr: SimpleNamespace,
    training: SimpleNamespace,
    epoch: int,
    side: int,
    mixing: Mixing | None = None,
) -> dict:
    """Train for one epoch on images of side x side px. model(images) returns logits (N, K), or (logits, dense logits).

    batches: from data.train_images. rate: the highest learning rate; lr, training: those sections of the configuration.

    Returns loss (mean over all processes), top1 (%, None if images are mixed), images_per_second (all processes together, from
    the second step on, because the first includes compilation). Raises InputError naming epoch and step if the loss is not
    finite.
    """
    model.train()
    criterion.train()
    if hasattr(criterion, "set_epoch"):
        criterion.set_epoch(epoch, training.epochs)
    # For models with dropout: a resumed run needs no history.
    torch.manual_seed(int(np.random.SeedSequence((training.seed, epoch, distributed.rank())).generate_state(1)[0]))

    steps, losses, right = len(batches), [], torch.zeros((), device=batches.device)
    images_per_step = training.batch_size * distributed.world_size()
    start, counted = time.perf_counter(), steps
    bar = progress(batches.epoch(epoch, side), f"epoch {epoch + 1}/{training.epochs}", steps, images_per_step)
    for step, (images, targets) in enumerate(bar):
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_factor(epoch, step / steps, lr, training.epochs)
        if mixing:
            images, targets = mixing(images, targets, epoch, step)
        optimizer.zero_grad()  # before the forward pass, so that activations can reuse the gradients' memory
        with autocast(batches.device, training.amp):
            output = model(images)
            logits, *dense = output if isinstance(output, tuple) else (output,)
            loss = criterion(logits, targets, *dense)
        losses.append(loss.detach())
        if not mixing:
            right += (logits.argmax(1) == targets).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            first = step - step % CHECK_EVERY
            check_finite(torch.stack(losses[first:]), epoch, first)
            bar.set_postfix(loss=f"{losses[-1].item():.3f}", refresh=False)
        if step == 0 and steps > 1:
            losses[0].item()  # waits for the GPU
            start, counted = time.perf_counter(), steps - 1

    if hasattr(criterion, "renew"):
        criterion.renew()
    seconds = time.perf_counter() - start
    mean_loss = distributed.sum_over_processes(torch.stack(losses).double().mean()).item() / distributed.world_size()
    top1 = None if mixing else 100 * distributed.sum_over_processes(right).item() / (steps * images_per_step)
    return {"loss": mean_loss, "top1": top1, "images_per_second": counted * images_per_step / seconds}


@torch.inference_mode()
def evaluate(model: nn.Module, batches, validation: SimpleNamespace, amp: str, device: torch.device) -> dict:
    """Top-1 and top-5 (%), NLL (cross-entropy, nats) and ECE over all processes; each image counts once.

    batches: this process's share, from data.val_images; None if it is empty. validation: the configuration's section.
    """
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # images, right, right in the top 5, cross-entropy
    bins = torch.zeros(2, CALIBRATION_BINS, dtype=torch.float64, device=device)  # confidence, right
    images_per_step = validation.batch_size * distributed.world_size()
    share = [] if batches is None else batches.epoch(0, validation.resolution)
    for images, targets in progress(share, "evaluate", 0 if batches is None else len(batches), images_per_step):
        with autocast(device, amp):
            logits = model(images)
            if validation.lr_tta:
                logits = (logits + model(images.flip(3))) / 2
        logits = logits.float()
        top5 = logits.topk(min(5, logits.shape[1])).indices == targets.unsqueeze(1)
        right = (logits.argmax(1) == targets).double()  # topk may order ties differently
        cross_entropy = F.cross_entropy(logits, targets, reduction="sum")
        sums += torch.stack([torch.full_like(cross_entropy, len(targets)), right.sum(), top5.sum(), cross_entropy])
        confidence = logits.softmax(1).amax(1).double()
        index = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1  # bins (0, 1/15], (1/15, ...
        bins[0].index_add_(0, index, confidence)
        bins[1].index_add_(0, index, right)
    distributed.sum_over_processes(sums)
    distributed.sum_over_processes(bins)
    count, top1, top5, nll = sums.tolist()
    ece = (bins[0] - bins[1]).abs().sum().item() / count
    return {"images": int(count), "top1": 100 * top1 / count, "top5": 100 * top5 / count, "nll": nll / count, "ece": ece}


def rate_factor(epoch: int, within: float, lr: SimpleNamespace, epochs: int) -> float:
    """The learning rate relative to its highest value, after a share `within` of epoch `epoch`; lr: the configuration's section.

    step: times step_ratio every step_length epochs. cyclic: linearly from 1e-4 to 1 at peak_epoch, then linearly to 0 at the end.
    """
    if lr.schedule == "step":
        return lr.step_ratio ** (epoch // lr.step_length)
    return float(np.interp(epoch + within, [0, lr.peak_epoch, epochs], [1e-4, 1, 0]))


def resolution(epoch: int, ramp: SimpleNamespace) -> int:
    """Side of an epoch's training images, pixels: min_res up to start_ramp, max_res from end_ramp, multiples of 32 between."""
    if epoch >= ramp.end_ramp:
        return ramp.max_res
    if epoch <= ramp.start_ramp:
        return ramp.min_res
    side = round(float(np.interp(epoch, [ramp.start_ramp, ramp.end_ramp], [ramp.min_res, ramp.max_res])) / 32) * 32
    return min(max(side, ramp.min_res), ramp.max_res)


def check_finite(losses: Tensor, epoch: int, first_step: int) -> None:
    """Raise InputError if one of the losses (steps,) is not finite; epochs and steps are counted from 1 in the message."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = first_step + bad[0].item()
        raise InputError(
            f"the loss is {losses[bad[0]].item()} in epoch {epoch + 1}, step {step + 1}; nothing was saved from "
            f"this epoch: the last checkpoint is good. Try a lower lr.lr or training.amp=off"
        )


def check_weights(model: nn.Module, epoch: int, val_nll: float) -> None:
    """Raise InputError if the model has diverged in the last step of an epoch, which no loss of that epoch shows."""
    finite = torch.stack([p.isfinite().all() for p in model.state_dict().values()]).all()
    if not finite or not math.isfinite(val_nll):
        raise InputError(
            f"weights or validation loss are not finite after epoch {epoch + 1}; stopped before this epoch was saved: the last "
            "checkpoint is good. Try a lower lr.lr or training.amp=off"
        )


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Mixed precision in "bf16" or "fp16"; "off" is full precision."""
    return torch.autocast(device.type, torch.float16 if amp == "fp16" else torch.bfloat16, enabled=amp != "off")


def progress(batches: Iterable, title: str, steps: int, images_per_step: int) -> tqdm:
    """A progress bar over batches, in images/s with the time left; only in the main process."""
    return tqdm(
        batches,
        total=steps,
        desc=title,
        unit=" images",
        unit_scale=images_per_step,
        leave=False,
        dynamic_ncols=True,
        mininterval=0.5,
        disable=None if is_first() else True,
    )
