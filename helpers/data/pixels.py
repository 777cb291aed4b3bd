"""The table's images as arrays: decoded and resized once, kept below `runs/.pixels`, read back when they are used.

A store is a file of rows of equal size, one for each distinct content (sha256) among the table's images, in the
order of the hashes: so another split, seed or order of the same images finds it again. A small file beside it
holds the checksum of each row, and the stamp that the store had when its rows were last known to be right.
"""

import fcntl
import hashlib
import io
import json
import math
import os
import shutil
import threading
import uuid
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import lru_cache
from itertools import count, pairwise
from numbers import Integral
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
from PIL import Image

from helpers import resolve_path, write_atomically
from helpers.data.parallel import in_parallel
from helpers.data.reading import RESIZE_RULES, read_pixels
from helpers.data.tables import PARTS

_READING = 1
"""To be raised when `helpers.data.reading` makes other pixels of the same file: older stores are then left alone."""

_LOADING = threading.Lock()
"""Threads of one process take turns: the second finds what the first has decoded."""


class Pixels:
    """The images of one part: a uint8 array (images, height, width, 3), RGB in 0..255, that stays on disk.

    `pixels[i]`, `pixels[10:20]`, `pixels[[3, 1]]` and `pixels[mask]` read just those images into a new NumPy array;
    iterating reads one after the other; `np.asarray(pixels)` reads all, into memory; `dataset` reads batches. It
    can be pickled, while the store is there.
    """

    dtype, ndim = np.dtype("uint8"), 4

    def __init__(self, store: "Store", rows: np.ndarray):
        self._store, self._rows = store, rows

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(images, height, width, 3)."""
        return (len(self._rows), *self._store.row_shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key) -> np.ndarray:
        if isinstance(key, tuple) or key is None or key is Ellipsis:
            raise IndexError(f"Expected an index of images alone. Received {key}: write `pixels[images][...]`.")
        rows = self._rows[key]  # NumPy's own rules, errors included
        return self._store.read(rows.ravel()).reshape(*rows.shape, *self._store.row_shape)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if copy is False:
            raise ValueError("Expected `copy` of None or True. Received False, and reading the images makes a copy.")
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def __repr__(self) -> str:
        return f"<Pixels {self.shape} {self.dtype}>"

    def dataset(self, labels: np.ndarray | None = None, *, batch_size: int = 32, shuffle: int | None = None):
        """Returns a tf.data.Dataset of batches, (images, labels) or images alone, read while it is iterated.

        Images are uint8 (batch, height, width, 3), labels int64 (batch,); the last batch may be smaller. Memory
        for a few batches is taken, however many images there are.

        Args:
            labels: int (images,), or None.
            batch_size: images in a batch.
            shuffle: a seed, 0 or more: every epoch has an order of its own, drawn from all orders, and the same
                seed repeats the same sequence of epochs. None for the order of the table.

        Raises:
            ValueError: the labels are not one integer per image, or the batch size or the seed is out of range.
        """
        if labels is not None:
            labels = np.asarray(labels)
            if labels.shape != (len(self),) or not np.issubdtype(labels.dtype, np.integer):
                raise ValueError(
                    f"Expected `labels` of {len(self)} integers, one per image. Received {labels.dtype} of shape "
                    f"{labels.shape}."
                )
            labels = labels.astype("int64")
        if not isinstance(batch_size, Integral) or batch_size < 1:
            raise ValueError(f"Expected `batch_size` of at least 1. Received {batch_size!r}.")
        if isinstance(shuffle, bool) or not (shuffle is None or (isinstance(shuffle, Integral) and shuffle >= 0)):
            raise ValueError(f"Expected `shuffle` to be a seed, 0 or more, or None. Received {shuffle!r}.")
        import helpers._keras  # noqa: F401 - it starts TensorFlow without messages that a notebook would store

        return _make_dataset(self, labels, batch_size=int(batch_size), seed=shuffle)


def _make_dataset(pixels: Pixels, labels: np.ndarray | None, *, batch_size: int, seed: int | None):
    import tensorflow as tf  # only here: tables and arrays do without it

    epochs, size = count(), math.ceil(len(pixels) / batch_size)
    types = [tf.uint8] if labels is None else [tf.uint8, tf.int64]

    @lru_cache(maxsize=2)  # every batch of an epoch asks for it
    def order(epoch: int) -> np.ndarray:
        positions = np.arange(len(pixels))
        return positions if seed is None else np.random.default_rng([seed, epoch]).permutation(positions)

    def read(epoch, batch):
        chosen = order(int(epoch))[batch * batch_size : (batch + 1) * batch_size]
        return (pixels[chosen],) if labels is None else (pixels[chosen], labels[chosen])

    def load(epoch, batch):
        images, *codes = tf.numpy_function(read, [epoch, batch], types)
        images.set_shape([None, *pixels.shape[1:]])
        for tensor in codes:
            tensor.set_shape([None])
        return (images, *codes) if codes else images

    # Not `from_generator`, which is half as fast.
    started = tf.data.Dataset.range(1).map(lambda _: tf.numpy_function(lambda: np.int64(next(epochs)), [], tf.int64))
    numbered = started.flat_map(lambda epoch: tf.data.Dataset.range(size).map(lambda batch: (epoch, batch)))
    numbered = numbered.apply(tf.data.experimental.assert_cardinality(size))
    # Fixed numbers: AUTOTUNE would take more and more memory for buffers, the longer an epoch lasts.
    return numbered.map(load, num_parallel_calls=4, deterministic=True).prefetch(2)


def load_pixels(images: pd.DataFrame, *, image_size: tuple[int, int], resize: str = "crop") -> dict[str, Pixels]:
    """Returns each part's images, in the table's order, brought to one size.

    Every image is decoded and resized once, into a file below `runs/.pixels` that later notebooks and runs with
    the same images, size and rule open again, however they divide them. A file that was damaged or cut off is made
    anew. What is read from it takes memory, the rest does not, so a set larger than memory works.

    Args:
        images: columns path, split, sha256, as `check_images` and `split_images` made them.
        image_size: (height, width) in pixels.
        resize: "crop", "pad" or "stretch", as in `read_pixels`. ImageNet's networks were trained on undistorted
            shapes, without borders.

    Raises:
        ValueError: the image size is not positive, there is no such rule, or an image is not what it was.
        OSError: the disk has too little space.
    """
    image_size = tuple(int(side) for side in image_size)
    if min(image_size) < 1:
        raise ValueError(f"Expected `image_size` (height, width) of at least 1 pixel. Received {image_size}.")
    if resize not in RESIZE_RULES:
        rules = ", ".join(f'"{rule}"' for rule in RESIZE_RULES)
        raise ValueError(f"Expected `resize` to be one of {rules}. Received {resize!r}.")
    column = images["sha256"].to_numpy("S64")
    hashes, first, rows = np.unique(column, return_index=True, return_inverse=True)
    paths, hashes = images["path"].to_numpy()[first], hashes.astype("str")

    def decode(row: int) -> np.ndarray:
        return _decode(paths[row], hashes[row], image_size=image_size, resize=resize)

    file = _store_file(hashes, image_size, resize)
    with _LOADING:
        store = open_store(file, len(hashes), image_size=image_size)
        if store is None:
            store = write_store(file, decode, rows=len(hashes), image_size=image_size)
    split = images["split"].to_numpy()
    return {part: Pixels(store, rows[split == part]) for part in PARTS}


def shrink_pixels(pixels: np.ndarray | Pixels, *, side: int) -> np.ndarray:
    """Returns the images at most `side` pixels high and wide, float32 in 0..1, for a classifier without a network.

    Args:
        pixels: uint8 (images, height, width, 3), read one by one. Smaller images stay as they are.
        side: pixels.
    """
    height, width = (min(side, length) for length in pixels.shape[1:3])
    small = np.empty((len(pixels), height, width, 3), "float32")
    for index, image in enumerate(pixels):
        small[index] = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    small /= 255
    return small


def _decode(path: str, sha256: str, *, image_size: tuple[int, int], resize: str) -> np.ndarray:
    try:
        content = resolve_path(path).read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("its content has changed")
        return read_pixels(io.BytesIO(content), image_size, resize=resize)
    except Exception as error:
        raise ValueError(
            f"{path} is not what it was when images.csv was made: {error}. Bring it back, or start "
            f"again at 01_load_data with another run_dir."
        ) from error


# ---- the store


class Store:
    """An open store, whose rows are read by number.

    Read and not mapped into memory: the pages of a map count as the process's own, up to the whole set. What
    is open stays readable when the file is replaced or removed.
    """

    def __init__(self, file: Path, image_size: tuple[int, int]):
        self.file, self.row_shape = file, (*image_size, 3)
        self.row_bytes = math.prod(self.row_shape)
        self.descriptor = os.open(file, os.O_RDONLY)
        closed_with_it = weakref.finalize(self, os.close, self.descriptor)
        closed_with_it.atexit = False  # the system does that, and a thread may still be reading

    def __reduce__(self):
        return Store, (self.file, self.row_shape[:2])  # a descriptor means nothing to another process

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Returns these rows, uint8 (rows, height, width, 3); a run of neighbours is read with one call.

        Raises:
            OSError: the file ends before.
        """
        pixels = np.empty((len(rows), *self.row_shape), "uint8")
        starts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist()] if len(rows) else []
        for start, stop in pairwise([*starts, len(rows)]):
            _read_into(pixels[start:stop], self.descriptor, offset=int(rows[start]) * self.row_bytes)
        return pixels

    def checksum(self, row: int) -> int:
        """Returns the CRC-32 of a row as it is now."""
        return zlib.crc32(self.read(np.array([row])))


