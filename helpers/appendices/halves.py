"""Images by class, in memory, and the classes divided into halves."""

from collections.abc import Iterable, Sequence
from math import comb, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.appendices.letters import LETTERS, render_letters
from helpers.data import (
    check_images,
    encode_labels,
    exclude_problems,
    find_images,
    load_pixels,
    open_data,
    save_problems,
    split_images,
)
from helpers.data.names import unify_name
from helpers.data.tables import PARTS

_VALIDATION = 0.1
"""Share of the images to learn from that tell the best epoch: nothing else is chosen by them."""


class LabelledImages(NamedTuple):
    """Images of known classes in three parts, in memory."""

    pixels: dict[str, np.ndarray]  # part to uint8 (images, height, width, 3), 0..255
    labels: dict[str, np.ndarray]  # part to int (images,), positions in `class_names`
    class_names: list[str]  # in the order of the labels
    problems: pd.DataFrame  # what was found in the files, as from `check_images`; no row for images that were drawn

    def of(self, classes: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Returns pixels and labels of some classes alone; a label is the position in `classes`."""
        place = np.full(len(self.class_names), -1)
        place[[self.class_names.index(name) for name in classes]] = range(len(classes))
        rows = {part: np.flatnonzero(place[self.labels[part]] >= 0) for part in PARTS}
        pixels = {part: self.pixels[part][rows[part]] for part in PARTS}
        return pixels, {part: place[self.labels[part][rows[part]]] for part in PARTS}


def open_classes(
    data: str, *, image_size: int, images_per_class: int = 0, seed: int = 0, problems_file: Path | None = None
) -> LabelledImages:
    """Returns the images of the classes that are to be halved.

    Args:
        data: "letters", drawn by `render_letters`; "letters and digits", with the embedded example's ten classes
            beside them; or what `open_data` takes. Of files, those with problems are left out.
        image_size: pixels along a side. Letters have 8.
        images_per_class: to learn from (a tenth of them for validation). As many letters more of each class are test
            images. 0 for all, of letters for 50.
        seed: of the letters, or of the split.
        problems_file: where to write what was found in the files (`save_problems`), before any of it is an error.
    """
    if data == "letters":
        return _draw_letters(images_per_class or 50, image_size=image_size, seed=seed)
    if data == "letters and digits":
        options = {"image_size": image_size, "images_per_class": images_per_class, "seed": seed}
        letters, digits = open_classes("letters", **options), open_classes("digits", **options)
        first = len(letters.class_names)
        return LabelledImages(
            {part: np.concatenate([letters.pixels[part], digits.pixels[part]]) for part in PARTS},
            {part: np.concatenate([letters.labels[part], digits.labels[part] + first]) for part in PARTS},
            letters.class_names + digits.class_names,
            digits.problems,
        )
    checked, problems = check_images(find_images(open_data(data)))
    if problems_file:
        save_problems(problems, problems_file)
    kept = exclude_problems(checked, problems)
    images = split_images(kept, validation_fraction=_VALIDATION, images_per_class=images_per_class, seed=seed)
    labels, names = encode_labels(images)
    pixels = load_pixels(images, image_size=(image_size, image_size))
    return LabelledImages({part: np.asarray(pixels[part][:]) for part in PARTS}, labels, names, problems)


def _draw_letters(count: int, *, image_size: int, seed: int) -> LabelledImages:
    """Returns the same number of letters of every class: drawn, and those that a class has too many left out."""
    if image_size != 8 or count < 2:
        raise ValueError(
            f"Expected `image_size=8` with letters, and `images_per_class` of at least 2. Received {image_size} and "
            f"{count}."
        )
    validation = max(1, round(_VALIDATION * count))
    sizes = {"train": count - validation, "validation": validation, "test": count}
    wanted, pools, labels = sum(sizes.values()), [], []
    while not labels or np.bincount(np.concatenate(labels), minlength=len(LETTERS)).min() < wanted:
        at_once = len(LETTERS) * round(wanted + 4 * sqrt(wanted))  # as a rule enough, though classes are drawn, too
        drawn, kinds = render_letters(at_once, seed=1000 * seed + len(pools))
        pools.append(drawn)
        labels.append(kinds)
    drawn, kinds = np.concatenate(pools), np.concatenate(labels)
    rows = np.stack([np.flatnonzero(kinds == label)[:wanted] for label in range(len(LETTERS))])
    ends = np.cumsum(list(sizes.values()))[:-1]
    chosen = {part: places.ravel() for part, places in zip(PARTS, np.split(rows, ends, axis=1), strict=True)}
    return LabelledImages(
        {part: drawn[places] for part, places in chosen.items()},
        {part: kinds[places] for part, places in chosen.items()},
        list(LETTERS),
        pd.DataFrame(columns=["problem", "action", "path", "reason"]),
    )


class Halves(NamedTuple):
    """One division of the classes."""

    a: list[str]
    b: list[str]


def halve_classes(
    class_names: Sequence[str], *, splits: int, half_b: Iterable[str] = (), seed: int = 0
) -> list[Halves]:
    """Returns several divisions of the classes, at least four, into halves A and B.

    Args:
        class_names: all classes.
        splits: how many. Random ones differ from each other.
        half_b: the classes of B, for a division by what they show (Yosinski et al.: natural and man-made things);
            all others are A. It is then the same in all splits, and they differ in what is drawn for the networks.
        seed: of random divisions.
    """
    names, half_b = sorted(class_names), list(map(unify_name, half_b))
    if len(names) < 4:
        raise ValueError(f"Expected at least four classes. Received {len(names)}: {', '.join(names)}.")
    if half_b:
        return [_divide(names, half_b)] * splits
    size = len(names) // 2
    most = comb(len(names), size)
    if not 2 <= splits <= most:
        raise ValueError(
            f"Expected `splits` of 2 to {most}, as many halves as {len(names)} classes have. Received {splits}."
        )
    rng = np.random.default_rng([seed, len(names)])
    drawn: dict[tuple, None] = {}
    while len(drawn) < splits:
        drawn[tuple(sorted(rng.permutation(names)[:size].tolist()))] = None
    return [_divide(names, b) for b in drawn]


def _divide(names: list[str], half_b: Iterable[str]) -> Halves:
    halves = Halves([name for name in names if name not in half_b], [name for name in names if name in half_b])
    unknown = sorted(set(half_b) - set(names))
    if unknown or min(map(len, halves)) < 2:
        raise ValueError(
            f"Expected `half_b` to leave at least two classes of {', '.join(names)} in each half. Received "
            f"{', '.join(half_b)}."
        )
    return halves
