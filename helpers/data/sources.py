"""From what the user names, a folder, a table or an archive, to one table with a row for every file."""

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from PIL import Image

import helpers
from helpers import resolve_path
from helpers.data.archives import is_archive, unpack
from helpers.data.digits import write_digits
from helpers.data.listings import TABLES, lists_images, read_listing
from helpers.data.names import PART_NAMES, PART_WORDS, find_words, fold_name, unify_name
from helpers.data.tables import stored_path

COLUMNS = ("path", "label", "split", "group", "problem", "reason")


def open_data(data: str) -> Path:
    """Returns the folder, or the table, of labelled images that the parameter `data` names.

    It is "digits", the embedded example (`helpers.data.digits`, written below `data/digits` on first use); a folder;
    a table (.csv, .tsv, .parquet) with the columns path and label; or an archive of one of these, unpacked below
    `runs/.unpacked` on first use. A folder that directly holds one such table stands for it.

    Raises:
        FileNotFoundError: there is nothing of this name.
        ValueError: another kind of file, an archive that cannot be unpacked safely, or a folder of several tables.
    """
    if data == "digits":
        return write_digits(resolve_path("data/digits"))
    path = find_data(str(data))
    if path.is_file() and path.suffix.lower() in TABLES:
        return path
    if path.is_file() and is_archive(path):
        path = _descend(unpack(path))
    if path.is_dir():
        return _find_table(path) or path
    raise ValueError(
        f"The parameter `data` should name a folder of class folders, a table ({', '.join(TABLES)}) or an archive "
        f"(zip, tar, tar.gz, tar.bz2, tar.xz). Received {str(path)!r}, which by its content is none of these. "
        f"Unpack an archive of another kind yourself, and save a spreadsheet as CSV."
    )


def find_data(data: str) -> Path:
    """Returns the absolute path of what `data` names; FileNotFoundError if there is nothing of this name."""
    path = helpers.ROOT / os.path.expanduser(data or "?")  # an empty text would be the repository itself
    if os.path.exists(path):
        return path
    nearest = next(parent for parent in path.parents if os.path.exists(parent))
    raise FileNotFoundError(
        f"The parameter `data` should name a folder of labelled images, a table or an archive. Received {data!r}, "
        f"but there is no {path} (the nearest folder that exists is {nearest}). Check the spelling."
    )


def _descend(folder: Path) -> Path:
    """Returns the folder that matters in an unpacked archive: it often lies in another one, alone."""
    while True:
        folders, _, pictured = _look_into(folder)
        if len(folders) != 1 or pictured or _find_table(folder):  # a licence beside it does not matter
            return folder
        inner = folders[0]
        if (not _folders(inner) or _is_train(inner)) and not _find_table(inner):  # the only class, or part
            return folder
        folder = inner


def _find_table(folder: Path) -> Path | None:
    """Returns the table of images that lies directly in the folder, if any; ValueError if there are several."""
    names = sorted(entry.name for entry in os.scandir(folder) if not _is_junk(entry.name) and entry.is_file())
    tables = [folder / name for name in names if name.lower().endswith(TABLES) and lists_images(folder / name)]
    if len(tables) > 1:
        raise ValueError(
            f"Expected at most one table of images in {folder}. Found {', '.join(table.name for table in tables)}. "
            f"Name one of them in `data`, or join them into one."
        )
    return tables[0] if tables else None


def find_images(source: str | Path) -> pd.DataFrame:
    """Returns the table of the files in a folder of class folders, or of those that a table lists, sorted by path.

    Folders are `folder/<class>/...` or `folder/<part>/<class>/...` with the parts train, val (or validation) and
    test, or train alone. Folders that could be parts by other names, seg_train, fold1 or labelled, are refused. A
    table has the columns path (counted from the table's folder) and label, perhaps also split and group. Of train
    and validation alone, the second one is the test set. Labels are in composed Unicode (NFC).

    Returns:
        A DataFrame of texts: path, label, split ("" where the source does not decide it), group, problem and reason.
        `problem` is "" for the files that `check_images` is to open; every other file has a row, too
        (`helpers.data.checks.KINDS`).

    Raises:
        ValueError: there are fewer than two classes, a given part lacks a class, folders look like parts or like
            those of object detection, or the table cannot be read as one.
    """
    source = resolve_path(source)
    rows, parts = _list_table(source) if source.is_file() else _list_folder(source)
    images = pd.DataFrame(sorted(map(_store, rows)), columns=list(COLUMNS), dtype="str")
    _require_classes(images, source, parts)
    return images


