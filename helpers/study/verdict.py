"""Freeze or fine-tune: the paired difference, how sure it is, and what follows from it.

Both arms are trained on the same splits with the same seeds and judged on the same test images, so that there is a
table of differences, pairs x images: 1 where only the second arm is right, -1 where only the first one is, else 0.
Another study would have drawn other splits and seeds, and other test images. Pairs and images are therefore crossed
random effects, and the difference's variance is estimated from the table's analysis of variance; its degrees of
freedom are Satterthwaite's (1946, doi:10.2307/3002019), reduced, see `_variance`.

A study looks twice: after a few pairs, where it ends if the answer is clear, and when all planned pairs are done. Two
looks are two chances to be wrong, so the first one asks for more (group-sequential testing: O'Brien and Fleming 1979,
doi:10.2307/2530245). tests/test_verdict.py simulates both looks together.
"""

import numpy as np
from scipy.stats import chi2, t

FIRST_LOOK = 4
"""Pairs after which a study may end."""

FIRST_LEVEL = 0.985
"""Of the first look's interval. It counts as many degrees of freedom as pairs less one, at most: how much trainings
vary cannot be estimated well from four."""

POWER = 0.8
"""The probability with which the smallest detectable difference would have been shown."""

FEWEST_IMAGES = 2
"""So many test images, at least, are taken to tell the arms apart: Bonett and Price (2012), too, add two."""

CAUTION, FLOOR = 0.6, 0.8
"""Shares of Satterthwaite's degrees of freedom, and of the pairs less one, that are counted on at least."""


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
        whether the whole interval lies within the margin; clear: whether both or one of them also hold by the first
        look's wider interval, so that a study may end there; margin.

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
    wide = t.ppf((1 + FIRST_LEVEL) / 2, min(freedom, pairs - 1)) * error
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
        "clear": bool(abs(difference) > wide or abs(difference) + wide < margin),
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


def choose_arm(comparison: dict) -> str:
    """Returns which network to hand over: "frozen" or "fine-tuned".

    The one that the verdict names. Where no difference is shown, it is the frozen one, which is cheaper, unless
    fine-tuning did better by more than the margin: then that is the better guess, and its training is paid for.

    Args:
        comparison: `compare_pairs(frozen, fine_tuned)`; empty without results.
    """
    if not comparison:
        return "frozen"
    likely = not comparison["shown"] and comparison["difference"] > comparison["margin"]
    return "fine-tuned" if likely or decide(comparison) == "fine-tune" else "frozen"


