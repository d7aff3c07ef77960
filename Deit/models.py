"""Models: any timm model by name, and a wrapper that returns per-location predictions for Zipf's label smoothing."""

import difflib

from errors import InputError, say

import timm
import torch
from torch import Tensor, nn

import distributed


def create_model(name: str, num_classes: int, input_size: int, drop: float, drop_path: float) -> nn.Module:
    """Build a timm model with fresh weights. Raises InputError for an unknown name, listing near ones."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.4)
        hint = f"near names: {', '.join(near)}" if near else "timm.list_models() lists the known ones"
        raise InputError(f"--model {name}: timm has no such model; {hint}")
    options = {"num_classes": num_classes, "drop_rate": drop, "drop_path_rate": drop_path, "img_size": input_size}
    # Models with position embeddings need img_size, others do not accept it; some do not accept drop_path_rate.
    for unknown in ((), ("img_size",), ("drop_path_rate",), ("img_size", "drop_path_rate")):
        try:
            model = timm.create_model(name, **{key: value for key, value in options.items() if key not in unknown})
            with torch.no_grad():  # one image, to check that the model accepts the size
                model.eval()(torch.zeros(1, 3, input_size, input_size))
            return model.train()
        except TypeError as error:
            reason = error
        except (AssertionError, ValueError, RuntimeError) as error:
            reason = error
            break
    raise InputError(f"--model {name} cannot have --input-size {input_size}: {str(reason).splitlines()[0]}")


def wrap(model: nn.Module, dense: bool, compiled: bool, device: str) -> nn.Module:
    """Wrap the model for training: with dense logits if it has them, for several processes, compiled."""
    if dense and has_dense_logits(model):
        model = WithDenseLogits(model)
    elif dense:
        say("zipf: this model's classifier cannot read its feature map, so the ranks come from the logits")
    if distributed.world_size() > 1:
        devices = [torch.cuda.current_device()] if device == "cuda" else None
        # Gradients are views of the averaged buckets. Each process has its own batch norm statistics until share_buffers.
        model = nn.parallel.DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
        model.broadcast_buffers = False  # the argument is deprecated since torch 2.13, and its successor is missing in 2.11
    return torch.compile(model) if compiled else model


class WithDenseLogits(nn.Module):
    """A timm model that also applies its classifier to each location of its last feature map.

    forward(images) -> logits (N, K), dense_logits (N, K, locations); the dense logits are only votes and carry no gradient.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.model.forward_features(images)
        # The logits come first: autocast would cache the cast weights from under no_grad below, which have no gradient.
        logits = self.model.forward_head(features)
        with torch.no_grad():
            dense = self.model.get_classifier()(locations(self.model, features)).transpose(1, 2)
        return logits, dense


def has_dense_logits(model: nn.Module) -> bool:
    """Whether the classifier can be applied to single locations: it is a linear layer on the feature map's channels.

    Models with a norm between pooling and classifier are excluded, because the norm would be skipped.
    """
    classifier = model.get_classifier()
    norms = (getattr(model, "fc_norm", None), getattr(getattr(model, "head", None), "norm", None))
    if any(norm is not None and not isinstance(norm, nn.Identity) for norm in norms):
        return False
    return isinstance(classifier, nn.Linear) and classifier.in_features == model.num_features


def locations(model: nn.Module, features: Tensor) -> Tensor:
    """The feature map (N, C, H, W), (N, H, W, C) or (N, tokens, C) as (N, locations, C), without the class tokens."""
    if features.ndim == 3:
        return features[:, getattr(model, "num_prefix_tokens", 0) :]
    if features.shape[1] == model.num_features:
        return features.flatten(2).transpose(1, 2)
    return features.flatten(1, 2)
