"""How to fine-tune: length, rate, layer-wise factor, augmentation, and which epoch counts; on training images alone.

    REAL_DATA_DIR=... python tests/benchmarks/recipe.py [flowers scans ...] [--folds 3]

One choice at a time is changed from the defaults of `Recipe`, on folds of the images that are not test images: each
training learns from four fifths of them and is judged on the fifth. A row of recipe.csv is a training: its log-loss
(at the best temperature) and accuracy at the end and in the best epoch, and of the frozen network that it starts
from. Test images are not looked at. What is in the table is not done again; `--part 0/2` and `--part 1/2` share the
work between two processes.

REAL_DATA_DIR names a folder with the photos and the weights.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
from exhaustive_grid import make_experiment
from frozen_phase import load_network, load_table, real_data
from sklearn.model_selection import StratifiedKFold

from helpers.backbones import keras, truncate
from helpers.backbones.stages import first_stage
from helpers.data import encode_labels, load_pixels
from helpers.training import (
    Recipe,
    attach_head,
    choose_cut,
    compute_activations,
    fine_tune,
    fit_head,
    probe_depth,
)
from helpers.training.fine_tuning import count_epochs

TABLE = Path(__file__).parent / "recipe.csv"
SETS = {"flowers": ("flowers", 96), "ants and bees": ("hymenoptera", 128), "scans": ("scans", 128)}
DIGITS = "digits"  # the embedded example
CHOICES = {
    "defaults": {},
    "rate 1e-4": {"learning_rate": 1e-4},
    "rate 3e-4": {"learning_rate": 3e-4},
    "rate 3e-3": {"learning_rate": 3e-3},
    "60 steps": {"steps": 60},
    "120 steps": {"steps": 120},
    "400 steps": {"steps": 400},
    "800 steps": {"steps": 800},
    "factor 0.1": {"min_lr_factor": 0.1},
    "factor 0.1, rate 3e-4": {"min_lr_factor": 0.1, "learning_rate": 3e-4},
    "factor 1, rate 1e-4": {"min_lr_factor": 1.0, "learning_rate": 1e-4},
    "factor 1, rate 3e-4": {"min_lr_factor": 1.0, "learning_rate": 3e-4},
    "everything": {"unfreeze_from": "all"},
    "everything, crop and light": {"unfreeze_from": "all", "augmentation": "crop,light"},
    "rate 1e-2": {"learning_rate": 1e-2},
}


def load(name: str):
    """Returns the network, the images that are not test images, and their labels."""
    if name == DIGITS:
        experiment = make_experiment(name)
        network, images = experiment.network, experiment.images
    else:
        folder, size = SETS[name]
        network, images = load_network(size), load_table(folder)
    images = images[images["split"] != "test"].assign(split="train")
    return network, load_pixels(images, image_size=network.input_shape[1:3])["train"], encode_labels(images)


def train(network: keras.Model, cut: str, pixels: dict, labels: dict, names: list, recipe: Recipe) -> dict:
    """Returns what came of one training."""
    pretrained = network.get_weights()
    backbone = truncate(network, cut)
    head = fit_head(compute_activations(backbone, pixels["train"]), labels["train"])
    model = attach_head(backbone, head, class_names=names)
    keep = fine_tune(model, pixels, labels, recipe=recipe)
    network.set_weights(pretrained)
    network.trainable = True
    losses, accuracies = keep.history["val_log_loss"], keep.history["val_accuracy"]
    best = min(range(len(losses)), key=losses.__getitem__)
    row = {"frozen_log_loss": keep.start["log_loss"], "frozen_accuracy": keep.start["accuracy"]}
    row |= {"log_loss": losses[-1], "accuracy": accuracies[-1], "best_epoch": best + 1}
    return row | {"best_log_loss": losses[best], "best_epochs_accuracy": accuracies[best], "seconds": keep.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="*", default=[*SETS, DIGITS], help=f"of {', '.join([*SETS, DIGITS])}")
    parser.add_argument("--folds", type=int, default=3, help="of five")
    parser.add_argument("--part", default="0/1", help="which of how many processes this is")
    options = parser.parse_args()
    if set(options.sets) - {DIGITS}:
        real_data()
    part, parts = map(int, options.part.split("/"))
    file = TABLE if parts == 1 else TABLE.with_stem(f"recipe-{part}")
    known = [pd.read_csv(path) for path in {TABLE, file} if path.exists()]
    done = {tuple(row) for table in known for row in table[["set", "choice", "fold"]].to_numpy().tolist()}
    for name in options.sets:
        network, pixels, (labels, names) = load(name)
        splits = list(StratifiedKFold(5, shuffle=True, random_state=1).split(labels["train"], labels["train"]))
        for fold, (fit, held_out) in enumerate(splits[: options.folds]):
            both = {"train": pixels[fit], "validation": pixels[held_out]}
            codes = {"train": labels["train"][fit], "validation": labels["train"][held_out]}
            cut = choose_cut(probe_depth(network, both, codes))
            for number, (choice, changes) in enumerate(CHOICES.items()):
                if (number + fold) % parts != part or (name, choice, fold) in done:
                    continue
                recipe = replace(Recipe(seed=fold), **changes)
                stage = first_stage(truncate(network, cut), recipe.unfreeze_from)
                epochs = count_epochs(recipe.steps, images=len(fit), batch_size=recipe.batch_size)
                row = {"set": name, "choice": choice, "fold": fold, "images": len(held_out), "cut": cut}
                row |= {"stage": stage, "epochs": epochs} | train(network, cut, both, codes, names, recipe)
                pd.DataFrame([row]).round(4).to_csv(file, mode="a", header=not file.exists(), index=False)
                print(row, flush=True)


if __name__ == "__main__":
    main()
