"""Every file of a folder, a table or an archive gets a row; nothing is skipped, nothing is written elsewhere."""

import csv
import gzip
import hashlib
import io
import os
import random
import shutil
import signal
import sys
import tarfile
import unicodedata
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from fuzz import damage

import helpers
from helpers.data import archives, find_images, open_data, sources

TWO_CLASSES = {"cats/1.png": b"1", "cats/2.png": b"2", "dogs/1.png": b"3"}


def write(folder: Path, *paths: str, content: bytes = b"?") -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def rows(found: pd.DataFrame, folder: Path) -> dict[str, tuple[str, str]]:
    """Returns {path in the folder: (label, problem)}."""
    names = [path.removeprefix(f"{folder}/") for path in found["path"]]
    return dict(zip(names, zip(found["label"], found["problem"], strict=True), strict=True))


@pytest.fixture
def pets(tmp_path):
    """A folder of two classes."""
    return write(tmp_path / "pets", *TWO_CLASSES)


# ---- folders: the layouts


def test_columns_and_paths_that_can_be_opened_again(root, pets):
    found = find_images(pets)
    assert list(found.columns) == ["path", "label", "split", "group", "problem", "reason"]
    assert found["path"].tolist() == [f"pets/{name}" for name in TWO_CLASSES]
    assert found["label"].tolist() == ["cats", "cats", "dogs"]
    assert (found[["split", "group", "problem", "reason"]] == "").all(axis=None)
    found = find_images(open_data(write(root / "~photos", *TWO_CLASSES).name))  # not somebody's home
    assert all(helpers.resolve_path(path).is_file() for path in found["path"])


def test_given_parts(tmp_path):
    for given, parts in (
        ("train val", {"train": 4, "test": 2}),  # whatever the second one is called
        ("Train valid TEST", {"train": 4, "validation": 2, "test": 2}),
    ):
        for part in given.split():
            numbers = "12" if part.lower() == "train" else "1"
            write(tmp_path / given, *(f"{part}/{label}/{n}.png" for label in "ab" for n in numbers))
        assert find_images(tmp_path / given)["split"].value_counts().to_dict() == parts


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("", "at least two classes"),
        ("only/1.png", "'only' with 1 files"),
        ("train/a/1 train/b/1 test/a/1 test/b/.hidden", "'test' has no image of 'b'"),
        ("Training/a/1 Training/b/2 test/3.png", "'test' has no image of 'a', 'b'.* name only '.*/Training'"),
        ("train/dog/1 train/Cat/1 test/dog/1 test/cat/1", "no image of.*Perhaps 'Cat' is meant by 'cat'"),
        ("train/images/1 train/labels/1 val/images/1 val/labels/1", "object detection"),
    ],
)
def test_what_lacks_a_class_is_named(tmp_path, paths, message):
    with pytest.raises(ValueError, match=message):
        find_images(write(tmp_path, *paths.split()))


@pytest.mark.parametrize(
    "paths",
    [
        "traindata/ testdata/",
        "TrainingData/ TestData/",
        "images/ labels/1.txt",
        "images/ Annotations/1.xml",
        "train/a train/b test/a test/b annotations/1.xml",
        "training_set/a training_set/b test_set/a test_set/b",
        "val/a val/b test/a test/b",
        "seg_train/a seg_train/b seg_test/a seg_test/b seg_pred/",
        "fold1/a fold1/b fold2/a fold_3/b",
        "fold1/ Fold-2/ notes/",  # files alone
        "train/ test1/",
        "train/ val/ bus/",
        "my_train/a my_train/b more/c more/d",
        "labelled/a labelled/b unlabelled/",
        "known/a known/b others/",
        "photo/a photo/b sketch/A sketch/b art/a art/b",
        "a/train a/test b/train b/test",
        "cats/camera1 cats/camera2 dogs/camera1 dogs/camera2",
        "images/train images/val labels/train labels/val",
        "train/my_train/a train/my_train/b train/my_test/a train/my_test/b",
    ],
)
def test_what_could_be_parts_is_refused_and_no_classes(tmp_path, paths):
    for number, path in enumerate(paths.split()):
        write(tmp_path, path if "." in path else f"{path.removesuffix('/')}/{number}.png")
    with pytest.raises(ValueError) as refused:
        find_images(tmp_path)
    assert str(tmp_path) in str(refused.value) and repr(paths.split("/")[0]) in str(refused.value)


