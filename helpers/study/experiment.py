"""What all trials of a study have in common: the network, the images, the recipe; and how each arm is trained."""

import base64
import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache
from threading import Event, Thread
from time import perf_counter

import numpy as np
import pandas as pd
import psutil
from sklearn.dummy import DummyClassifier
from sklearn.svm import SVC

from helpers._keras import draw_apart, keras, on_all_devices, set_seed
from helpers.backbones import describe_stages, features_tensor, truncate
from helpers.backbones.stages import cut_points, find_stage, find_stages, first_stage
from helpers.data import encode_labels, load_pixels, shrink_pixels, split_images
from helpers.data.pixels import Pixels
from helpers.data.splits import keep_fraction
from helpers.data.tables import PARTS
from helpers.evaluation import evaluate
from helpers.evaluation.metrics import is_correct
from helpers.study.trials import Trial
from helpers.training.activations import compute_activations, content_digest, load_activations
from helpers.training.calibration import apply_temperature, calibrated_scores
from helpers.training.fine_tuning import Recipe, fine_tune
from helpers.training.heads import attach_head, fit_head, head_weights
from helpers.training.probing import load_features, probe_depth

_MOST_BYTES = 1_500_000_000  # of the activations that a training step keeps; larger batches are computed in parts
_MOST_FACTOR = 4  # of a training step to a forward pass, about three; what an epoch takes beyond that is its own


