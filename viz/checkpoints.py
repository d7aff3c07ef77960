"""Checkpoints of the trainers: read without running what is in them, and turned back into models."""

import pickle
from pathlib import Path

import timm
import torch
from torch import nn

from errors import InputError


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint with weights_only=True alone. Raises InputError if it is missing, damaged or would run code."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("Please file an issue")[0].split("\n")[-1].strip() or "unreadable"
        raise InputError(f"{path}: refused, it holds more than tensors and plain types ({reason}); nothing in it was run")
    except Exception as error:  # a damaged file can fail in any way
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"{path}: damaged, or not a PyTorch checkpoint ({reason})")
    ours = isinstance(state, dict) and all(isinstance(state.get(key), dict) for key in ("model", "args"))
    facts = {"model", "num_classes", "input_size", "crop_ratio", "interpolation", "mean", "std", "data_path"}
    if not ours or not facts <= state["args"].keys() or not isinstance(state.get("classes"), list):
        raise InputError(f"{path}: not a checkpoint of this project's trainers, which hold 'model' and 'args'")
    return state


def build_model(state: dict, path: Path, ema: bool = False) -> nn.Module:
    """The timm model that a checkpoint describes, with its weights (or their moving average), ready to evaluate."""
    args = state["args"]
    if not timm.is_model(args["model"]):
        raise InputError(f"{path}: its model {args['model']!r} is not one of timm {timm.__version__}")
    weights = state.get("model_ema") if ema else state["model"]
    if weights is None:
        raise InputError(f"{path}: holds no moving average of the weights")
    try:
        model = timm.create_model(args["model"], num_classes=args["num_classes"], img_size=args["input_size"])
    except TypeError:  # models without position embeddings do not know the size
        model = timm.create_model(args["model"], num_classes=args["num_classes"])
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{path}: its weights do not fit {args['model']}: {str(error).splitlines()[1].strip()[:160]}")
    return model.eval()


def logits_and_features(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, K), and the penultimate features (B, D): what the classifier reads."""
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    return model.get_classifier()(features), features
