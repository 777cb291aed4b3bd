"""A cache of arrays on disk: a `.npy` file that is written once and read by rows, so that it may exceed memory.

Decoded images and the activations of frozen layers are kept so. A `.json` file beside each holds the keys and
checksums of its rows, and the stamp that the file had when the checksums were last compared.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
from filelock import FileLock

from helpers import whole_file, write_atomically
from helpers.data.parallel import in_parallel

_ABANDONED = 3600  # seconds without a write after which an unfinished file is one that a killed process left


class Store:
    """An open store, whose rows are read by number. It stays readable if the file is replaced or removed.

    Read and not mapped into memory: the pages of a map count as the process's memory, up to the whole set.
    """

    def __init__(self, file: Path):
        about = json.loads(_side_file(file).read_text(encoding="utf-8"))
        self.file, self.keys, self.stamp, self.checksums = file, about["keys"], about["stamp"], about["checksums"]
        self.seconds_per_row = float(about["seconds_per_row"])
        self.opened, self._lock = open(file, "rb"), threading.Lock()
        weakref.finalize(self, self.opened.close).atexit = False  # a thread may still be reading then
        np.lib.format.read_magic(self.opened)
        (rows, *shape), _, self.dtype = np.lib.format.read_array_header_1_0(self.opened)
        self.row_shape, self.row_bytes = tuple(shape), math.prod(shape) * self.dtype.itemsize
        self._start = self.opened.tell()
        size = os.fstat(self.opened.fileno()).st_size
        if not rows == len(self.keys) == len(self.checksums) or size != self._start + rows * self.row_bytes:
            raise ValueError(f"{file} is damaged.")

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Returns these rows, an array (rows, *row_shape); neighbours are read with one call."""
        values = np.empty((len(rows), *self.row_shape), self.dtype)
        starts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)] if values.size else []
        with self._lock:
            for start, stop in pairwise(starts):
                self.opened.seek(self._start + int(rows[start]) * self.row_bytes)
                if self.opened.readinto(memoryview(values[start:stop]).cast("B")) < (stop - start) * self.row_bytes:
                    raise OSError(f"{self.file} was cut off while in use. Load the pixels or activations again.")
        return values

    def is_whole(self) -> bool:
        """Returns whether the rows are as they were written: compares their checksums if the file was touched."""
        now = _stamp(os.fstat(self.opened.fileno()))
        if self.stamp == now:
            return True
        rows = range(len(self.keys))
        checksums = in_parallel(
            lambda row: zlib.crc32(self.read(np.array([row]))), rows, title="checking stored rows"
        )
        if list(checksums) != self.checksums:
            return False
        about = json.loads(_side_file(self.file).read_text(encoding="utf-8"))
        write_atomically(_side_file(self.file), json.dumps(about | {"stamp": now}))
        return True

    def find(self, keys: Sequence[str]) -> np.ndarray:
        """Returns the numbers of the rows with these keys, int64 (keys,)."""
        numbers = {key: number for number, key in enumerate(self.keys)}
        return np.array([numbers[key] for key in keys], "int64")


def open_store(file: Path, keys: Sequence[str]) -> Store | None:
    """Returns the store if it has a row for each of the keys and its rows are as they were written, else None."""
    try:
        store = Store(file)
        if not set(keys).issubset(store.keys) or not store.is_whole():
            return None
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # absent, or not what `write_store` wrote
        return None
    with suppress(OSError):  # now it is the most recently used one; deleted in between, or a read-only disk
        os.utime(_side_file(file))
    return store


def write_store(
    file: Path,
    batches: Iterable[np.ndarray],
    *,
    shape: Sequence[int],
    dtype: str,
    keys: Sequence[str],
    seconds_below: float = 0.0,
    hint: str = "",
) -> Store:
    """Returns a new store, written whole or not at all; OSError if the disk has too little space.

    Args:
        file: where it is kept. The least recently used stores in its folder are deleted if room is needed.
        batches: the rows, some at a time; they are computed meanwhile, and the time counts as the store's.
        shape, dtype: of a row.
        keys: of the rows, in their order.
        seconds_below: what a row's computation took before, in another store.
        hint: what a person can do if it does not fit.
    """
    size, checksums, started = len(keys) * math.prod(shape) * np.dtype(dtype).itemsize, [], time.perf_counter()
    file.parent.mkdir(parents=True, exist_ok=True)
    _make_room(file.parent, size, hint)
    try:
        with whole_file(file) as partial, open(partial, "wb") as opened:
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (len(keys), *shape)}
            np.lib.format.write_array_header_1_0(opened, header)
            for batch in batches:
                batch = np.ascontiguousarray(batch, dtype)
                opened.write(batch)
                checksums += [zlib.crc32(row) for row in batch]
            opened.flush()
            os.fsync(opened.fileno())  # or else a power cut could leave a file with the right name and nothing in it
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(_no_room(file.parent, size, hint)) from None
        raise
    seconds = seconds_below + (time.perf_counter() - started) / max(len(keys), 1)
    about = {"keys": list(keys), "checksums": checksums, "seconds_per_row": seconds, "stamp": _stamp(file.stat())}
    write_atomically(_side_file(file), json.dumps(about))
    return Store(file)


