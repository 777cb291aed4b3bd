"""What all trials of a study have in common: the network, the images, the recipe; and how each arm is carried out."""

import base64
import hashlib
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property, lru_cache
from statistics import median
from time import perf_counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
from sklearn.dummy import DummyClassifier
from sklearn.svm import SVC

from helpers._keras import keras, on_all_devices, set_seed
from helpers.backbones import cut, describe_stages, features_tensor, find_stages, freeze
from helpers.data import PARTS, Pixels, encode_labels, load_pixels, make_dataset, shrink_pixels, split_images
from helpers.evaluation import accuracy_interval, evaluate, is_correct
from helpers.study.trials import Trial
from helpers.training import (
    Recipe,
    attach_head,
    compute_activations,
    content_digest,
    cross_entropy,
    fine_tune,
    fit_head,
    head_weights,
    judge,
    load_activations,
    make_optimizer,
    prepare_training,
    seed_training,
    show_progress,
    warmup_cosine,
)
from helpers.training.calibration import cool

_MOST_FACTOR = 4
"""A training step takes about three times as long as a forward pass; what an epoch takes beyond that is its own."""

PATIENCE = 1000
"""Epochs without a lower validation log-loss before a training stops: never. A study's trainings are short, and at a
high rate a network often becomes worse before it becomes better, when the rate has faded out."""


