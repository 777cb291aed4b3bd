"""The study: probe, race, final, verdict, in this order, each from what is stored of it."""

import math
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from helpers._keras import keras
from helpers.evaluation import ARMS, accuracy_interval
from helpers.study.experiment import Experiment, unpack
from helpers.study.plan import Plan, make_plan, read_budget
from helpers.study.trials import Trial, Trials
from helpers.study.verdict import accuracy_over_pairs, compare_pairs, decide, describe_verdict, needed

_PLAN = Trial("plan", "plan")

_RACE = ["stage", "cost_before", "learning_rate", "epochs", "log_loss", "accuracy", "low", "high"]
_RACE += ["best_epoch", "outcome", "seconds"]

_FINAL = ["arm", "stage", "learning_rate", "pair", "test_accuracy", "log_loss", "seconds", "trainable_weights"]
_FINAL += ["memory_mb", "best_epoch", "temperature", "outcome", "correct"]

_DIFFERENCE = {"difference": "difference", "difference_low": "low", "difference_high": "high"}


class Study:
    """Freeze or fine-tune? Asked of a network and images, with a budget.

    Its trials are kept in a storage of Optuna (`Trials`). The same study, made again, goes on where it was; made in
    several processes or on several machines with one storage, it is shared by them. Ctrl-C (Jupyter's interrupt) and
    the end of the given minutes end a step with what there is by then, and the next steps go on from that.

    Args:
        experiment: the network, the images and the recipe.
        storage: a journal file or the URL of a database.
        name: the study's, in the storage.
        budget: "quick", "standard", "thorough", or minutes.
        margin: the difference of accuracy that does not matter, in points (hundredths), set beforehand.

    Attributes:
        plan: what is done, and how long that is expected to take.
        stopped: why a step ended early; "" if none did.

    Raises:
        ValueError: the budget is too small, the margin is not above 0, or the storage cannot be used.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        storage: str | Path,
        name: str,
        budget: str | float = "standard",
        margin: float = 1.0,
    ):
        if not 0 < margin < 100:
            raise ValueError(f"Expected `margin` in points, above 0 and below 100. Received {margin}.")
        self.experiment, self.margin, self.stopped = experiment, margin / 100, ""
        self._started, self._interrupted_in, self._race_cut = time.monotonic(), "", 0
        budget = read_budget(budget)
        self.trials = Trials(storage, name=name, settings=experiment.settings | {"margin": margin})
        work = {"keep_failures": False, "title": "plan"}
        (found,) = self.trials.carry_out([_PLAN], lambda trial: self._make_plan(budget), **work).values()
        if found["budget"] != budget and (isinstance(budget, str) or isinstance(found["budget"], str)):
            raise ValueError(
                f"This study was planned with budget={found['budget']!r}, and {budget!r} was asked for. Choose "
                f"another `run_dir` or `storage`, or delete this one. (To minutes, more minutes can be added.)"
            )
        kept = found["plan"]
        self.plan = Plan(**kept | {key: tuple(kept[key]) for key in ("stages", "learning_rates", "rungs")})
        spent = sum(result.get("wall_seconds", 0.0) for result in self.trials.results().values())
        self._deadline = math.inf if isinstance(budget, str) else self._started + 60 * budget - spent

    def _make_plan(self, budget: str | float) -> dict:
        costs = self.experiment.costs
        middle = min(list(costs)[1:-1] or list(costs)[:1], key=lambda name: abs(costs[name] - 0.5))
        plan = make_plan(budget, costs=costs, measured=self.experiment.measure(middle))
        return {"plan": asdict(plan), "budget": budget}

    # ---- the steps

    def probe(self) -> pd.DataFrame:
        """Returns the best linear head at each boundary: see `Experiment.probe`."""
        return self.experiment.probe()

    def race(self) -> pd.DataFrame:
        """Returns the race of boundaries and learning rates, by successive halving on validation log-loss.

        All arms train for few epochs; the best third goes on to the next rung, with more epochs, from the start
        (Jamieson and Talwalkar 2016, arXiv 1502.07943). A rung is decided when all of its arms are done, so that the
        choice depends on their results and not on which worker was faster.

        Returns:
            A row for each arm and rung with the columns stage, cost_before (share, 0..1), learning_rate, epochs,
            log_loss, accuracy, low, high (the accuracy's 95 % interval), best_epoch, outcome, seconds.
        """
        arms, rows = self.plan.arms, []
        for number in range(len(self.plan.rungs)):
            wanted = self.plan.rung(number, arms)
            found = self._carry_out("race", wanted, title=f"race, rung {number + 1} of {len(self.plan.rungs)}")
            rows += [self._race_row(trial, result) for trial, result in found.items()]
            if len(found) < len(wanted):
                break
            order = sorted(found, key=lambda trial: _loss(found[trial]))
            kept = [(trial.stage, trial.learning_rate) for trial in order[: self.plan.survivors(number + 1)]]
            arms = [arm for arm in arms if arm in kept]
        numbers = dict.fromkeys(_RACE[1:8], float)  # also of a race without a row
        return pd.DataFrame(rows, columns=_RACE).astype(numbers | {"epochs": int})

    def final(self, probe: pd.DataFrame, race: pd.DataFrame) -> pd.DataFrame:
        """Returns the final: the best arms and the controls, all on the same fresh splits with the same seeds.

        Test images are scored here for the first time, once for each arm and pair.

        Args:
            probe, race: what these steps returned.

        Returns:
            A row for each arm and pair with the columns arm, stage, learning_rate, pair (the seed), test_accuracy,
            log_loss (of the test images), seconds, trainable_weights, memory_mb (by which memory rose), best_epoch,
            temperature, outcome, correct (bool array, one for each test image).
        """
        if race.empty:
            return pd.DataFrame(columns=_FINAL)
        # With one image of a class, nothing can be cross-validated.
        known = probe[probe["log_loss"].notna()]
        frozen = known.loc[known["log_loss"].idxmin(), "boundary"] if len(known) else self.experiment.end
        of_all = race[race["stage"] == self.plan.stages[-1]]
        everything = self.best_arm(of_all)[1] if len(of_all) else self.plan.learning_rates[0]
        wanted = self.plan.final(frozen, self.best_arm(race), everything)
        found = self._carry_out("final", wanted, title="final")
        rows = [asdict(trial) | result | {"pair": trial.seed} for trial, result in found.items()]
        table = pd.DataFrame(rows).rename(columns={"log_loss": "validation_log_loss", "test_log_loss": "log_loss"})
        if "correct" in table:
            table["correct"] = [unpack(result) if "correct" in result else None for result in found.values()]
        return table.reindex(columns=_FINAL)

    def best_arm(self, race: pd.DataFrame) -> tuple[str, float]:
        """Returns stage and learning rate of the arm with the lowest log-loss in the last rung that was completed.

        Args:
            race: what the race returned, or its rows of one stage.
        """
        complete = race[race["epochs"] != self._race_cut]  # of the rung that was cut there are the cheapest arms only
        rows = complete if len(complete) else race
        last = rows[rows["epochs"] == rows["epochs"].max()]
        best = last.loc[last["log_loss"].idxmin()]
        return best["stage"], float(best["learning_rate"])

    def verdict(self, final: pd.DataFrame) -> dict:
        """Returns the answer, plain values: what `verdict.json` holds (helpers/study/README.md describes it).

        Args:
            final: what this step returned. With fewer than two pairs of both arms there is no verdict; then the
                frozen arm is chosen, which is cheaper.
        """
        test_images = int((self.experiment.images["split"] == "test").sum())
        answer = {
            "verdict": "none",
            "stopped": self.stopped,
            "pairs_planned": self.plan.pairs,
            "test_images": test_images,
            "margin": self.margin,
            "arms": {name: row.dropna().to_dict() for name, row in summarize(final).iterrows()},
            "failed": [f"{row.arm}, pair {row.pair}: {row.outcome}" for row in _failed(final).itertuples()],
            "comparison": {},
            "needed": {},
        }
        tables = correct_by_arm(final)
        if "fine-tuned" in tables:
            first, second = paired(tables, "frozen", "fine-tuned")
            if len(first) >= 2:
                comparison = compare_pairs(first, second, margin=self.margin)
                enough = needed(comparison, difference=max(abs(comparison["difference"]), self.margin))
                answer |= {"verdict": decide(comparison), "comparison": comparison, "needed": enough}
        answer["chosen"] = "fine-tuned" if answer["verdict"] == "fine-tune" else "frozen"
        return answer | {"paragraph": describe_verdict(answer)}

    def retrain(self, final: pd.DataFrame, verdict: dict) -> keras.Model:
        """Returns the chosen arm, trained on train and validation images together: `Experiment.retrain`."""
        rows = final[(final["arm"] == verdict["chosen"]) & final["correct"].notna()]
        if rows.empty:  # the study was stopped before
            return self.experiment.retrain(Trial("chosen", "frozen", self.experiment.end), epochs=[], temperatures=[])
        row = rows.iloc[0]
        trial = Trial("chosen", row["arm"], row["stage"], row["learning_rate"], self.plan.rungs[-1], 0)
        trained = rows[["best_epoch", "temperature"]].dropna()
        return self.experiment.retrain(
            trial, epochs=trained["best_epoch"].tolist(), temperatures=trained["temperature"].tolist()
        )

    # ---- what they need

    def _carry_out(self, step: str, wanted: list[Trial], *, title: str) -> dict[Trial, dict]:
        """Returns the results of the trials; fewer of them if the step is stopped."""
        if self._interrupted_in not in ("", step):  # an earlier step was: what there is has to do
            return self.trials.results(wanted)
        self._interrupted_in = ""
        if step == "race" or not self._race_cut:
            self.stopped = ""
        # The race leaves the final its time.
        deadline = self._deadline - (self.plan.steps["final"][1] if step == "race" else 0)
        options = {"expected": self.plan.seconds, "deadline": deadline, "title": title}
        try:
            found = self.trials.carry_out(wanted, self.experiment.carry_out, **options)
            if len(found) < len(wanted):
                self.stopped = f"the minutes given were over in the {step}"
        except KeyboardInterrupt:
            found = self.trials.results(wanted)
            self.stopped, self._interrupted_in = f"the {step} was interrupted", step
        if step == "race":
            self._race_cut = wanted[0].epochs if len(found) < len(wanted) else 0
        return found

    def _race_row(self, trial: Trial, result: dict) -> dict:
        row = asdict(trial) | result | {"log_loss": _loss(result)}
        row["cost_before"] = self.experiment.costs[trial.stage]
        if "accuracy" in result:
            total = int((self.experiment.images["split"] == "validation").sum())
            row["low"], row["high"] = accuracy_interval(round(result["accuracy"] * total), total)
        return {name: row.get(name) for name in _RACE}


def _loss(result: dict) -> float:
    """Returns a trial's validation log-loss; infinite of one that failed or diverged, although its start is kept."""
    return math.inf if result["outcome"].startswith(("failed", "diverged")) else result["log_loss"]


def correct_by_arm(final: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns, for each arm, what it got right: bool, a row for each pair, a column for each image."""
    scored = final[final["correct"].notna()]
    return {
        arm: pd.DataFrame(np.stack(rows["correct"].tolist()), index=rows["pair"].tolist())
        for arm, rows in scored.groupby("arm")
    }


def paired(tables: dict[str, pd.DataFrame], first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns two arms' tables, bool (pairs, images), of the pairs that both have."""
    none = pd.DataFrame()
    one, other = tables.get(first, none), tables.get(second, none)
    both = [pair for pair in one.index if pair in other.index]
    return one.loc[both].to_numpy(), other.loc[both].to_numpy()


def summarize(final: pd.DataFrame) -> pd.DataFrame:
    """Returns the final's arms, from the controls to the one in which most learns.

    Returns:
        A DataFrame indexed by arm with the columns stage, learning_rate, pairs (count), test_accuracy, low, high (its
        95 % interval over images and seeds), difference (to the frozen arm), difference_low, difference_high, and the
        medians of seconds, trainable_weights and memory_mb.
    """
    tables, rows = correct_by_arm(final), {}
    for arm in (name for name in ARMS if name in tables):
        trials, table = final[final["arm"] == arm], tables[arm].to_numpy()
        row = {
            "stage": trials["stage"].iloc[0],
            "learning_rate": trials["learning_rate"].iloc[0],
            "pairs": len(table),
        }
        row["test_accuracy"] = float(table.mean())
        if len(table) > 1:
            row["test_accuracy"], row["low"], row["high"] = accuracy_over_pairs(table)
        first, second = paired(tables, "frozen", arm)
        if arm != "frozen" and len(first) > 1:
            found = compare_pairs(first, second)
            row |= {name: found[key] for name, key in _DIFFERENCE.items()}
        row |= {name: median(trials[name].dropna()) for name in ("seconds", "trainable_weights", "memory_mb")}
        rows[arm] = row
    columns = ("stage", "learning_rate", "pairs", "test_accuracy", "low", "high", *_DIFFERENCE)
    columns = [*columns, "seconds", "trainable_weights", "memory_mb"]
    numbers = dict.fromkeys((name for name in columns if name not in ("stage", "pairs")), float)  # also without a row
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).astype(numbers).rename_axis("arm")


def _failed(final: pd.DataFrame) -> pd.DataFrame:
    return final[final["outcome"].astype(str).str.startswith(("failed", "diverged"))]
