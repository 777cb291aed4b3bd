"""Stages frozen or free to learn, and the proof: every weight compared before and after."""

from collections import Counter

import numpy as np
import pandas as pd

from helpers._keras import keras
from helpers.backbones.graphs import all_layers
from helpers.backbones.stages import find_stage, find_stages, first_stage


def freeze(model: keras.Model, *, unfreeze_from: str | None = None, batch_norm: str = "frozen") -> pd.DataFrame:
    """Marks layers as frozen or trainable, in place; a DataFrame by stage counts weights and those that will learn.

    Call it before `compile`: what is trainable is read there, and Keras ignores later changes without a word.

    Args:
        model: a functional model with one input and one output.
        unfreeze_from: the first stage that learns, "auto" for the one at half of the cost, "all"; None freezes all.
        batch_norm: "frozen" keeps every BatchNormalization layer as it was pretrained, scale, shift and statistics,
            also in the stages that learn; "train" lets those learn too. The choice is made layer by layer, since
            calling a network with `training=False` does not protect its statistics in `fit`.
    """
    if batch_norm not in ("frozen", "train"):
        raise ValueError(f'Expected `batch_norm` "frozen" or "train". Received {batch_norm!r}.')
    stages = find_stages(model)
    first = len(stages) if unfreeze_from is None else find_stage(model, first_stage(model, unfreeze_from))
    rows = {}
    model.trainable = True  # a model that is frozen as a whole hides what its layers say
    for index, (name, stage) in enumerate(stages.items()):
        # A layer's flag is passed on to the layers inside it, so that it comes before theirs.
        for layer in (inner for outer in stage.layers for inner in all_layers(outer)):
            frozen_norm = batch_norm == "frozen" and isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = index >= max(first, 1) and not frozen_norm
        rows[name] = {
            "weights": sum(layer.count_params() for layer in stage.layers),
            "trainable": sum(int(np.prod(w.shape)) for layer in stage.layers for w in layer.trainable_weights),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("stage")


def copy_weights(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns a copy of every weight and statistic, by path; the second with a path is "block/dense/kernel#2"."""
    return {path: np.array(variable) for path, variable in _weights_by_path(model).items()}


def _weights_by_path(model: keras.Model) -> dict:
    """Returns the variables by path, which is unique among a model's layers, but not among those inside a layer."""
    named, seen = {}, Counter()
    for variable in model.weights:
        seen[variable.path] += 1
        count = seen[variable.path]
        named[variable.path if count == 1 else f"{variable.path}#{count}"] = variable
    return named


def audit_weights(model: keras.Model, before: dict[str, np.ndarray]) -> pd.DataFrame:
    """Returns, for each stage, how many tensors were meant to learn, how many changed, and which are at fault.

    `before` is `copy_weights(model)` from before the training. The DataFrame by stage counts tensors: all of them,
    trainable (with the statistics of BatchNormalization layers that learn), changed (in any bit), frozen_changed (a
    fault) and trainable_unchanged (no gradient arrived, or nothing was trained); the text faults names their paths.
    """
    now = _weights_by_path(model)
    if other := sorted(now.keys() ^ before.keys()):
        raise ValueError(f"Expected `before` to be a copy of this model's weights. Only one of them has {other[0]}.")
    paths = {id(variable): path for path, variable in now.items()}
    changed = {path for path, variable in now.items() if before[path].tobytes() != np.array(variable).tobytes()}
    rows = {}
    for name, stage in find_stages(model).items():
        weights = [paths[id(weight)] for layer in stage.layers for weight in layer.weights]
        learns = {paths[id(weight)] for layer in stage.layers for weight in _meant_to_learn(layer)}
        wrong = [path for path in weights if path in changed - learns]
        idle = [path for path in weights if path in learns - changed]
        faults = {"frozen but changed": wrong, "trainable but unchanged": idle}
        rows[name] = {
            "tensors": len(weights),
            "trainable": len(learns),
            "changed": len(changed.intersection(weights)),
            "frozen_changed": len(wrong),
            "trainable_unchanged": len(idle),
            "faults": "; ".join(f"{fault}: {_first_three(those)}" for fault, those in faults.items() if those),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("stage")


def _meant_to_learn(layer: keras.Layer) -> list:
    """Returns trainable weights, and statistics that are meant to move: Keras never calls them trainable."""
    norms = [inner for inner in all_layers(layer) if isinstance(inner, keras.layers.BatchNormalization)]
    return [*layer.trainable_weights, *(weight for norm in norms if norm.trainable for weight in norm.weights)]


def _first_three(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
