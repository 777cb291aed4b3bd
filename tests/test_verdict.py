"""The verdict is right as often as it says: studies simulated with a known truth."""

import re

import numpy as np
import pytest
from scipy.stats import norm

from helpers.evaluation.intervals import FIRST_LOOK, accuracy_over_pairs, compare_pairs
from helpers.study.plan import BUDGETS
from helpers.study.verdict import choose_arm, decide, describe_verdict

STUDIES, PAIRS = 2000, 6
HIGHEST = 0.975  # 97 % of intervals may hold the truth, and half a point more by the chance of 2,000 studies
POWER = 0.74, 0.86  # 75 to 85 % of studies show what can be detected, and a point more or less by the same chance


def simulate(rng, *, images: int, spread: float, difference: float, accuracy: float, pairs: int = PAIRS):
    """Returns what two arms got right, bool (pairs, images) each, with a true difference of their accuracies.

    An image is right where a sum is above 0: its easiness, common to both arms; what this arm makes of this image;
    what this arm makes of this split and seed, with the standard deviation `spread`; and chance.
    """
    easiness = rng.normal(0, 1, images)
    arms = []
    for expected in (accuracy - difference / 2, accuracy + difference / 2):
        threshold = norm.ppf(expected) * np.sqrt(1 + 0.5**2 + spread**2 + 1)
        sums = threshold + easiness + rng.normal(0, 0.5, images)
        sums = sums + rng.normal(0, spread, (pairs, 1)) + rng.normal(0, 1, (pairs, images))
        arms.append(sums > 0)
    return arms


def study(arms, margin: float = 0.01) -> dict:
    """Returns what a study says that looks twice: after a few pairs, where it ends if the answer is clear."""
    early = compare_pairs(*(arm[:FIRST_LOOK] for arm in arms), margin=margin)
    return early if early["clear"] else compare_pairs(*arms, margin=margin)


def studies(count: int, **truth) -> list[dict]:
    rng = np.random.default_rng([0, *(round(1000 * abs(value)) for value in truth.values())])
    return [study(simulate(rng, **truth)) for _ in range(count)]


BUDGETED = [pytest.param(b["pairs"], marks=() if b["pairs"] == PAIRS else pytest.mark.slow) for b in BUDGETS.values()]


@pytest.mark.parametrize("pairs", BUDGETED)
@pytest.mark.parametrize("images", [100, 500, 2000])
@pytest.mark.parametrize("spread", [0.05, 0.15, 0.3])  # pairs vary less than images do, as much, and more
def test_it_is_as_sure_as_it_says(images, spread, pairs):
    truth = {"images": images, "spread": spread, "accuracy": 0.85, "pairs": pairs}
    same = studies(STUDIES, difference=0.0, **truth)
    wrong = np.mean([decide(study) in ("fine-tune", "freeze") for study in same])
    assert wrong <= 0.05
    assert 0.93 <= np.mean([study["low"] <= 0 <= study["high"] for study in same]) <= HIGHEST
    # The smallest detectable difference depends a little on the true one: look for the one that says itself.
    detectable = np.median([study["detectable"] for study in same])
    for _ in range(2):
        detectable = np.median([study["detectable"] for study in studies(300, difference=detectable, **truth)])
    better = studies(STUDIES, difference=detectable, **truth)
    assert POWER[0] <= np.mean([study["shown"] == "second" for study in better]) <= POWER[1]
    assert 0.93 <= np.mean([study["low"] <= detectable <= study["high"] for study in better]) <= HIGHEST


def test_a_large_difference_is_clear_after_a_few_pairs():
    """Eight points among 600 test images, with splits and seeds that vary by a point or two."""
    found = studies(300, difference=0.08, images=600, spread=0.05, accuracy=0.9)
    assert np.mean([study["pairs"] == FIRST_LOOK for study in found]) > 0.8
    assert all(decide(study) == "fine-tune" for study in found if study["pairs"] == FIRST_LOOK)
    equal = studies(300, difference=0.0, images=600, spread=0.05, accuracy=0.9)
    assert np.mean([study["pairs"] == FIRST_LOOK for study in equal]) < 0.05


