"""The gate: what is planted is found, with its name and a plain reason; nothing crashes, and nothing is lost."""

import io
import itertools
import os
import random
import shutil
import tracemalloc
import warnings
import zlib
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pytest
from fuzz import damage
from PIL import Image, ImageEnhance

from helpers.data import (
    check_images,
    exclude_problems,
    find_images,
    read_pixels,
    save_problems,
    split_images,
    summarize_problems,
)
from helpers.data.checks import COLUMNS, KINDS
from helpers.data.duplicates import SIDE, hash_thumbnails
from helpers.data.parallel import quiet
from helpers.data.reading import read_image
from helpers.data.tables import read_texts


def photo(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Returns an image with large and small structures, as photos have them, different for each seed."""
    rng, total = np.random.default_rng(seed), np.zeros((size[1], size[0], 3))
    for cells in (3, 6, 12, 24):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype="uint8"))
        total += np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), float) * 3 / cells
    total -= total.min()
    return Image.fromarray((255 * total / total.max()).astype("uint8"))


def write(image: Image.Image, path: Path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, {"jpg": "jpeg", "tif": "tiff"}.get(kind, kind), **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A folder with two classes of ten photos each."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(20):
        write(photo(number), folder / "ab"[number % 2] / f"{number:02d}.jpg", quality=90)
    return folder


@pytest.fixture
def photos(clean, tmp_path):
    """A function that checks a copy of this folder and returns images and problems."""
    shutil.copytree(clean, tmp_path / "photos")

    def check(**options) -> tuple[pd.DataFrame, pd.DataFrame]:
        images, problems = check_images(find_images(check.folder), **options)
        assert tuple(problems.columns) == COLUMNS and set(problems["problem"]) <= set(KINDS)
        assert problems["reason"].str.len().gt(5).all() and not problems.isna().any(axis=None)
        return images, problems

    check.folder = tmp_path / "photos"
    return check


def only(problems: pd.DataFrame, *columns: str) -> list:
    """Returns what the table says, file names without their folders."""
    texts = problems[list(columns)].map(lambda text: text.rsplit("/", 1)[-1])
    return [row[0] if len(columns) == 1 else row for row in texts.itertuples(index=False, name=None)]


def told(problems: pd.DataFrame) -> dict[str, str]:
    """Returns {file name: problem}."""
    return dict(only(problems, "path", "problem"))


def test_clean_photos_have_no_problem(photos):
    images, problems = photos()
    assert problems.empty and len(images) == 20 and (images["group"] == "").all()
    assert len(summarize_problems(problems)) == 0
    pd.testing.assert_frame_equal(exclude_problems(images, problems), images)
    with pytest.raises(ValueError, match="`on_problem`.*'drop'"):
        photos(on_problem="drop")


# ---- single files


def damaged_files() -> dict[str, tuple[str, bytes]]:
    """Returns the problem and the content of files that cannot be used."""
    contents = {}
    for kind, options in (
        *((kind, {}) for kind in ("jpg", "png", "gif", "webp", "tif", "bmp", "avif")),
        *(("jpg", {"progressive": True}), ("tif", {"compression": "tiff_lzw"})),
    ):
        content = encode(photo(99), kind, **options)
        contents[f"cut{len(contents)}.{kind}"] = ("truncated or damaged", content[: len(content) * 2 // 3])
    return contents | {
        "text.jpg": ("not an image", b"not at all\n"),
        "nothing.png": ("empty file", b""),
        "page.jpg": ("not an image", b"<!DOCTYPE html><html>404</html>"),
        "phone.heic": ("not an image", b"\0\0\0\x18ftypheic" + bytes(50)),
        "script.jpg": ("not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n"),  # a program
        "start.jpg": ("damaged", b"\xff\xd8\xff\xe0"),
        "huge.png": ("too large", png_of_size(60_000, 60_000)),
        "large.png": ("too large", png_of_size(12_000, 12_000)),
    }


def png_of_size(width: int, height: int) -> bytes:
    content = bytearray(encode(Image.new("1", (8, 8)), "png"))
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return bytes(content)


def test_files_that_cannot_be_used_are_named_with_a_reason(photos):
    planted = damaged_files()
    for name, (_, content) in planted.items():
        (photos.folder / "a" / name).write_bytes(content)
    for name, start, size in (("film.mp4", b"\0\0\0\x18ftypmp42", 3 * 2**26), ("scan.tif", b"", 2**30 + 1)):
        with open(photos.folder / "a" / name, "wb") as file:  # not read to say that it is no image, or too large
            file.write(start)
            file.truncate(size)
    images, problems = photos()
    found = told(problems)
    assert (found.pop("film.mp4"), found.pop("scan.tif")) == ("not an image", "too large")
    assert found.keys() == planted.keys() and len(images) == 20
    assert not {name: problem for name, problem in found.items() if problem not in planted[name][0]}
    assert (problems["severity"] == "error").all() and (problems["action"] == "left out").all()


def test_what_can_be_used_and_is_worth_knowing(photos):
    a, b = photos.folder / "a", photos.folder / "b"
    photo(50).save(a / "lie.jpg", "png")
    photo(51).save(a / "true.JPEG", "jpeg")
    photo(52).save(a / "no_extension", "png")
    photo(53).save(b / "moving.gif", save_all=True, append_images=[photo(54)])
    photo(55).save(b / "pages.tif", save_all=True, append_images=[photo(56), photo(57)])
    for number, exif in enumerate((b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0")):
        photo(80 + number).save(a / f"exif{number}.jpg", exif=exif, quality=90)
        assert read_image(a / f"exif{number}.jpg").size == (160, 120)
    images, problems = photos()
    assert only(problems, "path", "problem", "severity", "action") == [
        ("moving.gif", "animation", "note", "kept"),
        ("pages.tif", "animation", "note", "kept"),
        ("lie.jpg", "wrong extension", "note", "kept"),
    ]
    assert len(exclude_problems(images, problems)) == 28
    np.testing.assert_array_equal(read_image(b / "pages.tif"), photo(55))


def test_blank_images_and_small_ones_are_left_out(photos):
    rng, a = np.random.default_rng(0), photos.folder / "a"
    Image.new("RGB", (160, 120), "teal").save(a / "blank.png")
    noise = (200 + rng.normal(0, 2, (120, 160, 3))).clip(0, 255).astype("uint8")
    Image.fromarray(noise).save(a / "nearly.jpg")
    speck = np.full((120, 160, 3), 240, "uint8")
    speck[60:64, 80:84] = 20  # a defect on a plain surface is what some people look for
    Image.fromarray(speck).save(a / "speck.png")
    colours = np.zeros((120, 160, 3), "uint8")
    colours[:, :80, 0], colours[:, 80:, 1] = 140, 71  # red and green that are the same grey
    assert np.ptp(np.asarray(Image.fromarray(colours).convert("L"))) <= 1
    Image.fromarray(colours).save(a / "colours.png")
    photo(60, (12, 90)).save(a / "narrow.png")
    photo(61, (1, 1)).save(a / "dot.gif")
    for name in ("dark.jpg", "dark.png"):  # so large that they are looked at one at a time, and so blank that twice
        Image.new("L", (4200, 3100)).save(a / name)
    images, problems = photos()
    assert set(problems["action"]) == {"left out"}
    blank, small = (problems[problems["problem"] == problem] for problem in ("blank", "too small"))
    assert only(blank, "path") == ["blank.png", "dark.jpg", "dark.png", "dot.gif", "nearly.jpg"]
    assert only(small, "path") == ["dot.gif", "narrow.png"]
    kept = exclude_problems(images, problems)
    assert set(only(kept, "path")) >= {"speck.png", "colours.png"} and len(kept) == 22


def test_copies_are_not_each_compared_with_each(tmp_path):
    """Half an hour for 6,000 of them, if they were."""
    placeholder = photo(12345, (32, 32))
    for number in range(1500):
        write(placeholder if number > 40 else photo(number, (32, 32)), tmp_path / "ab"[number % 2] / f"{number}.png")
    _, problems = check_images(find_images(tmp_path))
    assert (problems["problem"] == "two labels").sum() == 1459


# ---- images that are alike


def test_small_images_are_compared_pixel_by_pixel(make_images, tmp_path):
    make_images(tmp_path / "train", {"a": 12, "b": 12}, size=28)
    make_images(tmp_path / "test", {"a": 3, "b": 3}, size=28, seed=1)
    read_image(tmp_path / "test" / "a" / "000.png").save(tmp_path / "train" / "a" / "leak.bmp")
    _, problems = check_images(find_images(tmp_path))
    assert only(problems, "path", "problem", "other") == [("leak.bmp", "duplicate across parts", "000.png")]


def test_symmetric_images_have_a_hash_too():
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    discs = np.stack([((x**2 + y**2 < radius) * 200).astype("uint8") for radius in (0.2, 0.4, 0.7)])
    one, other = (np.unpackbits(hash_thumbnails(images).view("uint8"), axis=1) for images in (discs, discs // 5 * 4))
    assert (one != other).sum(axis=1).max() <= 2


def write_scans(folder: Path, *rows: tuple[int, str, str, str]) -> Path:
    """Writes a photo for each number, and returns a table of these, with label, split and group."""
    for number, *_ in rows:
        photo(number).save(folder / f"{number:02d}.png")
    table = pd.DataFrame(rows, columns=["path", "label", "split", "group"])
    table.assign(path=table["path"].map("{:02d}.png".format)).to_csv(folder / "scans.csv", index=False)
    return folder / "scans.csv"


def test_what_is_left_out_anyhow_costs_no_other_image_its_place(tmp_path):
    rows = [(n, "xy"[n % 2], "train" if n < 25 else "test", "anna" if n in (1, 2, 3, 30) else "") for n in range(40)]
    table = write_scans(tmp_path, *rows)
    Image.new("L", (160, 120)).save(tmp_path / "30.png")
    images, problems = check_images(find_images(table))
    assert only(problems, "path", "problem") == [("30.png", "blank")]
    assert len(exclude_problems(images, problems)) == 39


def test_a_group_of_the_users_in_two_given_parts(tmp_path):
    rows = [(n, "xy"[n % 2], "train" if n < 14 else "test", f"patient {n - n // 17 * 14}") for n in range(24)]
    _, problems = check_images(find_images(write_scans(tmp_path, *rows[:18])))
    across = problems[problems["problem"] == "group across parts"]
    assert only(across, "path", "action", "other", "group") == [("03.png", "left out", "17.png", "patient 3")]


def test_rows_of_a_table_that_were_refused(tmp_path):
    rows = [(number, "xy"[number % 2], "", "") for number in range(24)]
    table = write_scans(tmp_path, *rows, (4, "", "", ""), (5, "x", "", ""))
    for policy in ("exclude", "keep"):
        images, problems = check_images(find_images(table), on_problem=policy)
        assert told(problems) == {"04.png": "incomplete row", "05.png": "contradiction"}
        kept = only(exclude_problems(images, problems), "path")
        assert set(problems["action"]) == {"left out"} and "04.png" in kept and "05.png" not in kept


def test_our_hash_is_the_librarys():
    thumbnails = [photo(seed).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX) for seed in range(50)]
    ours = hash_thumbnails(np.stack([np.asarray(thumbnail) for thumbnail in thumbnails]))
    theirs = [imagehash.phash(thumbnail, hash_size=16, highfreq_factor=2).hash for thumbnail in thumbnails]
    ours = np.unpackbits(ours.view("uint8"), axis=1).reshape(-1, 16, 16)
    assert (ours != np.stack(theirs)).sum(axis=(1, 2)).max() <= 1  # ours rounds, to be the same everywhere


def test_exact_duplicates_also_with_other_metadata_or_in_another_format(photos):
    a = photos.folder / "a"
    shutil.copy(a / "00.jpg", a / "zz_copy.jpg")
    exif = Image.Exif()
    exif[0x010E] = "a description"
    photo(70).save(a / "70.png")
    photo(70).save(a / "71.tif", exif=exif)
    Image.fromarray(np.asarray(read_image(a / "02.jpg"))).save(a / "72.bmp")
    images, problems = photos()
    assert only(problems, "path", "problem", "other") == [
        ("71.tif", "duplicate", "70.png"),
        ("72.bmp", "duplicate", "02.jpg"),
        ("zz_copy.jpg", "duplicate", "00.jpg"),
    ]
    assert (problems["action"] == "left out").all() and problems["group"].nunique() == 3
    kept = exclude_problems(images, problems)
    assert len(kept) == 21 and (kept["group"] == "").all()


def test_one_image_under_two_labels_is_left_out_everywhere(photos):
    a, b = photos.folder / "a", photos.folder / "b"
    shutil.copy(a / "00.jpg", b / "00_too.jpg")
    shutil.copy(a / "00.jpg", a / "00_again.jpg")
    near = read_image(a / "02.jpg").resize((100, 75))
    near.save(b / "02_smaller.jpg")
    images, problems = photos()
    assert only(problems, "path", "problem", "action") == [
        ("00.jpg", "two labels", "left out"),
        ("00_again.jpg", "two labels", "left out"),
        ("00_too.jpg", "two labels", "left out"),
        ("02_smaller.jpg", "similar, two labels", "kept together"),
        ("", "few images", "kept"),
    ]
    assert "also filed under 'b'" in problems["reason"][0] and "filed under 'a'" in problems["reason"][3]
    kept = exclude_problems(images, problems)
    assert len(kept) == 20 and (kept["group"] != "").sum() == 2
    everything, problems = photos(on_problem="keep")
    assert (problems["action"] == "kept").all() and len(exclude_problems(everything, problems)) == 23


def test_leaks_between_given_parts_cost_the_training_copy(tmp_path):
    for number in range(30):
        part = ("train", "train", "val", "test", "test")[number % 5]
        write(photo(number), tmp_path / part / "ab"[number % 2] / f"{number:02d}.jpg", quality=92)
    leaks = {  # copied to: from
        "train/a/exact.jpg": "test/b/03.jpg",  # another label, too
        "train/b/exact.jpg": "test/b/13.jpg",
        "val/b/of_test.jpg": "test/b/23.jpg",
        "train/a/of_val.jpg": "val/a/02.jpg",
        "test/a/twice.jpg": "test/a/04.jpg",
        "train/a/twice.jpg": "train/a/00.jpg",
    }
    for to, origin in leaks.items():
        shutil.copy(tmp_path / origin, tmp_path / to)
    read_image(tmp_path / "test/a/14.jpg").resize((200, 150)).save(tmp_path / "train/a/near.jpg", quality=60)
    found = find_images(tmp_path)
    images, problems = check_images(found)
    found_in = {
        "/".join(row.path.rsplit("/", 3)[-3:]): (row.problem, row.action, row.other.rsplit("/", 1)[-1])
        for row in problems[problems["problem"] != "few images"].itertuples()
    }
    assert found_in == {
        "test/b/03.jpg": ("two labels", "left out", "exact.jpg"),
        "train/a/exact.jpg": ("two labels", "left out", "03.jpg"),
        "train/b/exact.jpg": ("duplicate across parts", "left out", "13.jpg"),
        "val/b/of_test.jpg": ("duplicate across parts", "left out", "23.jpg"),
        "train/a/of_val.jpg": ("duplicate across parts", "left out", "02.jpg"),
        "train/a/near.jpg": ("near-duplicate across parts", "left out", "14.jpg"),
        "test/a/twice.jpg": ("duplicate", "kept", "04.jpg"),  # given test images are not thinned out
        "train/a/twice.jpg": ("duplicate", "left out", "00.jpg"),
    }
    kept = exclude_problems(images, problems)
    parts = kept.groupby("sha256")["split"].nunique()
    assert (parts == 1).all()
    assert kept["split"].eq("test").sum() == 12  # 12 were given, one has two labels, one lies there twice
    everything, problems = check_images(found, on_problem="keep")
    assert len(exclude_problems(everything, problems)) == len(found)
    assert problems.loc[problems["problem"].str.contains("across"), "action"].eq("kept").all()


def test_images_that_are_alike_come_into_one_part(photos):
    for number in range(0, 20, 2):
        origin = photos.folder / "a" / f"{number:02d}.jpg"
        for size in (100, 130, 200):
            read_image(origin).resize((size, size * 3 // 4)).save(
                origin.with_stem(f"{number:02d}_{size}"), quality=70
            )
    images, problems = photos()
    assert len(problems) == 30 and set(problems["problem"]) == {"near-duplicate"}
    assert problems["group"].nunique() == 10
    for seed in range(20):
        split = split_images(exclude_problems(images, problems), seed=seed)
        assert len(split) == 50 and (split.groupby("group")["split"].nunique().drop("") == 1).all()


def test_images_of_one_subject_are_no_near_duplicates(tmp_path):
    """Alike by what all have in common, as X-rays are, and one that is a copy all the same."""
    common = np.asarray(photo(0, (128, 128)), float)
    for number in range(60):
        own = np.asarray(photo(1000 + number, (128, 128)), float)
        mixed = Image.fromarray((0.8 * common + 0.2 * own).astype("uint8"))
        write(mixed, tmp_path / "ab"[number % 2] / f"{number:02d}.png")
    read_image(tmp_path / "a" / "00.png").resize((96, 96)).save(tmp_path / "a" / "copy.jpg", quality=80)
    _, problems = check_images(find_images(tmp_path))
    assert only(problems, "path", "problem", "other") == [("copy.jpg", "near-duplicate", "00.png")]


PLANTED = {
    "half": lambda image, rng: image.resize((image.width // 2, image.height // 2)),
    "three quarters": lambda image, rng: image.resize((image.width * 3 // 4, image.height * 3 // 4)),
    "enlarged": lambda image, rng: image.resize((image.width * 3 // 2, image.height * 3 // 2)),
    "recompressed": lambda image, rng: image,
    "cropped": lambda image, rng: image.crop(
        (*rng.integers(0, 5, 2), image.width - rng.integers(0, 5), image.height - rng.integers(1, 5))
    ),
    "darker": lambda image, rng: ImageEnhance.Brightness(image).enhance(0.7),
    "brighter": lambda image, rng: ImageEnhance.Brightness(image).enhance(1.3),
}


def test_recall_among_real_photos(real_data, tmp_path):
    """Flowers with planted faults: all copies and damaged files, 95 % of the near-duplicates, hardly a false pair."""
    rng, folder = np.random.default_rng(0), tmp_path / "flowers"
    shutil.copytree(real_data / "data" / "flowers", folder)
    clean_images, _ = check_images(find_images(folder))
    natural = set(clean_images.loc[clean_images["group"] != "", "path"])
    assert len(natural) == 4, "two pairs are in the set itself"
    origins = [path for path in sorted(folder.rglob("*.jpg")) if str(path) not in natural]
    rng.shuffle(origins)
    classes, origins = sorted({path.parent.name for path in origins}), iter(origins)
    planted: dict[str, dict[str, str]] = {kind: {} for kind in ("copy", "swapped", "near", "damaged")}

    def plant(kind: str, name: str, change, *, swap: bool = False) -> None:
        origin = next(origins)
        label = next(n for n in rng.permutation(classes) if n != origin.parent.name) if swap else origin.parent.name
        (folder / label / name).write_bytes(change(origin))
        planted[kind][str(folder / label / name)] = str(origin)

    def cut_off(origin: Path) -> bytes:
        return origin.read_bytes()[: int(origin.stat().st_size * rng.uniform(0.05, 0.95))]

    for number in range(40):
        plant("copy", f"copy {number}.jpg", Path.read_bytes)
        plant("swapped", f"swapped {number}.jpg", Path.read_bytes, swap=True)
        plant("damaged", f"cut {number}.jpg", cut_off)
    for number, text in enumerate((b"", b"text", b"\0" * 1000, rng.bytes(5000))):
        plant("damaged", f"renamed {number}.jpg", lambda _, text=text: text)
    for kind, change in PLANTED.items():

        def resave(origin: Path, change=change) -> bytes:
            return encode(change(read_image(origin), rng), "jpg", quality=int(rng.integers(40, 90)))

        for number in range(60):
            plant("near", f"{kind} {number}.jpg", resave, swap=number < 5)
    images, problems = check_images(find_images(folder))
    found = problems[problems["problem"] != "near-duplicate"].set_index("path")["problem"]
    assert set(planted["damaged"]) <= set(found.index)
    assert (found[list(planted["swapped"])] == "two labels").all()
    duplicates = problems[problems["problem"] == "duplicate"]
    pairs = set(map(frozenset, zip(duplicates["path"], duplicates["other"], strict=True)))
    assert {frozenset(pair) for pair in planted["copy"].items()} <= pairs
    groups = images.set_index("path")["group"]
    recalled = [bool(groups[path]) and groups[path] == groups[origin] for path, origin in planted["near"].items()]
    assert np.mean(recalled) >= 0.95, f"{np.mean(recalled):.3f} of {len(recalled)} near-duplicates"
    alike = {kind: np.mean(recalled[60 * i : 60 * i + 60]) for i, kind in enumerate(PLANTED)}
    assert min(alike.values()) >= 0.9, alike
    source = {path: origin for kind in planted.values() for path, origin in kind.items()}
    members = groups[(groups != "") & ~groups.index.isin(natural)]
    false = sum(
        source.get(one, one) != source.get(other, other)
        for _, paths in members.groupby(members)
        for one, other in itertools.combinations(paths.index, 2)
    )
    assert false <= len(images) / 1000, f"{false} false pairs in {len(images)} images"
    assert (problems["problem"] == "similar, two labels").sum() >= 0.95 * 35


# ---- what is done about it


def test_stop_lists_the_problems_and_writes_them_first(photos, tmp_path):
    (photos.folder / "a" / 'a "line\nbreak", and a return\r, text.jpg').write_text("none")
    (photos.folder / "b" / ".DS_Store").write_text("none")
    images, problems = photos(on_problem="stop")
    save_problems(problems, tmp_path / "run" / "problems.csv")
    assert only(problems, "problem", "action") == [("not an image", "stops the run"), ("stray file", "ignored")]
    with pytest.raises(ValueError, match=r"(?s)1 problem .*text\.jpg: not an image"):
        exclude_problems(images, problems)
    pd.testing.assert_frame_equal(read_texts(tmp_path / "run" / "problems.csv"), problems)


def test_classes_that_are_small_or_uneven(photos):
    for number in range(25):
        write(photo(200 + number), photos.folder / ("few" if number < 5 else "b") / f"more{number}.png")
    (photos.folder / "empty").mkdir()
    images, problems = photos()
    assert only(problems, "label", "problem", "severity") == [
        ("few", "few images", "warning"),
        ("empty", "empty class", "warning"),
        ("few", "imbalance", "note"),
    ]
    assert "class_weight" in problems["reason"][2] and exclude_problems(images, problems)["label"].nunique() == 3


def test_classes_that_differ_in_case_or_spaces_and_one_called_like_a_part(photos):
    for name, count in (("A", 11), ("b ", 12), ("test", 10), ("contest", 10), ("a1", 10)):
        for number in range(count):
            image = photo(500 + 20 * len(name) + number).rotate(90 * (count % 2))
            write(image, photos.folder / name / f"{number}.png")
    images, problems = photos()
    counts = images["label"].value_counts()
    found = problems[problems["problem"].isin(["two spellings", "named like a part"])]
    assert only(found, "problem", "label", "severity", "action", "path") == [
        ("two spellings", "A", "warning", "kept", ""),
        ("two spellings", "b", "warning", "kept", ""),
        ("named like a part", "test", "warning", "kept", ""),
    ]
    assert f"'A' with {counts['A']} images and 'a' with {counts['a']} images" in found["reason"].iloc[0]


def test_a_class_with_too_few_images_stops_the_run(photos):
    lonely = photos.folder / "lonely"
    for number in range(2):
        write(photo(400 + number), lonely / f"{number}.png")
    photo(401).resize((80, 60)).save(lonely / "2.png")  # alike: they come into one part
    images, problems = photos(on_problem="keep")  # which takes them for three
    assert len(exclude_problems(images, problems)) == 23
    for policy in ("exclude", "stop"):
        with pytest.raises(ValueError, match="lonely.*3 usable images in 2 groups"):
            exclude_problems(*photos(on_problem=policy))
    (lonely / "2.png").unlink()
    for policy in ("exclude", "keep", "stop"):
        with pytest.raises(ValueError, match="lonely.*2 usable images"):
            exclude_problems(*photos(on_problem=policy))


def test_a_class_of_which_nothing_is_left_is_named(make_images, photos, tmp_path):
    given = tmp_path / "given"
    make_images(given / "train", {"a": 12, "b": 12})
    make_images(given / "test", {"a": 2, "b": 1}, seed=1)
    (given / "test" / "b" / "000.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="(?s)'b'.*given part test.*left out: 1, for example .*000.png"):
        exclude_problems(*check_images(find_images(given)))
    write(photo(700), photos.folder / os.fsdecode(b"k\xe4fer") / "1.png")
    with pytest.raises(ValueError, match=r"xe4fer': too few images: no usable image.*\(bad name"):
        exclude_problems(*photos())
    for label in "ab":
        shutil.rmtree(photos.folder / label)
        write(photo(1), photos.folder / label / "x.png")
        (photos.folder / label / "x.png").write_text("no image")
    images, problems = photos()
    assert images.empty and (problems["problem"] == "not an image").sum() == 2
    with pytest.raises(ValueError, match="(?s)class 'a'.*no usable image; left out: 1, for example .*x.png"):
        exclude_problems(images, problems)


# ---- as a viewer shows it


def test_transparency_shows_a_white_page():
    red = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    red.paste((255, 0, 0, 255), (0, 0, 20, 40))
    for image, kind in (
        (red, "png"),
        (red.quantize(8), "png"),
        (red.convert("LA"), "png"),
        (red, "webp"),
        (red, "gif"),
    ):
        seen = np.asarray(read_image(io.BytesIO(encode(image, kind, lossless=True)))).astype(int)
        assert (seen[:, 20:] >= 250).all() and seen[:, :20, 1].max() < 100, kind
    cmyk = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "jpg", quality=95)
    red, green, blue = np.asarray(read_image(io.BytesIO(cmyk))).reshape(-1, 3).mean(axis=0)
    assert red > 200 and green < 60 and blue < 60, "not inverted"


def test_numbers_that_are_no_colours_are_refused():
    for values, message in (
        (np.ones((4, 4), "float32"), "floating-point"),
        (np.array([[-5, 70000]], "int32"), "from -5 to 70000"),
    ):
        with pytest.raises(ValueError, match=message):
            read_image(io.BytesIO(encode(Image.fromarray(values), "tif")))


def test_formats_that_keras_skips_are_read(tmp_path):
    suffixes = ["png", "webp", "tif", "bmp", "gif", "JPG", "Jpeg", "avif", "jp2", "ppm"]
    for number, suffix in enumerate(2 * suffixes):
        write(photo(number), tmp_path / "ab"[number % 2] / f"{number}.{suffix}")
    images, problems = check_images(find_images(tmp_path))
    assert len(images) == 20 and not set(problems["problem"]) - {"few images", "shortcut"}


def test_exif_rotation_is_applied_and_size_is_as_seen(tmp_path):
    picture = np.zeros((20, 40, 3), "uint8")
    picture[:, :10] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    for label in "ab":
        for name in ("x.jpg", "y.png", "z.tif"):
            write(Image.fromarray(picture), tmp_path / label / name, exif=exif, quality=95)
    images, problems = check_images(find_images(tmp_path))
    assert (images["width"] == 20).all() and (images["height"] == 40).all()
    assert (problems["problem"] == "EXIF rotation").sum() == 6
    for path in images["path"]:
        upright = read_pixels(path, (40, 20))
        assert upright[:8].mean() > 240 and upright[12:].mean() < 15  # white on top


def test_a_rotated_copy_is_the_same_image(photos):
    exif = Image.Exif()
    exif[0x0112] = 6
    origin = read_image(photos.folder / "a" / "00.jpg")
    origin.rotate(90, expand=True).save(photos.folder / "a" / "turned.jpg", exif=exif, quality=90)
    _, problems = photos()
    assert only(problems, "problem", "other") == [("near-duplicate", "00.jpg"), ("EXIF rotation", "")]


# ---- fuzz


def seeds_of_fuzz() -> dict[str, bytes]:
    small, contents = photo(1, (48, 40)), {}
    palette, alpha = small.quantize(16), small.convert("RGBA")
    exif = Image.Exif()
    exif[0x0112] = 6
    more, frames = {"save_all": True}, [small.rotate(9), small.rotate(20)]
    for name, image, options in (
        ("a.jpg", small, {"exif": exif}),
        ("b.jpg", small, {"progressive": True}),
        ("c.jpg", small.convert("CMYK"), {}),
        ("a.png", small, {"exif": exif}),
        ("b.png", palette, {}),
        ("c.png", alpha, {}),
        ("a.gif", palette, more | {"append_images": [palette.rotate(9), palette.rotate(20)]}),
        ("a.webp", small, {"exif": exif}),
        ("b.webp", alpha, {"lossless": True}),
        ("c.webp", small, more | {"append_images": frames}),
        ("a.tif", small, {}),
        ("b.tif", small, more | {"compression": "tiff_lzw", "append_images": frames}),
        ("c.tif", small, {"compression": "jpeg"}),
        ("d.tif", Image.fromarray(np.arange(1000, dtype="uint16").reshape(25, 40)), {}),
        ("a.bmp", small, {}),
        ("a.avif", small, {}),
    ):
        contents[name] = encode(image, name[2:], **options)
    return contents


def test_fuzz_thousands_of_damaged_files(tmp_path, capfd):
    """No file is lost, and what passes the checks can be read in training, and nothing else."""
    rng, count = random.Random(0), 1600
    seeds = list(seeds_of_fuzz().items())
    for number in range(12):
        write(photo(number), tmp_path / "ab"[number % 2] / f"whole{number}.png")
    for number in range(count):
        name, content = seeds[number % len(seeds)]
        (tmp_path / "ab"[number % 2] / f"{number:04d}{name}").write_bytes(damage(content, rng))
    found = find_images(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images, problems = check_images(found)
        kept = exclude_problems(images, problems)
    passed = set(images["path"])
    assert capfd.readouterr() == ("", "")
    assert passed | set(problems["path"]) >= set(found["path"]), "a file is lost"
    assert (images["width"] * images["height"]).max() <= 100_000_000
    assert len(passed) < len(found) - count / 4 and len(kept) >= 12
    with quiet:
        for path in found["path"]:  # JPEG files are checked in a faster way than they are read later
            try:
                read_pixels(path, (8, 8))
                assert path in passed, path
            except Exception:  # Pillow raises many kinds
                assert path not in passed, path


def test_memory_stays_flat_while_files_are_checked(tmp_path):
    """A large image costs its pixels once, not once for each thread, and not for longer than it is looked at."""
    for number in range(600):
        write(photo(number % 300, (64, 64)), tmp_path / "ab"[number % 2] / f"{number:03d}.png")
    found = find_images(tmp_path)

    def peak(rows: pd.DataFrame) -> int:
        tracemalloc.start()
        check_images(rows)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(found[:50])  # what is loaded once
    assert peak(found) - peak(found[:300]) < 300 * 4000, "bytes an image"
