"""What an epoch of fine-tuning costs: with the frozen part stored, with it recomputed, and in bare batches.

    python tests/benchmarks/fine_tuning_epoch.py [--repeats 5] [--images 256]

MobileNetV2 at 224 pixels on noise: the time does not depend on what the images show. For each boundary the same
batches of 32 are trained on in turns, in one process, by the same optimizer:

    stored       `fit` as 03 does it: what is frozen is read from its store, `Checkpoint` watches
    recomputed   `fit` as the guides do it: the whole network on the same images, with the same layers frozen
    bare         `train_on_batch` on an array that lies in memory

Validation is left out of all three. Of each `fit` the second epoch is taken, since the first one pays for the start.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

import helpers
from helpers.backbones import describe_stages, freeze, keras, load_backbone
from helpers.backbones.stages import stage_at
from helpers.data.batches import make_dataset
from helpers.training import (
    attach_head,
    fit_head,
    load_activations,
    log_loss,
    make_optimizer,
    prepare_training,
    set_seed,
    training_datasets,
)
from helpers.training.activations import Activations
from helpers.training.checkpoint import Checkpoint

BATCH = 32


class Epochs(keras.callbacks.Callback):
    """Takes the time of each epoch, and stands in for the validation, which is left out."""

    def on_epoch_begin(self, epoch, logs=None):
        self.started = perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds = perf_counter() - self.started
        logs["val_log_loss"], logs["val_temperature"] = logs["loss"], 1.0


def compile_(model, whole) -> None:
    model.compile(make_optimizer(whole, 1e-5), "sparse_categorical_crossentropy", metrics=["accuracy", log_loss()])


def compare(model, pixels, labels, *, stage: str, repeats: int, ways: tuple[str, ...]) -> dict[str, list[float]]:
    """Returns the seconds of an epoch each way, in turns."""
    freeze(model, unfreeze_from=stage)
    suffix, inputs = prepare_training(model, {"train": pixels}, stage=stage, augmentation="")
    train = inputs["train"]
    if stage == "head":  # an epoch of its features would take less time than `fit` takes to begin
        train = Activations(train._store, np.tile(train._rows, 100))
        labels = np.tile(labels, 100)
    array = np.asarray(train)
    compile_(suffix, model)

    def second_epoch(model, data, *callbacks) -> float:
        epochs = Epochs()
        model.fit(data, epochs=2, callbacks=[epochs, *callbacks], verbose=0, shuffle=False)
        return epochs.seconds

    def stored() -> float:
        keep = Checkpoint(None, start={"log_loss": 99.0, "temperature": 1.0}, patience=9)
        batches, _ = training_datasets({"train": train}, {"train": labels}, keep=keep, batch_size=BATCH, seed=0)
        return second_epoch(suffix, batches, keep)

    def bare() -> float:
        started = perf_counter()
        for start in range(0, len(array), BATCH):
            suffix.train_on_batch(array[start : start + BATCH], labels[start : start + BATCH])
        return perf_counter() - started

    again = keras.Model(model.inputs[0], model.outputs[0])
    compile_(again, model)

    def recomputed() -> float:
        return second_epoch(again, make_dataset(pixels, labels, batch_size=BATCH, shuffle=0))

    functions, taken = {"stored": stored, "bare": bare, "recomputed": recomputed}, {way: [] for way in ways}
    for _ in range(repeats + 1):
        for way in ways:
            taken[way].append(functions[way]())
    return {way: seconds[1:] for way, seconds in taken.items()}


def ratios(first: list[float], second: list[float]) -> str:
    pairs = [a / b for a, b in zip(first, second, strict=True)]
    return f"{median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        helpers.ROOT = Path(folder)
        set_seed(0)
        pixels = np.random.default_rng(0).integers(0, 256, (options.images, 224, 224, 3)).astype("uint8")
        labels = np.arange(options.images) % 5
        network = load_backbone("MobileNetV2", weights=None)
        head = fit_head(load_activations(network, pixels), labels, cs=(0.01,))
        model = attach_head(network, head, class_names=list("abcde"))
        table = describe_stages(model)
        upper = stage_at(model, 0.75)
        stages = dict.fromkeys([table.index[1], stage_at(model, 0.25), stage_at(model, 0.5), upper, "head"])
        print(f"{'first stage':<14}{'cost before':>12}{'stored, s':>11}{'images a second':>17}", end="")
        print("  as fast as bare batches")
        for stage in stages:
            ways = ("stored", "bare", "recomputed") if stage == upper else ("stored", "bare")
            taken = compare(model, pixels, labels, stage=stage, repeats=options.repeats, ways=ways)
            before = table["cost"].iloc[list(table.index).index(stage) - 1]
            took = median(taken["stored"])
            images = options.images * (100 if stage == "head" else 1)
            row = f"{stage:<14}{before:>12.2f}{took:>11.2f}{images / took:>17.0f}"
            print(f"{row}  {ratios(taken['bare'], taken['stored'])}", flush=True)
            if "recomputed" in taken:
                faster, slow = ratios(taken["recomputed"], taken["stored"]), median(taken["recomputed"])
                print(f"{'':<14}stored is {faster} times faster than recomputed ({slow:.2f} s)")


if __name__ == "__main__":
    main()