@pytest.mark.parametrize(
    "paths",
    [
        "train/ bus/ car/",  # vehicles
        "steam_train/ diesel_train/",
        "valid/ invalid/",
        "valiant/ trained_dogs/ contest/ attest/",
        "test_tubes/ flasks/",
        "cats/ cats/more dogs/",
        "cats/images dogs/images",
        "cats/images dogs/",
        "cats/tabby cats/siamese dogs/husky dogs/poodle",
        "cats/ cats/2019 cats/2020 dogs/",
    ],
)
def test_classes_whose_names_or_sub_folders_prove_nothing(tmp_path, paths):
    for number, path in enumerate(paths.split()):
        write(tmp_path, f"{path.removesuffix('/')}/{number}.png")
    found = find_images(tmp_path)
    assert set(found["label"]) == {path.split("/")[0] for path in paths.split()} and (found["problem"] == "").all()


@pytest.mark.parametrize("archived", [False, True])
def test_a_lone_train_and_what_a_refusal_advises(root, archived):
    def found(*names: str) -> pd.DataFrame:
        shutil.rmtree(root / "x", ignore_errors=True)
        data = make_zip(root / "x.zip", dict.fromkeys(names, b"?")) if archived else write(root / "x", *names)
        return find_images(open_data(str(data)))

    same = found(*(f"train/{label}/{year}/1.png" for label in ("cats", "dogs") for year in (2019, 2020)))
    assert same["label"].value_counts().to_dict() == {"cats": 2, "dogs": 2}
    twice = found(*(f"{part}/{part}/{label}/{n}.png" for part in ("train", "test") for label in "ab" for n in "12"))
    assert set(twice["label"]) == {"a", "b"} and set(twice["split"]) == {"train", "test"}
    bottles = ("labelled bottle/1.png", "unlabelled bottle/1.png", "can/1.png")
    with pytest.raises(ValueError, match="folder called train"):
        found(*bottles)
    advised = found(*(f"train/{name}" for name in bottles))
    assert set(advised["split"]) == {"train"} and advised["label"].nunique() == 3


def test_embedded_digits_are_whole_and_given_in_two_parts(root):
    found = find_images(open_data("digits"))
    counts = found.groupby(["split", "label"]).size().unstack(0)
    assert counts.shape == (10, 2) and (counts["train"] == 20).all() and (counts["test"] == 80).all()
    assert [path.name for path in (root / "data").iterdir()] == ["digits"]


def test_both_unicode_forms_of_a_name_are_one_class_and_spellings_are_not(tmp_path):
    composed, other = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))
    write(tmp_path, f"train/{composed}/1.png", f"test/{other}/1.png")
    spelled = ("Cat", "cat", "cat ", "big  cat", "big_cat", "cat.", "❤", "❤\ufe0f")
    write(tmp_path, *(f"{part}/{name}/1.png" for part in ("train", "test") for name in spelled))
    found = find_images(tmp_path)
    assert set(found["label"]) == {composed, *spelled} and (found["problem"] == "").all()
    assert {path.split("/")[-2] for path in found["path"]} == {composed, other, *spelled}


# ---- folders: what is no file to open


def test_stray_files_and_empty_classes_have_a_row_each(tmp_path):
    write(tmp_path, *(f"{part}/{label}/1.png" for part in ("train", "test") for label in "ab"))
    write(tmp_path, "README.md", "train/notes.txt", "train/a/.DS_Store", "train/a/Thumbs.db", "test/b/Desktop.ini")
    write(tmp_path, "train/a/.ipynb_checkpoints/1.png", "train/a/sub/3.png", "__MACOSX/a/._1.png", ".git/config")
    for part in ("train", "test"):
        (tmp_path / part / "c" / "sub").mkdir(parents=True)
    found = find_images(tmp_path)
    labels = {name: is_ for name, is_ in rows(found, tmp_path).items() if is_[1]}
    assert labels == {
        **dict.fromkeys(("README.md", "train/notes.txt", "__MACOSX", ".git"), ("", "stray file")),
        **{f"train/a/{name}": ("a", "stray file") for name in (".DS_Store", "Thumbs.db", ".ipynb_checkpoints")},
        "test/b/Desktop.ini": ("b", "stray file"),
        **{f"{part}/c": ("c", "empty class") for part in ("train", "test")},
    }
    assert found.loc[found["path"] == f"{tmp_path}/train/notes.txt", "split"].tolist() == ["train"]
    assert (found["problem"] == "").sum() == 5
    assert ((found["problem"] == "") == (found["reason"] == "")).all()


