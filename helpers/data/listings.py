"""Tables in which a user lists images: CSV, TSV or Parquet."""

import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

from helpers.data.names import PART_NAMES, unify_name

TABLES = (".csv", ".tsv", ".parquet")

_COLUMNS = ("path", "label", "split", "group")
_SAVE_AS = "Save it as CSV in UTF-8."


class Listed(NamedTuple):
    """One row of such a table."""

    number: int  # in the table; a CSV's header is row 1
    path: str
    label: str
    split: str = ""  # a part, or "" while undecided
    group: str = ""


def read_listing(table: Path) -> list[Listed]:
    """Returns the rows of a table with the columns path and label, perhaps split and group, all as texts.

    The names of the columns may be in any letter case, and others are ignored. Missing values are "". Labels and
    groups are in composed Unicode (NFC), and parts may have any name of `PART_NAMES`.

    Raises:
        ValueError: it is no such table: damaged, not in UTF-8, without these columns, with a row of another
            length than the header, without rows, or with a split that is none.
        ImportError: it is a .parquet table, and pyarrow is not installed.
        OSError: it may not be read.
    """
    rows = _read_parquet(table) if table.suffix.lower() == ".parquet" else _read_csv(table)
    if not rows:
        raise ValueError(f"Expected a row for each image in {table}. Received only the names of its columns.")
    for index, row in enumerate(rows):
        # the path as it is: a file's name may begin or end with a space
        label, split, group = unify_name(row.label.strip()), row.split.strip().lower(), unify_name(row.group.strip())
        if split and split not in PART_NAMES:
            raise ValueError(
                f"Expected train, validation, test or nothing in the column split of {table}. Received "
                f"{row.split!r} in row {row.number}. Leave it empty for images that are to be divided."
            )
        rows[index] = Listed(row.number, row.path, label, PART_NAMES.get(split, ""), group)
    return rows


def lists_images(table: Path) -> bool:
    """Returns whether the table has the columns path and label; not where it cannot be read: it may be anything."""
    try:
        if table.suffix.lower() == ".parquet":
            from pyarrow import parquet

            names = parquet.read_schema(table).names
        else:
            with open(table, "rb") as file:
                line = file.readline(2**16)  # the rest may be large
            _, names = _split_header(table, line.decode("utf-8-sig", "replace"))
    except Exception:  # pyarrow, which may be missing, raises many kinds
        return False
    return {"path", "label"} <= set(map(_plain, names))


def _read_csv(table: Path) -> list[Listed]:
    content = table.read_bytes()
    try:
        text = content.decode("utf-8-sig")
        separator, _ = _split_header(table, text)
        # not pandas, which fills short rows; strict, since a quote left open swallows all that follows
        rows = list(enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), start=1))
    except UnicodeDecodeError as error:
        found = f"0x{content[error.start]:02x} at byte {error.start}"
        raise ValueError(f"Expected a text table in UTF-8. Received {table}, with {found}. {_SAVE_AS}") from None
    except csv.Error as error:
        raise ValueError(
            f"Expected a table in CSV. Received {table}, which is damaged: {error}. {_SAVE_AS}"
        ) from None
    if "\0" in text:
        raise ValueError(f"Expected a text table in UTF-8. Received {table}, which holds NUL bytes. {_SAVE_AS}")
    names = rows[0][1] if rows else []
    columns = _find_columns(table, names)
    rows = [(number, row) for number, row in rows[1:] if row]  # without blank lines
    for number, row in rows:
        if len(row) != len(names):
            raise ValueError(
                f"Expected {len(names)} columns in every row of {table}. Received {len(row)} in row {number}. A text "
                f"that holds a separator needs quotes around it."
            )
    return [Listed(number, **{name: row[index] for name, index in columns.items()}) for number, row in rows]


def _split_header(table: Path, text: str) -> tuple[str, list[str]]:
    """Returns the separator of a text table, and the names in its first line."""
    line = re.split("[\r\n]", text, maxsplit=1)[0]
    separator = "\t" if table.suffix.lower() == ".tsv" else ","
    names = next(csv.reader([line], delimiter=separator), [])
    other = next((other for other in ";\t" if other in line), separator)
    if separator == "," and len(names) == 1:
        separator, names = other, next(csv.reader([line], delimiter=other), [])
    return separator, names


def _read_parquet(table: Path) -> list[Listed]:
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
            data = file.read(columns=[name for name in names if _plain(name) in _COLUMNS]).to_pydict()
    except Exception as error:  # pyarrow raises many kinds
        raise ValueError(
            f"Expected a Parquet table. Received {table}, which is none, or damaged: {error}."
        ) from error
    columns = _find_columns(table, names)
    rows = enumerate(zip(*(data[names[index]] for index in columns.values()), strict=True), start=1)
    texts = ((number, [_to_text(value, f"row {number} of {table}") for value in row]) for number, row in rows)
    return [Listed(number, **dict(zip(columns, row, strict=True))) for number, row in texts]


def _to_text(value: object, place: str) -> str:
    """Returns a value of a Parquet table as a CSV table would hold it."""
    try:
        text = value.decode() if isinstance(value, bytes) else "" if value is None or value != value else str(value)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or isinstance(value, (list, dict)):
        raise ValueError(f"Expected texts or numbers in {place}. Received {value!r}.")
    return text


def _find_columns(table: Path, names: list[str]) -> dict[str, int]:
    """Returns where in a row the columns are that are used, by name."""
    plain = [_plain(name) for name in names]
    columns = {name: plain.index(name) for name in _COLUMNS if name in plain}
    if not {"path", "label"} <= set(columns) or any(plain.count(name) > 1 for name in columns):
        raise ValueError(
            f"Expected the columns path and label, once each, in the first row of {table}. Received "
            f"{', '.join(map(repr, names)) or 'no names at all'}."
        )
    return columns


def _plain(name: str) -> str:
    return name.strip().lower()
