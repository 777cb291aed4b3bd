"""What is frozen is computed once: the activations at a boundary, kept below `runs/.activations`.

A store is found again by its content: the layers before the boundary with their weights (preprocessing included),
and the images' bytes, size and rule. So a change of any of them computes anew, and another head, learning rate, seed,
split or notebook does not.
"""

import fcntl
import hashlib
import json
import math
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from weakref import WeakKeyDictionary

import numpy as np
from tqdm import tqdm

from helpers import progress_file, resolve_path
from helpers._keras import keras
from helpers.backbones import cut, find_stages
from helpers.backbones.graphs import find_nodes
from helpers.backbones.loading import logits_tensor
from helpers.data import Augmented, StoredArray, content_keys, new_store, open_store

_VERSION = "1"
"""To be raised when the same layers and images give other activations: older stores are then left alone."""

_COMPUTING = threading.Lock()
"""Threads of one process take turns: the second finds what the first has computed."""


class Activations(StoredArray):
    """The activations of images at a boundary, float (images, ...), that stay on disk.

    Of images with fixed augmented views, they are those of all views, (images, views, ...), and a training takes
    the next view in each epoch.
    """

    @property
    def keys(self) -> list[str]:
        """What each row is: those of another network, boundary or precision have other keys."""
        if self._rows.ndim > 1:
            raise ValueError("Expected activations of one view of each image. Received all views: use `at_epoch`.")
        return [f"{self._store.file.stem}-{key}" for key in super().keys]

    def at_epoch(self, epoch: int) -> "Activations":
        """Returns the activations that this epoch trains on: one view of each image."""
        if self._rows.ndim == 1:
            return self
        return Activations(self._store, self._rows[:, epoch % self._rows.shape[1]])


