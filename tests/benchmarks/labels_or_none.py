"""From labels, from no labels, from nothing: what is a pretrained network worth with few labelled digits?

    python tests/benchmarks/labels_or_none.py [--draws 10] [--per-class 10 50] [--first-draw 0] [--rate 3e-3]
        [-o FILE]

Each draw sets 800 digits aside for the test (stratified) and takes n of a class from the rest. These n, and no other
digit, train each classifier and choose its settings, and all are scored on the same 800. *Frozen* is a fitted head on
features that stay as they are. *Fine-tuned* trains from there: of a pretrained network the stages from conv3 on; of
random weights all, with batch normalization: training from scratch. With *augmentation*, each epoch sees other
views (crop, rotate, light). An SVM on raw pixels stands beside them.

Settings for all n were chosen on other draws of the same digits, from 100 on. From scratch there are 1,000 steps, at
3e-3: of this, 1e-3 and 1e-2 it was the best on draws 100 and 101 with 10 digits per class (`--first-draw 100 --draws
2 --per-class 10 --rate 1e-2`).
"""

import argparse
import math
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from tqdm import tqdm

from helpers.appendices import interval_over_splits
from helpers.appendices.letters import build_letter_backbone, counts_to_images
from helpers.backbones import cut, freeze, keras, load_backbone
from helpers.data.augmentation import Augmented
from helpers.data.batches import make_dataset
from helpers.training import attach_head, compute_activations, fit_head, set_seed, warmup_cosine

NETWORKS = {
    "with labels": "data/letters.keras",
    "without labels": "data/letters_without_labels.keras",
    "not at all": "",
}
CLASSIFIERS = ["frozen", "fine-tuned", "fine-tuned, augmented"]
STEPS_FROM_SCRATCH = 1000
UNFREEZE_FROM, LEARNING_RATE, EPOCHS, BATCH_SIZE = "conv3", 1e-3, 40, 32  # of the pretrained ones, for every n
AUGMENTATION = "crop,rotate,light"


def draw_digits(classes: np.ndarray, per_class: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of `per_class` training digits a class and of 800 test digits."""
    rest, test = train_test_split(np.arange(len(classes)), test_size=800, stratify=classes, random_state=seed)
    rest = np.random.default_rng(seed).permutation(rest)
    train = [rest[classes[rest] == label][:per_class] for label in np.unique(classes)]
    return np.concatenate(train), test


def train(model: keras.Model, images, labels: np.ndarray, *, scratch: float, augmented: bool, seed: int) -> None:
    """Trains the classifier from its solved head on, for all epochs: no digit is left to stop it.

    With `scratch`, a rate, all of it learns; with 0, the upper stages, at the rate of the pretrained ones.
    """
    set_seed(seed)
    freeze(model, unfreeze_from="conv1" if scratch else UNFREEZE_FROM, batch_norm="train" if scratch else "frozen")
    prefix, part = (None, model) if scratch or augmented else cut(model, UNFREEZE_FROM)
    inputs = Augmented(images, AUGMENTATION, seed=seed) if augmented else images
    inputs = inputs if prefix is None else compute_activations(prefix, images)
    rate, epochs = LEARNING_RATE, EPOCHS
    if scratch:
        rate, epochs = scratch, math.ceil(STEPS_FROM_SCRATCH / math.ceil(len(images) / BATCH_SIZE))
    schedule = warmup_cosine(rate, images=len(images), batch_size=BATCH_SIZE, epochs=epochs)
    part.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy")
    batches = make_dataset(inputs, labels, batch_size=BATCH_SIZE, shuffle=seed, even=True)
    part.fit(batches, epochs=epochs, shuffle=False, verbose=0)


def score_draw(pretrained: str, per_class: int, *, seed: int, rate: float) -> dict[str, float]:
    """Returns the test accuracy of each classifier on one draw."""
    digits = load_digits()
    images, labels = counts_to_images(digits.images), digits.target
    few, test = draw_digits(labels, per_class, seed=seed)
    set_seed(seed)
    file = NETWORKS[pretrained]
    backbone = load_backbone(file) if file else build_letter_backbone("random")
    features = compute_activations(backbone, images, batch_size=600)
    head = fit_head(features[few], labels[few])
    scores = {"frozen": head.score(features[test], labels[test])}
    start = backbone.get_weights()
    for name, augmented in (("fine-tuned", False), ("fine-tuned, augmented", True)):
        backbone.set_weights(start)
        model = attach_head(backbone, head, class_names=[str(digit) for digit in range(10)])
        train(model, images[few], labels[few], scratch=0.0 if file else rate, augmented=augmented, seed=seed)
        answers = model.predict(images[test], batch_size=800, verbose=0).argmax(1)
        scores[name] = float(np.mean(answers == labels[test]))
    keras.backend.clear_session()
    return scores


def score_pixels(per_class: int, *, seed: int) -> float:
    """Returns the test accuracy of an SVM on raw pixels on one draw."""
    digits = load_digits()
    few, test = draw_digits(digits.target, per_class, seed=seed)
    return SVC(C=10).fit(digits.data[few] / 16, digits.target[few]).score(digits.data[test] / 16, digits.target[test])


def points(scores: pd.Series, form: str = "{:.1f} ({:.1f} to {:.1f})") -> str:
    """Returns mean and interval, times 100."""
    return form.format(*100 * np.array(interval_over_splits(scores.to_numpy())))


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns mean and interval of each classifier, by digits per class and by how the network was pretrained."""

    groups = rows.groupby(["digits per class", "pretrained"], sort=False)[CLASSIFIERS]
    return groups.agg(points)


def differences(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns what frozen features learned without labels gain over no pretraining, in pairs of one draw."""
    found = []
    for n, group in rows.groupby("digits per class", sort=False):
        by_draw = group.set_index(["pretrained", "draw"])
        for name in CLASSIFIERS:
            gain = by_draw.loc["without labels", "frozen"] - by_draw.loc["not at all", name]
            found.append((n, name, points(gain, "{:+.1f} ({:+.1f} to {:+.1f})")))
    return pd.DataFrame(found, columns=["digits per class", "not pretrained", "points"]).set_index("digits per class")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--per-class", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--first-draw", type=int, default=0)
    parser.add_argument("--rate", type=float, default=3e-3, help="from scratch")
    parser.add_argument("-o", "--output", type=Path, help="the table as CSV, such as data/labels_or_none.csv")
    options = parser.parse_args()
    seeds, rows = range(options.first_draw, options.first_draw + options.draws), []
    for n in options.per_class:
        print(
            f"Raw pixels, SVM, {n} digits per class:",
            points(pd.Series([score_pixels(n, seed=seed) for seed in seeds])),
        )
    for n, pretrained, seed in tqdm(list(product(options.per_class, NETWORKS, seeds)), leave=False, disable=False):
        about = {"digits per class": n, "pretrained": pretrained, "draw": seed}
        rows.append(about | score_draw(pretrained, n, seed=seed, rate=options.rate))
    rows = pd.DataFrame(rows)
    print(f"Accuracy on 800 test digits in %, mean over {options.draws} draws with its 95 % interval")
    print(table(rows).to_string())
    print("\nFrozen features learned without labels, against networks that were not pretrained, in points")
    print(differences(rows).to_string())
    if options.output:
        table(rows).to_csv(options.output)


if __name__ == "__main__":
    main()
