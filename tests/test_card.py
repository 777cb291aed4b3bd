"""The model card: what the run knows, what nobody recorded; and no name in it is a mark or a tag."""

import ast
import json
import random
import re
import string
import zipfile

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from fake_run import CLASSES, verdict, write_run
from markdown_it import MarkdownIt
from PIL import Image

from helpers.evaluation import class_table, compare_shift
from helpers.notebook_run import Run
from helpers.report import write_card
from helpers.report.card import escape_markdown


def render(markdown: str) -> BeautifulSoup:
    """Returns what a reader sees: CommonMark with HTML, tables and strikethrough."""
    return BeautifulSoup(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown), "html.parser")


@pytest.fixture
def run(root):
    """A run with a classifier in it, in an empty repository."""
    from helpers._keras import keras
    from helpers.training import save_model

    images = keras.Input((8, 12, 3), dtype="uint8")
    features = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(images))
    model = keras.Model(images, keras.layers.Dense(3, activation="softmax")(features))
    run = write_run(root / "runs" / "my pets")
    save_model(model, run / "chosen.keras", class_names=CLASSES, resize="pad")
    return run


def section(card: str, title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)[1]


def test_it_has_the_sections_of_model_cards_and_what_the_run_knows(run):
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"features": "1,280 features: the output of 'top'."}))
    assert write_card(run).name == "chosen.md"
    card = (run / "chosen.md").read_text()
    titles = re.findall(r"^## (.*)", card, re.MULTILINE)
    expected = ["Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data"]
    expected += ["Quantitative analyses", "Ethical considerations", "Caveats and recommendations"]
    assert titles[: len(expected)] == expected
    for title, words in (
        ("Model details", "Backbone: ResNet50, weights imagenet"),
        ("Model details", "- Features: 1,280 features: the output of 'top'. - Training: fine-tuned from conv3 on"),
        ("Model details", "at a learning rate of at most 0.001, from a linear head"),
        ("Model details", "8 x 12 pixels (height x width)"),
        ("Model details", 'rule "pad": the whole image is kept, and black is added. - Output'),
        ("Evaluation data", "3 test images, 1 of the smallest class"),
        ("Quantitative analyses", "| fine-tuned | 0.950 | 0.850 to 0.950 | +5.0 | +2.0 to +8.0 |"),
        ("Training data", "| damaged | left out | 1 |"),
        ("How to repeat it", "Python 3.11.9, TensorFlow 2.21.0, Keras 3.15.1"),
        ("How to repeat it", "a" * 40),
    ):
        assert words in " ".join(section(card, title).split())
    assert not re.search(r"\b(None|nan)\b", card.partition("```")[0])
    assert "Licence: unknown." in card and "Made by: unknown" in card and "Meant for: unknown" in card
    assert "5.0 points more accurate.** Of 100 test images, more are right. A training takes 61 s." in card
    assert card.count("Fine-tune from ") == 1, "the verdict is said once"


def test_names_are_text_and_nothing_else(run):
    page = render(write_card(run).read_text())
    *_, names = page.find_all("table")
    assert [row.find_all("td")[1].text for row in names.tbody.find_all("tr")] == CLASSES
    kinds = {tag.name for tag in page.find_all(True)} - {f"h{level}" for level in range(1, 7)}
    assert kinds <= {"p", "ul", "li", "strong", "code", "pre", *("table", "thead", "tbody", "tr", "th", "td")}
    assert "my <photos>" in page.text


def test_any_text_comes_out_of_markdown_as_it_went_in():
    rng = random.Random(0)
    marks = string.punctuation + "ab1 "
    texts = ["".join(rng.choices(marks, k=rng.randint(1, 12))) for _ in range(500)]
    texts += ["# a", "1. b", "- c", "&amp;", "\\", "a\nb", "http://x.org", ":cat:", "[a](b)", "<b>", "$x$", "``"]
    for text in texts:
        page = render(f"| n |\n| - |\n| x{escape_markdown(text)}x |\n\nAnd x{escape_markdown(text)}x")
        shown = f"x{' '.join(text.split())}x"
        assert [page.td.text, page.find_all("p")[-1].text] == [shown, f"And {shown}"], text
        assert {tag.name for tag in page.find_all(True)} == {"table", "thead", "tbody", "tr", "th", "td", "p"}, text


