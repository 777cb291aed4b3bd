"""The parts train, validation and test."""

import zlib

import numpy as np
import pandas as pd


def split_images(
    images: pd.DataFrame,
    *,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    images_per_class: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Returns the table with every image in exactly one part: train, validation or test.

    Stratified: each class is permuted on its own, with a seed made of `seed` and its name, from a sorted
    list. So the same files give the same split on any machine, and no class's split depends on another's.
    Parts that the folder gave are kept, and only what is missing is drawn.

    Args:
        images: columns path, label, split.
        validation_fraction: share of the images that are not test images, in (0, 1).
        test_fraction: share of all images, in (0, 1); not used where the folder gave a test part.
        images_per_class: how many labelled images of each class to keep for training and, unless it is
            given, validation together (the others are left out); 0 keeps all. The 10 of "10" are among
            the 20 of "20".
        seed: any integer of at least 0.

    Raises:
        ValueError: a fraction, the seed or the limit is out of range, or a class has too few images to be in
            every part.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"Expected `seed` of at least 0 and below 2**32. Received {seed}.")
    for name, value in (("validation_fraction", validation_fraction), ("test_fraction", test_fraction)):
        if not 0 < value < 1:
            raise ValueError(f"Expected `{name}` between 0 and 1, both excluded. Received {value}.")
    if images_per_class < 0:
        raise ValueError(f"Expected `images_per_class` of at least 0 (0 keeps all). Received {images_per_class}.")
    split = images["split"].copy()
    for label, rows in images.groupby("label"):
        order = np.random.default_rng([seed, zlib.crc32(label.encode())]).permutation(rows.index)
        parts = _split_class(label, split[order], validation_fraction, test_fraction, images_per_class)
        split[order] = parts.to_numpy()  # by position: assigning a Series would not align it by index
    return images.assign(split=split)[split != ""].reset_index(drop=True)


def _split_class(
    label: str, given: pd.Series, validation_fraction: float, test_fraction: float, limit: int
) -> pd.Series:
    """Returns the parts of one class; `given` is in random order, "" or the part that the folder gave."""
    split = given.copy()
    has_test, has_validation = (given == "test").any(), (given == "validation").any()
    pool = given.index[given.isin(["", "train"])]
    needed = 1 + (not has_test) + (not has_validation)
    if len(pool) < needed or 0 < limit < 1 + (not has_validation):
        if 0 < limit < 1 + (not has_validation):
            raise ValueError(
                f"Expected `images_per_class` of at least 2: one to train, one to validate. Received {limit}."
            )
        raise ValueError(
            f"The class {label!r} has {len(pool)} readable image{'s' * (len(pool) != 1)} to draw from, and needs "
            f"at least {needed}, one for each of train{', validation' * (not has_validation)}"
            f"{', test' * (not has_test)}. Add images of this class, or remove its folder."
        )
    if not has_test:
        count = min(max(1, round(test_fraction * len(pool))), len(pool) - needed + 1)
        split[pool[:count]], pool = "test", pool[count:]
    if limit:
        split[pool[limit:]], pool = "", pool[:limit]
    if not has_validation:
        count = min(max(1, round(validation_fraction * len(pool))), len(pool) - 1)
        # from the end, so that a larger limit keeps what a smaller one trained on wherever it can
        split[pool[len(pool) - count :]], pool = "validation", pool[: len(pool) - count]
    split[pool] = "train"
    return split