def describe_verdict(answer: dict) -> dict[str, str]:
    """Returns the answer in plain words: headline, the recommendation in a sentence, and explanation, a paragraph.

    Args:
        answer: what `verdict.json` holds, without these two.
    """
    comparison, arms = answer["comparison"], answer["arms"]
    stopped = f" The study is not complete: {answer['stopped']}." if answer["stopped"] else ""
    if not comparison:
        headline = "No verdict: fewer than two splits have results of both arms."
        return {"headline": headline, "explanation": stopped.strip() or "Run the notebook again to complete it."}
    frozen, tuned = arms["frozen"], arms["fine-tuned"]
    points = {name: 100 * comparison[name] for name in ("difference", "low", "high", "margin", "detectable")}
    times = tuned["seconds"] / max(frozen["seconds"], 1e-9)
    longer = f"takes {times:.0f} times as long" if times >= 1.5 else "takes about as long"
    between = f"95 % interval {points['low']:+z.1f} to {points['high']:+z.1f} points"
    if answer["verdict"] == "fine-tune":
        headline = (
            f"Fine-tune: {_describe_layers(tuned)}, unfreeze from {tuned['stage']}, learning rate "
            f"{tuned['learning_rate']:g}: {points['difference']:.1f} points more accurate (95 % interval "
            f"{points['low']:.1f} to {points['high']:.1f})."
        )
    elif answer["verdict"] == "freeze":
        headline = (
            f"Freeze: fine-tuning is {-points['difference']:.1f} points less accurate (95 % interval "
            f"{-points['high']:.1f} to {-points['low']:.1f}), and {longer}."
        )
    elif answer["chosen"] == "fine-tuned":
        headline = (
            f"Not decided: fine-tuning looks {points['difference']:.1f} points more accurate, which may be chance "
            f"({between}). Freeze if time matters more: fine-tuning {longer}."
        )
    elif comparison["equivalent"]:
        headline = f"Freeze: the difference is too small to matter ({between}), and fine-tuning {longer}."
    else:
        headline = f"Freeze: fine-tuning is not shown to be better here ({between}), and {longer}."
    accuracy = {name: f"{100 * arm['test_accuracy']:.1f} %" for name, arm in arms.items()}
    sentences = [
        f"On {comparison['images']:,} held-out test images (used for no decision), the frozen network, "
        f"{_describe_layers(frozen, past=True)}, has an accuracy of {accuracy['frozen']}, and the fine-tuned one, "
        f"{_describe_layers(tuned, past=True)} and unfrozen from {tuned['stage']}, of {accuracy['fine-tuned']}: "
        f"{points['difference']:+z.1f} points on average over {comparison['pairs']} splits and seeds ({between}).",
        f"The probability that fine-tuning is better at all is {_percent(comparison['better'])}.",
    ]
    if answer["verdict"] == "no difference shown" and not comparison["equivalent"]:
        detectable = f"{points['detectable']:.1f} points or more"
        sentences.append(f"Only a difference of about {detectable} would likely have been shown.")
    sentences.append(
        "A training takes "
        + " and ".join(
            f"{arm['seconds']:.1f} s with {arm['trainable_weights']:,.0f} trainable weights ({name})"
            for name, arm in (("frozen", frozen), ("fine-tuned", tuned))
        )
        + "."
    )
    if answer["chosen"] == "fine-tuned":
        taken = f"{_describe_layers(tuned)}, unfreeze from {tuned['stage']}, learning rate {tuned['learning_rate']:g}"
        sentences.append(f"The classifier that is handed over is fine-tuned: {taken}.")
    else:
        sentences.append("The classifier that is handed over is frozen.")
    return {"headline": headline, "explanation": " ".join(sentences) + stopped}


def _describe_layers(arm: dict, *, past: bool = False) -> str:
    """Returns how many of the network's layers an arm takes."""
    if arm.get("all_layers", True):
        return "with all layers taken" if past else "take all layers"
    return f"cut before {arm['cut']}" if past else f"cut the network before {arm['cut']}"


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

    The latter are six tenths of Satterthwaite's: with his, and pairs that vary about as much as the images do, up to
    6 % of the intervals would miss the truth in simulation. Where pairs vary much more than images do, his are the
    pairs less one, and right: so four fifths of these remain at least, the rest being for the two looks.
    """
    of_rest = parts["rest"]
    # At least as if two images told the arms apart: where none does, that may be chance.
    of_images = max(pairs * parts["images"] + of_rest, pairs * FEWEST_IMAGES / images)
    of_pairs = max(images * parts["pairs"] + of_rest, 0.0)
    total = max(of_images + of_pairs - of_rest, of_rest)
    spread = of_images**2 / (images - 1) + of_pairs**2 / (pairs - 1) + of_rest**2 / ((images - 1) * (pairs - 1))
    return total / (pairs * images), max(CAUTION * total**2 / spread, FLOOR * (pairs - 1), 1.0)


def _factor(freedom: float) -> float:
    """Returns the true difference, in standard errors, that an interval excludes 0 at with 80 % probability."""
    # An error that is estimated with few degrees of freedom is too small more often than too large.
    median = np.sqrt(freedom / FLOOR / chi2.median(freedom / FLOOR))
    return median * (t.ppf(0.975, freedom) + t.ppf(POWER, freedom))
