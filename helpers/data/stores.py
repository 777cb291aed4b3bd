"""Rows of equal size in one file: written once and checked, read back when used, evicted when room is needed.

Decoded images and the activations of frozen layers are kept so. A small file beside the store says what the rows are:
their shape and type, the key of each, its checksum, and the stamp that the store had when its rows were last known
to be right.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import uuid
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np

from helpers import write_atomically
from helpers.data.parallel import in_parallel


class Store:
    """An open store, whose rows are read by number. While it is open it is not evicted.

    Read and not mapped into memory: the pages of a map count as the process's own, up to the whole set. What
    is open stays readable when the file is replaced or removed.
    """

    def __init__(self, file: Path):
        self.file = file
        self.descriptor = os.open(file, os.O_RDONLY)
        closed_with_it = weakref.finalize(self, os.close, self.descriptor)
        closed_with_it.atexit = False  # the system does that, and a thread may still be reading
        with suppress(OSError):  # a network file system may have no locks: then nothing is evicted there
            fcntl.flock(self.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        known = json.loads(_side_file(file).read_text(encoding="utf-8"))
        self.row_shape, self.dtype = tuple(known["shape"]), np.dtype(known["dtype"])
        self.keys, self.stamp, self.checksums = known["keys"], known["stamp"], known["checksums"]
        self.seconds_per_row = float(known["seconds_per_row"])
        self.row_bytes = math.prod(self.row_shape) * self.dtype.itemsize

    def __reduce__(self):
        return Store, (self.file,)  # a descriptor means nothing to another process

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Returns these rows, an array (rows, *row_shape); a run of neighbours is read with one call.

        Raises:
            OSError: the file ends before.
        """
        values = np.empty((len(rows), *self.row_shape), self.dtype)
        starts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist()] if len(rows) else []
        for start, stop in pairwise([*starts, len(rows)]):
            _read_into(values[start:stop], self.descriptor, offset=int(rows[start]) * self.row_bytes)
        return values

    def checksum(self, row: int) -> int:
        """Returns the CRC-32 of a row as it is now."""
        return zlib.crc32(self.read(np.array([row])))


def open_store(file: Path, keys: Sequence[str] | None = None, *, containing: Sequence[str] = ()) -> Store | None:
    """Returns the store if its rows are as they were written, else None.

    They are compared with their checksums unless its stamp is the one of the last comparison. An opened store
    counts as used: the one that was not used for longest is evicted first.

    Args:
        file: where it is kept.
        keys: what its rows have to be, in their order; None for any.
        containing: keys of rows that it has to have.
    """
    try:
        store = Store(file)
        rows = len(store.keys)
        if len(store.checksums) != rows or (keys is not None and store.keys != list(keys)):
            return None
        if containing and not set(store.keys).issuperset(containing):
            return None
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # absent, or not what `new_store` wrote
        return None
    if os.fstat(store.descriptor).st_size != rows * store.row_bytes:
        return None
    now = _stamp(store.descriptor)
    if store.stamp != now:
        if list(in_parallel(store.checksum, range(rows), title="checking stored rows")) != store.checksums:
            return None
        about = json.loads(_side_file(file).read_text(encoding="utf-8"))
        write_atomically(_side_file(file), json.dumps(about | {"stamp": now}))
    with suppress(OSError):  # evicted by another process in between, or a disk that is only read
        os.utime(_side_file(file))
    return store


class Writer:
    """What `new_store` yields: it is called with a row's number and the values from that row on."""

    store: Store | None = None
    """The finished store, once the block has ended."""
    seconds_per_row = 0.0
    """What it took to compute a row: to be set by whoever knows, and kept with the store."""

    def __init__(self, descriptor: int, row_bytes: int, dtype: str, rows: int):
        self.descriptor, self.row_bytes, self.dtype, self.checksums = descriptor, row_bytes, dtype, [0] * rows

    def __call__(self, row: int, values: np.ndarray) -> None:
        """Writes the values of some rows; several threads may do so at once."""
        values = np.ascontiguousarray(values, self.dtype)
        _write_from(values, self.descriptor, offset=row * self.row_bytes)
        for index, value in enumerate(values, row):
            self.checksums[index] = zlib.crc32(value)


@contextmanager
def new_store(
    file: Path, *, shape: Sequence[int], dtype: str, keys: Sequence[str], remedy: str = ""
) -> Iterator[Writer]:
    """Yields a `Writer`; the store is there, whole and open, when the block has ended.

    Several processes may write the same one at once: each writes a file of its own, and the last is kept.

    Args:
        file: where it is kept. In its folder, what was not used for longest gives way if room is needed.
        shape: of a row.
        dtype: of its values.
        keys: of the rows, each a text.
        remedy: what a person can do if it does not fit on the disk.

    Raises:
        OSError: the disk has too little space.
    """
    row_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    file.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(file.parent)
    _make_room(file.parent, len(keys) * row_bytes, remedy)
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}.partial")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with suppress(OSError):  # a network file system may have no locks: then what is abandoned stays
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, len(keys) * row_bytes)  # only now, with the lock, no longer empty: see below
        writer = Writer(descriptor, row_bytes, dtype, len(keys))
        yield writer
        os.fsync(descriptor)  # or else a power cut could leave a file with the right name and nothing in it
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # in use until it is open: nobody evicts it in between
        os.replace(partial, file)
        # After the store, and with its own stamp: whoever finds another process's is led to compare the rows.
        about = {"shape": list(shape), "dtype": str(dtype), "keys": list(keys)}
        about |= {"seconds_per_row": writer.seconds_per_row, "checksums": writer.checksums}
        write_atomically(_side_file(file), json.dumps(about | {"stamp": _stamp(descriptor)}))
        writer.store = Store(file)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(_no_room(file.parent, len(keys) * row_bytes, remedy)) from None
        raise
    finally:
        partial.unlink(missing_ok=True)
        os.close(descriptor)


