"""The defaults of fine-tuning, and why.

They were chosen on training photos alone, by tests/benchmarks/recipe.py: one choice at a time is changed, on folds of
the images that are not test images. helpers/training/README.md has the table.

- *200 steps, and the last epoch is the result.* Between 60 and 800 steps little changes: a few hundred photos are
  learned early, and what follows does not help. The last epoch of a schedule that decays to 0 is as good as the one
  with the lowest validation log-loss, so nothing is chosen by few validation images.
- *1e-3 at the head, a hundredth of it at the first stage*: layer-wise decay (arXiv 1801.06146). Which rate is best
  differs between sets, so 04 tries several.
- *From half of the cost on.* To fine-tune everything takes about five times as long and is no better.
- *No augmentation.* It was no better on flowers and worse on scans, and stored activations are worth more.
- *Log-losses at the best temperature* (`log_loss`): a fine-tuned network grows overconfident long before it grows
  worse.
- *Batches of 32, Adam*: usual values that were not searched.
"""

import math
from dataclasses import dataclass

from helpers._keras import keras
from helpers.backbones import find_stages, stage_at
from helpers.data.augmentation import read_augmentation
from helpers.training.weights import PRECISIONS, check_class_weight


@dataclass(frozen=True)
class Recipe:
    """How a classifier is fine-tuned; the defaults are 03's.

    Attributes:
        unfreeze_from: the first stage that learns, "auto" or "all": see `first_stage`.
        learning_rate: the highest rate of the schedule (`warmup_cosine`).
        lowest_rate: the factor of the learning rate at the network's first stage (`decaying_rates`); 1 for one rate.
        steps: length of the training, in updates of the weights: as many epochs as come nearest (`count_epochs`).
        epochs: length in passes over the training images; 0 for what `steps` says.
        patience: with 1 or more, the training stops early, and its best epoch is the result: see `Checkpoint`. With
            0 it is the last one.
        batch_size: images per step.
        batch_parts: in how many equal parts a batch is computed, one after the other: less memory, and the same steps
            but for rounding. Not with `batch_norm="train"`, whose statistics are a whole batch's.
        seed: of the order of the images, of dropout and of augmentation.
        label_smoothing: share of each label that the loss spreads over all classes (`cross_entropy`).
        optimizer: "adam" or "sgd".
        batch_norm: "frozen" or "train": see `freeze`.
        class_weight: "balanced", or class (int) to the weight of its images in the loss: see `weigh_classes`.
        augmentation: of the training images: names of `AUGMENTATIONS`, separated by commas; "" for none.
        augment_views: how many views there are of each image; 0 for a new one in each epoch.
        pull: strength of the pull towards the start (L2-SP): see `make_optimizer`.
        start_share: share of the start in the final weights, 0 to 1 (WiSE-FT): see `blend_weights`.
        thaw_epochs: with 1 or more, only the head learns at first, and one stage more after each so many epochs.
        precision: of the computation: "float32", "mixed_float16" or "mixed_bfloat16".
        half_precision: of the stored activations: see `load_activations`.
    """

    unfreeze_from: str = "auto"
    learning_rate: float = 1e-3
    lowest_rate: float = 0.01
    steps: int = 200
    epochs: int = 0
    patience: int = 0
    batch_size: int = 32
    batch_parts: int = 1
    seed: int = 0
    label_smoothing: float = 0.0
    optimizer: str = "adam"
    batch_norm: str = "frozen"
    class_weight: str | dict[int, float] | None = None
    augmentation: str = ""
    augment_views: int = 0
    pull: float = 0.0
    start_share: float = 0.0
    thaw_epochs: int = 0
    precision: str = "float32"
    half_precision: bool = False

    def __post_init__(self):
        """Raises ValueError now, and not after an hour."""
        for name in ("learning_rate", "lowest_rate", "steps", "batch_size", "batch_parts"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Expected `{name}` above 0. Received {getattr(self, name)}.")
        for name in ("epochs", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"Expected `{name}` of at least 0. Received {getattr(self, name)}.")
        for name, top in (("start_share", 1), ("label_smoothing", 0.99)):
            if not 0 <= getattr(self, name) <= top:
                raise ValueError(f"Expected `{name}` within 0 to {top}. Received {getattr(self, name)}.")
        if self.batch_parts > 1 and self.batch_norm == "train":
            raise ValueError(
                f'Expected `batch_parts` of 1 with `batch_norm="train"`: statistics are a whole batch\'s. Received '
                f"{self.batch_parts}."
            )
        check_class_weight(self.class_weight)
        if self.augmentation:
            read_augmentation(self.augmentation)
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"Expected `precision` to be one of {', '.join(PRECISIONS)}. Received {self.precision!r}."
            )


def first_stage(model: keras.Model, unfreeze_from: str) -> str:
    """Returns the first stage that learns.

    Args:
        model: a classifier.
        unfreeze_from: a stage's name; "auto" for the one at half of the forward cost, "all" for the first of all.
    """
    if unfreeze_from == "all":
        return list(find_stages(model))[1]
    return stage_at(model, 0.5) if unfreeze_from == "auto" else unfreeze_from


def count_epochs(steps: int, *, images: int, batch_size: int) -> int:
    """Returns the number of passes over the training images that comes nearest to so many steps, at least 1.

    >>> count_epochs(200, images=400, batch_size=32)  # 13 steps each
    15
    """
    return max(1, round(steps / math.ceil(images / batch_size)))


def thawing(model: keras.Model, recipe: Recipe, *, steps_per_epoch: int) -> dict[str, int]:
    """Returns for how many steps each learning stage stays frozen at first: the head for none, lower ones longer."""
    learning = [n for n, part in find_stages(model).items() if any(layer.trainable_weights for layer in part.layers)]
    return {stage: n * recipe.thaw_epochs * steps_per_epoch for n, stage in enumerate(reversed(learning))}
