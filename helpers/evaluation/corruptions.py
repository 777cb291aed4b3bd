"""How a network fares on images that differ from those it was tested on: graded corruptions, or a folder of them.

Fine-tuning can win on test images that are like the training images, and lose on others (Kumar et al. 2022, arXiv
2202.10054): so both arms are judged on the same changed images, down to the pixel.
"""

import difflib
import io
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from helpers import resolve_path
from helpers.data import FULL_WHITE, StoredArray, check_images, find_images, load_pixels, open_data
from helpers.data.names import unify_name
from helpers.evaluation.intervals import accuracy_interval, compare
from helpers.evaluation.metrics import is_correct

CORRUPTIONS = {
    "blur": "out of focus: a Gaussian blur of 0.4, 0.8, 1.2, 1.7, 2.5 % of the image's shorter side and 16 pixels",
    "noise": "a dark room: Gaussian noise in each channel, of 4, 8, 12, 18, 26 % of the range of values",
    "brightness": "other light: one image lighter, another darker, by 10, 20, 30, 40, 50 % of the range of values",
    "jpeg": "saved too small: JPEG of quality 60, 40, 25, 15, 8",
    "occlusion": "something in front: 5, 10, 20, 30, 40 % of the area in the image's mean colour, at a random place",
}
"""What `corrupt` can do, by name, in severities 1 to 5.

In the manner of Hendrycks and Dietterich (2019, arXiv 1903.12261), and simpler: five kinds in place of fifteen; a
Gaussian blur for their defocus, which has the shape of a lens; one scale of noise, JPEG and brightness that lies
between those of their small images (CIFAR-10-C) and of their large ones (ImageNet-C), and brightness both ways, added
to RGB. Blur and occlusion grow with the image, so that they mean the same for 32 pixels as for 224. Occlusion is none
of theirs. Figures are not to be compared with theirs, only arms with each other.
"""

SEVERITIES = (1, 2, 3, 4, 5)

_LEVELS = {
    "blur": (0.004, 0.008, 0.012, 0.017, 0.025),
    "noise": (0.04, 0.08, 0.12, 0.18, 0.26),
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
    "jpeg": (60, 40, 25, 15, 8),
    "occlusion": (0.05, 0.1, 0.2, 0.3, 0.4),
}

NONE, ALL = "none", "all"
"""What tables call images as they are, and the average over corruptions.

But a folder may have such a name, too: which images are as they are is told by severity 0.
"""


def corrupt(image: np.ndarray, corruption: str, *, severity: int, seed: int = 0) -> np.ndarray:
    """Returns the corrupted image, uint8 (height, width, 3): the same for the same image and seed.

    What is random hangs on the image itself and not on the severity: the same noise becomes stronger.

    Args:
        image: uint8 (height, width, 3).
        corruption: a name of `CORRUPTIONS`.
        severity: 1 to 5; 0 for the image as it is.
        seed: of the noise, the place and the direction; at least 0.

    Raises:
        ValueError: there is no such corruption or severity.
    """
    if corruption not in CORRUPTIONS:
        raise ValueError(f"Expected `corruption` to be one of {', '.join(CORRUPTIONS)}. Received {corruption!r}.")
    if severity not in (0, *SEVERITIES):
        raise ValueError(f"Expected `severity` to be 0 (the image as it is) to 5. Received {severity!r}.")
    if severity == 0:
        return image
    image = np.ascontiguousarray(image)
    rng = np.random.default_rng([seed, zlib.crc32(corruption.encode()), zlib.crc32(image)])
    return _CHANGES[corruption](image, _LEVELS[corruption][severity - 1], rng)


def _blur(image: np.ndarray, level: float, _) -> np.ndarray:
    # The more pixels show a thing, the more of them a lens smears it over. But a small image has no detail finer than
    # a pixel, and what is much narrower than that changes nothing: hence the 16 more.
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


_CHANGES = {
    "blur": _blur,
    "noise": _add_noise,
    "brightness": _change_brightness,
    "jpeg": _compress,
    "occlusion": _occlude,
}


