"""The stages of a network's graph, and the cut between them."""

import difflib
import math
import re
from dataclasses import dataclass

import pandas as pd

from helpers._keras import keras
from helpers.backbones.costs import count_multiply_adds
from helpers.backbones.graphs import check_graph, find_segments, free_name, has_kernel, pool


@dataclass(frozen=True)
class Stage:
    """The part of a network between two cut points."""

    layers: list[keras.Layer]  # in graph order; one that is called in several stages belongs to the first of them
    nodes: list  # its calls of layers and operations, in graph order
    boundaries: list[keras.KerasTensor]  # the symbolic tensors at the cut points within it, and at its end

    @property
    def output(self) -> keras.KerasTensor:
        """The symbolic tensor at its end."""
        return self.boundaries[-1]


_RESERVED = ("auto", "all")  # what no stage is called, since parameters mean something else by it
_TOGETHER = 2  # blocks of one map size that make a stage where names tell none


def _read_name(layer: str) -> str:
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
    return next(filter(None, map(_read_name, names)), "")


def _is_telling(name: str) -> bool:
    """Returns whether a name is that of one stage among several, as those with a number are."""
    return bool(re.search(r"\d", name)) or name.lower() in ("stem", "expanded_conv")


def _has_telling_names(segments: list[list]) -> bool:
    """Returns whether layers' names tell stages; of a network cut in front of the first, the pooling's does."""
    classes = {name.lower() for name in dir(keras.layers)}
    cuts = [s[-1].operation.name.partition("pooled_before_")[2] for s in segments]
    cuts = [_read_name(name) for name in cuts if not _made_by_keras(name, classes)]
    inner = (s for s in segments if any(map(has_kernel, s)) and len(s[-1].outputs[0].shape) > 2)
    return any(map(_is_telling, (*cuts, *map(_stage_name, inner))))


