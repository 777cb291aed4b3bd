"""Preprocessing is the families' own, and a wrong one is noticed."""

import numpy as np
import pytest
from networks import call, random_images

from helpers.backbones import check_preprocessing, keras, load_backbone
from helpers.backbones.preprocessing import FAMILIES, application_preprocessing, preprocess
from helpers.data import read_pixels


@pytest.fixture(autouse=True)
def fresh_graph():
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)


@pytest.mark.parametrize("family", [family for families in FAMILIES.values() for family in families])
def test_preprocessing_is_the_families_own(family):
    mode = next(mode for mode, families in FAMILIES.items() if family in families)
    ours = keras.ops.convert_to_numpy(preprocess(random_images(), mode))
    theirs = getattr(keras.applications, family).preprocess_input(random_images().astype("float32"))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_every_application_has_its_preprocessing():
    names = [key for key, value in vars(keras.applications).items() if key[0].isupper() and callable(value)]
    assert len(names) > 30
    assert {application_preprocessing(name) for name in names} == set(FAMILIES)


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
    inputs = keras.Input((16, 16, 3))
    x = inputs
    for width in (12, 12):
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.0)(layers.Conv2D(width, 3)(x)))
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
    check = check_preprocessing(with_preprocessing(network, right), images)
    assert check.agrees is True and repr(right) in check.message and check.distances[right] < 0.1
    for wrong in OTHER_WAYS.keys() - {right}:
        check = check_preprocessing(with_preprocessing(network, wrong), images)
        assert check.agrees is False, (wrong, check)
        start = f"This looks like {OTHER_WAYS[wrong]}"
        assert check.message.startswith(start) and f"trained on {OTHER_WAYS[right]}" in check.message
        assert f'preprocessing="{right}"' in check.message
        assert min(check.distances, key=check.distances.get) == right and check.distances.keys() == OTHER_WAYS.keys()


def test_images_of_another_kind_are_no_reason_for_an_alarm():
    images = coloured_noise()
    network = with_preprocessing(trained_on("tf", images), "tf")
    dark = check_preprocessing(network, (images // 25).astype("uint8"))
    assert dark.agrees is None and "images may be unlike" in dark.message
    grey = images.mean(axis=-1, keepdims=True).repeat(3, axis=-1).astype("uint8")
    for others in (255 - images, grey, np.full_like(images, 255), np.zeros_like(images)):
        assert check_preprocessing(network, others).agrees is not False


def test_what_cannot_be_checked_is_said_so():
    images = keras.Input((16, 16, 3), dtype="uint8")
    x = preprocess(images, "tf")
    plain = check_preprocessing(keras.Model(images, keras.layers.Conv2D(4, 3)(x)), coloured_noise())
    assert plain.agrees is None and "no BatchNormalization" in plain.message and plain.distances == {}
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(x))
    untrained = check_preprocessing(keras.Model(images, x), coloured_noise())
    assert untrained.agrees is None and "never been trained" in untrained.message


def test_a_preprocessing_that_is_none_of_ours():
    images = coloured_noise()
    network = trained_on("tf", images)
    raw = keras.Input((16, 16, 3), dtype="uint8")
    for scale, offset, agrees in ((1 / 127.5, -0.99, True), (1 / 10, 5.0, False)):
        own = keras.Model(raw, keras.Function.call(network, preprocess(raw, (scale, offset))))
        check = check_preprocessing(own, images)
        assert check.agrees is agrees and "in place" in check.distances
    hidden = keras.layers.Rescaling(1 / 10, 5.0, name="other")(raw)
    check = check_preprocessing(keras.Model(raw, keras.Function.call(network, hidden)), images)
    assert check.agrees is None and list(check.distances) == ["in place"]


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
    grey = images.mean(axis=-1, keepdims=True).repeat(3, axis=-1).astype("uint8")
    for others in (255 - images, grey):
        assert check_preprocessing(right, others).agrees is True
    for others in (images // 8, images // 25, images // 8 + 112, 255 - (255 - images) // 6):
        assert check_preprocessing(right, others).agrees is not False
