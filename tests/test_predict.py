"""Predictions for files: as in the training, whatever the files are, and nothing is lost when it stops."""

import csv
import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from networks import coloured_images, stage_network
from PIL import Image

import helpers
from helpers import predict as module
from helpers._keras import keras
from helpers.data import load_pixels, read_pixels
from helpers.data.parallel import in_parallel
from helpers.predict import COLUMNS, load_predictions, main, predict_folder
from helpers.training import activations, attach_head, compute_activations, fit_head, load_classifier, save_model

NAMES = ['=1+1,"ants"', "007", "bées 🐝\r\n@home"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A classifier of 8 x 8 pixels with awkward class names, which pads, and knows its training images."""
    folder = tmp_path_factory.mktemp("saved")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(helpers, "ROOT", folder)
        images, labels = coloured_images(120)
        network = stage_network()
        model = attach_head(network, fit_head(compute_activations(network, images), labels), class_names=NAMES)
        save_model(model, folder / "x.keras", class_names=NAMES, resize="pad", pixels=images, labels=labels)
    return folder / "x.keras"


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with folders in it: photos of other shapes and kinds than the classifier's."""
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    for number, name in enumerate(["a.png", "b/c.jpg", "b/deep/er/d.bmp", "b/e.png", "=f, 🐜\n.png", "g.gif"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        size = (10 + number, 30 - 3 * number, 3)
        Image.fromarray(rng.integers(0, 256, size).astype("uint8")).save(folder / name)
    Image.new("L", (1, 1), 90).save(folder / "h one pixel.png")
    return folder


@pytest.fixture
def computed(monkeypatch):
    """The images that the network gets, two at a time; a function put into `hooks` is called before each batch."""
    compute, seen, hooks = activations.Inference.__call__, [], []

    def watched(self, pixels):
        seen.extend(pixels)
        for hook in hooks:
            hook()
        return compute(self, pixels)

    monkeypatch.setattr(activations, "_batch_size", lambda model: 2)
    monkeypatch.setattr(activations.Inference, "__call__", watched)
    return seen, hooks


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- what is predicted


def test_files_are_read_as_in_the_training(saved, photos, root, tmp_path, computed):
    """The same bits that `load_pixels` stores for a training, whatever the file; so the same probabilities."""
    table = predict_folder(saved, photos, output=tmp_path / "out.csv")
    seen = np.stack(computed[0])
    assert list(table.columns) == list(COLUMNS) and len(table) == 7 and (table["problem"] == "").all()
    images = table[["path"]].assign(split="train")
    contents = [helpers.resolve_path(path).read_bytes() for path in table["path"]]
    images["sha256"] = [hashlib.sha256(content).hexdigest() for content in contents]
    pixels = load_pixels(images, image_size=(8, 8), resize="pad")["train"][:]
    np.testing.assert_array_equal(seen, pixels)
    assert not np.array_equal(pixels, [read_pixels(path, (8, 8)) for path in images["path"]]), "by another rule"
    probabilities = compute_activations(load_classifier(saved)[0], pixels)
    order = np.argsort(-probabilities, axis=1)
    for rank, (label, value) in enumerate([("label", "probability"), ("runner_up", "runner_up_probability")]):
        assert table[label].tolist() == [NAMES[row[rank]] for row in order]
        expected = np.take_along_axis(probabilities, order, axis=1)[:, rank]
        np.testing.assert_allclose(table[value], expected, atol=2e-6)
    assert table["label"].nunique() > 1


def test_images_unlike_the_training_images_are_flagged(saved, root):
    (root / "photos" / "like").mkdir(parents=True)
    for number, image in enumerate(coloured_images(100, seed=1)[0]):
        Image.fromarray(image).save(root / "photos" / "like" / f"{number}.png")
    for shade in range(5):
        Image.new("RGB", (8, 8), (255, 50 * shade, 0)).save(root / "photos" / f"flat {shade}.png")
    table = predict_folder(saved, "photos", output="out.csv")  # relative to the root
    assert table["unlike"].dtype == "boolean"
    like = table["path"].str.startswith("photos/like")
    assert table.loc[~like, "unlike"].all() and table.loc[like, "unlike"].mean() < 0.06


def test_names_come_back_as_they_were_and_archives_are_folders(saved, photos, root, tmp_path):
    table = predict_folder(saved, photos, output=tmp_path / "out.csv")
    shutil.make_archive(str(tmp_path / "photos"), "zip", photos / "b")
    packed = predict_folder(saved, tmp_path / "photos.zip", output=tmp_path / "packed.csv")
    one = predict_folder(saved, photos / "b" / "c.jpg", output=tmp_path / "one.csv")
    assert packed["path"].str.endswith(("c.jpg", "d.bmp", "e.png")).tolist() == [True] * 3
    assert packed.loc[packed["path"].str.endswith("c.jpg"), "probability"].tolist() == one["probability"].tolist()
    plain = pd.read_csv(tmp_path / "out.csv", dtype={"label": str, "runner_up": str}, keep_default_na=False)
    assert plain["path"].tolist() == table["path"].tolist() and plain["label"].tolist() == table["label"].tolist()
    assert set(table["label"]) | set(table["runner_up"]) == set(NAMES)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_bytes().decode(), newline="")))
    assert [row["path"] for row in rows] == table["path"].tolist()
    assert [helpers.resolve_path(path).is_file() for path in table["path"]] == [True] * 7


