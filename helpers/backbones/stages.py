"""The boundaries of a network's graph, the stages between them, and the cut at one of them."""

import difflib
import math
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers._keras import keras
from helpers.backbones.costs import count_multiply_adds
from helpers.backbones.graphs import check_graph, find_nodes, find_segments, free_name, has_kernel, is_stack, pool


@dataclass(frozen=True)
class Stage:
    """The part of a network between two boundaries.

    Attributes:
        layers: its layers in graph order; one that is called in several stages belongs to the first of them.
        nodes: its calls of layers and operations, in graph order.
        boundaries: the symbolic tensors at the places within it, and at its end, through which one alone passes.
    """

    layers: list[keras.Layer]
    nodes: list
    boundaries: list[keras.KerasTensor]

    @property
    def output(self) -> keras.KerasTensor:
        """The symbolic tensor at its end, the only one that passes there."""
        return self.boundaries[-1]


_RESERVED = ("auto", "all")
"""What no stage is called, since parameters mean something else by it."""

_TOGETHER = 2
"""Blocks of one map size that make a stage where names tell none."""


def _told(layer: str) -> str:
    """Returns the stage that a layer's name tells ("conv4_block1_out": "conv4"), or else the word it begins with."""
    for pattern in (
        r".*?(stage_?\d+|stem|downsampling_block_\d+)",
        r".*?((?:transformer|encoder)_(?:block|layer)_\d+)",
        r"((?:block|conv|fire|mixed|layers?|expanded_conv)_?\d+)(?!d)",
        r"(expanded_conv)",
        r"conv_[dp]w(_\d+)",  # MobileNet: a depthwise and a pointwise convolution make a block
        r"(conv(?=\dd)|[A-Za-z]+\d*)",
    ):
        if match := re.match(pattern, layer, re.IGNORECASE):
            return f"block{match[1]}" if match[1].startswith("_") else match[1]
    return ""


def _made_by_keras(layer: str, classes) -> bool:
    """Returns whether a layer has a name that Keras made from its class (`conv2d_3`, `add`)."""
    return re.sub(r"_\d+$", "", layer).replace("_", "") in classes


def _stage_name(segment: list) -> str:
    """Returns what the layers' names tell, the last one's first; "" where Keras made them all."""
    layers = [node.operation for node in reversed(segment)]
    names = (x.name for x in layers if not _made_by_keras(x.name, [type(x).__name__.lower()]))
    return next(filter(None, map(_told, names)), "")


def _tells(name: str) -> bool:
    """Returns whether a name is that of one stage among several, as those with a number are."""
    return bool(re.search(r"\d", name)) or name.lower() in ("stem", "expanded_conv")


def _positions(segment: list) -> int:
    return math.prod(size or 1 for size in segment[-1].outputs[0].shape[1:-1])


def _has_telling_names(segments: list[list]) -> bool:
    """Returns whether layers' names tell stages; of a network cut in front of the first, the pooling's does."""
    classes = {name.lower() for name in dir(keras.layers)}
    cuts = [s[-1].operation.name.partition("pooled_before_")[2] for s in segments]
    cuts = [_told(name) for name in cuts if not _made_by_keras(name, classes)]
    inner = (s for s in segments if any(map(has_kernel, s)) and len(s[-1].outputs[0].shape) > 2)
    return any(map(_tells, (*cuts, *map(_stage_name, inner))))


def _group(model: keras.Model) -> dict[str, list[list]]:
    """Returns each stage's segments. A stage begins with a kernel: what has none belongs to the one before.

    Where names tell nothing, or the same for all, one begins where the map's size changes, and after every two
    blocks of one size; it is called as its first layer with a kernel. All of this is seen from what lies before: so
    a network that is cut has the stages that the whole one has up to there.
    """
    segments = find_segments(model)
    stages: dict[str, list[list]] = {"input": []}
    current, blocks, size, stem = "input", 0, 0, _has_telling_names(segments)
    for segment in segments:
        if any(map(has_kernel, segment)):
            name, here = _stage_name(segment), _positions(segment)
            stem = stem and not _tells(name)
            if not name and stem:  # in front of all names that tell
                name = "stem" if current == "input" else current
            elif (not _tells(name) or size >= 16 * here) and (not name or name in (*stages, *_RESERVED)):
                first = next(node.operation.name for node in segment if has_kernel(node))
                alike = size < 2 * here and here < 2 * size and blocks < _TOGETHER
                name = current if alike and current != "input" else free_name(first, {*stages, *_RESERVED})
            # a name that comes back later cannot be a stage of its own
            if name not in stages:
                current, blocks, size = name, 0, here
            blocks += 1
        stages.setdefault(current, []).append(segment)
    return stages


