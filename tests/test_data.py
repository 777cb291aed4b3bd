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


# ---- splits


@pytest.mark.parametrize("seed", range(5))
def test_split_is_disjoint_complete_and_stratified(seed):
    images = table({"ants": 50, "bees": 100, "rare": 10})
    split = split_images(images, validation_fraction=0.25, test_fraction=0.2, seed=seed)
    assert sorted(split["path"]) == sorted(images["path"])
    assert split["path"].is_unique and set(split["split"]) == set(PARTS)
    counts = count_images(split)
    assert counts.loc["ants"].tolist() == [30, 10, 10, 50]
    assert counts.loc["bees"].tolist() == [60, 20, 20, 100]
    assert counts.loc["rare"].tolist() == [6, 2, 2, 10]


def test_split_depends_on_the_seed_in_every_part():
    images = table({"a": 60, "b": 60})
    first, second = split_images(images, seed=0), split_images(images, seed=1)
    for part in PARTS:
        for label in "ab":
            one, other = ({p for p in paths(s, part) if p.startswith(label)} for s in (first, second))
            assert len(one) == len(other) and one != other
    # a random choice, and not the first files of the sorted list
    assert paths(first, "test") != set(images.groupby("label").head(12)["path"])


def test_split_does_not_depend_on_the_order_of_files_or_on_other_classes(make_images, tmp_path):
    folder = make_images(tmp_path, {"a": 12, "b": 12})
    alone = split_images(find_images(folder), seed=3)
    make_images(tmp_path, {"c": 5})
    with_c = split_images(find_images(folder), seed=3)
    pd.testing.assert_frame_equal(alone, with_c[with_c["label"] != "c"].reset_index(drop=True))


def test_fewer_images_per_class_are_nested_and_leave_the_test_set_alone():
    images = table({"a": 100, "b": 100})
    few, more, every = (split_images(images, images_per_class=n, seed=1) for n in (10, 20, 0))
    assert paths(few, "test") == paths(more, "test") == paths(every, "test")
    learned = [paths(s, "train") | paths(s, "validation") for s in (few, more, every)]
    assert len(learned[0]) == 20 and len(learned[1]) == 40
    assert learned[0] < learned[1] < learned[2]


def test_given_parts_are_kept():
    images = pd.concat([table({"a": 10, "b": 10}, "train"), table({"a": 5, "b": 7}, "test")], ignore_index=True)
    images["path"] = images["split"] + "/" + images["path"]
    split = split_images(images, validation_fraction=0.2, test_fraction=0.9)
    assert paths(split, "test") == paths(images, "test")
    assert count_images(split).loc["all classes"].tolist() == [16, 4, 12, 32]


@pytest.mark.parametrize(("classes", "needed"), [({"a": 9, "lonely": 1}, 3), ({"a": 9, "lonely": 2}, 3)])
def test_a_class_with_too_few_images_is_named(classes, needed):
    with pytest.raises(
        ValueError, match=rf"'lonely' has {classes['lonely']} readable image.*needs at least {needed}"
    ):
        split_images(table(classes))


