"""Is the probe the right judge of networks? Their rank by frozen features against their rank after fine-tuning.

    REAL_DATA_DIR=... python tests/benchmarks/network_ranks.py [flowers ants_and_bees scans] [--size 128]

MobileNetV2, MobileNet (a quarter as wide) and SqueezeNet, all with ImageNet's weights, and MobileNetV2 with random
ones. Each is probed as `make compare` does it (`rank_networks`: no test image is looked at), and fine-tuned at the
cut that the probe takes, from the middle on, for 120 steps: validation images choose one of three rates, which is
trained on three splits and seeds, and scored on the test images. What is done is kept in runs/.ranks. Written beside
this file: network_ranks.csv, a row for each set and network.

REAL_DATA_DIR names a folder with the photos and the weights.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd
from exhaustive_grid import PHOTOS
from scipy.stats import kendalltau

from helpers import resolve_path
from helpers._keras import keras
from helpers.backbones import load_backbone
from helpers.data import check_images, exclude_problems, find_images, split_images
from helpers.networks import Candidate, rank_networks
from helpers.study import Experiment
from helpers.study.trials import Trial, Trials

SEEDS = (1, 2, 3)
RATES, STEPS = (3e-4, 1e-3, 3e-3), 120


def networks(weights: Path, folder: Path, size: int) -> dict[str, Candidate]:
    """Returns the networks by name; two become files: they have no name, or are stored for another image size."""
    folder.mkdir(parents=True, exist_ok=True)
    narrow, squeeze = folder / f"mobilenet_0.25-{size}.keras", folder / f"squeezenet-{size}.keras"
    if not squeeze.exists():
        options = {"alpha": 0.25, "include_top": False, "input_shape": (size, size, 3)}
        file = weights / "mobilenet_v1_0.25_128_notop.weights.h5"
        keras.applications.MobileNet(weights=str(file), **options).save(narrow)
        stored = keras.models.load_model(weights / "squeezenet_imagenet_notop.keras", compile=False)
        resized = keras.models.clone_model(stored, input_tensors=keras.Input((size, size, 3)))
        resized.set_weights(stored.get_weights())
        resized.save(squeeze)
    mobilenet = str(weights / "mobilenet_v2_1.0_224_notop.weights.h5")
    return {
        "MobileNetV2": Candidate("MobileNetV2", "MobileNetV2", mobilenet),
        "MobileNet 0.25": Candidate("MobileNet 0.25", str(narrow), preprocessing="tf"),
        "SqueezeNet": Candidate("SqueezeNet", str(squeeze), preprocessing="caffe"),
        "MobileNetV2, random": Candidate("MobileNetV2, random", "MobileNetV2", "None"),
    }


def fine_tuned(candidate: Candidate, images: pd.DataFrame, cut: str, size: int, file: Path) -> dict:
    """Returns the mean test accuracies of the frozen and the fine-tuned network, and the arm that was chosen."""
    keras.utils.set_random_seed(0)
    network = load_backbone(
        candidate.backbone, weights=candidate.weights, preprocessing=candidate.preprocessing, image_size=size
    )
    experiment = Experiment(network, images, resize="crop")
    trials = Trials(file, settings=experiment.settings)
    stage = experiment.first_stage(cut, "auto")
    race = [Trial("race", "fine-tuned", cut, stage, rate, STEPS) for rate in RATES]
    raced = trials.run(race, experiment.run)
    losses = {trial.learning_rate: result.get("log_loss", np.inf) for trial, result in raced.items()}
    rate = min(losses, key=losses.get)
    final = [Trial("final", "fine-tuned", cut, stage, rate, STEPS, seed) for seed in SEEDS]
    final += [Trial("final", "frozen", cut, seed=seed) for seed in SEEDS]
    results = trials.run(final, experiment.run)
    of = {arm: [r["test_accuracy"] for t, r in results.items() if t.arm == arm] for arm in ("frozen", "fine-tuned")}
    return {
        "frozen": np.mean(of["frozen"]),
        "fine_tuned": np.mean(of["fine-tuned"]),
        "spread": np.std(of["fine-tuned"], ddof=1),
        "stage": stage,
        "learning_rate": rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=list(PHOTOS), help=f"of {', '.join(PHOTOS)}")
    parser.add_argument("--size", type=int, default=128, help="of the images, pixels")
    options = parser.parse_args()
    if not os.environ.get("REAL_DATA_DIR"):
        print("Left out: REAL_DATA_DIR names no folder with photos and weights.")
        return
    real, rows = Path(os.environ["REAL_DATA_DIR"]).resolve(), []
    candidates = networks(real / "weights", resolve_path("runs/.ranks"), options.size)
    for name in options.sets:
        images = exclude_problems(*check_images(find_images(real / "data" / PHOTOS[name][0])))
        images = split_images(images, test_fraction=0.5)
        folder = resolve_path("runs/.ranks") / name
        ranked = rank_networks(
            images, list(candidates.values()), file=folder / "networks.jsonl", image_size=options.size
        ).set_index("network")
        for network, candidate in candidates.items():
            probed = ranked.loc[network, ["cut", "log_loss", "accuracy", "behind", "low", "high", "tied"]].to_dict()
            reached = fine_tuned(candidate, images, probed["cut"], options.size, folder / f"{network}.jsonl")
            rows.append({"set": name, "network": network} | probed | reached)
            print(rows[-1], flush=True)
        of_set = pd.DataFrame([row for row in rows if row["set"] == name])
        print(name, "Kendall's tau:", kendalltau(-of_set["log_loss"], of_set["fine_tuned"]).statistic, flush=True)
        write(of_set)


def write(rows: pd.DataFrame) -> None:
    """Adds a set's rows to the table, instead of earlier ones of that set."""
    file = Path(__file__).with_suffix(".csv")
    if file.exists():
        kept = pd.read_csv(file)
        rows = pd.concat([kept[~kept["set"].isin(rows["set"])], rows])
    rows.round(4).to_csv(file, index=False)


if __name__ == "__main__":
    main()
