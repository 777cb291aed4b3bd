"""Batches for `fit`, read while they are used: a tf.data.Dataset over an array in memory or on disk."""

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import count
from numbers import Integral

import numpy as np

from helpers.data.augmentation import Augmented
from helpers.data.stores import StoredArray

_PIECE = 4_000_000
"""Bytes to be read at once; at least one batch."""


def make_dataset(
    array: np.ndarray | StoredArray | Augmented,
    labels: np.ndarray | None = None,
    *,
    batch_size: int = 32,
    shuffle: int | None = None,
    **options,
):
    """Returns a tf.data.Dataset of batches, (rows, labels) or rows alone, read while it is iterated.

    Memory for a few batches is taken, however many rows there are. Labels come as int64 (batch,).

    Args:
        array: (rows, ...), such as `Pixels` or `Activations`; what has a method `at_epoch(epoch)`, such as
            `Augmented`, is asked for each epoch's rows.
        labels: int (rows,), or None.
        batch_size: rows in a batch, at most.
        shuffle: a seed, 0 or more: every epoch has an order of its own, drawn from all orders, and the same
            seed repeats the same sequence of epochs. None for the order of the array; then the last batch may be
            smaller.
        options: `even`: with `shuffle`, all batches of an epoch have the same size, as near to `batch_size` as
            that allows, and divisible by `multiple` (by default the number of GPUs); the last ones are filled up with
            rows from the beginning of the epoch. `parts`: into so many equal ones each such batch is divided.
            `epoch`: a function that returns the number of the epoch; without it, each iteration is one.

    Raises:
        ValueError: the labels are not one integer per row, or the batch size or the seed is out of range.
    """
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != (len(array),) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"Expected `labels` of {len(array)} integers, one per image. Received {labels.dtype} of shape "
                f"{labels.shape}."
            )
        labels = labels.astype("int64")
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise ValueError(f"Expected `batch_size` of at least 1. Received {batch_size!r}.")
    if isinstance(shuffle, bool) or not (shuffle is None or (isinstance(shuffle, Integral) and shuffle >= 0)):
        raise ValueError(f"Expected `shuffle` to be a seed, 0 or more, or None. Received {shuffle!r}.")
    from helpers._keras import count_devices  # it starts TensorFlow without messages that a notebook would store

    options = {"multiple": count_devices() * options.get("parts", 1)} | options
    return _make_dataset(array, labels, batch_size=int(batch_size), seed=shuffle, **options)


def _make_dataset(
    array,
    labels: np.ndarray | None,
    *,
    batch_size: int,
    seed: int | None,
    even: bool = False,
    parts: int = 1,
    multiple: int,
    epoch: Callable[[], int] | None = None,
):
    import tensorflow as tf  # only here: tables and arrays do without it

    rows, epochs, steps = len(array), count(), math.ceil(len(array) / batch_size)
    number = epoch or (lambda: next(epochs))
    shape = array.at_epoch(0).shape if hasattr(array, "at_epoch") else array.shape
    if even and seed is not None:
        batch_size = multiple * math.ceil(rows / steps / multiple)
    elif multiple > 1:  # at the first batch Keras looks what the devices get: it has to be the same
        batch_size = max(min(batch_size, rows) // multiple * multiple, 1)
        steps = math.ceil(rows / batch_size)
    # Rows that Python is asked for at once: for a batch of small ones that takes longer than a step of the training.
    # What is augmented anew takes long itself, and goes on in parallel.
    batch_bytes = batch_size * math.prod(shape[1:]) * array.dtype.itemsize
    size = batch_size * (1 if isinstance(array, Augmented) else max(_PIECE // batch_bytes, 1))
    pieces = math.ceil(steps * batch_size / size)
    types = [tf.as_dtype(array.dtype)] if labels is None else [tf.as_dtype(array.dtype), tf.int64]

    @lru_cache(maxsize=2)  # every piece of an epoch asks for it
    def order(epoch: int) -> np.ndarray:
        positions = np.arange(rows)
        if seed is not None:
            positions = np.random.default_rng([seed, epoch]).permutation(positions)
        return np.resize(positions, steps * batch_size) if even else positions

    def read(number):
        epoch, piece = divmod(int(number), pieces)
        chosen = order(epoch)[piece * size : (piece + 1) * size]
        values = (array.at_epoch(epoch) if hasattr(array, "at_epoch") else array)[chosen]
        return (values,) if labels is None else (values, labels[chosen])

    def load(number):
        values, *codes = tf.numpy_function(read, [number], types)
        values.set_shape([None, *shape[1:]])
        for tensor in codes:
            tensor.set_shape([None])
        return (values, *codes) if codes else values

    def begin(_):
        return tf.numpy_function(lambda: pieces * number() + np.arange(pieces), [], tf.int64)

    # Not `from_generator`, which is half as fast. Each epoch sets up every function anew: so there are only two.
    loaded = tf.data.Dataset.range(1).map(begin).unbatch().map(load, num_parallel_calls=4, deterministic=True)
    batches = loaded.unbatch().batch(batch_size // parts)
    batches = batches.apply(tf.data.experimental.assert_cardinality(steps * parts))
    # Fixed numbers: AUTOTUNE would take more and more memory for buffers, the longer an epoch lasts. And where it is
    # on, some epochs of `fit` compute on half of the cores (TensorFlow 2.21: 1.27 s in place of 0.73 s on two).
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(2).with_options(options)
