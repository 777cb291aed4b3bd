"""The study's figures say their numbers in words, and survive what a study can end in."""

import warnings

import numpy as np
import pandas as pd
import pytest

from helpers.plots import plot_costs, plot_depth, plot_differences, plot_probe, plot_rates
from helpers.plots.study import pareto_front

SHORT = ["block_1", "block_2", "block_3", "head"]
LONG = [f"normal_left_and_right_block_{number}" for number in range(1, 21)]


def make_probe(names=SHORT, accuracy=0.8):
    probe = pd.DataFrame({"cut": names, "cost": np.linspace(0, 1, len(names)), "accuracy": accuracy})
    losses = np.linspace(0.9, 0.5, len(names))
    return probe.assign(log_loss=losses, behind=losses - 0.5, error=0.05, features=8)


def make_race(losses, *, names=SHORT, cut="head"):
    """Returns a race with a row for each (stage, rate, rung, log-loss); its accuracies are 1 - log-loss / 2."""
    race = pd.DataFrame(losses, columns=["stage", "learning_rate", "rung", "log_loss"])
    race["cut"], race["steps"] = cut, 60 * race["rung"]
    race["cost_before"] = race["stage"].map(dict(zip(names, np.linspace(0, 1, len(names)), strict=True)))
    race["accuracy"] = 1 - race["log_loss"].where(np.isfinite(race["log_loss"])) / 2
    return race.assign(low=race["accuracy"] - 0.05, high=race["accuracy"] + 0.05)


def make_arms(accuracies, seconds):
    arms = pd.DataFrame({"test_accuracy": accuracies, "seconds": seconds, "trainable_weights": 1000.0})
    arms.index = [f"arm {number}" for number in range(len(arms))]
    return arms.assign(low=arms["test_accuracy"] - 0.1, high=arms["test_accuracy"] + 0.05)


def make_comparison(differences, *, margin=0.01, reach=0.02):
    mean = float(np.mean(differences))
    return {
        "difference": mean,
        "low": mean - reach,
        "high": mean + reach,
        "margin": margin,
        "differences": list(differences),
        "pairs": len(differences),
        "images": 240,
    }


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


def test_depth_shows_each_stage_at_its_best_rate():
    description = plot_depth(make_probe(accuracy=[0.5, 0.7, 0.9, 0.8]), RACE).description
    assert (
        "frozen, cut at block_3: 0.900; frozen, cut at head: 0.800; fine-tuned from block_1 on: 0.750" in description
    )
    assert description.endswith("fine-tuned from block_3 on: 0.850; diverged: block_2.")


def test_rates_show_first_and_last_rung_and_frame_the_best():
    figure = plot_rates(RACE)
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [f"block_{n}\ncut at head" for n in (1, 2, 3)]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0.001", "0.01"]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {
        (0, 0): "0.500",
        (0, 1): "diverged",
        (1, 0): "diverged",
        (2, 0): "0.100\n180 steps: 0.300",
        (2, 1): "0.400",
    }
    assert {(round(frame.get_x()), round(frame.get_y())) for frame in axes.patches} == {(2, 0)}
    assert "Best: 0.300, cut at head, from block_3 on at rate 0.001" in figure.description
    assert "2 diverged" in figure.description


def test_rates_have_a_column_for_each_cut():
    both = pd.concat([make_race([("block_2", 1e-3, 1, 0.2)], cut="block_3"), make_race([("block_2", 1e-3, 1, 0.4)])])
    (axes,) = plot_rates(both.reset_index(drop=True)).axes
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert labels == ["block_2\ncut at block_3", "block_2\ncut at head"]
    assert [text.get_text() for text in axes.texts] == ["0.200", "0.400"]


def test_the_probe_shows_what_is_taken():
    description = plot_probe(make_probe(), "block_3").description
    assert "lowest at head, 0.500; with all layers 0.500. Taken: block_3." in description
    nothing = plot_probe(make_probe().assign(log_loss=np.nan, error=np.nan), "head")
    assert "nothing can be cross-validated" in nothing.description


def test_rates_can_be_read_on_every_shade():
    losses = [(name, 1e-3, 9, loss) for name, loss in zip(SHORT, [0.1, 0.2, 1, 9], strict=True)]
    (axes,) = plot_rates(make_race(losses)).axes
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
    figure = plot_costs(make_arms([0.1, 0.9, 0.8], [np.nan, 5, 123.4]))
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
    figure = plot_differences(make_comparison([0.01, 0.03, -0.01, 0.05]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["frozen better", "fine-tuned better"]
    assert "of 4 pairs on 240 images: +2.0 points on average, 95 % interval +0.0 to +4.0" in figure.description
    assert "-1.0 to +5.0" in figure.description


ALL_DIVERGED = make_race([(name, 1e-3, 1, np.inf) for name in SHORT])
LONG_RACE = make_race([(name, rate, 9, 0.5) for name in LONG for rate in (1e-4, 1e-3)], names=LONG)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot_probe(make_probe(["head"]), "head"),
        lambda: plot_probe(make_probe(LONG), LONG[3]),
        lambda: plot_depth(make_probe(["head"]), make_race([("head", 1e-3, 1, 0.4)])),
        lambda: plot_depth(make_probe(accuracy=np.nan), ALL_DIVERGED),
        lambda: plot_depth(make_probe(accuracy=[0.5, np.nan, 0.9, 0.8]), RACE[:0]),
        lambda: plot_depth(make_probe(LONG), LONG_RACE),
        lambda: plot_rates(RACE[:1]),
        lambda: plot_rates(RACE.set_axis([0] * len(RACE))),
        lambda: plot_rates(ALL_DIVERGED),
        lambda: plot_rates(LONG_RACE),
        lambda: plot_rates(make_race([("head", 1e-3, 1, 0.0), ("head", 1e-2, 1, 1e9)])),
        lambda: plot_costs(make_arms([0.9], [3.0])),
        lambda: plot_costs(make_arms([0.1], [np.nan])),
        lambda: plot_costs(make_arms([0.9] * 20, [3.0] * 20)),
        lambda: plot_costs(make_arms([0.8, 0.9], [1, 2]).assign(low=np.nan, trainable_weights=np.nan)),
        lambda: plot_differences(make_comparison([0.0] * 6, reach=0.0)),
        lambda: plot_differences(make_comparison([0.0] * 6, reach=0.0, margin=0.0)),
        lambda: plot_differences(make_comparison([-0.9] * 20, reach=np.nan)),
    ],
)
def test_what_a_study_can_end_in_is_drawn(draw):
    figure = draw()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figure._repr_mimebundle_()[0]["image/png"] and figure.description
    for axes in figure.axes:
        assert (axes.get_xlabel() and axes.get_ylabel() and axes.get_title()) or not axes.axison
