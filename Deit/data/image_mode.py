"""Convert images of any bit depth to 8-bit RGB. This file is the same in each folder that decodes images."""

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """The decoded image in RGB; an RGB image is returned itself, and 16-bit values are scaled to 8 bits.

    Pillow's own conversion clips 16-bit values at 255, which turns most of them white. Raises ValueError for floating-point
    numbers and 32-bit integers, because it is not known which of their values mean black and white.
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
