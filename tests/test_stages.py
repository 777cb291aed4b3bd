"""The network splits at every cut point, and prefix and suffix compose to the whole."""

import ast
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from networks import call, random_images, residual_network

import helpers
from helpers.backbones import cut, describe_stages, freeze, keras, load_backbone, truncate
from helpers.backbones.loading import application_names
from helpers.backbones.stages import find_stages, stage_at


@pytest.fixture(autouse=True)
def fresh_graph():
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)


FAMILIES = {  # one network of each family, with the stages that people know
    "ResNet50": ["input", *(f"conv{n}" for n in range(1, 6))],
    "ResNet50V2": ["input", *(f"conv{n}" for n in range(1, 6))],
    "VGG16": ["input", *(f"block{n}" for n in range(1, 6))],
    "MobileNet": ["input", "conv1", *(f"block_{n}" for n in range(1, 14))],
    "MobileNetV2": ["input", "Conv1", "expanded_conv", *(f"block_{n}" for n in range(1, 17)), "Conv_1"],
    "EfficientNetB0": ["input", "stem", *(f"block{n}" for n in range(1, 8)), "top"],
    "EfficientNetV2B0": ["input", "stem", *(f"block{n}" for n in range(1, 7)), "top"],
    "DenseNet121": ["input", "conv1", "conv2", "pool2", "conv3", "pool3", "conv4", "pool4", "conv5"],
    "ConvNeXtTiny": ["input", "stem", *"stage_0 downsampling_block_0 stage_1 downsampling_block_1".split(), "stage_2"]
    + ["downsampling_block_2", "stage_3"],
    "InceptionV3": ["input", "stem", *(f"mixed{n}" for n in range(11))],
    "Xception": ["input", *(f"block{n}" for n in range(1, 15))],
    "MobileNetV3Small": ["input", "conv", "expanded_conv", *(f"expanded_conv_{n}" for n in range(1, 11)), "conv_1"],
}


SMALLEST = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}  # elsewhere 32 pixels do


def check_every_cut(network: keras.Model) -> None:
    """One pass gives what flows through every cut point; from each of them on, the suffix must give the whole's."""
    stages = find_stages(network)
    images = random_images(2, network.input_shape[1])
    *ends, whole = keras.Model(network.inputs[0], [stage.output for stage in stages.values()])(images, training=False)
    whole = keras.ops.convert_to_numpy(whole)
    scale = np.abs(whole).max()
    assert np.isfinite(whole).all() and np.abs(whole[0] - whole[1]).max() > 1e-3 * scale, "the check needs outputs"
    np.testing.assert_allclose(call(network, images), whole, atol=1e-5 * scale)
    for stage, tensor in zip(list(stages)[1:], ends, strict=True):
        prefix, suffix = cut(network, stage)
        assert prefix.output_shape == suffix.input_shape, stage
        np.testing.assert_allclose(call(suffix, tensor), whole, atol=1e-5 * scale, err_msg=stage)
    np.testing.assert_allclose(call(prefix, images), keras.ops.convert_to_numpy(tensor), rtol=1e-4, atol=1e-5)


def check_table(network: keras.Model) -> pd.DataFrame:
    table = describe_stages(network)
    assert list(table.index) == list(find_stages(network)) and table.index[0] == "input" and table.index.is_unique
    assert table["parameters"].sum() == network.count_params()
    assert table["layers"].sum() == len(network.layers)
    assert table["cost"].is_monotonic_increasing and table["cost"].iloc[-1] == 1
    return table


@pytest.mark.parametrize("name", FAMILIES)
def test_stages_of_every_family(name):
    network = load_backbone(name, weights=None, image_size=SMALLEST.get(name, 32))
    assert list(check_table(network).index) == FAMILIES[name]
    check_every_cut(network)


UNTOLD = {  # names of convolutions, those with a pooling behind them, and the stages
    "given by Keras": ([""] * 5, range(5), "conv2d conv2d_1 conv2d_2 conv2d_3 conv2d_4"),
    "of one size": ([""] * 5, (), "conv2d conv2d_2 conv2d_4"),
    "two for each size": ([""] * 6, (1, 3), "conv2d conv2d_2 conv2d_4"),
    "letters": ([f"my_conv_{letter}" for letter in "abcde"], (1, 2), "my my_conv_c my_conv_d"),
    "numbers behind a word": ([f"features_{n}" for n in (0, 3, 6, 8)], (0, 1), "features features_3 features_6"),
    "one word for all": ([f"net1_conv_{letter}" for letter in "abcde"], range(5), "net1 net1_conv_c net1_conv_e"),
    "in part": (["conv1", "", "", ""], (0, 1), "conv1 conv2d conv2d_1"),
    "only later": (["", "", "", "block5_conv"], (), "stem block5"),
    "a parameter's value": (["all_conv", "auto", "input_conv"], range(3), "all_conv auto_2 input_conv"),
}


@pytest.mark.parametrize("names", UNTOLD)
def test_where_names_tell_nothing_sizes_make_the_stages(names):
    given, pooled, expected = UNTOLD[names]
    layers, expected = keras.layers, expected.split()
    images = x = keras.Input((64, 64, 3))
    for number, name in enumerate(given):
        x = layers.Conv2D(4, 3, padding="same", **({"name": name} if name else {}))(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D()(x) if number in pooled else x
    network = keras.Model(images, layers.GlobalAveragePooling2D()(x))
    assert list(check_table(network).index) == ["input", *expected]
    check_every_cut(network)
    for number, stage in enumerate(expected[1:], start=1):
        taken = truncate(network, stage)
        head = layers.Softmax(name="probabilities")(layers.Dense(3, name="head")(taken.outputs[0]))
        stages = list(find_stages(keras.Model(images, head)))
        assert stages == ["input", *expected[:number], "head"], "when cut, it has the same stages up to there"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in application_names() if name not in FAMILIES])