def load_activations(
    model: keras.Model, pixels, *, stage: str | None = None, half_precision: bool = False, batch_size: int = 0
):
    """Returns the activations that enter a stage, computed if they are not stored, in inference mode.

    Everything before the stage has to be frozen from here on: then it is a fixed function of each image, and
    training on the stored activations is exact. They are computed from the nearest stored boundary below. Several
    processes may ask for the same ones: one of them computes. What was not used for longest gives way when the
    stores take more than their share of the disk (`helpers.data.stores.budget`).

    Args:
        model: from images to features or probabilities.
        pixels: uint8 (images, height, width, 3), `Pixels` or in memory; or `Augmented` images with a fixed number
            of views; or a dict of these, such as `load_pixels` returns. Parts are computed and kept together.
        stage: a name in `describe_stages(model)`; None for the model's output.
        half_precision: keeps them as float16: half the space, and logits that differ a little
            (`half_precision_error` says how much).
        batch_size: images in a forward pass; 0 for as many as memory allows, at most 32.

    Returns:
        `Activations`, float32 or float16, in the order of the images; a dict if `pixels` is one.

    Raises:
        ValueError: no such stage; an activation that is not finite, or too large for half precision; images with a
            new view in every epoch.
        OSError: the disk has too little space.
    """
    parts = dict(pixels) if isinstance(pixels, Mapping) else {"": pixels}
    sources = {part: _views(array) for part, array in parts.items()}
    where = {  # the key of each row that is needed -> an array and the place in it
        key: (array, place)
        for arrays in sources.values()
        for array in arrays
        for place, key in enumerate(content_keys(array))
    }
    where = dict(sorted(where.items()))
    keys = list(where)
    dtype = "float16" if half_precision else "float32"
    boundaries = _boundaries(model, stage)
    with _COMPUTING:
        store = _find(boundaries[-1], keys, dtype)
        if store is None:
            with _turn(boundaries[-1]):
                store = _find(boundaries[-1], keys, dtype) or _compute(model, boundaries, where, dtype, batch_size)
    row = {key: number for number, key in enumerate(store.keys)}
    loaded = {}
    for part, arrays in sources.items():
        rows = np.array([[row[key] for key in content_keys(array)] for array in arrays], dtype=int).T
        loaded[part] = Activations(store, rows if isinstance(parts[part], Augmented) else rows[:, 0])
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
        model: from images or activations to features or probabilities.
        inputs: (images, ...): in memory or stored.
        batch_size: images in a forward pass; 0 for as many as memory allows, at most 32.
        title: what the progress bar says.

    Raises:
        ValueError: an activation is not finite.
        MemoryError: the outputs would not fit into this machine's memory: `load_activations` keeps them on disk.
    """
    needed = 4 * len(inputs) * math.prod(model.output_shape[1:])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.4 * memory:
        raise MemoryError(
            f"The activations of {len(inputs)} images, {'x'.join(map(str, model.output_shape[1:]))} numbers each, "
            f"take {needed / 1e9:.1f} GB, and this machine has {memory / 1e9:.1f} GB of memory. "
            f"`load_activations` keeps them on disk."
        )
    outputs = np.empty((len(inputs), *model.output_shape[1:]), dtype="float32")
    for start, batch in _forward(model, inputs, batch_size, title=title):
        outputs[start : start + len(batch)] = batch
    return outputs


def content_digest(model: keras.Model) -> str:
    """Returns what tells a model from others that give other outputs: of its layers, their settings and weights."""
    return _boundaries(model, None)[-1].digest


def half_precision_error(model: keras.Model, activations: np.ndarray | StoredArray, *, stage: str) -> float:
    """Returns the largest change of a logit if these activations were kept in half precision, in absolute value.

    Args:
        model: a classifier that ends in a softmax, or a backbone: then it is the largest change of a feature.
        activations: float32 (images, ...), what enters the stage; 64 images tell enough.
        stage: a name in `describe_stages(model)`.
    """
    suffix = keras.Model(_entrance(model, stage), logits_tensor(model))
    exact = compute_activations(suffix, np.asarray(activations, "float32"))
    rounded = compute_activations(suffix, np.asarray(activations, "float16").astype("float32"))
    return float(np.abs(exact - rounded).max(initial=0.0))


# ---- computing


def _views(array) -> list:
    """Returns the array, or the fixed views of augmented images, one after the other."""
    if not isinstance(array, Augmented):
        return [array]
    if not array.views:
        raise ValueError(
            "Images that are augmented anew in every epoch have no fixed activations. Expected `augment_views` of at "
            "least 1, or a training on the images themselves."
        )
    return [array.at_epoch(number) for number in range(array.views)]


def _compute(model, boundaries: list["Boundary"], where: dict, dtype: str, batch_size: int):
    """Returns the store of the last boundary, computed from the nearest one below that is stored, or from images."""
    *below, wanted = boundaries
    keys = list(where)
    start, inputs, seconds_below = model.inputs[0], _Rows(where), 0.0
    for boundary in reversed(below):
        if stored := _find(boundary, keys, "float32"):
            place = {key: number for number, key in enumerate(stored.keys)}
            start, inputs = boundary.tensor, StoredArray(stored, np.array([place[key] for key in keys]))
            seconds_below = stored.seconds_per_row
            break
    part = keras.Model(start, wanted.tensor, name=model.name)
    remedy = (
        "Let a later stage be the first that learns (`unfreeze_from`), whose activations are smaller; or use fewer "
        "images (`images_per_class`), fewer `augment_views` or half precision."
    )
    shape, started = wanted.tensor.shape[1:], perf_counter()
    with new_store(wanted.file(keys, dtype), shape=shape, dtype=dtype, keys=keys, remedy=remedy) as write:
        for row, batch in _forward(part, inputs, batch_size):
            with np.errstate(over="ignore"):
                rounded = batch.astype(dtype)
            if not np.isfinite(rounded).all():
                raise ValueError(
                    f"{model.name} has activations up to {np.abs(batch).max():.3g}, and half precision ends at "
                    f"65504. Keep them in full precision, or let another stage be the first that learns."
                )
            write(row, rounded)
        write.seconds_per_row = seconds_below + (perf_counter() - started) / max(len(keys), 1)
    return write.store


class _Rows:
    """Rows of several arrays as one array."""

    def __init__(self, where: dict):
        self.places = list(where.values())
        first = self.places[0][0] if self.places else np.empty((0, 1, 1, 3), "uint8")
        self.shape, self.dtype = (len(self.places), *first.shape[1:]), first.dtype

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: slice) -> np.ndarray:
        values = np.empty((len(self.places[rows]), *self.shape[1:]), self.dtype)
        wanted: dict[int, tuple] = {}
        for number, (array, place) in enumerate(self.places[rows]):
            wanted.setdefault(id(array), (array, [], []))
            wanted[id(array)][1].append(number)
            wanted[id(array)][2].append(place)
        for array, numbers, places in wanted.values():
            values[numbers] = array[np.array(places)]
        return values


def _forward(
    model: keras.Model, inputs, batch_size: int, *, title: str = "computing activations"
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the number of the first row and the outputs, float32, batch by batch.

    Raises:
        ValueError: an output is not finite.
    """
    images = max(len(inputs), 1)
    batches = math.ceil(images / (batch_size or _batch_size(model)))
    batch_size = math.ceil(images / batches)  # even ones, since the last one is filled up
    infer = Inference(model, batch_size=batch_size)
    with tqdm(total=len(inputs), desc=title, unit="image", leave=False, **_BAR) as bar:
        for start in range(0, len(inputs), batch_size):
            outputs = infer(np.asarray(inputs[start : start + batch_size]))
            yield start, outputs
            bar.update(len(outputs))


