"""The figures of a trained model say their numbers in words, and survive few images, many classes and long names."""

import warnings

import numpy as np
import pandas as pd
import pytest

from helpers.evaluation import (
    CORRUPTIONS,
    SEVERITIES,
    confusion_table,
    corrupt,
    find_mistakes,
    reliability_table,
    temper,
)
from helpers.plots import (
    plot_confusion,
    plot_corrupted_examples,
    plot_corruptions,
    plot_grad_cam,
    plot_mistakes,
    plot_reliability,
)

LONG = [f"a class of $ome length, number {number}" for number in range(100)]


def predictions(images: int = 60, *, classes: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), labels] += 2
    return temper(np.exp(logits), 1.0), labels


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


def is_drawn(figure) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return bool(figure._repr_mimebundle_()[0]["image/png"])


def test_the_confusion_names_the_most_frequent_mistakes():
    predicted = [0, 0, 1, 1, 1, 2, 2, 0]
    confusion = confusion_table(np.eye(3)[predicted], [0, 0, 0, 0, 1, 2, 2, 2], class_names=["ant", "bee", "cat"])
    figure = plot_confusion(confusion)
    assert figure.description == (
        "Confusion matrix of 3 classes: 5 of 8 images recognised. Most frequent mistakes: ant taken for bee, 2 of 4; "
        "cat taken for ant, 1 of 3."
    )
    (axes,) = figure.axes
    written = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "2", (1, 0): "2", (1, 1): "1", (2, 2): "2", (0, 2): "1"}, "(column, row)"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    drawn = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(drawn, [[1 / 2, 1 / 2, 0], [0, 1, 0], [1 / 3, 0, 2 / 3]], err_msg="shares of each row")
    for axis in (axes.xaxis, axes.yaxis):
        assert axis.get_ticklocs().tolist() == [0, 1, 2]
        assert [label.get_text() for label in axis.get_ticklabels()] == ["ant", "bee", "cat"]
    assert "No mistake." in plot_confusion(confusion_table(np.eye(2), [0, 1], class_names=["a", "b"])).description


def test_of_many_classes_those_with_mistakes_are_named_and_no_image_is_lost():
    probabilities, labels = predictions(2000, classes=100)
    confusion = confusion_table(probabilities, labels, class_names=LONG)
    figure = plot_confusion(confusion, most=15)
    (axes,) = figure.axes
    assert sum(int(text.get_text()) for text in axes.texts) == 2000
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == 16 and names[-1] == "85 others"
    wrong = confusion.to_numpy() - np.diag(np.diag(confusion))
    mistakes = wrong.sum(axis=0) + wrong.sum(axis=1)
    shown = [int(name.split()[-1]) for name in names[:-1]]
    assert shown == sorted(shown) and mistakes[shown].min() >= np.delete(mistakes, shown).max()
    width, height = figure.get_size_inches()
    assert width < 10 and height < 10
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert not any(box.overlaps(other) for number, box in enumerate(boxes) for other in boxes[:number])


def test_mistakes_are_shown_with_what_they_are():
    probabilities, labels = predictions()
    mistakes = find_mistakes(probabilities, labels, class_names=["ant", "bee", "cat"], count=7)
    images = pictures()
    figure = plot_mistakes(images, mistakes)
    first = mistakes.iloc[0]
    assert figure.axes[0].get_title() == f"{first['predicted']}: {first['probability']:.2f}\nis {first['label']}"
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), images[int(first["position"])])
    assert figure.description.startswith(
        f"Grid of the 7 surest mistakes: {first['label']} taken for {first['predicted']} ("
    )
    assert sum(bool(axes.images) for axes in figure.axes) == 7
    assert plot_mistakes(images, mistakes[:0]).description == "No mistake among these images."


def test_a_probability_is_not_rounded_to_a_certainty():
    mistakes = find_mistakes(np.array([[0.9996, 0.0004]]), [1], class_names=["ant", "bee"])
    figure = plot_mistakes(pictures(1), mistakes)
    assert figure.axes[0].get_title() == "ant: >0.99\nis bee"


def test_reliability_says_every_bin():
    table = reliability_table(*predictions(), bins=3)
    other = table.assign(accuracy=table["accuracy"] / 2, low=table["low"] / 2, high=table["high"] / 2)
    figure = plot_reliability({"before": table, "after": other})
    rows = [f"{r.confidence:.2f} {r.accuracy:.2f} ({r.low:.2f} to {r.high:.2f})" for r in table.itertuples()]
    assert f"before: {'; '.join(rows)}. after: " in figure.description
    (axes,) = figure.axes
    np.testing.assert_array_equal(*axes.lines[0].get_data(), err_msg="the diagonal")
    assert axes.get_xlabel().startswith("confidence") and axes.get_ylabel().startswith("accuracy")
    for part, drawn in zip((table, other), axes.containers, strict=True):
        check_points(drawn, part["confidence"], part["accuracy"], part[["low", "high"]])
    assert [drawn.get_label() for drawn in axes.containers] == ["before", "after"]
    assert "Bins of 20 images" in axes.get_title() and axes.get_xlim()[0] <= table["low"].min()


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
    assert [axes.get_title() for axes in figure.axes] == ["ant 0.98", "bee 0.70", "cat"]


