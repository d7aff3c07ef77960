"""Preprocessing and augmentation of images."""

from timm.data import create_transform
from torchvision import transforms
from torchvision.transforms.functional import InterpolationMode

from options import SMALL


def crop_ratio(input_size: int, ratio: float) -> float:
    """The share of the resized shorter side that the centre crop in evaluation keeps; 1 for small images."""
    return 1.0 if input_size <= SMALL else ratio


def train_transform(
    input_size: int, mean: list[float], std: list[float], simple_crop: bool = False, **augmentation
) -> transforms.Compose:
    """timm's training transform with these options of its create_transform. Small images get DeiT's padded crop as first step.

    simple_crop: DeiT III's (arXiv 2204.07118), which resizes the shorter side and takes a random crop of fixed size, instead of a
    random resized crop.
    """
    transform = create_transform(input_size=input_size, is_training=True, mean=mean, std=std, **augmentation)
    if simple_crop:
        transform.transforms[0:1] = [_resize(input_size), transforms.RandomCrop(input_size, padding=4, padding_mode="reflect")]
    elif input_size <= SMALL:
        transform.transforms[0:1] = [_resize(input_size), transforms.RandomCrop(input_size, padding=input_size // 8)]
    return transform


def eval_transform(
    input_size: int, crop_ratio: float, mean: list[float], std: list[float], interpolation: str = "bicubic"
) -> transforms.Compose:
    """Resize the shorter side to input_size / crop_ratio, and crop the centre."""
    crop = [_resize(int(input_size / crop_ratio), interpolation), transforms.CenterCrop(input_size)]
    return transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(mean, std)])


def _resize(side: int, interpolation: str = "bicubic") -> transforms.Resize:
    return transforms.Resize(side, interpolation=InterpolationMode(interpolation))
