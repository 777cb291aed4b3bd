"""Accuracy over the number of labels: what twice as many would bring, and from how many on fine-tuning pays off.

The error, 1 - accuracy, falls about as a power of the number of training images (Cortes et al. 1993, NIPS 6; Hestness
et al. 2017, arXiv 1712.00409): each doubling takes the same share of it away. On photos it levels off, as in the
survey of Viering and Loog (2022, arXiv 2103.10948). So the law's exponent is damped beyond what was measured, like a
trend in forecasting (Gardner and McKenzie 1985, doi:10.1287/mnsc.31.10.1237).
"""

import numpy as np
from scipy.stats import norm, t

from helpers.evaluation.intervals import Between, mean_over_pairs, variance_components

LEVEL = 0.9
"""Of the intervals of what is extrapolated."""

DAMPING = 0.7
"""Of the exponent, beyond the last point. It was chosen with frozen features of photos and digits, without their test
images: the table is in helpers/study/README.md."""

RULE_ERROR = 0.12
"""By how much a doubling may miss that: the standard deviation of the logarithm of the error."""


def variance_between_pairs(labels: np.ndarray, tables: np.ndarray) -> list[Between]:
    """Returns for each number of labels the variance between pairs, from all of them together.

    Two or three pairs alone hardly tell how much pairs vary: by Student's t, an interval with one degree of freedom
    is more than three times as wide as one with 2.5. The share of the variance that lies between pairs is taken to
    fall as 1 / labels, since most of it comes from which images were drawn. tests/test_labels.py simulates what that
    costs.

    Args:
        labels: counts of training images (levels,), of two levels or more.
        tables: what each test image is worth, (levels, pairs, images), in two pairs or more: see `mean_over_pairs`.
    """
    tables = np.asarray(tables, "float64")
    expected = tables.var(axis=(1, 2)) * max(labels) / np.asarray(labels)
    found = sum(variance_components(table)["pairs"] for table in tables)
    # Not those of all levels: the smaller sets are parts of the larger ones, and one is spent on the assumption.
    degrees_of_freedom = (len(tables) + 1) / 2 * (tables.shape[1] - 1)
    return [Between(found * one / max(expected.sum(), 1e-12), degrees_of_freedom) for one in expected]


def extrapolate(
    labels: np.ndarray, correct: np.ndarray, *, factor: float = 2.0, accuracy: float | None = None
) -> dict[str, float]:
    """Returns the accuracy that is expected with `factor` times the labels, by a damped power law.

    Args:
        labels: counts of training images (levels,), ascending, of two levels or more.
        correct: whether each test image was classified correctly, bool (levels, pairs, images).
        accuracy: with all labels, if it is known from more pairs than these.

    Returns:
        accuracy, in 0..1, with the ends of its 90 % interval, accuracy_low and accuracy_high; and the gain, which is
        this less the accuracy with all labels, with gain_low and gain_high. The intervals cover images and seeds
        (`compare_pairs`), and the law's own error.
    """
    wrong = 1.0 - np.asarray(correct, "float64")
    least = 0.5 / wrong.shape[2]  # an error of 0 has no logarithm
    now, errors = float(wrong[-1].mean()), np.maximum(wrong.mean(axis=(1, 2)), least)
    now = now if accuracy is None else 1.0 - accuracy
    places = np.log2(labels) - np.log2(labels).mean()
    slope = places / (places**2).sum()  # of least squares: what each point's logarithm counts for the exponent
    weights = DAMPING * np.log2(factor) * slope
    falls = min(float(np.exp(weights @ np.log(errors))), 1.0)  # worse with more labels: not expected to go on
    expected = now * falls
    weights[-1] += 1  # continued from what all labels give
    # d expected / d errors: what each image adds to the expected error, so that images and pairs vary as they do
    scale = max(expected, least)
    table = np.tensordot(scale * weights / errors, wrong, axes=1)
    own = norm.ppf((1 + LEVEL) / 2) * scale * RULE_ERROR * np.log2(factor)
    result = {}
    for name, values, middle in (("accuracy", -table, 1 - expected), ("gain", wrong[-1] - table, now - expected)):
        _, error, degrees_of_freedom = mean_over_pairs(values)
        half_width = float(np.hypot(t.ppf((1 + LEVEL) / 2, degrees_of_freedom) * error, own))
        # no accuracy is below 0 or above 1
        low, high = (-1.0, now) if name == "gain" else (0.0, 1.0)
        result |= {name: middle, f"{name}_low": max(middle - half_width, low)}
        result[f"{name}_high"] = min(middle + half_width, high)
    return {name: float(value) for name, value in result.items()}


def find_crossing(labels: np.ndarray, comparisons: list[dict], *, margin: float) -> dict[str, float | None]:
    """Returns from how many labels on fine-tuning is more than the margin better, up to all of them.

    Between the counts, differences and their intervals are interpolated over the logarithm of the count.

    Args:
        labels: counts of training images, ascending.
        comparisons: for each of them `compare_pairs` of the frozen and the fine-tuned arm.
        margin: the difference that does not matter, a fraction.

    Returns:
        labels, and the ends of its 95 % interval, low and high: those counts at which the difference's interval holds
        the margin. None if that is not within these labels. The smallest count stands for it and all below.
    """
    found = {}
    for name, key in (("labels", "difference"), ("low", "high"), ("high", "low")):
        above = np.array([comparison[key] for comparison in comparisons]) - margin
        found[name] = _last_rise(labels, above)
    return found


def _last_rise(labels: np.ndarray, values: np.ndarray) -> float | None:
    """Returns the count from which on the interpolated values stay above 0; None if the last one is not."""
    below = np.flatnonzero(values <= 0)
    if not len(below):
        return float(labels[0])
    if (before := below[-1]) == len(values) - 1:
        return None
    share = -values[before] / (values[before + 1] - values[before])
    return float(labels[before] * (labels[before + 1] / labels[before]) ** share)
