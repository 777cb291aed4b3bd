"""A classifier is one file."""

import json
import os
import zipfile
from pathlib import Path

from helpers._keras import keras, on_all_devices
from helpers.backbones import load_model


def save_model(model: keras.Model, path: str | Path, *, class_names: list[str], resize: str) -> None:
    """Saves the classifier as one `.keras` file, whole or not at all, with what a prediction needs besides.

    The file needs nothing but Keras to be loaded. The settings are one more member of it, `classifier.json`,
    which Keras does not look at: see `load_settings`.

    Args:
        model: from raw images to probabilities.
        path: of the `.keras` file.
        class_names: in the order of the probabilities.
        resize: how images were brought to the model's size: "crop", "pad" or "stretch".
    """
    settings = {"class_names": class_names, "resize": resize}
    path = Path(path)
    partial = path.with_name(f"partial-{os.getpid()}-{path.name}")
    try:
        model.save(partial)
        with zipfile.ZipFile(partial, "a") as archive:
            archive.writestr("classifier.json", json.dumps(settings, ensure_ascii=False))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_settings(path: str | Path) -> dict:
    """Returns what `save_model` kept with a classifier, besides the model.

    Returns:
        class_names, a list in the order of the model's probabilities, and resize, the rule by which images have
        to be brought to its size (`helpers.data.read_pixels`).

    Raises:
        ValueError: the file is not one that `save_model` wrote.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("classifier.json"))
    except (KeyError, zipfile.BadZipFile):
        raise ValueError(f"Expected a classifier saved by 02 or 03. {path} holds no class names.") from None


def load_classifier(path: str | Path) -> tuple[keras.Model, dict]:
    """Returns a classifier and its settings (`load_settings`), made for all GPUs of this machine.

    Raises:
        ValueError: the file is not one that `save_model` wrote.
    """
    settings = load_settings(path)
    with on_all_devices():
        return load_model(path), settings
