"""Unpack the archive of the IMDB reviews, and check that all of them are there.

python data/imdb/prepare.py --archive aclImdb_v1.tar.gz
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unpack import InputError, in_one_line, members, run

REVIEW = re.compile(r"aclImdb/(?:train|test)/(?:pos|neg)/\d+_\d+\.txt")
PER_CLASS = 12_500


def main() -> None:
    parser = argparse.ArgumentParser(description="Unpack and check the IMDB reviews (25,000 for training, 25,000 for testing).")
    parser.add_argument("--archive", type=Path, help="aclImdb_v1.tar.gz; if omitted: check the existing folder aclImdb/")
    parser.add_argument("--root", type=Path, default=Path(__file__).parent, help="folder for aclImdb/ (%(default)s)")
    args = parser.parse_args()
    if args.archive:
        return run(lambda folder: prepare(args.archive, folder), args.root, ("aclImdb",))
    with in_one_line(args.root):
        print(f"{check(args.root / 'aclImdb')} in {args.root}/")


def prepare(archive: Path, folder: Path) -> str:
    """Write the reviews, and nothing else from the archive, below the folder; returns the sentence of check()."""
    for name, file in members(archive):
        if REVIEW.fullmatch(name):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read())
    return check(folder / "aclImdb")


def check(folder: Path) -> str:
    """A sentence about the reviews in a folder. Raises InputError if a class is incomplete."""
    for part in ("train/neg", "train/pos", "test/neg", "test/pos"):
        count = sum(path.suffix == ".txt" for path in (folder / part).iterdir()) if (folder / part).is_dir() else 0
        if count != PER_CLASS:
            raise InputError(f"aclImdb/{part}: {count:,} reviews, not {PER_CLASS:,}; README.md has the source of the archive")
    return f"{2 * PER_CLASS:,} reviews for training, {2 * PER_CLASS:,} for testing"


if __name__ == "__main__":
    main()
