"""What is counted from shapes is what TensorFlow's own profiler counts."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from helpers.backbones import describe_stages, keras, load_backbone

layers = keras.layers


def profile(model: keras.Model) -> float:
    """Returns half the floating-point operations in products that TensorFlow's profiler finds, for one image."""
    spec = tf.TensorSpec((1, *model.inputs[0].shape[1:]), model.inputs[0].dtype)
    function = tf.function(lambda images: model(images, training=False)).get_concrete_function(spec)
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation() | {"output": "none"}
    options["account_type_regexes"] = ["Conv2D", "DepthwiseConv2dNative", "MatMul", "BatchMatMulV2"]
    graph = convert_variables_to_constants_v2(function).graph
    return tf.compat.v1.profiler.profile(graph, options=options).total_float_ops / 2


def count(model: keras.Model) -> int:
    return describe_stages(model)["multiply_adds"].sum()


@pytest.mark.parametrize(("name", "published"), [("MobileNetV2", 300e6), ("ResNet50", 3.86e9)])
def test_multiply_adds_of_known_networks(name, published):  # arXiv:1801.04381; 3.8e9 in arXiv:1512.03385
    network = load_backbone(name, weights=None, image_size=224)
    assert count(network) == pytest.approx(published, rel=0.01)
    assert name == "ResNet50" or count(network) == profile(network)


PROFILED = "what the profiler says"


@pytest.mark.parametrize(
    ("shape", "layer", "expected"),
    [
        ((9, 9, 4), layers.Conv2D(6, 3, strides=2), PROFILED),
        ((9, 9, 4), layers.DepthwiseConv2D(3, depth_multiplier=2), PROFILED),
        ((9, 9, 4), layers.SeparableConv2D(6, 3), PROFILED),
        ((9, 9, 4), layers.Dense(5), PROFILED),
        ((7, 4), layers.EinsumDense("abc,cde->abde", output_shape=(7, 2, 3)), PROFILED),
        ((9, 9, 4), layers.Conv2D(6, 3, groups=2, padding="same"), 81 * 6 * 9 * 2),
        ((9, 9, 4), layers.Conv2D(6, 3, dilation_rate=2), 25 * 6 * 9 * 4),
        ((5, 5, 4), layers.Conv2DTranspose(6, 3, strides=2), 25 * 4 * 6 * 9),  # each pixel meets the whole kernel
        ((7, 4), layers.EinsumDense("...c,cd->...d", output_shape=3), 7 * 4 * 3),
    ],
)
def test_multiply_adds_of_layers(shape, layer, expected):
    images = keras.Input(shape)
    model = keras.Model(images, layer(images))
    assert 0 < count(model) == (profile(model) if expected is PROFILED else expected)


@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["one product", "two einsums"])
def test_multiply_adds_of_attention(dropout):
    tokens = keras.Input((7, 12))
    attention = layers.MultiHeadAttention(num_heads=2, key_dim=5, dropout=dropout)
    projections, products = 4 * 7 * 12 * 10, 2 * 2 * 7 * 7 * 5
    assert count(keras.Model(tokens, attention(tokens, tokens))) == projections + products


def test_multiply_adds_of_operations_without_layers():
    images = keras.Input((6, 4))
    scores = keras.ops.matmul(images, keras.ops.transpose(images, (0, 2, 1)))
    model = keras.Model(images, layers.Dense(3, name="head")(keras.ops.einsum("bij,bjk->bik", scores, images)))
    assert count(model) == 6 * 6 * 4 + 6 * 6 * 4 + 6 * 4 * 3


def test_a_call_that_cannot_be_traced_is_counted_by_its_kernels():
    class Opaque(layers.Layer):
        def build(self, shape):
            self.dense = layers.Dense(5)
            self.dense.build(shape)

        def call(self, x):
            if not tf.is_tensor(x):
                raise TypeError("real numbers only")
            return self.dense(x)

        def compute_output_spec(self, x):
            return keras.KerasTensor((*x.shape[:-1], 5))

    images = keras.Input((3, 3, 4))
    assert count(keras.Model(images, Opaque()(images))) == 9 * 4 * 5


def test_kilobytes_and_cost():
    images = keras.Input((10, 10, 3))
    x = layers.Conv2D(5, 1, name="conv1")(images)
    table = describe_stages(keras.Model(images, layers.Conv2D(2, 1, name="conv2")(x)))
    assert table["output"].tolist() == ["10x10x3", "10x10x5", "10x10x2"]
    np.testing.assert_allclose(table["kilobytes"], [1.2, 2.0, 0.8])
    np.testing.assert_allclose(table["cost"], [0, 0.6, 1])
