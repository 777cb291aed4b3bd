"""Fine-tuning from the fitted head on: recipe, learning rates, precision, compile and fit.

The defaults were chosen on training photos, one change at a time: README.md in this folder has the table.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from helpers._keras import compute_deterministically, count_devices, keras, on_all_devices, set_seed
from helpers.backbones import cut, freeze
from helpers.backbones.costs import count_multiply_adds
from helpers.backbones.graphs import all_layers, find_nodes, variable_index
from helpers.backbones.stages import find_stages, first_stage
from helpers.data.augmentation import Augmented, read_augmentation
from helpers.data.batches import make_dataset
from helpers.data.stores import content_keys
from helpers.training.activations import compute_activations, load_activations
from helpers.training.calibration import calibrated_scores, log_loss
from helpers.training.checkpoint import Checkpoint, return_to_start, show_progress, tensorboard_logs
from helpers.training.heads import check_class_weight, weigh_classes

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")

_MOST_COMPILED = 3  # functions kept for a model: each holds the optimizer's moments
_EXECUTION = 2e9  # multiply-adds in one execution: a second on a slow core, a tenth of that on two usual ones


@dataclass(frozen=True)
class Recipe:
    """How a classifier is fine-tuned; the defaults are 03's."""

    unfreeze_from: str = "auto"  # the first stage that learns, "auto" or "all": see `first_stage`
    learning_rate: float = 1e-3  # the highest of the schedule (`warmup_cosine`)
    min_lr_factor: float = 0.01  # factor of the rate at the network's first stage (`layerwise_factors`)
    steps: int = 200  # length, in updates of the weights: the nearest number of epochs (`count_epochs`)
    epochs: int = 0  # length, in passes over the training images; 0 for what `steps` says
    patience: int = 0  # with 1 or more, early stopping: see `Checkpoint`; with 0 the last epoch is the result
    batch_size: int = 32  # images per step
    batch_parts: int = 1  # in so many parts a batch is computed, for less memory: see `make_optimizer`
    seed: int = 0  # of the order of the images, of dropout and of augmentation
    batch_norm: str = "frozen"  # or "train": see `freeze`
    class_weight: str | None = None  # "balanced", or "" for none: see `weigh_classes`
    augmentation: str = ""  # names of `AUGMENTATIONS`, separated by commas
    precision: str = "float32"  # "mixed_float16" (for GPUs) or "mixed_bfloat16"

    def __post_init__(self):
        """Raises ValueError for a value that no training could follow."""
        names = ("learning_rate", "min_lr_factor", "steps", "batch_size", "batch_parts")
        _check_positive(**{name: getattr(self, name) for name in names})
        for name in ("epochs", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"Expected `{name}` of at least 0. Received {getattr(self, name)}.")
        if self.batch_parts > 1 and self.batch_norm == "train":  # statistics are a whole batch's
            raise ValueError(f'Expected `batch_parts` of 1 with `batch_norm="train"`. Received {self.batch_parts}.')
        if self.precision not in PRECISIONS:
            raise ValueError(f"Expected `precision` to be one of {', '.join(PRECISIONS)}. Received {self.precision}.")
        check_class_weight(self.class_weight)
        if self.augmentation:
            read_augmentation(self.augmentation)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"Expected `{name}` above 0. Received {value}.")


def count_epochs(steps: int, *, images: int, batch_size: int) -> int:
    """Returns the number of passes over the training images that comes nearest to so many steps, at least 1."""
    return max(1, round(steps / math.ceil(images / batch_size)))


def plan_epochs(learning_rate: float, *, steps: int, images: int, batch_size: int):
    """Returns how many epochs come nearest to so many steps, and the learning rate's schedule (`warmup_cosine`)."""
    epochs = count_epochs(steps, images=images, batch_size=batch_size)
    return epochs, warmup_cosine(learning_rate, images=images, batch_size=batch_size, epochs=epochs)


# ---- learning rates and precision


