"""The last epoch is the result, or with patience the best; what is stopped or killed resumes to the same bits."""

import json
import os
import signal
import subprocess
import sys
from functools import lru_cache

import numpy as np
import pytest
from networks import Interrupt, coloured_images, stage_network

from helpers.backbones import keras
from helpers.training import (
    Recipe,
    attach_head,
    compute_activations,
    fine_tune,
    fit_head,
    log_loss,
    set_seed,
    show_progress,
)
from helpers.training.checkpoint import Checkpoint, tensorboard_logs
from helpers.training.fine_tuning import digest_images

EPOCHS = 6
START = {"log_loss": 1.0, "temperature": 1.0}
LOSSES = [0.9, 0.5, 0.7, 0.6, 0.4, 0.3]
ROWS = np.random.default_rng(0).normal(size=(32, 4)), np.arange(32) % 2
PIXELS, LABELS = {}, {}
PIXELS["train"], LABELS["train"] = coloured_images(40)
PIXELS["validation"], LABELS["validation"] = coloured_images(30, seed=1)


@lru_cache
def linear(at_once: int) -> tuple[keras.Model, list]:
    """Returns a compiled linear model, which tests share, and the weights that it begins with."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    options = {"metrics": [log_loss()], "steps_per_execution": at_once}
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy", **options)
    return model, model.get_weights()


def fit(keep, *callbacks, losses=LOSSES, temperatures=(1.0,) * EPOCHS, at_once=1) -> list:
    """Returns a linear model's weights at the start, after each epoch of four steps, and at last.

    The losses stand in for the validation losses; with None, they are what they are.
    """
    model, start = linear(at_once)
    model.set_weights(start)
    weights = [start]

    class Losses(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            weights.append(self.model.get_weights())
            if losses:
                logs["val_log_loss"], logs["val_temperature"] = losses[epoch], temperatures[epoch]

    options = {"epochs": EPOCHS, "batch_size": 8, "shuffle": False, "verbose": 0}
    with keep:
        model.fit(*ROWS, validation_data=ROWS, callbacks=[Losses(), keep, *callbacks], **options)
    return [*weights, model.get_weights()]


@lru_cache
def classifier(dropout: float = 0.0) -> tuple[keras.Model, list]:
    """Returns a classifier with a fitted head, which tests share, and the weights that it begins with."""
    network = stage_network(dropout=dropout)
    head = fit_head(compute_activations(network, PIXELS["train"]), LABELS["train"], cs=(1e-4,))
    model = attach_head(network, head, class_names=list("abc"))
    return model, model.get_weights()


def train(file, *, anew=True, dropout=0.0, **changes) -> tuple[list, Checkpoint]:
    """Returns the classifier's weights after a training, `anew` from its fitted head on, and how it went."""
    model, start = classifier(dropout)
    if anew:
        model.set_weights(start)
    recipe = {"unfreeze_from": "conv3", "learning_rate": 0.01, "epochs": EPOCHS, "batch_size": 8} | changes
    keep = fine_tune(model, PIXELS, LABELS, recipe=Recipe(**recipe), file=file)
    return model.get_weights(), keep


def equal(some: list, others: list) -> bool:
    return all(map(np.array_equal, some, others))


# ---- the last, or the best


@pytest.mark.parametrize(
    ("losses", "patience", "best", "epochs"),
    [
        ([0.9, 0.5, 0.7, 0.6, 0.8, 0.9], 0, 6, 6),  # the last one, however good others were
        ([0.9, 0.5, 0.7, 0.6, 0.8, 0.9], 99, 2, 6),
        ([1.5, 1.2, 1.1, 1.1, 1.3, 2.0], 99, 0, 6),  # the start counts
        ([9, 8, 7, 6, 5, 0.1], 99, 6, 6),
        ([0.9, 0.5, 0.7, 0.6, 0.4, 0.3], 2, 2, 4),
        ([0.9, 0.8, float("nan"), 0.1, 0.1, 0.1], 99, 2, 2),
    ],
)
def test_which_epoch_is_the_result_and_when_the_training_stops(losses, patience, best, epochs):
    keep = Checkpoint(None, start=START, patience=patience)
    weights = fit(keep, losses=losses)
    assert keep.best_epoch == best and keep.best_loss == [1.0, *losses][best] and keep.seconds > 0
    assert equal(weights[-1], weights[best]) and not equal(weights[-1], weights[3])
    assert keep.epoch == epochs and keep.history["val_log_loss"] == losses[:epochs]
    diverged = "not finite in epoch 3, at a learning rate of 0.01. The weights are those of epoch 2."
    expected = "all 6 epochs" if epochs == EPOCHS else "stopped early" if patience == 2 else diverged
    assert expected in keep.outcome


