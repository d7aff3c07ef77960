"""Write a split of an image folder as one .ffcv file, and next to it a JSON file with the classes in label order.

    python write_imagenet.py --data-path ImageNet/train --output train_500_0.5_90.ffcv --max-resolution 500

The samples do not depend on the number of processes: neither their order, nor their pixels, nor the choice of images stored as
JPEG. A run that ends early leaves nothing under the final name.
"""

import argparse
import contextlib
import ctypes
import json
import multiprocessing
import os
import queue
import signal
import sys
import threading
import warnings
from functools import partial
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import NamedTuple, NoReturn

from errors import InputError

from write_options import no_ffcv, parse

if __name__ == "__main__":  # before the slow imports: --help and mistakes are answered immediately
    ARGS = parse()

import numpy as np
from PIL import Image
from tqdm import tqdm

import states
from image_mode import to_rgb
from visible_folder import VisibleFolder

if __name__ == "__main__":  # importing FFCV would compile code for seconds, which is not needed here
    os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
try:
    import cv2
    import ffcv.writer
    from ffcv.fields import IntField, RGBImageField
    from ffcv.memory_allocator import MemoryAllocator

    import ffcv_file
except ImportError as error:
    raise no_ffcv(error)

SMALLEST_PAGE = 2**23
END_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
LARGEST_PAGE = 2**31


class Picture(NamedTuple):
    """RGB uint8 (H, W, 3), whether to store it as JPEG, and its source file."""

    pixels: np.ndarray
    as_jpeg: bool
    path: str


class Terminated(Exception):
    """This process was asked to end: from outside, or because a writing process has ended."""


def main(args: argparse.Namespace) -> None:
    folder = open_folder(args.data_path)
    if args.output.exists() and not args.overwrite:
        raise InputError(f"--output {args.output} is there already; --overwrite replaces it")
    if not args.output.parent.is_dir():
        raise InputError(f"--output {args.output}: no such folder to write to")
    temporary = args.output.with_name(f"{args.output.name}.tmp-{os.getpid()}")
    try:
        write(folder, temporary, args)
        ffcv_file.read(temporary, "--output")  # if the disk filled up while FFCV wrote, a page may be truncated
        ffcv_file.description_path(args.output).unlink(missing_ok=True)
        os.replace(temporary, args.output)
        try:
            write_description(folder, args)
        except BaseException:
            args.output.unlink()
            raise
    except OSError as error:
        raise InputError(f"--output {args.output}: cannot be written ({error.strerror or error})")
    finally:
        temporary.unlink(missing_ok=True)
    size = args.output.stat().st_size
    print(f"{len(folder):,} images of {len(folder.classes):,} classes, {size / 1e6:,.0f} MB: {args.output}")


def open_folder(path: Path) -> VisibleFolder:
    if not path.is_dir():
        raise InputError(f"--data-path {path}: no such folder; name one split of an image folder, such as ImageNet/train")
    try:
        return VisibleFolder(path)
    except OSError as error:
        raise InputError(f"--data-path {path}: {str(error).splitlines()[0]}; it must hold <class>/<image>")


class Pictures:
    """The folder's images in the form that FFCV's writer reads: index -> (Picture, label)."""

    def __init__(self, folder: VisibleFolder, args: argparse.Namespace, complaints: multiprocessing.SimpleQueue):
        self.samples, self.complaints, self.parent = folder.samples, complaints, os.getpid()
        # Drawn here, not during encoding, because an image is encoded a second time if the page is full.
        self.as_jpeg = np.random.default_rng(args.seed).random(len(folder)) < args.compress_probability

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
        with contextlib.suppress(AttributeError):  # only Linux has prctl
            ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != self.parent:
            os._exit(1)  # the parent has already ended
        path, label = self.samples[index]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about odd EXIF data, which would disturb the bar
                with Image.open(path) as image:
                    return Picture(np.asarray(to_rgb(image)), bool(self.as_jpeg[index]), path), label
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            give_up(self.complaints, f"{path}: does not decode as an image ({error}); replace or remove the file")


def give_up(complaints: multiprocessing.SimpleQueue, message: str) -> NoReturn:
    """End a writing process; stop_when_one_dies notices it, whereas FFCV's writer would wait for its images forever."""
    complaints.put(message)
    os._exit(1)


