"""How many labels: the curves, what is extrapolated from them, and both arms on fractions of the training images."""

import numpy as np
import pytest
from scipy.stats import norm

from helpers.evaluation.intervals import accuracy_over_pairs
from helpers.evaluation.learning_curves import DAMPING, LEVEL, extrapolate, find_crossing, variance_between_pairs
from helpers.study.labels import _ARMS as ARMS
from helpers.study.labels import _pays_off, describe_labels

LABELS = [40, 80, 160, 320]


def tables(rng, errors, *, pairs: int = 3, images: int = 300, between=0.1) -> np.ndarray:
    """Returns whether images are right, (levels, pairs, images): some are harder than others at every level.

    `between` is the standard deviation of what pairs differ by, one or one for each level. Smaller sets are parts of
    larger ones, so what a pair differs by at two levels is correlated as their means are.
    """
    counts = np.asarray(LABELS[: len(errors)])
    together = np.linalg.cholesky(np.sqrt(np.minimum.outer(counts, counts) / np.maximum.outer(counts, counts)))
    hardness = rng.normal(size=images)[None, None] + 0.5 * rng.normal(size=(len(errors), pairs, images))
    between = np.broadcast_to(between, len(errors))[:, None, None]
    # the quantile of the sum's distribution that gives each level its error
    bound = -norm.ppf(np.asarray(errors))[:, None, None] * np.sqrt(1 + 0.25 + between**2)
    return hardness + between * (together @ rng.normal(size=(len(errors), pairs)))[..., None] < bound


