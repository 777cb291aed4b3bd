"""Any pretrained Keras network as named stages that can be cut and frozen.

A *backbone* is an ordinary functional Keras model from raw images (uint8 RGB, values 0..255) to a vector of
features: preprocessing, the pretrained layers and global average pooling, all in one flat graph.

A *boundary* is a place in that graph through which exactly one tensor passes. The network splits there into
a *prefix* and a *suffix*, both ordinary Keras models that share its layers and compose to the whole. The
layers between boundaries are grouped into the *stages* that people know by name (`conv4`, `block_7`).
"""

import difflib
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from helpers import resolve_path
from helpers._keras import keras

PREPROCESSING = {
    "tf": "values scaled to -1..1",
    "torch": "values scaled to 0..1, then ImageNet's mean and deviation of each channel removed",
    "caffe": "channels in the order BGR, ImageNet's mean of each channel subtracted",
    "unit": "values scaled to 0..1",
    "none": "values 0..255 as they are: the network scales them itself",
}
"""What a pretrained network may expect of its input, by the names that Keras uses (and "unit")."""

_FAMILIES = {  # of keras.applications, by what their `preprocess_input` does
    "tf": ("mobilenet", "mobilenet_v2", "inception_v3", "inception_resnet_v2", "xception", "nasnet", "resnet_v2"),
    "torch": ("densenet",),
    "caffe": ("resnet", "vgg16", "vgg19"),
    "none": ("convnext", "efficientnet", "efficientnet_v2", "mobilenet_v3"),
}
_SIZES = {  # where the images that a network was pretrained on were not 224 pixels wide
    "InceptionV3": 299, "InceptionResNetV2": 299, "Xception": 299, "NASNetLarge": 331,
    "EfficientNetB1": 240, "EfficientNetB2": 260, "EfficientNetB3": 300, "EfficientNetB4": 380,
    "EfficientNetB5": 456, "EfficientNetB6": 528, "EfficientNetB7": 600,
    "EfficientNetV2B1": 240, "EfficientNetV2B2": 260, "EfficientNetV2B3": 300,
    "EfficientNetV2S": 384, "EfficientNetV2M": 480, "EfficientNetV2L": 480,
}  # fmt: skip


def load_backbone(
    backbone: str, *, weights: str | None = "imagenet", image_size: int = 0, preprocessing: str = "auto"
) -> keras.Model:
    """Returns the network as a flat functional model from raw images to features.

    Args:
        backbone: a name in `keras.applications` ("ResNet50"), or the path of a `.keras` file. A classifier's
            softmax layer is cut off.
        weights: "imagenet" (downloaded by Keras), None or "None" for random weights, or the path of a
            weights file. Not used with a `.keras` file, which brings its own.
        image_size: height and width of the images in pixels; 0 for the size the network was made for.
        preprocessing: "auto", or a key of `PREPROCESSING`. "auto" is right for `keras.applications` and for
            files whose input is uint8, as the models that this project saves.

    Returns:
        A model with input uint8 (batch, height, width, 3) and output float32 (batch, features), with
        every layer trainable.

    Raises:
        ValueError: no such network; weights that cannot be had or belong to another architecture; an image
            size that the network does not take; preprocessing that is unknown or has to be named; weights or
            preprocessing named for a file that brings its own.
        FileNotFoundError: no such file.
    """
    if preprocessing not in ("auto", *PREPROCESSING):
        known = "; ".join(f"{name!r}: {meaning}" for name, meaning in PREPROCESSING.items())
        raise ValueError(f'Expected `preprocessing` "auto" or one of {known}. Received {preprocessing!r}.')
    if image_size < 0:
        raise ValueError(f"Expected `image_size` above 0, or 0 for the network's own. Received {image_size}.")
    if backbone.endswith(".keras"):
        if weights not in ("imagenet", None, "None"):
            raise ValueError(f"{backbone} brings its own weights. Received `weights` {weights!r}; leave it out.")
        network = _load_file(backbone, image_size)
    else:
        network = _load_application(backbone, weights, image_size)
        preprocessing = _application_preprocessing(backbone) if preprocessing == "auto" else preprocessing
    raw = keras.backend.standardize_dtype(network.inputs[0].dtype) == "uint8"
    if preprocessing != "auto" and raw:
        raise ValueError(
            f"{backbone} takes raw images (uint8): its preprocessing is inside. Received `preprocessing` "
            f'{preprocessing!r}; leave it at "auto".'
        )
    if preprocessing == "auto" and not raw:
        raise ValueError(
            f"The parameter `preprocessing` has to be named for {backbone}: the file does not say what values "
            f"its network was trained on. Choose {', '.join(map(repr, PREPROCESSING))}; wrong values cost "
            f"accuracy without any error."
        )
    images = keras.Input(network.inputs[0].shape[1:], dtype="uint8", name="images")
    x = images if raw else _preprocess(images, preprocessing)
    features = _pool(keras.Function.call(network, x))
    model = keras.Model(images, features, name=re.sub(r"\W", "_", Path(backbone).stem))
    # Layers that were called twice have no single `output`; a copy made from the configuration does.
    copy = keras.Model.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    copy.trainable = True
    return copy


