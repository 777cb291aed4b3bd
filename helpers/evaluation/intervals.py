"""How sure one can be: of an accuracy, of a difference between two classifiers, and of a mean.

Two arms of a study are trained on the same splits with the same seeds and judged on the same test images. So there is
a table of differences, pairs x images: 1 where only the second arm is right, -1 where only the first one is, else 0.
Another study would have drawn other splits and seeds, and other test images: pairs and images are crossed random
effects. The variance of the mean difference comes from the table's analysis of variance, with Satterthwaite's degrees
of freedom (1946, doi:10.2307/3002019), corrected. Two classifiers, compared once, are a table with one pair.

A study looks twice, so the first look asks for more (group-sequential testing: O'Brien and Fleming 1979,
doi:10.2307/2530245). tests/test_verdict.py simulates both looks together.
"""

from math import sqrt
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, chi2, t

FIRST_LOOK = 4
"""Pairs after which a study may end."""

FIRST_LEVEL = 0.985
"""Of the first look's interval. It counts as many degrees of freedom as pairs less one, at most: how much trainings
vary cannot be estimated well from four."""

POWER = 0.8
"""The probability with which the minimum detectable difference would have been shown."""

DISCORDANT_IMAGES = 2
"""Lower bound on the test images that tell the arms apart: where none does, that may be chance."""

DF_CORRECTION = 0.6
"""Of Satterthwaite's degrees of freedom. With all of them, and pairs that vary about as much as the images do, up to
6 % of the intervals would miss the truth in simulation."""

DF_FLOOR = 0.8
"""Of those of the variance between pairs (the pairs less one): so many degrees of freedom, at least. Where pairs vary
much more than images do, Satterthwaite's are these, and right; the rest is for the two looks."""


class Between(NamedTuple):
    """The variance between pairs, and how many degrees of freedom it was estimated with."""

    variance: float
    degrees_of_freedom: float


