"""The study on small images: splits, arms, race, final; stopped and resumed, and by several workers."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from networks import coloured_images, stage_network
from PIL import Image

import helpers
from helpers.backbones import copy_weights
from helpers.data import check_images, find_images, split_images
from helpers.evaluation.intervals import compare_pairs
from helpers.evaluation.learning_curves import variance_between_pairs
from helpers.plots import plot_costs, plot_depth, plot_differences, plot_labels, plot_rates, plot_stages
from helpers.study import Experiment, LabelCurve, Study, summarize
from helpers.study import experiment as experiments
from helpers.study import plan as planning
from helpers.study.experiment import _scores, unpack
from helpers.study.plan import Plan, make_plan
from helpers.study.study import candidate_cuts
from helpers.study.trials import Trial
from helpers.study.verdict import decide
from helpers.training import compute_activations

MEASURED = {"forward": 1e-3, "factor": 3.0, "build": 2.0, "head": 0.5, "images": 100, "everything": 400}
MEASURED |= {"multiply_adds": 10**9, "epoch": 0.1, "begin": 0.5, "batches": 4}
COSTS = {"conv1": 0.0, "conv2": 0.2, "conv3": 0.5, "conv4": 0.7, "head": 1.0}
SMALL = {"frozen_shares": (2 / 3, 1 / 3, 0), "learning_rates": (1e-3, 1e-2), "rungs": ((4, 1), (8, 1)), "pairs": 3}
ARMS = {"cuts": ["head", "conv4"], "reference": ("head", "conv3", 2e-3), "costs": COSTS, "measured": MEASURED}
FROM_SCRATCH = planning._FROM_SCRATCH


def write_images(folder: Path, count: int = 120) -> Path:
    images, labels = coloured_images(count)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / f"colour{label}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def make_experiment(folder: Path, **recipe) -> Experiment:
    checked, _ = check_images(find_images(folder))
    images = split_images(checked, test_fraction=0.4, seed=0)
    return Experiment(stage_network(dropout=0.1), images, resize="crop", **recipe)


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory):
    """One root for all tests; a small budget, short trainings from scratch, and nothing that is measured."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("root")
        patch.setattr(helpers, "ROOT", root)
        patch.setitem(planning.BUDGETS, "small", SMALL)
        patch.setattr(planning, "_FROM_SCRATCH", FROM_SCRATCH | {"race": 10, "final": 20})
        patch.setattr(Experiment, "measure", lambda self, stage: MEASURED | {"multiply_adds": self.multiply_adds})
        yield root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def experiment(folder):
    return make_experiment(folder)


@pytest.fixture(scope="module")
def probe(experiment):
    return experiment.probe()


@pytest.fixture
def make_study(experiment, probe, tmp_path):
    """Returns a function that makes a study, always with the same file."""

    def make(**options) -> Study:
        options = {"budget": "small", "reference": ("all", 2e-3), "file": tmp_path / "study.jsonl"} | options
        return Study(experiment, probe, **options)

    return make


def whole(study: Study) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    race = study.race()
    final = study.final(race)
    return race, final, study.verdict(final)


def comparable(result) -> str:
    """Returns the tables without what another execution measures anew: seconds and memory."""
    race, final, verdict = result
    final = final.assign(correct=final["correct"].map(lambda c: "".join(map(str, c.astype(int)))))
    tables = [race.drop(columns="seconds"), final.drop(columns=["seconds", "memory_mb"])]
    return "\n".join(table.to_csv() for table in tables) + json.dumps(verdict["comparison"])


@pytest.fixture(scope="module")
def undisturbed(experiment, probe, root):
    """A study that ran through, and its tables."""
    study = Study(experiment, probe, file=root / "study.jsonl", budget="small", reference=("all", 2e-3))
    return study, whole(study)


# ---- splits and arms


def test_other_seeds_redraw_validation_images_and_leave_the_test_alone(experiment):
    splits = [experiment.split(seed)[0] for seed in (0, 1, 2)]
    for pixels in splits:
        train, validation, test = (set(pixels[part].keys) for part in ("train", "validation", "test"))
        assert not train & validation and not (train | validation) & test
        assert pixels["test"].keys == splits[0]["test"].keys
        assert (len(train), len(validation)) == (len(splits[0]["train"]), len(splits[0]["validation"]))
    assert set(splits[1]["validation"].keys) != set(splits[2]["validation"].keys)
    assert len(experiment.split(1)[1]["train"]) == len(splits[1]["train"])


