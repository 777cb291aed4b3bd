"""Keras, imported in silence, repeatable, and on every GPU that there is: every module here takes it from this one.

TensorFlow writes start-up messages to the process's standard error, which a notebook would store in its first output.
Keras' settings file (`~/.keras/keras.json`) changes nothing here: networks of others were made with the defaults.
"""

import os
import random
from contextlib import nullcontext
from functools import cache

from helpers import silent_stderr

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what is fatal also arrives as an exception


def _check_backend(received: str) -> None:
    if received != "tensorflow":
        raise ValueError(
            f"Expected Keras to compute with tensorflow. Received the backend {received!r}: unset KERAS_BACKEND, and "
            f"import `helpers` before `keras`."
        )


_check_backend(os.environ.get("KERAS_BACKEND") or "tensorflow")
os.environ["KERAS_BACKEND"] = "tensorflow"  # goes before what the settings file names
with silent_stderr():
    import keras
    from keras.src.random import seed_generator

    _check_backend(keras.backend.backend())  # it may have been imported before
    import tensorflow

    tensorflow.config.list_physical_devices()  # looks for GPUs now: without one, CUDA complains at length
    tensorflow.get_logger().setLevel("ERROR")  # it warns of every second model that predicts
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")
keras.config.set_epsilon(1e-7)
__all__ = ["compute_deterministically", "count_devices", "draw_apart", "keras", "on_all_devices", "set_seed"]


def set_seed(seed: int) -> None:
    """Makes everything random that follows repeat itself, to the last bit, on one machine.

    Sets the seeds of Python, NumPy and Keras, and has TensorFlow use deterministic algorithms only.
    """
    keras.utils.set_random_seed(seed)
    seed_generator.python_random.seed(seed)
    compute_deterministically()


def draw_apart() -> None:
    """Gives Keras random numbers of its own: in a Dask worker, other threads draw from Python's, at any moment."""
    seed_generator.python_random = random.Random()


def compute_deterministically() -> None:
    """Has TensorFlow use deterministic algorithms only, from now on."""
    tensorflow.config.experimental.enable_op_determinism()


def on_all_devices():
    """Returns a context in which models are made that train on all GPUs, each batch divided among them.

    What is cut from such a model has to be cut in it, too. With one GPU or none it does nothing.
    """
    strategy = _strategy()
    return strategy.scope() if strategy else nullcontext()


def count_devices() -> int:
    """Returns among how many devices a batch is divided: the GPUs, or 1."""
    strategy = _strategy()
    return strategy.num_replicas_in_sync if strategy else 1


@cache
def _strategy():
    gpus = tensorflow.config.list_logical_devices("GPU")
    return tensorflow.distribute.MirroredStrategy([gpu.name for gpu in gpus]) if len(gpus) > 1 else None
