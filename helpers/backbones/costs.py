"""What a network's forward pass costs, counted in multiply-adds from shapes alone."""

import math
from contextlib import suppress

from helpers._keras import keras
from helpers.backbones.graphs import all_layers, run_graph


def count_multiply_adds(node) -> int:
    """Returns the multiplications with an addition that a node of the graph makes for one image.

    Counted are products with kernels, each kernel's size times the positions that it is applied at, and products of
    activations with each other, as in attention; not what takes one step for each number (activations, pooling).
    """
    return _count(node.operation, node.arguments.args, node.arguments.kwargs, node.outputs[0])


def _count(operation, args: tuple, kwargs: dict, output) -> int:
    """Returns the multiply-adds of one call; its tensors, symbolic or not, are of one image."""
    if not isinstance(operation, keras.Layer):
        return _count_operation(operation, [*args, *kwargs.values()], output)
    if len(all_layers(operation)) > 1:
        with suppress(Exception):  # a call that only works on real numbers: its kernels can be counted all the same
            return _count_inside(operation, args, kwargs)
    kernels = [weight for weight in operation.weights if "kernel" in weight.name]
    if not kernels:
        return 0
    entering = next(value for value in keras.tree.flatten((args, kwargs)) if _is_tensor(value))
    if isinstance(operation, keras.layers.EinsumDense):
        return _einsum(operation.equation, [entering, *kernels])
    tensor = entering if isinstance(operation, keras.layers.Conv2DTranspose) else output
    return sum(math.prod(kernel.shape) for kernel in kernels) * _size(tensor) // tensor.shape[-1]


def _count_inside(layer: keras.Layer, args: tuple, kwargs: dict) -> int:
    """Returns the multiply-adds of the calls inside a composite layer (attention, a block)."""
    inputs, counts = [], []

    def enter(value):
        if not _is_tensor(value):
            return value
        inputs.append(keras.Input(batch_shape=(1, *value.shape[1:]), dtype=value.dtype))
        return inputs[-1]

    def call(operation, *args, **kwargs):
        outputs = operation(*args, **kwargs)
        counts.append(_count(operation, args, kwargs, keras.tree.flatten(outputs)[0]))
        return outputs

    args, kwargs = keras.tree.map_structure(enter, (args, kwargs))
    graph = keras.Function(inputs, layer.call(*args, **kwargs))
    # Found on symbolic tensors, made with zeros: symbolic shapes often lack the number of tokens.
    run_graph(graph, [keras.ops.zeros(one.shape, one.dtype) for one in inputs], call_fn=call)
    return sum(counts)


def _count_operation(operation, values: list, output) -> int:
    name = type(operation).__name__
    if name == "Einsum":
        return _einsum(operation.subscripts, values)
    if name == "Matmul":
        return _size(output) * values[0].shape[-1]
    if name == "DotProductAttention":
        query, key = values[:2]
        return 2 * _size(query) * key.shape[1]  # (batch, tokens, heads, numbers): with the keys, with the values
    return 0


def _is_tensor(value) -> bool:
    return isinstance(value, keras.KerasTensor) or keras.ops.is_tensor(value)


def _size(tensor) -> int:
    return math.prod(tensor.shape[1:])


def _einsum(equation: str, operands) -> int:
    """Returns the product of the sizes of all letters; for the batch's, whose size is None, 1."""
    sizes = {}
    for letters, operand in zip(equation.replace(" ", "").split("->")[0].split(","), operands, strict=True):
        unnamed = len(operand.shape) - len(letters.replace("...", ""))  # axes that "..." stands for, the last one "0"
        sizes |= dict(zip(letters.replace("...", "9876543210"[10 - unnamed :]), operand.shape, strict=True))
    return math.prod(size or 1 for size in sizes.values())
