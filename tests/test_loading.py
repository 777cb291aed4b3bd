"""Networks by name, from files and from KerasHub; bad names, files and sizes are explained."""

import sys

import keras_hub
import numpy as np
import pytest
from networks import Stack, call, random_images, residual_network, train
from PIL import Image

from helpers.backbones import (
    audit_weights,
    check_preprocessing,
    copy_weights,
    cut,
    describe_features,
    describe_stages,
    features_tensor,
    freeze,
    keras,
    load_backbone,
    load_model,
    truncate,
)
from helpers.backbones.stages import cut_points, find_stages
from helpers.predict import predict_folder
from helpers.training import attach_head, fit_head, probe_depth, save_model

layers = keras.layers


@pytest.fixture(autouse=True)
def fresh_graph():
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)


def load(model: keras.Model, folder, **options) -> keras.Model:
    model.save(folder / "own.keras")
    return load_backbone(str(folder / "own.keras"), **options)


def close(network, images, expected, rtol=1e-3, atol=1e-5) -> None:
    np.testing.assert_allclose(call(network, images), expected, rtol=rtol, atol=atol)


# ---- files of one's own


def test_files_with_raw_and_with_scaled_input(tmp_path):
    raw, scaled, images = residual_network(dtype="uint8", classes=5), residual_network(), random_images()
    inner = keras.Model(raw.inputs[0], raw.layers[-2].output)
    close(load(raw, tmp_path), images, call(inner, images))
    close(load(scaled, tmp_path, preprocessing="unit"), images, call(scaled, images / 255).mean(axis=(1, 2)))
    flexible = load(convolution(None), tmp_path, preprocessing="unit", image_size=9)
    assert flexible.input_shape == (None, 9, 9, 3)


def convolution(size, channels: int = 3) -> keras.Model:
    return keras.Sequential([keras.Input((size, size, channels)), layers.Conv2D(4, 5, name="conv1")])


def two_inputs() -> keras.Model:
    first, second = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    return keras.Model([first, second], layers.Add()([first, second]))


