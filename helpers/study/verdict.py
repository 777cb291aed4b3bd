"""Freeze or fine-tune: the paired difference, how sure it is, and what follows from it.

Both arms are trained on the same splits with the same seeds and judged on the same test images, so that there is a
table of differences, pairs x images: 1 where only the second arm is right, -1 where only the first one is, else 0.
Another study would have drawn other splits and seeds, and other test images. Pairs and images are therefore crossed
random effects, and the difference's variance is estimated from the table's analysis of variance; its degrees of
freedom are three quarters of Satterthwaite's (1946, doi:10.2307/3002019), see `_variance`.
"""

from bisect import bisect_left

import numpy as np
from scipy.stats import chi2, t

FEWEST_PAIRS = 6
"""With fewer, the sign-flip test of paired differences cannot reach p < 0.05."""

CHANCE = 0.8
"""The probability with which the smallest detectable difference would have been shown."""

FEWEST_IMAGES = 2
"""So many test images, at least, are taken to tell the arms apart: Bonett and Price (2012), too, add two."""

CAUTION = 0.75
"""Share of Satterthwaite's degrees of freedom that is counted on."""

_MOST = {"pairs": 100, "images": 100_000}
"""How far `needed` looks."""


def compare_pairs(first: np.ndarray, second: np.ndarray, *, margin: float = 0.01) -> dict:
    """Returns how much more often the second arm is right, how sure that is, and what this study could have shown.

    Args:
        first: whether each test image was classified correctly, bool (pairs, images): a row for each split and seed.
        second: likewise, by the other arm, from the same splits and seeds.
        margin: the difference below which it does not matter, as a fraction, set before the results are known.

    Returns:
        difference: second minus first, in -1..1; low, high: its 95 % interval over images and seeds; error: its
        standard error; detectable: the smallest true difference that a study of this size would have shown with a
        probability of 80 %; better: the probability that the second arm is better (the difference's t distribution;
        nothing known beforehand); variances: those of images, of pairs and of the rest; pairs, images: counts;
        differences: one for each pair; shown: "second", "first" or "" (the interval's position to 0); equivalent:
        whether the whole interval lies within the margin; margin.

    Raises:
        ValueError: the shapes differ, or there are fewer than two pairs or two images.
    """
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape or first.ndim != 2 or min(first.shape) < 2:
        raise ValueError(
            f"Expected two tables (pairs, images) of one shape, of at least 2 x 2. Received {first.shape} and "
            f"{second.shape}."
        )
    table = second.astype("float64") - first
    parts = _analyse(table)
    pairs, images = table.shape
    difference, (variance, freedom) = float(table.mean()), _variance(parts, pairs, images)
    error = float(np.sqrt(variance))
    reach = t.ppf(0.975, freedom) * error
    low, high = max(-1.0, difference - reach), min(1.0, difference + reach)
    return {
        "difference": difference,
        "low": float(low),
        "high": float(high),
        "error": error,
        "detectable": float(error * _factor(freedom)),
        "better": float(t.cdf(difference / error, freedom)),
        "variances": parts,
        "pairs": pairs,
        "images": images,
        "differences": table.mean(axis=1).tolist(),
        "shown": "second" if low > 0 else "first" if high < 0 else "",
        "equivalent": bool(-margin < low and high < margin),
        "margin": margin,
    }


def decide(comparison: dict) -> str:
    """Returns the verdict on `compare_pairs(frozen, fine_tuned)`: "fine-tune", "freeze" or "no difference shown".

    Fine-tuning has to be shown to be better, and not to be better by less than the margin. Where nothing is
    shown, one freezes, which is cheaper.
    """
    if comparison["shown"] == "second" and not comparison["equivalent"]:
        return "fine-tune"
    return "freeze" if comparison["shown"] == "first" else "no difference shown"


def needed(comparison: dict, *, difference: float) -> dict:
    """Returns how many pairs, or else how many test images, would show a true difference with 80 % probability.

    Args:
        comparison: from `compare_pairs`.
        difference: to be shown, as a fraction.

    Returns:
        difference; pairs (with as many images as there are) and images (with as many pairs): at least as many as
        this study had, None where 100 pairs or 100,000 images would not be enough.
    """
    variances = {name: max(value, 0.0) for name, value in comparison["variances"].items()}
    counts = {name: comparison[name] for name in _MOST}

    def enough(**more: int) -> bool:
        variance, freedom = _variance(variances, **(counts | more))
        return np.sqrt(variance) * _factor(freedom) <= difference

    found = {"difference": difference}
    for name, most in _MOST.items():
        sizes = range(counts[name], max(most, counts[name]) + 1)
        first = bisect_left(sizes, True, key=lambda size, name=name: bool(enough(**{name: size})))
        found[name] = sizes[first] if first < len(sizes) else None
    return found