def accuracy_interval(correct: int, total: int) -> tuple[float, float]:
    """Returns the 95 % interval of an accuracy as two fractions in 0..1 (Wilson 1927, doi:10.2307/2276774).

    >>> low, high = accuracy_interval(95, 100)
    >>> print(f"{low:.3f} {high:.3f}")
    0.888 0.978
    """
    interval = binomtest(int(correct), int(total)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def accuracy_over_pairs(correct: np.ndarray, *, between: Between | None = None) -> tuple[float, float, float]:
    """Returns an arm's accuracy and the ends of its 95 % interval over images and seeds, fractions in 0..1.

    `correct` is whether each test image was classified correctly, bool (pairs, images); `between`: `mean_over_pairs`.
    """
    table = np.asarray(correct, "float64")
    if len(table) == 1:
        return float(table.mean()), *accuracy_interval(table.sum(), table.size)
    mean, error, degrees_of_freedom = mean_over_pairs(table, between=between)
    half_width = t.ppf(0.975, degrees_of_freedom) * error
    return mean, float(max(0.0, mean - half_width)), float(min(1.0, mean + half_width))


def mean_over_pairs(table: np.ndarray, *, between: Between | None = None) -> tuple[float, float, float]:
    """Returns the mean of a table (pairs, images), its standard error over both, and the degrees of freedom of that.

    What an image is worth is at most about 1 (a difference of being right or not), or DISCORDANT_IMAGES means little.
    `between` is the variance between pairs, where more than this table is known of it.
    """
    variance, degrees_of_freedom = _variance_of_mean(variance_components(table), *table.shape, between)
    return float(table.mean()), float(np.sqrt(variance)), float(degrees_of_freedom)


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Returns the mean and the ends of its 95 % interval, by Student's t; NaN for the interval of one value.

    Values that are NaN are left out. Splits of the same images have much in common: the interval is about these.
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return float(values.mean()) if len(values) else np.nan, np.nan, np.nan
    mean, half_width = values.mean(), t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / sqrt(len(values))
    return float(mean), float(mean - half_width), float(mean + half_width)


def compare(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Returns how much more often `second` is right than `first` on the same images, and how sure that is.

    Both are whether each image was classified correctly, bool (images,), or how often it was, float in 0..1. Returned
    are difference, low, high and detectable (see `compare_pairs`), and on how many images the one or the other is
    better, only_first and only_second.
    """
    first, second = np.asarray(first, "float64"), np.asarray(second, "float64")
    comparison = compare_pairs(first[None], second[None])
    counts = {"only_first": int((first > second).sum()), "only_second": int((second > first).sum())}
    return {name: comparison[name] for name in ("difference", "low", "high", "detectable")} | counts


def compare_pairs(
    first: np.ndarray, second: np.ndarray, *, margin: float = 0.01, between: Between | None = None
) -> dict:
    """Returns how much more often the second arm is right, how sure that is, and what this study could have shown.

    Args:
        first: whether each test image was classified correctly, bool (pairs, images): a row for each split and seed.
        second: likewise, by the other arm, from the same splits and seeds; a ValueError for another shape.
        margin: the difference below which it does not matter, as a fraction, set before the results are known.
        between: see `mean_over_pairs`.

    Returns:
        difference: second minus first, in -1..1; low, high: its 95 % interval over images and seeds; error: its
        standard error; detectable: the minimum difference that such a study would have shown with 80 % power; better:
        the probability that the second arm is better (flat prior); variances: the table's own, of images, of pairs
        and of the rest; pairs, images: counts; differences: one for each pair; shown: "second", "first" or "" (the
        interval's position to 0); equivalent: whether the interval lies within the margin; clear: whether shown or
        equivalent also hold by the first look's wider interval; margin.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or first.ndim != 2 or not len(first) or first.shape[1] < min(len(first), 2):
        raise ValueError(
            f"Expected two tables (pairs, images) about the same pairs and images. Received {first.shape} and "
            f"{second.shape}."
        )
    table = second.astype("float64") - first
    (pairs, images), difference = table.shape, float(table.mean())
    components = variance_components(table)
    variance, degrees_of_freedom = _variance_of_mean(components, pairs, images, between)
    error = float(np.sqrt(variance))
    half_width = t.ppf(0.975, degrees_of_freedom) * error
    low, high = max(-1.0, difference - half_width), min(1.0, difference + half_width)
    wide = t.ppf((1 + FIRST_LEVEL) / 2, max(min(degrees_of_freedom, pairs - 1), 1)) * error
    return {
        "difference": difference,
        "low": float(low),
        "high": float(high),
        "error": error,
        "detectable": float(error * _detectable_errors(degrees_of_freedom)),
        "better": float(t.cdf(difference / error, degrees_of_freedom)),
        "variances": components,
        "pairs": pairs,
        "images": images,
        "differences": table.mean(axis=1).tolist(),
        "shown": "second" if low > 0 else "first" if high < 0 else "",
        "equivalent": bool(-margin < low and high < margin),
        "clear": bool(abs(difference) > wide or abs(difference) + wide < margin),
        "margin": margin,
    }


def variance_components(table: np.ndarray) -> dict[str, float]:
    """Returns the variances between images, between pairs, and of the rest, from the table's mean squares."""
    pairs, images = table.shape
    by_pair, by_image, mean = table.mean(axis=1), table.mean(axis=0), table.mean()
    if pairs == 1:  # nothing tells an image's own variation from the rest
        return {"images": float(by_image.var(ddof=1)) if images > 1 else 0.0, "pairs": 0.0, "rest": 0.0}
    # Mean squares of a two-way table without replication: E[MS of pairs] = residual + images * (variance of pairs).
    of_pairs, of_images = images * by_pair.var(ddof=1), pairs * by_image.var(ddof=1)
    residuals = table - by_pair[:, None] - by_image[None] + mean
    residual = (residuals**2).sum() / ((pairs - 1) * (images - 1))
    # Solved for the variances. They may come out below 0, where little lies between images or pairs.
    return {
        "images": float((of_images - residual) / pairs),
        "pairs": float((of_pairs - residual) / images),
        "rest": float(residual),
    }


def _variance_of_mean(components: dict, pairs: int, images: int, between: Between | None) -> tuple[float, float]:
    """Returns the variance of the mean of a table of this size, and its degrees of freedom."""
    between, residual = between or Between(components["pairs"], pairs - 1), components["rest"]
    # The mean squares again, bounded below.
    of_images = max(pairs * components["images"] + residual, pairs * DISCORDANT_IMAGES / images)
    of_pairs = max(images * between.variance + residual, 0.0)
    # Var(mean) = var(images) / images + var(pairs) / pairs + residual / (pairs * images), times (pairs * images).
    total = max(of_images + of_pairs - residual, residual)
    # Satterthwaite: each mean square's variance is 2 * square**2 / its degrees of freedom, and these add up.
    spread = of_images**2 / max(images - 1, 1)
    if pairs > 1:
        spread += of_pairs**2 / between.degrees_of_freedom
        spread += residual**2 / ((images - 1) * (pairs - 1))
    degrees_of_freedom = max(DF_CORRECTION * total**2 / spread, DF_FLOOR * between.degrees_of_freedom, 1.0)
    return total / (pairs * images), degrees_of_freedom


def _detectable_errors(degrees_of_freedom: float) -> float:
    """Returns the true difference, in standard errors, that is shown with the probability `POWER`."""
    # An error that is estimated with few degrees of freedom is too small more often than too large.
    own = degrees_of_freedom / DF_FLOOR
    median = np.sqrt(own / chi2.median(own))
    return median * (t.ppf(0.975, degrees_of_freedom) + t.ppf(POWER, degrees_of_freedom))
