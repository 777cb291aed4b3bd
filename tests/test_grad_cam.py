"""Grad-CAM is what the formula says, finds what the class depends on, and does not mind what is frozen."""

import numpy as np
import pytest
from networks import coloured_images, residual_network, stage_network

from helpers.backbones import cut, freeze, keras, load_backbone
from helpers.evaluation import locate_evidence
from helpers.evaluation.grad_cam import feature_maps
from helpers.training import attach_head, compute_activations, fit_head

layers = keras.layers


@pytest.fixture(autouse=True)
def fresh_graph():
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)


def classifier(network=None) -> keras.Model:
    """Returns a flat classifier as 02 makes it: three stages and a solved head."""
    network = network or stage_network()
    images, labels = coloured_images(24)
    return attach_head(network, fit_head(compute_activations(network, images), labels), class_names=list("abc"))


def red_or_blue(*, sureness: float = 1.0) -> keras.Model:
    """Returns a classifier whose class is the one of which more is seen: 0 for red, 1 for blue, at any place."""
    images = keras.Input((16, 16, 3), dtype="uint8")
    x = layers.Rescaling(1 / 255, name="preprocessing")(images)
    x = layers.Conv2D(2, 1, activation="relu", name="conv1_conv")(x)
    x = layers.DepthwiseConv2D(1, use_bias=False, depthwise_initializer="ones", name="conv2_conv")(x)
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    model = keras.Model(images, layers.Softmax(name="probabilities")(layers.Dense(2, name="head")(x)))
    kernel = np.array([[1, -1], [-1, -1], [-1, 1]], "float32")
    model.get_layer("conv1_conv").set_weights([kernel[None, None], np.zeros(2, "float32")])
    model.get_layer("head").set_weights([sureness * np.eye(2, dtype="float32"), np.zeros(2, "float32")])
    return model


def squares() -> np.ndarray:
    """Returns a grey image with a large red square and a small blue one, and another with the colours swapped."""
    image = np.full((1, 16, 16, 3), 90, "uint8")
    image[0, 1:8, 2:8] = (255, 0, 0)
    image[0, 10:14, 11:15] = (0, 0, 255)
    return np.concatenate([image, image[..., ::-1]])


@pytest.mark.parametrize("stage", ["conv1", "conv2", "auto"])
def test_the_map_lies_on_what_the_class_depends_on(stage):
    model, images = red_or_blue(), squares()
    images = np.concatenate([images, np.full((1, 16, 16, 3), 90, "uint8")])
    red, blue, nothing = locate_evidence(model, images, stage=stage)
    for cam in (red, blue):
        assert cam[1:8, 2:8].sum() / cam.sum() > 0.99, "the predicted class is the larger square's"
        assert cam.max() == 1
    assert nothing.max() == 0, "nothing speaks for a class"


def test_behind_the_last_map_it_is_the_known_formula():
    """With global average pooling and a linear head, Grad-CAM is CAM: the maps weighted with the head's weights."""
    model, (images, _) = classifier(), coloured_images(11)
    assert list(feature_maps(model)) == ["conv1", "conv2", "conv3"]
    maps = keras.Model(model.inputs[0], model.get_layer("conv3_relu").output)(images, training=False).numpy()
    predicted = model(images, training=False).numpy().argmax(axis=1)
    assert len(set(predicted)) > 1
    weights = model.get_layer("head").kernel.numpy()[:, predicted].T
    expected = np.maximum(np.einsum("nhwc,nc->nhw", maps, weights), 0)
    expected /= np.maximum(expected.max(axis=(1, 2), keepdims=True), 1e-9)
    assert expected.max() > 0.9 and expected.min() == 0
    np.testing.assert_allclose(locate_evidence(model, images), expected, atol=1e-4)


@pytest.mark.parametrize(("size", "taken"), [(80, "conv4"), (48, "conv3"), (20, "conv2"), (9, "conv1")])
def test_the_default_is_the_last_stage_whose_map_tells_places_apart(size, taken):
    images = x = keras.Input((size, size, 3), dtype="uint8")
    x = layers.Rescaling(1 / 255)(x)
    for stage in (1, 2, 3, 4):  # of 80: 40, 20, 10, 5
        x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name=f"conv{stage}_conv")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, layers.Dense(2, activation="softmax", name="head")(x))
    batch = np.random.default_rng(0).integers(0, 256, (2, size, size, 3)).astype("uint8")
    np.testing.assert_array_equal(locate_evidence(model, batch), locate_evidence(model, batch, stage=taken))


