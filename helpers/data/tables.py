"""images.csv, the table that every later step starts from, and what is counted in it."""

import csv
import io
import os
from pathlib import Path

import numpy as np
import pandas as pd

import helpers
from helpers import write_atomically

PARTS = ("train", "validation", "test")


def stored_path(path: str | Path) -> str:
    """Returns an absolute path as tables name it: relative to the repository's root where it lies below that."""
    stored = str(path).removeprefix(f"{helpers.ROOT}{os.sep}")
    if stored.startswith("~"):  # `resolve_path` would take it for somebody's home
        stored = str(path)
    return stored.replace(os.sep, "/")


def count_images(images: pd.DataFrame) -> pd.DataFrame:
    """Returns the number of images of each class (rows) in each part (columns), with totals."""
    counts = pd.crosstab(images["label"], images["split"]).reindex(columns=PARTS, fill_value=0)
    counts = pd.concat([counts, counts.sum().to_frame("all classes").T])
    return counts.assign(total=counts.sum(axis=1)).rename_axis(index=None, columns=None)


def save_images(images: pd.DataFrame, path: str | Path) -> None:
    """Writes the table as CSV; ValueError if there is another table already, which models may have learned from."""
    path, text = Path(path), to_csv(images)
    if path.exists() and path.read_bytes() != text.encode():
        raise ValueError(
            f"{path} divides other images, or divides them otherwise: images that a model was trained on could "
            f"become test images. Choose another run_dir (NAME=...), or delete the run's folder."
        )
    write_atomically(path, text)


def to_csv(table: pd.DataFrame, **options) -> str:
    """Returns the table as CSV that `read_texts` reads back, whatever the names of the files in it."""
    texts = table.select_dtypes("str")
    returns = any(texts[name].str.contains("\r", regex=False).any() for name in texts)
    # a "\r" alone would not be quoted, and end the line when it is read
    quoting = csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL
    return table.to_csv(index=False, quoting=quoting, **options)


def load_images(path: str | Path) -> pd.DataFrame:
    """Returns a table that `save_images` wrote; labels such as "007" or "NA" stay the texts that they are."""
    return read_texts(path, numbers=("width", "height", "white"))


def read_texts(path: str | Path, *, numbers: tuple[str, ...] = ()) -> pd.DataFrame:
    """Returns a CSV table with every column but those named as texts, line ends within texts kept."""
    # from bytes: a file opened as text would turn the "\r" of a file name into "\n"
    table = pd.read_csv(io.BytesIO(Path(path).read_bytes()), dtype=str, keep_default_na=False)
    return table.astype({name: "int64" for name in numbers if name in table})


def encode_labels(images: pd.DataFrame) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns each part's labels as int64 arrays that index the class names, and these, sorted."""
    class_names = sorted(images["label"].unique())
    codes = images["label"].map({name: code for code, name in enumerate(class_names)})
    return {part: codes[images["split"] == part].to_numpy("int64") for part in PARTS}, class_names
