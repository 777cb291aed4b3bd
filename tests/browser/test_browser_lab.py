"""The walk through the notebooks as a person takes it, in JupyterLab: `make test-browser`, ten minutes.

The tests belong together: each notebook needs what the one before has made.
"""

import json
import re
import shutil
from datetime import datetime

import nbformat
import numpy as np
import pytest
import yaml
from lab import SCREEN, NotebookPage, serve_lab
from refresh import copy_tree, notebook_paths

pytestmark = pytest.mark.browser

PATHS = {path.stem: path for path in notebook_paths()}
QUIET_SECONDS = 10  # a cell that takes longer has to show how far it is
UNFINISHED = re.compile(r"(?<!\d)\d\d?%\|")  # a progress bar below 100 %


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    with serve_lab(copy_tree(tmp_path_factory.mktemp("lab") / "repository")) as started:
        yield started


@pytest.fixture
def opened(lab, browser, picture):
    """Returns a function that opens a notebook; what its tab shows at the test's end is kept as a picture."""
    pages, asked = [], []
    with browser.new_context(viewport=SCREEN) as context:
        context.on("request", lambda request: asked.append(request.url))

        def open_notebook(stem: str) -> NotebookPage:
            pages.append(context.new_page())
            return NotebookPage(pages[-1], lab, f"{stem}.ipynb")

        yield open_notebook
        for page in pages:
            page.screenshot(path=picture("end"))
    lab.end_kernels()
    assert [url for url in asked if not url.startswith((lab.address, "data:", "blob:"))] == [], "needs the network"


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def errors(cell) -> list:
    return [output for output in cell.get("outputs", []) if output.output_type == "error"]


def figures(notebook) -> list[int]:
    """Returns how many figures each code cell shows."""
    return [sum("image/png" in output.get("data", {}) for output in cell.outputs) for cell in code_cells(notebook)]


def seconds(cell) -> float:
    """Returns how long JupyterLab says that a cell took."""
    times = cell.metadata.execution
    began, ended = (datetime.fromisoformat(times[key]) for key in ("iopub.execute_input", "shell.execute_reply"))
    return (ended - began).total_seconds()


def run_all(notebook: NotebookPage, picture, *, first_count: int = 1) -> None:
    """Fails unless all cells go through, with the stored notebook's figures, and with progress where one waits."""
    notebook.start_all()
    notebook.wait(minutes=20)
    notebook.show_all(picture("run-all"))
    saved = notebook.save()
    assert notebook.texts("error") == [] and notebook.texts("stderr") == []
    code = code_cells(saved)
    assert [cell.execution_count for cell in code] == list(range(first_count, first_count + len(code)))
    expected = figures(nbformat.read(PATHS[notebook.file.stem], as_version=4))
    assert figures(saved) == expected and notebook.figures() == sum(expected)
    assert [text for text in notebook.texts("stdout") if UNFINISHED.search(text)] == []
    limit = max(QUIET_SECONDS, 5 * seconds(code[0]))  # on a busy machine the imports take long, too
    slow = {n for n, cell in enumerate(code) if seconds(cell) > limit and not cell.source.startswith("from helpers")}
    without = [code[number].source for number in slow - set(notebook.bars())]
    assert without == [], f"cells that take over {limit:.0f} s and do not show how far they are"


@pytest.mark.parametrize("stem", PATHS)
def test_run_all(stem, opened, picture):
    run_all(opened(stem), picture)


def test_typed_parameters_hold_and_the_interrupt_button_keeps_the_best_epoch(lab, opened, picture):
    run = lab.tree / "runs" / "interrupted"
    run.mkdir()
    for name in ("images.csv", "frozen.keras", "metrics.json"):  # what 01 and 02 have made
        shutil.copy(lab.tree / "runs" / "digits" / name, run)
    notebook = opened("03_fine_tuning")
    notebook.type_parameters({"run_dir": "runs/interrupted", "steps": 1500})
    notebook.start_all()
    fit = next(n for n, cell in enumerate(code_cells(notebook.save())) if "suffix.fit(" in cell.source)
    notebook.page.wait_for_function(f"() => window.bars[{fit}] >= 5", timeout=180_000)
    notebook.page.locator('[data-jp-item-name="interrupt"]').click()  # the button with the square
    notebook.wait(minutes=1)
    notebook.page.screenshot(path=picture("interrupted"))
    (error,) = notebook.texts("stderr")  # as JupyterLab calls what it draws a traceback as
    assert re.search(r"KeyboardInterrupt: Interrupted in epoch \d+\. .*the training resumes", error, re.DOTALL)
    counts = [cell.execution_count for cell in code_cells(notebook.save())]
    assert all(counts[: fit + 1]) and not any(counts[fit + 1 :])
    with np.load(run / "training.npz") as state:
        epochs = json.loads(str(state["about"]))["epoch"]
    assert 5 <= epochs < 300
    run_all(notebook, picture, first_count=1 + fit + 1)
    assert yaml.safe_load((run / "parameters.yaml").read_text())["steps"] == 1500


def test_other_parameters_make_later_results_stale_and_answers_unfold(lab, opened, picture):
    shutil.copytree(lab.tree / "runs" / "digits", lab.tree / "runs" / "again")
    notebook = opened("02_transfer_learning")
    notebook.type_parameters({"run_dir": "runs/again", "cut": "head"})
    run_all(notebook, picture)
    told = "02_transfer_learning with cut='head' instead of 'auto': earlier results were moved to"
    assert told in notebook.file.read_text().replace('\\"', '"')
    assert (lab.tree / "runs" / "again" / "earlier" / "1" / "chosen.keras").exists()
    notebook.page.locator(".jp-WindowedPanel-outer").first.evaluate("panel => panel.scrollTo(0, panel.scrollHeight)")
    folded = notebook.page.locator(".jp-MarkdownCell details").last
    assert not folded.evaluate("details => details.open")
    folded.locator("summary").click()
    notebook.page.screenshot(path=picture("unfolded"))
    assert folded.evaluate("details => details.open") and folded.locator("p").first.is_visible()
    notebook = opened("05_use_the_model")
    notebook.type_parameters({"run_dir": "runs/again"})
    notebook.start_all()
    notebook.wait(minutes=2)
    notebook.page.screenshot(path=picture("stale"))
    (error,) = [output.evalue for cell in notebook.save().cells for output in errors(cell)]
    told = "chosen.keras of 04_freeze_or_fine_tune is stale, since 02_transfer_learning was executed with cut='head'"
    assert told in error and "Execute 04_freeze_or_fine_tune again" in error
