"""The head is the convex problem's solution, its strength is cross-validated, and attached it is the same."""

import numpy as np
import pytest
from networks import random_images, stage_network
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from helpers.appendices import score_features
from helpers.backbones import keras
from helpers.training import attach_head, compute_activations, fit_head


def blobs(images: int, features: int, classes: int, *, seed: int = 0, shift: float = 1.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    centres = rng.normal(size=(classes, features)) * shift
    return (centres[labels] + rng.normal(size=(images, features)) * 2 + 5).astype("float32"), labels


@pytest.mark.parametrize(("images", "features", "classes"), [(90, 12, 3), (60, 12, 2), (40, 200, 4), (30, 200, 2)])
def test_head_is_the_solution_of_the_regularised_problem(images, features, classes):
    x, y = blobs(images, features, classes)
    head = fit_head(x, y, cs=(0.01, 0.1, 1.0))
    scale = x.var(axis=0).mean()  # C is relative to features of unit variance
    direct = LogisticRegression(C=head.C_ / scale, max_iter=10_000, tol=1e-10)
    direct.fit(x - x.mean(axis=0), y)
    np.testing.assert_allclose(head.predict_proba(x), direct.predict_proba(x - x.mean(axis=0)), atol=2e-3)


def test_strength_has_the_lowest_cross_validated_log_loss():
    x, y = blobs(60, 40, 3, shift=0.3)  # noisy: weak regularisation overfits
    head = fit_head(x, y)
    assert head.losses_[head.C_] == min(head.losses_.values()) < np.log(3)
    assert head.C_ not in (min(head.losses_), max(head.losses_)), "an inner minimum, and then it stopped"
    test_x, test_y = blobs(300, 40, 3, shift=0.3)
    weak = fit_head(x, y, cs=(1000.0,))
    assert log_loss(test_y, head.predict_proba(test_x)) < log_loss(test_y, weak.predict_proba(test_x))


def test_many_classes_and_features_are_solved_to_the_end():
    """scikit-learn's own tolerance would stop in the middle: each of so many derivatives is small."""
    x, y = blobs(300, 200, 30, shift=0.5)
    head, centred = fit_head(x, y, cs=(0.3,)), (x - x.mean(axis=0)).astype("float64")
    c = head.C_ / x.var(axis=0, dtype="float64").mean()
    exact, careless = (LogisticRegression(C=c, max_iter=10_000, tol=tol).fit(centred, y) for tol in (1e-9, 1e-4))
    theirs = np.abs(careless.predict_proba(centred) - exact.predict_proba(centred)).max()
    assert np.abs(head.predict_proba(x) - exact.predict_proba(centred)).max() < theirs / 5


def test_head_does_not_depend_on_the_features_scale():
    x, y = blobs(60, 20, 3)
    scaled = fit_head(1000 * x, y).predict_proba(1000 * x)
    np.testing.assert_allclose(fit_head(x, y).predict_proba(x), scaled, atol=1e-3)


def test_head_with_one_image_in_a_class_and_constant_features():
    x, y = blobs(9, 5, 3)
    assert fit_head(x[:4], y[:4]).predict(x[:4]).shape == (4,)
    assert fit_head(np.ones((6, 4), "float32"), np.array([0, 1] * 3)).predict_proba(np.ones((1, 4))).shape == (1, 2)


def test_bad_features_and_labels():
    x, y = blobs(30, 5, 3)
    with pytest.raises(ValueError, match="2 classes"):
        fit_head(x, np.zeros(30, int))
    x[3, 2] = np.nan
    with pytest.raises(ValueError, match="finite features"):
        fit_head(x, y)


@pytest.mark.parametrize("classes", [2, 3])
def test_attached_head_gives_scikit_learns_probabilities(classes):
    network, names = stage_network(), list("abc"[:classes])
    images, labels = random_images(24), np.arange(24) % classes
    features = compute_activations(network, images)
    head = fit_head(features, labels)
    model = attach_head(network, head, class_names=names)
    probabilities = compute_activations(model, images)
    np.testing.assert_allclose(probabilities, head.predict_proba(features), atol=1e-5)
    again = attach_head(model, fit_head(probabilities, labels), class_names=names)
    assert again.layers[-1].name == "probabilities_2", "a classifier can be a backbone"
    assert not any(isinstance(layer, keras.Model) for layer in model.layers), "flat"
    with pytest.raises(ValueError):
        attach_head(network, head, class_names=list("abcde"))


def test_features_are_scored_on_images_that_the_head_has_not_seen():
    x, y = blobs(200, 6, 4, shift=6)
    scores = score_features(x, y, labelled=20, test=100, draws=4, seed=1)
    assert scores.shape == (4,) and (scores > 0.8).all()
    np.testing.assert_array_equal(scores, score_features(x, y, labelled=20, test=100, draws=4, seed=1))
    noise = np.random.default_rng(0).normal(size=(200, 150))  # any labels can be learned by heart
    assert score_features(noise, y, labelled=100, test=100, draws=4).mean() < 0.45
    with pytest.raises(ValueError):
        score_features(x, y, labelled=150, test=100)
