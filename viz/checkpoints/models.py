"""Models as nn.Modules: timm's and torchvision's by name, and those that both lack, which the ConvNet trainers define.

These are the CIFAR ResNets (He et al. 2016, section 4.2), the CIFAR DenseNets (Huang et al. 2017), and ffcv-imagenet's BlurPool,
a blur before strided convolutions (Zhang 2019). Submodules carry the names that the trainers' checkpoints use.
"""

from collections import OrderedDict

from common.errors import InputError, reason

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

LIBRARIES = ("timm", "torchvision", "cifar")
DENSENETS = {"densenet_bc100": 100}  # their number of layers


def create(library: str, name: str, num_classes: int, input_size: int | None = None, **variant) -> nn.Module:
    """A model with fresh weights, in evaluation mode, for RGB images of input_size px (None: the architecture's own).

    `variant` may hold small_stem (torchvision: first layers that keep the resolution), blurpool (torchvision), width and
    stem_stride (cifar: channels of the first stage, stride of the first convolution). Raises InputError for a name that the
    library lacks.
    """
    if not known(library, name):
        raise InputError(f"{library} has no model {name!r}")
    if name in DENSENETS:
        return cifar_densenet(DENSENETS[name], num_classes).eval()
    if library == "cifar":
        return CifarResNet(
            int(name.removeprefix("resnet")), num_classes, variant.get("width", 16), variant.get("stem_stride", 1)
        ).eval()
    if library == "timm":
        model = _with_size(timm.create_model, name, "img_size", input_size, num_classes=num_classes)
    else:
        model = _with_size(torchvision.models.get_model, name, "image_size", input_size, weights=None, num_classes=num_classes)
        if variant.get("small_stem"):
            make_stem_small(model)
        if variant.get("blurpool"):
            add_blurpool(model)
    return model.eval()


def known(library: str, name: str) -> bool:
    if library == "cifar":
        return name in DENSENETS or name in {f"resnet{depth}" for depth in range(8, 1203, 6)}
    return timm.is_model(name) if library == "timm" else name in torchvision_names()


def torchvision_names() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)


def _with_size(make, name: str, word: str, size: int | None, **options) -> nn.Module:
    if size is not None:
        try:
            return make(name, **options, **{word: size})
        except TypeError:  # models without position embeddings take no size
            pass
        except (AssertionError, ValueError, RuntimeError) as error:
            raise InputError(f"{name} cannot have --input-size {size}: {reason(error)}")
    return make(name, **options)


def classifier(model: nn.Module) -> nn.Module:
    """The last layer, which turns the penultimate features into logits."""
    if hasattr(model, "get_classifier"):
        head = model.get_classifier()
        head = head[0] if isinstance(head, tuple) else head  # distilled DeiTs have two
        if isinstance(head, nn.ModuleList):
            raise InputError(f"{type(model).__name__}: it has several classifiers side by side, so no penultimate features")
        if not hasattr(head, "weight"):  # a block: RepViT's holds two heads, others normalise first or have a layer before
            head = [layer for layer in getattr(head, "head", head).modules() if isinstance(layer, nn.Linear)][-1]
        return head
    layers = list(model.modules())
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    return (linear or [layer for layer in layers if isinstance(layer, nn.Conv2d)])[-1]


def templates(model: nn.Module) -> Tensor:
    """The classifier's weights (K, D) float64: what each class's features are compared with."""
    return classifier(model).weight.detach().flatten(1).double()


def logits_and_features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, K), and the penultimate features (B, D): the classifier's input, averaged over pixels if it is a map."""
    seen = []
    hook = classifier(model).register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    try:
        logits = model(images)
    finally:
        hook.remove()
    features = seen[0]
    return logits, features.flatten(2).mean(2) if features.ndim == 4 else features


class CifarResNet(nn.Module):
    """ResNet of 6n + 2 layers for small images: three stages of n blocks with width, 2 width and 4 width channels."""

    def __init__(self, depth: int, num_classes: int, width: int = 16, stem_stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage in range(3):
            blocks = []
            for block in range((depth - 2) // 6):
                stride = 2 if stage and not block else 1
                blocks.append(CifarBlock(channels, width << stage, stride))
                channels = width << stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters, which subsamples pixels and zero-pads channels (option A)."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.new = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.new:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


def cifar_densenet(depth: int, num_classes: int, growth: int = 12) -> nn.Module:
    """DenseNet-BC for small images: torchvision's, with three blocks, after one 3x3 convolution that keeps the resolution."""
    model = torchvision.models.DenseNet(growth, ((depth - 4) // 6,) * 3, 2 * growth, num_classes=num_classes)
    stages = [(name, stage) for name, stage in model.features.named_children() if not name.endswith("0")]
    stem = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
    model.features = nn.Sequential(OrderedDict([("conv0", stem), *stages]))
    return model


class BlurPool(nn.Module):
    """A strided convolution that reads its input through a fixed 3x3 binomial filter, as ffcv-imagenet wraps it."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("blur_filter", (row[:, None] * row / 16).repeat(conv.in_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.conv2d(x, self.blur_filter, padding=1, groups=self.conv.in_channels))


def add_blurpool(model: nn.Module) -> None:
    """Wrap, in place, every convolution with a stride above 1 and at least 16 input channels."""
    for name, child in list(model.named_children()):
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16:
            setattr(model, name, BlurPool(child))
        else:
            add_blurpool(child)


def make_stem_small(model: nn.Module) -> None:
    """Replace, in place, the first layers of a torchvision ResNet or MobileNetV2, made for 224 px, by layers for 32 px."""
    if isinstance(model, torchvision.models.ResNet):
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif isinstance(model, torchvision.models.MobileNetV2):
        model.features[0][0].stride = (1, 1)
    else:
        raise InputError("a small stem (stride 1) is known only for torchvision's ResNets and MobileNetV2")