@keras.saving.register_keras_serializable("tests")
class Own(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(2, 3)

    def call(self, images):
        return self.conv(images)


def own_call() -> keras.Model:
    own = Own()
    own(np.zeros((1, 8, 8, 3)))
    return own


RAW = {"dtype": "uint8", "classes": 5}


@pytest.mark.parametrize(
    ("make", "options", "match"),
    [
        (lambda: residual_network(**RAW), {"preprocessing": "torch"}, "`preprocessing` 'torch'; leave it"),
        (lambda: residual_network(**RAW), {"weights": "x.h5"}, "own weights. Received `weights` 'x.h5'"),
        (lambda: residual_network(**RAW), {"image_size": 16}, "images of 8x8 pixels. Received `image_size` 16"),
        (residual_network, {"preprocessing": "auto"}, "has to be named.*'tf', 'torch', 'caffe', 'unit', 'none'"),
        (lambda: convolution(None), {"image_size": 2}, "own.keras does not take `image_size` 2"),
        (lambda: convolution(None), {"image_size": -3}, "`image_size` above 0.*-3"),
        (lambda: convolution(8, 1), {}, "RGB images.*own.keras takes"),
        (two_inputs, {}, "own.keras.*one input and one output.*with 2 and 1"),
        (own_call, {}, "own.keras cannot be used.*functional Keras model.*a Own without a graph"),
    ],
)
def test_files_that_are_refused(tmp_path, make, options, match):
    with pytest.raises(ValueError, match=match):
        load(make(), tmp_path, **{"preprocessing": "unit"} | options)


# ---- a classifier's head


def pooled(x):
    return layers.GlobalAveragePooling2D(name="pooled")(x)


HEADS = {  # what follows a map of 48 channels, and how many numbers it leaves
    "logits": (lambda x: layers.Dense(5)(pooled(x)), 48),
    "more classes than features": (lambda x: layers.Dense(100)(pooled(x)), 48),
    "a hidden layer": (lambda x: layers.Dense(5)(layers.Dropout(0.5)(layers.Dense(40, "relu")(pooled(x)))), 40),
    "a linear layer before": (lambda x: layers.Dense(5)(layers.Dense(40)(pooled(x))), 40),
    "batch normalization": (lambda x: layers.BatchNormalization()(layers.Dense(5)(pooled(x))), 48),
    "activation": (lambda x: layers.Activation("softmax", dtype="float32")(layers.Dense(5)(pooled(x))), 48),
    "an operation": (lambda x: keras.ops.softmax(layers.Dense(5)(pooled(x)) / 2.0), 48),
    "dropout and reshape": (lambda x: layers.Reshape((5,))(layers.Dropout(0.5)(layers.Dense(5)(pooled(x)))), 48),
    "several labels": (lambda x: layers.Dense(5, activation="sigmoid")(pooled(x)), 48),
    "one number": (lambda x: layers.Dense(1, activation="tanh")(pooled(x)), 48),
    "two heads": (lambda x: layers.Concatenate()([layers.Dense(5)(pooled(x)), layers.Dense(3)(x)[:, 0, 0]]), 48),
    "a convolution": (lambda x: layers.Flatten()(layers.Conv2D(5, 1)(layers.Reshape((1, 1, 48))(pooled(x)))), 48),
    "softmax of a map": (lambda x: layers.Softmax()(pooled(layers.Conv2D(5, 1, activation="relu")(x))), 48),
    "logits of a map": (lambda x: pooled(layers.Conv2D(5, 1)(x)), 48),
}
NONE = {
    "a wide map": (lambda x: pooled(layers.Conv2D(40, 3)(x)), 40),
    "an embedding": (lambda x: layers.Dense(40, activation="relu")(pooled(x)), 40),
    "an embedding of length 1": (lambda x: layers.UnitNormalization()(layers.Dense(40)(pooled(x))), 40),
    "few": (lambda x: layers.Dense(5, activation="relu")(pooled(x)), 5),
    "a softmax that is meant": (lambda x: layers.Identity()(layers.Dense(5, activation="softmax")(pooled(x))), 5),
}


def ending(end) -> keras.Model:
    images = keras.Input((8, 8, 3))
    return keras.Model(images, end(layers.Conv2D(48, 3, activation="relu", name="conv1_conv")(images)))


@pytest.mark.parametrize("end", HEADS | NONE)
def test_the_head_is_found_by_what_it_does(tmp_path, end):
    make, count = (HEADS | NONE)[end]
    network = load(ending(make), tmp_path, preprocessing="unit")
    about = describe_features(network)
    assert network.output_shape == (None, count) and about.startswith(f"{count} features: the output of ")
    assert ("left out: " in about) == (end in HEADS)
    assert ("Warning: they are fewer than 32" in about) == (end == "few")
    assert ("Warning: each image's sum to 1" in about) == (end == "a softmax that is meant")
    assert ("such as 'pooled'" in about) == (count == 5)
    again = load(network, tmp_path)
    np.testing.assert_array_equal(call(again, random_images()), call(network, random_images()))
    assert features_tensor(again) is again.outputs[0], "a second head is never cut off"


def test_features_from_a_layer(tmp_path):
    model = ending(lambda x: layers.Dense(5)(layers.Dense(40, name="inner")(pooled(x))))
    for name, count in (("conv1_conv", 48), ("inner", 40)):
        network = load(model, tmp_path, preprocessing="unit", features_from=name)
        assert network.output_shape == (None, count)
        about = describe_features(network)
        assert ("'conv1_conv', averaged over 36 positions. What follows" in about) == (name == "conv1_conv")
    with pytest.raises(ValueError, match="`features_from`.*Received 'iner'. Did you mean 'inner'"):
        load(model, tmp_path, preprocessing="unit", features_from="iner")
    network = load_backbone("MobileNet", weights=None, image_size=32, features_from="conv_pw_3_relu")
    assert network.output_shape == (None, 128)


@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV3Small"])
def test_networks_with_their_tops(tmp_path, name):
    whole = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3))
    network = load(whole, tmp_path, preprocessing="none")
    dropout = next(layer for layer in reversed(whole.layers) if isinstance(layer, layers.Dropout))
    by_hand = call(keras.Model(whole.inputs[0], dropout.output), random_images(2, 32).astype("float32"))
    close(network, random_images(2, 32), by_hand[:, 0, 0], atol=1e-6)


# ---- names that are taken

NAMES = ["images", "preprocessing", "flip", "avg_pool", "features", "head", "probabilities", "outputs"]
NAMES += ["all_cut_points", "pooled_before_conv3", "input", "all", "auto"]


