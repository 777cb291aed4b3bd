"""One notebook executed by papermill: in this interpreter's kernel, with progress, its outputs tidied."""

import functools
import logging
import re
import sys
import threading
import time
from pathlib import Path

from helpers import ROOT, write_atomically

_BAR = re.compile(r"\d+%\||\d+it \[")  # what tqdm draws
_CURSOR = re.compile(r"\x1b\[[A-D]|.\x08")  # what it moves by


class Stopped(Exception):
    """A notebook did not finish; the message says where and why, without a stack trace."""


def execute(template: Path, saved: Path, parameters: dict, progress: "Progress") -> None:
    """Executes a notebook from the repository's root, as plain papermill would, and saves the executed copy.

    Args:
        template: The notebook.
        saved: Where its executed copy goes: written after each cell, so that a stop leaves what there is.
        parameters: What is injected after its cell tagged `parameters`.
        progress: Is told of each cell, and of what the notebook prints meanwhile.

    Raises:
        Stopped: A cell failed, or the kernel ended.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    for name in ("papermill", "asyncio"):  # whatever they would say, a message below says it once and better
        logging.getLogger(name).setLevel(logging.CRITICAL)
    stopped = None
    progress.notebook_started(template.stem)
    try:
        papermill.execute_notebook(
            _without_fields(template),
            _without_fields(saved),
            parameters,
            cwd=ROOT,
            kernel_name="python3",
            language="python",
            kernel_manager_class=kernel_manager_class(),
            progress_bar=False,
            stdout_file=progress,
            on_cell_execute=progress.cell_started,
            on_cell_executed=progress.cell_finished,
        )
    except papermill.PapermillExecutionError as error:
        where = f"{template.stem} stopped in In [{error.exec_count}]"
        raise Stopped(f"{where}, at `{_failing_line(error)}`\n{error.ename}: {error.evalue}") from None
    except DeadKernelError:
        stopped = (
            "The kernel that executed it ended by itself. Mostly that is the system's answer to a lack of "
            "memory: smaller images, a smaller batch or a smaller backbone need less."
        )
    except CellTimeoutError:
        stopped = "A cell took longer than the time it was given."
    except KeyboardInterrupt:
        stopped = "It was interrupted."
        raise
    except Exception as error:  # a full disk, a kernel that does not start: the person needs the message
        stopped = f"{type(error).__name__}: {error}"
    finally:
        progress.notebook_finished(stopped or sys.exc_info()[0])
        _tidy(saved, stopped)
    if stopped:
        raise Stopped(f"{template.stem} stopped. {stopped}")


@functools.cache
def kernel_manager_class() -> type:
    """Returns a kernel manager class that starts this interpreter, whichever `python3` is registered."""
    import zmq
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    # Its notes on starting and ending would break the bar, and so would those of its event loop, which now and then
    # still has something to send when the sockets are closed.
    loops = {"loggers": {name: {"level": "CRITICAL"} for name in ("asyncio", "tornado")}}
    quiet = ["--log-level=CRITICAL", f"--IPKernelApp.logging_config={loops}"]

    class ThisInterpreter(AsyncKernelManager):
        @default("transport_encryption")
        def _encryption(self):
            return "auto" if zmq.has("curve") else "disabled"  # others may be on this machine

        @property
        def kernel_spec(self):
            own = get_kernel_dict(extra_arguments=quiet)
            return KernelSpec(resource_dir="", env={"BARS_ON_STDOUT": "1"}, **own)

    return ThisInterpreter


def without_progress_bars(notebook):
    """Returns the notebook with its streams as a terminal shows them in the end, without progress bars."""
    for cell in notebook.cells:
        merged = []
        for output in cell.get("outputs", []):
            same = merged and output.output_type == merged[-1].output_type == "stream"
            if same and output.name == merged[-1].name:
                merged[-1].text += output.text
            else:
                merged.append(output)
        for output in merged:
            if output.output_type == "stream":
                output.text = _settled(output.text)
        if "outputs" in cell:
            cell.outputs = [o for o in merged if o.output_type != "stream" or o.text]
    return notebook


def code_cells(notebook) -> list:
    """Returns the notebook's own code cells: not the one that papermill injects, no empty ones."""
    return [
        cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip() and not _is_injected(cell)
    ]


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