def test_links_are_followed_unless_they_lead_nowhere_or_in_circles(pets, tmp_path):
    write(tmp_path / "elsewhere", "x.png", "deep/y.png")
    write(tmp_path / "far", "z.png")
    for link, target in {
        "cats/file.png": tmp_path / "elsewhere" / "x.png",
        "cats/folder": tmp_path / "elsewhere",
        "birds": tmp_path / "elsewhere",
        "cats/gone.png": "nowhere.png",
        "cats/itself": "itself",
        "dogs/circle": pets / "dogs",
        "dogs/above": tmp_path,  # a folder above the one that is listed
        "../elsewhere/deep/up": tmp_path / "elsewhere",
        "gone": "nowhere",
        "dogs/far": tmp_path / "far",  # and back again
        "../far/back": pets / "dogs",
    }.items():
        (pets / link).symlink_to(target)
    found = rows(find_images(pets), pets)
    broken = {"cats/gone.png", "cats/itself", "dogs/circle", "dogs/above", "gone", "birds/deep/up", "dogs/far/back"}
    assert {name for name, is_ in found.items() if is_[1] == "broken link"} == {*broken, "cats/folder/deep/up"}
    whole = {"cats/file.png", "cats/folder/x.png", "cats/folder/deep/y.png", "birds/x.png", "birds/deep/y.png"}
    assert {name for name, is_ in found.items() if not is_[1]} == {*TWO_CLASSES, *whole, "dogs/far/z.png"}
    for part in ("train", "test"):
        (tmp_path / "both" / part).parent.mkdir(exist_ok=True)
        (tmp_path / "both" / part).symlink_to(write(tmp_path / "more", *TWO_CLASSES))
    assert find_images(tmp_path / "both")["split"].value_counts().to_dict() == {"train": 3, "test": 3}
    (tmp_path / "more" / "train").symlink_to(tmp_path / "more")
    assert rows(find_images(tmp_path / "more"), tmp_path / "more")["train"] == ("", "broken link")


def test_a_folder_without_permission_is_a_row_and_the_order_is_no_file_system_s(pets, monkeypatch):
    write(pets, "birds/2.png", "cats/x/1.png", "cats/more/3.png", "cats/.DS_Store", "README.md", "birds/a/1.png")
    expected, scandir, closed = find_images(pets), os.scandir, set()

    def list_folder(folder):  # root may read everything
        if Path(folder) in closed:
            raise PermissionError(13, "Permission denied", str(folder))
        entries = list(scandir(folder))
        generator.shuffle(entries)
        return iter(entries)

    monkeypatch.setattr(os, "scandir", list_folder)
    for seed in range(10):
        generator = random.Random(seed)
        pd.testing.assert_frame_equal(find_images(pets), expected)
    assert expected["path"].tolist() == sorted(expected["path"])
    closed |= {pets / "birds", pets / "cats" / "x"}
    found = find_images(pets)
    assert set(found.loc[found["problem"] == "no permission", "path"]) == set(map(str, closed))
    assert (found["problem"] == "").sum() == 4 and "empty class" not in set(found["problem"])


def test_names_that_are_no_utf8_are_written_with_escapes(pets):
    write(pets, *map(os.fsdecode, (b"dogs/caf\xe9.png", b"v\xf6gel/1.png", b"v\xf6gel/.hidden", b"\xff.txt")))
    os.symlink(b"\xfe", os.fsencode(pets) + b"/cats/link")
    os.mkfifo(pets / "cats" / "pipe.png")  # opened, it would hang
    found = find_images(pets)
    bad = {name: is_ for name, is_ in rows(found, pets).items() if name not in TWO_CLASSES}
    assert bad == {
        "dogs/caf\\xe9.png": ("dogs", "bad name"),
        "v\\xf6gel/1.png": ("v\\xf6gel", "bad name"),
        "v\\xf6gel/.hidden": ("v\\xf6gel", "stray file"),
        "\\xff.txt": ("", "stray file"),
        "cats/link": ("cats", "broken link"),
        "cats/pipe.png": ("cats", "not a file"),
    }
    found.to_csv().encode()


def test_names_may_hold_what_file_systems_allow(pets):
    names = [*' a b |it\'s "quoted", 1|new\nline|carriage\rreturn|🐈‍⬛|\\back|~|?|*'.split("|"), "n" * 255]
    found = find_images(write(pets, *(f"cats/{name}" for name in names)))
    assert set(found["path"]) == {f"{pets}/{name}" for name in (*TWO_CLASSES, *(f"cats/{name}" for name in names))}
    assert (found["problem"] == "").all()


# ---- what `data` may name


@pytest.mark.parametrize("data", ["", "~nobody-of-this-name/x", "x\0y", "n" * 300, "no/such"])
def test_what_is_missing_is_named_with_the_nearest_folder(root, data):
    with pytest.raises(FileNotFoundError, match=f"`data`.*nearest folder that exists is {root}"):
        open_data(data)


