"""Every metric of one trained model of Conv/common_resnet, by the definitions of viz/."""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / "viz"))
sys.path.insert(0, str(TOP / "Conv/common_resnet"))

import checkpoint
from longtail import long_tailed
from maxsup_loss import label_smoothing_terms
from metrics import classification, feature_variation
from networks import classifier, create_model
from rankings import rank_images
from selective import analyse
from small_images import SmallImages
from sources import open_split
from superclasses import group
from transfer import transfer

STRENGTHS = [1e-3, 1e-2, 1e-1, 1.0]
TRANSFER_IMAGES = 10_000  # training images that the transferred classifier is fitted to: enough for 10 classes, and seconds


def measure(path: Path, with_transfer: bool) -> dict[str, float | None]:
    """Metrics of checkpoint.pth on its own data, in evaluation mode, without augmentation.

    top1, top5 (%), nll (nats), brier, ece, aurc (of MSP), all on the test images; train_top1. d_within and r2 of the penultimate
    features on both. Training images are those that were trained on. aurc_split_msp and aurc_normalised: MSP and s_p on the same
    four fifths of the test images, p chosen on the others, means over 10 splits. transfer: top-1 (%) on the test images of the
    data set's own classes, from frozen features.
    """
    state = checkpoint.load(path)
    args = Namespace(**state["args"], device="cpu") if "device" not in state["args"] else Namespace(**state["args"])
    args.data_path = Path(args.data_path) if args.data_path else None
    model = create_model(state["args"], args.num_classes)
    checkpoint.load_weights(model, state["model"], path)
    model = model.eval().to(memory_format=torch.channels_last)
    found, features, names = {}, {}, {}
    for split in ("train", "val"):
        data = open_split(args, split)
        names[split] = [data.classes[label] for label in data.labels.tolist()]  # before they are grouped
        if args.superclasses:
            table, _, coarse = group(args.data, data.classes, args.superclasses)
            data.relabel(table, coarse)
        if split == "train" and args.imbalance_ratio != 1:  # only what was trained on
            rows = long_tailed(data.labels, len(data.classes), args.imbalance_ratio)
            data.keep(rows)
            names[split] = [names[split][row] for row in rows.tolist()]
        logits, features[split] = outputs(model, data)
        variation = feature_variation(features[split], data.labels)
        found |= {f"{key}_{split}": variation[key] for key in ("d_within", "r2")}
        if split == "train":
            found["train_top1"] = classification(logits, data.labels)["top1"]
        else:
            found |= classification(logits, data.labels) | of_errors(logits, data.labels)
            found |= of_selection(logits, data.labels)
    if with_transfer:
        rows = torch.randperm(len(features["train"]), generator=torch.Generator().manual_seed(0))[:TRANSFER_IMAGES]
        chosen = [names["train"][row] for row in rows.tolist()]
        found["transfer"] = transfer(features["train"][rows], chosen, features["val"], names["val"], STRENGTHS)["test_top1"]
    return found


@torch.inference_mode()
def outputs(model: torch.nn.Module, data: SmallImages) -> tuple[Tensor, Tensor]:
    """Logits (N, K) and penultimate features (N, D), what the classifier reads, in the order of the images."""
    seen, logits = [], []
    hook = classifier(model).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    for images, _ in data.evaluation_batches(512):
        logits.append(model(images))
    hook.remove()
    return torch.cat(logits), torch.cat(seen)


def of_selection(logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    model = rank_images(logits, labels, "model")
    scores = analyse({"model": model}, bootstrap=0)["models"]["model"]["scores"]
    return {
        "aurc_split_msp": scores["split_msp"]["aurc"]["value"],
        "aurc_normalised": scores["normalised"]["aurc"]["value"],
        "excess_aurc": scores["msp"]["excess_aurc"]["value"],
        "aurc_max_logit": scores["max_logit"]["aurc"]["value"],
    }


def of_errors(logits: Tensor, labels: Tensor) -> dict[str, float | None]:
    """The two parts of label smoothing's term (alpha 0.1), means over images, and how error enhancement goes with errors.

    error_enhancement_rank: Spearman's correlation over classes of the error rate with the size of the error enhancement.
    maxsup_enhancement: the same part of MaxSup's term: the sum of alpha/K * (z_max - z_m) over the z_m above z_max.
    """
    regularisation, enhancement = label_smoothing_terms(logits.double(), labels)
    top = logits.double().max(1, keepdim=True).values
    wrong = (logits.argmax(1) != labels).double()
    classes = torch.bincount(labels).double()
    rates, sizes = (torch.zeros_like(classes).index_add_(0, labels, x) / classes for x in (wrong, -enhancement))
    rank = spearmanr(rates.numpy(), sizes.numpy()).statistic if len(classes) > 3 else np.nan
    return {
        "regularisation": regularisation.mean().item(),
        "error_enhancement": enhancement.mean().item(),
        "error_enhancement_rank": float(rank) if np.isfinite(rank) else None,
        "maxsup_enhancement": (0.1 * (top - logits.double()).clamp(max=0).mean(1)).mean().item(),
    }
