"""The table's images as arrays: decoded and resized once, kept below `runs/.pixels`, read back when they are used."""

import hashlib
import io

import numpy as np
import pandas as pd
import PIL
from PIL import Image

from helpers import resolve_path
from helpers.data.parallel import in_parallel
from helpers.data.reading import FULL_WHITE, check_rule, find_white, read_pixels
from helpers.data.stores import Store, StoredArray, find_or_make, open_store, write_store
from helpers.data.tables import PARTS

_READING = 3  # to be raised when `helpers.data.reading` makes other pixels of the same file: new stores are made


class Pixels(StoredArray):
    """The images of one part: a uint8 array (images, height, width, 3), RGB in 0..255, that stays on disk."""

    white = FULL_WHITE  # the value of 16 bits that became 255 (`helpers.data.find_white`)
    seconds = 0.0  # decoding does not count


def load_pixels(images: pd.DataFrame, *, image_size: tuple[int, int], resize: str = "crop") -> dict[str, Pixels]:
    """Returns each part's images, in the table's order, brought to one size.

    Every content is decoded and resized once, into a file below `runs/.pixels` that later notebooks and runs with the
    same images, size and rule open again, however they divide them. A damaged file is made again. Rows are read when
    they are used, so a set may be larger than memory.

    Args:
        images: columns path, split, sha256, and white if there are images of 16 bits, as `check_images` makes them.
        image_size, resize: (height, width) in pixels; "crop", "pad" or "stretch", as in `read_pixels`.

    Raises:
        ValueError: the image size is not positive, there is no such rule, or an image is not what it was.
        OSError: the disk has too little space.
    """
    height, width = (int(side) for side in image_size)
    if min(height, width) < 1:
        raise ValueError(f"Expected `image_size` (height, width) of at least 1 pixel. Received {image_size}.")
    check_rule(resize)
    hashes, first, rows = np.unique(images["sha256"].to_numpy("S64"), return_index=True, return_inverse=True)
    files = list(zip(images["path"].to_numpy()[first], hashes.astype("str"), strict=True))
    white = find_white(images)
    # Pillow is part of the key, since its releases differ in how they decode and scale.
    keys = [f"{sha256}-{height}x{width}-{resize}-{white}-{_READING}-{PIL.__version__}" for _, sha256 in files]
    digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
    file = resolve_path("runs/.pixels") / f"{digest}-{height}x{width}-{resize}.npy"

    def decode(file: tuple[str, str]) -> np.ndarray:
        path, sha256 = file
        try:
            content = resolve_path(path).read_bytes()
            if hashlib.sha256(content).hexdigest() != sha256:
                raise ValueError("its content has changed")
            return read_pixels(io.BytesIO(content), (height, width), resize=resize, white=white)[None]
        except Exception as error:
            raise ValueError(
                f"{path} is not what it was when images.csv was made: {error}. Bring it back, or start again at "
                f"01_load_data with another run_dir."
            ) from error

    def make() -> Store:
        decoded = in_parallel(decode, files, title="decoding images", chunksize=4)
        hint = "Choose a smaller `image_size` or fewer images (`images_per_class`)."
        return write_store(file, decoded, shape=(height, width, 3), dtype="uint8", keys=keys, hint=hint)

    store = find_or_make(file, lambda: open_store(file, keys), make)
    pixels = {part: Pixels(store, rows[images["split"].to_numpy() == part]) for part in PARTS}
    for part in PARTS:
        pixels[part].white = white
    return pixels


def shrink_pixels(pixels: np.ndarray | Pixels, *, side: int) -> np.ndarray:
    """Returns the images at most `side` pixels high and wide, float32 in 0..1, for a classifier without a network."""
    height, width = (min(side, length) for length in pixels.shape[1:3])
    small = np.empty((len(pixels), height, width, 3), "float32")
    for index, image in enumerate(pixels):
        small[index] = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    small /= 255
    return small
