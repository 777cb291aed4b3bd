"""The study against an expert's grid: two cuts, four first stages, three rates, two lengths, three splits and seeds.

    REAL_DATA_DIR=... python tests/benchmarks/exhaustive_grid.py flowers [--budgets quick standard] [--cluster 2]

Every arm of the grid is trained in full on the first splits and seeds of the final, with the study's own engine,
and scored like the final's trials. The grid chooses by validation images: the arm with the lowest mean log-loss, as
an expert would. The regret is by how much the study's arm, as its final scored it on the same splits, falls short
of that arm's mean test accuracy. Both are kept in runs/.grid; what is done is not done again. Written beside this
file: grid_<set>.csv (a row for each arm and split) and grid_<set>.json (what the study and the grid chose and say).
Time is the processor's, of all cores together, so that what else the machine does counts little. With `--splits 1`,
the grid's other splits are taken from grid_<set>.csv, but for the chosen arm, and their time is that of the first.

"digits" and "digits10" are the embedded example with 20 and 10 images of a class. For photos, REAL_DATA_DIR names a
folder with them and the weights.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd

from helpers import resolve_path
from helpers.backbones import load_backbone
from helpers.data import check_images, exclude_problems, find_images, open_data, split_images
from helpers.evaluation.intervals import compare_pairs
from helpers.study import Experiment, Study
from helpers.study.experiment import unpack
from helpers.study.plan import stages_at
from helpers.study.study import candidate_cuts
from helpers.study.trials import Trial, Trials
from helpers.study.verdict import decide

HERE = Path(__file__).parent
PHOTOS = {"flowers": ("flowers", 96), "ants_and_bees": ("hymenoptera", 128), "scans": ("scans", 128)}
DIGITS = {"digits": 20, "digits10": 10}
RATES, LENGTHS, SEEDS = (1e-4, 3e-4, 1e-3), (120, 300), (1, 2, 3)
HIGHER_RATES = (3e-3, 1e-2)  # for the small network, which tolerates them
ARM = ["cut", "stage", "learning_rate", "steps"]


class Timed(Experiment):
    """An experiment that also says how many seconds of a core each trial took."""

    def run(self, trial: Trial) -> dict:
        started = process_time()
        return super().run(trial) | {"cpu_seconds": process_time() - started}


def make_experiment(name: str) -> Timed:
    """Returns the network and the images, half of them test images where none are given."""
    if name in DIGITS:
        checked, problems = check_images(find_images(open_data("digits")))
        images = split_images(exclude_problems(checked, problems), images_per_class=DIGITS[name])
        return Timed(load_backbone("data/letters.keras"), images, resize="crop")
    folder, size = PHOTOS[name]
    real = Path(os.environ["REAL_DATA_DIR"]).resolve()
    checked, problems = check_images(find_images(real / "data" / folder))
    images = split_images(exclude_problems(checked, problems), test_fraction=0.5)
    weights = real / "weights" / "mobilenet_v2_1.0_224_notop.weights.h5"
    network = load_backbone("MobileNetV2", weights=str(weights), image_size=size)
    return Timed(network, images, resize="crop")


def run_grid(experiment: Experiment, cuts: list[str], options: argparse.Namespace, file: str):
    """Returns a DataFrame with a row for each arm and split, and the core-seconds that the grid took."""
    wanted = [
        Trial("final", "grid", cut, stage, rate, steps, seed)
        for seed in SEEDS[: options.splits]
        for cut in cuts
        for stage in stages_at(experiment.costs, cut, np.arange(options.stages)[::-1] / options.stages)
        for rate in (RATES if options.name in PHOTOS else RATES + HIGHER_RATES)
        for steps in options.lengths
    ]
    trials = Trials(file, settings=experiment.settings, cluster=options.cluster)

    def run(wanted: list[Trial]) -> tuple[pd.DataFrame, float]:
        found = trials.run(wanted, experiment.run, expected=lambda trial: trial.steps, title="grid")
        rows = [asdict(trial) | result | {"correct": unpack(result)} for trial, result in found.items()]
        columns = [*ARM, "seed", "log_loss", "accuracy", "test_accuracy", "correct"]
        return pd.DataFrame(rows, columns=columns), sum(result["cpu_seconds"] for result in found.values())

    table, seconds = run(wanted)
    if options.splits == len(SEEDS):
        return table, seconds
    earlier = pd.read_csv(HERE / f"grid_{options.name}.csv").query("seed > @options.splits")
    earlier = earlier.merge(table[ARM].drop_duplicates())
    if len(table) + len(earlier) != len(table) * len(SEEDS) / options.splits:
        raise SystemExit(f"grid_{options.name}.csv is of other arms: leave out --splits.")
    table = pd.concat([table, earlier], ignore_index=True)
    while True:  # what is trained again may make another arm the best one
        chosen = choose(table)
        of_chosen = np.array([tuple(row) == chosen for row in table[ARM].itertuples(index=False)])
        lacking = table.index[of_chosen & table["correct"].isna()]
        if lacking.empty:
            return table, seconds * len(SEEDS) / options.splits
        again, _ = run([Trial("final", "grid", *chosen, int(seed)) for seed in table.loc[lacking, "seed"]])
        table = pd.concat([table.drop(index=lacking), again], ignore_index=True)


def choose(table: pd.DataFrame) -> tuple:
    """Returns the arm that the grid chooses: cut, stage, learning rate and steps."""
    cut, stage, rate, steps = table.groupby(ARM, sort=False)["log_loss"].mean().idxmin()
    return cut, stage, rate, int(steps)


def compare_study(study: Study, of_chosen: np.ndarray, seconds: float) -> dict:
    """Returns what a study chose and says, beside the grid's choice (what that got right, bool (splits, images))."""
    final = study.final(study.race())
    answer = study.verdict(final)
    scored = final[final["pair"].isin(SEEDS)].set_index("arm")
    frozen, tuned = (np.stack(scored.loc[arm, "correct"].tolist()) for arm in ("frozen", "fine-tuned"))
    handed_over = tuned if answer["chosen"] == "fine-tuned" else frozen
    spent = [r["cpu_seconds"] for t, r in study.trials.results().items() if t.phase in ("race", "final")]
    arm = answer["arms"]["fine-tuned"]
    return {
        "chose": [arm["cut"], arm["stage"], arm["learning_rate"], study.plan.steps],
        "frozen": frozen.mean(),
        "fine_tuned": tuned.mean(),
        "regret_points": 100 * (of_chosen.mean() - tuned.mean()),
        "regret_of_the_verdict_points": 100 * (max(of_chosen.mean(), frozen.mean()) - handed_over.mean()),
        "verdict": answer["verdict"],
        "grids_verdict": decide(compare_pairs(frozen, of_chosen)),
        "pairs": answer["comparison"]["pairs"],
        "headline": answer["headline"],
        "core_seconds": sum(spent),
        "share_of_the_grid": sum(spent) / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", choices=[*PHOTOS, *DIGITS], default="digits")
    parser.add_argument("--budgets", nargs="+", default=["quick", "standard"])
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, help="of the grid's trainings, steps")
    parser.add_argument("--stages", type=int, default=4, help="of the grid, from which on it is fine-tuned")
    splits = {"type": int, "choices": range(1, 1 + len(SEEDS)), "default": len(SEEDS)}
    parser.add_argument("--splits", **splits, help="of the grid, that are trained here")
    parser.add_argument("--cluster", default="", help="worker processes, or a Dask scheduler's address")
    options = parser.parse_args()
    if options.name in PHOTOS and not os.environ.get("REAL_DATA_DIR"):
        print("Left out: REAL_DATA_DIR names no folder with photos and weights.")
        return
    experiment = make_experiment(options.name)
    probe = experiment.probe()
    kept = resolve_path("runs/.grid") / options.name
    table, seconds = run_grid(experiment, candidate_cuts(probe), options, f"{kept}-grid.jsonl")
    table.drop(columns="correct").round(4).to_csv(HERE / f"grid_{options.name}.csv", index=False)
    means = table.groupby(ARM, sort=False)[["log_loss", "accuracy", "test_accuracy"]].mean()
    chosen, best = choose(table), means["test_accuracy"].idxmax()
    of_chosen = np.stack(table.set_index(ARM).loc[[chosen], "correct"].tolist())
    report = {
        "command": f"exhaustive_grid.py {options.name} --stages {options.stages} --splits {options.splits}",
        "test_images": of_chosen.shape[1],
        "grid": {"arms": len(means), "core_seconds": seconds, "chose": chosen, "test_accuracy": of_chosen.mean()},
        "best_on_test": {"arm": best, "test_accuracy": means["test_accuracy"].max()},
    }
    for budget in options.budgets:
        study = Study(experiment, probe, file=f"{kept}-{budget}.jsonl", cluster=options.cluster, budget=budget)
        report[budget] = compare_study(study, of_chosen, seconds)
    text = json.dumps(report, indent=2, default=float)
    (HERE / f"grid_{options.name}.json").write_text(text + "\n")
    print(means.round(4).to_string(), text, sep="\n")


if __name__ == "__main__":
    main()
