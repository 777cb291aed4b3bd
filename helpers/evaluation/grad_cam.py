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


def cam_stages(model) -> list[str]:
    """Returns the stages that `grad_cam` works at, from input to output: those with a feature map larger than 1x1.

    A Vision Transformer has none, as its layers hold tokens.
    """
    return list(_find_maps(model))


def grad_cam(
    model, images: np.ndarray | StoredArray, *, stage: str | None = None, classes: int | np.ndarray | None = None
) -> np.ndarray:
    """Returns a heat map for each image, float32 (images, height, width), as large as the image, scaled to 0..1.

    The largest value of each map is 1. A map is all zeros where nothing at this stage speaks for the class. Logits
    are explained, not probabilities, whose gradient vanishes near 1.

    Args:
        model: a functional Keras classifier without networks as layers, such as `attach_head` makes.
        images: what the model takes: uint8 (images, height, width, 3), in memory or stored.
        stage: one of `cam_stages(model)`, whose last feature map is taken. Late stages know more about classes, early
            ones are finer. None for the last one of at least 5 x 5 cells, or else the one with most.
        classes: the number of the class to explain, or one for each image; None for the predicted class.

    Raises:
        ValueError: the network has no such stage, or no feature map there.
    """
    import tensorflow as tf  # here: tables do not wait for it

    from helpers._keras import keras
    from helpers.backbones.features import logits_tensor

    boundary = _find_map(model, stage)
    prefix, suffix = keras.Model(model.inputs[0], boundary), keras.Model(boundary, logits_tensor(model))
    numbers = None if classes is None else np.broadcast_to(classes, len(images))
    maps = np.empty(images.shape[:3], "float32")
    with tqdm(total=len(images), desc="Grad-CAM", unit="image", leave=False, file=progress_file(), delay=1) as bar:
        for start in range(0, len(images), _BATCH):
            batch = slice(start, start + _BATCH)
            features = prefix(np.asarray(images[batch]), training=False)
            with tf.GradientTape() as tape:
                tape.watch(features)  # by itself it watches weights alone
                logits = suffix(features, training=False)
                chosen = tf.argmax(logits, axis=1) if numbers is None else tf.constant(numbers[batch])
                of_class = tf.gather(logits, chosen, axis=1, batch_dims=1)
            # each channel weighs as much as the logit grows with it, on average over the map
            importance = tf.reduce_mean(tape.gradient(of_class, features), axis=(1, 2), keepdims=True)
            cam = tf.nn.relu(tf.reduce_sum(tf.cast(importance * features, "float32"), axis=-1, keepdims=True))
            maps[batch] = tf.image.resize(cam, images.shape[1:3])[..., 0]
            bar.update(len(features))
    largest = maps.max(axis=(1, 2), keepdims=True)
    return maps / np.where(largest > 0, largest, 1)


def _find_maps(model) -> dict:
    """Returns the last feature map of each stage that has one, a symbolic tensor (batch, height, width, channels)."""
    from helpers.backbones.stages import find_stages

    def is_map(shape: tuple) -> bool:
        return len(shape) == 4 and all(side is None or side > 1 for side in shape[1:3])

    stages, maps = find_stages(model), {}
    for name in list(stages)[1:]:  # the first holds the image itself
        for tensor in stages[name].boundaries:
            if is_map(tensor.shape):
                maps[name] = tensor
    return maps


def _find_map(model, stage: str | None):
    """Returns the feature map to explain at this stage."""
    maps = _find_maps(model)
    if not maps:
        raise ValueError(
            f"Expected a network with feature maps larger than 1x1 behind its input. {model.name!r} has none, so "
            f"Grad-CAM cannot tell places apart."
        )
    if stage is not None:
        if stage not in maps:
            raise ValueError(
                f"Expected `stage` with a feature map, one of {', '.join(maps)}. Received {stage!r}: choose another."
            )
        return maps[stage]

    def usable_side(tensor) -> int:
        return min(_LEAST_SIDE, *(side or _LEAST_SIDE for side in tensor.shape[1:3]))

    return max(reversed(maps.values()), key=usable_side)  # the last one, of equal ones


def locate_evidence(model, images: np.ndarray | StoredArray, *, stage: str = "auto") -> np.ndarray | None:
    """Returns the maps of `grad_cam` for the predicted classes, or None for a network without spatial feature maps.

    Args:
        model: as for `grad_cam`.
        images: likewise.
        stage: whose feature maps are used: a name in `cam_stages(model)`, or "auto" for the choice of `grad_cam`.
    """
    if not cam_stages(model):
        return None
    return grad_cam(model, images, stage=None if stage == "auto" else stage)
