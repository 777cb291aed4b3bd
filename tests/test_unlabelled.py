"""A folder of images without labels: what is learned from, and what is not."""

import shutil

import numpy as np
import pytest
from PIL import Image

from helpers.appendices import find_unlabelled
from helpers.data import load_pixels
from helpers.data.tables import save_images


@pytest.fixture
def photos(make_images, root):
    return make_images(root / "photos", {"a": 12, "a/deeper": 6, "b": 10}, size=24)


def test_all_images_are_found_whatever_the_folders_and_divided_by_the_seed(photos):
    images, problems = find_unlabelled(photos, held_out=0.2)
    assert len(images) == 28 and set(images["label"]) == {""} and len(problems) == 0
    pixels = load_pixels(images, image_size=(16, 16))
    assert pixels["train"].shape == (22, 16, 16, 3) and pixels["validation"].shape == (6, 16, 16, 3)
    assert images.equals(find_unlabelled(photos, held_out=0.2)[0])
    assert not images.equals(find_unlabelled(photos, held_out=0.2, seed=1)[0])
    few, _ = find_unlabelled(photos, held_out=0.001)
    assert (few["split"] == "validation").sum() == 2


def test_copies_are_learned_from_once_and_what_is_no_image_is_reported(photos):
    shutil.copy(photos / "a" / "000.png", photos / "b" / "copy.png")
    (photos / "notes.jpg").write_text("no image")
    (photos / ".hidden.png").write_bytes(b"")
    images, problems = find_unlabelled(photos)
    assert len(images) == 28 and images["sha256"].is_unique
    named = dict(zip(problems["path"].str.rsplit("/", n=1).str[-1], problems["action"], strict=True))
    assert named["notes.jpg"] == "left out" and {"000.png", "copy.png"} & named.keys()


@pytest.fixture
def scenes(root):
    """Smooth images, large enough for near-duplicates to be found, in a folder without class folders."""
    (root / "scenes").mkdir()
    for number in range(12):
        coarse = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype="uint8")
        scene = Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)
        scene.save(root / "scenes" / f"{number:02d}.png")
    return root / "scenes"


def test_near_duplicates_are_not_held_out_from_each_other(scenes):
    for path in sorted(scenes.glob("*.png"))[:6]:
        Image.open(path).resize((80, 80)).save(scenes / f"{path.stem}-smaller.jpg")
    for seed in range(5):
        images, _ = find_unlabelled(scenes, held_out=0.4, seed=seed)
        groups = images[images["group"] != ""].groupby("group")["split"].nunique()
        assert len(groups) == 6 and groups.eq(1).all() and len(images) == 18


def test_a_burst_does_not_take_all_places_of_the_held_out_images(scenes):
    first = Image.open(scenes / "00.png")
    for number in range(20):  # more than are to be held out
        first.resize((90 - number, 90 - number)).save(scenes / f"burst-{number}.png")
    for seed in range(10):
        images, _ = find_unlabelled(scenes, held_out=0.15, seed=seed)
        assert (images["split"] == "validation").sum() == 5


def test_neither_a_runs_test_images_nor_their_likes_are_learned_from(scenes, root, monkeypatch):
    images, _ = find_unlabelled(scenes)
    save_images(images.assign(label="x", split=["test"] * 4 + ["train"] * 8), root / "images.csv")
    for path in sorted(scenes.glob("*.png"))[:4]:
        shutil.copy(path, scenes / f"copy-{path.name}")
        Image.open(path).save(scenes / f"other-format-{path.stem}.bmp")
        Image.open(path).resize((80, 80)).save(scenes / f"smaller-{path.stem}.jpg")
    monkeypatch.chdir(scenes)  # a relative path counts from the root
    left, problems = find_unlabelled("scenes", tested_by="images.csv")
    assert sorted(left["path"]) == [f"scenes/{number:02d}.png" for number in range(4, 12)]
    assert set(left["split"]) == {"train", "validation"} and (problems["action"] == "left out").sum() == 12


def test_what_cannot_be_divided_is_refused(photos, root):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_unlabelled(root / "nowhere")
    (root / "few").mkdir()
    with pytest.raises(ValueError, match="few has 0 files, and 0 images"):
        find_unlabelled(root / "few")
    for name in "ab":
        shutil.copy(photos / "a" / "000.png", root / "few" / f"{name}.png")
        (root / "few" / f"{name}.jpg").write_text("no image")
    with pytest.raises(ValueError, match="few has 4 files, and 1 images"):
        find_unlabelled(root / "few")