class _Corrupted:
    """The chosen images under one condition after the other, made while they are read: no copy of the set."""

    def __init__(self, pixels, chosen: np.ndarray, conditions: list[tuple[str, int]], seed: int):
        self.pixels, self.chosen, self.conditions, self.seed = pixels, chosen, conditions, seed
        self.shape, self.dtype = (len(chosen) * len(conditions), *pixels.shape[1:]), pixels.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        conditions, places = np.divmod(np.arange(len(self))[rows], len(self.chosen))
        images = self.pixels[self.chosen[places]]

        def change(image: np.ndarray, condition: int) -> np.ndarray:
            corruption, severity = self.conditions[condition]
            return image if severity == 0 else corrupt(image, corruption, severity=severity, seed=self.seed)

        with ThreadPoolExecutor() as pool:  # Pillow and NumPy's noise work without Python's lock
            return np.stack(list(pool.map(change, images, conditions)))


def corruption_table(
    models: dict, pixels: np.ndarray | StoredArray, labels: np.ndarray, *, images: int = 500, seed: int = 0
) -> pd.DataFrame:
    """Returns each arm's accuracy on the same images, corrupted in the same way, with progress.

    It takes 26 forward passes per image and arm, and memory for a few batches.

    Args:
        models: name of the arm to its classifier, from uint8 images to probabilities.
        pixels: uint8 (images, height, width, 3), in memory or stored: test images.
        labels: int (images,).
        images: how many are used at most, drawn so that each class keeps its share; 0 for all.
        seed: of the choice and of what is random in the corruptions.

    Returns:
        A DataFrame with a row per corruption, severity and arm: corruption ("none" at severity 0, the images as
        they are; else a name of `CORRUPTIONS`), severity (0 to 5), arm, accuracy with its 95 % interval, low and high
        (0..1), images (count) and correct, bool (images,), for `compare_shift`.

    Raises:
        ValueError: the arguments do not fit each other.
    """
    labels = _check_labels(labels, pixels)
    _check_models(models, labels, pixels.shape[1:])
    if images < 0:
        raise ValueError(f"Expected `images` of at least 0 (0 for all). Received {images}.")
    chosen = _choose(labels, images or len(labels), seed)
    conditions = [(NONE, 0), *((corruption, severity) for corruption in CORRUPTIONS for severity in SEVERITIES)]
    correct = _judge(models, _Corrupted(pixels, chosen, conditions, seed), np.tile(labels[chosen], len(conditions)))
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
        folder: with a folder of images per class, or a table or an archive of them (`helpers.data.open_data`); what
            cannot be used is left out (`helpers.data.check_images`).
        class_names: in the order of the probabilities; the folders have these names.
        resize: as for the training: "crop", "pad" or "stretch".
        white: as for the training: the value that becomes 255 in images of 16 bits.

    Returns:
        A DataFrame like `corruption_table`'s, a row per arm, whose corruption is the folder's name, at severity 1;
        with the columns left_out (count of files) and missing (names of the classes without an image here, of which
        the accuracy therefore says nothing).

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds classes that the models do not know, or no image that can be used; or the models take
            images of several sizes.
    """
    source = resolve_path(folder)
    if not str(folder) or not source.exists():
        raise FileNotFoundError(f"Expected `folder` to hold images in class folders. There is no {source}.")
    sizes = {model.input_shape[1:] for model in models.values()}
    if len(sizes) != 1:
        raise ValueError(
            f"Expected `models`, one or more, for images of one size. Received {_list(sizes) or 'none'}."
        )
    for arm, model in models.items():
        if model.output_shape[-1] != len(class_names):
            raise ValueError(
                f"Expected `class_names` of {model.output_shape[-1]} classes, those of {arm!r}. Received "
                f"{len(class_names)}."
            )
    class_names = list(map(unify_name, class_names))
    found = find_images(open_data(str(folder)))
    numbers = {name: number for number, name in enumerate(class_names)}
    _check_classes(found[found["problem"] == ""], source, class_names)
    usable, problems = check_images(found, white=white)
    usable = usable[~usable["path"].isin(problems.loc[problems["action"] == "left out", "path"])]
    if usable.empty:
        raise ValueError(f"Expected images in {source}. None of its {len(found)} files is one that can be used.")
    image_size = sizes.pop()[:2]
    pixels = load_pixels(usable.assign(split="test"), image_size=image_size, resize=resize)["test"]
    labels = usable["label"].map(numbers).to_numpy("int64")  # not `encode_labels`: a class may be missing here
    correct = _judge(models, pixels, labels)
    missing = ", ".join(name for name in class_names if name not in set(usable["label"]))
    left_out = problems.loc[problems["action"] == "left out", "path"].nunique()
    rows = [_row(source.name, 1, arm, correct[arm]) for arm in models]
    return pd.DataFrame(rows).assign(left_out=left_out, missing=missing)


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


def worst_corruptions(table: pd.DataFrame, *, severity: int = 1) -> pd.DataFrame:
    """Returns which corruption costs each arm most at this severity, a row per arm.

    At severity 1, which is meant to be mild, a large loss is a hint at something that all training images have in
    common, and that the network has come to rely on.

    Args:
        table: from `corruption_table`.
        severity: 1 to 5.

    Returns:
        A DataFrame indexed by arm: corruption; before and after (accuracy of the images as they are, and corrupted,
        0..1); lost (before minus after).

    Raises:
        ValueError: the table has no rows of this severity, or none of severity 0.
    """
    table = table.reset_index(drop=True)
    clean, changed = table[table["severity"] == 0], table[table["severity"] == severity]
    if clean.empty or changed.empty or not severity:
        raise ValueError(
            f"Expected a table with the severities 0 and {severity or 1}, to compare them. It has "
            f"{_list(sorted(table['severity'].unique()))}, and `severity` is {severity}."
        )
    worst = changed.loc[changed.groupby("arm", sort=False)["accuracy"].idxmin()].set_index("arm")
    before, after = clean.set_index("arm")["accuracy"].loc[worst.index], worst["accuracy"]
    return pd.DataFrame({"corruption": worst["corruption"], "before": before, "after": after, "lost": before - after})


def _judge(models: dict, inputs, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns whether each arm is right about each image, bool (images,)."""
    from helpers.training import compute_activations  # here: who wants a table need not wait for TensorFlow

    return {
        arm: is_correct(compute_activations(model, inputs, title=f"changed images, {arm}"), labels)
        for arm, model in models.items()
    }


