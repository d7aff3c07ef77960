"""Images with labels, and the conversion of their labels to those of a model.

Order and labels are those of torchvision's ImageFolder: classes by sorted name, files by sorted path.
"""

import os
from collections.abc import Callable

from common.errors import InputError, reason

import numpy as np
from PIL import Image
from timm.data import ImageNetInfo
from torch.utils.data import Dataset

from images.archives import ENDINGS
from images.image_mode import to_rgb


class Images(Dataset):
    """images[i] -> (transform(PIL image in RGB), label).

    `classes`: names in label order, or None; `labels` (N,) int64; `names` (N,) paths as bytes; `notes`: lines to print.
    `own_classes` (N,): the data set's own class of each image, even where superclasses or training labels replace it.
    `open_image(i, name)` returns what Image.open accepts, or an Image.
    """

    def __init__(self, where: object, names: list[str], labels, classes: list[str] | None, open_image: Callable, left_out=()):
        first = f" ({', '.join(left_out[:3])}{', ...' if len(left_out) > 3 else ''})" if left_out else ""
        if not len(names):
            raise InputError(f"{where}: holds no images ({', '.join(ENDINGS)}), {len(left_out)} other files{first}")
        self.where, self.classes, self.open_image, self.transform = where, classes, open_image, None
        self.names = np.array([os.fsencode(name) for name in names])  # an array: a list would be copied into each loading process
        self.labels = np.array(labels, dtype=np.int64)
        if classes and not 0 <= self.labels.min() <= self.labels.max() < len(classes):
            raise InputError(f"{where}: labels from {self.labels.min()} to {self.labels.max()}, but {len(classes)} classes")
        self.rows = np.arange(len(self.labels))  # the indices that open_image takes
        self.own_classes = [classes[label] if classes else str(label) for label in self.labels]
        self.notes = [f"{where}: {len(left_out)} files are not images and are ignored{first}"] if left_out else []

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return os.fsdecode(self.names[index])

    def __getitem__(self, index: int) -> tuple:
        source = self.open_image(int(self.rows[index]), self.name(index))
        try:
            with source if isinstance(source, Image.Image) else Image.open(source) as image:
                image = to_rgb(image)
        except Exception as error:  # a damaged image can raise any exception
            raise InputError(
                f"{self.where}/{self.name(index)}: does not decode as an image ({reason(error)}); replace or remove it"
            )
        return self.transform(image) if self.transform else image, int(self.labels[index])

    def keep(self, rows: np.ndarray) -> None:
        """Keep only the images of these rows (n,), in the order given."""
        self.rows, self.names, self.labels = self.rows[rows], self.names[rows], self.labels[rows]
        self.own_classes = [self.own_classes[row] for row in rows]


def check_different(train: Images, test: Images) -> None:
    """Raise InputError if both splits are the same images, as from a folder of class folders, an archive or an FFCV file."""
    if str(train.where) == str(test.where) and np.array_equal(train.names, test.names):
        raise InputError(f"{train.where}: the same images for training and test; --data-path must name a folder that holds both")


def match_classes(images: Images, classes: list[str] | None, outputs: int, owner: object) -> None:
    """Renumber labels by class name to follow `classes`, the owner's names in label order; without names they are unchanged.

    1,000 outputs without names are taken as ImageNet's wnids in sorted order if the images' classes are wnids. Raises InputError
    if a class is unknown to the owner, or if labels would have to be guessed.
    """
    imagenet = ImageNetInfo().label_names() if outputs == 1000 and classes is None else []
    if imagenet and images.classes and set(images.classes) <= set(imagenet):
        classes = list(imagenet)
    if images.classes is None or classes is None:
        count = len(images.classes) if images.classes else int(images.labels.max()) + 1
        if count != outputs:
            raise InputError(
                f"{images.where}: {count} classes, but {owner} has {outputs} outputs and no class names to tell them by"
            )
        if images.classes is None:
            images.notes.append(f"{images.where}: its labels have no names and are taken as those of {owner}")
        return
    foreign = sorted(set(images.classes) - set(classes))
    if foreign:
        raise InputError(
            f"{images.where}: its {len(images.classes)} classes are not the {len(classes)} of {owner} "
            f"(only here: {', '.join(foreign[:3])}; there: {', '.join(classes[:3])}, ...)"
        )
    if len(images.classes) < len(classes):
        images.notes.append(f"{images.where}: {len(images.classes)} of the {len(classes)} classes of {owner}")
    label = {name: index for index, name in enumerate(classes)}
    images.labels = np.array([label[name] for name in images.classes])[images.labels]
    images.classes = list(classes)


def group_classes(images: Images, grouping: dict[str, list[str]], owner: object) -> None:
    """Replace classes by the superclasses {name: [class, ...]} that the owner was trained on. Raises InputError."""
    group = {name: index for index, names in enumerate(grouping.values()) for name in names}
    foreign = [name for name in images.classes if name not in group]
    if foreign:
        raise InputError(f"{images.where}: its class {foreign[0]} is in no superclass of {owner} ({', '.join(grouping)})")
    images.labels = np.array([group[name] for name in images.classes])[images.labels]
    images.classes = list(grouping)
