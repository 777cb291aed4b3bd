"""Grad-CAM is what the formula says, finds what the class depends on, and does not mind what is frozen."""

import numpy as np
import pytest
from networks import coloured_images, residual_network, stage_network

from helpers.backbones import cut, freeze, keras, load_backbone
from helpers.evaluation import locate_evidence
from helpers.evaluation.grad_cam import cam_stages, grad_cam
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
    """Returns a grey image with a red square at the upper left and a smaller blue one at the lower right."""
    image = np.full((1, 16, 16, 3), 90, "uint8")
    image[0, 1:8, 2:8] = (255, 0, 0)
    image[0, 10:14, 11:15] = (0, 0, 255)
    return image


def share_within(cam: np.ndarray, rows: slice, columns: slice) -> float:
    return cam[rows, columns].sum() / cam.sum()


@pytest.mark.parametrize("stage", ["conv1", "conv2", None])
def test_the_map_lies_on_what_the_class_depends_on(stage):
    model, image = red_or_blue(), squares()
    (red,) = grad_cam(model, image, stage=stage)
    assert share_within(red, slice(1, 8), slice(2, 8)) > 0.99, "the predicted class is the larger square's"
    (blue,) = grad_cam(model, image, stage=stage, classes=1)
    assert share_within(blue, slice(10, 14), slice(11, 15)) > 0.99
    both = grad_cam(model, np.repeat(image, 2, axis=0), stage=stage, classes=np.array([1, 0]))
    np.testing.assert_array_equal(both, [blue, red])
    assert red.max() == blue.max() == 1
    assert grad_cam(model, np.full((1, 16, 16, 3), 90, "uint8"), stage=stage).max() == 0, "nothing speaks for a class"


def test_behind_the_last_map_it_is_the_known_formula():
    """With global average pooling and a linear head, Grad-CAM is CAM: the maps weighted with the head's weights."""
    model = classifier()
    images, _ = coloured_images(11)
    head = model.get_layer("head")
    assert cam_stages(model) == ["conv1", "conv2", "conv3"]
    maps = keras.Model(model.inputs[0], model.get_layer("conv3_relu").output)(images, training=False).numpy()
    for number in range(3):
        expected = np.maximum(maps @ head.kernel.numpy()[:, number], 0)
        expected /= np.maximum(expected.max(axis=(1, 2), keepdims=True), 1e-9)
        assert expected.max() > 0.9 and expected.min() == 0
        np.testing.assert_allclose(grad_cam(model, images, classes=number), expected, atol=1e-4)


@pytest.mark.parametrize(("size", "taken"), [(80, "conv4"), (48, "conv3"), (20, "conv2"), (9, "conv1")])
def test_the_default_is_the_last_stage_whose_map_tells_places_apart(size, taken):
    images = x = keras.Input((size, size, 3), dtype="uint8")
    x = layers.Rescaling(1 / 255)(x)
    for stage in (1, 2, 3, 4):  # of 80: 40, 20, 10, 5
        x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu", name=f"conv{stage}_conv")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(images, layers.Dense(2, activation="softmax", name="head")(x))
    batch = np.random.default_rng(0).integers(0, 256, (2, size, size, 3)).astype("uint8")
    np.testing.assert_array_equal(grad_cam(model, batch), grad_cam(model, batch, stage=taken))


def test_gradients_are_averaged_over_places_and_not_multiplied_place_by_place():
    """Each place has a weight of its own in this head, which Grad-CAM does not show: only the mean counts."""
    images = keras.Input((4, 4, 3))
    x = layers.Conv2D(2, 1, name="conv1_conv")(images)
    model = keras.Model(images, layers.Softmax()(layers.Dense(3, name="head")(layers.Flatten()(x))))
    batch = np.random.default_rng(0).normal(size=(5, 4, 4, 3)).astype("float32")
    maps = keras.Model(images, x)(batch).numpy()
    weights = model.get_layer("head").kernel.numpy().reshape(4, 4, 2, 3).mean(axis=(0, 1))
    expected = np.maximum(maps @ weights[:, 2], 0)
    expected /= expected.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(grad_cam(model, batch, classes=2), expected, atol=1e-4)


def test_neither_frozen_weights_nor_certainty_nor_a_cut_change_it():
    model, image = red_or_blue(), squares()
    before = grad_cam(model, image)
    certain = red_or_blue(sureness=10_000.0)  # the gradient of a probability of 1 is 0: the logit's is not
    assert certain(image).numpy().max() == 1
    np.testing.assert_allclose(grad_cam(certain, image), before, atol=1e-5)
    prefix, suffix = cut(model, "conv2")
    np.testing.assert_allclose(grad_cam(suffix, prefix(image).numpy()), before, atol=1e-6)
    freeze(model)
    np.testing.assert_array_equal(grad_cam(model, image), before)


