"""How often a model is right, how sure one can be of that, and which of two is right more often."""

import numpy as np
import pandas as pd
from scipy.stats import binomtest, norm

ARMS = ("majority class", "raw pixels", "from scratch", "frozen", "fine-tuned", "everything")
"""The order in which arms are shown: first those that bring nothing with them, then those of which more learns."""


def accuracy_interval(correct: int, total: int) -> tuple[float, float]:
    """Returns the 95 % interval of an accuracy as two fractions in 0..1 (Wilson 1927, doi:10.2307/2276774).

    Raises:
        ValueError: `correct` is not within 0..total, or total is 0.

    >>> low, high = accuracy_interval(95, 100)
    >>> print(f"{low:.3f} {high:.3f}")
    0.888 0.978
    """
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"Expected 0 <= correct <= total, total > 0. Received correct={correct}, total={total}.")
    interval = binomtest(int(correct), int(total)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def evaluate(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns test_accuracy with the ends of its 95 % interval (low, high) and, for probabilities, log_loss.

    Args:
        predicted: probabilities, float (images, classes), or predicted labels, int (images,).
        labels: true labels, int (images,).

    Raises:
        ValueError: the lengths differ.
    """
    if len(predicted) != len(labels):
        raise ValueError(f"Expected one label per prediction. Received {len(predicted)} and {len(labels)}.")
    correct = is_correct(predicted, labels)
    low, high = accuracy_interval(correct.sum(), len(correct))
    metrics = {"test_accuracy": float(correct.mean()), "low": low, "high": high}
    if predicted.ndim == 2:
        of_truth = predicted[np.arange(len(labels)), labels]
        metrics["log_loss"] = float(-np.log(np.clip(of_truth, 1e-7, None)).mean())
    return metrics


def is_correct(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns, image by image, whether the (most probable) predicted class is the label: bool (images,)."""
    return (predicted.argmax(axis=1) if predicted.ndim == 2 else predicted) == labels


def compare(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Returns how much more often `second` is right than `first` on the same images, and how sure that is.

    Only images that exactly one of the two gets right tell them apart. The interval is Bonett and Price's
    (2012, doi:10.3102/1076998611411915) for a difference of paired proportions.

    Args:
        first: whether each image was classified correctly, bool (images,).
        second: likewise, by the other model.

    Returns:
        difference, low, high: second minus first, with its 95 % interval, in -1..1; detectable: the smallest
        true difference that a test set of this size, with models that disagree this often, would have shown
        with a probability of 80 %; only_first, only_second: the numbers of images that tell them apart.

    Raises:
        ValueError: the lengths differ, or there is no image.
    """
    if len(first) != len(second) or len(first) == 0:
        raise ValueError(f"Expected results on the same images. Received {len(first)} and {len(second)}.")
    total = len(first)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    p, q = (only_first + 1) / (total + 2), (only_second + 1) / (total + 2)
    error = np.sqrt((p + q - (q - p) ** 2) / (total + 2))
    z = norm.ppf(0.975)
    return {
        "difference": (only_second - only_first) / total,
        "low": max(-1.0, float(q - p - z * error)),
        "high": min(1.0, float(q - p + z * error)),
        "detectable": float((z + norm.ppf(0.8)) * np.sqrt((p + q) / (total + 2))),
        "only_first": only_first,
        "only_second": only_second,
    }


def describe_comparison(comparison: dict[str, float], *, images: int) -> str:
    """Returns one plain sentence: is the fine-tuned network's difference larger than the test set can show?

    Args:
        comparison: `compare(frozen, fine_tuned)`.
        images: number of test images.
    """
    points = 100 * comparison["difference"]
    size = f"Fine-tuning changes the test accuracy by {points:+.1f} points"
    interval = f"95 % interval {100 * comparison['low']:+.1f} to {100 * comparison['high']:+.1f}"
    if comparison["low"] > 0 or comparison["high"] < 0:
        return (
            f"{size} ({interval}): more than chance in {images} test images explains. It is one split and "
            f"one seed, though: another may differ."
        )
    return (
        f"{size} ({interval}): not more than chance in {images} test images explains. A true difference of about "
        f"{100 * comparison['detectable']:.1f} points would have shown (with a probability of 80 %)."
    )


def results_table(arms: dict[str, dict]) -> pd.DataFrame:
    """Returns the arms side by side for people: accuracy with its interval, seconds, trainable weights.

    Args:
        arms: name to metrics: `evaluate`'s, with seconds and trainable_weights (count) where they are known.
    """
    rows = {
        name: {
            "test accuracy": f"{arm['test_accuracy']:.3f}",
            "95 % interval": f"{arm['low']:.3f} to {arm['high']:.3f}" if "low" in arm else "",
            "seconds": f"{arm['seconds']:.1f}" if "seconds" in arm else "",
            "trainable weights": f"{arm['trainable_weights']:,.0f}" if "trainable_weights" in arm else "",
        }
        for name, arm in arms.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def compare_networks(frozen: np.ndarray, tuned: np.ndarray, labels: np.ndarray) -> tuple[dict[str, float], str]:
    """Returns how much more often the fine-tuned network is right than the frozen one, in numbers and in a sentence.

    Args:
        frozen: its probabilities for the test images, float (images, classes).
        tuned: likewise, of the fine-tuned network.
        labels: int (images,).
    """
    comparison = compare(is_correct(frozen, labels), is_correct(tuned, labels))
    return comparison, describe_comparison(comparison, images=len(labels))
