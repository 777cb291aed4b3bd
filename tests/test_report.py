"""report.html: valid, accessible, complete, also of a run that stopped half-way."""

import json
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import html5lib
import nbformat
import pytest
from bs4 import BeautifulSoup
from fake_run import CLASSES, FIGURES, environment, executed, verdict, write_run
from nbformat.v4 import new_output

from helpers.parameters import declared_parameters, validate_parameters
from helpers.report import RunFolder, write_report
from helpers.report.advice import next_steps
from helpers.report.run_folder import make_command

ROOT = Path(__file__).resolve().parent.parent


def read_page(run: Path) -> BeautifulSoup:
    html = write_report(run).read_text(encoding="utf-8")
    html5lib.HTMLParser(strict=True).parse(html)  # raises at the first thing that is not valid
    return BeautifulSoup(html, "html.parser")


def texts(tags) -> list[str]:
    return [tag.get_text(" ", strip=True) for tag in tags]


def cells(table) -> dict[str, list[str]]:
    return {row.th.text: texts(row.find_all("td")) for row in table.tbody.find_all("tr")}


def part(page: BeautifulSoup, name: str):
    return page.find(id=name).find_parent("section")


def check_accessible(page: BeautifulSoup) -> None:
    assert page.html["lang"] == "en" and len(page.find_all("main")) == len(page.find_all("h1")) == 1
    assert [tag.name for tag in page.body.find_all(recursive=False)] == ["a", "header", "main", "footer"]
    levels = [int(heading.name[1]) for heading in page.find_all(re.compile(r"^h[1-6]$"))]
    assert levels[0] == 1 and all(after - before <= 1 for before, after in pairwise(levels)), levels
    ids = [tag["id"] for tag in page.find_all(id=True)]
    assert len(ids) == len(set(ids))
    links = {link["href"] for link in page.find_all("a")}
    assert {link for link in links if not link.endswith(".ipynb")} <= {f"#{name}" for name in ids}
    assert {tag["aria-labelledby"] for tag in page.find_all("section", attrs={"aria-labelledby": True})} <= set(ids)
    names = [tag["aria-label"] for tag in page.find_all("nav")]
    assert len(names) == len(set(names)) >= 1
    for table in page.find_all("table"):
        assert table.caption.get_text(strip=True)
        assert table.find_all("th") and all(
            th.get("scope") and th.get_text(strip=True) for th in table.find_all("th")
        )
        region = table.find_parent(class_="scrolls")
        assert region["tabindex"] == "0" and region["role"] == "group" and region["aria-label"]
    assert all(image.get("alt") for image in page.find_all("img"))
    assert all(summary.get_text(strip=True) for summary in page.find_all("summary"))
    assert page.find_all(["script", "link", "iframe"]) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "my pets")


@pytest.fixture(scope="module")
def page(run) -> BeautifulSoup:
    return read_page(run)


def test_the_recommendation_stands_first(page):
    check_accessible(page)
    assert not page.find(class_="failure")
    first = page.main.section
    assert first.find(class_="statement").text == (
        "Fine-tune from conv3 on (all layers taken, learning rate 0.001): 5.0 points more accurate."
    )
    assert texts(first.find_all("dd")) == [
        "95.0 % 95 % interval 85.0 to 95.0 %",
        "+5.0 points 95 % interval +2.0 to +8.0",
        "1.5 s fine-tuned: 61.2 s",
    ]
    assert first.find(class_="answer").text == "Of 100 test images, more are right. A training takes 61 s."
    results = page.find(id="results").find_parent("section")
    rows = cells(results.table)
    assert list(rows) == ["frozen", "fine-tuned"]
    assert rows["fine-tuned"] == ["0.950", "0.850 to 0.950", "+5.0", "+2.0 to +8.0"]
    assert texts(results.find_all(class_="strong")) == ["fine-tuned 0.950 0.850 to 0.950 +5.0 +2.0 to +8.0"]


def test_pictures_stand_first_and_figures_of_the_study_behind_with_their_words(page):
    first, details = (page.find(id=name).find_parent("section").find_all("figure") for name in ("verdict", "results"))
    assert [figure.img["alt"] for figure in first] == [FIGURES[x] for x in ("predictions", "confusion", "mistakes")]
    assert [figure.img["alt"] for figure in details] == [FIGURES["differences"], FIGURES["costs"]]
    assert [figure.details.p.text for figure in details] == [figure.img["alt"] for figure in details]
    assert all(figure.find(class_="scrolls")["tabindex"] == "0" for figure in [*first, *details])