class Experiment:
    """A pretrained network and a table of images, and what any arm makes of them.

    Nothing is left of a trial: each one starts from the pretrained weights and from the head that is solved on its
    own training images.

    Args:
        model: a backbone from `load_backbone`; or a classifier that 02 saved, whose head is not used.
        images: the run's table: path, label, split, sha256, group. Its test images are the same for all seeds.
        resize: the rule by which images are brought to the model's size.
        recipe: fields of a `Recipe`; stage, rate, epochs and seed come with each trial.

    Attributes:
        network: from raw images to features, with the pretrained weights.
        class_names: in the order of the labels.
        costs: share, 0..1, of the network's forward cost below each boundary: the stages, then the end.
        end: the name of the boundary at the network's end, in front of the head: "head", unless a stage is called so.
        multiply_adds: of one image, forward, the whole network.
    """

    def __init__(self, model: keras.Model, images: pd.DataFrame, *, resize: str, **recipe):
        with on_all_devices():
            self.network = keras.Model(model.inputs[0], features_tensor(model), name=model.name)
        self.images, self.resize = images, resize
        self.recipe = Recipe(**({"patience": PATIENCE} | recipe))
        self.class_names = sorted(images["label"].unique())
        self._pretrained = self.network.get_weights()
        stages = describe_stages(self.network)
        self.end = next(name for name in ("head", "end", "network's end") if name not in stages.index)
        self.costs = dict(zip([*stages.index[1:], self.end], stages["cost"].tolist(), strict=True))
        self.multiply_adds = int(stages["multiply_adds"].sum())
        kept = images["split"].value_counts()
        self._validation_fraction = kept["validation"] / (kept["train"] + kept["validation"])

    @property
    def settings(self) -> dict:
        """What tells this experiment from others: of the network and of the images, a digest."""
        self._restore()
        columns = [name for name in ("sha256", "label", "split", "group") if name in self.images]
        table = self.images.sort_values("path")[columns].to_csv(index=False)
        return {
            "images": hashlib.sha256(table.encode()).hexdigest()[:16],
            "resize": self.resize,
            "network": content_digest(self.network),
            "recipe": str(replace(self.recipe, unfreeze_from="", learning_rate=1, epochs=1, seed=0)),
        }

    # ---- the images of a seed

    @lru_cache(maxsize=8)  # noqa: B019 (an experiment lives as long as the process)
    def split(self, seed: int) -> tuple[dict, dict]:
        """Returns the images and the labels of each part: `load_pixels` and `encode_labels`.

        Args:
            seed: 0 for the run's own split. Others draw validation images anew among all that are not test images.
        """
        images = self.images
        if seed:
            test = images["split"] == "test"
            given = images["split"].where(test, "")
            if "group" in images:  # an image beside a test image of its group stays where it is
                beside = images["group"].isin(set(images.loc[test, "group"]) - {""}) & ~test
                given = given.mask(beside, "train")
            images = split_images(
                images.assign(split=given), validation_fraction=self._validation_fraction, seed=seed
            )
        pixels = load_pixels(images, image_size=self.network.input_shape[1:3], resize=self.resize)
        return pixels, encode_labels(images)[0]

    @lru_cache(maxsize=8)  # noqa: B019
    def _solved(self, seed: int):
        """Returns the head of the frozen network, and the seconds that it took, the features' included."""
        pixels, labels = self.split(seed)
        self._restore()
        features = load_activations(self.network, pixels)
        head = fit_head(features["train"], labels["train"])
        return head, features["train"].seconds + head.seconds_

    def _restore(self) -> None:
        self.network.set_weights(self._pretrained)
        self.network.trainable = True

    # ---- one pass, all boundaries

    @lru_cache(maxsize=1)  # noqa: B019
    def _pooled_network(self) -> tuple[keras.Model, dict[str, slice]]:
        """Returns the network with all boundaries' pooled activations side by side, and where each one's are."""
        self._restore()
        tensors = [stage.output for stage in find_stages(self.network).values()]
        boundaries = list(self.costs)
        # Not of the input, where the mean colour alone could be learned from; the last is the network's own output.
        pooled = [_pool(tensor, name) for tensor, name in zip(tensors[1:-1], boundaries[1:-1], strict=True)]
        pooled.append(self.network.outputs[0])
        ends = np.cumsum([tensor.shape[-1] for tensor in pooled]).tolist()
        places = dict(zip(boundaries[1:], map(slice, [0, *ends[:-1]], ends), strict=True))
        joined = keras.layers.Concatenate(dtype="float32")(pooled) if len(pooled) > 1 else pooled[0]
        return keras.Model(self.network.inputs[0], joined, name=self.network.name), places

    def pooled(self, seed: int = 0) -> dict[str, dict]:
        """Returns each boundary's pooled activations, but for the first: part to float (images, features)."""
        network, places = self._pooled_network()
        self._restore()
        joined = load_activations(network, self.split(seed)[0])
        whole = {part: np.asarray(joined[part]) for part in PARTS}
        return {name: {part: whole[part][:, place] for part in PARTS} for name, place in places.items()}

    def probe(self) -> pd.DataFrame:
        """Returns how well a linear head does on what the network gives at each boundary, on the run's own split.

        Returns:
            A row for each boundary, from early to late, with the columns boundary (the stage that begins there;
            `end` at the network's end), cost_before (share, 0..1), log_loss (cross-validated within the training
            images), accuracy (of the validation images), low and high (its 95 % interval), features (count).
        """
        labels, rows = self.split(0)[1], []
        for boundary, features in self.pooled().items():
            head = fit_head(features["train"], labels["train"])
            found = judge(head.predict_proba(features["validation"]), labels["validation"])
            total = len(labels["validation"])
            low, high = accuracy_interval(round(found["accuracy"] * total), total)
            rows.append(
                {
                    "boundary": boundary,
                    "cost_before": self.costs[boundary],
                    "log_loss": head.losses_[head.strength_],
                    "accuracy": found["accuracy"],
                    "low": low,
                    "high": high,
                    "features": features["train"].shape[1],
                }
            )
        return pd.DataFrame(rows)

    # ---- the arms

    def carry_out(self, trial: Trial) -> dict:
        """Returns the result of one trial, plain values.

        Returns:
            seconds (from decoded images to the trained arm; what is stored counts as if it were computed now),
            trainable_weights (count), memory_mb (by which the process's memory rose meanwhile), outcome (a plain
            sentence). Of arms with a network also log_loss and accuracy on the validation images; of fine-tuned ones
            best_epoch and temperature. Of trials of the final also test_accuracy, test_log_loss and correct: see
            `unpack`.
        """
        arms = {
            "majority class": self._without_network,
            "raw pixels": self._without_network,
            "frozen": self._frozen,
            "from scratch": self._from_scratch,
        }
        started = perf_counter()
        try:
            with _peak_memory() as memory:
                result = arms.get(trial.arm, self._fine_tuned)(trial)
        finally:
            self._restore()
        return result | {"memory_mb": memory["mb"], "wall_seconds": round(perf_counter() - started, 3)}

    def _without_network(self, trial: Trial) -> dict:
        pixels, labels = self.split(trial.seed)
        started = perf_counter()
        small = {part: shrink_pixels(pixels[part], side=16).reshape(len(pixels[part]), -1) for part in PARTS}
        classifier = DummyClassifier(strategy="most_frequent") if trial.arm == "majority class" else SVC(C=10.0)
        predicted = classifier.fit(small["train"], labels["train"]).predict(small["test"])
        seconds = perf_counter() - started
        return {"outcome": "fitted", "seconds": seconds, "trainable_weights": 0} | _scores(predicted, labels["test"])

    def _frozen(self, trial: Trial) -> dict:
        labels = self.split(trial.seed)[1]
        features = self.pooled(trial.seed)[trial.stage]
        head = fit_head(features["train"], labels["train"])
        found = judge(head.predict_proba(features["validation"]), labels["validation"])
        result = {
            "outcome": f"solved, C = {head.strength_:.2g}",
            "log_loss": found["log_loss"],
            "accuracy": found["accuracy"],
            "seconds": self._features_seconds(trial) + head.seconds_,
            "trainable_weights": sum(weight.size for weight in head_weights(head)),
        }
        return result | _scores(head.predict_proba(features["test"]), labels["test"])

    def _features_seconds(self, trial: Trial) -> float:
        pixels = self.split(trial.seed)[0]
        return load_activations(self.network, pixels)["train"].seconds * self.costs[trial.stage]

    def _fine_tuned(self, trial: Trial) -> dict:
        head, seconds = self._solved(trial.seed)
        model = self._classifiers["pretrained"]
        model.set_weights([*self._pretrained, *head_weights(head)])
        return self._train(model, trial, before=seconds)

    def _from_scratch(self, trial: Trial) -> dict:
        """Trains the network as the others are trained, but from random weights below its solved head."""
        set_seed(trial.seed)
        pixels, labels = self.split(trial.seed)
        weights = keras.models.clone_model(self.network).get_weights()  # drawn anew
        model, network = self._classifiers["from scratch"], self._networks["from scratch"]
        network.set_weights(weights)
        started = perf_counter()
        head = fit_head(compute_activations(network, pixels["train"]), labels["train"])
        seconds = perf_counter() - started
        model.set_weights([*weights, *head_weights(head)])
        return self._train(model, trial, before=seconds, batch_norm="train", lowest_rate=1.0)

    @cached_property
    def _networks(self) -> dict[str, keras.Model]:
        """The network, and one of the same kind to be trained from scratch: of each, the functions are built once."""
        with on_all_devices():
            anew = keras.models.clone_model(self.network, clone_function=_quick_statistics)
        return {"pretrained": self.network, "from scratch": anew}

    @cached_property
    def _classifiers(self) -> dict[str, keras.Model]:
        """These networks with a head; they share the layers."""
        classes, features = len(self.class_names), self.network.output_shape[-1]
        shape = (classes if classes > 2 else 1, features)
        blank = SimpleNamespace(coef_=np.zeros(shape), intercept_=np.zeros(shape[0]))
        options = {"class_names": self.class_names}
        return {name: attach_head(network, blank, **options) for name, network in self._networks.items()}

    def _train(self, model: keras.Model, trial: Trial, *, before: float, **changes) -> dict:
        pixels, labels = self.split(trial.seed)
        inputs, recipe = pixels, replace(self._recipe(trial), **changes)
        changing = recipe.augmentation not in ("", "auto") and not recipe.augment_views  # then nothing is stored
        if trial.stage != list(self.costs)[0] and not changing:
            inputs = load_activations(model, pixels, stage=trial.stage)  # of all parts in one go
            before += inputs["train"].seconds + inputs["validation"].seconds
        keep = fine_tune(model, pixels, labels, recipe=recipe, progress=False)
        best = keep.best_epoch
        result = {
            "outcome": keep.outcome,
            "log_loss": keep.best_loss,
            "accuracy": keep.history["val_accuracy"][best - 1] if best else keep.start["accuracy"],
            "best_epoch": best,
            "temperature": keep.temperature,
            "seconds": before + keep.seconds,
            "trainable_weights": sum(int(np.prod(weight.shape)) for weight in model.trainable_weights),
        }
        if trial.phase == "final":
            result |= _scores(compute_activations(keep.model, inputs["test"]), labels["test"])
        return result

    def _recipe(self, trial: Trial) -> Recipe:
        own = {"unfreeze_from": trial.stage, "learning_rate": trial.learning_rate}
        return replace(self.recipe, **own, epochs=trial.epochs, seed=trial.seed)

    # ---- what a trial costs

    def measure(self, stage: str) -> dict[str, float]:
        """Returns what this machine needs: forward and training seconds for one image, and for building an arm.

        Args:
            stage: the one from which on a training is tried, three times, shortly.

        Returns:
            forward (seconds for an image, whole network), factor (of training to forward), epoch (seconds that an
            epoch takes besides), build (seconds to compile an arm's functions, where those of an earlier trial do not
            fit), begin (seconds of a trial before its first step), head (seconds to solve it), images (that train),
            everything (all images, counts), multiply_adds (of one image, forward).
        """
        pixels, _ = self.split(0)
        head, _ = self._solved(0)
        features = load_activations(self.network, pixels)["train"]
        load_activations(self._classifiers["pretrained"], pixels, stage=stage)  # they are counted apart
        forward = features.seconds / len(features)
        first, again, longer = (
            self.carry_out(Trial("plan", "fine-tuned", stage, self.recipe.learning_rate, epochs))["wall_seconds"]
            for epochs in (1, 1, 3)  # the second one finds what the first one has compiled, the third one does not
        )
        images, build = len(pixels["train"]), max(first - again, 0.0)
        epoch = max((longer - first) / 2, 1e-3)
        computing = max(images * forward * (1 - self.costs[stage]), 1e-6)
        factor = float(np.clip(epoch / computing, 1, _MOST_FACTOR))
        return {
            "forward": forward,
            "factor": factor,
            "epoch": max(epoch - factor * computing, 0.0),
            "build": build,
            "begin": max(again - epoch, 0.0),
            "head": head.seconds_,
            "images": images,
            "everything": len(self.images),
            "multiply_adds": self.multiply_adds,
        }

    # ---- the arm that was chosen

    def retrain(self, trial: Trial, *, epochs: list[int], temperatures: list[float]) -> keras.Model:
        """Returns the chosen arm, trained on train and validation images together.

        There is nothing left to stop it by: it ends after as many epochs as were best in the final, at the median,
        of the same schedule, with the median temperature.

        Args:
            trial: of the final; its seed is used for the training alone.
            epochs: the best epochs of this arm's trials in the final; empty for a frozen arm.
            temperatures: likewise.
        """
        pixels, labels = self.training_images()
        backbone = keras.models.clone_model(self.network)  # what is returned shares no layer with what comes after
        backbone.set_weights(self._pretrained)
        if trial.arm == "frozen" and trial.stage != self.end:
            backbone = _ends_at(backbone, trial.stage)
        head = fit_head(load_activations(backbone, pixels), labels)
        model = attach_head(backbone, head, class_names=self.class_names)
        if stop := round(median(epochs)) if epochs else 0:
            self._train_on(model, pixels, labels, trial, stop=stop)
            cool(model, median(temperatures))
        return model

    def training_images(self) -> tuple[Pixels, np.ndarray]:
        """Returns train and validation images together, which `retrain` learns from, and their labels, int."""
        images = self.images.assign(split=self.images["split"].replace("validation", "train"))
        pixels = load_pixels(images, image_size=self.network.input_shape[1:3], resize=self.resize)
        return pixels["train"], encode_labels(images)[0]["train"]

    def _train_on(self, model: keras.Model, pixels, labels: np.ndarray, trial: Trial, *, stop: int) -> None:
        """Trains in place, without validation images, and ends after some epochs of the schedule."""
        recipe, sizes = self.recipe, {"batch_size": self.recipe.batch_size}
        seed_training(model, trial.seed)
        freeze(model, unfreeze_from=trial.stage, batch_norm=recipe.batch_norm)
        changes = {"augmentation": recipe.augmentation, "views": recipe.augment_views, "seed": trial.seed}
        suffix, inputs = prepare_training(model, {"train": pixels}, stage=trial.stage, **changes)
        schedule = warmup_cosine(trial.learning_rate, images=len(labels), epochs=trial.epochs, **sizes)
        optimizer = make_optimizer(model, schedule, name=recipe.optimizer, rates=recipe.lowest_rate)
        suffix.compile(optimizer, cross_entropy(recipe.label_smoothing))
        batches = make_dataset(inputs["train"], labels, shuffle=trial.seed, even=True, **sizes)
        suffix.fit(batches, epochs=stop, callbacks=[show_progress()], shuffle=False, verbose=0)


