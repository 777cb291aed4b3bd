"""A pretrained network from wherever it is, as one flat graph from raw images to features."""

import difflib
import math
import re
from pathlib import Path

import numpy as np

from helpers._keras import keras, on_all_devices
from helpers.backbones.applications import load_application
from helpers.backbones.files import first_line, load_model, load_preset, mend_layers
from helpers.backbones.graphs import (
    all_layers,
    check_graph,
    find_nodes,
    find_segments,
    flatten,
    free_name,
    has_kernel,
    pool,
)
from helpers.backbones.preprocessing import PREPROCESSING, application_preprocessing, preprocess

FEW_FEATURES = 32
"""Fewer than these are rather a classifier's outputs than a description of an image."""

_OURS = re.compile(r"(avg_pool|class_token|features)(_\d+)?")
"""Names of the layers that `load_backbone` puts behind a network."""

_PROBABILITIES = {"softmax", "logsoftmax", "sigmoid", "logsigmoid", "hardsigmoid", "sparsemax"}


def load_backbone(
    backbone: str,
    *,
    weights: str | None = "imagenet",
    image_size: int = 0,
    preprocessing: str = "auto",
    features_from: str = "auto",
) -> keras.Model:
    """Returns the network as a flat functional model from raw images to features, with every layer trainable.

    Features are the average over positions, or over tokens; of a Vision Transformer with a class token, that token.

    Args:
        backbone: a name in `keras.applications` ("ResNet50"), the path of a `.keras` file, or "hub:" and a preset of
            KerasHub: its name, or the folder that `save_to_preset` wrote.
        weights: "imagenet" (downloaded by Keras), None or "None" for random weights, or the path of a weights file.
            Files and presets bring their own, which None replaces by random ones, too.
        image_size: height and width of the images in pixels; 0 for the size the network was made for.
        preprocessing: "auto", or a key of `PREPROCESSING`. "auto" is right for `keras.applications`, for files whose
            input is uint8, as the models that this project saves, and for presets with an image converter.
        features_from: the layer whose output the features are. "auto" is the network's output, or, of a file or
            preset that is a classifier, what enters its head (`features_tensor`).

    Returns:
        A model from uint8 (batch, height, width, 3) to float32 (batch, features); see `describe_features`. What
        cannot be had, is unknown or does not fit the network is a ValueError or FileNotFoundError.
    """
    if preprocessing not in ("auto", *PREPROCESSING):
        known = "; ".join(f"{name!r}: {meaning}" for name, meaning in PREPROCESSING.items())
        raise ValueError(f'Expected `preprocessing` "auto" or one of {known}. Received {preprocessing!r}.')
    if image_size < 0:
        raise ValueError(f"Expected `image_size` above 0, or 0 for the network's own. Received {image_size}.")
    network, mode, own = _find_network(backbone, weights, image_size)
    if features_from != "auto":
        tensor = _output_of(network, features_from)
    else:
        tensor = features_tensor(network) if own else network.outputs[0]
    whole, network = network, keras.Model(network.inputs[0], tensor)
    mode = _choose_preprocessing(network, backbone, preprocessing, mode)
    model = _from_raw_images(network, mode, name=re.sub(r"\W", "_", Path(backbone.removeprefix("hub:")).stem))
    if own and weights in (None, "None"):
        _draw_weights(model)
    kept = {operation.name for operation in network.operations}
    left_out = [layer.name for layer in whole.layers if layer.name not in kept]
    model.left_out = ", ".join(left_out if len(left_out) < 6 else [*left_out[:5], f"and {len(left_out) - 5} more"])
    return model


def _find_network(backbone: str, weights: str | None, image_size: int) -> tuple[keras.Model, str | tuple, bool]:
    """Returns the network, the preprocessing it is known to need ("auto" if none is) and if it brings its weights."""
    from_hub = backbone.startswith("hub:")
    if not from_hub and not backbone.endswith(".keras"):
        return load_application(backbone, weights, image_size), application_preprocessing(backbone), False
    if weights not in ("imagenet", None, "None"):
        raise ValueError(f"{backbone} brings its own weights. Received `weights` {weights!r}; leave it out.")
    network, converter = load_preset(backbone) if from_hub else (load_model(backbone, parameter="backbone"), None)
    return _own_network(network, backbone, image_size), converter or "auto", True


def _choose_preprocessing(network: keras.Model, backbone: str, asked: str, known: str | tuple) -> str | tuple | None:
    """Returns the key of `PREPROCESSING`, or scale and offset; None for a network that takes raw images."""
    mode = known if asked == "auto" else asked
    raw = keras.backend.standardize_dtype(network.inputs[0].dtype) == "uint8"
    if mode != "auto" and raw:
        raise ValueError(
            f"{backbone} takes raw images (uint8): its preprocessing is inside. Received `preprocessing` "
            f'{asked!r}; leave it at "auto".'
        )
    if mode == "auto" and not raw:
        raise ValueError(
            f"The parameter `preprocessing` has to be named for {backbone}, which does not say what values it was "
            f"trained on: {', '.join(map(repr, PREPROCESSING))}. Wrong values cost accuracy without any error."
        )
    return None if raw else mode


