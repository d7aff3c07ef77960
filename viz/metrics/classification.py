"""Accuracy, likelihood and confidence of predictions: top-1, top-5, NLL, Brier score, mean MSP."""

import torch
from torch import Tensor

from metrics import calibration_error
from metrics.outputs import Outputs, Training
from metrics.risk_coverage import aurc


def columns(logits: Tensor, labels: Tensor) -> Tensor:
    """(n, 5) float64 of logits (n, K) and labels (n,): MSP - 1, right, in the top 5, NLL in nats, Brier score.

    MSP is the largest softmax probability; near certainty, rounding would lose the digits of MSP but not those of MSP - 1. The
    Brier score is summed over the classes.
    """
    target = labels.unsqueeze(1)
    in_top5 = (logits.topk(min(5, logits.shape[1])).indices == target).any(1)
    top, predicted = logits.max(1)
    gaps = logits.double() - top.double().unsqueeze(1)
    nll = -gaps.gather(1, target).squeeze(1)
    odds = gaps.exp_()
    at_target = odds.gather(1, target).squeeze(1)
    rest = odds.scatter_(1, predicted.unsqueeze(1), 0.0).sum(1)  # odds of every class but the predicted one, whose own are 1
    total = 1 + rest
    brier = (1 + odds.square().sum(1)) / total**2 - 2 * at_target / total + 1
    return torch.stack([-rest / total, (predicted == labels).double(), in_top5.double(), nll + rest.log1p(), brier], 1)


def classification(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """top1 and top5 (%), nll (nats), brier (sum over classes, mean over samples), ece and aurc (fractions)."""
    outputs = Outputs({"logits": logits, "labels": labels}, "the model")
    msp, right, top5, nll, brier = torch.cat([columns(*chunk) for chunk in outputs.chunks()]).T
    rates = {"top1": 100 * right.mean().item(), "top5": 100 * top5.mean().item(), "nll": nll.mean().item()}
    return rates | {"brier": brier.mean().item(), **calibration_error.measure(outputs, None), "aurc": aurc(msp, right.bool())}


def measure(test: Outputs, train: Training | None) -> dict[str, float | None]:
    """Also the mean MSP of right and wrong predictions; train_top1 by the training labels, _clean by the data set's own."""

    def summed(logits: Tensor, labels: Tensor) -> Tensor:
        rows = columns(logits, labels)
        right, confidence = rows[:, 1], 1 + rows[:, 0]
        return torch.cat([rows[:, 1:], torch.stack([confidence * right, confidence * (1 - right)], 1)], 1)

    right, top5, nll, brier, sure_right, sure_wrong = test.mean(summed)
    found = {"images": test.units, "top1": 100 * right, "top5": 100 * top5, "nll": nll, "brier": brier}
    found["confidence_right"] = sure_right / right if right > 0 else None
    found["confidence_wrong"] = sure_wrong / (1 - right) if right < 1 else None
    found["train_top1"] = None
    if train is not None:
        predicted, own = train.predicted, train.own_labels
        found["train_top1"] = 100 * (predicted == train.labels).double().mean().item()
        if not torch.equal(own, train.labels):
            found["train_top1_clean"] = 100 * (predicted == own).double().mean().item()
    return found