def warmup_cosine(
    learning_rate: float, *, images: int, batch_size: int, epochs: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns a learning rate that rises in the first tenth of training, then falls to 0 on a cosine.

    Warm-up spares the pretrained weights Adam's first steps, which are large while its averages are still empty
    (Goyal et al. 2017, arXiv 1706.02677; cosine: arXiv 1608.03983). Values that are not above 0 are a ValueError.
    """
    _check_positive(learning_rate=learning_rate, images=images, batch_size=batch_size, epochs=epochs)
    steps = epochs * math.ceil(images / batch_size)
    warmup = math.ceil(steps / 10)
    # The first step has a tenth of the rate and not 0: otherwise one epoch of one step would learn nothing.
    return keras.optimizers.schedules.CosineDecay(
        0.1 * learning_rate, max(1, steps - warmup), warmup_target=learning_rate, warmup_steps=warmup
    )


def layerwise_factors(model: keras.Model, lowest: float) -> dict[str, float]:
    """Returns the factor of each stage's learning rate: 1 at the top, `lowest` at the bottom, even steps in the log.

    Layer-wise decay, as in discriminative fine-tuning (Howard and Ruder 2018, arXiv 1801.06146): early stages hold
    what most images share and need to change least. Stages count from the whole classifier's first one, so that a
    factor does not depend on how much is frozen.
    """
    stages = list(find_stages(model))[1:]
    top = max(len(stages) - 1, 1)
    return {stage: lowest ** ((top - position) / top) for position, stage in enumerate(stages)}


class LayerwiseAdam(keras.optimizers.Adam):
    """Adam with a factor of the learning rate for each variable; Keras itself knows one rate for all."""

    factors: list[float]  # in the order of the variables that it is built with

    def update_step(self, gradient, variable, learning_rate):
        """Makes Adam's step at the variable's own rate."""
        factor = self.factors[variable_index(self, variable)]
        super().update_step(gradient, variable, learning_rate * factor)


def make_optimizer(
    model: keras.Model, learning_rate, *, rates: float = 1.0, parts: int = 1
) -> keras.optimizers.Optimizer:
    """Returns Adam with layer-wise learning rates (`layerwise_factors`).

    Args:
        model: the whole classifier, frozen as it will be trained (`freeze`).
        learning_rate: what Keras takes: a rate, a schedule or a function.
        rates: factor of the learning rate at the first stage; 1 for plain Adam.
        parts: in how many of them a batch comes; their gradients' mean makes a step (gradient accumulation).
    """
    settings = {"gradient_accumulation_steps": parts} if parts > 1 else {}
    with on_all_devices():
        if rates == 1:
            return keras.optimizers.Adam(learning_rate, **settings)
        stages, factors = find_stages(model), {}
        for stage, factor in layerwise_factors(model, rates).items():
            factors |= {id(weight): factor for layer in stages[stage].layers for weight in layer.trainable_weights}
        optimizer = LayerwiseAdam(learning_rate, **settings)
        optimizer.factors = [factors[id(variable)] for variable in model.trainable_variables]
        optimizer.build(model.trainable_variables)
        return optimizer


@contextmanager
def mixed_precision(model: keras.Model, precision: str) -> Iterator[None]:
    """Lets the model's layers compute in one of `PRECISIONS` inside the block, where it is compiled and trained.

    Weights stay float32, and so do the preprocessing, the head and its softmax.
    """
    fixed = (keras.layers.Rescaling, keras.layers.Softmax, keras.layers.InputLayer)
    head = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)][-1:]
    layers = [layer for layer in all_layers(model) if not isinstance(layer, fixed) and layer not in head]
    layers = [] if precision == "float32" else layers
    before = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = keras.DTypePolicy(precision)
        yield
    finally:
        for layer, policy in zip(layers, before, strict=True):
            layer.dtype_policy = policy


# ---- the training


def fine_tune(
    model: keras.Model, pixels: dict, labels: dict, *, recipe: Recipe | None = None, file=None, show: bool = True
) -> Checkpoint:
    """Trains a classifier in place from its fitted head on, as 03 does step by step, and returns how it went.

    Args:
        model: from `attach_head`; it ends with the weights of the last epoch (with `patience`, of the best one),
            calibrated on the validation images if there are any.
        pixels: "train", and "validation" if there are such images, to uint8 (images, height, width, 3).
        labels: the same parts to int (images,).
        recipe: what to do; None for the defaults.
        file: a Path, which keeps the state after each epoch: a killed training resumes, with the same result.
        show: a bar, and the validation loss after each epoch. False validates after the last epoch alone.
    """
    recipe, images = recipe or Recipe(), len(labels["train"])
    stage = first_stage(model, recipe.unfreeze_from)
    seed_training(model, recipe.seed)
    freeze(model, unfreeze_from=stage, batch_norm=recipe.batch_norm)
    pixels = {part: pixels[part] for part in ("train", "validation") if part in labels}
    part, inputs = prepare_training(model, pixels, stage=stage, augmentation=recipe.augmentation, seed=recipe.seed)
    with mixed_precision(part, recipe.precision):
        part = _compile(model, part, recipe, stage=stage, images=images)
    settings = asdict(recipe) | {"images": digest_images(pixels, labels)}
    return_to_start(part, file, settings)
    start = None
    if "validation" in pixels:
        start = calibrated_scores(compute_activations(part, inputs["validation"]), labels["validation"])
    keep = Checkpoint(file, start=start, patience=recipe.patience, settings=settings)
    order = {"batch_size": recipe.batch_size, "seed": recipe.seed, "parts": recipe.batch_parts}
    batches, validation = training_datasets(inputs, labels, keep=keep, **order)
    epochs = recipe.epochs or count_epochs(recipe.steps, images=images, batch_size=recipe.batch_size)
    with keep, mixed_precision(part, recipe.precision):
        part.fit(
            batches,
            validation_data=validation,
            validation_freq=1 if show or recipe.patience else [epochs],
            epochs=epochs,
            initial_epoch=keep.first_epoch,
            class_weight=weigh_classes(labels["train"], recipe.class_weight),
            callbacks=[keep, show_progress()] if show else [keep],
            shuffle=False,  # the batches are shuffled already
            verbose=0,
        )
    return keep


def seed_training(model: keras.Model, seed: int) -> None:
    """Makes all that is random in a training of the model repeat itself, whatever it was trained for before.

    Keras' layers keep their random states among the model's variables.
    """
    layers = all_layers(model)
    if any(not type(x).__module__.startswith("keras.") or isinstance(x, keras.layers.Lambda) for x in layers):
        set_seed(seed)  # TensorFlow's own generators, too: it then prepares every function again, which takes long
    compute_deterministically()
    for number, variable in enumerate(model.variables):
        if variable.path.endswith("seed_generator_state"):
            variable.assign([seed, number])


def prepare_training(
    model: keras.Model, pixels: dict, *, stage: str, augmentation: str = "", seed: int = 0
) -> tuple[keras.Model, dict]:
    """Returns the part of the model that learns, which shares its layers, and its inputs, computed once.

    With augmentation, or where nothing with weights lies before the stage, the part is the whole model, on images.

    Args:
        model: a classifier from raw images to probabilities.
        pixels: part to uint8 (images, height, width, 3), as `load_pixels` returns them.
        stage: the first stage that learns.
        augmentation, seed: of the training images: names of `AUGMENTATIONS`, separated by commas; "" for none.
    """
    everything = list(find_stages(model)).index(stage) == 1
    with on_all_devices():
        prefix, suffix = cut(model, stage)
        whole = model if everything else _FrozenBelow(model, prefix, suffix)
    if augmentation:
        return whole, pixels | {"train": Augmented(pixels["train"], augmentation, seed=seed)}
    return (whole, pixels) if everything else (suffix, load_activations(model, pixels, stage=stage))


class _FrozenBelow(keras.Model):
    """The whole model with its frozen part in inference mode: in `fit`, Keras lets Dropout work in all of it."""

    def __init__(self, model: keras.Model, prefix: keras.Model, suffix: keras.Model):
        super().__init__(model.inputs[0], model.outputs[0], name=model.name)
        self.prefix, self.suffix = prefix, suffix

    def call(self, images, training=None, mask=None):
        return self.suffix(self.prefix(images, training=False), training=training)


class _Compiled(NamedTuple):
    part: keras.Model | None  # None is the model itself, which would otherwise be kept for ever
    highest_rate: keras.Variable
    optimizer: keras.optimizers.Optimizer
    beginning: list[np.ndarray]  # the optimizer's variables before the first step


_COMPILED: WeakKeyDictionary[keras.Model, dict[str, _Compiled]] = WeakKeyDictionary()


def _compile(model: keras.Model, part: keras.Model, recipe: Recipe, *, stage: str, images: int) -> keras.Model:
    """Returns the part of the model that learns, compiled, with an optimizer that has not made a step.

    Building Keras' functions takes longer than a short training: where the same was compiled before, with another
    rate or seed, that part is returned and not the one given.
    """
    common = replace(recipe, unfreeze_from="", learning_rate=1.0, seed=0, class_weight=None)
    key = f"{stage} {images} {type(part).__name__} {common}"
    known = _COMPILED.setdefault(model, {})
    if (kept := known.pop(key, None)) and (kept.part or model).optimizer is kept.optimizer:
        known[key] = kept  # now the last one
        kept.highest_rate.assign(recipe.learning_rate)
        for variable, value in zip(kept.optimizer.variables, kept.beginning, strict=True):
            variable.assign(value)
        return kept.part or model
    sizes, parts = {"images": images, "batch_size": recipe.batch_size}, recipe.batch_parts
    schedule = warmup_cosine(1.0, **sizes, epochs=recipe.epochs or count_epochs(recipe.steps, **sizes))
    at_once = steps_at_once(part, batch_size=math.ceil(recipe.batch_size / parts))
    at_once = min(math.ceil(images / recipe.batch_size) * parts, at_once)

    def rate():  # no lambda, with which the model could not be saved
        return highest * schedule(optimizer.iterations)

    with on_all_devices():
        highest = keras.Variable(recipe.learning_rate, trainable=False, dtype="float32", name="highest_rate")
        optimizer = make_optimizer(model, rate, rates=recipe.min_lr_factor, parts=parts)
        # Metrics as objects, whose variables are there already: else Keras' function would be traced a second time.
        metrics = [keras.metrics.SparseCategoricalAccuracy(name="accuracy"), log_loss()]
        part.compile(optimizer, "sparse_categorical_crossentropy", metrics=metrics, steps_per_execution=at_once)
        part.optimizer.build(part.trainable_variables)
    while len(known) >= _MOST_COMPILED:
        del known[next(iter(known))]
    beginning = [np.array(variable) for variable in part.optimizer.variables]
    known[key] = _Compiled(None if part is model else part, highest, part.optimizer, beginning)
    return part


def steps_at_once(part: keras.Model, *, batch_size: int) -> int:
    """Returns how many steps TensorFlow makes before it comes back to Python, within about a second.

    Coming back takes longer than a step of a small network; but only then can a training be interrupted.
    """
    nodes = find_nodes(part)
    shapes = [tensor.shape[1:] for node in nodes for tensor in node.outputs]
    if count_devices() > 1 or any(None in shape for shape in shapes):  # TensorFlow cannot; what it costs is not known
        return 1
    # Backward costs twice as much as forward, and to read and write a number as much as ten multiply-adds.
    cost = 3 * batch_size * (sum(map(count_multiply_adds, nodes)) + 10 * sum(map(math.prod, shapes)))
    return max(int(_EXECUTION // cost), 1)


def digest_images(pixels: dict, labels: dict) -> str:
    """Returns a digest of a training's images and labels, by their contents."""
    pairs = [pair for part in pixels for pair in zip(content_keys(pixels[part]), labels[part], strict=True)]
    return hashlib.sha256("\n".join(f"{key} {label}" for key, label in pairs).encode()).hexdigest()[:16]


def training_datasets(
    inputs: dict, labels: dict, *, keep: Checkpoint, batch_size: int, seed: int, parts: int = 1
) -> tuple:
    """Returns two tf.data.Dataset: shuffled batches for the epoch that `keep` is at, and those for validation.

    Training batches have the same size, so that every image counts about the same. Each epoch has its own order; a
    resumed training has the same ones. Without "validation" in `inputs`, the second one is None.

    Args:
        inputs, labels: parts to (images, ...), from `prepare_training`, and to int (images,).
        keep: the `Checkpoint`, which knows the epoch.
        batch_size, seed, parts: images in a batch, at most; of the orders; into how many a training batch is divided.
    """
    order = {"shuffle": seed, "even": True, "parts": parts, "epoch": keep.current_epoch}
    batches = make_dataset(inputs["train"], labels["train"], batch_size=batch_size, **order)
    if "validation" not in inputs:
        return batches, None
    return batches, make_dataset(inputs["validation"], labels["validation"], batch_size=batch_size)


def training_callbacks(folder: Path, *, start: tuple, settings: dict) -> list[keras.callbacks.Callback]:
    """Returns the callbacks for `fit`: a `Checkpoint`, a progress bar, and TensorBoard's logs if they are asked for.

    Args:
        folder: of the run, for the checkpoint `training.npz` and the logs.
        start: probabilities of the validation images before the training, float (images, classes), and their labels.
        settings: of the `Checkpoint`.
    """
    keep = Checkpoint(folder / "training.npz", start=calibrated_scores(*start), settings=settings)
    return [keep, show_progress(), *tensorboard_logs(folder / "tensorboard")]
