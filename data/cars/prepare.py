"""Unpack Stanford Cars into an image folder: train/<class>/<image> and val/<class>/<image>.

    python data/cars/prepare.py --archives FOLDER

FOLDER holds cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat. The split is the official one:
val is what the authors call test.
"""

import argparse
import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import errors  # noqa: F401  it reports a missing package in one line

import scipy.io

from unpack import InputError, image_path, members, run, unpack


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Unpack Stanford Cars (16,185 images of 196 car models, 2 GB) into an image folder."
    )
    parser.add_argument("--archives", type=Path, required=True, help="folder with the four official files")
    parser.add_argument("--root", type=Path, default=Path(__file__).parent, help="folder for train/ and val/ (%(default)s)")
    args = parser.parse_args()
    run(lambda folder: prepare(args.archives, folder), args.root)


def prepare(archives: Path, folder: Path) -> str:
    """Fill folder/train and folder/val; returns a sentence. Raises InputError if the files are not those of Stanford Cars."""
    devkit = archives / "car_devkit.tgz"
    wanted = {"devkit/cars_meta.mat": None, "devkit/cars_train_annos.mat": None}
    for name, file in members(devkit):
        if name in wanted:
            wanted[name] = read_mat(file.read(), f"{devkit}: {name}")
    missing = [name for name, content in wanted.items() if content is None]
    if missing:
        raise InputError(f"{devkit}: holds no {missing[0]}")
    test = archives / "cars_test_annos_withlabels.mat"
    if not test.is_file():
        raise InputError(f"{test}: no such file; the labels of the test images are a file of their own")
    annotations = {"train": wanted["devkit/cars_train_annos.mat"], "val": read_mat(test.read_bytes(), str(test))}
    try:
        # The slash in "Ram C/V Cargo Van Minivan 2012" would make a subfolder.
        classes = [str(name).replace("/", "-") for name in wanted["devkit/cars_meta.mat"]["class_names"]]
        samples = {
            split: [(str(one.fname), classes[int(getattr(one, "class")) - 1]) for one in content["annotations"]]
            for split, content in annotations.items()
        }
    except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{archives}: the annotations are not those of Stanford Cars ({error!r})")
    for split, official in (("train", "cars_train"), ("val", "cars_test")):
        targets = {f"{official}/{file}": image_path(split, name, file) for file, name in samples[split]}
        unpack(archives / f"{official}.tgz", targets, folder)
    return f"{len(samples['train']):,} training and {len(samples['val']):,} validation images"


def read_mat(content: bytes, where: str) -> dict:
    try:
        return scipy.io.loadmat(io.BytesIO(content), squeeze_me=True, struct_as_record=False)
    except Exception as error:  # a damaged file can raise any exception
        raise InputError(f"{where}: damaged, or not a MATLAB file ({str(error)[:100]})")


if __name__ == "__main__":
    main()
