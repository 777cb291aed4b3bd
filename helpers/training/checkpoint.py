"""A training that loses nothing, also when it is interrupted, killed, or diverges."""

import importlib.util
import json
import math
import os
import signal
import sys
import threading
import time
import warnings
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import TqdmWarning, tqdm

from helpers import progress_file
from helpers._keras import keras, on_all_devices
from helpers.training.calibration import cool


class Checkpoint(keras.callbacks.Callback):
    """A Keras callback after which nothing of a training is lost, and which recalibrates its result.

    The last epoch of the schedule is the result: its learning rate has faded out by then, and to choose among epochs
    by few validation images would be to choose by luck (helpers/training/README.md shows that it gains nothing). At
    the end the head's logits are divided by the temperature that the metric `log_loss()` found for it on the
    validation images, if there are any.

    The state after each epoch goes to a file: a killed training, started again with
    `initial_epoch=checkpoint.first_epoch` and data that ask `checkpoint.current_epoch`, ends with the same weights as
    one that was not, to the last bit. Ctrl-C, or the interrupt button, ends it after the batch, with
    `KeyboardInterrupt`. At the first loss that is not finite the training stops, and the model gets its weights from
    before the training.

    Args:
        file: where the state is kept until `delete`; None keeps it in memory alone.
        start: log_loss and temperature of the validation images before the first epoch (`judge`); None without
            validation images.
        patience: with 1 or more, the training stops early: after so many epochs without a lower validation log-loss.
            Its result is then the epoch with the lowest one; the start counts as epoch 0. An interrupted training
            leaves the model with its best weights so far.
        settings: plain values that the training depends on. The state of another training is not taken up.

    Attributes:
        start: as given.
        epoch: epochs that are done, 0 at first.
        best_epoch: the one that is the result: the last so far, or with `patience` the best.
        best_loss: its validation log-loss; NaN without validation images.
        temperature: of that epoch.
        history: dict of lists with an entry for each epoch, as Keras' own, those before a stop included.
        seconds: what the epochs have taken, without those that a stop has cost.
        outcome: one plain sentence, once the training has ended.
    """

    def __init__(
        self,
        file: Path | None,
        *,
        start: dict[str, float] | None = None,
        patience: int = 0,
        settings: dict | None = None,
    ):
        super().__init__()
        self.file, self.patience = file, patience
        self.start = start or {"log_loss": math.nan, "temperature": 1.0}
        self._validates = start is not None
        loss = round(start["log_loss"], 6) if start else None
        self.settings = json.dumps([settings or {}, loss], sort_keys=True, default=str)
        self.epoch, self.best_epoch = 0, 0
        self.best_loss, self.temperature = self.start["log_loss"], self.start["temperature"]
        self.history: dict[str, list[float]] = {}
        self.seconds, self.outcome = 0.0, ""
        self._start: list[np.ndarray] = []
        self._best: list[np.ndarray] = []
        self._state: dict[str, np.ndarray] = {}
        self._interrupted = False
        self._read()

    @property
    def first_epoch(self) -> int:
        """Where `fit` has to begin (`initial_epoch`): behind all epochs if the training had ended before."""
        return sys.maxsize if self.outcome else self.epoch

    def current_epoch(self) -> int:
        """Returns the number of the epoch that is under way, from 0."""
        return self.epoch

    # ---- what Keras calls

    def on_train_begin(self, logs=None):
        self._interrupted, self._previous = False, None
        self._read()  # again: the same callback may go on after an interrupt
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
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as under nohup: it stays so
        if threading.current_thread() is threading.main_thread() and not ignored:
            self._previous = signal.signal(signal.SIGINT, self._interrupt)
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if self._interrupted:
            self._end()
            goes_on = " Execute the same again, and the training resumes." if self.file else ""
            raise KeyboardInterrupt(f"Interrupted in epoch {self.epoch + 1}. {self._describe_weights()}{goes_on}")
        if not math.isfinite(float(logs["loss"])):
            self._diverged()

    def on_test_batch_end(self, batch, logs=None):
        self.on_train_batch_end(batch, {"loss": 0.0})

    def on_epoch_end(self, epoch, logs=None):
        if self.outcome:  # it diverged within this epoch
            return
        judged = self._validates and (self.patience or epoch + 1 == self.params["epochs"] or "val_log_loss" in logs)
        if judged and "val_log_loss" not in logs:
            raise ValueError(
                f"Expected validation data in `fit`, and `log_loss()` among the metrics in `compile`: they say how "
                f"good an epoch is. Received {', '.join(logs)}."
            )
        loss = float(logs.get("val_log_loss", math.nan))
        if judged and not math.isfinite(loss):
            self._diverged()
            return
        self.epoch = epoch + 1
        for name, value in logs.items():
            self.history.setdefault(name, []).append(float(value))
        if not self.patience or loss < self.best_loss:
            self.best_epoch, self.best_loss = self.epoch, loss
            self._best = self._weights() if self.patience else []
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
        self._end()
        if self._interrupted:  # after the last batch: nobody else would raise it
            raise KeyboardInterrupt(
                f"Interrupted when the training had ended ({self.outcome}). {self._describe_weights()}"
            )

    # ---- what it does

    def delete(self) -> None:
        """Removes the file, once the results are saved elsewhere."""
        if self.file:
            self.file.unlink(missing_ok=True)

    def _named(self, epoch: int) -> str:
        return f"epoch {epoch}" if epoch else "the start"

    def _describe_weights(self) -> str:
        """Returns a sentence on the weights that the model has."""
        if self.patience:
            return f"The model has the weights of {self._named(self.best_epoch)}, the best so far."
        if self.outcome:
            return "The training is complete."
        return "The model's weights are those of an unfinished training."

    def _end(self) -> None:
        """Gives the model its best weights, and the interrupt back to whom it belonged."""
        for variable, value in zip(self.model.weights, self._best, strict=False):  # none where the last epoch counts
            variable.assign(value)
        if self.temperature != 1 and (self.patience or self.outcome):
            cool(self.model, self.temperature)
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _interrupt(self, number, frame) -> None:
        """Waits for the end of the batch, if the training is still under way: another error may have ended it."""
        outer = frame
        while outer:
            if outer.f_code.co_name == "fit" and outer.f_locals.get("self") is self.model and not self._interrupted:
                self._interrupted = True
                return
            outer = outer.f_back
        signal.signal(signal.SIGINT, self._previous)
        signal.default_int_handler(number, frame) if not callable(self._previous) else self._previous(number, frame)

    def _diverged(self) -> None:
        rate = float(np.asarray(self.model.optimizer.learning_rate))
        if not self.patience:
            self.best_epoch, self.best_loss, self._best = 0, self.start["log_loss"], self._start
            self.temperature = self.start["temperature"]
        self.outcome = (
            f"diverged: the loss was not finite in epoch {self.epoch + 1}, at a learning rate of {rate:.1g}. The "
            f"weights are those of {self._named(self.best_epoch)}. Try a tenth of the `learning_rate`"
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
        partial = self.file.with_name(f".{self.file.name}.partial")  # one name: a killed process leaves no others
        self.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                np.savez(file, **arrays)
            os.replace(partial, self.file)
        except OSError as error:
            self._end()
            raise OSError(
                f"The state of the training could not be written to {self.file}: {error}. "
                f"{self._describe_weights()} With more space, the training can resume."
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def _read(self) -> None:
        """Takes up the state of a training with the same settings, if there is one."""
        if not self.file or not self.file.exists():
            return
        try:
            with np.load(self.file) as arrays:
                about = json.loads(str(arrays["about"]))
                if about["settings"] != self.settings:
                    return
                self._state = {name: arrays[name] for name in arrays if name.startswith(("model", "optimizer"))}
                self._best, self._start = _numbered(arrays, "best"), _numbered(arrays, "start")
        except (
            OSError,
            ValueError,
            KeyError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
        ):  # cut off: then the training starts anew
            self._state, self._best = {}, []
            return
        for name, value in about.items():
            setattr(self, name, value)


def return_to_start(model: keras.Model, file: Path | None, settings: dict) -> None:
    """Gives the model the weights from before an interrupted training with the same settings, if there was one.

    Then the same call on the same model goes on where it stopped, and does not take the best weights for the start.
    """
    if file and file.exists():
        with (
            suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error),
            np.load(file) as arrays,
        ):
            before, _ = json.loads(json.loads(str(arrays["about"]))["settings"])
            start = _numbered(arrays, "start")
            if before == json.loads(json.dumps(settings, default=str)) and len(start) == len(model.weights):
                for variable, value in zip(model.weights, start, strict=True):
                    variable.assign(value)


def _numbered(arrays, name: str) -> list[np.ndarray]:
    return [arrays[f"{name} {number}"] for number in range(sum(key.startswith(f"{name} ") for key in arrays))]


def show_progress() -> keras.callbacks.Callback:
    """Returns a Keras callback for `fit(verbose=0)` that shows epochs with the time left, then vanishes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # it looks for widgets, which are not used here
        from tqdm.keras import TqdmCallback  # here, since it imports Keras itself, with all its messages

    return TqdmCallback(verbose=0, tqdm_class=tqdm, leave=False, file=progress_file(), desc="training")


def tensorboard_logs(folder: Path) -> list[keras.callbacks.Callback]:
    """Returns a Keras callback that writes TensorBoard's logs of each epoch; none unless `TENSORBOARD=1` asks for it.

    That is an environment variable and no parameter: logs change nothing in the results, so that a run that was
    started without them may go on with them. `tensorboard --logdir runs` shows the curves of all runs.

    Args:
        folder: of the logs: training and validation get a folder each in it.

    Returns:
        A list, to be spread among `fit`'s callbacks.

    Raises:
        ModuleNotFoundError: logs are asked for, and the package `tensorboard` is not there.
    """
    if os.environ.get("TENSORBOARD", "0") in ("", "0"):
        return []
    if importlib.util.find_spec("tensorboard") is None:  # TensorFlow would say so after the first epoch
        raise ModuleNotFoundError(
            "TENSORBOARD=1 asks for logs, and they need the package tensorboard: pip install -e .[tensorboard]. "
            "Without the variable there are none."
        )
    return [keras.callbacks.TensorBoard(folder, write_graph=False)]
