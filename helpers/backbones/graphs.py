"""Layer graphs: their nodes, and networks inside networks spread out. All use of Keras' private parts is here."""

from collections.abc import Collection
from itertools import count

from helpers._keras import keras


def check_graph(model: keras.Model) -> None:
    """Raises a ValueError where a model is not functional with one input and one output."""
    if not isinstance(_graph(model), keras.Function):
        raise ValueError(
            f"Expected a functional Keras model: only its graph says where it can be cut. Received "
            f"{getattr(model, 'name', model)!r}, a {type(model).__name__} without a graph of layers."
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"Expected a model with one input and one output. Received {model.name!r} with {len(model.inputs)} "
            f"and {len(model.outputs)}."
        )


def _graph(model):
    return getattr(model, "_functional", None) if isinstance(model, keras.Sequential) else model


def all_layers(parent: keras.Layer) -> list[keras.Layer]:
    """Returns a model or layer and all layers inside it, each before those that it holds."""
    return list(parent._flatten_layers())


def call(model: keras.Model, inputs):
    """Returns the model's output in inference mode, in NumPy, all at once: for a few images."""
    return keras.ops.convert_to_numpy(model(inputs, training=False))


def run_graph(graph: keras.Function, inputs, **functions):
    """Returns a graph's outputs; `operation_fn` replaces operations, `call_fn` makes their calls."""
    return graph._run_through_graph(inputs, **functions)


def variable_index(optimizer: keras.optimizers.Optimizer, variable) -> int:
    """Returns the position of a variable among those that an optimizer was built with."""
    return optimizer._get_variable_index(variable)


def find_nodes(model: keras.Model) -> list:
    """Returns the graph's nodes (one per call of a layer), each after those that it depends on."""
    by_depth = _graph(model)._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def find_segments(model: keras.Model) -> list[list]:
    """Returns the graph's nodes split at every cut point, input to output; a segment's last node makes the cut point.

    One tensor is the only way through exactly if nothing else is still needed at the moment it has been computed, in
    any valid order of computation.
    """
    nodes = find_nodes(model)
    last_use = {id(tensor): index for index, node in enumerate(nodes) for tensor in node.input_tensors}
    last_use[id(model.outputs[0])] = len(nodes)
    segments, segment, alive = [], [], set()
    for index, node in enumerate(nodes):
        segment.append(node)
        alive |= {id(tensor) for tensor in node.outputs}
        alive = {tensor for tensor in alive if last_use.get(tensor, -1) > index}
        if len(alive) == 1 and id(node.outputs[0]) in alive:
            segments.append(segment)
            segment = []
    return segments


def has_kernel(node) -> bool:
    """Returns whether a node's layer has weights of more than one axis: it mixes numbers, and does not only scale."""
    return any(len(weight.shape) > 1 for weight in getattr(node.operation, "weights", []))


def free_name(name: str, taken: keras.Model | Collection[str]) -> str:
    """Returns the name, with a number behind it where a model or a collection has it: a graph's names are unique."""
    if isinstance(taken, keras.Model):
        taken = {operation.name for operation in _graph(taken).operations}
    return next(free for n in count(1) if (free := name if n == 1 else f"{name}_{n}") not in taken)


def pool(x, name: str):
    """Returns the mean of a symbolic tensor over positions or tokens, (batch, channels); a vector stays as it is."""
    kinds = {4: keras.layers.GlobalAveragePooling2D, 3: keras.layers.GlobalAveragePooling1D}
    return kinds[len(x.shape)](name=name)(x) if len(x.shape) in kinds else x


def flatten(network: keras.Model, x, *, unroll: bool = True):
    """Returns the output of a network on a symbolic tensor, with the layers of inner networks as the graph's own.

    An inner network's argument `training` is left out: freezing is decided layer by layer. A layer whose name comes a
    second time is renamed, in place. With `unroll`, stacks of blocks become their blocks, too.
    """
    names: dict[str, int] = {}  # name -> the layer's id: a layer that is called twice is one layer

    def rename(operation, prefix: str) -> None:
        if names.setdefault(operation.name, id(operation)) != id(operation):
            operation.name = free_name(f"{prefix}{operation.name}", names)
            names[operation.name] = id(operation)

    def replay(graph, inputs, prefix=""):
        def expand(operation):
            if inner := _inner_graph(operation):
                return lambda *args, **kwargs: replay(inner, args or kwargs.get("inputs"), f"{operation.name}_")
            if unroll and (blocks := _blocks(operation)):
                for layer in blocks:
                    rename(layer, f"{operation.name}_")
                return operation.call
            rename(operation, prefix)
            return operation

        return run_graph(graph, inputs, operation_fn=expand)

    return replay(_graph(network), x)


def _inner_graph(operation):
    """Returns the graph of an inner network; None if its `call` is not Keras' own and may do more."""
    graph = _graph(operation)
    owner = next(cls for cls in type(operation).__mro__ if "call" in vars(cls))
    return graph if isinstance(graph, keras.Function) and owner.__module__.startswith("keras.src.") else None


def _blocks(operation) -> list[keras.Layer]:
    """Returns the layers in a stack of blocks: several are of one class and hold layers. Of other layers, none.

    So KerasHub hides the blocks of a Vision Transformer inside its encoder. The blocks themselves are no stacks.
    """
    if not isinstance(operation, keras.Layer) or isinstance(operation, keras.Model):
        return []
    layers = list(operation._flatten_layers(include_self=False, recursive=False))
    kinds = [type(layer) for layer in layers if len(all_layers(layer)) > 1]
    return layers if len(kinds) > len(set(kinds)) else []