def list_files(source: str | Path) -> Iterator[tuple[str, str, str]]:
    """Yields path, problem and reason of a file, or of each below a folder or in an archive, without classes."""
    source = resolve_path(source)
    if source.is_file() and is_archive(source):
        source = unpack(source)
    files = _walk(source) if source.is_dir() else [(str(source), *_find_problem(str(source)))]
    for path, problem, reason in files:
        row = _store(_Row(path, problem=problem, reason=reason))
        yield row.path, row.problem, row.reason


class _Row(NamedTuple):
    path: str
    label: str = ""
    split: str = ""
    group: str = ""
    problem: str = ""
    reason: str = ""


def _store(row: _Row) -> _Row:
    """Returns the row with its path as tables name it, and with every name in UTF-8."""
    path = stored_path(row.path)
    if not row.problem and _escape(path) != path:
        reason = "its name, or its folder's, is not UTF-8: rename it, or unpack the archive yourself in its encoding"
        row = row._replace(problem="bad name", reason=reason)
    return row._replace(path=_escape(path), label=_escape(row.label), reason=_escape(row.reason))


def _escape(name: str) -> str:
    """Returns the name with "\\xff" for what is not UTF-8, which Python reads as lone surrogates."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _require_classes(images: pd.DataFrame, source: Path, parts: dict[str, str]) -> None:
    """Raises unless there are two classes, and all classes in each part; `parts` are {part: its name there}."""
    usable = images[images["problem"] == ""]
    classes = sorted(usable["label"].unique())
    refused = images[~images["problem"].isin(["", "stray file", "empty class", "repeated row"])]
    example = "".join(
        f" {len(refused)} cannot be used, for example {row.path}: {row.problem}, {row.reason}."
        for row in refused[:1].itertuples()
    )
    if len(classes) < 2:
        found = f"only {classes[0]!r} with {len(usable)} files" if classes else "no file of any class"
        need = "Put the images of each class into a folder named after it; perhaps `data` should name another folder"
        raise ValueError(
            f"Expected at least two classes in {source}. Found {found}.{example} "
            f"{need if source.is_dir() else 'Give each class a label of its own'}."
        )
    for part, name in parts.items():
        have = set(usable.loc[usable["split"] == part, "label"])
        missing = sorted(set(classes) - have)
        if not missing:
            continue
        folded = {fold_name(label): label for label in sorted(have)}
        alike = [label for label in missing if fold_name(label) in folded][:3]
        guess = "".join(f" Perhaps {label!r} is meant by {folded[fold_name(label)]!r}." for label in alike)
        advice = "Add some, or remove the class from the other parts"
        if not have and source.is_dir():
            advice = f"Sort its images into class folders, or name only {str(source / parts['train'])!r} in `data`"
        raise ValueError(
            f"Expected every class in every given part of {source}. {name!r} has no image of "
            f"{', '.join(map(repr, missing))}.{guess}{example} {advice}."
        )


# ---- folders


def _list_folder(folder: Path) -> tuple[list[_Row], dict[str, str]]:
    """Returns a row for everything in the folder, and the given parts with their folders' names."""
    parts, rows = _find_parts(folder), []
    beside = "it lies beside the class folders, not in one: of no class"
    for part, root in {"": folder, **parts}.items():
        folders, others = _list(root)
        rows += [_Row(path, "", part, "", *(why if why[0] else ("stray file", beside))) for path, *why in others]
        for path in folders if part or not parts else ():  # where parts are given, the folders beside them are these
            label, inner = unify_name(os.path.basename(path)), list(_walk(path))
            if all(problem == "stray file" for _, problem, _ in inner):
                inner.append((path, "empty class", "a class folder without any image"))
            rows += [_Row(name, label, part, "", problem, reason) for name, problem, reason in inner]
    return rows, {part: root.name for part, root in parts.items()}


def _walk(folder: str | Path) -> Iterator[tuple[str, str, str]]:
    """Yields path, problem and reason for everything below the folder."""
    stack = [folder]
    while stack:
        folders, others = _list(stack.pop())
        yield from others
        stack += reversed(folders)


