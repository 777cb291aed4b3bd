"""A classifier is one file, and so is a backbone."""

import io
import json
import zipfile
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import numpy as np
import yaml

from helpers import resolve_path, whole_file, write_atomically
from helpers._keras import keras, on_all_devices
from helpers.backbones import features_tensor, load_model
from helpers.backbones.graphs import check_graph
from helpers.backbones.loading import existing_file, explained
from helpers.data.reading import FULL_WHITE, RESIZE_RULES
from helpers.data.stores import StoredArray
from helpers.training.activations import compute_activations, load_activations
from helpers.training.ood import OODDetector, fit_ood_detector

_SETTINGS, _DETECTOR = "classifier.json", "familiarity.npz"  # in a classifier's file; Keras does not look at them


def save_model(
    model: keras.Model,
    path: str | Path,
    *,
    class_names: list[str],
    resize: str,
    white: int | None = None,
    pixels: np.ndarray | StoredArray | None = None,
    labels: np.ndarray | None = None,
) -> None:
    """Saves the classifier as one `.keras` file, whole or not at all; to be loaded, it needs nothing but Keras.

    Args:
        model: from raw images to probabilities.
        path: of the `.keras` file.
        class_names: in the order of the probabilities.
        resize: how images were brought to the model's size: "crop", "pad" or "stretch".
        white: the value that became 255 in images of 16 bits, 1 to 65535; None for that of `pixels`, else 65535.
        pixels: the images that it learned from, uint8 (images, height, width, 3), for the file's `OODDetector`; and
            of 100 of them, the file has to give the same probabilities. None leaves out both.
        labels: of these images, int (images,).
    """
    white = getattr(pixels, "white", FULL_WHITE) if white is None else white
    settings = {"class_names": class_names, "resize": resize, "white": white}
    detector = None
    if pixels is not None:
        features = keras.Model(model.inputs[0], features_tensor(model), name=model.name)
        detector = fit_ood_detector(load_activations(features, pixels), labels)
    path = resolve_path(path)
    with _saving(model, path) as partial:
        with zipfile.ZipFile(partial, "a") as archive:
            archive.writestr(_SETTINGS, json.dumps(settings, ensure_ascii=False))
            if detector is not None:
                with archive.open(_DETECTOR, "w") as file:
                    np.savez(file, centres=detector.class_means, threshold=detector.threshold)
        if pixels is not None:
            sample = pixels[np.linspace(0, len(pixels) - 1, min(len(pixels), 100)).astype(int)]
            difference = np.abs(compute_activations(load_model(partial), sample) - compute_activations(model, sample))
            if difference.max() > 1e-4:
                raise ValueError(
                    f"{path.name} was not saved: what was written gives other probabilities, by up to "
                    f"{difference.max():.2g}. A layer's settings (`get_config`) do not describe it."
                )


def save_backbone(backbone: keras.Model, path: str | Path, about: dict) -> None:
    """Saves a network as one `.keras` file that `load_backbone` takes, and beside it, as `.yaml`, how it was made.

    Args:
        backbone: from raw images to features.
        path: of the `.keras` file; each of the two files is written whole or not at all.
        about: plain values, such as settings. Added are the date, the number of parameters and the versions.
    """
    path = resolve_path(path)
    packages = ("tensorflow", "keras", "numpy", "scipy", "matplotlib", "pillow")
    about = {name: value.item() if isinstance(value, np.generic) else value for name, value in about.items()}
    about |= {
        "date": str(np.datetime64("today")),
        "parameters": backbone.count_params(),
        "python": python_version(),
        "packages": {name: version(name) for name in packages},
    }
    with _saving(backbone, path):
        write_atomically(path.with_suffix(".yaml"), yaml.safe_dump(about, sort_keys=False))


@contextmanager
def _saving(model: keras.Model, path: Path):
    """Yields a file with the model that gets its name when the block ends, and is removed if that fails."""
    with whole_file(path) as partial:
        # A copy of the graph alone: what the model was compiled with needs `helpers` to be loaded again.
        with on_all_devices():
            keras.Model(model.inputs[0], model.outputs[0], name=model.name).save(partial)
        yield partial


def load_classifier(path: str | Path) -> tuple[keras.Model, dict]:
    """Returns a classifier and its settings (`load_settings`), made for all GPUs of this machine.

    A FileNotFoundError if there is no such file, a ValueError if it is damaged or not one that `save_model` wrote.
    """
    settings = load_settings(path)
    with on_all_devices():
        model = load_model(path)
    check_graph(model)
    image, classes = tuple(model.inputs[0].shape[1:]), len(settings["class_names"])
    if None in image or image[2:] != (3,) or tuple(model.outputs[0].shape[1:]) != (classes,) or classes < 2:
        raise ValueError(
            f"Expected a classifier from RGB images of one size to the probabilities of its {classes} classes, two "
            f"or more. Received one from {image} to {model.outputs[0].shape[1:]}, in {path}."
        )
    return model, settings


def load_settings(path: str | Path) -> dict:
    """Returns what `save_model` kept with a classifier, besides the model; raises as `load_classifier` does.

    Returns:
        class_names, a list in the order of the model's probabilities; resize, the rule by which images have to be
        brought to its size; and white, the value that becomes 255 in images of 16 bits (`helpers.data.read_pixels`).
    """
    path = existing_file("path", path)
    wrong = f"Expected a classifier that 02, 03 or 04 saved. {path} holds no class names"
    with explained(wrong, "It was cut off, or is another file."), zipfile.ZipFile(path) as archive:
        settings = json.loads(archive.read(_SETTINGS))
        class_names, resize = list(settings["class_names"]), settings["resize"]
        white = int(settings.get("white", FULL_WHITE))
        "".join(class_names).encode()  # texts, and such as a file can hold
        if resize not in RESIZE_RULES or not 0 < white <= FULL_WHITE:
            raise ValueError(f"resize {resize!r}, white {white}")
    return {"class_names": class_names, "resize": resize, "white": white}


def load_ood_detector(path: str | Path) -> OODDetector | None:
    """Returns the detector in a classifier's file; None if it has none. Raises as `load_classifier` does."""
    path = existing_file("path", path)
    with explained(f"Expected a whole file of a classifier. {path} is damaged"), zipfile.ZipFile(path) as archive:
        if _DETECTOR not in archive.namelist():
            return None
        with np.load(io.BytesIO(archive.read(_DETECTOR)), allow_pickle=False) as arrays:
            return OODDetector(arrays["centres"], arrays["threshold"])
