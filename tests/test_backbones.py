"""Prefix and suffix compose to the whole; frozen means bit-equal; bad names, files and sizes are explained."""

import shutil

import numpy as np
import pytest

from helpers.backbones import (
    PREPROCESSING,
    audit_weights,
    copy_weights,
    cut,
    describe_stages,
    freeze,
    keras,
    load_backbone,
    preprocess,
    upper_half,
)
from helpers.backbones.preprocessing import FAMILIES as FAMILIES_BY_MODE
from helpers.backbones.preprocessing import application_preprocessing

FAMILIES = {  # one network of each family, with the stages that people know
    "ResNet50": ["input", "conv1", "conv2", "conv3", "conv4", "conv5"],
    "ResNet50V2": ["input", "conv1", "conv2", "conv3", "conv4", "conv5"],
    "VGG16": ["input", "block1", "block2", "block3", "block4", "block5"],
    "MobileNet": ["input", "conv1", *(f"block_{n}" for n in range(1, 14))],
    "MobileNetV2": ["input", "Conv1", "expanded_conv", *(f"block_{n}" for n in range(1, 17)), "Conv_1"],
    "EfficientNetB0": ["input", "stem", *(f"block{n}" for n in range(1, 8)), "top"],
    "EfficientNetV2B0": ["input", "stem", *(f"block{n}" for n in range(1, 7)), "top"],
    "DenseNet121": ["input", "conv1", "conv2", "pool2", "conv3", "pool3", "conv4", "pool4", "conv5"],
}


@pytest.fixture(autouse=True)
def fresh_graph():
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)


def residual_network(*, size: int = 8, classes: int = 0, dtype: str = "float32") -> keras.Model:
    """A small network with BatchNormalization, a shortcut and names like ResNet50's."""
    layers = keras.layers
    images = keras.Input((size, size, 3), dtype=dtype)
    x = layers.Rescaling(1 / 255)(images) if dtype == "uint8" else images
    x = layers.Conv2D(4, 3, padding="same", name="conv1_conv")(x)
    x = shortcut = layers.BatchNormalization(name="conv1_bn")(x)
    x = layers.Conv2D(4, 3, padding="same", name="conv2_block1_conv")(x)
    x = layers.BatchNormalization(name="conv2_block1_bn")(x)
    x = layers.ReLU(name="conv2_block1_out")(layers.Add(name="conv2_block1_add")([shortcut, x]))
    x = layers.Conv2D(6, 3, name="conv3_block1_conv")(x)
    x = layers.BatchNormalization(name="conv3_block1_bn")(x)
    if classes:
        x = layers.GlobalAveragePooling2D()(x)
        x = layers.Dense(classes, activation="softmax", name="predictions")(x)
    return keras.Model(images, x)


def random_images(count: int = 4, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3)).astype("uint8")


def call(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(images, training=False))  # `predict` would compile it first


def train(model: keras.Model, images: np.ndarray, *, epochs: int = 2) -> None:
    model.compile(keras.optimizers.SGD(0.1), "mse")
    targets = np.random.default_rng(1).normal(size=(len(images), *model.output_shape[1:]))
    model.fit(images, targets, epochs=epochs, verbose=0)


# ---- stages


