"""Figures show their numbers, have labelled axes, carry a description, and survive what a run can end in."""

import warnings

import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

from helpers import plots
from helpers.data import check_images, find_images, split_images
from helpers.evaluation import confusion_table, find_mistakes, reliability_table
from helpers.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from helpers.plots.study import pareto_front


def check_points(drawn, x, y, spans) -> None:
    """Fails unless an `ErrorbarContainer` has its points there, with these intervals, (points, 2)."""
    line, _, (bars,) = drawn
    np.testing.assert_allclose(line.get_data(), [x, y])
    ends = [[[place, low], [place, high]] for place, (low, high) in zip(x, np.asarray(spans), strict=True)]
    np.testing.assert_allclose(bars.get_segments(), ends)


def tick_names(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


# ---- images


@pytest.fixture
def images(make_images, tmp_path):
    return split_images(check_images(find_images(make_images(tmp_path, {"ants": 6, "bees": 9})))[0])


def test_problems_are_shown_beside_what_they_are_like(images):
    rows = [("a/cut.png", "truncated", ""), ("", "imbalance", ""), ("a", "empty class", "")]
    rows += [("a/x.png", "two labels", "b/x.png"), ("b/x.png", "two labels", "a/x.png")]
    paths = [images["path"][0], *(f"a/{number}.png" for number in range(19))]
    rows += [(path, "duplicate", "b/$1 for $2 \N{ROCKET}.png") for path in paths]
    problems = pd.DataFrame(rows, columns=["path", "problem", "other"])
    figure = plots.plot_problems(problems)
    assert figure.description == "Grid of 5 images in which a problem was found, of 2 two labels, 20 duplicate"
    assert [axes.get_title() for axes in figure.axes[:5]] == ["two labels"] + 4 * ["duplicate"]
    assert "$1 for $2" in figure.axes[1].get_xlabel()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure._repr_mimebundle_()
    nothing = plots.plot_problems(problems[1:3])
    assert "No problem" in nothing.description and nothing._repr_mimebundle_()[0]["image/png"]


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (plots.plot_counts, "2 classes, from 6 (ants) to 9 (bees)"),
        (plots.plot_examples, "ants, bees"),
        (plots.plot_sizes, "width 16 to 16 pixels"),
    ],
)
def test_figures_are_shown_with_their_description(images, draw, words):
    data, metadata = InteractiveShell.instance().display_formatter.format(draw(images))
    assert data["image/png"] and words in data["text/plain"] and words in metadata["image/png"]["alt"]


# ---- a model

NAMES = ["ant", "bee", "cat"]
LONG = [f"a class of $ome length, number {number}" for number in range(100)]


def predictions(images: int = 60, *, classes: int = 3):
    rng, labels = np.random.default_rng(0), np.arange(images) % classes
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), labels] += 2
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


def pictures(count: int = 60, *, height: int = 12, width: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3)).astype("uint8")


def make_corruptions(arms=("frozen", "fine-tuned")):
    rows = [("none", 0, arm) for arm in arms]
    rows += [(kind, severity, arm) for kind in CORRUPTIONS for severity in SEVERITIES for arm in arms]
    table = pd.DataFrame(rows, columns=["corruption", "severity", "arm"])
    accuracy = 0.9 - 0.1 * table["severity"] - 0.05 * (table["arm"] != arms[0])
    return table.assign(accuracy=accuracy, low=accuracy - 0.05, high=accuracy + 0.05, images=300)


def test_the_confusion_shows_counts_and_the_shares_of_each_row():
    confusion = confusion_table(np.eye(3)[[0, 0, 1, 1, 1, 2, 2, 0]], [0, 0, 0, 0, 1, 2, 2, 2], class_names=NAMES)
    figure = plots.plot_confusion(confusion)
    assert "5 of 8 images" in figure.description
    (axes,) = figure.axes
    written = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "2", (1, 0): "2", (1, 1): "1", (2, 2): "2", (0, 2): "1"}, "(column, row)"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    drawn = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(drawn, [[1 / 2, 1 / 2, 0], [0, 1, 0], [1 / 3, 0, 2 / 3]])
    for axis in (axes.xaxis, axes.yaxis):
        assert axis.get_ticklocs().tolist() == [0, 1, 2] and tick_names(axis) == NAMES