def _list(folder: str | Path) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Returns what a folder holds, by name: the folders to look into, and path, problem and reason of the others."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        reason = f"a folder that cannot be listed ({error.strerror}): its files are not used"
        return [], [(str(folder), "no permission", reason)]
    folders, others = [], []
    for entry in entries:
        link = entry.is_symlink()
        if _is_junk(entry.name):
            reason = "a hidden file or folder, or one that a system leaves behind: not looked at"
            others.append((entry.path, "stray file", reason))
        elif entry.is_file(follow_symlinks=False):
            others.append((entry.path, "", ""))
        elif not (os.path.isdir(entry.path) if link else entry.is_dir()):
            others.append((entry.path, *_find_problem(entry.path)))
        elif link and _leads_back(entry.path):
            others.append((entry.path, "broken link", "a link to a folder that it lies in: it leads in circles"))
        else:
            folders.append(entry.path)
    return folders, others


def _leads_back(link: str) -> bool:
    """Tells whether a link to a folder leads to one that it lies in, by its path or in truth."""
    above = [os.path.realpath(folder) for folder in Path(link).parents]
    return os.path.realpath(link) in {*above, *map(str, Path(above[0]).parents)}


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
    return "not a file", f"{'a folder' if stat.S_ISDIR(mode) else 'a pipe, a socket or a device'}: not opened"


def _find_parts(folder: Path) -> dict[str, Path]:
    """Returns the given parts, {"train": ..., "test": ...}; nothing if these are class folders."""
    children = _folders(folder)
    parts = {PART_NAMES.get(child.name.strip().lower()): child for child in children}
    if None in parts or "train" not in parts or (len(children) == 1 and not _is_train(children[0])):
        _refuse_other_tasks(folder)
        _refuse_unknown_parts(folder, children)
        return {}
    if len(parts) < len(children):
        names = ", ".join(repr(child.name) for child in children)
        raise ValueError(f"Expected one folder each for train, val and test in {folder}. Found {names}.")
    for part in parts.values():
        _refuse_other_tasks(part)
    if len(parts) == 2 and "validation" in parts:
        parts["test"] = parts.pop("validation")
    inner = {part: _lone_folder(child) for part, child in parts.items()}
    return inner if all(inner.values()) else parts  # train/train/cats, as some archives have it


def _lone_folder(folder: Path) -> Path | None:
    """Returns the folder of several folders that lies alone in another, if so."""
    folders, _, pictured = _look_into(folder)
    return folders[0] if len(folders) == 1 and not pictured and len(_folders(folders[0])) > 1 else None


def _is_train(folder: Path) -> bool:
    """Tells whether a folder, alone in another, is the part train: no part may lie in it, divided into classes."""
    children = _folders(folder)
    parts = [child for child in children if find_words(child.name) & PART_WORDS and _look_into(child)[0]]
    return PART_NAMES.get(folder.name.strip().lower()) == "train" and bool(children) and not parts


def _refuse_other_tasks(folder: Path) -> None:
    """Raises where images lie beside what belongs to them: that is no set of classes."""
    names = {child.name.lower() for child in _folders(folder)}
    images = names & {"images", "image", "imgs", "jpegimages"}
    others = names & {"annotations", "annotation", "labels", "label", "masks", "mask"}
    if images and others:
        received = " and ".join(map(repr, sorted(images | others)))
        raise ValueError(
            f"Expected one folder per class in {folder}. Received {received}, as for object detection. "
            f"Name the folder of class folders in `data`, or write a table with the columns path and label."
        )


def _refuse_unknown_parts(folder: Path, children: list[Path]) -> None:
    """Raises where folders seem to be parts, and not classes."""
    held = {child: _look_into(child) for child in children}
    common = Counter(name for folders, _, _ in held.values() for name in {fold_name(inner.name) for inner in folders})
    divided = {child for child, (folders, _, pictured) in held.items() if len(folders) > 1 and not pictured}
    called = {child: words for child in children if (words := find_words(child.name) & PART_WORDS)}
    stems = {re.sub(r"[\W\d_]+", " ", child.name.lower()) for child in called}
    same_folders = sum(count > 1 for count in common.values()) > 1
    some_flat = divided and any(count and not folders for folders, count, _ in held.values())
    several_called = len(called) > 1 and (len(set().union(*called.values())) > 1 or len(stems) == 1)
    if not (same_folders or some_flat or several_called or called.keys() & divided):
        return
    shown = ", ".join(repr(child.name) for child in sorted(children, key=lambda child: child not in called)[:6])
    rest = f" and {len(children) - 6} more" if len(children) > 6 else ""
    raise ValueError(
        f"Expected one folder per class in {folder}, or in each of the parts train, val and test. Received "
        f"{shown}{rest}, which could be parts, by their names or by what they hold. If they are, rename them, or "
        f"name one of them in `data`. If they are classes, put them into a folder called train, with nothing beside "
        f"it, and name the folder above it in `data`. Or write a table with path, label and split."
    )