@pytest.mark.parametrize("name", ["pets.zip", "pets.xlsx"])
@pytest.mark.parametrize("content", [b"PK", b"\x1f\x8b\x08", gzip.compress(b"no tar", mtime=0)])
def test_a_file_that_is_neither_table_nor_archive(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.csv")  # is not opened
    for path in (tmp_path / name, tmp_path / "pipe.csv"):
        with pytest.raises(ValueError, match=f"{path.name}.*none of these"):
            open_data(str(path))


def test_a_folder_s_only_table_is_the_source(pets):
    assert open_data(str(pets)) == pets
    write(pets, "sizes.csv", content=b"name,size\n")
    write(pets, ".labels.csv", "broken.parquet", content=b"path,label\n")
    assert open_data(str(pets)) == pets
    assert rows(find_images(pets), pets)["sizes.csv"] == ("", "stray file")
    write(pets, "labels.CSV", content="Label ; PATH;größe\n".encode("latin-1"))
    assert open_data(str(pets)) == pets / "labels.CSV"
    write(pets, "test.tsv", content=b"\xef\xbb\xbfpath\tlabel\n")
    with pytest.raises(ValueError, match="Found labels.CSV, test.tsv"):
        open_data(str(pets))
    assert open_data(str(pets / "test.tsv")) == pets / "test.tsv"


# ---- tables


def make_table(folder: Path, *lines: str) -> Path:
    (folder / "labels.csv").write_bytes("\n".join(lines).encode())
    return folder / "labels.csv"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(("name", "encoding"), [("a.CSV", "utf-8"), ("a.csv", "utf-8-sig"), ("a.tsv", "utf-8-sig")])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_kinds_of_text_tables(pets, separator, name, encoding, end):
    lines = [" Label,more,PATH", '"cät, a ""big""; one",x,cats/1.png', " dog\t ,,dogs/1.png", "", "007,,cats/2.png"]
    text = io.StringIO(newline="")
    separator = "\t" if name == "a.tsv" else separator
    csv.writer(text, delimiter=separator, lineterminator=end).writerows(csv.reader(lines))
    (pets / name).write_bytes(text.getvalue().encode(encoding))
    found = find_images(pets / name)
    assert found["label"].tolist() == ['cät, a "big"; one', "007", "dog"]
    assert (found[["split", "group", "problem", "reason"]] == "").all(axis=None)


def test_labels_and_paths_stay_the_texts_that_they_are(pets):
    names = ["new\nline.png", "carriage\rreturn.png", " space ", "~", "NA", "1e3"]
    labels = ["007", "NA", "nan", "null", "true", "1e3"]
    with open(write(pets, *names) / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *zip(names, labels, strict=True)])
    expected = {name: (label, "") for name, label in zip(names, labels, strict=True)}
    assert rows(find_images(pets / "labels.csv"), pets) == expected


def test_split_and_group_are_taken(pets):
    names = sorted([*TWO_CLASSES, "dogs/2.png"])
    for given, splits in (
        (" TRAIN|TESTING||dev", "train|test||validation"),
        ("train|val|train|val", "train|test|train|test"),  # as in folders
        ("train|val|train|", "train|validation|train|"),
    ):
        lines = [f"{name},{name[:4]},{part},{name} " for name, part in zip(names, given.split("|"), strict=True)]
        found = find_images(make_table(write(pets, *names), "path,label,Split,group", *lines))
        assert found["split"].tolist() == splits.split("|") and found["group"].tolist() == names


def test_rows_that_cannot_be_used_are_named(pets):
    write(pets, "cats/3.png", "cats/4.png", "cats/5.png", "cats/6.png", "dogs/2.png")
    os.mkfifo(pets / "pipe")
    (pets / "gone").symlink_to("nowhere")
    table = make_table(
        pets,
        *("path,label,split,group", "cats/1.png,cat,train,a", "dogs/1.png,dog,,", "cats/5.png,cat,,"),
        *("dogs/2.png,dog,,", "cats/9.png,cat,,", "cats\\7.png,cat,,", ",cat,,", "  ,,train,", "cats/2.png, ,,"),
        *("pipe,cat,,", "dogs,dog,,", "cats/3.png,cat,train,", "./cats/3.png,dog,train,", "cats//3.png,bird,test,"),
        *("cats/4.png,cat,train,x", "cats/4.png,cat,,x", "cats/1.png,cat,train,a", "cats/../cats/1.png,cat,train,a"),
        *("gone,cat,,", "cats/5.png,cat,,patient", "n" * 300 + ",cat,,", "cats/1.png/x,cat,,"),
        *("cats/6.png,cat,,p1", "cats/6.png,cat,,p2"),
    )
    found = find_images(table)
    order = list(zip(found["path"], found["label"], strict=True))
    assert order == sorted(order) and len(found) == 24 - 2 - 1 - 1  # contradictions share a row
    told = {
        (path.removeprefix(f"{pets}/")[:11], problem) for path, problem in found[["path", "problem"]].values.tolist()
    }
    assert told == {
        *((name, "") for name in ("cats/1.png", "cats/5.png", "dogs/1.png", "dogs/2.png")),
        *((name, "missing file") for name in ("cats/1.png/", "cats/9.png", "cats\\7.png", "n" * 11)),
        *((name, "repeated row") for name in ("cats/1.png", "cats/5.png")),
        *((name, "incomplete row") for name in ("labels.csv", "cats/2.png")),
        *((name, "contradiction") for name in ("cats/3.png", "cats/4.png", "cats/6.png")),
        *(("pipe", "not a file"), ("dogs", "not a file"), ("gone", "broken link")),
    }
    labels, parts, groups = found[found["problem"] == "contradiction"].itertuples()
    assert (labels.label, parts.label, parts.split, parts.group) == ("", "cat", "", "x")
    assert labels.reason.endswith("several labels: 'bird' in row 15, 'cat' in row 13, 'dog' in row 14")
    assert groups.reason.endswith("several groups: 'p1' in row 24, 'p2' in row 25")
    assert set(found.loc[found["path"] == f"{pets}/cats/5.png", "group"]) == {"patient"}
    repeated = found[found["path"] == f"{pets}/cats/1.png"]
    assert repeated["reason"].tolist()[1:] == ["row 18 says the same as row 2", "row 19 says the same as row 2"]


