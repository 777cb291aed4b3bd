"""What a budget buys: which arms race, for how many steps, on how many splits; and the pairs of the final."""

import math
from dataclasses import dataclass, replace

from helpers.evaluation.intervals import FIRST_LOOK
from helpers.study.trials import Trial

_RATES = (1e-4, 3e-4, 1e-3)
_LADDER = (1e-5, 3e-5, *_RATES, 3e-3, 1e-2, 3e-2, 1e-1)  # rates that the best arm may go on to

BUDGETS = {
    "quick": {
        "depths": 2,
        "learning_rates": _RATES,
        "rates_of_other_depths": (3e-4,),
        "rates_of_other_cuts": (3e-4, 1e-3),
        "rungs": ((60, 1), (120, 2)),
        "pairs": 5,
    },
    "standard": {"depths": 4, "learning_rates": _RATES, "rungs": ((60, 1), (200, 3)), "pairs": 6},
    "thorough": {"depths": 8, "learning_rates": (*_RATES, 3e-3), "rungs": ((60, 1), (200, 2), (200, 5)), "pairs": 10},
}
"""At how many depths learning may begin, at which rates (fewer ones where `quick` looks beyond the middle depth and
the first cut); of each rung of the race the steps, and the splits that judge it; the final's pairs at most."""

REDUCTION = 3  # of the arms in a rung of the race, one in so many goes on to the next (successive halving's eta)
RACE_SEED = 1000  # splits of the race beyond the run's own: seeds from here on, which the final does not use
# Random weights are trained in earnest or not at all; the rate is the better one in short trainings.
_FROM_SCRATCH = {"race": 200, "final": 600, "learning_rates": (1e-3, 3e-3)}
_SHARE_OF_EVERYTHING = 0.5  # of the fine-tuned arm's time in the final: at most that for the one where all learns
_FEW = 2  # pairs of the controls in the final
_SMALL = 1e7  # multiply-adds of a network whose trainings take seconds on any machine: it gets all controls
_MOST_PAIRS = 20  # no more pairs for spare minutes: the images, not the seeds, limit the answer then

Arm = tuple[str, str, float]  # cut point, first stage that learns, learning rate


