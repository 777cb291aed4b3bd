"""The study: race, final, verdict, in this order, each from the trials' results."""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from helpers._keras import keras
from helpers.evaluation.intervals import FIRST_LOOK, accuracy_interval, accuracy_over_pairs, compare_pairs
from helpers.evaluation.metrics import ARMS
from helpers.study.experiment import Experiment, unpack
from helpers.study.plan import VERSION, Arm, Plan, make_plan, read_budget, read_margin
from helpers.study.trials import Trial, Trials
from helpers.study.verdict import choose_arm, decide, describe_verdict
from helpers.training import choose_cut

_ARM = ["cut", "stage", "learning_rate"]
_RACE = ["rung", "cut", "stage", "cost_before", "learning_rate", "steps", "splits", "log_loss", "accuracy", "low"]
_RACE += ["high", "outcome", "seconds"]
_COSTS = ["seconds", "trainable_weights", "memory_mb"]
_FINAL = ["arm", *_ARM, "steps", "pair", "test_accuracy", "log_loss", *_COSTS, "temperature", "outcome", "correct"]
_DIFFERENCE = ["difference", "difference_low", "difference_high"]
_SUMMARY = [*_ARM, "steps", "pairs", "test_accuracy", "low", "high", *_DIFFERENCE, *_COSTS]


