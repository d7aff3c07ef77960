"""FFCV's loader, made reproducible: order, crops and flips are functions of (seed, epoch, image), independent of threads.

FFCV draws crops in its threads, each with its own random state. Here, they are drawn for all images at once before an epoch and
passed to the compiled decoder as additional columns of FFCV's table of images.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import Empty
from types import SimpleNamespace

from errors import InputError, say

import numba
import numpy as np
import torch
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.libffcv import ctypes_imdecode as decode_jpeg
from ffcv.libffcv import ctypes_resize as cut_and_scale
from ffcv.loader import Loader, OrderOption
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.transforms import NormalizeImage, ToDevice, ToTensor, ToTorchImage
from ffcv.traversal_order.base import TraversalOrder
from ffcv.traversal_order.quasi_random import QuasiRandom
from torch import Tensor

import distributed
import ffcv_file

CHECK_EVERY = 50  # batches between checks for images that did not decode
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, for values in 0..1
IMAGE_TYPE = np.dtype(
    [*ffcv_file.IMAGE_TYPE.descr]
    + [(name, "<u2") for name in ("top", "left", "crop_height", "crop_width")]
    + [("flip", "<u1"), ("broken", "<u1")]
)
RECORD_TYPE = np.dtype([("f0", IMAGE_TYPE), ("f1", "<i8")], align=True)


class Images:
    """Batches from a .ffcv file: epoch(number, side) yields images float32 (B, 3, side, side), normalised, and labels int64 (B,).

    crops(records, epoch) sets the columns top, left, crop_height, crop_width and flip of all images before an epoch.
    order: None uses `indices` in their order and keeps an incomplete last batch; else an EpochOrder or a PagedOrder.
    """

    def __init__(
        self,
        path: Path,
        records: np.ndarray,
        crops: Callable[[np.ndarray, int], None],
        batch_size: int,
        workers: int,
        device: torch.device,
        on_device: bool,
        order: TraversalOrder | None = None,
        indices: np.ndarray | None = None,
        in_memory: bool = True,
        seed: int = 0,
    ):
        self.path, self.crops, self.device, self.on_device = path, crops, device, on_device
        self.mean, self.std = (255 * torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
        self.decoder = CropDecoder()
        with_crops = np.zeros(len(records), RECORD_TYPE)
        with_crops["f1"] = records["f1"]
        for name in ffcv_file.IMAGE_TYPE.names:
            with_crops["f0"][name] = records["f0"][name]
        # On a CPU, FFCV normalises the array before it becomes a tensor. For a GPU, uint8 is transferred: a quarter of the bytes.
        if on_device:
            image = [self.decoder, ToTensor(), ToDevice(device), ToTorchImage()]
        else:
            scale = np.array([MEAN, STD]) * 255
            image = [self.decoder, NormalizeImage(*scale, np.float32), ToTensor(), ToTorchImage()]
        label = [IntDecoder(), ToTensor(), *([ToDevice(device)] if on_device else [])]
        threads = torch.get_num_threads()
        self.loader = Loader(
            str(path),
            batch_size=batch_size,
            num_workers=workers,
            os_cache=in_memory,
            order=OrderOption.SEQUENTIAL if order is None else order,
            indices=indices,
            seed=seed,
            pipelines={"image": image, "label": label},
            drop_last=order is not None,
        )
        torch.set_num_threads(threads)  # FFCV's Loader sets PyTorch's number too
        self.loader.reader.metadata = with_crops

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.loader)

    def epoch(self, number: int, side: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch `number`, counted from 0; on a CPU, a batch is overwritten soon after the next one is requested.

        Raises InputError naming images that do not decode, and re-raises errors of the loading thread.
        """
        images = self.loader.reader.metadata["f0"]
        self.crops(images, number)
        self.decoder.side = side
        self.loader.next_epoch = number
        threads, default_hook, failures = torch.get_num_threads(), threading.excepthook, []

        def end_with_failure(args) -> None:  # FFCV would wait for its dead thread forever
            if not isinstance(args.thread, EpochIterator):
                return default_hook(args)
            failures.append(args.exc_value)
            args.thread.output_queue.put(None)

        threading.excepthook = end_with_failure
        iterator = iter(self.loader)
        try:
            for step, (batch, labels) in enumerate(iterator):
                if step == 0:
                    torch.set_num_threads(threads)  # the loading thread has set its own number
                if step % CHECK_EVERY == 0:
                    self.check_decoded(images)
                if not self.on_device:
                    yield batch, labels.flatten()
                    continue
                normalised = batch.float().sub_(self.mean).div_(self.std)
                copied = torch.cuda.current_stream(batch.device).record_event() if batch.is_cuda else None
                yield normalised, labels.flatten()
                # FFCV decodes into this batch's pinned memory as soon as the next batch is requested; its own events make only
                # the GPU wait. So wait for the copy here; meanwhile the GPU has the training step to compute.
                if copied:
                    copied.synchronize()
            if failures:
                raise failures[0]
            self.check_decoded(images)
        finally:
            iterator.terminate_event.set()
            iterator.iter_ixes = iter(())  # else it would decode the rest of the epoch first
            while iterator.is_alive():  # it may be waiting for room in the queue
                with contextlib.suppress(Empty):
                    iterator.output_queue.get(timeout=0.1)
            threading.excepthook = default_hook
            torch.set_num_threads(threads)

    def check_decoded(self, images: np.ndarray) -> None:
        broken = np.flatnonzero(images["broken"])
        if len(broken):
            some = ", ".join(map(str, broken[:5]))
            raise InputError(f"{self.path}: images that do not decode: number {some} (counted from 0); write the file again")


