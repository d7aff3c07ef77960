"""Preprocessing of an image for a model: resized and cropped as in the validation during its training, then normalised."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms


def transform(facts: dict) -> Callable[[Image.Image], Tensor]:
    """Resize the shorter side to input_size / crop_ratio and crop the centre: (3, input_size, input_size) uint8.

    Models trained through FFCV (interpolation "area") crop first and then resize, see AreaCentre.
    """
    size = facts["input_size"]
    if facts["interpolation"] == "area":
        return AreaCentre(size, facts["crop_ratio"])
    scaled = transforms.Resize(int(size / facts["crop_ratio"]), transforms.InterpolationMode(facts["interpolation"]))
    return transforms.Compose([scaled, transforms.CenterCrop(size), transforms.PILToTensor()])


def normalise(images: Tensor, facts: dict) -> Tensor:
    """Images (B, 3, H, W) uint8 as the model expects them: float32, normalised by the checkpoint's mean and std."""
    mean, std = (images.new_tensor(facts[key], dtype=torch.float32).view(3, 1, 1) for key in ("mean", "std"))
    return images.float().div_(255).sub_(mean).div_(std)


class AreaCentre:
    """A PIL image -> the central square of crop_ratio x its shorter side, resized to `size` px: (3, size, size) uint8.

    Resized with OpenCV's INTER_AREA, as in FFCV: each pixel is the mean of the area that it covers.
    """

    def __init__(self, size: int, crop_ratio: float):
        self.size, self.crop_ratio = size, crop_ratio

    def __call__(self, image: Image.Image) -> Tensor:
        import cv2

        side = max(int(self.crop_ratio * min(image.size)), 1)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = np.asarray(image.crop((left, top, left + side, top + side)))
        return torch.from_numpy(cv2.resize(square, (self.size, self.size), interpolation=cv2.INTER_AREA)).permute(2, 0, 1)