def test_corruptions_are_a_panel_each_that_begins_with_the_images_as_they_are():
    figure = plot_corruptions(make_corruptions())
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == list(CORRUPTIONS)
    for axes in panels:
        assert axes.get_xlabel() == "severity (0: as they are)"
        for drawn, beside, best in zip(axes.containers, (-0.06, 0.06), (90, 85), strict=True):
            accuracy = best - 10 * np.arange(6)
            check_points(drawn, np.arange(6) + beside, accuracy, np.stack([accuracy - 5, accuracy + 5], axis=1))
        (frozen, *_), (tuned, *_) = axes.containers
        assert frozen.get_linestyle() != tuned.get_linestyle() and frozen.get_marker() != tuned.get_marker()
        assert [drawn.get_label() for drawn in axes.containers] == ["frozen", "fine-tuned"]
    assert "none: frozen 90.0 %; fine-tuned 85.0 %. blur: frozen 80.0, 70.0, 60.0, 50.0, 40.0 %" in figure.description
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["frozen", "fine-tuned"]


def test_a_folder_that_is_called_none_has_a_panel():
    figure = plot_corruptions(make_corruptions(kinds=("none",), severities=(1,), clean=False))
    assert [axes.get_title() for axes in figure.axes] == ["none"]
    assert figure.description.endswith("none: frozen 80.0 %; fine-tuned 75.0 %.")
    beside_others = plot_corruptions(make_corruptions(kinds=("blur", "none"), severities=(1,)))
    assert [axes.get_title() for axes in beside_others.axes] == ["blur", "none"]
    for axes in beside_others.axes:
        np.testing.assert_allclose(axes.containers[0][0].get_ydata(), [90, 80])


def test_examples_show_what_the_arms_see():
    image = pictures(1)[0]
    figure = plot_corrupted_examples(image, seed=3)
    shown = [axes.images[0].get_array() for axes in figure.axes]
    expected = [corrupt(image, kind, severity=level, seed=3) for kind in CORRUPTIONS for level in (0, *SEVERITIES)]
    np.testing.assert_array_equal(shown, expected)
    titles = ["as it is", *(f"severity {level}" for level in SEVERITIES)]
    assert [axes.get_title() for axes in figure.axes[:6]] == titles
    assert [axes.get_ylabel() for axes in figure.axes[::6]] == list(CORRUPTIONS)
    assert all(kind in figure.description for kind in CORRUPTIONS)


MANY = predictions(2000, classes=100)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_confusion(confusion_table(*MANY, class_names=LONG)),
        lambda: plot_confusion(confusion_table(*predictions(1), class_names=["a", "b", "c"])),
        lambda: plot_confusion(confusion_table(*predictions(40_000), class_names=LONG[:3])),
        lambda: plot_mistakes(pictures(2000), find_mistakes(*MANY, class_names=LONG, count=1)),
        lambda: plot_mistakes(pictures(2000), find_mistakes(*MANY, class_names=LONG, count=25)),
        lambda: plot_reliability({"one image": reliability_table(*predictions(1))}),
        lambda: plot_reliability({"sure": reliability_table(np.eye(2)[[0, 1] * 9], [0, 1] * 9)}),
        lambda: plot_reliability({"sure and wrong": reliability_table(np.eye(2)[[0] * 9], [1] * 9)}),
        lambda: plot_grad_cam(pictures(1), np.ones((1, 12, 12)), titles=[LONG[0]]),
        lambda: plot_grad_cam(pictures(7, height=30), np.random.default_rng(0).random((7, 30, 12)), titles=LONG[:7]),
        lambda: plot_grad_cam(pictures(0), np.ones((0, 12, 12)), titles=[]),
        lambda: plot_corruptions(make_corruptions(arms=("frozen",), kinds=("blur",), clean=False)),
        lambda: plot_corruptions(make_corruptions(arms=("a", "b", "c", "d"))),
        lambda: plot_corruptions(make_corruptions(kinds=(LONG[0],), severities=(1,), clean=False)),
        lambda: plot_corrupted_examples(pictures(1, height=8, width=20)[0]),
    ],
)
def test_what_a_model_can_end_in_is_drawn(draw):
    figure = draw()
    assert figure.description and is_drawn(figure)
    for axes in figure.axes:
        assert axes.get_xlabel() or not axes.get_xticks().size or not axes.axison