class CropDecoder(SimpleRGBImageDecoder):
    """Decodes an image, cuts out its crop, resizes it to side x side pixels, and flips it if requested: uint8 (side, side, 3).

    The crop is in the image's row of the table (see IMAGE_TYPE); an image that does not decode is marked there. Resizing uses
    OpenCV's INTER_AREA, as FFCV's own decoders do.
    """

    side = 1

    def declare_state_and_memory(self, previous_state):
        shape, kind = (self.side, self.side, 3), np.dtype("<u1")
        return replace(previous_state, jit_mode=True, shape=shape, dtype=kind), AllocationQuery(shape, kind)

    def generate_code(self) -> Callable:
        read, rows = self.memory_read, Compiler.get_iterator()

        def decode(batch_indices, destination, table, storage_state):
            for row in rows(len(batch_indices)):
                number = batch_indices[row]
                image = table[number]
                data = read(image["data_ptr"], storage_state)
                height, width = np.uint32(image["height"]), np.uint32(image["width"])
                top, left = np.int64(image["top"]), np.int64(image["left"])
                bottom, right = top + image["crop_height"], left + image["crop_width"]
                target = destination[row]
                source = data
                if image["mode"] == 0:
                    source = np.empty(3 * height * width, np.uint8)
                    # Arguments as in ffcv.libffcv.imdecode: no crop, full scale, no flip; 0 means success.
                    if decode_jpeg(
                        data.ctypes.data, data.size, height, width, source.ctypes.data, height, width, 0, 0, 1, 1, False, False
                    ):
                        table[number]["broken"] = 1
                side = target.shape[0]
                cut_and_scale(0, source.ctypes.data, height, width, top, bottom, left, right, target.ctypes.data, side, side)
                if image["flip"]:
                    for x in range(side // 2):
                        for y in range(side):
                            for c in range(3):
                                held = target[y, x, c]
                                target[y, x, c] = target[y, side - 1 - x, c]
                                target[y, side - 1 - x, c] = held
            return destination[: len(batch_indices)]

        decode.is_parallel = True
        return decode


class EpochOrder(TraversalOrder):
    """This process's share of a shuffle of all images, a function of (seed, epoch). Each global batch is the same for one process
    and for many. An incomplete last batch is dropped.
    """

    def __init__(self, images: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        self.images, self.batch_size, self.seed, self.rank, self.world_size = images, batch_size, seed, rank, world_size

    def __call__(self, loader: Loader) -> "EpochOrder":  # FFCV calls a given order as if it were a class
        return self

    def sample_order(self, epoch: int) -> np.ndarray:
        """This process's image numbers (steps * batch_size,) in an epoch."""
        shuffled = np.random.default_rng((self.seed, epoch)).permutation(self.images)
        steps = self.images // (self.batch_size * self.world_size)
        shares = shuffled[: steps * self.batch_size * self.world_size].reshape(steps, self.world_size, self.batch_size)
        return shares[:, self.rank].flatten()


class PagedOrder(QuasiRandom):
    """FFCV's quasi-random order, which reads a file page by page, as a function of (seed, epoch): FFCV's own order shuffles the
    previous epoch's, so that a resumed run would use a different order.
    """

    def __init__(self):
        pass  # the loader is passed to __call__

    def __call__(self, loader: Loader) -> "PagedOrder":
        super().__init__(loader)
        self.unshuffled = self.page_to_samples_array.copy()
        return self

    def sample_order(self, epoch: int) -> np.ndarray:
        self.page_to_samples_array[:] = self.unshuffled
        return super().sample_order(epoch)


def random_crops(images: np.ndarray, seed: int, epoch: int, min_area: float, flip: float) -> None:
    """Set each image's crop: area share from min_area to 1, aspect ratio from 3/4 to 4/3, drawn as in torchvision."""
    random = np.random.default_rng((seed, epoch, 1))
    height, width = images["height"].astype(np.float64), images["width"].astype(np.float64)
    # The fallback, for images whose ten tries all fail: the largest centred crop with an allowed aspect ratio.
    crop_width, crop_height = np.rint(np.minimum(width, height * (4 / 3))), np.rint(np.minimum(height, width * (4 / 3)))
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    to_do = np.arange(len(images))
    for _ in range(10):
        area = height[to_do] * width[to_do] * random.uniform(min_area, 1, len(to_do))
        ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3), len(to_do)))
        w, h = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        y, x = random.random(len(to_do)), random.random(len(to_do))
        fits = (w > 0) & (w <= width[to_do]) & (h > 0) & (h <= height[to_do])
        chosen, w, h = to_do[fits], w[fits], h[fits]
        crop_width[chosen], crop_height[chosen] = w, h
        top[chosen] = np.floor(y[fits] * (height[chosen] - h + 1))
        left[chosen] = np.floor(x[fits] * (width[chosen] - w + 1))
        to_do = to_do[~fits]
    images["top"], images["left"], images["crop_height"], images["crop_width"] = top, left, crop_height, crop_width
    images["flip"] = random.random(len(images)) < flip


