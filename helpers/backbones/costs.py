"""What a network's forward pass costs, counted in multiply-adds from shapes alone."""

import math

import numpy as np

from helpers._keras import keras

_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)


def count_multiply_adds(node) -> int:
    """Returns the multiplications with an addition that a node of the graph makes for one image.

    Counted are products with kernels, each kernel's size times the positions that it is applied at, and products
    of activations with each other, as in attention. What takes one step for each number (activations,
    normalisation, pooling, sums) is not.

    Args:
        node: a call of a layer or operation, with known shapes apart from the batch's.

    Raises:
        ValueError: a shape is not known.
    """
    layer = node.operation
    if not isinstance(layer, keras.Layer):
        return _operation(node)
    kernels = [weight for weight in layer.weights if "kernel" in weight.name]
    if not kernels and not _is_composite(layer):
        return 0
    for tensor in (*node.input_tensors, *node.outputs):
        if None in tensor.shape[1:]:
            raise ValueError(
                f"Expected a network of a fixed image size. Received one whose layer {layer.name!r} works on "
                f"{tensor.shape[1:]}: its cost depends on the images. Load it with an `image_size`."
            )
    if _is_composite(layer):
        try:
            return sum(map(count_multiply_adds, _inner_nodes(node)))
        except Exception:  # a call that only works on real numbers; its kernels can be counted all the same
            pass
    if isinstance(layer, keras.layers.EinsumDense):
        return _einsum(layer.equation, [node.input_tensors[0], layer.kernel])
    tensor = node.input_tensors[0] if isinstance(layer, _TRANSPOSED) else node.outputs[0]
    axis = 1 if getattr(layer, "data_format", None) == "channels_first" else -1
    positions = math.prod(tensor.shape[1:]) // tensor.shape[axis]
    return sum(math.prod(kernel.shape) for kernel in kernels) * positions


def _is_composite(layer: keras.Layer) -> bool:
    return any(True for _ in layer._flatten_layers(include_self=False))


def _inner_nodes(node) -> list:
    """Returns the calls that a composite layer (attention, a transformer block) makes inside its own call."""
    inputs = {id(tensor): keras.Input(batch_shape=(1, *tensor.shape[1:]), dtype=tensor.dtype)
              for tensor in node.input_tensors}  # fmt: skip
    args, kwargs = node.arguments.fill_in(inputs)
    graph = keras.Function(list(inputs.values()), node.operation.call(*args, **kwargs))
    return [inner for nodes in graph._nodes_by_depth.values() for inner in nodes]


def _operation(node) -> int:
    name, (first, *others) = type(node.operation).__name__, node.arguments.args or (None,)
    if name == "Einsum":
        return _einsum(node.operation.subscripts, node.arguments.args)
    if name == "Matmul":
        return _size(node.outputs[0]) * first.shape[-1]
    if name == "DotProductAttention":
        query, key = (first, *others, *node.arguments.kwargs.values())[:2]
        return 2 * _size(query) * key.shape[1]  # (batch, tokens, heads, numbers): with the keys, with the values
    if name in ("Conv", "DepthwiseConv"):
        kernel = (*others, *node.arguments.kwargs.values())[0]
        channels = kernel.shape[-1] * (kernel.shape[-2] if name == "DepthwiseConv" else 1)
        return math.prod(kernel.shape) * _size(node.outputs[0]) // channels
    return 0


def _size(tensor) -> int:
    return math.prod(tensor.shape[1:])


def _einsum(equation: str, operands) -> int:
    sizes = {}
    for letters, operand in zip(equation.split("->")[0].split(","), operands, strict=True):
        before, _, after = letters.replace(" ", "").partition("...")
        shape = list(operand.shape)
        middle = shape[len(before) : len(shape) - len(after)] if "..." in letters else []
        sizes |= {f"...{index}": size for index, size in enumerate(reversed(middle))}
        sizes |= dict(zip(before, shape, strict=False))
        sizes |= dict(zip(reversed(after), reversed(shape), strict=False))
    return int(np.prod([size or 1 for size in sizes.values()]))  # the batch's size is None, or 1
