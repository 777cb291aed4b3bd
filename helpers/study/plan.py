"""What a budget buys: which boundaries and rates race, for how many epochs, and how many pairs the final has."""

import math
from dataclasses import dataclass

from helpers.study.trials import Trial
from helpers.study.verdict import FEWEST_PAIRS

BUDGETS = {
    "quick": {"depths": 3, "learning_rates": (3e-4, 1e-3), "rungs": (2, 6), "pairs": FEWEST_PAIRS},
    "standard": {"depths": 4, "learning_rates": (1e-4, 3e-4, 1e-3), "rungs": (2, 8), "pairs": FEWEST_PAIRS},
    "thorough": {"depths": 8, "learning_rates": (1e-4, 3e-4, 1e-3, 3e-3), "rungs": (3, 8, 20), "pairs": 10},
}
"""How many boundaries and which rates race, how many epochs each rung trains, how many pairs the final has."""

REDUCTION = 3
"""Of the arms in a rung of the race, one in so many goes on to the next (successive halving's eta)."""

_CHEAP, _MOST_FROM_SCRATCH = 5e10, 30
"""Multiply-adds of a training that takes seconds on any machine, and epochs that are enough for it."""

_MOST_PAIRS = 20
"""With minutes to spare, more pairs than these are not added: the images, not the seeds, limit the answer then."""


