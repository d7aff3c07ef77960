"""The processes of a run: torchrun's variables and a few collectives, which do nothing if there is only one process."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from errors import InputError

import torch
import torch.distributed as dist


def start(device_type: str) -> None:
    """Join the process group if torchrun, or another launcher that sets its variables, started this process."""
    if "RANK" not in os.environ:
        return
    missing = [name for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise InputError(f"RANK is set, but not {', '.join(missing)}; torchrun sets them all, and a single process needs none")
    device = None
    if device_type == "cuda":
        local, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= devices:
            raise InputError(f"process {local + 1} of this machine finds {devices} GPU(s): start one process per GPU")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # The other processes wait while one per machine reads or downloads the data, which takes long from a slow disk.
    dist.init_process_group("nccl" if device else "gloo", timeout=timedelta(hours=2), device_id=device)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_local_main() -> bool:
    """Whether this is the first process of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0" or not dist.is_initialized()


@contextmanager
def local_main_first() -> Iterator[None]:
    """The first process of each machine completes the block before the others enter it, even if it fails there.

    The others then meet the same error, so that none is left waiting for a process that has ended.
    """
    if not is_local_main():
        barrier()
    try:
        yield
    finally:
        if is_local_main():
            barrier()


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def start_worker(worker: int) -> None:
    """Run first in a loading process: it ignores Ctrl-C, which the main process handles, and ends when the main process ends.

    Without this, a worker would not notice that the main process was killed: its direct parent is the forkserver, which lives on
    as long as it has workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def share_buffers(model: torch.nn.Module) -> None:
    """Copy process 0's buffers to all processes; each gathers batch norm's statistics from its own images only."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def sum_over_processes(x: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all processes, in place; returns it."""
    if dist.is_initialized():
        dist.all_reduce(x)
    return x