def _application_preprocessing(name: str) -> str:
    family = getattr(keras.applications, name).__module__.rsplit(".", 1)[-1]
    return next(mode for mode, families in _FAMILIES.items() if family in families)


def _preprocess(images, mode: str):
    """Returns preprocessed images. Built-in layers only, so that a saved file needs nothing but Keras."""
    if mode == "caffe":
        images = keras.ops.flip(images, axis=-1)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    scale, offset = {
        "tf": (1 / 127.5, -1.0),
        "torch": ((1 / (255 * deviation)).tolist(), (-mean / deviation).tolist()),
        "caffe": (1.0, [-103.939, -116.779, -123.68]),
        "unit": (1 / 255, 0.0),
        "none": (1.0, 0.0),
    }[mode]
    return keras.layers.Rescaling(scale, offset, name="preprocessing")(images)


def _pool(x):
    rank = len(x.shape)
    if rank == 4:
        return keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    if rank == 3:
        return keras.layers.GlobalAveragePooling1D(name="avg_pool")(x)
    return x


def _load_application(name: str, weights: str | None, image_size: int) -> keras.Model:
    known = [key for key, value in vars(keras.applications).items() if key[0].isupper() and callable(value)]
    if name not in known:
        nearest = difflib.get_close_matches(name.lower(), [key.lower() for key in known], n=1, cutoff=0)
        nearest = next(key for key in known if key.lower() == nearest[0])
        raise ValueError(
            f"Expected `backbone` to be a network of keras.applications or a .keras file. Received {name!r}. "
            f"Did you mean {nearest!r}? Files end in .keras; help(keras.applications) lists the networks."
        )
    build = getattr(keras.applications, name)
    size = image_size or _SIZES.get(name, 224)
    try:
        network = build(include_top=False, weights=None, input_shape=(size, size, 3))
    except ValueError as error:
        raise ValueError(
            f"{name} does not take `image_size` {size}; 0 is for the size it was made for. Keras says: {error}"
        ) from None
    if weights == "imagenet":
        try:
            return build(include_top=False, weights="imagenet", input_shape=(size, size, 3))
        except Exception as error:  # Keras raises a plain Exception where the download fails
            raise ValueError(
                f"The ImageNet weights of {name} could not be downloaded, and no copy of them is in Keras' "
                f"cache ({_first_line(error)}). Without a network, name a file that was downloaded elsewhere: "
                f'weights="path/to/file.weights.h5" (make run WEIGHTS=path).'
            ) from None
    if weights not in (None, "None"):
        _load_weights(network, name, weights)
    return network


