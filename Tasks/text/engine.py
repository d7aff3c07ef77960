"""The loops: one epoch of training, one evaluation. All tokens are in memory, so batches are rows of a tensor."""

from errors import InputError

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data import Split
from metrics import outcomes, summarise

POOL = 50  # number of batches within which texts are sorted by length
MOST_LOGITS = 50_000_000  # numbers in a logits file, 200 MB: a language model has one per token and word


def training_order(lengths: Tensor, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """Batches of rows: shuffled, then sorted by length within pools of POOL batches, then shuffled as batches.

    The order depends only on (seed, epoch), so a resumed run needs no history. Every row occurs once; one batch may be smaller.
    """
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))
    batches = []
    for pool in torch.randperm(len(lengths), generator=generator).split(POOL * batch_size):
        batches += pool[lengths[pool].argsort(stable=True)].split(batch_size)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def train_one_epoch(model: nn.Module, criterion: nn.Module, data: Split, optimizer, args, epoch: int) -> float:
    """Train for one epoch; returns the mean loss per target. `epoch` counts from 0. Raises InputError if it is not finite."""
    model.train()
    criterion.train()
    if hasattr(criterion, "set_epoch"):
        criterion.set_epoch(epoch, args.epochs)
    total, count = torch.zeros((), dtype=torch.float64, device=args.device), 0
    batches = training_order(data.lengths, args.batch_size, args.seed, epoch)
    for rows in tqdm(batches, f"epoch {epoch + 1}/{args.epochs}", leave=False, disable=None, unit=" steps"):
        tokens, lengths, targets = data.batch(rows, args.device)
        optimizer.zero_grad()
        with torch.autocast(args.device, torch.bfloat16, enabled=args.amp == "bf16"):
            logits = model(tokens, lengths)
        loss = criterion(logits.float(), targets)
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(targets)
        count += len(targets)
    if hasattr(criterion, "renew"):
        criterion.renew()
    if not total.isfinite() or not all(p.isfinite().all() for p in model.parameters()):
        raise InputError(
            f"the loss or the weights are not finite in epoch {epoch + 1}; this epoch was not saved, and the last checkpoint is "
            "good. Try a lower --lr"
        )
    return total.item() / count


@torch.inference_mode()
def evaluate(model: nn.Module, data: Split, args) -> tuple[dict[str, float], Tensor, Tensor]:
    """Metrics in evaluation mode and in float32 (see metrics.summarise); logits float32 (M, K) and targets (M,) on the CPU.

    The metrics count every target. For a language model with many tokens, only every n-th token's logits and target are returned,
    as MOST_LOGITS allows.
    """
    model.eval()
    order = data.lengths.argsort(descending=True, stable=True)  # for a language model, the order of the text
    classifies = data.targets.ndim == 1
    stride, seen = 1 if classifies else None, 0
    found, kept = [], []
    size = 4 * args.batch_size if classifies else -(-args.batch_size // 4)  # a language model's logits are large
    for rows in tqdm(order.split(size), "evaluate", leave=False, disable=None, unit=" steps"):
        tokens, lengths, targets = data.batch(rows, args.device)
        logits = model(tokens, lengths)
        found.append(outcomes(logits, targets).cpu())
        stride = stride or -(-int(data.lengths.sum()) * logits.shape[1] // MOST_LOGITS)
        first = -seen % stride
        kept.append((logits[first::stride].float().cpu().clone(), targets[first::stride].cpu().clone()))
        seen += len(targets)
    logits, targets = (torch.cat(parts) for parts in zip(*kept, strict=True))
    if not logits.isfinite().all():
        raise InputError("some logits are not finite, so there is nothing to measure. Try a lower --lr")
    if classifies:  # restore the order of the files
        back = order.argsort()
        logits, targets = logits[back], targets[back]
    return summarise(torch.cat(found, 1)), logits, targets