def test_gradients_are_averaged_over_places_and_not_multiplied_place_by_place():
    """Each place has a weight of its own in this head, which Grad-CAM does not show: only the mean counts."""
    images = keras.Input((4, 4, 3))
    x = layers.Conv2D(2, 1, name="conv1_conv")(images)
    model = keras.Model(images, layers.Softmax()(layers.Dense(3, name="head")(layers.Flatten()(x))))
    batch = np.random.default_rng(0).normal(size=(5, 4, 4, 3)).astype("float32")
    maps, predicted = keras.Model(images, x)(batch).numpy(), model(batch).numpy().argmax(axis=1)
    weights = model.get_layer("head").kernel.numpy().reshape(4, 4, 2, 3).mean(axis=(0, 1))[:, predicted].T
    expected = np.maximum(np.einsum("nhwc,nc->nhw", maps, weights), 0)
    expected /= np.maximum(expected.max(axis=(1, 2), keepdims=True), 1e-9)
    np.testing.assert_allclose(locate_evidence(model, batch), expected, atol=1e-4)


def test_neither_frozen_weights_nor_certainty_nor_a_cut_change_it():
    model, images = red_or_blue(), squares()
    before = locate_evidence(model, images)
    certain = red_or_blue(sureness=10_000.0)  # the gradient of a probability of 1 is 0: the logit's is not
    assert certain(images).numpy().max() == 1
    np.testing.assert_allclose(locate_evidence(certain, images), before, atol=1e-5)
    prefix, suffix = cut(model, "conv2")
    np.testing.assert_allclose(locate_evidence(suffix, prefix(images).numpy()), before, atol=1e-6)
    freeze(model)
    np.testing.assert_array_equal(locate_evidence(model, images), before)


def test_a_softmax_within_the_last_layer_is_taken_off():
    model = residual_network(classes=3)
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    dense, linear = model.layers[-1], layers.Dense(3, name="logits")
    logits = keras.Model(model.inputs[0], linear(dense.input))
    linear.set_weights(dense.get_weights())
    expected = locate_evidence(logits, images)
    assert expected.max() == 1
    np.testing.assert_allclose(locate_evidence(model, images), expected, atol=1e-5)


def test_a_network_inside_a_network(tmp_path):
    """The tutorial's classifier has no path from its input to the inner layers: ours is flat."""
    images = keras.Input((8, 8, 3), dtype="uint8")
    nested = keras.Model(images, layers.Dense(3, activation="softmax", name="predictions")(stage_network()(images)))
    assert "conv3" not in feature_maps(nested)
    nested.save(tmp_path / "nested.keras")
    model = classifier(load_backbone(str(tmp_path / "nested.keras")))
    assert list(feature_maps(model)) == ["conv1", "conv2", "conv3"]
    assert locate_evidence(model, coloured_images(2)[0], stage="conv2").max() == 1


def test_batches_and_one_by_one_are_the_same():
    model, (images, _) = classifier(), coloured_images(19)
    together = locate_evidence(model, images)
    alone = np.concatenate([locate_evidence(model, images[[number]]) for number in (0, 9, 18)])
    np.testing.assert_allclose(together[[0, 9, 18]], alone, atol=1e-4)
    assert together.shape == (19, 8, 8) and together.dtype == np.float32
    assert together.min() >= 0 and together.max() == 1
    assert locate_evidence(model, images[:0]).shape == (0, 8, 8)


def test_maps_are_as_large_as_the_images():
    images = keras.Input((12, 20, 3))
    x = layers.Conv2D(1, 4, strides=4, use_bias=False, kernel_initializer="ones", name="conv1_conv")(images)
    model = keras.Model(images, layers.Dense(2, kernel_initializer="ones")(layers.GlobalAveragePooling2D()(x)))
    batch = np.zeros((1, 12, 20, 3), "float32")
    batch[0, 8:12, 12:16] = 1
    (cam,) = locate_evidence(model, batch)
    assert cam.shape == (12, 20) and cam[9:12, 13:15].min() > 0.8 and cam[:4].max() == cam[:, :8].max() == 0


def test_tokens_and_maps_of_one_cell_are_no_feature_maps():
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 4, strides=4, name="patch_conv")(images)
    x = layers.Dense(4, name="block1_dense")(layers.Reshape((4, 4), name="patch_tokens")(x))
    model = keras.Model(images, layers.Dense(2, name="head")(layers.GlobalAveragePooling1D(name="pool")(x)))
    for stage in ("block1", "input", "patsh"):
        with pytest.raises(ValueError, match=f"one of patch. Received '{stage}'"):
            locate_evidence(model, np.zeros((1, 8, 8, 3), "float32"), stage=stage)
    x = layers.Conv2D(4, 8, name="conv1_conv")(images)
    small = keras.Model(images, layers.Dense(2, name="head")(layers.Flatten(name="flat")(x)))
    assert locate_evidence(small, np.zeros((1, 8, 8, 3), "float32")) is None


@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0", "ConvNeXtTiny", "DenseNet121"])
@pytest.mark.slow
def test_networks_of_keras_applications(name):
    network = load_backbone(name, weights=None, image_size=64)
    model = keras.Model(network.inputs[0], layers.Dense(3, name="head")(network.outputs[0]))
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("uint8")
    known = list(feature_maps(model))
    for stage in (known[1], known[-1]):
        assert locate_evidence(model, images, stage=stage).shape == (2, 64, 64)