def describe_verdict(answer: dict) -> str:
    """Returns the answer in a paragraph of plain words.

    Args:
        answer: what `verdict.json` holds, without the paragraph.
    """
    comparison, arms = answer["comparison"], answer["arms"]
    stopped = f" The study is not complete: {answer['stopped']}." if answer["stopped"] else ""
    if not comparison:
        return f"There is no verdict: fewer than two splits have results of both arms.{stopped}"
    tuned = arms["fine-tuned"]
    points = {name: f"{100 * comparison[name]:+z.1f}" for name in ("difference", "low", "high")}
    basis = f"{comparison['images']:,} test images that chose nothing, over {comparison['pairs']} splits and seeds"
    gained = f"{points['difference'][1:]} points {'more' if comparison['difference'] > 0 else 'fewer'} right than"
    if points["difference"] == "+0.0":
        gained = "as many right as"
    size = (
        f"Of {basis}, the network that is fine-tuned gets {gained} the frozen one (95 % interval {points['low']} to "
        f"{points['high']}); the probability that it is better at all is {_percent(comparison['better'])}."
    )
    costs = " and ".join(
        f"{arms[name]['seconds']:.1f} s with {arms[name]['trainable_weights']:,.0f} trainable weights ({name})"
        for name in ("frozen", "fine-tuned")
    )
    cost = f" A training takes {costs}."
    margin, detectable = 100 * comparison["margin"], 100 * comparison["detectable"]
    if answer["verdict"] == "fine-tune":
        first = f"Fine-tune, from {tuned['stage']} on, at a learning rate of {tuned['learning_rate']:g}."
        return f"{first} {size}{cost}{stopped}"
    if answer["verdict"] == "freeze":
        return f"Freeze. {size}{cost}{stopped}"
    if comparison["equivalent"]:
        first = (
            f"No difference that would matter ({margin:g} {'point' if margin == 1 else 'points'} or more), so freeze,"
        )
        return f"{first} which is cheaper. {size}{cost}{stopped}"
    first = "No difference is shown, so freeze, which is cheaper."
    shown = f" A true difference of about {detectable:.1f} points would have been shown (with a probability of 80 %)."
    return f"{first} {size}{shown}{_more(answer)}{cost}{stopped}"


def _more(answer: dict) -> str:
    """Returns a sentence on how much more would settle it."""
    enough, comparison = answer["needed"], answer["comparison"]
    ways = []
    if enough["pairs"] and enough["pairs"] > comparison["pairs"]:
        ways.append(f"about {enough['pairs']} splits and seeds")
    if enough["images"] and enough["images"] > comparison["images"]:
        ways.append(f"about {enough['images']:,} test images")
    size = f"a difference of {100 * enough['difference']:.1f} points"
    if None not in enough.values() and not ways:
        return ""  # this study was large enough, and did not show it
    if not ways:
        return f" To show {size}, more test images and more splits would both be needed."
    return f" To show {size}, it would take {' or '.join(ways)}."


def _percent(probability: float) -> str:
    if probability > 0.999:
        return "over 99.9 %"
    return "under 0.1 %" if probability < 0.001 else f"{100 * probability:.1f} %"


def accuracy_over_pairs(correct: np.ndarray) -> tuple[float, float, float]:
    """Returns an arm's accuracy and the ends of its 95 % interval over images and seeds, fractions in 0..1.

    Args:
        correct: whether each test image was classified correctly, bool (pairs, images).
    """
    table = np.asarray(correct, "float64")
    variance, freedom = _variance(_analyse(table), *table.shape)
    reach = t.ppf(0.975, freedom) * np.sqrt(variance)
    mean = float(table.mean())
    return mean, float(max(0.0, mean - reach)), float(min(1.0, mean + reach))


def _analyse(table: np.ndarray) -> dict[str, float]:
    """Returns the variances between images, between pairs, and of the rest, from the table's mean squares.

    The first two may come out below 0, where little lies between images or pairs.
    """
    pairs, images = table.shape
    by_pair, by_image, mean = table.mean(axis=1), table.mean(axis=0), table.mean()
    of_pairs, of_images = images * by_pair.var(ddof=1), pairs * by_image.var(ddof=1)
    rest = table - by_pair[:, None] - by_image[None] + mean
    of_rest = (rest**2).sum() / ((pairs - 1) * (images - 1))
    return {
        "images": float((of_images - of_rest) / pairs),
        "pairs": float((of_pairs - of_rest) / images),
        "rest": float(of_rest),
    }


def _variance(parts: dict, pairs: int, images: int) -> tuple[float, float]:
    """Returns the variance of the mean of a table of this size, and its degrees of freedom.

    The latter are three quarters of Satterthwaite's: with his, and six pairs that vary about as much as the images
    do, up to 6 % of the intervals would miss the truth in simulation.
    """
    of_rest = parts["rest"]
    # At least as if two images told the arms apart: where none does, that may be chance.
    of_images = max(pairs * parts["images"] + of_rest, pairs * FEWEST_IMAGES / images)
    of_pairs = max(images * parts["pairs"] + of_rest, 0.0)
    total = max(of_images + of_pairs - of_rest, of_rest)
    spread = of_images**2 / (images - 1) + of_pairs**2 / (pairs - 1) + of_rest**2 / ((images - 1) * (pairs - 1))
    return total / (pairs * images), max(CAUTION * total**2 / spread, 1.0)


def _factor(freedom: float) -> float:
    """Returns the true difference, in standard errors, that an interval excludes 0 at with 80 % probability."""
    # An error that is estimated with few degrees of freedom is too small more often than too large.
    median = np.sqrt(freedom / CAUTION / chi2.median(freedom / CAUTION))
    return median * (t.ppf(0.975, freedom) + t.ppf(CHANCE, freedom))
