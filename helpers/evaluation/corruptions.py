"""Accuracy on images that differ from the test images: graded corruptions of these, or a folder of others.

Fine-tuning can win on test images that are like the training images, and lose on others (Kumar et al. 2022, arXiv
2202.10054). So both arms are tested on the same changed images, down to the pixel.

The corruptions are simpler than those of Hendrycks and Dietterich (2019, arXiv 1903.12261), with one scale for small
and large images. Compare arms with each other, and not with published figures.
"""

import io
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from helpers import resolve_path
from helpers.data import check_images, find_images, load_pixels, open_data
from helpers.data.names import unify_name
from helpers.data.reading import FULL_WHITE
from helpers.data.stores import StoredArray
from helpers.evaluation.intervals import accuracy_interval, compare
from helpers.evaluation.metrics import is_correct

SEVERITIES = (1, 2, 3, 4, 5)

ALL = "all"  # what tables call the average over corruptions

# ---- one image


def corrupt(image: np.ndarray, corruption: str, *, severity: int) -> np.ndarray:
    """Returns the image, uint8 (height, width, 3), with one of `CORRUPTIONS` at severity 1 to 5, or 0 for unchanged.

    What is random depends only on the image, not on the severity: the same noise becomes stronger.
    """
    if severity == 0:
        return image
    image = np.ascontiguousarray(image)
    rng = np.random.default_rng([0, zlib.crc32(corruption.encode()), zlib.crc32(image)])
    change, levels = CORRUPTIONS[corruption]
    return change(image, levels[severity - 1], rng)


