"""Random variants of images: a view of an image is a fixed function of the image, the seed and the view's number."""

import zlib

import numpy as np
from PIL import Image, ImageEnhance

from helpers.data.stores import StoredArray, content_keys

AUGMENTATIONS = {
    "flip": "mirrored left to right, every second time",
    "crop": "a part of 60 to 100 % of the area, 3/4 to 4/3 as wide as high, brought back to the image's size",
    "rotate": "turned by up to 15 degrees; the corners are filled with the edge's colours",
    "light": "brightness, contrast and saturation changed by up to 25 %",
}
"""What `augment` can do, by name. Leave out what would change the class, such as a mirrored digit."""


def read_augmentation(kinds: str) -> tuple[str, ...]:
    """Returns the names of `AUGMENTATIONS` in a comma-separated text; ValueError if none, or an unknown one."""
    names = tuple(kind.strip() for kind in kinds.split(",") if kind.strip())
    if not names or not AUGMENTATIONS.keys() >= set(names):
        known = "; ".join(f'"{name}": {meaning}' for name, meaning in AUGMENTATIONS.items())
        raise ValueError(
            f"Expected `augmentation` to be one or several of these, separated by commas: {known}. "
            f"Received {kinds!r}."
        )
    return names


class Augmented:
    """Images, uint8 (images, height, width, 3), that look different in every epoch: see `read_augmentation`."""

    seconds = 0.0  # nothing was computed beforehand

    def __init__(self, pixels: np.ndarray | StoredArray, kinds: str, *, seed: int = 0):
        self.kinds = read_augmentation(kinds)
        self.pixels, self.seed = pixels, seed
        self.shape, self.dtype, self.ndim = pixels.shape, pixels.dtype, pixels.ndim
        self.contents = [zlib.crc32(key.encode()) for key in content_keys(pixels)]

    def __len__(self) -> int:
        return len(self.pixels)

    def at_epoch(self, epoch: int) -> "View":
        """Returns the view of the images that this epoch trains on."""
        return View(self, epoch)


class View:
    """One view of augmented images, indexed by a slice or by positions."""

    def __init__(self, augmented: Augmented, number: int):
        self.augmented, self.number = augmented, number
        self.shape, self.dtype, self.ndim = augmented.pixels.shape, augmented.dtype, augmented.pixels.ndim

    def __len__(self) -> int:
        return len(self.augmented)

    def __getitem__(self, rows) -> np.ndarray:
        whole = self.augmented
        images = [
            augment(image, whole.kinds, seed=(whole.seed, self.number, whole.contents[position]))
            for image, position in zip(whole.pixels[rows], np.arange(len(whole))[rows], strict=True)
        ]
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), self.dtype)


def augment(image: np.ndarray, kinds: tuple[str, ...], *, seed: int | tuple[int, ...]) -> np.ndarray:
    """Returns a random variant of the image, uint8 (height, width, 3): the same for the same seed."""
    rng = np.random.default_rng(seed)
    picture, (height, width) = Image.fromarray(image), image.shape[:2]
    if "flip" in kinds and rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if "rotate" in kinds:
        edge = tuple(int(value) for value in np.median(np.concatenate([image[0], image[-1]]), axis=0))
        picture = picture.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR, fillcolor=edge)
    if "crop" in kinds:
        area, shape = rng.uniform(0.6, 1.0), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        part = min(1.0, np.sqrt(area * shape)), min(1.0, np.sqrt(area / shape))
        left, top = rng.uniform(0, 1 - part[0]) * width, rng.uniform(0, 1 - part[1]) * height
        box = (left, top, left + part[0] * width, top + part[1] * height)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR, box=box)
    if "light" in kinds:
        for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            picture = change(picture).enhance(rng.uniform(0.75, 1.25))
    return np.asarray(picture)