SLOW = ("ResNet50V2", "EfficientNetV2B0", "DenseNet121")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in FAMILIES])
def test_stages_and_cuts_of_every_family(name):
    network = load_backbone(name, weights=None, image_size=48)
    table = describe_stages(network)
    assert list(table.index) == FAMILIES[name]
    assert table["parameters"].sum() == network.count_params()
    images = random_images(2, 48)
    whole = call(network, images)
    assert np.ptp(whole) > 0
    for stage in (table.index[1], table.index[len(table) // 2], table.index[-1]):
        prefix, suffix = cut(network, stage)
        composed = call(suffix, call(prefix, images))
        np.testing.assert_allclose(composed, whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Xception", "InceptionV3", "MobileNetV3Small", "ConvNeXtTiny", "NASNetMobile"])
def test_other_families_have_stages(name):
    network = load_backbone(name, weights=None, image_size=96)
    assert len(describe_stages(network)) >= 3
    prefix, suffix = cut(network, describe_stages(network).index[2])
    images = random_images(1, 96)
    composed = call(suffix, call(prefix, images))
    np.testing.assert_allclose(composed, call(network, images), rtol=1e-4, atol=1e-5)


def test_unknown_stages_are_answered_with_the_known_ones():
    network = residual_network()
    for use in (lambda: cut(network, "conv9"), lambda: freeze(network, unfreeze_from="conv9")):
        with pytest.raises(ValueError, match="'conv9'.*conv1, conv2, conv3"):
            use()
    with pytest.raises(ValueError, match="'input'"):
        cut(network, "input")


def test_the_upper_half_is_counted_without_the_head():
    network = residual_network(dtype="uint8", classes=3)
    assert list(describe_stages(network).index) == ["input", "conv1", "conv2", "conv3", "predictions"]
    assert upper_half(network) == "conv3"


# ---- freezing


@pytest.mark.parametrize("stage", ["conv1", "conv2", "conv3"])
def test_frozen_means_bit_equal(stage):
    network = residual_network()
    freeze(network, unfreeze_from=stage)
    before = copy_weights(network)
    _, suffix = cut(network, stage)
    prefix, _ = cut(network, stage)
    train(suffix, prefix.predict(random_images(), verbose=0))
    audit = audit_weights(network, before)
    known = list(audit.index)
    assert (audit.loc[: known[known.index(stage) - 1], "changed"] == 0).all()
    assert (audit.loc[stage:, "changed"] == 2).all(), "kernel and bias of each stage, no BatchNormalization"
    assert audit[["frozen_changed", "trainable_unchanged"]].to_numpy().sum() == 0
    changed = {path for path, old in before.items() if not np.array_equal(old, copy_weights(network)[path])}
    assert not any("bn" in path for path in changed)


def test_everything_frozen():
    network = residual_network()
    table = freeze(network)
    assert table["trainable"].sum() == 0 and table["weights"].sum() == network.count_params()
    assert not network.trainable_weights
    before = copy_weights(network)
    images = random_images().astype("float32")
    head = keras.Sequential([network, keras.layers.Flatten(), keras.layers.Dense(1)])
    train(head, images)
    assert audit_weights(network, before)["changed"].sum() == 0


def test_batch_norm_train_lets_statistics_move():
    network = residual_network()
    freeze(network, unfreeze_from="conv2", batch_norm="train")
    before = copy_weights(network)
    train(network, random_images().astype("float32"))
    moved = {path for path, old in before.items() if not np.array_equal(old, copy_weights(network)[path])}
    assert any("moving_mean" in path for path in moved)
    assert not any(path.startswith("conv1") for path in moved)
    with pytest.raises(ValueError, match="`batch_norm`.*'maybe'"):
        freeze(network, batch_norm="maybe")


def test_the_audit_finds_what_should_not_have_changed():
    network = residual_network()
    freeze(network, unfreeze_from="conv3")
    before = copy_weights(network)
    kernel = network.get_layer("conv1_conv").kernel
    kernel.assign(np.nextafter(np.array(kernel), np.inf))  # the least change there is
    audit = audit_weights(network, before)
    assert audit.loc["conv1", "frozen_changed"] == 1
    assert audit.loc["conv3", "trainable_unchanged"] == 2


def test_trap_calling_with_training_false_does_not_protect_the_statistics():
    network = residual_network()
    images = keras.Input((8, 8, 3))
    guide = keras.Model(images, network(images, training=False))  # the guide's way, with the layers trainable
    before = copy_weights(network)
    train(guide, random_images().astype("float32"))
    moved = [path for path, old in before.items() if not np.array_equal(old, copy_weights(network)[path])]
    assert any("moving" in path for path in moved), "the tutorial's way changes the statistics"


def test_trap_trainable_after_the_first_fit_is_ignored():
    network = residual_network()
    train(network, random_images().astype("float32"), epochs=1)
    freeze(network)
    before = copy_weights(network)
    targets = np.zeros((4, *network.output_shape[1:]))
    network.fit(random_images().astype("float32"), targets, verbose=0)  # not compiled again
    assert audit_weights(network, before)["changed"].sum() > 0, "Keras ignores the change without a word"
    before = copy_weights(network)
    network.compile(keras.optimizers.SGD(0.1), "mse")
    network.fit(random_images().astype("float32"), targets, verbose=0)
    assert audit_weights(network, before)["changed"].sum() == 0


def test_flags_and_weights_survive_saving(tmp_path):
    network = residual_network()
    freeze(network, unfreeze_from="conv3")
    network.save(tmp_path / "x.keras")
    loaded = keras.models.load_model(tmp_path / "x.keras")
    for layer in network.layers:
        assert not layer.weights or loaded.get_layer(layer.name).trainable == layer.trainable, layer.name
    assert audit_weights(loaded, copy_weights(network))["changed"].sum() == 0


# ---- preprocessing


@pytest.mark.parametrize("family", [family for families in FAMILIES_BY_MODE.values() for family in families])
def test_preprocessing_is_the_families_own(family, tmp_path):
    mode = next(mode for mode, families in FAMILIES_BY_MODE.items() if family in families)
    images = keras.Input((8, 8, 3), dtype="uint8")
    model = keras.Model(images, preprocess(images, mode))
    model.save(tmp_path / "x.keras")
    ours = keras.models.load_model(tmp_path / "x.keras").predict(random_images(), verbose=0)
    theirs = getattr(keras.applications, family).preprocess_input(random_images().astype("float32"))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_every_application_has_its_preprocessing():
    names = [key for key, value in vars(keras.applications).items() if key[0].isupper() and callable(value)]
    assert len(names) > 30
    assert {application_preprocessing(name) for name in names} == set(FAMILIES_BY_MODE)


def test_a_network_takes_raw_images_and_gives_features():
    network = load_backbone("MobileNet", weights=None, image_size=32)
    assert network.input_shape == (None, 32, 32, 3) and network.inputs[0].dtype == "uint8"
    plain = keras.applications.MobileNet(include_top=False, weights=None, input_shape=(32, 32, 3))
    plain.set_weights(network.get_weights())
    images = random_images(3, 32)
    by_hand = plain.predict(images / 127.5 - 1, verbose=0).mean(axis=(1, 2))
    np.testing.assert_allclose(network.predict(images, verbose=0), by_hand, atol=1e-5)


# ---- files of one's own


def test_a_file_with_raw_input_needs_no_preprocessing_named(tmp_path):
    own = residual_network(dtype="uint8", classes=5)
    own.save(tmp_path / "own.keras")
    network = load_backbone(str(tmp_path / "own.keras"))
    assert network.output_shape == (None, 6), "the classifier's softmax is cut off"
    inner = keras.Model(own.inputs[0], own.layers[-2].output)
    np.testing.assert_allclose(network.predict(random_images(), verbose=0), inner.predict(random_images(), verbose=0))


def test_a_file_with_scaled_input_needs_its_preprocessing_named(tmp_path):
    own = residual_network()
    own.save(tmp_path / "own.keras")
    with pytest.raises(ValueError, match="`preprocessing` has to be named.*'tf', 'torch', 'caffe', 'unit', 'none'"):
        load_backbone(str(tmp_path / "own.keras"))
    network = load_backbone(str(tmp_path / "own.keras"), preprocessing="unit")
    by_hand = own.predict(random_images() / 255, verbose=0).mean(axis=(1, 2))
    np.testing.assert_allclose(network.predict(random_images(), verbose=0), by_hand, atol=1e-5)


def test_what_a_file_brings_is_not_overruled_silently(tmp_path):
    residual_network(dtype="uint8").save(tmp_path / "own.keras")
    with pytest.raises(ValueError, match="`preprocessing` 'torch'; leave it"):
        load_backbone(str(tmp_path / "own.keras"), preprocessing="torch")
    with pytest.raises(ValueError, match="own weights. Received `weights` 'x.h5'"):
        load_backbone(str(tmp_path / "own.keras"), weights="x.h5")


def test_sequential_models_are_taken_and_others_are_refused(tmp_path):
    layers = keras.layers
    keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="conv1")]).save(tmp_path / "s.keras")
    assert load_backbone(str(tmp_path / "s.keras"), preprocessing="unit").output_shape == (None, 4)
    flexible = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 5, name="conv1")])
    flexible.save(tmp_path / "f.keras")
    assert load_backbone(str(tmp_path / "f.keras"), preprocessing="unit", image_size=9).input_shape == (None, 9, 9, 3)
    with pytest.raises(ValueError, match="f.keras does not take `image_size` 2"):
        load_backbone(str(tmp_path / "f.keras"), preprocessing="unit", image_size=2)
    with pytest.raises(ValueError, match="`image_size` above 0.*-3"):
        load_backbone(str(tmp_path / "f.keras"), preprocessing="unit", image_size=-3)
    first, second = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    keras.Model([first, second], layers.Add()([first, second])).save(tmp_path / "two.keras")
    with pytest.raises(ValueError, match="two.keras.*one input and one output.*with 2 and 1"):
        load_backbone(str(tmp_path / "two.keras"), preprocessing="unit")
    grey = keras.Input((8, 8, 1))
    keras.Model(grey, layers.Conv2D(4, 3)(grey)).save(tmp_path / "grey.keras")
    with pytest.raises(ValueError, match="RGB images.*grey.keras takes"):
        load_backbone(str(tmp_path / "grey.keras"), preprocessing="unit")


