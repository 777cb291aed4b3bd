"""Frozen up to a stage, fine-tuned above it: one call, from the solved head on."""

import hashlib
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np

from helpers._keras import compute_deterministically, count_devices, keras, on_all_devices, set_seed
from helpers.backbones import copy_weights, cut, find_stages, freeze
from helpers.backbones.costs import count_multiply_adds
from helpers.backbones.graphs import find_nodes
from helpers.data import Augmented, content_keys, make_dataset
from helpers.training.activations import compute_activations, load_activations
from helpers.training.calibration import cool, judge, log_loss
from helpers.training.checkpoint import Checkpoint, return_to_start, show_progress
from helpers.training.optimizers import AdjustableRate, make_optimizer, warmup_cosine
from helpers.training.recipe import Recipe, count_epochs, first_stage, thawing
from helpers.training.weights import blend_weights, computing_in, cross_entropy, weigh_classes

_COMPILED: WeakKeyDictionary = WeakKeyDictionary()
"""Model to what was compiled for it, by what it depends on."""

_MOST_COMPILED = 3
"""For a model, so many are kept: each holds a function and the optimizer's moments."""

_EXECUTION = 2e9
"""Multiply-adds in one execution: they take a second on a slow core, and a tenth of that on two usual ones."""


def prepare_training(
    model: keras.Model,
    pixels: dict,
    *,
    stage: str,
    augmentation: str = "",
    views: int = 0,
    seed: int = 0,
    half_precision: bool = False,
) -> tuple[keras.Model, dict]:
    """Returns the part of the model that learns, and what enters it, computed once.

    Args:
        model: a classifier from raw images to probabilities; the part shares its layers.
        pixels: part to uint8 (images, height, width, 3), as `load_pixels` returns them.
        stage: the first stage that learns. Where nothing that has weights lies before it, the part is the whole
            model, on the images themselves.
        augmentation: of the training images: names of `AUGMENTATIONS`, separated by commas; "" for none.
        views: fixed augmented views of each image whose activations are kept. 0 for a new one in each epoch; then
            the part is the whole model, too, since nothing is fixed that could be kept.
        seed: of the augmentation.
        half_precision: of the stored activations.

    Raises:
        ValueError: no such stage or augmentation. And what `load_activations` raises.
    """
    everything = list(find_stages(model)).index(stage) == 1
    with on_all_devices():
        prefix, suffix = cut(model, stage)
        whole = model if everything else _FrozenBelow(model, prefix, suffix)
    if augmentation:
        pixels = pixels | {"train": Augmented(pixels["train"], augmentation, seed=seed, views=views)}
    if everything or (augmentation and not views):
        return whole, pixels
    return suffix, load_activations(model, pixels, stage=stage, half_precision=half_precision)


class _FrozenBelow(keras.Model):
    """The whole model with its frozen part in inference mode: in `fit`, Keras lets Dropout work in all of it."""

    def __init__(self, model: keras.Model, prefix: keras.Model, suffix: keras.Model):
        super().__init__(model.inputs[0], model.outputs[0], name=model.name)
        self.prefix, self.suffix = prefix, suffix

    def call(self, images, training=None, mask=None):
        return self.suffix(self.prefix(images, training=False), training=training)


def training_batches(inputs, labels: np.ndarray, *, keep: Checkpoint, batch_size: int, seed: int, parts: int = 1):
    """Returns a tf.data.Dataset of shuffled batches for the epoch at which the training stands.

    All have the same size, as near to `batch_size` as the number of images allows: so every image counts about the
    same, and several GPUs get equal shares. Each epoch has its own order, and a training that goes on the same ones.

    Args:
        inputs: (images, ...), in memory, stored or augmented.
        labels: int (images,).
        keep: knows the epoch.
        batch_size: images in a batch, at most.
        seed: of the orders.
        parts: into so many each batch is divided.
    """
    order = {"shuffle": seed, "even": True, "parts": parts, "epoch": keep.current_epoch}
    return make_dataset(inputs, labels, batch_size=batch_size, **order)


