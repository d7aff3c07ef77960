"""Check CamVid as SegNet's authors prepared it, so that Tasks/segmentation can train on it.

python data/camvid/prepare.py --root CAMVID
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from annotated import run

if __name__ == "__main__":
    run(
        "CamVid (701 street images, 11 classes)",
        {split: (split, f"{split}annot", count) for split, count in {"train": 367, "val": 101, "test": 233}.items()},
        suffixes=(".png", ".jpg"),
        suffix=".png",
        values={"classes": range(11), "ignored": [11]},
    )
