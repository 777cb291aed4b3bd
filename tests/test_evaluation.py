"""Intervals cover what they should, comparisons are paired, and sentences say what the numbers say."""

import doctest

import numpy as np
import pytest

from helpers.evaluation import evaluate, intervals, results_table
from helpers.evaluation.intervals import accuracy_interval, compare, mean_interval
from helpers.evaluation.metrics import describe_comparison, is_correct


def test_doctests():
    assert doctest.testmod(intervals).failed == 0 < doctest.testmod(intervals).attempted


def test_accuracy_interval_at_its_edges():
    assert accuracy_interval(0, 50)[0] == 0 and accuracy_interval(50, 50)[1] == 1
    assert accuracy_interval(0, 50)[1] == pytest.approx(0.0713, abs=5e-4)
    with pytest.raises(ValueError):
        accuracy_interval(5, 4)


@pytest.mark.parametrize("accuracy", [0.6, 0.95])
def test_accuracy_interval_covers(accuracy):
    correct = np.random.default_rng(0).binomial(153, accuracy, size=2000)
    intervals = {count: accuracy_interval(count, 153) for count in np.unique(correct)}
    covered = np.mean([intervals[c][0] <= accuracy <= intervals[c][1] for c in correct])
    assert 0.93 <= covered <= 0.975


def test_evaluate_probabilities_and_labels():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]])
    labels = np.array([0, 1, 1, 1])
    metrics = evaluate(probabilities, labels)
    assert metrics["test_accuracy"] == 0.75 and 0 < metrics["low"] < 0.75 < metrics["high"] < 1
    assert metrics["log_loss"] == pytest.approx(-np.log([0.9, 0.6, 0.3, 0.8]).mean())
    assert evaluate(np.array([0, 0, 0, 0]), labels)["test_accuracy"] == 0.25
    assert is_correct(probabilities, labels).tolist() == [True, True, False, True]


def simulate(images: int, difference: float, agreement: float, rng):
    """Two classifiers on the same images, the second better by `difference`, differing on 1 - agreement."""
    kind = rng.random(images)
    second_only = (1 - agreement + difference) / 2
    first = (kind >= second_only) & (kind < 0.95)
    second = (kind < second_only) | ((kind >= 1 - agreement) & (kind < 0.95))
    return first, second


@pytest.mark.parametrize("images", [50, 150, 800])
@pytest.mark.parametrize("difference", [0.0, 0.03])
def test_paired_interval_covers_the_true_difference(images, difference):
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(1000):
        comparison = compare(*simulate(images, difference, 0.9, rng))
        covered.append(comparison["low"] <= difference <= comparison["high"])
    assert 0.93 <= np.mean(covered) <= 0.98


def test_detectable_difference_is_detected_four_times_of_five():
    rng = np.random.default_rng(0)
    detectable = np.mean([compare(*simulate(800, 0.0, 0.9, rng))["detectable"] for _ in range(50)])
    found = [compare(*simulate(800, detectable, 0.9, rng))["low"] > 0 for _ in range(1000)]
    assert 0.7 <= np.mean(found) <= 0.88


def test_comparison_is_paired():
    first = np.array([True] * 90 + [False] * 10)
    second = first.copy()
    second[90:96] = True  # right where the first is right, and on six more
    comparison = compare(first, second)
    assert comparison["difference"] == pytest.approx(0.06)
    assert (comparison["only_first"], comparison["only_second"]) == (0, 6)
    assert comparison["low"] > 0, "unpaired, 90 against 96 of 100 would show nothing"
    mirrored = compare(second, first)
    assert mirrored["low"] == pytest.approx(-comparison["high"]) and mirrored["difference"] == pytest.approx(-0.06)
    equal = compare(first, first)
    assert equal["low"] < 0 == equal["difference"] < equal["high"], "no disagreement is not certainty"
    with pytest.raises(ValueError, match="same pairs and images"):
        compare(first, second[:5])


def test_the_interval_of_a_mean_is_students():
    mean, low, high = mean_interval([0.01, np.nan, 0.03])
    assert mean == pytest.approx(0.02)
    assert (low, high) == pytest.approx((0.02 - 12.706 * 0.01, 0.02 + 12.706 * 0.01), rel=1e-3)
    assert np.isnan(mean_interval([0.01])[1])


def test_sentences_follow_the_interval():
    clear = {"difference": 0.06, "low": 0.01, "high": 0.11, "detectable": 0.07}
    sentence = describe_comparison(clear, images=100)
    assert "+6.0 points (95 % interval +1.0 to +11.0): more than chance in 100 test images" in sentence
    worse = {"difference": -0.06, "low": -0.11, "high": -0.01, "detectable": 0.07}
    assert ": more than chance" in describe_comparison(worse, images=100)
    sentence = describe_comparison(clear | {"low": -0.01}, images=100)
    assert "not more than chance in 100 test images" in sentence and "about 7.0 points would have shown" in sentence


def test_results_table():
    arm = {"test_accuracy": 0.91234, "low": 0.9, "high": 0.95, "seconds": 12.34, "trainable_weights": 1290}
    table = results_table({"a": {"test_accuracy": 0.5, "low": 0.4, "high": 0.6}, "b": arm})
    assert table.loc["a"].tolist() == ["0.500", "0.400 to 0.600", "", ""]
    assert table.loc["b"].tolist() == ["0.912", "0.900 to 0.950", "12.3", "1,290"]