def test_stages_of_every_other_network(name):
    network = load_backbone(name, weights=None, image_size=SMALLEST.get(name, 32))
    assert len(check_table(network)) >= (3 if name.startswith("NASNet") else 5)
    check_every_cut(network)


def test_a_network_in_which_two_tensors_pass_everywhere():
    """Like NASNet: each cell takes the two cells before it."""
    layers = keras.layers
    images = keras.Input((8, 8, 3))
    before = now = layers.Conv2D(4, 1, name="stem_conv")(images)
    for cell in range(3):
        both = layers.Concatenate(name=f"cell_{cell}_both")([before, now])
        before, now = now, layers.Conv2D(4, 3, padding="same", name=f"cell_{cell}_conv")(both)
    network = keras.Model(images, layers.Concatenate(name="cells")([before, now]))
    assert list(check_table(network).index) == ["input", "stem", "cells"]
    check_every_cut(network)


def test_a_network_without_stages_is_frozen_as_a_whole():
    images = keras.Input((8, 8, 3))
    network = keras.Model(images, keras.layers.AveragePooling2D(2)(images), name="plain")
    assert list(describe_stages(network).index) == ["input"]
    for use in (cut, lambda model, stage: freeze(model, unfreeze_from=stage), lambda model, _: stage_at(model, 0.5)):
        with pytest.raises(ValueError, match="'plain' has none"):
            use(network, "conv1")
    assert freeze(network)["trainable"].sum() == 0


def test_a_layer_that_is_called_twice_is_one_layer():
    layers = keras.layers
    images = keras.Input((8, 8, 4))
    conv = layers.Conv2D(4, 3, padding="same", name="conv1")
    network = keras.Model(images, layers.Conv2D(2, 1, name="conv2")(conv(conv(conv(images)))))
    table = check_table(network)
    assert table.loc["conv1", "layers"] == 1 and table.loc["conv1", "parameters"] == 4 * 4 * 9 + 4
    assert table.loc["conv1", "multiply_adds"] == 3 * 64 * 4 * 4 * 9
    assert len(find_stages(network)["conv1"].nodes) == 3


def test_models_without_a_graph_or_with_two_ends_are_refused():
    first, second = keras.Input((4,), name="one"), keras.Input((4,), name="two")
    two = keras.Model([first, second], keras.layers.Add()([first, second]), name="two_inputs")
    ends = keras.Model(first, [keras.layers.Dense(2)(first), keras.layers.Dense(2)(first)], name="two_outputs")
    words = {"'two_inputs'": two, "'two_outputs'": ends, "without a graph": keras.Model()}
    for use in (describe_stages, freeze, lambda m: cut(m, "x"), lambda m: stage_at(m, 0.5)):
        for word, model in words.items():
            with pytest.raises(ValueError, match=word):
                use(model)


def test_stage_at_has_the_share_before_it():
    network = residual_network(dtype="uint8", classes=3)
    table = describe_stages(network)
    before = table["multiply_adds"].cumsum().shift(fill_value=0) / table["multiply_adds"].sum()
    assert stage_at(network, 0) == "conv1"
    for share in (0.1, 0.3, 0.5, before["conv3"]):
        assert stage_at(network, share) == next(s for s in ("conv1", "conv2", "conv3") if before[s] >= share)
    assert stage_at(network, 1) == "conv3", "the head is not among them"
    assert stage_at(residual_network(), 1) == "conv3"


def test_sequential_networks_have_stages_and_costs_need_a_fixed_size():
    def network(size):
        convolutions = [keras.layers.Conv2D(4, 3, name=name) for name in ("conv1", "conv2")]
        return keras.Sequential([keras.Input((size, size, 3)), *convolutions], name="flexible")

    assert list(describe_stages(network(8)).index) == list(find_stages(network(None))) == ["input", "conv1", "conv2"]
    check_every_cut(network(8))
    with pytest.raises(ValueError, match="fixed image size.*'flexible'"):
        describe_stages(network(None))


def test_all_use_of_keras_private_parts_is_in_one_module():
    """A private part is an attribute that no module of ours defines."""
    files = Path(helpers.__file__).parent.rglob("*.py")
    nodes = [(file.name, node) for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    ours = {node.name for _, node in nodes if isinstance(node, ast.FunctionDef)}
    ours |= {"_replace", "_fields", "_field_defaults"}  # of named tuples
    attributes = [(name, node) for name, node in nodes if isinstance(node, ast.Attribute)]
    ours |= {node.attr for _, node in attributes if isinstance(node.ctx, ast.Store)}
    private = {(name, node.attr) for name, node in attributes if node.attr.startswith("_") and node.attr not in ours}
    assert {name for name, attribute in private if not attribute.startswith("__")} == {"graphs.py"}


def test_unknown_stages_are_answered_with_the_known_ones():
    network = residual_network()
    for name in ("conv9", "input"):
        for use in (lambda name: cut(network, name), lambda name: freeze(network, unfreeze_from=name)):
            with pytest.raises(ValueError, match=f"'{name}'.*conv1, conv2, conv3"):
                use(name)