def test_of_many_classes_those_with_mistakes_are_named_and_no_image_is_lost():
    confusion = confusion_table(*predictions(2000, classes=100), class_names=LONG)
    (axes,) = plots.plot_confusion(confusion).axes
    assert sum(int(text.get_text()) for text in axes.texts) == 2000
    names = tick_names(axes.yaxis)
    assert len(names) == 21 and names[-1] == "80 others"
    wrong = confusion.to_numpy() - np.diag(np.diag(confusion))
    mistakes = wrong.sum(axis=0) + wrong.sum(axis=1)
    shown = [int(name.split()[-1]) for name in names[:-1]]
    assert shown == sorted(shown) and mistakes[shown].min() >= np.delete(mistakes, shown).max()


def test_mistakes_are_shown_with_both_classes_and_never_as_certain():
    mistakes = find_mistakes(*predictions(), class_names=NAMES, count=7)
    images, first = pictures(), mistakes.iloc[0]
    figure = plots.plot_mistakes(images, mistakes)
    percent = f"{100 * first['probability']:.0f} %"
    assert figure.axes[0].get_title() == f"{first['predicted']} ({percent})\ntrue: {first['label']}"
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), images[int(first["position"])])
    assert f"{first['label']} taken for {first['predicted']}" in figure.description
    assert sum(bool(axes.images) for axes in figure.axes) == 7
    assert "No mistake" in plots.plot_mistakes(images, mistakes[:0]).description
    sure = find_mistakes(np.array([[0.9996, 0.0004]]), [1], class_names=["ant", "bee"])
    assert plots.prediction_titles(sure) == ["ant (> 99 %)\ntrue: bee"]


def test_reliability_shows_every_bin():
    table = reliability_table(*predictions(), bins=3)
    other = table.assign(accuracy=table["accuracy"] / 2, low=table["low"] / 2, high=table["high"] / 2)
    figure = plots.plot_reliability({"before": table, "after": other})
    (axes,) = figure.axes
    np.testing.assert_array_equal(*axes.lines[0].get_data(), err_msg="the diagonal")
    for part, drawn in zip((table, other), axes.containers, strict=True):
        check_points(drawn, part["confidence"], part["accuracy"], part[["low", "high"]])
    assert [drawn.get_label() for drawn in axes.containers] == ["before", "after"]
    assert "20 images" in axes.get_title() and axes.get_xlim()[0] <= table["low"].min()
    bins = "; ".join(f"{row.confidence:.2f} {row.accuracy:.2f}" for row in table.itertuples())
    assert f"before: {bins}" in figure.description


def test_grad_cam_leaves_what_matters_and_says_where_it_is():
    images, maps = pictures(3), np.zeros((3, 12, 12))
    maps[0, 1:4, 8:11] = 1
    maps[1, 5:7, 5:7] = 1
    figure = plots.plot_grad_cam(images, maps, titles=["ant 0.98", "bee 0.70", "cat"])
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
    assert "no spatial feature maps" in plots.plot_grad_cam(images, None, titles=list("abc")).description


def test_corruptions_are_a_panel_each_that_begins_with_unchanged_images():
    figure = plots.plot_corruptions(make_corruptions())
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
    figure = plots.plot_corrupted_examples(image)
    expected = [corrupt(image, kind, severity=level) for kind in CORRUPTIONS for level in (0, *SEVERITIES)]
    np.testing.assert_array_equal([axes.images[0].get_array() for axes in figure.axes], expected)
    assert [axes.get_ylabel() for axes in figure.axes[::6]] == list(CORRUPTIONS)


# ---- the study

SHORT = ["block_1", "block_2", "block_3", "head"]
BLOCKS = [f"normal_left_and_right_block_{number}" for number in range(1, 21)]


def make_probe(names=SHORT, accuracy=0.8):
    probe = pd.DataFrame({"cut": names, "cost": np.linspace(0, 1, len(names)), "accuracy": accuracy})
    losses = np.linspace(0.9, 0.5, len(names))
    return probe.assign(log_loss=losses, behind=losses - 0.5, error=0.05, features=8)


