"""Frozen up to a stage, fine-tuned above it: one call, from the solved head on."""

import hashlib
from dataclasses import asdict
from pathlib import Path

import numpy as np

from helpers._keras import compute_deterministically, keras, on_all_devices, set_seed
from helpers.backbones import copy_weights, cut, find_stages, freeze
from helpers.data import Augmented, content_keys, make_dataset
from helpers.training.activations import compute_activations, load_activations
from helpers.training.calibration import cool, judge
from helpers.training.compiling import compile_part
from helpers.training.keeping import KeepBest, return_to_start, show_progress
from helpers.training.recipe import Recipe, first_stage
from helpers.training.weights import blend_weights, check_class_weight, computing_in


def prepare_training(
    model: keras.Model,
    pixels: dict,
    *,
    stage: str,
    augmentation: str = "auto",
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
        augmentation: of the training images: names of `AUGMENTATIONS`, separated by commas; "" for none. "auto" is
            "crop,light" where everything learns, so that nothing could be computed once anyway, or where there are
            `views`, and none elsewhere.
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
    kinds = augmentation if augmentation != "auto" else "crop,light" if everything or views else ""
    if kinds:
        pixels = pixels | {"train": Augmented(pixels["train"], kinds, seed=seed, views=views)}
    if everything or (kinds and not views):
        return whole, pixels
    return suffix, load_activations(model, pixels, stage=stage, half_precision=half_precision)


class _FrozenBelow(keras.Model):
    """The whole model with its frozen part in inference mode: in `fit`, Keras lets Dropout work in all of it."""

    def __init__(self, model: keras.Model, prefix: keras.Model, suffix: keras.Model):
        super().__init__(model.inputs[0], model.outputs[0], name=model.name)
        self.prefix, self.suffix = prefix, suffix

    def call(self, images, training=None, mask=None):
        return self.suffix(self.prefix(images, training=False), training=training)


def training_batches(inputs, labels: np.ndarray, *, keep: KeepBest, batch_size: int, seed: int):
    """Returns a tf.data.Dataset of shuffled batches for the epoch at which the training stands.

    All have the same size, as near to `batch_size` as the number of images allows: so every image counts about the
    same, and several GPUs get equal shares. Each epoch has its own order, and a training that goes on the same ones.

    Args:
        inputs: (images, ...), in memory, stored or augmented.
        labels: int (images,).
        keep: knows the epoch.
        batch_size: images in a batch, at most.
        seed: of the orders.
    """
    order = {"shuffle": seed, "even": True, "epoch": keep.current_epoch}
    return make_dataset(inputs, labels, batch_size=batch_size, **order)


def fine_tune(
    model: keras.Model,
    pixels: dict,
    labels: dict,
    *,
    recipe: Recipe | None = None,
    file: Path | None = None,
    progress: bool = True,
) -> KeepBest:
    """Trains the classifier from its solved head on, in place, and returns how it went.

    What 03 does step by step: freeze, compute what is frozen once, compile, fit, keep the best epoch. With it
    come the recipe's options.

    Args:
        model: a classifier from `attach_head`, from raw images to probabilities.
        pixels: "train" and "validation" to uint8 (images, height, width, 3).
        labels: the same parts to int (images,).
        recipe: what to do; None for the defaults.
        file: keeps the state after each epoch: a killed training goes on from there, with the same result.
        progress: shows a bar; False for a caller that has its own.

    Returns:
        The `KeepBest` that watched the training: history, best_epoch, seconds and outcome. The model has the weights
        of the best epoch, mixed with those of the start if the recipe says so.

    Raises:
        ValueError: the recipe does not fit the model.
        KeyboardInterrupt: after the model got its best weights so far.
    """
    recipe = recipe or Recipe()
    check_class_weight(recipe.class_weight, labels["train"])
    stage = first_stage(model, recipe.unfreeze_from)
    seed_training(model, recipe.seed)
    freeze(model, unfreeze_from=stage, batch_norm=recipe.batch_norm)
    before = copy_weights(model) if recipe.start_share else {}
    parts = {part: pixels[part] for part in ("train", "validation")}
    changes = {"augmentation": recipe.augmentation, "views": recipe.augment_views, "seed": recipe.seed}
    suffix, inputs = prepare_training(model, parts, stage=stage, half_precision=recipe.half_precision, **changes)
    with computing_in(suffix, recipe.precision):
        suffix = compile_part(model, suffix, recipe, stage=stage, images=len(labels["train"]))
    settings = asdict(recipe) | {"images": digest_images(parts, labels)}
    return_to_start(suffix, file, settings)
    start = judge(compute_activations(suffix, inputs["validation"]), labels["validation"])
    keep = KeepBest(file, start=start, patience=recipe.patience, settings=settings)
    sizes = {"batch_size": recipe.batch_size}
    with computing_in(suffix, recipe.precision):
        suffix.fit(
            training_batches(inputs["train"], labels["train"], keep=keep, seed=recipe.seed, **sizes),
            validation_data=make_dataset(inputs["validation"], labels["validation"], **sizes),
            epochs=recipe.epochs,
            initial_epoch=keep.first_epoch,
            class_weight=recipe.class_weight,
            callbacks=[keep, show_progress()] if progress else [keep],
            shuffle=False,  # the batches are shuffled already
            verbose=0,
        )
    if recipe.start_share:
        cool(suffix, 1 / keep.temperature)  # as it was in the training: both ends of the blend are
        blend_weights(model, before, start_share=recipe.start_share)
        found = judge(compute_activations(suffix, inputs["validation"]), labels["validation"])
        keep.temperature = found["temperature"]
        cool(suffix, keep.temperature)
    return keep


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
