"""Images are decoded once, whatever the split, and are what the rule makes of their files."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import helpers
from helpers.data import load_pixels, read_pixels, shrink_pixels
from helpers.data.batches import make_dataset
from helpers.data.pixels import Pixels
from helpers.data.reading import RESIZE_RULES, read_image, resize_image
from helpers.data.tables import PARTS

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


def load(images) -> dict[str, Pixels]:
    return load_pixels(images, image_size=SIZE)


def assert_right(loaded: dict[str, Pixels], images) -> None:
    for part in PARTS:
        paths = images.loc[images["split"] == part, "path"]
        np.testing.assert_array_equal(loaded[part], np.stack([read_pixels(path, SIZE) for path in paths]))


def stored(root: Path) -> Path:
    (file,) = (root / "runs" / ".pixels").glob("*.npy")
    return file


def test_pixels_follow_the_table_and_are_decoded_once_whatever_the_split_or_order(images, root):
    first = load(images)
    for part in PARTS:
        assert first[part].shape == ((images["split"] == part).sum(), *SIZE, 3) and first[part].dtype == np.uint8
    made = stored(root).stat().st_mtime_ns
    shutil.copy(root / images.loc[0, "path"], root / "photos" / "b" / "again.png")
    twice = hashed(root / "photos")
    for table in (images, divided(images, seed=5), images[::-1].reset_index(drop=True), twice):
        assert_right(load(table), table)
    assert len(twice) == 43 and len(np.load(stored(root))) == 42 and stored(root).stat().st_mtime_ns == made
    load_pixels(images, image_size=SIZE, resize="stretch")
    load_pixels(images, image_size=(16, 12))
    empty = load(images[images["split"] != "validation"])["validation"]
    assert len(list((root / "runs" / ".pixels").glob("*.npy"))) == 4, "another rule, size or set is another store"
    assert empty.shape == np.asarray(empty).shape == (0, *SIZE, 3) and len(list(make_dataset(empty))) == 0


def test_what_is_wrong_is_named_and_leaves_no_store(images, root):
    for size, resize, message in (
        (SIZE, "fit", "Expected `resize`.*'fit'"),
        ((0, 9), "crop", "`image_size`.*(0, 9)"),
    ):
        with pytest.raises(ValueError, match=message):
            load_pixels(images, image_size=size, resize=resize)
    for change in (lambda path: Image.new("RGB", (16, 16)).save(path), Path.unlink):
        change(root / images.loc[0, "path"])
        with pytest.raises(ValueError, match=f"{images.loc[0, 'path']} is not what it was"):
            load(images)
    assert not list((root / "runs" / ".pixels").glob("*.npy"))


def test_a_full_disk_is_told_before_the_work_and_a_damaged_store_is_made_again(images, root, monkeypatch):
    load(images)
    content = bytearray(stored(root).read_bytes())
    content[len(content) // 2] ^= 1
    stored(root).write_bytes(content)
    assert_right(load(images), images)
    assert stored(root).read_bytes() != content
    usage = shutil.disk_usage(root)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    for path in images["path"]:
        (root / path).unlink()
    with pytest.raises(OSError, match="takes 2.42e-05 GB.*`image_size`.*`images_per_class`"):
        load_pixels(images, image_size=SIZE, resize="pad")


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
            np.testing.assert_array_equal(array, resize_image(read_image(path), SIZE, resize=resize))


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


def test_crop_keeps_shapes_pad_adds_black_and_stretch_brings_corners_to_corners(disc):
    image = read_pixels(disc, (40, 40), resize="crop")
    height, width = extent(image)
    assert abs(height - width) <= 1 and abs(height - 40 * 2 / 3) <= 2
    assert is_red(image[0, 20]) and is_red(image[-1, 20]) and (image[20, [0, -1]] == 90).all(), "sides are cut off"
    image = read_pixels(disc, (40, 40), resize="pad")
    height, width = extent(image)
    assert abs(height - width) <= 1 and abs(height - 40 / 3) <= 2
    assert (image[:10] == 0).all() and (image[30:] == 0).all(), "black above and below"
    assert all(is_red(image[row, column]) for row in (10, 29) for column in (0, 39)), "nothing is cut off"
    image = read_pixels(disc, (40, 40), resize="stretch")
    height, width = extent(image)
    assert height / width == pytest.approx(2, rel=0.15)
    assert all(is_red(image[row, column]) for row in (0, -1) for column in (0, -1))


def test_pixels_are_shrunk_stored_or_not(images):
    pixels = np.arange(2 * 8 * 4 * 3, dtype="uint8").reshape(2, 8, 4, 3)
    small = shrink_pixels(pixels, side=4)
    assert small.shape == (2, 4, 4, 3) and small.dtype == np.float32 and small.max() <= 1
    np.testing.assert_array_equal(shrink_pixels(pixels, side=99), pixels.astype("float32") / 255)
    train = load(images)["train"]
    np.testing.assert_array_equal(shrink_pixels(train, side=7), shrink_pixels(np.asarray(train), side=7))
