"""The last epoch is the result, or with patience the best; what is stopped or killed resumes to the same bits."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from networks import coloured_images, stage_network

from helpers.backbones import copy_weights, keras
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

EPOCHS = 6
START = {"log_loss": 1.0, "temperature": 1.0}


def task(dropout=0.0):
    """Returns a classifier with a fitted head, and pixels and labels that it can learn from."""
    pixels, labels = {}, {}
    pixels["train"], labels["train"] = coloured_images(40)
    pixels["validation"], labels["validation"] = coloured_images(30, seed=1)
    network = stage_network(dropout=dropout)
    head = fit_head(compute_activations(network, pixels["train"]), labels["train"], cs=(1e-4,))
    return attach_head(network, head, class_names=list("abc")), pixels, labels


def train(file, model=None, change=None, dropout=0.0, **changes):
    made, pixels, labels = task(dropout)
    model, labels = model or made, labels | (change or {})
    recipe = {"unfreeze_from": "conv3", "learning_rate": 0.01, "epochs": EPOCHS, "batch_size": 8} | changes
    return model, fine_tune(model, pixels, labels, recipe=Recipe(**recipe), file=file)


def fit(keep, *callbacks, losses=None, temperatures=(1.0,) * EPOCHS, before=(), at_once=1):
    """Trains a linear model, four steps in an epoch; with `losses`, these stand in for the validation losses."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    options = {"metrics": [log_loss()], "steps_per_execution": at_once}
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy", **options)
    x, y = np.random.default_rng(0).normal(size=(32, 4)), np.arange(32) % 2
    weights = [copy_weights(model)]

    class Losses(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            weights.append(copy_weights(self.model))
            if losses:
                logs["val_log_loss"], logs["val_temperature"] = losses[epoch], temperatures[epoch]

    callbacks = [Losses(), *before, keep, *callbacks]
    with keep:
        model.fit(x, y, validation_data=(x, y), epochs=EPOCHS, batch_size=8, verbose=0, callbacks=callbacks)
    return model, weights


def equal(model, weights) -> bool:
    return all(map(np.array_equal, copy_weights(model).values(), weights.values()))


# ---- the last, or the best


def test_the_last_epoch_is_the_result_however_good_others_were():
    keep = Checkpoint(None, start=START)
    model, weights = fit(keep, losses=[0.9, 0.5, 0.7, 0.6, 0.8, 0.9])
    assert keep.best_epoch == EPOCHS and keep.best_loss == 0.9 and equal(model, weights[EPOCHS])
    assert keep.outcome == "all 6 epochs"


@pytest.mark.parametrize(
    ("losses", "best"),
    [([0.9, 0.5, 0.7, 0.6, 0.8, 0.9], 2), ([1.5, 1.2, 1.1, 1.1, 1.3, 2.0], 0), ([9, 8, 7, 6, 5, 0.1], 6)],
)
def test_the_best_epoch_is_kept_and_the_start_counts(losses, best):
    keep = Checkpoint(None, start=START, patience=99)
    model, weights = fit(keep, losses=losses)
    assert keep.best_epoch == best and equal(model, weights[best]) and not equal(model, weights[3])
    assert keep.history["val_log_loss"] == losses and keep.outcome == "all 6 epochs"


def test_it_stops_when_patience_is_out():
    keep = Checkpoint(None, start=START, patience=2)
    model, weights = fit(keep, losses=[0.9, 0.5, 0.7, 0.6, 0.4, 0.3])
    assert keep.epoch == 4 and keep.best_epoch == 2 and equal(model, weights[2])
    assert keep.outcome.startswith("stopped early") and len(keep.history["loss"]) == 4 and keep.seconds > 0


def test_the_best_epochs_temperature_is_in_the_weights_in_the_end():
    keep = Checkpoint(None, start=START, patience=99)
    temperatures = [1.0, 2.0, 4.0, 1.0, 1.0, 1.0]
    model, weights = fit(keep, losses=[0.9, 0.5, 0.7, 0.6, 0.8, 0.9], temperatures=temperatures)
    assert keep.temperature == 2.0 and keep.best_epoch == 2
    for path, value in copy_weights(model).items():
        np.testing.assert_allclose(value, weights[2][path] / 2, rtol=1e-6)


def test_without_what_it_judges_by_it_says_so():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="validation data in `fit`"):
        model.fit(np.ones((4, 4)), np.zeros(4, int), verbose=0, callbacks=[Checkpoint(None, start=START, patience=1)])


# ---- divergence


def test_a_rate_that_diverges_is_stopped_and_the_start_stays(root):
    model, keep = train(None, learning_rate=1e30)
    assert keep.outcome.startswith("diverged") and "Try a tenth of the `learning_rate`" in keep.outcome
    assert equal(model, copy_weights(task()[0]))


def test_a_validation_loss_that_is_not_finite_stops_it_too():
    keep = Checkpoint(None, start=START, patience=99)
    model, weights = fit(keep, losses=[0.9, 0.8, float("nan"), 0.1, 0.1, 0.1])
    assert keep.epoch == 2 and keep.best_epoch == 2 and equal(model, weights[2])
    assert "not finite in epoch 3" in keep.outcome and "those of epoch 2" in keep.outcome


# ---- interrupted


class Interrupt(keras.callbacks.Callback):
    """Presses Ctrl-C at the beginning of an epoch, after so many of its batches, or at its end."""

    def __init__(self, epoch: int, *, batch: int = 0, at_end: bool = False):
        super().__init__()
        self.wanted, self.batch, self.at_end = epoch, batch, at_end

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if self.epoch == self.wanted and batch == self.batch and not self.at_end:
            os.kill(os.getpid(), signal.SIGINT)

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.wanted and self.at_end:
            os.kill(os.getpid(), signal.SIGINT)