def _load_weights(network: keras.Model, name: str, weights: str) -> None:
    """Loads a weights file, and makes sure that it was all there and for this network.

    Keras only warns where a file lacks a layer, and goes on with random weights there.
    """
    path = _existing_file("weights", weights)
    before = [np.array(variable) for variable in network.weights]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network.load_weights(path)
    except Exception as error:  # h5py and Keras raise many kinds
        raise ValueError(
            f"Expected `weights` to be a weights file of {name}. {path} cannot be loaded into it: "
            f"{_first_line(error)} Perhaps it is another network's or of another width (alpha), or cut off: "
            f"compare its size with where it came from, and download it again, or name the file of this network."
        ) from None
    # A random kernel does not equal a pretrained one by chance; a bias or a statistic may.
    same = [
        variable.path
        for variable, old in zip(network.weights, before, strict=True)
        if old.ndim > 1 and np.array_equal(old, variable)
    ]
    if same:
        raise ValueError(
            f"Expected `weights` to be a weights file of {name}. {path} brings nothing for {len(same)} of its "
            f"kernels, among them {same[0]}: it is another network's."
        )


def _load_file(backbone: str, image_size: int) -> keras.Model:
    path = _existing_file("backbone", backbone)
    try:
        network = keras.models.load_model(path, compile=False)
    except Exception as error:
        raise ValueError(
            f"Expected `backbone` to be a Keras model. {path} cannot be loaded: {_first_line(error)} Perhaps "
            f"it is cut off, or made by a newer Keras; one with Lambda layers or own classes is not loaded, "
            f"as that would run code from the file."
        ) from None
    if isinstance(network, keras.Sequential):
        network = keras.Model(network.inputs[0], network.outputs[0])
    if not hasattr(network, "_nodes_by_depth") or len(network.inputs) != 1 or len(network.outputs) != 1:
        raise ValueError(
            f"Expected `backbone` to be a functional Keras model with one input and one output: only its "
            f"graph says where it can be cut. {path} holds a {type(network).__name__} that is not."
        )
    shape = network.inputs[0].shape
    if len(shape) != 4 or shape[-1] not in (3, None):
        raise ValueError(f"Expected `backbone` to take RGB images (height, width, 3). {path} takes {shape[1:]}.")
    size = (image_size or shape[1] or 224, image_size or shape[2] or 224)
    if shape[1:3] != size and None not in shape[1:3]:
        raise ValueError(
            f"{path} takes images of {shape[1]}x{shape[2]} pixels. Received `image_size` {image_size}; leave it at 0."
        )
    if None in shape[1:3]:
        images = keras.Input((*size, 3), dtype=network.inputs[0].dtype)
        try:
            network = keras.Model(images, keras.Function.call(network, images))
        except ValueError as error:
            raise ValueError(
                f"{path} does not take `image_size` {size[0]}. Keras says: {_first_line(error)}"
            ) from None
    return keras.Model(network.inputs[0], _features_tensor(network))


def _features_tensor(network: keras.Model):
    """Returns what enters a classifier's last Dense layer, or the output of a network without a softmax."""
    nodes = list(reversed(_nodes(network)))
    softmax = False
    for node in nodes:
        layer = node.operation
        activation = getattr(layer, "activation", None)
        softmax |= isinstance(layer, keras.layers.Softmax) or activation is keras.activations.softmax
        if isinstance(layer, keras.layers.Dense):
            return node.input_tensors[0] if softmax else network.outputs[0]
        if not isinstance(layer, (keras.layers.Softmax, keras.layers.Activation, keras.layers.Dropout)):
            break
    return network.outputs[0]


def _existing_file(parameter: str, path: str) -> Path:
    resolved = resolve_path(path)
    if not resolved.is_file():
        raise FileNotFoundError(
            f"The parameter `{parameter}` should name a file. Received {str(path)!r}, but there is no file "
            f"{resolved}. Check the spelling."
        )
    return resolved


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    line = line.split(" Example error message")[0]  # Keras goes on with one of many
    return line if line.endswith(".") else f"{line}."


def _nodes(model: keras.Model) -> list:
    """Returns the graph's nodes (one per call of a layer), each after those that it depends on."""
    return [node for depth in sorted(model._nodes_by_depth, reverse=True) for node in model._nodes_by_depth[depth]]