def write(folder: VisibleFolder, path: Path, args: argparse.Namespace) -> None:
    """Write all images of a folder with FFCV. Raises InputError naming an image that cannot be written."""
    largest = args.max_resolution**2 or largest_image(folder)
    page = max(SMALLEST_PAGE, 1 << (3 * largest - 1).bit_length())
    if page > LARGEST_PAGE:
        raise InputError(f"--max-resolution {args.max_resolution}: {largest / 1e6:.0f} megapixels do not fit a page; lower it")
    cv2.setNumThreads(0)  # the processes are the parallelism
    ffcv.writer.tqdm = partial(tqdm, desc=args.output.name, unit=" images", dynamic_ncols=True, disable=None)
    # A signal handler changes `asked`, which must therefore have no lock: the interrupted code might hold it.
    complaints, asked, ended = multiprocessing.SimpleQueue(), queue.SimpleQueue(), threading.Event()

    flush_page = MemoryAllocator.flush_page

    def flush_or_give_up(allocator: MemoryAllocator) -> None:
        try:
            flush_page(allocator)
        except OSError as error:
            give_up(complaints, f"--output {args.output}: cannot be written ({error.strerror}); the partial file was removed")

    MemoryAllocator.flush_page = flush_or_give_up

    def terminate(*_) -> NoReturn:
        asked.put(None)
        raise Terminated

    def unraisable(lost: object) -> None:
        if lost.exc_type is not Terminated:  # Python prints exceptions that are raised while it forks
            sys.__unraisablehook__(lost)

    signal.signal(signal.SIGTERM, terminate)
    sys.unraisablehook = unraisable
    workers = min(args.num_workers, len(folder))
    fields = {"image": picture_field(args, complaints), "label": IntField()}
    writer = ffcv.writer.DatasetWriter(str(path), fields, page_size=page, num_workers=workers)
    threading.Thread(target=stop_when_one_dies, args=(complaints, asked, ended), daemon=True).start()
    try:
        chunk = min(100, -(-len(folder) // workers))
        writer.from_indexed_dataset(Pictures(folder, args, complaints), chunksize=chunk)
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if isinstance(error, Terminated) and not complaints.empty():
            raise InputError(complaints.get())
        raise
    finally:
        ended.set()
        MemoryAllocator.flush_page = flush_page
        for process in multiprocessing.active_children():
            process.kill()
        if sys.exc_info()[0] is not None and isinstance(getattr(writer, "metadata_sm", None), SharedMemory):
            writer.metadata_sm.close()
            writer.metadata_sm.unlink()


def stop_when_one_dies(complaints: multiprocessing.SimpleQueue, asked: queue.SimpleQueue, ended: threading.Event) -> None:
    """Terminate this process as soon as a process that it started has complained or been killed.

    The signal is repeated, including one from outside, because an exception that it raises while Python forks is lost.
    """
    seen = set()
    while not ended.wait(0.2):
        seen |= set(multiprocessing.active_children())
        if any(process.exitcode not in (None, 0) for process in seen) and complaints.empty():
            complaints.put("a writing process was killed, perhaps because memory ran out; try fewer --num-workers")
        if not asked.empty() or not complaints.empty():
            os.kill(os.getpid(), signal.SIGTERM)


def picture_field(args: argparse.Namespace, complaints: multiprocessing.SimpleQueue) -> RGBImageField:
    """FFCV's image field, except that each Picture states whether to store it as JPEG, where FFCV would draw at random."""
    options = {"max_resolution": args.max_resolution or None, "jpeg_quality": args.jpeg_quality}
    jpeg, raw = RGBImageField("jpg", **options), RGBImageField("raw", **options)

    def encode(destination, picture: Picture, malloc) -> None:
        try:
            (jpeg if picture.as_jpeg else raw).encode(destination, picture.pixels, malloc)
        except (cv2.error, ValueError, OverflowError) as error:
            height, width, _ = picture.pixels.shape
            give_up(complaints, f"{picture.path}: {width}x{height} px cannot be stored ({' '.join(str(error).split())[:120]})")

    field = RGBImageField()
    field.encode = encode
    return field


def largest_image(folder: VisibleFolder) -> int:
    """The number of pixels of a folder's largest image, from the files' headers."""
    largest = 1
    for path, _ in tqdm(folder.samples, desc="sizes", unit=" images", leave=False, dynamic_ncols=True, disable=None):
        try:
            with Image.open(path) as image:
                largest = max(largest, image.width * image.height)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: does not decode as an image ({error}); replace or remove the file")
    return largest


def write_description(folder: VisibleFolder, args: argparse.Namespace) -> None:
    path = ffcv_file.description_path(args.output)
    content = {"classes": folder.classes, "images": len(folder), "source": str(Path(folder.root).resolve())}
    content |= {name: getattr(args, name) for name in ("max_resolution", "compress_probability", "jpeg_quality", "seed")}
    states.write_whole(path, lambda file: file.write(json.dumps(content, indent=1).encode() + b"\n"))


def leave(status: int) -> NoReturn:
    """Exit immediately: Python's own exit would wait for FFCV's queued work, with some versions of TBB forever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    try:
        main(ARGS)
    except (InputError, KeyboardInterrupt, Terminated) as error:
        known = isinstance(error, InputError)
        sys.stderr.write(f"error: {error}\n" if known else "interrupted; nothing is left under the final name\n")
        # Within this block: freeing the exception closes FFCV's queues, which waits for a lock that a signal may have left held.
        leave(1)
    leave(0)
