"""How many labels? The two arms of a study's final, trained on fractions of the training images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.evaluation.intervals import accuracy_over_pairs, compare_pairs
from helpers.evaluation.learning_curves import extrapolate, find_crossing, variance_between_pairs
from helpers.study.experiment import Experiment, unpack
from helpers.study.trials import Trial, Trials

FRACTIONS = (0.125, 0.25, 0.5, 1.0)
"""Of the training images of each class."""

_ARMS = ("frozen", "fine-tuned")
_MOST_TIME = 1.5  # of the final's, by what the trainings cost
_PAIRS = 2, 3  # at least and, if nobody asks for more, at most: one says nothing about how much pairs differ
_SMALLEST_STEP = 1.3  # between two counts of training images: classes that are too small to halve make no level


class LabelCurve:
    """Both arms of a study's final, trained on 1/8, 1/4, 1/2 and all of the training labels.

    Each pair of the final draws fractions of its own training images: nested, the same of each class, of each at
    least two. Cut, first stage, rate and steps are the final's, whose trainings with all labels are not repeated.
    Ctrl-C ends with the pairs that are complete, if they are two; the same curve, made again, resumes, and repeats
    trainings that failed.

    Args:
        experiment: the study's network, images and recipe.
        verdict: what `Study.verdict` returned, or `verdict.json` holds. A ValueError if it compares nothing.
        file: the study's trials, to which these are added, and `cluster`: who does them (`Trials`).
        pairs: on how many of the final's splits and seeds the curve rests, two or more; 0 for two, or three if that
            costs at most one and a half times what the final did. A ValueError if the final has fewer.

    Attributes:
        labels: how many training images each fraction is, ascending. A ValueError if not even two differ.
        pairs: see above.
        stopped: why it rests on fewer; "" if it does not.
    """

    def __init__(
        self, experiment: Experiment, verdict: dict, *, file: str | Path, cluster: str | int = "", pairs: int = 0
    ):
        if not verdict["comparison"] or "steps" not in verdict["arms"]["fine-tuned"]:
            raise ValueError(
                "Expected a study with a verdict. Received one that ended before two pairs of its final were "
                "complete, or is of an earlier version. Execute 04_freeze_or_fine_tune again: it resumes."
            )
        most = verdict["comparison"]["pairs"]
        if pairs and not _PAIRS[0] <= pairs <= most:
            raise ValueError(f"Expected `pairs` of 2 to {most}, as many as 04's final has, or 0. Received {pairs}.")
        self.experiment, self.verdict, self.stopped, self.labels, self._fractions = experiment, verdict, "", [], []
        self._arms = [_trial(name, verdict["arms"][name]) for name in _ARMS]
        for fraction in reversed(FRACTIONS):
            count = len(experiment.split(1, fraction)[1]["train"])
            if not self.labels or count * _SMALLEST_STEP <= self.labels[0]:
                self.labels.insert(0, count)
                self._fractions.insert(0, fraction)
        if len(self.labels) < 2:
            raise ValueError(
                f"The classes are too small to halve: {self.labels[0]} training images of "
                f"{len(experiment.class_names)} classes, and at least two of each class are needed. Add images."
            )
        self.pairs = pairs or self._fitting_pairs()
        self.trials = Trials(file, settings=experiment.settings, cluster=cluster, failed_again=True)
        known = self.trials.results()
        of_final = sorted({trial.seed for trial in known if trial.phase == "final"})
        whole = [seed for seed in of_final if all(_scored(known, trial) for trial in self._pair(seed)[-2:])]
        seeds = [*dict.fromkeys([*whole, *range(1, 1 + self.pairs)])]  # each once, also in a file without the final
        self._pairs = [self._pair(seed) for seed in seeds[: self.pairs]]

    def _fitting_pairs(self) -> int:
        """Returns how many of the final's pairs fit into the time: by costs, the same on every machine."""
        arms = self.verdict["arms"]
        final = sum(self._cost(arm) * arm["pairs"] for arm in arms.values())
        pair = self._cost(arms["fine-tuned"]) * (len(self.labels) - 1)
        fitting = int(np.clip(_MOST_TIME * final / pair, *_PAIRS)) if pair else _PAIRS[1]
        return min(fitting, self.verdict["comparison"]["pairs"])

    def _cost(self, arm: dict) -> float:
        """Returns what an arm's training costs: steps through the share of the network that learns."""
        costs = self.experiment.costs
        return arm["steps"] * (costs[arm["cut"]] - costs[arm["stage"]]) if arm.get("stage") else 0.0

    def describe(self) -> str:
        """Returns what is done, in a few lines."""
        counts = [f"{count:,}" for count in self.labels]
        wanted = [trial for pair in self._pairs for trial in pair]
        missing = len(wanted) - len(self.trials.results(wanted))
        return (
            f"labels: {', '.join(counts[:-1])} and all {counts[-1]} training images\n"
            f"pairs:  {self.pairs} of the final's {self.verdict['comparison']['pairs']}, whose trainings with all "
            f"labels are there already\n"
            f"to do:  {missing} of {len(wanted)} trainings, half of which only fit a head"
        )

    def run(self) -> dict[str, np.ndarray]:
        """Returns for each arm which test images it classified correctly, bool (levels, pairs, images).

        There are the pairs that are complete; with fewer than two, a ValueError, or the KeyboardInterrupt.
        """
        wanted, stopped = [trial for pair in self._pairs for trial in pair], []
        try:
            results = self.trials.run(wanted, self.experiment.run, expected=self._expected, title="labels")
        except KeyboardInterrupt:
            results, stopped = self.trials.results(wanted), ["training was interrupted"]
        complete = [pair for pair in self._pairs if all(_scored(results, trial) for trial in pair)]
        if stopped and len(complete) < _PAIRS[0]:
            raise KeyboardInterrupt("Interrupted. Execute the notebook again: it resumes.")
        bad = [trial for trial, result in results.items() if result["outcome"].startswith(("failed", "diverged"))]
        self.stopped = "; ".join([*stopped, *(f"{trial}: {results[trial]['outcome']}" for trial in bad)])
        if len(complete) < _PAIRS[0]:
            raise ValueError(f"Fewer than two pairs of trainings could be completed. {self.stopped}")
        levels = range(len(self.labels))
        return {
            arm.arm: np.array([[unpack(results[pair[2 * level + place]]) for pair in complete] for level in levels])
            for place, arm in enumerate(self._arms)
        }

    def _pair(self, seed: int) -> list[Trial]:
        """Returns the trials of a pair, with few labels first: each time the frozen and the fine-tuned arm."""
        phases = [("labels" if fraction < 1 else "final", fraction) for fraction in self._fractions]
        return [replace(a, phase=phase, fraction=f, seed=seed) for phase, f in phases for a in self._arms]

    def _expected(self, trial: Trial) -> float:
        """Returns the seconds that a trial is expected to take: what such a training took in the final."""
        return max(self.verdict["arms"][trial.arm]["seconds"], 0.1)

    # ---- the answer

    def table(self, correct: dict[str, np.ndarray]) -> pd.DataFrame:
        """Returns the curves: a row for each arm and count, from `run`.

        The columns are arm, labels (training images), extrapolated (bool), pairs (count: with all labels, all of the
        final's), test_accuracy, and low and high: its 95 % interval, or, of the last row of an arm, which is
        extrapolated to twice the labels, 90 %.
        """
        rows = []
        for arm, answers in correct.items():
            between = variance_between_pairs(self.labels, answers)
            fewer = zip(self.labels[:-1], answers[:-1], between[:-1], strict=True)
            for count, of_count, variance in fewer:
                rows.append((arm, count, False, len(of_count), *accuracy_over_pairs(of_count, between=variance)))
            known = self.verdict["arms"][arm]  # of all of the final's pairs
            told = (known[name] for name in ("pairs", "test_accuracy", "low", "high"))
            rows.append((arm, self.labels[-1], False, *told))
            ahead = self._extrapolate(arm, answers)
            bounds = ahead["accuracy"], ahead["accuracy_low"], ahead["accuracy_high"]
            rows.append((arm, 2 * self.labels[-1], True, answers.shape[1], *bounds))
        columns = ["arm", "labels", "extrapolated", "pairs", "test_accuracy", "low", "high"]
        return pd.DataFrame(rows, columns=columns)

    def _extrapolate(self, arm: str, correct: np.ndarray) -> dict[str, float]:
        return extrapolate(self.labels, correct, accuracy=self.verdict["arms"][arm]["test_accuracy"])

    def answer(self, correct: dict[str, np.ndarray]) -> dict:
        """Returns the answer, plain values: the key `labels` of verdict.json (see helpers/study/README.md)."""
        margin = self.verdict["margin"]
        tables = [correct[name] for name in _ARMS]
        between = variance_between_pairs(self.labels, tables[1].astype(int) - tables[0])
        each = zip(*tables, between, strict=True)
        comparisons = [compare_pairs(*arms, margin=margin, between=variance) for *arms, variance in each]
        comparisons[-1] = self.verdict["comparison"]  # of all of the final's pairs
        told = ("difference", "low", "high")
        answer = {
            "labels": self.labels,
            "pairs": tables[0].shape[1],
            "stopped": self.stopped,
            "margin": margin,
            "chosen": self.verdict["chosen"],
            "verdict": self.verdict["headline"],
            "differences": [{name: comparison[name] for name in told} for comparison in comparisons],
            "pays_from": find_crossing(self.labels, comparisons, margin=margin),
            "twice": {name: self._extrapolate(name, correct[name]) for name in _ARMS},
        }
        return answer | describe_labels(answer)


