"""How often a model is right, where it is wrong, and whether it is right as often as it says.

`probabilities` are float (images, classes); `labels` int (images,), the numbers of the classes; `class_names` are in
the order of the probabilities.
"""

import numpy as np
import pandas as pd
from scipy.special import softmax
from scipy.stats import binom
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from helpers.evaluation.intervals import accuracy_interval, compare

ARMS = ("majority class", "raw pixels", "from scratch", "frozen", "fine-tuned", "everything")
"""The order in which arms are shown: first those that bring nothing with them, then those of which more learns."""

# ---- accuracy


def evaluate(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns test_accuracy with the ends of its 95 % interval (low, high) and, for probabilities, log_loss.

    `predicted` are probabilities, float (images, classes), or predicted labels, int (images,).
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


RESULTS = {"test accuracy": "{test_accuracy:.3f}", "95 % interval": "{low:.3f} to {high:.3f}"}
COSTS = {"seconds": "{seconds:.1f}", "trainable weights": "{trainable_weights:,.0f}"}
"""Columns of `results_table`, and how what is known about an arm is written in them."""


def results_table(arms: dict[str, dict], columns: dict[str, str] = RESULTS | COSTS) -> pd.DataFrame:
    """Returns the arms side by side for people: texts, "" for what is not known.

    `arms` is name to metrics: `evaluate`'s, with seconds and trainable_weights (count) where they are known.
    """

    def filled(text: str, arm: dict) -> str:
        try:
            return text.format(**arm)
        except KeyError:
            return ""

    rows = {name: [filled(text, arm) for text in columns.values()] for name, arm in arms.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(columns))


def compare_networks(frozen: np.ndarray, tuned: np.ndarray, labels: np.ndarray) -> tuple[dict[str, float], str]:
    """Returns how much more often the fine-tuned network is right than the frozen one: `compare`, and a sentence.

    `frozen` and `tuned` are their probabilities for the test images, float (images, classes).
    """
    comparison = compare(is_correct(frozen, labels), is_correct(tuned, labels))
    difference, low, high, detectable = (100 * comparison[key] for key in ("difference", "low", "high", "detectable"))
    size = f"Fine-tuning changes the test accuracy by {difference:+.1f} points"
    size += f" (95 % interval {low:+.1f} to {high:+.1f})"
    explained = f"more than chance would explain with {len(labels)} test images"
    if low > 0 or high < 0:
        return comparison, f"{size}: {explained}. It is one split and one seed, though: another may differ."
    return comparison, (
        f"{size}: not {explained}. A true difference of about {detectable:.1f} points would have been shown (with a "
        f"probability of 80 %)."
    )


# ---- classes and mistakes


def confusion_table(probabilities, labels, *, class_names: list[str]) -> pd.DataFrame:
    """Returns how many images of each class (rows) were predicted to be of each class (columns), int."""
    counts = confusion_matrix(labels, np.asarray(probabilities).argmax(axis=1), labels=range(len(class_names)))
    index, columns = (pd.Index(list(class_names), name=name) for name in ("label", "predicted"))
    return pd.DataFrame(counts, index=index, columns=columns)


def class_table(probabilities, labels, *, class_names: list[str]) -> pd.DataFrame:
    """Returns precision and recall of each class, a row per class.

    The columns are images (count); precision, recall with its 95 % interval (recall_low, recall_high) and f1, 0..1;
    taken_for (the class that it is most often mistaken for, "" for none) and times (how often). What is undefined is
    NaN: the precision of a class that was never predicted, the recall of one without images.
    """
    confusion = confusion_table(probabilities, labels, class_names=class_names)
    precision, recall, f1, images = precision_recall_fscore_support(
        labels, np.asarray(probabilities).argmax(axis=1), labels=range(len(class_names)), zero_division=np.nan
    )
    table = pd.DataFrame({"images": images, "precision": precision, "recall": recall}, index=confusion.index)
    hits = confusion.to_numpy().diagonal()
    table[["recall_low", "recall_high"]] = [
        accuracy_interval(hit, total) if total else (np.nan, np.nan) for hit, total in zip(hits, images, strict=True)
    ]
    wrong = confusion.to_numpy() - np.diag(hits)
    times = wrong.max(axis=1)
    taken_for = np.where(times > 0, confusion.columns.to_numpy(object)[wrong.argmax(axis=1)], "")
    return table.assign(f1=f1, taken_for=taken_for, times=times).rename_axis("class")


def find_mistakes(probabilities, labels, *, class_names: list[str], count: int = 12) -> pd.DataFrame:
    """Returns the most confident mistakes, at most `count`, the most confident first.

    The columns are position (of the image), label and predicted (names of the true and the predicted class),
    probability (of the predicted class) and label_probability (of the true class).
    """
    predictions = _prediction_table(probabilities, labels, class_names)
    mistakes = predictions[predictions["label"] != predictions["predicted"]]
    return mistakes.sort_values("probability", ascending=False, kind="stable", ignore_index=True).head(count)


def choose_examples(
    probabilities, labels, *, class_names: list[str], count: int = 6, positions: str = "auto"
) -> pd.DataFrame:
    """Returns images worth a closer look, with the columns of `find_mistakes`.

    Args:
        count: rows at most. Up to half of them are mistakes: the most confident one of each kind (this class taken
            for that one). The others are the first correct image of each class, classes of these mistakes first.
        positions: "auto", or the numbers of the images to show, from 0, separated by commas: "3, 17"; else a
            ValueError.
    """
    predictions = _prediction_table(probabilities, labels, class_names)
    if positions != "auto":
        numbers = [number.strip() for number in str(positions).split(",")]
        if not all(number.isdecimal() and int(number) < len(predictions) for number in numbers):
            raise ValueError(
                f'Expected "auto" or numbers of images, from 0 to {len(predictions) - 1}, separated by commas. '
                f"Received {positions!r}."
            )
        return predictions.iloc[[int(number) for number in numbers]].reset_index(drop=True)
    mistakes = find_mistakes(probabilities, labels, class_names=class_names, count=len(predictions))
    mistakes = mistakes.drop_duplicates(["label", "predicted"]).head(count // 2)
    order = list(dict.fromkeys([*mistakes[["label", "predicted"]].to_numpy().ravel(), *class_names]))
    correct = predictions[predictions["label"] == predictions["predicted"]].drop_duplicates("label")
    correct = correct.sort_values("label", key=lambda names: names.map(order.index))
    return pd.concat([mistakes, correct], ignore_index=True).head(count)


def _prediction_table(probabilities, labels, class_names: list[str]) -> pd.DataFrame:
    """Returns a row for each image, in their order, with the columns of `find_mistakes`."""
    probabilities, labels, images = np.asarray(probabilities), np.asarray(labels), np.arange(len(labels))
    predicted, names = probabilities.argmax(axis=1), np.array(class_names, dtype=object)
    return pd.DataFrame(
        {
            "position": images,
            "label": names[labels],
            "predicted": names[predicted],
            "probability": probabilities[images, predicted],
            "label_probability": probabilities[images, labels],
        }
    )


# ---- calibration


def reliability_table(probabilities, labels, *, bins: int = 10) -> pd.DataFrame:
    """Returns the accuracy among images of about equal confidence, a row per bin, the least confident first.

    The bins hold equal numbers of images: with bins of equal width (Guo et al. 2017, arXiv 1706.04599) nearly all
    images of a confident network are in the last one, and the others show noise (Nixon et al. 2019, arXiv
    1904.01685). The columns are confidence (mean probability of the predicted class, 0..1), accuracy (0..1) with its
    95 % interval, low and high, and images (count).
    """
    probabilities = np.asarray(probabilities)
    # Images usually come class by class, and many may have the probability 1: shuffled, each bin gets some of every
    # class.
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[np.argsort(probabilities.max(axis=1)[order], kind="stable")]
    confidence = probabilities.max(axis=1)[order].astype("float64")
    correct = is_correct(probabilities, labels)[order].astype("float64")
    bins = min(bins, len(labels))
    starts = np.arange(bins) * len(labels) // bins
    images, hits = np.diff([*starts, len(labels)]), np.add.reduceat(correct, starts)
    table = pd.DataFrame({"confidence": np.add.reduceat(confidence, starts) / images, "accuracy": hits / images})
    table[["low", "high"]] = [accuracy_interval(*counts) for counts in zip(hits, images, strict=True)]
    return table.assign(images=images)


def calibration_error(probabilities, labels, *, bins: int = 10) -> dict[str, float]:
    """Returns the expected calibration error (Guo et al. 2017, arXiv 1706.04599), over `reliability_table`'s bins.

    `error` is the mean distance between confidence and accuracy, 0..1; `chance` what a perfectly calibrated network
    would show on average on as many images. It is above 0, because a bin's accuracy varies by chance.
    """
    table = reliability_table(probabilities, labels, bins=bins)
    images, p = table["images"].to_numpy(), table["confidence"].to_numpy().clip(0, 1)
    error = np.abs(table["accuracy"] - p) @ images / images.sum()
    # The mean distance of a binomial count from its expectation is 2 m (1 - p) P(m), m the next integer above it
    # (de Moivre).
    m = np.floor(images * p) + 1
    distances = 2 * m * (1 - p) * binom.pmf(m, images, p)
    return {"error": float(error), "chance": float(distances.sum() / images.sum())}


def temperature_scale(probabilities, temperature: float) -> np.ndarray:
    """Returns the probabilities with their logits divided by the temperature, float (images, classes).

    The order of the classes, and so the accuracy, stays. Above 1, the network becomes less confident.

    >>> temperature_scale(np.array([[0.8, 0.2]]), 2.0).round(3)
    array([[0.667, 0.333]])
    """
    # clipped: a probability that was rounded to 0 has a logit, too
    return softmax(np.log(np.clip(np.asarray(probabilities), 1e-37, 1)) / temperature, axis=1)


def calibration_table(probabilities: dict, labels: dict) -> pd.DataFrame:
    """Returns how well test images' probabilities are calibrated, before and after temperature scaling.

    The temperature, at least 1, is the one with the lowest log-loss on the validation images; where it is 1, there is
    no row "after". The columns are temperature, error and chance (`calibration_error`), log_loss and accuracy. Both
    arguments are dicts, of the parts "validation" and "test".
    """
    from helpers.training.calibration import calibrated_scores  # here: tables do not wait for TensorFlow

    rows, best = {}, calibrated_scores(probabilities["validation"], labels["validation"])["temperature"]
    for name, temperature in {"before": 1.0, "after": best}.items():
        if name == "before" or temperature != 1:
            scaled = temperature_scale(probabilities["test"], temperature)
            metrics = evaluate(scaled, labels["test"])
            rows[name] = {"temperature": temperature} | calibration_error(scaled, labels["test"])
            rows[name] |= {"log_loss": metrics["log_loss"], "accuracy": metrics["test_accuracy"]}
    return pd.DataFrame.from_dict(rows, orient="index")
