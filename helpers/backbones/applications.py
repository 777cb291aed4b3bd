"""Networks of keras.applications, with random weights, ImageNet's or those of a file."""

import difflib
import warnings

import numpy as np

from helpers._keras import keras
from helpers.backbones.files import existing_file, first_line

_SIZES = {  # where the images that a network was pretrained on were not 224 pixels wide
    "InceptionV3": 299, "InceptionResNetV2": 299, "Xception": 299, "NASNetLarge": 331,
    "EfficientNetB1": 240, "EfficientNetB2": 260, "EfficientNetB3": 300, "EfficientNetB4": 380,
    "EfficientNetB5": 456, "EfficientNetB6": 528, "EfficientNetB7": 600,
    "EfficientNetV2B1": 240, "EfficientNetV2B2": 260, "EfficientNetV2B3": 300,
    "EfficientNetV2S": 384, "EfficientNetV2M": 480, "EfficientNetV2L": 480,
}  # fmt: skip


def application_names() -> list[str]:
    """Returns the names of the networks in keras.applications."""
    return [key for key, value in vars(keras.applications).items() if key[0].isupper() and callable(value)]


def load_application(name: str, weights: str | None, image_size: int) -> keras.Model:
    """Returns a network of keras.applications without its head; `load_backbone` says what it raises."""
    if name.lower().endswith((".h5", ".hdf5")):
        raise ValueError(
            f"Expected `backbone` to be a network of keras.applications or a .keras file. Received {name!r}. A whole "
            f"model becomes one by keras.models.load_model({name!r}, compile=False)"
            f".save({name.rpartition('.')[0] + '.keras'!r}); a file of weights goes to `weights`."
        )
    known = {key.lower(): key for key in application_names()}
    if name not in known.values():
        nearest = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0)
        raise ValueError(
            f"Expected `backbone` to be a network of keras.applications, a .keras file or a preset of KerasHub "
            f'("hub:..."). Received {name!r}. Did you mean {known[nearest[0]]!r}?'
        )
    build = getattr(keras.applications, name)
    size = image_size or _SIZES.get(name, 224)
    try:
        network = build(include_top=False, weights=None, input_shape=(size, size, 3))
    except ValueError as error:
        raise ValueError(f"{name} does not take `image_size` {size} (0: its own). Keras says: {error}") from None
    if weights == "imagenet":
        try:
            return build(include_top=False, weights="imagenet", input_shape=(size, size, 3))
        except Exception as error:  # Keras raises a plain Exception where the download fails
            raise ValueError(
                f"The ImageNet weights of {name} could not be downloaded ({first_line(error)}). Offline, name a file "
                f'that was downloaded elsewhere: weights="path/to/file.weights.h5" (make run WEIGHTS=path).'
            ) from None
    if weights not in (None, "None"):
        _load_weights(network, name, weights)
    return network


def _load_weights(network: keras.Model, name: str, weights: str) -> None:
    """Loads a weights file, and makes sure that it was all there and for this network."""
    path = existing_file("weights", weights)
    before = [np.array(variable) for variable in network.weights]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network.load_weights(path)
    except Exception as error:  # h5py and Keras raise many kinds
        raise ValueError(
            f"Expected `weights` to be a weights file of {name}. {path} cannot be loaded: {first_line(error)} "
            f"Perhaps it is another network's or of another width (alpha), or cut off: download it again."
        ) from None
    # Keras only warns where a file lacks a layer. A random kernel equals no pretrained one by chance; a bias may.
    pairs = zip(network.weights, before, strict=True)
    same = [variable.path for variable, old in pairs if old.ndim > 1 and np.array_equal(old, variable)]
    if same:
        raise ValueError(
            f"Expected `weights` to be a weights file of {name}. {path} brings nothing for {len(same)} of its "
            f"kernels, among them {same[0]}: it is another network's."
        )