def test_its_code_classifies_an_image(run, root, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", write_card(run).read_text(), re.DOTALL)
    monkeypatch.chdir(root)
    Image.new("RGB", (30, 20), "red").save("image.jpg")
    *statements, last = ast.parse(code).body
    names = {}
    exec(compile(ast.Module(statements, []), "card", "exec"), names)
    answer = eval(compile(ast.Expression(last.value), "card", "eval"), names)
    assert list(answer) == CLASSES and sum(answer.values()) == pytest.approx(1, abs=1e-5)


def test_a_frozen_choice_is_described_as_such(run):
    (run / "verdict.json").write_text(
        json.dumps(verdict(verdict="freeze", chosen="frozen", stopped="over", failed=["x"]))
    )
    card = " ".join(write_card(run).read_text().split())
    assert "as pretrained, and cut before conv4; a linear head" in card and "fine-tuned from" not in card
    assert "The study is not complete: over." in card and "1 trainings of the study failed" in card
    assert "Class weights" not in card
    with open(run / "parameters.yaml", "a") as file:
        file.write("class_weight: balanced\n")
    assert "- Class weights: balanced. In training" in write_card(run).read_text()


def test_what_more_labels_would_bring_goes_into_it(run):
    assert "How many labels" not in write_card(run).read_text()
    headline = json.loads((run / "verdict.json").read_text())["headline"]
    content = {
        "headline": "Label more: 5 points.",
        "explanation": "It is better with 33 or more.",
        "verdict": headline,
    }
    (run / "labels.json").write_text(json.dumps(content))
    analyses = section(write_card(run).read_text(), "Quantitative analyses")
    assert "### How many labels\n\nLabel more: 5 points. It is better with 33 or more." in analyses
    (run / "labels.json").write_text(json.dumps(content | {"verdict": "Freeze: an earlier one."}))
    assert "How many labels" not in write_card(run).read_text(), "04 has another verdict by now"


def test_tables_of_other_steps_go_into_it(run):
    names, shared = ["a|b", "1.50"], Run(run)
    shared.save("classes.csv", class_table(np.eye(2)[[0, 0, 1, 1]], [0, 0, 0, 1], class_names=names))
    right = {"frozen": np.array([True, False]), "fine-tuned": np.array([True, True])}
    rows = [(kind, 1, arm, right[arm]) for kind in ("blur", "noise") for arm in right]
    table = compare_shift(pd.DataFrame(rows, columns=["corruption", "severity", "arm", "correct"]))
    shared.save("corruptions_compared.csv", table)
    analyses = section(write_card(run).read_text(), "Quantitative analyses")
    assert "### Class by class" in analyses and "| class | images | precision | recall |" in analyses
    assert r"| a\|b | 3 | 1 | 0.667 |" in analyses and "| 1.50 | 1 | 0.500 | 1 |" in analyses
    assert "### On artificially corrupted images" in analyses and "| blur | 0.500 | 1 | 0.500 |" in analyses
    assert "On shifted images" not in analyses, "corruptions are not called images from elsewhere"
    shared.save("shift.csv", table[:1].rename_axis("folder"))
    assert "### On shifted images" in write_card(run).read_text()


def test_a_run_that_knows_little_has_a_card(run):
    for path in run.iterdir():
        if path.is_file() and path.name != "chosen.keras":
            path.unlink()
    card = write_card(run).read_text()
    assert "Backbone: unknown" in card and "None were recorded." in card and "was not recorded" in card


def test_without_a_classifier_there_is_no_card(run):
    with zipfile.ZipFile(run / "chosen.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ValueError, match="chosen.keras holds no class names"):
        write_card(run)
    (run / "chosen.keras").unlink()
    with pytest.raises(FileNotFoundError, match="chosen.keras"):
        write_card(run)
    assert not (run / "chosen.md").exists()
