"""Every figure can be drawn, has labelled axes, and carries its description into the notebook."""

import warnings

import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

from helpers import plots
from helpers.data import check_images, find_images, split_images

HISTORY = {"log_loss": [1.0, 0.5], "val_log_loss": [0.9, 0.7], "accuracy": [0.5, 0.8], "val_accuracy": [0.5, 0.7]}
ARMS = {
    "raw pixels": {"test_accuracy": 0.8, "low": 0.7, "high": 0.9},
    "frozen": {"test_accuracy": 0.9, "low": 0.8, "high": 1},
}


@pytest.fixture
def images(make_images, tmp_path):
    return split_images(check_images(find_images(make_images(tmp_path, {"ants": 6, "bees": 9})))[0])


PROBLEMS = pd.DataFrame(
    [
        ("a/cut.png", "truncated", ""),
        ("", "imbalance", ""),
        ("a", "empty class", ""),
        ("a/x.png", "two labels", "b/x.png"),
        ("b/x.png", "two labels", "a/x.png"),
        *((f"a/{number}.png", "duplicate", "b/$1 for $2 \N{ROCKET}.png") for number in range(20)),
    ],
    columns=["path", "problem", "other"],
)


def test_problems_are_shown_beside_what_they_are_like(images, tmp_path):
    real = PROBLEMS.assign(path=PROBLEMS["path"].str.replace("a/0.png", images["path"][0]))
    figure = plots.plot_problems(real)
    assert figure.description == "Grid of 5 images in which a problem was found, of 2 two labels, 20 duplicate"
    assert [axes.get_title() for axes in figure.axes[:5]] == ["two labels"] + 4 * ["duplicate"]
    assert "$1 for $2" in figure.axes[1].get_xlabel()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure._repr_mimebundle_()
    nothing = plots.plot_problems(PROBLEMS[1:3])
    assert "No problem" in nothing.description and nothing._repr_mimebundle_()[0]["image/png"]


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda images: plots.plot_counts(images), "2 classes, from 6 (ants) to 9 (bees)"),
        (lambda images: plots.plot_examples(images), "ants, bees"),
        (lambda images: plots.plot_sizes(images), "width 16 to 16 pixels"),
        (lambda images: plots.plot_strengths({0.1: 0.5, 1.0: 0.4, 10.0: 0.6}, 1.0), "0.400, at C = 1"),
        (
            lambda images: plots.plot_history(HISTORY, {"log_loss": 0.8, "accuracy": 0.6}, title="all 2 epochs"),
            "0.800 before, and 0.700 at the end",
        ),
        (lambda images: plots.plot_results(ARMS), "frozen 90.0 % (80.0 to 100.0)"),
        (lambda images: plots.plot_image_rows({"letters": np.zeros((20, 8, 8, 3))}), "20 letters"),
        (lambda images: plots.plot_steps({"printed": np.eye(9), "counted": np.eye(3)}), "printed, counted"),
    ],
    ids=["counts", "examples", "sizes", "strengths", "history", "results", "rows", "steps"],
)
def test_figures_are_labelled_and_described(images, draw, words):
    figure = draw(images)
    assert words in figure.description
    for axes in figure.axes:
        assert axes.get_xlabel() or not axes.get_xticks().size
    data, metadata = InteractiveShell.instance().display_formatter.format(figure)
    assert data["image/png"] and words in data["text/plain"]
    assert metadata["image/png"]["alt"] == figure.description
