"""Keras, imported in silence.

TensorFlow writes start-up messages to the process's standard error before any of its own settings can
stop it, and a notebook would store them in its first output. Every module here takes `keras` from this one.
"""

import os
import sys
from contextlib import contextmanager

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what is fatal also arrives as an exception


@contextmanager
def _silent_stderr():
    """Points file descriptor 2 at nothing: the messages come from C++, below `sys.stderr`."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


with _silent_stderr():
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.list_physical_devices()  # looks for GPUs now: without one, CUDA complains at length
        tensorflow.get_logger().setLevel("ERROR")  # it warns of every second model that predicts
__all__ = ["keras"]