class StoredArray:
    """An array (rows, ...) that stays on disk, each of its rows one of the store's.

    `array[i]`, `array[10:20]`, `array[[3, 1]]` and `array[mask]` read just those rows into a new NumPy array;
    iterating reads one after the other; `np.asarray(array)` reads all, into memory. It can be pickled, while the
    store is there.
    """

    def __init__(self, store: Store, rows: np.ndarray):
        self._store, self._rows = store, rows

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, ...)."""
        return (*self._rows.shape, *self._store.row_shape)

    @property
    def ndim(self) -> int:
        """The number of axes, that of the rows included."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """The type of the values."""
        return self._store.dtype

    @property
    def seconds(self) -> float:
        """What it took to compute these rows, also if that was in an earlier run; decoding does not count."""
        return self._store.seconds_per_row * len(set(self._rows.ravel().tolist()))

    @property
    def keys(self) -> list[str]:
        """What each row is, by its content: equal keys, equal values."""
        return [self._store.keys[row] for row in self._rows.ravel()]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key) -> np.ndarray:
        if isinstance(key, tuple) or key is None or key is Ellipsis:
            raise IndexError(f"Expected an index of rows alone. Received {key}: write `array[rows][...]`.")
        rows = self._rows[key]  # NumPy's own rules, errors included
        return self._store.read(rows.ravel()).reshape(*rows.shape, *self._store.row_shape)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if copy is False:
            raise ValueError("Expected `copy` of None or True. Received False, and reading the rows makes a copy.")
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.shape} {self.dtype}>"


def content_keys(array) -> list[str]:
    """Returns a text for each row of an array, in memory or stored: equal texts, equal values."""
    if hasattr(array, "keys"):
        return array.keys
    layout = f"{array.shape[1:]} {array.dtype}".encode()
    return [hashlib.sha256(layout + row.tobytes()).hexdigest() for row in array]


def _side_file(file: Path) -> Path:
    return file.with_suffix(".json")


def _stamp(descriptor: int) -> list[int]:
    """Returns what tells a file that was changed or copied: copies keep the time of change only if asked to."""
    info = os.fstat(descriptor)
    return [info.st_size, info.st_mtime_ns, info.st_ctime_ns]


# ---- room


def budget(folder: Path) -> float:
    """Returns how many bytes the stores in a folder may take: the variable CACHE_GB, else half of what is free.

    What the stores take already counts as free. CACHE_GB is a number of gigabytes (1e9 bytes).

    Raises:
        ValueError: CACHE_GB is not a positive number.
    """
    given = os.environ.get("CACHE_GB", "")
    if not given:
        return (shutil.disk_usage(folder).free + sum(_size(store) for store in _stores(folder))) / 2
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = 0.0
    if not gigabytes > 0:
        raise ValueError(f"Expected the environment variable CACHE_GB to be a number above 0. Received {given!r}.")
    return gigabytes * 1e9


def _stores(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.suffix != ".json" and _side_file(file).exists()]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _last_use(file: Path) -> float:
    try:
        return _side_file(file).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _make_room(folder: Path, needed: int, remedy: str) -> None:
    """Evicts what was not used for longest, as far as needed, but nothing that is open anywhere.

    Raises:
        OSError: there would be too little space even then.
    """
    allowed, taken = budget(folder), sum(_size(store) for store in _stores(folder))
    if needed > min(allowed, shutil.disk_usage(folder).free + taken):  # in vain, whatever gives way
        raise OSError(_no_room(folder, needed, remedy))
    for file in sorted(_stores(folder), key=_last_use):
        taken = sum(_size(store) for store in _stores(folder))
        if taken + needed <= allowed and needed <= shutil.disk_usage(folder).free:
            return
        _evict(file)
    taken = sum(_size(store) for store in _stores(folder))
    if taken + needed > allowed or needed > shutil.disk_usage(folder).free:
        raise OSError(_no_room(folder, needed, remedy))


def _evict(file: Path) -> None:
    """Removes a store unless somebody has it open: they hold a lock, which the system takes back from the dead."""
    with suppress(OSError), open(file, "rb") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.unlink()
        _side_file(file).unlink(missing_ok=True)


def _no_room(folder: Path, needed: int, remedy: str) -> str:
    free = shutil.disk_usage(folder).free
    return (
        f"What is to be stored takes {needed / 1e9:.3g} GB. {free / 1e9:.3g} GB are free for {folder}, of which the "
        f"stores there may take {budget(folder) / 1e9:.3g} GB in all, those in use included (the environment "
        f"variable CACHE_GB sets another number). {remedy}"
    ).strip()


def _remove_abandoned(folder: Path) -> None:
    """Removes what killed processes left: the system has taken back the lock that a writer holds on its file."""
    for partial in folder.glob(".*.partial"):
        if ".json." in partial.name:  # a side file in the making, which takes no time and has no lock
            continue
        with suppress(OSError), open(partial, "rb") as file:  # it is in use, or gone by now
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_size:  # an empty one may be so new that its writer has no lock yet
                partial.unlink()


def _read_into(values: np.ndarray, descriptor: int, *, offset: int) -> None:
    left = memoryview(values).cast("B")
    while len(left):  # one call reads 2 GiB at most
        received = os.preadv(descriptor, [left], offset)
        if not received:
            raise OSError("A store was cut off while in use. Load the pixels or activations again: it is made anew.")
        left, offset = left[received:], offset + received


def _write_from(values: np.ndarray, descriptor: int, *, offset: int) -> None:
    left = memoryview(values).cast("B")
    while len(left):
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written
