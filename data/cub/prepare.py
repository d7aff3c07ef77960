"""Unpack Caltech-UCSD Birds-200-2011 into an image folder: train/<class>/<image> and val/<class>/<image>.

    python data/cub/prepare.py --archive CUB_200_2011.tgz

The split is the official one: val is what the authors call test.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unpack import InputError, image_path, members, run, unpack

LISTS = ("images.txt", "train_test_split.txt")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Unpack CUB-200-2011 (11,788 images of 200 bird species, 1.1 GB) into an image folder."
    )
    parser.add_argument("--archive", type=Path, required=True, help="the downloaded CUB_200_2011.tgz")
    parser.add_argument("--root", type=Path, default=Path(__file__).parent, help="folder for train/ and val/ (%(default)s)")
    args = parser.parse_args()
    run(lambda folder: prepare(args.archive, folder), args.root)


def prepare(archive: Path, folder: Path) -> str:
    """Fill folder/train and folder/val; returns a sentence. Raises InputError if the archive is not CUB's."""
    lists = {}
    for name, file in members(archive):
        if name.startswith("CUB_200_2011/") and name.split("/")[-1] in LISTS and name.count("/") == 1:
            lists[name.split("/")[-1]] = read_list(file.read(), f"{archive}: {name}")
            if len(lists) == len(LISTS):
                break
    if len(lists) < len(LISTS):
        raise InputError(f"{archive}: holds no CUB_200_2011/{' and '.join(name for name in LISTS if name not in lists)}")
    images, is_training = (lists[name] for name in LISTS)
    if images.keys() != is_training.keys():
        raise InputError(f"{archive}: {LISTS[0]} and {LISTS[1]} list different images")
    targets, counts = {}, {"train": 0, "val": 0}
    for number, path in images.items():
        split = "train" if is_training[number] == "1" else "val"
        class_name, _, file = path.rpartition("/")
        targets[f"CUB_200_2011/images/{path}"] = image_path(split, class_name, file)
        counts[split] += 1
    unpack(archive, targets, folder)
    return f"{counts['train']:,} training and {counts['val']:,} validation images"


def read_list(content: bytes, where: str) -> dict[str, str]:
    """number -> word, of lines `<number> <word>`."""
    lines = [line.split() for line in content.decode(errors="replace").splitlines() if line.strip()]
    if not lines or any(len(words) != 2 for words in lines):
        raise InputError(f"{where}: not lines of a number and a word")
    return dict(lines)


if __name__ == "__main__":
    main()
