"""Every image is counted once, the most confident mistakes come first, and an overconfident network is recognised."""

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
    confusion_table,
    find_mistakes,
    reliability_table,
    tables,
)
from helpers.evaluation.intervals import accuracy_interval
from helpers.evaluation.tables import calibration_error, temperature_scale
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


def test_doctests():
    assert doctest.testmod(tables).failed == 0 < doctest.testmod(tables).attempted


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


def test_what_a_class_is_most_often_taken_for_is_never_itself():
    probabilities = certain([0, 0, 0, 1, 2, 2, 1, 2, 2])
    table = class_table(probabilities, [0, 0, 0, 0, 0, 0, 1, 2, 2], class_names=NAMES)
    assert table["taken_for"].tolist() == ["cat", "", "", ""] and table["times"].tolist() == [2, 0, 0, 0]


def test_what_is_undefined_is_not_a_number_and_not_zero():
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
            choose_examples(probabilities, labels, class_names=NAMES, positions=wrong)


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


def test_a_calibrated_network_lies_on_the_diagonal():
    honest = reliability_table(*predictions(20_000))
    np.testing.assert_allclose(honest["accuracy"], honest["confidence"], atol=0.03)
    boastful = reliability_table(*predictions(20_000, sureness=3.0))
    assert (boastful["accuracy"] < boastful["confidence"] - 0.02).sum() >= 5


def test_images_in_the_order_of_their_classes_do_not_decide_which_bin_they_are_in():
    """Of equally sure ones: cut in the order of their classes, one bin would be all right and another all wrong."""
    probabilities, labels = np.tile([1.0, 0.0], (400, 1)), np.repeat([0, 1], 200)
    assert calibration_error(probabilities, labels)["error"] == pytest.approx(0.5)
    assert reliability_table(probabilities, labels)["accuracy"].between(0.2, 0.8).all()


def test_the_error_is_the_distance_of_the_bins_from_the_diagonal():
    probabilities, labels = predictions(500, sureness=2.0)
    table = reliability_table(probabilities, labels, bins=7)
    expected = np.average(abs(table["confidence"] - table["accuracy"]), weights=table["images"])
    assert calibration_error(probabilities, labels, bins=7)["error"] == pytest.approx(expected)
    assert calibration_error(certain([0, 1]), [0, 1]) == {"error": 0, "chance": 0}


def test_a_calibrated_network_has_the_error_of_chance_and_an_overconfident_one_more():
    errors = {
        sureness: [calibration_error(*predictions(200, sureness=sureness, seed=seed)) for seed in range(100)]
        for sureness in (1.0, 3.0)
    }
    mean = {
        sureness: {name: np.mean([each[name] for each in found]) for name in ("error", "chance")}
        for sureness, found in errors.items()
    }
    assert mean[1.0]["error"] == pytest.approx(mean[1.0]["chance"], rel=0.05) and mean[1.0]["error"] > 0.05
    assert mean[3.0]["error"] > 1.5 * mean[3.0]["chance"]


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


def test_a_table_does_not_wait_for_tensorflow():
    code = "import sys, helpers.evaluation; assert not {'tensorflow', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
