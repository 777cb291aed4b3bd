"""The table's images as arrays: decoded and resized once, kept below `runs/.pixels`, read back when they are used.

A store has one row for each distinct content (sha256) among the table's images, in the order of the hashes: so
another split, seed or order of the same images finds it again.
"""

import hashlib
import io

import numpy as np
import pandas as pd
import PIL
from PIL import Image

from helpers import resolve_path
from helpers.data.parallel import in_parallel
from helpers.data.reading import FULL_WHITE, RESIZE_RULES, find_white, read_pixels
from helpers.data.stores import Store, StoredArray, find_or_make, open_store, write_store
from helpers.data.tables import PARTS

_READING = 3
"""To be raised when `helpers.data.reading` makes other pixels of the same file: older stores are then left alone."""


class Pixels(StoredArray):
    """The images of one part: a uint8 array (images, height, width, 3), RGB in 0..255, that stays on disk."""

    white = FULL_WHITE
    """The value of 16 bits that became 255 (`helpers.data.find_white`)."""

    seconds = 0.0
    """Decoding does not count."""


def load_pixels(images: pd.DataFrame, *, image_size: tuple[int, int], resize: str = "crop") -> dict[str, Pixels]:
    """Returns each part's images, in the table's order, brought to one size.

    Every image is decoded and resized once, into a file below `runs/.pixels` that later notebooks and runs with
    the same images, size and rule open again, however they divide them. A damaged file is made again. Rows are read
    when they are used, so a set may be larger than memory.

    Args:
        images: columns path, split, sha256, and white if there are images of 16 bits, as `check_images` and
            `split_images` made them.
        image_size: (height, width) in pixels.
        resize: "crop", "pad" or "stretch", as in `read_pixels`.

    Raises:
        ValueError: the image size is not positive, there is no such rule, or an image is not what it was.
        OSError: the disk has too little space.
    """
    height, width = (int(side) for side in image_size)
    if min(height, width) < 1:
        raise ValueError(f"Expected `image_size` (height, width) of at least 1 pixel. Received {image_size}.")
    check_rule(resize)
    hashes, first, rows = np.unique(images["sha256"].to_numpy("S64"), return_index=True, return_inverse=True)
    paths, hashes = images["path"].to_numpy()[first], hashes.astype("str")
    white = find_white(images)
    # Pillow is part of the key, since its releases differ in how they decode and scale.
    keys = [f"{sha256}-{height}x{width}-{resize}-{white}-{_READING}-{PIL.__version__}" for sha256 in hashes]
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
    file = resolve_path("runs/.pixels") / f"{digest}-{height}x{width}-{resize}.npy"
    options = {"image_size": (height, width), "resize": resize, "white": white}

    def decode() -> Store:
        hint = "Choose a smaller `image_size` or fewer images (`images_per_class`)."
        files = list(zip(paths, hashes, strict=True))
        decoded = in_parallel(lambda one: _decode(*one, **options)[None], files, title="decoding images", chunksize=4)
        return write_store(file, decoded, shape=(height, width, 3), dtype="uint8", keys=keys, hint=hint)

    store = find_or_make(file, lambda: open_store(file, keys), decode)
    pixels = {part: Pixels(store, rows[images["split"].to_numpy() == part]) for part in PARTS}
    for part in PARTS:
        pixels[part].white = white
    return pixels


def _decode(path: str, sha256: str, **options) -> np.ndarray:
    try:
        content = resolve_path(path).read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("its content has changed")
        return read_pixels(io.BytesIO(content), **options)
    except Exception as error:
        raise ValueError(
            f"{path} is not what it was when images.csv was made: {error}. Bring it back, or start "
            f"again at 01_load_data with another run_dir."
        ) from error


def check_rule(resize: str) -> None:
    """Raises ValueError if the rule is none of `RESIZE_RULES`."""
    if resize not in RESIZE_RULES:
        rules = ", ".join(f'"{rule}"' for rule in RESIZE_RULES)
        raise ValueError(f"Expected `resize` to be one of {rules}. Received {resize!r}.")


def shrink_pixels(pixels: np.ndarray | Pixels, *, side: int) -> np.ndarray:
    """Returns the images at most `side` pixels high and wide, float32 in 0..1, for a classifier without a network."""
    height, width = (min(side, length) for length in pixels.shape[1:3])
    small = np.empty((len(pixels), height, width, 3), "float32")
    for index, image in enumerate(pixels):
        small[index] = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    small /= 255
    return small
