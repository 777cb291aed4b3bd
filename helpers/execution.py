"""One notebook executed by papermill, with a progress bar, and its outputs without those of its own."""

import logging
import os
import re
import sys
import time
from pathlib import Path

from helpers import ROOT, write_atomically

_BAR = re.compile(r"\d+%\|.*\| |\d+it \[")  # what tqdm draws
_CURSOR = re.compile(r"\x1b\[[A-D]|.\x08")  # what it moves by

# The kernel's notes on starting and ending would break the bar, and so would those of its event loop, which may still
# have something to send when the sockets are closed.
_LOOPS = {"loggers": {name: {"level": "CRITICAL"} for name in ("asyncio", "tornado")}}
_QUIET = ["--log-level=CRITICAL", f"--IPKernelApp.logging_config={_LOOPS}"]


class NotebookFailed(Exception):
    """A notebook did not finish; the message says where and why, without a stack trace."""


def execute(template: Path, saved: Path, parameters: dict, bar) -> None:
    """Executes a notebook from the repository's root with papermill, and saves the executed copy, cell by cell.

    NotebookFailed says that a cell failed, or that the kernel ended.
    """
    import papermill
    import zmq
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    for name in ("papermill", "asyncio"):  # the messages below say it once and better
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ["BARS_ON_STDOUT"] = "1"  # in the kernel: see `progress_file`
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # this interpreter's kernel, and not the user's `python3`
    encryption = "auto" if zmq.has("curve") else "disabled"  # others may be on this machine
    stopped, started = None, time.monotonic()
    bar.set_description_str(template.stem, refresh=False)
    bar.set_postfix_str("")
    try:
        papermill.execute_notebook(
            str(template),
            str(saved),
            parameters,
            cwd=ROOT,
            kernel_name="python3",
            language="python",
            extra_arguments=_QUIET,
            config=Config(KernelManager={"transport_encryption": encryption}),
            progress_bar=False,
            stdout_file=_LastLine(bar),
            on_cell_executed=lambda cell, **_: bar.update(not _is_injected(cell)),
        )
        seconds = time.monotonic() - started
        took = f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
        bar.write(f"{template.stem} finished in {took}", file=sys.stderr)
    except papermill.PapermillExecutionError as error:
        where = f"{template.stem} stopped in In [{error.exec_count}]"
        raise NotebookFailed(f"{where}, at `{_failing_line(error)}`\n{error.ename}: {error.evalue}") from None
    except KeyboardInterrupt:
        stopped = "It was interrupted."
        raise
    except Exception as error:  # a full disk, a kernel that does not start: the person needs the message
        stopped = f"{type(error).__name__}: {error}"
        if isinstance(error, DeadKernelError):
            stopped = "The kernel ended by itself, mostly for lack of memory: smaller images or batches need less."
        raise NotebookFailed(f"{template.stem} stopped. {stopped}") from None
    finally:
        _tidy(saved, stopped)


def _failing_line(error) -> str:
    """Returns the line at which the cell failed, as IPython's traceback marks it, or else its first one."""
    from papermill.exceptions import strip_color

    marked = re.search(r"^-+> *\d+ (.*)$", strip_color("\n".join(error.traceback)), flags=re.MULTILINE)
    return (marked[1] if marked else error.source.strip().splitlines()[0]).strip()


def _tidy(saved: Path, stopped: str | None) -> None:
    import nbformat

    if (notebook := read_executed(saved)) is None:
        return
    without_progress_bars(notebook)
    if stopped:  # papermill itself notes neither a dead kernel nor an interruption
        notebook.metadata.papermill.update(exception=True, stopped=stopped)
    write_atomically(saved, nbformat.writes(notebook) + "\n")


def progress_bar(notebooks: list):
    """Returns a bar over all code cells of the notebooks, with the time left; redirected to a file, there is none."""
    from tqdm import tqdm

    form = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed} elapsed, {remaining} left{postfix}"
    total = sum(len(code_cells(notebook)) for notebook in notebooks)
    return tqdm(total=total, bar_format=form, file=sys.stderr, disable=None, leave=False, dynamic_ncols=True)


class _LastLine:
    """The file that papermill prints to: shows the last line, such as a training's own bar, behind the bar."""

    def __init__(self, bar):
        self.bar = bar

    def write(self, text: str) -> None:
        lines = [line.strip() for line in re.split(r"[\r\n]", _CURSOR.sub("", text)) if line.strip()]
        if lines:
            self.bar.set_postfix_str(lines[-1])

    def flush(self) -> None:
        """Belongs to being a file."""


def without_progress_bars(notebook):
    """Returns the notebook with its streams as a terminal shows them in the end, without progress bars."""
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    streams = [output for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output]
    for output in streams:
        output.text = _CURSOR.sub("", output.text).replace("\r\n", "\n")
    # Pieces become one text, in which a carriage return takes back the line so far.
    CoalesceStreamsPreprocessor().preprocess(notebook, {})
    for output in streams:
        lines = re.split(r"(?<=\n)", output.text)
        output.text = "".join(line for line in lines if not _BAR.search(line) and line.strip(" ") != "\r")
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("text", " ")]
    return notebook


def code_cells(notebook) -> list:
    """Returns the notebook's own code cells: not the one that papermill injects, no empty ones."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    return [cell for cell in cells if not _is_injected(cell)]


def _is_injected(cell) -> bool:
    return "injected-parameters" in cell.metadata.get("tags", [])


def is_finished(notebook) -> bool:
    """Whether an executed notebook went through to its end."""
    about = notebook.metadata.get("papermill", {})
    executed = all(cell.execution_count for cell in code_cells(notebook))
    return bool(about.get("end_time")) and not about.get("exception") and executed


def read_executed(path: Path):
    """Returns the notebook, or None if there is none, it was cut off while being written, or it is another file."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (AttributeError, OSError, ValueError, nbformat.ValidationError):
        return None
