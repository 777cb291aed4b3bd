"""What is frozen is computed once; the head is solved; the rest is fine-tuned from there."""

import json
import math
import os
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from tqdm import TqdmWarning, tqdm

from helpers._keras import keras
from helpers.data import Pixels

STRENGTHS = tuple(float(strength) for strength in np.logspace(-4, 3, 15).round(5))
"""Inverse L2 strengths that `fit_head` tries, strongest regularisation first, for features of unit variance."""


def set_seed(seed: int) -> None:
    """Makes everything random that follows repeat itself, to the last bit, on one machine.

    Sets the seeds of Python, NumPy and Keras, and has TensorFlow use deterministic algorithms only.
    """
    keras.utils.set_random_seed(seed)
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.experimental.enable_op_determinism()


def compute_activations(model: keras.Model, inputs: np.ndarray | Pixels, *, batch_size: int = 32) -> np.ndarray:
    """Returns the model's outputs in inference mode, float32, one row per image, with progress.

    For a frozen prefix this is done once, whatever is trained on top of it later: in inference mode it is a
    fixed function of each image, so that training on the stored activations is exact.

    Args:
        model: from images or activations to activations.
        inputs: (images, ...): an array, or `Pixels` as `helpers.data.load_pixels` returns them.
        batch_size: images per forward pass.

    Raises:
        ValueError: an activation is not finite.
        MemoryError: the activations would not fit into this machine's memory.
    """
    _refuse_more_than_memory(len(inputs), model.output_shape[1:])
    outputs = np.empty((len(inputs), *model.output_shape[1:]), dtype="float32")
    forward = _compiled(model)
    starts = range(0, len(inputs), batch_size)
    for start in tqdm(starts, "computing activations", leave=False, file=sys.stdout, delay=1):
        batch = inputs[start : start + batch_size]
        # The last batch is filled up to full size: another shape would be compiled anew.
        filled = np.resize(batch, (batch_size, *batch.shape[1:]))
        outputs[start : start + len(batch)] = keras.ops.convert_to_numpy(forward(filled))[: len(batch)]
    if not np.isfinite(outputs).all():
        bad = (~np.isfinite(outputs.reshape(len(outputs), -1))).any(axis=1).sum()
        raise ValueError(
            f"{model.name} gives activations that are not finite for {bad} of {len(inputs)} images. The weights "
            f"are damaged, the preprocessing is not the network's, or training at too high a learning rate diverged."
        )
    return outputs


def _refuse_more_than_memory(count: int, shape: tuple[int, ...]) -> None:
    """Raises before the work begins: the system would end the process without a word later on."""
    needed = 4 * count * math.prod(shape)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.4 * memory:  # training makes a copy of them
        raise MemoryError(
            f"The activations of {count} images, {'x'.join(map(str, shape))} numbers each, take "
            f"{needed / 1e9:.1f} GB. This machine has {memory / 1e9:.1f} GB, and training needs them twice. Let "
            f"`unfreeze_from` name a later stage, whose activations are smaller, or keep fewer images "
            f"(`images_per_class`)."
        )


def _compiled(model: keras.Model):
    """Returns the model's inference, compiled. (`predict` would first read all of the images into memory.)"""
    if keras.backend.backend() != "tensorflow":
        return lambda batch: model(batch, training=False)
    import tensorflow

    return tensorflow.function(lambda batch: model(batch, training=False))


def fit_head(
    features: np.ndarray, labels: np.ndarray, *, strengths: tuple[float, ...] = STRENGTHS, folds: int = 5
) -> LogisticRegression:
    """Returns the best linear head: L2-regularised multinomial logistic regression, solved.

    With frozen features the head is a convex problem: there is one best solution for each strength of the
    regularisation, and no learning rate or number of epochs to choose. The strength is the one with the
    lowest cross-validated log-loss. Log-loss, since accuracy on a few hundred images hardly tells strengths apart.

    Args:
        features: float (images, features).
        labels: int (images,), each class at least once.
        strengths: inverse strengths C to try, ascending, relative to features of unit mean variance. The
            search stops once the loss has risen twice in a row: weaker is only slower from there on.
        folds: of the cross-validation; fewer if a class has fewer images.

    Returns:
        A fitted scikit-learn LogisticRegression that takes the features as they are, with the added
        attributes `strength_` (the chosen C) and `losses_` (a dict: strength tried to log-loss).

    Raises:
        ValueError: features are not finite, or there are fewer than two classes.
    """
    if not np.isfinite(features).all():
        raise ValueError("Expected finite features. Received some that are NaN or infinite.")
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2:
        raise ValueError(f"Expected at least two classes to tell apart. Received {len(counts)}.")
    mean, scale = features.mean(axis=0, dtype="float64"), np.sqrt(features.var(axis=0, dtype="float64").mean())
    scaled = (features - mean) / (scale or 1.0)
    rotation = None
    if scaled.shape[0] < scaled.shape[1]:
        # With fewer images than features, a rotation onto the images' own directions loses nothing: the
        # penalty does not see it, and the problem shrinks.
        left, singular, rotation = np.linalg.svd(scaled, full_matrices=False)
        scaled = left * singular
    losses = _cross_validate(scaled, labels, strengths, min(folds, counts.min()))
    strength = min(losses, key=losses.get)
    head = _solve(scaled, labels, strength)
    head.strength_, head.losses_ = strength, losses
    kernel = head.coef_ if rotation is None else head.coef_ @ rotation
    head.coef_ = kernel / (scale or 1.0)
    head.intercept_ = head.intercept_ - head.coef_ @ mean
    head.n_features_in_ = features.shape[1]
    return head