def test_a_softmax_within_the_last_layer_is_taken_off():
    model = residual_network(classes=3)
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    dense, linear = model.layers[-1], layers.Dense(3, name="logits")
    logits = keras.Model(model.inputs[0], linear(dense.input))
    linear.set_weights(dense.get_weights())
    for number in range(3):
        expected = grad_cam(logits, images, classes=number)
        assert expected.max() == 1
        np.testing.assert_allclose(grad_cam(model, images, classes=number), expected, atol=1e-5)


def test_a_network_inside_a_network(tmp_path):
    """The tutorial's classifier has no path from its input to the inner layers: ours is flat."""
    images = keras.Input((8, 8, 3), dtype="uint8")
    nested = keras.Model(images, layers.Dense(3, activation="softmax", name="predictions")(stage_network()(images)))
    with pytest.raises(ValueError, match="Received 'conv3'|feature maps"):
        grad_cam(nested, coloured_images(2)[0], stage="conv3")
    nested.save(tmp_path / "nested.keras")
    model = classifier(load_backbone(str(tmp_path / "nested.keras")))
    assert cam_stages(model) == ["conv1", "conv2", "conv3"]
    assert grad_cam(model, coloured_images(2)[0], stage="conv2").max() == 1


def test_batches_and_one_by_one_are_the_same():
    model = classifier()
    images, _ = coloured_images(19)
    together = grad_cam(model, images)
    alone = np.concatenate([grad_cam(model, images[[number]]) for number in (0, 9, 18)])
    np.testing.assert_allclose(together[[0, 9, 18]], alone, atol=1e-4)
    assert together.shape == (19, 8, 8) and together.dtype == np.float32
    assert together.min() >= 0 and together.max() == 1
    assert grad_cam(model, images[:0]).shape == (0, 8, 8)


def test_maps_are_as_large_as_the_images():
    images = keras.Input((12, 20, 3))
    x = layers.Conv2D(1, 4, strides=4, use_bias=False, kernel_initializer="ones", name="conv1_conv")(images)
    model = keras.Model(images, layers.Dense(2, kernel_initializer="ones")(layers.GlobalAveragePooling2D()(x)))
    batch = np.zeros((1, 12, 20, 3), "float32")
    batch[0, 8:12, 12:16] = 1
    (cam,) = grad_cam(model, batch, classes=0)
    assert cam.shape == (12, 20) and cam[9:12, 13:15].min() > 0.8 and cam[:4].max() == cam[:, :8].max() == 0


def test_tokens_and_maps_of_one_cell_are_no_feature_maps():
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 4, strides=4, name="patch_conv")(images)
    x = layers.Dense(4, name="block1_dense")(layers.Reshape((4, 4), name="patch_tokens")(x))
    model = keras.Model(images, layers.Dense(2, name="head")(layers.GlobalAveragePooling1D(name="pool")(x)))
    assert cam_stages(model) == ["patch"]
    for stage in ("block1", "input", "patsh"):
        with pytest.raises(ValueError, match=f"one of patch. Received '{stage}'"):
            grad_cam(model, np.zeros((1, 8, 8, 3), "float32"), stage=stage)
    x = layers.Conv2D(4, 8, name="conv1_conv")(images)
    small = keras.Model(images, layers.Dense(2, name="head")(layers.Flatten(name="flat")(x)), name="small")
    assert cam_stages(small) == []
    with pytest.raises(ValueError, match="'small' has none"):
        grad_cam(small, np.zeros((1, 8, 8, 3), "float32"))


@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetB0", "ConvNeXtTiny", "DenseNet121"])
@pytest.mark.slow
def test_networks_of_keras_applications(name):
    network = load_backbone(name, weights=None, image_size=64)
    model = keras.Model(network.inputs[0], layers.Dense(3, name="head")(network.outputs[0]))
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("uint8")
    for stage in (cam_stages(model)[1], cam_stages(model)[-1]):
        assert grad_cam(model, images, stage=stage, classes=1).shape == (2, 64, 64)


def test_evidence_is_located_at_the_default_stage_unless_there_is_no_map():
    model, image = red_or_blue(), squares()
    np.testing.assert_array_equal(locate_evidence(model, image), grad_cam(model, image))
    np.testing.assert_array_equal(locate_evidence(model, image, stage="conv1"), grad_cam(model, image, stage="conv1"))
    vector = keras.Input((4,))
    assert locate_evidence(keras.Model(vector, layers.Dense(2)(vector)), np.zeros((1, 4))) is None