@dataclass(frozen=True)
class Plan:
    """What a study does."""

    arms: tuple[Arm, ...]  # the fine-tuned ones, the cheapest first
    reference: Arm  # the one that 03 trains; it stays in the race to the end
    frozen: str  # cut point of the frozen arm
    rungs: tuple[tuple[int, int], ...]  # of the race: steps, and on how many splits arms are judged
    pairs: int  # splits and seeds of the final, at most
    scratch: bool  # whether the network is trained from random weights, too
    measured: dict  # what this machine needs (`Experiment.measure`)
    costs: dict  # share of the forward cost below each stage, and below the end

    @property
    def steps(self) -> int:
        """The length of a whole training, in updates of the weights."""
        return self.rungs[-1][0]

    @property
    def first(self) -> str:
        """The network's first stage: from there on, everything learns."""
        return next(iter(self.costs))

    def rung(self, number: int, arms: list[Arm]) -> list[Trial]:
        """Returns the trials of a rung of the race, split by split, so that a stop leaves whole splits."""
        steps, splits = self.rungs[number]
        seeds = [0, *range(RACE_SEED + 1, RACE_SEED + splits)]
        return [Trial("race", "fine-tuned", *arm, steps, seed) for seed in seeds for arm in arms]

    def beyond(self, losses: dict[Arm, float]) -> list[Arm]:
        """Returns arms at learning rates that are worth trying, too, after those with these validation log-losses.

        That is the best arm at the next rate, if its own is the highest or lowest tried at its depth; else the other
        depths at its rate. Asked again, with those, it ends when the best rate lies between two others, and
        all depths have been tried at it.
        """
        cut, stage, best = min(losses, key=losses.get)
        if not math.isfinite(losses[cut, stage, best]):
            return []
        tried = [rate for *where, rate in losses if where == [cut, stage]]
        higher = [rate for rate in _LADDER if rate > 1.5 * best] if best == max(tried) else []
        lower = [rate for rate in reversed(_LADDER) if 1.5 * rate < best] if best == min(tried) else []
        if next_rate := (higher + lower)[:1]:
            return [(cut, stage, *next_rate)]
        return [arm for arm in dict.fromkeys((*where, best) for *where, _ in losses) if arm not in losses]

    def survivors(self, number: int) -> int:
        """Returns how many arms a rung of the race has, if there are no ties."""
        count = len(self.arms)
        for _ in range(number):
            count = max(math.ceil(count / REDUCTION), 2)
        return min(count, len(self.arms))

    def scratch_race(self) -> list[Trial]:
        """Returns the trainings from random weights that choose their rate; none if there are none."""
        rates = _FROM_SCRATCH["learning_rates"] if self.scratch else ()
        return [self._from_scratch("race", rate, 0) for rate in rates]

    def _from_scratch(self, phase: str, rate: float, seed: int) -> Trial:
        return Trial(phase, "from scratch", list(self.costs)[-1], self.first, rate, _FROM_SCRATCH[phase], seed)

    def final(self, tuned: Arm, everything: Arm | None, scratch: float, *, pairs: range) -> list[Trial]:
        """Returns the trials of some of the final's pairs (seeds, from 1), so that a stop leaves whole pairs.

        They are of the best fine-tuned arm, the best one in which everything learns (None for none), and the network
        with random weights, at this learning rate (0 for none).
        """
        few = self._everything_pairs(tuned, everything) if everything and everything != tuned else 0
        trials = []
        for seed in pairs:
            trials.append(Trial("final", "frozen", self.frozen, seed=seed))
            trials.append(Trial("final", "fine-tuned", *tuned, self.steps, seed))
            if seed <= few:
                trials.append(Trial("final", "everything", *everything, self.steps, seed))
            if scratch and seed <= _FEW:
                trials.append(self._from_scratch("final", scratch, seed))
            trials += [Trial("final", arm, seed=seed) for arm in ("majority class", "raw pixels")]
        return trials

    def _everything_pairs(self, tuned: Arm, everything: Arm) -> int:
        """Returns how many pairs fit into its share: by counts, the same on every machine."""
        cost, most = (self.costs[cut] - self.costs[stage] for cut, stage, _ in (tuned, everything))
        fitting = int(_SHARE_OF_EVERYTHING * self.pairs * cost / most)
        return min(max(fitting, _FEW if self.measured["multiply_adds"] <= _SMALL else 0), FIRST_LOOK)

    def seconds(self, trial: Trial) -> float:
        """Returns what one trial is expected to take."""
        m = self.measured
        short = {"majority class": 0.1, "raw pixels": 0.3 + 2e-3 * m["everything"], "frozen": m["head"] + 0.1}
        if trial.arm in short:
            return short[trial.arm]
        above = self.costs[trial.cut] - self.costs[trial.stage]
        # with BatchNormalization that learns, a step takes up to twice as long
        factor = m["factor"] * (2 if trial.arm == "from scratch" else 1)
        training = trial.steps / m["batches"] * (m["epoch"] + m["images"] * m["forward"] * above * factor)
        scoring = (m["everything"] - m["images"]) * m["forward"] * above
        return m["begin"] * (1 + above) / 2 + m["head"] / 3 + training + scoring  # several arms share a split's head

    @property
    def expected(self) -> dict[str, float]:
        """Expected seconds of race, final and all of it, in one process."""
        m, rungs = self.measured, range(len(self.rungs))
        race = [trial for n in rungs for trial in self.rung(n, self._typical(self.survivors(n) + (n == 0)))]
        everything = next((arm for arm in self.arms if arm[1] == self.first), None)
        scratch = _FROM_SCRATCH["learning_rates"][0] if self.scratch else 0.0
        final = self.final(self._typical(1)[0], everything, scratch, pairs=range(1, self.pairs + 1))
        of_race, of_final = self._seconds_of(race + self.scratch_race()), self._seconds_of(final)
        stored = sum(self.costs[stage] for stage in sorted({stage for _, stage, _ in self.arms}))
        activations = m["everything"] * m["forward"] * stored
        return {"race": of_race, "final": of_final, "all": activations + of_race + of_final}

    def _seconds_of(self, trials: list[Trial]) -> float:
        """Returns what the trials take, one after the other, as expected; those that are alike are compiled once."""
        kinds = {(t.arm == "from scratch", t.cut, t.stage, t.steps) for t in trials if t.steps}
        building = self.measured["build"] * sum(self.costs[cut] - self.costs[stage] / 2 for _, cut, stage, _ in kinds)
        return building + sum(map(self.seconds, trials))

    def _typical(self, count: int) -> list[Arm]:
        """Returns so many arms, spread over all of them: which ones survive is not known yet."""
        return [self.arms[(2 * number + 1) * len(self.arms) // (2 * count)] for number in range(count)]

    def describe(self) -> str:
        """Returns the plan in a few lines, with the time that it is expected to take."""
        cuts, stages, rates = (list(dict.fromkeys(values)) for values in zip(*self.arms, strict=True))
        rungs = [
            f"{self.survivors(number)} for {steps} steps on {splits} split{'s' * (splits > 1)}"
            for number, (steps, splits) in enumerate(self.rungs)
        ]
        scratch = "; and the network from scratch, at two rates" if self.scratch else ""
        early = f", fewer if the answer is clear after {FIRST_LOOK}" if self.pairs > FIRST_LOOK else ""
        times = {step: _duration(seconds) for step, seconds in self.expected.items()}
        return (
            f"frozen: cut at {self.frozen}\n"
            f"race:   {len(self.arms)} arms: cut at {' or '.join(cuts)}; unfrozen from {', '.join(stages)}; "
            f"learning rate {', '.join(f'{rate:g}' for rate in sorted(rates))}, then beyond, while that is better\n"
            f"        {', then '.join(rungs)}{scratch} (about {times['race']})\n"
            f"final:  {self.pairs} pairs of trainings{early} (about {times['final']})\n"
            f"in all  about {times['all']} on one machine like this"
        )


def read_budget(budget: str | float) -> str | float:
    """Returns a budget's name, or minutes; a ValueError if it is neither."""
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


def read_margin(margin: float) -> float:
    """Returns the margin, given in points, as a difference of accuracies; a ValueError if it is out of range."""
    if not 0 < margin < 100:
        raise ValueError(f"Expected `margin` in points, above 0 and below 100. Received {margin}.")
    return margin / 100


def make_plan(budget: str | float, **known) -> Plan:
    """Returns what fits into a budget; a ValueError if not even a quick race and its final fit into so few minutes.

    Minutes buy the largest of `BUDGETS` that fits, with more pairs if time is left. What is `known`: the cuts to try
    (the first is the frozen arm's), 03's arm (reference), `Experiment.costs`, and what `Experiment.measure` measured.
    """
    minutes = read_budget(budget)
    if isinstance(minutes, str):
        return _plan(minutes, **known)
    available = 0.85 * 60 * minutes  # what was measured in a moment is not exact
    for name in reversed(BUDGETS):
        plan = _plan(name, **known)
        if plan.expected["all"] <= available:
            more = int((available - plan.expected["all"]) / plan.expected["final"] * plan.pairs)
            return replace(plan, pairs=max(min(plan.pairs + more, _MOST_PAIRS), plan.pairs))
    enough = math.ceil(plan.expected["all"] / 0.85 / 60)
    raise ValueError(
        f"A budget of {minutes:g} minutes is too small for a race and a final of {plan.pairs} pairs. On this machine "
        f"{enough} minutes are enough (budget={enough}); fewer or smaller images, or a smaller network, need less."
    )


def _plan(name: str, *, cuts: list[str], reference: Arm, costs: dict[str, float], measured: dict) -> Plan:
    wanted = BUDGETS[name]
    arms, rates = {reference}, wanted["learning_rates"]
    for number, cut in enumerate(cuts):
        # All depths where the frozen network ends; elsewhere the middle one, from which on 03 fine-tunes.
        middle = _spread(costs, cut, 2)[0]
        depths = (middle,) if number else _spread(costs, cut, wanted["depths"])
        for stage in depths:
            beyond = "rates_of_other_cuts" if number else "" if stage == middle else "rates_of_other_depths"
            arms |= {(cut, stage, rate) for rate in wanted.get(beyond, rates)}
    cheapest = sorted(arms, key=lambda arm: (costs[arm[0]] - costs[arm[1]], cuts.index(arm[0]), arm[2]))
    scratch = name == "thorough" or measured["multiply_adds"] <= _SMALL
    return Plan(tuple(cheapest), reference, cuts[0], wanted["rungs"], wanted["pairs"], scratch, measured, costs)


def _spread(costs: dict[str, float], cut: str, depths: int) -> tuple[str, ...]:
    """Returns stages at even shares of the cost of the network up to a cut point, from late to the first one."""
    names = list(costs)[: list(costs).index(cut)]
    shares = [costs[cut] * step / depths for step in range(depths - 1, 0, -1)]
    nearest = [min(names, key=lambda name: abs(costs[name] - share)) for share in shares]
    return (*(name for name in dict.fromkeys(nearest) if name != names[0]), names[0])


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
