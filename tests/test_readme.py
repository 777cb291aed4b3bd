"""The README's figures come from a run: what `make readme` puts between the marks."""

import base64
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from fake_run import PIXEL, figure
from nbformat.v4 import new_code_cell, new_notebook
from readme import FIGURE, PICTURE, find_figure, replace_between, updated

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_stands_between_the_marks_is_replaced_and_nothing_else():
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb <!-- y --> <!-- /y -->\n"
    new = replace_between(text, "x", r"n\1w")
    assert new == "a\n<!-- x -->\nn\\1w\n<!-- /x -->\nb <!-- y --> <!-- /y -->\n"
    assert replace_between(new, "x", r"n\1w") == new
    for wrong in ("", "<!-- x -->", "<!-- /x --> <!-- x -->", 2 * "<!-- x --> <!-- /x -->"):
        with pytest.raises(ValueError, match="Expected <!-- x --> and then <!-- /x -->"):
            replace_between(wrong, "x", "new")


def test_the_readme_has_the_marks():
    new = updated(README, "\nframe | table\n\n", f"{FIGURE}: frozen [97] %. Efficient: frozen.")
    assert f"\n![{FIGURE}: frozen \\[97\\] %.]({PICTURE})\n" in new
    assert "<!-- result -->\n```\nframe | table\n```\n<!-- /result -->" in new
    outside = README.split("<!-- picture -->")[0], README.split("<!-- /result -->")[1]
    assert new.startswith(outside[0]) and new.endswith(outside[1])


def test_the_table_of_pretraining_is_the_one_that_was_measured():
    table = pd.read_csv(ROOT / "data" / "labels_or_none.csv", dtype="str")
    assert len(table) == 6
    for row in [list(table), *table.to_numpy().tolist()]:
        assert f"| {' | '.join(row)} |" in (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")


def test_the_figure_is_found_and_is_one():
    def notebook(*words):
        return new_notebook(cells=[new_code_cell("x", outputs=[figure(text) for text in words])])

    study = nbformat.read(ROOT / "notebooks" / "04_freeze_or_fine_tune.ipynb", as_version=4)
    assert "frozen" in find_figure(study)[1]
    assert find_figure(notebook("Another.", f"{FIGURE}: x")) == (base64.b64decode(PIXEL), f"{FIGURE}: x")
    for words in ([], [FIGURE, FIGURE]):
        with pytest.raises(ValueError, match=f"Found {len(words)}"):
            find_figure(notebook(*words))
