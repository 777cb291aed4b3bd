"""From what the user names, a folder, a table or an archive, to one table with a row for every file."""

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image

from helpers import resolve_path
from helpers.data.archives import is_archive, unpack
from helpers.data.digits import write_digits
from helpers.data.listings import TABLES, lists_images, read_listing
from helpers.data.names import PART_NAMES, PART_WORDS, find_words, fold_name, unify_name
from helpers.data.tables import stored_path

COLUMNS = ("path", "label", "split", "group", "problem", "reason")


def open_data(data: str) -> Path:
    """Returns the folder, or the table, of labelled images that the parameter `data` names.

    Args:
        data: "digits" for the embedded example (`helpers.data.digits`, written to `data/digits` on first use); a
            folder; a table (.csv, .tsv, .parquet) with the columns path and label; or an archive of one of these,
            unpacked below `runs/.unpacked` on first use. A folder that directly holds one such table stands for it.

    Raises:
        FileNotFoundError: there is nothing of this name.
        ValueError: another kind of file, an archive that cannot be unpacked safely, or a folder of several tables.
    """
    if data == "digits":
        return write_digits(resolve_path("data/digits"))
    path = find_data(str(data))
    if path.is_dir():
        return _find_table(path) or path
    if path.suffix.lower() in TABLES and path.is_file():
        return path
    if path.is_file() and is_archive(path):
        folder = _descend(unpack(path))
        return _find_table(folder) or folder
    raise ValueError(
        f"The parameter `data` should name a folder that holds one folder of images per class, a table "
        f"({', '.join(TABLES)}) with the columns path and label, or an archive (zip, tar, tar.gz, tar.bz2, tar.xz). "
        f"Received {str(path)!r}, which by its content is none of these. Unpack an archive of another kind yourself, "
        f"and save a spreadsheet as CSV."
    )


def find_data(data: str) -> Path:
    """Returns the absolute path of what `data` names; FileNotFoundError if there is nothing of this name."""
    try:
        path = resolve_path(data or "?")  # an empty text would be the repository itself
    except RuntimeError:  # "~somebody", who has no home here
        path = resolve_path(".") / data
    if os.path.exists(path):
        return path
    nearest = next(parent for parent in path.parents if os.path.exists(parent))
    raise FileNotFoundError(
        f"The parameter `data` should name a folder of labelled images, a table or an archive. Received {data!r}, "
        f"but there is no {path} (the nearest folder that exists is {nearest}). Check the spelling. "
        f'`data="digits"` runs the embedded example.'
    )


def _descend(folder: Path) -> Path:
    """Returns the folder that matters in an unpacked archive: it often lies in another one, alone."""
    while True:
        folders, _, pictured = _look_into(folder)
        if len(folders) != 1 or pictured or _find_table(folder):  # a licence beside it does not matter
            return folder
        inner = folder / folders[0]
        if (not _folders(inner) or _is_train(inner)) and not _find_table(inner):  # the only class, or part
            return folder
        folder = inner


def _find_table(folder: Path) -> Path | None:
    """Returns the table of images that lies directly in the folder, if any; ValueError if there are several."""
    names = sorted(entry.name for entry in os.scandir(folder) if not _is_junk(entry.name) and entry.is_file())
    tables = [folder / name for name in names if name.lower().endswith(TABLES) and lists_images(folder / name)]
    if len(tables) > 1:
        raise ValueError(
            f"Expected at most one table with the columns path and label in {folder}. Found "
            f"{', '.join(table.name for table in tables)}. Name one of them in `data`, or join them into one."
        )
    return tables[0] if tables else None


