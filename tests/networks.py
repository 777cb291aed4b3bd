"""Small networks and images that several test files share."""

import os
import signal

import numpy as np

import helpers
from helpers.backbones import keras
from helpers.data.pixels import Pixels
from helpers.data.stores import write_store


def residual_network(*, size: int = 8, classes: int = 0, dtype: str = "float32") -> keras.Model:
    """A small network with BatchNormalization, a shortcut and names like ResNet50's."""
    layers = keras.layers
    images = keras.Input((size, size, 3), dtype=dtype)
    x = layers.Rescaling(1 / 255)(images) if dtype == "uint8" else images
    x = layers.Conv2D(4, 3, padding="same", name="conv1_conv")(x)
    x = shortcut = layers.BatchNormalization(name="conv1_bn")(x)
    x = layers.Conv2D(4, 3, padding="same", name="conv2_block1_conv")(x)
    x = layers.BatchNormalization(name="conv2_block1_bn")(x)
    x = layers.ReLU(name="conv2_block1_out")(layers.Add(name="conv2_block1_add")([shortcut, x]))
    x = layers.Conv2D(6, 3, name="conv3_block1_conv")(x)
    x = layers.BatchNormalization(name="conv3_block1_bn")(x)
    if classes:
        x = layers.GlobalAveragePooling2D()(x)
        x = layers.Dense(classes, activation="softmax", name="predictions")(x)
    return keras.Model(images, x)


@keras.saving.register_keras_serializable("tests")
class Pair(keras.layers.Layer):
    """A layer that holds layers: a convolution and BatchNormalization, with a shortcut."""

    def build(self, shape):
        self.conv = keras.layers.Conv2D(shape[-1], 1, name="conv")
        self.norm = keras.layers.BatchNormalization(name="norm")
        self.conv.build(shape)
        self.norm.build(shape)

    def call(self, x, training=None):
        return x + self.norm(self.conv(x), training=training)


@keras.saving.register_keras_serializable("tests")
class Stack(keras.layers.Layer):
    """Blocks in a layer, as in a transformer's encoder; with `scale`, a weight that is not theirs."""

    def __init__(self, names=("block_0", "block_1", "block_2"), scale: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.names, self.scaled = list(names), scale

    def get_config(self):
        return super().get_config() | {"names": list(self.names), "scale": self.scaled}

    def build(self, shape):
        self.blocks = [Pair(name=name) for name in self.names]
        for block in self.blocks:
            block.build(shape)
        if self.scaled:
            around_one = keras.initializers.RandomNormal(1.0, 0.1)
            self.scale = self.add_weight(shape=(shape[-1],), name="scale", initializer=around_one)

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return x * self.scale if self.scaled else x


class Interrupt(keras.callbacks.Callback):
    """Presses Ctrl-C after so many batches of an epoch, at the end of an epoch, or (-1) of the training."""

    def __init__(self, epoch: int, *, batch: int = 0, at_end: bool = False):
        super().__init__()
        self.wanted, self.batch, self.at_end = epoch, batch, at_end

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if self.epoch == self.wanted and batch == self.batch and not self.at_end:
            os.kill(os.getpid(), signal.SIGINT)

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.wanted and self.at_end:
            os.kill(os.getpid(), signal.SIGINT)

    def on_train_end(self, logs=None):
        if self.wanted == -1:
            os.kill(os.getpid(), signal.SIGINT)


def random_images(count: int = 4, size: int = 8) -> np.ndarray:
    """Noise, each image darker than the one before: also what averages over positions tells them apart."""
    noise = np.random.default_rng(0).integers(0, 256, (count, size, size, 3))
    return (noise / np.linspace(1, 3, count)[:, None, None, None]).astype("uint8")


def call(model: keras.Model, images) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(images, training=False))  # `predict` would compile it first


def train(model: keras.Model, images: np.ndarray, *, epochs: int = 2) -> None:
    model.compile(keras.optimizers.SGD(0.1), "mse")
    targets = np.random.default_rng(1).normal(size=(len(images), *model.output_shape[1:]))
    model.fit(images, targets, epochs=epochs, verbose=0)


def stage_network(*, scale: float = 1 / 255, dropout: float = 0.0) -> keras.Model:
    """A backbone of three stages, each with BatchNormalization, from raw images to 6 features; always the same.

    With `dropout`, each stage ends in a Dropout of this rate.
    """
    keras.utils.set_random_seed(0)
    layers = keras.layers
    images = keras.Input((8, 8, 3), dtype="uint8", name="images")
    x = layers.Rescaling(scale, name="preprocessing")(images)
    for stage in (1, 2, 3):
        x = layers.Conv2D(6, 3, padding="same", use_bias=False, name=f"conv{stage}_conv")(x)
        x = layers.ReLU(name=f"conv{stage}_relu")(layers.BatchNormalization(name=f"conv{stage}_bn")(x))
        x = layers.Dropout(dropout, name=f"conv{stage}_dropout")(x) if dropout else x
    return keras.Model(images, layers.GlobalAveragePooling2D(name="avg_pool")(x))


def coloured_images(count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns noise of 8 x 8 pixels, and which channel is a little brighter: three classes to be learned."""
    rng, labels = np.random.default_rng(seed), np.arange(count) % 3
    images = rng.integers(0, 200, (count, 8, 8, 3))
    images[np.arange(count), :, :, labels] += 12
    return images.astype("uint8"), labels


def counted(rows: int) -> Pixels:
    """Returns stored images that show their own number, in the bytes of their first pixel: see `numbers`."""
    images = np.zeros((rows, 2, 2, 3), "uint8")
    images[:, 0, 0] = np.stack([np.arange(rows) % 256, np.arange(rows) // 256, np.full(rows, 7)], axis=1)
    file = helpers.resolve_path(f"runs/.pixels/{rows}.npy")
    store = write_store(file, [images], shape=images.shape[1:], dtype="uint8", keys=list(map(str, range(rows))))
    return Pixels(store, np.arange(rows))


def numbers(batch: np.ndarray) -> list[int]:
    """Returns the numbers that such images show."""
    batch = np.asarray(batch).astype(int)
    return (batch[:, 0, 0, 0] + 256 * batch[:, 0, 0, 1]).tolist()
