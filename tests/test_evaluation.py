"""Intervals cover what they should, comparisons are paired, every image is counted once, overconfidence is found."""

import doctest
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import classification_report

from helpers.evaluation import (
    calibration_table,
    choose_examples,
    class_table,
    compare_networks,
    confusion_table,
    evaluate,
    find_mistakes,
    intervals,
    metrics,
    reliability_table,
    results_table,
)
from helpers.evaluation.intervals import accuracy_interval, compare, mean_interval
from helpers.evaluation.metrics import calibration_error, is_correct, temperature_scale
from helpers.training.calibration import calibrated_scores

NAMES = ["ant", "bee", "cat", "dog"]


def predictions(images: int = 200, *, sureness: float = 1.0, seed: int = 0):
    """Returns probabilities, their logits multiplied by `sureness`, and labels that were drawn from them before."""
    rng = np.random.default_rng(seed)
    true = temperature_scale(np.exp(rng.normal(size=(images, 4)) * 2), 1.0)
    labels = (true.cumsum(axis=1) < rng.random((images, 1))).sum(axis=1).clip(max=3)
    return temperature_scale(true, 1 / sureness), labels


def certain(predicted) -> np.ndarray:
    return np.eye(4)[predicted]


@pytest.mark.parametrize("module", [intervals, metrics])
def test_doctests(module):
    assert doctest.testmod(module).failed == 0 < doctest.testmod(module).attempted


def test_a_table_does_not_wait_for_tensorflow():
    code = "import sys, helpers.evaluation; assert not {'tensorflow', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- intervals


def test_accuracy_interval_at_its_edges():
    assert accuracy_interval(0, 50)[0] == 0 and accuracy_interval(50, 50)[1] == 1
    assert accuracy_interval(0, 50)[1] == pytest.approx(0.0713, abs=5e-4)


@pytest.mark.parametrize("accuracy", [0.6, 0.95])
def test_accuracy_interval_covers(accuracy):
    correct = np.random.default_rng(0).binomial(153, accuracy, size=2000)
    intervals = {count: accuracy_interval(count, 153) for count in np.unique(correct)}
    covered = np.mean([intervals[c][0] <= accuracy <= intervals[c][1] for c in correct])
    assert 0.93 <= covered <= 0.975


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


# ---- accuracy


def test_evaluate_probabilities_and_labels():
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.2, 0.8]])
    labels = np.array([0, 1, 1, 1])
    found = evaluate(probabilities, labels)
    assert found["test_accuracy"] == 0.75 and 0 < found["low"] < 0.75 < found["high"] < 1
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.6, 0.3, 0.8]).mean())
    assert evaluate(np.array([0, 0, 0, 0]), labels)["test_accuracy"] == 0.25
    assert is_correct(probabilities, labels).tolist() == [True, True, False, True]


@pytest.mark.parametrize(("frozen", "tuned", "change"), [(60, 90, "+30.0"), (90, 60, "-30.0"), (60, 61, "+1.0")])
def test_sentences_follow_the_interval(frozen, tuned, change):
    right = (certain([0] * count + [1] * (100 - count)) for count in (frozen, tuned))
    comparison, sentence = compare_networks(*right, np.zeros(100, int))
    shown = comparison["low"] > 0 or comparison["high"] < 0
    assert shown == (change != "+1.0")
    assert f"{change} points (95 % interval {100 * comparison['low']:+.1f} to" in sentence
    assert ("): not more than chance would explain with 100 test images" in sentence) != shown
    assert (f"about {100 * comparison['detectable']:.1f} points would have been shown" in sentence) != shown


def test_results_table():
    arm = {"test_accuracy": 0.91234, "low": 0.9, "high": 0.95, "seconds": 12.34, "trainable_weights": 1290}
    table = results_table({"a": {"test_accuracy": 0.5, "low": 0.4, "high": 0.6}, "b": arm})
    assert table.loc["a"].tolist() == ["0.500", "0.400 to 0.600", "", ""]
    assert table.loc["b"].tolist() == ["0.912", "0.900 to 0.950", "12.3", "1,290"]


# ---- classes and mistakes


