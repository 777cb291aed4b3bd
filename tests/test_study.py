"""The study on small images: splits, arms, race, final; stopped and resumed, and by several workers."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from networks import coloured_images, stage_network
from PIL import Image

import helpers
from helpers.backbones import weights_by_path
from helpers.data import check_images, find_images, split_images
from helpers.plots import plot_costs, plot_depth, plot_differences, plot_rates
from helpers.study import Experiment, Plan, Study, Trial, make_plan, summarize
from helpers.study import plan as planning
from helpers.study.experiment import unpack
from helpers.training import compute_activations, fit_head

MEASURED = {"forward": 1e-3, "factor": 3.0, "build": 2.0, "head": 0.5, "images": 100, "everything": 400}
MEASURED |= {"multiply_adds": 10**9, "epoch": 0.1, "begin": 0.5}
COSTS = {"conv1": 0.0, "conv2": 0.2, "conv3": 0.5, "conv4": 0.7, "head": 1.0}
SMALL = {"depths": 3, "learning_rates": (1e-3, 1e-2), "rungs": (1, 2), "pairs": 3}


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


def make_study(folder: Path, storage: Path, **options) -> Study:
    return Study(make_experiment(folder), storage=storage, name="study", **({"budget": "small"} | options))


def whole(study: Study) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict]:
    probe, race = study.probe(), study.race()
    final = study.final(probe, race)
    return probe, race, final, study.verdict(final)


def comparable(result) -> str:
    """Returns the tables without what another execution measures anew: seconds and memory."""
    probe, race, final, verdict = result
    final = final.assign(correct=final["correct"].map(lambda c: "".join(map(str, c.astype(int)))))
    tables = [probe, race.drop(columns="seconds"), final.drop(columns=["seconds", "memory_mb"])]
    return "\n".join(table.to_csv() for table in tables) + json.dumps(verdict["comparison"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def small_budget(monkeypatch):
    monkeypatch.setitem(planning.BUDGETS, "small", SMALL)


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """A study that ran through, and its tables."""
    root, before = tmp_path_factory.mktemp("root"), helpers.ROOT
    planning.BUDGETS["small"], helpers.ROOT = SMALL, root
    study = make_study(folder, root / "study.journal")
    result = whole(study)
    helpers.ROOT = before
    return study, result


# ---- splits and arms


def test_other_seeds_redraw_validation_images_and_leave_the_test_alone(folder, root):
    experiment = make_experiment(folder)
    (own, _), (first, labels), (second, _) = (experiment.split(seed) for seed in (0, 1, 2))
    assert own["test"].keys == first["test"].keys == second["test"].keys
    for pixels in (own, first, second):
        train, validation = set(pixels["train"].keys), set(pixels["validation"].keys)
        assert not train & validation and not (train | validation) & set(own["test"].keys)
        assert len(train | validation) == len(set(own["train"].keys) | set(own["validation"].keys))
        assert len(validation) == len(own["validation"])
    assert set(first["validation"].keys) != set(second["validation"].keys)
    assert len(labels["train"]) == len(first["train"])


def test_groups_stay_together_when_validation_images_are_redrawn(folder, root):
    experiment = make_experiment(folder)
    learn = experiment.images["split"] != "test"
    pairs = (experiment.images.groupby("label").cumcount() // 2).astype(str)
    experiment.images["group"] = (experiment.images["label"] + pairs).where(learn, "")
    pixels, _ = experiment.split(5)
    group = dict(zip(experiment.images["sha256"], experiment.images["group"], strict=True))
    of = {part: {group[key[:64]] for key in pixels[part].keys} for part in ("train", "validation")}
    assert not of["train"] & of["validation"]


def test_a_trial_does_not_depend_on_those_before_it(folder, root):
    trials = [Trial("final", "fine-tuned", "conv2", 1e-2, 2, 1), Trial("final", "everything", "conv1", 1e-3, 1, 1)]
    trials += [Trial("final", "from scratch", "conv1", 1e-2, 2, 1), Trial("final", "frozen", "conv3", seed=1)]

    def results(order: list[Trial]) -> dict:
        experiment = make_experiment(folder)
        found = {trial: experiment.carry_out(trial) for trial in order}
        timed = ("seconds", "wall_seconds", "memory_mb")
        return {t: {k: v for k, v in found[t].items() if k not in timed} for t in trials}

    forwards = results([*trials, Trial("race", "fine-tuned", "conv2", 1e-3, 2, 2)])
    assert results([Trial("race", "fine-tuned", "conv2", 1e-1, 2, 2), *reversed(trials)]) == forwards
    assert forwards[trials[0]]["correct"] != forwards[trials[2]]["correct"]


def test_the_pretrained_weights_come_back(folder, root):
    experiment = make_experiment(folder)
    before = {path: np.array(value) for path, value in weights_by_path(experiment.network).items()}
    experiment.carry_out(Trial("race", "fine-tuned", "conv1", 1e-1, 2, 1))
    experiment.carry_out(Trial("final", "from scratch", "conv1", 1e-1, 2, 1))
    experiment.probe()
    for path, value in weights_by_path(experiment.network).items():
        if "seed_generator" not in path:
            np.testing.assert_array_equal(np.array(value), before[path], err_msg=path)


def test_the_probe_at_the_end_is_the_frozen_network(folder, root):
    experiment = make_experiment(folder)
    pixels, labels = experiment.split(0)
    probe = experiment.probe().set_index("boundary")
    assert list(probe.index) == ["conv2", "conv3", "head"] and probe["cost_before"].is_monotonic_increasing
    head = fit_head(compute_activations(experiment.network, pixels["train"]), labels["train"])
    features = compute_activations(experiment.network, pixels["validation"])
    assert probe.loc["head", "accuracy"] == (head.predict(features) == labels["validation"]).mean()
    assert probe.loc["head", "log_loss"] == pytest.approx(head.losses_[head.strength_], rel=1e-3)
    assert (probe["low"] < probe["accuracy"]).all() and (probe["accuracy"] < probe["high"]).all()


def test_scores_are_those_of_the_test_images(folder, root):
    experiment = make_experiment(folder)
    labels = experiment.split(1)[1]["test"]
    result = experiment.carry_out(Trial("final", "majority class", seed=1))
    np.testing.assert_array_equal(unpack(result), labels == np.bincount(experiment.split(1)[1]["train"]).argmax())
    assert result["test_accuracy"] == unpack(result).mean()


# ---- the plan


def test_cheap_arms_come_first_and_everything_last():
    plan = make_plan("standard", costs=COSTS, measured=MEASURED)
    assert plan.stages == ("conv4", "conv3", "conv2", "conv1")
    assert [plan.survivors(number) for number in (0, 1, 2)] == [12, 4, 2]
    seconds = [plan.seconds(trial) for trial in plan.rung(0, plan.arms)]
    assert seconds == sorted(seconds)


def test_the_final_has_all_arms_on_the_same_seeds_pair_by_pair():
    plan = make_plan("quick", costs=COSTS, measured=MEASURED)
    final = plan.final("head", ("conv3", 1e-3), 1e-4)
    arms = ["frozen", "fine-tuned", "everything", "majority class", "raw pixels", "from scratch"]
    assert [(trial.seed, trial.arm) for trial in final] == [(seed, arm) for seed in range(1, 7) for arm in arms]
    again = plan.final("head", ("conv1", 1e-3), 1e-3)  # then fine-tuned is everything
    assert {trial.arm for trial in again} == {*arms} - {"everything"}


def test_from_scratch_takes_as_long_as_the_others_and_longer_where_that_is_seconds():
    plan = make_plan("standard", costs=COSTS, measured=MEASURED)
    assert plan.epochs_from_scratch("conv1") == 4  # half of the epochs, with steps that take twice as long
    assert plan.epochs_from_scratch("conv3") == 2
    for multiply_adds, epochs in ((10**7, 16), (10**6, 30)):  # as many as are cheap, and 30 at most
        cheap = make_plan("standard", costs=COSTS, measured=MEASURED | {"multiply_adds": multiply_adds})
        assert cheap.epochs_from_scratch("conv3") == epochs


def test_minutes_buy_the_largest_plan_that_fits(monkeypatch):
    monkeypatch.delitem(planning.BUDGETS, "small")
    plans = {name: make_plan(name, costs=COSTS, measured=MEASURED) for name in ("quick", "standard", "thorough")}
    assert plans["quick"].expected < plans["standard"].expected < plans["thorough"].expected
    minutes = plans["standard"].expected / 60 / 0.8
    bought = make_plan(minutes, costs=COSTS, measured=MEASURED)
    assert bought.stages == plans["standard"].stages and bought.expected <= 60 * minutes
    assert make_plan(str(minutes), costs=COSTS, measured=MEASURED) == bought  # as the command line gives it
    assert make_plan(1e4, costs=COSTS, measured=MEASURED).pairs == 20


def test_a_budget_that_is_too_small_says_what_would_be_enough(monkeypatch):
    monkeypatch.delitem(planning.BUDGETS, "small")
    quick = make_plan("quick", costs=COSTS, measured=MEASURED).expected
    with pytest.raises(ValueError, match=r"1 minutes is too small for a race and a final of 6 pairs") as refused:
        make_plan(1, costs=COSTS, measured=MEASURED)
    enough = int(str(refused.value).split("budget=")[1].split(")")[0])
    assert make_plan(enough, costs=COSTS, measured=MEASURED) and enough < 2 * quick / 60 + 1
    for wrong in ("huge", 0, -5, float("nan")):
        with pytest.raises(ValueError, match='"quick", "standard", "thorough"'):
            make_plan(wrong, costs=COSTS, measured=MEASURED)


def test_a_network_with_a_single_boundary_has_a_plan():
    plan = make_plan("standard", costs={"conv1": 0.0, "head": 1.0}, measured=MEASURED)
    assert plan.stages == ("conv1",) and len(plan.arms) == 3


# ---- the study


def test_the_race_halves_and_the_best_goes_into_the_final(undisturbed):
    study, (probe, race, final, verdict) = undisturbed
    assert race["epochs"].tolist() == [1] * 6 + [2] * 2
    first = race[race["epochs"] == 1].set_index(["stage", "learning_rate"])["log_loss"]
    last = race[race["epochs"] == 2]
    kept = set(zip(last["stage"], last["learning_rate"], strict=True))
    assert kept == set(first.nsmallest(2).index)
    assert (last["low"] <= last["accuracy"]).all() and np.isfinite(race["log_loss"]).all()
    tuned = final[final["arm"] == "fine-tuned"]
    assert {(row.stage, row.learning_rate) for row in tuned.itertuples()} == {study.best_arm(race)}
    frozen = final[final["arm"] == "frozen"]
    assert set(frozen["stage"]) == {probe.loc[probe["log_loss"].idxmin(), "boundary"]}
    assert sorted(frozen["pair"]) == [1, 2, 3]


def test_the_verdict_says_what_the_tables_say(undisturbed):
    study, (_, _, final, verdict) = undisturbed
    arms = summarize(final)
    assert list(arms.index) == [arm for arm in arms.index if arm in verdict["arms"]]
    assert verdict["verdict"] in ("fine-tune", "freeze", "no difference shown")
    difference = arms.loc["fine-tuned", "test_accuracy"] - arms.loc["frozen", "test_accuracy"]
    assert verdict["comparison"]["difference"] == pytest.approx(difference)
    assert arms.loc["fine-tuned", "difference"] == pytest.approx(difference)
    assert verdict["arms"]["frozen"]["test_accuracy"] == arms.loc["frozen", "test_accuracy"]
    assert set(verdict) == set(json.loads(json.dumps(verdict)))  # plain values
    assert verdict["stopped"] == "" and verdict["pairs_planned"] == 3
    assert (arms["memory_mb"] >= 0).all() and (arms["seconds"] > 0).all()
    assert arms.loc["majority class", "test_accuracy"] == pytest.approx(1 / 3, abs=0.02)


def test_the_chosen_arm_learns_from_train_and_validation_images(undisturbed, monkeypatch):
    study, (_, _, final, verdict) = undisturbed
    monkeypatch.setattr(helpers, "ROOT", Path(study.trials.study._storage._backend._file_path).parent)
    for chosen in ("frozen", "fine-tuned"):
        model = study.retrain(final, verdict | {"chosen": chosen})
        pixels, labels = study.experiment.split(0)
        assert (compute_activations(model, pixels["test"]).argmax(axis=1) == labels["test"]).mean() > 0.6
        assert model.input_shape == (None, 8, 8, 3) and model.output_shape == (None, 3)


def test_a_stopped_study_ends_with_the_same_table(undisturbed, folder, root):
    def stop_after(study: Study, trials: int) -> None:
        carry_out = study.experiment.carry_out

        def interrupted(trial: Trial) -> dict:
            if len(study.trials.done) == trials:
                raise KeyboardInterrupt
            return carry_out(trial)

        study.experiment.carry_out = interrupted

    _, expected = undisturbed
    for trials in (4, 6):  # the first stop is in the race, the second one in the final
        study = make_study(folder, root / "study.journal")
        stop_after(study, trials)
        *_, verdict = whole(study)
        assert "interrupted" in study.stopped and "not complete: the" in verdict["paragraph"]
    study = make_study(folder, root / "study.journal")
    result = whole(study)
    assert comparable(result) == comparable(expected)
    assert 0 < len(study.trials.done) < 20


def test_after_the_given_minutes_it_ends_with_what_there_is(folder, root):
    study = make_study(folder, root / "study.journal")
    probe = study.probe()
    study._deadline = -math.inf
    race = study.race()
    assert race.empty and study.stopped == "the minutes given were over in the race"
    final = study.final(probe, race)
    verdict = study.verdict(final)
    assert verdict["verdict"] == "none" and verdict["paragraph"].startswith("There is no verdict")
    assert "minutes given were over" in verdict["paragraph"]
    figures = [plot_rates(race), plot_depth(probe, race), plot_costs(summarize(final))]
    assert all(figure.description for figure in [*figures, plot_differences(verdict["comparison"])])
    pixels = study.experiment.split(0)[0]
    assert compute_activations(study.retrain(final, verdict), pixels["test"]).shape == (len(pixels["test"]), 3)


def test_the_race_leaves_the_final_its_time(folder, root, monkeypatch):
    def expected(plan: Plan, trial: Trial) -> float:
        return 0.01 if trial.phase == "final" else 1e3 * trial.epochs

    study = make_study(folder, root / "study.journal")
    monkeypatch.setattr(Plan, "seconds", expected)
    study._deadline = time.monotonic() + 1500  # enough for trials of one epoch, and then for the final
    probe, race = study.probe(), study.race()
    assert study.stopped == "the minutes given were over in the race" and set(race["epochs"]) == {1}
    verdict = study.verdict(study.final(probe, race))
    assert verdict["comparison"]["pairs"] == 3 and "not complete: the minutes" in verdict["paragraph"]


@pytest.mark.parametrize(("cut", "rate"), [(0, 1e-2), (20, 1e-3), (8, 1e-4), (3, 3e-4)])
def test_the_best_arm_is_of_the_last_rung_that_was_completed(cut, rate):
    """Of a rung that was cut there are the cheapest arms only; of the first one, nothing else is there."""
    rungs = {3: [(3e-4, 0.1), (1e-4, 0.2)], 8: [(1e-3, 0.3), (1e-4, 0.4)], 20: [(1e-2, 0.5), (1e-3, 0.6)]}
    rungs = {epochs: arms for epochs, arms in rungs.items() if not cut or epochs <= cut}
    if cut == 8:  # the rung before it counts, in which this one was best
        rungs[3] = [(3e-4, 0.2), (1e-4, 0.1)]
    race = pd.DataFrame(
        {"stage": "conv3", "learning_rate": rate, "epochs": epochs, "log_loss": loss}
        for epochs, arms in rungs.items()
        for rate, loss in arms
    )
    assert Study.best_arm(SimpleNamespace(_race_cut=cut), race) == ("conv3", rate)


def test_minutes_can_be_added_and_a_refused_budget_leaves_nothing_behind(folder, root, monkeypatch):
    monkeypatch.delitem(planning.BUDGETS, "small")
    monkeypatch.setitem(planning.BUDGETS, "quick", SMALL)
    with pytest.raises(ValueError, match="minutes are enough"):
        make_study(folder, root / "study.journal", budget=0.001)
    plan = make_study(folder, root / "study.journal", budget=50).plan
    assert make_study(folder, root / "study.journal", budget="60.0").plan == plan
    with pytest.raises(ValueError, match="planned with budget=50.0, and 'quick' was asked for"):
        make_study(folder, root / "study.journal", budget="quick")


def test_an_experiment_leaves_the_model_as_it_was(folder, root):
    experiment = make_experiment(folder)
    experiment.carry_out(Trial("race", "fine-tuned", "conv1", 1e-1, 2, 1))
    other = Experiment(experiment.network, experiment.images, resize="crop")
    assert other.settings == experiment.settings
    assert Experiment(experiment.network, experiment.images, resize="pad").settings != experiment.settings


def test_augmentation_in_each_epoch_is_scored_like_the_others(folder, root):
    experiment = make_experiment(folder, augmentation="flip")
    result = experiment.carry_out(Trial("final", "fine-tuned", "conv3", 1e-2, 2, 1))
    assert len(unpack(result)) == len(experiment.split(1)[0]["test"]) and result["outcome"] == "all 2 epochs"


def test_one_training_image_of_a_class_is_enough_for_a_final(folder, root):
    study = make_study(folder, root / "study.journal")
    probe, race = study.probe().assign(log_loss=math.nan), study.race()
    assert set(study.final(probe, race).query("arm == 'frozen'")["stage"]) == {study.experiment.end}


def test_the_chosen_model_does_not_depend_on_what_was_done_before(undisturbed, folder, root):
    _, (_, _, final, verdict) = undisturbed
    kept = []
    for before in ([], [Trial("race", "fine-tuned", "conv1", 1e-1, 2, 1)]):
        study = make_study(folder, root / "study.journal")
        for trial in before:
            study.experiment.carry_out(trial)
        model = study.retrain(final, verdict | {"chosen": "fine-tuned"})
        kept.append([np.array(weight) for weight in model.trainable_weights])
        study.probe()
        for weight, value in zip(model.trainable_weights, kept[-1], strict=True):
            np.testing.assert_array_equal(np.array(weight), value)
    for first, second in zip(*kept, strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_diverged_arm_is_recorded_and_the_study_goes_on(folder, root, monkeypatch):
    monkeypatch.setitem(planning.BUDGETS, "small", SMALL | {"learning_rates": (1e-3, 1e30)})
    study = make_study(folder, root / "study.journal")
    race = study.race()
    wild = race[race["learning_rate"] == 1e30]
    assert len(wild) and wild["outcome"].str.startswith(("diverged", "failed")).all()
    assert study.best_arm(race)[1] == 1e-3


def test_bad_parameters_are_refused_before_anything_is_done(folder, root):
    with pytest.raises(ValueError, match="`margin` in points, above 0"):
        make_study(folder, root / "a.journal", margin=0)
    with pytest.raises(ValueError, match='Expected `budget` to be "quick"'):
        make_study(folder, root / "b.journal", budget="enormous")
    with pytest.raises(ValueError, match="0.001 minutes is too small"):
        make_study(folder, root / "c.journal", budget=0.001)
    make_study(folder, root / "d.journal")
    with pytest.raises(ValueError, match="other data or parameters: margin=1.0, and 2.0 was asked for"):
        make_study(folder, root / "d.journal", margin=2.0)


WORKER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import helpers, test_study
helpers.ROOT = Path(sys.argv[1])
test_study.planning.BUDGETS["small"] = test_study.SMALL
study = test_study.make_study(Path(sys.argv[2]), helpers.ROOT / "study.journal")
result = test_study.whole(study)
(helpers.ROOT / sys.argv[3]).write_text(test_study.comparable(result))
print(len(study.trials.done))
"""


def test_two_workers_one_of_them_killed_end_with_the_same_table(undisturbed, folder, root):
    def start(name: str) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
        script = WORKER.format(tests=str(Path(__file__).parent))
        command = [sys.executable, "-c", script, str(root), str(folder), name]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first, second = start("first"), start("second")
    journal = root / "study.journal"
    while not journal.exists() or journal.read_text().count('"result"') < 5:
        assert first.poll() is None, first.communicate()[1][-3000:]
    first.kill()
    first.communicate()
    out, errors = second.communicate(timeout=600)
    assert second.returncode == 0, errors[-3000:]
    _, expected = undisturbed
    assert (root / "second").read_text() == comparable(expected)
    study = make_study(folder, journal)  # a third one finds all of it done
    assert comparable(whole(study)) == comparable(expected) and study.trials.done == []