def make_race(losses, *, names=SHORT, cut="head"):
    """Returns a race with a row for each (stage, rate, rung, log-loss); its accuracies are 1 - log-loss / 2."""
    race = pd.DataFrame(losses, columns=["stage", "learning_rate", "rung", "log_loss"])
    race["cut"], race["steps"], race["splits"] = cut, 60 * race["rung"], race["rung"]
    race["cost_before"] = race["stage"].map(dict(zip(names, np.linspace(0, 1, len(names)), strict=True)))
    race["accuracy"] = 1 - race["log_loss"].where(np.isfinite(race["log_loss"])) / 2
    return race.assign(low=race["accuracy"] - 0.05, high=race["accuracy"] + 0.05)


def make_arms(accuracies, seconds):
    arms = pd.DataFrame({"test_accuracy": accuracies, "seconds": seconds, "trainable_weights": 1000.0})
    arms.index = [f"arm {number}" for number in range(len(arms))]
    return arms.assign(low=arms["test_accuracy"] - 0.1, high=arms["test_accuracy"] + 0.05)


def make_comparison(differences, *, margin=0.01, reach=0.02):
    mean = float(np.mean(differences))
    comparison = {"difference": mean, "low": mean - reach, "high": mean + reach, "margin": margin, "images": 240}
    return comparison | {"differences": list(differences), "pairs": len(differences)}


RACE = make_race(
    [
        ("block_3", 1e-3, 2, 0.1),  # at an early rung: it counts for less than a later one does
        ("block_3", 1e-3, 3, 0.3),
        ("block_3", 1e-2, 3, 0.4),
        ("block_1", 1e-3, 2, 0.5),
        ("block_1", 1e-2, 1, np.inf),
        ("block_2", 1e-3, 1, np.nan),
    ]
)


def test_the_probe_and_the_depth_show_what_is_known_of_each_cut_and_stage():
    description = plots.plot_probe(make_probe(), "block_3").description
    assert "lowest at head, 0.500; with all layers 0.500. Taken: block_3." in description
    nothing = plots.plot_probe(make_probe().assign(log_loss=np.nan, error=np.nan), "head")
    assert "nothing can be cross-validated" in nothing.description
    description = plots.plot_depth(make_probe(accuracy=[0.5, 0.7, 0.9, 0.8]), RACE).description
    assert (
        "frozen, cut before block_3: 0.900; frozen, cut before head: 0.800; fine-tuned from block_1 on: 0.750"
        in description
    )
    assert description.endswith("fine-tuned from block_3 on: 0.850; diverged: block_2.")


def test_rates_show_first_and_last_rung_and_frame_the_best():
    figure = plots.plot_rates(RACE)
    (axes,) = figure.axes
    assert tick_names(axes.xaxis) == [f"block_{n}\ncut before head" for n in (1, 2, 3)]
    assert tick_names(axes.yaxis) == ["0.001", "0.01"]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    first = {(0, 0): "0.500", (0, 1): "diverged", (1, 0): "diverged"}
    assert texts == first | {(2, 0): "0.100\n3 splits: 0.300", (2, 1): "0.400"}
    assert {(round(frame.get_x()), round(frame.get_y())) for frame in axes.patches} == {(2, 0)}
    assert "Best: 0.300, cut before head, from block_3 on at rate 0.001" in figure.description
    assert "2 diverged" in figure.description


def test_rates_have_a_column_for_each_cut_and_can_be_read_on_every_shade():
    both = pd.concat([make_race([("block_2", 1e-3, 1, 0.2)], cut="block_3"), make_race([("block_2", 1e-3, 1, 0.4)])])
    (axes,) = plots.plot_rates(both.reset_index(drop=True)).axes
    assert tick_names(axes.xaxis) == ["block_2\ncut before block_3", "block_2\ncut before head"]
    assert [text.get_text() for text in axes.texts] == ["0.200", "0.400"]
    losses = [(name, 1e-3, 9, loss) for name, loss in zip(SHORT, [0.1, 0.2, 1, 9], strict=True)]
    (axes,) = plots.plot_rates(make_race(losses)).axes
    shades = axes.images[0].get_array()[0]
    for shade, text in zip(shades, axes.texts, strict=True):
        assert abs(shade - (text.get_color() == "white")) >= 0.5
    assert np.all(np.diff(shades) > 0)


