"""How many digits does the letters' network save? Accuracy by number of labelled digits per class.

    python tests/benchmarks/digits_per_class.py [--draws 10] [--per-class 5 10 20] [--first-draw 0]

Each draw sets 800 digits aside for the test (stratified) and takes n per class from the rest. These n, and no
other digit, train each classifier and choose its settings; the three are scored on the same 800. Settings
that hold for all n were chosen on other draws (of the same digits), from 100 on; the table is made from 0, 1, 2 ...
"""

import argparse
from itertools import product

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from tqdm import tqdm

from helpers.appendices.letters import counts_to_images
from helpers.backbones import cut, freeze, keras, load_backbone
from helpers.training import attach_head, compute_activations, fit_head, set_seed, warmup_cosine

UNFREEZE_FROM, LEARNING_RATE, EPOCHS, BATCH_SIZE = "conv3", 1e-3, 40, 32
"""One choice for every n, made on draws from 100 on."""


def draw_digits(classes: np.ndarray, per_class: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of `per_class` training digits a class and of 800 test digits."""
    rest, test = train_test_split(np.arange(len(classes)), test_size=800, stratify=classes, random_state=seed)
    rest = np.random.default_rng(seed).permutation(rest)
    train = [rest[classes[rest] == label][:per_class] for label in np.unique(classes)]
    return np.concatenate(train), test


def fine_tune(model: keras.Model, images: np.ndarray, labels: np.ndarray, *, seed: int) -> None:
    """Trains the classifier from its solved head on, as 03 does, but for all epochs: no digit is left to stop it."""
    set_seed(seed)
    freeze(model, unfreeze_from=UNFREEZE_FROM)
    prefix, suffix = cut(model, UNFREEZE_FROM)
    rate = warmup_cosine(LEARNING_RATE, images=len(images), batch_size=BATCH_SIZE, epochs=EPOCHS)
    suffix.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    activations = compute_activations(prefix, images)
    suffix.fit(activations, labels, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0)


def score_draw(backbone_path: str, per_class: int, *, seed: int) -> dict[str, float]:
    """Returns the test accuracy of each classifier on one draw."""
    digits = load_digits()
    images, labels, pixels = counts_to_images(digits.images), digits.target, digits.data / 16
    train, test = draw_digits(labels, per_class, seed=seed)
    support_vectors = SVC(C=10).fit(pixels[train], labels[train])
    backbone = load_backbone(backbone_path)
    features = compute_activations(backbone, images, batch_size=600)
    head = fit_head(features[train], labels[train])
    model = attach_head(backbone, head, class_names=[str(digit) for digit in range(10)])
    fine_tune(model, images[train], labels[train], seed=seed)
    answers = {
        "raw-pixel SVM": support_vectors.predict(pixels[test]),
        "frozen": head.predict(features[test]),
        "fine-tuned": model.predict(images[test], batch_size=800, verbose=0).argmax(1),
    }
    keras.backend.clear_session()
    return {name: float(np.mean(answer == labels[test])) for name, answer in answers.items()}


def draws_parser(doc: str, *, per_class: list[int]) -> argparse.ArgumentParser:
    """Returns a parser of which draws are made, and with how many digits."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--per-class", type=int, nargs="+", default=per_class)
    parser.add_argument("--first-draw", type=int, default=0)
    return parser


def seeds(options: argparse.Namespace) -> range:
    return range(options.first_draw, options.first_draw + options.draws)


def main() -> None:
    parser = draws_parser(__doc__, per_class=[5, 10, 20])
    parser.add_argument("--backbone", default="data/letters.keras")
    options = parser.parse_args()
    rows = [
        {"digits per class": per_class} | score_draw(options.backbone, per_class, seed=seed)
        for per_class, seed in tqdm(list(product(options.per_class, seeds(options))), leave=False, disable=False)
    ]
    groups = pd.DataFrame(rows).groupby("digits per class")
    mean, deviation = groups.mean(), groups.std(ddof=min(1, options.draws - 1))
    table = mean.map("{:.4f} ± ".format) + deviation.map("{:.4f}".format)
    print(f"Accuracy on 800 test digits, mean ± standard deviation over {options.draws} draws")
    print(table.to_string())


if __name__ == "__main__":
    main()