def test_the_first_look_asks_for_more():
    rng, truth = np.random.default_rng(0), {"images": 300, "spread": 0.1, "difference": 0.03, "accuracy": 0.85}
    for _ in range(200):
        found = compare_pairs(*simulate(rng, **truth, pairs=FIRST_LOOK))
        assert not found["clear"] or found["shown"] or found["equivalent"]
    equal = np.ones((FIRST_LOOK, 5000), bool)
    assert compare_pairs(equal, equal)["clear"] and not compare_pairs(equal, equal)["shown"], "as good as equal"


def tables(*, gained: int, lost: int, images: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Returns two arms; in each of six pairs the second gains some images, and loses others."""
    rng = np.random.default_rng(0)
    first = np.repeat(rng.random(images)[None] < 0.85, PAIRS, axis=0)
    second = first.copy()
    for row in second:
        row[rng.choice(np.flatnonzero(~row), gained, replace=False)] = True
        row[rng.choice(np.flatnonzero(first[0]), lost, replace=False)] = False
    return first, second


def test_a_difference_that_is_none_or_within_the_margin_does_not_matter():
    study = compare_pairs(*tables(gained=0, lost=0))
    assert study["difference"] == 0 and study["low"] == -study["high"]
    assert study["equivalent"] and decide(study) == "too small to matter"
    few = compare_pairs(np.ones((6, 50), bool), np.ones((6, 50), bool))
    assert few["high"] > 0.04 and not few["equivalent"], "50 images may all be right by chance"
    arms = tables(gained=30, lost=2)
    assert decide(compare_pairs(*arms, margin=0.01)) == "fine-tune"
    large = compare_pairs(*arms, margin=0.2)
    assert large["shown"] == "second" and large["equivalent"] and decide(large) == "too small to matter"


@pytest.mark.parametrize(("images", "share"), [(100, 0.01), (150, 0.01), (150, 0.02), (400, 0.005)])
def test_few_images_that_tell_the_arms_apart_are_not_taken_for_certainty(images, share):
    rng = np.random.default_rng(0)
    held = []
    for _ in range(500):
        first = np.ones((PAIRS, images), bool)
        first[:, rng.random(images) < share] = False  # the second arm alone is right on these
        study = compare_pairs(first, np.ones_like(first))
        held.append(study["low"] <= share <= study["high"])
    assert np.mean(held) >= 0.93


def test_the_interval_counts_pairs_and_images():
    # The same differences in each pair: with more pairs nothing is learned, with more images it is.
    first, second = tables(gained=20, lost=10)
    second[:] = second[0]
    few, many = compare_pairs(first[:2], second[:2]), compare_pairs(first, second)
    assert many["error"] == pytest.approx(few["error"], rel=0.05)
    half = compare_pairs(first[:, ::2], second[:, ::2])
    assert half["error"] == pytest.approx(many["error"] * np.sqrt(2), rel=0.2)
    # One pair that differs widely from the others makes the interval wider than the images alone do.
    second[0] = False
    assert compare_pairs(first, second)["error"] > 3 * many["error"]


def test_an_arm_alone_has_an_interval_too():
    first, _ = tables(gained=0, lost=0)
    mean, low, high = accuracy_over_pairs(first)
    assert low < mean == first.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(mean * (1 - mean) / 400), rel=0.1)


def test_what_is_not_a_table_of_pairs_is_refused():
    for first, second in [(np.ones((6, 10)), np.ones((6, 9))), (np.ones((6, 1)),) * 2, (np.ones(10),) * 2]:
        with pytest.raises(ValueError, match="pairs, images"):
            compare_pairs(first, second)


def answer(first: np.ndarray, second: np.ndarray, **changes) -> dict:
    """Returns what `Study.verdict` hands to the words."""
    comparison = compare_pairs(first, second)
    frozen = {"seconds": 4.24, "trainable_weights": 6405, "test_accuracy": first.mean(), "cut": "block_14"}
    tuned = {"seconds": 61.3, "trainable_weights": 1234567, "test_accuracy": second.mean(), "cut": "head"}
    tuned |= {"stage": "block_13", "learning_rate": 0.0003, "all_layers": True}
    known = {"comparison": comparison, "arms": {"frozen": frozen | {"all_layers": False}, "fine-tuned": tuned}}
    return known | {"stopped": "", "verdict": decide(comparison), "chosen": choose_arm(comparison)} | changes


@pytest.mark.parametrize(("gained", "lost"), [(40, 4), (4, 40), (20, 20), (0, 0), (20, 15), (3, 2)])
def test_each_number_in_the_words_is_in_the_tables(gained, lost):
    known = answer(*tables(gained=gained, lost=lost))
    comparison = known["comparison"]
    allowed = {"95", "99.9", "0.1", "14"}  # of the method, and how often fine-tuning's time is freezing's
    for value in (v for v in comparison.values() if isinstance(v, (int, float)) and not isinstance(v, bool)):
        allowed |= {f"{value:g}", f"{value:,}", f"{100 * value:.1f}", f"{100 * abs(value):.1f}", f"{100 * value:g}"}
    for arm in known["arms"].values():
        allowed |= {f"{arm['seconds']:.1f}", f"{arm['trainable_weights']:,}", f"{arm.get('learning_rate', 0):g}"}
        allowed |= {f"{100 * arm['test_accuracy']:.1f}"}
    text = " ".join(describe_verdict(known).values()).replace("block_13", "").replace("block_14", "")
    numbers = re.findall(r"\d[\d,]*(?:\.\d+)?", text)
    assert len(numbers) > 8
    assert [number for number in numbers if number.rstrip(",") not in allowed] == []


@pytest.mark.parametrize(
    ("gained", "lost", "verdict", "chosen", "headline"),
    [
        (40, 4, "fine-tune", "fine-tuned", "Fine-tune from block_13 on (all layers taken, learning rate "),
        (4, 40, "freeze", "frozen", "Freeze: fine-tuning is 9.0 points less accurate"),
        (20, 20, "no difference shown", "frozen", "Freeze: fine-tuning is not shown to be better"),
        (
            40,
            34,
            "no difference shown",
            "fine-tuned",
            "Not decided, but fine-tuning is the better guess: it looks 1.5 points more",
        ),  # than a margin
        (40, 37, "no difference shown", "frozen", "Freeze"),
    ],
)
def test_the_headline_is_the_recommendation_and_the_rest_contradicts_nothing(gained, lost, verdict, chosen, headline):
    known = answer(*tables(gained=gained, lost=lost), stopped="the final was interrupted")
    assert (known["verdict"], known["chosen"]) == (verdict, chosen)
    words = describe_verdict(known)["explanation"]
    assert describe_verdict(known)["headline"].startswith(headline)
    assert f"handed over is {chosen}" in words and "not complete: the final was interrupted" in words
    assert ("would likely have been shown" in words) == (verdict == "no difference shown")
    assert "(cut before block_14)" in words and "(all layers taken, unfrozen from block_13)" in words


def test_the_headline_of_a_small_difference_and_of_none():
    small = answer(*tables(gained=30, lost=2))
    small["comparison"] |= {"equivalent": True}
    small["verdict"], small["chosen"] = decide(small["comparison"]), choose_arm(small["comparison"])
    assert describe_verdict(small)["headline"].startswith(
        "Freeze: fine-tuning makes a difference too small to matter"
    )
    assert describe_verdict({"comparison": {}, "arms": {}, "stopped": ""})["headline"].startswith("No verdict")
    assert choose_arm({}) == "frozen"
