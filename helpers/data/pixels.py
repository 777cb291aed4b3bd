"""Decoded once, stored, read back."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from helpers import resolve_path
from helpers.data.parallel import in_parallel
from helpers.data.reading import read_pixels
from helpers.data.tables import PARTS


class Pixels:
    pass


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
    store = resolve_path("runs/.pixels") / f"{name}-{image_size[0]}x{image_size[1]}-crop.npy"
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
    list(in_parallel(decode, range(len(images)), title="decoding images"))
    pixels.flush()