def test_rows_are_true_classes_and_columns_predicted_ones():
    counts = confusion_table(certain([1, 1, 0, 3]), [0, 0, 0, 2], class_names=NAMES)
    assert counts.loc["ant", "bee"] == 2 and counts.loc["ant", "ant"] == 1 and counts.loc["cat", "dog"] == 1
    assert counts.to_numpy().sum() == 4 and (counts.index.name, counts.columns.name) == ("label", "predicted")


def test_the_table_of_classes_agrees_with_scikit_learn_and_with_the_intervals():
    probabilities, labels = predictions()
    table = class_table(probabilities, labels, class_names=NAMES)
    predicted = probabilities.argmax(axis=1)
    report = classification_report(labels, predicted, target_names=NAMES, output_dict=True)
    for name in NAMES:
        expected = [report[name][key] for key in ("precision", "recall", "f1-score", "support")]
        assert table.loc[name, ["precision", "recall", "f1", "images"]].tolist() == pytest.approx(expected, rel=1e-12)
    interval = accuracy_interval(((labels == 1) & (predicted == 1)).sum(), (labels == 1).sum())
    assert (table.loc["bee", "recall_low"], table.loc["bee", "recall_high"]) == interval
    assert table.index.name == "class"


def test_a_class_is_never_taken_for_itself_and_what_is_undefined_is_not_a_number():
    probabilities = certain([0, 0, 0, 1, 2, 2, 1, 2, 2])
    table = class_table(probabilities, [0, 0, 0, 0, 0, 0, 1, 2, 2], class_names=NAMES)
    assert table["taken_for"].tolist() == ["cat", "", "", ""] and table["times"].tolist() == [2, 0, 0, 0]
    table = class_table(certain([0, 0, 1, 3]), [0, 1, 1, 1], class_names=NAMES)
    unknown = ["precision", "recall", "recall_low", "recall_high", "f1"]
    assert np.isnan(table.loc["cat"][unknown].astype(float)).all()
    assert table.loc["dog", "precision"] == 0 and np.isnan(table.loc["dog", "recall"])


def test_the_most_confident_mistakes_first():
    probabilities, labels = predictions()
    mistakes = find_mistakes(probabilities, labels, class_names=NAMES, count=1000)
    wrong = probabilities.argmax(axis=1) != labels
    assert sorted(mistakes["position"]) == np.flatnonzero(wrong).tolist() and 0 < len(mistakes) < 200
    assert mistakes["probability"].is_monotonic_decreasing
    for mistake in mistakes.itertuples():
        assert mistake.predicted == NAMES[probabilities[mistake.position].argmax()] != mistake.label
        assert mistake.label == NAMES[labels[mistake.position]]
        assert mistake.probability == probabilities[mistake.position].max()
        assert mistake.label_probability == probabilities[mistake.position, labels[mistake.position]]
    assert find_mistakes(probabilities, labels, class_names=NAMES, count=3).equals(mistakes.head(3))
    assert find_mistakes(certain([0, 1, 2]), [0, 1, 2], class_names=NAMES).empty


def test_examples_are_mistakes_of_each_kind_and_correct_images_of_their_classes():
    predicted, labels = np.array([(0, 0), (0, 0), (1, 1), (2, 2), (3, 3), (2, 3), (2, 3), (0, 1), (3, 0)]).T
    sure = np.array([9, 9, 9, 9, 9, 8, 7, 6, 5]) / 10
    probabilities = np.full((9, 4), (1 - sure[:, None]) / 3)
    probabilities[np.arange(9), predicted] = sure

    def chosen(*given, **options) -> list[int]:
        return choose_examples(*given, class_names=NAMES, **options)["position"].tolist()

    assert chosen(probabilities, labels) == [5, 7, 8, 4, 3, 2], "6 is of the same kind as 5; then 3, 2, 1 and 0"
    assert chosen(probabilities, labels, count=3) == [5, 4, 3]
    assert chosen(certain(labels), labels) == [0, 2, 3, 4], "a class each"
    assert chosen(certain([1, 0]), [0, 1]) == [0, 1], "nothing is correct"
    assert chosen(probabilities, labels, positions="7, 0,8") == [7, 0, 8]
    for wrong in ("9", "-1", "1,", "first", ""):
        with pytest.raises(ValueError, match="from 0 to 8"):
            chosen(probabilities, labels, positions=wrong)


# ---- calibration


