"""A saved classifier is one file, the same model, whole or not at all."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import yaml
from networks import call, coloured_images, random_images, stage_network

from helpers.backbones import keras, load_backbone
from helpers.training import (
    attach_head,
    compute_activations,
    fit_head,
    load_classifier,
    load_ood_detector,
    load_settings,
    log_loss,
    save_backbone,
    save_model,
)
from helpers.training.ood import fit_ood_detector

IMAGES, LABELS = coloured_images(60)
NAMES = ["ants", "bées", 'quo"ted, name']


@pytest.fixture
def saved(root):
    """A backbone, its features of the images, and the classifier saved as x.keras."""
    network = stage_network()
    features = compute_activations(network, IMAGES)
    model = attach_head(network, fit_head(features, LABELS, cs=(0.01,)), class_names=NAMES)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=[log_loss()])  # is not in the file
    save_model(model, "x.keras", class_names=NAMES, resize="pad", pixels=IMAGES, labels=LABELS)
    return network, features, model


def test_a_saved_model_is_the_same_model_with_nothing_but_keras(root, saved):
    *_, model = saved
    assert load_settings(root / "x.keras") == {"class_names": NAMES, "resize": "pad", "white": 65535}
    np.save(root / "images.npy", IMAGES)
    script = (
        "import sys, numpy, keras\n"
        "model = keras.models.load_model('x.keras')\n"
        "assert not model.compiled\n"
        "numpy.save('out.npy', model.predict(numpy.load('images.npy'), verbose=0))\n"
        "assert 'helpers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=root)
    loaded, settings = load_classifier(root / "x.keras")
    assert settings["resize"] == "pad" and loaded.name == model.name
    for given in (np.load(root / "out.npy"), call(loaded, IMAGES)):
        np.testing.assert_allclose(given, call(model, IMAGES), atol=1e-6)


def test_what_the_training_images_are_like_is_in_the_file(root, saved):
    """The features are those in front of the head, of these images."""
    network, features, model = saved
    known, expected = load_ood_detector("x.keras"), fit_ood_detector(features, LABELS)
    new = compute_activations(network, coloured_images(20, seed=1)[0])
    np.testing.assert_allclose(known.distances(new), expected.distances(new), rtol=1e-3)
    assert known.threshold == pytest.approx(float(expected.threshold), rel=1e-3)
    save_model(model, "y.keras", class_names=NAMES, resize="crop")
    assert load_ood_detector("y.keras") is None
    with zipfile.ZipFile(root / "y.keras", "a") as archive:
        archive.writestr("familiarity.npz", zipfile.ZipFile(root / "x.keras").read("familiarity.npz")[:-100])
    with pytest.raises(ValueError, match="y.keras is damaged"):
        load_ood_detector("y.keras")


def test_a_file_that_gives_something_else_does_not_get_its_name(root, monkeypatch):
    monkeypatch.setattr("helpers.training.files.load_model", lambda path: stage_network(scale=1 / 100))
    with pytest.raises(ValueError, match="x.keras was not saved: what was written gives other probabilities"):
        images = {"pixels": random_images(4), "labels": np.zeros(4, int)}
        save_model(stage_network(), root / "x.keras", class_names=["a"], resize="crop", **images)
    assert [path.name for path in root.iterdir()] == ["runs"]  # its activations


def test_an_interrupted_save_keeps_the_old_file(root, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    save_backbone(stage_network(), "network.keras", {})
    save_model(stage_network(), "x.keras", class_names=["a"], resize="crop")
    before = {path: path.read_bytes() for path in root.iterdir()}
    with pytest.raises(yaml.YAMLError):
        save_backbone(stage_network(scale=1.0), "network.keras", {"not plain": object()})
    monkeypatch.setattr(zipfile.ZipFile, "writestr", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_model(stage_network(scale=1.0), "x.keras", class_names=["b"], resize="crop")
    assert {path: path.read_bytes() for path in root.iterdir()} == before and len(before) == 3


def test_settings_of_a_file_that_has_none(tmp_path):
    stage_network().save(tmp_path / "x.keras")
    (tmp_path / "y.keras").write_text(json.dumps(["a"]))
    for name in "xy":
        with pytest.raises(ValueError, match=f"{name}.keras holds no class names"):
            load_settings(tmp_path / f"{name}.keras")


def test_a_saved_backbone_is_the_same_network_with_a_note_on_how_it_was_made(root):
    network, images = stage_network(), random_images()
    save_backbone(network, "network.keras", {"epochs": 3, "found": np.float32(0.5)})
    again = load_backbone(str(root / "network.keras"))
    np.testing.assert_array_equal(call(again, images), call(network, images))
    about = yaml.safe_load((root / "network.yaml").read_text())
    assert about["epochs"] == 3 and about["found"] == 0.5 and about["parameters"] == network.count_params()
    assert about["packages"]["keras"] == keras.__version__ and len(list(root.iterdir())) == 2
