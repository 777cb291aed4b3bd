"""The same for many files, on all cores, with progress, and with memory that does not grow with their number."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tqdm import tqdm


def in_parallel(function: Callable, items: Sequence, *, title: str) -> Iterator:
    """Yields function(item) for each item, in their order; threads, since Pillow works without Python's lock."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool, _quiet():
        with tqdm(total=len(items), desc=title, leave=False, file=sys.stdout, delay=1) as bar:
            # in pieces: `map` makes a future for every item before it starts, a kilobyte each
            for start in range(0, len(items), 1024):
                for result in pool.map(function, items[start : start + 1024]):
                    yield result
                    bar.update()


@contextmanager
def _quiet():
    """Keeps what Pillow warns of out of the notebook: its consequence for an image is a row in a table.

    Around all threads, since filters are the process's: set within one, they would change the others'.
    """
    logger = logging.getLogger("PIL")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
