"""Class by class: what is recognised, what is taken for what, and which mistakes were made most confidently."""

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from helpers.evaluation.intervals import accuracy_interval


def check_predictions(probabilities, labels, class_names: list[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probabilities, (images, classes), and the labels, (images,), in memory.

    Raises:
        ValueError: there is no image; the probabilities are not finite, of another shape, or not one row per label;
            a label is not the number of a class; there are more or fewer class names than classes.
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != (len(probabilities),) or not len(labels):
        raise ValueError(
            f"Expected `probabilities` (images, classes) and one of the `labels` for each image. Received the shapes "
            f"{probabilities.shape} and {labels.shape}."
        )
    if not np.isfinite(probabilities).all():
        raise ValueError("Expected finite `probabilities`. Received some that are NaN or infinite.")
    classes = probabilities.shape[1]
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"Expected `labels` to be integers from 0 to {classes - 1}, the numbers of the classes. Received "
            f"{labels.dtype} from {labels.min()} to {labels.max()}."
        )
    if class_names is not None and len(class_names) != classes:
        raise ValueError(
            f"Expected `class_names` of {classes} classes, as many as an image has probabilities. Received "
            f"{len(class_names)}."
        )
    return probabilities, labels


def confusion_table(probabilities, labels, *, class_names: list[str]) -> pd.DataFrame:
    """Returns how many images of each class (rows) were taken for each class (columns), int, classes x classes.

    Args:
        probabilities: float (images, classes).
        labels: int (images,).
        class_names: in the order of the probabilities.

    Raises:
        ValueError: the arguments do not fit each other.
    """
    probabilities, labels = check_predictions(probabilities, labels, class_names)
    counts = confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(len(class_names)))
    names = list(class_names)
    return pd.DataFrame(counts, index=pd.Index(names, name="label"), columns=pd.Index(names, name="predicted"))


def class_table(probabilities, labels, *, class_names: list[str]) -> pd.DataFrame:
    """Returns what is recognised of each class, a row per class.

    Args:
        probabilities: float (images, classes).
        labels: int (images,).
        class_names: in the order of the probabilities.

    Returns:
        A DataFrame indexed by class: images (count); precision (share, 0..1, of those predicted that are of the
        class); recall (share of its images that are recognised), with its 95 % interval, recall_low and recall_high
        (`accuracy_interval`); f1 (the harmonic mean of precision and recall); taken_for (the other class that it is
        most often taken for, "" for none) and times (how often, count). What nothing can be said about is NaN: the
        precision of a class that was never predicted, the recall of one without images.

    Raises:
        ValueError: the arguments do not fit each other.
    """
    counts = confusion_table(probabilities, labels, class_names=class_names).to_numpy()
    predicted, classes = np.asarray(probabilities).argmax(axis=1), range(len(class_names))
    precision, recall, f1, images = precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=np.nan
    )
    right, wrong = counts.diagonal(), counts - np.diag(counts.diagonal())
    intervals = [
        accuracy_interval(hits, total) if total else (np.nan, np.nan)
        for hits, total in zip(right, images, strict=True)
    ]
    low, high = np.array(intervals).T
    times = wrong.max(axis=1)
    return pd.DataFrame(
        {
            "images": images,
            "precision": precision,
            "recall": recall,
            "recall_low": low,
            "recall_high": high,
            "f1": f1,
            "taken_for": np.where(times > 0, np.array(class_names, dtype=object)[wrong.argmax(axis=1)], ""),
            "times": times,
        },
        index=pd.Index(list(class_names), name="class"),
    )


def find_mistakes(probabilities, labels, *, class_names: list[str], count: int = 12) -> pd.DataFrame:
    """Returns the mistakes that the network is surest of, the surest first.

    What they are is often worth a look: a wrong label, two classes in one image, a trait that misleads.

    Args:
        probabilities: float (images, classes).
        labels: int (images,).
        class_names: in the order of the probabilities.
        count: rows at most.

    Returns:
        A DataFrame with position (of the image), label and predicted (the names of the true class and of the one
        that it was taken for), probability (of the latter) and label_probability (that of the true class).

    Raises:
        ValueError: the arguments do not fit each other, or the count is negative.
    """
    if count < 0:
        raise ValueError(f"Expected `count` of at least 0. Received {count}.")
    found = _judge(probabilities, labels, class_names)
    mistakes = found[found["label"] != found["predicted"]]
    return mistakes.sort_values("probability", ascending=False, kind="stable", ignore_index=True).head(count)


def choose_examples(
    probabilities, labels, *, class_names: list[str], count: int = 6, positions: str = "auto"
) -> pd.DataFrame:
    """Returns images that are worth a closer look: mistakes, then images of the same classes that are recognised.

    Args:
        probabilities: float (images, classes).
        labels: int (images,).
        class_names: in the order of the probabilities.
        count: rows at most, up to half of them mistakes: the surest one of each kind (this class taken for that one).
            Of what is recognised, the first image of each class: first the classes that the mistakes are of or were
            taken for, to compare, then the others.
        positions: "auto", or the numbers of the images that are wanted, from 0, separated by commas: "3, 17".

    Returns:
        A DataFrame with the columns of `find_mistakes`.

    Raises:
        ValueError: the arguments do not fit each other.
    """
    found = _judge(probabilities, labels, class_names)
    if positions != "auto":
        numbers = [number.strip() for number in str(positions).split(",")]
        if not all(number.isdecimal() and int(number) < len(found) for number in numbers):
            raise ValueError(
                f'Expected "auto" or numbers of images, from 0 to {len(found) - 1}, separated by commas. Received '
                f"{positions!r}."
            )
        return found.iloc[[int(number) for number in numbers]].reset_index(drop=True)
    mistakes = find_mistakes(probabilities, labels, class_names=class_names, count=len(found))
    mistakes = mistakes.drop_duplicates(["label", "predicted"]).head(count // 2)
    of_mistakes = mistakes[["label", "predicted"]].to_numpy().ravel()
    order = list(dict.fromkeys([*of_mistakes, *class_names]))
    right = found[found["label"] == found["predicted"]].drop_duplicates("label")
    right = right.sort_values("label", key=lambda labels: labels.map(order.index))
    return pd.concat([mistakes, right], ignore_index=True).head(count)


def _judge(probabilities, labels, class_names: list[str]) -> pd.DataFrame:
    """Returns a row for each image, in their order, with the columns of `find_mistakes`."""
    probabilities, labels = check_predictions(probabilities, labels, class_names)
    predicted, images, names = (
        probabilities.argmax(axis=1),
        np.arange(len(labels)),
        np.array(class_names, dtype=object),
    )
    return pd.DataFrame(
        {
            "position": images,
            "label": names[labels],
            "predicted": names[predicted],
            "probability": probabilities[images, predicted],
            "label_probability": probabilities[images, labels],
        }
    )
