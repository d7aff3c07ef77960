"""Turn an image folder or the official ImageNet tars into train.zip, val.zip and their maps; check a copy of ImageNet.

    python data/imagenet/prepare.py --root data/ImageNet                       # folder or tars -> archives and maps
    python data/imagenet/prepare.py --root data/ImageNet --maps-only           # archives made by `zip -r` -> maps
    python data/imagenet/prepare.py --root data/ImageNet --check               # decode every image, name each broken one
    python data/imagenet/prepare.py --root data/ImageNet --shorter-side 256 --output data/ImageNet256

--root holds train/<class>/<image> and val/<class>/<image>, or ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
ILSVRC2012_devkit_t12.tar.gz as they are downloaded. A killed run continues where it stopped; existing archives are kept.
"""

import argparse
import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import errors  # noqa: F401  it reports a missing package in one line

from archives import ArchiveError
from check import check
from maps import write_maps
from unpack import InputError, printable
from writer import write_archives

# The cores that this process may use, which taskset and clusters limit.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    args = parse()
    output = args.output or args.root
    try:
        if not args.root.is_dir():
            raise InputError(f"--root {args.root}: no such folder")
        if args.check:
            sys.exit(1 if check(args.root, args.workers) else 0)
        output.mkdir(parents=True, exist_ok=True)
        with locked(output):
            if args.maps_only:
                write_maps(args.root, args.overwrite)
            else:
                write_archives(args, output)
    except (InputError, ArchiveError) as error:
        sys.exit(f"error: {printable(str(error))}")
    except BrokenProcessPool:
        sys.exit(
            "error: a process that decodes was killed, perhaps because memory ran out; the same command continues, see --workers"
        )
    except OSError as error:
        sys.exit(f"error: {error.filename or output}: {error.strerror or error}; the same command continues from here")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues from here")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s --root FOLDER [options]"
    )
    add = parser.add_argument
    add("--root", type=Path, required=True, metavar="FOLDER", help="folder with the images, tars or archives")
    add("--output", type=Path, metavar="FOLDER", help="folder for the archives; if omitted: --root")
    add("--maps-only", action="store_true", help="write only the map files of the archives in --root")
    add("--check", action="store_true", help="decode every image of the archives (or folders) in --root; writes nothing")
    add("--shorter-side", type=int, metavar="PX", help="shrink images whose shorter side is longer; if omitted: no limit")
    add("--max-side", type=int, metavar="PX", help="shrink images whose longer side is longer; if omitted: no limit")
    add(
        "--quality",
        type=int,
        metavar="1-100",
        help="re-encode every image at this JPEG quality; if omitted: only the shrunk ones, at 90",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace existing archives and maps; given again after an interruption, also the finished ones",
    )
    add("--workers", type=int, default=CORES, metavar="N", help="processes that decode; if omitted: %(default)s, one per core")
    args = parser.parse_args()
    for name, least, most in (("shorter_side", 1, 65535), ("max_side", 1, 65535), ("quality", 1, 100), ("workers", 1, 4096)):
        if getattr(args, name) is not None and not least <= getattr(args, name) <= most:
            parser.error(f"--{name.replace('_', '-')} must lie between {least} and {most}")
    if args.maps_only and args.check:
        parser.error("--maps-only and --check are two runs")
    changes = args.output or args.shorter_side or args.max_side or args.quality
    if args.maps_only and changes:
        parser.error("--maps-only changes no archive: it goes with --root and --overwrite alone")
    if args.check and (changes or args.overwrite):
        parser.error("--check writes nothing: it goes with --root and --workers alone")
    return args


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder for this process. Raises InputError if another prepare.py has locked it; a killed one holds no lock."""
    with open(folder / ".prepare.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another prepare.py is running here; wait until it ends, then start again")
        except OSError as error:
            print(f"note: {folder} cannot be locked ({error.strerror}); see to it that no second prepare.py works here")
        yield


if __name__ == "__main__":
    main()
