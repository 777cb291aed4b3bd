"""Frozen means bit-equal, and the audit names what is not."""

import numpy as np
import pytest
from networks import Stack, call, random_images, residual_network, train

from helpers.backbones import audit_weights, copy_weights, cut, freeze, keras

IMAGES = random_images().astype("float32")


@pytest.fixture
def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    return residual_network()


def changed_paths(network: keras.Model, before: dict) -> set[str]:
    now = copy_weights(network)
    return {path for path, old in before.items() if not np.array_equal(old, now[path])}


@pytest.mark.parametrize("stage", ["conv1", "conv2", "conv3"])
def test_frozen_means_bit_equal(network, stage):
    freeze(network, unfreeze_from=stage)
    before = copy_weights(network)
    prefix, suffix = cut(network, stage)
    train(suffix, call(prefix, random_images()))
    audit = audit_weights(network, before)
    expected = {name: 2 * (name >= stage) for name in ("conv1", "conv2", "conv3")}
    assert audit["changed"].to_dict() == {"input": 0} | expected, "kernel and bias, no BatchNormalization"
    assert audit[["frozen_changed", "trainable_unchanged"]].to_numpy().sum() == 0
    assert not any("bn" in path for path in changed_paths(network, before))


def test_everything_frozen(network):
    table = freeze(network)
    assert table["trainable"].sum() == 0 and table["weights"].sum() == network.count_params()
    before = copy_weights(network)
    train(keras.Sequential([network, keras.layers.Flatten(), keras.layers.Dense(1)]), IMAGES)
    assert not network.trainable_weights and audit_weights(network, before)["changed"].sum() == 0


def test_batch_norm_train_lets_statistics_move(network):
    freeze(network, unfreeze_from="conv2", batch_norm="train")
    before = copy_weights(network)
    train(network, IMAGES)
    moved = changed_paths(network, before)
    assert any("moving_mean" in path for path in moved) and not any(path.startswith("conv1") for path in moved)
    assert audit_weights(network, before)["frozen_changed"].sum() == 0, "those statistics were meant to move"
    with pytest.raises(ValueError, match="`batch_norm`.*'maybe'"):
        freeze(network, batch_norm="maybe")


def test_the_audit_finds_what_should_not_have_changed(network):
    freeze(network, unfreeze_from="conv3")
    before = copy_weights(network)
    kernel = network.get_layer("conv1_conv").kernel
    kernel.assign(np.nextafter(np.array(kernel), np.inf))  # the least change there is
    audit = audit_weights(network, before)
    assert audit.loc["conv1", "frozen_changed"] == 1 and audit.loc["conv3", "trainable_unchanged"] == 2
    idle = "trainable but unchanged: conv3_block1_conv/kernel, conv3_block1_conv/bias"
    assert audit["faults"].tolist() == ["", "frozen but changed: conv1_conv/kernel", "", idle]
    for weight in network.weights:
        weight.assign(np.array(weight) + 1)
    faults = audit_weights(network, before)["faults"]
    assert faults["conv1"] == "frozen but changed: conv1_conv/kernel, conv1_conv/bias, conv1_bn/gamma and 3 more"


def test_the_audit_tells_bits_apart_and_other_networks(network):
    freeze(network)
    bias = network.get_layer("conv1_conv").bias
    bias.assign([0.0, 0.0, 0.0, np.nan])
    before = copy_weights(network)
    assert audit_weights(network, before)["changed"].sum() == 0, "what is no number has not changed either"
    bias.assign([0.0, 0.0, -0.0, np.nan])
    assert audit_weights(network, before)["changed"].tolist() == [0, 1, 0, 0]
    del before["conv1_conv/kernel"]
    with pytest.raises(ValueError, match="`before`.*Only one of them has conv1_conv/kernel"):
        audit_weights(network, before)


@pytest.fixture
def composite() -> keras.Model:
    keras.utils.set_random_seed(0)
    images = x = keras.Input((8, 8, 3))
    for name in ("block_1", "block_2"):
        x = Stack(["pair", "pair"], scale=True, name=name)(x)  # their weights have the same paths
    return keras.Model(images, x)


def test_weights_with_the_same_path_do_not_hide_each_other(composite):
    paths = [weight.path for weight in composite.weights]
    assert len(set(paths)) < len(paths), "Keras gives a path twice"
    before = copy_weights(composite)
    assert len(before) == len(paths) and "block_1/pair/conv/kernel#2" in before
    freeze(composite)
    for weight, (path, old) in zip(composite.weights, before.items(), strict=True):
        weight.assign(old + 1)
        audit = audit_weights(composite, before)
        assert audit["frozen_changed"].sum() == 1 and f"frozen but changed: {path}" in audit["faults"].tolist()
        weight.assign(old)


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_layers_inside_layers_are_frozen_too(composite, batch_norm):
    assert freeze(composite)["trainable"].sum() == 0 and not composite.trainable_weights
    table = freeze(composite, unfreeze_from="block_2", batch_norm=batch_norm)
    assert table["trainable"].tolist() == [0, 0, 3 + 2 * (12 + 6 * (batch_norm == "train"))]
    before = copy_weights(composite)
    train(composite, IMAGES / 255)
    changed = changed_paths(composite, before)
    assert not any(path.startswith("block_1") for path in changed)
    assert {"block_2/scale", "block_2/pair/conv/kernel", "block_2/pair/conv/kernel#2"} <= changed
    assert any("moving_mean" in path for path in changed) == (batch_norm == "train")
    assert audit_weights(composite, before)["faults"].tolist() == ["", "", ""]


def test_trap_calling_with_training_false_does_not_protect_the_statistics(network):
    images = keras.Input((8, 8, 3))
    guide = keras.Model(images, network(images, training=False))  # the guide's way, with the layers trainable
    before = copy_weights(network)
    train(guide, IMAGES)
    assert any("moving" in path for path in changed_paths(network, before)), "the tutorial's way changes them"


def test_trap_trainable_after_the_first_fit_is_ignored(network):
    train(network, IMAGES, epochs=1)
    freeze(network)
    targets = np.zeros((4, *network.output_shape[1:]))
    for again in (False, True):
        if again:
            network.compile(keras.optimizers.SGD(0.1), "mse")
        before = copy_weights(network)
        network.fit(IMAGES, targets, verbose=0)
        changed = audit_weights(network, before)["changed"].sum()
        assert (changed == 0) == again, "Keras ignores the change without a word until `compile`"
