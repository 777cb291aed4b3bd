"""A network that is right as often as it says is told from one that is not, and intervals hold the truth."""

import doctest
import subprocess
import sys

import numpy as np
import pytest

from helpers.evaluation import (
    accuracy_interval,
    calibration_error,
    calibration_table,
    reliability,
    reliability_table,
    temper,
)
from helpers.training import judge


def predictions(images: int, *, sureness: float = 1.0, seed: int = 0):
    """Returns probabilities, their logits multiplied by `sureness`, and labels that were drawn from them before."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(images, 4)) * 2
    true = temper(np.exp(logits), 1.0)
    labels = (true.cumsum(axis=1) < rng.random((images, 1))).sum(axis=1).clip(max=3)
    return temper(true, 1 / sureness), labels


def test_doctests():
    assert doctest.testmod(reliability).failed == 0 < doctest.testmod(reliability).attempted


@pytest.mark.parametrize(("images", "bins"), [(100, 10), (103, 10), (7, 10), (1, 10), (50, 1)])
def test_bins_hold_every_image_once_and_equal_numbers(images, bins):
    probabilities, labels = predictions(images)
    table = reliability_table(probabilities, labels, bins=bins)
    assert len(table) == min(images, bins) and table["images"].sum() == images
    assert table["images"].max() - table["images"].min() <= 1
    assert table["confidence"].is_monotonic_increasing
    assert (table["confidence"] * table["images"]).sum() == pytest.approx(probabilities.max(axis=1).sum())
    correct = (probabilities.argmax(axis=1) == labels).sum()
    assert (table["accuracy"] * table["images"]).sum() == pytest.approx(correct)
    assert ((table["low"] <= table["accuracy"]) & (table["accuracy"] <= table["high"])).all()


def test_what_is_right_as_often_as_it_says_lies_on_the_diagonal():
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
    found = calibration_error(probabilities, labels, bins=7)
    assert found["error"] == pytest.approx(expected) and found["low"] < expected < found["high"]
    assert found == calibration_error(probabilities, labels, bins=7, seed=0)
    assert calibration_error(probabilities, labels, bins=7, seed=1)["low"] == pytest.approx(found["low"], abs=0.01)


@pytest.mark.parametrize("sureness", [1.0, 1.5, 3.0])
def test_intervals_hold_the_true_error(sureness):
    table = reliability_table(*predictions(200_000, sureness=sureness))
    truth = np.average(abs(table["confidence"] - table["accuracy"]), weights=table["images"])
    found = [calibration_error(*predictions(200, sureness=sureness, seed=seed), seed=seed) for seed in range(1, 101)]
    mean = {name: np.mean([each[name] for each in found]) for name in found[0]}
    assert np.mean([each["low"] <= truth <= each["high"] for each in found]) >= 0.9
    if sureness == 1.0:
        assert truth < 0.01 < 0.05 < mean["error"] == pytest.approx(mean["chance"], rel=0.1), "what chance adds"
        assert np.mean([each["low"] == 0 for each in found]) >= 0.9
    if sureness == 3.0:
        assert mean["error"] > 1.5 * mean["chance"] and np.mean([each["low"] > 0 for each in found]) > 0.6, "shown"


def test_all_right_and_certain_is_not_certain():
    found = calibration_error(np.tile([1.0, 0.0], (30, 1)), np.zeros(30, int))
    assert found["error"] == found["low"] == 0 and found["high"] == pytest.approx(1 - accuracy_interval(30, 30)[0])


def test_tempering_divides_the_logits_and_keeps_the_order():
    probabilities, _ = predictions(50)
    assert temper(probabilities, 1.0) == pytest.approx(probabilities)
    cooled = temper(probabilities, 2.5)
    ratio = np.log(probabilities[:, 0] / probabilities[:, 1])
    assert np.log(cooled[:, 0] / cooled[:, 1]) == pytest.approx(ratio / 2.5)
    assert (cooled.argsort(axis=1) == probabilities.argsort(axis=1)).all() and cooled.sum(axis=1) == pytest.approx(1)
    certain = temper(np.array([[1.0, 0.0]], "float32"), 2.0)
    assert np.isfinite(certain).all() and certain[0, 0] == pytest.approx(1)
    for temperature in (0, -1, np.nan):
        with pytest.raises(ValueError, match="`temperature` above 0"):
            temper(probabilities, temperature)


def test_the_temperature_comes_from_validation_images_alone_and_mends_the_test_images():
    parts = {
        "validation": predictions(600, sureness=3.0, seed=1),
        "test": predictions(600, sureness=3.0, seed=2),
    }
    probabilities = {part: each[0] for part, each in parts.items()}
    labels = {part: each[1] for part, each in parts.items()}
    table = calibration_table(probabilities, labels)
    temperature = judge(*parts["validation"])["temperature"]
    assert table["temperature"].tolist() == [1.0, temperature] and temperature == pytest.approx(3, rel=0.15)
    assert table.loc["after", "error"] < table.loc["before", "error"] / 2
    assert table.loc["after", "log_loss"] < table.loc["before", "log_loss"]
    assert table.loc["after", "accuracy"] == table.loc["before", "accuracy"]
    assert table.loc["before", "low"] > 0 == table.loc["after", "low"]
    shuffled = labels | {"test": np.random.default_rng(0).permutation(labels["test"])}
    assert calibration_table(probabilities, shuffled).loc["after", "temperature"] == temperature


def test_a_network_that_is_cooled_already_has_one_row():
    parts = {"validation": predictions(600, sureness=0.5, seed=1), "test": predictions(600, sureness=0.5, seed=2)}
    probabilities, labels = ({part: each[number] for part, each in parts.items()} for number in (0, 1))
    table = calibration_table(probabilities, labels)
    assert table.index.tolist() == ["before"] and table["temperature"].tolist() == [1.0]


def test_no_bin_is_refused():
    for use in (reliability_table, calibration_error):
        with pytest.raises(ValueError, match="`bins` of at least 1. Received 0"):
            use(*predictions(10), bins=0)


def test_a_table_does_not_wait_for_tensorflow():
    code = "import sys, helpers.evaluation; assert not {'tensorflow', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
