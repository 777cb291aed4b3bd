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
    """Returns the absolute path: `~` expanded, a relative path counted from the repository's root."""
    return ROOT / Path(str(path)).expanduser()  # papermill makes a number of a folder called 2024


def shown_path(path: Path) -> str:
    """Returns the path as a person at this prompt would type it."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@contextmanager
def whole_file(path: Path):
    """Yields a path to write to, beside `path`, which it replaces when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}.partial-{path.name}")  # with its suffix, which Keras looks at
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> Path:
    """Returns `path`, which now holds `text` (UTF-8); an interrupted write leaves the old file whole."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
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


class _ReplacedLine:
    """A file for tqdm in a notebook: one output per cell, which is replaced and in the end is empty."""

    encoding, _cell, _handle = "utf-8", None, None

    def write(self, text: str) -> None:
        """Shows what a bar is now; "\\r" and spaces take it away, other blanks move a terminal's cursor."""
        from IPython import display, get_ipython

        line = {"text/plain": text.replace("\x1b[A", "").strip()}
        if not line["text/plain"] and not text.startswith("\r "):
            return
        if self._cell == get_ipython().execution_count:
            self._handle.update(line, raw=True)
        else:
            self._cell, self._handle = get_ipython().execution_count, display.display(line, raw=True, display_id=True)

    def flush(self) -> None:
        """Belongs to being a file."""


_REPLACED_LINE = _ReplacedLine()


def progress_file():
    """Returns the file for progress bars: stdout, or in a notebook, which would store that, a line that vanishes.

    The runner shows bars from stdout and stores none: it sets `BARS_ON_STDOUT`.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return _REPLACED_LINE if hasattr(shell, "kernel") and "BARS_ON_STDOUT" not in os.environ else sys.stdout


def wrapped(text: str) -> str:
    """Returns the text in lines that fit the terminal, and none of them longer than 100 characters."""
    options = {"break_long_words": False, "break_on_hyphens": False}
    options["width"] = min(shutil.get_terminal_size((100, 24)).columns, 100)
    lines = [(line, " " * (len(line) - len(line.lstrip()))) for line in text.split("\n")]
    return "\n".join(textwrap.fill(line, subsequent_indent=indent, **options) for line, indent in lines)
