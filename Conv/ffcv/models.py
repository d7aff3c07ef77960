"""torchvision's classifiers, BlurPool for their strided convolutions, and per-location predictions for Zipf's loss."""

import difflib

from errors import InputError, say

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import distributed


def create_model(arch: str, num_classes: int, blurpool: bool = False, small_stem: bool = False) -> nn.Module:
    """A torchvision model with fresh weights.

    Raises InputError for an unknown name, naming near ones, and for a small stem in a model that is not a ResNet.
    """
    auxiliary = {"googlenet", "inception_v3"}  # their auxiliary classifiers need additional losses in training
    names = [name for name in torchvision.models.list_models(module=torchvision.models) if name not in auxiliary]
    if arch not in names:
        near = ", ".join(difflib.get_close_matches(arch, names, n=3, cutoff=0.4)) or "resnet18, resnet50"
        raise InputError(f"model.arch={arch}: torchvision has no such classifier; near names: {near}")
    model = torchvision.models.get_model(arch, weights=None, num_classes=num_classes)
    if small_stem:
        if not isinstance(model, torchvision.models.ResNet):
            raise InputError(f"model.small_stem=1: for ResNets, which {arch} is not")
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    if blurpool:
        add_blurpool(model)
    return model


class BlurPool(nn.Module):
    """A strided convolution, preceded by the blur [1 2 1] x [1 2 1] / 16 of each channel (Zhang, ICML 2019).

    Names are those of ffcv-imagenet's checkpoints: conv, and the buffer blur_filter (C, 1, 3, 3).
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv
        line = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("blur_filter", (torch.outer(line, line) / 16).repeat(conv.in_channels, 1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(F.conv2d(images, self.blur_filter, padding=1, groups=self.conv.in_channels))


def add_blurpool(model: nn.Module) -> None:
    """Wrap every strided convolution with at least 16 input channels in BlurPool, as ffcv-imagenet does."""
    for name, child in model.named_children():
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16:
            setattr(model, name, BlurPool(child))
        else:
            add_blurpool(child)


class WithDenseLogits(nn.Module):
    """A torchvision ResNet that also applies its classifier to each location of its last feature map.

    forward(images) -> logits (N, K), dense_logits (N, K, locations); the dense logits are only votes and carry no gradient.
    """

    def __init__(self, model: torchvision.models.ResNet):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model
        features = model.maxpool(model.relu(model.bn1(model.conv1(images))))
        features = model.layer4(model.layer3(model.layer2(model.layer1(features))))
        # The logits come first: autocast would cache the cast weights from under no_grad below, which have no gradient.
        logits = model.fc(model.avgpool(features).flatten(1))
        with torch.no_grad():
            dense = model.fc(features.flatten(2).transpose(1, 2)).transpose(1, 2)
        return logits, dense


def wrap(model: nn.Module, dense: bool, compiled: bool, device: torch.device) -> nn.Module:
    """Wrap the model for training: with dense logits if it is a ResNet, for several processes, compiled."""
    if dense and isinstance(model, torchvision.models.ResNet):
        model = WithDenseLogits(model)
    elif dense:
        say("zipf: the ranks come from the logits; the feature map can vote only in ResNets")
    if distributed.world_size() > 1:
        devices = [device] if device.type == "cuda" else None
        # Gradients are views of the averaged buckets. Each process has its own batch norm statistics until share_buffers.
        model = nn.parallel.DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
        model.broadcast_buffers = False  # the argument is deprecated since torch 2.13, and its successor is missing in 2.11
    return torch.compile(model) if compiled else model


def bare_model(model: nn.Module) -> nn.Module:
    """The torchvision model inside the wrappers of torch.compile, DistributedDataParallel and WithDenseLogits."""
    model = getattr(model, "_orig_mod", model)
    model = getattr(model, "module", model)
    return model.model if isinstance(model, WithDenseLogits) else model
