"""What the parts of prepare.py share: parallel work with results in order."""

import collections
import contextlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
IN_FLIGHT = 8  # jobs per process that wait for their turn
PART = "part"  # suffix of incomplete files


def in_order(pool: ProcessPoolExecutor, function: Callable, items: Iterable, ahead: int) -> Iterator:
    """function(*item) for each item, computed by the pool, in order, with at most `ahead` of them waiting in memory."""
    waiting = collections.deque()
    for item in items:
        waiting.append(pool.submit(function, *item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextlib.contextmanager
def processes(count: int) -> Iterator[ProcessPoolExecutor]:
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("forkserver"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def one_line(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
