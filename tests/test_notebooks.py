"""The committed notebooks: their style, and that they still give the outputs that are stored in them."""

import ast
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from refresh import MOST_BYTES, copy_tree, environment, execute, faults, notebook_paths

from helpers.parameters import declared_parameters

NUMBERED = [path for path in notebook_paths() if path.name[0].isdigit()]
notebooks = pytest.mark.parametrize("path", notebook_paths(), ids=lambda path: path.stem)


def read(path: Path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def code_lines(cell) -> list[str]:
    return [line for line in cell.source.splitlines() if line.strip()]


@notebooks
def test_it_is_short_and_prose_stands_between_the_code(path):
    notebook = read(path)
    code = code_cells(notebook)
    title = notebook.cells[0].source.splitlines()[0]
    assert title.startswith("# ") and title.endswith("?"), title
    assert 20 <= len(notebook.cells) <= 45 and len(code) <= 20
    assert sum(len(code_lines(cell)) for cell in code) <= 100
    assert [cell.source for cell in code if len(code_lines(cell)) > 20] == []
    runs = groupby(notebook.cells, key=lambda cell: cell.cell_type == "code")
    assert max(len(list(cells)) for is_code, cells in runs if is_code) <= 3


@pytest.mark.parametrize("path", NUMBERED, ids=lambda path: path.stem)
def test_few_names_come_from_the_package(path):
    nodes = [node for cell in code_cells(read(path)) for node in ast.walk(ast.parse(cell.source))]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "helpers"]
    names = [alias.name for node in imports for alias in node.names]
    assert len(names) <= 18, names
    assert [ast.unparse(node) for node in nodes if isinstance(node, ast.IfExp)] == []


@notebooks
def test_parameters_are_literals_with_a_type_and_a_meaning(path):
    notebook = read(path)
    (cell,) = [cell for cell in notebook.cells if "parameters" in tags(cell)]
    lines = ast.parse(cell.source).body
    assert all(isinstance(line, ast.AnnAssign) for line in lines), "expected `name: type = value  # meaning`"
    declared = declared_parameters(notebook)  # fails on anything but literals
    assert [line.target.id for line in lines] == list(declared)
    assert [name for name, parameter in declared.items() if not parameter.meaning] == []
    assert list(papermill.inspect_notebook(path)) == list(declared)  # it warns of others, as of `str | None`


def test_a_parameter_means_the_same_in_all_notebooks():
    declared = [(path.stem, p) for path in NUMBERED for p in declared_parameters(read(path)).values()]
    for _, parameter in declared:
        others = {(p.default, p.types) for _, p in declared if p.name == parameter.name}
        assert len(others) == 1, f"{parameter.name}: {others}"


@notebooks
def test_logic_is_in_the_package(path):
    forbidden = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.For, ast.While, ast.Lambda)
    for cell in code_cells(read(path)):
        tree = ast.parse(cell.source)  # fails on magics, which papermill and plain Python do not share
        assert [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, forbidden)] == []
        assert "sys.path" not in cell.source


@notebooks
def test_outputs_are_complete_and_clean_and_nearly_all_compared(path):
    notebook = read(path)
    code = code_cells(notebook)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run make refresh"
    assert faults(notebook) == [] and all(cell.get("id") for cell in notebook.cells)
    assert path.stat().st_size <= MOST_BYTES
    assert len([cell for cell in code if "nbval-ignore-output" in tags(cell)]) <= len(code) / 5
    assert [cell.source for cell in code if {"nbval-skip", "raises-exception"} & set(tags(cell))] == []


@notebooks
def test_figures_have_an_alternative_in_words(path):
    outputs = [output for cell in code_cells(read(path)) for output in cell.outputs]
    for output in outputs:
        for kind in [kind for kind in output.get("data", {}) if kind.startswith("image/")]:
            assert len(output.metadata.get(kind, {}).get("alt", "")) > 20


def test_faults_of_stored_outputs_are_found():
    def stored(output) -> list[str]:
        return faults(new_notebook(cells=[new_code_cell("x", outputs=[output], execution_count=1)]))

    assert stored(new_output("stream", text="1,797 images, 3/4 of them gray\n")) == []
    assert stored(new_output("display_data", {"text/html": "<table><tr><td>1</td></tr></table>"})) == []
    assert "stderr" in stored(new_output("stream", name="stderr", text="W0000"))[0]
    assert "path" in stored(new_output("stream", text="saved to " + "/".join(["", "somewhere", "runs", "x"])))[0]
    assert "progress" in stored(new_output("stream", text="\r 45%|####   | 9/20"))[0]
    assert "ValueError: no" in stored(new_output("error", ename="ValueError", evalue="no", traceback=[]))[0]
    assert "bytes" in stored(new_output("stream", text="x" * MOST_BYTES))[0]


def test_outputs_are_made_where_jupyterlab_makes_them(tmp_path):
    tree = copy_tree(tmp_path / "repository")
    (tree / "notebooks").mkdir(exist_ok=True)
    source = (
        "from pathlib import Path; import helpers\n"
        "from tqdm import tqdm; import sys\n"
        "print(Path.cwd().name, Path(helpers.__file__).is_relative_to(Path.cwd().parent))\n"
        "for _ in tqdm(range(3), file=sys.stdout): pass"
    )
    notebook = execute(new_notebook(cells=[new_code_cell(source)]), tree)
    assert notebook.cells[0].outputs[0].text == "notebooks True\n"
    assert notebook.cells[0].metadata == {} and faults(notebook) == []


NBVAL = Path(__file__).with_name("nbval.cfg")
LONG = ["A2_how_transferable.ipynb"]
"""What takes as long as all others together; the walk executes it, too, with less to learn from."""


SHORT = [path.name for path in notebook_paths() if path.name not in LONG]


@pytest.mark.parametrize("names", [SHORT, pytest.param(LONG, marks=pytest.mark.slow)], ids=["short", "long"])
def test_stored_outputs_come_out_again(tmp_path, names):
    """All in one go: each notebook needs what the one before has made."""
    tree = copy_tree(tmp_path / "repository")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--rootdir=.", *names]
    command += ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=1800", f"--nbval-sanitize-with={NBVAL}"]
    options = {"cwd": tree / "notebooks", "env": environment(tree), "capture_output": True, "text": True}
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
