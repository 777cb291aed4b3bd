"""A folder of images without labels: what is learned from, and what is not."""

import shutil

import pytest

from helpers.data import find_unlabelled, load_pixels
from helpers.data.tables import save_images


@pytest.fixture
def photos(make_images, root):
    return make_images(root / "photos", {"a": 12, "a/deeper": 6, "b": 10}, size=24)


def test_all_images_are_found_whatever_the_folders(photos):
    images, problems = find_unlabelled(photos, held_out=0.2)
    assert len(images) == 28 and set(images["label"]) == {""} and len(problems) == 0
    assert images["split"].value_counts().to_dict() == {"train": 23, "validation": 5}
    pixels = load_pixels(images, image_size=(16, 16))
    assert pixels["train"].shape == (23, 16, 16, 3) and pixels["validation"].shape == (5, 16, 16, 3)


def test_the_division_depends_on_the_seed_alone(photos):
    first, again, other = (find_unlabelled(photos, held_out=0.3, seed=seed)[0] for seed in (0, 0, 1))
    assert first.equals(again) and not first.equals(other)


def test_one_image_is_enough_to_be_held_out(photos):
    images, _ = find_unlabelled(photos, held_out=0.001)
    assert (images["split"] == "validation").sum() == 1


def test_copies_are_learned_from_once_and_what_is_no_image_is_reported(photos):
    shutil.copy(photos / "a" / "000.png", photos / "b" / "copy.png")
    (photos / "notes.jpg").write_text("no image")
    (photos / ".hidden.png").write_bytes(b"")
    images, problems = find_unlabelled(photos)
    assert len(images) == 28 and images["sha256"].is_unique
    named = dict(zip(problems["path"].str.rsplit("/", n=1).str[-1], problems["action"], strict=True))
    assert named["notes.jpg"] == "left out" and {"000.png", "copy.png"} & named.keys()


def test_near_duplicates_are_not_held_out_from_each_other(photos, make_images):
    from PIL import Image

    for path in sorted(photos.rglob("*.png"))[:10]:  # every image has a slightly smaller twin
        Image.open(path).resize((23, 23)).save(photos / f"twin-{path.parent.name}-{path.name}")
    images, _ = find_unlabelled(photos, held_out=0.4)
    groups = images[images["group"] != ""].groupby("group")["split"].nunique()
    assert groups.le(1).all()


def test_a_runs_test_images_are_not_learned_from(photos, root):
    images, _ = find_unlabelled(photos)
    run = images.assign(label="x", split=["test"] * 5 + ["train"] * 23, path="moved/" + images["path"])
    save_images(run, root / "images.csv")
    left, _ = find_unlabelled(photos, besides=root / "images.csv")
    assert len(left) == 23 and not set(left["sha256"]) & set(images["sha256"][:5])
    assert set(left["split"]) == {"train", "validation"}


def test_what_cannot_be_divided_is_refused(photos, root):
    with pytest.raises(ValueError, match="`held_out` between 0 and 1.*Received 1"):
        find_unlabelled(photos, held_out=1)
    with pytest.raises(FileNotFoundError, match="no .*nowhere"):
        find_unlabelled(root / "nowhere")
    (root / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has 0 files, and 0 images"):
        find_unlabelled(root / "empty")
    (root / "broken").mkdir()
    for name in "ab":
        (root / "broken" / f"{name}.png").write_text("no image")
    with pytest.raises(ValueError, match="broken has 2 files, and 0 images"):
        find_unlabelled(root / "broken")
    (root / "alone").mkdir()
    for name in "ab":
        shutil.copy(photos / "a" / "000.png", root / "alone" / f"{name}.png")
    with pytest.raises(ValueError, match="alone has 2 files, and 1 images"):
        find_unlabelled(root / "alone")