# ---- bad input


def test_unknown_names():
    with pytest.raises(ValueError, match="'ResNet5O'.*Did you mean 'ResNet50'"):
        load_backbone("ResNet5O")
    with pytest.raises(ValueError, match="'mobilenetv2'.*Did you mean 'MobileNetV2'"):
        load_backbone("mobilenetv2")
    with pytest.raises(ValueError, match="`preprocessing`.*Received 'imagenet'"):
        load_backbone("MobileNet", weights=None, preprocessing="imagenet")
    assert all(meaning for meaning in PREPROCESSING.values())


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="`backbone`.*nowhere.keras"):
        load_backbone(str(tmp_path / "nowhere.keras"))
    with pytest.raises(FileNotFoundError, match="`weights`.*nowhere.weights.h5"):
        load_backbone("MobileNet", weights=str(tmp_path / "nowhere.weights.h5"), image_size=32)
    residual_network(dtype="uint8").save(tmp_path / "x.keras")
    whole = (tmp_path / "x.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut.keras cannot be loaded"):
        load_backbone(str(tmp_path / "cut.keras"))


def test_image_size_below_the_minimum_and_other_than_the_files(tmp_path):
    with pytest.raises(ValueError, match="MobileNet does not take `image_size` 16.*at least 32x32"):
        load_backbone("MobileNet", weights=None, image_size=16)
    residual_network(dtype="uint8").save(tmp_path / "x.keras")
    with pytest.raises(ValueError, match="takes images of 8x8 pixels. Received `image_size` 16"):
        load_backbone(str(tmp_path / "x.keras"), image_size=16)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mobilenet.weights.h5"
    keras.utils.set_random_seed(7)
    keras.applications.MobileNet(include_top=False, weights=None, alpha=1.0, input_shape=(32, 32, 3)).save_weights(
        path
    )
    return path


