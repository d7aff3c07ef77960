"""The DenseNets of Huang et al. (2017) for 32-pixel images: torchvision's DenseNet with a stem that keeps the resolution."""

from collections import OrderedDict

from torch import nn
from torchvision.models import DenseNet


def cifar_densenet(depth: int, num_classes: int, growth: int = 12) -> DenseNet:
    """DenseNet-BC of `depth` layers and growth rate `growth`: images (N, 3, H, W) -> logits (N, num_classes).

    H and W are at least 8. It has three dense blocks of (depth - 4) / 6 pairs of 1x1 and 3x3 convolutions; each transition
    halves channels and resolution. With L = 100 and k = 12 it has 769,162 parameters for 10 classes (the paper: 0.8 M).
    """
    layers = (depth - 4) // 6
    model = DenseNet(growth, (layers,) * 3, 2 * growth, bn_size=4, num_classes=num_classes)
    stages = [(name, stage) for name, stage in model.features.named_children() if not name.endswith("0")]
    stem = nn.Conv2d(3, 2 * growth, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight)
    model.features = nn.Sequential(OrderedDict([("conv0", stem), *stages]))
    return model
