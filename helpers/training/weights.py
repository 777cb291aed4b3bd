"""What a training weighs and how it computes: blends of weights, class weights, smoothed labels, precision."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from sklearn.utils.class_weight import compute_class_weight

from helpers._keras import keras
from helpers.backbones import weights_by_path

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")


def blend_weights(model: keras.Model, start: dict[str, np.ndarray], *, start_share: float) -> None:
    """Sets each weight to a mean of what it was and what it is: WiSE-FT (Wortsman et al. 2021, arXiv 2109.01903).

    Between a pretrained and a fine-tuned network there are often weights that do about as well on such images and
    better on others.

    Args:
        model: the fine-tuned network, changed in place.
        start: `copy_weights(model)` from before the training.
        start_share: 0 leaves the network as it is, 1 brings the start back.

    Raises:
        ValueError: the share is not within 0..1, or a weight is missing in `start`.
    """
    if not 0 <= start_share <= 1:
        raise ValueError(f"Expected `start_share` within 0 to 1. Received {start_share}.")
    weights = weights_by_path(model)
    if missing := [path for path in weights if path not in start]:
        raise ValueError(f"Expected `start` to have all of the model's weights. It lacks {missing[0]}.")
    for path, weight in weights.items():
        now = np.array(weight)
        if not np.array_equal(now, start[path]):  # what is frozen keeps every bit
            weight.assign(start_share * start[path] + (1 - start_share) * now)


def weigh_classes(labels: np.ndarray, class_weight: str | dict[int, float] | None = "balanced") -> dict | None:
    """Returns class to the weight of its images in a training, for `fit_head` and Keras' `fit`; None for equal ones.

    Weights change what is learned, and not what is judged: accuracy, validation log-loss and temperature count each
    image once, as they come in use. Probabilities are those for classes that are equally frequent.

    Args:
        labels: int (images,), of the training images.
        class_weight: "balanced" for n / (classes * n of the class), as scikit-learn's: all classes count the same,
            however many images they have. "" or None for none; or the weights themselves.

    Raises:
        ValueError: another text; a class has images and no weight, or a weight and no image.
    """
    check_class_weight(class_weight)
    if not class_weight:
        return None
    classes = np.unique(labels)
    if isinstance(class_weight, str):
        weights = compute_class_weight(class_weight, classes=classes, y=labels)
        return dict(zip(classes.tolist(), weights.tolist(), strict=True))
    if missing := sorted(set(classes.tolist()) - set(class_weight)):  # for which Keras takes 1
        raise ValueError(f"Expected `class_weight` to have a weight for every class. It lacks {missing}.")
    if without := sorted(set(class_weight) - set(classes.tolist())):
        raise ValueError(f"Expected images of every class in `class_weight`. There is none of {without}.")
    return class_weight


def check_class_weight(class_weight: str | dict[int, float] | None) -> None:
    """Raises ValueError if it is a text that `weigh_classes` does not know."""
    if isinstance(class_weight, str) and class_weight not in ("", "balanced"):
        raise ValueError(f'Expected `class_weight` to be "balanced" or "" for none. Received {class_weight!r}.')


def cross_entropy(label_smoothing: float = 0.0) -> Callable:
    """Returns the loss for `compile`: cross-entropy of labels, int (batch,), and probabilities (batch, classes).

    With smoothing, a share of each label is spread over all classes (Szegedy et al. 2016, arXiv 1512.00567). A head
    that was solved has the training images nearly all right; without smoothing, a training that starts from it mostly
    makes its probabilities more extreme. It is the loss that is smoothed, and not the log-loss that judges.

    Args:
        label_smoothing: the share, 0 to below 1; 0 for none.

    Raises:
        ValueError: another share.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"Expected `label_smoothing` of 0 to below 1. Received {label_smoothing}.")

    def loss(labels, probabilities):
        exact = keras.ops.sparse_categorical_crossentropy(labels, probabilities)
        if not label_smoothing:
            return exact
        log = keras.ops.log(keras.ops.clip(probabilities, 1e-7, 1.0))
        return (1 - label_smoothing) * exact - label_smoothing * keras.ops.mean(log, axis=-1)

    return loss


@contextmanager
def computing_in(model: keras.Model, precision: str) -> Iterator[None]:
    """Lets the model's layers compute in another precision inside the block, where it is compiled and trained.

    Weights stay float32, and so do layers that were made to compute in float32 whatever the rest does: the
    preprocessing, the head and its softmax.

    Args:
        model: whose layers are meant.
        precision: "float32", "mixed_float16" (for GPUs; Keras scales the loss) or "mixed_bfloat16".

    Raises:
        ValueError: another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"Expected `precision` to be one of {', '.join(PRECISIONS)}. Received {precision!r}.")
    fixed = (keras.layers.Rescaling, keras.layers.Softmax, keras.layers.InputLayer)
    head = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)][-1:]
    layers = [layer for layer in model._flatten_layers() if not isinstance(layer, fixed) and layer not in head]
    before = [layer.dtype_policy for layer in layers]
    if precision == "float32":
        yield
        return
    try:
        for layer in layers:
            layer.dtype_policy = keras.DTypePolicy(precision)
        yield
    finally:
        for layer, policy in zip(layers, before, strict=True):
            layer.dtype_policy = policy
