"""From what the user names to a table with a row for every file."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from helpers import resolve_path
from helpers.data.tables import stored_path

_PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def open_data(data: str) -> Path:
    """Returns the folder of labelled images that the parameter `data` names.

    Args:
        data: "digits" for the embedded example (1000 of scikit-learn's handwritten digits, 8x8 pixels,
            written below `data/digits` on first use), or a folder; a relative path counts from the
            repository's root.

    Raises:
        FileNotFoundError: there is no such folder.
        NotADirectoryError: it is a file.
    """
    if data == "digits":
        return _write_digits(resolve_path("data/digits"))
    folder = resolve_path(str(data) or "?")  # an empty text would be the repository itself
    if not folder.exists():
        nearest = next(parent for parent in folder.parents if parent.exists())
        raise FileNotFoundError(
            f"The parameter `data` should name a folder of labelled images. Received {data!r}, but there is "
            f"no {folder} (the nearest folder that exists is {nearest}). Check the spelling. "
            f'`data="digits"` runs the embedded example.'
        )
    if not folder.is_dir():
        raise NotADirectoryError(
            f"The parameter `data` should name a folder that holds one folder of images per class. "
            f"Received {data!r}, which is a file. Unpack it if it is an archive, and name the folder."
        )
    return folder


def _write_digits(folder: Path) -> Path:
    """Writes scikit-learn's digits as an example of few labels: 20 of each to learn from, 800 to test."""
    if folder.exists():
        return folder
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype("uint8")  # 0..16 inked dots of each 4x4 block
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    for digit in range(10):
        chosen = np.random.default_rng([0, digit]).permutation(np.flatnonzero(digits.target == digit))[:100]
        for rank, index in enumerate(chosen):
            target = partial / ("train" if rank < 20 else "test") / str(digit)
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[index]).save(target / f"{index:04d}.png")
    try:
        partial.rename(folder)  # all or nothing: an interrupted first run leaves no half set behind
    except OSError:
        if not folder.exists():  # otherwise another process was faster
            raise
        shutil.rmtree(partial)
    return folder


def find_images(folder: str | Path) -> pd.DataFrame:
    """Returns the table of the files in a folder of class folders, or of parts with class folders.

    Two layouts are understood: `folder/<class>/...` and `folder/<part>/<class>/...` with the parts train,
    val (or validation) and test. Where only two parts are given, as in many public sets, the second one is
    the test set, whatever its name, and `split_images` draws validation images from the first.

    Returns:
        A DataFrame with the columns path, label and split, sorted by path; `split` is "" where the
        folder does not decide it. Every file is listed: what is no image is for `check_images` to tell.

    Raises:
        ValueError: there is no file, fewer than two classes, or a given part lacks a class.
    """
    folder = resolve_path(folder)
    parts = _find_parts(folder)
    roots = parts or {"": folder}
    rows = [
        (stored_path(path), label.name, part)
        for part, root in roots.items()
        for label in _folders(root)
        for path in sorted(label.rglob("*"))
        if path.is_file() and not any(map(_hidden, (path, *path.parents[: len(path.relative_to(label).parts) - 1])))
    ]
    for path, *_ in rows:
        if any("\ud800" <= character <= "\udfff" for character in path):
            raise ValueError(f"Expected file names in UTF-8. Received {path!r}: rename it.")
    images = pd.DataFrame(rows, columns=["path", "label", "split"])
    if images.empty:
        raise ValueError(
            f"Expected one folder of images per class in {folder}. Found {_contents(folder)}, and no file in "
            f"a class folder. Put the images of each class into a folder named after the class."
        )
    classes = sorted(images["label"].unique())
    if len(classes) == 1:
        raise ValueError(
            f"Expected at least two classes in {folder}. Found only {classes[0]!r} with {len(images)} files. "
            f"Each class needs a folder of its own; perhaps `data` should name the folder above or below."
        )
    for part in parts:
        missing = sorted(set(classes) - set(images.loc[images["split"] == part, "label"]))
        if missing:
            raise ValueError(
                f"Expected every class in every given part of {folder}. {parts[part].name!r} has no image of "
                f"{', '.join(map(repr, missing))}. Add some, or remove the class from the other parts."
            )
    return images.sort_values("path", ignore_index=True)


def _find_parts(folder: Path) -> dict[str, Path]:
    """Returns the given parts, {"train": ..., "test": ...}; nothing if these are class folders."""
    children = _folders(folder)
    parts = {_PART_NAMES.get(child.name.lower()): child for child in children}
    if None in parts or "train" not in parts or len(children) < 2:
        _refuse_unknown_parts(folder, children)
        return {}
    if len(parts) < len(children):
        names = ", ".join(repr(child.name) for child in children)
        raise ValueError(f"Expected one folder each for train, val and test in {folder}. Found {names}.")
    if len(parts) == 2 and "validation" in parts:
        parts["test"] = parts.pop("validation")
    return parts


def _refuse_unknown_parts(folder: Path, children: list[Path]) -> None:
    """Raises where folders named like parts hold the same sub-folders: then these are the classes."""
    children = [child for child in children if child.name.lower().startswith(("train", "val", "dev", "test"))]
    inner = [{entry.name for entry in _folders(child)} for child in children]
    common = {name for names in inner for name in names if sum(name in others for others in inner) > 1}
    if len(common) > 1:
        raise ValueError(
            f"Expected class folders, or the parts train, val and test with class folders, in {folder}. Found "
            f"{', '.join(repr(child.name) for child in children)}, of which several hold "
            f"{', '.join(map(repr, sorted(common)[:5]))}. Rename the parts to train, val and test, and move what is "
            f"no part elsewhere."
        )


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not _hidden(entry)]


def _hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name == "__MACOSX"


def _contents(folder: Path) -> str:
    names = [entry.name for entry in sorted(folder.iterdir())]
    return (
        f"{len(names)} entries ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
        if names
        else "nothing at all"
    )
