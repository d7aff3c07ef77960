"""How a model is shown an image: scaled and cut as in its training's validation, then normalised."""

from collections.abc import Callable
from functools import lru_cache

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

    OpenCV's INTER_AREA, which FFCV uses: each pixel is the mean of what it covers, parts of pixels by their share. (Pillow's box
    filter takes whole pixels only, by their centres.) They differ by rounding, 1 of 255.
    """

    def __init__(self, size: int, crop_ratio: float):
        self.size, self.crop_ratio = size, crop_ratio

    def __call__(self, image: Image.Image) -> Tensor:
        side = max(int(self.crop_ratio * min(image.size)), 1)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = torch.from_numpy(np.array(image.crop((left, top, left + side, top + side)))).permute(2, 0, 1).float()
        shares = area_shares(side, self.size)
        return (shares @ square @ shares.T).round_().to(torch.uint8)


@lru_cache(maxsize=1024)
def area_shares(pixels: int, scaled: int) -> Tensor:
    """(scaled, pixels) float32: the share of each of `pixels` in each of `scaled` over the same length; each row sums to 1."""
    edges = torch.arange(scaled + 1, dtype=torch.float64) * (pixels / scaled)
    ends = torch.arange(1, pixels + 1, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], ends) - torch.maximum(edges[:-1, None], ends - 1)
    return (overlap.clamp_(min=0) * (scaled / pixels)).float()
