"""Keras, imported in silence.

TensorFlow writes start-up messages to the process's standard error before any of its own settings can
stop it, and a notebook would store them in its first output. Every module here takes `keras` from this one.
"""

import os

from helpers import silent_stderr

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what is fatal also arrives as an exception


with silent_stderr():
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.list_physical_devices()  # looks for GPUs now: without one, CUDA complains at length
        tensorflow.get_logger().setLevel("ERROR")  # it warns of every second model that predicts
__all__ = ["keras"]