def _segments(model: keras.Model) -> list[tuple]:
    """Returns the graph cut at every boundary: a list of (layers, boundary tensor), input to output.

    In a graph whose every node lies between input and output, a tensor is the only way through exactly if
    nothing else is still needed at the moment it has been computed, in any valid order of computation.
    """
    nodes = _nodes(model)
    last_use = {id(tensor): index for index, node in enumerate(nodes) for tensor in node.input_tensors}
    last_use[id(model.outputs[0])] = len(nodes)
    segments, layers, alive = [], [], set()
    for index, node in enumerate(nodes):
        layers.append(node.operation)
        alive |= {id(tensor) for tensor in node.outputs}
        alive = {tensor for tensor in alive if last_use.get(tensor, -1) > index}
        if len(alive) == 1 and id(node.outputs[0]) in alive:
            segments.append((layers, node.outputs[0]))
            layers = []
    return segments


def _stage_name(layers: list) -> str | None:
    """Returns the stage that the layers' names tell, None where Keras made the names (`conv2d_3`, `add`)."""
    for layer in reversed(layers):
        class_name = type(layer).__name__.lower()
        if re.sub(r"_\d+$", "", layer.name).replace("_", "") == class_name:
            continue
        for pattern in (
            r".*?(stage_?\d+|stem)",
            r"((?:block|conv|fire|mixed|layer|expanded_conv)_?\d+)(?!d)",
            r"(expanded_conv)",
            r"conv_[dp]w(_\d+)",  # MobileNet: a depthwise and a pointwise convolution make a block
            r"([A-Za-z]+\d*)",
        ):
            if match := re.match(pattern, layer.name, re.IGNORECASE):
                return f"block{match[1]}" if match[1].startswith("_") else match[1]
    return None


def _stages(model: keras.Model) -> dict[str, list[tuple]]:
    """Returns each stage's segments. A stage begins with a kernel: what has none belongs to the one before.

    The first stage, "input", holds the preprocessing and nothing that could learn.
    """
    stages: dict[str, list[tuple]] = {"input": []}
    current = "input"
    for layers, tensor in _segments(model):
        if any(len(weight.shape) > 1 for layer in layers for weight in getattr(layer, "weights", [])):
            name = _stage_name(layers) or ("stem" if current == "input" else current)
            # a name that comes back later cannot be a stage of its own
            current = current if name in stages else name
        stages.setdefault(current, []).append((layers, tensor))
    return stages


