"""How often a model is right, two models in a sentence, and the arms side by side."""

import numpy as np
import pandas as pd

from helpers.evaluation.intervals import accuracy_interval, compare

ARMS = ("majority class", "raw pixels", "from scratch", "frozen", "fine-tuned", "everything")
"""The order in which arms are shown: first those that bring nothing with them, then those of which more learns."""


def evaluate(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns test_accuracy with the ends of its 95 % interval (low, high) and, for probabilities, log_loss.

    Args:
        predicted: probabilities, float (images, classes), or predicted labels, int (images,).
        labels: true labels, int (images,).
    """
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