def _row(corruption: str, severity: int, arm: str, correct: np.ndarray) -> dict:
    low, high = accuracy_interval(correct.sum(), len(correct))
    row = {"corruption": corruption, "severity": severity, "arm": arm, "accuracy": float(correct.mean())}
    return row | {"low": low, "high": high, "images": len(correct), "correct": correct}


def _choose(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the positions of `count` images, ascending, each class with its share to within one image."""
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = pd.Series(labels[order])
    classes = shuffled.groupby(shuffled)
    place = (classes.cumcount() + 0.5) / classes.transform("size")  # in its class, 0..1
    return np.sort(order[np.argsort(place.to_numpy(), kind="stable")[:count]])


def _check_labels(labels, pixels) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.shape != (len(pixels),) or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"Expected `labels` of integers, one for each of {len(pixels)} images, at least one. Received "
            f"{labels.dtype} of shape {labels.shape}."
        )
    return labels


def _check_models(models: dict, labels: np.ndarray, shape: tuple) -> None:
    if not models:
        raise ValueError("Expected `models`, name to classifier, with at least one. Received none.")
    for arm, model in models.items():
        taken, classes = model.input_shape[1:], model.output_shape[-1]
        if len(taken) != len(shape) or any(
            side not in (None, given) for side, given in zip(taken, shape, strict=True)
        ):
            raise ValueError(f"Expected images of {taken}, which {arm!r} takes. Received {shape}.")
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(
                f"Expected `labels` from 0 to {classes - 1}, the classes of {arm!r}. Received {labels.min()} to "
                f"{labels.max()}."
            )


def _check_classes(found: pd.DataFrame, source: Path, class_names: list[str]) -> None:
    """Raises a ValueError where the folder has classes that the models do not know."""
    unknown = found.loc[~found["label"].isin(class_names), "label"].value_counts()
    if unknown.empty:
        return
    name, count = unknown.index[0], int(unknown.iloc[0])
    folded = {known.casefold(): known for known in class_names}
    nearest = difflib.get_close_matches(name.casefold(), folded, n=1)
    guess = f" Is {name!r} perhaps {folded[nearest[0]]!r}?" if nearest else ""
    more = f", and {len(unknown) - 1} other{'s' * (len(unknown) > 2)}" if len(unknown) > 1 else ""
    raise ValueError(
        f"Expected only classes in {source} that the models know: {_list(class_names)}. Received {name!r} with "
        f"{count} file{'s' * (count > 1)}{more}.{guess} Give its folder (or its label in the table) the class's "
        f"name, or take it away."
    )


def _list(names, *, most: int = 10) -> str:
    names = list(names)
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
