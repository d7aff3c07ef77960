"""Check: decode every image, and compare the set with the known content of ImageNet-1K."""

import collections
import importlib.util
import io
import os
import re
import sys
from pathlib import Path

from common import DEVKIT, IN_FLIGHT, in_order, one_line, processes

import numpy as np
from PIL import Image
from tqdm import tqdm

from archives import ArchiveError, folder_order, read_archive, read_directory, read_image
from image_mode import to_rgb
from maps import read_devkit
from unpack import InputError, printable
from writer import list_folder

IMAGENET = {"train": 1_281_167, "val": 50_000}  # images
VAL_PER_CLASS = 50
MEAN_KB = {"train": 110, "val": 130}  # the originals' mean file size, about


def check(root: Path, workers: int) -> int:
    """Decode every image of the archives in `root`, or of its folders; print each broken one and differences from ImageNet-1K.

    Returns the number of problems.
    """
    problems, classes = 0, {}
    for split in ("train", "val"):  # look for both before hours of work begin
        if not (root / f"{split}.zip").exists() and not (root / split).is_dir():
            raise InputError(f"{root}: no {split}.zip and no folder {split}/ to check")
    for split in ("train", "val"):
        archive, folder = root / f"{split}.zip", root / split
        if archive.exists():
            try:
                where, (names, records, _) = archive, read_directory(archive, split)
            except ArchiveError as error:
                print(printable(str(error)))
                problems, classes[split] = problems + 1, None
                continue
            try:
                read_archive(archive, split)
            except ArchiveError as error:  # its map is wrong, but its images can still be tried
                print(printable(str(error)))
                problems += 1
            images = [(name, archive, record) for name, record in zip(names, records, strict=True)]
            sizes = records["packed"].tolist()
        else:
            where, (listed, _) = folder, list_folder(folder)
            images = [(*listed[row], None) for row in folder_order([name for name, _ in listed])]
            sizes = [os.path.getsize(path) for _, path, _ in images]
        broken = 0
        jobs = (images[start : start + 64] for start in range(0, len(images), 64))
        with processes(workers) as pool, tqdm(total=len(images), desc=str(where), unit=" images", disable=None) as bar:
            for results in in_order(pool, try_images, ((job,) for job in jobs), IN_FLIGHT * workers):
                for name, reason in results:
                    if reason:
                        bar.write(printable(f"broken: {where}: {name} ({reason})"), file=sys.stdout)
                        broken += 1
                bar.update(len(results))
        flat = images and all("/" not in name for name, _, _ in images)
        counts = collections.Counter(name.split("/")[0] for name, _, _ in images) if not flat else None
        classes[split] = counts
        mean = sum(sizes) / len(sizes) / 1000 if sizes else 0
        in_classes = "in no class folders" if flat else f"in {len(counts):,} classes"
        print(f"{where}: {len(images):,} images {in_classes}, {broken} broken, {mean:.1f} KB each", flush=True)
        problems += broken
        lines = about_imagenet(root, split, counts, len(images), mean)
        lines += [] if images else ["no images"]
        for line in lines:
            print(f"{split}: {line}")
        problems += sum(not line.startswith("hint: ") for line in lines)
    if classes["train"] and classes["val"] and classes["train"].keys() != classes["val"].keys():
        different = sorted(classes["train"].keys() ^ classes["val"].keys())
        print(f"train and val have different classes: {len(different)} are in only one of them ({', '.join(different[:3])})")
        problems += 1
    print("no problem found" if not problems else f"{problems} problem{'s' * (problems > 1)} found")
    return problems


def try_images(images: list[tuple]) -> list[tuple[str, str | None]]:
    """For each (name, file, record of the archive or None) the reason why it does not decode, or None."""
    return [(name, try_image(path, record)) for name, path, record in images]


def try_image(path: Path | str, record: np.void | None) -> str | None:
    try:
        with open(path, "rb") as file:
            data = file.read() if record is None else read_image(lambda at, size: os.pread(file.fileno(), size, at), record)
        with Image.open(io.BytesIO(data)) as image:
            to_rgb(image)
    except Exception as error:  # a damaged file can raise any exception
        return one_line(error)
    return None


def about_imagenet(root: Path, split: str, counts: collections.Counter | None, images: int, mean_kb: float) -> list[str]:
    """The differences from ImageNet-1K, one per line, if the classes are named by wnids (n and eight digits).

    Lines that do not necessarily mean a problem begin with `hint: `.
    """
    if not counts or not all(re.fullmatch(r"n\d{8}", name) for name in counts):
        return []
    lines = []
    known = imagenet_wnids()
    if known is None:
        lines.append("hint: not compared with the 1,000 classes of ImageNet-1K; their list comes with timm (pip install timm)")
    else:
        missing, foreign = sorted(known - counts.keys()), sorted(counts.keys() - known)
        if missing:
            lines.append(f"{len(missing)} of ImageNet-1K's 1,000 classes are missing: {listing(missing)}")
        if foreign:
            lines.append(f"{len(foreign)} classes are not of ImageNet-1K: {listing(foreign)}")
    if images != IMAGENET[split]:
        lines.append(f"{images:,} images; ImageNet-1K has {IMAGENET[split]:,}")
    right = None
    if split == "val":
        right = dict.fromkeys(counts, VAL_PER_CLASS)
    elif (root / DEVKIT).is_file():
        right = read_devkit(root / DEVKIT)[2]
    if right:
        wrong = [
            f"{name} {count} (not {right[name]})" for name, count in sorted(counts.items()) if right.get(name, count) != count
        ]
        if wrong:
            lines.append(f"{len(wrong)} classes have another number of images than in ImageNet-1K: {listing(wrong)}")
    if not 80 <= mean_kb <= 160:
        lines.append(f"hint: {mean_kb:.1f} KB per image, the original has about {MEAN_KB[split]}: looks re-encoded or scaled")
    return lines


def listing(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def imagenet_wnids() -> set[str] | None:
    """The names of ImageNet-1K's 1,000 classes, from a list in timm, read as a file because importing timm takes seconds."""
    timm = importlib.util.find_spec("timm")
    path = Path(timm.origin).parent / "data/_info/imagenet_synsets.txt" if timm else None
    return set(path.read_text().split()) if path and path.exists() else None
