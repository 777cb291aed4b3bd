"""The study against the exhaustive grid: every stage at every rate, six splits and seeds, each trained in full.

    REAL_DATA_DIR=... python tests/benchmarks/exhaustive_grid.py flowers [--size 128] [--budget standard]

The grid is the one that the budget's race chooses from, with the epochs of its last rung: for each
arm and pair a trial like those of the study's final, with the same engine. Both are kept in `runs/.grid`,
and a stopped benchmark goes on. They write two files beside this one: grid_flowers.csv (arm and pair: test accuracy,
validation log-loss, seconds) and grid_flowers.json (what the study and the grid chose and say).

What the same grid would take by the recipe of the Keras transfer-learning guide is extrapolated from one arm for each
stage: images read by tf.data in each epoch, random flips and rotations, ten epochs of a new Dense layer on the frozen
network, then five with the stage and those after it, validation images after each, and the test images at the end.

REAL_DATA_DIR names a folder with the photos and the weights.
"""

import argparse
import json
import os
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import tensorflow as tf

from helpers import resolve_path
from helpers.backbones import freeze, keras, load_backbone
from helpers.data import check_images, encode_labels, exclude_problems, find_images, split_images
from helpers.study import Experiment, Study, Trial, Trials, compare_pairs, decide
from helpers.study.experiment import unpack

HERE = Path(__file__).parent
FOLDERS = {"flowers": "flowers", "ants_and_bees": "hymenoptera"}


def make_experiment(name: str, size: int, **recipe) -> Experiment:
    """Returns MobileNetV2 with ImageNet's weights, and the photos: half of them test images where none are given."""
    real = Path(os.environ["REAL_DATA_DIR"]).resolve()
    checked, problems = check_images(find_images(real / "data" / FOLDERS[name]))
    images = split_images(exclude_problems(checked, problems), test_fraction=0.5)
    weights = real / "weights" / "mobilenet_v2_1.0_224_notop.weights.h5"
    return Experiment(
        load_backbone("MobileNetV2", weights=str(weights), image_size=size), images, resize="crop", **recipe
    )


