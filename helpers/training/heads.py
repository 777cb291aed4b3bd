"""The head: the best linear classifier on fixed features, fitted to convergence without SGD."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np
from sklearn import config_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.utils.class_weight import compute_class_weight
from threadpoolctl import threadpool_limits

from helpers._keras import keras, on_all_devices
from helpers.backbones.graphs import free_name
from helpers.data.stores import StoredArray

CS = tuple(float(c) for c in np.logspace(-4, 3, 15).round(5))
"""Inverse regularisation strengths C that `fit_head` tries, ascending, for features of unit mean variance."""

TOLERANCE = 1e-6
"""Of the solver. scikit-learn's own, 1e-4, ends early with many classes and features: it looks at the largest
derivative, and each of 200,000 is small."""


def fit_head(
    features: np.ndarray | StoredArray,
    labels: np.ndarray,
    *,
    cs: tuple = CS,
    class_weight: str | None = None,
    tolerance: float = TOLERANCE,
) -> LogisticRegression:
    """Returns the best linear head: L2-regularised multinomial logistic regression, fitted to convergence.

    The problem is convex: there is one solution for each C, and no learning rate or number of epochs to choose. C has
    the lowest cross-validated log-loss: accuracy on a few hundred images hardly tells them apart.

    Args:
        features: float (images, features), in memory or stored.
        labels: int (images,), of two classes or more.
        cs: values of C to try, ascending, from the middle to both sides, until two in a row are no better.
        class_weight: of the solution and of the log-loss that chooses C: see `weigh_classes`.
        tolerance: of the largest derivative, at which the solver ends.

    Returns:
        A LogisticRegression that takes the features as they are, with the added attributes `C_`, `losses_` (C tried
        to log-loss, ascending), `held_out_losses_` and `held_out_correct_` (of each image its log-loss, times its
        weight, and whether it is right, 1 or 0, by the head that was fitted without its fold, at the chosen C; NaN
        where nothing could be held out) and `seconds_`.
    """
    started, features = perf_counter(), np.asarray(features)
    if not np.isfinite(features).all():
        raise ValueError("Expected finite features. Received some that are NaN or infinite.")
    weights = weigh_classes(labels, class_weight)
    # One thread for each fold, and BLAS with one of its own: the products are small, and two threads of BLAS that
    # wait for each other make them ten times slower on a machine that does something else, too.
    with threadpool_limits(1):
        scaled, restore = _standardise(features)
        held_out = _cross_validate(scaled.astype("float32"), labels, cs, weights, tolerance)
        losses = {tried: float(each[0].mean()) for tried, each in held_out.items()}
        c = min(losses, key=losses.get)
        head = _solve(scaled, labels, c, weights, tolerance)
    head.coef_, head.intercept_ = restore(head.coef_, head.intercept_)
    head.C_, head.losses_, (head.held_out_losses_, head.held_out_correct_) = c, losses, held_out[c]
    head.n_features_in_ = features.shape[1]
    head.seconds_ = perf_counter() - started
    return head


def _standardise(features: np.ndarray):
    """Returns features of mean 0 and unit mean variance, and a function that takes a head on them back to these."""
    mean, scale = features.mean(axis=0, dtype="float64"), np.sqrt(features.var(axis=0, dtype="float64").mean()) or 1.0
    scaled, rotation = (features - mean) / scale, None
    if scaled.shape[0] < scaled.shape[1]:
        # With fewer images than features, a rotation onto the images' own directions loses nothing: the penalty does
        # not see it, and the problem shrinks.
        left, singular, rotation = np.linalg.svd(scaled, full_matrices=False)
        scaled = left * singular

    def restore(kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kernel = (kernel if rotation is None else kernel @ rotation) / scale
        return kernel, bias - kernel @ mean

    return scaled, restore


def _solve(features, labels, c: float, weights: dict | None, tolerance: float, *, start=None) -> LogisticRegression:
    head = LogisticRegression(C=c, warm_start=start is not None, max_iter=1000, tol=tolerance, class_weight=weights)
    if start is not None:
        head.coef_, head.intercept_ = start.coef_.copy(), start.intercept_.copy()
    # `fit_head` has checked them: to do so again takes long beside each of dozens of short fits.
    checked = config_context(assume_finite=True, skip_parameter_validation=True)
    with warnings.catch_warnings(), checked:
        warnings.simplefilter("ignore", ConvergenceWarning)  # only the largest C, which are not chosen
        return head.fit(features, labels)


def _cross_validate(features, labels, cs: tuple, weights: dict | None, tolerance: float) -> dict[float, np.ndarray]:
    """Returns for each C tried, from the middle to both sides, the held-out images' weighted log-losses, and hits."""
    classes, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if min(counts) == 1:  # a class with one image cannot be held out: the middle of the range is as good as any
        return {cs[len(cs) // 2]: np.full((2, len(labels)), np.nan)}
    folds = StratifiedKFold(min(5, *counts), shuffle=True, random_state=0)
    parts = list(folds.split(labels, labels))
    heads, scores = [None] * len(parts), {}
    of_images = np.array([weights[label] for label in classes.tolist()])[place] if weights else np.ones(len(labels))
    of_images = of_images / of_images.mean()

    def score(fold: int, c: float) -> tuple[np.ndarray, np.ndarray]:
        fit, held_out = parts[fold]
        head = heads[fold] = _solve(features[fit], labels[fit], c, weights, tolerance, start=heads[fold])
        probabilities = head.predict_proba(features[held_out])
        of_truth = probabilities[np.arange(len(held_out)), place[held_out]]
        losses = -of_images[held_out] * np.log(np.clip(of_truth, np.finfo("float32").eps, None))
        return losses, of_truth == probabilities.max(axis=1)

    middle = len(cs) // 2 - 1 if len(cs) > 2 else 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for side in (cs[middle:], (cs[middle], *reversed(cs[:middle]))):
            tried = []
            for c in side:
                if c not in scores:
                    scores[c] = np.empty((2, len(labels)))
                    of_folds = pool.map(score, range(len(parts)), [c] * len(parts))
                    for (_, held_out), each in zip(parts, of_folds, strict=True):
                        scores[c][:, held_out] = each
                tried.append(scores[c][0].mean())
                if len(tried) > 2 and min(tried[-2:]) >= min(tried[:-2]):
                    break
    return dict(sorted(scores.items()))


def weigh_classes(labels: np.ndarray, class_weight: str | None = "balanced") -> dict | None:
    """Returns class to the weight of its images in a training, for Keras' `fit`; None for equal ones.

    Weights change what is learned, and not the scores: accuracy, validation log-loss and temperature count each image
    once. Probabilities are those for classes that are equally frequent.

    Args:
        labels: int (images,), of the training images.
        class_weight: scikit-learn's "balanced", n / (classes * n of the class); "" or None for none.
    """
    check_class_weight(class_weight)
    if not class_weight:
        return None
    classes = np.unique(labels)
    weights = compute_class_weight(class_weight, classes=classes, y=labels)
    return dict(zip(classes.tolist(), weights.tolist(), strict=True))


def check_class_weight(class_weight: str | None) -> None:
    """Raises ValueError if it is a text that `weigh_classes` does not know."""
    if class_weight not in ("", None, "balanced"):
        raise ValueError(f'Expected `class_weight` to be "balanced" or "" for none. Received {class_weight!r}.')


def head_weights(head: LogisticRegression) -> list[np.ndarray]:
    """Returns a fitted head's kernel, float32 (features, classes), and bias, float32 (classes,), for Dense."""
    kernel, bias = head.coef_.T, head.intercept_
    if len(bias) == 1:  # of two classes scikit-learn keeps the difference
        kernel, bias = np.hstack([-kernel / 2, kernel / 2]), np.array([-bias[0] / 2, bias[0] / 2])
    return [kernel.astype("float32"), bias.astype("float32")]


def attach_head(backbone: keras.Model, head: LogisticRegression, *, class_names: list[str]) -> keras.Model:
    """Returns the classifier: the backbone with the fitted head as a Dense layer, flat; layers are shared.

    It gives the head's probabilities, float32 (batch, classes). Another number of `class_names`, or of features than
    those of the head from `fit_head`, is a ValueError.
    """
    # a backbone that was such a classifier itself has these names
    head_name, softmax_name = (free_name(name, backbone) for name in ("head", "probabilities"))
    with on_all_devices():
        dense = keras.layers.Dense(len(class_names), name=head_name, dtype="float32")
        probabilities = keras.layers.Softmax(name=softmax_name, dtype="float32")(dense(backbone.outputs[0]))
        dense.set_weights(head_weights(head))
        return keras.Model(backbone.inputs[0], probabilities, name=backbone.name)
