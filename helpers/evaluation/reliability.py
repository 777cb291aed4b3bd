"""Whether a network is right as often as it says: reliability, calibration error, temperature scaling."""

import numpy as np
import pandas as pd
from scipy.special import softmax

from helpers.evaluation.classes import check_predictions
from helpers.evaluation.intervals import accuracy_interval, mean_interval
from helpers.evaluation.metrics import evaluate

_DRAWS = 1000
"""By which the lower end of an interval is found."""


def reliability_table(probabilities, labels, *, bins: int = 10) -> pd.DataFrame:
    """Returns how often the network is right where it is about equally confident, a row per bin.

    The bins hold equal numbers of images (one more or less). With bins of equal width (Guo et al. 2017, arXiv
    1706.04599) most images of a network that is often sure would be in the last one, and the others would show
    chance (Nixon et al. 2019, arXiv 1904.01685).

    Args:
        probabilities: float (images, classes).
        labels: int (images,).
        bins: at most; never more than there are images.

    Returns:
        A DataFrame, the least confident bin first: confidence (mean probability of the predicted class, 0..1),
        accuracy (0..1) with its 95 % interval, low and high (`accuracy_interval`), and images (count).

    Raises:
        ValueError: the arguments do not fit each other, or there is no bin.
    """
    confidence, correct = _sort_by_confidence(probabilities, labels)
    starts = _find_starts(len(correct), bins)
    images = np.diff([*starts, len(correct)])
    right = np.add.reduceat(correct, starts)
    table = pd.DataFrame({"confidence": np.add.reduceat(confidence, starts) / images, "accuracy": right / images})
    intervals = [accuracy_interval(int(hits), int(total)) for hits, total in zip(right, images, strict=True)]
    table[["low", "high"]] = intervals
    return table.assign(images=images)


def calibration_error(probabilities, labels, *, bins: int = 10, seed: int = 0) -> dict[str, float]:
    """Returns the expected calibration error (Guo et al. 2017, arXiv 1706.04599), and how sure that is.

    It is the distance between confidence and accuracy, averaged over the bins of `reliability_table`. Even a
    network that is right exactly as often as it says has an error above 0 on a few hundred images, by chance alone.
    So only the upper end is `mean_interval`'s over images, which errs on the safe side. The lower end is the smallest
    share of the bins' distances that, were it true, would show an error as large as this one in 2.5 % of draws.

    Args:
        probabilities: float (images, classes).
        labels: int (images,).
        bins: of equal numbers of images.
        seed: of the draws.

    Returns:
        error, low, high: with its 95 % interval, 0..1; chance: the error that a network that is as confident and
        right as often as it says would show on average, on so many images.

    Raises:
        ValueError: the arguments do not fit each other, or there is no bin.
    """
    confidence, correct = _sort_by_confidence(probabilities, labels)
    total, starts, rng = len(correct), _find_starts(len(correct), bins), np.random.default_rng(seed)
    images = np.diff([*starts, total])
    said, was = (np.add.reduceat(values, starts) / images for values in (confidence, correct))

    def errors_if(share: float) -> np.ndarray:
        right = rng.binomial(images, np.clip(said + share * (was - said), 0, 1), size=(_DRAWS, len(images)))
        return np.abs(right - images * said).sum(axis=1) / total

    error = float(np.abs(was - said) @ images / total)
    # Each image counts its own distance, with the sign of its bin's: their mean is the error.
    high = mean_interval(np.repeat(np.sign(said - was), images) * (confidence - correct))[2]
    low = next(share for share in np.linspace(0, 1, 41) if (errors_if(share) >= error).mean() > 0.025) * error
    # Where all images are right, they do not vary, and the accuracy's interval still has a width.
    least = confidence.mean() - accuracy_interval(int(correct.sum()), total)[0]
    high = np.nanmax([high, least, error])
    return {"error": error, "low": float(low), "high": float(min(high, 1)), "chance": float(errors_if(0.0).mean())}


def temper(probabilities, temperature: float) -> np.ndarray:
    """Returns the probabilities with their logits divided by a temperature, float (images, classes).

    The order of the classes stays, and so does the accuracy: above 1 the network is less sure.

    Args:
        probabilities: float (images, classes).
        temperature: above 0, from `helpers.training.judge` on validation images.

    Raises:
        ValueError: the temperature is not above 0.

    >>> temper(np.array([[0.8, 0.2]]), 2.0).round(3)
    array([[0.667, 0.333]])
    """
    if not temperature > 0:
        raise ValueError(f"Expected `temperature` above 0. Received {temperature}.")
    # as `judge` reads them: a probability that was rounded to 0 has a logit, too
    return softmax(np.log(np.clip(np.asarray(probabilities), 1e-37, 1)) / temperature, axis=1)


def calibration_table(probabilities: dict, labels: dict, *, bins: int = 10, seed: int = 0) -> pd.DataFrame:
    """Returns how well test images' probabilities are calibrated, before and after temperature scaling.

    The temperature, one number of at least 1, is the one with the lowest log-loss on the validation images: those
    that are judged choose nothing. `temper` applies it.

    Args:
        probabilities: "validation" and "test" to float (images, classes).
        labels: the same parts to int (images,).
        bins: of `calibration_error`.
        seed: of its draws.

    Returns:
        A DataFrame with the row "before" and, unless the best temperature is 1, which changes nothing, "after":
        temperature (1 before); and of the test images error, low, high, chance (`calibration_error`), log_loss and
        accuracy.

    Raises:
        ValueError: the arguments do not fit each other, or there is no bin.
    """
    from helpers.training.calibration import judge  # here: who wants a table need not wait for TensorFlow

    validation = check_predictions(probabilities["validation"], labels["validation"])
    rows, best = {}, judge(*validation)["temperature"]
    for name, temperature in [("before", 1.0), ("after", best)][: 1 + (best != 1)]:
        scaled = temper(probabilities["test"], temperature)
        metrics = evaluate(scaled, labels["test"])
        rows[name] = {"temperature": temperature} | calibration_error(scaled, labels["test"], bins=bins, seed=seed)
        rows[name] |= {"log_loss": metrics["log_loss"], "accuracy": metrics["test_accuracy"]}
    return pd.DataFrame.from_dict(rows, orient="index")


def _sort_by_confidence(probabilities, labels) -> tuple[np.ndarray, np.ndarray]:
    """Returns each image's confidence, ascending, and whether the network is right about it, both float64."""
    probabilities, labels = check_predictions(probabilities, labels)
    # Images in the order of their classes are the rule, and many may have the probability 1: drawn at random, each
    # bin gets some of every class.
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[np.argsort(probabilities.max(axis=1)[order], kind="stable")]
    correct = probabilities.argmax(axis=1) == labels
    return probabilities.max(axis=1)[order].astype("float64"), correct[order].astype("float64")


def _find_starts(images: int, bins: int) -> np.ndarray:
    """Returns where each bin of equal numbers of images begins, int (bins,)."""
    if bins < 1:
        raise ValueError(f"Expected `bins` of at least 1. Received {bins}.")
    bins = min(bins, images)
    return np.arange(bins) * images // bins
