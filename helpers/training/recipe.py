"""The defaults of fine-tuning, and why."""

from dataclasses import dataclass

from helpers._keras import keras
from helpers.backbones import find_stages, stage_at


@dataclass(frozen=True)
class Recipe:
    """How a classifier is fine-tuned; the defaults are 03's.

    Attributes:
        unfreeze_from: the first stage that learns, "auto" or "all": see `first_stage`.
        learning_rate: the highest rate of the schedule (`warmup_cosine`).
        lowest_rate: the factor of the learning rate at the network's first stage (`decaying_rates`); 1 for one rate.
        epochs: passes over the training images, at most.
        patience: epochs without a lower validation log-loss before the training stops.
        batch_size: images per step.
        seed: of the order of the images, of dropout and of augmentation.
        label_smoothing: share of each label that the loss spreads over all classes (`cross_entropy`).
        optimizer: "adam" or "sgd".
        batch_norm: "frozen" or "train": see `freeze`.
        class_weight: class (int) to the weight of its images in the loss (`weigh_classes`); None for equal ones.
        augmentation: names of `AUGMENTATIONS`, separated by commas; "" for none; "auto" for none unless everything
            learns. See `prepare_training`.
        augment_views: how many views there are of each image; 0 for a new one in each epoch.
        pull: strength of the pull towards the start (L2-SP): see `make_optimizer`.
        start_share: share of the start in the final weights, 0 to 1 (WiSE-FT): see `blend_weights`.
        thaw_epochs: with 1 or more, only the head learns at first, and one stage more after each so many epochs.
        precision: of the computation: "float32", "mixed_float16" or "mixed_bfloat16".
    """

    unfreeze_from: str = "auto"
    learning_rate: float = 1e-3
    lowest_rate: float = 0.01
    epochs: int = 20
    patience: int = 5
    batch_size: int = 32
    seed: int = 0
    label_smoothing: float = 0.0
    optimizer: str = "adam"
    batch_norm: str = "frozen"
    class_weight: dict[int, float] | None = None
    augmentation: str = "auto"
    augment_views: int = 0
    pull: float = 0.0
    start_share: float = 0.0
    thaw_epochs: int = 0
    precision: str = "float32"


def first_stage(model: keras.Model, unfreeze_from: str) -> str:
    """Returns the first stage that learns.

    Args:
        model: a classifier.
        unfreeze_from: a stage's name; "auto" for the one at half of the forward cost, "all" for the first of all.
    """
    if unfreeze_from == "all":
        return list(find_stages(model))[1]
    return stage_at(model, 0.5) if unfreeze_from == "auto" else unfreeze_from


def thawing(model: keras.Model, recipe: Recipe, *, steps_per_epoch: int) -> dict[str, int]:
    """Returns for how many steps each learning stage stays frozen at first: the head for none, lower ones longer."""
    learning = [n for n, part in find_stages(model).items() if any(layer.trainable_weights for layer in part.layers)]
    return {stage: n * recipe.thaw_epochs * steps_per_epoch for n, stage in enumerate(reversed(learning))}
