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


def real_data() -> Path:
    """Returns the folder with photos and weights, or ends the program."""
    if not os.environ.get("REAL_DATA_DIR"):
        print("Left out: REAL_DATA_DIR names no folder with photos and weights.")
        raise SystemExit
    return Path(os.environ["REAL_DATA_DIR"]).resolve()


def load_table(folder: str) -> pd.DataFrame:
    """Returns the checked images; where no test part is given, half are drawn for it."""
    checked, problems = check_images(find_images(real_data() / "data" / folder))
    return split_images(exclude_problems(checked, problems), test_fraction=0.5).reset_index(drop=True)


def load_network(size: int = SIZE) -> keras.Model:
    """Returns MobileNetV2 with ImageNet's weights."""
    weights = real_data() / "weights" / "mobilenet_v2_1.0_224_notop.weights.h5"
    return load_backbone("MobileNetV2", weights=str(weights), image_size=size)


def guide_classifier(network: keras.Model, classes: int) -> keras.Model:
    """Returns what the guide puts round a frozen network, compiled."""
    layers = keras.layers
    images = keras.Input((SIZE, SIZE, 3), dtype="uint8")
    x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(images))
    x = layers.Dropout(0.2)(network(x, training=False))
    model = keras.Model(images, layers.Dense(classes, activation="softmax")(x))
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    return model


def features_once(network, images: pd.DataFrame, labels: np.ndarray, steps: dict) -> keras.Model:
    """Returns the classifier; adds the seconds of each step to `steps`."""
    started = perf_counter()
    pixels = load_pixels(images, image_size=(SIZE, SIZE))["train"]
    decoded = perf_counter()
    features = load_activations(network, pixels)
    computed = perf_counter()
    head = fit_head(features, labels)
    model = attach_head(network, head, class_names=list(map(str, head.classes_)))
    steps.setdefault("decoding", []).append(decoded - started)
    steps.setdefault("features", []).append(computed - decoded)
    steps.setdefault("head", []).append(perf_counter() - computed)
    return model


def guide(network, images: pd.DataFrame, labels: np.ndarray, steps: dict) -> keras.Model:
    """Returns the classifier."""

    def decode(path):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.cast(tf.round(tf.image.resize(image, (SIZE, SIZE))), tf.uint8)

    paths = [str(helpers.resolve_path(path)) for path in images["path"]]
    data = tf.data.Dataset.from_tensor_slices(paths).map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    data = tf.data.Dataset.zip(data, tf.data.Dataset.from_tensor_slices(labels))
    data = data.cache().shuffle(1000).batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)
    model = guide_classifier(network, int(labels.max()) + 1)
    model.fit(data, epochs=EPOCHS, verbose=0)
    return model


RECIPES = {  # and how the images that suit it are brought to size
    "ten epochs, as in the Keras guide": (guide, "stretch"),
    "features once, solved head": (features_once, "crop"),
}


def compare(name: str, folder: str, *, repeats: int) -> None:
    """Prints seconds and test accuracies of both recipes, and where the time of the second goes."""
    images = load_table(folder)
    images["split"] = images["split"].replace("validation", "train")
    (labels, _), test = encode_labels(images), images[images["split"] == "test"]
    seconds, accuracies, steps = {title: [] for title in RECIPES}, {title: [] for title in RECIPES}, {}
    for repeat in range(repeats):
        for title, (recipe, resize) in RECIPES.items():
            with tempfile.TemporaryDirectory() as empty:
                helpers.ROOT = Path(empty)
                set_seed(repeat)
                network = load_network()
                freeze(network)
                started = perf_counter()
                model = recipe(network, images[images["split"] == "train"], labels["train"], steps)
                seconds[title].append(perf_counter() - started)
                pixels = load_pixels(test, image_size=(SIZE, SIZE), resize=resize)["test"]
                accuracies[title].append((compute_activations(model, pixels).argmax(axis=1) == labels["test"]).mean())
            keras.backend.clear_session()
    print(f"\n{name}: {len(labels['train'])} images to train, {len(labels['test'])} to test")
    print(f"{'recipe':<34}{'seconds (median)':>18}{'test accuracy (median)':>25}")
    for title in RECIPES:
        print(f"{title:<34}{median(seconds[title]):>18.1f}{median(accuracies[title]):>25.3f}")
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    print(f"{median(ratios):.1f} times faster (of {repeats}: {min(ratios):.1f} to {max(ratios):.1f})")
    print("of its seconds: " + ", ".join(f"{step} {median(taken):.1f}" for step, taken in steps.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for name, folder in (("ants and bees", "hymenoptera"), ("flowers", "flowers")):
        compare(name, folder, repeats=options.repeats)


if __name__ == "__main__":
    main()