def test_weights_files_are_loaded_whole(weights_file):
    network = load_backbone("MobileNet", weights=str(weights_file), image_size=32)
    plain = keras.applications.MobileNet(include_top=False, weights=None, input_shape=(32, 32, 3))
    plain.load_weights(weights_file)
    for ours, theirs in zip(network.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50", "EfficientNetB0"])
def test_weights_of_another_architecture_are_refused(weights_file, name):
    with pytest.raises(ValueError, match=f"weights file of {name}.*mobilenet.weights.h5"):
        load_backbone(name, weights=str(weights_file), image_size=32)


def test_kernels_that_a_file_did_not_bring_are_noticed(weights_file, monkeypatch):
    """Keras only warns where a nested layer's group is missing in the file, and goes on with random weights."""
    monkeypatch.setattr(keras.Model, "load_weights", lambda self, path: None)
    with pytest.raises(ValueError, match="brings nothing for 27 of its kernels, among them conv1/kernel"):
        load_backbone("MobileNet", weights=str(weights_file), image_size=32)


def test_truncated_weights_are_refused(weights_file, tmp_path):
    cut_off = tmp_path / "cut.weights.h5"
    shutil.copy(weights_file, cut_off)
    with open(cut_off, "r+b") as file:
        file.truncate(cut_off.stat().st_size // 2)
    with pytest.raises(ValueError, match="cut.weights.h5 cannot be loaded.*cut off"):
        load_backbone("MobileNet", weights=str(cut_off), image_size=32)


def test_no_network_for_imagenet(monkeypatch):
    def get_file(*args, **kwargs):
        raise Exception("URL fetch failure on somewhere: None -- Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    monkeypatch.setattr("keras.src.applications.mobilenet.file_utils.get_file", get_file)
    with pytest.raises(ValueError, match='MobileNet could not be downloaded.*Name or service.*weights="path/to'):
        load_backbone("MobileNet", weights="imagenet")