class Inference:
    """A model's outputs in inference mode, for one array after the other.

    Args:
        model: from images or activations to features or probabilities.
        batch_size: images in a forward pass; 0 for as many as memory allows, at most 32.
    """

    def __init__(self, model: keras.Model, *, batch_size: int = 0):
        self.batch_size = batch_size or _batch_size(model)
        self._model, self._forward, self._done = model, _compiled(model), 0

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Returns the outputs, float32 (images, ...), of at least one input.

        Raises:
            ValueError: an output is not finite.
        """
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
            outputs.append(values.astype("float32", copy=False))
            self._check(outputs[-1])
            start += len(batch)
            self._done += len(batch)
        return outputs[0] if len(outputs) == 1 else np.concatenate(outputs)

    def _check(self, outputs: np.ndarray) -> None:
        if not np.isfinite(outputs).all():
            bad = (~np.isfinite(outputs.reshape(len(outputs), -1))).any(axis=1).sum()
            raise ValueError(
                f"{self._model.name} gives activations that are not finite for {bad} of {len(outputs)} images, the "
                f"first of them among images {self._done} to {self._done + len(outputs) - 1}. The weights are "
                f"damaged, the preprocessing is not the network's, or training at too high a learning rate diverged."
            )


_BAR = {"file": progress_file(), "delay": 1}


_INFERENCE: WeakKeyDictionary = WeakKeyDictionary()
"""Model to its compiled inference: it takes long to build, and the weights in it are the model's."""


def _compiled(model: keras.Model):
    """Returns the model's inference, compiled. (`predict` would first read all of the images into memory.)"""
    import tensorflow

    if model not in _INFERENCE:
        this = weakref.ref(model)  # a reference of its own would keep the model for ever
        _INFERENCE[model] = tensorflow.function(lambda batch: this()(batch, training=False))
    return _INFERENCE[model]


def _batch_size(model: keras.Model) -> int:
    """Returns how many images pass at once: 32, or as many as the memory for them is enough for.

    That is an eighth of what is free. Without a GPU it is 200 MB at most: more images at once are no faster there,
    and TensorFlow keeps what it once took.
    """
    memory = _free_memory() / 8
    if not keras.distribution.list_devices("gpu"):
        memory = min(memory, 200e6)
    largest = max(
        sum(math.prod(size or 1 for size in tensor.shape[1:]) for tensor in (*node.input_tensors, *node.outputs))
        for node in find_nodes(model)
    )
    an_image = 3 * 4 * largest  # what a layer reads and writes, and as much again to work with
    return int(np.clip(memory / an_image, 1, 32))


def _free_memory() -> int:
    with suppress(OSError, StopIteration), open("/proc/meminfo") as file:
        return 1024 * int(next(line for line in file if line.startswith("MemAvailable")).split()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


# ---- finding


class Boundary:
    """A place between two stages, and what tells its activations from others."""

    def __init__(self, tensor, digest: str):
        self.tensor, self.digest = tensor, digest

    def file(self, keys: list[str], dtype: str) -> Path:
        """Returns where the activations of these images are kept."""
        rows = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
        shape = "x".join(map(str, self.tensor.shape[1:]))
        return _folder() / f"{self.digest}-{rows}-{shape}-{dtype}.activations"


def _folder() -> Path:
    return resolve_path("runs/.activations")


def _boundaries(model: keras.Model, stage: str | None) -> list[Boundary]:
    """Returns the boundary before each stage up to the one named, from the input on."""
    last = model.outputs[0] if stage is None else _entrance(model, stage)
    known = {id(model.inputs[0]): f"images {model.inputs[0].shape[1:]}"}
    boundaries = []
    for part in find_stages(model).values():
        for node in part.nodes:
            _add_digests(node, known)
        boundaries.append(Boundary(part.output, known[id(part.output)]))
        if part.output is last:
            break
    return boundaries


def _entrance(model: keras.Model, stage: str):
    return cut(model, stage)[0].outputs[0]


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
    arguments = [value for value in (*node.arguments.args, *sorted(node.arguments.kwargs.items()))]
    plain = [repr(value) for value in arguments if not _holds_tensor(value)]
    types = [type(layer).__name__, str(getattr(layer, "compute_dtype", "")), [str(t.shape[1:]) for t in node.outputs]]
    return json.dumps([types, settings, plain], sort_keys=True, default=str)


def _holds_tensor(value) -> bool:
    return any(isinstance(leaf, keras.KerasTensor) for leaf in keras.tree.flatten(value))


def _without_names(config):
    if isinstance(config, dict):
        return {key: _without_names(value) for key, value in config.items() if key not in ("name", "trainable")}
    return [_without_names(value) for value in config] if isinstance(config, (list, tuple)) else config


def _find(boundary: Boundary, keys: list[str], dtype: str):
    """Returns a store that holds the boundary's activations of these images, and perhaps of others; else None."""
    exact = boundary.file(keys, dtype)
    others = sorted(_folder().glob(f"{boundary.digest}-*-{dtype}.activations")) if _folder().is_dir() else []
    for file in [exact, *(other for other in others if other != exact)]:
        if store := open_store(file, containing=keys):
            return store
    return None


@contextmanager
def _turn(boundary: Boundary):
    """Lets one process at a time compute a boundary's activations: the next one finds them."""
    _folder().mkdir(parents=True, exist_ok=True)
    with open(_folder() / f".{boundary.digest}.lock", "w") as file:
        with suppress(OSError):  # a network file system may have no locks: then each process computes
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
