"""Images as FFCV's validation shows them: the central square is cut first, then scaled by the areas that its pixels cover."""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor


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
