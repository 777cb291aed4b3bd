"""How transferable are features? The experiment of Yosinski et al. (2014, arXiv 1411.1792), with intervals.

The classes are divided into halves A and B, several times. One network learns A, another one B: the bases. Then, for
each number n of layers, networks learn B whose first n layers are a base's, and whose other layers are drawn anew:

    BnB, AnB          the first n layers from base B or from base A, frozen
    BnB+, AnB+        the same, and all layers learn
    random frozen     the first n layers random, frozen

Each is compared with base B of its own split. What the paper lacks is a base B that is trained twice as long: BnB+
has had that much training on B, too.

Here upper layers are drawn anew, as in the paper. A study (`helpers.study.study`) keeps their pretrained weights,
below a solved head.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from math import log2, sqrt
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t

from helpers import resolve_path
from helpers._keras import keras, on_all_devices, set_seed
from helpers.backbones import describe_stages, find_stages
from helpers.data import PARTS
from helpers.evaluation import evaluate
from helpers.study.halves import Halves, LabelledImages
from helpers.study.trials import Trial, Trials
from helpers.training import Recipe, compute_activations, fine_tune, load_activations

TRANSFER_ARMS = ("BnB", "BnB+", "AnB", "AnB+", "random frozen")
"""In this order for each number of layers."""

LONGER = "base B, twice as long"

NETWORKS = ("plain", "batch_norm")

_PATIENCE = 1000  # each network learns for all of its epochs, and keeps its best one


# ---- the network


def build_convnet(class_count: int, *, image_size: int = 8, batch_norm: bool = False) -> keras.Model:
    """Returns an untrained network of eight layers, as the paper's: AlexNet (Krizhevsky et al. 2012), made small.

    Its stages are `conv1` to `conv5`, `fc6`, `fc7` and `predictions`, so that n = 1 to 7 layers can be copied as in
    the paper. Of AlexNet it lacks the groups of filters, the local response normalisation and dropout.

    Args:
        class_count: at least 2.
        image_size: pixels along a side, at least 8. The first layer brings larger images to a side of about 8.
        batch_norm: whether each layer but the last one normalises its outputs (Ioffe and Szegedy 2015), and then has
            no bias.

    Returns:
        A model from uint8 images (n, image_size, image_size, 3) in 0..255 to float32 probabilities (n, class_count).

    Raises:
        ValueError: too few classes, or too small images.
    """
    if class_count < 2 or image_size < 8:
        raise ValueError(
            f"Expected at least 2 classes, and `image_size` of at least 8. Received {class_count} and {image_size}."
        )
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
            first = number == 1
            kernel, strides = (2 * stride + 1, stride) if first else (3, 1)
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
        folder: where the bases' weights are kept.
        epochs: passes over the training images, the same for all but the base that is trained twice as long.
        learning_rate: the highest of the schedule (`warmup_cosine`), for Adam and all layers alike.
        batch_size: images per step.
        seed: of everything random.

    Raises:
        ValueError: the network has no such boundaries, or there is no such network.
    """

    def __init__(
        self,
        images: LabelledImages,
        halves: list[Halves],
        *,
        network: str = "plain",
        boundaries: Sequence[int] = (),
        folder: str | Path,
        epochs: int = 8,
        learning_rate: float = 2e-3,
        batch_size: int = 64,
        seed: int = 0,
    ):
        if network not in NETWORKS:
            raise ValueError(f"Expected a network of {', '.join(NETWORKS)}. Received {network!r}.")
        self.images, self.halves, self.network, self.seed = images, halves, network, seed
        self.folder = resolve_path(folder)
        self.recipe = Recipe(
            unfreeze_from="all", learning_rate=learning_rate, lowest_rate=1.0, epochs=epochs, patience=_PATIENCE,
            batch_size=batch_size, batch_norm="train", augmentation="",
        )  # fmt: skip
        self._models: dict[int, keras.Model] = {}
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

    @property
    def settings(self) -> dict:
        """What tells this experiment from others: of the images, a digest."""
        digest = hashlib.sha256()
        for part in PARTS:
            digest.update(np.ascontiguousarray(self.images.pixels[part]))
            digest.update(np.ascontiguousarray(self.images.labels[part], dtype="int64"))
        return {
            "images": digest.hexdigest()[:16],
            "halves": hashlib.sha256(repr(self.halves).encode()).hexdigest()[:16],
            "network": self.network,
            "recipe": str(self.recipe),
            "seed": self.seed,
        }

    # ---- what has to be done

    @property
    def trials(self) -> list[Trial]:
        """All trials: the bases, then the arms by boundary, so that what was compiled serves every split."""
        splits = range(len(self.halves))
        wanted = [self._trial(f"base {half}", split) for half in "AB" for split in splits]
        wanted += [self._trial(LONGER, split) for split in splits]
        for n in self.boundaries:
            wanted += [self._trial(arm, split, n) for arm in TRANSFER_ARMS for split in splits]
        return wanted

    def _trial(self, arm: str, split: int, n: int = 0) -> Trial:
        epochs = self.recipe.epochs * (2 if arm == LONGER else 1)
        return Trial("transfer", arm, self.stages[n] if n else "", self.recipe.learning_rate, epochs, split)

    def run(self, storage: str | Path, *, name: str) -> pd.DataFrame:
        """Carries out what is not done yet, with progress, and returns the results.

        Args:
            storage: a journal file or the URL of a database, which keeps what is done: `Trials`.
            name: the experiment's, in the storage.

        Returns:
            A row for each trial with the columns network, split, arm, n (layers copied; 0 for a base), accuracy (of
            the test images of half B, of base A's own half), difference (to base B of the same split), seconds (of
            the training, with the activations that it needs), trainable_weights, outcome.

        Raises:
            KeyboardInterrupt: on Ctrl-C. What is finished is kept.
            ValueError: the storage holds another experiment of this name, or cannot be used.
        """
        trials = Trials(storage, name=f"{name}, {self.network}", settings=self.settings)
        options = {"expected": self._expected, "title": self.network}
        found = trials.carry_out(self.trials, self.carry_out, **options)
        base = {trial.seed: result.get("accuracy") for trial, result in found.items() if trial.arm == "base B"}
        rows = []
        for trial, result in found.items():
            row = {"network": self.network, "split": trial.seed, "arm": trial.arm, "n": self._copied(trial)}
            rows.append(row | {name: result.get(name) for name in _RESULTS})
        table = pd.DataFrame(rows).astype({"accuracy": float})
        table.insert(5, "difference", table["accuracy"] - table["split"].map(base).astype(float))
        return table

    def _copied(self, trial: Trial) -> int:
        return self.stages.index(trial.stage) if trial.stage else 0

    def _expected(self, trial: Trial) -> float:
        """Returns how long a trial takes, in forward passes of an image, roughly: for the time left."""
        frozen = trial.arm in TRANSFER_ARMS and not trial.arm.endswith("+")
        below = self._costs[self._copied(trial)] if frozen else 0.0
        return trial.epochs * (3 * (1 - below) + 0.3) + below

    @cached_property
    def _costs(self) -> list[float]:
        """The share of the forward cost below each boundary."""
        return describe_stages(self._model(len(self.halves[0].b)))["cost"].tolist()

    # ---- one trial

    def carry_out(self, trial: Trial) -> dict:
        """Returns the result of one trial, plain values: accuracy (of the test images), seconds and others."""
        if trial.arm == LONGER:
            return self._learn(trial, "B", self._drawn("base B", trial.seed))
        if trial.arm.startswith("base"):
            return self._learn_base(trial)
        n = self._copied(trial)
        source = {"A": "base A", "B": "base B"}.get(trial.arm[0])
        below = self._base(source, trial.seed) if source else self._drawn("random", trial.seed)
        count = self._count(n)
        weights = below[:count] + self._drawn("above", trial.seed)[count:]
        return self._learn(trial, "B", weights, frozen=0 if trial.arm.endswith("+") else n)

    def _learn(self, trial: Trial, half: str, weights: list[np.ndarray], *, frozen: int = 0) -> dict:
        """Trains the network from these weights on a half, the first layers frozen, and tests it on this half."""
        classes = getattr(self.halves[trial.seed], half.lower())
        pixels, labels = self.images.of(classes)
        model = self._model(len(classes))
        model.trainable = True
        model.set_weights(weights)
        recipe, before = replace(self.recipe, epochs=trial.epochs, seed=self._seed("order", trial.seed)), 0.0
        if frozen:
            recipe = replace(recipe, unfreeze_from=self.stages[frozen])
            learning = {part: pixels[part] for part in ("train", "validation")}
            entering = load_activations(model, learning, stage=recipe.unfreeze_from)
            before = sum(activations.seconds for activations in entering.values())
        keep = fine_tune(model, pixels, labels, recipe=recipe, progress=False)
        found = evaluate(compute_activations(model, pixels["test"]), labels["test"])
        return {
            "accuracy": found["test_accuracy"],
            "log_loss": found["log_loss"],
            "seconds": before + keep.seconds,
            "trainable_weights": sum(int(np.prod(weight.shape)) for weight in model.trainable_weights),
            "best_epoch": keep.best_epoch,
            "outcome": keep.outcome,
        }

    def _learn_base(self, trial: Trial) -> dict:
        half = trial.arm[-1]
        result = self._learn(trial, half, self._drawn(trial.arm, trial.seed))
        file = self._file(trial.arm, trial.seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.stem}.partial-{os.getpid()}.npz")
        np.savez(partial, *self._model(len(getattr(self.halves[trial.seed], half.lower()))).get_weights())
        os.replace(partial, file)
        return result

    def _base(self, name: str, split: int) -> list[np.ndarray]:
        """Returns a base's weights: learned now if another machine did, to the same ones."""
        file = self._file(name, split)
        if not file.exists():
            self._learn_base(self._trial(name, split))
        with np.load(file) as kept:
            return [kept[key] for key in kept.files]

    def _file(self, name: str, split: int) -> Path:
        digest = hashlib.sha256(repr(self.settings).encode()).hexdigest()[:16]
        return self.folder / f"{self.network}-{digest}" / f"{name} {split}.npz"

    def _model(self, class_count: int) -> keras.Model:
        """Returns the network for so many classes: built once, since building and compiling takes seconds."""
        if class_count not in self._models:
            self._models[class_count] = self._build(class_count)
        return self._models[class_count]

    def _build(self, class_count: int) -> keras.Model:
        size = self.images.pixels["train"].shape[1]
        return build_convnet(class_count, image_size=size, batch_norm=self.network == "batch_norm")

    def _drawn(self, role: str, split: int) -> list[np.ndarray]:
        """Returns random weights, others for each role: equal in all arms of a split, so that they are pairs."""
        half = self.halves[split].a if role == "base A" else self.halves[split].b
        set_seed(self._seed(role, split))
        return self._build(len(half)).get_weights()

    def _seed(self, role: str, split: int) -> int:
        digest = hashlib.sha256(f"{self.seed} {role} {split}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def _count(self, n: int) -> int:
        """Returns how many arrays are the weights of the first n layers."""
        stages = list(find_stages(self._model(len(self.halves[0].b))).values())
        return sum(len(layer.weights) for stage in stages[: n + 1] for layer in stage.layers)


_RESULTS = ("accuracy", "seconds", "trainable_weights", "outcome")


def run_transfer(
    images: LabelledImages,
    halves: list[Halves],
    *,
    networks: Sequence[str] = NETWORKS[:1],
    storage: str | Path,
    name: str,
    **options,
) -> pd.DataFrame:
    """Carries out the experiment with one network after the other, and returns all results in one table.

    What was done before is not done again: after an interruption, the same call goes on.

    Args:
        images: from `open_classes`.
        halves: from `halve_classes`.
        networks: "plain", "batch_norm" or both.
        storage: see `Transferability.run`, as for `name` and what is returned.
        name: the experiment's, in the storage.
        options: of `Transferability`.
    """
    # All are made before the first one begins: what one of them refuses is told at once.
    experiments = [Transferability(images, halves, network=network, **options) for network in networks]
    return pd.concat([experiment.run(storage, name=name) for experiment in experiments], ignore_index=True)


# ---- what the results say


def published_results() -> pd.DataFrame:
    """Returns what the paper's authors published, in the form of `Transferability.run`: a row for each network.

    From data/how_transferable_published.csv; where that is from, data/how_transferable_published.yaml says.
    """
    return pd.read_csv(resolve_path("data/how_transferable_published.csv"))


def interval_over_splits(differences: np.ndarray) -> tuple[float, float, float]:
    """Returns the mean and the ends of its 95 % interval, by Student's t; NaN for an interval of one value.

    Other splits of the same classes share classes with these, so that the interval is about these classes.
    """
    values = np.asarray(differences, dtype=float)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return float(values.mean()) if len(values) else np.nan, np.nan, np.nan
    mean, reach = values.mean(), t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / sqrt(len(values))
    return float(mean), float(mean - reach), float(mean + reach)


def summarize_transfer(results: pd.DataFrame) -> pd.DataFrame:
    """Returns each arm's difference to the base of its own split, over the splits.

    Args:
        results: what `run_transfer` returned.

    Returns:
        A row for each network, arm and n, with the columns network, arm, n, splits (count), accuracy (mean),
        difference (mean), low, high (its 95 % interval over the splits), contains_zero (whether 0 lies in it; not
        where there is no interval).
    """
    rows = []
    for (network, n, arm), group in results.groupby(["network", "n", "arm"], sort=False):
        mean, low, high = interval_over_splits(group["difference"])
        row = {"network": network, "arm": arm, "n": n, "splits": int(group["difference"].notna().sum())}
        rows.append(row | {"accuracy": group["accuracy"].mean(), "difference": mean, "low": low, "high": high})
    return _with_zero(pd.DataFrame(rows))


def _with_zero(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(contains_zero=(table["low"] <= 0) & (table["high"] >= 0))


def describe_transfer(summary: pd.DataFrame) -> str:
    """Returns a sentence for each row: the difference in points, its interval, and whether that includes 0.

    Args:
        summary: rows of `summarize_transfer`.
    """
    lines = []
    for row in summary.itertuples():
        difference, low, high = (f"{100 * value:+z.1f}" for value in (row.difference, row.low, row.high))
        place = f" at n={row.n}" if row.n else ""
        if np.isnan(row.low):
            lines.append(f"{row.arm}{place}: {difference} points, of one network, so without an interval.")
            continue
        lines.append(
            f"{row.arm}{place}: {difference} points; the interval, {low} to {high}, "
            f"{'includes' if row.contains_zero else 'does not include'} 0."
        )
    return "\n".join(lines)


def compare_arms(results: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Returns by how much the second arm is better than the first one, paired by split and n.

    Args:
        results: what `run_transfer` returned, of one network.
        first: an arm.
        second: another one.

    Returns:
        A row for each n, and at the end one for their mean ("all"), with the columns n, difference, low, high (95 %
        interval over the splits), contains_zero.
    """
    table = results.pivot(index="split", columns=["arm", "n"], values="difference")
    paired = (table[second] - table[first]).dropna(axis=1, how="all")
    rows = [(n, *interval_over_splits(paired[n])) for n in paired]
    rows.append(("all", *interval_over_splits(paired.mean(axis=1, skipna=False))))
    return _with_zero(pd.DataFrame(rows, columns=["n", "difference", "low", "high"]))


def compare_runs(results: pd.DataFrame, first: str, second: str, *, layers: Sequence[int]) -> dict:
    """Returns by how much the second arm is better than the first one where there are no pairs: over all networks.

    Args:
        results: a row for each network, such as `published_results`.
        first: an arm.
        second: another one.
        layers: the n that count.

    Returns:
        difference: of the means, a fraction; error: its standard error, the two arms' added; networks: how many of
        each arm.
    """
    rows = results[results["n"].isin(list(layers))]
    one, other = (rows.loc[rows["arm"] == arm, "difference"].to_numpy() for arm in (first, second))
    error = sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other))
    return {"difference": float(other.mean() - one.mean()), "error": error, "networks": (len(one), len(other))}


def compare_costs(results: pd.DataFrame) -> pd.DataFrame:
    """Returns the seconds of the frozen arms beside those of their "+" twins, the medians over the splits.

    Args:
        results: what `run_transfer` returned.

    Returns:
        A DataFrame indexed by network, arm and n, with the columns frozen, all_learn (seconds) and share.
    """
    seconds = results[results["n"] > 0].groupby(["network", "arm", "n"])["seconds"].median()
    rows = {
        (network, arm, n): {"frozen": value, "all_learn": seconds.get((network, f"{arm}+", n))}
        for (network, arm, n), value in seconds.items()
        if (network, f"{arm}+", n) in seconds
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["network", "arm", "n"])
    return table.assign(share=table["frozen"] / table["all_learn"])
