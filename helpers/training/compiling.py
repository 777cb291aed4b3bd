"""A part of a model, compiled once for many trainings: from other weights, at another rate, with another seed.

Keras builds the functions that train and validate when they are first used. That takes seconds, and with a small
network longer than the training itself.
"""

import math
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np

from helpers._keras import count_devices, keras, on_all_devices
from helpers.backbones.costs import count_multiply_adds
from helpers.backbones.graphs import find_nodes
from helpers.training.calibration import log_loss
from helpers.training.optimizers import make_optimizer, warmup_cosine
from helpers.training.recipe import Recipe, thawing
from helpers.training.weights import cross_entropy

_COMPILED: WeakKeyDictionary = WeakKeyDictionary()
"""Model to what was compiled for it, by what it depends on."""

_MOST = 3
"""For a model, so many are kept: each holds a function and the optimizer's moments."""

_EXECUTION = 2e9
"""Multiply-adds in one execution: they take a second on a slow core, and a tenth of that on two usual ones."""


@dataclass
class _Compiled:
    part: keras.Model | None  # None is the model itself, which would otherwise be kept for ever
    rate: "Rate"
    optimizer: keras.optimizers.Optimizer
    beginning: list[np.ndarray]  # the optimizer's variables before the first step


class Rate(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule whose highest rate can be changed after it was compiled."""

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, highest: float):
        """Takes a schedule with a highest rate of 1, and the rate."""
        self.schedule = schedule
        with on_all_devices():
            self.highest = keras.Variable(highest, trainable=False, dtype="float32", name="highest_rate")

    def __call__(self, step):
        return self.highest * self.schedule(step)

    def get_config(self):
        """Is asked for by `compile`."""
        return {"schedule": self.schedule.get_config(), "highest": float(self.highest)}


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


def compile_part(model: keras.Model, part: keras.Model, recipe: Recipe, *, stage: str, images: int) -> keras.Model:
    """Returns the part of the model that learns, compiled, with an optimizer that has not made a step.

    Where the same was compiled before, it is that part and not the one given; both have the model's layers.

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
    sizes = {"images": images, "batch_size": recipe.batch_size}
    rate = Rate(warmup_cosine(1.0, **sizes, epochs=recipe.epochs), recipe.learning_rate)
    steps = math.ceil(images / recipe.batch_size)
    options = {"rates": recipe.lowest_rate, "pull": recipe.pull}
    options["thaw"] = thawing(model, recipe, steps_per_epoch=steps) if recipe.thaw_epochs else None
    optimizer = make_optimizer(model, rate, name=recipe.optimizer, **options)
    # Metrics as objects, whose variables are there already: else Keras' function would be traced a second time.
    with on_all_devices():
        metrics = [keras.metrics.SparseCategoricalAccuracy(name="accuracy"), log_loss()]
    at_once = min(steps, steps_at_once(part, batch_size=recipe.batch_size))
    options = {"metrics": metrics, "steps_per_execution": at_once}
    part.compile(optimizer, cross_entropy(recipe.label_smoothing), **options)
    with on_all_devices():
        part.optimizer.build(part.trainable_variables)
    if not recipe.pull:  # the start that it pulls to belongs to one training
        while len(known) >= _MOST:
            del known[next(iter(known))]
        beginning = [np.array(variable) for variable in part.optimizer.variables]
        known[key] = _Compiled(None if part is model else part, rate, part.optimizer, beginning)
    return part