@dataclass(frozen=True)
class Plan:
    """What a study does.

    Attributes:
        stages: first stages that learn, from late to early: the cheapest arms come first. The last is the network's
            first: everything learns.
        learning_rates: ascending.
        rungs: epochs of each rung of the race; the last ones are those of the final, too.
        pairs: splits and seeds of the final.
        measured: what this machine needs (`Experiment.measure`).
        costs: share of the forward cost below each boundary.
    """

    stages: tuple[str, ...]
    learning_rates: tuple[float, ...]
    rungs: tuple[int, ...]
    pairs: int
    measured: dict
    costs: dict

    @property
    def arms(self) -> list[tuple[str, float]]:
        """Stages and rates, the cheapest first."""
        return [(stage, rate) for stage in self.stages for rate in self.learning_rates]

    def rung(self, number: int, arms: list[tuple[str, float]]) -> list[Trial]:
        """Returns the trials of a rung of the race, all on the run's own split."""
        return [Trial("race", "fine-tuned", stage, rate, self.rungs[number]) for stage, rate in arms]

    def epochs_from_scratch(self, stage: str) -> int:
        """Returns the epochs of the network with random weights: about as long as fine-tuning from the stage takes.

        Where that is little, it gets more. Its BatchNormalization learns, too, so that a step takes twice as long.
        """
        as_long = math.ceil(self.rungs[-1] * (1 - self.costs[stage]) / 2)
        an_epoch = 3 * self.measured["multiply_adds"] * self.measured["images"]
        return max(as_long, min(_MOST_FROM_SCRATCH, int(_CHEAP / an_epoch)))

    def survivors(self, number: int) -> int:
        """Returns how many arms a rung of the race has."""
        count = len(self.arms)
        for _ in range(number):
            count = max(math.ceil(count / REDUCTION), 1)
        return count

    def final(self, frozen: str, tuned: tuple[str, float], everything: float) -> list[Trial]:
        """Returns the trials of the final, pair by pair, so that a stop leaves whole pairs.

        Args:
            frozen: the boundary of the best frozen arm.
            tuned: stage and rate of the best fine-tuned arm.
            everything: the best rate at which everything learns.
        """
        epochs, first = self.rungs[-1], self.stages[-1]
        trials = []
        for seed in range(1, self.pairs + 1):
            trials += [
                Trial("final", "frozen", frozen, seed=seed),
                Trial("final", "fine-tuned", *tuned, epochs, seed),
            ]
            if tuned[0] != first:
                trials.append(Trial("final", "everything", first, everything, epochs, seed))
            trials += [Trial("final", "majority class", seed=seed), Trial("final", "raw pixels", seed=seed)]
            trials.append(Trial("final", "from scratch", first, 1e-3, self.epochs_from_scratch(tuned[0]), seed))
        return trials

    def seconds(self, trial: Trial) -> float:
        """Returns what one trial is expected to take."""
        m = self.measured
        if trial.arm == "majority class":
            return 0.1
        if trial.arm == "raw pixels":
            return 0.3 + 2e-3 * m["everything"]
        if trial.arm == "frozen":
            return m["head"] + 0.1
        above = 1 - self.costs[trial.stage]
        computing = m["images"] * m["forward"] * above * m["factor"]
        # with BatchNormalization that learns, a step takes up to twice as long
        training = trial.epochs * (m["epoch"] + computing * (2 if trial.arm == "from scratch" else 1))
        scoring = (m["everything"] - m["images"]) * m["forward"] * above
        return m["begin"] * (1 + above) / 2 + m["head"] / 3 + training + scoring  # three arms share a pair's head

    @property
    def steps(self) -> dict[str, tuple[int, float]]:
        """Trials and expected seconds of each step: activations, race, final."""
        m = self.measured
        activations = m["everything"] * m["forward"] * sum(self.costs[stage] for stage in self.stages)
        race = [
            trial
            for number in range(len(self.rungs))
            for trial in self.rung(number, self._typical(self.survivors(number)))
        ]
        middle = self.stages[(len(self.stages) - 1) // 2], self.learning_rates[-1]
        final = self.final(list(self.costs)[-1], middle, self.learning_rates[-1])
        return {
            "activations": (len(self.stages), activations),
            "race": (len(race), self._seconds_of(race)),
            "final": (len(final), self._seconds_of(final)),
        }

    def _seconds_of(self, trials: list[Trial]) -> float:
        """Returns what the trials take, one after the other, as expected; those that are alike are compiled once."""
        kinds = {(trial.arm == "from scratch", trial.stage, trial.epochs) for trial in trials if trial.epochs}
        building = sum(self.measured["build"] * (1 - self.costs[stage] / 2) for _, stage, _ in kinds)
        return building + sum(map(self.seconds, trials))

    def _typical(self, count: int) -> list[tuple[str, float]]:
        """Returns so many arms, spread over all depths: which ones survive is not known yet."""
        arms = self.arms
        return [arms[(2 * number + 1) * len(arms) // (2 * count)] for number in range(count)]

    @property
    def expected(self) -> float:
        """Seconds that all of it is expected to take, on one machine like this."""
        return sum(seconds for _, seconds in self.steps.values())

    def describe(self) -> str:
        """Returns the plan in a few lines, with the time that it is expected to take."""
        steps = self.steps
        rates = ", ".join(f"{rate:g}" for rate in self.learning_rates)
        rungs = " -> ".join(f"{self.survivors(n)} arms, {epochs} epochs" for n, epochs in enumerate(self.rungs))
        return (
            f"race:  from {', '.join(self.stages)}; at {rates}: {rungs} (about {_duration(steps['race'][1])})\n"
            f"final: {self.pairs} splits and seeds, {steps['final'][0]} trainings at most "
            f"(about {_duration(steps['final'][1])})\n"
            f"in all about {_duration(self.expected)} on one machine like this"
        )


def read_budget(budget: str | float) -> str | float:
    """Returns a budget's name, or minutes.

    Raises:
        ValueError: it is neither.
    """
    if budget in BUDGETS:
        return budget
    try:
        minutes = float(budget)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        known = ", ".join(f'"{name}"' for name in BUDGETS)
        raise ValueError(f"Expected `budget` to be {known} or minutes above 0. Received {budget!r}.")
    return minutes


def make_plan(budget: str | float, *, costs: dict[str, float], measured: dict) -> Plan:
    """Returns what fits into a budget.

    Args:
        budget: "quick", "standard", "thorough", or minutes: then the largest of these that fits, with more pairs if
            there is time for them.
        costs: share of the forward cost below each boundary, in order: `Experiment.costs`.
        measured: `Experiment.measure`.

    Raises:
        ValueError: no such budget, or so few minutes that not even a quick race and its final fit into them.
    """
    minutes = read_budget(budget)
    if isinstance(minutes, str):
        return _plan(minutes, costs, measured)
    available = 0.85 * 60 * minutes  # what was measured in a moment is not exact
    for name in reversed(BUDGETS):
        plan = _plan(name, costs, measured)
        if plan.expected <= available:
            a_pair = plan.steps["final"][1] / plan.pairs
            more = min(int((available - plan.expected) / a_pair), max(_MOST_PAIRS - plan.pairs, 0))
            return Plan(**(vars(plan) | {"pairs": plan.pairs + more}))
    enough = math.ceil(plan.expected / 0.85 / 60)
    raise ValueError(
        f"A budget of {minutes:g} minutes is too small for a race and a final of {FEWEST_PAIRS} pairs. On this "
        f"machine {enough} minutes are enough with these images and this network (budget={enough}). Fewer or smaller "
        f"images, or a smaller network, need less."
    )


def _plan(name: str, costs: dict[str, float], measured: dict) -> Plan:
    wanted = BUDGETS[name]
    stages = _spread(costs, wanted["depths"])
    return Plan(stages, wanted["learning_rates"], wanted["rungs"], wanted["pairs"], measured, costs)


def _spread(costs: dict[str, float], depths: int) -> tuple[str, ...]:
    """Returns boundaries at even shares of the network's cost, the late ones first, the very first one last."""
    names = list(costs)[:-1]
    chosen = []
    for step in range(depths - 1, -1, -1):
        nearest = min(names, key=lambda name: abs(costs[name] - step / depths))
        if nearest not in chosen and nearest != names[0]:
            chosen.append(nearest)
    return (*chosen, names[0])


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
