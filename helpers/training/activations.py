"""What is frozen is computed once: the activations at a cut point, kept below `runs/.activations`.

A store is found again by its content: the layers before the cut point with their weights (preprocessing included),
and the images' bytes, size and rule. So a change of any of them computes anew, and another head, learning rate, seed,
split or notebook does not.
"""

import hashlib
import json
import math
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import psutil
from tqdm import tqdm

from helpers import progress_file, resolve_path
from helpers._keras import keras
from helpers.backbones import cut
from helpers.backbones.graphs import find_nodes
from helpers.backbones.stages import find_stages
from helpers.data.stores import Store, StoredArray, content_keys, find_or_make, open_store, write_store

_VERSION = "1"  # to be raised when the same layers and images give other activations
_HINT = (
    "Let a later stage be the first that learns (`unfreeze_from`), whose activations are smaller, or use fewer "
    "images (`images_per_class`)."
)


class Activations(StoredArray):
    """The activations of images at a cut point, float32 (images, ...), that stay on disk."""

    @property
    def keys(self) -> list[str]:
        """What each row is: those of another network or cut point have other keys."""
        return [f"{self._store.file.stem}-{key}" for key in super().keys]


def load_activations(model: keras.Model, pixels, *, stage: str | None = None):
    """Returns the activations that enter a stage, computed if they are not stored, in inference mode.

    Everything before the stage has to be frozen from here on: then it is a fixed function of each image, and
    training on the stored activations is exact. They are computed from the nearest stored cut point below. Of several
    processes that ask for the same ones, one computes. An activation that is not finite is a ValueError.

    Args:
        model: from images to features or probabilities.
        pixels: uint8 (images, height, width, 3), `Pixels` or in memory; or a dict of these, computed together, for
            a dict of `Activations`.
        stage: a name in `describe_stages(model)`; None for the model's output.
    """
    parts = pixels if isinstance(pixels, Mapping) else {"": pixels}
    keys = {part: content_keys(array) for part, array in parts.items()}
    # the key of each row that is needed -> an array and the place in it
    rows = {key: (array, place) for part, array in parts.items() for place, key in enumerate(keys[part])}
    rows = dict(sorted(rows.items()))
    cut_points = _cut_points(model, stage)
    store = find_or_make(
        _folder() / cut_points[-1].digest,
        lambda: _find(cut_points[-1], list(rows)),
        lambda: _compute(model, cut_points, rows),
    )
    loaded = {part: Activations(store, store.find(keys[part])) for part in parts}
    return loaded if isinstance(pixels, Mapping) else loaded[""]


def compute_activations(
    model: keras.Model,
    inputs: np.ndarray | StoredArray,
    *,
    batch_size: int = 0,
    title: str = "computing activations",
) -> np.ndarray:
    """Returns the model's outputs in inference mode, float32, one row per image, in memory, with progress.

    Args:
        model: from images or activations to features or probabilities. A ValueError if one is not finite.
        inputs: (images, ...): in memory or stored.
        batch_size: images in a forward pass; 0 for as many as memory allows, at most 32.
        title: what the progress bar says.
    """
    outputs, start = np.empty((len(inputs), *model.output_shape[1:]), dtype="float32"), 0
    for batch in _forward(model, inputs, batch_size, title=title):
        outputs[start : start + len(batch)] = batch
        start += len(batch)
    return outputs


def content_digest(model: keras.Model) -> str:
    """Returns what tells a model from others that give other outputs: of its layers, their settings and weights."""
    return _cut_points(model, None)[-1].digest


# ---- computing


def _compute(model: keras.Model, cut_points: list["CutPoint"], rows: dict) -> Store:
    """Returns the last cut point's store, computed from the nearest one below that is stored, or from images."""
    *below, wanted = cut_points
    keys = list(rows)
    start, inputs, seconds_below = model.inputs[0], _Rows(list(rows.values())), 0.0
    for cut_point in reversed(below):
        if stored := _find(cut_point, keys):
            start, inputs = cut_point.tensor, StoredArray(stored, stored.find(keys))
            seconds_below = stored.seconds_per_row
            break
    batches = _forward(keras.Model(start, wanted.tensor, name=model.name), inputs)
    options = {"shape": wanted.tensor.shape[1:], "dtype": "float32", "keys": keys, "hint": _HINT}
    return write_store(wanted.file(keys), batches, seconds_below=seconds_below, **options)


class _Rows:
    """Rows of several arrays, (array, place) each, as one array."""

    def __init__(self, places: list[tuple]):
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.stack([array[place] for array, place in self.places[rows]])


def _forward(model: keras.Model, inputs, batch_size: int = 0, *, title: str = "computing activations"):
    """Yields the outputs, float32, batch by batch; ValueError if one is not finite."""
    images = max(len(inputs), 1)
    batches = math.ceil(images / (batch_size or _batch_size(model)))
    batch_size = math.ceil(images / batches)  # even ones, since the last one is filled up
    infer = Inference(model, batch_size=batch_size)
    with tqdm(total=len(inputs), desc=title, unit="image", file=progress_file(), delay=1, leave=False) as shown:
        for start in range(0, len(inputs), batch_size):
            outputs = infer(np.asarray(inputs[start : start + batch_size]))
            yield outputs
            shown.update(len(outputs))


