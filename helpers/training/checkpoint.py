"""A training that loses nothing, also when it is interrupted, killed, or diverges."""

import importlib.util
import json
import math
import os
import sys
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
from tqdm import TqdmWarning, tqdm

from helpers import progress_file, whole_file
from helpers._keras import keras, on_all_devices
from helpers.training.calibration import apply_temperature


class Checkpoint(keras.callbacks.Callback):
    """A Keras callback after which nothing of a training is lost, and which recalibrates its result.

    The last epoch is the result, recalibrated by the temperature that the metric `log_loss()` found on the validation
    images, if there are any. (To choose among epochs by few images would be to choose by luck.) A training whose loss
    is not finite stops, with the weights from before it. A killed training, started again with
    `initial_epoch=checkpoint.first_epoch` and data that ask `checkpoint.current_epoch`, ends with the same bits. Put
    `with checkpoint:` round `fit`: then Ctrl-C says what weights the model has, with patience the best ones.

    Args:
        file: where the state is kept until `delete`; None keeps it in memory alone.
        start: `calibrated_scores` of the validation images before the first epoch; None without such images.
        patience: with 1 or more, the training stops early: after so many epochs without a lower validation log-loss.
            Its result is then the epoch with the lowest one; the start counts as epoch 0.
        settings: plain values that the training depends on. The state of another training is not resumed.

    Attributes:
        epoch: epochs that are done, 0 at first.
        best_epoch, best_loss, temperature: of the epoch that is the result, the last so far or with `patience` the
            best: its number, validation log-loss (NaN without such images) and temperature.
        history: dict of lists with an entry for each epoch, as Keras' own; also of those before a stop.
        seconds: what these epochs have taken.
        outcome: one plain sentence, once the training has ended.
    """

    def __init__(
        self, file: Path | None, *, start: dict | None = None, patience: int = 0, settings: dict | None = None
    ):
        super().__init__()
        self.file, self.patience, self._validates = file, patience, start is not None
        self.start = start or {"log_loss": math.nan, "temperature": 1.0}
        loss = round(start["log_loss"], 6) if start else None
        self.settings = json.dumps([settings or {}, loss], sort_keys=True, default=str)
        self.epoch, self.best_epoch, self.seconds, self.outcome = 0, 0, 0.0, ""
        self.best_loss, self.temperature = self.start["log_loss"], self.start["temperature"]
        self.history: dict[str, list[float]] = {}
        self._start: list[np.ndarray] = []  # the model's weights
        self._best: list[np.ndarray] = []  # none are kept where the last epoch is the result
        self._state: dict[str, np.ndarray] = {}  # what `fit` takes up
        self._read()

    @property
    def first_epoch(self) -> int:
        """Where `fit` has to begin (`initial_epoch`): behind all epochs if the training had ended before."""
        return sys.maxsize if self.outcome else self.epoch

    def current_epoch(self) -> int:
        """Returns the number of the epoch that is under way, from 0."""
        return self.epoch

    def delete(self) -> None:
        """Removes the file, once the results are saved elsewhere."""
        if self.file:
            for file in (self.file, *self.file.parent.glob(f".*.partial-{self.file.name}")):  # a killed process' too
                file.unlink(missing_ok=True)

    # ---- round `fit`

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is not KeyboardInterrupt or not self.model:
            return
        where, weights = f"in epoch {self.epoch + 1}", "The model's weights are those of an unfinished training."
        if self.outcome:
            where, weights = "after the last epoch", f"The training is complete: {self.outcome}."
        elif self.patience:
            weights = f"The model has the weights of {self._best_name()}, the best so far."
        if self._best:
            self._restore()
        resumes = " Execute the same again, and the training resumes." if self.file else ""
        raise KeyboardInterrupt(f"Interrupted {where}. {weights}{resumes}") from None

    # ---- what Keras calls

    def on_train_begin(self, logs=None):
        self._read()  # again: the same callback may resume after an interrupt
        if not self.model.optimizer.built:
            with on_all_devices():
                self.model.optimizer.build(self.model.trainable_variables)
        if self._state:
            for name, variable in self._variables().items():
                variable.assign(self._state[name])
            self._state = {}
        elif not self._start:
            self._start = self._weights()
            self._best = self._start if self.patience else []
            self._write()
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(float(logs["loss"])):
            self._stop_diverged()

    def on_epoch_end(self, epoch, logs=None):
        if self.outcome:  # it diverged within this epoch
            return
        judged = self._validates and (self.patience or epoch + 1 == self.params["epochs"] or "val_log_loss" in logs)
        if judged and "val_log_loss" not in logs:
            raise ValueError(f"Expected validation data in `fit` and the metric `log_loss()`. Received {[*logs]}.")
        loss = float(logs.get("val_log_loss", math.nan))
        if judged and not math.isfinite(loss):
            self._stop_diverged()
            return
        self.epoch = epoch + 1
        for name, value in logs.items():
            self.history.setdefault(name, []).append(float(value))
        if not self.patience or loss < self.best_loss:
            self._best = self._weights() if self.patience else []
            self.best_epoch, self.best_loss = self.epoch, loss
            self.temperature = float(logs.get("val_temperature", 1.0))  # other losses than a classifier's have none
        now = time.perf_counter()
        self.seconds, self._started = self.seconds + now - self._started, now
        if self.patience and self.epoch - self.best_epoch >= self.patience:
            self.outcome = f"stopped early, after {self.patience} epochs without a lower validation log-loss"
            self.model.stop_training = True
        self._write()

    def on_train_end(self, logs=None):
        self.outcome = self.outcome or f"all {self.epoch} epochs"
        self._write()
        self._restore()

    # ---- what it does

    def _best_name(self) -> str:
        return f"epoch {self.best_epoch}" if self.best_epoch else "the start"

    def _restore(self) -> None:
        """Gives the model the result: the best epoch's weights, scaled."""
        _assign(self.model, self._best)
        if self.temperature != 1:
            apply_temperature(self.model, self.temperature)

    def _stop_diverged(self) -> None:
        rate = float(np.asarray(self.model.optimizer.learning_rate))
        if not self.patience:
            self.best_epoch, self._best = 0, self._start
            self.best_loss, self.temperature = self.start["log_loss"], self.start["temperature"]
        self.outcome = (
            f"diverged: the loss was not finite in epoch {self.epoch + 1}, at a learning rate of {rate:.1g}. The "
            f"weights are those of {self._best_name()}. Try a tenth of the `learning_rate`"
        )
        self.model.stop_training = True

    def _weights(self) -> list[np.ndarray]:
        return [np.array(variable) for variable in self.model.weights]

    def _variables(self) -> dict:
        """Returns all that a training changes: weights, statistics, dropout's random states, the optimizer's own."""
        named = {f"model {number}": variable for number, variable in enumerate(self.model.variables)}
        return named | {f"optimizer {n}": variable for n, variable in enumerate(self.model.optimizer.variables)}

    def _write(self) -> None:
        if not self.file:
            return
        kept = ("settings", "epoch", "best_epoch", "best_loss", "temperature", "history", "seconds", "outcome")
        arrays = {name: np.asarray(variable) for name, variable in self._variables().items()}
        arrays |= {f"best {number}": value for number, value in enumerate(self._best)}
        arrays |= {f"start {number}": value for number, value in enumerate(self._start)}
        arrays["about"] = np.array(json.dumps({name: getattr(self, name) for name in kept}))
        try:
            with whole_file(self.file) as partial, open(partial, "wb") as file:
                np.savez(file, **arrays)
        except OSError as error:
            raise OSError(f"The state of the training could not be written to {self.file}: {error}.") from error

    def _read(self) -> None:
        """Takes up the state of a training with the same settings, if there is one."""
        about, arrays = _read_state(self.file)
        if about.get("settings") == self.settings:
            self._state = {name: arrays[name] for name in arrays if name.startswith(("model", "optimizer"))}
            self._best, self._start = _numbered(arrays, "best"), _numbered(arrays, "start")
            for name, value in about.items():
                setattr(self, name, value)


