"""Five epochs of fine-tuning everything on flowers: our defaults against the recipe of the Keras guide.

    REAL_DATA_DIR=... python tests/benchmarks/five_epochs.py [--seeds 6]

MobileNetV2 with ImageNet's weights at 224 pixels. Half of the flowers are the test images, the same for all seeds,
and chose nothing; of the other half, a fifth (another one for each seed) are validation images. Both recipes get the
same training images, decoded. The seconds are those of the five epochs, from `compile` to the end of `fit`, building
Keras' functions included; in brackets with what comes before: our solved head, the guide's ten epochs on the frozen
network.

The guide's recipe: random flips and rotations, the network called with `training=False`, dropout, a new Dense layer,
ten epochs of Adam at 1e-3, then everything trainable and five epochs of Adam at 1e-5. It does not use the validation
images, by which ours keeps the best epoch.
"""

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from sklearn.model_selection import train_test_split

import helpers
from helpers.backbones import keras, load_backbone
from helpers.backbones.stages import find_stages
from helpers.data import check_images, encode_labels, exclude_problems, find_images, load_pixels, split_images
from helpers.training import (
    Recipe,
    attach_head,
    compute_activations,
    fine_tune,
    fit_head,
    load_activations,
    set_seed,
)

SIZE, EPOCHS, BATCH_SIZE = 224, 5, 32


def guide(network, pixels, labels, *, seed: int) -> tuple[keras.Model, float, float]:
    """Returns the classifier, the seconds of the five epochs, and those before them."""
    started = perf_counter()
    network.trainable = False
    layers = keras.layers
    images = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(images))
    x = layers.Dropout(0.2)(network(x, training=False))
    model = keras.Model(images, layers.Dense(int(labels["train"].max()) + 1, activation="softmax")(x))
    train = np.asarray(pixels["train"])
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(train, labels["train"], batch_size=BATCH_SIZE, epochs=10, verbose=0)
    middle = perf_counter()
    network.trainable = True
    assert len(model.trainable_weights) > 100, "everything learns"
    model.compile(keras.optimizers.Adam(1e-5), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(train, labels["train"], batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0)
    return model, perf_counter() - middle, middle - started


def ours(network, pixels, labels, *, seed: int) -> tuple[keras.Model, float, float]:
    """Returns the classifier, the seconds of the five epochs, and those before them."""
    started = perf_counter()
    features = load_activations(network, pixels["train"])
    head = fit_head(features, labels["train"])
    model = attach_head(network, head, class_names=list(map(str, head.classes_)))
    middle = perf_counter()
    everything = list(find_stages(model))[1]
    recipe = replace(Recipe(), unfreeze_from=everything, epochs=EPOCHS, batch_size=BATCH_SIZE, seed=seed)
    fine_tune(model, pixels, labels, recipe=recipe)
    return model, perf_counter() - middle, middle - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--per-class", type=int, default=100, help="images of a class to learn from, at most")
    options = parser.parse_args()
    if not os.environ.get("REAL_DATA_DIR"):
        print("Left out: REAL_DATA_DIR names no folder with photos and weights.")
        return
    real = Path(os.environ["REAL_DATA_DIR"]).resolve()
    checked, problems = check_images(find_images(real / "data" / "flowers"))
    images = split_images(exclude_problems(checked, problems), test_fraction=0.5).reset_index(drop=True)
    rank = images[images["split"] != "test"].groupby("label").cumcount()
    learn = rank[rank < options.per_class].index.to_numpy()
    images.loc[rank[rank >= options.per_class].index, "split"] = "left out"
    print(f"{'seed':<6}{'guide':>8}{'ours':>8}{'guide, s':>18}{'ours, s':>18}", flush=True)
    rows = []
    for seed in range(options.seeds):
        train, validation = train_test_split(learn, test_size=0.2, stratify=images["label"][learn], random_state=seed)
        images.loc[images.index[train], "split"], images.loc[images.index[validation], "split"] = (
            "train",
            "validation",
        )
        labels, _ = encode_labels(images)
        scores = []
        for recipe in (guide, ours):
            with tempfile.TemporaryDirectory() as empty:
                helpers.ROOT = Path(empty)
                pixels = load_pixels(images, image_size=(SIZE, SIZE))
                set_seed(seed)
                weights = real / "weights" / "mobilenet_v2_1.0_224_notop.weights.h5"
                network = load_backbone("MobileNetV2", weights=str(weights), image_size=SIZE)
                model, took, before = recipe(network, pixels, labels, seed=seed)
                accuracy = (compute_activations(model, pixels["test"]).argmax(axis=1) == labels["test"]).mean()
                scores += [accuracy, took, took + before]
            keras.backend.clear_session()
        rows.append(scores)
        cells = "".join(f"{took:>10.0f} ({whole:>5.0f})" for took, whole in (scores[1:3], scores[4:6]))
        cells = f"{scores[0]:>8.3f}{scores[3]:>8.3f}{cells}"
        print(f"{seed:<6}{cells}", flush=True)
    table = np.array(rows)
    gains, ratios = table[:, 3] - table[:, 0], table[:, 4] / table[:, 1]
    print(
        f"ours is better on {(gains > 0).sum()} of {len(rows)} seeds, by {100 * gains.mean():.1f} points on average, "
        f"in {median(ratios):.2f} of the time ({ratios.min():.2f} to {ratios.max():.2f})"
    )


if __name__ == "__main__":
    main()