def describe_stages(model: keras.Model) -> pd.DataFrame:
    """Returns a table of the network's stages, in order.

    Returns:
        A DataFrame indexed by stage, with the columns last_layer, layers (count), parameters (count) and
        output (shape of one image's activations at the stage's end).
    """
    rows = {}
    for stage, segments in _stages(model).items():
        layers = [layer for part, _ in segments for layer in part if isinstance(layer, keras.Layer)]
        tensor = segments[-1][1]
        rows[stage] = {
            "last_layer": segments[-1][0][-1].name,
            "layers": len(layers),
            "parameters": sum(layer.count_params() for layer in layers),
            "output": "x".join(str(size) for size in tensor.shape[1:]),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("stage")


def _find_stage(model: keras.Model, stage: str) -> int:
    known = list(_stages(model))
    if stage not in known[1:]:
        nearest = difflib.get_close_matches(stage, known[1:], n=1)
        raise ValueError(
            f"Expected a stage of this network to unfreeze from. Received {stage!r}. "
            f"{f'Did you mean {nearest[0]!r}? ' if nearest else ''}It can be unfrozen from {', '.join(known[1:])}."
        )
    return known.index(stage)


def upper_half(model: keras.Model) -> str:
    """Returns the stage at which the upper half of a classifier's stages begins: a first guess, no more.

    Its head is not counted, and of an odd number of stages the lower half has one more: `conv4` in ResNet50.
    """
    stages = list(_stages(model))[1:-1]
    return stages[(len(stages) + 1) // 2] if len(stages) > 1 else list(_stages(model))[-1]


def cut(model: keras.Model, stage: str) -> tuple[keras.Model, keras.Model]:
    """Returns the network before a stage, and from that stage on.

    Both share the model's layers: training the suffix trains the model.

    Args:
        model: a functional model with one input and one output.
        stage: a name in `describe_stages(model)`, not the first.

    Raises:
        ValueError: there is no such stage to cut at.
    """
    index = _find_stage(model, stage)
    boundary = list(_stages(model).values())[index - 1][-1][1]
    return keras.Model(model.inputs[0], boundary), keras.Model(boundary, model.outputs[0])


def freeze(model: keras.Model, *, unfreeze_from: str | None = None, batch_norm: str = "frozen") -> pd.DataFrame:
    """Marks layers as frozen or trainable and returns how many weights of each stage will learn.

    Call it before `compile`: what is trainable is read there, and later changes are ignored without a word.

    Args:
        model: a functional model with one input and one output; changed in place.
        unfreeze_from: the first stage that learns; None freezes all.
        batch_norm: "frozen" keeps every BatchNormalization layer as it was pretrained, scale, shift and
            statistics, also in the stages that learn; "train" lets those learn too. The choice is made layer
            by layer, since calling a network with `training=False` does not protect its statistics in `fit`.

    Returns:
        A DataFrame indexed by stage with the columns weights and trainable (counts of numbers).

    Raises:
        ValueError: unknown stage or unknown `batch_norm`.
    """
    if batch_norm not in ("frozen", "train"):
        raise ValueError(f'Expected `batch_norm` "frozen" or "train". Received {batch_norm!r}.')
    stages = _stages(model)
    first = len(stages) if unfreeze_from is None else _find_stage(model, unfreeze_from)
    rows = {}
    model.trainable = True  # a model that is frozen as a whole hides what its layers say
    for index, (stage, segments) in enumerate(stages.items()):
        layers = [layer for part, _ in segments for layer in part if isinstance(layer, keras.Layer)]
        for leaf in (leaf for layer in layers for leaf in _leaves(layer)):
            frozen_norm = batch_norm == "frozen" and isinstance(leaf, keras.layers.BatchNormalization)
            leaf.trainable = index >= max(first, 1) and not frozen_norm
        rows[stage] = {
            "weights": sum(layer.count_params() for layer in layers),
            "trainable": sum(int(np.prod(weight.shape)) for layer in layers for weight in layer.trainable_weights),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("stage")


def _leaves(layer: keras.Layer) -> list[keras.Layer]:
    """Returns the layer, or the layers inside it if it is a container."""
    inner = layer._flatten_layers(include_self=False)
    return list(inner) or [layer]


def copy_weights(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns a copy of every weight and statistic, by its path ("conv1_bn/moving_mean")."""
    return {variable.path: np.array(variable) for variable in model.weights}


def audit_weights(model: keras.Model, before: dict[str, np.ndarray]) -> pd.DataFrame:
    """Returns, for each stage, how many tensors were meant to learn, and how many changed.

    Args:
        model: the network after training.
        before: `copy_weights(model)` from before it.

    Returns:
        A DataFrame indexed by stage with counts of tensors: all of them, trainable, changed (in any bit),
        frozen_changed (a fault) and trainable_unchanged (no gradient arrived there, or nothing was trained).
    """
    rows = {}
    for stage, segments in _stages(model).items():
        layers = [layer for part, _ in segments for layer in part if isinstance(layer, keras.Layer)]
        trainable = {id(weight) for layer in layers for weight in layer.trainable_weights}
        weights = [weight for layer in layers for weight in layer.weights]
        learns = np.array([id(weight) in trainable for weight in weights], dtype=bool)
        changed = np.array([not np.array_equal(before[w.path], np.array(w)) for w in weights], dtype=bool)
        rows[stage] = {
            "tensors": len(weights),
            "trainable": int(learns.sum()),
            "changed": int(changed.sum()),
            "frozen_changed": int((~learns & changed).sum()),
            "trainable_unchanged": int((learns & ~changed).sum()),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("stage")
