"""Splits are disjoint, stratified, repeatable and nested; groups stay whole."""

import numpy as np
import pandas as pd
import pytest

from helpers.data import check_split, count_images, split_images
from helpers.data.tables import PARTS


def table(classes: dict[str, int], split: str = "") -> pd.DataFrame:
    rows = [(f"{label}/{index:04d}.png", label, split) for label, count in classes.items() for index in range(count)]
    return pd.DataFrame(rows, columns=["path", "label", "split"])


def paths(images: pd.DataFrame, part: str) -> set[str]:
    return set(images.loc[images["split"] == part, "path"])


# ---- splits


def test_split_is_disjoint_complete_and_stratified():
    images = table({"ants": 50, "bees": 100, "rare": 10})
    for seed in range(5):
        split = split_images(images, validation_fraction=0.25, test_fraction=0.2, seed=seed)
        assert sorted(split["path"]) == sorted(images["path"]) and split["path"].is_unique
        sizes = [[30, 10, 10, 50], [60, 20, 20, 100], [6, 2, 2, 10]]
        assert count_images(split).loc[["ants", "bees", "rare"]].values.tolist() == sizes


def test_split_depends_on_the_seed_in_every_part():
    images = table({"a": 60, "b": 60})
    first, second = split_images(images, seed=0), split_images(images, seed=1)
    for part in PARTS:
        for label in "ab":
            one, other = ({p for p in paths(s, part) if p.startswith(label)} for s in (first, second))
            assert len(one) == len(other) and one != other
    # a random choice, and not the first files of the sorted list
    assert paths(first, "test") != set(images.groupby("label").head(12)["path"])


def test_split_does_not_depend_on_the_order_of_files_their_folder_or_other_classes():
    images = table({"a": 40, "b": 25, "c": 9})
    everything = split_images(images, seed=3)
    alone = images[images["label"] != "c"].sample(frac=1, random_state=0)
    split = split_images(alone.assign(path="/elsewhere/" + alone["path"]), seed=3)
    assert split["split"].tolist() == everything.loc[everything["label"] != "c", "split"].tolist()


def test_given_parts_are_kept():
    images = pd.concat([table({"a": 10, "b": 10}, "train"), table({"a": 5, "b": 7}, "test")], ignore_index=True)
    images["path"] = images["split"] + "/" + images["path"]
    split = split_images(images, validation_fraction=0.2, test_fraction=0.9)
    assert paths(split, "test") == paths(images, "test")
    assert count_images(split).loc["all classes"].tolist() == [16, 4, 12, 32]


def test_a_class_with_too_few_images_and_options_out_of_range_are_named():
    for few in (1, 2):
        with pytest.raises(ValueError, match=rf"'lonely' has {few} usable image.*needs at least 3"):
            split_images(table({"a": 9, "lonely": few}))
    for name in ("validation_fraction", "test_fraction", "seed", "images_per_class"):
        with pytest.raises(ValueError, match=f"`{name}`.*-1"):
            split_images(table({"a": 9, "b": 9}), **{name: -1})


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


# ---- groups


def grouped(rng: np.random.Generator, *, classes: int, groups: int, mixed: float, size: int = 6) -> pd.DataFrame:
    """Returns a table of groups of 1 to `size` images; a share of the groups has images of several classes."""
    rows = []
    for group in range(groups):
        labels = rng.integers(0, classes, rng.integers(1, size + 1))
        if rng.random() >= mixed:
            labels[:] = labels[0]
        rows += [
            (f"{rng.integers(10**9)}-{number}.png", f"class {label}", "", f"g{group}")
            for number, label in enumerate(labels)
        ]
    table = pd.DataFrame(rows, columns=["path", "label", "split", "group"])
    table.loc[rng.random(len(table)) < 0.1, "group"] = ""
    return table.drop_duplicates("path").sample(frac=1, random_state=int(rng.integers(1000)))


@pytest.mark.parametrize("mixed", [0.0, 0.3, 1.0])
def test_groups_stay_whole_in_any_table(mixed):
    """Properties over 30 random tables: a split that holds, or an error that says why there is none."""
    refused = 0
    for number in range(30):
        rng = np.random.default_rng([number, int(10 * mixed)])
        images = grouped(rng, classes=int(rng.integers(2, 5)), groups=int(rng.integers(8, 60)), mixed=mixed)
        try:
            split = split_images(images, seed=number)
        except ValueError as error:
            assert "class" in str(error) and ("missing" in str(error) or "without dividing a group" in str(error))
            refused += 1
            continue
        assert sorted(split["path"]) == sorted(images["path"]) and split["path"].is_unique
        assert (split[split["group"] != ""].groupby("group")["split"].nunique() == 1).all()
        assert (split.groupby("label")["split"].nunique() == 3).all()
        again = split_images(images.sample(frac=1, random_state=number), seed=number)
        pd.testing.assert_frame_equal(split, again)
    assert refused < 15


