"""What each depth of a pretrained network knows: a linear head at every cut point, from one pass over the images."""

import numpy as np
import pandas as pd

from helpers._keras import keras
from helpers.backbones.graphs import free_name
from helpers.backbones.stages import cut_points, pool_features
from helpers.training.activations import load_activations
from helpers.training.heads import fit_head


def load_features(network: keras.Model, pixels: dict) -> dict[str, dict]:
    """Returns the features at each cut point, from one forward pass that is kept on disk: `load_activations`.

    Takes a backbone, and part to uint8 (images, height, width, 3); returns cut point to part to float32 (images, n).
    """
    *inner, end = cut_points(network)
    tensors = [*(pool_features(network, name) for name in inner), network.outputs[0]]
    name = free_name("all_cut_points", network)
    joined = keras.layers.Concatenate(name=name, dtype="float32")(tensors) if inner else tensors[0]
    stored = load_activations(keras.Model(network.inputs[0], joined, name=network.name), pixels)
    values = {part: np.asarray(array) for part, array in stored.items()}
    stops = np.cumsum([tensor.shape[-1] for tensor in tensors]).tolist()
    places = zip([*inner, end], [0, *stops[:-1]], stops, strict=True)
    return {name: {part: array[:, a:b] for part, array in values.items()} for name, a, b in places}


def probe_depth(network: keras.Model, pixels: dict, labels: dict, *, class_weight: str = "") -> pd.DataFrame:
    """Returns how well a linear head does at each cut point: linear probes (Alain and Bengio 2016, arXiv 1610.01644).

    Takes a backbone, "train" and "validation" to uint8 (images, height, width, 3), and to labels, int (images,); and
    the heads' class_weight (`weigh_classes`).

    Returns:
        A row for each cut point, from early to late, with the columns cut, cost (share, 0..1, of the network's
        forward cost up to there), features (count), log_loss (cross-validated within the training images), behind
        and error (by how much that is above the lowest, a mean over images, and its standard error) and accuracy (of
        the validation images). Numbers have five digits, as in a file that is saved of them.
    """
    costs, features = cut_points(network), load_features(network, pixels)
    heads = {cut: fit_head(x["train"], labels["train"], class_weight=class_weight) for cut, x in features.items()}
    losses = {cut: head.losses_[head.C_] for cut, head in heads.items()}
    best, rows = heads[min(losses, key=losses.get)], []
    for cut, head in heads.items():
        behind = head.held_out_losses_ - best.held_out_losses_
        predicted = head.predict_proba(features[cut]["validation"]).argmax(axis=1)
        row = {"cut": cut, "cost": costs[cut], "features": head.n_features_in_, "log_loss": losses[cut]}
        row |= {"behind": behind.mean(), "error": behind.std(ddof=1) / np.sqrt(len(behind))}
        rows.append(row | {"accuracy": float((predicted == labels["validation"]).mean())})
    return pd.DataFrame(rows).map(lambda value: float(f"{value:.5g}") if isinstance(value, float) else value)


def choose_cut(probe: pd.DataFrame, cut: str = "auto") -> str:
    """Returns the cut point to take: the network's end, unless an earlier one in `probe_depth` is clearly better.

    Clearly: the end's cross-validated log-loss is more than one standard error above the lowest one (the
    one-standard-error rule of Breiman et al. 1984, on differences image by image). `cut`: one chosen already.
    """
    end = probe.iloc[-1]
    if cut != "auto":
        return cut
    # also where nothing could be cross-validated
    return probe.loc[probe["log_loss"].idxmin(), "cut"] if end["behind"] > end["error"] else end["cut"]
