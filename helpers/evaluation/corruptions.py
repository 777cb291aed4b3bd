"""Accuracy on images that differ from the test images: graded corruptions of these, or a folder of others.

Fine-tuning can win on test images that are like the training images, and lose on others (Kumar et al. 2022, arXiv
2202.10054). So both arms are tested on the same changed images, down to the pixel.

The corruptions are simpler than those of Hendrycks and Dietterich (2019, arXiv 1903.12261), with one scale for small
and large images. Compare arms with each other, and not with published figures.

`models` are name of the arm to its classifier, from uint8 images of one size to probabilities.
"""

import io
import itertools
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter
from tqdm import tqdm

from helpers import progress_file, resolve_path
from helpers.data import check_images, find_images, load_pixels, open_data
from helpers.data.names import unify_name
from helpers.data.reading import FULL_WHITE
from helpers.data.stores import StoredArray
from helpers.evaluation.intervals import accuracy_interval, compare
from helpers.evaluation.metrics import is_correct

SEVERITIES = (1, 2, 3, 4, 5)

CORRUPTIONS = {
    "blur": (0.004, 0.008, 0.012, 0.017, 0.025),  # out of focus: radius by the shorter side and 16 pixels
    "noise": (0.04, 0.08, 0.12, 0.18, 0.26),  # a dark room: Gaussian in each channel, by the range of values
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # other light: one image lighter, another darker, by the range of values
    "jpeg": (60, 40, 25, 15, 8),  # saved too small: the quality
    "occlusion": (0.05, 0.1, 0.2, 0.3, 0.4),  # something in front, in the mean colour: the share of the area
}
"""Name to its levels at severities 1 to 5."""


def corrupt(image: np.ndarray, corruption: str, *, severity: int) -> np.ndarray:
    """Returns the image, uint8 (height, width, 3), with one of `CORRUPTIONS` at severity 1 to 5, or 0 for unchanged.

    What is random depends only on the image, not on the severity: the same noise becomes stronger.
    """
    if severity == 0:
        return image
    image, level = np.ascontiguousarray(image), CORRUPTIONS[corruption][severity - 1]
    rng = np.random.default_rng([0, zlib.crc32(corruption.encode()), zlib.crc32(image)])
    if corruption == "blur":
        # A larger image shows the same thing with more pixels, so the radius grows with it. But a small image has no
        # detail finer than a pixel, which a much smaller radius would not change: hence the 16 more.
        radius = level * (min(image.shape[:2]) + 16)
        return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
    if corruption == "jpeg":
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=level)
        return np.asarray(Image.open(file))
    if corruption == "occlusion":
        height, width = (max(round(side * level**0.5), 1) for side in image.shape[:2])
        top = round(rng.random() * (image.shape[0] - height))
        left = round(rng.random() * (image.shape[1] - width))
        occluded = image.copy()
        occluded[top : top + height, left : left + width] = image.mean(axis=(0, 1)).round()
        return occluded
    if corruption == "brightness":
        change = np.float32(255 * level * rng.choice([-1, 1]))
    else:
        change = np.float32(255 * level) * rng.standard_normal(image.shape, dtype="float32")
    return (image + change).round().clip(0, 255).astype("uint8")


# ---- the arms