class Study:
    """Freeze or fine-tune? Asked of a network and images, with a budget.

    The same study, made again, resumes where it was. Ctrl-C (Jupyter's interrupt) and the end of the given minutes
    end a step with what there is by then, and the next steps use that. With another budget, margin or arm, what the
    file holds already is not done again. A budget, margin or cluster that makes no sense is a ValueError.

    Args:
        experiment: the network, the images and the recipe.
        probe: what a linear head reaches at each cut point: `probe_depth`, on the run's own split.
        file: where the trials are kept, and `cluster`: who does them (`Trials`).
        budget: "quick", "standard", "thorough", or minutes.
        margin: the difference of accuracy that does not matter, in points (hundredths), set beforehand.
        cut: 02's: where its network ends, "auto" for `choose_cut(probe)`. The frozen arm is cut there.
        reference: 03's `unfreeze_from` and `learning_rate`: this arm stays in the race to the end.

    Attributes:
        plan: what is done, and how long that is expected to take.
        stopped: why a step ended early; "" if none did.
    """

    def __init__(
        self,
        experiment: Experiment,
        probe: pd.DataFrame,
        *,
        file: str | Path,
        cluster: str | int = "",
        budget: str | float = "standard",
        margin: float = 1.0,
        cut: str = "auto",
        reference: tuple[str, float] = ("auto", 1e-3),
    ):
        self.experiment, self.margin, self.stopped = experiment, read_margin(margin), ""
        self._interrupted_in, self._unfinished_rung, started = "", 0, time.monotonic()
        budget, cuts = read_budget(budget), candidate_cuts(probe, cut)
        arm = (cuts[0], experiment.first_stage(cuts[0], reference[0]), reference[1])
        self.trials = Trials(file, settings=experiment.settings, cluster=cluster)
        # One file may hold several plans: a trial that two of them want is done once. Minutes can be changed.
        asked = {"budget": budget if isinstance(budget, str) else "minutes", "cuts": cuts, "03's arm": arm}
        asked["version"] = VERSION
        known, planned = self.trials.results(), Trial("plan", json.dumps(asked))
        if planned not in known:
            plan = make_plan(
                budget, cuts=cuts, reference=arm, costs=experiment.costs, measured=experiment.measure(arm[1])
            )
            self.trials.keep(planned, asdict(plan))
        plan = self.trials.results()[planned]
        tuples = {name: tuple(map(tuple, plan[name])) for name in ("arms", "depths", "rungs")}  # JSON has lists
        self.plan = Plan(**plan | tuples | {"reference": tuple(plan["reference"])})
        since = list(known)[list(known).index(planned) :] if planned in known else []
        spent = sum(known[trial].get("wall_seconds", 0.0) for trial in since)
        self._deadline = math.inf if isinstance(budget, str) else started + 60 * budget - spent

    # ---- the steps

    def race(self) -> pd.DataFrame:
        """Returns the race of the fine-tuned arms, by successive halving on validation log-loss.

        Every arm is trained through a whole schedule in each rung: a short one at first, a full one for those that
        are left (Jamieson and Talwalkar 2016, arXiv 1502.07943). Each rung has fresh splits, and an arm is judged by
        its mean over all splits so far. In the first rung, the best arm is also tried at the next learning rates
        (`Plan.beyond`). Of each depth, the best rate goes on; 03's arm stays, and so do ties. A rung is decided when
        all of its arms are done, so that the choice does not depend on which worker was faster.

        There is a row for each arm and rung: rung (from 1), cut, stage, cost_before (share, 0..1, of the network's
        cost below the stage), learning_rate, steps, splits (so far); means over these of log_loss and of accuracy
        (with its 95 % interval low, high); mean seconds of a training in this rung; outcome.
        """
        arms, rows, so_far, self._unfinished_rung = list(self.plan.arms), [], {}, 0
        for number in range(len(self.plan.rungs)):
            losses = {}
            while arms:
                wanted = self.plan.rung(number, arms)
                finished = self._run("race", wanted, title=f"race, rung {number + 1} of {len(self.plan.rungs)}")
                of_arms = {arm: [result for trial, result in finished.items() if _arm(trial) == arm] for arm in arms}
                of_arms = {arm: results for arm, results in of_arms.items() if results}
                so_far |= {arm: so_far.get(arm, []) + results for arm, results in of_arms.items()}
                rows += [self._race_row(number, arm, so_far[arm], len(results)) for arm, results in of_arms.items()]
                if len(finished) < len(wanted):
                    self._unfinished_rung = number + 1
                    return _race_table(rows)
                losses |= {arm: _mean_loss(so_far[arm]) for arm in arms}
                arms = [] if number else self.plan.beyond(losses)
            arms = self.plan.promoted(number, losses)
        return _race_table(rows)

    def _race_row(self, number: int, arm: Arm, results: list[dict], of_rung: int) -> dict:
        row = dict(zip(_ARM, arm, strict=True)) | {"cost_before": self.experiment.costs[arm[1]]}
        row |= {"rung": number + 1, "steps": self.plan.rungs[number][0], "splits": len(results)}
        row |= {"log_loss": _mean_loss(results), "outcome": max(results, key=_loss)["outcome"]}
        row["seconds"] = np.mean([result.get("seconds", np.nan) for result in results[-of_rung:]])
        if accuracies := [result["accuracy"] for result in results if "accuracy" in result]:
            row["accuracy"] = np.mean(accuracies)
            total = len(accuracies) * int((self.experiment.images["split"] == "validation").sum())
            row["low"], row["high"] = accuracy_interval(round(row["accuracy"] * total), total)
        return row

    def best_arm(self, race: pd.DataFrame) -> Arm:
        """Returns the arm with the lowest log-loss in the last rung that was completed."""
        complete = race[race["rung"] != self._unfinished_rung]  # of that one there are the cheapest arms only
        rows = complete if len(complete) else race
        last = rows[rows["rung"] == rows["rung"].max()]
        best = last.loc[last["log_loss"].idxmin()]
        return best["cut"], best["stage"], float(best["learning_rate"])

    def final(self, race: pd.DataFrame) -> pd.DataFrame:
        """Returns the final: the best arms and the controls, all on the same fresh splits with the same seeds.

        Test images are scored here for the first time, once for each arm and pair. After a few pairs it ends if the
        answer is clear (`compare_pairs`). There is a row for each arm and pair: arm, cut, stage, learning_rate,
        steps, pair (the seed), what `Experiment.run` returns, and log_loss and correct (bool, one for each) of the
        test images.
        """
        if race.empty:
            return pd.DataFrame(columns=_FINAL)
        of_all = race[race["stage"] == self.plan.first]
        arms = self.best_arm(race), self.best_arm(of_all) if len(of_all) else None, self._scratch_rate()
        finished, done = {}, 0
        for look in sorted({min(FIRST_LOOK, self.plan.pairs), self.plan.pairs}):
            wanted = self.plan.final(*arms, pairs=range(done + 1, look + 1))
            results, done = self._run("final", wanted, title="final"), look
            finished |= results
            table = _final_table(finished)
            if len(results) < len(wanted) or self._compare(table).get("clear"):
                break
        return table

    def _scratch_rate(self) -> float:
        """Returns the better learning rate of the network with random weights; 0 if it is left out."""
        wanted = self.plan.scratch_race()
        finished = self._run("controls", wanted, title="from scratch") if wanted else {}
        complete = wanted and len(finished) == len(wanted)
        return min(wanted, key=lambda trial: _loss(finished[trial])).learning_rate if complete else 0.0

    def _run(self, step: str, wanted: list[Trial], *, title: str) -> dict[Trial, dict]:
        """Returns the results of the trials; fewer of them if the step is stopped."""
        if self._interrupted_in not in ("", step):  # an earlier step was: what there is has to do
            return self.trials.results(wanted)
        self._interrupted_in = ""
        if step == "race" or not self._unfinished_rung:
            self.stopped = ""
        # Race and controls leave the final its time.
        deadline = self._deadline - (self.plan.expected["final"] if step != "final" else 0)
        options = {"expected": self.plan.seconds, "deadline": deadline, "title": title}
        try:
            finished = self.trials.run(wanted, self.experiment.run, **options)
            if len(finished) < len(wanted):
                self.stopped = f"the minutes given were over in the {step}"
        except KeyboardInterrupt:
            finished = self.trials.results(wanted)
            self.stopped, self._interrupted_in = f"the {step} was interrupted", step
        return finished

    # ---- the answer

    def _compare(self, final: pd.DataFrame) -> dict:
        """Returns `compare_pairs` of the two arms; empty with fewer than two pairs of both."""
        first, second = _tables(final, "frozen", "fine-tuned")
        return compare_pairs(first, second, margin=self.margin) if len(first) >= 2 else {}

    def verdict(self, final: pd.DataFrame) -> dict:
        """Returns the answer, plain values: what `verdict.json` holds (helpers/study/README.md describes it).

        With fewer than two pairs of both arms there is no verdict, and the frozen arm, which is cheaper, is chosen.
        """
        comparison = self._compare(final)
        failed = final[final["outcome"].astype(str).str.startswith(("failed", "diverged"))]
        arms = {name: row.dropna().to_dict() for name, row in summarize(final).iterrows()}
        for arm in arms.values():
            arm["all_layers"] = arm.get("cut", self.experiment.end) == self.experiment.end
        answer = {"verdict": decide(comparison) if comparison else "none", "chosen": choose_arm(comparison)}
        answer |= {"comparison": comparison, "margin": self.margin, "arms": arms}
        answer |= {"stopped": self.stopped, "pairs_planned": self.plan.pairs}
        answer["test_images"] = int((self.experiment.images["split"] == "test").sum())
        answer["failed"] = [f"{row.arm}, pair {row.pair}: {row.outcome}" for row in failed.itertuples()]
        words = describe_verdict(answer)
        return answer | words | {"paragraph": f"{words['headline']} {words['explanation']}"}

    def chosen_arm(self, final: pd.DataFrame, verdict: dict) -> Trial:
        """Returns the arm that the verdict chose: of a study that was stopped before its final, the frozen one."""
        rows = _of_chosen(final, verdict)
        if rows.empty:
            return Trial("chosen", "frozen", self.plan.frozen)
        row = rows.iloc[0]
        return Trial("chosen", row["arm"], row["cut"], row["stage"], row["learning_rate"], self.plan.steps)

    def retrain(self, final: pd.DataFrame, verdict: dict) -> keras.Model:
        """Returns the chosen arm, trained on train and validation images together: `Experiment.retrain`."""
        temperatures = _of_chosen(final, verdict)["temperature"].dropna()
        temperature = median(temperatures) if len(temperatures) else 1.0
        return self.experiment.retrain(self.chosen_arm(final, verdict), temperature=temperature)


