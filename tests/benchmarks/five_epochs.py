"""Five epochs of fine-tuning everything on flowers: our defaults against the recipe of the Keras guide.

    REAL_DATA_DIR=... python tests/benchmarks/five_epochs.py [--seeds 6]

MobileNetV2 with ImageNet's weights at 224 pixels. Half of the flowers are the test images, the same for all seeds,
and chose nothing; of the other half, a fifth (another one for each seed) are validation images. Both recipes get the
same training images, decoded. The seconds are those of the five epochs, from `compile` to the end of `fit`, building
Keras' functions included; in brackets with what comes before: our solved head, the guide's ten epochs on the frozen
network.

The guide's recipe: random flips and rotations, the network called with `training=False`, dropout, a new Dense layer,
ten epochs of Adam at 1e-3, then everything trainable and five epochs of Adam at 1e-5. It does not use the validation
images, by which ours is recalibrated.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from frozen_phase import BATCH_SIZE, SIZE, guide_classifier, load_network, load_table
from sklearn.model_selection import train_test_split

import helpers
from helpers.backbones import keras
from helpers.data import encode_labels, load_pixels
from helpers.training import Recipe, attach_head, compute_activations, fine_tune, fit_head, load_activations, set_seed

EPOCHS = 5


def guide(network, pixels, labels, *, seed: int) -> tuple[keras.Model, float, float]:
    """Returns the classifier, the seconds of the five epochs, and those before them."""
    started = perf_counter()
    network.trainable = False
    model, train = guide_classifier(network, int(labels["train"].max()) + 1), np.asarray(pixels["train"])
    model.fit(train, labels["train"], batch_size=BATCH_SIZE, epochs=10, verbose=0)
    middle = perf_counter()
    network.trainable = True
    assert len(model.trainable_weights) > 100, "everything learns"
    model.compile(keras.optimizers.Adam(1e-5), "sparse_categorical_crossentropy")
    model.fit(train, labels["train"], batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0)
    return model, perf_counter() - middle, middle - started


def ours(network, pixels, labels, *, seed: int) -> tuple[keras.Model, float, float]:
    """Returns the classifier, the seconds of the five epochs, and those before them."""
    started = perf_counter()
    head = fit_head(load_activations(network, pixels["train"]), labels["train"])
    model = attach_head(network, head, class_names=list(map(str, head.classes_)))
    middle = perf_counter()
    recipe = Recipe(unfreeze_from="all", epochs=EPOCHS, batch_size=BATCH_SIZE, seed=seed)
    fine_tune(model, pixels, labels, recipe=recipe)
    return model, perf_counter() - middle, middle - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--per-class", type=int, default=100, help="images of a class to learn from, at most")
    options = parser.parse_args()
    images = load_table("flowers")
    rank = images[images["split"] != "test"].groupby("label").cumcount()
    learn = rank[rank < options.per_class].index.to_numpy()
    images.loc[rank[rank >= options.per_class].index, "split"] = "left out"
    print(f"{'seed':<6}{'guide':>8}{'ours':>8}{'guide, s':>18}{'ours, s':>18}", flush=True)
    rows = []
    for seed in range(options.seeds):
        train, validation = train_test_split(learn, test_size=0.2, stratify=images["label"][learn], random_state=seed)
        images.loc[train, "split"] = "train"
        images.loc[validation, "split"] = "validation"
        labels, _ = encode_labels(images)
        scores = []
        for recipe in (guide, ours):
            with tempfile.TemporaryDirectory() as empty:
                helpers.ROOT = Path(empty)
                pixels = load_pixels(images, image_size=(SIZE, SIZE))
                set_seed(seed)
                model, took, before = recipe(load_network(), pixels, labels, seed=seed)
                accuracy = (compute_activations(model, pixels["test"]).argmax(axis=1) == labels["test"]).mean()
                scores += [accuracy, took, took + before]
            keras.backend.clear_session()
        rows.append(scores)
        cells = "".join(f"{took:>10.0f} ({whole:>5.0f})" for took, whole in (scores[1:3], scores[4:6]))
        print(f"{seed:<6}{scores[0]:>8.3f}{scores[3]:>8.3f}{cells}", flush=True)
    table = np.array(rows)
    gains, ratios = table[:, 3] - table[:, 0], table[:, 4] / table[:, 1]
    print(
        f"ours is better on {(gains > 0).sum()} of {len(rows)} seeds, by {100 * gains.mean():.1f} points on average, "
        f"in {median(ratios):.2f} of the time ({ratios.min():.2f} to {ratios.max():.2f})"
    )


if __name__ == "__main__":
    main()
