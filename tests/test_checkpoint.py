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
    Checkpoint,
    Recipe,
    attach_head,
    compute_activations,
    cross_entropy,
    fine_tune,
    fit_head,
    log_loss,
    set_seed,
)
from helpers.training.checkpoint import show_progress, tensorboard_logs

EPOCHS = 6


def start(loss) -> dict[str, float]:
    return {"log_loss": float(loss), "temperature": 1.0}


def task(dropout=0.0):
    """Returns a classifier with a solved head, and pixels and labels that it can learn from."""
    pixels, labels = {}, {}
    pixels["train"], labels["train"] = coloured_images(40)
    pixels["validation"], labels["validation"] = coloured_images(30, seed=1)
    network = stage_network(dropout=dropout)
    head = fit_head(compute_activations(network, pixels["train"]), labels["train"], strengths=(1e-4,))
    return attach_head(network, head, class_names=list("abc")), pixels, labels


def train(file, model=None, change=None, dropout=0.0, **changes):
    made, pixels, labels = task(dropout)
    model = model or made
    labels = labels | (change or {})
    recipe = Recipe(**{"unfreeze_from": "conv3", "learning_rate": 0.01, "epochs": EPOCHS, "batch_size": 8} | changes)
    keep = fine_tune(model, pixels, labels, recipe=recipe, file=file)
    return model, keep


