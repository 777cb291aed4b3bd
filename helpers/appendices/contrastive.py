"""Pretraining without labels: a network learns to find the other view of an image among all others.

SimCLR (Chen, Kornblith, Norouzi and Hinton 2020, arXiv 2002.05709): two random variants of each image go through the
network and a small projector, and each has to be nearer to its partner than to all others in the batch. What can be
told from both, such as shape, is learned; what the augmentation changes is not. The projector is thrown away.
`tests/benchmarks/without_labels.py` compares it with other methods.
"""

from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedShuffleSplit
from tqdm import tqdm

from helpers import progress_file
from helpers._keras import keras, on_all_devices, set_seed
from helpers.backbones.graphs import free_name
from helpers.data.augmentation import Augmented, View
from helpers.data.batches import make_dataset
from helpers.data.stores import StoredArray
from helpers.training.checkpoint import Checkpoint, return_to_start, show_progress
from helpers.training.fine_tuning import digest_images, seed_training, training_datasets, warmup_cosine
from helpers.training.heads import fit_head


def pretrain(
    backbone: keras.Model,
    images: dict,
    *,
    file: Path | None = None,
    augmentation: str = "crop,rotate,light",
    epochs: int = 5,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    temperature: float = 0.1,
    seed: int = 0,
) -> Checkpoint:
    """Trains the backbone in place, from images without labels, and returns how it went; shows the time left.

    Args:
        backbone: from raw images to features (n, c). What `freeze` froze stays as it is.
        images: "train" and "validation" to uint8 (images, height, width, 3), in memory or stored; two at least.
        file: keeps the state after each epoch: a killed training resumes, with the same result.
        augmentation: names of `AUGMENTATIONS`, separated by commas: what must make no difference.
        epochs, batch_size, learning_rate: of the training, with Adam and `warmup_cosine`.
        temperature, seed: of the loss (at a lower one the nearest other images matter more); of everything random.

    The `Checkpoint`'s history has log_loss, partner_found (0..1), and both of the validation images, with "val_".
    The backbone ends with the weights of the epoch with the lowest val_log_loss, or those of the start.
    """
    _check(backbone, images, batch_size=batch_size, temperature=temperature)
    set_seed(seed)
    seed_training(backbone, seed)
    train, validation = (Pairs(images[part], augmentation, seed=seed) for part in ("train", "validation"))
    labels = {part: np.zeros(len(images[part]), "int64") for part in ("train", "validation")}  # `fit` wants some
    rate = warmup_cosine(learning_rate, images=len(train), batch_size=batch_size, epochs=epochs)
    model = _compile(backbone, rate, temperature)
    settings = {"augmentation": augmentation, "epochs": epochs, "batch_size": batch_size, "seed": seed}
    settings |= {"learning_rate": learning_rate, "temperature": temperature}
    settings["images"] = digest_images({part: images[part] for part in labels}, labels)
    return_to_start(model, file, settings)
    held_out = _whole_batches(validation.at_epoch(0), labels["validation"], batch_size)
    start = {"log_loss": model.evaluate(held_out, verbose=0, return_dict=True)["log_loss"], "temperature": 1.0}
    keep = Checkpoint(file, start=start, patience=epochs, settings=settings)
    with keep:
        model.fit(
            training_datasets({"train": train}, labels, keep=keep, batch_size=batch_size, seed=seed)[0],
            validation_data=held_out,
            epochs=epochs,
            initial_epoch=keep.first_epoch,
            callbacks=[keep, show_progress()],
            shuffle=False,  # the batches are shuffled already
            verbose=0,
        )
    return keep


def _compile(backbone: keras.Model, rate, temperature: float) -> keras.Model:
    with on_all_devices():
        model, loss = attach_projector(backbone), contrastive_loss(temperature)
        metrics = [keras.metrics.MeanMetricWrapper(loss, name="log_loss"), partner_found]
    model.compile(keras.optimizers.Adam(rate), loss, metrics=metrics)
    return model


def _whole_batches(images, labels: np.ndarray, batch_size: int):
    size = min(batch_size, len(images))
    return make_dataset(images, labels, batch_size=size).take(len(images) // size)  # in fewer, a partner is easier


def _check(backbone: keras.Model, images: dict, **values: float) -> None:
    if not backbone.trainable_weights:
        raise ValueError(f"Expected a network of which something learns. All of {backbone.name} is frozen.")
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"Expected `{name}` above 0. Received {value}.")
    for part in ("train", "validation"):
        if len(images[part]) < 2:
            raise ValueError(f"Expected at least 2 images in {part}, to be told apart. Received {len(images[part])}.")


