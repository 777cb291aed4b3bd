"""One image file to RGB pixels of one size: the only place in the project that decodes or resizes."""

import io
import os
import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from helpers import resolve_path

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is read, told by content. Not all that Pillow knows: some formats (EPS) are programs, some are guesses."""

MOST_PIXELS = 100_000_000
"""Width times height from which on decoding is refused: 300 MB as RGB, and as much again on the way."""

MOST_BYTES = 2**30
"""Size of a file from which on it is not read."""

RESIZE_RULES = ("crop", "pad", "stretch")


def read_image(file: str | Path | io.BytesIO) -> Image.Image:
    """Returns the file's (first) image as RGB, as a viewer would show it.

    Turned upright as its EXIF data say; 16 bits are brought to 8; CMYK with a colour profile, and Lab, are
    converted by it; what is transparent shows a white page.

    Raises:
        OSError, ValueError: it is missing, no image, cut off, too large to decode, or of floating-point numbers.
    """
    with open_image(file) as image, taking_turns(image):
        return convert_image(image)


def read_file(path: str | Path) -> bytes:
    """Returns the file's content, with fewer calls to the system than `open`: each has threads wait for each other.

    Raises:
        OSError: it is missing or may not be read.
        ValueError: it is too large.
    """
    descriptor = os.open(path if os.path.isabs(path) else resolve_path(path), os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        if size > MOST_BYTES:
            raise TooLarge(f"a file of {size / 1e9:.1f} GB; make it smaller")
        if size > MOST_BYTES // 16:  # what is no image, a film perhaps, is not read as a whole to say so
            open_image(path).close()
        content = os.read(descriptor, size)
        while len(content) < size and (more := os.read(descriptor, size - len(content))):
            content += more
        return content
    finally:
        os.close(descriptor)


def open_image(file: str | Path | io.BytesIO) -> Image.Image:
    """Returns the image with its size known, not yet decoded.

    Raises:
        OSError, ValueError: it is missing, no image, or too large to decode.
    """
    # The size is checked here, before anything is decoded, with a message that says what to do.
    try:
        image = Image.open(file if isinstance(file, io.BytesIO) else resolve_path(file), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise TooLarge(str(error)) from None
    if image.width * image.height > MOST_PIXELS:
        size = f"{image.width} x {image.height}"
        image.close()
        raise TooLarge(f"{size} pixels: decoding would take over {3 * MOST_PIXELS // 10**6} MB; make it smaller")
    return image


_turn = threading.RLock()  # a thread may look at its large image twice


def taking_turns(image: Image.Image):
    """Returns a context in which large images are decoded one at a time, however many threads there are."""
    return _turn if image.width * image.height > MOST_PIXELS // 8 else nullcontext()


class TooLarge(ValueError):
    """An image of more than `MOST_PIXELS`."""


def convert_image(image: Image.Image) -> Image.Image:
    """Returns the opened image upright and as RGB."""
    image.load()
    image = turn_upright(image, find_orientation(image))
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ValueError("an image of floating-point numbers: nothing says which of them is white")
    if image.mode.startswith("I"):  # `convert` would clip everything above 255 to white
        array = np.asarray(image)
        if array.min() < 0 or array.max() > 65535:
            raise ValueError(f"an image of numbers from {array.min()} to {array.max()}: expected 0 to 65535")
        image = Image.fromarray((array >> (8 if array.max() > 255 else 0)).astype("uint8"))
    if image.mode in ("CMYK", "LAB"):
        return _convert_by_profile(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


_TURNS = dict(zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2), strict=True))  # EXIF's numbers to those of Image.Transpose


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Returns the image as `find_orientation` says; Pillow's own way fails where other EXIF data are damaged."""
    return image if orientation == 1 else image.transpose(Image.Transpose(_TURNS[orientation]))


def find_orientation(image: Image.Image) -> int:
    """Returns what EXIF data say: 1 for upright, 2 to 8 for mirrored or turned; 1 if they cannot be read."""
    if image.format != "TIFF" and image.info.keys().isdisjoint(("exif", "xmp")):
        return 1  # the usual case, told without a look
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # Pillow raises many kinds; the pixels are whole, and a viewer shows them as they are
        return 1
    return orientation if orientation in range(2, 9) else 1


def _convert_by_profile(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    try:
        lab = image.mode == "LAB"
        source = ImageCms.createProfile("LAB") if lab else ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (TypeError, OSError, ImageCms.PyCMSError):  # none, or one that cannot be used
        return image.convert("RGB")


def resize_image(image: Image.Image, image_size: tuple[int, int], *, resize: str = "crop") -> Image.Image:
    """Returns the RGB image at the size (height, width), scaled with antialiasing.

    Args:
        image: RGB.
        image_size: (height, width) in pixels.
        resize: "crop": scaled to fill the size, what stands out on both sides is cut off. "pad": scaled to fit
            into the size, the rest is black. "stretch": scaled to the size, shapes are distorted.

    Raises:
        ValueError: there is no such rule.
    """
    size = (image_size[1], image_size[0])
    bilinear = Image.Resampling.BILINEAR
    if resize == "crop":
        return ImageOps.fit(image, size, bilinear)
    if resize == "pad":
        return ImageOps.pad(image, size, bilinear, color=(0, 0, 0))
    if resize == "stretch":
        return image.resize(size, bilinear)
    raise ValueError(f'Expected `resize` to be "crop", "pad" or "stretch". Received {resize!r}.')


def read_pixels(file: str | Path | io.BytesIO, image_size: tuple[int, int], *, resize: str = "crop") -> np.ndarray:
    """Returns one image file as a uint8 array (height, width, 3), resized as everywhere in this project.

    Args:
        file: path, or the file's content.
        image_size: (height, width) in pixels.
        resize: as `resize_image`; a saved classifier knows its own (`helpers.training.load_settings`).

    Raises:
        OSError, ValueError: as `read_image` and `resize_image`.
    """
    return np.asarray(resize_image(read_image(file), image_size, resize=resize))