def test_the_best_epochs_temperature_is_in_the_weights_in_the_end():
    keep = Checkpoint(None, start=START, patience=99)
    weights = fit(keep, losses=[0.9, 0.5, 0.7, 0.6, 0.8, 0.9], temperatures=[1.0, 2.0, 4.0, 1.0, 1.0, 1.0])
    assert keep.temperature == 2.0 and keep.best_epoch == 2
    for value, best in zip(weights[-1], weights[2], strict=True):
        np.testing.assert_allclose(value, best / 2, rtol=1e-6)


def test_without_what_it_judges_by_it_says_so():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="validation data in `fit`"):
        model.fit(*ROWS, verbose=0, callbacks=[Checkpoint(None, start=START, patience=1)])


def test_a_rate_that_diverges_is_stopped_and_the_start_stays(root):
    weights, keep = train(None, learning_rate=1e30)
    assert keep.outcome.startswith("diverged") and "Try a tenth of the `learning_rate`" in keep.outcome
    assert equal(weights, classifier()[1])


# ---- interrupted


@pytest.mark.parametrize(
    ("epoch", "at_once", "said", "best"),
    [(3, 1, "in epoch 4. The model has the weights of epoch 2", 2), (3, 3, "epoch 4.*epoch 2", 2)]
    + [(3, 4, "epoch 4.*epoch 2", 2), (-1, 1, "after the last epoch. The training is complete: all 6 epochs", 6)],
)
def test_ctrl_c_gives_the_model_its_best_weights_and_is_not_swallowed(epoch, at_once, said, best):
    expected = fit(Checkpoint(None, start=START), at_once=at_once)
    keep = Checkpoint(None, start=START, patience=99)
    with pytest.raises(KeyboardInterrupt, match=said):
        fit(keep, Interrupt(epoch), at_once=at_once)
    assert equal(linear(at_once)[0].get_weights(), expected[best])


def test_an_unfinished_training_is_not_calibrated_and_other_errors_come_through(root):
    keep = Checkpoint(root / "x.npz", start=START | {"temperature": 2.0})
    with pytest.raises(KeyboardInterrupt, match="those of an unfinished training. Execute the same again"):
        fit(keep, Interrupt(3))
    assert keep.epoch == 3 and keep.outcome == ""

    def fails(epoch, logs):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        fit(Checkpoint(None, start=START, patience=99), keras.callbacks.LambdaCallback(on_epoch_begin=fails))


# ---- going on


@pytest.mark.parametrize("stop", [(0, 2), (3, 0)], ids=["in the first epoch", "in the fourth"])
def test_the_same_callback_resumes_after_an_interrupt(root, stop):
    """As when only the cell with `fit` is executed again: to the last bit as if nobody had interrupted."""

    def run(keep, model, *callbacks):
        options = {"initial_epoch": keep.first_epoch, "epochs": EPOCHS, "shuffle": False, "verbose": 0}
        model.fit(*ROWS, validation_data=ROWS, batch_size=8, callbacks=[keep, *callbacks], **options)

    def compiled():
        set_seed(0)  # Dropout's random states resume, too
        layers = [keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(2, activation="softmax")]
        model = keras.Sequential(layers)
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=[log_loss()])
        return model

    whole = compiled()
    run(Checkpoint(None, start=START, patience=99), whole)
    model, keep = compiled(), Checkpoint(root / "x.npz", start=START, patience=99)
    with pytest.raises(KeyboardInterrupt, match="the training resumes"), keep:
        run(keep, model, Interrupt(stop[0], batch=stop[1]))
    run(keep, model)
    assert len(keep.history["loss"]) == EPOCHS and equal(model.get_weights(), whole.get_weights())


