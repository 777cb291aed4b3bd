"""images.csv: texts stay texts, and a run's table is not replaced."""

import pandas as pd
import pytest

from helpers.data import encode_labels, load_images, save_images


def table(labels: list[str], split: str = "train") -> pd.DataFrame:
    rows = [(f"{number}.png", label, split, "", 3, 4, "0" * 64) for number, label in enumerate(labels)]
    return pd.DataFrame(rows, columns=["path", "label", "split", "group", "width", "height", "sha256"])


def test_labels_stay_texts_in_the_table_and_another_table_in_the_same_run_is_refused(tmp_path):
    labels = ["007", "NA", "nan", "true", "1e3", 'a "quoted", label', "é\nü", "\r", "a\rb"]
    images = table(labels)
    images["path"] = [f"{label}\r.png" for label in labels]
    for _ in range(2):
        save_images(images, tmp_path / "images.csv")
        pd.testing.assert_frame_equal(load_images(tmp_path / "images.csv"), images)
    with pytest.raises(ValueError, match="images.csv divides other images.*Choose another run_dir"):
        save_images(images[:5], tmp_path / "images.csv")
    pd.testing.assert_frame_equal(load_images(tmp_path / "images.csv"), images)


def test_labels_index_the_sorted_class_names():
    images = pd.DataFrame({"label": ["b", "a", "c", "a"], "split": ["train", "train", "test", "validation"]})
    labels, names = encode_labels(images)
    assert names == ["a", "b", "c"]
    assert {part: codes.tolist() for part, codes in labels.items()} == {
        "train": [1, 0],
        "validation": [0],
        "test": [2],
    }