def test_it_says_what_to_do_next(page):
    label, collect, harden, ask = texts(page.find(id="next").find_parent("section").find_all("li"))
    assert "In 1 of those listed" in label
    assert f"pets/<7>.png, labelled {CLASSES[0]}, predicted {CLASSES[1]} (99 %)" in label
    assert (
        collect.startswith(f"Add images of {CLASSES[0]}: only 50 %") and "noise" in harden and "20 points" in harden
    )
    assert ask.startswith("To see whether more labels would pay off: make labels NAME=")
    assert "damaged (1, left out), animation (1, kept)" in page.find(id="next").find_parent("section").text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"verdict": "no difference shown"}, "BUDGET: only a difference of about 4.0 points or more would likely"),
        ({"chosen": "frozen", "arms": {"frozen": {"test_accuracy": 0.7, "seconds": 1.0}}}, "Try another network"),
    ],
)
def test_a_study_that_did_not_decide_and_a_poor_network_are_told(tmp_path, changes, words):
    run = write_run(tmp_path / "x")
    (run / "verdict.json").write_text(json.dumps(verdict(**changes)))
    found = next_steps(RunFolder(run))[2:-2] if words is None else next_steps(RunFolder(run))
    assert found == [] if words is None else any(words in step for step in found)


@pytest.mark.parametrize("headline", ["Label more: 3 points.", "More labels of this kind would bring little: 0."])
def test_what_more_labels_would_bring_is_told_and_a_step_if_it_is_much(tmp_path, headline):
    run = write_run(tmp_path / "x")
    answer = {"headline": headline, "explanation": "With about 33 or more.", "verdict": verdict()["headline"]}
    answer["label_more"] = "yes" if headline.startswith("Label more") else "no"
    (run / "labels.json").write_text(json.dumps(answer))
    steps = next_steps(RunFolder(run))
    assert (headline in steps) == headline.startswith("Label more")
    assert not any("make labels" in step for step in steps)
    page = BeautifulSoup(write_report(run).read_text(), "html.parser")
    assert page.find(class_="labels").text == f"How many labels? {headline} With about 33 or more."
    (run / "labels.json").write_text(json.dumps(answer | {"verdict": "of an earlier study"}))
    assert any("make labels" in step for step in next_steps(RunFolder(run)))
    (run / "verdict.json").write_text(json.dumps(verdict(comparison={})))
    assert not any("make labels" in step for step in next_steps(RunFolder(run))), "06 would refuse"


def test_executed_notebooks_are_linked(run, page):
    links = [link["href"] for link in page.find_all("a") if link["href"].endswith(".ipynb")]
    assert links and all((run / link).exists() for link in links)


def test_the_data_are_counted_and_what_was_left_out_is_named(page):
    counts, problems, left_out = part(page, "data").find_all("table")
    assert cells(counts)["<script>alert(1)</script>"] == ["1", "1", "1", "3"]
    assert cells(counts)["all classes"] == ["3", "3", "3", "9"]
    assert cells(problems) == {"damaged": ["error", "left out", "1"], "animation": ["note", "kept", "1"]}
    assert cells(left_out) == {"<b>.png": ["<script>alert(1)</script>", "It ends after 3 of 9 bytes."]}


def test_settings_cost_and_versions_are_those_of_the_run(page):
    settings = part(page, "settings").table
    assert cells(settings)["rate"] == ["0.01", "of it"] and cells(settings)["seed"] == ["0", "any"]
    assert texts(settings.find_all("strong")) == ["my <photos>", "0.01"] and "run_dir" not in settings.text
    cost, durations = part(page, "cost").find_all("table")
    assert cells(cost)["fine-tuned"] == ["head", "conv3", "0.001", "61.2", "361,738", "1.2"]
    assert cells(durations) == {"01_load_data": ["3 min"], "04_freeze_or_fine_tune": ["3 min"], "all": ["6 min"]}
    versions = cells(part(page, "versions").table)
    assert versions["keras"] == ["3.15.1"] and versions["processor"] == ["Some <fast> one"]
    assert versions["gpus"] == ["none"]
    assert "24 November 2026" in page.header.text


def test_many_classes_are_folded_away_a_second_environment_is_shown_and_doubtful_features_are_told(tmp_path):
    run = write_run(tmp_path / "x", classes=40)
    both = [environment(), environment(keras="3.16.0", commit="b" * 40 + "-dirty")]
    (run / "environment.json").write_text(json.dumps(both))
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"features": "5 features. Warning: they are few."}))
    page = read_page(run)
    check_accessible(page)
    short, long, *_ = part(page, "data").find_all("table")
    assert list(cells(short)) == ["all classes"] and len(cells(long)) == 41
    assert long.find_parent("details").summary.text == "All 40 classes" and not short.find_parent("details")
    assert len(part(page, "versions").find_all("table")) == 2
    assert "b" * 40 in part(page, "repeat").text and "not committed" in part(page, "repeat").text
    assert "doubtful" in page.find(class_="failure").text