def test_paths_may_lie_elsewhere_but_not_in_a_home(pets, tmp_path):
    write(tmp_path, "a.png", "b.png", "far/away/1.png", "far/2.png")
    (pets / "link").symlink_to(tmp_path / "far" / "away")  # two dots after it mean what they mean to the system
    lines = (f"{tmp_path}/a.png,a", "../b.png,b", "link/../2.png,a", "~/a.png,a", "cats\\1.png,a")
    found = find_images(make_table(pets, "path,label", *lines))
    expected = [f"{tmp_path}/{name}" for name in ("a.png", "b.png", "far/2.png")]
    assert found["path"].tolist() == [*expected, f"{pets}/cats/1.png", f"{pets}/~/a.png"]
    assert found["problem"].tolist() == ["", "", "", "", "missing file"]


def test_both_unicode_forms_in_a_table_are_one_file_one_class_and_one_group(pets):
    composed, other = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))
    write(pets, f"{composed}/1.png", f"{other}/2.png")
    pairs = [(f"{folder}/{n}.png", name) for folder, name in ((composed, other), (other, composed)) for n in (1, 2)]
    found = find_images(make_table(pets, "path,label,group", "dogs/1.png,b,", *(f"{a},{b},{b}" for a, b in pairs)))
    assert set(found["label"]) == {"b", composed} == set(found["group"]) ^ {"", "b"}
    assert found["problem"].value_counts().to_dict() == {"": 3, "repeated row": 2}


TSET = b"path,label,split\ncats/1.png,a,\ncats/2.png,b,%s\nx,y,tset\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n\n", "No columns"),
        (b"path,label\n", "only the names"),
        (b"cats/1.png,cat\ndogs/1.png,dog\n", "Received 'cats/1.png', 'cat'"),
        (b"path,label,Label\nx,y,z\n", "once each.*Received 'path', 'label', 'Label'"),
        (b"path,label\nx,y\nx,y,z\n", "Expected 2 fields in line 3, saw 3"),
        (b'path,label\nx,"y\nz,y\n', "EOF inside string"),
        ("path,label\nx,é\n".encode("latin-1"), "0xe9 in position 13"),
        ("path,label\nx,y\n".encode("utf-16-le"), "NUL bytes"),
        (b"path,label\nx,a\ny,a\n", "two classes in .*2 cannot be used.*x: missing file"),
        (b"path,label\ncats/1.png,a\nx\n", "two classes.*only 'a' with 1 files"),
        (b"path,label,split\ncats/1.png,a,test\ndogs/1.png,b,test\n", "Received only test"),
        (b"path,label,split\ncats/1.png,a,train\ncats/2.png,b,test\ndogs/1.png,b,test\n", "no image of 'a'"),
        *((TSET % part.encode(), f"Received '{part}' in row 3") for part in ("Tset ", "test1", "fold_2", "holdout")),
    ],
)
def test_what_is_no_table_is_refused_by_name(pets, content, message):
    write(pets, "my labels.csv", content=content)
    with pytest.raises(ValueError, match=f"(?s){message}") as refused:
        find_images(pets / "my labels.csv")
    assert "my labels.csv" in str(refused.value)


