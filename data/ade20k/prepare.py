"""Check ADE20K as its scene-parsing benchmark distributes it, so that Tasks/segmentation can train on it.

python data/ade20k/prepare.py --root ADEChallengeData2016
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from annotated import run

COUNTS = {"training": 20_210, "validation": 2_000}

if __name__ == "__main__":
    run(
        "ADE20K (22,210 images, 150 classes)",
        {split: (f"images/{split}", f"annotations/{split}", count) for split, count in COUNTS.items()},
        suffixes=(".jpg",),
        suffix=".png",
        values={"classes": range(1, 151), "ignored": [0]},
    )
