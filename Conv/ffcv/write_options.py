"""The command line of write_imagenet.py, and the error of both commands if FFCV is missing."""

import os
from argparse import Namespace
from pathlib import Path

from errors import InputError, Parser

# The cores that this process may use; taskset and clusters limit them.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse() -> Namespace:
    parser = Parser(description="Write a split of an image folder as a .ffcv file.")
    add = parser.add_argument
    add("--data-path", type=Path, required=True, metavar="FOLDER", help="one split of an image folder: <class>/<image>")
    add("--output", type=Path, required=True, metavar="FILE", help="file to write, .ffcv")
    add("--max-resolution", type=int, default=500, metavar="PX", help="maximum side; larger images are scaled down; 0: keep all")
    share = "share of images stored as JPEG; the others are stored as pixels"
    add("--compress-probability", type=float, default=0.5, metavar="P", help=share)
    add("--jpeg-quality", type=int, default=90, metavar="1-100", help="JPEG quality")
    add("--seed", type=int, default=0, help="seed that selects the images stored as JPEG")
    add("--num-workers", type=int, default=CORES, metavar="N", help="worker processes")
    add("--overwrite", action="store_true", help="replace an existing --output")
    args = parser.parse_args()
    ranges = {"max_resolution": (0, 65535), "compress_probability": (0, 1), "jpeg_quality": (1, 100), "seed": (0, 2**32 - 1)}
    for name, (low, high) in (ranges | {"num_workers": (1, 1024)}).items():
        if not low <= getattr(args, name) <= high:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: must lie between {low} and {high}")
    return args


def no_ffcv(error: ImportError) -> InputError:
    """The error for a failed import of FFCV, with its reason and how to install FFCV."""
    reason = str(error).splitlines()[0]
    return InputError(f"FFCV does not import here ({reason}); install it with: bash {Path(__file__).parent / 'install.sh'}")
