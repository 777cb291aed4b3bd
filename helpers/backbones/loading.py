"""A pretrained network from wherever it is, as one flat graph from raw images to features."""

import difflib
import inspect
import re
import warnings
import zipfile
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np

from helpers import resolve_path, silent_stderr
from helpers._keras import keras, on_all_devices
from helpers.backbones.features import features_tensor
from helpers.backbones.graphs import all_layers, call, check_graph, find_nodes, flatten, free_name, pool
from helpers.backbones.preprocessing import PREPROCESSING, application_preprocessing, preprocess

_SIZES = {  # where the images that a network was pretrained on were not 224 pixels wide
    "InceptionV3": 299, "InceptionResNetV2": 299, "Xception": 299, "NASNetLarge": 331,
    "EfficientNetB1": 240, "EfficientNetB2": 260, "EfficientNetB3": 300, "EfficientNetB4": 380,
    "EfficientNetB5": 456, "EfficientNetB6": 528, "EfficientNetB7": 600,
    "EfficientNetV2B1": 240, "EfficientNetV2B2": 260, "EfficientNetV2B3": 300,
    "EfficientNetV2S": 384, "EfficientNetV2M": 480, "EfficientNetV2L": 480,
}  # fmt: skip


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
        values = ", ".join(f"{name!r} for {values}" for name, values in PREPROCESSING.items())
        raise ValueError(f'Expected `preprocessing` "auto" or {values}. Received {preprocessing!r}.')
    if image_size < 0:
        raise ValueError(f"Expected `image_size` above 0, or 0 for the network's own. Received {image_size}.")
    own = backbone.startswith("hub:") or backbone.endswith(".keras")
    whole, known = (_load_own if own else _load_application)(backbone, weights, image_size)
    if features_from != "auto":
        tensor = _output_of(whole, features_from)
    else:
        tensor = features_tensor(whole) if own else whole.outputs[0]
    network = keras.Model(whole.inputs[0], tensor)
    mode = _choose_preprocessing(network, backbone, preprocessing, known)
    model = _from_raw_images(network, mode, name=re.sub(r"\W", "_", Path(backbone.removeprefix("hub:")).stem))
    if own and weights in (None, "None"):
        _draw_weights(model)
    kept = {operation.name for operation in network.operations}
    left_out = [layer.name for layer in whole.layers if layer.name not in kept]
    model.left_out = ", ".join(left_out if len(left_out) < 6 else [*left_out[:5], f"and {len(left_out) - 5} more"])
    return model


# ---- networks of keras.applications


def application_names() -> list[str]:
    """Returns the names of the networks in keras.applications."""
    return [key for key, value in vars(keras.applications).items() if key[0].isupper() and callable(value)]


def _load_application(name: str, weights: str | None, image_size: int) -> tuple[keras.Model, str]:
    """Returns a network of keras.applications without its head, and the key of its preprocessing."""
    known = {key.lower(): key for key in application_names()}
    if name not in known.values():
        nearest = known[difflib.get_close_matches(name.lower(), known, n=1, cutoff=0)[0]]
        kept = str(Path(name).with_suffix(".keras"))
        of_h5 = "Weights go to `weights`; a whole model is brought to the other format by "
        of_h5 += f"keras.models.load_model({name!r}, compile=False).save({kept!r})."
        hint = of_h5 if name.endswith((".h5", ".hdf5")) else f"Did you mean {nearest!r}?"
        raise ValueError(
            f"Expected `backbone` to be a network of keras.applications, a .keras file or a preset of KerasHub "
            f'("hub:..."). Received {name!r}. {hint}'
        )
    size = image_size or _SIZES.get(name, 224)
    build = partial(getattr(keras.applications, name), include_top=False, input_shape=(size, size, 3))
    with explained(f"{name} does not take `image_size` {size} (0: its own)"):
        network = build(weights=None)
    if weights == "imagenet":
        advice = 'Offline, name a file that was downloaded elsewhere: weights="path/to/file.weights.h5".'
        with explained(f"The ImageNet weights of {name} could not be downloaded", advice):
            network = build(weights="imagenet")
    elif weights not in (None, "None"):
        _load_weights(network, name, weights)
    return network, application_preprocessing(name)