def test_parts_of_grouped_images_have_nearly_the_sizes_asked_for():
    rng = np.random.default_rng(0)
    images = grouped(rng, classes=3, groups=400, mixed=0.4)
    split = split_images(images, validation_fraction=0.25, test_fraction=0.2, seed=0)
    shares = pd.crosstab(split["label"], split["split"], normalize="index")
    assert (shares["test"] - 0.2).abs().max() < 0.02
    assert (shares["validation"] - 0.2).abs().max() < 0.02


def test_a_class_in_too_few_groups_is_told_how_many_are_missing():
    images = table({"a": 9, "b": 9}).assign(group="")
    images.loc[images["label"] == "b", "group"] = ["left eye"] * 5 + ["right eye"] * 4
    with pytest.raises(ValueError, match="'b' has 9 usable images in 2 groups.*needs at least 3.*: 1 group missing"):
        split_images(images)


def test_classes_that_share_all_their_groups():
    rows = [(f"{group}{label}", label, "", f"patient {group}") for group in range(3) for label in "ab"]
    images = pd.DataFrame(rows, columns=["path", "label", "split", "group"])
    split = split_images(images)
    assert (split.groupby("group")["split"].nunique() == 1).all() and set(split["split"]) == set(PARTS)
    extra = pd.DataFrame([("x", "c", "", "patient 0"), ("y", "c", "", "patient 1")], columns=images.columns)
    with pytest.raises(ValueError, match="'c' has 2 usable images"):
        split_images(pd.concat([images, extra]))


def test_an_undecided_image_goes_with_the_given_ones_of_its_group():
    images = table({"a": 30, "b": 30}).assign(group="")
    images.loc[images.index % 10 == 0, "split"] = "test"
    images.loc[[10, 11, 12], "group"] = "one burst"
    split = split_images(images, seed=4).set_index("path")
    assert (split.loc[images.loc[[10, 11, 12], "path"], "split"] == "test").all()


def test_fewer_images_per_class_are_nested_in_each_part_also_with_groups():
    images = grouped(np.random.default_rng(5), classes=3, groups=300, mixed=0.3)
    few, more, every = (split_images(images, images_per_class=n, seed=1) for n in (10, 20, 0))
    for part in PARTS:
        assert paths(few, part) <= paths(more, part) <= paths(every, part)
    assert paths(few, "test") == paths(every, "test")
    assert (few[few["split"] != "test"]["label"].value_counts() == 10).all()
    assert (more[more["split"] != "test"]["label"].value_counts() == 20).all()


def test_rows_given_as_train_are_not_tested_where_others_are_undecided():
    images = pd.concat([table({"a": 30, "b": 30}, "train"), table({"a": 20, "b": 12})], ignore_index=True)
    images["path"] = images["path"].where(images["split"] == "train", "more/" + images["path"])
    split = split_images(images, seed=1)
    assert not paths(images, "train") & paths(split, "test")
    assert count_images(split)["test"].tolist() == [10, 8, 18]  # a fifth of all, drawn from the undecided
    few = images[(images["label"] == "a") | (images["split"] == "train")]
    with pytest.raises(ValueError, match="'b' has no undecided image to draw test images from"):
        split_images(few)


def test_a_blank_cell_does_not_upset_given_parts():
    images = pd.concat([table({"a": 80, "b": 80}, "train"), table({"a": 20, "b": 20}, "test")], ignore_index=True)
    images["path"] = images["split"] + "/" + images["path"]
    whole = count_images(split_images(images)).loc["all classes"]
    images.loc[3, "split"] = ""
    assert count_images(split_images(images)).loc["all classes"].tolist() == whole.tolist() == [128, 32, 40, 200]


def test_a_leak_between_parts_is_found():
    rows = [(f"{label}{n}", label, part, "", f"{label}{n}") for label in "ab" for n, part in enumerate(PARTS)]
    images = pd.DataFrame(rows, columns=["path", "label", "split", "group", "sha256"])
    assert "each of the 2 classes is in every part" in check_split(images, on_problem="exclude")
    for column in ("group", "sha256"):
        leak = images.assign(**{column: ["x", "x", *images[column][2:]]})
        with pytest.raises(ValueError, match=f"{column} in one part. 'x'"):
            check_split(leak, on_problem="exclude")
        check_split(leak, on_problem="keep")
    for wrong in (images.assign(path="x"), images[images["path"] != "a1"]):
        with pytest.raises(ValueError, match="Expected each image once, and every class in every part"):
            check_split(wrong, on_problem="keep")
