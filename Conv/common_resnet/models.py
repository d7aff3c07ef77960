"""Models by name: torchvision's, their variants for small images, the CIFAR ResNets; and two wrappers for training."""

import difflib

from errors import InputError

import torch
import torchvision
from torch import Tensor, nn

import distributed
from catalogue import CIFAR, DENSENETS, NAMES
from cifar_densenet import cifar_densenet
from cifar_resnet import CifarResNet

SMALL_STEM_UP_TO = 64  # pixels; after the ImageNet stem and all stages, images up to this size would be two pixels wide or less


def model_facts(name: str, input_size: int, width: int = 16, stem_stride: int = 1) -> dict:
    """The facts that a checkpoint must have so that its model can be rebuilt. Raises InputError for a bad name or width."""
    if name in CIFAR:
        return {"model": name, "library": "cifar", "width": width, "stem_stride": stem_stride}
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.4) or NAMES
        raise InputError(f"--model {name}: no such model here; near names: {', '.join(near)}")
    if (width, stem_stride) != (16, 1):
        raise InputError(f"--width and --stem-stride are for the CIFAR ResNets ({', '.join(CIFAR)}), not for {name}")
    if name in DENSENETS:
        return {"model": name, "library": "cifar"}
    return {"model": name, "library": "torchvision", "small_stem": input_size <= SMALL_STEM_UP_TO}


def outputs(weights: dict[str, Tensor], source: str) -> int:
    """The number of classes of a bare state dict. Raises InputError if it contains no classifier weight."""
    heads = [value for key, value in weights.items() if key.startswith(("fc.", "linear.", "classifier.")) and value.ndim == 2]
    if not heads:
        raise InputError(f"{source}: has no classifier weight")
    return len(heads[-1])


def create_model(facts: dict, num_classes: int) -> nn.Module:
    """The model described by facts (see model_facts), with fresh weights."""
    if facts["model"] in DENSENETS:
        return cifar_densenet(100, num_classes)
    if facts["library"] == "cifar":
        return CifarResNet(CIFAR[facts["model"]], num_classes, facts.get("width", 16), facts.get("stem_stride", 1))
    model = torchvision.models.get_model(facts["model"], weights=None, num_classes=num_classes)
    if facts["small_stem"]:
        _use_small_stem(model)
    return model


def _use_small_stem(model: nn.Module) -> None:
    """Make the first layers keep the resolution of small images, as in the CIFAR literature's ResNet-18 and MobileNetV2."""
    if hasattr(model, "conv1"):
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    else:
        model.features[0][0].stride = (1, 1)


def classifier(model: nn.Module) -> nn.Linear:
    """The last layer, whose input is the penultimate features."""
    head = getattr(model, "linear", None) or getattr(model, "fc", None) or model.classifier
    return head[-1] if isinstance(head, nn.Sequential) else head


class WithDenseLogits(nn.Module):
    """A model that also applies its classifier to each location of the last feature map, for Zipf's label smoothing.

    forward(images) -> logits (N, K), dense_logits (N, K, locations); the dense logits are only votes and carry no gradient.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        stages = [getattr(model, name, None) for name in ("features", "layer4", "layer3")]
        next(stage for stage in stages if stage is not None).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        # torchvision's DenseNet applies the last ReLU outside the module that is hooked here.
        self.feature_map = output.detach().relu() if isinstance(self.model, torchvision.models.DenseNet) else output.detach()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images)
        with torch.no_grad():
            dense = classifier(self.model)(self.feature_map.flatten(2).transpose(1, 2)).transpose(1, 2)
        return logits, dense


class _SumOverProcesses(torch.autograd.Function):
    """A sum over processes. Every process uses the sum, so its gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return distributed.sum_over_processes(x.clone())

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return distributed.sum_over_processes(grad.clone())


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, for CPUs, which nn.SyncBatchNorm does not support (as of torch 2.15)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        count = x.numel() // x.shape[1] * distributed.world_size()
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # sums in bfloat16 would be inaccurate
        mean = _SumOverProcesses.apply(wide.sum((0, 2, 3))) / count
        centred = wide - mean.view(1, -1, 1, 1)
        variance = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(x.dtype)


def sync_batch_norm(model: nn.Module, device: str) -> nn.Module:
    """Replace batch norm by one whose statistics are over all processes."""
    if device == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in list(model.modules()):
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm2d  # same parameters and buffers, another forward pass
    return model


def wrap(model: nn.Module, dense: bool, compiled: bool, device: str, small: bool = False) -> nn.Module:
    """Wrap the model for training: with dense logits, for several processes, compiled. bare_model unwraps it.

    With `small` images, a GPU would wait for kernel launches, so a compiled model runs as CUDA graphs.
    """
    if dense:
        model = WithDenseLogits(model)
    if distributed.world_size() > 1:
        devices = [torch.cuda.current_device()] if device == "cuda" else None
        # Gradients are views of the averaged buckets. Each process has its own batch norm statistics until share_buffers.
        model = nn.parallel.DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
        model.broadcast_buffers = False  # the argument is deprecated since torch 2.13, and its successor is missing in 2.11
    captured = small and device == "cuda" and not dense and distributed.world_size() == 1
    return torch.compile(model, mode="reduce-overhead" if captured else None) if compiled else model


def bare_model(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of torch.compile, DistributedDataParallel and WithDenseLogits."""
    model = getattr(model, "_orig_mod", model)
    model = getattr(model, "module", model)
    return model.model if isinstance(model, WithDenseLogits) else model