def test_a_power_law_is_continued_and_damped():
    wrong = np.zeros((4, 2, 1000), bool)
    for level, count in enumerate((400, 200, 100, 50)):  # each doubling halves the error
        wrong[level, :, :count] = True
    ahead = extrapolate(LABELS, ~wrong)
    expected = 1 - 0.05 * 0.5**DAMPING
    assert ahead["accuracy"] == pytest.approx(expected) and ahead["gain"] == pytest.approx(expected - 0.95)
    assert ahead["accuracy_low"] < expected < ahead["accuracy_high"]
    assert ahead["gain_low"] < expected - 0.95 < ahead["gain_high"]
    assert extrapolate(LABELS, ~wrong, factor=4)["accuracy"] == pytest.approx(1 - 0.05 * 0.25**DAMPING)
    assert extrapolate(LABELS[2:], ~wrong[2:])["accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("errors", [(0.1, 0.1, 0.1, 0.1), (0.1, 0.15, 0.2, 0.3), (0, 0, 0, 0)])
def test_without_a_fall_nothing_is_gained(errors):
    wrong = np.zeros((4, 2, 1000), bool)
    for level, error in enumerate(errors):
        wrong[level, :, : int(1000 * error)] = True
    ahead = extrapolate(LABELS, ~wrong)
    assert ahead["gain"] == pytest.approx(0, abs=1e-3) and ahead["gain_low"] <= 0 <= ahead["gain_high"]
    assert ahead["accuracy_high"] <= 1 and ahead["accuracy"] == pytest.approx(1 - errors[-1]), "as with all labels"
    assert ahead["gain_high"] <= errors[-1], "no accuracy is above 1"


@pytest.mark.parametrize("images", [150, 600])
@pytest.mark.parametrize(
    ("first", "power", "floor"), [(0.4, 0.5, 0.0), (0.3, 0.2, 0.0), (0.3, 0.4, 0.05), (0.2, 0.1, 0.03)]
)
def test_intervals_hold_what_twice_the_labels_give(images, first, power, floor):
    """In simulation, also where the error falls to a floor, and not to 0 as the rule has it."""
    errors = floor + first * 2.0 ** (-power * np.arange(5))
    found = []
    for number in range(300):
        ahead = extrapolate(LABELS, tables(np.random.default_rng([7, number]), errors[:4], pairs=2, images=images))
        found.append(
            [
                ahead["accuracy_low"] <= 1 - errors[4] <= ahead["accuracy_high"],
                ahead["gain_low"] <= errors[3] - errors[4] <= ahead["gain_high"],
            ]
        )
    assert (np.mean(found, axis=0) >= LEVEL - 0.035).all(), np.mean(found, axis=0)


def test_intervals_are_narrow_enough_to_say_something():
    """On a steep curve, most studies of three pairs say that the gain is above 0; on a flat one, few do."""
    shares = []
    for power in (0.5, 0.0):
        errors = 0.4 * 2.0 ** (-power * np.arange(4))
        draws = [tables(np.random.default_rng([8, number]), errors) for number in range(200)]
        ahead = [extrapolate(LABELS, correct) for correct in draws]
        shares.append(np.mean([found["gain_low"] > 0 for found in ahead]))
        assert all(0 <= found["accuracy_low"] <= found["accuracy_high"] <= 1 for found in ahead)
    assert shares[0] > 0.8 and shares[1] < 0.1, shares


@pytest.mark.parametrize("images", [200, 800])
@pytest.mark.parametrize("pairs", [2, 3])
@pytest.mark.parametrize("between", [(0.05,) * 4, (0.2,) * 4, (0.28, 0.2, 0.14, 0.1)])
def test_intervals_along_the_curve_hold_the_truth_though_each_point_has_few_pairs(images, pairs, between):
    """Also where pairs vary as much with many labels as with few, which is not what is assumed."""
    errors, held, widths = np.array([0.3, 0.2, 0.13, 0.09]), [], []
    for number in range(400):
        rng = np.random.default_rng([9, number])
        correct = tables(rng, errors, pairs=pairs, images=images, between=between)
        pooled = zip(correct, variance_between_pairs(LABELS, correct), strict=True)
        found = np.array([accuracy_over_pairs(table, between=variance)[1:] for table, variance in pooled])
        held.append((found[:, 0] <= 1 - errors) & (1 - errors <= found[:, 1]))
        alone = np.array([accuracy_over_pairs(table)[1:] for table in correct])
        widths.append([np.diff(ends, axis=1).mean() for ends in (alone, found)])
    held = np.mean(held, axis=0)[:-1]  # all labels have all of the final's pairs
    alone, pooled = np.percentile(widths, 90, axis=0)
    assert held.mean() >= 0.915 and held.min() >= 0.88, held
    assert pairs > 2 or pooled < 0.9 * alone, "one in ten would fill the figure"


def comparisons(*rows) -> list[dict]:
    return [dict(zip(("low", "difference", "high"), row, strict=True)) for row in rows]


def test_it_is_said_from_how_many_labels_on_fine_tuning_pays():
    rising = comparisons((-0.07, -0.05, -0.03), (-0.03, -0.01, 0.01), (0.01, 0.03, 0.05), (0.03, 0.05, 0.07))
    found = find_crossing(LABELS, rising, margin=0.01)
    assert found["labels"] == pytest.approx(80 * 2**0.5)  # half-way between, on a logarithmic scale
    assert found["low"] == pytest.approx(80) and found["high"] == pytest.approx(160)
    assert find_crossing(LABELS, rising, margin=0.06) == {
        "labels": None,
        "low": pytest.approx(320 / 2**0.5),
        "high": None,
    }
    always = comparisons(*[(0.02, 0.03, 0.04)] * 4)
    assert find_crossing(LABELS, always, margin=0.01) == {"labels": 40, "low": 40, "high": 40}
    assert find_crossing(LABELS, always, margin=0.1) == {"labels": None, "low": None, "high": None}
    twice = comparisons((0.02, 0.03, 0.04), (-0.04, -0.03, -0.02), (0.02, 0.03, 0.04), (0.02, 0.03, 0.04))
    assert 80 < find_crossing(LABELS, twice, margin=0.0)["labels"] < 160  # the last time counts


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.02, 0.05, "Label more: twice as many would change the frozen network's accuracy by about +3.5 points"),
        (0.001, 0.05, "Label more: "),
        (-0.02, 0.05, "It is uncertain whether more labels would pay off: "),
        (-0.004, 0.006, "More labels of this kind would bring little: "),
        (0.001, 0.006, "More labels of this kind would bring little: "),
    ],
)
def test_the_headline_says_whether_to_label_more(low, high, said):
    ahead = {"accuracy": 0.9, "accuracy_low": 0.85, "accuracy_high": 0.95}
    ahead |= {"gain": (low + high) / 2, "gain_low": low, "gain_high": high}
    answer = {"labels": [40, 80, 160], "margin": 0.01, "chosen": "frozen", "stopped": "training was interrupted"}
    answer |= {"pays_from": {"labels": None, "low": None, "high": None}, "twice": dict.fromkeys(ARMS, ahead)}
    words = describe_labels(answer)
    assert words["label_more"] == {"L": "yes", "I": "uncertain", "M": "no"}[said[0]]
    assert words["headline"].startswith(said) and f"{100 * low:+.1f} to {100 * high:+.1f}" in words["headline"]
    told = (
        "Even with all 160 training images, fine-tuning is not shown to be more than 1.0 points better than freezing."
    )
    assert words["explanation"].startswith(told)
    assert "to 320 training images, the accuracy would be 90.0 % (frozen) and 90.0 % (fine-tuned: " in str(words)
    assert words["explanation"].endswith("The curve is incomplete: training was interrupted.")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ((33.0, 20, 80.0), "with about 33 training images or more (95 % interval 20 or fewer to 80)."),
        ((33.0, 25.0, None), "with about 33 training images or more (95 % interval 25 to more than 160)."),
        ((20, 20, 80.0), "better than freezing with as few as 20 training images (95 % interval 20 or fewer to 80)."),
        ((20, 20, 20), "better than freezing with any number of training images that was tried, from 20 on."),
        (
            (None, 50.0, None),
            "Even with all 160 training images, fine-tuning is not shown to be more than 1.0 points",
        ),
    ],
)
def test_words_say_from_how_many_labels_on_it_pays(found, said):
    answer = {"labels": [20, 40, 80, 160], "margin": 0.01}
    assert said in _pays_off(answer | {"pays_from": dict(zip(("labels", "low", "high"), found, strict=True))})