def centre_crops(images: np.ndarray, ratio: float) -> None:
    """Set each image's crop to the central square with side `ratio` times its shorter side, rounded down as in FFCV."""
    height, width = images["height"].astype(np.int64), images["width"].astype(np.int64)
    side = np.maximum((np.minimum(height, width) * ratio).astype(np.int64), 1)
    images["top"], images["left"] = (height - side) // 2, (width - side) // 2
    images["crop_height"], images["crop_width"] = side, side
    images["flip"] = 0


def train_images(
    file: ffcv_file.File,
    training: SimpleNamespace,
    augmentation: SimpleNamespace,
    threads: int | None,
    in_memory: bool,
    device: torch.device,
) -> Images:
    """Random crops in random order; training, augmentation: those sections of the configuration.

    Raises InputError if the images do not fill one global batch.
    """
    global_batch, count = training.batch_size * distributed.world_size(), len(file.records)
    if count < global_batch:
        raise InputError(
            f"{file.path}: {count:,} training images do not fill one batch of {global_batch:,}; see training.batch_size"
        )

    def crops(images: np.ndarray, epoch: int) -> None:
        random_crops(images, training.seed, epoch, augmentation.min_area, augmentation.flip)

    if not in_memory and distributed.world_size() > 1:
        say("data.in_memory=0 has no effect: FFCV reads by pages in one process only, so several shuffle over the mapped file")
    paged = not in_memory and distributed.world_size() == 1
    shuffled = EpochOrder(count, training.batch_size, training.seed, distributed.rank(), distributed.world_size())
    order = PagedOrder() if paged else shuffled
    options = {"order": order, "in_memory": not paged, "seed": training.seed}
    on_device = device.type == "cuda"
    return Images(file.path, file.records, crops, training.batch_size, threads_of(threads), device, on_device, **options)


def val_images(file: ffcv_file.File, validation: SimpleNamespace, threads: int | None, device: torch.device) -> Images | None:
    """Central crops of this process's share of the images, None if it is empty; each image is in one process's share."""
    indices = np.arange(distributed.rank(), len(file.records), distributed.world_size())
    if not len(indices):
        return None

    def crops(images: np.ndarray, epoch: int) -> None:
        centre_crops(images, validation.crop_ratio)

    threads, on_device = threads_of(threads), device.type == "cuda"
    return Images(file.path, file.records, crops, validation.batch_size, threads, device, on_device, indices=indices)


def threads_of(asked: int | None) -> int:
    """Loading threads of a process: as requested, at most the cores; by default, an equal share of this machine's cores."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(asked or max(1, numba.config.NUMBA_NUM_THREADS // local), numba.config.NUMBA_NUM_THREADS)


def memory() -> int:
    """The memory of this machine or its container, in bytes."""
    limit = Path("/sys/fs/cgroup/memory.max")
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(installed, int(limit.read_text()))
    except (OSError, ValueError):  # no such limit: "max"
        return installed