def fit(keep, *callbacks, losses=None, epochs=EPOCHS, rate=0.01, before=(), at_once=1):
    """Trains a linear model, four steps in an epoch; with `losses`, these stand in for the validation losses."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    options = {"metrics": [log_loss()], "steps_per_execution": at_once}
    model.compile(keras.optimizers.SGD(rate), cross_entropy(), **options)
    x, y = np.random.default_rng(0).normal(size=(32, 4)), np.arange(32) % 2
    weights = [copy_weights(model)]

    class Losses(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            weights.append(copy_weights(self.model))
            if losses:
                logs["val_log_loss"], logs["val_temperature"] = losses[epoch], 1.0

    callbacks = [Losses(), *before, keep, *callbacks]
    model.fit(x, y, validation_data=(x, y), epochs=epochs, batch_size=8, verbose=0, callbacks=callbacks)
    return model, weights


def equal(model, weights) -> bool:
    return all(np.array_equal(weights[path], value) for path, value in copy_weights(model).items())


# ---- the last


def test_the_last_epoch_is_the_result_however_good_others_were():
    keep = Checkpoint(None, start=start(0.01))
    model, weights = fit(keep, losses=[0.9, 0.5, 0.7, 0.6, 0.8, 0.9])
    assert keep.best_epoch == EPOCHS and keep.best_loss == 0.9 and equal(model, weights[EPOCHS])
    assert keep.outcome == "all 6 epochs"


def test_an_unfinished_training_is_not_calibrated(root):
    keep = Checkpoint(root / "x.npz", start=start(1.0) | {"temperature": 2.0})
    with pytest.raises(KeyboardInterrupt, match="those of an unfinished training. Execute the same again"):
        fit(keep, Interrupt(3), losses=[0.9, 0.5, 0.7, 0.6, 0.4, 0.3])
    assert keep.epoch == 3 and keep.outcome == ""


# ---- the best


@pytest.mark.parametrize(
    ("losses", "best"),
    [([0.9, 0.5, 0.7, 0.6, 0.8, 0.9], 2), ([1.5, 1.2, 1.1, 1.1, 1.3, 2.0], 0), ([9, 8, 7, 6, 5, 0.1], 6)],
)
def test_the_best_epoch_is_kept_and_the_start_counts(losses, best):
    keep = Checkpoint(None, start=start(1.0), patience=99)
    model, weights = fit(keep, losses=losses)
    assert keep.best_epoch == best and equal(model, weights[best])
    assert keep.history["val_log_loss"] == losses and keep.outcome == "all 6 epochs"
    assert not equal(model, weights[3])


def test_it_stops_when_patience_is_out():
    keep = Checkpoint(None, start=start(1.0), patience=2)
    model, weights = fit(keep, losses=[0.9, 0.5, 0.7, 0.6, 0.4, 0.3])
    assert keep.epoch == 4 and keep.best_epoch == 2 and equal(model, weights[2])
    assert keep.outcome == "stopped early, after 2 epochs without a lower validation log-loss"
    assert len(keep.history["loss"]) == 4 and keep.seconds > 0


def test_the_best_epochs_temperature_is_in_the_weights_in_the_end():
    class Temperatures(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_temperature"] = [1.0, 2.0, 4.0, 1.0, 1.0, 1.0][epoch]

    keep = Checkpoint(None, start=start(1.0), patience=99)
    hot, weights = fit(keep, losses=[0.9, 0.5, 0.7, 0.6, 0.8, 0.9], before=[Temperatures()])
    assert keep.temperature == 2.0 and keep.best_epoch == 2
    for path, value in copy_weights(hot).items():
        np.testing.assert_allclose(value, weights[2][path] / 2, rtol=1e-6)


def test_without_what_it_judges_by_it_says_so():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(
        ValueError, match=r"validation data in `fit`, and `log_loss\(\)` among the metrics.*Received loss"
    ):
        model.fit(
            np.ones((4, 4)), np.zeros(4, int), verbose=0, callbacks=[Checkpoint(None, start=start(1), patience=1)]
        )


def test_the_same_callback_goes_on_after_an_interrupt(root):
    """As when only the cell with `fit` is executed again: to the last bit as if nobody had interrupted."""

    def run(keep, model, *callbacks):
        rows = np.random.default_rng(0).normal(size=(32, 4)), np.arange(32) % 2
        options = {"initial_epoch": keep.first_epoch, "epochs": EPOCHS, "shuffle": False, "verbose": 0}
        model.fit(*rows, validation_data=rows, batch_size=8, callbacks=[keep, *callbacks], **options)

    def compiled():
        set_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])
        model.compile(keras.optimizers.Adam(0.01), cross_entropy(), metrics=[log_loss()])
        return model

    whole = compiled()
    run(Checkpoint(None, start=start(1.0), patience=99), whole)
    for epoch in (0, 3):
        model, keep = compiled(), Checkpoint(root / f"{epoch}.npz", start=start(1.0), patience=99)
        with pytest.raises(KeyboardInterrupt, match="Execute the same again, and the training resumes"):
            run(keep, model, Interrupt(epoch))
        run(keep, model)
        assert len(keep.history["loss"]) == EPOCHS
        assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), whole.get_weights(), strict=True))


# ---- divergence


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_rate_that_diverges_is_stopped_and_the_last_good_weights_stay(root, optimizer):
    model, keep = train(None, learning_rate=1e30, optimizer=optimizer)
    before = task()[0]
    assert keep.outcome.startswith("diverged: the loss was not finite in epoch ")
    assert "Try a tenth of the `learning_rate`" in keep.outcome and "the start" in keep.outcome
    assert (
        equal(model, copy_weights(before))
        and np.isfinite(np.concatenate([w.ravel() for w in model.get_weights()])).all()
    )


def test_a_validation_loss_that_is_not_finite_stops_it_too():
    keep = Checkpoint(None, start=start(1.0), patience=99)
    model, weights = fit(keep, losses=[0.9, 0.8, float("nan"), 0.1, 0.1, 0.1])
    assert keep.epoch == 2 and keep.best_epoch == 2 and equal(model, weights[2])
    assert "not finite in epoch 3" in keep.outcome and "those of epoch 2" in keep.outcome


# ---- interrupted


class Interrupt(keras.callbacks.Callback):
    """Presses Ctrl-C within an epoch."""

    def __init__(self, epoch: int, times: int = 1):
        super().__init__()
        self.wanted, self.times = epoch, times

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if self.epoch == self.wanted and batch == 0:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("at_once", [1, 3, 4])
def test_ctrl_c_gives_the_model_its_best_weights(at_once):
    keep, before = Checkpoint(None, start=start(1.0), patience=99), signal.getsignal(signal.SIGINT)
    model = None
    with pytest.raises(KeyboardInterrupt, match="Interrupted in epoch 4. The model has the weights of epoch 2"):
        fit(keep, Interrupt(3), losses=[0.9, 0.5, 0.7, 0.6, 0.4, 0.3], at_once=at_once)
    assert signal.getsignal(signal.SIGINT) is before
    model = keep.model
    reference = Checkpoint(None, start=start(1.0), patience=99)
    second = fit(reference, losses=[0.9, 0.5, 0.7, 0.6, 0.4, 0.3])[1][2]
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), second.values(), strict=True))


@pytest.mark.parametrize(("patience", "ended"), [(99, "all 6 epochs"), (4, "stopped early, after 4 epochs")])
def test_ctrl_c_after_the_last_batch_is_not_swallowed(patience, ended):
    class Late(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == EPOCHS - 1:
                os.kill(os.getpid(), signal.SIGINT)

    keep, before = Checkpoint(None, start=start(1.0), patience=patience), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=rf"had ended \({ended}.*\)\. The model has the weights of epoch 2"):
        fit(keep, losses=[0.9, 0.5, 0.7, 0.6, 0.8, 0.9], before=[Late()])
    assert signal.getsignal(signal.SIGINT) is before and len(keep.history["loss"]) == EPOCHS


def test_ctrl_c_twice_ends_at_once_and_an_error_gives_the_interrupt_back():
    keep = Checkpoint(None, start=start(1.0), patience=99)
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(keep, Interrupt(0, times=2))
    assert "Interrupted in epoch" not in str(caught.value)

    with pytest.raises(RuntimeError, match="something else"):
        fit(Checkpoint(None, start=start(1.0), patience=99), Fails())
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        signal.sigtimedwait([], 0.1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_interrupt_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep = Checkpoint(None, start=start(1.0), patience=99)
    fit(keep, Interrupt(0, times=2))
    assert keep.epoch == EPOCHS and signal.getsignal(signal.SIGINT) is signal.SIG_IGN


# ---- going on

KILLED = """
import os, pathlib, signal, sys
import helpers
helpers.ROOT = pathlib.Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])
import test_checkpoint
from helpers.training import Checkpoint
write = Checkpoint._write
def killed(self):
    if self.epoch == int(sys.argv[3]):
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    write(self)
Checkpoint._write = killed
test_checkpoint.train(helpers.ROOT / "state.npz", **eval(sys.argv[4]))
"""

ALL = {"dropout": 0.3, "augmentation": "flip,crop", "augment_views": 0, "pull": 0.01, "lowest_rate": 0.3}


@pytest.mark.parametrize(
    "changes",
    [{}, {"patience": 99}, {"optimizer": "sgd", "batch_norm": "train"}, {"batch_parts": 2}, ALL],
    ids=["plain", "best", "sgd", "parts", "all"],
)
def test_a_killed_training_ends_with_the_same_bits_as_one_that_was_not(root, changes):
    whole, kept = train(root / "whole.npz", **changes)
    arguments = [str(root), os.path.dirname(__file__), "2", repr(changes)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(root.glob(".state*"))) == 1, "it was killed while it wrote"
    resumed, keep = train(root / "state.npz", **changes)
    assert not list(root.glob(".state*"))
    assert equal(resumed, copy_weights(whole))
    assert keep.history == kept.history and keep.best_epoch == kept.best_epoch and len(keep.history["loss"]) == EPOCHS
    assert keep.seconds > 0
    keep.delete()
    assert not (root / "state.npz").exists()


class Fails(keras.callbacks.Callback):
    """Ends a training by an error at the beginning of its third epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise RuntimeError("something else")


