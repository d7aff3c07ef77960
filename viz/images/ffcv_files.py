"""Images from an FFCV file (.beton, .ffcv), if FFCV is installed: the validation file of Conv/ffcv or of ffcv-imagenet.

FFCV reads the tables and decodes the JPEG data. Its loader is not used, because its compiled code follows the pointers of a
damaged file to any address.
"""

import io
import json
from pathlib import Path

from common.errors import InputError, reason

import numpy as np
from PIL import Image

from images.image_set import Images

ENDINGS = (".beton", ".ffcv")
JPEG, RAW = 0, 1


def open_ffcv(path: Path) -> Images:
    """The images of an FFCV file with the fields `image` and `label`, in its order.

    Class names come from the JSON file that Conv/ffcv writes next to it; files from elsewhere have none. Raises InputError.
    """
    try:
        from ffcv.reader import Reader
    except ImportError:
        raise InputError(
            f"{path}: FFCV is not installed (see Conv/ffcv/install.sh); an image folder or ZIP archive does not need it"
        )
    if not path.is_file():
        raise InputError(f"{path}: no such FFCV file; --data-path names another")
    try:
        reader = Reader(str(path))
        fields = {name: reader.metadata[f"f{number}"] for number, name in enumerate(reader.field_names)}
        labels, reading = fields["label"], FromFfcv(path, fields["image"], reader.alloc_table)
        if labels.dtype != np.int64 or len(labels) != reader.num_samples or labels.min(initial=0) < 0:
            raise ValueError("its labels are fewer than it says, or not whole numbers from 0 on")
    except Exception as error:  # a damaged file can raise any exception
        raise InputError(f"{path}: damaged, or not an FFCV file of images and labels ({reason(error)})")
    names = [f"{index:08d}" for index in range(len(labels))]
    return Images(path, names, labels, _class_names(path, int(labels.max(initial=0))), reading)


class FromFfcv:
    """The pixels of each image, as FFCV decodes them. The file is opened for each image, so that processes share nothing.

    `images` (N,): mode, width, height and data_ptr; `table`: FFCV's table of the ptr and size of all data. Raises ValueError.
    """

    def __init__(self, path: Path, images: np.ndarray, table: np.ndarray):
        self.path, self.images, table = path, images, np.sort(table, order="ptr")
        piece = np.searchsorted(table["ptr"], images["data_ptr"]).clip(max=len(table) - 1)
        start, self.sizes = table["ptr"][piece], table["size"][piece]
        end = np.uint64(path.stat().st_size)
        if not ((start == images["data_ptr"]) & (start <= end) & (self.sizes <= end - np.minimum(start, end))).all():
            raise ValueError("its images do not lie inside it")

    def __call__(self, index: int, name: str) -> Image.Image:
        from ffcv.libffcv import imdecode

        mode, width, height, start = (int(self.images[index][key]) for key in ("mode", "width", "height", "data_ptr"))
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                data = np.frombuffer(file.read(int(self.sizes[index])), np.uint8)
            if mode == RAW:
                return Image.fromarray(data.reshape(height, width, 3))
            if mode != JPEG or Image.open(io.BytesIO(data)).size != (width, height):
                raise ValueError("not of the kind or size that its row states")
            pixels = np.zeros((height, width, 3), np.uint8)
            if imdecode(data, pixels, height, width, height, width):
                raise ValueError("not whole JPEG data")
        except Exception as error:  # a damaged image can raise any exception
            raise InputError(f"{self.path}: image {name} is damaged ({reason(error)}); write the file again")
        return Image.fromarray(pixels)


def _class_names(path: Path, highest: int) -> list[str] | None:
    description = path.with_name(path.name + ".json")
    if not description.is_file():
        return None
    try:
        classes = json.loads(description.read_bytes())["classes"]
        assert all(isinstance(name, str) for name in classes) and highest < len(classes)
    except (OSError, ValueError, KeyError, TypeError, AssertionError, RecursionError):
        raise InputError(f"{description}: does not name the classes of {path.name}; remove it, or write both again")
    return classes