def fine_tune(
    model: keras.Model,
    pixels: dict,
    labels: dict,
    *,
    recipe: Recipe | None = None,
    file: Path | None = None,
    show: bool = True,
) -> Checkpoint:
    """Trains the classifier from its solved head on, in place, and returns how it went.

    What 03 does step by step: freeze, compute what is frozen once, compile, fit. With it come the recipe's options.

    Args:
        model: a classifier from `attach_head`, from raw images to probabilities.
        pixels: "train", and "validation" if there are such images, to uint8 (images, height, width, 3).
        labels: the same parts to int (images,).
        recipe: what to do; None for the defaults.
        file: keeps the state after each epoch: a killed training resumes from there, with the same result.
        show: a bar, and the validation images' loss after each epoch, for the curves. False for a caller that has
            its own bar and needs the last epoch alone; the weights are the same.

    Returns:
        The `Checkpoint` that watched the training: history, seconds and outcome. The model has the weights of its
        last epoch (with the recipe's `patience`, of its best one), mixed with those of the start if the recipe says
        so, and calibrated on the validation images if there are any.

    Raises:
        ValueError: the recipe does not fit the model.
        KeyboardInterrupt: on Ctrl-C.
    """
    recipe = recipe or Recipe()
    class_weight = weigh_classes(labels["train"], recipe.class_weight)
    stage = first_stage(model, recipe.unfreeze_from)
    seed_training(model, recipe.seed)
    freeze(model, unfreeze_from=stage, batch_norm=recipe.batch_norm)
    before = copy_weights(model) if recipe.start_share else {}
    parts = {part: pixels[part] for part in ("train", "validation") if part in labels}
    changes = {"augmentation": recipe.augmentation, "views": recipe.augment_views, "seed": recipe.seed}
    suffix, inputs = prepare_training(model, parts, stage=stage, half_precision=recipe.half_precision, **changes)
    with computing_in(suffix, recipe.precision):
        suffix = _compile(model, suffix, recipe, stage=stage, images=len(labels["train"]))
    settings = asdict(recipe) | {"images": digest_images(parts, labels)}
    return_to_start(suffix, file, settings)
    sizes, start, validation = {"batch_size": recipe.batch_size}, None, None
    if "validation" in parts:
        start = judge(compute_activations(suffix, inputs["validation"]), labels["validation"])
        validation = make_dataset(inputs["validation"], labels["validation"], **sizes)
    epochs = recipe.epochs or count_epochs(recipe.steps, images=len(labels["train"]), **sizes)
    order = sizes | {"seed": recipe.seed, "parts": recipe.batch_parts}
    keep = Checkpoint(file, start=start, patience=recipe.patience, settings=settings)
    with computing_in(suffix, recipe.precision):
        suffix.fit(
            training_batches(inputs["train"], labels["train"], keep=keep, **order),
            validation_data=validation,
            validation_freq=1 if show or recipe.patience else [epochs],
            epochs=epochs,
            initial_epoch=keep.first_epoch,
            class_weight=class_weight,
            callbacks=[keep, show_progress()] if show else [keep],
            shuffle=False,  # the batches are shuffled already
            verbose=0,
        )
    if recipe.start_share:
        cool(suffix, 1 / keep.temperature)  # as it was in the training: both ends of the blend are
        blend_weights(model, before, start_share=recipe.start_share)
        if validation is not None:
            keep.temperature = judge(compute_activations(suffix, inputs["validation"]), labels["validation"])[
                "temperature"
            ]
        cool(suffix, keep.temperature)
    return keep


@dataclass
class _Compiled:
    part: keras.Model | None  # None is the model itself, which would otherwise be kept for ever
    rate: AdjustableRate
    optimizer: keras.optimizers.Optimizer
    beginning: list[np.ndarray]  # the optimizer's variables before the first step