def test_parquet_holds_numbers_and_bytes(pets, monkeypatch):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "Path": [b"cats/1.png", b"cats/2.png", b"dogs/1.png", b"7", b"8"],
        "label": arrow.array([7, 7, 8, None, 8]),
        "split": arrow.array(["train", "test", None, "test", "val"]).dictionary_encode(),
        "group": [1.5, float("nan"), 0.0, 1.0, 2.0],
        "pixels": [b"\xff"] * 5,
    }
    table = write(pets, "7", "8") / "labels.Parquet"
    parquet.write_table(arrow.table(columns), table)
    assert open_data(str(pets)) == table
    found = find_images(table)
    labels = {"7": ("", "incomplete row"), "8": ("8", ""), "cats/1.png": ("7", ""), "cats/2.png": ("7", "")}
    assert rows(found, pets) == labels | {"dogs/1.png": ("8", "")}
    assert found["split"].tolist() == ["test", "validation", "train", "test", ""]
    assert found["group"].tolist() == ["1.0", "2.0", "1.5", "", "0.0"]
    for wrong in ({"path": [b"\xff"], "label": ["a"]}, {"path": ["x"], "label": [["a"]]}, {"image": ["x"]}):
        parquet.write_table(arrow.table(wrong), table)
        with pytest.raises(ValueError, match="labels.Parquet"):
            find_images(table)
    write(pets, "labels.Parquet", content=b"PAR1 and no more")
    with pytest.raises(ValueError, match="labels.Parquet"):
        find_images(table)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert open_data(str(pets)) == pets  # it may be anything: the folder stands for itself
    with pytest.raises(ImportError, match="labels.Parquet takes pyarrow.*pip install pyarrow.*parquet.*CSV"):
        find_images(table)


# ---- archives


def make_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo()
            info.filename, info.compress_type = name, method  # a backslash stays one
            archive.writestr(info, content)
    return path


def make_tar(path: Path, files: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> Path:
    """Writes an archive of files, and of TarInfo's as they are."""
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            if content is not info:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(b"" if content is info else content))
    return path


def make_link(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def refusal(archive: Path) -> str:
    """Returns the message with which the archive is refused, having left nothing."""
    with pytest.raises(ValueError, match="Nothing of it was kept") as refused:
        open_data(str(archive))
    root = archive.parent
    assert str(archive) in str(refused.value)
    assert set(root.rglob("*")) == {root / "runs", root / "runs" / ".unpacked", archive}
    return str(refused.value)


@pytest.mark.parametrize("name", ["zip", "tar", "gz", "bz2", "xz"])
def test_archives_are_unpacked_once_and_found_again(root, name):  # told by content
    archive = root / f"pets.{name}"
    make_zip(archive, TWO_CLASSES) if name == "zip" else make_tar(archive, TWO_CLASSES, f"w:{name.strip('tar')}")
    folder = open_data(str(archive))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()[:16]
    assert folder == root / "runs" / ".unpacked" / f"pets-{digest}"
    assert {path: (root / path).read_bytes() for path in find_images(folder)["path"]} == {
        f"runs/.unpacked/{folder.name}/{name}": content for name, content in TWO_CLASSES.items()
    }
    (folder / "cats" / "1.png").write_bytes(b"changed")
    assert open_data(archive.name) == folder and (folder / "cats" / "1.png").read_bytes() == b"changed"
    other = open_data(str(make_zip(archive, TWO_CLASSES | {"cats/1.png": b"other"})))
    assert other != folder and (other / "cats" / "1.png").read_bytes() == b"other"


def test_a_table_in_an_archive_may_not_name_files_outside(root):
    write(root, "secret.png", "another.png")
    lines = b"path,label\nimages/1.png,a\nimages/../images/2.png,b\n%s/secret.png,a\n../../../../another.png,b\n"
    files = {"x/labels.csv": lines % os.fsencode(root), "x/images/1.png": b"1", "x/images/2.png": b"2"}
    found = find_images(open_data(str(make_zip(root / "x.zip", files))))
    outside = found[found["problem"] == "outside"]
    assert outside["path"].tolist() == ["another.png", "secret.png"] and (found["problem"] == "").sum() == 2


@pytest.mark.parametrize("name", ["n" * 200 + ".zip", os.fsdecode(b"\xff.zip"), "🐈" * 60 + ".zip"])
def test_several_may_unpack_at_once_whatever_its_name(root, name):
    archive = make_zip(root / name, {f"{label}/{index}": bytes(1000) for label in "ab" for index in range(50)})
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(open_data, [str(archive)] * 4))
    assert len(folders) == 1 and len(find_images(folders.pop())) == 100
    assert len(list((root / "runs" / ".unpacked").iterdir())) == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("pets/cats/1 pets/dogs/1 __MACOSX/pets/cats/._1 .DS_Store LICENSE", "pets"),
        ("a/pets/cats/1 a/pets/dogs/1 a/README a/.hidden", "a/pets"),
        ("pets/README pets/cats/1 pets/dogs/1", "pets"),
        ("pets/labels.csv pets/images/1 pets/images/2", "pets/labels.csv"),
        ("labels.csv images/1 images/2", "labels.csv"),
        ("pets/cats/1 pets/cats/2", "pets"),
        ("1 2", ""),
    ],
)
def test_the_folder_that_matters_may_lie_in_others(root, files, expected):
    content = {name: b"path,label\n1,a\n" if "csv" in name else b"?" for name in files.split()}
    found = open_data(str(make_zip(root / "x.zip", content)))
    (folder,) = (root / "runs" / ".unpacked").iterdir()
    assert found.relative_to(folder) == Path(expected)


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_what_leads_out_is_refused_as_a_whole(root, make):
    for name in ("../x", "cats/../../x", "/evil-x", "a\\..\\x", "C:/x", "C:x", "..", "cats/..", "//x", "a\\b"):
        message = refusal(make(root / "evil", TWO_CLASSES | {name: b"evil"}))
        assert repr(name) in message and "lead out" in message and not os.path.exists("/evil-x")
    for name in ("..\\x", "cats\\..\\..\\x", "C:\\x", "\\x", "\\\\server\\x"):
        assert "lead out" in refusal(make_zip(root / "evil", {"cats\\1.png": b"1", name: b"evil"}))