def _look_into(folder: str | Path, *, deep: bool = True) -> tuple[list[Path], int, bool]:
    """Returns what a folder holds: the folders with anything in them, how many files, and whether images."""
    folders, others = _list(folder)
    holding = [Path(path) for path in folders if not deep or any(_look_into(path, deep=False)[:2])]
    files = [path for path, problem, _ in others if problem not in ("stray file", "no permission")]
    known = Image.registered_extensions()
    return holding, len(files), any(os.path.splitext(path)[1].lower() in known for path in files)


def _folders(folder: Path) -> list[Path]:
    return [Path(path) for path in _list(folder)[0]]


# ---- tables


def _list_table(table: Path) -> tuple[list[_Row], dict[str, str]]:
    """Returns a row for every file that the table lists, or fails to name, and the parts that it gives to all."""
    rows, same, listing = [], {}, read_listing(table)
    splits = set(listing["split"])
    parts = {} if "" in splits else {part: part for part in sorted(splits)}
    if splits == {"train", "validation"}:
        listing["split"] = listing["split"].replace("validation", "test")
        parts = {"train": "train", "test": "validation"}
    elif not splits & {"train", ""}:
        raise ValueError(
            f"Expected images to learn from in {table}. Received only {' and '.join(sorted(splits))} in its column "
            f"split: name train, or leave it empty, for the others."
        )
    for row in listing.itertuples():
        path = _locate(row.path, table.parent) if row.path.strip() else ""
        if path and row.label:
            same.setdefault(path, []).append(row)
        else:
            reason = f"row {row.row} gives it no label" if path else f"row {row.row} names no file"
            rows.append(_Row(path or str(table), row.label, row.split, row.group, "incomplete row", reason))
    unpacked = resolve_path("runs/.unpacked")  # what others packed has nothing to name outside of it
    archive = unpacked / table.relative_to(unpacked).parts[0] if table.is_relative_to(unpacked) else None
    return rows + [row for path, listed in same.items() for row in _list_file(path, listed, archive)], parts


def _list_file(path: str, listed: list, archive: Path | None) -> list[_Row]:
    """Returns the rows of one file: one to use, where all that is listed of it agrees, and one per repetition."""
    first, *again = listed
    group = next((row.group for row in listed if row.group), "")
    for column in ("label", "split", "group"):
        values = {getattr(row, column): row.row for row in reversed(listed)}  # where each is first
        if column == "group":
            values.pop("", None)
        if len(values) > 1:
            said = ", ".join(f"{value or 'none'!r} in row {values[value]}" for value in sorted(values))
            label = "" if column == "label" else first.label
            return [_Row(path, label, "", group, "contradiction", f"the table gives it several {column}s: {said}")]
    problem = _find_problem(path)
    if archive and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(archive)):
        problem = ("outside", "it lies outside of the unpacked archive that names it: not opened")
    rows = [_Row(path, first.label, first.split, group, *problem)]
    same = [f"row {row.row} says the same as row {first.row}" for row in again]
    return rows + [_Row(path, first.label, first.split, group, "repeated row", reason) for reason in same]


def _locate(path: str, folder: Path) -> str:
    """Returns the absolute path of a file that a table names, perhaps one that was made on Windows, or on a Mac."""
    names = (path, path.replace("\\", "/"), *(unicodedata.normalize(form, path) for form in ("NFC", "NFD")))
    places = [os.path.join(folder, name) for name in names]
    place = next(filter(os.path.exists, places), places[0])
    if ".." in Path(place).parts:  # what it means depends on links: ask the file system
        place = os.path.join(os.path.realpath(os.path.dirname(place)), os.path.basename(place))
    return str(Path(place))  # without "." and "//", so that one file has one path
