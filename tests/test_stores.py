"""Stores are read as they were written, damage is noticed, and the least recently used ones make room."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from networks import counted, numbers

from helpers.data import stores
from helpers.data.stores import Store, StoredArray, content_keys, find_or_make, open_store, write_store


def write(folder: Path, name: str, *, rows: int = 10, dtype: str = "float32", used: int | None = None):
    """Returns the values of a new store with rows of 100 numbers; `used` sets the time of its last use."""
    values = np.random.default_rng(len(name)).normal(size=(rows, 100)).astype(dtype)
    keys = [f"{name}{row}" for row in range(rows)]
    write_store(folder / f"{name}.npy", [values[:4], values[4:]], shape=(100,), dtype=dtype, keys=keys)
    if used is not None:
        os.utime(folder / f"{name}.json", (used, used))
    return values


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.suffix != ".json")


@pytest.fixture
def four_kilobytes(monkeypatch):
    """Sets the budget, in stores of ten rows of 100 float32."""
    return lambda number: monkeypatch.setenv("CACHE_GB", str(number * 4200 / 1e9))


def test_what_is_read_is_what_was_written(tmp_path):
    for dtype in ("uint8", "float16", "float32"):
        values = write(tmp_path, dtype, dtype=dtype)
        keys = [f"{dtype}{row}" for row in (3, 9, 0)]
        store = open_store(tmp_path / f"{dtype}.npy", keys)
        array = StoredArray(store, store.find(keys))
        assert array.shape == (3, 100) and array.dtype == dtype and array.keys == keys
        np.testing.assert_array_equal(array, values[[3, 9, 0]])
        np.testing.assert_array_equal(np.load(tmp_path / f"{dtype}.npy"), values)
    assert open_store(tmp_path / "uint8.npy", ["other"]) is None and open_store(tmp_path / "b.npy", []) is None


def test_contents_have_keys():
    values = np.arange(24, dtype="uint8").reshape(4, 3, 2)
    values[2] = values[0]
    keys = content_keys(values)
    assert keys[2] == keys[0] and len(set(keys)) == 3
    assert content_keys(values.astype("int16"))[0] != keys[0] and content_keys(values.reshape(4, 2, 3))[0] != keys[0]


# ---- damage


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def damage_and_set_back_the_time(file: Path) -> None:
    info = file.stat()
    flip_a_bit(file)
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        damage_and_set_back_the_time,
        lambda file: os.truncate(file, 0),
        lambda file: os.truncate(file, 1000),
        lambda file: os.truncate(file, file.stat().st_size + 1),
    ],
)
def test_damage_is_noticed(tmp_path, damage):
    write(tmp_path, "a")
    damage(tmp_path / "a.npy")
    assert open_store(tmp_path / "a.npy", []) is None


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"keys": 5}', "\xff"])
def test_a_damaged_missing_or_other_side_file_is_noticed(tmp_path, text):
    write(tmp_path, "a")
    side = tmp_path / "a.json"
    about = json.loads(side.read_text())
    for change in ({"keys": []}, {"checksums": []}, {"checksums": about["checksums"][::-1], "stamp": [0, 0, 0]}):
        side.write_text(json.dumps(about | change))
        assert open_store(tmp_path / "a.npy", []) is None
    side.unlink() if text is None else side.write_bytes(text.encode("latin-1"))
    assert open_store(tmp_path / "a.npy", []) is None


def test_a_copied_store_is_checked_once_and_kept(tmp_path, monkeypatch):
    values = write(tmp_path / "a", "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # with the times of change
    np.testing.assert_array_equal(open_store(tmp_path / "b" / "a.npy", []).read(np.arange(10)), values)
    monkeypatch.setattr(stores.zlib, "crc32", lambda _: pytest.fail("checked again"))
    assert open_store(tmp_path / "b" / "a.npy", [])


def test_a_store_that_is_cut_off_while_in_use_is_told_and_one_that_is_removed_can_be_read(tmp_path):
    values = write(tmp_path, "a")
    store = Store(tmp_path / "a.npy")
    (tmp_path / "a.npy").rename(tmp_path / "b.npy")
    np.testing.assert_array_equal(store.read(np.array([9])), values[[9]])
    os.truncate(tmp_path / "b.npy", 1000)
    with pytest.raises(OSError, match="cut off while in use"):
        store.read(np.arange(10))


def test_what_fails_leaves_nothing_and_what_was_killed_is_removed(tmp_path, monkeypatch):
    def batches():
        yield np.zeros((2, 100))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "a.npy", batches(), shape=(100,), dtype="float32", keys=list("abc"))
    assert not list(tmp_path.iterdir())
    for name in ("old", "new"):
        (tmp_path / f".{name}.partial-a.npy").write_text("left by a killed process")
    os.utime(tmp_path / ".old.partial-a.npy", (time.time() - 4000,) * 2)
    write(tmp_path, "b")
    assert names(tmp_path) == [".new.partial-a.npy", "b.npy"], "the new one may still be written"


MAKE = """
import sys, time
from pathlib import Path
import numpy as np
from helpers.data.stores import find_or_make, open_store, write_store