@pytest.mark.parametrize(("images", "bins"), [(100, 10), (103, 10), (7, 10), (1, 10), (50, 1)])
def test_bins_hold_every_image_once_and_equal_numbers(images, bins):
    probabilities, labels = predictions(images)
    table = reliability_table(probabilities, labels, bins=bins)
    assert len(table) == min(images, bins) and table["images"].sum() == images
    assert table["images"].max() - table["images"].min() <= 1 and table["confidence"].is_monotonic_increasing
    assert (table["confidence"] * table["images"]).sum() == pytest.approx(probabilities.max(axis=1).sum())
    correct = (probabilities.argmax(axis=1) == labels).sum()
    assert (table["accuracy"] * table["images"]).sum() == pytest.approx(correct)
    assert ((table["low"] <= table["accuracy"]) & (table["accuracy"] <= table["high"])).all()
    expected = np.average(abs(table["confidence"] - table["accuracy"]), weights=table["images"])
    assert calibration_error(probabilities, labels, bins=bins)["error"] == pytest.approx(expected)


def test_a_calibrated_network_lies_on_the_diagonal():
    honest = reliability_table(*predictions(20_000))
    np.testing.assert_allclose(honest["accuracy"], honest["confidence"], atol=0.03)
    boastful = reliability_table(*predictions(20_000, sureness=3.0))
    assert (boastful["accuracy"] < boastful["confidence"] - 0.02).sum() >= 5
    assert calibration_error(certain([0, 1]), [0, 1]) == {"error": 0, "chance": 0}


def test_images_in_the_order_of_their_classes_do_not_decide_which_bin_they_are_in():
    """Of equally sure ones: cut in the order of their classes, one bin would be all right and another all wrong."""
    probabilities, labels = np.tile([1.0, 0.0], (400, 1)), np.repeat([0, 1], 200)
    assert calibration_error(probabilities, labels)["error"] == pytest.approx(0.5)
    assert reliability_table(probabilities, labels)["accuracy"].between(0.2, 0.8).all()


def test_a_calibrated_network_has_the_error_of_chance_and_an_overconfident_one_more():
    def means(sureness: float) -> tuple[float, float]:
        errors = [calibration_error(*predictions(200, sureness=sureness, seed=seed)) for seed in range(100)]
        return tuple(np.mean([each[name] for each in errors]) for name in ("error", "chance"))

    error, chance = means(1.0)
    assert error == pytest.approx(chance, rel=0.05) and error > 0.05
    error, chance = means(3.0)
    assert error > 1.5 * chance


def test_a_temperature_divides_the_logits_and_keeps_the_order():
    probabilities, _ = predictions(50)
    assert temperature_scale(probabilities, 1.0) == pytest.approx(probabilities)
    scaled = temperature_scale(probabilities, 2.5)
    ratio = np.log(probabilities[:, 0] / probabilities[:, 1])
    assert np.log(scaled[:, 0] / scaled[:, 1]) == pytest.approx(ratio / 2.5)
    assert (scaled.argsort(axis=1) == probabilities.argsort(axis=1)).all() and scaled.sum(axis=1) == pytest.approx(1)
    sure = temperature_scale(np.array([[1.0, 0.0]], "float32"), 2.0)
    assert np.isfinite(sure).all() and sure[0, 0] == pytest.approx(1)


def test_the_temperature_comes_from_validation_images_alone_and_improves_the_test_images():
    parts = {"validation": predictions(600, sureness=3.0, seed=1), "test": predictions(600, sureness=3.0, seed=2)}
    probabilities, labels = ({part: each[number] for part, each in parts.items()} for number in (0, 1))
    table = calibration_table(probabilities, labels)
    temperature = calibrated_scores(*parts["validation"])["temperature"]
    assert table["temperature"].tolist() == [1.0, temperature] and temperature == pytest.approx(3, rel=0.15)
    assert table.loc["after", "error"] < table.loc["before", "error"] / 2
    assert table.loc["after", "log_loss"] < table.loc["before", "log_loss"]
    assert table.loc["after", "accuracy"] == table.loc["before", "accuracy"]
    shuffled = labels | {"test": np.random.default_rng(0).permutation(labels["test"])}
    assert calibration_table(probabilities, shuffled).loc["after", "temperature"] == temperature
    probabilities["validation"] = temperature_scale(probabilities["validation"], 6.0)
    assert calibration_table(probabilities, labels).index.tolist() == ["before"], "the best temperature is 1"
