"""Tables in which a user lists images: CSV, TSV or Parquet."""

import csv
import io
from pathlib import Path

import pandas as pd

from helpers.data.names import PART_NAMES, unify_name

TABLES = (".csv", ".tsv", ".parquet")

_COLUMNS = ("path", "label", "split", "group")


def read_listing(table: Path) -> pd.DataFrame:
    """Returns the columns path, label, split and group as texts, "" where missing, and row (a CSV's header is row 1).

    The table's columns may be in any letter case, and others are ignored. Labels and groups are in composed Unicode
    (NFC), and parts may have any name of `PART_NAMES`. ValueError if it is damaged, not in UTF-8, without path or
    label, without rows, or has a split that is none; ImportError for Parquet without pyarrow.
    """
    names, rows = _read_parquet(table) if table.suffix.lower() == ".parquet" else _read_csv(table)
    plain = [name.strip().lower() for name in names]
    if not {"path", "label"} <= set(plain) or any(plain.count(name) > 1 for name in _COLUMNS):
        raise ValueError(
            f"Expected the columns path and label, once each, in the first row of {table}. Received "
            f"{', '.join(map(repr, names)) or 'no names at all'}."
        )
    if rows.empty:
        raise ValueError(f"Expected a row for each image in {table}. Received only the names of its columns.")
    rows.columns = plain
    rows = pd.DataFrame({name: rows[name] if name in rows else "" for name in _COLUMNS}).assign(row=rows.index + 1)
    for name in ("label", "group"):  # the path as it is: a file's name may begin or end with a space
        rows[name] = rows[name].map(lambda text: unify_name(text.strip()))
    split = rows["split"].map(lambda text: text.strip().lower())
    for row in rows[~split.isin({"", *PART_NAMES})].itertuples():
        raise ValueError(
            f"Expected train, validation, test or nothing in the column split of {table}. Received {row.split!r} in "
            f"row {row.row}. Leave it empty for images that are to be divided."
        )
    return rows.assign(split=split.map(lambda name: PART_NAMES.get(name, "")))


def lists_images(table: Path) -> bool:
    """Returns whether the table has the columns path and label; not where it cannot be read: it may be anything."""
    try:
        if table.suffix.lower() == ".parquet":
            from pyarrow import parquet

            names = parquet.read_schema(table).names
        else:
            with open(table, "rb") as file:
                line = file.readline(2**16).decode("utf-8-sig", "replace")  # the rest may be large
            names = next(csv.reader([line.strip()], delimiter=_separator(table, line)))
    except Exception:  # pyarrow, which may be missing, raises many kinds
        return False
    return {"path", "label"} <= {name.strip().lower() for name in names}


def _separator(table: Path, text: str) -> str:
    line = text.replace("\r", "\n").partition("\n")[0]
    return "\t" if table.suffix.lower() == ".tsv" else next((mark for mark in ",;\t" if mark in line), ",")


def _read_csv(table: Path) -> tuple[list[str], pd.DataFrame]:
    """Returns the columns' names, and the rows that are not blank, all texts."""
    try:
        text = table.read_bytes().decode("utf-8-sig")
        if "\0" in text:
            raise ValueError("it holds NUL bytes")
        options = {"header": None, "dtype": str, "keep_default_na": False, "skip_blank_lines": False}
        # from a text whose line ends stay as they are: a file's name may hold a "\r"
        rows = pd.read_csv(io.StringIO(text, newline=""), sep=_separator(table, text), **options).fillna("")
    except ValueError as error:  # pandas' own kinds, and what is not UTF-8
        raise ValueError(f"Expected a CSV table in UTF-8. Received {table}: {error}. Save it as CSV.") from error
    return rows.iloc[0].tolist(), rows[1:][(rows[1:] != "").any(axis=1)]


def _read_parquet(table: Path) -> tuple[list[str], pd.DataFrame]:
    """Returns the names of all columns, or of ours, and these as texts."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise ImportError(
            f"Reading {table} takes pyarrow, which is not installed: `pip install pyarrow` (or the extra `parquet`). "
            f"Or save the table as CSV."
        ) from None
    try:
        with parquet.ParquetFile(table) as file:
            names = file.schema_arrow.names
            ours = [name for name in names if name.strip().lower() in _COLUMNS]
            values = file.read(columns=ours).to_pydict()
    except Exception as error:  # pyarrow raises many kinds
        raise ValueError(f"Expected a Parquet table. Received {table}: {error}.") from error
    rows = pd.DataFrame({name: [_to_text(value, table) for value in values[name]] for name in ours}, dtype="str")
    return ours or names, rows


def _to_text(value: object, table: Path) -> str:
    """Returns a value of a Parquet table as a CSV table would hold it."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    if "\0" in text or "\ufffd" in text or isinstance(value, (list, dict)):
        raise ValueError(f"Expected texts or numbers in {table}. Received {value!r}.")
    return "" if value is None or value != value else text
