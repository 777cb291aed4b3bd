"""By how much is a power law to be damped, to say what twice the labels would bring? (`learning_curves.DAMPING`)

    REAL_DATA_DIR=... python tests/benchmarks/label_rule.py [flowers scans ants_and_bees digits] [--draws 30]

Training images alone, and linear heads on frozen features, which take seconds: two fifths of the training images are
held out, half of the others is drawn; heads are fitted to 1/8, 1/4, 1/2 and all of this half, on two splits, and what
each factor extrapolates to twice as many is compared with the mean of three heads on those. Printed is the root mean
square of the logarithm of the extrapolated error over the real one, by factor, and how often `extrapolate`'s 90 %
intervals hold the accuracy and the gain. For photos, REAL_DATA_DIR names a folder with them and the weights.
"""

import argparse

import numpy as np
import pandas as pd
from label_curves import make

from helpers.data import encode_labels, load_pixels
from helpers.evaluation import learning_curves
from helpers.training.heads import fit_head
from helpers.training.probing import load_features

FACTORS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FRACTIONS = (0.125, 0.25, 0.5, 1.0)
CHOSEN = learning_curves.DAMPING


def shares(rng, labels: np.ndarray, rows: np.ndarray, fractions: tuple[float, ...]) -> list[np.ndarray]:
    """Returns nested shares of the rows, the same of each class, of each at least two."""
    orders = [rng.permutation(rows[labels[rows] == label]) for label in np.unique(labels)]
    counts = [[max(int(np.ceil(fraction * len(order) - 1e-9)), 2) for order in orders] for fraction in fractions]
    return [np.concatenate([o[:n] for o, n in zip(orders, of_share, strict=True)]) for of_share in counts]


def draw(features: np.ndarray, labels: np.ndarray, seed: int) -> dict:
    """Returns errors that each factor extrapolates, over the real one, as logarithms; and what the intervals hold."""
    rng = np.random.default_rng([9, seed])
    everything = np.arange(len(labels))

    def right(rows: np.ndarray) -> np.ndarray:
        return fit_head(features[rows], labels[rows]).predict(features[held_out]) == labels[held_out]

    (held_out,) = shares(rng, labels, everything, (0.4,))
    rest = np.setdiff1d(everything, held_out)
    (half,) = shares(rng, labels, rest, (0.5,))
    levels = [shares(rng, labels, shares(rng, labels, half, (0.8,))[0], FRACTIONS) for _ in range(2)]
    correct = np.array([[right(rows) for rows in of_split] for of_split in levels]).transpose(1, 0, 2)
    real = np.mean([right(shares(rng, labels, rest, (0.8,))[0]) for _ in range(3)])
    counts, found = [len(rows) for rows in levels[0]], {}
    for factor in FACTORS:
        learning_curves.DAMPING = factor
        expected = learning_curves.extrapolate(counts, correct)["accuracy"]
        found[factor] = np.log((1 - expected) / max(1 - real, 0.5 / len(held_out)))
    learning_curves.DAMPING = CHOSEN
    ahead, gain = learning_curves.extrapolate(counts, correct), real - correct[-1].mean()
    found["accuracy held"] = ahead["accuracy_low"] <= real <= ahead["accuracy_high"]
    return found | {"gain held": ahead["gain_low"] <= gain <= ahead["gain_high"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=["digits"], help="flowers, scans, ants_and_bees or digits")
    parser.add_argument("--draws", type=int, default=30)
    options, rows = parser.parse_args(), {}
    for name in options.sets:
        experiment, verdict = make(name)
        images = experiment.images.assign(split=experiment.images["split"].replace("validation", "train"))
        pixels = load_pixels(images, image_size=experiment.network.input_shape[1:3])
        features, _ = load_features(experiment.network, {"train": pixels["train"]})
        features, labels = features[verdict["arms"]["frozen"]["cut"]]["train"], encode_labels(images)[0]["train"]
        table = pd.DataFrame([draw(features, labels, seed) for seed in range(options.draws)])
        rows[name] = {factor: np.sqrt((table[factor] ** 2).mean()) for factor in FACTORS}
        rows[name] |= table[["accuracy held", "gain held"]].mean().to_dict()
        print(pd.DataFrame([rows[name]], index=[name]).round(3).to_string(), flush=True)


if __name__ == "__main__":
    main()