def describe_labels(answer: dict) -> dict[str, str]:
    """Returns label_more ("yes", "no", "uncertain"), headline and explanation, of what `LabelCurve.answer` holds."""
    chosen, most = answer["chosen"], answer["labels"][-1]
    gain, points = answer["twice"][chosen], answer["margin"]
    if gain["gain_low"] > 0 and gain["gain_high"] >= points:  # as `decide` has it
        label_more, headline = "yes", "Label more"
    elif gain["gain_high"] < points:
        label_more, headline = "no", "More labels of this kind would bring little"
    else:
        label_more, headline = "uncertain", "It is uncertain whether more labels would pay off"
    gained, interval = _points(gain)
    headline += f": twice as many would change the {chosen} network's accuracy by about {gained} ({interval})."
    (other,) = [name for name in _ARMS if name != chosen]
    ahead, accuracies = answer["twice"], {name: 100 * answer["twice"][name]["accuracy"] for name in _ARMS}
    explanation = (
        f"{_pays_off(answer)} Extrapolated by a damped power law to {2 * most:,} training images, the accuracy would "
        f"be {accuracies[chosen]:.1f} % ({chosen}) and {accuracies[other]:.1f} % ({other}: "
        f"{', '.join(_points(ahead[other]))})."
    )
    if answer["stopped"]:
        explanation += f" The curve is incomplete: {answer['stopped']}."
    return {"label_more": label_more, "headline": headline, "explanation": explanation}


