"""Pictures of every depth as 8-bit RGB. This file is the same in each folder that decodes pictures."""

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """The decoded picture in RGB, which is the image itself where it is RGB already; 16 bits per pixel are scaled to 8.

    Pillow's own conversion clips deeper pixels at 255, which turns most of them white. Raises ValueError for floating-point
    numbers and 32-bit integers: which of their values are black and white is not known.
    """
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        raise ValueError(f"its pixels are {kind}, whose range is not known; store it with 8 or 16 bits per channel")
    if image.mode.startswith("I"):  # 16 bits: Pillow's mode is I;16 for PNG and TIFF, and I for PGM
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    return image.convert("RGB")
