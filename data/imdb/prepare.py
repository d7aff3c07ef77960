"""Unpack the archive of the IMDB reviews, and check that all of them are there.

python data/imdb/prepare.py --archive aclImdb_v1.tar.gz
"""

import argparse
import os
import re
import shutil
import sys
import tarfile
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from unpack import DataError, members, printable

REVIEW = re.compile(r"aclImdb/(?:train|test)/(?:pos|neg)/\d+_\d+\.txt")
PER_CLASS = 12_500


def main() -> None:
    parser = argparse.ArgumentParser(description="Unpack and check the IMDB reviews (25,000 for training, 25,000 for testing).")
    parser.add_argument("--archive", type=Path, help="aclImdb_v1.tar.gz; if omitted: check the folder aclImdb that is there")
    parser.add_argument("--root", type=Path, default=Path(__file__).parent, help="folder to hold aclImdb/ (%(default)s)")
    args = parser.parse_args()
    folder = args.root / "aclImdb"
    temporary = args.root / f"unpacking-{os.getpid()}"
    try:
        if args.archive:
            if folder.exists():
                sys.exit(f"error: {folder} exists already; remove it, or choose another --root")
            unpack(args.archive, temporary)
            check(temporary / "aclImdb")
            os.replace(temporary / "aclImdb", folder)
        else:
            check(folder)
        print(f"{folder}: {2 * PER_CLASS:,} reviews for training, {2 * PER_CLASS:,} for testing")
    except DataError as error:
        sys.exit(f"error: {printable(str(error))}")
    except (tarfile.TarError, EOFError, zlib.error) as error:  # in the middle of a review
        sys.exit(f"error: {args.archive}: damaged, or ends too early ({error}); download it again")
    except OSError as error:
        sys.exit(f"error: {error.filename or args.archive}: {error.strerror or error}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def unpack(archive: Path, folder: Path) -> None:
    """Write the reviews, and nothing else that the archive holds, below the folder."""
    for name, file in members(archive):
        if REVIEW.fullmatch(name):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read())


def check(folder: Path) -> None:
    """End with one line if a class is incomplete."""
    for part in ("train/neg", "train/pos", "test/neg", "test/pos"):
        count = sum(path.suffix == ".txt" for path in (folder / part).iterdir()) if (folder / part).is_dir() else 0
        if count != PER_CLASS:
            sys.exit(f"error: {folder / part}: {count:,} reviews, not {PER_CLASS:,}; README.md has the source of the archive")


if __name__ == "__main__":
    main()
