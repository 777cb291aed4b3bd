"""Batches are read while they are used: every image once in an epoch, and memory does not grow with their number."""

import subprocess
import sys

import numpy as np
import pytest
from networks import counted, numbers

from helpers.data.batches import make_dataset
from helpers.data.stores import write_store


def epoch(dataset) -> tuple[list[int], list[int]]:
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return sum(map(numbers, images), []), np.concatenate(labels).tolist()


def test_batches_in_order_with_their_labels(root):
    images, labels = counted(70), np.arange(70) * 3
    dataset = make_dataset(images, labels, batch_size=32)
    batch, of_batch = dataset.element_spec
    assert batch.shape.as_list() == [None, 2, 2, 3] and batch.dtype == "uint8"
    assert of_batch.shape.as_list() == [None] and of_batch.dtype == "int64"
    assert len(dataset) == 3 and [len(x) for x, _ in dataset] == [32, 32, 6]
    assert epoch(dataset) == epoch(dataset) == (list(range(70)), labels.tolist())
    alone = make_dataset(images, batch_size=70)
    assert alone.element_spec.shape.as_list() == [None, 2, 2, 3] and len(alone) == 1
    assert [numbers(batch) for batch in alone] == [list(range(70))]


def test_shuffled_epochs_differ_hold_every_image_once_and_repeat_with_the_seed(root):
    images, labels = counted(2000), np.arange(2000)
    dataset = make_dataset(images, labels, shuffle=3)
    first, second = epoch(dataset), epoch(dataset)
    for order, of_order in (first, second):
        assert order == of_order and sorted(order) == list(range(2000))
    assert first != second
    again = make_dataset(images, labels, shuffle=3)
    assert (epoch(again), epoch(again)) == (first, second)
    assert epoch(make_dataset(images, labels, shuffle=4)) != first
    # drawn from all orders, and not within a buffer: early images come late
    assert np.mean(np.abs(np.array(first[0]) - np.arange(2000))) == pytest.approx(2000 / 3, rel=0.1)


@pytest.mark.parametrize(("rows", "batch_size", "parts", "sizes"), [(70, 32, 1, [24] * 3), (33, 32, 1, [17] * 2),
    (5, 32, 1, [5]), (1, 32, 1, [1]), (35, 7, 2, [4] * 10), (3, 32, 2, [2] * 2)])  # fmt: skip
def test_even_batches_have_one_size_and_hold_every_image(root, rows, batch_size, parts, sizes):
    images, numbered, now = counted(rows), np.arange(rows), [4]
    options = {"even": True, "parts": parts, "epoch": lambda: now[0]}
    dataset = make_dataset(images, numbered, batch_size=batch_size, shuffle=0, **options)
    assert [len(batch) for batch, _ in dataset] == sizes
    first, again = epoch(dataset), epoch(dataset)
    assert first == again and first[0] == first[1], "the epoch is what it is told"
    assert set(first[0]) == set(range(rows)) and sum(sizes) - rows < max(len(sizes), rows + 1)
    now[0] = 5
    assert rows < 5 or epoch(dataset) != first


class Counted:
    """Rows that tell how often they were read, and what they are in each epoch."""

    def __init__(self, rows: int):
        self.rows, self.reads = np.arange(rows, dtype="float32"), 0
        self.shape, self.dtype = self.rows.shape, self.rows.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def at_epoch(self, epoch: int) -> "Counted":
        self.epoch = epoch
        return self

    def __getitem__(self, rows) -> np.ndarray:
        self.reads += 1
        return self.rows[rows] + 1000 * self.epoch


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize(("piece", "reads"), [(10**6, 1), (64, 5), (1, 10)])
def test_small_rows_are_read_many_at_once_and_make_the_same_batches(monkeypatch, even, piece, reads):
    monkeypatch.setattr("helpers.data.batches._PIECE", piece)
    array, labels, asked = Counted(75), np.arange(75) * 3, []
    options = {"even": even, "epoch": lambda: asked.append(0) or len(asked) + 4}
    dataset = make_dataset(array, labels, batch_size=8, shuffle=7, **options)
    for epoch in (5, 6):
        order = np.random.default_rng([7, epoch]).permutation(75)
        order = np.resize(order, 80) if even else order
        batches = list(dataset.as_numpy_iterator())
        assert len(batches) == len(dataset) == 10 and len(asked) == epoch - 4
        for number, (rows, codes) in enumerate(batches):
            chosen = order[number * 8 : (number + 1) * 8]
            np.testing.assert_array_equal(rows, (chosen + 1000 * epoch).astype("float32"))
            np.testing.assert_array_equal(codes, labels[chosen])
    assert array.reads == 2 * reads


def test_a_model_trains_on_batches_as_on_arrays(root):
    from helpers._keras import keras

    images, labels = counted(60), np.arange(60) % 2

    def train(*data, **options) -> np.ndarray:
        keras.utils.set_random_seed(0)
        layers = [keras.Input((2, 2, 3)), keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax")]
        model = keras.Sequential(layers)
        model.compile(keras.optimizers.SGD(0.001), "sparse_categorical_crossentropy")
        model.fit(*data, epochs=3, verbose=0, shuffle=False, **options)
        return model.predict(make_dataset(images), verbose=0)

    from_array = train(np.asarray(images), labels, batch_size=16)
    np.testing.assert_allclose(train(make_dataset(images, labels, batch_size=16)), from_array, rtol=1e-5)
    assert np.abs(train(make_dataset(images, labels, batch_size=16, shuffle=0)) - from_array).max() > 1e-5


# ---- memory

EPOCH = """
import sys
from pathlib import Path
import numpy as np
from helpers.data.batches import make_dataset
from helpers.data.pixels import Pixels
from helpers.data.stores import Store

store, rows, way = Store(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
pixels = Pixels(store, np.random.default_rng(0).permutation(rows))
if way == "mapped":
    everything = np.load(sys.argv[1], mmap_mode="r")[:rows]
    seen = sum(int(everything[start : start + 32].max() > 0) for start in range(0, rows, 32))
else:
    seen = sum(1 for images, _ in make_dataset(pixels, np.arange(rows), shuffle=0) if images.shape[1:] == (64, 64, 3))
assert seen == len(range(0, rows, 32))
# Not ru_maxrss: a process inherits it from the one that started it.
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def test_trap_a_mapped_set_counts_as_memory_and_one_that_is_read_does_not(root):
    noise = np.random.default_rng(0).integers(1, 256, (64, 64, 3), dtype="uint8")
    file, peaks = root / "x.npy", {}
    rows = (np.roll(noise, row, axis=0)[None] for row in range(20_000))
    write_store(file, rows, shape=noise.shape, dtype="uint8", keys=list(map(str, range(20_000))))
    for way in ("mapped", "read"):
        commands = ([sys.executable, "-c", EPOCH, str(file), rows, way] for rows in ("2000", "20000"))
        few, many = (int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout) for command in commands)
        peaks[way] = many / few
    assert peaks["mapped"] > 1.5, "the tutorial's way grows with the set"
    assert peaks["read"] < 1.1