def find_images(source: str | Path) -> pd.DataFrame:
    """Returns the table of the files in a folder of class folders, or of those that a table lists.

    Folders are `folder/<class>/...` or `folder/<part>/<class>/...` with the parts train, val (or validation) and
    test, or train alone. Folders that could be parts by other names, seg_train, fold1 or labelled, are refused. A
    table has the columns path (counted from the table's folder) and label, perhaps also split and group. Of train
    and validation alone, the second one is the test set. Labels are in composed Unicode (NFC).

    Returns:
        A DataFrame of texts with the columns path, label, split, group, problem and reason, sorted by path.
        `split` is "" where the source does not decide it. `problem` is "" for the files that `check_images` is to
        open; every other file has a row, too, and `reason` says more (`helpers.data.checks.KINDS`).

    Raises:
        ValueError: there are fewer than two classes, a given part lacks a class, folders look like parts or like
            those of object detection, or the table cannot be read as one.
    """
    source = resolve_path(source)
    rows, parts = _list_table(source) if source.is_file() else _list_folder(source)
    rows = sorted(_store(rows))
    # column by column: from rows, pandas would take a kilobyte for each file on the way
    images = pd.DataFrame({name: pd.array([row[i] for row in rows], dtype="str") for i, name in enumerate(COLUMNS)})
    _require_classes(images, source, parts)
    return images


def list_files(source: str | Path) -> Iterator[tuple[str, str, str]]:
    """Yields path, problem and reason of a file, or of each below a folder or in an archive, without classes."""
    source = resolve_path(source)
    if source.is_file() and is_archive(source):
        source = unpack(source)
    path = str(source)
    found = _walk(path, _ancestors(source)) if source.is_dir() else [(path, *_find_problem(path))]
    for path, problem, reason in found:
        (row,) = _store([_Row(path, "", "", "", problem, reason)])
        yield row.path, row.problem, row.reason


class _Row(NamedTuple):
    path: str
    label: str
    split: str
    group: str = ""
    problem: str = ""
    reason: str = ""


def _store(rows: list[_Row]) -> Iterator[_Row]:
    """Yields the rows with their paths as tables name them, and with every name in UTF-8; empties the list."""
    beginnings = {}  # of each folder: working them out for each file would take longer than all the rest
    while rows:
        row = rows.pop()  # one by one, since there may be a million: never two of each in memory
        folder, name = os.path.split(row.path)
        if folder not in beginnings:
            beginnings[folder] = stored_path(Path(folder, "?")).removesuffix("?")
        stored = beginnings[folder] + name
        if stored.startswith("~"):
            stored = row.path  # `resolve_path` would take it for somebody's home
        if not row.problem and _escape(stored) != stored:
            reason = (
                "its name, or its folder's, is not UTF-8: rename it (of an archive: unpack it with a program that "
                "asks for its encoding, and name the folder)"
            )
            row = row._replace(problem="bad name", reason=reason)
        yield row._replace(path=_escape(stored), label=_escape(row.label), reason=_escape(row.reason))


def _escape(name: str) -> str:
    try:
        name.encode()
        return name
    except UnicodeEncodeError:  # Python reads bytes that are not UTF-8 as lone surrogates
        return os.fsencode(name).decode("utf-8", "backslashreplace")


def _require_classes(images: pd.DataFrame, source: Path, parts: dict[str, str]) -> None:
    """Raises unless there are two classes, and all classes in each part; `parts` are {part: its name there}."""
    usable = images[images["problem"] == ""]
    classes = sorted(usable["label"].unique())
    refused = images[~images["problem"].isin(["", "stray file", "empty class", "repeated row"])]
    example = ""
    if len(refused):
        row = refused.iloc[0]
        example = f" {len(refused)} cannot be used, for example {row.path}: {row.problem}, {row.reason}."
    if len(classes) < 2:
        found = f"only {classes[0]!r} with {len(usable)} files" if classes else "no file of any class"
        need = "Put the images of each class into a folder named after it; perhaps `data` should name another folder"
        raise ValueError(
            f"Expected at least two classes in {source}. Found {found}.{example} "
            f"{need if source.is_dir() else 'Give each class a label of its own'}."
        )
    for part, name in parts.items():
        have = set(usable.loc[usable["split"] == part, "label"])
        if missing := sorted(set(classes) - have):
            folded = {fold_name(label): label for label in sorted(have)}
            alike = [label for label in missing if fold_name(label) in folded][:3]
            guess = "".join(f" Perhaps {label!r} is meant by {folded[fold_name(label)]!r}." for label in alike)
            advice = "Add some, or remove the class from the other parts"
            if not have and source.is_dir():
                alone = str(source / parts["train"])
                advice = f"Sort its images into class folders, or name only {alone!r} in `data`"
            raise ValueError(
                f"Expected every class in every given part of {source}. {name!r} has no image of "
                f"{', '.join(map(repr, missing))}.{guess}{example} {advice}."
            )


