"""How many labels: is the accuracy that is extrapolated to twice the labels what training with them then gives?

    REAL_DATA_DIR=... python tests/benchmarks/label_curves.py flowers [scans digits] [--draws 10] [--pairs 2]

Half of the images that are not test images is drawn, of each class, ten times. In each draw, both arms are trained at
1/8, 1/4, 1/2 and all of it, as 06 does (`LabelCurve`), and the accuracy with twice the labels is extrapolated. It is
compared with what all images give: the mean over five splits and seeds. The fine-tuned arm is 03's, cut where `quick`
cut in grid_<set>.json (of the digits, it is the embedded example's). Trainings are kept in runs/.labels; what is done
is not done again. Written beside this file: label_curves.csv, a row for each set, draw and arm.

For photos, REAL_DATA_DIR names a folder with them and the weights. "digits" are the embedded example with 80 images
of a class, so that there is something to halve.
"""

import argparse
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from exhaustive_grid import make_experiment

from helpers import resolve_path
from helpers.backbones import load_backbone
from helpers.data import check_images, digits, exclude_problems, find_images, split_images
from helpers.data.splits import keep_fraction
from helpers.evaluation.learning_curves import extrapolate
from helpers.study import Experiment, LabelCurve
from helpers.study.trials import Trial, Trials

HERE = Path(__file__).parent
SEEDS = (1, 2, 3, 4, 5)
ARMS = ("frozen", "fine-tuned")


def make(name: str) -> tuple[Experiment, dict]:
    """Returns the images with their network, and a verdict that names the arms."""
    if name == "digits":
        digits.TRAIN = 80
        folder = digits.write_digits(resolve_path("runs/.labels/many-digits"))
        images = split_images(exclude_problems(*check_images(find_images(folder))))
        experiment = Experiment(load_backbone("data/letters.keras"), images, resize="crop")
        cut, stage, rate, steps = "head", "conv1", 0.01, 120
    else:
        experiment = make_experiment(name)
        cut = json.loads((HERE / f"grid_{name}.json").read_text(encoding="utf-8"))["quick"]["chose"][0]
        stage, rate, steps = experiment.first_stage(cut, "auto"), 1e-3, 120
    arm = {"cut": cut, "seconds": 1.0, "pairs": len(SEEDS)}
    tuned = {"stage": stage, "learning_rate": rate, "steps": steps}
    arms = {"frozen": arm | {"steps": 0}, "fine-tuned": arm | tuned}
    return experiment, {"arms": arms, "comparison": {"pairs": len(SEEDS)}, "margin": 0.01, "chosen": "frozen"}


def accuracies_with_all(experiment: Experiment, verdict: dict, file: Path) -> dict[str, np.ndarray]:
    """Returns each arm's test accuracies with all labels, (seeds,)."""
    tuned = verdict["arms"]["fine-tuned"]
    arms = {
        "frozen": (tuned["cut"], "", 0.0, 0),
        "fine-tuned": tuple(tuned[k] for k in ("cut", "stage", "learning_rate")),
    }
    arms["fine-tuned"] += (tuned["steps"],)
    wanted = {name: [Trial("final", name, *arms[name], seed) for seed in SEEDS] for name in ARMS}
    trials = Trials(file, settings=experiment.settings)
    results = trials.run([trial for name in ARMS for trial in wanted[name]], experiment.run, title="all labels")
    return {name: np.array([results[trial]["test_accuracy"] for trial in wanted[name]]) for name in ARMS}


def draw_half(experiment: Experiment, images: pd.DataFrame, draw: int) -> None:
    """Makes the experiment one with half of the images that are not test images, a fifth of them to validate."""
    pool = images.assign(split=images["split"].replace("validation", "train"))
    half = keep_fraction(pool, 0.5, seed=5000 + draw)
    half = half[half["split"] != ""].reset_index(drop=True)
    experiment.images = half.assign(split=keep_fraction(half, 0.8, seed=0)["split"].replace("", "validation"))
    for method in (experiment.split, experiment._features, experiment._solved):
        method.cache_clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=["digits"], help="flowers, scans, ants_and_bees or digits")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=2, help="of splits and seeds in each draw")
    options = parser.parse_args()
    for name in options.sets:
        experiment, verdict = make(name)
        images, folder, rows = experiment.images, resolve_path("runs/.labels") / name, []
        real = accuracies_with_all(experiment, verdict, folder / "all.jsonl")
        print(name, {arm: values.round(4).tolist() for arm, values in real.items()}, flush=True)
        for draw in range(options.draws):
            draw_half(experiment, images, draw)
            curve = LabelCurve(experiment, verdict, file=folder / f"draw-{draw}.jsonl")
            curve.pairs = options.pairs
            correct = curve.run()
            for arm, answers in correct.items():
                ahead, mean = extrapolate(curve.labels, answers), float(real[arm].mean())
                row = {"set": name, "draw": draw, "arm": arm, "labels": curve.labels[-1], "with_all": mean}
                row |= {f"at {Fraction(f)}": a.mean() for f, a in zip(curve._fractions, answers, strict=True)}
                within = ahead["accuracy_low"] <= mean <= ahead["accuracy_high"]
                rows.append(row | ahead | {"within": within})
                np.save(folder / f"draw-{draw}-{arm}.npy", answers)
                print(pd.Series(rows[-1]).to_dict(), flush=True)
        write(pd.DataFrame(rows))


def write(rows: pd.DataFrame) -> None:
    """Adds a set's rows to the table, instead of earlier ones of that set."""
    file = HERE / "label_curves.csv"
    if file.exists():
        kept = pd.read_csv(file)
        rows = pd.concat([kept[~kept["set"].isin(rows["set"])], rows])
    print(rows.groupby(["set", "arm"])["within"].sum())
    rows.round(4).to_csv(file, index=False)


if __name__ == "__main__":
    main()
