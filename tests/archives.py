"""Images and archives of images, made in memory for the tests of archives."""

import io
import zipfile

import numpy as np
from PIL import Image


def jpeg(seed, mode="RGB", size=(40, 30), form="JPEG", **options):
    """The bytes of an image file with smooth random content."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA").convert("RGB").resize(size, Image.BICUBIC).convert(mode)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def deep_png():
    """The bytes of a 16-bit greyscale PNG."""
    file = io.BytesIO()
    Image.fromarray(np.arange(0, 60000, 50, dtype=np.uint16).reshape(30, 40)).save(file, "PNG")
    return file.getvalue()


def write_zip(path, files, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in files.items():
            file.writestr(name, data)
