"""What each depth of a pretrained network knows: a linear head at every cut point, from one pass over the images."""

import numpy as np
import pandas as pd

from helpers._keras import keras
from helpers.backbones.graphs import free_name
from helpers.backbones.stages import cut_points, pool_features
from helpers.training.activations import load_activations
from helpers.training.heads import CS, fit_head

# To compare networks: cuts in a row that are clearly worse than a later one (those before them are not tried), and
# the solver's tolerance, which changes log-losses by less than 0.005 (three networks on 400 photos of flowers).
_WORSE, ROUGHLY = 2, 1e-3


def load_features(network: keras.Model, pixels: dict) -> tuple[dict[str, dict], float]:
    """Returns the features at each cut point, from one forward pass that is kept on disk: `load_activations`.

    Takes a backbone, and part to uint8 (images, height, width, 3); returns cut point to part to float32 (images, n),
    and the seconds that the pass took, now or when it was computed.
    """
    *inner, end = cut_points(network)
    tensors = [*(pool_features(network, name) for name in inner), network.outputs[0]]
    name = free_name("all_cut_points", network)
    joined = keras.layers.Concatenate(name=name, dtype="float32")(tensors) if inner else tensors[0]
    stored = load_activations(keras.Model(network.inputs[0], joined, name=network.name), pixels)
    values = {part: np.asarray(array) for part, array in stored.items()}
    stops = np.cumsum([tensor.shape[-1] for tensor in tensors]).tolist()
    places = zip([*inner, end], [0, *stops[:-1]], stops, strict=True)
    features = {name: {part: array[:, a:b] for part, array in values.items()} for name, a, b in places}
    return features, sum(array.seconds for array in stored.values())


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
    features, _ = load_features(network, pixels)
    heads = {cut: fit_head(x["train"], labels["train"], class_weight=class_weight) for cut, x in features.items()}
    table = _describe(network, heads)
    predicted = {cut: head.predict_proba(features[cut]["validation"]).argmax(axis=1) for cut, head in heads.items()}
    table["accuracy"] = [float((predicted[cut] == labels["validation"]).mean()) for cut in table["cut"]]
    return table.map(lambda value: float(f"{value:.5g}") if isinstance(value, float) else value)


def probe_all(network: keras.Model, pixels: dict, labels: dict, *, class_weight: str = "") -> tuple:
    """Returns the head at the cut that `choose_cut` takes, this cut, and the seconds of the forward pass.

    Takes what `probe_depth` takes, but all parts that have labels are cross-validated together: to compare networks.
    Heads are fitted from the end back until some in a row are clearly worse, and no more precisely than is needed:
    for one that is clearly worse with the best head's C, its own is not looked for.
    """
    features, seconds = load_features(network, pixels)
    labelled, heads, known = np.concatenate(list(labels.values())), {}, []
    for cut in reversed(features):
        joined = np.concatenate([features[cut][part] for part in labels])
        for cs in (*known, CS):
            heads[cut] = fit_head(joined, labelled, cs=cs, class_weight=class_weight, tolerance=ROUGHLY)
            table = _describe(network, dict(reversed(heads.items())))
            worse = table["behind"] > 2 * table["error"]
            if worse.iloc[0]:
                break
        known = [(heads[table.loc[table["log_loss"].idxmin(), "cut"]].C_,)]
        if len(heads) > _WORSE and worse.iloc[:_WORSE].all():
            break
    cut = choose_cut(table)
    return heads[cut], cut, seconds


def _describe(network: keras.Model, heads: dict) -> pd.DataFrame:
    """Returns the columns of `probe_depth` that need no other images, of heads by cut point."""
    costs, losses = cut_points(network), {cut: head.losses_[head.C_] for cut, head in heads.items()}
    best, rows = heads[min(losses, key=losses.get)], []
    for cut, head in heads.items():
        behind = head.held_out_losses_ - best.held_out_losses_
        row = {"cut": cut, "cost": costs[cut], "features": head.n_features_in_, "log_loss": losses[cut]}
        rows.append(row | {"behind": behind.mean(), "error": behind.std(ddof=1) / np.sqrt(len(behind))})
    return pd.DataFrame(rows)


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
