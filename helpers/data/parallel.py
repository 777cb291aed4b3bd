"""The same for many files, on all cores, with progress, and with memory that does not grow with their number."""

import itertools
import logging
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from tqdm import tqdm

from helpers import progress_file, silent_stderr


def in_parallel(
    function: Callable, items: Iterable, *, title: str, lot: int = 16, total: int | None = None
) -> Iterator:
    """Yields function(item) for each item, in their order; threads, since Pillow works without Python's lock.

    Args:
        function: called with one item, in several threads at once.
        items: of any kind; they are taken a few lots ahead of those that are yielded, and no further.
        title: what the progress bar says; it is shown after a second, with the time left, and vanishes.
        lot: items that a thread takes at a time.
        total: the number of items, for the time left; None where they know it themselves.
    """
    workers = os.cpu_count() or 1
    pool = ThreadPoolExecutor(max_workers=workers)
    total = len(items) if total is None else total
    bar = tqdm(total=total, desc=title, leave=False, file=progress_file(), delay=1)
    iterator = iter(items)
    lots = iter(lambda: list(itertools.islice(iterator, lot)), [])

    def work(lot: list) -> list:
        with quiet:  # here and not around it all, which would not end if the caller raised in between
            return [function(item) for item in lot]

    def submit(lot: list):
        return pool.submit(work, lot)

    with bar:
        try:
            # never more than a few lots ahead: `map` would make a future for every item before it starts
            ahead = deque(map(submit, itertools.islice(lots, 4 * workers)))
            while ahead:
                results = ahead.popleft().result()
                ahead.extend(map(submit, itertools.islice(lots, 1)))
                yield from results
                bar.update(len(results))
        finally:
            pool.shutdown(cancel_futures=True)  # also after Ctrl-C, or if the caller wants no more


class _Quiet:
    """Keeps what image libraries complain of out of the notebook: its consequence for an image is a row in a table.

    While any thread is inside: Python's filters and the standard error, to which libtiff writes, are the
    process's, and one thread that restored them would do so for the others.
    """

    def __init__(self):
        self._lock, self._inside, self._stack = threading.Lock(), 0, ExitStack()

    def __enter__(self):
        with self._lock:
            if self._inside == 0:
                self._stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                self._stack.enter_context(silent_stderr())
                self._stack.enter_context(_silent_logger(logging.getLogger("PIL")))
            self._inside += 1

    def __exit__(self, *_):
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._stack.close()


@contextmanager
def _silent_logger(logger: logging.Logger):
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


quiet = _Quiet()
