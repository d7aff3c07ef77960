"""The loops: one epoch of training, one evaluation."""

import math
import time

from errors import InputError, is_first

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import distributed
from data.loaders import seed_everything
from distillation import Distillation
from models import WithDenseLogits

CALIBRATION_BINS = 15
CHECK_EVERY = 50  # steps between checks of the losses: each check waits for the GPU


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    *,
    epoch: int,
    epochs: int,
    seed: int,
    device: str,
    amp: str,
    mixup: Mixup | None = None,
    ema: ModelEmaV3 | None = None,
    clip_grad: float | None = None,
    distillation: Distillation | None = None,
    train_mode: bool = True,
) -> dict:
    """Train for one epoch. model(images) returns logits (N, K); or (logits, dense logits), as WithDenseLogits does; or the logits
    of class token and distillation token, as DeiT's distilled models do if there is a `distillation`.

    train_mode False keeps the model in evaluation mode: no dropout, and batch norm's statistics do not change.
    Returns loss (mean over all processes), top1 (%, None under mixup), images_per_second (all processes together).
    Raises InputError naming epoch and step if the loss is not finite.
    """
    model.train(train_mode)
    criterion.train()
    loader.sampler.set_epoch(epoch)
    if hasattr(criterion, "set_epoch"):
        criterion.set_epoch(epoch, epochs)

    losses, right = [], torch.zeros((), device=device)
    start = time.perf_counter()
    images_per_step = loader.batch_size * distributed.world_size()
    bar = progress(loader, f"epoch {epoch + 1}/{epochs}", images_per_step)
    for step, (images, targets) in enumerate(bar):
        images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        seed_everything(seed, epoch, step, distributed.rank())  # mixup and dropout: a resumed run needs no history
        if mixup is not None:
            images, targets = mixup(images, targets)
        optimizer.zero_grad()  # before the forward pass, so that activations can reuse the gradients' memory
        with autocast(device, amp):
            output = model(images)
            logits, *more = output if isinstance(output, tuple) else (output,)
            if distillation is None:
                loss = criterion(logits, targets, *more)
            else:
                loss = distillation(criterion, images, targets, logits, *more)
        losses.append(loss.detach())
        if mixup is None:
            right += (logits.argmax(1) == targets).sum()

        scaler.scale(loss).backward()
        if clip_grad is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip_grad)
        scaler.step(optimizer)
        scaler.update()
        if ema is not None:
            ema.update(bare_model(model))

        if (step + 1) % CHECK_EVERY == 0 or step + 1 == len(loader):
            first = step - step % CHECK_EVERY
            check_finite(torch.stack(losses[first:]), epoch, first)
            bar.set_postfix(loss=f"{losses[-1].item():.3f}", refresh=False)

    if hasattr(criterion, "renew"):
        criterion.renew()
    seconds = time.perf_counter() - start
    images_seen = len(loader) * images_per_step
    mean_loss = distributed.sum_over_processes(torch.stack(losses).double().mean()).item() / distributed.world_size()
    top1 = None if mixup is not None else 100 * distributed.sum_over_processes(right).item() / images_seen
    return {"loss": mean_loss, "top1": top1, "images_per_second": images_seen / seconds}


def check_finite(losses: Tensor, epoch: int, first_step: int) -> None:
    """Raise InputError if one of the losses (steps,) is not finite; epochs and steps are counted from 1 in the message."""
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = first_step + bad[0].item()
        raise InputError(
            f"the loss is {losses[bad[0]].item()} in epoch {epoch + 1}, step {step + 1}; nothing was saved from "
            f"this epoch: the last checkpoint is good. Try a lower --lr, --clip-grad 1 or --amp off"
        )


def check_weights(model: nn.Module, epoch: int, val_nll: float) -> None:
    """Raise InputError if the model has diverged in the last step of an epoch, which no training loss of that epoch shows."""
    finite = torch.stack([p.isfinite().all() for p in model.state_dict().values()]).all()
    if not finite or not math.isfinite(val_nll):
        raise InputError(
            f"weights or validation loss are not finite after epoch {epoch + 1}; stopped before this epoch was saved: the last "
            "checkpoint is good. Try a lower --lr, --clip-grad 1 or --amp off"
        )


@torch.inference_mode()
def evaluate(model: nn.Module, loader: DataLoader, device: str, amp: str, shared: bool) -> dict:
    """Top-1 and top-5 (%), NLL (the cross-entropy, in nats) and expected calibration error over every image of the loader.

    With `shared`, each process's loader has a part of the images, and the results are those of all images.
    """
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # images, right, right in the top 5, cross-entropy
    bins = torch.zeros(2, CALIBRATION_BINS, dtype=torch.float64, device=device)  # confidence, right
    for images, targets in progress(loader, "evaluate", loader.batch_size * (distributed.world_size() if shared else 1)):
        images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        with autocast(device, amp):
            logits = model(images)
        logits = logits.float()
        top5 = logits.topk(min(5, logits.shape[1])).indices == targets.unsqueeze(1)
        right = (logits.argmax(1) == targets).double()  # topk may order ties differently
        cross_entropy = F.cross_entropy(logits, targets, reduction="sum")
        sums += torch.stack([torch.full_like(cross_entropy, len(targets)), right.sum(), top5.sum(), cross_entropy])
        confidence = logits.softmax(1).amax(1).double()
        index = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1  # bins (0, 1/15], (1/15, ...
        bins[0].index_add_(0, index, confidence)
        bins[1].index_add_(0, index, right)
    if shared:
        distributed.sum_over_processes(sums)
        distributed.sum_over_processes(bins)
    count, top1, top5, nll = sums.tolist()
    ece = (bins[0] - bins[1]).abs().sum().item() / count
    return {"images": int(count), "top1": 100 * top1 / count, "top5": 100 * top5 / count, "nll": nll / count, "ece": ece}


def autocast(device: str, amp: str) -> torch.autocast:
    """Mixed precision: "bf16", "fp16", or "off" for full precision."""
    return torch.autocast(device, torch.float16 if amp == "fp16" else torch.bfloat16, enabled=amp != "off")


def bare_model(model: nn.Module) -> nn.Module:
    """The timm model inside the wrappers of torch.compile, DistributedDataParallel and WithDenseLogits."""
    model = getattr(model, "_orig_mod", model)
    model = getattr(model, "module", model)
    return model.model if isinstance(model, WithDenseLogits) else model


def progress(loader: DataLoader, title: str, images_per_step: int) -> tqdm:
    """A progress bar over batches, in images/s with the time left; only in the main process."""
    return tqdm(
        loader,
        desc=title,
        unit=" images",
        unit_scale=images_per_step,
        leave=False,
        dynamic_ncols=True,
        mininterval=0.5,
        disable=None if is_first() else True,
    )
