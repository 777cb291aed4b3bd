"""The head: the best linear classifier on fixed features, solved and not trained."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits

from helpers._keras import keras, on_all_devices
from helpers.backbones.graphs import free_name
from helpers.data import StoredArray
from helpers.training.weights import weigh_classes

STRENGTHS = tuple(float(strength) for strength in np.logspace(-4, 3, 15).round(5))
"""Inverse L2 strengths that `fit_head` tries, strongest regularisation first, for features of unit variance."""


def fit_head(
    features: np.ndarray | StoredArray,
    labels: np.ndarray,
    *,
    strengths: tuple[float, ...] = STRENGTHS,
    folds: int = 5,
    class_weight: str | dict[int, float] | None = None,
) -> LogisticRegression:
    """Returns the best linear head: L2-regularised multinomial logistic regression, solved.

    With frozen features the head is a convex problem: there is one best solution for each strength of the
    regularisation, and no learning rate or number of epochs to choose. The strength is the one with the
    lowest cross-validated log-loss. Log-loss, since accuracy on a few hundred images hardly tells strengths apart.

    Args:
        features: float (images, features), in memory or stored; of images with fixed augmented views, (images,
            views, features): then all views of an image are in one fold.
        labels: int (images,), each class at least once.
        strengths: inverse strengths C to try, ascending, relative to features of unit mean variance. The search
            goes from the middle to both sides, until two in a row are no better.
        folds: of the cross-validation; fewer if a class has fewer images.
        class_weight: of the solution and of the log-loss that chooses the strength: see `weigh_classes`.

    Returns:
        A fitted scikit-learn LogisticRegression that takes the features as they are, with the added
        attributes `strength_` (the chosen C), `losses_` (a dict: strength tried to log-loss, ascending),
        `held_out_losses_` (of each image, times its weight, by the head that was fitted without its fold, at the
        chosen C; float (images,), NaN where nothing could be held out) and `seconds_` (what the search and the
        solution took).

    Raises:
        ValueError: features are not finite, there are fewer than two classes, or a class has no weight.
    """
    started, features = perf_counter(), np.asarray(features)
    if not np.isfinite(features).all():
        raise ValueError("Expected finite features. Received some that are NaN or infinite.")
    classes, counts = np.unique(labels, return_counts=True)
    if len(counts) < 2:
        raise ValueError(f"Expected at least two classes to tell apart. Received {len(counts)}.")
    class_weight = weigh_classes(labels, class_weight)
    folds = min(folds, counts.min())
    parts = list(StratifiedKFold(folds, shuffle=True, random_state=0).split(labels, labels)) if folds > 1 else []
    if features.ndim == 3:
        views = features.shape[1]
        features, labels = features.reshape(-1, features.shape[2]), np.repeat(labels, views)
        parts = [tuple((part[:, None] * views + np.arange(views)).ravel() for part in pair) for pair in parts]
    mean, scale = features.mean(axis=0, dtype="float64"), np.sqrt(features.var(axis=0, dtype="float64").mean())
    scaled = (features - mean) / (scale or 1.0)
    # One thread for each fold, and BLAS with one of its own: the products are small, and two threads of BLAS that
    # wait for each other make them ten times slower on a machine that does something else, too.
    with threadpool_limits(1):
        rotation = None
        if scaled.shape[0] < scaled.shape[1]:
            # With fewer images than features, a rotation onto the images' own directions loses nothing: the
            # penalty does not see it, and the problem shrinks.
            left, singular, rotation = np.linalg.svd(scaled, full_matrices=False)
            scaled = left * singular
        of_images = _cross_validate(
            scaled.astype("float32"), labels, strengths, parts=parts, class_weight=class_weight
        )
        losses = {tried: float(each.mean()) for tried, each in of_images.items()}
        strength = min(losses, key=losses.get)
        head = _solve(scaled, labels, strength, class_weight=class_weight)
    head.strength_, head.losses_, head.held_out_losses_ = strength, losses, of_images[strength]
    kernel = head.coef_ if rotation is None else head.coef_ @ rotation
    head.coef_ = kernel / (scale or 1.0)
    head.intercept_ = head.intercept_ - head.coef_ @ mean
    head.n_features_in_ = features.shape[1]
    head.seconds_ = perf_counter() - started
    return head


def _solve(features, labels, strength: float, *, class_weight=None, start=None) -> LogisticRegression:
    # scikit-learn's own tolerance, 1e-4, ends early with many classes and features: it looks at the largest
    # derivative, and each of 200,000 is small.
    options = {"max_iter": 1000, "tol": 1e-6, "class_weight": class_weight}
    head = LogisticRegression(C=strength, warm_start=start is not None, **options)
    if start is not None:
        head.coef_, head.intercept_ = start.coef_.copy(), start.intercept_.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # only the weakest strengths, which are not chosen
        return head.fit(features, labels)


def _cross_validate(features, labels, strengths, *, parts: list, class_weight) -> dict[float, np.ndarray]:
    """Returns each held-out image's weighted log-loss for each strength tried, from the middle to both sides."""
    middle = len(strengths) // 2 - 1 if len(strengths) > 2 else 0
    if not parts:  # a class with one image cannot be held out: the middle of the range is as good as any
        return {strengths[len(strengths) // 2]: np.full(len(labels), np.nan)}
    heads, losses = [None] * len(parts), {}
    place = np.unique(labels, return_inverse=True)[1]
    weight = np.array([class_weight[label] for label in labels.tolist()] if class_weight else np.ones(len(labels)))
    weight /= weight.mean()

    def losses_of(fold: int, strength: float) -> np.ndarray:
        fit, held_out = parts[fold]
        head = _solve(features[fit], labels[fit], strength, class_weight=class_weight, start=heads[fold])
        heads[fold] = head
        of_truth = head.predict_proba(features[held_out])[np.arange(len(held_out)), place[held_out]]
        return -weight[held_out] * np.log(np.clip(of_truth, np.finfo("float32").eps, None))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for side in (strengths[middle:], (strengths[middle], *reversed(strengths[:middle]))):
            tried = []
            for strength in side:
                if strength not in losses:
                    losses[strength] = np.empty(len(labels))
                    found = pool.map(losses_of, range(len(parts)), [strength] * len(parts))
                    for (_, held_out), each in zip(parts, found, strict=True):
                        losses[strength][held_out] = each
                tried.append(losses[strength].mean())
                if len(tried) > 2 and min(tried[-2:]) >= min(tried[:-2]):
                    break
    return dict(sorted(losses.items()))


def head_weights(head: LogisticRegression) -> list[np.ndarray]:
    """Returns a solved head's kernel, float32 (features, classes), and bias, float32 (classes,), for Dense."""
    kernel, bias = head.coef_.T, head.intercept_
    if len(bias) == 1:  # of two classes scikit-learn keeps the difference
        kernel, bias = np.hstack([-kernel / 2, kernel / 2]), np.array([-bias[0] / 2, bias[0] / 2])
    return [kernel.astype("float32"), bias.astype("float32")]


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
    kernel, bias = head_weights(head)
    if kernel.shape != (features, classes):
        raise ValueError(
            f"Expected a head from {features} features to {classes} classes. Received one from "
            f"{kernel.shape[0]} features to {kernel.shape[1]} classes."
        )
    # a backbone that was such a classifier itself has these names
    head_name, softmax_name = (free_name(name, backbone) for name in ("head", "probabilities"))
    with on_all_devices():
        dense = keras.layers.Dense(classes, name=head_name, dtype="float32")
        probabilities = keras.layers.Softmax(name=softmax_name, dtype="float32")(dense(backbone.outputs[0]))
        dense.set_weights([kernel, bias])
        return keras.Model(backbone.inputs[0], probabilities, name=backbone.name)
