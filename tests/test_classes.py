"""Every image is counted once, each class gets its interval, and the surest mistakes come first."""

import numpy as np
import pytest
from sklearn.metrics import classification_report

from helpers.evaluation import accuracy_interval, choose_examples, class_table, confusion_table, find_mistakes

NAMES = ["ant", "bee", "cat", "dog"]


def predictions(images: int = 200, *, classes: int = 4, seed: int = 0):
    """Returns probabilities of a network that is often right, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes))
    logits[np.arange(images), labels] += 1.5
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


def certain(predicted, *, classes: int = 4) -> np.ndarray:
    return np.eye(classes)[predicted]


def test_rows_are_true_classes_and_columns_predicted_ones():
    counts = confusion_table(certain([1, 1, 0, 3]), [0, 0, 0, 2], class_names=NAMES)
    assert counts.loc["ant", "bee"] == 2 and counts.loc["ant", "ant"] == 1 and counts.loc["cat", "dog"] == 1
    assert counts.to_numpy().sum() == 4 and (counts.index.name, counts.columns.name) == ("label", "predicted")


def test_the_table_of_classes_agrees_with_scikit_learn_and_with_the_intervals():
    probabilities, labels = predictions()
    table = class_table(probabilities, labels, class_names=NAMES)
    predicted = probabilities.argmax(axis=1)
    report = classification_report(labels, predicted, target_names=NAMES, output_dict=True)
    for name in NAMES:
        found = table.loc[name, ["precision", "recall", "f1", "images"]].tolist()
        assert found == pytest.approx(
            [report[name][key] for key in ("precision", "recall", "f1-score", "support")], rel=1e-12
        )
    hits = ((labels == 1) & (predicted == 1)).sum()
    interval = accuracy_interval(hits, (labels == 1).sum())
    assert (table.loc["bee", "recall_low"], table.loc["bee", "recall_high"]) == interval
    assert ((table["recall_low"] < table["recall"]) & (table["recall"] < table["recall_high"])).all()


def test_what_a_class_is_most_often_taken_for_is_never_itself():
    probabilities = certain([0, 0, 0, 1, 2, 2, 1, 2, 2])
    table = class_table(probabilities, [0, 0, 0, 0, 0, 0, 1, 2, 2], class_names=NAMES)
    assert table["taken_for"].tolist() == ["cat", "", "", ""]
    assert table["times"].tolist() == [2, 0, 0, 0]


def test_what_cannot_be_known_is_not_a_number_and_no_zero():
    table = class_table(certain([0, 0, 1, 3]), [0, 1, 1, 1], class_names=NAMES)
    unknown = ["precision", "recall", "recall_low", "recall_high", "f1"]
    assert np.isnan(table.loc["cat"][unknown].astype(float)).all()
    assert table.loc["dog", "precision"] == 0 and np.isnan(table.loc["dog", "recall"])
    assert np.isnan(table.loc["dog", "recall_low"]) and table.loc["dog", "images"] == 0


def test_the_surest_mistakes_first():
    probabilities, labels = predictions()
    mistakes = find_mistakes(probabilities, labels, class_names=NAMES, count=1000)
    wrong = probabilities.argmax(axis=1) != labels
    assert sorted(mistakes["position"]) == np.flatnonzero(wrong).tolist() and 0 < len(mistakes) < 200
    assert mistakes["probability"].is_monotonic_decreasing
    for mistake in mistakes.itertuples():
        assert mistake.predicted != mistake.label == NAMES[labels[mistake.position]]
        assert mistake.predicted == NAMES[probabilities[mistake.position].argmax()]
        assert mistake.probability == probabilities[mistake.position].max()
        of_label = probabilities[mistake.position, labels[mistake.position]]
        assert mistake.label_probability == of_label < mistake.probability
    few = find_mistakes(probabilities, labels, class_names=NAMES, count=3)
    assert few.equals(mistakes.head(3))


def test_examples_are_mistakes_of_each_kind_and_what_is_recognised_of_their_classes():
    predicted, labels = np.array([(0, 0), (0, 0), (1, 1), (2, 2), (3, 3), (2, 3), (2, 3), (0, 1), (3, 0)]).T
    sure = np.array([9, 9, 9, 9, 9, 8, 7, 6, 5]) / 10
    probabilities = np.full((9, 4), (1 - sure[:, None]) / 3)
    probabilities[np.arange(9), predicted] = sure
    found = choose_examples(probabilities, labels, class_names=NAMES, count=6)
    assert found["position"].tolist() == [5, 7, 8, 4, 3, 2], "6 is of the same kind as 5; then 3, 2, 1 and 0"
    assert list(found) == list(find_mistakes(probabilities, labels, class_names=NAMES))
    assert found.loc[1].to_dict() == pytest.approx(
        {"position": 7, "label": "bee", "predicted": "ant", "probability": 0.6, "label_probability": 0.4 / 3}
    )
    few = choose_examples(probabilities, labels, class_names=NAMES, count=3)
    right = choose_examples(certain(labels), labels, class_names=NAMES)
    wrong = choose_examples(certain([1, 0]), [0, 1], class_names=NAMES)
    assert few["position"].tolist() == [5, 4, 3]
    assert right["position"].tolist() == [0, 2, 3, 4], "a class each"
    assert wrong["position"].tolist() == [0, 1], "nothing is recognised"


def test_examples_can_be_named():
    probabilities, labels = predictions()
    found = choose_examples(probabilities, labels, class_names=NAMES, positions="7, 0,199")
    assert found["position"].tolist() == [7, 0, 199]
    assert found["label"].tolist() == [NAMES[label] for label in labels[[7, 0, 199]]]
    for wrong in ("200", "-1", "1,", "first", ""):
        with pytest.raises(ValueError, match='Expected "auto" or numbers of images, from 0 to 199, separated by'):
            choose_examples(probabilities, labels, class_names=NAMES, positions=wrong)


def test_no_mistake_is_an_empty_table():
    assert find_mistakes(certain([0, 1, 2]), [0, 1, 2], class_names=NAMES).empty


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (certain([0, 1]), [0, 1, 1], r"Received the shapes \(2, 4\) and \(3,\)"),
        (np.zeros((0, 4)), np.zeros(0, int), "Received the shapes"),
        (certain([0, 1]), [0, 4], "integers from 0 to 3.*from 0 to 4"),
        (certain([0, 1]), [0, -1], "integers from 0 to 3"),
        (certain([0, 1]), [0.0, 1.0], "Received float64"),
        (np.full((2, 4), np.nan), [0, 1], "NaN or infinite"),
    ],
)
def test_what_does_not_fit_is_refused(probabilities, labels, message):
    for use in (
        lambda: class_table(probabilities, labels, class_names=NAMES),
        lambda: confusion_table(probabilities, labels, class_names=NAMES),
        lambda: find_mistakes(probabilities, labels, class_names=NAMES),
    ):
        with pytest.raises(ValueError, match=message):
            use()


def test_class_names_have_to_be_as_many_as_the_probabilities():
    for use in (class_table, confusion_table, find_mistakes, choose_examples):
        with pytest.raises(ValueError, match="`class_names` of 4 classes.*Received 3"):
            use(certain([0, 1]), [0, 1], class_names=NAMES[:3])
    with pytest.raises(ValueError, match="`count` of at least 0. Received -1"):
        find_mistakes(certain([0, 1]), [1, 1], class_names=NAMES, count=-1)