def _store_file(hashes: Sequence[str], image_size: tuple[int, int], resize: str) -> Path:
    # Pillow is part of the key, since its releases differ in how they decode and scale.
    key = hashlib.sha256("\n".join([f"{_READING} {PIL.__version__}", *hashes]).encode()).hexdigest()[:16]
    return resolve_path("runs/.pixels") / f"{key}-{image_size[0]}x{image_size[1]}-{resize}.pixels"


def open_store(file: Path, rows: int, *, image_size: tuple[int, int]) -> Store | None:
    """Returns the store if its rows are as they were written, else None.

    They are compared with their checksums unless its stamp is the one of the last comparison.
    """
    try:
        store = Store(file, image_size)
        known = json.loads(_side_file(file).read_text(encoding="utf-8"))
        stamp, checksums = known["stamp"], known["checksums"]
        if len(checksums) != rows:
            return None
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # absent, or not what `write_store` wrote
        return None
    if os.fstat(store.descriptor).st_size != rows * store.row_bytes:
        return None
    now = _stamp(store.descriptor)
    if stamp != now:
        if list(in_parallel(store.checksum, range(rows), title="checking stored images")) != checksums:
            return None
        _write_side_file(file, now, checksums)
    return store


def write_store(
    file: Path, make_row: Callable[[int], np.ndarray], *, rows: int, image_size: tuple[int, int]
) -> Store:
    """Returns the store, newly written: whole, or not at all.

    Several processes may write the same one at once: each writes a file of its own, and the last is kept.

    Args:
        file: where it is kept.
        make_row: from a row's number to uint8 (height, width, 3); called by several threads.
        rows: their number.
        image_size: (height, width) in pixels.

    Raises:
        OSError: the disk has too little space. What `make_row` raises is passed on.
    """
    row_bytes = math.prod((*image_size, 3))

    def write(row: int) -> int:
        content = np.ascontiguousarray(make_row(row), "uint8")
        _write_from(content, descriptor, offset=row * row_bytes)
        return zlib.crc32(content)

    file.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(file.parent)
    _require_space(file.parent, rows * row_bytes)
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}.partial")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with suppress(OSError):  # a network file system may have no locks: then what is abandoned stays
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, rows * row_bytes)  # only now, with the lock, no longer empty: see below
        # Closed first of all, which waits for the threads: none may write to a descriptor that was closed.
        with closing(in_parallel(write, range(rows), title="decoding images")) as results:
            checksums = list(results)
        os.fsync(descriptor)  # or else a power cut could leave a file with the right name and nothing in it
        os.replace(partial, file)
        # After the store, and with its own stamp: whoever finds another process's is led to compare the rows.
        _write_side_file(file, _stamp(descriptor), checksums)
        return Store(file, image_size)
    finally:
        partial.unlink(missing_ok=True)
        os.close(descriptor)


