"""The same for many files, on all cores, with progress, and with memory that does not grow with their number."""

import itertools
import logging
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from tqdm import tqdm

from helpers import progress_file, silent_stderr


def in_parallel(
    function: Callable, items: Iterable, *, title: str, chunksize: int = 16, total: int | None = None
) -> Iterator:
    """Yields function(item) for each item, in their order; threads, since Pillow works without Python's lock.

    Items are taken a few chunks of `chunksize` ahead. `title` is the progress bar's; `total` is needed where items
    have no length.
    """
    workers, iterator = os.cpu_count() or 1, iter(items)
    chunks = iter(lambda: list(itertools.islice(iterator, chunksize)), [])
    pool, total = ThreadPoolExecutor(max_workers=workers), len(items) if total is None else total

    def work(chunk: list) -> list:
        with quiet:  # here and not around it all, which would not end if the caller raised in between
            return [function(item) for item in chunk]

    with tqdm(total=total, desc=title, leave=False, file=progress_file(), delay=1) as bar:
        try:
            # never more than a few chunks ahead: `map` would make a future for every item before it starts
            ahead = deque(pool.submit(work, chunk) for chunk in itertools.islice(chunks, 4 * workers))
            while ahead:
                results = ahead.popleft().result()
                ahead.extend(pool.submit(work, chunk) for chunk in itertools.islice(chunks, 1))
                yield from results
                bar.update(len(results))
        finally:
            pool.shutdown(cancel_futures=True)  # also after Ctrl-C, or if the caller wants no more


class _Quiet:
    """Silences image libraries while any thread is inside: filters and standard error are those of all threads."""

    def __init__(self):
        self._lock, self._inside, self._stack = threading.Lock(), 0, ExitStack()

    def __enter__(self):
        with self._lock:
            if self._inside == 0:
                self._stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                self._stack.enter_context(silent_stderr())
                logger = logging.getLogger("PIL")
                self._stack.callback(logger.setLevel, logger.level)
                logger.setLevel(logging.CRITICAL)
            self._inside += 1

    def __exit__(self, *_):
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._stack.close()


quiet = _Quiet()