def rows():
    print("made", flush=True)
    time.sleep(0.5)
    yield np.ones((3, 4), "uint8")

file, keys = Path(sys.argv[1]), list("abc")
make = lambda: write_store(file, rows(), shape=(4,), dtype="uint8", keys=keys)
store = find_or_make(file, lambda: open_store(file, keys), make)
assert store.read(np.arange(3)).sum() == 12
"""


def test_of_several_processes_and_threads_one_makes_a_store(tmp_path):
    command, made = [sys.executable, "-c", MAKE, str(tmp_path / "a.npy")], []
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: find_or_make(tmp_path / "b.npy", lambda: made, lambda: made.append("b")), range(4)))
    assert made == ["b"]
    assert sum(process.communicate()[0].count("made") for process in processes) == 1
    assert [process.returncode for process in processes] == [0, 0, 0]


# ---- room


def test_the_least_recently_used_one_is_deleted(tmp_path, four_kilobytes):
    four_kilobytes(3)
    (tmp_path / "notes.txt").write_text("no store")
    values = {name: write(tmp_path, name, used=used) for name, used in (("a", 300), ("b", 100), ("c", 200))}
    opened = Store(tmp_path / "c.npy")
    assert open_store(tmp_path / "b.npy", []), "and now it has been used"
    write(tmp_path, "d")
    assert names(tmp_path) == ["a.npy", "b.npy", "d.npy", "notes.txt"] and not (tmp_path / "c.json").exists()
    np.testing.assert_array_equal(opened.read(np.arange(10)), values["c"], "what is open can still be read")


def test_for_what_cannot_fit_nothing_is_deleted(tmp_path, four_kilobytes):
    four_kilobytes(3)
    for name in ("a", "b"):
        write(tmp_path, name)
    with pytest.raises(OSError, match="takes 1.6e-05 GB.*CACHE_GB"):
        write(tmp_path, "c", rows=40)

    def batches():  # a disk that gets full while it is written to
        yield np.zeros((1, 100))
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="takes 1.2e-06 GB.*Use fewer"):
        write_store(tmp_path / "d.npy", batches(), shape=(100,), dtype="float32", keys=list("abc"), hint="Use fewer.")
    assert names(tmp_path) == ["a.npy", "b.npy"]


def test_a_budget_that_is_none_and_without_one_half_of_the_disk_is_left(tmp_path, monkeypatch):
    for given in ("much", "0", "nan"):
        monkeypatch.setenv("CACHE_GB", given)
        with pytest.raises(ValueError, match=f"CACHE_GB.*Received '{given}'"):
            write(tmp_path, "a")
    monkeypatch.delenv("CACHE_GB")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=9000))
    write(tmp_path, "a", used=100)  # 4,000 of 9,000
    write(tmp_path, "b", used=200)  # another 4,000 of (9,000 + 4,000) / 2
    assert names(tmp_path) == ["b.npy"]


# ---- read


KEYS = [0, -1, np.int64(3), slice(2, 9), slice(None, None, -2), slice(5, 5), [3, 1, 1, -2], []]
KEYS += [np.array([4, 5, 6, 2]), np.arange(300) % 3 == 0, np.array([[1, 2], [3, 4]])]


def test_indices_are_numpys(root):
    images = counted(300)
    everything = np.asarray(images)
    for key in KEYS:
        result = images[key]
        np.testing.assert_array_equal(result, everything[key])
        assert result.dtype == np.uint8 and result.shape == everything[key].shape and result.flags.writeable
    for key in (300, -301, [0, 300], np.array([True] * 4), 1.5, "a", (0, 0), (..., 0), None, ...):
        with pytest.raises(IndexError):
            images[key]


def test_all_as_an_array_and_one_by_one(root):
    images = counted(300)
    assert numbers(np.asarray(images)) == numbers(np.stack(list(images))) == list(range(300))
    assert np.asarray(images, dtype="float32").dtype == np.float32
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda row: numbers(images[[row]])[0], range(300))) == list(range(300))
