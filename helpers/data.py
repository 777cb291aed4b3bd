"""From what the user has to a checked, split table of images, and from the table to pixels.

The table is a pandas DataFrame with one row per image, sorted by path:

    path    str, relative to the repository's root where the file lies below it, else absolute
    label   str, the class: the name of the image's class folder
    split   str, "train", "validation" or "test"; "" while undecided
"""

import hashlib
import io
import os
import re
import shutil
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from tqdm import tqdm

from helpers import ROOT, resolve_path, write_atomically

PARTS = ("train", "validation", "test")
_PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def open_data(data: str) -> Path:
    """Returns the folder of labelled images that the parameter `data` names.

    Args:
        data: "digits" for the embedded example (1000 of scikit-learn's handwritten digits, 8x8 pixels,
            written below `data/digits` on first use), or a folder; a relative path counts from the
            repository's root.

    Raises:
        FileNotFoundError: there is no such folder.
        NotADirectoryError: it is a file.
    """
    if data == "digits":
        return _write_digits(ROOT / "data" / "digits")
    folder = resolve_path(str(data) or "?")  # an empty text would be the repository itself
    if not folder.exists():
        nearest = next(parent for parent in folder.parents if parent.exists())
        raise FileNotFoundError(
            f"The parameter `data` should name a folder of labelled images. Received {data!r}, but there is "
            f"no {folder} (the nearest folder that exists is {nearest}). Check the spelling. "
            f'`data="digits"` runs the embedded example.'
        )
    if not folder.is_dir():
        raise NotADirectoryError(
            f"The parameter `data` should name a folder that holds one folder of images per class. "
            f"Received {data!r}, which is a file. Unpack it if it is an archive, and name the folder."
        )
    return folder


def _write_digits(folder: Path) -> Path:
    """Writes scikit-learn's digits as an example of few labels: 20 of each to learn from, 800 to test."""
    if folder.exists():
        return folder
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype("uint8")  # 0..16 inked dots of each 4x4 block
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    for digit in range(10):
        chosen = np.random.default_rng([0, digit]).permutation(np.flatnonzero(digits.target == digit))[:100]
        for rank, index in enumerate(chosen):
            target = partial / ("train" if rank < 20 else "test") / str(digit)
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[index]).save(target / f"{index:04d}.png")
    try:
        partial.rename(folder)  # all or nothing: an interrupted first run leaves no half set behind
    except OSError:
        if not folder.exists():  # otherwise another process was faster
            raise
        shutil.rmtree(partial)
    return folder


def find_images(folder: str | Path) -> pd.DataFrame:
    """Returns the table of the files in a folder of class folders, or of parts with class folders.

    Two layouts are understood: `folder/<class>/...` and `folder/<part>/<class>/...` with the parts train,
    val (or validation) and test. Where only two parts are given, as in many public sets, the second one is
    the test set, whatever its name, and `split_images` draws validation images from the first.

    Returns:
        A DataFrame with the columns path, label and split, sorted by path; `split` is "" where the
        folder does not decide it. Every file is listed: what is no image is for `check_images` to tell.

    Raises:
        ValueError: there is no file, fewer than two classes, or a given part lacks a class.
    """
    folder = resolve_path(folder)
    parts = _find_parts(folder)
    roots = parts or {"": folder}
    rows = [
        (_stored_path(path), label.name, part)
        for part, root in roots.items()
        for label in _folders(root)
        for path in sorted(label.rglob("*"))
        if path.is_file() and not any(map(_hidden, (path, *path.parents[: len(path.relative_to(label).parts) - 1])))
    ]
    for path, *_ in rows:
        if any("\ud800" <= character <= "\udfff" for character in path):
            raise ValueError(f"Expected file names in UTF-8. Received {path!r}: rename it.")
    images = pd.DataFrame(rows, columns=["path", "label", "split"])
    if images.empty:
        raise ValueError(
            f"Expected one folder of images per class in {folder}. Found {_contents(folder)}, and no file in "
            f"a class folder. Put the images of each class into a folder named after the class."
        )
    classes = sorted(images["label"].unique())
    if len(classes) == 1:
        raise ValueError(
            f"Expected at least two classes in {folder}. Found only {classes[0]!r} with {len(images)} files. "
            f"Each class needs a folder of its own; perhaps `data` should name the folder above or below."
        )
    for part in parts:
        missing = sorted(set(classes) - set(images.loc[images["split"] == part, "label"]))
        if missing:
            raise ValueError(
                f"Expected every class in every given part of {folder}. {parts[part].name!r} has no image of "
                f"{', '.join(map(repr, missing))}. Add some, or remove the class from the other parts."
            )
    return images.sort_values("path", ignore_index=True)