def _compile(model: keras.Model, part: keras.Model, recipe: Recipe, *, stage: str, images: int) -> keras.Model:
    """Returns the part of the model that learns, compiled, with an optimizer that has not made a step.

    Keras builds the functions that train and validate when they are first used; with a small network that takes
    longer than a training. Where the same was compiled before, with another rate or seed, it is that part and not the
    one given; both have the model's layers.

    Args:
        model: the whole classifier, frozen as it will be trained (`freeze`).
        part: of it, from `prepare_training`.
        recipe: how it will be trained.
        stage: the first that learns.
        images: number of training images, on which the schedule depends.
    """
    common = replace(recipe, unfreeze_from="", learning_rate=1.0, seed=0, class_weight=None)
    key = f"{stage} {images} {type(part).__name__} {common}"
    known = _COMPILED.setdefault(model, {})
    if (kept := known.pop(key, None)) and (kept.part or model).optimizer is kept.optimizer:
        known[key] = kept  # now the last one
        kept.rate.highest.assign(recipe.learning_rate)
        for variable, value in zip(kept.optimizer.variables, kept.beginning, strict=True):
            variable.assign(value)
        return kept.part or model
    sizes, steps = {"images": images, "batch_size": recipe.batch_size}, math.ceil(images / recipe.batch_size)
    epochs = recipe.epochs or count_epochs(recipe.steps, **sizes)
    parts = recipe.batch_parts
    rate = AdjustableRate(warmup_cosine(1.0, **sizes, epochs=epochs), recipe.learning_rate, parts=parts)
    options = {"rates": recipe.lowest_rate, "pull": recipe.pull, "parts": parts}
    options["thaw"] = thawing(model, recipe, steps_per_epoch=steps) if recipe.thaw_epochs else None
    optimizer = make_optimizer(model, rate, name=recipe.optimizer, **options)
    # Metrics as objects, whose variables are there already: else Keras' function would be traced a second time.
    with on_all_devices():
        metrics = [keras.metrics.SparseCategoricalAccuracy(name="accuracy"), log_loss()]
    at_once = min(steps * parts, steps_at_once(part, batch_size=math.ceil(recipe.batch_size / parts)))
    options = {"metrics": metrics, "steps_per_execution": at_once}
    part.compile(optimizer, cross_entropy(recipe.label_smoothing), **options)
    with on_all_devices():
        part.optimizer.build(part.trainable_variables)
    if not recipe.pull:  # the start that it pulls to belongs to one training
        while len(known) >= _MOST_COMPILED:
            del known[next(iter(known))]
        beginning = [np.array(variable) for variable in part.optimizer.variables]
        known[key] = _Compiled(None if part is model else part, rate, part.optimizer, beginning)
    return part


def steps_at_once(part: keras.Model, *, batch_size: int) -> int:
    """Returns how many steps of a training TensorFlow makes before it comes back to Python, within about a second.

    Coming back takes about a millisecond, longer than a step of a small network. It is then that a training can be
    interrupted, and is stopped if it diverged.

    Args:
        part: what learns.
        batch_size: images in a step.
    """
    nodes = find_nodes(part)
    shapes = [tensor.shape[1:] for node in nodes for tensor in node.outputs]
    if count_devices() > 1 or any(None in shape for shape in shapes):  # TensorFlow cannot; what it costs is not known
        return 1
    # Backward costs twice as much as forward, and to read and write a number as much as ten multiply-adds.
    cost = 3 * batch_size * (sum(map(count_multiply_adds, nodes)) + 10 * sum(map(math.prod, shapes)))
    return max(int(_EXECUTION // cost), 1)


def seed_training(model: keras.Model, seed: int) -> None:
    """Makes all that is random in a training of the model repeat itself, whatever it was trained for before.

    Keras' layers keep their random states among the model's variables. Only where other layers may draw from
    TensorFlow's own generators are these set, too: then TensorFlow prepares every function anew (`set_seed`), which
    took a third of the time of a small training.
    """
    if all(_is_keras(layer) for layer in model._flatten_layers()):
        compute_deterministically()
    else:
        set_seed(seed)
    for number, variable in enumerate(model.variables):
        if variable.path.endswith("seed_generator_state"):
            variable.assign([seed, number])


def _is_keras(layer: keras.Layer) -> bool:
    return type(layer).__module__.startswith("keras.") and not isinstance(layer, keras.layers.Lambda)


def digest_images(pixels: dict, labels: dict) -> str:
    """Returns what tells the images of a training, and their labels, from others."""
    texts = [
        f"{key} {label}"
        for part in pixels
        for key, label in zip(content_keys(pixels[part]), labels[part], strict=True)
    ]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
