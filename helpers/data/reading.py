"""One image file to RGB pixels of one size: the only place in the project that decodes or resizes."""

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from helpers import resolve_path

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What is read, told by content. Not all that Pillow knows: some formats (EPS) are programs, some are guesses."""

MOST_PIXELS = 100_000_000  # of an image that is decoded: 300 MB as RGB, and as much again on the way
MOST_BYTES = 2**30  # of a file that is read
FULL_WHITE = 65535  # the largest value of 16 bits: what white is where nothing else is known
RESIZE_RULES = ("crop", "pad", "stretch")

# Programs store whole workflows as compressed text. Pillow's own limits, 1 MB and 64 MB, call such a file damaged.
PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = 64 * 2**20, 128 * 2**20

for _order, _end in ((b"II", "L"), (b"MM", "B")):  # three bands that do not say that they are red, green and blue
    for _extra in ((), (0, 0)):
        TiffImagePlugin.OPEN_INFO[_order, 1, (1,), 1, (8, 8, 8), _extra] = ("RGB", "RGB")
        TiffImagePlugin.OPEN_INFO[_order, 1, (1,), 1, (16, 16, 16), _extra] = ("RGB", f"RGB;16{_end}")


def read_image(file: str | Path | io.BytesIO, *, white: int = FULL_WHITE) -> Image.Image:
    """Returns the file's (first) image as RGB, as a viewer would show it: upright, and white where transparent.

    `white` becomes 255 in images of 16 bits, 1 to 65535: one for a whole set (`find_white`). Raises OSError or
    ValueError if the file is missing, no image, cut off, too large to decode, or of a kind that is not read.
    """
    with open_image(file) as image, taking_turns(image):
        return convert_image(image, read_deep(image), white=white)


def read_file(path: str | Path) -> bytes:
    """Returns the file's content; OSError or ValueError if it is missing, may not be read or is too large."""
    # Without a buffer, fewer calls to the system: each has threads wait for each other
    with open(path if os.path.isabs(path) else resolve_path(path), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_BYTES:
            raise TooLarge(f"a file of {size / 1e9:.1f} GB; make it smaller")
        if size > MOST_BYTES // 16:  # what is no image, a film perhaps, is not read as a whole to say so
            open_image(path).close()
        return file.read()


def open_image(file: str | Path | io.BytesIO) -> Image.Image:
    """Returns the image, not yet decoded; OSError or ValueError if it is missing, no image, or too large."""
    file = file if isinstance(file, io.BytesIO) else resolve_path(file)
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        with nullcontext(file) if isinstance(file, io.BytesIO) else open(file, "rb") as content:
            if reason := _refuse_tiff(content, known=False):
                raise Unsupported(reason) from None
        raise
    try:
        if image.format == "TIFF" and (reason := _refuse_tiff(image.fp, known=True)):
            raise Unsupported(reason)
        if image.width * image.height > MOST_PIXELS:
            needed = f"decoding would take over {3 * MOST_PIXELS // 10**6} MB"
            raise TooLarge(f"{image.width} x {image.height} pixels: {needed}; make it smaller")
    except ValueError:
        image.close()
        raise
    return image


_turn = threading.RLock()  # a thread may look at its large image twice


def taking_turns(image: Image.Image):
    """Returns a context in which large images are decoded one at a time, however many threads there are."""
    return _turn if image.width * image.height > MOST_PIXELS // 8 else nullcontext()


class TooLarge(ValueError):
    """An image of more than `MOST_PIXELS`."""


class Unsupported(ValueError):
    """A whole image file of a kind that is not read; the message says which, and what to do."""


RAW = "a camera raw file, of which only a small preview could be read: export it as JPEG, PNG or TIFF"
_SUBFILE, _WIDTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 254, 256, 258, 259, 262, 277
_PLANAR, _SUB_IFDS, _DNG = 284, 330, 50706


def _refuse_tiff(file: io.BufferedIOBase, *, known: bool) -> str:
    """Returns why a TIFF is not read; "" if it is, or if it is no TIFF. `known`: Pillow can read its first page."""
    position = file.tell()
    try:
        first, *others = _tiff_directories(file)
        file.seek(8)
        preview = first.get(_SUBFILE, 0) & 1 and any(page[_WIDTH] > first[_WIDTH] for page in others)
        if (
            file.read(2) == b"CR"  # Canon's
            or _DNG in first
            or any(page.get(_PHOTOMETRIC) in (32803, 34892) for page in (first, *others))  # not yet made into colours
            or (preview and _SUB_IFDS in first)
        ):
            return RAW
        bands, bits = first.get(_SAMPLES, 1), max(np.ravel(first.get(_BITS, 1)).tolist())
        colours, packed = first.get(_PHOTOMETRIC), first.get(_COMPRESSION, 1) != 1
        apart = first.get(_PLANAR) == 2 and (bands > 4 or colours in (0, 1) or (colours == 2 and bits > 8 and packed))
        if bands < 2 or (known and not apart):  # Pillow reads it right
            return ""
        if bands > 3:
            return f"a multispectral image of {bands} bands: choose three of them, and save these as RGB"
        return f"a TIFF of {bands} bands of {bits} bits, in a layout that is not read: save it as PNG"
    except Exception:  # whoever decodes it says what is wrong with it
        return ""
    finally:
        file.seek(position)


def _tiff_directories(file: io.BufferedIOBase) -> Iterator[TiffImagePlugin.ImageFileDirectory_v2]:
    """Yields the directories of a TIFF's first page, and of the next few behind and within it."""
    file.seek(0)
    header = file.read(8)
    if header[2:4] in (b"+\0", b"\0+"):  # one that may have more than 4 GB
        header += file.read(8)
    offsets = [TiffImagePlugin.ImageFileDirectory_v2(header).next]
    for offset in offsets:
        directory = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(offset)
        directory.load(file)
        yield directory
        more = [*np.ravel(directory.get(_SUB_IFDS, ())).astype(int).tolist(), directory.next]
        offsets.extend([other for other in more if other and other not in offsets][: 8 - len(offsets)])


# ---- more than 8 bits


def find_white(images: pd.DataFrame) -> int:
    """Returns the value that is white in files of 16 bits, from a table that `check_images` made."""
    return int(images["white"].iloc[0]) if "white" in images and len(images) else FULL_WHITE


def choose_white(brightest: list[int]) -> int:
    """Returns the value that is white in all files of 16 bits of a set, from each file's (`find_brightest`).

    Detectors have 10, 12 or 14 bits, and their files do not say so. White is the largest number of as few bits as
    hold the set's largest value; or, if the exposure left a quarter of that unused or more, the set's largest value
    itself, so that no set is dark. Up to 255, values stay as they are.
    """
    # Of ten or more, the brightest 1 % do not count: one odd file would leave a few grey levels to all others
    largest = sorted(brightest)[-1 - max(len(brightest) // 100, int(len(brightest) >= 10))]
    full = 2 ** max(8, int(largest).bit_length()) - 1
    return full if full == 255 or largest > 0.75 * full else int(largest)


def find_brightest(values: np.ndarray) -> int:
    """Returns an image's largest value that is not one of a single pixel, row or column: those may be defects."""
    values = values[..., :3] if values.ndim == 3 else values
    if min(values.shape[:2]) > 1:
        values = np.minimum(values[1:], values[:-1])
        values = np.minimum(values[:, 1:], values[:, :-1])
    return int(values.max())


def read_deep(image: Image.Image) -> np.ndarray | None:
    """Returns the values of an opened image of 16 bits, uint16 (height, width[, 3 or 4]); None for other images."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > FULL_WHITE:
            raise Unsupported(
                f"an image of numbers from {values.min()} to {values.max()}: save it with numbers from 0 to 65535"
            )
        return values.astype("uint16")
    if image.format not in ("PNG", "TIFF") or image.mode not in ("RGB", "RGBA") or not image.tile:
        return None
    tags = getattr(image, "tag_v2", {})
    raw = _raw_mode(image.tile[0])
    if ";16" not in raw and not (tags.get(_PLANAR) == 2 and 16 in tags.get(_BITS, ())):
        return None
    if raw == "LA;16B":  # the four bytes of each pixel, as they are
        image.tile = [tile._replace(args="RGBA") for tile in image.tile]
        grey, alpha = np.moveaxis(np.asarray(image).reshape(*image.size[::-1], 2, 2).astype("uint16"), 2, 0)
        return np.stack([grey[..., 0] << 8 | grey[..., 1]] * 3 + [alpha[..., 0] << 8 | alpha[..., 1]], axis=-1)
    # Pillow takes the upper byte of each colour; of a second reader, told the other byte order, that is the lower one
    position = image.fp.tell()
    image.fp.seek(0)
    second = Image.open(io.BytesIO(image.fp.read()), formats=[image.format])
    image.fp.seek(position)
    native = image.tile[0].codec_name == "libtiff" and sys.byteorder == "little"
    order = "LB" if native or getattr(tags, "prefix", b"MM") == b"II" else "BL"
    for reader, end in zip((image, second), order, strict=True):
        reader.tile = [_take(tile, f";16{end}") for tile in reader.tile if _raw_mode(tile) != ";"]
    return np.asarray(image).astype("uint16") << 8 | np.asarray(second)


def _raw_mode(tile) -> str:
    """Returns how Pillow takes the pixels from a part of a file, "RGB;16L", say."""
    return tile.args if isinstance(tile.args, str) else tile.args[0]


def _take(tile, end: str):
    raw = _raw_mode(tile).partition(";")[0] + end
    return tile._replace(args=raw if isinstance(tile.args, str) else (raw, *tile.args[1:]))


@lru_cache(maxsize=8)
def _eight_bits(white: int) -> np.ndarray:
    """Returns what becomes of each value of 16 bits, uint8 (65536,)."""
    return ((np.minimum(np.arange(2**16), white) * 255 + white // 2) // white).astype("uint8")


# ---- as a viewer shows it


def convert_image(image: Image.Image, deep: np.ndarray | None, *, white: int) -> Image.Image:
    """Returns the opened image upright and as RGB; `deep` are its values if it has 16 bits (`read_deep`)."""
    image.load()
    orientation = find_orientation(image)
    if deep is not None:
        scaled = _eight_bits(white)[deep]
        if deep.shape[2:] == (4,) and deep[..., 3].max() > white:  # whatever colours have, transparency has 16 bits
            scaled[..., 3] = _eight_bits(FULL_WHITE)[deep[..., 3]]
        inverted = image.format == "TIFF" and deep.ndim == 2 and image.tag_v2.get(_PHOTOMETRIC) == 0  # 0 is white
        image = Image.fromarray(255 - scaled if inverted else scaled)
    image = turn_upright(image, orientation)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise Unsupported("an image of floating-point numbers, with no known white: save it with 8 or 16 bits")
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

    "crop" is a center crop; with "pad" the whole image fits into the size, and the rest is black; "stretch" distorts
    shapes. ValueError if there is no such rule.
    """
    check_rule(resize)
    size, bilinear = (image_size[1], image_size[0]), Image.Resampling.BILINEAR
    if resize == "crop":
        return ImageOps.fit(image, size, bilinear)
    return ImageOps.pad(image, size, bilinear, color=(0, 0, 0)) if resize == "pad" else image.resize(size, bilinear)


def check_rule(resize: str) -> None:
    """Raises ValueError if the rule is none of `RESIZE_RULES`."""
    if resize not in RESIZE_RULES:
        raise ValueError(f'Expected `resize` to be "crop", "pad" or "stretch". Received {resize!r}.')


def read_pixels(
    file: str | Path | io.BytesIO, image_size: tuple[int, int], *, resize: str = "crop", white: int = FULL_WHITE
) -> np.ndarray:
    """Returns an image file as a uint8 array (height, width, 3), resized as everywhere in this project.

    A saved classifier knows its own `resize` (`resize_image`) and `white` (`read_image`): see `load_settings`.
    """
    return np.asarray(resize_image(read_image(file, white=white), image_size, resize=resize))
