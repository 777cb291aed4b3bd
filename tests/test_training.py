"""The head is the convex problem's solution; features are the network's own; a saved model is the same model."""

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from helpers.backbones import audit_weights, copy_weights, cut, freeze, keras
from helpers.training import (
    attach_head,
    compute_activations,
    fit_head,
    load_settings,
    save_model,
    set_seed,
    show_progress,
    warmup_cosine,
)


def blobs(images: int, features: int, classes: int, *, seed: int = 0, shift: float = 1.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    centres = rng.normal(size=(classes, features)) * shift
    return (centres[labels] + rng.normal(size=(images, features)) * 2 + 5).astype("float32"), labels


def tiny_network() -> keras.Model:
    set_seed(0)
    layers = keras.layers
    images = keras.Input((8, 8, 3), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 255, name="preprocessing")(images)
    for stage in (1, 2, 3):
        x = layers.Conv2D(6, 3, padding="same", use_bias=False, name=f"conv{stage}_conv")(x)
        x = layers.ReLU(name=f"conv{stage}_relu")(layers.BatchNormalization(name=f"conv{stage}_bn")(x))
    return keras.Model(images, layers.GlobalAveragePooling2D(name="avg_pool")(x))


def random_images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3)).astype("uint8")


# ---- the head


@pytest.mark.parametrize(("images", "features", "classes"), [(90, 12, 3), (60, 12, 2), (40, 200, 4), (30, 200, 2)])
def test_head_is_the_solution_of_the_regularised_problem(images, features, classes):
    x, y = blobs(images, features, classes)
    head = fit_head(x, y, strengths=(0.01, 0.1, 1.0))
    scale = x.var(axis=0).mean()  # strengths are relative to features of unit variance
    direct = LogisticRegression(C=head.strength_ / scale, max_iter=10_000, tol=1e-10)
    direct.fit(x - x.mean(axis=0), y)
    np.testing.assert_allclose(head.predict_proba(x), direct.predict_proba(x - x.mean(axis=0)), atol=2e-3)


def test_strength_has_the_lowest_cross_validated_log_loss():
    x, y = blobs(60, 40, 3, shift=0.3)  # noisy: weak regularisation overfits
    head = fit_head(x, y)
    assert head.losses_[head.strength_] == min(head.losses_.values()) < np.log(3)
    assert list(head.losses_) == sorted(head.losses_), "from strong to weak"
    assert head.strength_ not in (min(head.losses_), max(head.losses_)), "an inner minimum, and then it stopped"
    test_x, test_y = blobs(300, 40, 3, shift=0.3)
    weak = fit_head(x, y, strengths=(1000.0,))
    assert log_loss(test_y, head.predict_proba(test_x)) < log_loss(test_y, weak.predict_proba(test_x))


def test_head_does_not_depend_on_the_features_scale():
    x, y = blobs(60, 20, 3)
    np.testing.assert_allclose(
        fit_head(x, y).predict_proba(x), fit_head(1000 * x, y).predict_proba(1000 * x), atol=1e-3
    )


def test_head_with_one_image_in_a_class_and_constant_features():
    x, y = blobs(9, 5, 3)
    assert fit_head(x[:4], y[:4]).predict(x[:4]).shape == (4,)
    assert fit_head(np.ones((6, 4), "float32"), np.array([0, 1] * 3)).predict_proba(np.ones((1, 4))).shape == (1, 2)


def test_bad_features_and_labels():
    x, y = blobs(30, 5, 3)
    with pytest.raises(ValueError, match="at least two classes"):
        fit_head(x, np.zeros(30, int))
    x[3, 2] = np.nan
    with pytest.raises(ValueError, match="finite features"):
        fit_head(x, y)


def head_of(model, images, labels):
    return fit_head(compute_activations(model, images), labels)


@pytest.mark.parametrize("classes", [2, 3])
def test_attached_head_gives_scikit_learns_probabilities(classes):
    network = tiny_network()
    images, labels = random_images(24), np.arange(24) % classes
    features = compute_activations(network, images)
    head = fit_head(features, labels)
    model = attach_head(network, head, class_names=list("abc"[:classes]))
    np.testing.assert_allclose(model.predict(images, verbose=0), head.predict_proba(features), atol=1e-5)
    again = attach_head(model, head_of(model, images, labels), class_names=list("abc"[:classes]))
    assert again.layers[-1].name == "probabilities_2", "a classifier can be a backbone"
    assert not any(isinstance(layer, keras.Model) for layer in model.layers), "flat"
    with pytest.raises(ValueError, match="Expected a head from 6 features to 5 classes"):
        attach_head(network, head, class_names=list("abcde"))


# ---- activations


