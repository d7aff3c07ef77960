"""The data sets: their usual folders, and the meaning of the values in their annotations."""

from dataclasses import dataclass
from pathlib import Path

from errors import InputError

import numpy as np

IGNORE = 255  # the label of pixels that losses and metrics ignore


@dataclass(frozen=True)
class Layout:
    """The files of a data set. `images` and `annotations` are folders with {split}, which is replaced by a name from `splits`.

    An image's name is its path below `images` without one of `image_suffixes`; its annotation has the same name and
    `annotation_suffix`. `labels` maps each allowed value of an annotation to a class or to IGNORE.
    """

    images: str
    annotations: str
    image_suffixes: tuple[str, ...]
    annotation_suffix: str
    splits: dict[str, str]
    classes: tuple[str, ...]
    labels: dict[int, int]

    def table(self) -> np.ndarray:
        """(256,) int16: the label of each value; -1 for values that are not allowed in an annotation."""
        table = np.full(256, -1, np.int16)
        table[IGNORE] = IGNORE
        for value, label in self.labels.items():
            table[value] = label
        return table


CAMVID = tuple("sky building pole road pavement tree sign fence car pedestrian bicyclist".split())
CITYSCAPES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain"),
    *("sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of the classes above, in order

LAYOUTS = {
    "camvid": Layout(
        images="{split}",
        annotations="{split}annot",
        image_suffixes=(".png", ".jpg"),
        annotation_suffix=".png",
        splits={"train": "train", "val": "val", "test": "test"},
        classes=CAMVID,
        labels={**{value: value for value in range(11)}, 11: IGNORE},
    ),
    "cityscapes": Layout(
        images="leftImg8bit/{split}",
        annotations="gtFine/{split}",
        image_suffixes=("_leftImg8bit.png",),
        annotation_suffix="_gtFine_labelIds.png",
        splits={"train": "train", "val": "val", "test": "val"},  # the labels of the test images are not public
        classes=CITYSCAPES,
        labels={**dict.fromkeys(range(34), IGNORE), **{value: label for label, value in enumerate(CITYSCAPES_IDS)}},
    ),
    "ade20k": Layout(
        images="images/{split}",
        annotations="annotations/{split}",
        image_suffixes=(".jpg",),
        annotation_suffix=".png",
        splits={"train": "training", "val": "validation", "test": "validation"},
        classes=tuple(f"class {number}" for number in range(1, 151)),
        labels={0: IGNORE, **{value: value - 1 for value in range(1, 151)}},
    ),
}


def find_pairs(data: str, root: Path, split: str) -> list[tuple[Path, Path]]:
    """Paths of the images of a split ("train", "val" or "test") and of their annotations, sorted by name.

    Raises InputError if a folder is missing or has no images, and naming the first image or annotation without its partner.
    """
    layout = LAYOUTS[data]
    name = layout.splits[split]
    folders = [root / pattern.format(split=name) for pattern in (layout.images, layout.annotations)]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; see data/{data}/README.md for the layout of {data}")
    images, annotations = (
        _by_name(folder, suffixes)
        for folder, suffixes in zip(folders, (layout.image_suffixes, (layout.annotation_suffix,)), strict=True)
    )
    if not images:
        raise InputError(f"{folders[0]}: holds no image named *{' or *'.join(layout.image_suffixes)}")
    for own, other, folder, suffix, kind in (
        (images, annotations, folders[1], layout.annotation_suffix, "annotation"),
        (annotations, images, folders[0], layout.image_suffixes[0], "image"),
    ):
        lonely = sorted(own.keys() - other.keys())
        if lonely:
            more = f" ({len(lonely)} files lack theirs)" if len(lonely) > 1 else ""
            raise InputError(f"{own[lonely[0]]}: its {kind} {folder / lonely[0]}{suffix} is missing{more}")
    return [(images[key], annotations[key]) for key in sorted(images)]


def class_names(data: str, root: Path) -> list[str]:
    """Names in label order. ADE20K's are read from its objectInfo150.txt if that file exists."""
    names = list(LAYOUTS[data].classes)
    table = root / "objectInfo150.txt"
    if data == "ade20k" and table.is_file():
        # Tab-separated columns: Idx, Ratio, Train, Val, Stuff, Name; the name is a list of synonyms.
        rows = [line.split("\t") for line in table.read_text(encoding="utf-8", errors="replace").splitlines()]
        for row in rows:
            if row[0].strip().isdigit() and 1 <= int(row[0]) <= len(names):
                names[int(row[0]) - 1] = row[-1].split(",")[0].strip()
    return names


def _by_name(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        suffix = next((suffix for suffix in suffixes if path.name.endswith(suffix)), None)
        if suffix and not path.name.startswith("."):
            name = path.relative_to(folder).as_posix().removesuffix(suffix)
            if name in found:
                raise InputError(f"{path}: another image has the same name, {found[name].name}; remove one of them")
            found[name] = path
    return found
