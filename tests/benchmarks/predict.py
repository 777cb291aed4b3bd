"""Predicting files, against the bare forward pass over the same images in memory; and the memory that it takes.

    REAL_DATA_DIR=... python tests/benchmarks/predict.py [--images 2000] [--repeats 5] [--sizes 1000 4000]

MobileNetV2 with ImageNet's weights, as a classifier of ants and bees. The files are the folder's real photos, copied
until there are enough: at 224 x 224 pixels and as they are. Both ways are timed in turns in one process, after
loading and compiling. The peak memory is that of a fresh process for each number of images.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from PIL import Image

import helpers
from helpers import data, predict
from helpers.backbones import load_backbone
from helpers.training import attach_head, fit_head, load_activations, load_classifier, save_model

SIZE = (224, 224)
PEAK = """
import re, sys, pathlib, helpers.predict
assert helpers.predict.main(sys.argv[1:]) == 0
print(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
"""


def save_classifier(real: Path, path: Path) -> None:
    """Saves ants and bees on frozen features."""
    checked = data.check_images(data.find_images(real / "data" / "hymenoptera"))
    images = data.split_images(data.exclude_problems(*checked))
    labels, names = data.encode_labels(images)
    pixels = data.load_pixels(images, image_size=SIZE)["train"]
    weights = str(real / "weights" / "mobilenet_v2_1.0_224_notop.weights.h5")
    network = load_backbone("MobileNetV2", weights=weights, image_size=SIZE[0])
    model = attach_head(network, fit_head(load_activations(network, pixels), labels["train"]), class_names=names)
    save_model(model, path, class_names=names, resize="crop", pixels=pixels, labels=labels["train"])


def copy_photos(real: Path, folder: Path, count: int, *, resized: bool) -> Path:
    """Returns the folder, with so many JPEG files in it, each photo as often as needed."""
    photos = sorted((real / "data").rglob("*.jpg"))
    folder.mkdir()
    for number in range(count):
        photo, copy = photos[number % len(photos)], folder / f"{number:06d}.jpg"
        if number >= len(photos):
            os.link(folder / f"{number % len(photos):06d}.jpg", copy)
        elif resized:
            Image.fromarray(data.read_pixels(photo, SIZE)).save(copy, quality=90)
        else:
            copy.write_bytes(photo.read_bytes())
    return folder


def compare(folder: Path, model: Path, *, repeats: int) -> None:
    """Prints images a second both ways, and their ratio."""
    import tensorflow as tf

    classifier = predict._Classifier(model)
    predict._Classifier = lambda path: classifier  # once: loading it takes the same for any number of images
    network, _ = load_classifier(model)
    forward = tf.function(lambda batch: network(batch, training=False))
    pixels = np.stack([data.read_pixels(path, SIZE) for path in sorted(folder.iterdir())])
    batches = np.split(pixels, range(classifier.batch_size, len(pixels), classifier.batch_size))
    ways = {
        "forward": lambda: [forward(batch).numpy() for batch in batches],
        "predict": lambda: predict.predict_folder(model, folder, output=model.with_name("predictions.csv")),
    }
    classifier.describe(batches[0]), forward(batches[0]), forward(batches[-1])
    times = {way: [] for way in ways}
    for _ in range(repeats):
        for way, run in ways.items():
            started = perf_counter()
            run()
            times[way].append(perf_counter() - started)
    speeds = "".join(f"{len(pixels) / median(seconds):>18.1f}" for seconds in times.values())
    ratio = median(bare / predicted for bare, predicted in zip(*times.values(), strict=True))
    print(f"{folder.name:<22}{len(pixels):>8,}{speeds}{ratio:>10.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs=2, default=[1000, 4000])
    options = parser.parse_args()
    if not os.environ.get("REAL_DATA_DIR"):
        print("Left out: REAL_DATA_DIR names no folder with photos and weights.")
        return
    os.environ["TQDM_DISABLE"] = "1"
    real = Path(os.environ["REAL_DATA_DIR"]).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        helpers.ROOT = Path(scratch)  # the stores lie below, and go with it
        model = Path(scratch) / "ants_and_bees.keras"
        save_classifier(real, model)
        print(f"{'JPEG files':<22}{'images':>8}{'forward, a second':>18}{'files, a second':>18}{'ratio':>10}")
        for name, resized in (("224 x 224 pixels", True), ("as they are", False)):
            folder = copy_photos(real, Path(scratch) / name, options.images, resized=resized)
            compare(folder, model, repeats=options.repeats)
        print("target: a ratio of at least 0.9\n")
        for count in options.sizes:
            folder = copy_photos(real, Path(scratch) / str(count), count, resized=True)
            command = [sys.executable, "-c", PEAK, str(model), str(folder), "-o", str(folder.with_suffix(".csv"))]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"{count:,} images: peak memory {int(done.stdout.splitlines()[-1]) / 1000:.0f} MB")


if __name__ == "__main__":
    main()
