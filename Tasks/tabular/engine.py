"""The loops: one epoch of training, one evaluation. The whole table is in memory, so batches are rows of a tensor."""

from errors import InputError

import numpy as np
import torch
from torch import Tensor, nn

from metrics import outcomes, summarise


def train_one_epoch(model: nn.Module, criterion: nn.Module, x: Tensor, y: Tensor, optimizer, args, epoch: int) -> float:
    """Train for one epoch on x (N, F) and y (N,); returns the mean loss. `epoch` counts from 0.

    The order of the rows depends only on (seed, epoch), so a resumed run needs no history. An incomplete last batch is kept.
    Raises InputError if a loss is not finite.
    """
    model.train()
    criterion.train()
    if hasattr(criterion, "set_epoch"):
        criterion.set_epoch(epoch, args.epochs)
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([args.seed, epoch]).generate_state(1)[0]))
    order = torch.randperm(len(x), generator=generator).to(x.device)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for rows in order.split(args.batch_size):
        optimizer.zero_grad()
        loss = criterion(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(rows)
    if hasattr(criterion, "renew"):
        criterion.renew()
    if not total.isfinite() or not all(p.isfinite().all() for p in model.parameters()):
        raise InputError(
            f"the loss or the weights are not finite in epoch {epoch + 1}; this epoch was not saved, and the last checkpoint is "
            "good. Try a lower --lr"
        )
    return total.item() / len(x)


@torch.inference_mode()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[dict[str, float], Tensor]:
    """Metrics in evaluation mode (see metrics.summarise), and the logits (N, K) float32 on the CPU.

    Raises InputError if a logit is not finite.
    """
    model.eval()
    logits = torch.cat([model(part) for part in x.split(8192)]).float().cpu()
    if not logits.isfinite().all():
        raise InputError("some logits are not finite, so there is nothing to measure. Try a lower --lr")
    return summarise(outcomes(logits, y.cpu())), logits