def return_to_start(model: keras.Model, file: Path | None, settings: dict) -> None:
    """Gives a model that was interrupted in a training with the same settings the weights from before it."""
    about, arrays = _read_state(file)
    if about and json.loads(about["settings"])[0] == json.loads(json.dumps(settings, default=str)):
        _assign(model, _numbered(arrays, "start"))


def _assign(model: keras.Model, weights: list[np.ndarray]) -> None:
    for variable, value in zip(model.weights, weights, strict=bool(weights)):
        variable.assign(value)


def _read_state(file: Path | None) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns the attributes and arrays that `Checkpoint` wrote; empty ones without a file, or of a damaged one."""
    if not file or not file.exists():
        return {}, {}
    try:
        with np.load(file) as members:
            arrays = dict(members)
        return json.loads(str(arrays.pop("about"))), arrays
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return {}, {}  # then the training starts from the beginning


def _numbered(arrays: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
    return [arrays[f"{name} {number}"] for number in range(sum(key.startswith(f"{name} ") for key in arrays))]


def show_progress() -> keras.callbacks.Callback:
    """Returns a Keras callback for `fit(verbose=0)` that shows epochs with the time left, then vanishes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # it looks for widgets, which are not used here
        from tqdm.keras import TqdmCallback  # here, since it imports Keras itself, with all its messages

    return TqdmCallback(verbose=0, tqdm_class=tqdm, leave=False, file=progress_file(), desc="training")


def tensorboard_logs(folder: Path) -> list[keras.callbacks.Callback]:
    """Returns a list with a Keras callback that writes TensorBoard's logs; empty unless `TENSORBOARD=1` asks for it.

    It is an environment variable and no parameter: logs change nothing in the results.
    """
    if os.environ.get("TENSORBOARD", "0") in ("", "0"):
        return []
    if importlib.util.find_spec("tensorboard") is None:  # TensorFlow would say so after the first epoch
        raise ModuleNotFoundError(
            "TENSORBOARD=1 needs the package tensorboard. To install it: "
            'python -m pip install -c requirements.txt -e ".[tensorboard]"'
        )
    return [keras.callbacks.TensorBoard(folder, write_graph=False)]