def test_links_devices_and_entries_of_one_path_in_a_tar(root):
    evil = [
        *((kind, target) for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) for target in ("/etc/passwd", "../../x")),
        *((kind, "") for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE)),
    ]
    for kind, target in evil:
        assert "'cats/x'" in refusal(make_tar(root / "x", TWO_CLASSES | {"cats/x": make_link(kind, target)}))
    assert "'out'" in refusal(make_tar(root / "x", {"out": make_link(tarfile.SYMTYPE, ".."), "out/x": b"evil"}))
    assert "the same path" in refusal(make_tar(root / "x", TWO_CLASSES | {"./cats/1.png": b"other"}))
    assert "'a/b'" in refusal(make_tar(root / "x", {"a": b"1", "a/b": b"2"}))
    links = {
        "cats/soft": make_link(tarfile.SYMTYPE, "../dogs/1.png"),
        "cats/h": make_link(tarfile.LNKTYPE, "cats/1.png"),
    }
    folder = open_data(str(make_tar(root / "x", TWO_CLASSES | links)))
    assert [(folder / name).read_bytes() for name in links] == [b"3", b"1"]
    assert (find_images(folder)["problem"] == "").sum() == 5


def test_what_is_too_large_damaged_encrypted_or_empty_is_refused(root, monkeypatch):
    archive = make_zip(root / "x", TWO_CLASSES | {"cats/3.png": b"precious"}, zipfile.ZIP_STORED)
    whole = archive.read_bytes()
    archive.write_bytes(whole.replace(b"precious", b"worthles"))
    assert "'cats/3.png': Bad CRC" in refusal(archive)
    content = bytearray(whole)
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flag in each header
        content[content.find(signature) + offset] |= 1
    archive.write_bytes(content)
    assert "is encrypted" in refusal(archive)
    assert "it holds no file" in refusal(make_zip(root / "x", {"cats/": b""}))
    assert "it holds no file" in refusal(make_tar(root / "x", {}))
    monkeypatch.setattr(archives, "LEAST_LIMIT", 10_000)
    bomb = TWO_CLASSES | {f"cats/{n}": bytes(60_000) for n in range(5)}
    for archive in (make_zip(root / "x", bomb), make_tar(root / "x", bomb, "w:gz")):
        assert "suspiciously large" in refusal(archive)
    monkeypatch.setattr(archives, "SPARED", 10**18)
    assert "too large for this disk" in refusal(make_zip(root / "x", TWO_CLASSES))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_tar_that_is_cut_off_or_damaged_is_refused_wherever_that_is(root, pack):
    plain = make_tar(root / "x", {name: b"x" * 700 for name in TWO_CLASSES}).read_bytes()
    for end in (1000, 1024, 1536, 2048, 2100, 3 * 1536, 3 * 1536 + 100):
        (root / "x").write_bytes(pack(plain[:end]))
        assert refusal(root / "x"), end
    for damaged in (plain[:1536] + b"?" * 512 + plain[2048:], plain + plain):
        (root / "x").write_bytes(pack(damaged))
        assert "damaged" in refusal(root / "x")
    whole = gzip.compress(plain)
    (root / "x").write_bytes(whole[:-8] + b"\0" * 8)  # the checksum and the size
    assert "CRC" in refusal(root / "x")
    for size in (-512, 2**40, 2**62):
        for kind in (tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, b"?"):
            info = make_link(kind)
            info.name, info.size = "cats/x.png", size
            (root / "x").write_bytes(plain[:4608] + info.tobuf(tarfile.GNU_FORMAT) + bytes(5120))
            refusal(root / "x")


