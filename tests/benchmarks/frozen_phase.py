"""From files to a fitted head: features once and a solved head, against ten epochs of training one.

    REAL_DATA_DIR=... python tests/benchmarks/frozen_phase.py [--repeats 3]

Ants and bees, and flowers (half of them to train), with MobileNetV2 and ImageNet's weights at 224 pixels, in turns in
one process. Both recipes begin with the list of checked JPEG files and end with a trained head; nothing is left from
an earlier turn. The other recipe is the Keras transfer-learning guide's: images read by tf.data and cached in memory,
random flips and rotations, the network called with `training=False`, dropout, a new Dense layer, Adam at 1e-3, ten
epochs. Neither looks at validation images: they train, too.

REAL_DATA_DIR names a folder with the photos and the weights.
"""

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pandas as pd
import tensorflow as tf

import helpers
from helpers.backbones import freeze, keras, load_backbone
from helpers.data import check_images, encode_labels, exclude_problems, find_images, load_pixels, split_images
from helpers.training import attach_head, compute_activations, fit_head, load_activations, set_seed

SIZE, EPOCHS, BATCH_SIZE = 224, 10, 32


def load_table(folder: Path) -> pd.DataFrame:
    """Returns the checked images; where no test part is given, half are drawn for it."""
    checked, problems = check_images(find_images(folder))
    images = split_images(exclude_problems(checked, problems), test_fraction=0.5)
    images["split"] = images["split"].replace("validation", "train")
    return images


def features_once(network, images: pd.DataFrame, labels: dict, steps: dict) -> tuple[keras.Model, dict]:
    """Returns the classifier and the test images that suit it; adds the seconds of each step to `steps`."""
    marks = [perf_counter()]
    pixels = load_pixels(images[images["split"] == "train"], image_size=(SIZE, SIZE))
    marks.append(perf_counter())
    features = load_activations(network, pixels["train"])
    marks.append(perf_counter())
    head = fit_head(features, labels["train"])
    model = attach_head(network, head, class_names=list(map(str, head.classes_)))
    marks.append(perf_counter())
    for name, start, end in zip(("decoding", "features", "head"), marks, marks[1:], strict=False):
        steps.setdefault(name, []).append(end - start)
    return model, {"images": images, "resize": "crop"}


def guide(network, images: pd.DataFrame, labels: dict, steps: dict) -> tuple[keras.Model, dict]:
    """Returns the classifier and the test images that suit it."""

    def decode(path):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.cast(tf.round(tf.image.resize(image, (SIZE, SIZE))), tf.uint8)

    paths = [str(helpers.resolve_path(path)) for path in images.loc[images["split"] == "train", "path"]]
    data = tf.data.Dataset.from_tensor_slices(paths).map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    data = tf.data.Dataset.zip(data, tf.data.Dataset.from_tensor_slices(labels["train"]))
    data = data.cache().shuffle(1000).batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)
    layers = keras.layers
    inputs = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(inputs))
    x = layers.Dropout(0.2)(network(x, training=False))
    model = keras.Model(inputs, layers.Dense(int(labels["train"].max()) + 1, activation="softmax")(x))
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    model.fit(data, epochs=EPOCHS, verbose=0)
    return model, {"images": images, "resize": "stretch"}


def compare(name: str, folder: Path, weights: str, *, repeats: int) -> None:
    """Prints seconds and test accuracies of both recipes, and where the time of the first goes."""
    images = load_table(folder)
    labels, _ = encode_labels(images)
    seconds, accuracies, steps = {}, {}, {}
    for repeat in range(repeats):
        for recipe in (guide, features_once):
            with tempfile.TemporaryDirectory() as empty:
                helpers.ROOT = Path(empty)
                set_seed(repeat)
                network = load_backbone("MobileNetV2", weights=weights, image_size=SIZE)
                freeze(network)
                started = perf_counter()
                model, suited = recipe(network, images, labels, steps)
                seconds.setdefault(recipe, []).append(perf_counter() - started)
                test = suited["images"][suited["images"]["split"] == "test"]
                pixels = load_pixels(test, image_size=(SIZE, SIZE), resize=suited["resize"])["test"]
                predicted = compute_activations(model, pixels).argmax(axis=1)
                accuracies.setdefault(recipe, []).append((predicted == labels["test"]).mean())
            keras.backend.clear_session()
    counts = images["split"].value_counts()
    print(f"\n{name}: {counts['train']} images to train, {counts['test']} to test")
    print(f"{'recipe':<34}{'seconds (median)':>18}{'test accuracy (median)':>25}")
    for recipe, title in (
        (guide, "ten epochs, as in the Keras guide"),
        (features_once, "features once, solved head"),
    ):
        print(f"{title:<34}{median(seconds[recipe]):>18.1f}{median(accuracies[recipe]):>25.3f}")
    ratios = [a / b for a, b in zip(seconds[guide], seconds[features_once], strict=True)]
    print(f"{median(ratios):.1f} times faster (of {repeats}: {min(ratios):.1f} to {max(ratios):.1f})")
    shares = ", ".join(f"{step} {np.median(taken):.1f}" for step, taken in steps.items())
    print(f"of its seconds: {shares}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not os.environ.get("REAL_DATA_DIR"):
        print("Left out: REAL_DATA_DIR names no folder with photos and weights.")
        return
    real = Path(os.environ["REAL_DATA_DIR"]).resolve()
    weights = str(real / "weights" / "mobilenet_v2_1.0_224_notop.weights.h5")
    for name, folder in (("ants and bees", "hymenoptera"), ("flowers", "flowers")):
        compare(name, real / "data" / folder, weights, repeats=options.repeats)


if __name__ == "__main__":
    main()