def _points(ahead: dict) -> tuple[str, str]:
    """Returns a gain and its interval, in words."""
    gain, low, high = (100 * ahead[name] for name in ("gain", "gain_low", "gain_high"))
    return f"{gain:+z.1f} points", f"90 % interval {low:+z.1f} to {high:+z.1f}"


def _pays_off(answer: dict) -> str:
    """Returns from how many labels on fine-tuning pays off, in a sentence."""
    found, (least, *_, most) = answer["pays_from"], answer["labels"]
    better = f"more than {100 * answer['margin']:.1f} points better than freezing"
    if found["labels"] is None:
        return f"Even with all {most:,} training images, fine-tuning is not shown to be {better}."
    if found["high"] is not None and found["high"] <= least:
        return f"Fine-tuning is {better} with any number of training images that was tried, from {least:,} on."
    about = f"with about {found['labels']:,.0f} training images or more"
    first = f"with as few as {least:,} training images" if found["labels"] <= least else about
    low = f"{least:,} or fewer" if found["low"] <= least else f"{found['low']:,.0f}"
    high = f"more than {most:,}" if found["high"] is None else f"{found['high']:,.0f}"
    return f"Fine-tuning is estimated to be {better} {first} (95 % interval {low} to {high})."


def _scored(results: dict, trial: Trial) -> bool:
    return "correct" in results.get(trial, ())


def _trial(name: str, arm: dict) -> Trial:
    return Trial("final", name, arm["cut"], arm.get("stage", ""), arm.get("learning_rate", 0.0), int(arm["steps"]))
