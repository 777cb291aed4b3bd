"""What a budget buys: which arms race, for how many steps, on how many splits; and the pairs of the final."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from helpers.evaluation.intervals import FIRST_LOOK
from helpers.study.trials import Trial

_RATES = (1e-4, 3e-4, 1e-3)
_LADDER = (1e-5, 3e-5, *_RATES, 3e-3, 1e-2, 3e-2, 1e-1)  # rates that the best arm may go on to

BUDGETS = {
    "quick": {
        "frozen_shares": (1 / 2, 1 / 4),
        "learning_rates": _RATES,
        "other_rates": (),
        "rungs": ((60, 1), (120, 1)),
        "pairs": 5,
    },
    "standard": {
        "frozen_shares": (3 / 4, 1 / 2, 1 / 4, 0),
        "learning_rates": _RATES,
        "rungs": ((60, 1), (200, 2)),
        "pairs": 6,
    },
    "thorough": {
        "frozen_shares": (7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4, 1 / 8, 0),
        "learning_rates": (*_RATES, 3e-3),
        "rungs": ((60, 1), (200, 1), (200, 3)),
        "pairs": 10,
    },
}
"""What share of the network's cost stays frozen at the depths that are tried; the rates at the middle depth and, if
`other_rates` does not say otherwise, at the others (all get the best rate in any case); of each rung of the race the
steps, and how many fresh splits it adds; the final's pairs at most.