def _blur(image: np.ndarray, level: float, _) -> np.ndarray:
    # A larger image shows the same thing with more pixels, so the radius grows with it. But a small image has no
    # detail finer than a pixel, which a much smaller radius would not change: hence the 16 more.
    radius = level * (min(image.shape[:2]) + 16)
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def _add_noise(image: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    return _to_bytes(image + np.float32(255 * level) * rng.standard_normal(image.shape, dtype="float32"))


def _change_brightness(image: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    return _to_bytes(image + np.float32(255 * level * rng.choice([-1, 1])))


def _compress(image: np.ndarray, level: int, _) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=level)
    return np.asarray(Image.open(file))


def _occlude(image: np.ndarray, level: float, rng: np.random.Generator) -> np.ndarray:
    height, width = (max(round(side * level**0.5), 1) for side in image.shape[:2])
    top, left = (
        round(rng.random() * (side - part)) for side, part in zip(image.shape, (height, width), strict=False)
    )
    occluded = image.copy()
    occluded[top : top + height, left : left + width] = image.mean(axis=(0, 1)).round()
    return occluded


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return values.round().clip(0, 255).astype("uint8")


CORRUPTIONS = {
    # out of focus: a Gaussian blur, by the shorter side and 16 pixels
    "blur": (_blur, (0.004, 0.008, 0.012, 0.017, 0.025)),
    # a dark room: Gaussian noise in each channel, by the range of values
    "noise": (_add_noise, (0.04, 0.08, 0.12, 0.18, 0.26)),
    # other light: one image lighter, another darker, by the range of values
    "brightness": (_change_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    # saved too small: JPEG of this quality
    "jpeg": (_compress, (60, 40, 25, 15, 8)),
    # something in front: this share of the area in the image's mean colour, at a random place
    "occlusion": (_occlude, (0.05, 0.1, 0.2, 0.3, 0.4)),
}
"""Name to function and its level at severities 1 to 5."""

# ---- the arms


class _Corrupted:
    """The chosen images under one condition after another, made while they are read: no copy of the set."""

    def __init__(self, pixels, chosen: np.ndarray, conditions: list[tuple[str, int]]):
        self.pixels, self.chosen, self.conditions = pixels, chosen, conditions
        self.shape, self.dtype = (len(chosen) * len(conditions), *pixels.shape[1:]), pixels.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        conditions, places = np.divmod(np.arange(len(self))[rows], len(self.chosen))
        images = self.pixels[self.chosen[places]]

        def change(image: np.ndarray, condition: int) -> np.ndarray:
            corruption, severity = self.conditions[condition]
            return corrupt(image, corruption, severity=severity)

        with ThreadPoolExecutor() as pool:  # Pillow and NumPy's noise work without Python's lock
            return np.stack(list(pool.map(change, images, conditions)))


def corruption_table(
    models: dict, pixels: np.ndarray | StoredArray, labels: np.ndarray, *, images: int = 500
) -> pd.DataFrame:
    """Returns each arm's accuracy on the same corrupted images, in 26 forward passes per image and arm.

    Args:
        models: name of the arm to its classifier, from uint8 images to probabilities.
        pixels: uint8 (images, height, width, 3), in memory or stored: test images.
        labels: int (images,).
        images: how many are used at most, drawn so that each class keeps its share; 0 for all.

    Returns:
        A row per corruption ("none" for unchanged images), severity (0 to 5) and arm: accuracy with its 95 %
        interval, low and high (0..1), images (count) and correct, bool (images,), for `compare_shift`.
    """
    if images < 0:
        raise ValueError(f"Expected `images` of at least 0 (0 for all). Received {images}.")
    chosen = _choose(labels, images or len(labels))
    conditions = [("none", 0), *((corruption, severity) for corruption in CORRUPTIONS for severity in SEVERITIES)]
    changed = _Corrupted(pixels, chosen, conditions)
    correct = _predict_correct(models, changed, np.tile(labels[chosen], len(conditions)))
    rows = [
        _row(corruption, severity, arm, correct[arm].reshape(len(conditions), -1)[number])
        for number, (corruption, severity) in enumerate(conditions)
        for arm in models
    ]
    return pd.DataFrame(rows)


def shifted_table(
    models: dict, folder: str | Path, *, class_names: list[str], resize: str = "crop", white: int = FULL_WHITE
) -> pd.DataFrame:
    """Returns each arm's accuracy on images of the same classes from elsewhere: another place, camera or year.

    Args:
        models: name of the arm to its classifier, from uint8 images of one size to probabilities.
        folder: with a folder of images per class, or a table or an archive of them (`helpers.data.open_data`).
        class_names: in the order of the probabilities; the folders have these names.
        resize: as in training, like `white`, the value that becomes 255 in images of 16 bits.

    Returns:
        Rows like `corruption_table`'s, one per arm, whose corruption is the folder's name, at severity 1; with the
        columns left_out (count of files that cannot be used) and missing (names of the classes without an image).

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds classes that the models do not know, or no usable image.
    """
    source = resolve_path(folder)
    if not source.exists():
        raise FileNotFoundError(f"Expected `shifted` to name images in class folders. There is no {source}.")
    class_names = list(map(unify_name, class_names))
    found = find_images(open_data(str(folder)))
    labelled = found.loc[found["problem"] == "", "label"]
    if unknown := sorted(set(labelled) - set(class_names)):
        raise ValueError(
            f"Expected only classes in {source} that the models know: {_list(class_names)}. Received "
            f"{_list(unknown)}: rename these folders (or labels in the table), or take them away."
        )
    usable, problems = check_images(found, white=white)
    left_out = problems.loc[problems["action"] == "left out", "path"].unique()
    usable = usable[~usable["path"].isin(left_out)]
    if usable.empty:
        raise ValueError(f"Expected images in {source}. None of its {len(found)} files is one that can be used.")
    image_size = next(iter(models.values())).input_shape[1:3]
    pixels = load_pixels(usable.assign(split="test"), image_size=image_size, resize=resize)["test"]
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = usable["label"].map(numbers).to_numpy("int64")  # not `encode_labels`: a class may be missing here
    correct = _predict_correct(models, pixels, labels)
    missing = ", ".join(name for name in class_names if name not in set(usable["label"]))
    rows = [_row(source.name, 1, arm, correct[arm]) for arm in models]
    return pd.DataFrame(rows).assign(left_out=len(left_out), missing=missing)


def compare_shift(table: pd.DataFrame, *, first: str = "frozen", second: str = "fine-tuned") -> pd.DataFrame:
    """Returns how much more often the second arm is right than the first, under each corruption.

    For each image the severities are averaged, first. The interval is over images (`compare`): what another draw of
    images, corrupted alike, would have shown for these two networks.

    Args:
        table: from `corruption_table` or `shifted_table`.
        first: name of the arm that is subtracted.
        second: name of the other one.

    Returns:
        A DataFrame indexed by corruption, as in the table (severity 0, as they are, is a row of its own), then "all",
        the average over corruptions, if there are several: a column for each arm, its accuracy; difference (second
        minus first, in -1..1) with its 95 % interval, low and high; and images (count).

    Raises:
        ValueError: the table lacks an arm, or its rows are about several sets of images.
    """
    if lacking := {first, second} - set(table["arm"]):
        raise ValueError(
            f"Expected the arms {first!r} and {second!r} in the table. It has {_list(table['arm'].unique())}, not "
            f"{_list(lacking)}: name the arms to compare as `first` and `second`."
        )
    if table["images"].nunique() > 1:
        raise ValueError(
            f"Expected a table whose rows are about the same images. Received rows about "
            f"{_list(table['images'].unique())} images: compare each table by itself."
        )
    parts = table.groupby([table["severity"] > 0, "corruption"], sort=False)
    names = [corruption for (_, corruption), _ in parts]
    by_image = [  # of each part: arm -> the share of severities at which each image is right
        {arm: np.mean(np.stack(rows["correct"].tolist()), axis=0) for arm, rows in part.groupby("arm")}
        for _, part in parts
    ]
    changed = [shares for ((is_changed, _), _), shares in zip(parts, by_image, strict=True) if is_changed]
    if len(changed) > 1:
        names.append(ALL)
        by_image.append({arm: np.mean([shares[arm] for shares in changed], axis=0) for arm in (first, second)})
    rows = {name: [] for name in (first, second, "difference", "low", "high")}
    for shares in by_image:
        comparison = compare(shares[first], shares[second])
        means = {arm: shares[arm].mean() for arm in (first, second)}
        for name, values in rows.items():
            values.append((comparison | means)[name])
    return pd.DataFrame(rows, index=pd.Index(names, name="corruption")).assign(images=len(by_image[0][first]))


def worst_corruptions(table: pd.DataFrame) -> pd.DataFrame:
    """Returns which corruption costs each arm most at severity 1, from `corruption_table`, a row per arm.

    Severity 1 is meant to be mild: a large loss hints at something that all training images have in common, and that
    the network has come to rely on. The columns are corruption, before and after (accuracy on unchanged and on
    corrupted images, 0..1), and lost (before minus after).
    """
    mild = table[table["severity"] == 1]
    worst = mild.loc[mild.groupby("arm", sort=False)["accuracy"].idxmin()].set_index("arm")
    before = table[table["severity"] == 0].set_index("arm")["accuracy"].loc[worst.index]
    after = worst["accuracy"]
    return pd.DataFrame({"corruption": worst["corruption"], "before": before, "after": after, "lost": before - after})


def _predict_correct(models: dict, inputs, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns whether each arm is right about each image, bool (images,)."""
    from helpers.training import compute_activations  # here: tables do not wait for TensorFlow

    return {
        arm: is_correct(compute_activations(model, inputs, title=f"changed images, {arm}"), labels)
        for arm, model in models.items()
    }


def _row(corruption: str, severity: int, arm: str, correct: np.ndarray) -> dict:
    low, high = accuracy_interval(correct.sum(), len(correct))
    row = {"corruption": corruption, "severity": severity, "arm": arm, "accuracy": float(correct.mean())}
    return row | {"low": low, "high": high, "images": len(correct), "correct": correct}


def _choose(labels: np.ndarray, count: int) -> np.ndarray:
    """Returns the positions of `count` images, ascending, each class with its share to within one image."""
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = pd.Series(labels[order])
    classes = shuffled.groupby(shuffled)
    place = (classes.cumcount() + 0.5) / classes.transform("size")  # in its class, 0..1
    return np.sort(order[np.argsort(place.to_numpy(), kind="stable")[:count]])


def _list(names) -> str:
    return ", ".join(map(str, names))