@pytest.mark.parametrize("count", [1, 7, 32, 33])
def test_activations_are_the_networks_outputs_whatever_the_batches(count):
    network, images = tiny_network(), random_images(count)
    activations = compute_activations(network, images, batch_size=8)
    assert activations.shape == (count, 6) and activations.dtype == np.float32
    expected = keras.ops.convert_to_numpy(network(images, training=False))
    np.testing.assert_allclose(activations, expected, rtol=1e-5, atol=1e-6)


def test_activations_that_are_not_finite_are_refused():
    network = tiny_network()
    network.get_layer("conv2_bn").gamma.assign([np.nan] * 6)
    with pytest.raises(ValueError, match="not finite for 5 of 5 images"):
        compute_activations(network, random_images(5))


def test_activations_that_would_not_fit_are_refused_before_the_work():
    many = np.broadcast_to(random_images(1), (10**10, 8, 8, 3))  # takes no memory itself
    with pytest.raises(MemoryError, match="10000000000 images, 6 numbers each, take 240.0 GB.*`load_activations` keeps them on disk"):
        compute_activations(tiny_network(), many)


# ---- fine-tuning


def fine_tune(seed: int):
    network = tiny_network()
    images, labels = random_images(24), np.arange(24) % 3
    model = attach_head(network, fit_head(compute_activations(network, images), labels), class_names=list("abc"))
    freeze(model, unfreeze_from="conv3")
    prefix, suffix = cut(model, "conv3")
    before = copy_weights(model)
    set_seed(seed)
    suffix.compile(
        keras.optimizers.Adam(warmup_cosine(0.01, epochs=3, images=24, batch_size=8)),
        "sparse_categorical_crossentropy",
    )
    suffix.fit(
        compute_activations(prefix, images), labels, epochs=3, batch_size=8, verbose=0, callbacks=[show_progress()]
    )
    return model, before, images


def test_training_the_suffix_trains_the_model_and_only_what_was_meant():
    model, before, images = fine_tune(seed=0)
    audit = audit_weights(model, before)
    assert audit["changed"].to_dict() == {"input": 0, "conv1": 0, "conv2": 0, "conv3": 1, "head": 2}
    assert audit[["frozen_changed", "trainable_unchanged"]].to_numpy().sum() == 0
    assert np.isfinite(model.predict(images, verbose=0)).all()


def test_same_seed_same_bits_and_another_seed_another_result():
    first, again, other = (fine_tune(seed)[0].get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_learning_rate_rises_and_falls_to_zero():
    schedule = warmup_cosine(1e-3, epochs=10, images=95, batch_size=10)
    rates = np.array([float(schedule(step)) for step in range(101)])
    assert rates[0] == pytest.approx(1e-4) and rates.argmax() == 10 and rates.max() == pytest.approx(1e-3)
    assert (np.diff(rates[:11]) > 0).all() and (np.diff(rates[10:]) < 0).all()
    assert rates[100] == pytest.approx(0, abs=1e-9)
    assert float(warmup_cosine(1e-3, epochs=1, images=5, batch_size=32)(0)) > 0, "a single step learns, too"
    for bad in ({"learning_rate": 0}, {"epochs": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=f"`{next(iter(bad))}` above 0"):
            warmup_cosine(**{"learning_rate": 1e-3, "epochs": 1, "images": 9, "batch_size": 2} | bad)


# ---- one file


def test_a_saved_model_is_the_same_model_with_nothing_but_keras(tmp_path):
    model, _, images = fine_tune(seed=0)
    names = ["ants", "bées", 'quo"ted, name']
    save_model(model, tmp_path / "x.keras", class_names=names, resize="pad")
    assert load_settings(tmp_path / "x.keras") == {"class_names": names, "resize": "pad"}
    np.save(tmp_path / "images.npy", images)
    script = (
        "import sys, numpy, keras\n"
        "model = keras.models.load_model(sys.argv[1] + '/x.keras')\n"
        "numpy.save(sys.argv[1] + '/out.npy', model.predict(numpy.load(sys.argv[1] + '/images.npy'), verbose=0))\n"
        "assert 'helpers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, text=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), model.predict(images, verbose=0), atol=1e-6)


def test_an_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    model = tiny_network()
    save_model(model, tmp_path / "x.keras", class_names=["a"], resize="crop")
    old = (tmp_path / "x.keras").read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_model(model, tmp_path / "x.keras", class_names=["b"], resize="crop")
    assert (tmp_path / "x.keras").read_bytes() == old and len(list(tmp_path.iterdir())) == 1


def test_settings_of_a_file_that_has_none(tmp_path):
    tiny_network().save(tmp_path / "x.keras")
    (tmp_path / "y.keras").write_text(json.dumps(["a"]))
    for name in "xy":
        with pytest.raises(ValueError, match=f"{name}.keras holds no class names"):
            load_settings(tmp_path / f"{name}.keras")