def _solve(features: np.ndarray, labels: np.ndarray, strength: float, start=None) -> LogisticRegression:
    head = LogisticRegression(C=strength, max_iter=1000, warm_start=start is not None)
    if start is not None:
        head.coef_, head.intercept_ = start.coef_.copy(), start.intercept_.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # only the weakest strengths, which are not chosen
        return head.fit(features, labels)


def _cross_validate(features, labels, strengths, folds: int) -> dict[float, float]:
    """Returns the mean log-loss on held-out folds for each strength, until it has risen twice in a row."""
    classes = np.unique(labels)
    if folds < 2:  # a class with one image cannot be held out: the middle of the range is as good as any
        return {strengths[len(strengths) // 2]: np.nan}
    parts = list(StratifiedKFold(folds, shuffle=True, random_state=0).split(features, labels))
    heads, losses = [None] * folds, {}
    for strength in strengths:
        loss = []
        for fold, (fit, held_out) in enumerate(parts):
            heads[fold] = _solve(features[fit], labels[fit], strength, start=heads[fold])
            loss.append(log_loss(labels[held_out], heads[fold].predict_proba(features[held_out]), labels=classes))
        losses[strength] = float(np.mean(loss))
        tried = list(losses.values())
        if len(tried) > 2 and tried[-1] > tried[-2] > tried[-3]:
            break
    return losses


def attach_head(backbone: keras.Model, head: LogisticRegression, *, class_names: list[str]) -> keras.Model:
    """Returns the classifier: the backbone with the solved head as a Dense layer, flat.

    Args:
        backbone: from images to features; its layers are shared, not copied.
        head: from `fit_head`.
        class_names: in the order of the labels.

    Returns:
        A model from raw images to probabilities, float32 (batch, classes); its logits equal scikit-learn's.

    Raises:
        ValueError: the head's features or classes are not the backbone's or the class names' number.
    """
    classes, features = len(class_names), backbone.output_shape[-1]
    kernel, bias = head.coef_.T, head.intercept_
    if classes == 2:
        kernel, bias = np.hstack([-kernel / 2, kernel / 2]), np.array([-bias[0] / 2, bias[0] / 2])
    if kernel.shape != (features, classes):
        raise ValueError(
            f"Expected a head from {features} features to {classes} classes. Received one from "
            f"{kernel.shape[0]} features to {kernel.shape[1]} classes."
        )
    taken = {layer.name for layer in backbone.layers}  # by a backbone that was such a classifier itself
    head_name, softmax_name = (
        next(name for name in (base, *(f"{base}_{i}" for i in range(2, 99))) if name not in taken)
        for base in ("head", "probabilities")
    )
    dense = keras.layers.Dense(classes, name=head_name, dtype="float32")
    probabilities = keras.layers.Softmax(name=softmax_name, dtype="float32")(dense(backbone.outputs[0]))
    dense.set_weights([kernel.astype("float32"), bias.astype("float32")])
    return keras.Model(backbone.inputs[0], probabilities, name=backbone.name)


def save_model(model: keras.Model, path: str | Path, *, class_names: list[str], resize: str) -> None:
    """Saves the classifier as one `.keras` file, whole or not at all, with what a prediction needs besides.

    The file needs nothing but Keras to be loaded. The settings are one more member of it, `classifier.json`,
    which Keras does not look at: see `load_settings`.

    Args:
        model: from raw images to probabilities.
        path: of the `.keras` file.
        class_names: in the order of the probabilities.
        resize: how images were brought to the model's size: "crop", "pad" or "stretch".
    """
    settings = {"class_names": class_names, "resize": resize}
    path = Path(path)
    partial = path.with_name(f"partial-{os.getpid()}-{path.name}")
    try:
        model.save(partial)
        with zipfile.ZipFile(partial, "a") as archive:
            archive.writestr("classifier.json", json.dumps(settings, ensure_ascii=False))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_settings(path: str | Path) -> dict:
    """Returns what `save_model` kept with a classifier, besides the model.

    Returns:
        class_names, a list in the order of the model's probabilities, and resize, the rule by which images have
        to be brought to its size (`helpers.data.read_pixels`).

    Raises:
        ValueError: the file is not one that `save_model` wrote.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("classifier.json"))
    except (KeyError, zipfile.BadZipFile):
        raise ValueError(f"Expected a classifier saved by 02 or 03. {path} holds no class names.") from None


def warmup_cosine(
    learning_rate: float, *, images: int, batch_size: int, epochs: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns a learning rate that rises in the first tenth of training, then falls to 0 on a cosine.

    Warm-up spares the pretrained weights Adam's first steps, which are as large as the rate allows while
    its averages are still empty (Goyal et al. 2017, arXiv 1706.02677; cosine: arXiv 1608.03983).

    Args:
        learning_rate: the highest rate.
        images: number of training images.
        batch_size: images per step.
        epochs: length of the training.

    Raises:
        ValueError: a value is not positive.
    """
    values = {"learning_rate": learning_rate, "images": images, "batch_size": batch_size, "epochs": epochs}
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"Expected `{name}` above 0. Received {value}.")
    steps = epochs * math.ceil(images / batch_size)
    warmup = math.ceil(steps / 10)
    # The first step has a tenth of the rate and not 0: otherwise one epoch of one step would learn nothing.
    return keras.optimizers.schedules.CosineDecay(
        0.1 * learning_rate, max(1, steps - warmup), warmup_target=learning_rate, warmup_steps=warmup
    )


def show_progress() -> keras.callbacks.Callback:
    """Returns a Keras callback for `fit(verbose=0)` that shows epochs with the time left, then vanishes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # it looks for widgets, which are not used here
        from tqdm.keras import TqdmCallback  # here, since it imports Keras itself, with all its messages

    return TqdmCallback(verbose=0, tqdm_class=tqdm, leave=False, file=sys.stdout, desc="training")
