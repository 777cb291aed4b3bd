"""What values a pretrained network expects, and whether those that it gets look like them."""

import re
import sys
from functools import partial
from typing import NamedTuple

import numpy as np

from helpers._keras import keras
from helpers.backbones.graphs import find_nodes

PREPROCESSING = {
    "tf": "-1..1",
    "torch": "standardised with ImageNet's means and deviations (about -2..2.6)",
    "caffe": "centred BGR (about -124..151)",
    "unit": "0..1",
    "none": "0..255",
}
"""The values that a pretrained network may expect, by the names that Keras uses (and "unit")."""

FITS = 0.15
"""The largest distance of statistics that fit. With two networks' ImageNet weights, photos of two kinds come to 0.02,
the same photos inverted or in grey to 0.1 at most, and every wrong preprocessing to 0.29 or more."""


def preprocess(images, mode: str | tuple):
    """Returns preprocessed images. Built-in layers only, so that a saved file needs nothing but Keras.

    Args:
        images: a tensor (batch, height, width, 3), RGB in 0..255, symbolic or not.
        mode: a key of `PREPROCESSING`, or scale and offset, each one number or one for each channel.
    """
    if mode == "caffe":
        images = keras.ops.flip(images, axis=-1)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    known = {
        "tf": (1 / 127.5, -1.0),
        "torch": ((1 / (255 * deviation)).tolist(), (-mean / deviation).tolist()),
        "caffe": (1.0, [-103.939, -116.779, -123.68]),
        "unit": (1 / 255, 0.0),
        "none": (1.0, 0.0),
    }
    scale, offset = known[mode] if isinstance(mode, str) else mode
    return keras.layers.Rescaling(scale, offset, name="preprocessing")(images)


def application_preprocessing(name: str) -> str:
    """Returns the key of `PREPROCESSING` that does what Keras does for one of its networks ("ResNet50": "caffe")."""
    own = sys.modules[getattr(keras.applications, name).__module__].preprocess_input
    pixels = np.array([[[[0, 10, 20], [100, 200, 255]]]], "float32")
    expected = own(pixels.copy())
    return next(mode for mode in PREPROCESSING if np.allclose(preprocess(pixels, mode), expected, atol=1e-3))


class PreprocessingCheck(NamedTuple):
    """What `check_preprocessing` found."""

    agrees: bool | None  # False where the values of another preprocessing fit and these do not, None if unknown
    message: str
    distances: dict[str, float]  # from the stored statistics, by preprocessing; "in place" for one without a name


def check_preprocessing(network: keras.Model, images, *, most: int = 64) -> PreprocessingCheck:
    """Returns whether images, preprocessed as they are, look like those that the network was pretrained on.

    BatchNormalization layers remember each channel's mean and variance in training; the first three are fed with the
    images. Where no preprocessing fits, the images may be unlike the network's (dark, say), and nothing is claimed.

    Args:
        network: from `load_backbone`, before training. Of others, only the preprocessing in place is looked at.
        images: uint8 (images, height, width, 3), in memory or stored.
        most: at most so many images are looked at, spread over all.
    """
    step = max(1, len(images) // most)
    sample = np.asarray(images[: step * most : step])
    nodes = [n for n in find_nodes(network) if isinstance(n.operation, keras.layers.BatchNormalization)][:3]
    stored = [(np.array(n.operation.moving_mean), np.array(n.operation.moving_variance)) for n in nodes]
    unknown = "It cannot be checked whether the preprocessing is the right one: the network has "
    if not nodes:
        return PreprocessingCheck(None, unknown + "no BatchNormalization layer.", {})
    if all((mean == 0).all() and (variance == 1).all() for mean, variance in stored):
        return PreprocessingCheck(None, unknown + "never been trained.", {})
    scalings = [n for n in find_nodes(network) if isinstance(n.operation, keras.layers.Rescaling)]
    scaled = [n.outputs[0] for n in scalings if re.fullmatch(r"preprocessing(_\d+)?", n.operation.name)]
    entry = scaled[0] if scaled else network.inputs[0]
    rest, present = keras.Model(entry, [n.input_tensors[0] for n in nodes]), keras.Model(network.inputs[0], entry)
    ways = {mode: partial(preprocess, mode=mode) for mode in PREPROCESSING} if scaled else {}
    some = sample[:2]
    mode = next((mode for mode, way in ways.items() if np.allclose(present(some), way(some), atol=1e-3)), "in place")
    ways |= {mode: present} if mode == "in place" else {}
    return _interpret(mode, {name: _distance(rest, way, sample, stored) for name, way in ways.items()})


def _distance(part: keras.Model, prepare, images: np.ndarray, stored: list) -> float:
    """Returns how far what the images give at a part's outputs lies from the stored means and variances.

    It is the Kullback-Leibler divergence of two normal distributions, the one seen from the one stored: the median
    over a layer's channels (a few are dead in every network, and far off), and of the layers the largest.
    """
    sums = [[0, 0, 0] for _ in stored]
    for start in range(0, len(images), 16):
        outputs = part(prepare(images[start : start + 16]), training=False)
        for number, output in enumerate(outputs if isinstance(outputs, list) else [outputs]):
            values = keras.ops.convert_to_numpy(output).astype("float64").reshape(-1, output.shape[-1])
            new = (len(values), values.sum(axis=0), (values**2).sum(axis=0))
            sums[number] = [before + more for before, more in zip(sums[number], new, strict=True)]
    distances = []
    for (count, total, squares), (mean, variance) in zip(sums, stored, strict=True):
        seen, variance = total / count, np.maximum(variance, 1e-12)
        spread = np.maximum(squares / count - seen**2, 1e-12)
        divergence = ((spread + (seen - mean) ** 2) / variance - 1 - np.log(spread / variance)) / 2
        distances.append(np.median(divergence))
    return round(float(max(distances)), 3)


def _interpret(mode: str, distances: dict[str, float]) -> PreprocessingCheck:
    """Returns the finding: up to `FITS` values fit; another preprocessing is named where only that one fits."""
    here, best = distances[mode], min(distances, key=distances.get)
    name = f"{mode!r}" if mode in PREPROCESSING else "the one in place"
    if here <= FITS:
        message = f"The preprocessing agrees with the network: {name} is at distance {here:.2f} (up to {FITS} fits)."
        return PreprocessingCheck(True, message, distances)
    if distances[best] <= FITS:
        given, wanted = PREPROCESSING.get(mode, "other"), PREPROCESSING[best]
        message = (
            f"This looks like {given} input to a network trained on {wanted}: what its first BatchNormalization "
            f"layers receive is at distance {here:.2f} from their stored statistics, and at {distances[best]:.2f} "
            f'with preprocessing="{best}" (up to {FITS} fits).'
        )
        return PreprocessingCheck(False, message, distances)
    message = (
        f"It cannot be told whether the preprocessing is the right one: {name} is at distance {here:.2f} from the "
        f"statistics that the network has stored, and no other fits (up to {FITS}). The images may be unlike those "
        f"that it was trained on, or it expects a preprocessing other than {', '.join(map(repr, PREPROCESSING))}."
    )
    return PreprocessingCheck(None, message, distances)
