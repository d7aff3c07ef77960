"""What the tests of Conv/ffcv share: its modules and a short command line. Skips the importing file if FFCV is not installed."""

import importlib.util
import os

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from subprojects import Subproject

ffcv = Subproject("Conv/ffcv")
FOLDER = ffcv.folder
TRAIN, WRITE = FOLDER / "train_imagenet.py", FOLDER / "write_imagenet.py"

if importlib.util.find_spec("ffcv") is None:
    if os.environ.get("FFCV_REQUIRED"):
        raise RuntimeError("FFCV_REQUIRED is set, but FFCV is not installed; bash Conv/ffcv/install.sh says why")
    pytest.skip("FFCV is not installed; bash Conv/ffcv/install.sh installs it", allow_module_level=True)

data, engine, errors, ffcv_file, models, options, train_imagenet, write_imagenet = (
    ffcv.load(name) for name in ("data", "engine", "errors", "ffcv_file", "models", "options", "train_imagenet", "write_imagenet")
)
CPU = torch.device("cpu")
SMALL = """
    --model.arch=resnet18 --resolution.min_res=8 --resolution.max_res=8 --validation.resolution=8 --validation.crop_ratio=1
    --augmentation.flip=0.5 --lr.lr=0.01 --lr.for_batch=0 --training.batch_size=32 --validation.batch_size=10 --data.num_workers=1
    --training.device=cpu --training.epochs=2
""".split()


def files(folder):
    return [f"--data.train_dataset={folder}/train_500_0_90.ffcv", f"--data.val_dataset={folder}/val_500_0_90.ffcv"]


def settings(*words):
    return options.read([*SMALL, *[str(word) for word in words]])[0]


def train(*words):
    train_imagenet.main(*train_imagenet.options.read([*SMALL, *[str(word) for word in words]]))


def pixels_of(folder):
    """All images of a folder in file order, read by Pillow: uint8 (N, H, W, 3), and their labels."""
    samples = torchvision.datasets.ImageFolder(folder).samples
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in samples]), [label for _, label in samples]