def _load_weights(network: keras.Model, name: str, weights: str) -> None:
    """Loads a weights file, and makes sure that it was all there and for this network."""
    path = existing_file("weights", weights)
    before = [np.array(variable) for variable in network.weights]
    wrong = f"Expected `weights` to be a weights file of {name}. Received {path}"
    advice = "It may be another network's, of another width (alpha), or cut off: download it again."
    with explained(wrong, advice), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.load_weights(path)
    # Keras only warns where a file lacks a layer. A random kernel equals no pretrained one by chance; a bias may.
    pairs = zip(network.weights, before, strict=True)
    same = [variable.path for variable, old in pairs if old.ndim > 1 and np.array_equal(old, variable)]
    if same:
        raise ValueError(f"{wrong}: it brings nothing for {len(same)} of its kernels, among them {same[0]}.")


# ---- networks of one's own: Keras files and presets of KerasHub


def load_model(path: str | Path, *, parameter: str = "path") -> keras.Model:
    """Returns the model in a `.keras` file as it is, also one with layers of KerasHub; no code from the file is run.

    Args:
        path: the file; a relative path is resolved from the repository's root.
        parameter: what the caller calls it, for the errors: a FileNotFoundError, or a ValueError where the file is no
            Keras model, or KerasHub is needed and not installed.
    """
    path = existing_file(parameter, path)
    with suppress(OSError, KeyError, zipfile.BadZipFile), zipfile.ZipFile(path) as file:  # loading says what is wrong
        if b"keras_hub" in file.read("config.json"):  # Keras finds its classes only once it is imported
            _import_hub(f"{path} has layers of KerasHub")
    advice = (
        "It may be cut off, made by a newer Keras, or have Lambda layers or own classes: no code from files is run."
    )
    with explained(f"Expected `{parameter}` to be a Keras model. {path} cannot be loaded", advice):
        return _mend_layers(keras.models.load_model(path, compile=False, safe_mode=True))


def _import_hub(reason: str):
    install = 'Install it: python -m pip install -c requirements.txt -e ".[hub]"'
    with explained(f"{reason}, which is not installed", install), silent_stderr():  # TensorFlow's text library greets
        import keras_hub
    return keras_hub


def _mend_layers(model: keras.Model) -> keras.Model:
    """Returns the model, whose layers of KerasHub then say all that they can be made from again, as a file needs it.

    `get_config` of such a layer often names what its constructor does not take, or lacks what it takes (ViT's,
    DeiT's and others' in KerasHub 0.32).
    """
    plain = (bool, int, float, str, tuple, list, type(None))
    for layer in model.layers:
        if type(layer).__module__.startswith("keras_hub."):
            taken = inspect.signature(type(layer).__init__).parameters.keys() - {"self", "kwargs"}
            config = keras.Layer.get_config(layer)
            config |= {name: getattr(layer, name) for name in taken if isinstance(getattr(layer, name, ...), plain)}
            layer.get_config = partial(dict, config)
    return model


def _load_preset(backbone: str) -> tuple[keras.Model, tuple | None]:
    """Returns a preset of KerasHub, and the scale and offset of its image converter (None if it has none)."""
    preset = backbone.removeprefix("hub:")
    hub = _import_hub(f"{backbone} is a network of KerasHub")
    preset = str(resolve_path(preset)) if resolve_path(preset).is_dir() else preset
    nearest = difflib.get_close_matches(preset, hub.models.Backbone.presets, n=1)
    advice = f"Did you mean {nearest[0]!r}? " if nearest and nearest[0] != preset else ""
    advice += 'Offline, name the folder of one that was downloaded elsewhere: "hub:path/to/folder".'
    with explained(f"The preset {preset!r} of KerasHub could not be loaded", advice):
        network = hub.models.Backbone.from_preset(preset)
    try:
        converter = hub.layers.ImageConverter.from_preset(preset)
    except Exception:  # KerasHub has no question for it, and its errors are of many kinds
        return network, None
    return network, (1.0 if converter.scale is None else converter.scale, converter.offset or 0.0)