def test_a_run_that_stopped_half_way_is_told_too(tmp_path):
    run = write_run(tmp_path / "half")
    for name in ("verdict.json", "metrics.json", "problems.csv", "environment.json", "04_freeze_or_fine_tune.ipynb"):
        (run / name).unlink()
    error = new_output("error", ename="ValueError", evalue="no <weights>", traceback=["ValueError: no <weights>"])
    nbformat.write(executed("How?", "", {}, ("1/0", [error]), exception=True), run / "02_transfer_learning.ipynb")
    page = read_page(run)
    assert page.find(class_="statement").text == "No verdict yet."
    assert page.find(class_="failure").text == "02_transfer_learning did not finish. In [2]: ValueError: no <weights>"
    assert page.find(id="data") and not page.find(id="versions")
    check_accessible(page)


def test_before_the_study_one_split_stands_for_it(tmp_path):
    run = write_run(tmp_path / "early")
    for name in ("verdict.json", "04_freeze_or_fine_tune.ipynb"):
        (run / name).unlink()
    arm = {"test_accuracy": 0.9, "low": 0.8, "high": 0.95, "seconds": 2.0}
    (run / "metrics.json").write_text(json.dumps({"arms": {"frozen": arm}, "answer": "One split."}))
    page = read_page(run)
    results = page.find(id="results").find_parent("section")
    assert texts(results.thead.find_all("th")) == ["arm", "test accuracy", "95 % interval"]
    assert page.find(class_="answer").text == "One split." and not page.find(id="next")


def test_damaged_files_are_named_and_the_rest_is_told(tmp_path):
    run = write_run(tmp_path / "damaged")
    for name in ("verdict.json", "environment.json", "images.csv"):
        (run / name).write_bytes((run / name).read_bytes()[:9])
    (run / "04_freeze_or_fine_tune.ipynb").write_text("{")
    page = read_page(run)
    footer = page.footer.text
    assert all(f"{name} cannot be read." in footer for name in ("verdict.json", "environment.json", "images.csv"))
    assert "04_freeze_or_fine_tune.ipynb cannot be read." in footer
    assert cells(page.find(id="results").find_parent("section").table)["frozen"][0] == "0.900", "from metrics.json"


def test_a_folder_without_anything_has_a_report(tmp_path):
    page = read_page(tmp_path)
    check_accessible(page)
    assert page.find(class_="statement").text == "No verdict yet."


# ---- colours


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    shares = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """Returns the contrast of two colours as WCAG 2.2 defines it, 1 to 21."""
    darker, lighter = sorted(map(luminance, (first, second)))
    return (lighter + 0.05) / (darker + 0.05)


def test_every_colour_can_be_read_in_light_and_dark(page):
    assert contrast("#777", "#fff") == pytest.approx(4.48, abs=0.01)  # as the standard's examples have it
    style = page.style.text
    light, dark, print_ = (
        dict(re.findall(r"--([\w-]+): (#\w+);", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    )
    for colours in (light, dark, light | print_):
        for text in ("ink", "quiet", "accent", "bad"):
            for ground in ("paper", "shade", *(["bad-shade"] if text == "bad" else [])):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


# ---- how to repeat it

DECLARED = """\
data: str = "digits"  # a folder
word: str = "a"  # any
rate: float = 1e-3  # of it
maybe: str | None = "imagenet"  # or not
many: list[int] = [3]  # of them
flag: bool = False  # or not
kept: int = 5  # as it is"""


def test_the_make_command_hands_the_same_values_to_the_runner(tmp_path):
    """A `python` that prints its arguments, each on a line, stands in for the real one."""
    odd = {
        "data": '~/my #1 $HOME\'s "photos"',
        "word": "3",
        "rate": 1e-05,
        "maybe": None,
        "many": [1, 2],
        "flag": True,
    }
    (tmp_path / "my run").mkdir()
    nbformat.write(executed("What?", DECLARED, odd), tmp_path / "my run" / "01_load_data.ipynb")
    folder, python = RunFolder(tmp_path / "my run"), tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
    python.chmod(0o755)
    (tmp_path / ".installed").touch()
    line = f"{make_command(folder)} --silent -o {tmp_path}/.installed VENV={tmp_path}"
    done = subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[words.index("-n") + 1] == "my run"
    given = {words[place + 1]: words[place + 2] for place, word in enumerate(words) if word == "-p"}
    assert validate_parameters(given, declared_parameters(folder.notebooks["01_load_data"])) == odd