@pytest.mark.parametrize(("encoding", "name"), [("utf-8", "dögs"), ("cp932", "猫"), ("cp850", "Käfer")])
def test_names_in_another_encoding_are_no_classes(root, encoding, name):
    other = name.encode(encoding)
    archive = make_zip(root / "x.zip", TWO_CLASSES | {"x" * len(other) + "/1.png": b"4"})
    archive.write_bytes(archive.read_bytes().replace(b"x" * len(other), other))  # without a flag
    for data in (archive, make_tar(root / "x.tar", TWO_CLASSES | {os.fsdecode(other) + "/1.png": b"4"})):
        found = find_images(open_data(str(data)))
        assert other.decode("utf-8", "backslashreplace") in set(found["label"])
        assert (found["problem"] == "bad name").sum() == (encoding != "utf-8")


def test_a_zip_with_backslashes_between_folders_is_read_and_one_in_another_archive_is_a_file(root):
    names = ["pets\\", "pets\\cats\\1.png", "pets\\dögs\\", "pets\\dögs\\1.png"]
    found = find_images(open_data(str(make_zip(root / "x.zip", dict.fromkeys(names, b"")))))
    assert found["label"].tolist() == ["cats", "dögs"] and (found["problem"] == "").all()
    inner = make_zip(root / "inner.zip", {"../evil": b"x", "a/1.png": b"1", "b/1.png": b"2"}).read_bytes()
    archive = make_tar(root / "outer.tar", TWO_CLASSES | {"dogs/inner.zip": inner})  # ends in a zip, and is none
    found = find_images(open_data(str(archive)))
    assert [path.rsplit("/", 1)[1] for path in found["path"]] == ["1.png", "2.png", "1.png", "inner.zip"]


# ---- damaged at random


@pytest.fixture
def impatient():
    """Ends what would hang."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(60)
    yield
    signal.alarm(0)


def make_victim(path: Path, kind: str) -> bytes:
    if kind in ("csv", "tsv"):
        lines = ["path,label,split,group", "cats/1.png,cat,train,a", '"cats/2.png",cat,test,', "dogs/1.png,döge,,"]
        text = "\r\n".join([*lines, "dogs/2.png,döge,train,b"])
        return text.replace(",", "," if kind == "csv" else "\t").encode()
    files = TWO_CLASSES | {"dogs/" + "long" * 40: b"x" * 600, "dogs/ö": bytes(1500), "cats/sub/": b""}
    if kind == "zip":
        return make_zip(path, files).read_bytes()
    links = {"cats/link": make_link(tarfile.SYMTYPE, "1.png"), "cats/sub/": make_link(tarfile.DIRTYPE)}
    return make_tar(path, files | links, kind.replace("tar", "w").replace(".", ":")).read_bytes()


@pytest.mark.parametrize("kind", ["csv", "tsv", "zip", "tar", "tar.gz", "tar.xz"])
def test_what_is_damaged_at_random_is_a_table_or_an_error_that_names_it(tmp_path, monkeypatch, impatient, kind):
    root = write(tmp_path / "root", "data/cats/1.png", "data/cats/2.png", "data/dogs/1.png", "data/dogs/2.png")
    monkeypatch.setattr(helpers, "ROOT", root)
    victim, unpacked = root / "data" / f"victim.{kind}", root / "runs" / ".unpacked"
    whole, generator = make_victim(tmp_path / "x", kind), random.Random(kind)
    outcomes = {"table": 0, "error": 0}
    before = sorted((*tmp_path.rglob("*"), victim, root / "runs", unpacked))
    for _ in range(100):
        victim.write_bytes(damage(whole, generator))
        try:
            found = find_images(open_data(str(victim)))
            assert list(found.columns) == list(sources.COLUMNS) and (found["problem"] == "").any()
            outcomes["table"] += 1
        except (ValueError, FileNotFoundError) as error:
            assert "victim" in str(error)
            outcomes["error"] += 1
        unpacked.mkdir(parents=True, exist_ok=True)
        for folder in unpacked.iterdir():
            assert "partial" not in folder.name
            shutil.rmtree(folder)
    assert sorted(tmp_path.rglob("*")) == before
    assert outcomes["error"] > 10 and (outcomes["table"] > 1 or kind in ("tar.gz", "tar.xz")), outcomes


def test_every_file_below_a_folder_in_order_without_classes(tmp_path):
    write(tmp_path, "b.png", "a.png", "x/1.png", "x/deep/er/2.png", ".hidden/4.png", "x/Thumbs.db")
    (tmp_path / "x" / "circle").symlink_to(tmp_path)
    found = [(path.removeprefix(f"{tmp_path}/"), problem) for path, problem, _ in sources.list_files(tmp_path)]
    stray, broken = "stray file", "broken link"
    assert found[:4] == [(".hidden", stray), ("a.png", ""), ("b.png", ""), ("x/1.png", "")]
    assert found[4:] == [("x/Thumbs.db", stray), ("x/circle", broken), ("x/deep/er/2.png", "")]