def candidate_cuts(probe: pd.DataFrame, cut: str = "auto") -> list[str]:
    """Returns the cut points to try: the one that 02 takes, and the end or the best of the earlier ones."""
    taken, end = choose_cut(probe, cut), probe["cut"].iloc[-1]
    earlier = probe.iloc[:-1].dropna(subset="log_loss")
    if taken != end:
        return [taken, end]
    return [taken, *earlier.loc[[earlier["log_loss"].idxmin()], "cut"]] if len(earlier) else [taken]


def _of_chosen(final: pd.DataFrame, verdict: dict) -> pd.DataFrame:
    return final[(final["arm"] == verdict["chosen"]) & final["correct"].notna()]


def _race_table(rows: list[dict]) -> pd.DataFrame:
    numbers = dict.fromkeys(("cost_before", "learning_rate", "log_loss", "accuracy", "low", "high"), float)
    return pd.DataFrame(rows, columns=_RACE).astype(numbers)  # also of a race without a row


def _arm(trial: Trial) -> Arm:
    return trial.cut, trial.stage, trial.learning_rate


def _loss(result: dict) -> float:
    """Returns a trial's validation log-loss; infinite of one that failed or diverged, although its start is kept."""
    return math.inf if result["outcome"].startswith(("failed", "diverged")) else result["log_loss"]