def test_groups_stay_together_when_validation_images_are_redrawn(folder):
    experiment = make_experiment(folder)
    learn = experiment.images["split"] != "test"
    pairs = (experiment.images.groupby("label").cumcount() // 2).astype(str)
    experiment.images["group"] = (experiment.images["label"] + pairs).where(learn, "")
    pixels, _ = experiment.split(5)
    group = dict(zip(experiment.images["sha256"], experiment.images["group"], strict=True))
    of = {part: {group[key[:64]] for key in pixels[part].keys} for part in ("train", "validation")}
    assert not of["train"] & of["validation"]


def test_a_trial_does_not_depend_on_those_before_it_and_the_pretrained_weights_come_back(folder):
    trials = [Trial("final", "fine-tuned", "conv3", "conv2", 1e-2, 8, 1)]
    trials += [Trial("final", "everything", "head", "conv1", 1e-3, 4, 1)]
    trials += [Trial("final", "from scratch", "head", "conv1", 1e-2, 8, 1), Trial("final", "frozen", "conv3", seed=1)]

    def results(order: list[Trial]) -> dict:
        experiment = make_experiment(folder)
        before, settings = copy_weights(experiment.network), experiment.settings
        found = {trial: experiment.run(trial) for trial in order}
        experiment.probe()
        for path, value in copy_weights(experiment.network).items():
            if "seed_generator" not in path:
                np.testing.assert_array_equal(np.array(value), before[path], err_msg=path)
        assert experiment.settings == settings
        assert Experiment(experiment.network, experiment.images, resize="pad").settings != settings
        timed = ("seconds", "wall_seconds", "memory_mb")
        return {t: {k: v for k, v in found[t].items() if k not in timed} for t in trials}

    forwards = results([*trials, Trial("race", "fine-tuned", "head", "conv2", 1e-3, 8, 2)])
    assert results([Trial("race", "fine-tuned", "conv3", "conv2", 1e-1, 8, 2), *reversed(trials)]) == forwards
    assert forwards[trials[0]]["correct"] != forwards[trials[3]]["correct"]


def test_batches_of_many_activations_are_computed_in_parts(folder, monkeypatch):
    monkeypatch.setattr("helpers.study.experiment._MOST_BYTES", 500_000)
    trials = {stage: Trial("final", "fine-tuned", "head", stage, 1e-3, 8, 1) for stage in ("conv1", "conv3")}
    experiment = make_experiment(folder)
    parts = {stage: experiment._recipe(trial).batch_parts for stage, trial in trials.items()}
    assert parts["conv1"] > parts["conv3"] >= 1
    whole = make_experiment(folder, batch_norm="train")
    assert {whole._recipe(trial).batch_parts for trial in trials.values()} == {1}


def test_balanced_class_weights_reach_every_arm(tmp_path):
    folder = write_images(tmp_path / "images", 450)
    for file in sorted((folder / "colour2").iterdir())[30:]:
        file.unlink()
    plain, balanced = (make_experiment(folder, class_weight=weight) for weight in ("", "balanced"))
    rare = balanced.class_names.index("colour2")
    trials = [Trial("final", "frozen", "head", seed=1), Trial("final", "from scratch", "head", "conv1", 1e-3, 60, 1)]
    trials += [Trial("final", "fine-tuned", "head", "conv2", 1e-3, 20, 1)]

    def recall(experiment, trial: Trial) -> float:
        return unpack(experiment.run(trial))[experiment.split(1)[1]["test"] == rare].mean()

    for trial in trials:
        assert recall(balanced, trial) > recall(plain, trial), trial.arm
    assert (balanced.probe()["log_loss"] != plain.probe()["log_loss"]).all()
    pixels, labels = balanced.training_images()
    again = [e.retrain(trials[0]).predict(pixels[:], verbose=0).argmax(axis=1) for e in (plain, balanced)]
    of_rare = [(predicted == rare)[labels == rare].mean() for predicted in again]
    assert of_rare[1] > of_rare[0]
    assert plain.settings == make_experiment(folder).settings != balanced.settings, "no weights are the default"


def test_an_arm_ends_at_its_cut(folder):
    """What lies behind the cut has no part in it: with other weights there, the results are the same."""
    losses = []
    for factor in (1.0, 3.0):
        experiment = make_experiment(folder)
        layer = experiment.network.get_layer("conv3_conv")
        layer.set_weights([factor * weight for weight in layer.get_weights()])
        experiment._pretrained = experiment.network.get_weights()
        arms = [Trial("final", "frozen", "conv3", seed=1)]
        arms += [Trial("final", "fine-tuned", cut, "conv2", 1e-2, 8, 1) for cut in ("conv3", "head")]
        losses.append([experiment.run(arm)["log_loss"] for arm in arms])
    assert losses[0][:2] == losses[1][:2] and losses[0][2] != losses[1][2]


def test_two_cuts_are_tried_the_one_that_02_takes_first():
    probe = pd.DataFrame({"cut": ["a", "b", "head"], "log_loss": [0.5, 0.3, 0.4], "behind": [0.2, 0.0, 0.1]})
    assert candidate_cuts(probe.assign(error=[0.1, 0.0, 0.05])) == ["b", "head"]
    assert candidate_cuts(probe.assign(error=[0.1, 0.0, 0.15])) == ["head", "b"]
    assert candidate_cuts(probe.assign(error=[0.1, 0.0, 0.05]), "a") == ["a", "head"]
    assert candidate_cuts(probe.assign(log_loss=np.nan, behind=np.nan, error=np.nan)) == ["head"]
    assert candidate_cuts(probe.iloc[2:].assign(behind=0.0, error=0.0)) == ["head"]


def test_scores_are_those_of_the_test_images_also_with_augmentation(experiment, folder):
    labels = experiment.split(1)[1]
    result = experiment.run(Trial("final", "majority class", seed=1))
    np.testing.assert_array_equal(unpack(result), labels["test"] == np.bincount(labels["train"]).argmax())
    assert result["test_accuracy"] == unpack(result).mean()
    augmented = make_experiment(folder, augmentation="flip")
    result = augmented.run(Trial("final", "fine-tuned", "head", "conv3", 1e-2, 8, 1))
    assert len(unpack(result)) == len(labels["test"]) and result["outcome"] == "all 4 epochs"


# ---- the plan


def test_cheap_arms_come_first_and_everything_last():
    plan = make_plan("standard", **ARMS)
    assert plan.frozen == "head" and plan.arms[-1][1] == "conv1" and ARMS["reference"] in plan.arms
    tried = {("head", stage) for stage in ("conv4", "conv3", "conv2", "conv1")} | {("conv4", "conv2")}
    assert {arm[:2] for arm in plan.arms} == tried and len(set(plan.arms)) == 5 * 3 + 1
    assert set(plan.depths) == tried and [plan.survivors(number) for number in (0, 1)] == [16, 5]
    seconds = [plan.seconds(trial) for trial in plan.rung(0, list(plan.arms))]
    assert seconds == sorted(seconds)
    trials = [trial for number in (0, 1) for trial in plan.rung(number, [ARMS["reference"]])]
    seeds = [trial.seed for trial in trials]
    assert len(set(seeds)) == 3 and seeds[0] == 0, "each rung has fresh splits"
    assert [trial.steps for trial in trials] == [60, 200, 200]
    final = plan.final(ARMS["reference"], None, 0.0, pairs=range(1, 21))
    assert not set(seeds) & {trial.seed for trial in final}, "the final's splits are fresh ones"


def test_quick_tries_the_deeper_stage_at_the_best_rate_only_and_everything_where_that_is_cheap():
    plan = make_plan("quick", **ARMS)
    assert set(plan.depths) == {("head", "conv3"), ("head", "conv2"), ("conv4", "conv2")}
    assert {arm[:2] for arm in plan.arms} == {("head", "conv3")}
    plan = make_plan("quick", **ARMS | {"measured": MEASURED | {"multiply_adds": 10**6}})
    assert ("head", "conv1") in plan.depths and "conv1" not in {arm[1] for arm in plan.arms}
    losses = {arm: abs(math.log(arm[2] / 3e-4)) + (arm[0] != "head") for arm in plan.arms}
    while arms := plan.beyond(losses):
        losses |= dict.fromkeys(arms, 5.0)
    tried = {where: {arm[2] for arm in losses if arm[:2] == where} for where in plan.depths}
    assert tried.pop(("head", "conv3")) == {1e-4, 3e-4, 1e-3, 2e-3}
    assert set(map(tuple, tried.values())) == {(3e-4,)} and len(tried) == 3
    assert plan.survivors(0) == len(losses)


def test_of_each_depth_the_best_rate_goes_on_with_03s_arm():
    plan = make_plan("quick", **ARMS)
    cut = plan.reference[0]
    losses = {arm: 1.0 for arm in plan.arms} | {plan.reference: 9.0}
    losses |= {(*where, 5e-4): 0.5 + 0.1 * number for number, where in enumerate(plan.depths)}
    losses[cut, plan.depths[0][1], 6e-4] = 0.51
    near = (cut, plan.depths[0][1], 7e-4)
    losses[near] = 0.504
    ahead = [(*where, 5e-4) for where in plan.depths[: plan.survivors(1)]]
    assert set(plan.promoted(0, losses)) == {*ahead, near, plan.reference}
    failed = dict.fromkeys(losses, math.inf)
    assert plan.promoted(0, failed) == [plan.reference] == plan.promoted(1, {plan.reference: math.inf})
    one = plan.depths[-1]
    failed = losses | {arm: math.inf for arm in losses if arm[:2] == one}
    thorough = replace(plan, arms=3 * plan.arms)  # so many that each depth goes on
    assert thorough.survivors(1) == len(plan.depths)
    assert one in {arm[:2] for arm in thorough.promoted(0, losses)}
    assert one not in {arm[:2] for arm in thorough.promoted(0, failed)}


def test_what_the_final_takes_does_not_depend_on_03s_arm_alone():
    plans = [
        make_plan("quick", **ARMS | {"reference": ("head", stage, 1e-3)}) for stage in ("conv2", "conv3", "conv4")
    ]
    assert len({plan.expected["final"] for plan in plans}) == 1


def test_the_best_arm_climbs_to_higher_rates_and_from_the_lowest_of_all_to_lower_ones():
    depths = (("head", "conv1"), ("head", "conv3"), ("head", "conv2"), ("conv4", "conv3"))
    plan = replace(make_plan("small", **ARMS), depths=depths[:2])
    losses = {("head", "conv1", 1e-3): 2.0, ("head", "conv3", 1e-3): 1.0, ("head", "conv3", 7e-4): 1.1}
    assert plan.beyond(losses) == [("head", "conv3", 3e-3)]
    assert plan.beyond(losses | {("head", "conv3", 3e-3): 1.5}) == []
    lower = losses | {("head", "conv3", 3e-3): 1.5, ("head", "conv3", 7e-4): 0.9}
    assert plan.beyond(lower) == [("head", "conv3", 3e-4)]
    assert plan.beyond(lower | {("conv4", "conv3", 1e-4): 3.0}) == [("head", "conv1", 7e-4)], "a lower one was tried"
    lone = replace(plan, reference=("head", "conv1", 1e-5))
    assert lone.beyond(lower | {lone.reference: 5.0}) == [("head", "conv3", 3e-4)], "03's own arm does not count"
    assert plan.beyond(losses | {("head", "conv3", 3e-3): 0.5}) == [("head", "conv3", 1e-2)]
    deeper = {("head", "conv3", 3e-3): 1.5, ("head", "conv1", 1e-3): 0.5}
    assert plan.beyond(losses | deeper) == [("head", "conv1", 3e-3)], "deeper stages may bear higher rates"
    between = {("head", "conv3", 3e-3): 1.5, ("head", "conv3", 2e-4): 1.5}
    assert plan.beyond(losses | between) == []
    others = {("head", "conv1", 1e-4): 3.0, ("head", "conv2", 3e-4): 3.0, ("conv4", "conv3", 3e-4): 3.0}
    plan = replace(plan, depths=depths)
    assert plan.beyond(losses | between | others) == [("head", "conv2", 1e-3), ("conv4", "conv3", 1e-3)]
    assert plan.beyond({("head", "conv3", 2e-3): 1.0}) == [("head", "conv3", 1e-2)], "3e-3 is nearly the same"
    assert plan.beyond({("head", "conv3", 0.1): 1.0}) == [("head", "conv3", 0.03)]
    assert plan.beyond({("head", "conv3", 1e-3): math.inf}) == [], "all have failed"


def test_the_final_has_both_arms_on_the_same_seeds_and_fewer_pairs_of_the_controls():
    plan = make_plan("thorough", **ARMS)
    everything = ("head", "conv1", 1e-4)
    final = plan.final(("head", "conv3", 1e-3), everything, 1e-3, pairs=range(1, 11))
    seeds = {arm: [trial.seed for trial in final if trial.arm == arm] for arm in {trial.arm for trial in final}}
    assert seeds["frozen"] == seeds["fine-tuned"] == seeds["majority class"] == [*range(1, 11)]
    assert seeds["everything"] == [1, 2] and seeds["from scratch"] == [1, 2], "half of the cost, half of the time"
    assert [trial.seed for trial in final] == sorted(trial.seed for trial in final)
    fewer = make_plan("standard", **ARMS).final(("head", "conv3", 1e-3), everything, 0.0, pairs=range(1, 7))
    assert "everything" not in {trial.arm for trial in fewer}, "one pair alone is none"
    again = plan.final(everything, everything, 0.0, pairs=range(1, 11))  # then fine-tuned is everything
    assert {trial.arm for trial in again} == {"frozen", "fine-tuned", "majority class", "raw pixels"}


def test_from_scratch_is_trained_in_earnest_or_not_at_all(monkeypatch):
    monkeypatch.setattr(planning, "_FROM_SCRATCH", FROM_SCRATCH)
    assert make_plan("standard", **ARMS).scratch_race() == []
    small = ARMS | {"measured": MEASURED | {"multiply_adds": 10**6}}
    for plan in (make_plan("thorough", **ARMS), make_plan("quick", **small)):
        race = plan.scratch_race()
        assert len({trial.learning_rate for trial in race}) == 2 and {trial.seed for trial in race} == {0}
        final = plan.final(ARMS["reference"], None, 1e-3, pairs=range(1, 4))
        assert {trial.steps for trial in race} == {200}
        assert {trial.steps for trial in final if trial.arm == "from scratch"} == {600}


def test_minutes_buy_the_largest_plan_that_fits_or_say_what_would_be_enough(monkeypatch):
    monkeypatch.delitem(planning.BUDGETS, "small")
    quick, standard, thorough = (make_plan(name, **ARMS) for name in ("quick", "standard", "thorough"))
    assert quick.expected["all"] < standard.expected["all"] < thorough.expected["all"]
    minutes = standard.expected["all"] / 60 / 0.8
    bought = make_plan(minutes, **ARMS)
    assert bought.arms == standard.arms and bought.expected["all"] <= 60 * minutes
    assert make_plan(str(minutes), **ARMS) == bought  # as the command line gives it
    assert make_plan(1e4, **ARMS).pairs == 20
    with pytest.raises(ValueError, match="too small") as refused:
        make_plan(0.1, **ARMS)
    enough = int(str(refused.value).split("budget=")[1].split(")")[0])
    assert make_plan(enough, **ARMS) and enough < 2 * quick.expected["all"] / 60 + 1
    for wrong in ("huge", 0, -5, float("nan")):
        with pytest.raises(ValueError, match='"quick", "standard", "thorough"'):
            make_plan(wrong, **ARMS)


def test_a_network_with_a_single_cut_point_has_a_plan():
    known = ARMS | {"cuts": ["head"], "reference": ("head", "conv1", 1e-3), "costs": {"conv1": 0.0, "head": 1.0}}
    plan = make_plan("standard", **known)
    assert {arm[:2] for arm in plan.arms} == {("head", "conv1")} and len(plan.arms) == 3
    assert plan.describe() and plan.expected["all"] > 0


# ---- the study


def test_the_race_halves_and_the_best_goes_into_the_final(undisturbed):
    study, (race, final, _) = undisturbed
    first, last = (race[race["rung"] == n].set_index(["cut", "stage", "learning_rate"])["log_loss"] for n in (1, 2))
    assert set(study.plan.arms) < set(first.index) and np.isfinite(race["log_loss"]).all()
    assert study.plan.beyond(dict(first.items())) == [], "all depths have the best rate"
    best = first.loc[first.groupby(["cut", "stage"]).idxmin()]
    ahead = best.nsmallest(study.plan.survivors(1))
    assert {*ahead.index, study.plan.reference} <= set(last.index)
    assert (first[last.index].drop(study.plan.reference) <= planning.TIE * ahead.max()).all(), "and ties"
    done = {t: r for t, r in study.trials.results().items() if t.phase == "race" and t.arm == "fine-tuned"}
    assert {(t.steps, t.seed) for t in done} == {(4, 0), (8, planning.RACE_SEED + 1)}, "fresh splits in each rung"
    losses = {(t.cut, t.stage, t.learning_rate, t.steps): r["log_loss"] for t, r in done.items()}
    means = {arm: np.mean([losses[*arm, steps] for steps in (4, 8)]) for arm in last.index}
    assert means == last.to_dict(), "over all splits so far"
    assert set(race.loc[race["rung"] == 2, "splits"]) == {2} and set(race["steps"]) == {4, 8}
    assert (race["low"] <= race["accuracy"]).all()
    tuned, frozen = (final[final["arm"] == name] for name in ("fine-tuned", "frozen"))
    assert {(row.cut, row.stage, row.learning_rate) for row in tuned.itertuples()} == {study.best_arm(race)}
    assert last.idxmin() == study.best_arm(race)
    assert set(frozen["cut"]) == {study.plan.frozen} and sorted(frozen["pair"]) == [1, 2, 3]


def test_03s_arm_and_ties_stay_in_the_race(make_study, monkeypatch):
    study = make_study()
    reference = study.plan.reference

    def run(trial: Trial) -> dict:
        arm = trial.cut, trial.stage, trial.learning_rate
        loss = 9.0 if arm == reference else 0.25
        return {"outcome": "all 1 epochs", "log_loss": loss, "accuracy": 0.5, "seconds": 1.0}

    monkeypatch.setattr(study.experiment, "run", run)
    race = study.race()
    first, last = (
        race.loc[race["rung"] == rung, ["cut", "stage", "learning_rate"]].values.tolist() for rung in (1, 2)
    )
    assert sorted(first) == sorted(last) and list(reference) in last, "all tie for two places"


@pytest.mark.parametrize(("right", "pairs"), [((0.4, 0.95), 4), ((0.8, 0.8), 6)])
def test_the_final_ends_early_if_the_answer_is_clear(make_study, monkeypatch, right, pairs):
    monkeypatch.setitem(planning.BUDGETS, "small", SMALL | {"pairs": 6})
    study, rng = make_study(), np.random.default_rng(pairs)

    def run(trial: Trial) -> dict:
        correct = rng.random(48) < right[trial.arm == "fine-tuned"]
        scores = _scores((~correct).astype(int), np.zeros(48, int)) if trial.phase == "final" else {}
        known = {"outcome": "x", "log_loss": 1.0, "accuracy": 0.5, "seconds": 1.0, "memory_mb": 1.0}
        return known | {"trainable_weights": 1, "temperature": 1.0} | scores

    monkeypatch.setattr(study.experiment, "run", run)
    answer = whole(study)[2]
    assert answer["comparison"]["pairs"] == pairs and answer["pairs_planned"] == 6, answer["headline"]


def test_the_verdict_says_what_the_tables_say(undisturbed):
    _, (_, final, verdict) = undisturbed
    arms = summarize(final)
    assert set(arms.index) == set(verdict["arms"])
    assert verdict["verdict"] == decide(verdict["comparison"])
    difference = arms.loc["fine-tuned", "test_accuracy"] - arms.loc["frozen", "test_accuracy"]
    assert verdict["comparison"]["difference"] == pytest.approx(difference)
    assert arms.loc["fine-tuned", "difference"] == pytest.approx(difference)
    assert verdict["arms"]["frozen"]["test_accuracy"] == arms.loc["frozen", "test_accuracy"]
    assert set(verdict) == set(json.loads(json.dumps(verdict)))  # plain values
    assert verdict["stopped"] == "" and verdict["pairs_planned"] == 3
    assert (arms["memory_mb"] >= 0).all() and (arms["seconds"] > 0).all()
    assert arms.loc["majority class", "test_accuracy"] == pytest.approx(1 / 3, abs=0.02)


def test_a_stopped_study_ends_with_the_same_table(undisturbed, make_study, monkeypatch):
    run = undisturbed[0].experiment.run
    for trials in (4, 12):  # the first stop is in the race, the second one in the final
        study = make_study()

        def interrupted(trial: Trial, study=study, trials=trials) -> dict:
            if len(study.trials.done) == trials:
                raise KeyboardInterrupt
            return run(trial)

        monkeypatch.setattr(study.experiment, "run", interrupted)
        verdict = whole(study)[2]
        assert "interrupted" in study.stopped and "not complete: the" in verdict["paragraph"]
    monkeypatch.setattr(study.experiment, "run", run)
    study = make_study()
    assert comparable(whole(study)) == comparable(undisturbed[1]) and 0 < len(study.trials.done) < 30


def test_workers_of_a_cluster_end_with_the_same_table(undisturbed, make_study):
    """To float rounding, since each worker computes with fewer threads."""
    shared, expected = whole(make_study(cluster=2)), undisturbed[1]
    for number, changing in enumerate(["seconds", ["seconds", "memory_mb", "correct"]]):
        tables = (result[number].drop(columns=changing) for result in (shared, expected))
        pd.testing.assert_frame_equal(*tables, rtol=1e-4)
    assert shared[2]["comparison"] == expected[2]["comparison"]
    alone = make_study()
    assert comparable(whole(alone)) == comparable(shared) and alone.trials.done == []


def test_after_the_given_minutes_it_ends_with_what_there_is(make_study, probe):
    study = make_study()
    study._deadline = -math.inf
    race, final, verdict = whole(study)
    assert race.empty and study.stopped == "the minutes given were over in the race"
    assert verdict["verdict"] == "none" and verdict["headline"].startswith("No verdict")
    assert "minutes given were over" in verdict["paragraph"]
    figures = [plot_rates(race), plot_depth(probe, race), plot_costs(summarize(final))]
    assert all(figure.description for figure in [*figures, plot_differences(verdict["comparison"])])
    arm, pixels = study.chosen_arm(final, verdict), study.experiment.split(0)[0]
    assert (arm.arm, arm.cut, arm.stage) == ("frozen", study.plan.frozen, "")
    assert plot_stages(study.experiment.network, cut=arm.cut, learns_from=arm.stage).description
    assert compute_activations(study.retrain(final, verdict), pixels["test"]).shape == (len(pixels["test"]), 3)


@pytest.mark.parametrize("scratch", [True, False])  # a large network has no training between race and final
def test_the_race_leaves_the_final_its_time_and_its_stop_is_told(make_study, monkeypatch, scratch):
    study = make_study()
    object.__setattr__(study.plan, "scratch", scratch)
    monkeypatch.setattr(Plan, "seconds", lambda _, trial: 0.01 if trial.phase == "final" else 1e3 * (trial.steps > 4))
    study._deadline = time.monotonic() + 500  # enough for short trials, and then for the final
    race, _, verdict = whole(study)
    assert set(race["rung"]) == {1} and verdict["comparison"]["pairs"] == 3
    where = "controls" if scratch else "race"
    assert f"not complete: the minutes given were over in the {where}" in verdict["paragraph"]


@pytest.mark.parametrize(("unfinished", "rate"), [(0, 1e-2), (3, 1e-3), (2, 1e-4), (1, 3e-4)])
def test_the_best_arm_is_of_the_last_rung_that_was_completed(unfinished, rate):
    """Of a rung that was cut there are the cheapest arms only; of the first one, nothing else is there."""
    rungs = {1: [(3e-4, 0.1), (1e-4, 0.2)], 2: [(1e-3, 0.3), (1e-4, 0.4)], 3: [(1e-2, 0.5), (1e-3, 0.6)]}
    rungs = {rung: arms for rung, arms in rungs.items() if not unfinished or rung <= unfinished}
    if unfinished == 2:  # the rung before it counts, in which this one was best
        rungs[1] = [(3e-4, 0.2), (1e-4, 0.1)]
    rows = [("head", "conv3", rate, rung, loss) for rung, arms in rungs.items() for rate, loss in arms]
    race = pd.DataFrame(rows, columns=["cut", "stage", "learning_rate", "rung", "log_loss"])
    assert Study.best_arm(SimpleNamespace(_unfinished_rung=unfinished), race) == ("head", "conv3", rate)


def test_minutes_can_be_added_and_what_makes_no_sense_is_refused(make_study, monkeypatch):
    monkeypatch.delitem(planning.BUDGETS, "small")
    monkeypatch.setitem(planning.BUDGETS, "quick", SMALL)
    for wrong in ({"margin": 0}, {"budget": "enormous"}, {"budget": 0.001}, {"reference": ("conv9", 1e-3)}):
        with pytest.raises(ValueError, match="Expected|too small"):
            make_study(**{"budget": "quick"} | wrong)
    plan = make_study(budget=50).plan
    assert make_study(budget="60.0").plan == plan


def test_another_plan_does_only_what_is_not_done_yet_and_does_not_change_the_first(make_study, monkeypatch):
    monkeypatch.setitem(planning.BUDGETS, "larger", SMALL | {"pairs": 4})
    first = whole(make_study())
    done = {*make_study().trials.results()}
    wider = make_study(margin=30.0)
    wider.verdict(wider.final(wider.race()))
    assert wider.trials.done == [], "another margin needs no training"
    larger = make_study(budget="larger")
    larger.final(larger.race())
    assert {trial.phase for trial in larger.trials.done} == {"plan", "final"}, "the race is the same"
    other = make_study(reference=("all", 4e-3))
    other.race()
    new = {(trial.phase, trial.learning_rate) for trial in other.trials.done if trial.phase == "race"}
    assert new == {("race", 4e-3)} and not done & {*larger.trials.done, *other.trials.done}
    again = make_study()
    race, final, verdict = whole(again)
    assert again.trials.done == []
    pd.testing.assert_frame_equal(race, first[0])
    pd.testing.assert_frame_equal(final, first[1])
    assert verdict == first[2]


def test_one_training_image_of_a_class_is_enough_for_a_final(experiment, probe, tmp_path):
    unknown = probe.assign(log_loss=math.nan, behind=math.nan, error=math.nan)
    study = Study(experiment, unknown, file=tmp_path / "study.jsonl", budget="small")
    assert set(study.final(study.race()).query("arm == 'frozen'")["cut"]) == {study.experiment.end}


def test_the_chosen_model_learns_from_all_images_and_not_from_what_was_done_before(undisturbed, folder):
    study, (_, final, verdict) = undisturbed
    pixels, labels = study.experiment.split(0)
    chosen = verdict | {"chosen": "fine-tuned"}
    untouched = SimpleNamespace(experiment=make_experiment(folder), chosen_arm=study.chosen_arm)
    fresh = Study.retrain(untouched, final, chosen)
    for choice in ("frozen", "fine-tuned"):
        model = study.retrain(final, verdict | {"chosen": choice})
        assert (compute_activations(model, pixels["test"]).argmax(axis=1) == labels["test"]).mean() > 0.6
        assert model.input_shape == (None, 8, 8, 3) and model.output_shape == (None, 3)
    kept = [np.array(weight) for weight in model.trainable_weights]
    study.experiment.run(Trial("race", "fine-tuned", "head", "conv1", 1e-1, 8, 1))
    for weight, before, other in zip(model.trainable_weights, kept, fresh.trainable_weights, strict=True):
        np.testing.assert_array_equal(np.array(weight), before)
        np.testing.assert_array_equal(np.array(other), before)


def test_a_diverged_arm_is_recorded_and_the_study_goes_on(make_study, monkeypatch):
    monkeypatch.setitem(planning.BUDGETS, "small", SMALL | {"learning_rates": (1e-3, 1e30)})
    study = make_study()
    race = study.race()
    wild = race[race["learning_rate"] == 1e30]
    assert len(wild) and wild["outcome"].str.startswith(("diverged", "failed")).all()
    assert study.best_arm(race)[2] < 1


# ---- how many labels


def test_a_fraction_of_the_labels_is_nested_and_leaves_the_other_parts_alone(experiment):
    pixels, labels = experiment.split(1)
    keys = [set(experiment.split(1, fraction)[0]["train"].keys) for fraction in (0.125, 0.25, 0.5)]
    assert keys[0] < keys[1] < keys[2] < set(pixels["train"].keys)
    assert keys[2] != set(experiment.split(2, 0.5)[0]["train"].keys)
    few = experiment.split(1, 0.01)
    assert np.bincount(few[1]["train"]).tolist() == [2, 2, 2]  # never fewer
    for part in ("validation", "test"):
        assert few[0][part].keys == pixels[part].keys and (few[1][part] == labels[part]).all()


@pytest.mark.parametrize("arm", ["frozen", "fine-tuned"])
def test_an_arm_learns_from_its_fraction_alone(experiment, monkeypatch, arm):
    learned, fit, train = [], experiment._fit_head, experiments.fine_tune
    experiment._solved.cache_clear()  # heads that other tests have fitted
    monkeypatch.setattr(experiment, "_fit_head", lambda x, labels: learned.append(len(labels)) or fit(x, labels))

    def fine_tune(model, pixels, labels, **options):
        learned.append(sorted(pixels["train"].keys))
        return train(model, pixels, labels, **options)

    monkeypatch.setattr(experiments, "fine_tune", fine_tune)
    learns = ("conv3", 1e-3, 4) if arm == "fine-tuned" else ("", 0.0, 0)
    result = experiment.run(Trial("labels", arm, "head", *learns, seed=1, fraction=0.5))
    expected = sorted(experiment.split(1, 0.5)[0]["train"].keys)
    assert learned == ([len(expected)] if arm == "frozen" else [len(expected), expected])
    assert len(unpack(result)) == result["test_images"] == len(experiment.split(0)[1]["test"])


@pytest.fixture
def make_curve(undisturbed, tmp_path):
    """Returns a function that makes a curve of the undisturbed study, in its own copy of the file."""
    study, (_, _, verdict) = undisturbed
    file = tmp_path / "copied.jsonl"
    file.write_bytes(study.trials.file.read_bytes())
    return lambda **options: LabelCurve(study.experiment, verdict, **{"file": file} | options)


def test_the_curve_has_the_finals_arms_on_its_splits_and_repeats_no_training(undisturbed, make_curve):
    _, (_, final, verdict) = undisturbed
    curve = make_curve()
    assert curve.labels == [9, 15, 30, 57] and 2 <= curve.pairs <= 3
    correct = curve.run()
    assert {trial.phase for trial in curve.trials.done} == {"labels"}
    assert len(curve.trials.done) == 2 * 3 * curve.pairs and curve.stopped == ""
    tuned = verdict["arms"]["fine-tuned"]
    for trial in curve.trials.done:
        expected = (
            ("", 0.0, 0) if trial.arm == "frozen" else tuple(tuned[k] for k in ("stage", "learning_rate", "steps"))
        )
        assert (trial.stage, trial.learning_rate, trial.steps) == expected and trial.fraction < 1
    for arm, answers in correct.items():
        assert answers.shape == (4, curve.pairs, verdict["test_images"])
        of_final = final[(final["arm"] == arm) & (final["pair"] <= curve.pairs)].sort_values("pair")["correct"]
        np.testing.assert_array_equal(answers[-1], np.array(of_final.tolist()))
    again = make_curve()
    np.testing.assert_equal(again.run(), correct)
    assert again.trials.done == []


def test_each_pair_of_the_curve_is_another_one(undisturbed, make_curve):
    """Also if the file has only a part of the final: those that are there come first."""
    lines = undisturbed[0].trials.file.read_text().splitlines(keepends=True)
    curve = make_curve()
    kept = [line for line in lines if json.loads(line).get("trial", {}).get("seed") not in (1, 3)]
    curve.trials.file.write_text("".join(kept))
    assert [pair[0].seed for pair in make_curve(pairs=3)._pairs] == [2, 1, 3]
    assert [pair[0].seed for pair in make_curve(pairs=2)._pairs] == [2, 1]


def test_the_answer_says_what_the_curves_say(undisturbed, make_curve):
    curve, verdict = make_curve(pairs=2), undisturbed[1][2]
    correct = curve.run()
    table, answer = curve.table(correct), curve.answer(correct)
    assert table["labels"].tolist() == [9, 15, 30, 57, 114] * 2
    assert table["extrapolated"].tolist() == [False, False, False, False, True] * 2
    means = table.set_index(["arm", "labels"])["test_accuracy"]
    assert means["frozen", 30] == pytest.approx(correct["frozen"][2].mean())
    for arm, ahead in answer["twice"].items():
        assert means[arm, 114] == pytest.approx(ahead["accuracy"])
        assert means[arm, 114] - means[arm, 57] == pytest.approx(ahead["gain"])
        of_final = [verdict["arms"][arm][name] for name in ("pairs", "test_accuracy", "low", "high")]
        assert table.query("arm == @arm and labels == 57").iloc[0, 3:].tolist() == pytest.approx(of_final)
    assert ((table["low"] <= table["test_accuracy"]) & (table["test_accuracy"] <= table["high"])).all()
    for level, difference in enumerate(answer["differences"]):
        expected = correct["fine-tuned"][level].mean() - correct["frozen"][level].mean()
        of_final = verdict["comparison"]["difference"]  # with all labels, of all its pairs
        assert difference["difference"] == pytest.approx(expected if level < 3 else of_final)
    between = variance_between_pairs(curve.labels, correct["fine-tuned"].astype(int) - correct["frozen"])
    pooled = compare_pairs(correct["frozen"][0], correct["fine-tuned"][0], between=between[0])
    assert answer["differences"][0]["low"] == pooled["low"]
    assert "114 training images" in answer["explanation"] and answer["headline"].endswith(".")
    assert json.loads(json.dumps(answer)) == answer  # plain values
    figure = plot_labels(table)
    assert "at 9" in figure.description and "extrapolated" in figure.description


def test_a_stopped_curve_shows_whole_pairs_and_ends_the_same(make_curve, monkeypatch):
    curve = make_curve(pairs=3)
    expected = make_curve(pairs=3, file=curve.trials.file.with_name("other.jsonl")).run()
    run, stop = curve.experiment.run, 8

    def interrupted(trial: Trial) -> dict:
        if len(curve.trials.done) == stop:
            raise KeyboardInterrupt
        return run(trial)

    monkeypatch.setattr(curve.experiment, "run", interrupted)
    with pytest.raises(KeyboardInterrupt, match="it resumes"):  # one pair does not say how much pairs differ
        curve.run()
    curve, stop = make_curve(pairs=3), 7
    partly = curve.run()
    assert partly["frozen"].shape[1] == 2 and "interrupted" in curve.stopped
    answer = curve.answer(partly)
    assert answer["pairs"] == 2 and "incomplete: training was interrupted" in answer["explanation"]
    monkeypatch.setattr(curve.experiment, "run", run)
    resumed = make_curve(pairs=3)
    np.testing.assert_equal(resumed.run(), expected)
    assert 0 < len(resumed.trials.done) < 2 * 3 * resumed.pairs


def test_a_training_that_fails_takes_its_pair_from_the_curve_and_is_told(make_curve, monkeypatch):
    curve = make_curve(pairs=3)
    run = curve.experiment.run

    def failing(trial: Trial) -> dict:
        if trial.seed == 1 and trial.fraction == 0.25:
            raise MemoryError("too little")
        return run(trial)

    monkeypatch.setattr(curve.experiment, "run", failing)
    assert curve.run()["frozen"].shape[1] == 2
    assert "MemoryError: too little" in curve.stopped and "0.25 of the labels" in curve.stopped
    monkeypatch.setattr(curve.experiment, "run", run)
    again = make_curve(pairs=3)
    assert again.run()["frozen"].shape[1] == 3 and len(again.trials.done) == 2, "what failed is tried again"
    monkeypatch.setattr(curve.experiment, "run", lambda trial: 1 / 0)
    with pytest.raises(ValueError, match="Fewer than two pairs of trainings could be completed.*ZeroDivisionError"):
        LabelCurve(curve.experiment, curve.verdict, file=curve.trials.file.with_name("new.jsonl")).run()


def test_what_has_no_curve_is_refused(undisturbed, tmp_path):
    study, (_, _, verdict) = undisturbed
    with pytest.raises(ValueError, match="before two pairs of its final were complete"):
        LabelCurve(study.experiment, verdict | {"comparison": {}}, file=tmp_path / "study.jsonl")
    for pairs in (-1, 1, 4):
        with pytest.raises(ValueError, match=f"`pairs` of 2 to 3, as many as 04's final has, or 0. Received {pairs}"):
            LabelCurve(study.experiment, verdict, file=tmp_path / "study.jsonl", pairs=pairs)
    few = make_experiment(write_images(tmp_path / "few", 12))
    with pytest.raises(ValueError, match=r"too small to halve: \d+ training images of 3 classes.*Add images"):
        LabelCurve(few, verdict, file=tmp_path / "study.jsonl")
    assert not (tmp_path / "study.jsonl").exists()


@pytest.mark.parametrize(
    ("pairs", "everything", "stage", "fitting"),
    [(2, 0, "conv3", 2), (4, 0, "conv3", 2), (4, 2, "conv3", 3), (20, 0, "conv3", 3), (4, 0, "conv4", 3)],
)
def test_as_many_pairs_as_fit_into_the_time(pairs, everything, stage, fitting):
    curve = object.__new__(LabelCurve)
    arms = {"frozen": {"cut": "head", "stage": "", "steps": 0, "pairs": pairs}}
    arms["fine-tuned"] = {"cut": "head", "stage": stage, "steps": 120, "pairs": pairs}
    if everything:
        arms["everything"] = {"cut": "head", "stage": "conv1", "steps": 120, "pairs": everything}
    curve.experiment = SimpleNamespace(costs=COSTS | {"conv4": 1.0})  # a last stage that costs next to nothing
    curve.labels, curve.verdict = [10, 20, 40, 80], {"arms": arms, "comparison": {"pairs": pairs}}
    assert curve._fitting_pairs() == fitting
