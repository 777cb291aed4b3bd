"""The parts train, validation and test: stratified, groups whole, the same on any machine."""

import math
import zlib

import numpy as np
import pandas as pd

from helpers.data.tables import PARTS


def split_images(
    images: pd.DataFrame,
    *,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    images_per_class: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Returns the table, sorted by path, with every image in exactly one part: train, validation or test.

    Stratified: each class is permuted on its own, from a sorted list, with a seed made of `seed` and its name, and
    cut. So the same files give the same split on any machine. Images of one group come into one part. Given parts are
    kept, and only what is missing is drawn: test images from undecided ones (from all, where all are given as train),
    validation images also from those given as train. An undecided image goes with the given ones of its group.

    Args:
        images: columns path, label, split ("" while undecided) and optionally group ("" for none).
        validation_fraction: share of the images that are not test images, in (0, 1).
        test_fraction: share of all images but given validation images, in (0, 1).
        images_per_class: images of each class to keep for training and drawn validation; 0 keeps all. The 10 of "10"
            are among the 20 of "20", in each part.
        seed: 0 or more.

    Raises:
        ValueError: an option is out of range, or a class has too few images (or groups) to be in every part.
    """
    check_shares(validation_fraction, test_fraction, images_per_class, seed)
    if shortages := find_shortages(images):
        label, reason = next(iter(shortages.items()))
        more = f" Other classes with too few: {len(shortages) - 1}." if len(shortages) > 1 else ""
        raise ValueError(f"The class {label!r} has {reason}.{more} Add images, or remove the class.")
    images = images.sort_values("path", ignore_index=True)
    table = _shuffle(images, seed)
    to_draw = [part for part in PARTS[1:] if part not in set(images["split"])]
    for part, fraction in (("test", test_fraction), ("validation", validation_fraction)):
        if part in to_draw:
            to_draw.remove(part)
            table.loc[_draw(table, part, fraction, later=len(to_draw)), "split"] = part
    table.loc[table["split"] == "", "split"] = "train"
    if images_per_class:
        drawn_fraction = 0.0 if "validation" in set(images["split"]) else validation_fraction
        table = _limit(table, images_per_class, drawn_fraction)
    split = table["split"].sort_index()
    return images.assign(split=split)[split != ""].reset_index(drop=True)


def check_shares(validation_fraction: float, test_fraction: float, images_per_class: int, seed: int) -> None:
    """Raises ValueError if a fraction, the limit or the seed of `split_images` is out of range."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"Expected `seed` of at least 0 and below 2**32. Received {seed}.")
    for name, value in (("validation_fraction", validation_fraction), ("test_fraction", test_fraction)):
        if not 0 < value < 1:
            raise ValueError(f"Expected `{name}` between 0 and 1, both excluded. Received {value}.")
    if images_per_class < 0:
        raise ValueError(f"Expected `images_per_class` of at least 0 (0 keeps all). Received {images_per_class}.")


def find_shortages(images: pd.DataFrame) -> dict[str, str]:
    """Returns, for each class that cannot be in every part, how many images it has and how many are missing."""
    table, given, shortages = _settle_given(images), set(images["split"]), {}
    for label, rows in table.groupby("label"):
        have, pool = set(rows["split"]), rows[rows["split"] == ""]
        needed = [part for part in PARTS if part not in (have if part == "train" else given)]
        many, count = len(pool), pool["group"].nunique()
        missing = len(needed) - count
        if missing > 0:
            where = f" in {_number(count, 'group')} (nearly equal images are one)" if count < many else ""
            shortages[label] = (
                f"{_number(many, 'usable image')}{where} to draw from, and needs at least {len(needed)}, one for "
                f"each of {', '.join(needed)}: {_number(missing, 'group' if where else 'image')} missing"
            )
        elif "test" in needed and pool["given_train"].all():
            shortages[label] = "no undecided image to draw test images from, as others have: 1 image missing"
        elif absent := [part for part in PARTS[1:] if part in given and part not in have]:
            shortages[label] = f"no usable image in the given part {absent[0]}: 1 image missing"
    return shortages


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' * (count != 1)}"


def _settle_given(images: pd.DataFrame) -> pd.DataFrame:
    """Returns label; group, or what stands for an image of none; split, "" if it is to be drawn; and given_train."""
    given = images["group"] if "group" in images else pd.Series("", images.index)
    group = ("g" + given).where(given != "", "p" + images["path"])
    split, undecided = images["split"].copy(), images["split"] == ""
    for part in PARTS:  # an undecided image goes with the given ones of its group
        split[undecided & group.isin(set(group[images["split"] == part]))] = part
    elsewhere = group.isin(set(group[split.isin(PARTS[1:])]))
    given_train = (split == "train") & undecided.any()  # not drawn for the test; if all are, nobody has decided on it
    split = split.mask((split == "train") & ~elsewhere, "")  # validation images are drawn from these, too
    return pd.DataFrame({"label": images["label"], "group": group, "split": split, "given_train": given_train})


def _shuffle(images: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Returns `_settle_given`, each class in its random order of groups."""
    table = _settle_given(images)
    rank = np.empty(len(table), "int64")
    for label, rows in table.groupby("label").indices.items():
        order = np.random.default_rng([seed, zlib.crc32(label.encode())]).permutation(rows)
        rank[order] = np.arange(len(order))
    table["rank"] = rank
    table["first"] = table.groupby(["label", "group"])["rank"].transform("min")
    return table.sort_values(["label", "first", "rank"])


def _draw(table: pd.DataFrame, part: str, fraction: float, later: int) -> pd.Index:
    """Returns the rows of the groups that make up a part; so many parts are drawn `later`."""
    pool = table[table["split"] == ""]
    if part == "validation":  # from the end: test images, from the front, stay the same whatever this takes
        pool = pool[::-1]
    sizes = pool.groupby("label").size()
    train = table[table["split"] == "train"].groupby("label").size().reindex(sizes.index, fill_value=0)
    needed = later + (train == 0)  # groups that this part must leave of each class
    can_be_spared = (pool.groupby("label")["group"].nunique() - needed).to_dict()
    wanted = (fraction * (sizes + train)).round().clip(1, sizes - needed).astype(int).to_dict()
    if part == "test":
        pool = pool[~pool["given_train"]]
    # groups in their random order, by the place of their first image in its class, so that no class comes first
    place = pool.groupby("label").cumcount() / pool["label"].map(sizes)
    groups = {group: {} for group in place.groupby(pool["group"]).min().sort_values(kind="stable").index}
    for (group, label), count in pool.groupby(["group", "label"]).size().items():
        groups[group][label] = count
    chosen = _choose(groups, wanted, can_be_spared, sizes.to_dict(), fraction)
    return pool.index[pool["group"].isin(chosen)]


def _choose(groups: dict, wanted: dict, can_be_spared: dict, sizes: dict, fraction: float) -> set[str]:
    """Returns the groups that bring a part nearest to the wanted number of images of each class, greedily.

    `groups`, in random order, are {group: {class: images}}; the others {class: number}, `sizes` of images.
    """
    chosen, covered = set(), set()

    def take(group: str) -> bool:
        """Takes the group, if each of its classes can spare it."""
        if any(can_be_spared[label] < 1 for label in groups[group]):
            return False
        chosen.add(group)
        covered.update(groups[group])
        for label, count in groups[group].items():
            wanted[label] -= count
            can_be_spared[label] -= 1
        return True

    mixed = {group: counts for group, counts in groups.items() if len(counts) > 1}
    share = dict.fromkeys(wanted, 0.0)  # of the mixed groups: the others are to fill theirs
    for counts in mixed.values():
        for label, count in counts.items():
            share[label] += fraction * count
    for group, counts in mixed.items():
        # nearer to the wanted sizes with it than without, each class by its own size
        gain = sum((share[c] ** 2 - (share[c] - count) ** 2) / sizes[c] for c, count in counts.items())
        if gain > 0 and take(group):
            for label, count in counts.items():
                share[label] -= count
    for group, counts in groups.items():
        if group not in mixed and all(count <= wanted[label] for label, count in counts.items()):
            take(group)
    for label in sorted(sizes.keys() - covered):
        smallest = sorted((sum(counts.values()), group) for group, counts in groups.items() if label in counts)
        if label not in covered and not any(take(group) for _, group in smallest):
            raise ValueError(
                f"The class {label!r} cannot be in every part without dividing a group: its images lie in "
                f"{len(smallest)} groups that it shares with other classes. Add images of other groups, or remove it."
            )
    return chosen


def _limit(table: pd.DataFrame, images_per_class: int, validation_fraction: float) -> pd.DataFrame:
    """Returns the table with all but the first few training and drawn validation images of each class marked ""."""
    validation = 0
    if validation_fraction:
        if images_per_class < 2:
            raise ValueError("Expected `images_per_class` of at least 2: one to train, one to validate. Received 1.")
        validation = min(max(1, round(validation_fraction * images_per_class)), images_per_class - 1)
    split = table["split"].copy()
    for part, count in {"train": images_per_class - validation, "validation": validation}.items():
        rows = table[table["split"] == part]
        rows = rows[::-1] if part == "validation" else rows
        if part == "train" or validation_fraction:
            split[rows.index[rows.groupby("label").cumcount() >= count]] = ""
    return table.assign(split=split)


def keep_fraction(images: pd.DataFrame, fraction: float, *, seed: int, at_least: int = 2) -> pd.DataFrame:
    """Returns the table with a fraction of each class's training images; the others are in no part (split "").

    Nested: of the same table and seed, a larger fraction keeps what a smaller one does. Of each class `at_least` so
    many stay, if it has them.
    """
    kept = []
    train = images[images["split"] == "train"].sort_values("path")
    for label, rows in train.groupby("label"):
        order = np.random.default_rng([seed, zlib.crc32(label.encode()), 1]).permutation(rows.index.to_numpy())
        kept += order[: max(math.ceil(fraction * len(rows) - 1e-9), at_least)].tolist()
    return images.assign(split=images["split"].mask((images["split"] == "train") & ~images.index.isin(kept), ""))


def check_split(images: pd.DataFrame, *, on_problem: str) -> str:
    """Returns a sentence, after making sure that no image leaks from one part into another.

    Args:
        images: from `split_images`, with the columns path, label, split, group and sha256.
        on_problem: 01's parameter; with "keep", copies and the images of one group may be in several parts.

    Raises:
        ValueError: an image, its copies or its group are in several parts, or a part lacks a class.
    """
    classes = images["label"].nunique()
    parts = images.groupby("split")["label"].nunique()
    if not images["path"].is_unique or not parts.eq(classes).all():
        raise ValueError(f"Expected each image once, and every class in every part. Received {parts.to_dict()}.")
    for column in () if on_problem == "keep" else ("group", "sha256"):
        spread = images[images[column] != ""].groupby(column)["split"].nunique()
        if spread.gt(1).any():
            raise ValueError(f"Expected images of one {column} in one part. {spread.idxmax()!r} is in several.")
    return f"each image is in one part; each of the {classes} classes is in every part"
