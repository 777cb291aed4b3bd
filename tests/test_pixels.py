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
