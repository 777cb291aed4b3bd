"""How many digits does the letters' network save? Accuracy by number of labelled digits per class.

    python tests/benchmarks/digits_per_class.py [--draws 10] [--per-class 5 10 20] [--first-draw 0]

Each draw sets 800 digits aside for the test (stratified) and takes n per class from the rest. These n, and no
other digit, train each classifier and choose its settings; the three are scored on the same 800. Settings
that hold for all n were chosen on draws from 100 on, the table is made from the draws 0, 1, 2 and so on.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))

from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.svm import SVC
from tqdm import tqdm

from helpers import ROOT
from helpers._keras import keras
from helpers.letters import counts_to_images

UNFREEZE_FROM, LEARNING_RATE, EPOCHS, BATCH_SIZE, WARM_UP = "conv3", 1e-3, 40, 32, 0.1
"""One choice for every n, made on draws from 100 on."""


def draw_digits(classes: np.ndarray, per_class: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of `per_class` training digits a class and of 800 test digits."""
    rest, test = train_test_split(np.arange(len(classes)), test_size=800, stratify=classes, random_state=seed)
    rest = np.random.default_rng(seed).permutation(rest)
    train = [rest[classes[rest] == label][:per_class] for label in np.unique(classes)]
    return np.concatenate(train), test


def fit_head(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel (channels, classes) and bias (classes,) of the best L2-regularised linear head.

    Its strength is the one of least cross-validated log-loss. The features are centred and brought to unit
    mean variance by one factor for all, so that a strength means the same for any backbone.
    """
    mean, scale = features.mean(0), np.sqrt(features.var(0).mean())
    head = LogisticRegressionCV(
        Cs=np.logspace(-2, 2, 9),
        cv=StratifiedKFold(5, shuffle=True, random_state=0),
        scoring="neg_log_loss",
        l1_ratios=(0,),
        max_iter=1000,
        use_legacy_attributes=False,
    ).fit((features - mean) / scale, labels)
    kernel = head.coef_.T / scale
    return kernel, head.intercept_ - mean @ kernel


def fine_tune(backbone: keras.Model, head: tuple, images: np.ndarray, labels: np.ndarray, *, seed: int):
    """Returns a model to logits, trained from `head` on (LP-FT: Kumar et al. 2022, arXiv 2202.10054)."""
    keras.utils.set_random_seed(seed)
    body = keras.models.clone_model(backbone)
    body.set_weights(backbone.get_weights())
    stages = [layer.name.split("_")[0] for layer in body.layers]
    first = stages.index(UNFREEZE_FROM)
    for position, layer in enumerate(body.layers):
        # A batch of 32 digits is too few for statistics: BatchNormalization stays in inference mode.
        layer.trainable = position >= first and not isinstance(layer, keras.layers.BatchNormalization)
    output = keras.layers.Dense(head[0].shape[1], name="predictions")
    model = keras.Model(body.input, output(body.output))
    output.set_weights(head)
    steps = EPOCHS * -(-len(images) // BATCH_SIZE)
    warm_up = round(WARM_UP * steps)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warm_up, warmup_target=LEARNING_RATE, warmup_steps=warm_up
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss)
    model.fit(images, labels, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0)
    return model


def score_draw(backbone: keras.Model, per_class: int, *, seed: int) -> dict[str, float]:
    """Returns the test accuracy of each classifier on one draw."""
    digits = load_digits()
    images, labels, pixels = counts_to_images(digits.images), digits.target, digits.data / 16
    train, test = draw_digits(labels, per_class, seed=seed)
    support_vectors = SVC(C=10).fit(pixels[train], labels[train])
    features = backbone.predict(images, batch_size=600, verbose=0)
    kernel, bias = fit_head(features[train], labels[train])
    tuned = fine_tune(backbone, (kernel, bias), images[train], labels[train], seed=seed)
    answers = {
        "raw-pixel SVM": support_vectors.predict(pixels[test]),
        "frozen": (features[test] @ kernel + bias).argmax(1),
        "fine-tuned": tuned.predict(images[test], batch_size=800, verbose=0).argmax(1),
    }
    keras.backend.clear_session()
    return {name: float(np.mean(answer == labels[test])) for name, answer in answers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--per-class", type=int, nargs="+", default=[5, 10, 20])
    parser.add_argument("--first-draw", type=int, default=0)
    parser.add_argument("--backbone", default=ROOT / "data" / "letters.keras")
    options = parser.parse_args()
    backbone = keras.models.load_model(options.backbone)
    seeds = range(options.first_draw, options.first_draw + options.draws)
    draws = [(per_class, seed) for per_class in options.per_class for seed in seeds]
    started = time.perf_counter()
    rows = [
        {"digits per class": per_class} | score_draw(backbone, per_class, seed=seed)
        for per_class, seed in tqdm(draws, leave=False)
    ]
    groups = pd.DataFrame(rows).groupby("digits per class")
    mean, deviation = groups.mean(), groups.std(ddof=min(1, options.draws - 1))
    table = mean.map("{:.4f} ± ".format) + deviation.map("{:.4f}".format)
    print(f"Accuracy on 800 test digits, mean ± standard deviation over {options.draws} draws")
    print(table.to_string())
    print(f"{time.perf_counter() - started:.0f} seconds")


if __name__ == "__main__":
    main()