def test_layers_may_have_any_name(root):
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="conv1_conv")(images)
    for name in NAMES:
        x = layers.Conv2D(4, 3, activation="relu", padding="same", name=name)(x)
    own = keras.Model(images, layers.Conv2D(4, 3, activation="relu", name="conv3_conv")(x))
    network = load(own, root, preprocessing="caffe")
    pixels, labels = random_images(12), np.arange(12) % 2
    check_preprocessing(network, pixels)
    assert not {"all", "auto"} & set(find_stages(network))
    parts = ("train", "validation")
    probe = probe_depth(network, dict.fromkeys(parts, pixels), dict.fromkeys(parts, labels))
    assert list(probe["cut"]) == list(cut_points(network)) and len(probe) > 3
    for cut_point in cut_points(network):
        taken = truncate(network, cut_point)
        model = attach_head(taken, fit_head(call(taken, pixels), labels), class_names=["a", "b"])
    known = {"class_names": ["a", "b"], "pixels": pixels, "labels": labels}
    save_model(model, root / "classifier.keras", resize="crop", **known)
    (root / "new").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(root / "new" / f"{number:02d}.png")
    table = predict_folder(root / "classifier.keras", root / "new", output=root / "predictions.csv")
    np.testing.assert_allclose(table["probability"], call(model, pixels).max(axis=1), atol=1e-4)


# ---- networks inside networks


def check_cuts(network: keras.Model, images: np.ndarray) -> None:
    whole = call(network, images)
    assert np.abs(whole[0] - whole[1]).max() > 1e-3 * np.abs(whole).max()
    for stage in describe_stages(network).index[1:]:
        prefix, suffix = cut(network, stage)
        np.testing.assert_allclose(call(suffix, call(prefix, images)), whole, atol=1e-5 * np.abs(whole).max())


def test_an_inner_network_becomes_part_of_the_graph(tmp_path):
    """As the Keras guide builds a classifier: the pretrained network is a layer, called with training=False."""
    images = keras.Input((8, 8, 3), dtype="uint8")
    x = layers.Rescaling(1 / 127.5, offset=-1, name="conv1_conv")(images)  # a name that comes again inside
    x = residual_network()(x, training=False)
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    own = keras.Model(images, layers.Dense(1, name="decision")(x))
    network = load(own, tmp_path)
    assert list(describe_stages(network).index) == ["input", "functional", "conv2", "conv3"]
    assert not any(isinstance(layer, keras.Model) for layer in network.layers)
    close(network, random_images(), call(keras.Model(own.inputs[0], own.layers[-3].output), random_images()))
    check_cuts(network, random_images())
    assert freeze(network, unfreeze_from="conv3")["trainable"].tolist() == [0, 0, 0, 4 * 6 * 9 + 6]


def test_inner_networks_of_inner_networks_and_sequential_ones(tmp_path):
    inner = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(4, 1, name="conv")], name="inner")
    middle_input = keras.Input((8, 8, 4))
    middle = keras.Model(middle_input, inner(inner(middle_input)), name="middle")
    images = keras.Input((8, 8, 3))
    x = middle(layers.Conv2D(4, 1, name="conv")(images))
    own = keras.Model(images, layers.Conv2D(2, 1, name="conv9")(x))
    network = load(own, tmp_path, preprocessing="unit")
    assert network.count_params() == own.count_params()
    table = describe_stages(network)
    assert list(table.index) == ["input", "conv", "inner", "conv9"]
    assert table.loc["inner", "multiply_adds"] == 2 * 64 * 16 and table.loc["inner", "parameters"] == 20
    close(network, random_images(), call(own, random_images() / 255).mean(axis=(1, 2)))


@pytest.mark.parametrize("scale", [False, True])
def test_a_stack_is_taken_apart_where_its_blocks_are_all_of_it(tmp_path, scale):
    images = keras.Input((8, 8, 3))
    own = keras.Model(images, Stack(scale=scale, name="blocks")(layers.Conv2D(4, 1, name="stem_conv")(images)))
    network = load(own, tmp_path, preprocessing="unit")
    blocks = ["blocks"] if scale else ["block_0", "block_1", "block_2"]
    assert list(describe_stages(network).index) == ["input", "stem", *blocks]
    assert network.count_params() == own.count_params()
    close(network, random_images(), call(own, random_images() / 255).mean(axis=(1, 2)))


def test_squeezenet(real_data):
    path = str(real_data / "weights" / "squeezenet_imagenet_notop.keras")
    network, own, images = load_backbone(path, preprocessing="caffe"), load_model(path), random_images(2, 227)
    assert list(find_stages(network))[1:3] == ["conv1", "fire2"]
    by_hand = call(own, images[..., ::-1].astype("float32") - [103.939, 116.779, 123.68]).mean(axis=(1, 2))
    close(network, images, by_hand, atol=1e-4)


