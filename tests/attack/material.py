"""The good inputs, all of them small, and the parts of a command's results that are compared."""

import contextlib
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def pictures(
    root: Path, side: int = 16, form: str = "png", classes: str = "ab", counts: tuple = (("train", 4), ("val", 2))
) -> None:
    """Write an image folder of grey images, so that a 16-bit image can have the same content; the second class is brighter."""
    rng = np.random.default_rng(0)
    for split, count in counts:
        for label, name in enumerate(classes):
            for number in range(count):
                (root / split / name).mkdir(parents=True, exist_ok=True)
                grey = rng.integers(60 * label, 60 * label + 100, (side, side)).astype(np.uint8)
                Image.fromarray(grey).save(root / split / name / f"{number}.{form}")


def archives(root: Path) -> None:
    """Write train.zip, val.zip and their maps, made from the images in root/folder."""
    pictures(root / "folder")
    for split in ("train", "val"):
        lines = []
        with zipfile.ZipFile(root / f"{split}.zip", "w") as archive:
            for path in sorted((root / "folder" / split).rglob("*.png")):
                archive.write(path, str(path.relative_to(root / "folder")))
                lines.append(f"{path.parent.name}/{path.name}\t{'ab'.index(path.parent.name)}\n")
        (root / f"{split}_map.txt").write_text("".join(lines))


def table(path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [f"{x:.3f};{rng.choice(['red', 'green'])};{'yes' if x > 50 else 'no'}\n" for x in rng.normal(50, 20, 60)]
    path.write_text("size;colour;bought\n" + "".join(rows))


def reviews(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, words in (("neg", "bad dull slow film".split()), ("pos", "good bright quick film".split())):
            (root / split / name).mkdir(parents=True)
            for number in range(6):
                (root / split / name / f"{number}.txt").write_text(" ".join(rng.choice(words, 12)) + ".\n")


def scenes(root: Path) -> None:
    """Write grey images in CamVid's layout; the two classes are the upper and the lower half of each image."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for number in range(count):
            labels = np.repeat([0, 1], 16)[:, None].repeat(32, 1).astype(np.uint8)
            Image.fromarray((120 * labels + rng.integers(0, 60, labels.shape)).astype(np.uint8)).save(
                root / split / f"{number}.png"
            )
            Image.fromarray(labels).save(root / f"{split}annot/{number}.png")


def said(pattern: str, command: Callable, *words: object) -> str:
    """Everything in a command's output that the pattern matches."""
    with contextlib.redirect_stdout(io.StringIO()) as text:
        command(*words)
    print(text.getvalue())
    return " ".join(re.findall(pattern, text.getvalue()))


def outcome_of_run(folder: Path) -> str:
    """The metrics of the last epoch in a run's log, and a digest of its weights."""
    line = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    numbers = {key: value for key, value in line.items() if "seconds" not in key and "per_second" not in key}
    weights = torch.load(folder / "checkpoint.pth", weights_only=True)["model"]
    return f"{digest(weights)} {numbers}"


def digest(tensors: dict) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].detach().contiguous().float().numpy().tobytes())
    return found.hexdigest()[:8]
