"""Splits are disjoint, stratified, repeatable and nested; bad files and folders are named."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from helpers import data
from helpers.data import (
    PARTS,
    check_images,
    find_images,
    load_pixels,
    read_pixels,
    shrink_pixels,
    split_images,
)


def table(classes: dict[str, int], split: str = "") -> pd.DataFrame:
    rows = [(f"{label}/{index:04d}.png", label, split) for label, count in classes.items() for index in range(count)]
    return pd.DataFrame(rows, columns=["path", "label", "split"])


def paths(images: pd.DataFrame, part: str) -> set[str]:
    return set(images.loc[images["split"] == part, "path"])


# ---- pixels


def test_pixels_follow_the_table_and_are_decoded_once(make_images, root, monkeypatch):
    make_images(root / "photos", {"a": 10, "b": 12}, size=24)
    images = split_images(check_images(find_images(root / "photos"))[0])
    pixels = load_pixels(images, image_size=(12, 16))
    for part in PARTS:
        rows = images[images["split"] == part]
        assert pixels[part].shape == (len(rows), 12, 16, 3) and pixels[part].dtype == np.uint8
        for array, path in zip(pixels[part], rows["path"], strict=True):
            np.testing.assert_array_equal(array, read_pixels(path, (12, 16)))
    monkeypatch.setattr(data, "read_pixels", lambda *_: pytest.fail("decoded again"))
    again = load_pixels(images, image_size=(12, 16))
    np.testing.assert_array_equal(again["train"], pixels["train"])


def test_a_file_that_has_changed_does_not_enter_the_store(make_images, root):
    make_images(root / "photos", {"a": 6, "b": 6})
    images = split_images(check_images(find_images(root / "photos"))[0])
    Image.new("RGB", (16, 16)).save(root / images.loc[0, "path"])
    with pytest.raises(ValueError, match=f"{images.loc[0, 'path']} is not what it was.*content has changed"):
        load_pixels(images, image_size=(8, 8))


def test_an_interrupted_store_leaves_nothing_behind_and_names_the_file(make_images, root):
    make_images(root / "photos", {"a": 6, "b": 6})
    images = split_images(check_images(find_images(root / "photos"))[0])
    gone = images.loc[images["split"] == "train", "path"].iloc[0]
    (root / gone).unlink()
    with pytest.raises(ValueError, match=gone):
        load_pixels(images, image_size=(8, 8))
    assert not list((root / "runs" / ".pixels").iterdir())


def test_images_are_cropped_and_not_distorted(tmp_path):
    wide = np.zeros((20, 60, 3), "uint8")
    wide[:, 20:40] = 200  # the middle third is what a square crop keeps
    Image.fromarray(wide).save(tmp_path / "wide.png")
    np.testing.assert_array_equal(read_pixels(tmp_path / "wide.png", (20, 20)), np.full((20, 20, 3), 200))


def test_shrunk_pixels():
    pixels = np.arange(2 * 8 * 4 * 3, dtype="uint8").reshape(2, 8, 4, 3)
    small = shrink_pixels(pixels, side=4)
    assert small.shape == (2, 4, 4, 3) and small.dtype == np.float32 and small.max() <= 1
    np.testing.assert_array_equal(shrink_pixels(pixels, side=99), pixels.astype("float32") / 255)