def unpack(result: dict) -> np.ndarray:
    """Returns whether each test image was classified correctly, bool (images,), in the order of the run's table."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(result["correct"]), "uint8"))
    return bits[: result["test_images"]].astype(bool)


def _scores(predicted: np.ndarray, labels: np.ndarray) -> dict:
    found, correct = evaluate(predicted, labels), is_correct(predicted, labels)
    scores = {
        "test_accuracy": found["test_accuracy"],
        "test_images": len(labels),
        "correct": base64.b64encode(np.packbits(correct)).decode(),
    }
    return scores | ({"test_log_loss": found["log_loss"]} if "log_loss" in found else {})


def _pool(tensor, boundary: str):
    """Returns one vector for each image: the mean over positions or tokens."""
    kinds = {4: keras.layers.GlobalAveragePooling2D, 3: keras.layers.GlobalAveragePooling1D}
    kind = kinds.get(len(tensor.shape))
    return kind(name=f"pooled_before_{boundary}")(tensor) if kind else tensor  # no name that the network may have


def _quick_statistics(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Returns a new layer of the same settings; of BatchNormalization, with statistics that few steps are enough for.

    With Keras' momentum of 0.99, those of the first steps would still count after hundreds.
    """
    settings = layer.get_config()
    if isinstance(layer, keras.layers.BatchNormalization):
        settings["momentum"] = min(settings["momentum"], 0.9)
    return type(layer).from_config(settings)


def _ends_at(network: keras.Model, stage: str) -> keras.Model:
    prefix, _ = cut(network, stage)
    return keras.Model(prefix.inputs[0], _pool(prefix.outputs[0], stage), name=network.name)


@contextmanager
def _peak_memory() -> Iterator[dict]:
    """Measures how far the process's memory rises above what it holds at first, in MB."""
    found, level = {"mb": 0.0}, _memory("VmRSS")
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is counted from now on (Linux)
    yield found
    found["mb"] = round(max(_memory("VmHWM") - level, 0) / 1e6, 1)


def _memory(kind: str) -> int:
    """Returns the process's present (VmRSS) or largest (VmHWM) resident memory in bytes."""
    with suppress(OSError), open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(kind))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
