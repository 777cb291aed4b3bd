"""Preprocessing is the families' own, and a wrong one is noticed."""

import sys

import numpy as np
import pytest
from networks import call, random_images

from helpers.backbones import check_preprocessing, keras, load_backbone
from helpers.backbones.loading import application_names
from helpers.backbones.preprocessing import PREPROCESSING, application_preprocessing, preprocess
from helpers.data import read_pixels


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def test_preprocessing_is_the_families_own():
    modes = {name: application_preprocessing(name) for name in application_names()}
    assert len(modes) > 30 and set(modes.values()) == set(PREPROCESSING) - {"unit"}
    assert [modes[name] for name in ("ResNet50", "MobileNetV2", "DenseNet121")] == ["caffe", "tf", "torch"]
    for name, mode in modes.items():
        module = sys.modules[getattr(keras.applications, name).__module__]
        theirs = module.preprocess_input(random_images().astype("float32"))
        ours = keras.ops.convert_to_numpy(preprocess(random_images(), mode))
        np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=name)


def test_a_network_takes_raw_images_and_gives_features():
    network = load_backbone("MobileNet", weights=None, image_size=32)
    assert network.input_shape == (None, 32, 32, 3) and network.inputs[0].dtype == "uint8"
    plain = keras.applications.MobileNet(include_top=False, weights=None, input_shape=(32, 32, 3))
    plain.set_weights(network.get_weights())
    images = random_images(3, 32)
    by_hand = call(plain, images / 127.5 - 1).mean(axis=(1, 2))
    np.testing.assert_allclose(call(network, images), by_hand, atol=1e-5)


# ---- are the values those that the network was trained on?

OTHER_WAYS = {"unit": "0..1", "torch": "standardised", "caffe": "centred BGR", "none": "0..255", "tf": "-1..1"}


def trained_on(mode: str, images: np.ndarray) -> keras.Model:
    """A network whose BatchNormalization layers have seen images with one preprocessing; it has another in place."""
    layers = keras.layers
    inputs = x = keras.Input((16, 16, 3))
    for _ in range(2):
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.0)(layers.Conv2D(12, 3)(x)))
    network = keras.Model(inputs, x)
    for _ in range(3):  # without momentum, the last batch is what they remember
        network(preprocess(images, mode), training=True)
    return network


def with_preprocessing(network: keras.Model, mode: str) -> keras.Model:
    images = keras.Input(network.input_shape[1:], dtype="uint8")
    model = keras.Model(images, keras.Function.call(network, preprocess(images, mode)))
    copy = keras.Model.from_config(model.get_config())
    copy.set_weights(network.get_weights())
    return copy


def coloured_noise(count: int = 40) -> np.ndarray:
    """Images with contrast and with colours that differ, as photos have."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (count, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return (blocks * [0.9, 0.7, 0.5]).astype("uint8")


@pytest.mark.parametrize("right", OTHER_WAYS)
def test_the_right_preprocessing_is_told_from_every_other(right):
    images = coloured_noise()
    network = trained_on(right, images)
    for mode in OTHER_WAYS:
        check = check_preprocessing(with_preprocessing(network, mode), images)
        assert check.agrees is (mode == right), (mode, check)
        assert min(check.distances, key=check.distances.get) == right and check.distances.keys() == OTHER_WAYS.keys()
        if mode == right:
            assert repr(right) in check.message and check.distances[right] < 0.1
        else:
            assert check.message.startswith(f"This looks like {OTHER_WAYS[mode]}")
            assert f"trained on {OTHER_WAYS[right]}" in check.message and f'"{right}"' in check.message


def test_images_of_another_kind_are_no_reason_for_an_alarm():
    images = coloured_noise()
    network = with_preprocessing(trained_on("tf", images), "tf")
    dark = check_preprocessing(network, (images // 25).astype("uint8"))
    assert dark.agrees is None and "images may be unlike" in dark.message
    for others in (255 - images, grey(images), np.full_like(images, 255), np.zeros_like(images)):
        assert check_preprocessing(network, others).agrees is not False


def grey(images: np.ndarray) -> np.ndarray:
    return images.mean(axis=-1, keepdims=True).repeat(3, axis=-1).astype("uint8")


def test_what_cannot_be_checked_is_said_so():
    images = keras.Input((16, 16, 3), dtype="uint8")
    convolved = keras.layers.Conv2D(4, 3)(preprocess(images, "tf"))
    for output, word in (
        (convolved, "no BatchNormalization"),
        (keras.layers.BatchNormalization()(convolved), "never been trained"),
    ):
        check = check_preprocessing(keras.Model(images, output), coloured_noise())
        assert check.agrees is None and word in check.message and check.distances == {}


def test_a_preprocessing_that_is_none_of_ours():
    images = coloured_noise()
    network = trained_on("tf", images)
    raw = keras.Input((16, 16, 3), dtype="uint8")
    hidden = keras.layers.Rescaling(1 / 10, 5.0, name="other")(raw)
    ways = {True: preprocess(raw, (1 / 127.5, -0.99)), False: preprocess(raw, (1 / 10, 5.0)), None: hidden}
    for agrees, prepared in ways.items():
        check = check_preprocessing(keras.Model(raw, keras.Function.call(network, prepared)), images)
        assert check.agrees is agrees and "in place" in check.distances
    assert list(check.distances) == ["in place"]


REAL = {
    "MobileNetV2": ("mobilenet_v2_1.0_224_notop.weights.h5", {"input_shape": (224, 224, 3)}),
    "MobileNet": ("mobilenet_v1_0.25_128_notop.weights.h5", {"input_shape": (128, 128, 3), "alpha": 0.25}),
}


@pytest.mark.parametrize(
    ("name", "folder"), [("MobileNetV2", "flowers"), ("MobileNet", "flowers"), ("MobileNet", "hymenoptera")]
)
def test_real_networks_and_photos(real_data, name, folder):
    file, options = REAL[name]
    weights = str(real_data / "weights" / file)
    network = getattr(keras.applications, name)(include_top=False, weights=weights, **options)
    paths = sorted((real_data / "data" / folder).rglob("*.jpg"))
    images = np.stack([read_pixels(path, network.input_shape[1:3]) for path in paths[:: len(paths) // 40][:40]])
    right = with_preprocessing(network, "tf")
    check = check_preprocessing(right, images)
    assert check.agrees is True and check.distances["tf"] < 0.05
    assert min(value for mode, value in check.distances.items() if mode != "tf") > 0.25
    for wrong in ("torch", "caffe", "unit", "none"):
        check = check_preprocessing(with_preprocessing(network, wrong), images[:16])
        assert check.agrees is False and "trained on -1..1" in check.message and OTHER_WAYS[wrong] in check.message
    images = images[:16]
    for others in (255 - images, grey(images)):
        assert check_preprocessing(right, others).agrees is True
    for others in (images // 8, images // 25, images // 8 + 112, 255 - (255 - images) // 6):
        assert check_preprocessing(right, others).agrees is not False