def test_dropouts_random_states_go_on(tmp_path):
    def run(file, *callbacks):
        set_seed(0)
        layers = [keras.Input((4,)), keras.layers.Dropout(0.5), keras.layers.Dense(2, activation="softmax")]
        model = keras.Sequential(layers)
        model.compile(keras.optimizers.Adam(0.1), cross_entropy(), metrics=[log_loss()])
        x, y = np.random.default_rng(0).normal(size=(32, 4)), np.arange(32) % 2
        keep = Checkpoint(file, start=start(9.0), patience=99)
        options = {"initial_epoch": keep.first_epoch, "epochs": 4, "shuffle": False, "verbose": 0}
        model.fit(x, y, validation_data=(x, y), callbacks=[keep, *callbacks], **options)
        return copy_weights(model), keep.history

    whole, history = run(None)
    with pytest.raises(RuntimeError, match="something else"):
        run(tmp_path / "x.npz", Fails())
    resumed, continued = run(tmp_path / "x.npz")
    assert [np.array_equal(a, b) for a, b in zip(whole.values(), resumed.values(), strict=True)] == [True, True]
    assert continued == history and len(history["loss"]) == 4


def test_a_training_that_had_ended_is_not_repeated(root):
    model, first = train(root / "state.npz")
    again, keep = train(root / "state.npz")
    assert equal(again, copy_weights(model)) and keep.history == first.history and keep.outcome == first.outcome


