"""Networks of one's own: Keras files, and presets of KerasHub."""

import difflib
import inspect
import zipfile
from functools import partial
from pathlib import Path

from helpers import resolve_path, silent_stderr
from helpers._keras import keras

_PLAIN = (bool, int, float, str, tuple, list, type(None))
INSTALL_HUB = 'python -m pip install -c requirements.txt -e ".[hub]"'


def load_model(path: str | Path, *, parameter: str = "path") -> keras.Model:
    """Returns the model in a `.keras` file as it is, also one with layers of KerasHub; no code from the file is run.

    Args:
        path: the file; a relative path is resolved from the repository's root.
        parameter: what the caller calls it, for the errors: a FileNotFoundError, or a ValueError where the file is no
            Keras model, or KerasHub is needed and not installed.
    """
    path = existing_file(parameter, path)
    _import_what_it_needs(path)
    try:
        return mend_layers(keras.models.load_model(path, compile=False, safe_mode=True))
    except Exception as error:
        raise ValueError(
            f"Expected `{parameter}` to be a Keras model. {path} cannot be loaded: {first_line(error)} It may be cut "
            f"off, made by a newer Keras, or have Lambda layers or own classes, which would run code from the file."
        ) from None


def _import_what_it_needs(path: Path) -> None:
    """Imports KerasHub where a file has layers of it: Keras finds their classes only once that has happened."""
    try:
        with zipfile.ZipFile(path) as file:
            configuration = file.read("config.json").decode(errors="replace")
    except (OSError, KeyError, zipfile.BadZipFile):
        return  # loading it says what is wrong
    if "keras_hub" in configuration:
        _import_hub(f"{path} has layers of KerasHub")


def _import_hub(reason: str):
    try:
        with silent_stderr():  # TensorFlow's text library greets, too
            import keras_hub
    except ImportError as error:
        raise ValueError(f"{reason}, which is not installed ({error}). Install it: {INSTALL_HUB}") from None
    return keras_hub


def mend_layers(model: keras.Model) -> keras.Model:
    """Returns the model, whose layers of KerasHub now say all that they can be made from again, as a file needs it.

    `get_config` of such a layer often names what its constructor does not take, or lacks what it takes (ViT's,
    DeiT's and others' in KerasHub 0.32).
    """
    for layer in model.layers:
        if type(layer).__module__.startswith("keras_hub."):
            taken = inspect.signature(type(layer).__init__).parameters.keys() - {"self", "kwargs"}
            config = keras.Layer.get_config(layer)
            config |= {name: getattr(layer, name) for name in taken if isinstance(getattr(layer, name, ...), _PLAIN)}
            layer.get_config = partial(dict, config)
    return model


def load_preset(backbone: str) -> tuple[keras.Model, tuple | None]:
    """Returns a preset of KerasHub, and the scale and offset of its image converter (None if it has none)."""
    preset = backbone.removeprefix("hub:")
    hub = _import_hub(f"{backbone} is a network of KerasHub")
    folder = resolve_path(preset)
    if folder.is_dir():
        preset = str(folder)
    elif "://" not in preset and any(sign in preset for sign in "/\\.~"):
        raise FileNotFoundError(
            f"The parameter `backbone` should name a preset of KerasHub or its folder. There is no folder {folder}."
        )
    try:
        network = hub.models.Backbone.from_preset(preset)
    except Exception as error:  # of the download, of KerasHub, of Keras
        nearest = difflib.get_close_matches(preset, hub.models.Backbone.presets, n=1)
        hint = f"Did you mean {nearest[0]!r}? " if nearest and nearest[0] != preset else ""
        raise ValueError(
            f"The preset {preset!r} of KerasHub could not be loaded: {first_line(error)} {hint}Offline, name the "
            f'folder of one that was downloaded elsewhere (config.json, model.weights.h5): "hub:path/to/folder".'
        ) from None
    try:
        converter = hub.layers.ImageConverter.from_preset(preset)
    except Exception:  # KerasHub has no question for it, and its errors are of many kinds
        return network, None
    return network, (1.0 if converter.scale is None else converter.scale, converter.offset or 0.0)


def existing_file(parameter: str, path: str | Path) -> Path:
    """Returns the absolute path of a file that a parameter names, or raises a FileNotFoundError."""
    resolved = resolve_path(path)
    if not resolved.is_file():
        raise FileNotFoundError(f"The parameter `{parameter}` should name a file. There is no file {resolved}.")
    return resolved


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, as a sentence."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    line = line.split(" Example error message")[0]  # Keras goes on with one of many
    return line if line.endswith(".") else f"{line}."
