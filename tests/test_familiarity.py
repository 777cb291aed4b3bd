"""Images unlike the training images are told from images like them."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from helpers.training import Familiarity, learn_familiarity
from helpers.training.familiarity import LEAST_IMAGES


def draw(count: int, *, seed: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns 200 positive features of each image, as a ReLU leaves them, of three classes; and the labels."""
    centres = np.random.default_rng(0).normal(size=(3, 200))
    labels = np.arange(count) % 3
    values = 2 * centres[labels] + noise * np.random.default_rng(seed).normal(size=(count, 200))
    return np.maximum(values, 0).astype("float32"), labels


@pytest.mark.parametrize("count", [60, 900])
def test_new_images_like_the_training_images_are_rarely_unlike_them(count):
    """With 60 images the training images lie nearer to their own means than new ones do: only held out ones tell."""
    known = learn_familiarity(*draw(count, seed=1, noise=4.0))
    assert 0.002 < known.is_unlike(draw(5000, seed=2, noise=4.0)[0]).mean() < 0.06


def test_images_of_another_kind_are_unlike():
    features, labels = draw(300, seed=1)
    new, kinds = draw(300, seed=2)
    known = learn_familiarity(features, labels)
    assert known.is_unlike(new[:, ::-1]).all() and known.is_unlike(new).mean() < 0.1
    without_one = learn_familiarity(features[labels < 2], labels[labels < 2])
    assert without_one.is_unlike(new[kinds == 2]).all() and without_one.is_unlike(new[kinds < 2]).mean() < 0.1


def test_the_distance_is_that_to_the_nearest_class_mean_by_cosine():
    features, labels = draw(120, seed=1)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    means = [(features / lengths)[labels == label].mean(axis=0) for label in range(3)]
    new = draw(20, seed=2)[0]
    expected = cdist(new, means, "cosine").min(axis=1)
    np.testing.assert_allclose(learn_familiarity(features, labels).distances(new), expected, rtol=1e-4)


def test_how_long_the_features_are_does_not_matter():
    """Nor how the classes are numbered; a class of one image is a class."""
    features, labels = draw(150, seed=1)
    new = draw(150, seed=2)[0]
    one, other = learn_familiarity(features, labels), learn_familiarity(1000 * features, 7 - labels)
    np.testing.assert_allclose(other.distances(10 * new), one.distances(new), rtol=1e-3, atol=1e-6)
    assert other.threshold == pytest.approx(float(one.threshold), rel=1e-3)
    assert learn_familiarity(features, np.where(np.arange(150) == 7, 3, labels)).centres.shape == (4, 200)


def test_features_that_are_all_zero_are_unlike():
    assert learn_familiarity(*draw(60, seed=1)).is_unlike(np.zeros((2, 200))).all()


def test_too_few_images_and_labels_of_others():
    features, labels = draw(60, seed=1)
    assert learn_familiarity(features[: LEAST_IMAGES - 1], labels[: LEAST_IMAGES - 1]) is None
    with pytest.raises(ValueError, match=r"`labels` of 60 integers, one per image. Received \(59,\)"):
        learn_familiarity(features, labels[1:])


def test_arrays_of_other_shapes_are_refused():
    known = vars(learn_familiarity(*draw(60, seed=1)))
    for name, value in (("centres", np.zeros(3)), ("threshold", np.zeros(3))):
        with pytest.raises(ValueError, match="does not fit together"):
            Familiarity(**known | {name: value})