def guide_seconds(experiment: Experiment, stage: str, learning_rate: float) -> float:
    """Returns what one arm takes by the guide's recipe, from the files to the test images' accuracy."""
    network, started = experiment.network, perf_counter()
    pretrained = network.get_weights()
    size = network.input_shape[1:3]
    labels, class_names = encode_labels(experiment.images)

    def decode(path, label):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.cast(tf.round(tf.image.resize(image, size)), tf.uint8), label

    data = {}
    for part in ("train", "validation", "test"):
        rows = experiment.images[experiment.images["split"] == part]
        paths = [str(resolve_path(path)) for path in rows["path"]]
        images = tf.data.Dataset.from_tensor_slices((paths, labels[part])).shuffle(len(paths))
        data[part] = images.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(32).prefetch(tf.data.AUTOTUNE)
    network.trainable = False
    layers = keras.layers
    images = keras.Input((*size, 3), dtype="uint8")
    x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(images))
    x = layers.Dropout(0.2)(network(x, training=False))
    model = keras.Model(images, layers.Dense(len(class_names), activation="softmax")(x))
    options = {"validation_data": data["validation"], "verbose": 0}
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(data["train"], epochs=10, **options)
    freeze(network, unfreeze_from=stage)
    model.compile(keras.optimizers.Adam(learning_rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(data["train"], epochs=5, **options)
    model.evaluate(data["test"], verbose=0)
    network.set_weights(pretrained)
    return perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", choices=FOLDERS, default="ants_and_bees")
    parser.add_argument("--size", type=int, default=128, help="of the images, pixels")
    parser.add_argument("--budget", default="standard")
    options = parser.parse_args()
    if not os.environ.get("REAL_DATA_DIR"):
        print("Left out: REAL_DATA_DIR names no folder with photos and weights.")
        return
    experiment = make_experiment(options.name, options.size)
    kept = resolve_path("runs/.grid") / f"{options.name}-{options.size}"
    study = Study(experiment, storage=f"{kept}-study.journal", name="study", budget=options.budget)
    plan = study.plan
    print(plan.describe(), flush=True)
    started = perf_counter()
    probe = study.probe()
    race = study.race()
    final = study.final(probe, race)
    answer = study.verdict(final)
    print(f"the study took {perf_counter() - started:.0f} s in this call\n{answer['paragraph']}", flush=True)
    results = study.trials.results()
    spent = pd.DataFrame(
        {"phase": trial.phase, "arm": trial.arm, "seconds": result["wall_seconds"]}
        for trial, result in results.items()
        if trial.phase in ("race", "final")
    )
    grid = [
        Trial("final", "grid", stage, rate, plan.rungs[-1], seed)
        for seed in range(1, plan.pairs + 1)
        for stage, rate in plan.arms
    ]
    trials = Trials(f"{kept}-grid.journal", name="grid", settings=experiment.settings)
    found = trials.carry_out(grid, experiment.carry_out, expected=plan.seconds, title="grid")
    table = pd.DataFrame(
        {
            "stage": trial.stage,
            "learning_rate": trial.learning_rate,
            "pair": trial.seed,
            "test_accuracy": result["test_accuracy"],
            "validation_log_loss": round(result["log_loss"], 5),
            "best_epoch": result["best_epoch"],
            "seconds": round(result["wall_seconds"], 2),
        }
        for trial, result in found.items()
    )
    table.to_csv(HERE / f"grid_{options.name}.csv", index=False)
    means = table.groupby(["stage", "learning_rate"], sort=False)[["test_accuracy", "validation_log_loss"]].mean()
    chosen = final.loc[final["arm"] == "fine-tuned", ["stage", "learning_rate"]].iloc[0]
    best = means["test_accuracy"].idxmax()
    by_validation = means["validation_log_loss"].idxmin()  # what the grid itself would choose
    correct = {
        arm: np.stack([unpack(r) for t, r in found.items() if (t.stage, t.learning_rate) == arm])
        for arm in means.index
    }
    frozen = np.stack(final.loc[final["arm"] == "frozen", "correct"].tolist())
    verdict = decide(compare_pairs(frozen, correct[by_validation]))
    by_guide = {}
    for stage in plan.stages:
        by_guide[stage] = guide_seconds(experiment, stage, plan.learning_rates[0])
        print(f"one arm from {stage} on by the Keras guide's recipe: {by_guide[stage]:.0f} s", flush=True)
    guides_grid = sum(by_guide.values()) * len(plan.learning_rates) * plan.pairs
    seconds = {
        f"{phase}: {arm}": float(took)
        for (phase, arm), took in spent.groupby(["phase", "arm"])["seconds"].sum().items()
    }
    seconds |= {"grid": float(table["seconds"].sum()), "grid by the Keras guide": guides_grid}
    whole = float(spent["seconds"].sum())
    report = {
        "command": f"python tests/benchmarks/exhaustive_grid.py {options.name} --size {options.size}",
        "race_chose": [chosen["stage"], float(chosen["learning_rate"])],
        "grid_best_on_test": list(best),
        "grid_chose_by_validation": list(by_validation),
        "test_accuracy": {
            "race's choice": means.loc[tuple(chosen), "test_accuracy"],
            "grid's best": means.loc[best, "test_accuracy"],
            "grid's choice": means.loc[by_validation, "test_accuracy"],
            "frozen": float(frozen.mean()),
        },
        "verdict": {"study": answer["verdict"], "grid": verdict},
        "paragraph": answer["paragraph"],
        "seconds": seconds,
        "share_of_the_grid": whole / seconds["grid"],
        "share_of_the_guides_grid": whole / guides_grid,
        "summary": json.loads(pd.DataFrame(answer["arms"]).T.to_json(orient="index")),
    }
    (HERE / f"grid_{options.name}.json").write_text(json.dumps(report, indent=2) + "\n")
    print(means.to_string(), json.dumps(report, indent=2), sep="\n")


if __name__ == "__main__":
    main()