def _find_parts(folder: Path) -> dict[str, Path]:
    """Returns the given parts, {"train": ..., "test": ...}; nothing if these are class folders."""
    children = _folders(folder)
    parts = {_PART_NAMES.get(child.name.lower()): child for child in children}
    if None in parts or "train" not in parts or len(children) < 2:
        _refuse_unknown_parts(folder, children)
        return {}
    if len(parts) < len(children):
        names = ", ".join(repr(child.name) for child in children)
        raise ValueError(f"Expected one folder each for train, val and test in {folder}. Found {names}.")
    if len(parts) == 2 and "validation" in parts:
        parts["test"] = parts.pop("validation")
    return parts


def _refuse_unknown_parts(folder: Path, children: list[Path]) -> None:
    """Raises where folders named like parts hold the same sub-folders: then these are the classes."""
    children = [child for child in children if child.name.lower().startswith(("train", "val", "dev", "test"))]
    inner = [{entry.name for entry in _folders(child)} for child in children]
    common = {name for names in inner for name in names if sum(name in others for others in inner) > 1}
    if len(common) > 1:
        raise ValueError(
            f"Expected class folders, or the parts train, val and test with class folders, in {folder}. Found "
            f"{', '.join(repr(child.name) for child in children)}, of which several hold "
            f"{', '.join(map(repr, sorted(common)[:5]))}. Rename the parts to train, val and test, and move what is "
            f"no part elsewhere."
        )


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not _hidden(entry)]


def _hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name == "__MACOSX"


def _contents(folder: Path) -> str:
    names = [entry.name for entry in sorted(folder.iterdir())]
    return (
        f"{len(names)} entries ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
        if names
        else "nothing at all"
    )


