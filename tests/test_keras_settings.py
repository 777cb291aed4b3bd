"""Keras' settings file and its environment variable change no result: what is not supported is refused by name."""

import json
import os
import subprocess
import sys

import numpy as np
from networks import call, random_images, residual_network
from refresh import ROOT

from helpers.backbones import load_backbone

SCRIPT = """
import json, sys
import numpy as np
from helpers.backbones import keras, load_backbone
network = load_backbone(sys.argv[1], preprocessing="unit")
made = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)
print(json.dumps([
    network(np.load(sys.argv[2]), training=False).numpy().tolist(),
    keras.config.backend(), keras.config.epsilon(), made[0].data_format, made[1].dtype,
]))
"""


def run_python(*arguments, **variables) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    environment |= {"PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True)


def test_the_settings_file_changes_nothing(tmp_path):
    settings = {"floatx": "float16", "epsilon": 0.1, "backend": "torch", "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    residual_network().save(tmp_path / "own.keras")
    np.save(tmp_path / "images.npy", random_images())
    done = run_python("-c", SCRIPT, tmp_path / "own.keras", tmp_path / "images.npy", KERAS_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    features, *others = json.loads(done.stdout.splitlines()[-1])
    assert others == ["tensorflow", 1e-7, "channels_last", "float32"]
    network = load_backbone(str(tmp_path / "own.keras"), preprocessing="unit")
    np.testing.assert_allclose(features, call(network, random_images()), rtol=1e-4, atol=1e-6)


def test_another_backend_is_refused_by_name(tmp_path):
    model, refusal = tmp_path / "x.keras", "Expected Keras to compute with tensorflow. Received the backend 'jax'"
    model.touch()
    for command in (("helpers.predict", model, tmp_path), ("helpers.export", model)):
        done = run_python("-m", *command, "-o", tmp_path / "x.csv", KERAS_BACKEND="jax")
        assert done.returncode != 0 and "Traceback" not in done.stderr
        assert " ".join(done.stderr.split()).startswith(refusal), command
    done = run_python("-c", "import helpers.training", KERAS_BACKEND="jax")
    assert f"ValueError: {refusal}" in done.stderr