# ---- folders


def _list_folder(folder: Path) -> tuple[list[_Row], dict[str, str]]:
    """Returns a row for everything in the folder, and the given parts with their folders' names."""
    parts = _find_parts(folder)
    rows = []
    for part, root in {"": folder, **parts}.items():
        above = _ancestors(folder) | _ancestors(root)
        folders, files = _list(root, above)
        for path, problem, reason in files:
            if not problem:
                problem, reason = "stray file", "it lies beside the class folders, not in one: of no class"
            rows.append(_Row(path, "", part, "", problem, reason))
        if part or not parts:  # where parts are given, the folders beside them are these parts
            rows += [row for path in folders for row in _list_class(path, part, above)]
    return rows, {part: root.name for part, root in parts.items()}


def _list_class(folder: str, part: str, above: frozenset) -> list[_Row]:
    label = unify_name(os.path.basename(folder))
    rows = [_Row(path, label, part, "", problem, reason) for path, problem, reason in _walk(folder, above)]
    if all(row.problem == "stray file" for row in rows):
        rows.append(_Row(folder, label, part, "", "empty class", "a class folder without any image"))
    return rows


def _walk(folder: str, above: frozenset) -> Iterator[tuple[str, str, str]]:
    """Yields path, problem and reason for everything below the folder; `above` are the folders that it lies in."""
    stack = [(folder, above)]  # no recursion: folders may lie deeper than Python calls
    while stack:
        folder, above = stack.pop()
        try:
            above = above | {_identity(folder)}
            folders, files = _list(folder, above)
        except OSError as error:
            reason = f"a folder that cannot be listed ({error.strerror}): its files are not used"
            yield folder, "no permission", reason
            continue
        yield from files
        stack += [(path, above) for path in reversed(folders)]


