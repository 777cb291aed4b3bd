"""A classifier is one file."""

import json
import os
import uuid
import zipfile
from pathlib import Path

import numpy as np

from helpers import resolve_path
from helpers._keras import keras, on_all_devices
from helpers.backbones import load_model
from helpers.training.activations import compute_activations


def save_model(
    model: keras.Model, path: str | Path, *, class_names: list[str], resize: str, sample: np.ndarray | None = None
) -> None:
    """Saves the classifier as one `.keras` file, whole or not at all, with what a prediction needs besides.

    The file needs nothing but Keras to be loaded. The settings are one more member of it, `classifier.json`,
    which Keras does not look at: see `load_settings`.

    Args:
        model: from raw images to probabilities.
        path: of the `.keras` file.
        class_names: in the order of the probabilities.
        resize: how images were brought to the model's size: "crop", "pad" or "stretch".
        sample: a few images, uint8 (images, height, width, 3): before the file gets its name, it is loaded again
            and has to give the same probabilities for them.

    Raises:
        ValueError: what was saved is not the same model.
    """
    settings = {"class_names": class_names, "resize": resize}
    path = resolve_path(path)
    partial = path.with_name(f"partial-{uuid.uuid4().hex}-{path.name}")
    try:
        # A copy of the graph alone: what the model was compiled with needs `helpers` to be loaded again.
        with on_all_devices():
            keras.Model(model.inputs[0], model.outputs[0], name=model.name).save(partial)
        with zipfile.ZipFile(partial, "a") as archive:
            archive.writestr("classifier.json", json.dumps(settings, ensure_ascii=False))
        if sample is not None:
            difference = np.abs(compute_activations(load_model(partial), sample) - compute_activations(model, sample))
            if difference.max() > 1e-4:
                raise ValueError(
                    f"{path.name} was not saved: what was written gives other probabilities, by up to "
                    f"{difference.max():.2g}. A layer does not come out of its own settings (`get_config`)."
                )
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
    path = resolve_path(path)
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
