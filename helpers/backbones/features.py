"""What the features of a network are: what enters a classifier's head, or its output; and a classifier's logits."""

import math
import re

import numpy as np

from helpers._keras import keras
from helpers.backbones.graphs import call, find_nodes, find_segments, has_kernel

FEW_FEATURES = 32  # fewer are rather a classifier's outputs than a description of an image

_OURS = re.compile(r"(avg_pool|class_token|features)(_\d+)?")  # layers that `load_backbone` puts behind a network
_PROBABILITIES = {"softmax", "logsoftmax", "sigmoid", "logsigmoid", "hardsigmoid", "sparsemax"}


def features_tensor(network: keras.Model):
    """Returns the tensor that enters a classifier's head, or the output of a network that has none.

    The head is what begins with the last layer that has a kernel, Dense or not, where

    - it ends in probabilities (softmax, sigmoid) or in a single number, or
    - it is linear from there to the end, and works on vectors or narrows each position before they are averaged: then
      a new linear head on what enters it can do all that it did.

    An embedding made on purpose, whose numbers are bent or scaled (relu, tanh, unit length), has no head, and neither
    has a network that ends in an Identity layer.
    """
    segments, output = find_segments(network), network.outputs[0]
    first = max((n for n, segment in enumerate(segments) if any(map(has_kernel, segment))), default=0)
    if first == 0 or isinstance(segments[-1][-1].operation, keras.layers.Identity):
        return output
    entering, narrowed = segments[first - 1][-1].outputs[0], segments[first][-1].outputs[0]
    chain = [segment[0].operation for segment in segments[first:] if len(segment) == 1]
    names = {type(operation).__name__ for operation in chain}
    names |= {getattr(getattr(operation, "activation", None), "__name__", "") for operation in chain}
    if set(output.shape[1:]) == {1} or _PROBABILITIES & {name.lower().replace("_", "") for name in names}:
        return entering
    if None in entering.shape[1:]:
        return output
    kernels = [weight for layer in chain[:1] for weight in getattr(layer, "weights", []) if len(weight.shape) > 1]
    pointwise = all(size == 1 for kernel in kernels for size in kernel.shape[:-2])
    averaged = pointwise and len(output.shape) == 2 and narrowed.shape[-1] < entering.shape[-1]
    on_vectors = math.prod(entering.shape[1:-1]) == 1
    return entering if (on_vectors or averaged) and _gives_logits(entering, output) else output


def _gives_logits(start, end) -> bool:
    """Returns whether a tensor is linear (with an offset) in one before it in a graph, or sums to 1."""
    values = np.random.default_rng(0).normal(0, 10, (8, *start.shape[1:])).astype("float32")
    part = keras.Model(start, end)
    first, second, both, zero = (
        call(part, given.astype(start.dtype)).astype("float64")
        for given in (values[:4], values[4:], values[:4] + values[4:], 0 * values[:4])
    )
    sums_to_one = both.min() >= 0 and np.allclose(both.sum(axis=-1), 1, atol=1e-2)
    return sums_to_one or np.abs(both + zero - first - second).max() <= 1e-2 * np.abs(both - zero).max()


def describe_features(network: keras.Model) -> str:
    """Returns in words what the features of a backbone from `load_backbone` are; a warning if they are doubtful."""
    ends = [segment[-1] for segment in find_segments(network)]
    names = [node.operation.name for node in ends]
    last = max(n for n, name in enumerate(names) if not n or not _OURS.fullmatch(name))
    count, shape = network.output_shape[-1], ends[last].outputs[0].shape[1:]
    positions = math.prod(shape[:-1])
    how = f", averaged over {positions} positions" if positions > 1 else ""
    how = " at its class token" if any(name.startswith("class_token") for name in names[last + 1 :]) else how
    message = f"{count:,} features: the output of {names[last]!r}{how}."
    if left_out := getattr(network, "left_out", ""):
        message += f" What follows it is left out: {left_out} (`features_from` names another layer)."
    noise = np.random.default_rng(0).integers(0, 256, (2, *network.input_shape[1:]), dtype="uint8")
    values = call(network, noise).astype("float32")
    reason = f"they are fewer than {FEW_FEATURES}" if count < FEW_FEATURES else ""
    if count > 1 and values.min() >= 0 and np.allclose(values.sum(axis=1), 1, atol=1e-2):
        reason = "each image's sum to 1, so that a softmax seems to be among the layers"
    if reason:
        enough = max(count + 1, FEW_FEATURES)
        wider = [name for name, end in zip(names, ends, strict=True) if end.outputs[0].shape[-1] >= enough]
        message += (
            f" Warning: {reason}. A classifier's outputs say less about images than what enters its head. Name an "
            f"earlier layer in `features_from`{f', such as {wider[-1]!r}' if wider else ''}, unless this is meant."
        )
    return message


def logits_tensor(classifier: keras.Model):
    """Returns the tensor of a classifier's logits, before its last softmax, or the output of one that has none."""
    node = find_nodes(classifier)[-1]
    last, entering = node.operation, node.input_tensors[0]  # not `last.input`, which may be of another graph
    if isinstance(last, keras.layers.Softmax):
        return entering
    if getattr(last, "activation", None) is keras.activations.softmax:
        if isinstance(last, keras.layers.Activation):
            return entering
        if isinstance(last, keras.layers.Dense):
            logits = keras.ops.matmul(entering, last.kernel)
            return logits + last.bias if last.use_bias else logits
    return classifier.outputs[0]