def _list(folder: str | Path, above: frozenset) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Returns what one folder holds, by name: the folders to look into, and path, problem and reason of the others.

    Links are followed, except to a folder `above`, where they would lead in circles.
    """
    folders, others = [], []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if _is_junk(entry.name):
            others.append((entry.path, "stray file", _JUNK))
        elif entry.is_file(follow_symlinks=False):
            others.append((entry.path, "", ""))
        elif not entry.is_dir(follow_symlinks=False) and not (entry.is_symlink() and os.path.isdir(entry.path)):
            others.append((entry.path, *_find_problem(entry.path)))
        elif _identity(entry.path) in above:
            others.append((entry.path, "broken link", "a link to a folder that it lies in: it leads in circles"))
        else:
            folders.append(entry.path)
    return folders, others


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _ancestors(folder: Path) -> frozenset:
    """Returns the identities of the folder, and of all those that it lies in."""
    real = Path(os.path.realpath(folder))
    return frozenset(map(_identity, (real, *real.parents)))


_JUNK = "a hidden file or folder, or one that a system leaves behind: not looked at"


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX" or name.lower() in ("thumbs.db", "desktop.ini")


def _find_problem(path: str) -> tuple[str, str]:
    """Returns problem and reason of what should be a file; nothing of it is opened: a pipe would wait for ever."""
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        return "no permission", "it lies in a folder that may not be entered"
    except OSError as error:
        if os.path.islink(path):
            return "broken link", f"a link to {os.readlink(path)!r}, which leads nowhere ({error.strerror})"
        hint = ": write / between folders, not a backslash" if "\\" in path else ""
        return "missing file", f"there is no such file ({error.strerror}){hint}"
    if stat.S_ISREG(mode):
        return "", ""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return "not a file", f"{kinds.get(stat.S_IFMT(mode), 'a device')}: not opened"


def _find_parts(folder: Path) -> dict[str, Path]:
    """Returns the given parts, {"train": ..., "test": ...}; nothing if these are class folders."""
    children = _folders(folder)
    parts = {PART_NAMES.get(child.name.strip().lower()): child for child in children}
    if None in parts or "train" not in parts or (len(children) == 1 and not _is_train(children[0])):
        _refuse_other_tasks(folder, children)
        _refuse_unknown_parts(folder, children)
        return {}
    if len(parts) < len(children):
        names = ", ".join(repr(child.name) for child in children)
        raise ValueError(f"Expected one folder each for train, val and test in {folder}. Found {names}.")
    for part in parts.values():
        _refuse_other_tasks(part, _folders(part))
    if len(parts) == 2 and "validation" in parts:
        parts["test"] = parts.pop("validation")
    inner = {part: _lone_folder(child) for part, child in parts.items()}
    return inner if all(inner.values()) else parts  # train/train/cats, as some archives have it


def _lone_folder(folder: Path) -> Path | None:
    """Returns the folder of several folders that lies alone in another, if so."""
    folders, _, pictured = _look_into(folder)
    alone = len(folders) == 1 and not pictured and len(_folders(folder / folders[0])) > 1
    return folder / folders[0] if alone else None


def _is_train(folder: Path) -> bool:
    """Tells whether a folder, alone in another, is the part train: no part may lie in it, divided into classes."""
    children = _folders(folder)
    parts = [child for child in children if find_words(child.name) & PART_WORDS and _look_into(child)[0]]
    return PART_NAMES.get(folder.name.strip().lower()) == "train" and bool(children) and not parts


def _refuse_other_tasks(folder: Path, children: list[Path]) -> None:
    """Raises where images lie beside what belongs to them: that is no set of classes."""
    names = {child.name.lower() for child in children}
    images = names & {"images", "image", "imgs", "jpegimages"}
    others = names & {"annotations", "annotation", "labels", "label", "masks", "mask"}
    if images and others:
        received = " and ".join(map(repr, sorted(images | others)))
        raise ValueError(
            f"Expected one folder per class in {folder}. Received {received}, as for object detection or "
            f"segmentation. Name the folder that holds one folder per class in `data`, or write a table with the "
            f"columns path and label."
        )


def _refuse_unknown_parts(folder: Path, children: list[Path]) -> None:
    """Raises where folders seem to be parts, and not classes."""
    held = {child: _look_into(child) for child in children}
    common = Counter(name for folders, _, _ in held.values() for name in set(map(fold_name, folders)))
    divided = [child for child, (folders, _, pictured) in held.items() if len(folders) > 1 and not pictured]
    called = {child: words for child in children if (words := find_words(child.name) & PART_WORDS)}
    stems = {re.sub(r"[\W\d_]+", " ", child.name.lower()) for child in called}
    same_folders = sum(count > 1 for count in common.values()) > 1
    some_flat = divided and any(count and not folders for folders, count, _ in held.values())
    several_called = len(called) > 1 and (len(set().union(*called.values())) > 1 or len(stems) == 1)
    if not (same_folders or some_flat or several_called or called.keys() & set(divided)):
        return
    shown = ", ".join(repr(child.name) for child in sorted(children, key=lambda child: child not in called)[:6])
    rest = f" and {len(children) - 6} more" if len(children) > 6 else ""
    raise ValueError(
        f"Expected one folder per class in {folder}, or the parts train, val and test with one folder per class in "
        f"each. Received {shown}{rest}, which could be parts, by their names or by what they hold. If they are, "
        f"rename them, or name one of them in `data`. If they are classes, put them into a folder called train, with "
        f"nothing beside it, and name the folder above it in `data`. Or write a table with path, label and split."
    )


def _look_into(folder: Path) -> tuple[list[str], int, bool]:
    """Returns what a folder holds: the sub-folders with anything in them, how many files, and whether images."""
    folders, count, pictured, known = [], 0, False, Image.registered_extensions()
    for entry in _visible(folder):
        if not entry.is_dir(follow_symlinks=False) and not (entry.is_symlink() and os.path.isdir(entry.path)):
            count += 1
            pictured = pictured or os.path.splitext(entry.name)[1].lower() in known
        elif any(_visible(entry.path)):
            folders.append(entry.name)
    return sorted(folders), count, pictured


def _visible(folder: str | Path) -> Iterator[os.DirEntry]:
    with suppress(OSError):
        yield from (entry for entry in os.scandir(folder) if not _is_junk(entry.name))


def _folders(folder: Path) -> list[Path]:
    with suppress(OSError):  # a row of its own, once the folder's turn comes
        return [Path(path) for path in _list(folder, _ancestors(folder))[0]]
    return []


# ---- tables


def _list_table(table: Path) -> tuple[list[_Row], dict[str, str]]:
    """Returns a row for every file that the table lists, or fails to name, and the parts that it gives to all."""
    rows, same = [], {}
    for row in read_listing(table).itertuples():
        path = _locate(row.path, table.parent) if row.path.strip() else ""
        if not path:
            rows.append(_Row(str(table), row.label, row.split, row.group, "no path", f"row {row.row} names no file"))
        elif not row.label:
            rows.append(_Row(path, "", row.split, row.group, "no label", f"row {row.row} gives it no label"))
        else:
            same.setdefault(path, []).append(row)
    archive = _find_unpacked(table)
    for path, listed in same.items():
        rows += _list_file(path, listed, archive, table)
    splits = {row.split for listed in same.values() for row in listed}
    if splits == {"train", "validation"}:
        rows = [row._replace(split="test") if row.split == "validation" else row for row in rows]
        return rows, {"train": "train", "test": "validation"}
    if splits and not splits & {"train", ""}:
        raise ValueError(
            f"Expected images to learn from in {table}. Received only {' and '.join(sorted(splits))} in its column "
            f"split: name train, or leave it empty, for the others."
        )
    return rows, {} if "" in splits else {part: part for part in sorted(splits)}


def _list_file(path: str, listed: list, archive: Path | None, table: Path) -> list[_Row]:
    """Returns the rows of one file: one to use, where all that is listed of it agrees, and one per repetition."""
    first, *again = listed
    group = next((row.group for row in listed if row.group), "")
    labels, splits = _differences(listed, "label"), _differences(listed, "split")
    if labels or splits:
        label, split = " | ".join(sorted({row.label for row in listed})), "" if splits else first.split
        reason = f"the table contradicts itself: {labels or splits}"
        return [_Row(path, label, split, group, "two labels" if labels else "two parts", reason)]
    if groups := _differences([row for row in listed if row.group], "group"):
        raise ValueError(f"Expected one group for each file in {table}. Received for {first.path}: {groups}.")
    if archive and not Path(os.path.realpath(path)).is_relative_to(archive):
        problem = ("outside", "it lies outside of the unpacked archive that names it: not opened")
    else:
        problem = _find_problem(path)
    repeated = [("repeated row", f"row {row.row} says the same as row {first.row}") for row in again]
    return [_Row(path, first.label, first.split, group, *found) for found in (problem, *repeated)]


def _differences(listed: list, column: str) -> str:
    """Returns the values of one file's rows, and where each is first, if there are several."""
    values = {getattr(row, column): row.row for row in reversed(listed)}
    said = (f"{value or 'none'!r} in row {values[value]}" for value in sorted(values))
    return ", ".join(said) if len(values) > 1 else ""


def _locate(path: str, folder: Path) -> str:
    """Returns the absolute path of a file that a table names, perhaps one that was made on Windows, or on a Mac."""
    names = (path, path.replace("\\", "/"), *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))
    places = [os.path.join(folder, name) for name in names]
    place = next(filter(os.path.exists, places), places[0])
    if ".." in Path(place).parts:  # what it means depends on links: ask the file system
        place = os.path.join(os.path.realpath(os.path.dirname(place)), os.path.basename(place))
    return str(Path(place))  # without "." and "//", so that one file has one path


def _find_unpacked(table: Path) -> Path | None:
    """Returns the folder of the unpacked archive that a table lies in, beyond which it may name nothing."""
    store, real = Path(os.path.realpath(resolve_path("runs/.unpacked"))), Path(os.path.realpath(table))
    return store / real.relative_to(store).parts[0] if real.is_relative_to(store) else None
