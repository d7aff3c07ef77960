"""The processes that torchrun started, each with its share of the images; without torchrun, one process."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist


@contextmanager
def together() -> Iterator[None]:
    """Join torchrun's other processes, if any, for the code inside. They exchange only results, so gloo suffices."""
    if "RANK" not in os.environ:
        yield
        return
    dist.init_process_group("gloo", timeout=timedelta(hours=2))
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def device(kind: str) -> str:
    """This process's device of the kind cpu or cuda."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if kind == "cuda" else kind


def share(total: int) -> range:
    """This process's part of 0 ... total - 1: contiguous, in the order of the processes, none omitted and none twice."""
    return range(rank() * total // count(), (rank() + 1) * total // count())


def gather(rows: torch.Tensor) -> torch.Tensor | None:
    """All processes' rows, in their order, on the first process; None on the others."""
    parts = collect(rows)
    return torch.cat(parts) if parts else None


def collect(value: object) -> list:
    """The value of every process, in their order, on the first process; [] on the others."""
    if not dist.is_initialized():
        return [value]
    found = [None] * count() if rank() == 0 else None
    dist.gather_object(value, found)
    return found or []


def start_worker(worker: int) -> None:
    """Called first in a loading process: leave Ctrl-C to the main process, and exit when the main process ends, even if killed.

    Without this, a worker would not notice that end: its direct parent is the forkserver, which stays alive while it has workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def add_up(*sums: torch.Tensor) -> None:
    """Replace tensors by their sums over the processes."""
    for tensor in sums:
        if dist.is_initialized():
            dist.all_reduce(tensor)
