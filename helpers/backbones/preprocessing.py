"""What values a pretrained network expects, and whether those that it gets look like them."""

import numpy as np

from helpers._keras import keras

PREPROCESSING = {
    "tf": "values scaled to -1..1",
    "torch": "values scaled to 0..1, then ImageNet's mean and deviation of each channel removed",
    "caffe": "channels in the order BGR, ImageNet's mean of each channel subtracted",
    "unit": "values scaled to 0..1",
    "none": "values 0..255 as they are: the network scales them itself",
}
"""What a pretrained network may expect of its input, by the names that Keras uses (and "unit")."""

FAMILIES = {
    "tf": ("mobilenet", "mobilenet_v2", "inception_v3", "inception_resnet_v2", "xception", "nasnet", "resnet_v2"),
    "torch": ("densenet",),
    "caffe": ("resnet", "vgg16", "vgg19"),
    "none": ("convnext", "efficientnet", "efficientnet_v2", "mobilenet_v3"),
}
"""The families of keras.applications, by what their `preprocess_input` does."""


def application_preprocessing(name: str) -> str:
    """Returns the key of `PREPROCESSING` for a network of keras.applications ("ResNet50": "caffe")."""
    family = getattr(keras.applications, name).__module__.rsplit(".", 1)[-1]
    return next(mode for mode, families in FAMILIES.items() if family in families)


def preprocess(images, mode: str | tuple):
    """Returns preprocessed images. Built-in layers only, so that a saved file needs nothing but Keras.

    Args:
        images: a tensor (batch, height, width, 3), RGB in 0..255, symbolic or not.
        mode: a key of `PREPROCESSING`, or the scale that values are multiplied with and the offset that is added
            then, each one number or one for each channel.
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