class Progress:
    """One bar over all cells of all notebooks, and below it the line that the notebook prints at the moment.

    A cell weighs the seconds it took when the same notebook was executed before; where that is unknown, all
    cells weigh the same. It is also the file to which papermill writes what the notebook prints.
    """

    def __init__(self, notebooks: dict[str, object], runs: Path):
        """Takes the notebooks to be executed, by name, and the folder of all runs, which has durations."""
        from tqdm import tqdm

        self._weights = {name: _seconds(name, notebook, runs) for name, notebook in notebooks.items()}
        known = [seconds for weights in self._weights.values() for seconds in weights or []]
        usual = sum(known) / len(known) if known else 1.0
        for name, notebook in notebooks.items():
            self._weights[name] = self._weights[name] or [usual] * len(code_cells(notebook))
        # Redirected to a file, a bar is a mess: then there is one line for each notebook.
        self._quiet = not sys.stderr.isatty()
        form = "{desc} {percentage:3.0f}%|{bar}| {elapsed} elapsed, {remaining} left"
        total = sum(map(sum, self._weights.values()))
        common = {"file": sys.stderr, "disable": self._quiet, "leave": False, "dynamic_ncols": True}
        self._bar = tqdm(total=total, bar_format=form, smoothing=0, **common)
        self._line = tqdm(total=0, bar_format="  {desc}", position=1, **common)
        self._done, self._cell, self._started = 0.0, None, time.monotonic()
        self._closing = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self):
        self._ticker.start()
        return self

    def __exit__(self, *exception):
        self._closing.set()
        self._ticker.join()
        self._line.close()
        self._bar.close()

    def notebook_started(self, name: str) -> None:
        """Shows which notebook is being executed."""
        self._name, self._left, self._started = name, list(self._weights[name]), time.monotonic()
        self._bar.set_description_str(name)

    def notebook_finished(self, stopped) -> None:
        """Leaves a line about it, unless it stopped: then a message follows."""
        self._cell = None
        self._show("")
        if not stopped:
            seconds = time.monotonic() - self._started
            self._bar.write(f"{self._name} finished in {_duration(seconds)}", file=sys.stderr)

    def cell_started(self, cell, cell_index: int) -> None:
        """Is called by nbclient."""
        if not _is_injected(cell):
            self._cell = (time.monotonic(), self._left.pop(0))

    def cell_finished(self, cell, cell_index: int, execute_reply: dict) -> None:
        """Is called by nbclient."""
        if self._cell:
            self._done, self._cell = self._done + self._cell[1], None
            self._bar.update(self._done - self._bar.n)
            self._show("")

    def write(self, text: str) -> None:
        """Shows the last line of what the notebook has printed, above all of its own progress bars."""
        lines = [line.strip() for line in re.split(r"[\r\n]", _CURSOR.sub("", text))]
        if lines := [line for line in lines if line]:
            self._show(lines[-1])

    def flush(self) -> None:
        """Belongs to being a file."""

    def _show(self, line: str) -> None:
        self._line.set_description_str(line)

    def _tick(self) -> None:
        """Keeps the clock going during a long cell, and the bar where the cell is expected to have come."""
        while not self._closing.wait(0.5):
            if cell := self._cell:
                started, weight = cell
                self._bar.n = self._done + min(time.monotonic() - started, 0.95 * weight)
            self._bar.refresh()


def _seconds(name: str, notebook, runs: Path) -> list[float] | None:
    """Returns what each code cell took in the latest run that finished; None if there is none that fits."""
    for path in sorted(runs.glob(f"*/{name}.ipynb"), key=lambda path: path.stat().st_mtime, reverse=True):
        earlier = read_executed(path)
        if earlier is not None and is_finished(earlier):
            seconds = [cell.metadata.get("papermill", {}).get("duration") for cell in code_cells(earlier)]
            if len(seconds) == len(code_cells(notebook)) and all(seconds):
                return seconds
    return None


def _is_injected(cell) -> bool:
    return "injected-parameters" in cell.metadata.get("tags", [])


def _without_fields(path: Path) -> str:
    """Returns the path for papermill, which takes braces in it for fields to be filled in."""
    return str(path).replace("{", "{{").replace("}", "}}")


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


def _settled(text: str) -> str:
    """Returns what stays of a text: a carriage return takes back the line so far, and bars are dropped."""
    kept = []
    for line in re.split(r"(?<=\n)", _CURSOR.sub("", text).replace("\r\n", "\n")):
        *overwritten, last = line.split("\r")
        if not overwritten or (last.strip() and not _BAR.search(last)):
            kept.append(last)
    return "".join(kept)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