KILLED = """
import os, pathlib, signal, sys
import helpers
helpers.ROOT = pathlib.Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])
import test_checkpoint
from helpers.training.checkpoint import Checkpoint
write = Checkpoint._write
def killed(self):
    if self.epoch == int(sys.argv[3]):
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    write(self)
Checkpoint._write = killed
test_checkpoint.train(helpers.ROOT / "state.npz", **eval(sys.argv[4]))
"""


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_norm": "train"},
        {"patience": 99, "batch_parts": 2},
        {"dropout": 0.3, "augmentation": "flip,crop", "min_lr_factor": 0.3},
    ],
    ids=["statistics", "best, in parts", "random"],
)
def test_a_killed_training_ends_with_the_same_bits_as_one_that_was_not(root, changes):
    whole, kept = train(root / "whole.npz", **changes)
    arguments = [str(root), os.path.dirname(__file__), "2", repr(changes)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(root.glob(".*state.npz"))) == 1, "it was killed while it wrote"
    resumed, keep = train(root / "state.npz", **changes)
    assert equal(resumed, whole) and len(keep.history["loss"]) == EPOCHS and keep.seconds > 0
    assert keep.history == kept.history and keep.best_epoch == kept.best_epoch
    keep.delete()
    assert not list(root.glob("*state.npz"))


def test_what_was_interrupted_resumes_what_had_ended_is_not_repeated_what_is_damaged_begins_again(root, monkeypatch):
    file = root / "state.npz"
    whole, kept = train(root / "whole.npz", patience=99)
    monkeypatch.setattr("helpers.training.fine_tuning.show_progress", lambda: Interrupt(2, at_end=True))
    with pytest.raises(KeyboardInterrupt, match="Execute the same again"):
        train(file, patience=99)
    monkeypatch.setattr("helpers.training.fine_tuning.show_progress", show_progress)
    resumed, keep = train(file, anew=False, patience=99)
    assert equal(resumed, whole) and keep.history == kept.history
    ended = file.read_bytes()
    again, keep = train(file, patience=99)
    assert equal(again, whole) and keep.outcome == kept.outcome
    for damaged in (b"", b"PK\x03\x04", ended[: len(ended) // 2]):
        file.write_bytes(damaged)
        again, keep = train(file, patience=99)
        assert equal(again, whole) and keep.history == kept.history and keep.epoch == EPOCHS


def test_the_state_of_another_training_is_not_taken_up(root):
    file = root / "x.npz"
    fit(Checkpoint(file, start=START, settings={"rate": 1}))
    assert Checkpoint(file, start=START, settings={"rate": 1}).outcome == "all 6 epochs"
    assert Checkpoint(file, start=START, settings={"rate": 2}).first_epoch == 0
    assert Checkpoint(file, start=START | {"log_loss": 0.9}, settings={"rate": 1}).first_epoch == 0, "another model"


def test_a_trainings_settings_are_its_recipe_and_its_images(root):
    keep = train(root / "state.npz")[1]
    settings = json.loads(keep.settings)[0]
    assert settings.items() >= {"learning_rate": 0.01, "epochs": EPOCHS, "class_weight": None}.items()
    assert settings["images"] == digest_images(PIXELS, LABELS)
    for pixels, labels in ((PIXELS | {"train": PIXELS["train"] + 1}, LABELS), (PIXELS, LABELS | {"train": [0] * 40})):
        assert digest_images(pixels, labels) != settings["images"]


# ---- logs for TensorBoard


def test_logs_hold_every_epoch_and_change_nothing(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    monkeypatch.setenv("TENSORBOARD", "0")
    assert tensorboard_logs(tmp_path) == []
    monkeypatch.setenv("TENSORBOARD", "1")
    plain = fit(Checkpoint(None, start=START, patience=99), losses=None)
    keep = Checkpoint(None, start=START, patience=99)
    logged = fit(keep, *tensorboard_logs(tmp_path / "logs"), losses=None)
    events = EventAccumulator(str(tmp_path / "logs" / "validation")).Reload().Tensors("epoch_log_loss")
    assert [event.step for event in events] == list(range(EPOCHS)) and equal(logged[-1], plain[-1])
    losses = [float(make_ndarray(event.tensor_proto)) for event in events]
    assert losses == pytest.approx(keep.history["val_log_loss"], rel=1e-6)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"To install it: python -m pip install"):
        tensorboard_logs(tmp_path)
