"""Images unlike the training images are told from images like them."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf

from helpers.training import Familiarity, learn_familiarity
from helpers.training.familiarity import LEAST_IMAGES


def draw(count: int, *, seed: int, features: int = 200, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns features of three classes that share a covariance of 20 directions and a little noise, and labels.

    With a shift, all of them lie as many standard deviations away in one more direction that no image shows.
    """
    world, rng = np.random.default_rng(0), np.random.default_rng(seed)
    directions, centres = world.normal(size=(20, features)), 3 * world.normal(size=(3, features))
    labels = np.arange(count) % 3
    values = centres[labels] + rng.normal(size=(count, 20)) @ directions + 0.3 * rng.normal(size=(count, features))
    away = np.linalg.svd(np.vstack([directions, centres]))[2][-1]
    return (5 + values + shift * away).astype("float32"), labels


@pytest.mark.parametrize("count", [90, 900])
def test_new_images_like_the_training_images_are_rarely_unlike_them(count):
    """With 90 images of 200 features the training images lie far nearer than new ones: only held out ones tell."""
    known = learn_familiarity(*draw(count, seed=1))
    assert 0.0 < known.is_unlike(draw(5000, seed=2)[0]).mean() < 0.04


def test_images_of_another_kind_are_unlike():
    features, labels = draw(300, seed=1)
    known = learn_familiarity(features, labels)
    one_class_missing = learn_familiarity(features[labels < 2], labels[labels < 2])
    new, kinds = draw(300, seed=2)
    assert (
        one_class_missing.is_unlike(new[kinds == 2]).all()
        and one_class_missing.is_unlike(new[kinds < 2]).mean() < 0.1
    )
    assert known.is_unlike(new[kinds == 2]).mean() < 0.1
    assert known.is_unlike(np.zeros((1, 200))).all() and known.is_unlike(30 * new).all()


def test_the_distance_is_mahalanobis_to_the_nearest_class():
    features, labels = draw(120, seed=1, features=10)
    known = learn_familiarity(features, labels)
    centres = np.stack([features[labels == label].mean(axis=0) for label in range(3)])
    covariance = LedoitWolf(assume_centered=True).fit(features - centres[labels]).covariance_
    new = draw(20, seed=2, features=10)[0]
    expected = cdist(new, centres, "mahalanobis", VI=np.linalg.inv(covariance)).min(axis=1)
    np.testing.assert_allclose(known.distances(new), expected, rtol=1e-3)


def test_scale_and_place_of_the_features_do_not_matter():
    features, labels = draw(150, seed=1)
    new = draw(150, seed=2)[0]
    one, other = learn_familiarity(features, labels), learn_familiarity(1000 * features - 7000, labels)
    np.testing.assert_allclose(other.distances(1000 * new - 7000), one.distances(new), rtol=0.01)


def test_features_that_are_the_same_for_all_images():
    known = learn_familiarity(np.ones((30, 5), "float32"), np.arange(30) % 3)
    assert known.is_unlike(np.array([[1, 1, 1, 1, 1], [2, 1, 1, 1, 1]])).tolist() == [False, True]


def test_a_class_of_one_image_and_too_few_images():
    features, labels = draw(60, seed=1)
    assert learn_familiarity(features, np.where(np.arange(60) == 7, 3, labels)) is not None
    assert learn_familiarity(features[: LEAST_IMAGES - 1], labels[: LEAST_IMAGES - 1]) is None
    with pytest.raises(ValueError, match=r"`labels` of 60 integers, one per image. Received \(59,\)"):
        learn_familiarity(features, labels[1:])


def test_arrays_that_do_not_fit_together_are_refused():
    known = learn_familiarity(*draw(60, seed=1))
    for name in ("mean", "projection", "centres", "threshold"):
        with pytest.raises(ValueError):
            Familiarity(**vars(known) | {name: np.zeros((3, 2))})