def test_bad_files_have_a_row_that_says_why(saved, photos, root, tmp_path):
    good = predict_folder(saved, photos, output=tmp_path / "good.csv")
    (photos / "b" / "cut.jpg").write_bytes((photos / "b" / "c.jpg").read_bytes()[:-60])
    (photos / "empty.png").touch()
    (photos / "notes.txt").write_text("ants, mostly")
    (photos / "broken.png").symlink_to("nowhere")
    os.mkfifo(photos / "pipe.png")
    Path(os.fsdecode(os.fsencode(photos) + b"/latin-\xe9.png")).write_bytes((photos / "a.png").read_bytes())
    (photos / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    table = predict_folder(saved, photos, output=tmp_path / "out.csv")
    bad = table[table["problem"] != ""]
    expected = {"cut.jpg": "truncated", "empty.png": "empty file", "notes.txt": "not an image"}
    expected |= {"broken.png": "broken link", "pipe.png": "not a file", "latin-\\xe9.png": "bad name"}
    assert {Path(row.path).name: row.problem.split(":")[0] for row in bad.itertuples()} == expected
    assert (bad[["label", "runner_up"]] == "").all(axis=None)
    assert bad[["probability", "runner_up_probability", "unlike"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(table[table["problem"] == ""].reset_index(drop=True), good)


# ---- interrupted


def test_after_an_interruption_the_same_call_goes_on(saved, photos, root, tmp_path, computed):
    (photos / "empty.png").touch()
    whole = predict_folder(saved, photos, output=tmp_path / "whole.csv")
    (seen, hooks), calls = computed, itertools.count()

    def press_ctrl_c():
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    hooks.append(press_ctrl_c)
    with pytest.raises(KeyboardInterrupt, match=r"images are done and kept in .*out.partial-\w+.csv"):
        predict_folder(saved, photos, output=tmp_path / "out.csv")
    (partial,) = tmp_path.glob("*.partial-*")
    kept = load_predictions(partial)
    assert 3 <= len(kept) <= 5 and not (tmp_path / "out.csv").exists()
    pd.testing.assert_frame_equal(kept, whole[: len(kept)], check_dtype=False)
    other = Path(shutil.copy(saved, tmp_path / "other.keras"))
    with zipfile.ZipFile(other, "a") as archive:
        archive.writestr("changed", "")
    for model, folder in ((other, photos), (saved, photos / "b")):  # neither goes on with these rows
        seen.clear()
        table = predict_folder(model, folder, output=tmp_path / "another.csv")
        assert (table["problem"] == "").sum() == len(seen) > 2
    partial.write_bytes(partial.read_bytes()[:-9])  # as a power cut may leave it
    seen.clear()
    pd.testing.assert_frame_equal(predict_folder(saved, photos, output=tmp_path / "out.csv"), whole)
    assert len(seen) == (whole["problem"][len(kept) - 1 :] == "").sum()
    assert names(tmp_path) == ["another.csv", "other.keras", "out.csv", "photos", "whole.csv"]


def test_whole_rows_are_kept_wherever_the_file_ends(tmp_path):
    rows = [COLUMNS, ('a"\nb.png', NAMES[0], 0.9, NAMES[2], 0.1, True, ""), ("\r", *("",) * 5, 'bad: "q"\nz')]
    whole = [0]
    text = io.StringIO(newline="")
    for row in rows:
        csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n").writerow(row)
        whole.append(len(text.getvalue().encode()))
    content = text.getvalue().encode()
    for end in range(len(content) + 1):
        (tmp_path / "rows.csv").write_bytes(content[:end])
        done = module._keep_whole_rows(tmp_path / "rows.csv")
        assert (tmp_path / "rows.csv").stat().st_size == max(size for size in whole if size <= end)
    assert done == {rows[1][0], rows[2][0]}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_an_error_that_names_the_file(saved, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_keep_whole_rows", lambda partial: os.symlink("/dev/full", partial) or set())
    with pytest.raises(OSError, match="out.partial-.*No space left on device"):
        predict_folder(saved, photos, output=tmp_path / "out.csv")
    assert names(tmp_path) == ["photos"]


def test_two_processes_do_not_write_the_same_file(saved, photos, root, tmp_path, computed):
    def second():
        with pytest.raises(OSError, match="Another process is writing .*out.csv"):
            predict_folder(saved, photos, output=tmp_path / "out.csv")

    computed[1].append(second)
    assert len(predict_folder(saved, photos, output=tmp_path / "out.csv")) == len(computed[0]) == 7


def test_only_a_few_images_are_read_ahead_of_the_network(monkeypatch):
    """So memory does not grow with their number, although reading is faster than the network."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    read, ahead = [], []
    for done, _ in enumerate(in_parallel(read.append, range(600), title="", chunksize=4)):
        time.sleep(0.0005)
        ahead.append(len(read) - done)
    assert done == 599 and 8 < max(ahead) <= 2 * 4 * 4 + 4


# ---- the command, and bad input


def test_the_command_takes_paths_from_the_current_folder(saved, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (photos / "notes.txt").write_text("ants, mostly")
    (photos / "out.csv").write_text("an earlier output, which is no file to be predicted")
    assert main([str(saved), "photos", "-o", "photos/out.csv"]) == 0
    printed = capsys.readouterr()
    told = " ".join(printed.out.split())
    assert told.startswith("7 images predicted, ") and " of them unlike the training data: photos/out.csv" in told
    assert "1 file skipped" in told and printed.err == ""
    assert len(load_predictions(photos / "out.csv")) == 8


def refused(capsys, *arguments) -> str:
    """Returns what the command says, in one paragraph, when it refuses to predict."""
    assert main([str(argument) for argument in arguments]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "Traceback" not in told.err and told.err.count("\n\n") == 0
    return " ".join(told.err.split())


def test_models_that_are_none_and_no_code_of_a_file_is_run(saved, photos, root, tmp_path, capsys):
    bad, out, marker = tmp_path / "bad.keras", ("-o", tmp_path / "out.csv"), tmp_path / "was here"
    assert f"There is no file {bad}" in refused(capsys, bad, photos, *out)
    for wrong in (saved.read_bytes()[:-1000], b""):
        bad.write_bytes(wrong)
        assert f"{bad} holds no class names" in refused(capsys, bad, photos, *out)
    inputs = keras.Input((8, 8, 3))
    harmful = keras.layers.Lambda(lambda x, path=str(marker): (open(path, "w"), x)[1], output_shape=(8, 8, 3))
    for first, said in ((keras.layers.ReLU(), "its 3 classes"), (harmful, "Lambda")):
        keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(first(inputs)))).save(bad)
        with zipfile.ZipFile(bad, "a") as archive:
            archive.writestr("classifier.json", json.dumps({"class_names": list("abc"), "resize": "crop"}))
        marker.unlink(missing_ok=True)
        assert said in refused(capsys, bad, photos, *out)
    assert names(tmp_path) == ["bad.keras", "photos"]


def test_folders_without_images_and_outputs_that_cannot_be_written(saved, photos, root, tmp_path, capsys):
    out = ("-o", tmp_path / "out.csv")
    assert "There is no " in refused(capsys, saved, tmp_path / "nothing", *out)
    empty = tmp_path / "empty" / "inside"
    empty.mkdir(parents=True)
    (empty / ".hidden").touch()
    assert "It holds no file" in refused(capsys, saved, empty.parent, *out)
    (empty / "notes.txt").write_text("ants, mostly")
    assert "None of 1 can be read" in refused(capsys, saved, empty.parent, *out)
    assert "is a folder" in refused(capsys, saved, photos, "-o", photos)
    assert "a.png" in refused(capsys, saved, photos, "-o", photos / "a.png" / "out.csv")
    assert names(tmp_path) == ["empty", "photos"]


def test_a_file_that_cannot_tell_what_is_out_of_distribution(saved, photos, root, tmp_path, capsys):
    with zipfile.ZipFile(saved) as whole, zipfile.ZipFile(tmp_path / "old.keras", "w") as old:
        for member in whole.namelist():
            if member != "familiarity.npz":
                old.writestr(member, whole.read(member))
    assert main([str(tmp_path / "old.keras"), str(photos), "-o", str(tmp_path / "out.csv")]) == 0
    assert "`unlike` is empty" in capsys.readouterr().out
    table, full = load_predictions(tmp_path / "out.csv"), predict_folder(saved, photos, output=tmp_path / "full.csv")
    assert table["unlike"].isna().all() and full["unlike"].notna().all()
    pd.testing.assert_frame_equal(table.drop(columns="unlike"), full.drop(columns="unlike"))