class Experiment:
    """A pretrained network and a table of images, and what any arm makes of them.

    Each trial starts from the pretrained weights and from the head that is fitted to its own training images.

    Args:
        network: a backbone from `load_backbone`; or a classifier, whose head is not used.
        images: the run's table: path, label, split, sha256, group. Its test images are the same for all seeds.
        resize: the rule by which images are brought to the network's size.
        recipe: fields of a `Recipe`; stage, rate, steps and seed come with each trial.
    """

    def __init__(self, network: keras.Model, images: pd.DataFrame, *, resize: str, **recipe):
        with on_all_devices():
            self.network = keras.Model(network.inputs[0], features_tensor(network), name=network.name)
        self.images, self.resize, self.recipe = images, resize, Recipe(**recipe)
        self.class_names = sorted(images["label"].unique())
        self._pretrained = self.network.get_weights()
        stages = describe_stages(self.network)
        self.end = list(cut_points(self.network))[-1]  # where all layers are taken
        # The share of the forward cost below each stage, and below the end.
        self.costs = dict(zip([*stages.index[1:], self.end], stages["cost"].tolist(), strict=True))
        self.multiply_adds = int(stages["multiply_adds"].sum())
        self._classifiers, self._random = {}, None

    def __reduce__(self):
        """Workers get what it was made from, and make it anew, with the pretrained weights."""
        self._restore()
        return _make, (type(self), self.network, self.images, self.resize, asdict(self.recipe))

    @property
    def settings(self) -> dict:
        """What tells this experiment from others: of the network and of the images, a digest."""
        self._restore()
        columns = [name for name in ("sha256", "label", "split", "group", "white") if name in self.images]
        of_trials = {"unfreeze_from": "", "learning_rate": 1, "steps": 1, "seed": 0}
        table = self.images.sort_values("path")[columns].to_csv(index=False)
        return {
            "images": hashlib.sha256(table.encode()).hexdigest()[:16],
            "resize": self.resize,
            "network": content_digest(self.network),
            "recipe": str(replace(self.recipe, **of_trials, class_weight=self.recipe.class_weight or None)),
        }

    # ---- the images of a seed

    @lru_cache(maxsize=8)  # noqa: B019 (an experiment lives as long as the process)
    def split(self, seed: int, fraction: float = 1.0) -> tuple[dict, dict]:
        """Returns the images and the labels of each part; seed 0 is the run's own split, others redraw validation.

        Below 1, `fraction` is that of the training images that are kept (`keep_fraction`).
        """
        images = self.images
        if seed:
            counts, test = images["split"].value_counts(), images["split"] == "test"
            share = counts["validation"] / (counts["train"] + counts["validation"])
            given = images["split"].where(test, "")
            if "group" in images:  # an image beside a test image of its group stays where it is
                beside = images["group"].isin(set(images.loc[test, "group"]) - {""}) & ~test
                given = given.mask(beside, "train")
            images = split_images(images.assign(split=given), validation_fraction=share, seed=seed)
        return self._load(keep_fraction(images, fraction, seed=seed) if fraction < 1 else images)

    def training_images(self) -> tuple[Pixels, np.ndarray]:
        """Returns train and validation images together, which `retrain` learns from, and their labels, int."""
        pixels, labels = self._load(self.images.assign(split=self.images["split"].replace("validation", "train")))
        return pixels["train"], labels["train"]

    def _load(self, images: pd.DataFrame) -> tuple[dict, dict]:
        pixels = load_pixels(images, image_size=self.network.input_shape[1:3], resize=self.resize)
        return pixels, encode_labels(images)[0]

    # ---- the network

    def _restore(self) -> None:
        self.network.set_weights(self._pretrained)
        self.network.trainable = True

    @lru_cache  # noqa: B019
    def _up_to(self, cut: str) -> keras.Model:
        """Returns the network up to a cut point. All these share their layers."""
        with on_all_devices():
            return truncate(self.network, cut)

    def first_stage(self, cut: str, unfreeze_from: str) -> str:
        """Returns the first stage that learns of the network up to a cut: a name, "auto" or "all", as in 03."""
        stage = first_stage(self._up_to(cut), unfreeze_from)
        find_stage(self._up_to(cut), stage)
        return stage

    def probe(self) -> pd.DataFrame:
        """Returns how well a linear head does at each cut point, on the run's own split."""
        self._restore()
        return probe_depth(self.network, *self.split(0), class_weight=self.recipe.class_weight)

    @lru_cache(maxsize=4)  # noqa: B019
    def _features(self, seed: int, fraction: float = 1.0) -> dict[str, dict]:
        self._restore()
        return load_features(self.network, self.split(seed, fraction)[0])[0]

    @lru_cache(maxsize=16)  # noqa: B019
    def _solved(self, cut: str, seed: int, fraction: float = 1.0):
        """Returns the head on the frozen layers up to a cut point, and the seconds that features and head took."""
        pixels, labels = self.split(seed, fraction)
        head = self._fit_head(self._features(seed, fraction)[cut]["train"], labels["train"])
        return head, load_activations(self._up_to(cut), pixels["train"]).seconds + head.seconds_

    def _fit_head(self, features, labels: np.ndarray):
        return fit_head(features, labels, class_weight=self.recipe.class_weight)

    def _classifier(self, name: str, network: keras.Model, head) -> keras.Model:
        """Returns a network with a fitted head: one model for each name, since compiling takes seconds."""
        if name not in self._classifiers:
            self._classifiers[name] = attach_head(network, head, class_names=self.class_names)
        self._classifiers[name].layers[-2].set_weights(head_weights(head))
        return self._classifiers[name]

    # ---- the arms

    def run(self, trial: Trial) -> dict:
        """Returns the result of one trial, plain values.

        seconds (from decoded images to the trained arm; what is stored counts as if it were computed now),
        trainable_weights (count), memory_mb (by which the process's memory rose), outcome (a plain sentence); with a
        network also log_loss and accuracy on the validation images, at the end; fine-tuned, temperature; in the final
        test_accuracy, test_log_loss, correct (`unpack`).
        """
        others = {"frozen": self._frozen, "from scratch": self._from_scratch}
        others |= dict.fromkeys(("majority class", "raw pixels"), self._without_network)
        started = perf_counter()
        try:
            result, peak = _with_peak_memory(lambda: others.get(trial.arm, self._fine_tuned)(trial))
        finally:
            self._restore()
        return result | {"memory_mb": peak, "wall_seconds": round(perf_counter() - started, 3)}

    def _without_network(self, trial: Trial) -> dict:
        pixels, labels = self.split(trial.seed)
        started = perf_counter()
        small = {part: shrink_pixels(pixels[part], side=16).reshape(len(pixels[part]), -1) for part in PARTS}
        classifier = DummyClassifier(strategy="most_frequent") if trial.arm == "majority class" else SVC(C=10.0)
        predicted = classifier.fit(small["train"], labels["train"]).predict(small["test"])
        seconds = perf_counter() - started
        return {"outcome": "fitted", "seconds": seconds, "trainable_weights": 0} | _scores(predicted, labels["test"])

    def _frozen(self, trial: Trial) -> dict:
        features = self._features(trial.seed, trial.fraction)[trial.cut]
        labels = self.split(trial.seed, trial.fraction)[1]
        head, seconds = self._solved(trial.cut, trial.seed, trial.fraction)
        validation = calibrated_scores(head.predict_proba(features["validation"]), labels["validation"])
        result = {"outcome": f"solved, C = {head.C_:.2g}", "seconds": seconds}
        result |= {name: validation[name] for name in ("log_loss", "accuracy")}
        result["trainable_weights"] = sum(weight.size for weight in head_weights(head))
        return result | _scores(head.predict_proba(features["test"]), labels["test"])

    def _fine_tuned(self, trial: Trial) -> dict:
        head, seconds = self._solved(trial.cut, trial.seed, trial.fraction)
        self._restore()
        return self._train(self._classifier(trial.cut, self._up_to(trial.cut), head), trial, before=seconds)

    def _from_scratch(self, trial: Trial) -> dict:
        set_seed(trial.seed)
        pixels, labels = self.split(trial.seed)
        weights = keras.models.clone_model(self.network).get_weights()  # freshly initialised
        if self._random is None:
            with on_all_devices():
                self._random = keras.models.clone_model(self.network, clone_function=_quick_statistics)
        self._random.set_weights(weights)
        started = perf_counter()
        head = self._fit_head(compute_activations(self._random, pixels["train"]), labels["train"])
        seconds = perf_counter() - started
        model = self._classifier("from scratch", self._random, head)
        return self._train(model, trial, before=seconds, batch_norm="train", batch_parts=1, min_lr_factor=1.0)

    def _train(self, model: keras.Model, trial: Trial, *, before: float, **changes) -> dict:
        pixels, labels = self.split(trial.seed, trial.fraction)
        inputs, recipe = pixels, replace(self._recipe(trial), **changes)
        if trial.stage != list(self.costs)[0] and not recipe.augmentation:  # with it, nothing is stored
            inputs = load_activations(model, pixels, stage=trial.stage)  # of all parts in one go
            before += inputs["train"].seconds + inputs["validation"].seconds
        keep = fine_tune(model, pixels, labels, recipe=recipe, show=False)
        result = {"outcome": keep.outcome, "log_loss": keep.best_loss, "temperature": keep.temperature}
        result["accuracy"] = keep.history["val_accuracy"][-1] if keep.best_epoch else keep.start["accuracy"]
        result["seconds"] = before + keep.seconds
        result["trainable_weights"] = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        if trial.phase in ("final", "labels"):
            result |= _scores(compute_activations(keep.model, inputs["test"]), labels["test"])
        return result

    def _recipe(self, trial: Trial) -> Recipe:
        own = {"unfreeze_from": trial.stage, "learning_rate": trial.learning_rate, "steps": trial.steps}
        return replace(self.recipe, **own, seed=trial.seed, batch_parts=self._batch_parts(trial.cut, trial.stage))

    @lru_cache  # noqa: B019
    def _batch_parts(self, cut: str, stage: str) -> int:
        """Returns in how many parts a batch is computed, so that a training fits into a small memory."""
        if keras.distribution.list_devices("gpu") or self.recipe.batch_norm == "train":
            return 1
        network = self._up_to(cut)
        learning = list(find_stages(network).values())[find_stage(network, stage) :]
        tensors = [tensor for part in learning for node in part.nodes for tensor in node.outputs]
        numbers = sum(math.prod(tensor.shape[1:]) for tensor in tensors)
        return min(math.ceil(4 * numbers * self.recipe.batch_size / _MOST_BYTES), self.recipe.batch_size)

    # ---- what a trial costs

    def measure(self, stage: str) -> dict[str, float]:
        """Returns what this machine needs, from three short trainings from `stage` on.

        In seconds: forward (an image, whole network), epoch (what an epoch takes besides), build (compiling an arm's
        functions), begin (of a trial before its first step), head (solving it). Counts: batches (of an epoch), images
        (that train), everything (all images), multiply_adds (of an image, forward). And factor: training to forward.
        """
        pixels, (head, _) = self.split(0)[0], self._solved(self.end, 0)
        features = load_activations(self.network, pixels)["train"]
        model = self._classifier(self.end, self._up_to(self.end), head)
        load_activations(model, pixels, stage=stage)  # they are counted apart
        forward, images = features.seconds / len(features), len(features)
        batches = -(-images // self.recipe.batch_size)
        arm = ("plan", "fine-tuned", self.end, stage, self.recipe.learning_rate)
        # The second training finds what the first one has compiled, the third one does not.
        first, again, longer = (self.run(Trial(*arm, batches * epochs))["wall_seconds"] for epochs in (1, 1, 3))
        epoch = max((longer - first) / 2, 1e-3)
        computing = max(images * forward * (1 - self.costs[stage]), 1e-6)
        factor = float(np.clip(epoch / computing, 1, _MOST_FACTOR))
        counts = {"batches": batches, "images": images, "everything": len(self.images)}
        seconds = {"forward": forward, "epoch": max(epoch - factor * computing, 0.0), "head": head.seconds_}
        seconds |= {"build": max(first - again, 0.0), "begin": max(again - epoch, 0.0)}
        return counts | seconds | {"factor": factor, "multiply_adds": self.multiply_adds}

    # ---- the arm that was chosen

    def retrain(self, trial: Trial, *, temperature: float = 1.0) -> keras.Model:
        """Returns the chosen arm, trained on train and validation images together, in the same way as every arm.

        A fine-tuned arm's temperature comes from trainings that had validation images to calibrate on.
        """
        pixels, labels = self.training_images()
        backbone = keras.models.clone_model(self.network)  # what is returned shares no layer with what comes after
        backbone.set_weights(self._pretrained)
        backbone = truncate(backbone, trial.cut)
        head = self._fit_head(load_activations(backbone, pixels), labels)
        model = attach_head(backbone, head, class_names=self.class_names)
        if trial.arm != "frozen":
            fine_tune(model, {"train": pixels}, {"train": labels}, recipe=self._recipe(trial))
            apply_temperature(model, temperature)
        return model


def _make(kind: type, network: keras.Model, images: pd.DataFrame, resize: str, recipe: dict) -> Experiment:
    draw_apart()
    return kind(network, images, resize=resize, **recipe)


def unpack(result: dict) -> np.ndarray:
    """Returns whether each test image was classified correctly, bool (images,), in the order of the run's table."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(result["correct"]), "uint8"))
    return bits[: result["test_images"]].astype(bool)


def _scores(predicted: np.ndarray, labels: np.ndarray) -> dict:
    metrics, correct = evaluate(predicted, labels), np.packbits(is_correct(predicted, labels))
    scores = {"test_accuracy": metrics["test_accuracy"], "test_images": len(labels)}
    scores["correct"] = base64.b64encode(correct).decode()
    return scores | ({"test_log_loss": metrics["log_loss"]} if "log_loss" in metrics else {})


def _quick_statistics(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Returns a new layer of the same settings, but BatchNormalization with statistics that move faster."""
    settings = layer.get_config()
    # With Keras' momentum of 0.99, the statistics of the first steps would still count after hundreds.
    if isinstance(layer, keras.layers.BatchNormalization):
        settings["momentum"] = min(settings["momentum"], 0.9)
    return type(layer).from_config(settings)


def _with_peak_memory(work: Callable[[], dict]) -> tuple[dict, float]:
    """Returns what `work` returns, and by how many MB the process's memory rose meanwhile, by a look every 10 ms."""
    process, ended = psutil.Process(), Event()
    start = peak = process.memory_info().rss

    def look() -> None:
        nonlocal peak
        while not ended.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    thread = Thread(target=look, daemon=True)
    thread.start()
    try:
        result = work()
    finally:
        ended.set()
        thread.join()
    return result, round((max(peak, process.memory_info().rss) - start) / 1e6, 1)
