"""Write scikit-learn's 1,797 handwritten digits as an image folder: train/<class>/<image>.png, val/<class>/<image>.png.

    python data/digits/prepare.py                                   # ten classes, into data/digits/ten
    python data/digits/prepare.py --labels parity                   # even and odd, into data/digits/parity

The split is fixed: the first 1,400 images are for training, the last 397 for validation. All but 15 of these come from forms
without training digits (see README.md). File names begin with the digit.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import errors  # noqa: F401  it reports a missing package in one line

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

TRAIN_IMAGES = 1400
LABELS = {"ten": str, "parity": lambda digit: "odd" if digit % 2 else "even"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write scikit-learn's digits as an image folder (1,797 PNGs, 8x8 grey).")
    parser.add_argument("--labels", choices=LABELS, default="ten", help="classes: the ten digits, or even and odd (%(default)s)")
    parser.add_argument("--output", type=Path, help="folder to write; if omitted: data/digits/<labels>")
    args = parser.parse_args()
    output = args.output or Path(__file__).parent / args.labels
    if is_there(output, args.labels):
        print(f"the digits are in {output}/ already; nothing was written")
        return
    if output.exists():
        sys.exit(f"error: {output} is there already and does not hold these digits; remove it, or choose another --output")
    # Written under another name and renamed: a killed run leaves nothing under the final name.
    temporary = output.with_name(f"{output.name}.tmp-{os.getpid()}")
    try:
        write(temporary, LABELS[args.labels])
        os.replace(temporary, output)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_there(output, args.labels):  # another process was faster
            return
        sys.exit(f"error: {output} cannot be written ({error.strerror})")
    except KeyboardInterrupt:
        shutil.rmtree(temporary, ignore_errors=True)
        sys.exit("interrupted; nothing was left behind")
    print(f"{TRAIN_IMAGES} training and {1797 - TRAIN_IMAGES} validation images in {output}/")


def is_there(output: Path, labels: str) -> bool:
    return all((output / split / name).is_dir() for split in ("train", "val") for name in set(map(LABELS[labels], range(10))))


def write(folder: Path, class_name) -> None:
    """Save every digit as an 8-bit grey PNG under its split and class; the data's 17 grey levels become 0, 15, ..., 255."""
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    for index, (image, digit) in enumerate(zip(pixels, digits.target, strict=True)):
        parent = folder / ("train" if index < TRAIN_IMAGES else "val") / class_name(digit)
        parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(parent / f"{digit}_{index:04d}.png")


if __name__ == "__main__":
    main()