def _side_file(file: Path) -> Path:
    return file.with_suffix(".json")


def _write_side_file(file: Path, stamp: list[int], checksums: list[int]) -> None:
    write_atomically(_side_file(file), json.dumps({"stamp": stamp, "checksums": checksums}))


def _stamp(descriptor: int) -> list[int]:
    """Returns what tells a file that was changed or copied: copies keep the time of change only if asked to."""
    info = os.fstat(descriptor)
    return [info.st_size, info.st_mtime_ns, info.st_ctime_ns]


def _remove_abandoned(folder: Path) -> None:
    """Removes what killed processes left: the system has taken back the lock that a writer holds on its file."""
    for partial in folder.glob(".*.pixels.*.partial"):
        with suppress(OSError), open(partial, "rb") as file:  # it is in use, or gone by now
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_size:  # an empty one may be so new that its writer has no lock yet
                partial.unlink()


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"The decoded images take {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free for {folder}. "
            f"Choose a smaller `image_size` or fewer images (`images_per_class`), or delete that folder, with the "
            f"images of earlier runs: what is needed of them is decoded again."
        )


def _read_into(pixels: np.ndarray, descriptor: int, *, offset: int) -> None:
    left = memoryview(pixels).cast("B")
    while len(left):  # one call reads 2 GiB at most
        received = os.preadv(descriptor, [left], offset)
        if not received:
            raise OSError("A store of images was cut off while in use. Load the pixels again: it will be made anew.")
        left, offset = left[received:], offset + received


def _write_from(content: np.ndarray, descriptor: int, *, offset: int) -> None:
    left = memoryview(content).cast("B")
    while len(left):
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written