def corruption_table(
    models: dict, pixels: np.ndarray | StoredArray, labels: np.ndarray, *, images: int = 500
) -> pd.DataFrame:
    """Returns each arm's accuracy on the same corrupted images, in 26 forward passes per image and arm.

    Args:
        pixels: uint8 (images, height, width, 3), in memory or stored: test images.
        labels: int (images,).
        images: how many are used at most, drawn so that each class keeps its share; 0 for all.

    Returns:
        A row per corruption ("none" for unchanged images), severity (0 to 5) and arm: accuracy with its 95 %
        interval, low and high (0..1), images (count) and correct, bool (images,), for `compare_shift`.
    """
    from helpers.training.activations import Inference  # here: tables do not wait for TensorFlow

    if images < 0:
        raise ValueError(f"Expected `images` of at least 0 (0 for all). Received {images}.")

    def change(job: tuple) -> np.ndarray:
        (corruption, severity), image = job
        return corrupt(image, corruption, severity=severity)

    chosen = _choose(labels, images or len(labels))
    conditions = [("none", 0), *itertools.product(CORRUPTIONS, SEVERITIES)]
    infer, correct = {arm: Inference(model) for arm, model in models.items()}, {arm: [] for arm in models}
    # Some images at a time, under all conditions, in up to 64 MB: no copy of the set.
    count = int(np.clip(64e6 // (len(conditions) * np.prod(pixels.shape[1:])), 1, 32))
    total = len(chosen) * len(conditions) * len(models)
    bar = tqdm(total=total, desc="changed images", unit="image", file=progress_file(), leave=False, delay=1)
    with bar, ThreadPoolExecutor() as pool:  # Pillow and NumPy's noise work without Python's lock
        for positions in np.array_split(chosen, -(-len(chosen) // count)):
            changed = np.stack(list(pool.map(change, itertools.product(conditions, pixels[positions]))))
            for arm in models:
                right = is_correct(infer[arm](changed), np.tile(labels[positions], len(conditions)))
                correct[arm].append(right.reshape(len(conditions), -1))
                bar.update(len(changed))
    found = {arm: np.concatenate(parts, axis=1) for arm, parts in correct.items()}
    return pd.DataFrame(
        [_row(*condition, arm, found[arm][row]) for row, condition in enumerate(conditions) for arm in models]
    )


def shifted_table(
    models: dict, folder: str | Path, *, class_names: list[str], resize: str = "crop", white: int = FULL_WHITE
) -> pd.DataFrame:
    """Returns each arm's accuracy on images of the same classes from elsewhere: another place, camera or year.

    Args:
        folder: with a folder of images per class, or a table or an archive of them (`helpers.data.open_data`).
        class_names: in the order of the probabilities; the folders have these names.
        resize: as in training, like `white`, the value that becomes 255 in images of 16 bits.

    Returns:
        Rows like `corruption_table`'s, one per arm, whose corruption is the folder's name, at severity 1; with the
        columns left_out (count of files that cannot be used) and missing (names of the classes without an image).
        FileNotFoundError if there is no such folder; ValueError for classes that the models do not know, or no image.
    """
    from helpers.training import compute_activations

    source = resolve_path(folder)
    if not source.exists():
        raise FileNotFoundError(f"Expected `shifted` to name images in class folders. There is no {source}.")
    numbers = {unify_name(name): number for number, name in enumerate(class_names)}
    found = find_images(open_data(str(folder)))
    if unknown := sorted(set(found.loc[found["problem"] == "", "label"]) - set(numbers)):
        raise ValueError(
            f"Expected only classes in {source} that the models know: {', '.join(numbers)}. Received "
            f"{', '.join(unknown)}: rename these folders (or labels in the table), or take them away."
        )
    usable, problems = check_images(found, white=white)
    left_out = problems.loc[problems["action"] == "left out", "path"].unique()
    usable = usable[~usable["path"].isin(left_out)]
    if usable.empty:
        raise ValueError(f"Expected images in {source}. None of its {len(found)} files is one that can be used.")
    image_size = next(iter(models.values())).input_shape[1:3]
    pixels = load_pixels(usable.assign(split="test"), image_size=image_size, resize=resize)["test"]
    labels = usable["label"].map(numbers).to_numpy("int64")  # not `encode_labels`: a class may be missing here
    missing = ", ".join(name for name in numbers if name not in set(usable["label"]))
    rows = []
    for arm, model in models.items():
        probabilities = compute_activations(model, pixels, title=f"changed images, {arm}")
        rows.append(_row(source.name, 1, arm, is_correct(probabilities, labels)))
    return pd.DataFrame(rows).assign(left_out=len(left_out), missing=missing)


def _choose(labels: np.ndarray, count: int) -> np.ndarray:
    """Returns the positions of `count` images, ascending, each class with its share to within one image."""
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = pd.Series(labels[order])
    classes = shuffled.groupby(shuffled)
    place = (classes.cumcount() + 0.5) / classes.transform("size")  # in its class, 0..1
    return np.sort(order[np.argsort(place.to_numpy(), kind="stable")[:count]])


def _row(corruption: str, severity: int, arm: str, correct: np.ndarray) -> dict:
    low, high = accuracy_interval(correct.sum(), len(correct))
    row = {"corruption": corruption, "severity": severity, "arm": arm, "accuracy": float(correct.mean())}
    return row | {"low": low, "high": high, "images": len(correct), "correct": correct}


# ---- the comparison


def compare_shift(table: pd.DataFrame) -> pd.DataFrame:
    """Returns how much more often "fine-tuned" is right than "frozen", from either of the tables above.

    For each image the severities are averaged, first. The interval is over images (`compare`): what another draw of
    images, corrupted alike, would have shown for these two networks.

    Returns:
        A DataFrame indexed by corruption, as in the table (severity 0, as they are, is a row of its own), then "all",
        the average over corruptions, if there are several: frozen and fine-tuned (accuracies), difference (fine-tuned
        minus frozen, in -1..1) with its 95 % interval, low and high; and images (count).
    """
    arms = ("frozen", "fine-tuned")
    names, shares, changed = [], [], []  # shares of the severities at which each image is right, (arms, images)
    for (is_changed, corruption), group in table.groupby([table["severity"] > 0, "corruption"], sort=False):
        names.append(corruption)
        shares.append([np.mean(group.loc[group["arm"] == arm, "correct"].tolist(), axis=0) for arm in arms])
        changed += shares[-1:] if is_changed else []
    if len(changed) > 1:
        names.append("all")
        shares.append(np.mean(changed, axis=0))
    rows = [{arms[0]: one.mean(), arms[1]: other.mean(), **compare(one, other)} for one, other in shares]
    table = pd.DataFrame(rows, index=pd.Index(names, name="corruption"))
    return table[[*arms, "difference", "low", "high"]].assign(images=len(shares[0][0]))


def worst_corruptions(table: pd.DataFrame) -> pd.DataFrame:
    """Returns which corruption costs each arm most at severity 1, from `corruption_table`, a row per arm.

    Severity 1 is meant to be mild: a large loss hints at something that all training images have in common, and that
    the network has come to rely on. The columns are corruption, before and after (accuracy on unchanged and on
    corrupted images, 0..1), and lost (before minus after).
    """
    mild = table[table["severity"] == 1]
    worst = mild.loc[mild.groupby("arm", sort=False)["accuracy"].idxmin()].set_index("arm")
    before = table[table["severity"] == 0].set_index("arm")["accuracy"].loc[worst.index]
    table = worst[["corruption"]].assign(before=before, after=worst["accuracy"])
    return table.assign(lost=table["before"] - table["after"])
