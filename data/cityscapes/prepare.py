"""Check the finely annotated part of Cityscapes, so that Tasks/segmentation can train on it.

python data/cityscapes/prepare.py --root CITYSCAPES
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from annotated import run

CLASSES = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]  # label ids that are evaluated

if __name__ == "__main__":
    run(
        "Cityscapes (3,475 street images with public labels, 19 classes)",
        {split: (f"leftImg8bit/{split}", f"gtFine/{split}", count) for split, count in {"train": 2975, "val": 500}.items()},
        suffixes=("_leftImg8bit.png",),
        suffix="_gtFine_labelIds.png",
        values={"classes": CLASSES, "ignored": sorted({*range(34), 255} - {*CLASSES})},
    )