class Inference:
    """A model's outputs in inference mode, array by array; `batch_size` as in `compute_activations`."""

    def __init__(self, model: keras.Model, *, batch_size: int = 0):
        self.batch_size = batch_size or _batch_size(model)
        self._model, self._forward, self._done = model, _compiled(model), 0

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Returns the outputs, float32 (images, ...), of at least one input; ValueError if one is not finite."""
        outputs, start = [], 0
        while start < len(inputs):
            batch = inputs[start : start + self.batch_size]
            # A batch that is smaller is filled up to full size: another shape would be compiled anew.
            filled = np.resize(batch, (self.batch_size, *batch.shape[1:]))
            try:
                values = keras.ops.convert_to_numpy(self._forward(filled))[: len(batch)]
            except Exception as error:
                if "ResourceExhausted" not in type(error).__name__ or self.batch_size == 1:
                    raise
                self.batch_size //= 2  # the memory of a GPU is not known beforehand
                continue
            values = values.astype("float32", copy=False)
            if bad := (~np.isfinite(values.reshape(len(values), -1))).any(axis=1).sum():
                raise ValueError(
                    f"{self._model.name} gives activations that are not finite for {bad} of {len(values)} images "
                    f"from image {self._done} on. The weights are damaged, the preprocessing is not the network's, "
                    f"or training at too high a learning rate diverged."
                )
            outputs.append(values)
            start += len(batch)
            self._done += len(batch)
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)


_INFERENCE: WeakKeyDictionary = WeakKeyDictionary()  # model to its compiled inference, which takes long to build


def _compiled(model: keras.Model):
    """Returns the model's inference, compiled. (`predict` would first read all of the images into memory.)"""
    import tensorflow

    if model not in _INFERENCE:
        this = weakref.ref(model)  # a reference of its own would keep the model for ever
        _INFERENCE[model] = tensorflow.function(lambda batch: this()(batch, training=False))
    return _INFERENCE[model]


def _batch_size(model: keras.Model) -> int:
    """Returns how many images pass at once: 32, or as many as an eighth of the free memory is enough for.

    Without a GPU it is 200 MB at most: more images at once are no faster, and TensorFlow keeps what it once took.
    """
    memory = psutil.virtual_memory().available / 8
    if not keras.distribution.list_devices("gpu"):
        memory = min(memory, 200e6)
    largest = max(
        sum(math.prod(size or 1 for size in tensor.shape[1:]) for tensor in (*node.input_tensors, *node.outputs))
        for node in find_nodes(model)
    )
    an_image = 3 * 4 * largest  # what a layer reads and writes, and as much again to work with
    return int(np.clip(memory / an_image, 1, 32))


# ---- finding


class CutPoint(NamedTuple):
    """A place between two stages, and what tells its activations from others."""

    tensor: keras.KerasTensor
    digest: str

    def file(self, keys: list[str]) -> Path:
        rows = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
        return _folder() / f"{self.digest}-{rows}-{'x'.join(map(str, self.tensor.shape[1:]))}.npy"


def _folder() -> Path:
    return resolve_path("runs/.activations")


def _cut_points(model: keras.Model, stage: str | None) -> list[CutPoint]:
    """Returns the cut point before each stage up to the one named, from the input on."""
    last = model.outputs[0] if stage is None else cut(model, stage)[0].outputs[0]
    known = {id(model.inputs[0]): f"images {model.inputs[0].shape[1:]}"}
    cut_points = []
    for part in find_stages(model).values():
        for node in part.nodes:
            _add_digests(node, known)
        cut_points.append(CutPoint(part.output, known[id(part.output)]))
        if part.output is last:
            break
    return cut_points


def _add_digests(node, known: dict[int, str]) -> None:
    """Adds what tells the values of a node's outputs: a hash of the layers and weights that they come from."""
    layer, sources = node.operation, [known[id(tensor)] for tensor in node.input_tensors]
    made_with = [_VERSION, keras.__version__, keras.backend.backend()]
    content = hashlib.sha256(json.dumps([made_with, sources, _described(layer, node)]).encode())
    for weight in getattr(layer, "weights", []):
        content.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)))
    for number, tensor in enumerate(node.outputs):
        known.setdefault(id(tensor), f"{content.hexdigest()[:16]}{number or ''}")


def _described(layer, node) -> str:
    """Returns a layer's class, settings and arguments, without what its outputs do not depend on."""
    settings = {} if isinstance(layer, keras.layers.InputLayer) else _without_names(layer.get_config())
    arguments = (*node.arguments.args, *sorted(node.arguments.kwargs.items()))
    plain = [
        repr(value)
        for value in arguments
        if not any(isinstance(leaf, keras.KerasTensor) for leaf in keras.tree.flatten(value))
    ]
    types = [type(layer).__name__, str(getattr(layer, "compute_dtype", "")), [str(t.shape[1:]) for t in node.outputs]]
    return json.dumps([types, settings, plain], sort_keys=True, default=str)


def _without_names(config):
    if isinstance(config, dict):
        return {key: _without_names(value) for key, value in config.items() if key not in ("name", "trainable")}
    return [_without_names(value) for value in config] if isinstance(config, (list, tuple)) else config


def _find(cut_point: CutPoint, keys: list[str]) -> Store | None:
    """Returns a store that holds the cut point's activations of these images, and perhaps of others; else None."""
    files = [cut_point.file(keys), *sorted(_folder().glob(f"{cut_point.digest}-*.npy"))]
    return next(filter(None, (open_store(file, keys) for file in files)), None)
