"""Images are decoded once, whatever the split; damage is noticed; memory does not grow with their number."""

import gc
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import helpers
from helpers.data import (
    PARTS,
    RESIZE_RULES,
    Pixels,
    load_pixels,
    make_dataset,
    pixels,
    read_image,
    read_pixels,
    shrink_pixels,
    stores,
)
from helpers.data.reading import resize_image

SIZE = (12, 16)


def hashed(folder: Path) -> pd.DataFrame:
    """Returns a table of the files in a folder, in all three parts."""
    files = sorted(folder.rglob("*.png"))
    images = pd.DataFrame({"path": [file.relative_to(helpers.ROOT).as_posix() for file in files]})
    return divided(images.assign(sha256=[hashlib.sha256(file.read_bytes()).hexdigest() for file in files]), seed=0)


def divided(images: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    parts = np.random.default_rng(seed).permutation(np.arange(len(images)) % 3)
    return images.assign(split=np.array(PARTS)[parts])


@pytest.fixture
def images(make_images, root):
    return hashed(make_images(root / "photos", {"a": 20, "b": 22}, size=24))


@pytest.fixture
def decoded(monkeypatch):
    """A list that gets an entry for each image that is decoded."""
    calls = []

    def count(*arguments, **options):
        calls.append(1)
        return read_pixels(*arguments, **options)

    monkeypatch.setattr(pixels, "read_pixels", count)
    return calls


def load(images) -> dict[str, Pixels]:
    return load_pixels(images, image_size=SIZE)


def expected(images, part: str) -> np.ndarray:
    return np.stack([read_pixels(path, SIZE) for path in images.loc[images["split"] == part, "path"]])


def assert_right(loaded: dict[str, Pixels], images) -> None:
    for part in PARTS:
        np.testing.assert_array_equal(loaded[part], expected(images, part))


def stored(root: Path, suffix: str = ".pixels") -> Path:
    (file,) = (root / "runs" / ".pixels").glob(f"*{suffix}")
    return file


def counted(rows: int) -> Pixels:
    """Returns images that show their own number, in the bytes of their first pixel."""

    images = np.zeros((rows, 2, 2, 3), "uint8")
    images[:, 0, 0] = np.stack([np.arange(rows) % 256, np.arange(rows) // 256, np.full(rows, 7)], axis=1)
    file = helpers.resolve_path(f"runs/.pixels/{rows}.pixels")
    return Pixels(store_of(file, images), np.arange(rows))


def store_of(file: Path, images: np.ndarray) -> stores.Store:
    with stores.new_store(
        file, shape=images.shape[1:], dtype="uint8", keys=[str(i) for i in range(len(images))]
    ) as w:
        w(0, images)
    return stores.open_store(file)


def numbers(batch: np.ndarray) -> list[int]:
    batch = np.asarray(batch).astype(int)
    return (batch[:, 0, 0, 0] + 256 * batch[:, 0, 0, 1]).tolist()


# ---- decoded once


def test_pixels_follow_the_table_and_are_decoded_once(images, decoded):
    first = load(images)
    for part in PARTS:
        rows = images[images["split"] == part]
        assert first[part].shape == (len(rows), *SIZE, 3) and len(first[part]) == len(rows)
        assert first[part].dtype == np.uint8 and first[part].ndim == 4
    assert_right(first, images)
    assert_right(load(images), images)
    assert len(decoded) == 42


def test_another_split_seed_or_order_decodes_nothing_anew(images, decoded):
    load(images)
    other = divided(images, seed=5)
    turned = images[::-1].reset_index(drop=True)
    assert not other.equals(images)
    for table in (other, turned):
        assert_right(load(table), table)
    assert len(decoded) == 42
    load_pixels(images, image_size=SIZE, resize="stretch")
    load_pixels(images, image_size=(16, 12))
    load(images[1:])
    assert len(decoded) == 42 + 42 + 42 + 41, "another rule, size or set is another store"


def test_images_that_are_there_twice_are_stored_once(images, root, decoded):
    shutil.copy(root / images.loc[0, "path"], root / "photos" / "b" / "again.png")
    table = hashed(root / "photos")
    assert len(table) == 43 and table["sha256"].nunique() == 42
    assert_right(load(table), table)
    assert len(decoded) == 42 and stored(root).stat().st_size == 42 * 12 * 16 * 3


def test_a_part_may_be_empty(images):
    loaded = load(images[images["split"] != "validation"])
    assert loaded["validation"].shape == (0, *SIZE, 3) and np.asarray(loaded["validation"]).shape == (0, *SIZE, 3)
    assert len(list(loaded["validation"].dataset())) == 0


def test_a_file_that_has_changed_does_not_enter_the_store(images, root):
    Image.new("RGB", (16, 16)).save(root / images.loc[0, "path"])
    with pytest.raises(ValueError, match=f"{images.loc[0, 'path']} is not what it was.*content has changed"):
        load(images)


def test_an_interrupted_store_leaves_nothing_behind_and_names_the_file(images, root):
    gone = images.loc[images["split"] == "train", "path"].iloc[0]
    (root / gone).unlink()
    with pytest.raises(ValueError, match=gone):
        load(images)
    assert not list((root / "runs" / ".pixels").iterdir())


def test_an_unknown_rule_and_a_size_of_nothing_are_refused(images, root):
    with pytest.raises(ValueError, match='Expected `resize`.*"crop", "pad", "stretch".*\'fit\''):
        load_pixels(images, image_size=SIZE, resize="fit")
    with pytest.raises(ValueError, match="`image_size`.*at least 1 pixel.*(0, 9)"):
        load_pixels(images, image_size=(0, 9))
    assert not (root / "runs").exists()


def test_a_full_disk_is_told_before_the_work(images, root, monkeypatch, decoded):
    usage = shutil.disk_usage(root)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="takes 2.42e-05 GB. 1e-06 GB are free.*`image_size`.*`images_per_class`"):
        load(images)
    assert not decoded and not list((root / "runs" / ".pixels").iterdir())


# ---- resized by one rule


@pytest.mark.parametrize("resize", RESIZE_RULES)
def test_the_store_holds_what_the_rule_makes_of_the_file(root, resize):
    rng = np.random.default_rng(0)
    (root / "photos").mkdir()
    for width, height in [(40, 20), (20, 40), (31, 17), (16, 12), (9, 50), (3, 3)]:
        noise = rng.integers(1, 256, (height, width, 3), dtype="uint8")
        Image.fromarray(noise).save(root / "photos" / f"{width}x{height}.png")
    images = hashed(root / "photos")
    loaded = load_pixels(images, image_size=SIZE, resize=resize)
    for part in PARTS:
        for array, path in zip(loaded[part], images.loc[images["split"] == part, "path"], strict=True):
            np.testing.assert_array_equal(array, read_pixels(path, SIZE, resize=resize))
            np.testing.assert_array_equal(array, np.asarray(resize_image(read_image(path), SIZE, resize=resize)))


@pytest.fixture
def disc(root):
    """A white disc in the middle of a wide grey image with a red frame, as a file."""
    y, x = np.mgrid[:60, :120]
    picture = np.full((60, 120, 3), 90, "uint8")
    picture[(y - 29.5) ** 2 + (x - 59.5) ** 2 < 20**2] = 255
    picture[:4], picture[-4:], picture[:, :4], picture[:, -4:] = [[[255, 0, 0]]] * 4
    Image.fromarray(picture).save(root / "disc.png")
    return root / "disc.png"


def extent(image: np.ndarray) -> tuple[int, int]:
    """Returns height and width of what is white."""
    rows, columns = np.nonzero((image > 180).all(axis=2))
    return np.ptp(rows) + 1, np.ptp(columns) + 1


def is_red(pixel: np.ndarray) -> bool:
    return pixel[0] > 200 and pixel[1] < 60


def test_crop_keeps_shapes_and_fills_the_image(disc):
    image = read_pixels(disc, (40, 40), resize="crop")
    height, width = extent(image)
    assert abs(height - width) <= 1 and abs(height - 40 * 2 / 3) <= 2
    assert is_red(image[0, 20]) and is_red(image[-1, 20]) and (image[20, [0, -1]] == 90).all(), "sides are cut off"


def test_pad_keeps_shapes_and_adds_black(disc):
    image = read_pixels(disc, (40, 40), resize="pad")
    height, width = extent(image)
    assert abs(height - width) <= 1 and abs(height - 40 / 3) <= 2
    assert (image[:10] == 0).all() and (image[30:] == 0).all(), "black above and below"
    assert all(is_red(image[row, column]) for row in (10, 29) for column in (0, 39)), "nothing is cut off"


def test_stretch_brings_all_corners_to_the_corners(disc):
    image = read_pixels(disc, (40, 40), resize="stretch")
    height, width = extent(image)
    assert height / width == pytest.approx(2, rel=0.15)
    assert all(is_red(image[row, column]) for row in (0, -1) for column in (0, -1))


# ---- kept


def test_damaged_bytes_are_noticed_and_the_store_is_made_anew(images, root, decoded):
    load(images)
    content = bytearray(stored(root).read_bytes())
    content[len(content) // 2] ^= 1
    stored(root).write_bytes(content)
    assert_right(load(images), images)
    assert len(decoded) == 2 * 42


def test_damage_is_noticed_although_the_time_of_change_was_set_back(images, root, decoded):
    load(images)
    info = stored(root).stat()
    with open(stored(root), "r+b") as file:
        file.write(b"damaged")
    os.utime(stored(root), ns=(info.st_atime_ns, info.st_mtime_ns))
    assert_right(load(images), images)
    assert len(decoded) == 2 * 42


@pytest.mark.parametrize("length", [0, 1000, 42 * 12 * 16 * 3 + 1])
def test_a_store_of_another_length_is_made_anew(images, root, decoded, length):
    load(images)
    os.truncate(stored(root), length)
    assert_right(load(images), images)
    assert len(decoded) == 2 * 42


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"stamp": [1], "checksums": 5}', "\xff"])
def test_a_damaged_or_missing_side_file_lets_the_store_be_made_anew(images, root, decoded, text):
    load(images)
    side = stored(root, ".json")
    side.unlink() if text is None else side.write_bytes(text.encode("latin-1"))
    assert_right(load(images), images)
    assert len(decoded) == 2 * 42
    load(images)
    assert len(decoded) == 2 * 42


def test_checksums_of_other_rows_let_the_store_be_made_anew(images, root, decoded):
    load(images)
    side = stored(root, ".json")
    known = json.loads(side.read_text())
    side.write_text(json.dumps(known | {"checksums": known["checksums"][::-1], "stamp": [0, 0, 0]}))
    assert_right(load(images), images)
    assert len(decoded) == 2 * 42


def test_a_copied_store_is_checked_once_and_kept(images, root, decoded, monkeypatch):
    load(images)
    shutil.copytree(root / "runs", root / "copied")  # with the times of change
    shutil.rmtree(root / "runs")
    (root / "copied").rename(root / "runs")
    assert_right(load(images), images)
    monkeypatch.setattr(stores.Store, "checksum", lambda *_: pytest.fail("checked again"))
    assert_right(load(images), images)
    assert len(decoded) == 42


def test_a_store_from_a_crash_between_its_two_files_is_checked_and_kept(images, root, decoded):
    load(images)
    side = stored(root, ".json")
    earlier = side.read_bytes()
    os.utime(stored(root))  # as if it had been written again, and its side file not yet
    load(images)
    assert len(decoded) == 42 and side.read_bytes() != earlier


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from helpers.data import new_store

with new_store(Path(sys.argv[1]), shape=(8, 8, 3), dtype="uint8", keys=list("abcdefghij")) as write:
    write(0, np.zeros((5, 8, 8, 3), "uint8"))
    os.kill(os.getpid(), int(sys.argv[2]))
    signal.pause()
"""


def test_what_a_killed_process_left_is_removed_and_what_a_stopped_one_writes_is_not(images, root):
    folder = root / "runs" / ".pixels"

    def start(signal_number: int) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", KILLED, str(folder / "x.pixels"), str(signal_number)])

    stopped = start(signal.SIGSTOP)
    try:
        _, status = os.waitpid(stopped.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert start(signal.SIGKILL).wait() == -signal.SIGKILL
        assert len(list(folder.glob(".*.partial"))) == 2
        load(images)
        assert len(list(folder.glob(".*.partial"))) == 1, "the stopped one may go on"
    finally:
        stopped.kill()
        stopped.wait()
    load_pixels(images, image_size=(5, 5))
    assert list(folder.glob(".*")) == []


def test_two_processes_may_build_the_same_store_at_once(images, root):
    script = (
        "import sys, pandas, helpers, pathlib, numpy\n"
        "helpers.ROOT = pathlib.Path(sys.argv[1])\n"
        "from helpers.data import load_pixels\n"
        "pixels = load_pixels(pandas.read_csv(helpers.ROOT / 'images.csv'), image_size=(12, 16))\n"
        "numpy.save(sys.argv[2], pixels['train'])"
    )
    images.to_csv(root / "images.csv", index=False)
    outputs = [root / f"{name}.npy" for name in "xyz"]
    processes = [subprocess.Popen([sys.executable, "-c", script, str(root), str(output)]) for output in outputs]
    assert [process.wait() for process in processes] == [0, 0, 0]
    for output in outputs:
        np.testing.assert_array_equal(np.load(output), expected(images, "train"))
    assert len(list((root / "runs" / ".pixels").iterdir())) == 2
    assert_right(load(images), images)


def test_threads_of_one_process_decode_once(images, root, decoded):
    with ThreadPoolExecutor(4) as pool:
        for loaded in pool.map(load, [images] * 4):
            assert_right(loaded, images)
    assert len(decoded) == 42 and len(list((root / "runs" / ".pixels").iterdir())) == 2


def test_an_open_store_outlives_its_file(images, root):
    loaded = load(images)
    shutil.rmtree(root / "runs")
    assert_right(loaded, images)


# ---- read


@pytest.mark.parametrize(
    "key",
    [
        0,
        -1,
        np.int64(3),
        slice(2, 9),
        slice(None, None, -2),
        slice(5, 5),
        [3, 1, 1, -2],
        [],
        np.array([4, 5, 6, 2]),
        np.arange(300) % 3 == 0,
        np.array([[1, 2], [3, 4]]),
    ],
    ids=str,
)
def test_indices_are_numpys(root, key):
    images = counted(300)
    everything = np.asarray(images)
    result = images[key]
    np.testing.assert_array_equal(result, everything[key])
    assert result.dtype == np.uint8 and result.shape == everything[key].shape
    assert result.flags.writeable and result.flags.owndata or result.base.flags.owndata, "a fresh array"


def test_indices_that_are_none(root):
    images = counted(5)
    for key in (5, -6, [0, 5], np.array([True] * 4), 1.5, "a"):
        with pytest.raises(IndexError):
            images[key]
    for key in ((0, 0), (..., 0), None, ...):
        with pytest.raises(IndexError, match="an index of rows alone"):
            images[key]


def test_neighbours_are_read_with_one_call(root, monkeypatch):
    images, calls = counted(300), []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *arguments: calls.append(1) or preadv(*arguments))
    for key, expected_calls in ((slice(10, 200), 1), ([7, 8, 9, 3, 4, 100], 3), (slice(None, None, -1), 300)):
        calls.clear()
        np.testing.assert_array_equal(numbers(images[key]), np.arange(300)[key])
        assert len(calls) == expected_calls


def test_all_as_an_array_and_one_by_one(root):
    images = counted(300)
    assert numbers(np.asarray(images)) == numbers(np.stack(list(images))) == list(range(300))
    assert np.asarray(images, dtype="float32").dtype == np.float32
    with pytest.raises(ValueError, match="copy"):
        np.asarray(images, copy=False)


def test_pixels_can_be_pickled(images):
    train = load(images)["train"]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(train)), train)


def test_a_descriptor_is_shared_and_closed_with_its_last_user(images):
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    gc.collect()
    before = descriptors()
    loaded = load(images)
    assert descriptors() == before + 1
    test = loaded.pop("test")
    del loaded
    gc.collect()
    assert len(test[:2]) == 2
    del test
    gc.collect()
    assert descriptors() == before


def test_a_store_that_is_cut_off_while_in_use_is_told(images, root):
    train = load(images)["train"]
    os.truncate(stored(root), 1000)
    with pytest.raises(OSError, match="cut off while in use. Load the pixels or activations again"):
        np.asarray(train)


# ---- batches


def epoch(dataset) -> tuple[list[int], list[int]]:
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return sum(map(numbers, images), []), np.concatenate(labels).tolist()


def test_batches_in_order_with_their_labels(root):
    images, labels = counted(70), np.arange(70) * 3
    dataset = images.dataset(labels, batch_size=32)
    batch, of_batch = dataset.element_spec
    assert batch.shape.as_list() == [None, 2, 2, 3] and batch.dtype == "uint8"
    assert of_batch.shape.as_list() == [None] and of_batch.dtype == "int64"
    assert len(dataset) == 3 and [len(x) for x, _ in dataset] == [32, 32, 6]
    for _ in range(2):
        assert epoch(dataset) == (list(range(70)), labels.tolist())
    alone = images.dataset(batch_size=70)
    assert alone.element_spec.shape.as_list() == [None, 2, 2, 3] and len(alone) == 1
    assert [numbers(batch) for batch in alone] == [list(range(70))]


def test_shuffled_epochs_differ_hold_every_image_once_and_repeat_with_the_seed(root):
    images, labels = counted(2000), np.arange(2000)
    dataset = images.dataset(labels, shuffle=3)
    first, second = epoch(dataset), epoch(dataset)
    for order, of_order in (first, second):
        assert order == of_order and sorted(order) == list(range(2000))
    assert first != second
    again = images.dataset(labels, shuffle=3)
    assert (epoch(again), epoch(again)) == (first, second)
    assert epoch(images.dataset(labels, shuffle=4)) != first
    # drawn from all orders, and not within a buffer: early images come late
    assert np.mean(np.abs(np.array(first[0]) - np.arange(2000))) == pytest.approx(2000 / 3, rel=0.1)


@pytest.mark.parametrize(("rows", "batch_size", "multiple", "sizes"), [(70, 32, 1, [24] * 3), (33, 32, 1, [17] * 2),
    (5, 32, 1, [5]), (1, 32, 1, [1]), (35, 7, 2, [8] * 5), (3, 32, 2, [4])])  # fmt: skip
def test_even_batches_have_one_size_and_hold_every_image(root, rows, batch_size, multiple, sizes):
    images, numbered, now = counted(rows), np.arange(rows), [4]
    options = {"even": True, "multiple": multiple, "epoch": lambda: now[0]}
    dataset = make_dataset(images, numbered, batch_size=batch_size, shuffle=0, **options)
    assert [len(batch) for batch, _ in dataset] == sizes
    first, again = epoch(dataset), epoch(dataset)
    assert first == again and first[0] == first[1], "the epoch is what it is told"
    assert set(first[0]) == set(range(rows)) and sum(sizes) - rows < max(len(sizes) * multiple, rows + 1)
    now[0] = 5
    assert rows < 5 or epoch(dataset) != first


def test_the_same_batches_when_tensorflow_is_deterministic(root):
    from helpers.training import set_seed

    images, labels = counted(100), np.arange(100)
    expected = epoch(images.dataset(labels, batch_size=7, shuffle=1))
    for seed in (0, 1):
        set_seed(seed)
        assert epoch(images.dataset(labels, batch_size=7, shuffle=1)) == expected


def test_a_model_trains_on_batches_as_on_arrays(root):
    from helpers._keras import keras

    images, labels = counted(60), np.arange(60) % 2

    def train(*data, **options) -> np.ndarray:
        keras.utils.set_random_seed(0)
        layers = [keras.Input((2, 2, 3)), keras.layers.Flatten(), keras.layers.Dense(2, activation="softmax")]
        model = keras.Sequential(layers)
        model.compile(keras.optimizers.SGD(0.001), "sparse_categorical_crossentropy")
        model.fit(*data, epochs=3, verbose=0, shuffle=False, **options)
        return model.predict(images.dataset(), verbose=0)

    from_array = train(np.asarray(images), labels, batch_size=16)
    np.testing.assert_allclose(train(images.dataset(labels, batch_size=16)), from_array, rtol=1e-5)
    assert np.abs(train(images.dataset(labels, batch_size=16, shuffle=0)) - from_array).max() > 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": [1, 2]}, r"`labels` of 5 integers.*int64 of shape \(2,\)"),
        ({"labels": np.zeros((5, 1), int)}, r"`labels` of 5 integers.*\(5, 1\)"),
        ({"labels": [0.5] * 5}, "`labels` of 5 integers.*float64"),
        ({"batch_size": 0}, "`batch_size` of at least 1.*0"),
        ({"shuffle": -1}, "`shuffle` to be a seed.*-1"),
        ({"shuffle": True}, "`shuffle` to be a seed.*True"),
        ({"shuffle": False}, "`shuffle` to be a seed.*False"),
    ],
)
def test_wrong_arguments_of_a_dataset(root, options, message):
    with pytest.raises(ValueError, match=message):
        counted(5).dataset(**options)


# ---- memory

EPOCH = """
import sys
from pathlib import Path
import numpy as np
from helpers.data.pixels import Pixels
from helpers.data.stores import Store

store, rows, way = Store(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
pixels = Pixels(store, np.random.default_rng(0).permutation(rows))
if way == "mapped":
    everything = np.memmap(sys.argv[1], "uint8", "r", shape=pixels.shape)
    seen = sum(int(everything[start : start + 32].max() > 0) for start in range(0, rows, 32))
else:
    seen = sum(1 for images, _ in pixels.dataset(np.arange(rows), shuffle=0) if images.shape[1:] == (64, 64, 3))
assert seen == len(range(0, rows, 32))
# Not ru_maxrss: a process inherits it from the one that started it.
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def peak(file: Path, rows: int, way: str) -> subprocess.Popen:
    command = [sys.executable, "-c", EPOCH, str(file), str(rows), way]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_trap_a_mapped_set_counts_as_memory_and_one_that_is_read_does_not(root):
    noise = np.random.default_rng(0).integers(1, 256, (64, 64, 3), dtype="uint8")
    file, peaks = root / "x.pixels", {}
    with stores.new_store(file, shape=noise.shape, dtype="uint8", keys=[str(row) for row in range(20_000)]) as write:
        for row in range(20_000):
            write(row, np.roll(noise, row, axis=0)[None])
    for way in ("mapped", "read"):
        few, many = (int(peak(file, rows, way).communicate()[0]) for rows in (2_000, 20_000))
        peaks[way] = many / few
    assert peaks["mapped"] > 1.5, "the tutorial's way grows with the set"
    assert peaks["read"] < 1.1


# ---- small


def test_shrunk_pixels():
    pixels = np.arange(2 * 8 * 4 * 3, dtype="uint8").reshape(2, 8, 4, 3)
    small = shrink_pixels(pixels, side=4)
    assert small.shape == (2, 4, 4, 3) and small.dtype == np.float32 and small.max() <= 1
    np.testing.assert_array_equal(shrink_pixels(pixels, side=99), pixels.astype("float32") / 255)


def test_stored_pixels_are_shrunk_like_arrays(images):
    train = load(images)["train"]
    np.testing.assert_array_equal(shrink_pixels(train, side=7), shrink_pixels(np.asarray(train), side=7))
    assert shrink_pixels(train, side=7).shape == (len(train), 7, 7, 3)
