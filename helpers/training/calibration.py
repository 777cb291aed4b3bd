"""How far a network overstates its probabilities, and the log-loss that does not hold that against it."""

import numpy as np

from helpers._keras import keras, on_all_devices
from helpers.data.stores import StoredArray

TEMPERATURES = np.geomspace(1, 8, 25, dtype="float32")
"""What the logits may be divided by. From 1 on: a network is never made more confident than it is."""


def log_loss() -> keras.metrics.Metric:
    """Returns the metric for `compile` by which `Checkpoint` judges epochs; see `LogLoss`."""
    with on_all_devices():
        return LogLoss()


class LogLoss(keras.metrics.Metric):
    """The lowest log-loss that one temperature can reach, by which all logits are divided, and that temperature.

    A fine-tuned network grows overconfident long before it grows worse; a division corrects that (Guo et al. 2017,
    arXiv 1706.04599).
    """

    def __init__(self, name: str = "log_loss", **options):
        super().__init__(name=name, **options)
        self.sums = self.add_variable((len(TEMPERATURES),), initializer="zeros", name="sums")
        self.images = self.add_variable((), initializer="zeros", name="images")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch; each image counts the same, whatever its weight in the training."""
        losses = _losses(y_true, y_pred)
        self.sums.assign_add(keras.ops.sum(losses, axis=0))
        self.images.assign_add(keras.ops.cast(keras.ops.shape(losses)[0], self.images.dtype))

    def result(self):
        """Returns the lowest mean log-loss, and the temperature that reaches it."""
        means = self.sums / keras.ops.maximum(self.images, 1)
        temperature = keras.ops.take(TEMPERATURES, keras.ops.argmin(means))
        return {"log_loss": keras.ops.min(means), "temperature": temperature}


def _losses(labels, probabilities):
    """Returns the loss of each image at each temperature, (batch, temperatures)."""
    log = keras.ops.log(keras.ops.clip(keras.ops.cast(probabilities, "float32"), 1e-37, 1.0))
    scaled = keras.ops.expand_dims(log, 1) / keras.ops.reshape(TEMPERATURES, (1, -1, 1))
    labels = keras.ops.reshape(keras.ops.cast(labels, "int32"), (-1, 1, 1))
    of_truth = keras.ops.take_along_axis(scaled, keras.ops.tile(labels, (1, len(TEMPERATURES), 1)), axis=2)
    return keras.ops.logsumexp(scaled, axis=2) - keras.ops.squeeze(of_truth, axis=2)


def calibrated_scores(probabilities: np.ndarray | StoredArray, labels: np.ndarray) -> dict[str, float]:
    """Returns log_loss, temperature (see `LogLoss`) and accuracy of probabilities (images, classes)."""
    probabilities, metric = np.asarray(probabilities), LogLoss()
    metric.update_state(labels, probabilities)
    scores = {name: float(value) for name, value in metric.result().items()}
    return scores | {"accuracy": float((probabilities.argmax(axis=1) == labels).mean())}


def apply_temperature(model: keras.Model, temperature: float) -> None:
    """Divides a classifier's logits by a temperature above 0, in the weights of its last Dense layer, in place."""
    head = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)][-1]
    for weight in head.weights:
        weight.assign(weight / temperature)