def _stored_path(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()


def check_images(images: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the images that can be read, measured, and a table of the files that cannot.

    Every file is decoded once, in parallel.

    Returns:
        The readable images, with the added columns width and height (pixels, as a viewer shows the image)
        and sha256 (of the file's bytes); and a DataFrame of problems with the columns path, label, problem.

    Raises:
        ValueError: not one file can be read.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # around the threads: within one it would change the others' filters
        results = list(_progress(pool.map(_check_image, images["path"]), "checking images", len(images)))
    checked = images.assign(**pd.DataFrame(results, columns=["width", "height", "sha256", "problem"]))
    bad = checked["problem"] != ""
    problems = checked.loc[bad, ["path", "label", "problem"]].reset_index(drop=True)
    if bad.all():
        path, _, problem = problems.iloc[0]
        raise ValueError(
            f"Expected images. Received {len(problems)} files, none of which can be read: for example "
            f"{path}: {problem}."
        )
    kept = checked[~bad].drop(columns="problem").reset_index(drop=True)
    lost = set(zip(images["label"], images["split"], strict=True)) - set(
        zip(kept["label"], kept["split"], strict=True)
    )
    for label, part in sorted(lost):
        path, _, problem = problems[problems["label"] == label].iloc[0]
        raise ValueError(
            f"Not one of the files of class {label!r}{f' in {part}' if part else ''} can be read, for example "
            f"{path}: {problem}. Convert them, or remove the class."
        )
    return kept, problems


def _check_image(path: str) -> tuple[int, int, str, str]:
    try:
        content = resolve_path(path).read_bytes()
        image = read_image(io.BytesIO(content))
        return image.width, image.height, hashlib.sha256(content).hexdigest(), ""
    except Exception as error:  # Pillow's plugins raise many kinds; each is a row in the table, with its file
        message = re.sub(r"cannot identify image file.*", "not an image", str(error))
        return 0, 0, "", f"{type(error).__name__}: {message}"


def read_image(file: str | Path | io.BytesIO) -> Image.Image:
    """Returns the file's image as RGB, turned upright as its EXIF data say; 16 bits are brought to 8.

    Raises:
        OSError, ValueError: it is missing, no image, cut off, or of floating-point numbers.
    """
    with Image.open(file if isinstance(file, io.BytesIO) else resolve_path(file)) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ValueError("an image of floating-point numbers: nothing says which of them is white")
        if image.mode.startswith("I"):  # `convert` would clip everything above 255 to white
            array = np.asarray(image)
            image = Image.fromarray((array >> (8 if array.max() > 255 else 0)).astype("uint8"))
        return image.convert("RGB")


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


def count_images(images: pd.DataFrame) -> pd.DataFrame:
    """Returns the number of images of each class (rows) in each part (columns), with totals."""
    counts = pd.crosstab(images["label"], images["split"]).reindex(columns=PARTS, fill_value=0)
    counts = pd.concat([counts, counts.sum().to_frame("all classes").T])
    return counts.assign(total=counts.sum(axis=1)).rename_axis(index=None, columns=None)


def save_images(images: pd.DataFrame, path: str | Path) -> None:
    """Writes the table as CSV, whole or not at all.

    Raises:
        ValueError: there is another table already, which models may have been trained on.
    """
    path, text = Path(path), images.to_csv(index=False)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ValueError(
            f"{path} divides other images, or divides them otherwise: files were added, removed or changed since. "
            f"With this table, images that a model was trained on could become test images. Choose another run_dir "
            f"(make run NAME=...), or delete the run's folder to start over."
        )
    write_atomically(path, text)


def load_images(path: str | Path) -> pd.DataFrame:
    """Returns a table that `save_images` wrote; labels such as "007" or "NA" stay the texts that they are."""
    return pd.read_csv(path, dtype={"path": str, "label": str, "split": str, "sha256": str}, keep_default_na=False)


def encode_labels(images: pd.DataFrame) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns each part's labels as int64 arrays that index the class names, and these, sorted."""
    class_names = sorted(images["label"].unique())
    codes = images["label"].map({name: code for code, name in enumerate(class_names)})
    return {part: codes[images["split"] == part].to_numpy("int64") for part in PARTS}, class_names


def load_pixels(images: pd.DataFrame, *, image_size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Returns each part's images as a uint8 array (images, height, width, 3), RGB in 0..255.

    Every image is decoded and resized once, into files below `runs/.pixels` that later notebooks and runs
    with the same images and size open again. The arrays are memory maps: the operating system reads what
    is used, so a set larger than memory works.

    Args:
        images: columns path, split, sha256, as `check_images` and `split_images` made them.
        image_size: (height, width) in pixels. Images are scaled to fill it, with antialiasing, and what
            stands out on both sides is cropped: ImageNet's networks were trained on undistorted shapes.

    Raises:
        ValueError: the image size is not positive, or an image cannot be read any more.
    """
    if min(image_size) < 1:
        raise ValueError(f"Expected `image_size` (height, width) of at least 1 pixel. Received {image_size}.")
    return {part: _open_pixels(images[images["split"] == part], tuple(image_size)) for part in PARTS}


def read_pixels(file: str | Path | io.BytesIO, image_size: tuple[int, int]) -> np.ndarray:
    """Returns one image file as a uint8 array (height, width, 3), resized as everywhere in this project.

    Raises:
        OSError, ValueError: as `read_image`.
    """
    height, width = image_size
    return np.asarray(ImageOps.fit(read_image(file), (width, height), Image.Resampling.BILINEAR))


def shrink_pixels(pixels: np.ndarray, *, side: int) -> np.ndarray:
    """Returns the images at most `side` pixels high and wide, float32 in 0..1, for a classifier without a network.

    Args:
        pixels: uint8 (images, height, width, 3). Smaller images stay as they are.
        side: pixels.
    """
    size = (min(side, pixels.shape[2]), min(side, pixels.shape[1]))
    small = [Image.fromarray(image).resize(size, Image.Resampling.BOX) for image in pixels]
    return np.stack([np.asarray(image) for image in small]).astype("float32") / 255


def _open_pixels(images: pd.DataFrame, image_size: tuple[int, int]) -> np.ndarray:
    name = hashlib.sha256("".join(images["sha256"]).encode()).hexdigest()[:16]
    store = ROOT / "runs" / ".pixels" / f"{name}-{image_size[0]}x{image_size[1]}-crop.npy"
    if not store.exists():
        store.parent.mkdir(parents=True, exist_ok=True)
        partial = store.with_name(f"{store.name}.partial-{os.getpid()}")
        try:
            _write_pixels(partial, images, image_size)
            os.replace(partial, store)  # whole or absent: an interruption leaves no half-filled store
        finally:
            partial.unlink(missing_ok=True)
    return np.load(store, mmap_mode="r")


def _write_pixels(file: Path, images: pd.DataFrame, image_size: tuple[int, int]) -> None:
    paths, hashes = images["path"].tolist(), images["sha256"].tolist()

    def decode(index: int) -> None:
        try:
            content = resolve_path(paths[index]).read_bytes()
            if hashlib.sha256(content).hexdigest() != hashes[index]:
                raise ValueError("its content has changed")
            pixels[index] = read_pixels(io.BytesIO(content), image_size)
        except Exception as error:
            raise ValueError(
                f"{paths[index]} is not what it was when images.csv was made: {error}. Bring it back, or start "
                f"again at 01_load_data with another run_dir."
            ) from error

    pixels = np.lib.format.open_memmap(file, mode="w+", dtype="uint8", shape=(len(images), *image_size, 3))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(_progress(pool.map(decode, range(len(images))), "decoding images", len(images)))
    pixels.flush()


def _progress(steps, title: str, total: int):
    """Returns the steps behind a progress bar with the time left, which is gone when they are done."""
    return tqdm(steps, title, total, leave=False, file=sys.stdout, delay=1)
