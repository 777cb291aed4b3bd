"""How transferable are features? The experiment of Yosinski et al. (2014, arXiv 1411.1792), with intervals.

The classes are divided into halves A and B, several times. One network learns A, another one B: the bases. Then, for
each number n of layers, networks learn B whose first n layers are a base's, under freshly initialised layers:

    BnB, AnB          the first n layers from base B or from base A, frozen
    BnB+, AnB+        the same, and all layers learn
    random frozen     the first n layers random, frozen

Each is compared with base B of its own split. What the paper lacks is a base B that is trained twice as long: BnB+
has had that much training on B, too. A study (`helpers.study.study`) keeps the upper layers' pretrained weights.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property
from math import log2
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import resolve_path, whole_file
from helpers._keras import keras, on_all_devices, set_seed
from helpers.appendices.halves import Halves, LabelledImages
from helpers.backbones.stages import find_stages
from helpers.data.tables import PARTS
from helpers.evaluation import evaluate
from helpers.study.trials import Trial, Trials
from helpers.training import Recipe, compute_activations, fine_tune, load_activations

TRANSFER_ARMS = ("BnB", "BnB+", "AnB", "AnB+", "random frozen")
LONGER = "base B, twice as long"  # the control that the paper lacks

PATIENCE = 1000  # a training never stops early; its best epoch is the result

NETWORKS = ("plain", "batch_norm")


# ---- the network


def build_convnet(class_count: int, *, image_size: int = 8, batch_norm: bool = False) -> keras.Model:
    """Returns an untrained network of eight layers, as the paper's: AlexNet (Krizhevsky et al. 2012), made small.

    From uint8 images (n, image_size, image_size, 3) in 0..255 to float32 probabilities (n, class_count), with the
    stages `conv1` to `conv5`, `fc6`, `fc7` and `predictions`. Of AlexNet it lacks the groups of filters, the local
    response normalisation and dropout.

    Args:
        class_count: at least 2.
        image_size: pixels along a side, at least 8. The first layer brings larger images to a side of about 8.
        batch_norm: whether each layer but the last one normalises its outputs, and then has no bias.
    """
    if image_size < 8:
        raise ValueError(f"Expected `image_size` of at least 8. Received {image_size}.")
    layers, stride = keras.layers, 2 ** max(round(log2(image_size / 8)), 0)

    def follow(x, layer):
        x = layer(x)
        if batch_norm:
            # With Keras' 0.99 the statistics of the first steps would still count after hundreds.
            x = layers.BatchNormalization(momentum=0.9, name=f"{layer.name}_bn")(x)
        return layers.Activation("relu", name=f"{layer.name}_relu")(x)

    options = {"kernel_initializer": "he_normal", "use_bias": not batch_norm}
    with on_all_devices():
        inputs = keras.Input((image_size, image_size, 3), dtype="uint8", name="image")
        x = layers.Rescaling(1 / 127.5, offset=-1.0, name="rescaling")(inputs)
        for number, width in enumerate((16, 32, 32, 48, 48), start=1):
            kernel, strides = (2 * stride + 1, stride) if number == 1 else (3, 1)
            convolution = layers.Conv2D(width, kernel, strides, padding="same", name=f"conv{number}", **options)
            x = follow(x, convolution)
            if number in (2, 5):
                x = layers.MaxPooling2D(2, padding="same", name=f"conv{number}_pool")(x)
        x = layers.Flatten(name="flatten")(x)
        for number in (6, 7):
            x = follow(x, layers.Dense(128, name=f"fc{number}", **options))
        outputs = layers.Dense(class_count, activation="softmax", dtype="float32", name="predictions")(x)
        return keras.Model(inputs, outputs, name="batch_norm" if batch_norm else "plain")


# ---- the experiment


class Transferability:
    """What the layers of networks that learned one half of the classes are worth for the other half.

    Args:
        images: from `open_classes`.
        halves: from `halve_classes`.
        network: "plain", or "batch_norm" for one with BatchNormalization: see `build_convnet`.
        boundaries: how many layers are copied, each in 1 to 7; () for all of these.
        folder: where the results and the bases' weights are kept.
        seed: of everything random.
        recipe: fields of a `Recipe`, the same for all networks: epochs, learning_rate, batch_size.
    """

    def __init__(
        self,
        images: LabelledImages,
        halves: list[Halves],
        *,
        network: str = "plain",
        boundaries: Sequence[int] = (),
        folder: str | Path,
        seed: int = 0,
        **recipe,
    ):
        if network not in NETWORKS:
            raise ValueError(f"Expected `networks` among {', '.join(NETWORKS)}. Received {network!r}.")
        self.images, self.halves, self.network, self.seed = images, halves, network, seed
        self.folder = resolve_path(folder)
        options = {"min_lr_factor": 1.0, "batch_norm": "train", "augmentation": "", "patience": PATIENCE}
        self.recipe = Recipe(unfreeze_from="all", **options, **recipe)
        every = range(1, len(self.stages))
        self.boundaries = list(boundaries) or list(every)
        if unknown := [n for n in self.boundaries if n not in every]:
            raise ValueError(
                f"Expected `boundaries` to be numbers of layers that can be copied, 1 to {every[-1]} "
                f"({', '.join(self.stages[:-1])}). Received {unknown[0]!r}."
            )

    @cached_property
    def stages(self) -> list[str]:
        """The names of the network's layers with weights; the last one is the classifier."""
        return list(find_stages(self._model(len(self.halves[0].b))))[1:]

    @cached_property
    def settings(self) -> dict:
        """What tells this experiment from others."""
        digest = hashlib.sha256()
        for part in PARTS:
            digest.update(np.ascontiguousarray(self.images.pixels[part]))
            digest.update(np.ascontiguousarray(self.images.labels[part], dtype="int64"))
        settings = {"images": digest.hexdigest()[:16], "halves": _digest(self.halves)}
        return settings | {"network": self.network, "recipe": str(self.recipe), "seed": self.seed}

    # ---- what has to be done

    @property
    def trials(self) -> list[Trial]:
        """All trials: the bases, then the arms by boundary, so that what was compiled serves every split."""
        arms = [(base, 0) for base in ("base A", "base B", LONGER)]
        arms += [(arm, n) for n in self.boundaries for arm in TRANSFER_ARMS]
        return [self._trial(arm, split, n) for arm, n in arms for split in range(len(self.halves))]

    def _trial(self, arm: str, split: int, n: int = 0) -> Trial:
        stage = self.stages[n] if n else ""
        return Trial("transfer", arm, stage=stage, learning_rate=self.recipe.learning_rate, seed=split)

    def _epochs(self, trial: Trial) -> int:
        return self.recipe.epochs * (2 if trial.arm == LONGER else 1)

    def run(self) -> pd.DataFrame:
        """Does what is not done yet, with progress, and returns a row for each trial; an interrupted run resumes.

        The columns are network, split, arm, n (layers copied; 0 for a base), accuracy (of the test images of half B,
        of base A's own half), difference (to base B of the same split), seconds (of the training, with the
        activations that it needs), trainable_weights, outcome.
        """
        trials = Trials(self.folder / f"{self.network}.jsonl", settings=self.settings)
        results = trials.run(self.trials, self.run_trial, expected=self._epochs, title=self.network)
        columns = ["network", "split", "arm", "n", "accuracy", "difference"]
        columns += ["seconds", "trainable_weights", "outcome"]
        rows = [
            {"network": self.network, "split": trial.seed, "arm": trial.arm, "n": self._copied(trial)} | result
            for trial, result in results.items()
        ]
        table = pd.DataFrame(rows, columns=columns).astype({"accuracy": float})
        base = table[table["arm"] == "base B"].set_index("split")["accuracy"]
        return table.assign(difference=table["accuracy"] - table["split"].map(base))

    def _copied(self, trial: Trial) -> int:
        return self.stages.index(trial.stage) if trial.stage else 0

    # ---- one trial

    def run_trial(self, trial: Trial) -> dict:
        """Returns the result of one trial, plain values: accuracy (of the test images), seconds and others."""
        if trial.arm == LONGER:
            return self._learn(trial, self._drawn("base B", trial.seed))
        if trial.arm in ("base A", "base B"):
            result = self._learn(trial, self._drawn(trial.arm, trial.seed))
            with whole_file(self._file(trial.arm, trial.seed)) as partial:
                np.savez(partial, *self._model(len(self._classes(trial.arm, trial.seed))).get_weights())
            return result
        n = self._copied(trial)
        source = {"A": "base A", "B": "base B"}.get(trial.arm[0])
        below = self._base(source, trial.seed) if source else self._drawn("random", trial.seed)
        count = self._count(n)
        weights = below[:count] + self._drawn("above", trial.seed)[count:]
        return self._learn(trial, weights, frozen=0 if trial.arm.endswith("+") else n)

    def _learn(self, trial: Trial, weights: list[np.ndarray], *, frozen: int = 0) -> dict:
        """Trains the network from these weights on the arm's half, the first layers frozen, and tests it there."""
        classes = self._classes(trial.arm, trial.seed)
        pixels, labels = self.images.of(classes)
        model = self._model(len(classes))
        model.trainable = True
        model.set_weights(weights)
        recipe, before = replace(self.recipe, epochs=self._epochs(trial), seed=self._seed("order", trial.seed)), 0.0
        if frozen:
            recipe = replace(recipe, unfreeze_from=self.stages[frozen])
            learning = {part: pixels[part] for part in ("train", "validation")}
            entering = load_activations(model, learning, stage=recipe.unfreeze_from)
            before = sum(activations.seconds for activations in entering.values())
        keep = fine_tune(model, pixels, labels, recipe=recipe, show=False)
        scores = evaluate(compute_activations(model, pixels["test"]), labels["test"])
        result = {"accuracy": scores["test_accuracy"], "log_loss": scores["log_loss"]}
        result |= {"seconds": before + keep.seconds, "best_epoch": keep.best_epoch, "outcome": keep.outcome}
        result["trainable_weights"] = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        return result

    def _base(self, name: str, split: int) -> list[np.ndarray]:
        """Returns a base's weights; if their file was deleted, they are learned again."""
        file = self._file(name, split)
        if not file.exists():
            self.run_trial(self._trial(name, split))
        with np.load(file) as kept:
            return [kept[key] for key in kept.files]

    def _file(self, name: str, split: int) -> Path:
        return self.folder / f"{self.network}-{_digest(self.settings)}" / f"{name} {split}.npz"

    @cache  # noqa: B019 (an experiment lives as long as the process)
    def _model(self, class_count: int) -> keras.Model:
        """Returns the network for so many classes: built once, since compiling takes seconds."""
        return self._build(class_count)

    def _build(self, class_count: int) -> keras.Model:
        size = self.images.pixels["train"].shape[1]
        return build_convnet(class_count, image_size=size, batch_norm=self.network == "batch_norm")

    def _classes(self, arm: str, split: int) -> list[str]:
        """Returns the half that an arm learns: B, but for base A."""
        return self.halves[split].a if arm == "base A" else self.halves[split].b

    @cache  # noqa: B019
    def _drawn(self, role: str, split: int) -> list[np.ndarray]:
        """Returns random weights, others for each role: equal in all arms of a split, so that they are pairs."""
        set_seed(self._seed(role, split))
        return self._build(len(self._classes(role, split))).get_weights()

    def _seed(self, role: str, split: int) -> int:
        digest = hashlib.sha256(f"{self.seed} {role} {split}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def _count(self, n: int) -> int:
        """Returns how many arrays are the weights of the first n layers."""
        stages = list(find_stages(self._model(len(self.halves[0].b))).values())
        return sum(len(layer.weights) for stage in stages[: n + 1] for layer in stage.layers)


def _digest(value) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def run_transfer(
    images: LabelledImages, halves: list[Halves], *, networks: Sequence[str] = NETWORKS[:1], **options
) -> pd.DataFrame:
    """Returns the results of the experiment with one network after the other: `Transferability.run`."""
    # All are made before the first one begins: what one of them refuses is told at once.
    experiments = [Transferability(images, halves, network=network, **options) for network in networks]
    return pd.concat([experiment.run() for experiment in experiments], ignore_index=True)
