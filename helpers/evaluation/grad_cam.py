"""Where in an image the network sees its class: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391).

The maps of features at a boundary, weighted with how much the class's logit grows with each of them, on average
over the map. The network is cut there, and the maps are the input of its second part, whose gradient is taken: so it
does not matter what is frozen.
"""

import difflib

import numpy as np
from tqdm import tqdm

from helpers import progress_file
from helpers.data import StoredArray

_BATCH = 8
"""Images at once: what is kept for a gradient takes memory, and more images are hardly faster on a CPU."""


_PLACES = 5
"""Along a side of a map: with fewer, nearly all of them are at the edge."""


def cam_stages(model) -> list[str]:
    """Returns the stages that `grad_cam` works at, from input to output.

    Those are the stages that hold a boundary with a map: features at places, more than 1x1 of them. A vector of
    features has no places, and neither have a Vision Transformer's tokens, as its layers hold them.

    Args:
        model: a functional Keras model with one input and one output.

    Raises:
        ValueError: the model is not of that kind.
    """
    return list(_find_maps(model))


def grad_cam(
    model, images: np.ndarray | StoredArray, *, stage: str | None = None, classes: int | np.ndarray | None = None
) -> np.ndarray:
    """Returns where the network sees a class in each image, float32 (images, height, width), 0..1, as large as these.

    The largest value of each image is 1: the maps say where, and not how much. An image in which nothing at this
    stage speaks for the class gets zeros. Logits are explained, not probabilities: one that is nearly 1 does not
    change any more, and one can grow because another class becomes less likely.

    Args:
        model: a functional Keras classifier, such as `helpers.training.attach_head` makes. It need not be flat, but
            an inner network has no stages inside.
        images: what the model takes: uint8 (images, height, width, 3), in memory or stored.
        stage: a name in `cam_stages(model)`: the last map of features in it is taken. Late ones know more about
            classes, early ones are finer. None for the last one of at least 5 x 5 places, or else the one of most:
            with fewer, nearly all places lie at the edge of the picture.
        classes: the number of the class that is looked for, or one for each image; None for the predicted class.

    Raises:
        ValueError: no such stage, or one without a map; images that the model does not take; no such class.
    """
    import tensorflow as tf  # only here: tables and arrays do without it

    from helpers._keras import keras
    from helpers.backbones import logits_tensor

    boundary = _find_map(model, stage)
    if images.ndim != 4 or not all(
        size in (None, given) for size, given in zip(model.input_shape[1:], images.shape[1:], strict=False)
    ):
        raise ValueError(f"Expected `images`, one or more, of {model.input_shape[1:]} each. Received {images.shape}.")
    classes = _check_classes(classes, len(images), model.output_shape[-1])
    prefix, suffix = keras.Model(model.inputs[0], boundary), keras.Model(boundary, logits_tensor(model))
    maps = np.empty(images.shape[:3], "float32")
    with tqdm(total=len(images), desc="Grad-CAM", unit="image", leave=False, file=progress_file(), delay=1) as bar:
        for start in range(0, len(images), _BATCH):
            batch = slice(start, start + _BATCH)
            features = prefix(np.asarray(images[batch]), training=False)
            with tf.GradientTape() as tape:
                tape.watch(features)  # by itself it watches weights alone
                logits = suffix(features, training=False)
                chosen = tf.argmax(logits, axis=1) if classes is None else tf.constant(classes[batch])
                of_class = tf.gather(logits, chosen, axis=1, batch_dims=1)
            importance = tf.reduce_mean(tape.gradient(of_class, features), axis=(1, 2), keepdims=True)
            cam = tf.nn.relu(tf.reduce_sum(tf.cast(importance * features, "float32"), axis=-1, keepdims=True))
            maps[batch] = tf.image.resize(cam, images.shape[1:3])[..., 0]
            bar.update(len(features))
    largest = maps.max(axis=(1, 2), keepdims=True)
    return maps / np.where(largest > 0, largest, 1)


def _find_maps(model) -> dict:
    """Returns the last map in each stage that has one, a symbolic tensor (batch, height, width, features)."""
    from helpers.backbones import find_stages

    stages, maps = find_stages(model), {}
    for name in list(stages)[1:]:  # the first holds the image itself
        found = [tensor for tensor in stages[name].boundaries if _is_map(tensor.shape)]
        if found:
            maps[name] = found[-1]
    return maps


def _is_map(shape: tuple) -> bool:
    return len(shape) == 4 and all(side is None or side > 1 for side in shape[1:3])


def _find_map(model, stage: str | None):
    from helpers.backbones import find_stages

    maps = _find_maps(model)
    if not maps:
        raise ValueError(
            f"Expected a network with maps of features, larger than 1x1, at a boundary behind its input. Received "
            f"{model.name!r}, where none of the stages {', '.join(find_stages(model))} has any: Grad-CAM has no "
            f"places to tell apart."
        )
    if stage is None:
        return max(
            reversed(maps.values()), key=lambda found: min(_PLACES, *(side or _PLACES for side in found.shape[1:3]))
        )
    if stage not in maps:
        stages = find_stages(model)
        works = f"It works at {', '.join(maps)}."
        if stage in stages:
            shape = "x".join(str(size) for size in stages[stage].output.shape[1:])
            what = "holds nothing but the image" if stage == list(stages)[0] else f"gives {shape} and no such map"
            raise ValueError(
                f"Expected `stage` to be one with a map of features larger than 1x1. Received {stage!r}, which "
                f"{what}. {works}"
            )
        nearest = difflib.get_close_matches(stage, maps, n=1)
        guess = f"Did you mean {nearest[0]!r}? " if nearest else ""
        raise ValueError(f"Expected `stage` to be a stage of this network. Received {stage!r}. {guess}{works}")
    return maps[stage]


def _check_classes(classes: int | np.ndarray | None, images: int, count: int) -> np.ndarray | None:
    if classes is None:
        return None
    numbers = np.broadcast_to(classes, (images,)) if np.ndim(classes) == 0 else np.asarray(classes)
    if numbers.shape != (images,) or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(
            f"Expected `classes` to be the number of a class, or {images} of them, one for each image. Received "
            f"{numbers.dtype} of shape {numbers.shape}."
        )
    if images and not 0 <= numbers.min() <= numbers.max() < count:
        raise ValueError(
            f"Expected `classes` from 0 to {count - 1}. Received numbers from {numbers.min()} to {numbers.max()}."
        )
    return numbers.astype("int64")
