"""The report in a browser: nobody is kept out of it, and it needs nothing but itself."""

import re
import shutil

import nbformat
import pytest
from fake_run import write_figures, write_run
from nbformat.v4 import new_output
from pages import WIDTHS, faults
from refresh import ROOT

from helpers.report import write_report
from helpers.report.page import DETAILS, FIRST_PAGE

BAD = """<!DOCTYPE html><html lang="en"><head><title>A page</title></head><body>
<main><h1>A page</h1><p style="color: #bbb; background: #fff">Pale.</p><img src="https://example.org/x.png">
<details><summary>More</summary><p style="width: 2000px">Wide.</p></details></main></body></html>"""


@pytest.fixture
def run(tmp_path):
    """The folder of a run with the notebooks as they are stored, figures and tables."""
    folder = write_run(tmp_path / "digits")
    write_figures(folder, size=(1080, 480), figures=dict.fromkeys(FIRST_PAGE | DETAILS, "In words."))
    for path in (ROOT / "notebooks").glob("0*.ipynb"):
        shutil.copy(path, folder)
    return folder


def test_a_finished_report_keeps_nobody_out(browser, run, picture):
    found = faults(browser, write_report(run), picture)
    assert not found, "\n".join(found)


def test_it_prints_on_six_pages_and_the_recommendation_with_its_pictures_on_the_first(browser, run):
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(write_report(run).as_uri())
        assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(prefer_css_page_size=True))) <= 6
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 680, "height": 1017})  # A4 without its margins, at 96 pixels an inch
        bottom = "() => document.getElementById('next').parentElement.getBoundingClientRect().bottom + scrollY"
        assert page.evaluate(bottom) <= 1017


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
    failed.outputs = [
        new_output("error", ename="FileNotFoundError", evalue=f"no {'folder/' * 40}\nLook again.", traceback=[]),
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
