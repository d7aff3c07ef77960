"""How a model is shown an image: scaled and cut as in its training's validation, then normalised."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms


def transform(facts: dict) -> Callable[[Image.Image], Tensor]:
    """Scale the shorter side to input_size / crop_ratio and cut the centre: (3, input_size, input_size) uint8.

    For models trained through FFCV ("area") the other way round, see AreaCentre.
    """
    size = facts["input_size"]
    if facts["interpolation"] == "area":
        return AreaCentre(size, facts["crop_ratio"])
    scaled = transforms.Resize(int(size / facts["crop_ratio"]), transforms.InterpolationMode(facts["interpolation"]))
    return transforms.Compose([scaled, transforms.CenterCrop(size), transforms.PILToTensor()])


def normalise(images: Tensor, facts: dict) -> Tensor:
    """Images (B, 3, H, W) uint8 as the model wants them: float32 of the checkpoint's mean and standard deviation."""
    mean, std = (images.new_tensor(facts[key], dtype=torch.float32).view(3, 1, 1) for key in ("mean", "std"))
    return images.float().div_(255).sub_(mean).div_(std)


class AreaCentre:
    """A PIL image -> the central square of crop_ratio x its shorter side, scaled to `size` px: (3, size, size) uint8.

    By OpenCV's INTER_AREA, as FFCV does: each pixel is the mean of what it covers.
    """

    def __init__(self, size: int, crop_ratio: float):
        self.size, self.crop_ratio = size, crop_ratio

    def __call__(self, image: Image.Image) -> Tensor:
        import cv2

        side = max(int(self.crop_ratio * min(image.size)), 1)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = np.asarray(image.crop((left, top, left + side, top + side)))
        return torch.from_numpy(cv2.resize(square, (self.size, self.size), interpolation=cv2.INTER_AREA)).permute(2, 0, 1)
