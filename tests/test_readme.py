"""The README's figures come from a run: what `make readme` puts between the marks."""

from pathlib import Path

import pandas as pd
import pytest
from badges import FIRST, badges, find_repository
from readme import PICTURE, replace_between, updated

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
    new = updated(README, "\nframe | table\n\n", "Freeze: [0] points.")
    assert f"\n![The first page of the report. Freeze: \\[0\\] points.]({PICTURE})\n" in new
    assert (ROOT / PICTURE).exists()
    assert "<!-- result -->\n```\nframe | table\n```\n<!-- /result -->" in new
    outside = README.split("<!-- picture -->")[0], README.split("<!-- /result -->")[1]
    assert new.startswith(outside[0]) and new.endswith(outside[1])


def test_the_table_of_pretraining_is_the_one_that_was_measured():
    table = pd.read_csv(ROOT / "data" / "labels_or_none.csv", dtype="str")
    assert len(table) == 6
    for row in [list(table), *table.to_numpy().tolist()]:
        assert f"| {' | '.join(row)} |" in (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "me/my.pets",
        "https://github.com/me/my.pets",
        "git@github.com:me/my.pets.git\n",
        "https://github.com/me/my.pets/",
    ],
)
def test_badges_lead_to_ones_own_copy(text):
    repository = find_repository(text)
    found = badges(repository)
    assert repository == "me/my.pets" and "OWNER" not in found and "{" not in found
    assert "(https://mybinder.org/v2/gh/me/my.pets/main?urlpath=lab/tree/notebooks/01_load_data.ipynb)" in found
    assert (ROOT / FIRST).exists() and (ROOT / ".github" / "workflows" / "ci.yml").exists()
    assert f"<!-- badges -->\n{found}\n<!-- /badges -->" in replace_between(README, "badges", found)


@pytest.mark.parametrize("text", ["", "pets", "https://example.org/me/pets", "a/b/c"])
def test_other_repositories_have_no_badges(text):
    with pytest.raises(ValueError, match="make badges REPOSITORY=owner/name"):
        find_repository(text)