# ---- presets of KerasHub


def save_preset(folder, backbone, **converter) -> str:
    backbone.save_to_preset(str(folder))
    kind = type(backbone).__name__.replace("Backbone", "ImageConverter")
    getattr(keras_hub.layers, kind)(**converter).save_to_preset(str(folder))
    return f"hub:{folder}"


def tiny_vit(**options) -> keras.Model:
    sizes = {"patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    return keras_hub.models.ViTBackbone(image_shape=(32, 32, 3), **sizes, **options)


def test_a_resnet_of_kerashub(tmp_path):
    blocks = {"stackwise_num_filters": [64, 64], "stackwise_num_blocks": [1, 2], "stackwise_num_strides": [1, 2]}
    stem = {"input_conv_filters": [64], "input_conv_kernel_sizes": [7]}
    own = keras_hub.models.ResNetBackbone(**stem, **blocks, block_type="basic_block")
    name = save_preset(tmp_path / "tiny", own, scale=[0.01, 0.02, 0.03], offset=[-1.0, 0.0, 1.0])
    network, images = load_backbone(name, image_size=32), random_images(2, 32)
    assert list(describe_stages(network).index) == ["input", "conv1", "stack0", "stack1"]
    close(network, images, call(own, images * np.array([0.01, 0.02, 0.03]) + [-1, 0, 1]).mean(axis=(1, 2)))
    check_cuts(network, images)
    named = load_backbone(name, image_size=32, preprocessing="unit")
    close(named, images, call(own, images / 255).mean(axis=(1, 2)))
    assert load_backbone(name).input_shape == (None, 224, 224, 3)


@pytest.mark.parametrize("class_token", [True, False])
def test_a_vision_transformer_of_kerashub(tmp_path, class_token):
    own, images = tiny_vit(use_class_token=class_token, use_patch_bias=False), random_images(3, 32)
    network = load_backbone(save_preset(tmp_path / "tiny", own, scale=1 / 127.5, offset=-1.0))
    blocks = [f"transformer_block_{number}" for number in (1, 2, 3)]
    table = describe_stages(network)
    assert list(table.index) == ["input", "stem", *blocks]
    tokens, width, hidden = 16 + class_token, 16, 32
    products = tokens * (4 * width * width + 2 * width * hidden) + 2 * tokens * tokens * width
    assert (table.loc[blocks, "multiply_adds"] == products).all()
    outputs = call(own, images / 127.5 - 1)
    close(network, images, outputs[:, 0] if class_token else outputs.mean(axis=1), atol=1e-4)
    check_cuts(network, images)
    freeze(network, unfreeze_from="transformer_block_3")
    before = copy_weights(network)
    train(network, images)
    audit = audit_weights(network, before)
    assert audit["changed"].tolist()[:4] == [0, 0, 0, 0] and audit["changed"].iloc[4] > 10
    assert audit["frozen_changed"].sum() == 0


def test_a_network_of_kerashub_is_saved_and_loaded_twice(tmp_path, monkeypatch):
    """What its own layers say about themselves would not do: `get_config` names what the constructor refuses."""
    network = load_backbone(save_preset(tmp_path / "tiny", tiny_vit(), scale=1 / 255))
    block = network.get_layer("transformer_block_1")
    with pytest.raises(TypeError):
        type(block).from_config(type(block).get_config(block))
    images = random_images(2, 32)
    network.save(tmp_path / "once.keras")
    once = load_model(tmp_path / "once.keras")
    for model in (once, load(once, tmp_path)):
        np.testing.assert_array_equal(call(model, images), call(network, images))
        assert list(describe_stages(model).index) == list(describe_stages(network).index)
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    for name in ("hub:resnet_50", str(tmp_path / "own.keras")):
        with pytest.raises(ValueError, match=r"KerasHub, which is not installed.*pip install"):
            load_backbone(name)


def test_presets_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="Did you mean 'resnet_50_imagenet'.*hub:path/to/folder"):
        load_backbone("hub:resnet_50_imagenett")
    with pytest.raises(ValueError, match="nowhere' of KerasHub could not be loaded"):
        load_backbone(f"hub:{tmp_path}/nowhere")

    def offline(*args, **kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("keras_hub.src.utils.preset_utils.get_file", offline)
    with pytest.raises(ValueError, match="service not known.*hub:path/to/folder"):
        load_backbone("hub:resnet_50_imagenet")


# ---- networks of keras.applications, and their weights


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mobilenet.weights.h5"
    keras.utils.set_random_seed(7)
    keras.applications.MobileNet(include_top=False, weights=None, input_shape=(32, 32, 3)).save_weights(path)
    (path.parent / "cut.weights.h5").write_bytes(path.read_bytes()[:1_000_000])
    residual_network(dtype="uint8").save(path.parent / "x.keras")
    whole = (path.parent / "x.keras").read_bytes()
    (path.parent / "cut.keras").write_bytes(whole[: len(whole) // 2])
    return path


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"backbone": "ResNet5O"}, ValueError, "'ResNet5O'.*Did you mean 'ResNet50'"),
        ({"backbone": "mobilenetv2"}, ValueError, "Did you mean 'MobileNetV2'"),
        ({"backbone": "own.h5"}, ValueError, "'own.h5'.*'own.keras'"),
        ({"backbone": "{}/nowhere.keras"}, FileNotFoundError, "`backbone`.*nowhere.keras"),
        ({"backbone": "{}/cut.keras"}, ValueError, "cut.keras cannot be loaded.*cut off"),
        ({"preprocessing": "imagenet"}, ValueError, "`preprocessing`.*Received 'imagenet'"),
        ({"image_size": 16}, ValueError, "MobileNet does not take `image_size` 16.*at least 32x32"),
        ({"weights": "{}/nowhere.weights.h5"}, FileNotFoundError, "`weights`.*nowhere.weights.h5"),
        ({"weights": "{}/cut.weights.h5"}, ValueError, "weights file of MobileNet.*cut.weights.h5.*cut off"),
        ({"backbone": "MobileNetV2", "weights": "{}/mobilenet.weights.h5"}, ValueError, "file of MobileNetV2"),
        ({"backbone": "ResNet50", "weights": "{}/mobilenet.weights.h5"}, ValueError, "weights file of ResNet50"),
    ],
)
def test_what_cannot_be_loaded_is_explained(weights_file, options, error, match):
    options = {"backbone": "MobileNet", "weights": None, "image_size": 32} | options
    options = {name: str(x).format(weights_file.parent) if isinstance(x, str) else x for name, x in options.items()}
    with pytest.raises(error, match=match):
        load_backbone(**options)


