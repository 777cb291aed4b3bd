"""Executes the notebooks and stores their outputs in the repository: `make refresh`.

Each is executed as JupyterLab does it, from `notebooks/`, but in a clean copy of the repository, so that
nothing left over from earlier work can help it. Only if all succeed is any of them stored.
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from helpers import write_atomically
from helpers.execution import without_progress_bars

ROOT = Path(__file__).resolve().parent.parent
MOST_BYTES = 300_000
LOCAL_PATH = re.compile(r"(?<![\w.:/])(?:/[\w.-]+){2,}|\b[A-Z]:\\")


def notebook_paths() -> list[Path]:
    """Returns the notebooks in the order in which they are executed: 01.., then the appendices."""
    return sorted((ROOT / "notebooks").glob("[0-9A]*_*.ipynb"))


def copy_tree(destination: Path) -> Path:
    """Returns `destination`, a new folder with what the notebooks need of the repository and nothing else."""
    destination.mkdir(parents=True)
    for name in ("notebooks", "helpers", "data"):
        ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(ROOT / name, destination / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", destination)
    return destination


def environment(tree: Path) -> dict[str, str]:
    """Returns the environment variables under which the outputs are made and compared."""
    return os.environ | {"PYTHONPATH": str(tree), "TQDM_DISABLE": "1"}


def execute(notebook, tree: Path):
    """Returns the notebook, executed in `notebooks/` of a copied tree, as it is committed.

    Nothing is left of progress bars and of what changes from run to run. CellExecutionError says that a cell failed.
    """
    resources = {"metadata": {"path": str(tree / "notebooks")}}
    client = NotebookClient(notebook, kernel_name="python3", resources=resources, record_timing=False, timeout=None)
    client.execute(env=environment(tree))
    without_progress_bars(notebook)
    for cell in notebook.cells:
        for name in ("execution", "papermill", "collapsed", "scrolled"):
            cell.metadata.pop(name, None)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},  # the rest of it changes with each Python release
    }
    return notebook


def faults(notebook) -> list[str]:
    """Returns what must not stand in a committed notebook's outputs: a line for each place."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            where = f"In [{cell.execution_count}]"
            if output.output_type == "error":
                found.append(f"{where}: {output.ename}: {output.evalue}")
            if output.get("name") == "stderr":
                found.append(f"{where}: on stderr: {output.text.strip()[:200]}")
            for text in _texts(output):
                if match := LOCAL_PATH.search(text):
                    found.append(f"{where}: a path of this machine: {match[0]}")
                if "\r" in text or re.search(r"\d+%\|", text):
                    found.append(f"{where}: a progress bar")
    size = len(nbformat.writes(notebook).encode())
    if size > MOST_BYTES:
        found.append(f"{size:,} bytes: expected at most {MOST_BYTES:,}. Smaller or fewer figures help.")
    return found


def _texts(output) -> list[str]:
    if output.output_type == "stream":
        return [output.text]
    shown = output.get("data", {})
    texts = [shown[kind] for kind in ("text/plain", "text/html", "text/markdown") if kind in shown]
    return [re.sub(r"</?\w+[^>]*>", " ", text) for text in texts]  # a closing tag is no path


def main() -> int:
    """Returns the exit status: 0 if all were executed and stored, 1 if none was stored."""
    executed, wrong = {}, []
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(Path(folder) / "repository")
        for path in notebook_paths():
            print(f"{path.name} ...", flush=True)
            try:
                executed[path] = execute(nbformat.read(path, as_version=4), tree)
            except CellExecutionError as error:
                wrong.append(f"{path.name}: {error.ename}: {error.evalue}")
                break  # the next one needs what this one makes
            wrong += [f"{path.name}: {fault}" for fault in faults(executed[path])]
    if wrong:
        print("Nothing was stored.", *wrong, sep="\n  ", file=sys.stderr)
        return 1
    for path, notebook in executed.items():
        write_atomically(path, nbformat.writes(notebook) + "\n")
    print(f"{len(executed)} executed and stored.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
