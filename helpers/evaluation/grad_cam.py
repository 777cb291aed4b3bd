"""Where in an image the network sees its class: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391).

The network is cut at a feature map, and the gradient is taken of its second part, with respect to that part's input.
So it does not matter which weights are frozen.
"""

import numpy as np
from tqdm import tqdm

from helpers import progress_file
from helpers.data.stores import StoredArray

_BATCH = 8  # the gradient keeps all feature maps in memory, and more images at once are hardly faster on a CPU
_LEAST_SIDE = 5  # cells along a side of the default map: on a smaller one, nearly all are at the edge


def locate_evidence(model, images: np.ndarray | StoredArray, *, stage: str = "auto") -> np.ndarray | None:
    """Returns a heat map of the predicted class for each image, float32 (images, height, width), scaled to 0..1.

    The largest value of each map is 1. A map is all zeros where nothing at this stage speaks for the class. Logits
    are explained, not probabilities, whose gradient vanishes near 1. None for a network without feature maps larger
    than 1 x 1, such as a Vision Transformer, whose layers hold tokens.

    Args:
        model: a functional Keras classifier without networks as layers, such as `attach_head` makes.
        images: what the model takes: uint8 (images, height, width, 3), in memory or stored.
        stage: one with a feature map (`feature_maps`), else a ValueError. Late stages know more about classes, early
            ones are finer. "auto" for the last one of at least 5 x 5 cells, or else the one with most.
    """
    import tensorflow as tf  # here: tables do not wait for it

    from helpers._keras import keras
    from helpers.backbones.features import logits_tensor

    known = feature_maps(model)
    if not known:
        return None
    if stage not in known and stage != "auto":
        raise ValueError(f"Expected `stage` with a feature map, one of {', '.join(known)}. Received {stage!r}.")
    boundary = known[stage] if stage in known else max(reversed(known.values()), key=_usable_side)
    prefix, suffix = keras.Model(model.inputs[0], boundary), keras.Model(boundary, logits_tensor(model))
    maps = np.empty(images.shape[:3], "float32")
    with tqdm(total=len(images), desc="Grad-CAM", unit="image", leave=False, file=progress_file(), delay=1) as bar:
        for start in range(0, len(images), _BATCH):
            batch = slice(start, start + _BATCH)
            features = prefix(np.asarray(images[batch]), training=False)
            with tf.GradientTape() as tape:
                tape.watch(features)  # by itself it watches weights alone
                predicted = tf.reduce_max(suffix(features, training=False), axis=1)
            # each channel weighs as much as the logit grows with it, on average over the map
            importance = tf.reduce_mean(tape.gradient(predicted, features), axis=(1, 2), keepdims=True)
            cam = tf.nn.relu(tf.reduce_sum(tf.cast(importance * features, "float32"), axis=-1, keepdims=True))
            maps[batch] = tf.image.resize(cam, images.shape[1:3])[..., 0]
            bar.update(len(features))
    largest = maps.max(axis=(1, 2), keepdims=True)
    return maps / np.where(largest > 0, largest, 1)


def feature_maps(model) -> dict:
    """Returns the last feature map of each stage that has one, a symbolic tensor (batch, height, width, channels)."""
    from helpers.backbones.stages import find_stages

    stages, maps = find_stages(model), {}
    for name in list(stages)[1:]:  # the first holds the image itself
        for tensor in stages[name].boundaries:
            if len(tensor.shape) == 4 and all(side is None or side > 1 for side in tensor.shape[1:3]):
                maps[name] = tensor
    return maps


def _usable_side(tensor) -> int:
    return min(_LEAST_SIDE, *(side or _LEAST_SIDE for side in tensor.shape[1:3]))
