"""Map files: the labels of archives, from class folders, a training map, or the development kit."""

import io
import os
import re
import tarfile
from pathlib import Path

from common import DEVKIT, one_line

from archives import read_directory, read_map
from unpack import InputError, write_whole


def write_maps(root: Path, overwrite: bool, devkit: Path | None = None) -> None:
    """Write train_map.txt and val_map.txt for the archives in `root`, labels in the order of sorted class names.

    Validation images outside class folders get their labels from the development kit. If a training map is kept, validation
    labels follow it, whatever its order, and even if its archive is missing.
    """
    archives = [root / f"{split}.zip" for split in ("train", "val") if (root / f"{split}.zip").exists()]
    if not archives:
        raise InputError(f"{root}: no train.zip and no val.zip to write maps for")
    training_map = root / "train_map.txt"
    kept = training_map.exists() and not (overwrite and (root / "train.zip").exists())
    labels = labels_of_map(training_map) if kept else None
    for archive in archives:
        split, map_file = archive.stem, root / f"{archive.stem}_map.txt"
        if map_file.exists() and not overwrite:
            print(f"{map_file} is there already and kept; --overwrite replaces it")
            continue
        names = read_directory(archive, split)[0]
        if "/" not in names[0]:
            if split == "train":
                raise InputError(
                    f"{archive}: its images are in no class folders, which hold the labels; zip the folder train/ whole"
                )
            wnids = devkit_labels(devkit or root, names)
        else:
            wnids = {name: name.split("/")[0] for name in names}
        found = sorted(set(wnids.values()))
        own = {name: index for index, name in enumerate(found)}
        labels = labels or own
        if foreign := sorted(own.keys() - labels.keys()):
            first = ", ".join(foreign[:3])
            print(f"warning: {archive}: {len(foreign)} classes that train has not ({first}): labelled by its own sorted classes")
            labels = own
        if missing := sorted(labels.keys() - found):
            print(f"warning: {archive}: no image of {len(missing)} classes of train: {', '.join(missing[:3])}")
        write_whole(map_file, "".join(f"{name}\t{labels[wnids[name]]}\n" for name in names).encode())
        print(f"{map_file}: {len(names):,} images, {len(found):,} classes")


def labels_of_map(path: Path) -> dict[str, int]:
    """Class folder -> label, as in a training map."""
    names, labels = read_map(path, "train")
    if "/" not in names[0]:
        raise InputError(f"{path}: its lines are not <class>/<file>, a tab, and a label; --overwrite writes it anew")
    return {name.partition("/")[0]: label for name, label in zip(names, labels.tolist(), strict=True)}


def devkit_labels(root: Path, names: list[str]) -> dict[str, str]:
    """The wnid of each flat validation image, by the number in its name, from the development kit in `root`."""
    if not (root / DEVKIT).is_file():
        raise InputError(f"{root}: the validation images are in no class folders, so their labels are needed: put {DEVKIT} there")
    truth, wnids, _ = read_devkit(root / DEVKIT)
    found = {}
    for name in names:
        number = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.\w+", os.path.basename(name))
        if not number or not 1 <= int(number[1]) <= len(truth):
            raise InputError(f"{name}: not the name of a validation image (ILSVRC2012_val_00000001.JPEG ...), so it has no label")
        found[name] = wnids[truth[int(number[1]) - 1]]
    return found


def read_devkit(path: Path) -> tuple[list[int], dict[int, str], dict[str, int]]:
    """The kit's number of each validation image's class, number -> wnid, and wnid -> number of training images."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise InputError(f"{path}: reading its meta.mat needs SciPy; pip install scipy")
    content = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = os.path.basename(member.name)
                if name in ("meta.mat", "ILSVRC2012_validation_ground_truth.txt"):
                    content[name] = tar.extractfile(member).read()
        synsets = loadmat(io.BytesIO(content["meta.mat"]), squeeze_me=True)["synsets"]
        leaves = [row for row in synsets.reshape(-1) if int(row["num_children"]) == 0]  # the others are groups of classes
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
        counts = {str(row["WNID"]): int(row["num_train_images"]) for row in leaves}
        truth = [int(word) for word in content["ILSVRC2012_validation_ground_truth.txt"].split()]
        if not set(truth) <= wnids.keys():
            raise ValueError("labels without a class")
    except Exception as error:  # tar, gzip and MAT readers each raise their own exceptions
        raise InputError(
            f"{path}: damaged, or not the development kit ({type(error).__name__}: {one_line(error)}); download it again"
        )
    return truth, wnids, counts
