"""The log-loss that judges does not punish what one division of the logits mends."""

import numpy as np
import pytest
from networks import call
from sklearn.metrics import log_loss as sklearns_log_loss

from helpers.backbones import keras
from helpers.training import log_loss
from helpers.training.calibration import TEMPERATURES, apply_temperature, calibrated_scores


def predictions(*, sureness: float):
    """Returns probabilities and labels that are drawn from them, after the logits were multiplied by `sureness`."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(400, 4)) * 2
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(4, p=row) for row in true])
    shown = np.exp(sureness * logits)
    return (shown / shown.sum(axis=1, keepdims=True)).astype("float32"), true, labels


def test_it_is_the_log_loss_where_nothing_is_overstated():
    probabilities, _, labels = predictions(sureness=0.7)
    scores = calibrated_scores(probabilities, labels)
    assert scores["temperature"] == 1
    assert scores["log_loss"] == pytest.approx(sklearns_log_loss(labels, probabilities.astype("float64")), rel=1e-4)
    assert scores["accuracy"] == (probabilities.argmax(axis=1) == labels).mean()


def test_overstated_probabilities_are_scored_as_if_they_were_not():
    probabilities, true, labels = predictions(sureness=3.0)
    scores = calibrated_scores(probabilities, labels)
    assert scores["temperature"] == pytest.approx(3.0, rel=0.15)
    assert scores["log_loss"] == pytest.approx(sklearns_log_loss(labels, true), rel=0.02)
    assert scores["log_loss"] < 0.7 * sklearns_log_loss(labels, probabilities.astype("float64"))


def test_as_a_metric_it_adds_up_batches_and_starts_anew():
    probabilities, _, labels = predictions(sureness=2.0)
    metric = log_loss()
    for _ in range(2):
        metric.reset_state()
        for start in range(0, len(labels), 37):
            metric.update_state(labels[start : start + 37], probabilities[start : start + 37])
        whole = calibrated_scores(probabilities, labels)
        assert {name: float(value) for name, value in metric.result().items()} == pytest.approx(
            {name: whole[name] for name in ("log_loss", "temperature")}, rel=1e-5
        )


def test_certain_and_wrong_is_finite():
    scores = calibrated_scores(np.array([[1.0, 0.0], [0.0, 1.0]], "float32"), np.array([1, 1]))
    assert np.isfinite(scores["log_loss"]) and scores["temperature"] == pytest.approx(TEMPERATURES[-1])


@pytest.mark.parametrize("form", ["own softmax", "softmax layer"])
def test_a_temperature_divides_the_logits_and_keeps_the_order(form):
    own = form == "own softmax"
    x = inputs = keras.Input((4,))
    x = keras.layers.Dense(3, activation="softmax" if own else None)(keras.layers.Dense(5, "relu")(x))
    model = keras.Model(inputs, x if own else keras.layers.Softmax()(x))
    rows = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
    before = call(model, rows)
    apply_temperature(model, 2.0)
    expected = np.sqrt(before) / np.sqrt(before).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(call(model, rows), expected, rtol=1e-4)
