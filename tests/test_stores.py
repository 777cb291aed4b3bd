"""Stores give way when room is needed: the one not used for longest first, and none that is open anywhere."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from networks import counted, numbers

from helpers.data import content_keys, new_store, open_store
from helpers.data.stores import StoredArray


def write(folder: Path, name: str, *, rows: int = 10, dtype: str = "float32", used: int | None = None):
    """Returns the values of a new store with rows of 100 numbers; `used` sets the time of its last use."""
    values = np.random.default_rng(len(name)).normal(size=(rows, 100)).astype(dtype)
    with new_store(folder / name, shape=(100,), dtype=dtype, keys=[f"{name}{row}" for row in range(rows)]) as writer:
        writer(0, values[:4])
        writer(4, values[4:])
    del writer.store
    if used is not None:
        os.utime((folder / name).with_suffix(".json"), (used, used))
    return values


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if not file.name.endswith(".json"))


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_what_is_read_is_what_was_written(tmp_path, dtype):
    values = write(tmp_path, "a.rows", dtype=dtype)
    array = StoredArray(open_store(tmp_path / "a.rows"), np.array([3, 9, 0]))
    assert array.shape == (3, 100) and array.dtype == dtype and array.keys == ["a.rows3", "a.rows9", "a.rows0"]
    np.testing.assert_array_equal(array, values[[3, 9, 0]])
    assert open_store(tmp_path / "a.rows", keys=[f"a.rows{row}" for row in range(10)])
    assert open_store(tmp_path / "a.rows", keys=["other"] * 10) is None


def test_rows_of_views_have_an_axis_of_their_own(tmp_path):
    values = write(tmp_path, "a.rows")
    array = StoredArray(open_store(tmp_path / "a.rows"), np.arange(10).reshape(5, 2))
    assert array.shape == (5, 2, 100) and array.ndim == 3 and len(array) == 5
    np.testing.assert_array_equal(array[1:3], values[2:6].reshape(2, 2, 100))


def test_the_one_not_used_for_longest_gives_way(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE_GB", str(3 * 4000 / 1e9))  # each store takes 4,000 bytes
    for name, used in (("a.rows", 300), ("b.rows", 100), ("c.rows", 200)):
        write(tmp_path, name, used=used)
    assert open_store(tmp_path / "b.rows"), "and now it has been used"
    write(tmp_path, "d.rows")
    assert names(tmp_path) == ["a.rows", "b.rows", "d.rows"]
    assert not (tmp_path / "c.json").exists()


def test_what_is_open_does_not_give_way(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE_GB", str(2 * 4000 / 1e9))
    values = write(tmp_path, "a.rows", used=100)
    write(tmp_path, "b.rows", used=200)
    opened = open_store(tmp_path / "a.rows")
    os.utime(tmp_path / "a.json", (100, 100))
    write(tmp_path, "c.rows")
    assert names(tmp_path) == ["a.rows", "c.rows"]
    np.testing.assert_array_equal(opened.read(np.arange(10)), values)
    del opened
    write(tmp_path, "d.rows", used=50)
    assert names(tmp_path) == ["c.rows", "d.rows"]


def test_what_another_process_has_open_does_not_give_way_until_it_dies(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE_GB", str(1.5 * 4000 / 1e9))
    write(tmp_path, "a.rows")
    code = "import sys; from pathlib import Path; from helpers.data import open_store\n"
    code += "store = open_store(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "a.rows")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(
            OSError, match="takes 4e-06 GB.*may take 6e-06 GB in all, those in use included.*CACHE_GB"
        ):
            write(tmp_path, "b.rows")
    finally:
        other.kill()
        other.wait()
    write(tmp_path, "b.rows")
    assert names(tmp_path) == ["b.rows"]


def test_what_could_not_fit_anyway_makes_nothing_give_way(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE_GB", str(3 * 4000 / 1e9))
    for name in ("a.rows", "b.rows"):
        write(tmp_path, name)
    with pytest.raises(OSError, match="takes 1.6e-05 GB"):
        write(tmp_path, "c.rows", rows=40)
    assert names(tmp_path) == ["a.rows", "b.rows"]


def test_files_that_are_no_stores_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE_GB", str(4000 / 1e9))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "data.csv").write_text("mine")
    write(tmp_path, "a.rows", used=100)
    write(tmp_path, "b.rows")
    assert names(tmp_path) == ["b.rows", "data.csv", "notes.txt"]


@pytest.mark.parametrize("given", ["much", "0", "-1", "nan"])
def test_a_budget_that_is_none(tmp_path, monkeypatch, given):
    monkeypatch.setenv("CACHE_GB", given)
    with pytest.raises(ValueError, match=f"CACHE_GB to be a number above 0. Received '{given}'"):
        write(tmp_path, "a.rows")


def test_without_a_budget_half_of_the_disk_is_left(tmp_path, monkeypatch):
    monkeypatch.delenv("CACHE_GB", raising=False)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=9000))
    write(tmp_path, "a.rows", used=100)  # 4,000 of 9,000
    write(tmp_path, "b.rows", used=200)  # another 4,000 of (9,000 + 4,000) / 2
    assert names(tmp_path) == ["b.rows"]


def test_a_disk_that_gets_full_while_writing(tmp_path, monkeypatch):
    write(tmp_path, "a.rows")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="What is to be stored takes 4e-06 GB"):
        write(tmp_path, "b.rows")
    assert names(tmp_path) == ["a.rows"], "what was there is kept, and no part of the new one"


@pytest.mark.parametrize("change", [{"shape": [99]}, {"dtype": "float16"}, {"keys": []}, {"checksums": []}])
def test_a_side_file_of_something_else_is_not_believed(tmp_path, change):
    write(tmp_path, "a.rows")
    side = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(side | change))
    assert open_store(tmp_path / "a.rows") is None


def test_contents_have_keys():
    values = np.arange(24, dtype="uint8").reshape(4, 3, 2)
    values[2] = values[0]
    keys = content_keys(values)
    assert keys[2] == keys[0] and len(set(keys)) == 3
    assert content_keys(values.astype("int16"))[0] != keys[0] and content_keys(values.reshape(4, 2, 3))[0] != keys[0]


# ---- read


@pytest.mark.parametrize(
    "key",
    [
        0,
        -1,
        np.int64(3),
        slice(2, 9),
        slice(None, None, -2),
        slice(5, 5),
        [3, 1, 1, -2],
        [],
        np.array([4, 5, 6, 2]),
        np.arange(300) % 3 == 0,
        np.array([[1, 2], [3, 4]]),
    ],
    ids=str,
)
def test_indices_are_numpys(root, key):
    images = counted(300)
    everything = np.asarray(images)
    result = images[key]
    np.testing.assert_array_equal(result, everything[key])
    assert result.dtype == np.uint8 and result.shape == everything[key].shape
    assert result.flags.writeable and result.flags.owndata or result.base.flags.owndata, "a fresh array"


def test_indices_that_are_none(root):
    images = counted(5)
    for key in (5, -6, [0, 5], np.array([True] * 4), 1.5, "a"):
        with pytest.raises(IndexError):
            images[key]
    for key in ((0, 0), (..., 0), None, ...):
        with pytest.raises(IndexError, match="an index of rows alone"):
            images[key]


def test_neighbours_are_read_with_one_call(root, monkeypatch):
    images, calls = counted(300), []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *arguments: calls.append(1) or preadv(*arguments))
    for key, expected_calls in ((slice(10, 200), 1), ([7, 8, 9, 3, 4, 100], 3), (slice(None, None, -1), 300)):
        calls.clear()
        np.testing.assert_array_equal(numbers(images[key]), np.arange(300)[key])
        assert len(calls) == expected_calls


def test_all_as_an_array_and_one_by_one(root):
    images = counted(300)
    assert numbers(np.asarray(images)) == numbers(np.stack(list(images))) == list(range(300))
    assert np.asarray(images, dtype="float32").dtype == np.float32
    with pytest.raises(ValueError, match="copy"):
        np.asarray(images, copy=False)