def _from_raw_images(network: keras.Model, mode: str | tuple | None, *, name: str) -> keras.Model:
    """Returns the network with its preprocessing in front, and its output brought to one vector for each image."""
    images = keras.Input(network.inputs[0].shape[1:], dtype="uint8", name="images")
    x = preprocess(images, mode) if mode else images
    for operation in keras.Function(images, x).operations:
        operation.name = free_name(operation.name, network)
    x = keras.Function.call(network, x)
    if len(x.shape) == 3 and any(weight.name in ("class_token", "cls_token") for weight in network.weights):
        first = keras.layers.Cropping1D((0, x.shape[1] - 1), name=free_name("class_token", network))(x)
        features = keras.layers.Flatten(name=free_name("features", network))(first)
    else:
        features = pool(x, free_name("avg_pool", network))
    if features_tensor(keras.Model(images, features)) is not features:  # nobody shall take it for a head again
        features = keras.layers.Identity(name=free_name("features", network))(features)
    with on_all_devices():
        model = _rebuild(keras.Model(images, features, name=name))
    model.trainable = True
    return model


def describe_features(network: keras.Model) -> str:
    """Returns in words what the features of a backbone from `load_backbone` are; a warning if they are doubtful."""
    ends = [segment[-1] for segment in find_segments(network)]
    names = [node.operation.name for node in ends]
    last = max(n for n, name in enumerate(names) if not n or not _OURS.fullmatch(name))
    count, shape = network.output_shape[-1], ends[last].outputs[0].shape[1:]
    positions = math.prod(shape[:-1])
    how = f", averaged over {positions} positions" if positions > 1 else ""
    how = " at its class token" if any(name.startswith("class_token") for name in names[last + 1 :]) else how
    message = f"{count:,} features: the output of {names[last]!r}{how}."
    if left_out := getattr(network, "left_out", ""):
        message += f" What follows it is left out: {left_out} (`features_from` names another layer)."
    noise = np.random.default_rng(0).integers(0, 256, (2, *network.input_shape[1:]), dtype="uint8")
    values = _call(network, noise).astype("float32")
    reason = f"they are fewer than {FEW_FEATURES}" if count < FEW_FEATURES else ""
    if count > 1 and values.min() >= 0 and np.allclose(values.sum(axis=1), 1, atol=1e-2):
        reason = "each image's sum to 1, so that a softmax seems to be among the layers"
    if reason:
        enough = max(count + 1, FEW_FEATURES)
        wider = [name for name, end in zip(names, ends, strict=True) if end.outputs[0].shape[-1] >= enough]
        message += (
            f" Warning: {reason}. A classifier's outputs say less about images than what enters its head. Name an "
            f"earlier layer in `features_from`{f', such as {wider[-1]!r}' if wider else ''}, unless this is meant."
        )
    return message


def _draw_weights(model: keras.Model) -> None:
    """Gives the network random weights, but leaves what it knows of its images' values."""
    measured = [layer for layer in all_layers(model) if isinstance(layer, keras.layers.Normalization)]
    kept = {id(weight) for layer in measured for weight in layer.weights}
    for weight, drawn in zip(model.weights, keras.models.clone_model(model).weights, strict=True):
        if id(weight) not in kept:
            weight.assign(drawn)


def _rebuild(model: keras.Model) -> keras.Model:
    """Returns a copy. Layers that were called twice have no single `output`; in the copy each call counts once."""
    mend_layers(model)
    copy = keras.Model.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    for layer in all_layers(copy):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with copies of its weights
    return mend_layers(copy)


def _own_network(network: keras.Model, name: str, image_size: int) -> keras.Model:
    """Returns a flat copy of somebody's network, for images of one size."""
    try:
        check_graph(network)
    except ValueError as error:
        raise ValueError(f"{name} cannot be used as `backbone`. {error}") from None
    shape = network.inputs[0].shape
    if len(shape) != 4 or shape[-1] not in (3, None):
        raise ValueError(f"Expected `backbone` to take RGB images (height, width, 3). {name} takes {shape[1:]}.")
    size = (image_size or shape[1] or 224, image_size or shape[2] or 224)
    if shape[1:3] != size and None not in shape[1:3]:
        raise ValueError(
            f"{name} takes images of {shape[1]}x{shape[2]} pixels. Received `image_size` {image_size}; leave it at 0."
        )
    network = keras.Model(network.inputs[0], network.outputs[0])  # a preset's own class takes a dictionary
    return _flat_copy(network, name, size)