@pytest.mark.parametrize("name", ["validation_fraction", "test_fraction"])
@pytest.mark.parametrize("value", [0, 1, -0.2, 1.5])
def test_fractions_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` between 0 and 1.*{value}"):
        split_images(table({"a": 9, "b": 9}), **{name: value})


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="`seed` of at least 0.*-1"):
        split_images(table({"a": 9, "b": 9}), seed=-1)


def test_trap_cutting_a_shuffled_stream_mixes_the_parts_and_a_split_table_does_not():
    import tensorflow as tf

    files = [f"{index:03d}" for index in range(200)]
    stream = tf.data.Dataset.from_tensor_slices(files).shuffle(200, seed=0)  # reshuffled at each pass
    validation, test = ({name.numpy() for name in part} for part in (stream.take(100), stream.skip(100)))
    assert len(validation & test) > 20, "the tutorial's way leaks"
    split = split_images(table({"a": 100, "b": 100}))
    for _ in range(2):
        assert not paths(split, "validation") & paths(split, "test")
        assert not paths(split, "train") & paths(split, "test")


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


# ---- files


def test_unreadable_files_are_named_and_left_out(make_images, tmp_path):
    folder = make_images(tmp_path, {"a": 3, "b": 3}, size=64)
    whole = (folder / "a" / "000.png").read_bytes()
    (folder / "a" / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "b" / "empty.jpg").write_bytes(b"")
    (folder / "b" / "notes.txt").write_text("no image")
    images, problems = check_images(find_images(folder))
    assert len(images) == 6
    assert [path.rsplit("/")[-1] for path in problems["path"]] == ["truncated.png", "empty.jpg", "notes.txt"]
    assert problems["problem"].str.len().gt(10).all()


@pytest.mark.parametrize("suffix", ["webp", "tif", "bmp", "gif", "JPG"])
def test_formats_that_keras_skips_are_read(make_images, tmp_path, suffix):
    folder = make_images(tmp_path, {"a": 2, "b": 2}, suffix=suffix)
    images, problems = check_images(find_images(folder))
    assert len(images) == 4 and problems.empty


def test_a_class_of_which_nothing_is_left_is_named(make_images, tmp_path):
    make_images(tmp_path / "train", {"a": 3, "b": 3})
    make_images(tmp_path / "test", {"a": 2, "b": 1})
    (tmp_path / "test" / "b" / "000.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="files of class 'b' in test can be read.*000.png"):
        check_images(find_images(tmp_path))


def test_sixteen_bits_are_brought_to_eight(tmp_path):
    deep = (np.arange(16 * 16, dtype="uint16") * 257).reshape(16, 16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_pixels(tmp_path / "deep.png", (16, 16))[..., 0], deep >> 8)
    Image.fromarray(np.ones((4, 4), "float32")).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="floating-point"):
        read_pixels(tmp_path / "float.tif", (4, 4))


def test_another_table_in_the_same_run_is_refused(tmp_path):
    images = table({"a": 3, "b": 3}, "train").assign(sha256="0" * 64)
    data.save_images(images, tmp_path / "images.csv")
    data.save_images(images, tmp_path / "images.csv")
    before = (tmp_path / "images.csv").read_bytes()
    with pytest.raises(ValueError, match="images.csv divides other images.*Choose another run_dir"):
        data.save_images(images[:5], tmp_path / "images.csv")
    assert (tmp_path / "images.csv").read_bytes() == before


def test_nothing_readable(tmp_path):
    for label in "ab":
        (tmp_path / label).mkdir()
        (tmp_path / label / "x.png").write_text("no image")
    with pytest.raises(ValueError, match="2 files, none of which can be read.*x.png"):
        check_images(find_images(tmp_path))


def test_exif_rotation_is_applied_and_size_is_as_seen(tmp_path):
    picture = np.zeros((20, 40, 3), "uint8")
    picture[:, :10] = 255  # white on the left
    for label in "ab":
        (tmp_path / label).mkdir()
        exif = Image.Exif()
        exif[0x0112] = 6  # turn clockwise to see it upright
        Image.fromarray(picture).save(tmp_path / label / "x.jpg", exif=exif, quality=95)
    images, _ = check_images(find_images(tmp_path))
    assert (images.loc[0, "width"], images.loc[0, "height"]) == (20, 40)
    upright = read_pixels(images.loc[0, "path"], (40, 20))
    assert upright[:8].mean() > 240 and upright[12:].mean() < 15  # white on top


def test_labels_stay_texts_in_the_table(tmp_path):
    labels = ["007", "NA", "nan", "true", "1e3", 'a "quoted", label', "é\nü"]
    images = table({label: 2 for label in labels}, "train").assign(width=3, height=4, sha256="0" * 64)
    data.save_images(images, tmp_path / "images.csv")
    pd.testing.assert_frame_equal(data.load_images(tmp_path / "images.csv"), images)


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


def test_labels_index_the_sorted_class_names():
    images = pd.DataFrame({"label": ["b", "a", "c", "a"], "split": ["train", "train", "test", "validation"]})
    labels, names = encode_labels(images)
    assert names == ["a", "b", "c"]
    assert {part: codes.tolist() for part, codes in labels.items()} == {
        "train": [1, 0],
        "validation": [0],
        "test": [2],
    }