class Fails(keras.callbacks.Callback):
    """Ends a training by an error at the beginning of its third epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise RuntimeError("something else")


@pytest.mark.parametrize("at_once", [1, 3, 4])
def test_ctrl_c_gives_the_model_its_best_weights(at_once):
    keep, losses = Checkpoint(None, start=START, patience=99), [0.9, 0.5, 0.7, 0.6, 0.4, 0.3]
    with pytest.raises(KeyboardInterrupt, match="in epoch 4. The model has the weights of epoch 2"):
        fit(keep, Interrupt(3), losses=losses, at_once=at_once)
    assert equal(keep.model, fit(Checkpoint(None, start=START), losses=losses)[1][2])


def test_an_unfinished_training_is_not_calibrated(root):
    keep = Checkpoint(root / "x.npz", start=START | {"temperature": 2.0})
    with pytest.raises(KeyboardInterrupt, match="those of an unfinished training. Execute the same again"):
        fit(keep, Interrupt(3), losses=[0.9, 0.5, 0.7, 0.6, 0.4, 0.3])
    assert keep.epoch == 3 and keep.outcome == ""


def test_ctrl_c_when_the_training_has_ended_is_not_swallowed():
    class Late(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            os.kill(os.getpid(), signal.SIGINT)

    keep = Checkpoint(None, start=START, patience=99)
    with pytest.raises(KeyboardInterrupt, match="complete: all 6 epochs"):
        fit(keep, Late(), losses=[0.9, 0.5, 0.7, 0.6, 0.8, 0.9])
    assert equal(keep.model, fit(Checkpoint(None, start=START))[1][2]) and len(keep.history["loss"]) == EPOCHS


def test_other_errors_come_through_as_they_are():
    with pytest.raises(RuntimeError, match="something else"):
        fit(Checkpoint(None, start=START, patience=99), Fails())


# ---- going on


@pytest.mark.parametrize("stop", [(0, 2), (3, 0)], ids=["in the first epoch", "in the fourth"])
def test_the_same_callback_resumes_after_an_interrupt(root, stop):
    """As when only the cell with `fit` is executed again: to the last bit as if nobody had interrupted."""

    def run(keep, model, *callbacks):
        rows = np.random.default_rng(0).normal(size=(32, 4)), np.arange(32) % 2
        options = {"initial_epoch": keep.first_epoch, "epochs": EPOCHS, "shuffle": False, "verbose": 0}
        model.fit(*rows, validation_data=rows, batch_size=8, callbacks=[keep, *callbacks], **options)

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
    assert len(keep.history["loss"]) == EPOCHS and equal(model, copy_weights(whole))


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
        {"dropout": 0.3, "augmentation": "flip,crop", "lowest_rate": 0.3},
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
    assert equal(resumed, copy_weights(whole)) and len(keep.history["loss"]) == EPOCHS and keep.seconds > 0
    assert keep.history == kept.history and keep.best_epoch == kept.best_epoch
    keep.delete()
    assert not list(root.glob("*state.npz"))


def test_a_training_that_had_ended_is_not_repeated(root):
    model, first = train(root / "state.npz")
    again, keep = train(root / "state.npz")
    assert equal(again, copy_weights(model)) and keep.history == first.history and keep.outcome == first.outcome


def test_after_an_interrupt_the_same_call_on_the_same_model_resumes(root, monkeypatch):
    whole, kept = train(root / "whole.npz", patience=99)
    model = task()[0]
    monkeypatch.setattr("helpers.training.fine_tuning.show_progress", lambda: Interrupt(2, at_end=True))
    with pytest.raises(KeyboardInterrupt, match="Execute the same again"):
        train(root / "state.npz", model=model, patience=99)
    monkeypatch.setattr("helpers.training.fine_tuning.show_progress", show_progress)
    _, keep = train(root / "state.npz", model=model, patience=99)
    assert equal(model, copy_weights(whole)) and keep.history == kept.history


def test_the_state_of_another_training_is_not_taken_up(root):
    train(root / "state.npz")
    _, expected = train(None, learning_rate=0.02)
    assert train(root / "state.npz", learning_rate=0.02)[1].history == expected.history
    labels = {"train": np.arange(40)[::-1] % 3}
    assert train(root / "state.npz", change=labels)[1].history == train(None, change=labels)[1].history


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", None])
def test_a_damaged_state_lets_the_training_begin_again(root, content):
    _, first = train(root / "state.npz")
    whole = (root / "state.npz").read_bytes()
    (root / "state.npz").write_bytes(whole[: len(whole) // 2] if content is None else content)
    _, keep = train(root / "state.npz")
    assert keep.history == first.history and keep.epoch == EPOCHS


# ---- logs for TensorBoard


def test_logs_hold_every_epoch_and_change_nothing(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    monkeypatch.setenv("TENSORBOARD", "0")
    assert tensorboard_logs(tmp_path) == []
    monkeypatch.setenv("TENSORBOARD", "1")
    plain, _ = fit(Checkpoint(None, start=START, patience=99))
    keep = Checkpoint(None, start=START, patience=99)
    model, _ = fit(keep, *tensorboard_logs(tmp_path / "logs"))
    events = EventAccumulator(str(tmp_path / "logs" / "validation")).Reload().Tensors("epoch_log_loss")
    assert [event.step for event in events] == list(range(EPOCHS)) and equal(model, copy_weights(plain))
    losses = [float(make_ndarray(event.tensor_proto)) for event in events]
    assert losses == pytest.approx(keep.history["val_log_loss"], rel=1e-6)


def test_without_the_package_the_way_to_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD", "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e \.\[tensorboard\]"):
        tensorboard_logs(tmp_path)