def _mean_loss(results: list[dict]) -> float:
    return np.mean([_loss(result) for result in results])


def _final_table(finished: dict[Trial, dict]) -> pd.DataFrame:
    rows = [asdict(trial) | result | {"pair": trial.seed} for trial, result in finished.items()]
    table = pd.DataFrame(rows).rename(columns={"log_loss": "validation_log_loss", "test_log_loss": "log_loss"})
    if "correct" in table:
        table["correct"] = [unpack(result) if "correct" in result else None for result in finished.values()]
    return table.reindex(columns=_FINAL)


def _tables(final: pd.DataFrame, *arms: str) -> list[np.ndarray]:
    """Returns for each arm what it got right, bool (pairs, images), of the pairs that all of them have."""
    scored = final[final["correct"].notna()].pivot(index="pair", columns="arm", values="correct")
    scored = scored.reindex(columns=arms).dropna()
    return [np.array(scored[arm].tolist(), bool) for arm in arms]


def summarize(final: pd.DataFrame) -> pd.DataFrame:
    """Returns the final's arms, from the controls to the one in which most learns, a DataFrame indexed by arm.

    The columns are cut, stage, learning_rate, steps, pairs (count), test_accuracy with its 95 % interval over images
    and seeds, difference to the frozen arm with its own, and the medians of the costs.
    """
    rows = {}
    for arm in ARMS:
        trials, (table,) = final[final["arm"] == arm], _tables(final, arm)
        if not len(table):
            continue
        row = trials.iloc[0][[*_ARM, "steps"]].to_dict() | {"pairs": len(table)}
        row["test_accuracy"], row["low"], row["high"] = accuracy_over_pairs(table)
        first, second = _tables(final, "frozen", arm) if arm != "frozen" else ([], [])
        if len(first) > 1:
            comparison = compare_pairs(first, second)
            row |= zip(_DIFFERENCE, (comparison["difference"], comparison["low"], comparison["high"]), strict=True)
        rows[arm] = row | {name: median(trials[name].dropna()) for name in _COSTS}
    others = ("cut", "stage", "steps", "pairs")
    numbers = dict.fromkeys([name for name in _SUMMARY if name not in others], float)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=_SUMMARY)
    return table.astype(numbers).rename_axis("arm")  # also without a row
