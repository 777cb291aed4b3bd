"""Is an image like those that a classifier learned from?

A classifier gives each image to one of its classes, a photo of a cat to "ants" or to "bees", and is often sure of it.
But the features in front of its head lie elsewhere than those of its training images.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.model_selection import KFold

from helpers.data import StoredArray

DIMENSIONS = 64
"""Directions in feature space that are looked at, at most: those in which the training images differ most."""

SHARE = 0.99
"""The share of images like the training images that is to be taken for such."""

LEAST_IMAGES = 20
"""Training images, below which nothing is said: the threshold would be a matter of chance."""


@dataclass(frozen=True)
class Familiarity:
    """What the features of a classifier's training images are like.

    Attributes:
        mean: of the features, float32 (features,).
        projection: to a space in which the classes spread by 1 in every direction, float32 (features, dimensions).
        centres: of the classes in that space, float32 (classes, dimensions).
        threshold: an image farther from every centre is unlike the training images, float32 ().
    """

    mean: np.ndarray
    projection: np.ndarray
    centres: np.ndarray
    threshold: np.ndarray

    def __post_init__(self):
        """Raises ValueError where the shapes do not fit together."""
        features, dimensions = np.shape(self.projection)
        expected = ((features,), (len(self.centres), dimensions), ())
        if tuple(map(np.shape, (self.mean, self.centres, self.threshold))) != expected:
            raise ValueError("what it knows of its training images does not fit together")

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Returns each image's Mahalanobis distance to the nearest class, float64 (images,).

        Args:
            features: float (images, features), in front of the classifier's head (`features_tensor`).
        """
        return cdist((features - self.mean) @ self.projection, self.centres).min(axis=1)

    def is_unlike(self, features: np.ndarray) -> np.ndarray:
        """Returns whether each image is unlike the training images, bool (images,); see `distances`."""
        return self.distances(features) > self.threshold


def learn_familiarity(features: np.ndarray | StoredArray, labels: np.ndarray) -> Familiarity | None:
    """Returns what the training images of a classifier are like, to tell other images from them.

    Args:
        features: of the training images, float (images, features), in front of the classifier's head.
        labels: int (images,).

    Returns:
        A `Familiarity` whose threshold 99 % of these images do not exceed when they are held out, in five folds.
        Where the network itself was fine-tuned on them, its features know them nevertheless, so that more than 1 % of
        new images like them exceed it. None for fewer than 20 images.

    Raises:
        ValueError: the labels are not one for each image.
    """
    features, labels = np.asarray(features), np.asarray(labels)
    if labels.shape != (len(features),):
        raise ValueError(f"Expected `labels` of {len(features)} integers, one per image. Received {labels.shape}.")
    if len(features) < LEAST_IMAGES:
        return None
    distances = np.empty(len(features))
    for fit, held_out in KFold(5, shuffle=True, random_state=0).split(features):
        distances[held_out] = _fit(features[fit], labels[fit]).distances(features[held_out])
    threshold = np.quantile(distances, SHARE, method="higher")
    return replace(_fit(features, labels), threshold=np.float32(threshold))


def _fit(features: np.ndarray, labels: np.ndarray) -> Familiarity:
    dimensions = min(DIMENSIONS, features.shape[1], len(features) - 1)
    directions = PCA(dimensions, random_state=0).fit(features)
    projected = directions.transform(features).astype("float64")
    classes, own = np.unique(labels, return_inverse=True)
    centres = np.stack([projected[own == number].mean(axis=0) for number in range(len(classes))])
    covariance = LedoitWolf(assume_centered=True).fit(projected - centres[own]).covariance_
    variances, axes = np.linalg.eigh(covariance)
    scale = axes / np.sqrt(np.maximum(variances, 1e-12 * max(variances.max(), 1e-12)))
    return Familiarity(
        mean=directions.mean_.astype("float32"),
        projection=(directions.components_.T @ scale).astype("float32"),
        centres=(centres @ scale).astype("float32"),
        threshold=np.float32(np.inf),
    )