def _load_own(name: str, weights: str | None, image_size: int) -> tuple[keras.Model, tuple | None]:
    """Returns a flat copy of somebody's network, for images of one size, and its image converter if it has one."""
    if weights not in ("imagenet", None, "None"):
        raise ValueError(f"{name} brings its own weights. Received `weights` {weights!r}; leave it out.")
    hub = name.startswith("hub:")
    network, converter = _load_preset(name) if hub else (load_model(name, parameter="backbone"), None)
    with explained(f"{name} cannot be used as `backbone`"):
        check_graph(network)
    shape = network.inputs[0].shape
    if len(shape) != 4 or shape[-1] not in (3, None):
        raise ValueError(f"Expected `backbone` to take RGB images (height, width, 3). {name} takes {shape[1:]}.")
    size = (image_size or shape[1] or 224, image_size or shape[2] or 224)
    if shape[1:3] != size and None not in shape[1:3]:
        raise ValueError(
            f"{name} takes images of {shape[1]}x{shape[2]} pixels. Received `image_size` {image_size}; leave it at 0."
        )
    network = keras.Model(network.inputs[0], network.outputs[0])  # a preset's own class takes a dictionary
    return _flat_copy(network, name, size), converter


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
            expected, found = call(network, sample), call(flat, sample)
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


def _rebuild(model: keras.Model) -> keras.Model:
    """Returns a copy. Layers that were called twice have no single `output`; in the copy each call counts once."""
    _mend_layers(model)
    copy = keras.Model.from_config(model.get_config())
    copy.set_weights(model.get_weights())
    for layer in all_layers(copy):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with copies of its weights
    return _mend_layers(copy)


# ---- from raw images to features


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


def _choose_preprocessing(network: keras.Model, backbone: str, asked: str, known: str | tuple | None):
    """Returns the key of `PREPROCESSING`, or scale and offset; None for a network that takes raw images."""
    mode = known if asked == "auto" else asked
    raw = keras.backend.standardize_dtype(network.inputs[0].dtype) == "uint8"
    if mode and raw:
        raise ValueError(
            f"{backbone} takes raw images (uint8): its preprocessing is inside. Received `preprocessing` "
            f'{asked!r}; leave it at "auto".'
        )
    if not mode and not raw:
        raise ValueError(
            f"The parameter `preprocessing` has to be named for {backbone}, which does not say what values it was "
            f"trained on: {', '.join(map(repr, PREPROCESSING))}. Wrong values cost accuracy without any error."
        )
    return mode


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


def _draw_weights(model: keras.Model) -> None:
    """Gives the network random weights, but leaves what it knows of its images' values."""
    measured = [layer for layer in all_layers(model) if isinstance(layer, keras.layers.Normalization)]
    kept = {id(weight) for layer in measured for weight in layer.weights}
    for weight, drawn in zip(model.weights, keras.models.clone_model(model).weights, strict=True):
        if id(weight) not in kept:
            weight.assign(drawn)


# ---- files


def existing_file(parameter: str, path: str | Path) -> Path:
    """Returns the absolute path of a file that a parameter names, or raises a FileNotFoundError."""
    resolved = resolve_path(path)
    if not resolved.is_file():
        raise FileNotFoundError(f"The parameter `{parameter}` should name a file. There is no file {resolved}.")
    return resolved


@contextmanager
def explained(problem: str, advice: str = ""):
    """Makes any error in the block a ValueError: the problem, the error's first line, the advice."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{problem}: {first_line(error)} {advice}".rstrip()) from None


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, as a sentence."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    line = line.split(" Example error message")[0]  # Keras goes on with one of many
    return line if line.endswith(".") else f"{line}."