def find_or_make(file: Path, find: Callable[[], Store | None], make: Callable[[], Store]) -> Store:
    """Returns what `find` finds, else what `make` makes, in one thread of one process at a time: others find it."""
    if store := find():
        return store
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file.with_name(f".{file.name}.lock"))
    with suppress(OSError, NotImplementedError):  # a network file system may have no locks: then each makes its own
        lock.acquire()
    try:
        return find() or make()
    finally:
        lock.release()


class StoredArray:
    """An array (rows, ...) that stays on disk, each of its rows one of the store's.

    `array[i]`, `array[10:20]`, `array[[3, 1]]` and `array[mask]` read just those rows into a new NumPy array; a loop
    reads one after the other; `np.asarray(array)` reads all, into memory.
    """

    def __init__(self, store: Store, rows: np.ndarray):
        self._store, self._rows = store, rows
        self.shape, self.dtype, self.ndim = (len(rows), *store.row_shape), store.dtype, 1 + len(store.row_shape)

    @property
    def seconds(self) -> float:
        """What it took to compute these rows, also if that was in an earlier run; decoding does not count."""
        return self._store.seconds_per_row * len(set(self._rows.tolist()))

    @property
    def keys(self) -> list[str]:
        """What each row is, by its content: equal keys, equal values."""
        return [self._store.keys[row] for row in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key) -> np.ndarray:
        if isinstance(key, tuple) or key is None or key is Ellipsis:
            raise IndexError(f"Expected an index of rows alone. Received {key}: write `array[rows][...]`.")
        rows = self._rows[key]  # NumPy's own rules, errors included
        return self._store.read(rows.ravel()).reshape(*rows.shape, *self._store.row_shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def content_keys(array) -> list[str]:
    """Returns a text for each row of an array, in memory or stored: equal texts, equal values."""
    if hasattr(array, "keys"):
        return array.keys
    layout = f"{array.shape[1:]} {array.dtype}".encode()
    return [hashlib.sha256(layout + row.tobytes()).hexdigest() for row in array]


def _side_file(file: Path) -> Path:
    return file.with_suffix(".json")


def _stamp(info: os.stat_result) -> list[int]:
    """Returns what tells a file that was changed or copied: copies keep the time of change only if asked to."""
    return [info.st_size, info.st_mtime_ns, info.st_ctime_ns]


def _room(folder: Path) -> tuple[int, int, float]:
    """Returns how many bytes the stores in a folder take, how many are free, and how many the stores may take."""
    taken, free = sum(file.stat().st_size for file in folder.glob("*.npy")), shutil.disk_usage(folder).free
    given = os.environ.get("CACHE_GB", "")
    try:
        allowed = 1e9 * float(given) if given else (free + taken) / 2
    except ValueError:
        allowed = 0.0
    if given and not allowed > 0:
        raise ValueError(f"Expected the environment variable CACHE_GB to be a number above 0. Received {given!r}.")
    return taken, free, allowed


def _make_room(folder: Path, needed: int, hint: str) -> None:
    """Deletes the least recently used stores, as far as needed; raises OSError if that cannot be enough."""
    for partial in folder.glob(".*.partial-*"):
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime > _ABANDONED:
                partial.unlink()
    for side in (*sorted(folder.glob("*.json"), key=lambda side: side.stat().st_mtime), None):
        taken, free, allowed = _room(folder)
        if taken + needed <= allowed and needed <= free:
            return
        if side is None or needed > min(allowed, free + taken):  # in vain, whatever is deleted
            raise OSError(_no_room(folder, needed, hint))
        with suppress(OSError):  # Windows does not delete what is open; elsewhere it can still be read
            side.with_suffix(".npy").unlink(missing_ok=True)
            side.unlink(missing_ok=True)


def _no_room(folder: Path, needed: int, hint: str) -> str:
    _, free, allowed = _room(folder)
    return (
        f"What is to be stored takes {needed / 1e9:.3g} GB. {free / 1e9:.3g} GB are free for {folder}, and the "
        f"stores there may take {allowed / 1e9:.3g} GB (or what the environment variable CACHE_GB says). {hint}"
    ).strip()