def _flat_copy(network: keras.Model, name: str, size: tuple[int, int]) -> keras.Model:
    """Returns the network with inner networks spread out, accepted where one random image gives the same numbers.

    A stack of blocks stays whole where its blocks alone do not: where it has weights of its own, say.
    """
    dtype = keras.backend.standardize_dtype(network.inputs[0].dtype)
    sample = np.random.default_rng(0).integers(0, 256, (1, *size, 3))
    sample = (sample if dtype == "uint8" else sample / 255).astype(dtype)
    problem = "its parts do not give the same numbers."
    for unroll in (True, False):
        images = keras.Input((*size, 3), dtype=dtype)
        try:
            flat = _rebuild(keras.Model(images, flatten(network, images, unroll=unroll)))
            expected, found = _call(network, sample), _call(flat, sample)
            close = {"rtol": 1e-3, "atol": 1e-4 * np.abs(expected).max()}
            same = expected.shape == found.shape and np.allclose(expected, found, **close)
            if same and flat.count_params() == network.count_params():
                return flat
        except Exception as error:  # Keras, its backend and the network's own layers raise many kinds
            problem = first_line(error)
    if None in network.inputs[0].shape[1:3]:
        raise ValueError(f"{name} does not take `image_size` {size[0]}. Keras says: {problem}")
    raise ValueError(
        f"{name} cannot be used as `backbone`: its layers' settings (`get_config`) do not give the same network, so "
        f"that it could not be cut or saved. {problem}"
    )


def _call(model: keras.Model, inputs: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(inputs, training=False))


def features_tensor(network: keras.Model):
    """Returns the tensor that enters a classifier's head, or the output of a network that has none.

    The head is what begins with the last layer that has a kernel, Dense or not, where

    - it ends in probabilities (softmax, sigmoid) or in a single number, or
    - it is linear from there to the end, and works on vectors or narrows each position before they are averaged: then
      a new linear head on what enters it can do all that it did.

    An embedding made on purpose, whose numbers are bent or scaled (relu, tanh, unit length), has no head, and neither
    has a network that ends in an Identity layer.
    """
    segments, output = find_segments(network), network.outputs[0]
    first = max((n for n, segment in enumerate(segments) if any(map(has_kernel, segment))), default=0)
    if first == 0 or isinstance(segments[-1][-1].operation, keras.layers.Identity):
        return output
    entering, narrowed = segments[first - 1][-1].outputs[0], segments[first][-1].outputs[0]
    chain = [segment[0].operation for segment in segments[first:] if len(segment) == 1]
    names = {type(operation).__name__ for operation in chain}
    names |= {getattr(getattr(operation, "activation", None), "__name__", "") for operation in chain}
    if set(output.shape[1:]) == {1} or _PROBABILITIES & {name.lower().replace("_", "") for name in names}:
        return entering
    if None in entering.shape[1:]:
        return output
    kernels = [weight for layer in chain[:1] for weight in getattr(layer, "weights", []) if len(weight.shape) > 1]
    pointwise = all(size == 1 for kernel in kernels for size in kernel.shape[:-2])
    averaged = pointwise and len(output.shape) == 2 and narrowed.shape[-1] < entering.shape[-1]
    on_vectors = math.prod(entering.shape[1:-1]) == 1
    return entering if (on_vectors or averaged) and _gives_logits(entering, output) else output


def _gives_logits(start, end) -> bool:
    """Returns whether a tensor is linear (with an offset) in one before it in a graph, or sums to 1."""
    values = np.random.default_rng(0).normal(0, 10, (8, *start.shape[1:])).astype("float32")
    part = keras.Model(start, end)
    first, second, both, zero = (
        _call(part, given.astype(start.dtype)).astype("float64")
        for given in (values[:4], values[4:], values[:4] + values[4:], 0 * values[:4])
    )
    sums_to_one = both.min() >= 0 and np.allclose(both.sum(axis=-1), 1, atol=1e-2)
    return sums_to_one or np.abs(both + zero - first - second).max() <= 1e-2 * np.abs(both - zero).max()


def _output_of(network: keras.Model, layer: str):
    """Returns what a layer gives, where it is called last."""
    outputs = {node.operation.name: node.outputs[0] for node in find_nodes(network)}
    if layer not in outputs:
        nearest = difflib.get_close_matches(layer, outputs, n=1, cutoff=0)
        raise ValueError(
            f'Expected `features_from` "auto" or the name of a layer of this network. Received {layer!r}. Did you '
            f"mean {nearest[0]!r}? Its last layers are {', '.join(list(outputs)[-8:])}."
        )
    return outputs[layer]


def logits_tensor(classifier: keras.Model):
    """Returns the tensor of a classifier's logits, before its last softmax, or the output of one that has none."""
    node = find_nodes(classifier)[-1]
    last, entering = node.operation, node.input_tensors[0]  # not `last.input`, which may be of another graph
    if isinstance(last, keras.layers.Softmax):
        return entering
    if getattr(last, "activation", None) is keras.activations.softmax:
        if isinstance(last, keras.layers.Activation):
            return entering
        if isinstance(last, keras.layers.Dense):
            logits = keras.ops.matmul(entering, last.kernel)
            return logits + last.bias if last.use_bias else logits
    return classifier.outputs[0]
