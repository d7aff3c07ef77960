"""Robustness as measured by CIFAR-10-C: 15 corruptions at 5 severities, from the published arrays or generated here."""

from collections.abc import Iterator
from pathlib import Path

from errors import InputError

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.order import mix

NAMES = (
    "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog brightness contrast "
    "elastic_transform pixelate jpeg_compression"
).split()
SEVERITIES = range(1, 6)
INSTALL = "pip install --no-deps imagecorruptions-imaug==1.1.5 && pip install scikit-image"
OWN_SEED = ("impulse_noise", "glass_blur")  # these do not use NumPy's global generator


def published(folder: Path, size: int) -> Iterator[tuple[str, int, Tensor, Tensor]]:
    """(name, severity, images (N, size, size, 3) uint8, labels (N,)) from CIFAR-10-C's <name>.npy and labels.npy.

    Each array has the test set five times, ordered by severity. Raises InputError if one is missing or has another shape or type.
    """
    labels = _mapped(folder / "labels.npy")
    if labels.ndim != 1 or len(labels) % len(SEVERITIES) or labels.dtype.kind not in "iu":
        raise InputError(f"{folder / 'labels.npy'}: {labels.shape} {labels.dtype}, not 5 times the labels of the test set")
    arrays = {name: _mapped(folder / f"{name}.npy") for name in NAMES}
    for name, images in arrays.items():
        if images.shape != (len(labels), size, size, 3) or images.dtype != np.uint8:
            raise InputError(f"{folder / name}.npy: {images.shape} {images.dtype}, not {(len(labels), size, size, 3)} uint8")
    count = len(labels) // len(SEVERITIES)
    for name, images in arrays.items():
        for severity in SEVERITIES:
            rows = slice(count * (severity - 1), count * severity)
            yield name, severity, torch.from_numpy(images[rows].copy()), torch.from_numpy(labels[rows].astype(np.int64))


def generated(images: Tensor, labels: Tensor) -> Iterator[tuple[str, int, Tensor, Tensor]]:
    """The same, generated from clean images (N, H, W, 3) uint8 by the package imagecorruptions-imaug with fixed seeds.

    Its strengths are ImageNet-C's, not the milder ones of CIFAR-10-C, so results from the two are not comparable. Raises
    InputError if the package is missing or the images are smaller than 32 pixels, its limit.
    """
    try:
        from imagecorruptions import corrupt
    except ImportError:
        raise InputError(f"--corruptions without a folder needs a package: {INSTALL}")
    if min(images.shape[1:3]) < 32:
        raise InputError(f"--corruptions: images of {images.shape[2]}x{images.shape[1]} pixels; at least 32x32 is needed")
    clean = images.numpy()
    for number, name in enumerate(NAMES):
        for severity in SEVERITIES:
            np.random.seed(mix(number, severity))
            made = np.empty_like(clean)
            for row, image in enumerate(tqdm(clean, f"{name} {severity}", unit=" images", leave=False, disable=None)):
                seed = {"seed": mix(number, severity, row)} if name in OWN_SEED else {}
                made[row] = corrupt(image, severity=severity, corruption_name=name, **seed)
            yield name, severity, torch.from_numpy(made), labels


def _mapped(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"{path}: no such file; CIFAR-10-C has one for labels and for each of the 15 corruptions")
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged file can fail in many ways
        raise InputError(f"{path}: damaged, or not a NumPy array ({str(error).splitlines()[0][:120]})")
    if not isinstance(found, np.ndarray):
        raise InputError(f"{path}: holds several arrays, not one")
    return found
