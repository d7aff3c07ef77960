"""Images from an FFCV file (.beton, .ffcv), where FFCV is installed: the validation file of Conv/ffcv or of ffcv-imagenet."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from errors import InputError

ENDINGS = (".beton", ".ffcv")


class FfcvImages:
    """What an FFCV file with the fields image and label holds.

    Class names are those of the JSON file that Conv/ffcv leaves beside it; files from elsewhere have none.
    """

    def __init__(self, path: Path):
        try:
            from ffcv.reader import Reader
        except ImportError:
            raise InputError(
                f"{path}: FFCV is not installed (see Conv/ffcv/install.sh); an image folder or ZIP archive needs none"
            )
        if not path.is_file():
            raise InputError(f"{path}: no such FFCV file; --data-path names another")
        try:
            reader = Reader(str(path))
            labels, ends = reader.metadata["f1"], reader.metadata["f0"]["data_ptr"]
            if not len(labels) or ends.max() >= path.stat().st_size:  # FFCV would read there all the same
                raise ValueError("its images do not lie inside it")
        except Exception as error:  # a damaged file can fail in any way
            raise InputError(f"{path}: damaged, or not an FFCV file of images and labels ({str(error).splitlines()[0][:120]})")
        self.labels = np.array(labels, dtype=np.int64).reshape(-1)
        self.where, self.classes, self.notes = path, _class_names(path, int(self.labels.max())), []

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"{index:08d}"

    def batches(self, rows: range, size: int, crop_ratio: float, batch_size: int, workers: int) -> Iterator[tuple]:
        """Images (B, 3, size, size) uint8 and labels (B,), cut and scaled by FFCV (area averaging), in the file's order."""
        from ffcv.fields.basics import IntDecoder
        from ffcv.fields.decoders import CenterCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import ToTensor

        loader = Loader(
            str(self.where),
            batch_size,
            max(workers, 1),
            order=OrderOption.SEQUENTIAL,
            indices=np.array(rows),
            drop_last=False,
            pipelines={
                "image": [CenterCropRGBImageDecoder((size, size), crop_ratio), ToTensor()],
                "label": [IntDecoder(), ToTensor()],
            },
        )
        labels = torch.from_numpy(self.labels[rows.start : rows.stop])  # not the file's: they may follow another class order
        for (images, _), part in zip(loader, labels.split(batch_size)):
            yield images.permute(0, 3, 1, 2), part


def _class_names(path: Path, highest: int) -> list[str] | None:
    description = path.with_name(path.name + ".json")
    if not description.exists():
        return None
    try:
        classes = json.loads(description.read_text())["classes"]
        assert all(isinstance(name, str) for name in classes) and highest < len(classes)
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        raise InputError(f"{description}: does not name the classes of {path.name}; remove it, or write both again")
    return classes