def test_after_an_interrupt_the_same_call_on_the_same_model_goes_on(root, monkeypatch):
    whole, kept = train(root / "whole.npz")
    model, pixels, labels = task()
    begin = Checkpoint.on_epoch_end

    def interrupted(self, epoch, logs=None):
        begin(self, epoch, logs)
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Checkpoint, "on_epoch_end", interrupted)
    with pytest.raises(KeyboardInterrupt, match="Execute the same again"):
        train(root / "state.npz", model=model)
    monkeypatch.undo()
    monkeypatch.setattr("helpers.ROOT", root)
    again, keep = train(root / "state.npz", model=model)
    assert again is model and equal(model, copy_weights(whole)) and keep.history == kept.history


def test_the_state_of_another_training_is_not_taken_up(root):
    train(root / "state.npz")
    _, keep = train(root / "state.npz", learning_rate=0.02)
    _, expected = train(None, learning_rate=0.02)
    assert keep.history == expected.history
    train(root / "labels.npz")
    _, keep = train(root / "labels.npz", change={"train": np.arange(40)[::-1] % 3})
    assert keep.history != train(root / "labels.npz")[1].history, "other labels are another training"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", None])
def test_a_damaged_state_lets_the_training_start_anew(root, content):
    _, first = train(root / "state.npz")
    whole = (root / "state.npz").read_bytes()
    (root / "state.npz").write_bytes(whole[: len(whole) // 2] if content is None else content)
    _, keep = train(root / "state.npz")
    assert keep.history == first.history and keep.epoch == EPOCHS


def test_progress_ends_and_leaves_nothing(capsys):
    fit(Checkpoint(None, start=start(1.0), patience=99), show_progress())
    assert capsys.readouterr().out.strip() == ""


# ---- logs for TensorBoard


def logged(folder) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder)).Reload().Tensors("epoch_log_loss")
    return [(event.step, float(make_ndarray(event.tensor_proto))) for event in events]


@pytest.mark.parametrize("value", [None, "", "0"])
def test_there_are_no_logs_unless_asked_for(tmp_path, monkeypatch, value):
    monkeypatch.delenv("TENSORBOARD", raising=False)
    if value is not None:
        monkeypatch.setenv("TENSORBOARD", value)
    assert tensorboard_logs(tmp_path / "logs") == []


def test_logs_hold_every_epoch_and_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD", "1")
    plain, _ = fit(Checkpoint(None, start=start(9), patience=99))
    keep = Checkpoint(None, start=start(9), patience=99)
    model, _ = fit(keep, *tensorboard_logs(tmp_path / "logs"))
    epochs, losses = zip(*logged(tmp_path / "logs" / "validation"), strict=True)
    assert epochs == tuple(range(EPOCHS)) and losses == pytest.approx(keep.history["val_log_loss"], rel=1e-6)
    assert all(map(np.array_equal, plain.get_weights(), model.get_weights()))


def test_without_the_package_the_way_to_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD", "1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e \.\[tensorboard\]"):
        tensorboard_logs(tmp_path)
