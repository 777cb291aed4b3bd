"""Images unlike the training images are told from images like them."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from helpers.training.ood import LEAST_IMAGES, fit_ood_detector


def draw(count: int, *, seed: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns 200 positive features of each image, as a ReLU leaves them, of three classes; and the labels."""
    means = np.random.default_rng(0).normal(size=(3, 200))
    labels = np.arange(count) % 3
    values = 2 * means[labels] + noise * np.random.default_rng(seed).normal(size=(count, 200))
    return np.maximum(values, 0).astype("float32"), labels


@pytest.mark.parametrize("count", [60, 900])
def test_new_images_like_the_training_images_are_rarely_flagged(count):
    """With 60 images the training images lie nearer to their own means than new ones do: only held out ones tell."""
    detector = fit_ood_detector(*draw(count, seed=1, noise=4.0))
    assert 0.002 < detector.is_ood(draw(5000, seed=2, noise=4.0)[0]).mean() < 0.06


def test_images_of_another_kind_are_flagged():
    features, labels = draw(300, seed=1)
    new, kinds = draw(300, seed=2)
    detector = fit_ood_detector(features, labels)
    assert detector.is_ood(new[:, ::-1]).all() and detector.is_ood(new).mean() < 0.1
    assert detector.is_ood(np.zeros((2, 200))).all()
    without_one = fit_ood_detector(features[labels < 2], labels[labels < 2])
    assert without_one.is_ood(new[kinds == 2]).all() and without_one.is_ood(new[kinds < 2]).mean() < 0.1


def test_the_distance_is_that_to_the_nearest_class_mean_by_cosine():
    """How long the features are and how classes are numbered does not matter; a class of one image is a class."""
    features, labels = draw(150, seed=1)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    means = [(features / lengths)[labels == label].mean(axis=0) for label in range(3)]
    new = draw(20, seed=2)[0]
    one, other = fit_ood_detector(features, labels), fit_ood_detector(1000 * features, 7 - labels)
    np.testing.assert_allclose(one.distances(new), cdist(new, means, "cosine").min(axis=1), rtol=1e-4)
    np.testing.assert_allclose(other.distances(10 * new), one.distances(new), rtol=1e-3, atol=1e-6)
    assert other.threshold == pytest.approx(float(one.threshold), rel=1e-3)
    assert fit_ood_detector(features, np.where(np.arange(150) == 7, 3, labels)).class_means.shape == (4, 200)


def test_there_is_none_for_too_few_images():
    features, labels = draw(LEAST_IMAGES, seed=1)
    assert fit_ood_detector(features, labels) and fit_ood_detector(features[1:], labels[1:]) is None
