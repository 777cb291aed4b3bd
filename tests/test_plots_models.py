"""The figures of a trained model show its numbers, and survive few images, many classes and long names."""

import warnings

import numpy as np
import pandas as pd
import pytest

from helpers.evaluation import confusion_table, find_mistakes, reliability_table
from helpers.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from helpers.plots import (
    plot_confusion,
    plot_corrupted_examples,
    plot_corruptions,
    plot_grad_cam,
    plot_mistakes,
    plot_reliability,
)

LONG = [f"a class of $ome length, number {number}" for number in range(100)]


def predictions(images: int = 60, *, classes: int = 3):
    rng, labels = np.random.default_rng(0), np.arange(images) % classes
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), labels] += 2
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


def pictures(count: int = 60, *, height: int = 12, width: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3)).astype("uint8")


def make_corruptions(arms=("frozen", "fine-tuned"), kinds=tuple(CORRUPTIONS), severities=SEVERITIES, clean=True):
    rows = [("none", 0, arm) for arm in arms] if clean else []
    rows += [(kind, severity, arm) for kind in kinds for severity in severities for arm in arms]
    table = pd.DataFrame(rows, columns=["corruption", "severity", "arm"])
    accuracy = 0.9 - 0.1 * table["severity"] - 0.05 * (table["arm"] != arms[0])
    return table.assign(accuracy=accuracy, low=accuracy - 0.05, high=accuracy + 0.05, images=300)


def check_points(drawn, x, y, spans) -> None:
    """Fails unless an `ErrorbarContainer` has its points there, with these intervals, (points, 2)."""
    line, _, (bars,) = drawn
    np.testing.assert_allclose(line.get_data(), [x, y])
    ends = [[[place, low], [place, high]] for place, (low, high) in zip(x, np.asarray(spans), strict=True)]
    np.testing.assert_allclose(bars.get_segments(), ends)


def tick_names(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_the_confusion_shows_counts_and_the_shares_of_each_row():
    predicted = [0, 0, 1, 1, 1, 2, 2, 0]
    confusion = confusion_table(np.eye(3)[predicted], [0, 0, 0, 0, 1, 2, 2, 2], class_names=["ant", "bee", "cat"])
    figure = plot_confusion(confusion)
    assert "5 of 8 images" in figure.description
    (axes,) = figure.axes
    written = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "2", (1, 0): "2", (1, 1): "1", (2, 2): "2", (0, 2): "1"}, "(column, row)"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    drawn = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(drawn, [[1 / 2, 1 / 2, 0], [0, 1, 0], [1 / 3, 0, 2 / 3]])
    for axis in (axes.xaxis, axes.yaxis):
        assert axis.get_ticklocs().tolist() == [0, 1, 2] and tick_names(axis) == ["ant", "bee", "cat"]


def test_of_many_classes_those_with_mistakes_are_named_and_no_image_is_lost():
    confusion = confusion_table(*predictions(2000, classes=100), class_names=LONG)
    figure = plot_confusion(confusion)
    (axes,) = figure.axes
    assert sum(int(text.get_text()) for text in axes.texts) == 2000
    names = tick_names(axes.yaxis)
    assert len(names) == 21 and names[-1] == "80 others"
    wrong = confusion.to_numpy() - np.diag(np.diag(confusion))
    mistakes = wrong.sum(axis=0) + wrong.sum(axis=1)
    shown = [int(name.split()[-1]) for name in names[:-1]]
    assert shown == sorted(shown) and mistakes[shown].min() >= np.delete(mistakes, shown).max()


def test_mistakes_are_shown_with_both_classes_and_never_as_certain():
    mistakes = find_mistakes(*predictions(), class_names=["ant", "bee", "cat"], count=7)
    images, first = pictures(), mistakes.iloc[0]
    figure = plot_mistakes(images, mistakes)
    percent = f"{100 * first['probability']:.0f} %"
    assert figure.axes[0].get_title() == f"{first['predicted']} ({percent})\ntrue: {first['label']}"
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), images[int(first["position"])])
    assert f"{first['label']} taken for {first['predicted']}" in figure.description
    assert sum(bool(axes.images) for axes in figure.axes) == 7
    assert "No mistake" in plot_mistakes(images, mistakes[:0]).description
    sure = find_mistakes(np.array([[0.9996, 0.0004]]), [1], class_names=["ant", "bee"])
    assert plot_mistakes(pictures(1), sure).axes[0].get_title() == "ant (> 99 %)\ntrue: bee"