def attach_projector(backbone: keras.Model, *, width: int = 128) -> keras.Model:
    """Returns a model from pairs of images (n, 2, height, width, 3) to float32 unit vectors (n, 2, width).

    Two dense layers with batch normalization, as in the paper's code: it keeps the features of images that have much
    in common from looking alike to the loss.
    """
    size = backbone.input_shape[1:]
    with on_all_devices():
        pairs = keras.Input((2, *size), dtype=backbone.inputs[0].dtype, name=free_name("pairs", [backbone.name]))
        x = backbone(keras.ops.reshape(pairs, (-1, *size)))
        x = keras.layers.Dense(x.shape[-1], use_bias=False, name="projector_1")(x)
        # The running averages follow fast, as they judge epochs of a few steps.
        x = keras.layers.BatchNormalization(momentum=0.9, name="projector_1_bn")(x)
        x = keras.layers.Activation("relu", name="projector_1_relu")(x)
        x = keras.layers.Dense(width, use_bias=False, name="projector_2")(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name="projector_2_bn")(x)
        x = keras.layers.UnitNormalization(dtype="float32", name="projector_unit")(x)
        return keras.Model(pairs, keras.ops.reshape(x, (-1, 2, width)), name=f"{backbone.name}_pairs")


def _similarities(projections, temperature: float):
    """Returns the logits (2n, 2n) of each view's partner, itself left out, and the partners' positions (2n,)."""
    views = keras.ops.reshape(projections, (-1, projections.shape[-1]))
    count = keras.ops.shape(views)[0]
    logits = keras.ops.matmul(views, keras.ops.transpose(views)) / temperature
    logits -= 1e9 * keras.ops.eye(count, dtype=logits.dtype)
    position = keras.ops.arange(count)
    return logits, position + 1 - 2 * (position % 2)  # 0 and 1 belong together, 2 and 3, ...


def contrastive_loss(temperature: float = 0.1):
    """Returns the loss NT-Xent as Keras wants it, of projections (n, 2, width): float32 (n,). It needs no labels."""

    def nt_xent(_, projections):
        logits, partner = _similarities(projections, temperature)
        losses = keras.losses.sparse_categorical_crossentropy(partner, logits, from_logits=True)
        return keras.ops.mean(keras.ops.reshape(losses, (-1, 2)), axis=1)

    return nt_xent


def partner_found(_, projections):
    """Returns, for each pair, the share of its two views that have the other nearest in the batch: float32 (n,)."""
    logits, partner = _similarities(projections, 1.0)
    right = keras.ops.equal(keras.ops.argmax(logits, axis=1), keras.ops.cast(partner, "int64"))
    return keras.ops.mean(keras.ops.reshape(keras.ops.cast(right, "float32"), (-1, 2)), axis=1)


class Pairs(Augmented):
    """Two views of each image, other ones in each epoch: (images, 2, height, width, 3). See `Augmented`."""

    def __init__(self, pixels: np.ndarray | StoredArray, kinds: str, *, seed: int = 0):
        super().__init__(pixels, kinds, seed=seed)
        self.shape, self.ndim = (len(pixels), 2, *pixels.shape[1:]), pixels.ndim + 1

    def at_epoch(self, epoch: int) -> "PairsOfViews":
        """Returns the pairs of views that this epoch trains on."""
        return PairsOfViews(self, 2 * epoch)


class PairsOfViews:
    """One pair of views of each image: it is indexed by a slice or by positions, as an array is."""

    def __init__(self, pairs: Pairs, number: int):
        self.shape, self.dtype, self.ndim = pairs.shape, pairs.dtype, pairs.ndim
        self._views = [View(pairs, number + second) for second in (0, 1)]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        return np.stack([view[rows] for view in self._views], axis=1)


def score_features(
    features: np.ndarray, labels: np.ndarray, *, labelled: int, test: int = 800, draws: int = 10, seed: int = 0
) -> np.ndarray:
    """Returns what fixed features are worth with few labels: test accuracies 0..1, float64 (draws,); shows a bar.

    In each draw, a head is fitted to the features of `labelled` images, of each class in proportion, and tested on
    `test` others. Draws depend on the seed and the labels alone, so that features can be compared in pairs.
    """
    splits = StratifiedShuffleSplit(n_splits=draws, train_size=labelled, test_size=test, random_state=seed)
    bar = tqdm(splits.split(features, labels), "scoring features", draws, leave=False, file=progress_file())
    return np.array([fit_head(features[few], labels[few]).score(features[rest], labels[rest]) for few, rest in bar])
