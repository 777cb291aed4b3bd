"""Features once and a solved head, against ten epochs of training a head on a frozen network.

    python tests/benchmarks/frozen_phase.py [--repeats 3]

Both get the same decoded training images of ants and bees and the same MobileNetV2, and are timed in turns in
one process. The other recipe is the Keras transfer-learning guide's: random flips and rotations, the network
called with `training=False`, dropout, a new Dense layer, Adam at 1e-3, ten epochs.

REAL_DATA_DIR names a folder with the photos and the weights. Without it, noise and random weights are used: the
time is the same, and the accuracy means nothing.
"""

import argparse
import os
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from helpers.backbones import freeze, keras, load_backbone
from helpers.data import check_images, encode_labels, exclude_problems, find_images, load_pixels, split_images
from helpers.training import attach_head, compute_activations, fit_head, set_seed

SIZE, EPOCHS = 224, 10


def load():
    """Returns pixels and labels for train and test, and the weights: real ones if there are any."""
    folder = os.environ.get("REAL_DATA_DIR")
    if not folder:
        rng = np.random.default_rng(0)
        pixels = {
            part: rng.integers(0, 256, (n, SIZE, SIZE, 3)).astype("uint8")
            for part, n in (("train", 245), ("test", 153))
        }
        return pixels, {part: np.arange(len(array)) % 2 for part, array in pixels.items()}, None
    checked, problems = check_images(find_images(Path(folder) / "data" / "hymenoptera"))
    images = split_images(exclude_problems(checked, problems))
    images["split"] = images["split"].replace("validation", "train")  # neither recipe needs validation images
    pixels = load_pixels(images, image_size=(SIZE, SIZE))
    pixels = {part: np.array(stored) for part, stored in pixels.items()}  # in memory, as `fit` needs them
    return pixels, encode_labels(images)[0], f"{folder}/weights/mobilenet_v2_1.0_224_notop.weights.h5"


def features_once(network, pixels, labels) -> keras.Model:
    head = fit_head(compute_activations(network, pixels), labels)
    return attach_head(network, head, class_names=["ants", "bees"])


def guide(network, pixels, labels) -> keras.Model:
    layers = keras.layers
    images = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(images))
    x = layers.Dropout(0.2)(network(x, training=False))
    model = keras.Model(images, layers.Dense(2, activation="softmax")(x))
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    model.fit(pixels, labels, batch_size=32, epochs=EPOCHS, verbose=0)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    pixels, labels, weights = load()
    seconds, accuracies = {guide: [], features_once: []}, {guide: [], features_once: []}
    for repeat in range(repeats):
        for recipe in (guide, features_once):
            set_seed(repeat)
            network = load_backbone("MobileNetV2", weights=weights, image_size=SIZE)
            freeze(network)
            started = perf_counter()
            model = recipe(network, pixels["train"], labels["train"])
            seconds[recipe].append(perf_counter() - started)
            predicted = model.predict(pixels["test"], verbose=0).argmax(axis=1)
            accuracies[recipe].append((predicted == labels["test"]).mean())
    print(f"{'recipe':<34}{'seconds (median)':>18}{'test accuracy (median)':>25}")
    for recipe, name in ((guide, "ten epochs, as in the Keras guide"), (features_once, "features once, solved head")):
        print(f"{name:<34}{median(seconds[recipe]):>18.1f}{median(accuracies[recipe]):>25.3f}")
    ratios = [a / b for a, b in zip(seconds[guide], seconds[features_once], strict=True)]
    print(
        f"features once is {median(ratios):.1f} times faster (of {repeats}: {min(ratios):.1f} to {max(ratios):.1f})"
    )


if __name__ == "__main__":
    main()
