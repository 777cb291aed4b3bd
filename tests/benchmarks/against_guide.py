"""What 04 chooses against 02's and 03's networks, and against the recipe that everybody follows: the Keras guide's.

    REAL_DATA_DIR=... python tests/benchmarks/against_guide.py [flowers scans ...] [--size 224] [--budget quick]

For each set of photos: 02 (cut chosen by probe, linear head), 03 (its defaults) and 04 (the study, then the chosen
arm trained on all images that are not test images), with MobileNetV2 and ImageNet's weights; and, in a process of
its own, the guide's transfer learning with all images that are not test images: ten epochs of a new Dense layer on
the frozen network, then five of everything at a rate of 1e-5, with random flips and rotations. All are scored on
the same test images. A row of against_guide.csv holds accuracies, seconds, and the peak memory of the process with
02 to 04.

REAL_DATA_DIR names a folder with the photos and the weights.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd

SETS = {"flowers": "flowers", "ants and bees": "hymenoptera", "scans": "scans"}
REAL = Path(os.environ.get("REAL_DATA_DIR") or "nowhere").resolve()
WEIGHTS = str(REAL / "weights" / "mobilenet_v2_1.0_224_notop.weights.h5")


def load(name: str, *, all_learn: bool = False):
    """Returns the images' table; half of the images are test images where none are given."""
    from helpers import data

    checked = data.check_images(data.find_images(REAL / "data" / SETS[name]))
    images = data.split_images(data.exclude_problems(*checked), test_fraction=0.5)
    return images.assign(split=images["split"].replace("validation", "train")) if all_learn else images


def ours(name: str, size: int, budget: str) -> dict:
    """Returns what 02, 03 and 04 reach on the test images, and what 04 takes."""
    from helpers import training
    from helpers.backbones import keras, load_backbone, truncate
    from helpers.data import encode_labels, load_pixels
    from helpers.study import Experiment, Study

    images, network = load(name), load_backbone("MobileNetV2", weights=WEIGHTS, image_size=size)
    pixels, (labels, names) = load_pixels(images, image_size=(size, size)), encode_labels(images)

    def accuracy(model) -> float:
        predicted = training.compute_activations(model, pixels["test"]).argmax(axis=1)
        return float((predicted == labels["test"]).mean())

    started = perf_counter()
    probe = training.probe_depth(network, pixels, labels)
    own = keras.models.clone_model(network)  # 03 changes what it trains
    own.set_weights(network.get_weights())
    backbone = truncate(own, training.choose_cut(probe))
    head = training.fit_head(training.load_activations(backbone, pixels)["train"], labels["train"])
    model = training.attach_head(backbone, head, class_names=names)
    row = {"set": name, "size": size, "budget": budget, "test_images": len(labels["test"])}
    row |= {"02": accuracy(model), "seconds_02": perf_counter() - started}
    started = perf_counter()
    training.fine_tune(model, pixels, labels)
    row |= {"03": accuracy(model), "seconds_03": perf_counter() - started}
    started = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(network, images, resize="crop")
        study = Study(experiment, probe, file=Path(folder) / "study.jsonl", budget=budget)
        print(study.plan.describe(), flush=True)
        race = study.race()
        print(race.drop(columns=["low", "high", "outcome"]).round(4).to_string(), flush=True)
        final = study.final(race)
        verdict = study.verdict(final)
        print(verdict["paragraph"], flush=True)
        chosen = study.retrain(final, verdict)
    row |= {"04": accuracy(chosen), "seconds_04": perf_counter() - started, "chosen": verdict["chosen"]}
    arm = verdict["arms"][verdict["chosen"]]
    row |= {"cut": arm["cut"], "stage": arm.get("stage", ""), "learning_rate": arm.get("learning_rate", 0.0)}
    means = {name: arm["test_accuracy"] for name, arm in verdict["arms"].items()}
    row |= {"frozen_mean": means.get("frozen"), "fine_tuned_mean": means.get("fine-tuned")}
    row |= {"pairs": verdict["comparison"]["pairs"], "verdict": verdict["verdict"]}
    return row | {"peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)}


def guide(name: str, size: int, seeds: int) -> dict:
    """Returns what the guide's recipe reaches and takes, with all images that are not test images."""
    import tensorflow as tf
    from keras import Input, Model, applications, layers, losses, optimizers

    from helpers._keras import set_seed
    from helpers.data import encode_labels, load_pixels

    images = load(name, all_learn=True)
    pixels, (labels, names) = load_pixels(images, image_size=(size, size)), encode_labels(images)
    arrays = {part: np.asarray(pixels[part][:]) for part in ("train", "test")}
    accuracies, seconds = [], []
    for seed in range(seeds):
        set_seed(seed)
        started = perf_counter()
        base = applications.MobileNetV2(weights=WEIGHTS, include_top=False, input_shape=(size, size, 3))
        base.trainable = False
        inputs = Input((size, size, 3))
        x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(inputs))
        x = layers.Rescaling(1 / 127.5, offset=-1)(x)
        x = layers.GlobalAveragePooling2D()(base(x, training=False))
        model = Model(inputs, layers.Dense(len(names))(layers.Dropout(0.2)(x)))
        batches = tf.data.Dataset.from_tensor_slices((arrays["train"], labels["train"])).shuffle(2000, seed=seed)
        batches = batches.batch(32).prefetch(2)
        loss = losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizers.Adam(), loss, metrics=["accuracy"])
        model.fit(batches, epochs=10, verbose=0)
        base.trainable = True
        model.compile(optimizers.Adam(1e-5), loss, metrics=["accuracy"])
        model.fit(batches, epochs=5, verbose=0)
        seconds.append(perf_counter() - started)
        predicted = model.predict(arrays["test"], verbose=0).argmax(axis=1)
        accuracies.append(float((predicted == labels["test"]).mean()))
    row = {"guide": float(np.mean(accuracies)), "guide_seeds": json.dumps(accuracies)}
    return row | {"seconds_guide": float(np.median(seconds))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=list(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--size", type=int, default=224, help="of the images, pixels")
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--seeds", type=int, default=3, help="of the guide's recipe")
    parser.add_argument("--child", choices=["ours", "guide"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not os.environ.get("REAL_DATA_DIR"):
        print("Left out: REAL_DATA_DIR names no folder with photos and weights.")
    elif options.child == "ours":
        print("RESULT " + json.dumps(ours(*options.sets, options.size, options.budget)))
    elif options.child == "guide":
        print("RESULT " + json.dumps(guide(*options.sets, options.size, options.seeds)))
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Adds a row for each set of photos, which two processes make."""
    file = Path(__file__).with_suffix(".csv")
    for name in options.sets:
        row = {}
        for child in ("ours", "guide"):
            command = [sys.executable, __file__, name, "--size", str(options.size), "--budget", options.budget]
            command += ["--seeds", str(options.seeds), "--child", child]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            *told, result = done.stdout.splitlines()
            print("\n".join(line for line in told if "\r" not in line), flush=True)
            row |= json.loads(result.removeprefix("RESULT "))
        row["times_the_guide"] = row["seconds_04"] / row["seconds_guide"]
        pd.DataFrame([row]).round(4).to_csv(file, mode="a", header=not file.exists(), index=False)
        print(json.dumps(row, indent=2), flush=True)


if __name__ == "__main__":
    main()