@pytest.mark.parametrize(
    ("accuracies", "seconds", "efficient"),
    [
        ([0.5, 0.7, 0.6, 0.9], [1, 2, 3, 4], [True, True, False, True]),
        ([0.7, 0.7], [1, 2], [True, False]),  # as accurate and cheaper
        ([0.7, 0.8], [2, 2], [False, True]),  # as cheap and more accurate
        ([0.7, 0.7], [2, 2], [True, True]),
        ([0.9, 0.8, 0.7], [3, 2, 1], [True, True, True]),
        ([], [], []),
    ],
)
def test_an_arm_is_efficient_if_none_is_as_good_and_better_in_one(accuracies, seconds, efficient):
    assert pareto_front(make_arms(accuracies, seconds)).tolist() == efficient


def test_costs_leave_out_arms_without_training():
    figure = plots.plot_costs(make_arms([0.1, 0.9, 0.8], [np.nan, 5, 123.4]))
    description, (axes,) = figure.description, figure.axes
    points = {drawn.get_label(): drawn[0] for drawn in axes.containers}
    assert [points[name].get_xdata().tolist() for name in ("arm 1", "arm 2")] == [[5], [123.4]]
    assert points["arm 1"].get_markerfacecolor() == "black" and points["arm 2"].get_markerfacecolor() == "white"
    assert points["arm 1"].get_marker() != points["arm 2"].get_marker()
    assert "arm 0" not in description
    assert "arm 1 90.0 % (80.0 to 95.0) in 5.0 s with 1,000 trainable weights" in description
    assert "arm 2 80.0 % (70.0 to 85.0) in 123 s" in description
    assert description.endswith("Efficient: arm 1.")


def test_differences_are_in_points():
    figure = plots.plot_differences(make_comparison([0.01, 0.03, -0.01, 0.05]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["frozen better", "fine-tuned better"]
    assert "of 4 pairs on 240 images: +2.0 points on average, 95 % interval +0.0 to +4.0" in figure.description
    assert "-1.0 to +5.0" in figure.description


# ---- all of them

HISTORY = {"log_loss": [1.0, 0.5], "val_log_loss": [0.9, 0.7], "accuracy": [0.5, 0.8], "val_accuracy": [0.5, 0.7]}
START = {"log_loss": 0.8, "accuracy": 0.6}
FROZEN = {"frozen": {"test_accuracy": 0.9, "low": 0.8, "high": 1}}
MANY, TALL = predictions(2000, classes=100), pictures(7, height=30)
ALL_DIVERGED = make_race([(name, 1e-3, 1, np.inf) for name in SHORT])
LONG_RACE = make_race([(name, rate, 9, 0.5) for name in BLOCKS for rate in (1e-4, 1e-3)], names=BLOCKS)


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: plots.plot_strengths({0.1: 0.5, 1.0: 0.4, 10.0: 0.6}, 1.0), "0.400, at C = 1"),
        (lambda: plots.plot_history(HISTORY, START, title="2 epochs"), "0.800 before, and 0.700 at the end"),
        (lambda: plots.plot_history({}, START, title="diverged"), "0.800 before, and 0.800 at the end"),
        (lambda: plots.plot_results(FROZEN), "frozen 90.0 % (80.0 to 100.0)"),
        (lambda: plots.plot_image_rows({"letters": np.zeros((20, 8, 8, 3))}), "20 letters"),
        (lambda: plots.plot_steps({"printed": np.eye(9), "counted": np.eye(3)}), "printed, counted"),
        (lambda: plots.plot_confusion(confusion_table(*MANY, class_names=LONG)), "100 classes"),
        (lambda: plots.plot_confusion(confusion_table(*predictions(1), class_names=NAMES)), "of 1 images"),
        (lambda: plots.plot_confusion(confusion_table(*predictions(40_000), class_names=LONG[:3])), "of 40000"),
        (lambda: plots.plot_mistakes(pictures(2000), find_mistakes(*MANY, class_names=LONG, count=25)), "the 25"),
        (lambda: plots.plot_reliability({"one": reliability_table(*predictions(1))}), "one: "),
        (lambda: plots.plot_reliability({"sure": reliability_table(np.eye(2)[[0] * 9], [1] * 9)}), "1.00 0.00"),
        (lambda: plots.plot_grad_cam(pictures(1), np.ones((1, 12, 12)), titles=[LONG[0]]), "100 % of the area"),
        (lambda: plots.plot_grad_cam(TALL, TALL[..., 0] / 255, titles=LONG[:7]), "number 6: "),
        (lambda: plots.plot_grad_cam(pictures(0), np.ones((0, 12, 12)), titles=[]), "No image"),
        (lambda: plots.plot_corruptions(make_corruptions(arms=("a", "b", "c", "d"))), "blur, d: "),
        (lambda: plots.plot_corrupted_examples(pictures(1, height=8, width=20)[0]), "jpeg"),
        (lambda: plots.plot_probe(make_probe(["head"]), "head"), "1 cut points"),
        (lambda: plots.plot_probe(make_probe(BLOCKS), BLOCKS[3]), f"Taken: {BLOCKS[3]}"),
        (lambda: plots.plot_depth(make_probe(["head"]), make_race([("head", 1e-3, 1, 0.4)])), "from head on: 0.800"),
        (lambda: plots.plot_depth(make_probe(accuracy=np.nan), ALL_DIVERGED), "diverged: block_1"),
        (
            lambda: plots.plot_depth(make_probe(accuracy=[0.5, np.nan, 0.9, 0.8]), RACE[:0]),
            "cut before block_3: 0.900",
        ),
        (lambda: plots.plot_depth(make_probe(BLOCKS), LONG_RACE), BLOCKS[19]),
        (lambda: plots.plot_rates(RACE[:0]), "No arm has raced."),
        (lambda: plots.plot_rates(RACE[:1]), "Best: 0.100"),
        (lambda: plots.plot_rates(RACE.set_axis([0] * len(RACE))), "Best: 0.300"),
        (lambda: plots.plot_rates(ALL_DIVERGED), "All diverged."),
        (lambda: plots.plot_rates(LONG_RACE), "Best: 0.500"),
        (lambda: plots.plot_rates(make_race([("head", 1e-3, 1, 0.0), ("head", 1e-2, 1, 1e9)])), "Best: 0.000"),
        (lambda: plots.plot_costs(make_arms([0.9], [3.0])), "Efficient: arm 0."),
        (lambda: plots.plot_costs(make_arms([0.1], [np.nan])), "No arm was trained."),
        (lambda: plots.plot_costs(make_arms([0.9] * 20, [3.0] * 20)), "arm 19"),
        (lambda: plots.plot_costs(make_arms([0.8, 0.9], [1, 2]).assign(low=np.nan)), "arm 1"),
        (lambda: plots.plot_differences({}), "fewer than two pairs"),
        (lambda: plots.plot_differences(make_comparison([0.0] * 6, reach=0.0)), "of 6 pairs"),
        (lambda: plots.plot_differences(make_comparison([0.0] * 6, reach=0.0, margin=0.0)), "of 6 pairs"),
        (lambda: plots.plot_differences(make_comparison([-0.9] * 20, reach=np.nan)), "-90.0 points"),
    ],
)
def test_what_a_run_can_end_in_is_drawn(draw, words):
    figure = draw()
    assert words in figure.description
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figure._repr_mimebundle_()[0]["image/png"]
    for axes in figure.axes:
        assert axes.get_xlabel() or not axes.get_xticks().size or not axes.axison


