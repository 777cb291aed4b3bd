"""Splits are disjoint, stratified, repeatable and nested; bad files and folders are named."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from helpers import data
from helpers.data import (
    PARTS,
    check_images,
    count_images,
    encode_labels,
    find_images,
    load_pixels,
    open_data,
    read_pixels,
    shrink_pixels,
    split_images,
)


def table(classes: dict[str, int], split: str = "") -> pd.DataFrame:
    rows = [(f"{label}/{index:04d}.png", label, split) for label, count in classes.items() for index in range(count)]
    return pd.DataFrame(rows, columns=["path", "label", "split"])


def paths(images: pd.DataFrame, part: str) -> set[str]:
    return set(images.loc[images["split"] == part, "path"])


# ---- folders


def test_two_given_parts_are_train_and_test_whatever_the_second_is_called(make_images, tmp_path):
    make_images(tmp_path / "train", {"a": 5, "b": 5})
    make_images(tmp_path / "val", {"a": 3, "b": 3})
    assert find_images(tmp_path)["split"].value_counts().to_dict() == {"train": 10, "test": 6}


def test_three_given_parts(make_images, tmp_path):
    for part, count in (("Train", 4), ("valid", 3), ("TEST", 2)):
        make_images(tmp_path / part, {"a": count, "b": count})
    found = find_images(tmp_path)["split"].value_counts().to_dict()
    assert found == {"train": 8, "validation": 6, "test": 4}


def test_class_folders_that_are_called_like_parts_need_more_than_one_part(make_images, tmp_path):
    make_images(tmp_path, {"train": 3, "bus": 3})  # vehicles
    assert set(find_images(tmp_path)["label"]) == {"train", "bus"}


def test_a_part_that_lacks_a_class_is_named(make_images, tmp_path):
    make_images(tmp_path / "train", {"a": 5, "b": 5})
    make_images(tmp_path / "test", {"a": 3})
    with pytest.raises(ValueError, match="'test' has no image of 'b'"):
        find_images(tmp_path)


def test_names_with_spaces_and_subfolders_are_found(make_images, tmp_path):
    make_images(tmp_path / "my pets", {"big cats": 2, "dögs": 2})
    make_images(tmp_path / "my pets" / "big cats", {"more": 3})
    found = find_images(tmp_path / "my pets")
    assert found["label"].value_counts().to_dict() == {"big cats": 5, "dögs": 2}


def test_missing_folder_names_the_nearest_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"nearest folder that exists is {tmp_path}"):
        open_data(str(tmp_path / "pets" / "photos"))


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "pets.zip").write_bytes(b"PK")
    with pytest.raises(NotADirectoryError, match="pets.zip.*is a file"):
        open_data(str(tmp_path / "pets.zip"))


def test_empty_folder_and_single_class(make_images, tmp_path):
    with pytest.raises(ValueError, match="one folder of images per class.*nothing"):
        find_images(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        find_images(tmp_path)
    make_images(tmp_path, {"only": 4})
    with pytest.raises(ValueError, match="at least two classes.*'only' with 4 files"):
        find_images(tmp_path)


def test_embedded_digits_are_whole_and_given_in_two_parts(root):
    found = find_images(open_data("digits"))
    counts = found.groupby(["split", "label"]).size().unstack(0)
    assert counts.shape == (10, 2) and (counts["train"] == 20).all() and (counts["test"] == 80).all()
    assert not list(root.glob("data/*partial*"))


@pytest.mark.parametrize("names", [("train", "test", "annotations"), ("training_set", "test_set"), ("val", "test")])
def test_parts_that_are_not_understood_are_refused_and_no_classes(make_images, tmp_path, names):
    make_images(tmp_path / names[0], {"a": 3, "b": 3})
    make_images(tmp_path / names[1], {"a": 2, "b": 2})
    for name in names[2:]:
        make_images(tmp_path, {name: 1})
    with pytest.raises(ValueError, match=f"{names[0]}.*several hold 'a', 'b'.*Rename the parts"):
        find_images(tmp_path)


def test_classes_may_be_sorted_into_the_same_sub_folders(make_images, tmp_path):
    for label in ("cats", "dogs", "valiant"):
        make_images(tmp_path / label, {"2019": 2, "2020": 2})
    assert find_images(tmp_path)["label"].value_counts().to_dict() == {"cats": 4, "dogs": 4, "valiant": 4}


def test_hidden_folders_and_what_macs_leave_behind_are_not_images(make_images, tmp_path):
    make_images(tmp_path / "train", {"a": 3, "b": 3})
    make_images(tmp_path / "test", {"a": 2, "b": 2})
    make_images(tmp_path / "train" / "a", {".ipynb_checkpoints": 2, "sub": 1})
    make_images(tmp_path, {"__MACOSX": 2, ".cache": 2})
    (tmp_path / "train" / "a" / ".DS_Store").write_bytes(b"x")
    found = find_images(tmp_path)
    assert found["split"].value_counts().to_dict() == {"train": 7, "test": 4}


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
