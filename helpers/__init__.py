"""Freeze or fine-tune? The helper package that all notebooks import.

Light on purpose: heavy libraries are imported by the modules that use them.
"""

import os
import shutil
import sys
import textwrap
import uuid
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # its own reserves megabytes for pandas' short texts

ROOT = Path(__file__).resolve().parent.parent
"""The repository's root, which relative paths in parameters are resolved against."""


def resolve_path(path: str | Path) -> Path:
    """Returns the absolute path: `~` expanded, a relative path counted from the repository's root.

    JupyterLab and nbval work in `notebooks/`, papermill in the caller's folder: so the same parameter
    means the same file, whoever executes.
    """
    return ROOT / Path(str(path)).expanduser()  # papermill makes a number of a folder called 2024


def write_atomically(path: Path, text: str) -> Path:
    """Returns `path`, which now holds `text` (UTF-8): an interrupted write leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


@contextmanager
def silent_stderr():
    """Points file descriptor 2 at nothing: C libraries write messages to it, below `sys.stderr`."""
    if sys.stderr and not sys.stderr.closed:
        sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def wrapped(text: str) -> str:
    """Returns the text in lines that fit the terminal, and none of them longer than 100 characters."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    return "\n".join(
        textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent)
        for line in text.split("\n")
        for indent in [" " * (len(line) - len(line.lstrip()))]
    )