`quick` leaves the first quarter of a large network frozen, which costs much to train and brings next to nothing
(`helpers/study/README.md` has the figures). Small networks are trained as a whole, too."""
VERSION = 3  # of a plan: in a study's file, one of another version does not count

REDUCTION = 3  # of the arms in a rung of the race, one in so many goes on to the next (successive halving's eta)
TIE = 1.01  # log-losses of a few dozen images that differ by no more than this factor are a tie
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

    arms: tuple[Arm, ...]  # the fine-tuned ones that race first, the cheapest first
    depths: tuple[tuple[str, str], ...]  # cut and first stage that learns: all of them are tried at the best rate
    reference: Arm  # the one that 03 trains; it stays in the race to the end
    frozen: str  # cut point of the frozen arm
    rungs: tuple[tuple[int, int], ...]  # of the race: steps, and how many splits each adds
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
        """Returns the trials of a rung of the race, split by split, so that a stop leaves whole splits.

        Each rung has fresh splits: the first one the run's own, the others redraw the validation images.
        """
        steps, splits = self.rungs[number]
        before = sum(added for _, added in self.rungs[:number])
        seeds = [RACE_SEED + place if place else 0 for place in range(before, before + splits)]
        return [Trial("race", "fine-tuned", *arm, steps, seed) for seed in seeds for arm in arms]

    def beyond(self, losses: dict[Arm, float]) -> list[Arm]:
        """Returns arms at learning rates that are worth trying, too, after those with these validation log-losses.

        That is the best arm at the next higher rate, if its own is the highest tried at its depth, or at the next
        lower one, if its own is the lowest of all; else the other depths at its rate. Asked again, with those, it
        ends when all depths have the best rate.
        """
        cut, stage, best = min(losses, key=losses.get)
        if not math.isfinite(losses[cut, stage, best]):
            return []
        higher = [rate for rate in _LADDER if rate > 1.5 * best]
        lower = [rate for rate in reversed(_LADDER) if 1.5 * rate < best]
        if higher and best == max(rate for *where, rate in losses if where == [cut, stage]):
            return [(cut, stage, higher[0])]
        if lower and best == min(arm[2] for arm in losses if arm != self.reference or arm[2] == best):
            return [(cut, stage, lower[0])]
        return [(*where, best) for where in self.depths if (*where, best) not in losses]

    def promoted(self, number: int, losses: dict[Arm, float]) -> list[Arm]:
        """Returns the arms that go on after a rung with these validation log-losses: the best depths' best rates.

        03's arm goes on, too, and so does what can hardly be told from these (`TIE`).
        """
        of_depths = {where: [loss for arm, loss in losses.items() if arm[:2] == where] for where in self.depths}
        best = {where: min(tried) for where, tried in of_depths.items() if tried}
        bound = sorted(best.values())[: self.survivors(number + 1)][-1]
        near = {arm: loss <= TIE * min(best[arm[:2]], bound) and math.isfinite(loss) for arm, loss in losses.items()}
        return self._cheapest_first(arm for arm in losses if near[arm] or arm == self.reference)

    def _cheapest_first(self, arms: Iterable[Arm]) -> list[Arm]:
        return sorted(arms, key=lambda arm: self.costs[arm[0]] - self.costs[arm[1]])

    def survivors(self, number: int) -> int:
        """Returns how many arms a rung of the race has, if there are no ties and no rates beyond those planned."""
        tried = {arm[:2] for arm in self.arms}
        count = len(self.arms) + sum(where not in tried for where in self.depths)
        for _ in range(number):
            count = min(max(math.ceil(count / REDUCTION), 2), len(self.depths))
        return count

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
        if fitting < _FEW:  # one pair would say next to nothing
            fitting = _FEW if self.measured["multiply_adds"] <= _SMALL else 0
        return min(fitting, FIRST_LOOK)

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
        race = [trial for n in rungs for trial in self.rung(n, self._typical(n))]
        everything = next((arm for arm in self._everywhere if arm[1] == self.first), None)
        scratch = _FROM_SCRATCH["learning_rates"][0] if self.scratch else 0.0
        final = self.final(*self._spread(1), everything, scratch, pairs=range(1, self.pairs + 1))
        of_race, of_final = self._seconds_of(race + self.scratch_race()), self._seconds_of(final)
        stored = sum(self.costs[stage] for stage in sorted({stage for _, stage in self.depths}))
        activations = m["everything"] * m["forward"] * stored
        return {"race": of_race, "final": of_final, "all": activations + of_race + of_final}

    def _seconds_of(self, trials: list[Trial]) -> float:
        """Returns what the trials take, one after the other, as expected; those that are alike are compiled once."""
        kinds = {(t.arm == "from scratch", t.cut, t.stage, t.steps) for t in trials if t.steps}
        building = self.measured["build"] * sum(self.costs[cut] - self.costs[stage] / 2 for _, cut, stage, _ in kinds)
        return building + sum(map(self.seconds, trials))

    def _typical(self, number: int) -> list[Arm]:
        """Returns arms that cost about what those of a rung will cost: which ones that are is not known yet."""
        if number == 0:  # each depth gets one more rate
            return [*self.arms, *self._everywhere]
        return [*self._spread(self.survivors(number)), self.reference]

    @property
    def _everywhere(self) -> list[Arm]:
        """One arm at each depth, the cheapest first."""
        return self._cheapest_first((*where, self.reference[2]) for where in self.depths)

    def _spread(self, count: int) -> list[Arm]:
        """Returns so many arms, spread over all depths."""
        arms = self._everywhere
        return [arms[(2 * place + 1) * len(arms) // (2 * count)] for place in range(count)]

    def describe(self) -> str:
        """Returns the plan in a few lines, with the time that it is expected to take."""
        cuts, stages = (list(dict.fromkeys(values)) for values in zip(*self.depths, strict=True))
        rates = sorted({rate for _, _, rate in self.arms})
        rungs = [f"{self.survivors(0)} arms or more for {{}} steps on {{}} split{'s' * (self.rungs[0][1] > 1)}"]
        rungs += [
            f"{self.survivors(number)} or more for {{}} steps on {{}} more" for number in range(1, len(self.rungs))
        ]
        rungs = ", then ".join(text.format(*rung) for text, rung in zip(rungs, self.rungs, strict=True))
        scratch = "; and the network from scratch, at two rates" if self.scratch else ""
        early = f", fewer if the answer is clear after {FIRST_LOOK}" if self.pairs > FIRST_LOOK else ""
        times = {step: _duration(seconds) for step, seconds in self.expected.items()}
        return (
            f"frozen: cut before {self.frozen}\n"
            f"race:   cut before {' or '.join(cuts)}; unfrozen from {', '.join(stages)}; "
            f"learning rate {', '.join(f'{rate:g}' for rate in rates)}, then higher or lower, while that is better\n"
            f"        {rungs}{scratch} (about {times['race']})\n"
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
    small = measured["multiply_adds"] <= _SMALL
    shares = wanted["frozen_shares"] + (0,) * small
    arms, depths, rates = {reference}, [reference[:2]], wanted["learning_rates"]
    for number, cut in enumerate(cuts):
        # All depths where the frozen network ends; elsewhere the middle one, from which on 03 fine-tunes.
        (middle,) = stages_at(costs, cut, [1 / 2])
        for stage in (middle,) if number else stages_at(costs, cut, shares):
            other = number > 0 or stage != middle
            depths.append((cut, stage))
            arms |= {(cut, stage, rate) for rate in (wanted.get("other_rates", rates) if other else rates)}
    cheapest = sorted(arms, key=lambda arm: (costs[arm[0]] - costs[arm[1]], cuts.index(arm[0]), arm[2]))
    return Plan(
        arms=tuple(cheapest),
        depths=tuple(dict.fromkeys(depths)),
        reference=reference,
        frozen=cuts[0],
        rungs=wanted["rungs"],
        pairs=wanted["pairs"],
        scratch=small or name == "thorough",
        measured=measured,
        costs=costs,
    )


def stages_at(costs: dict[str, float], cut: str, shares: Sequence[float]) -> list[str]:
    """Returns the first stages that learn if these shares of the cost of the network up to a cut stay frozen."""
    names = list(costs)[: list(costs).index(cut)]
    nearest = [min(names, key=lambda name: abs(costs[name] - share * costs[cut])) for share in shares]
    return list(dict.fromkeys(nearest))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
