"""Which task without labels teaches most? Three usual methods, the same network, letters and passes.

    python tests/benchmarks/without_labels.py [--letters 10000] [--epochs 4] [--rates 1e-3 3e-3]

SimCLR (arXiv 2002.05709) is what A3 uses. VICReg (arXiv 2105.04906) wants the two views of an image alike, and its
outputs to vary and to differ from each other; the weights of its three terms are the paper's. Predicting by which of
four right angles an image was turned (arXiv 1803.07728) needs no pairs. Of each, the features' worth on digits: a
solved head on frozen features, 100 digits, ten draws. Each method has its better rate, by the same digits.
"""

import argparse

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from helpers.appendices import Pairs, interval_over_splits, score_features
from helpers.appendices.contrastive import attach_projector, contrastive_loss
from helpers.appendices.letters import build_letter_backbone, counts_to_images, render_letters
from helpers.backbones import keras
from helpers.data.batches import make_dataset
from helpers.training import compute_activations, set_seed, warmup_cosine

BATCH_SIZE = 256


def vicreg(_, projections):
    """The loss of VICReg, of projections (n, 2, width)."""
    ops = keras.ops
    one, other = projections[:, 0], projections[:, 1]
    loss = 25 * ops.mean(ops.square(one - other))
    for view in (one, other):
        view = view - ops.mean(view, axis=0)
        count, width = ops.cast(ops.shape(view)[0], "float32"), view.shape[1]
        loss += 25 / 2 * ops.mean(ops.relu(1 - ops.sqrt(ops.var(view, axis=0) + 1e-4)))
        covariance = ops.matmul(ops.transpose(view), view) / (count - 1)
        loss += ops.sum(ops.square(covariance * (1 - ops.eye(width)))) / width
    return loss


def pairs_model(backbone: keras.Model, method: str):
    """Returns the model to be trained on pairs, and its loss."""
    model = attach_projector(backbone)
    if method == "SimCLR":
        return model, contrastive_loss()
    raw = model.get_layer("projector_2").output  # VICReg has neither unit vectors nor a normalization at the end
    return keras.Model(model.inputs[0], keras.ops.reshape(raw, (-1, *model.output.shape[1:]))), vicreg


def pretrained(method: str, letters: np.ndarray, *, rate: float, epochs: int) -> keras.Model:
    """Returns a backbone that a method has taught."""
    set_seed(1)
    backbone = build_letter_backbone("letters")
    if method == "random weights":
        return backbone
    images, labels = Pairs(letters, "crop,rotate,light", seed=1), np.zeros(len(letters), int)
    if method == "turns":
        labels = np.random.default_rng(1).integers(0, 4, len(letters))
        images = np.stack([np.rot90(letter, turn) for letter, turn in zip(letters, labels, strict=True)])
        turn = keras.layers.Dense(4, activation="softmax")(backbone.output)
        model, loss = keras.Model(backbone.inputs[0], turn), "sparse_categorical_crossentropy"
    else:
        model, loss = pairs_model(backbone, method)
    schedule = warmup_cosine(rate, images=len(letters), batch_size=BATCH_SIZE, epochs=epochs)
    model.compile(keras.optimizers.Adam(schedule), loss)
    batches = make_dataset(images, labels, batch_size=BATCH_SIZE, shuffle=1, even=True)
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0)
    return backbone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--letters", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3])
    options = parser.parse_args()
    letters, _ = render_letters(options.letters, seed=1)
    digits = load_digits()
    rows = []
    for method in ("random weights", "turns", "VICReg", "SimCLR"):
        for rate in options.rates if method != "random weights" else (0.0,):
            backbone = pretrained(method, letters, rate=rate, epochs=options.epochs)
            features = compute_activations(backbone, counts_to_images(digits.images))
            rows.append((method, rate, *interval_over_splits(score_features(features, digits.target, labelled=100))))
    table = pd.DataFrame(rows, columns=["method", "rate", "accuracy", "low", "high"])
    best = table.sort_values("accuracy").drop_duplicates("method", keep="last")
    print(best.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