def _group(model: keras.Model) -> dict[str, list[list]]:
    """Returns each stage's segments. A stage begins with a kernel: what has none belongs to the one before.

    Where names tell nothing, or the same for all, one begins where the map's size changes, and after every two
    blocks of one size. All of this is seen from what lies before: so a truncated network has the same stages.
    """
    segments = find_segments(model)
    stages: dict[str, list[list]] = {"input": []}
    current, blocks, size, stem = "input", 0, 0, _has_telling_names(segments)
    for segment in segments:
        if any(map(has_kernel, segment)):
            name = _stage_name(segment)
            here = math.prod(size or 1 for size in segment[-1].outputs[0].shape[1:-1])  # positions
            stem = stem and not _is_telling(name)
            if not name and stem:  # in front of all names that tell
                name = "stem" if current == "input" else current
            elif (not _is_telling(name) or size >= 16 * here) and (not name or name in (*stages, *_RESERVED)):
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
    """Returns the network's stages by name, from input to output; a ValueError where `check_graph` raises one.

    The first, "input", holds the preprocessing and nothing that could learn. The others begin with a kernel and are
    named as the layers are (`conv4`, `block_7`). Where names tell no stages, the map's size does, and each is named
    after its first layer with a kernel (`conv2d_3`).
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

    The DataFrame by stage has the columns last_layer, layers (count), parameters (count), multiply_adds (count),
    output (shape of the activations at the stage's end, "14x14x64"), kilobytes (of these in float32; 1 kB is 1000
    bytes) and cost (share, 0..1, of the multiply-adds up to the stage's end). A network without a fixed image size,
    or that `find_stages` refuses, is a ValueError.
    """
    stages, rows = find_stages(model), {}
    if None in model.inputs[0].shape[1:]:
        raise ValueError(
            f"Expected a network of a fixed image size. Received {model.name!r}, which takes "
            f"{model.inputs[0].shape[1:]}. Load it with an `image_size`."
        )
    for name, stage in stages.items():
        rows[name] = {
            "last_layer": stage.nodes[-1].operation.name,
            "layers": len(stage.layers),
            "parameters": sum(layer.count_params() for layer in stage.layers),
            "multiply_adds": sum(map(count_multiply_adds, stage.nodes)),
            "output": "x".join(str(size) for size in stage.output.shape[1:]),
            "kilobytes": round(4 * math.prod(stage.output.shape[1:]) / 1000, 1),
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("stage")
    done = table["multiply_adds"].cumsum()
    table["cost"] = (done / max(done.iloc[-1], 1)).round(3)
    return table


def stage_at(model: keras.Model, share: float) -> str:
    """Returns the first stage with at least a share, 0..1, of the network's forward cost before it.

    Else the last stage. A classifier's head is not among them: what works on a vector of features.
    """
    names = _inner_stages(model)
    table = describe_stages(model)
    before = table["multiply_adds"].cumsum().shift(fill_value=0)
    on_maps = [name for name, entering in zip(names, table["output"], strict=False) if "x" in entering] or names
    least = share * table["multiply_adds"].sum()
    return next((name for name in on_maps if before[name] >= least), on_maps[-1])


def _inner_stages(model: keras.Model) -> list[str]:
    """Returns the stages that the network can be cut in front of."""
    names = list(find_stages(model))[1:]
    if not names:
        raise ValueError(
            f"Expected a network with stages to cut at. {model.name!r} has none: it can only be frozen or trained as "
            f"a whole."
        )
    return names


def first_stage(model: keras.Model, unfreeze_from: str) -> str:
    """Returns the first stage that learns: a given name, "auto" for the one at half of the forward cost, "all"."""
    if unfreeze_from == "all":
        return list(find_stages(model))[1]
    return stage_at(model, 0.5) if unfreeze_from == "auto" else unfreeze_from


def find_stage(model: keras.Model, stage: str) -> int:
    """Returns the position of a stage among the network's; ValueError if there is none, or for the first."""
    names = _inner_stages(model)
    _check_name("a stage of this network", stage, names)
    return 1 + names.index(stage)


def _check_name(expected: str, received: str, known: list[str]) -> None:
    """Raises a ValueError with the nearest known name where a name is not known."""
    if received not in known:
        nearest = difflib.get_close_matches(received, known, n=1)
        hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
        raise ValueError(f"Expected {expected}. Received {received!r}. {hint}There are {', '.join(known)}.")


def _entering(model: keras.Model, stage: str) -> keras.KerasTensor:
    return list(find_stages(model).values())[find_stage(model, stage) - 1].output


def cut(model: keras.Model, stage: str) -> tuple[keras.Model, keras.Model]:
    """Returns the network before a stage, and from that stage on: a name in `describe_stages`, not the first.

    Both share the model's layers: training the suffix trains the model.
    """
    tensor = _entering(model, stage)
    return keras.Model(model.inputs[0], tensor), keras.Model(tensor, model.outputs[0])


def cut_points(network: keras.Model) -> dict[str, float]:
    """Returns where a backbone can end, from early to late, and the share of its forward cost, 0..1, up to there.

    How many of a network's layers to take is a choice (Yosinski et al. 2014, arXiv 1411.1792). A cut point is named
    after the stage that begins there and is left out, as in `cut`. The last one, where all layers are taken, is
    "head" (or "end" if a stage has that name).
    """
    stages = describe_stages(network)
    end = next(name for name in ("head", "end", "network's end") if name not in stages.index)
    return dict(zip([*stages.index[2:], end], stages["cost"].tolist()[1:], strict=True))


def truncate(network: keras.Model, cut_point: str) -> keras.Model:
    """Returns the backbone up to one of its `cut_points`, pooled over positions; layers are shared."""
    points = list(cut_points(network))
    _check_name("a cut point of this network", cut_point, points)
    if cut_point == points[-1]:
        return network
    return keras.Model(network.inputs[0], pool_features(network, cut_point), name=network.name)


def pool_features(network: keras.Model, cut_point: str):
    """Returns the symbolic features (batch, channels) at an inner cut point: the mean over positions or tokens."""
    return pool(_entering(network, cut_point), free_name(f"pooled_before_{cut_point}", network))