def test_predictions_are_drawn_from_all_and_mistakes_are_told_and_framed():
    names, labels = ["ant", "bee"], np.array([0, 0, 1, 1, 1, 0])
    probabilities = np.array([[0.999, 0.001], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9], [0.9, 0.1]])
    pixels = np.arange(6, dtype="uint8")[:, None, None, None] * np.ones((1, 4, 4, 3), "uint8")
    files = [f"pets/{position}.png" for position in range(6)]
    figure = plots.plot_predictions(pixels, probabilities, labels, class_names=names, files=files)
    shown = {axes.get_xlabel(): axes for axes in figure.axes if axes.images}
    assert set(shown) == {f"{position}.png" for position in range(6)}
    for position, (guess, sure) in enumerate(zip(probabilities.argmax(1), probabilities.max(1), strict=True)):
        axes, mistaken = shown[f"{position}.png"], guess != labels[position]
        assert axes.images[0].get_array()[0, 0, 0] == position
        percent = "> 99 %" if sure > 0.99 else f"{100 * sure:.0f} %"
        expected = f"{names[guess]} ({percent})" + (f"\ntrue: {names[labels[position]]}" if mistaken else "")
        assert axes.get_title() == expected and (axes.spines["left"].get_linewidth() > 1) == mistaken
    assert figure.description.count(", right") == 4 and figure.description.count(", true") == 2
    three = plots.plot_predictions(pixels, probabilities, labels, class_names=names, right=3, wrong=None)
    assert len(three.axes) == 3
