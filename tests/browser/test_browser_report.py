"""The report in a browser: nobody is kept out of it, and it needs nothing but itself."""

import shutil

import nbformat
import pytest
from nbformat.v4 import new_output
from pages import WIDTHS, faults
from refresh import ROOT

from helpers.notebook_run import Run
from helpers.report import write_report

ARM = {"test_accuracy": 0.94, "low": 0.92, "high": 0.96, "seconds": 2.5, "trainable_weights": 361_738}
BAD = """<!DOCTYPE html><html lang="en"><head><title>A page</title></head><body>
<main><h1>A page</h1><p style="color: #bbb; background: #fff">Pale.</p><img src="https://example.org/x.png">
<details><summary>More</summary><p style="width: 2000px">Wide.</p></details></main></body></html>"""


@pytest.fixture
def run(tmp_path):
    """The folder of a run with the notebooks, as they are stored: tables, figures and text."""
    folder = tmp_path / "digits"
    folder.mkdir()
    for path in (ROOT / "notebooks").glob("0*.ipynb"):
        shutil.copy(path, folder)
    arms = {"majority class": {"test_accuracy": 0.1, "low": 0.08, "high": 0.12}, "frozen": ARM, "fine-tuned": ARM}
    Run(folder).update_metrics(arms=arms, answer="No difference is shown, so freeze, which is cheaper. " * 5)
    return folder


def test_a_finished_report_keeps_nobody_out(browser, run, picture):
    found = faults(browser, write_report(run), picture)
    assert not found, "\n".join(found)


def test_names_of_parameters_are_not_broken_on_a_phone(browser, run):
    with browser.new_context(viewport={"width": WIDTHS["phone"], "height": 844}) as context:
        page = context.new_page()
        page.goto(write_report(run).as_uri())
        names = page.locator("#settings ~ div tbody th")
        assert "unfreeze_from" in names.all_text_contents()
        broken = """cells => cells.filter(cell => {
          const range = document.createRange();
          range.selectNodeContents(cell);
          return range.getClientRects().length > 1;
        }).map(cell => cell.textContent)"""
        assert names.evaluate_all(broken) == []


def test_a_report_of_a_stop_keeps_nobody_out(browser, run, picture):
    path = run / "03_fine_tuning.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.papermill = {"exception": True, "parameters": {"run_dir": "x", "margin": 2.0}}
    failed = [cell for cell in notebook.cells if cell.cell_type == "code"][3]
    trace = [
        "\x1b[31mFileNotFoundError\x1b[39m \x1b[38;5;167;1mTraceback\x1b[0m \x1b[38;5;28mof it\x1b[0m",
        f"\x1b[32m{'x' * 200}\x1b[39m \x1b[1;33m1\x1b[0m / 0",
    ]
    failed.outputs = [
        new_output("stream", name="stderr", text="\x1b[93mW0000 a warning\x1b[0m\n" + "long " * 60),
        new_output("error", ename="FileNotFoundError", evalue=f"no {'folder/' * 40}\nLook again.", traceback=trace),
    ]
    nbformat.write(notebook, path)
    found = faults(browser, write_report(run), picture)
    assert not found, "\n".join(found)


def test_what_keeps_people_out_is_found(browser, tmp_path, picture):
    page = tmp_path / "bad.html"
    page.write_text(BAD, encoding="utf-8")
    found = "\n".join(faults(browser, page, picture))
    for fault in (
        "phone, light: color-contrast: main > p",
        "desktop, dark: image-alt: img",
        "phone, light: wider than the screen: <p> Wide.",
        "desktop, light: loads https://example.org/x.png",
    ):
        assert fault in found