def test_reliability_shows_every_bin():
    table = reliability_table(*predictions(), bins=3)
    other = table.assign(accuracy=table["accuracy"] / 2, low=table["low"] / 2, high=table["high"] / 2)
    figure = plot_reliability({"before": table, "after": other})
    (axes,) = figure.axes
    np.testing.assert_array_equal(*axes.lines[0].get_data(), err_msg="the diagonal")
    for part, drawn in zip((table, other), axes.containers, strict=True):
        check_points(drawn, part["confidence"], part["accuracy"], part[["low", "high"]])
    assert [drawn.get_label() for drawn in axes.containers] == ["before", "after"]
    assert "20 images" in axes.get_title() and axes.get_xlim()[0] <= table["low"].min()
    assert "before: " + "; ".join(f"{r.confidence:.2f} {r.accuracy:.2f}" for r in table.itertuples()) in (
        figure.description
    )


def test_grad_cam_leaves_what_matters_and_says_where_it_is():
    images, maps = pictures(3), np.zeros((3, 12, 12))
    maps[0, 1:4, 8:11] = 1
    maps[1, 5:7, 5:7] = 1
    figure = plot_grad_cam(images, maps, titles=["ant 0.98", "bee 0.70", "cat"])
    assert figure.description.endswith(
        "ant 0.98: upper right, 6 % of the area; bee 0.70: centre, 3 % of the area; cat: nothing"
    )
    sheet = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(sheet[:, :12], images[0])
    np.testing.assert_array_equal(sheet[1:4, 13 + 8 : 13 + 11], images[0][1:4, 8:11])
    assert np.abs(sheet[6:, 13:].astype(int) - 128).max() <= 26, "the rest is grey"
    around, _ = figure.axes[0].collections
    assert not figure.axes[2].collections, "nothing matters"
    (low, high) = around.get_paths()[0].get_extents().get_points()
    np.testing.assert_allclose([low, high], [[13 + 8, 1], [13 + 10, 3]], atol=0.6, err_msg="a line around it")


def test_corruptions_are_a_panel_each_that_begins_with_unchanged_images():
    figure = plot_corruptions(make_corruptions())
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == list(CORRUPTIONS)
    for axes in panels:
        for drawn, beside, best in zip(axes.containers, (-0.06, 0.06), (90, 85), strict=True):
            accuracy = best - 10 * np.arange(6)
            check_points(drawn, np.arange(6) + beside, accuracy, np.stack([accuracy - 5, accuracy + 5], axis=1))
        (frozen, *_), (tuned, *_) = axes.containers
        assert frozen.get_linestyle() != tuned.get_linestyle() and frozen.get_marker() != tuned.get_marker()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["frozen", "fine-tuned"]
    assert "blur, frozen: 90.0, 80.0, 70.0, 60.0, 50.0, 40.0 %" in figure.description


def test_examples_show_what_the_arms_see():
    image = pictures(1)[0]
    figure = plot_corrupted_examples(image)
    expected = [corrupt(image, kind, severity=level) for kind in CORRUPTIONS for level in (0, *SEVERITIES)]
    np.testing.assert_array_equal([axes.images[0].get_array() for axes in figure.axes], expected)
    assert [axes.get_ylabel() for axes in figure.axes[::6]] == list(CORRUPTIONS)


MANY = predictions(2000, classes=100)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_confusion(confusion_table(*MANY, class_names=LONG)),
        lambda: plot_confusion(confusion_table(*predictions(1), class_names=["a", "b", "c"])),
        lambda: plot_confusion(confusion_table(*predictions(40_000), class_names=LONG[:3])),
        lambda: plot_mistakes(pictures(2000), find_mistakes(*MANY, class_names=LONG, count=25)),
        lambda: plot_reliability({"one image": reliability_table(*predictions(1))}),
        lambda: plot_reliability({"sure and wrong": reliability_table(np.eye(2)[[0] * 9], [1] * 9)}),
        lambda: plot_grad_cam(pictures(1), np.ones((1, 12, 12)), titles=[LONG[0]]),
        lambda: plot_grad_cam(pictures(7, height=30), np.random.default_rng(0).random((7, 30, 12)), titles=LONG[:7]),
        lambda: plot_grad_cam(pictures(0), np.ones((0, 12, 12)), titles=[]),
        lambda: plot_corruptions(make_corruptions(arms=("a", "b", "c", "d"))),
        lambda: plot_corruptions(make_corruptions(arms=("frozen",), kinds=(LONG[0],), severities=(1,), clean=False)),
        lambda: plot_corrupted_examples(pictures(1, height=8, width=20)[0]),
    ],
)
def test_what_a_model_can_end_in_is_drawn(draw):
    figure = draw()
    assert figure.description
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figure._repr_mimebundle_()[0]["image/png"]
    for axes in figure.axes:
        assert axes.get_xlabel() or not axes.get_xticks().size or not axes.axison