def test_weights_files_are_loaded_whole(weights_file, monkeypatch):
    """Keras only warns where a nested layer's group is missing in the file, and continues with random weights."""
    network = load_backbone("MobileNet", weights=str(weights_file), image_size=32)
    plain = keras.applications.MobileNet(include_top=False, weights=None, input_shape=(32, 32, 3))
    plain.load_weights(weights_file)
    for ours, theirs in zip(network.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    monkeypatch.setattr(keras.Model, "load_weights", lambda self, path: None)
    with pytest.raises(ValueError, match="brings nothing for 27 of its kernels, among them conv1/kernel"):
        load_backbone("MobileNet", weights=str(weights_file), image_size=32)


def test_no_network_for_imagenet(monkeypatch):
    def get_file(*args, **kwargs):
        raise Exception("URL fetch failure on somewhere: None -- Name or service not known")

    monkeypatch.setattr("keras.src.applications.mobilenet.file_utils.get_file", get_file)
    with pytest.raises(ValueError, match='MobileNet could not be downloaded.*Name or service.*weights="path/to'):
        load_backbone("MobileNet", weights="imagenet")


def test_a_file_without_its_weights_is_the_same_network_at_random(tmp_path):
    """What was adapted to the images' values stays: that is preprocessing."""
    normalization = layers.Normalization(mean=[10.0, 20.0, 30.0], variance=[1.0, 4.0, 9.0], name="adapted")
    adapted = layers.Normalization(name="measured")
    adapted.adapt(np.random.default_rng(0).normal(5, 2, (50, 8, 8, 3)))
    images = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv1_conv")(adapted(normalization(images)))
    x = layers.BatchNormalization(name="conv1_bn", moving_mean_initializer="zeros")(x)
    network = keras.Model(images, layers.GlobalAveragePooling2D()(x))
    network.get_layer("conv1_bn").set_weights([np.full(4, value) for value in (2.0, 3.0, 4.0, 5.0)])
    before, after = (
        {w.path: np.array(w) for w in load(network, tmp_path, weights=weights, preprocessing="none").weights}
        for weights in ("imagenet", "None")
    )
    assert before.keys() == after.keys()
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert {path.split("/")[0] for path in changed} == {"conv1_conv", "conv1_bn"}
    assert np.all(after["conv1_bn/moving_mean"] == 0) and np.all(after["conv1_bn/gamma"] == 1)
