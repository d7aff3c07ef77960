"""Checkpoints: what they contain, and what other programs need to know about a model. states.py writes and reads them.

A checkpoint is a dict of tensors and plain types:

    model, optimizer, lr_scheduler, scaler, loss   state dicts
    model_ema           the state dict of the moving average of the weights, or None
    epoch               the last finished epoch, counted from 0
    rng                 {"seed": ...}: every generator is reseeded from the seed and the step, so the seed is its whole state
    classes             class names in label order; absent if the data has no class names
    args                the options of the run, the facts below, and what only this trainer reads
    training_rows       optional: int64, the rows of the training split that were used, if only some were
    training_labels     optional: int64, the labels of those rows, if they differ from those of the data set
"""

from pathlib import Path

from torch import nn

import states

NAME = "checkpoint.pth"


def facts(
    *,
    model: str,
    library: str,
    num_classes: int,
    input_size: int | list[int],
    mean: list[float],
    std: list[float],
    interpolation: str,
    crop_ratio: float,
    data: str | None,
    data_path: Path | None,
    superclasses: dict[str, list[str]] | None = None,
    width: int | None = None,
    stem_stride: int | None = None,
    small_stem: bool | None = None,
    blurpool: bool | None = None,
) -> dict:
    """What another program needs to build the model and prepare its input, as entries of a checkpoint's `args`.

    model, library      the model's name and its library: "timm", "torchvision", "cifar" for the ResNets of 32-pixel images,
                        "smp" for segmentation-models-pytorch
    num_classes         outputs of the classifier
    input_size          side of the square input, pixels; for segmentation, height and width of the training crops
    mean, std           of the input's channels, for values in [0, 1]
    interpolation       "bilinear", "bicubic", ...: how images are resized in evaluation
    crop_ratio          the shorter side is resized to input_size / crop_ratio before the centre crop
    data, data_path     name of the data set, None for an image folder; the folder that contains it
    superclasses        class names by superclass, if the superclasses were the labels
    width, stem_stride  of a CIFAR ResNet
    small_stem          a torchvision model whose first layers keep the resolution of small images
    blurpool            a torchvision model with BlurPool
    """
    said = locals() | {"mean": list(mean), "std": list(std), "data_path": str(data_path.resolve()) if data_path else None}
    return {name: value for name, value in said.items() if value is not None or name in ("data", "data_path")}


def save(
    path: Path,
    model: nn.Module,
    ema: nn.Module | None,
    parts: dict[str, object],
    classes: list[str] | None,
    epoch: int,
    seed: int,
    args: dict,
    **more: object,
) -> None:
    """Write the checkpoint of a finished epoch, counted from 0. Raises InputError if it cannot be written.

    Each of `parts` has a state dict; `args` are options and facts; `more` are further entries.
    """
    state = {"model": model.state_dict(), "model_ema": ema.state_dict() if ema else None, "scaler": {}}
    state |= {name: part.state_dict() for name, part in parts.items()}
    plain = {key: str(value.resolve()) if isinstance(value, Path) else value for key, value in args.items()}
    names = {} if classes is None else {"classes": classes}
    states.write(state | {"epoch": epoch, "rng": {"seed": seed}, "args": plain, **names, **more}, path)