def find_stages(model: keras.Model) -> dict[str, Stage]:
    """Returns the network's stages by name, from input to output.

    The first, "input", holds the preprocessing and nothing that could learn. The others are named as the layers
    are (`conv4`, `block_7`); each begins with a kernel. Where names tell no stages, as those that Keras gives, the
    map's size does, and each is named after its first layer with a kernel (`conv2d_3`).

    Args:
        model: a functional model with one input and one output.

    Raises:
        ValueError: the model is not of that kind.
    """
    check_graph(model)
    stages, seen = {}, set()
    for name, segments in _group(model).items():
        nodes = [node for segment in segments for node in segment]
        layers = [node.operation for node in nodes if isinstance(node.operation, keras.Layer)]
        own = list({id(layer): layer for layer in layers if id(layer) not in seen}.values())
        seen |= {id(layer) for layer in own}
        stages[name] = Stage(own, nodes, [segment[-1].outputs[0] for segment in segments])
    return stages


def describe_stages(model: keras.Model) -> pd.DataFrame:
    """Returns a table of the network's stages, in order: what each holds, computes and hands on, for one image.

    Args:
        model: a functional model with one input and one output, of a fixed image size.

    Returns:
        A DataFrame indexed by stage, with the columns last_layer, layers (count), parameters (count),
        multiply_adds (count), output (shape of the activations at the stage's end, "14x14x64"), kilobytes (of
        these activations in float32; 1 kB is 1000 bytes) and cost (share, 0..1, of the network's multiply-adds
        from the input to the stage's end). Where a stage cannot be cut inside although it holds more than half
        of the multiply-adds, one more column, note, says so.

    Raises:
        ValueError: the model is not of that kind.
    """
    stages = find_stages(model)
    _check_size(model)
    rows = {}
    for name, stage in stages.items():
        numbers = int(np.prod(stage.output.shape[1:]))
        rows[name] = {
            "last_layer": stage.nodes[-1].operation.name,
            "layers": len(stage.layers),
            "parameters": sum(layer.count_params() for layer in stage.layers),
            "multiply_adds": sum(map(count_multiply_adds, stage.nodes)),
            "output": "x".join(str(size) for size in stage.output.shape[1:]),
            "kilobytes": round(4 * numbers / 1000, 1),
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("stage")
    done = table["multiply_adds"].cumsum()
    table["cost"] = (done / max(done.iloc[-1], 1)).round(3)
    if found := _inseparable(model):
        table["note"] = ""
        table.loc[found[0], "note"] = f"no boundary inside: {found[1]}"
    return table


def _check_size(model: keras.Model) -> None:
    if None in model.inputs[0].shape[1:]:
        raise ValueError(
            f"Expected a network of a fixed image size: what it costs depends on it. Received {model.name!r}, which "
            f"takes {model.inputs[0].shape[1:]}. Load it with an `image_size`."
        )


def _inseparable(model: keras.Model) -> tuple[str, str] | None:
    """Returns the stage whose middle holds more than half of the cost and cannot be cut, and why; None as a rule."""
    if None in model.inputs[0].shape[1:]:
        return None
    whole = sum(map(count_multiply_adds, find_nodes(model)))
    for name, segments in _group(model).items():
        for segment in segments:
            if 2 * sum(map(count_multiply_adds, segment)) > whole:
                if any(is_stack(node.operation) for node in segment):
                    return name, "one layer hides all its blocks"
                if sum(map(has_kernel, segment)) > 1:
                    return name, "several tensors pass side by side"
    return None


def stage_at(model: keras.Model, share: float) -> str:
    """Returns the first stage with at least a share of the network's forward cost before it.

    Args:
        model: a functional model with one input and one output, of a fixed image size.
        share: of the network's multiply-adds, 0..1. 0.5 asks where the costlier half begins.

    Returns:
        A stage that the network can be cut at or unfrozen from; the last one where none has so much before it.
        A classifier's head is not among them: what works on a vector of features, behind the pooling.

    Raises:
        ValueError: the share is not in 0..1; the network has no boundary to cut at, or is not functional.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"Expected `share` of the network's cost in 0..1. Received {share}.")
    stages = find_stages(model)
    check_cuttable(model, stages)
    _check_size(model)
    ends = np.cumsum([sum(map(count_multiply_adds, stage.nodes)) for stage in stages.values()])
    names = list(stages)
    inputs = {name: stages[before].output for before, name in zip(names, names[1:], strict=False)}
    inner = [name for name, tensor in inputs.items() if len(tensor.shape) > 2] or names[1:]
    return next((name for name in inner if ends[names.index(name) - 1] >= share * ends[-1]), inner[-1])


def check_cuttable(model: keras.Model, stages: dict[str, Stage]) -> None:
    """Raises a ValueError where a network has no stage but "input"."""
    if len(stages) == 1:
        raise ValueError(
            f"Expected a network with stages to cut at. Received {model.name!r}, which has no boundary but its "
            f"ends: no layer with a kernel lies behind a place that one tensor alone passes. It can only be "
            f"frozen or trained as a whole."
        )


def find_stage(model: keras.Model, stage: str) -> int:
    """Returns the position of a stage among the network's stages.

    Raises:
        ValueError: there is no such stage, or it is the first one.
    """
    stages = find_stages(model)
    check_cuttable(model, stages)
    known = list(stages)
    if stage not in known[1:]:
        nearest = difflib.get_close_matches(stage, known[1:], n=1)
        found = _inseparable(model)
        raise ValueError(
            f"Expected a stage of this network to unfreeze from. Received {stage!r}. "
            f"{f'Did you mean {nearest[0]!r}? ' if nearest else ''}It can be unfrozen from {', '.join(known[1:])}."
            f"{f' Inside {found[0]} is no boundary: {found[1]}.' if found else ''}"
        )
    return known.index(stage)


def cut(model: keras.Model, stage: str) -> tuple[keras.Model, keras.Model]:
    """Returns the network before a stage, and from that stage on.

    Both share the model's layers: training the suffix trains the model.

    Args:
        model: a functional model with one input and one output.
        stage: a name in `describe_stages(model)`, not the first.

    Raises:
        ValueError: there is no such stage to cut at, or the model is not of that kind.
    """
    index = find_stage(model, stage)
    boundary = list(find_stages(model).values())[index - 1].output
    return keras.Model(model.inputs[0], boundary), keras.Model(boundary, model.outputs[0])


def cut_points(network: keras.Model) -> dict[str, float]:
    """Returns where a backbone can end, from early to late, and the share of its forward cost, 0..1, up to there.

    How many of a network's layers are taken is a choice (Yosinski et al. 2014, arXiv 1411.1792). A cut point is named
    after the stage that begins there and is left out, as in `cut`; the last one, where all layers are taken, is the
    head's place and is called "head" (or "end" if a stage has that name).

    Args:
        network: a backbone, from images to features, of a fixed image size.
    """
    stages = describe_stages(network)
    end = next(name for name in ("head", "end", "network's end") if name not in stages.index)
    return dict(zip([*stages.index[2:], end], stages["cost"].tolist()[1:], strict=True))


def truncate(network: keras.Model, cut_point: str) -> keras.Model:
    """Returns the backbone up to a cut point: its activations there, averaged over positions; layers are shared.

    Args:
        network: a backbone, from images to features.
        cut_point: a name in `cut_points(network)`.

    Raises:
        ValueError: there is no such cut point.
    """
    points = list(cut_points(network))
    if cut_point not in points:
        nearest = difflib.get_close_matches(cut_point, points, n=1)
        raise ValueError(
            f"Expected a cut point of this network. Received {cut_point!r}. "
            f"{f'Did you mean {nearest[0]!r}? ' if nearest else ''}It can be cut at {', '.join(points)}."
        )
    if cut_point == points[-1]:
        return network
    return keras.Model(network.inputs[0], pool_features(network, cut_point), name=network.name)


def pool_features(network: keras.Model, cut_point: str):
    """Returns the symbolic features (batch, channels) at an inner cut point: the mean over positions or tokens."""
    tensor = list(find_stages(network).values())[find_stage(network, cut_point) - 1].output
    return pool(tensor, free_name(f"pooled_before_{cut_point}", network))
