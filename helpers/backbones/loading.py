"""A pretrained network from wherever it is, as one flat graph from raw images to features."""

import re
from pathlib import Path

import numpy as np

from helpers._keras import keras, on_all_devices
from helpers.backbones.applications import load_application
from helpers.backbones.files import first_line, load_model, load_preset, mend_layers
from helpers.backbones.graphs import check_graph, find_nodes, flatten
from helpers.backbones.preprocessing import PREPROCESSING, application_preprocessing, preprocess


def load_backbone(
    backbone: str, *, weights: str | None = "imagenet", image_size: int = 0, preprocessing: str = "auto"
) -> keras.Model:
    """Returns the network as a flat functional model from raw images to features.

    Networks inside the network become a part of its graph, and so do the blocks that a layer hides, as the encoder
    of KerasHub's Vision Transformers does: that is accepted where one random image gives the same numbers.

    Features are the average over positions, or over tokens; a Vision Transformer with a class token gives that one,
    which it was trained to decide by.

    Args:
        backbone: a name in `keras.applications` ("ResNet50"), the path of a `.keras` file, or "hub:" and a preset
            of KerasHub: its name, or the folder that `save_to_preset` wrote. Of a classifier, the Dense layer with
            softmax or sigmoid, or with a single output, is cut off.
        weights: "imagenet" (downloaded by Keras), None or "None" for random weights, or the path of a
            weights file. Files and presets bring their own, which None replaces by random ones, too.
        image_size: height and width of the images in pixels; 0 for the size the network was made for.
        preprocessing: "auto", or a key of `PREPROCESSING`. "auto" is right for `keras.applications`, for files
            whose input is uint8, as the models that this project saves, and for presets with an image converter.

    Returns:
        A model with input uint8 (batch, height, width, 3) and output float32 (batch, features), with
        every layer trainable.

    Raises:
        ValueError: no such network; weights that cannot be had or belong to another architecture; an image
            size that the network does not take; preprocessing that is unknown or has to be named; weights or
            preprocessing named for a file that brings its own; a model that has no graph, or more than one input or
            output; KerasHub is needed and not installed.
        FileNotFoundError: no such file or folder.
    """
    if preprocessing not in ("auto", *PREPROCESSING):
        known = "; ".join(f"{name!r}: {meaning}" for name, meaning in PREPROCESSING.items())
        raise ValueError(f'Expected `preprocessing` "auto" or one of {known}. Received {preprocessing!r}.')
    if image_size < 0:
        raise ValueError(f"Expected `image_size` above 0, or 0 for the network's own. Received {image_size}.")
    from_hub, mode = backbone.startswith("hub:"), preprocessing
    own = from_hub or backbone.endswith(".keras")
    if own and weights not in ("imagenet", None, "None"):
        raise ValueError(f"{backbone} brings its own weights. Received `weights` {weights!r}; leave it out.")
    if from_hub:
        network, converter = load_preset(backbone)
        mode = converter if mode == "auto" and converter else mode
    elif own:
        network = load_model(backbone, parameter="backbone")
    else:
        network = load_application(backbone, weights, image_size)
        mode = application_preprocessing(backbone) if mode == "auto" else mode
    network = _own_network(network, backbone, image_size) if own else network
    raw = keras.backend.standardize_dtype(network.inputs[0].dtype) == "uint8"
    if mode != "auto" and raw:
        raise ValueError(
            f"{backbone} takes raw images (uint8): its preprocessing is inside. Received `preprocessing` "
            f'{preprocessing!r}; leave it at "auto".'
        )
    if mode == "auto" and not raw:
        raise ValueError(
            f"The parameter `preprocessing` has to be named for {backbone}: the file does not say what values "
            f"its network was trained on. Choose {', '.join(map(repr, PREPROCESSING))}; wrong values cost "
            f"accuracy without any error."
        )
    images = keras.Input(network.inputs[0].shape[1:], dtype="uint8", name="images")
    x = images if raw else preprocess(images, mode)
    features = _pool(keras.Function.call(network, x), network)
    name = re.sub(r"\W", "_", Path(backbone.removeprefix("hub:")).stem)
    with on_all_devices():
        model = _rebuild(keras.Model(images, features, name=name))
    model.trainable = True
    if own and weights in (None, "None"):
        _draw_anew(model)
    return model


def _draw_anew(model: keras.Model) -> None:
    """Gives the network random weights, but leaves what it knows of its images' values."""
    measured = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Normalization)]
    kept = {id(weight) for layer in measured for weight in layer.weights}
    for weight, drawn in zip(model.weights, keras.models.clone_model(model).weights, strict=True):
        if id(weight) not in kept:
            weight.assign(drawn)


def _rebuild(model: keras.Model) -> keras.Model:
    """Returns a copy. Layers that were called twice have no single `output`; in the copy each call counts once."""
    mend_layers(model)
    copy = keras.Model.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    for layer in copy._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with copies of its weights
    mend_layers(copy)
    return copy


def _own_network(network: keras.Model, name: str, image_size: int) -> keras.Model:
    """Returns a flat copy of somebody's network, for images of one size, without a classifier's last layer."""
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
    flat = _flat_copy(network, name, size)
    return keras.Model(flat.inputs[0], features_tensor(flat))


def _flat_copy(network: keras.Model, name: str, size: tuple[int, int]) -> keras.Model:
    """Returns the network with inner networks spread out, which gives the same numbers.

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
            if flat.count_params() == network.count_params() and _agree(network, flat, sample):
                return flat
        except Exception as error:  # Keras, its backend and the network's own layers raise many kinds
            problem = first_line(error)
    if None in network.inputs[0].shape[1:3]:
        raise ValueError(f"{name} does not take `image_size` {size[0]}. Keras says: {problem}")
    raise ValueError(
        f"{name} cannot be used as `backbone`: it does not come out again from what its layers tell about "
        f"themselves (`get_config`), so that it could not be cut or saved. {problem}"
    )


def _agree(one: keras.Model, other: keras.Model, images: np.ndarray) -> bool:
    first, second = (keras.ops.convert_to_numpy(model(images, training=False)) for model in (one, other))
    return first.shape == second.shape and np.allclose(first, second, rtol=1e-3, atol=1e-4 * np.abs(first).max())


def features_tensor(network: keras.Model):
    """Returns the tensor that enters a classifier's last Dense layer, or the output of a network that is none."""
    decides = False
    for node in reversed(find_nodes(network)):
        layer = node.operation
        activation = getattr(layer, "activation", None)
        decides |= isinstance(layer, keras.layers.Softmax)
        decides |= activation in (keras.activations.softmax, keras.activations.sigmoid)
        if isinstance(layer, keras.layers.Dense):
            return node.input_tensors[0] if decides or layer.units == 1 else network.outputs[0]
        if not isinstance(layer, (keras.layers.Softmax, keras.layers.Activation, keras.layers.Dropout)):
            break
    return network.outputs[0]


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


def _pool(x, network: keras.Model):
    """Returns one vector for each image, with layers of Keras only."""
    if len(x.shape) == 4:
        return keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    if len(x.shape) == 3 and any(weight.name in ("class_token", "cls_token") for weight in network.weights):
        first = keras.layers.Cropping1D((0, x.shape[1] - 1), name="class_token")(x)
        return keras.layers.Flatten(name="features")(first)
    if len(x.shape) == 3:
        return keras.layers.GlobalAveragePooling1D(name="avg_pool")(x)
    return x
