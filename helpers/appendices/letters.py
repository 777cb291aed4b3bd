"""The embedded example's source task: printed letters, made to look like scanned handwriting.

The target, scikit-learn's handwritten digits, passed through NIST's character normalisation (Garris et al., "NIST
Form-Based Handprint Recognition System", NISTIR 5469, 1994): each character was stretched to 20x32 pixels, its
strokes thinned or thickened to a usual amount of ink, slid upright row by row, and counted in 4x4 blocks of a 32x32
bitmap. Letters that go the same way share the digits' strokes, blur and amount of ink.
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font, LoadFlags
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from helpers import progress_file
from helpers._keras import keras

# One class an entry. Characters share a class where they look alike once stretched to 20x32: C and c, but
# also Greek Π and Cyrillic П. There is no digit, and no letter that reads as one in print:
#   0: O o Q D Θ Φ Ω   1: I i l J j ι   2: Z z Σ   3: Ξ З Э ξ Ɔ   4: Ч Վ Պ y Δ ʇ   5: S s ζ Б Ђ
#   6: G b Ь Ъ Є б δ σ   7: T τ Ղ (slid upright, a T has the left half of its bar cut off)   8: B β ß В ღ α
#   9: g q Я ρ
# are left out. A, a, e and f stay, although a distorted one may come near to 4, 8, 6 or 1 in so few pixels.
LETTERS = tuple(
    "A a Cc d E e F f H h Kk L M m N n Pp R r t Uu Vv Ww Xx "  # Latin
    "Þ þ Ħ Łł Æ æ Ʊ Ƕ Ŋ ŋ ɲ ɰ ʞ "  # Latin with additions, and phonetic
    "ΓГ Λ ΠП Ψψ γ η λ μ π ω "  # Greek
    "Дд Ж И Л Цц Шш Щщ Ы Ю Ћ Љ Њ Ѥ Ѧ Ѩ Ѫ Ѭ Ғ Ҥ Ҧ Ӿ "  # Cyrillic
    "Աա Ե Է Ը Խ խ Մ Ն Ր բ ը թ ն պ ռ տ փ "  # Armenian
    "თ ლ ფ "  # Georgian
    "\u05d0 \u05d4 \u05de \u05e2 \u05e6 \u05e9 \u05ea "  # Hebrew, which would turn the line round
    "ກ ທ ນ ຜ ຟ ມ ຫ "  # Lao
    "ⴼ ⴽ ⵄ ⵌ ⵎ ⵐ ⵡ ⵣ".split()  # Tifinagh
)

# A face is a file that comes with matplotlib (never a font of the system, which differs from machine to
# machine) and the character at which its Latin alphabet starts: STIX keeps script, sans-serif and typewriter
# alphabets at other places than A. The Computer Modern files have other signs where Greek would be.
FACES = (
    *((f"DejaVu{family}{style}.ttf", "A") for family in ("Sans", "SansMono")
      for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *((f"DejaVuSerif{style}.ttf", "A") for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *((f"STIXGeneral{style}.ttf", "A") for style in ("", "Bol", "Italic", "BolIta")),
    *((f"cm{style}10.ttf", "A") for style in ("b", "mi", "r", "ss", "ti", "tt")),
    ("STIXGeneralItalic.ttf", "\U0001d49c"),  # script
    ("STIXGeneralBolIta.ttf", "\U0001d4d0"),  # bold script
    ("STIXGeneral.ttf", "\U0001d5a0"),  # sans-serif
    ("STIXGeneralItalic.ttf", "\U0001d608"),  # oblique sans-serif
    ("STIXGeneral.ttf", "\U0001d670"),  # typewriter
)  # fmt: skip

_LONG, _MARGIN = 64, 20  # a master's longer side, and the room around it for strokes pushed out; in pixels
_SIDE = _LONG + 2 * _MARGIN
_SHEET = 48  # the square on which a distorted letter is drawn, about as large as a scanned one; in pixels
_CHUNK = 512  # images drawn at once: fixed, so that the result doesn't depend on the number of threads


class _Masters(NamedTuple):
    outline: np.ndarray  # float32 (masters, side, side): distance to the printed outline, negative inside
    pen: np.ndarray  # float32, same shape: distance to the line that a pen would have followed
    label: np.ndarray  # int (masters,): ascending
    start: np.ndarray  # int (classes + 1,): the first master of each class, and the end


def render_letters(count: int, *, seed: int, threads: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Returns `count` distorted letters in the digits' form, and their classes; shows a progress bar.

    The images are uint8 (count, 8, 8, 3) in 0..255, as from `counts_to_images`; the labels int64 (count,), positions
    in `LETTERS`, all classes equally likely. The same seed gives the same letters, however many threads draw them
    (NumPy works outside Python's lock).
    """
    masters, sizes = _load_masters(), [min(_CHUNK, count - first) for first in range(0, count, _CHUNK)]

    def draw(chunk: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([seed, chunk])
        labels = rng.integers(len(LETTERS), size=sizes[chunk])
        which = rng.integers(masters.start[labels], masters.start[labels + 1])  # a face, a character of the class
        return _draw(masters, which, rng)[-1], labels

    with ThreadPoolExecutor(threads) as pool:
        chunks = tqdm(pool.map(draw, range(len(sizes))), "letters", len(sizes), leave=False, file=progress_file())
        counts, labels = map(np.concatenate, zip(*chunks, strict=True))
    return counts_to_images(counts), labels


def render_steps(letter: str, *, seed: int) -> dict[str, np.ndarray]:
    """Returns one letter, or another character of its class, at each step from print to 8x8 counts, for a figure.

    Ink is True or a larger number, by step: "printed" bool (104, 104), "drawn" bool (48, 48), "stretched", "even ink"
    and "upright" bool (32, 32), "counted" uint8 (8, 8) in 0..16.
    """
    label = next(label for label, characters in enumerate(LETTERS) if letter in characters)
    masters, rng = _load_masters(), np.random.default_rng(seed)
    which = rng.choice(np.flatnonzero(masters.label == label), 1)
    steps = (masters.outline[which] < 0, *_draw(masters, which, rng))
    names = ("printed", "drawn", "stretched", "even ink", "upright", "counted")
    return {name: step[0] for name, step in zip(names, steps, strict=True)}


def counts_to_images(counts: np.ndarray) -> np.ndarray:
    """Returns uint8 grey RGB images (n, 8, 8, 3), 0..255, from ink counts (n, 8, 8), 0..16, of characters.

    >>> counts_to_images(np.array([[[0, 8, 16]]]))[0, 0, :, 0].tolist()
    [0, 128, 255]
    """
    return np.repeat(np.round(np.asarray(counts) * (255 / 16)).astype(np.uint8)[..., None], 3, axis=-1)


def build_letter_network(class_count: int) -> keras.Model:
    """Returns an untrained residual network for 8x8 images: He et al. 2015, arXiv 1512.03385, made small.

    From uint8 images (n, 8, 8, 3) in 0..255 to float32 probabilities (n, class_count). Flat, with a stage in each
    layer's name as in `keras.applications.ResNet50`: `conv1` and `conv2` at 8x8, `conv3` and `conv4` at 4x4, then
    `avg_pool` and `predictions`.
    """
    inputs = keras.Input((8, 8, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="rescaling")(inputs)
    x = _convolve(x, 32, name="conv1")
    x = keras.layers.Activation("relu", name="conv1_relu")(x)
    for stage, width, blocks in ((2, 32, 2), (3, 64, 2), (4, 128, 1)):
        for block in range(1, blocks + 1):
            # Halved once only: a digit's 8x8 pixels leave nothing to see at 2x2.
            strides = 2 if (stage, block) == (3, 1) else 1
            x = _add_block(x, width, strides=strides, name=f"conv{stage}_block{block}")
    x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    outputs = keras.layers.Dense(class_count, activation="softmax", name="predictions")(x)
    return keras.Model(inputs, outputs, name="letters")


def build_letter_backbone(name: str) -> keras.Model:
    """Returns `build_letter_network` without its head: uint8 images (n, 8, 8, 3) to float32 features (n, 128)."""
    network = build_letter_network(2)
    return keras.Model(network.inputs[0], network.get_layer("avg_pool").output, name=name)


def _add_block(x, width: int, *, strides: int, name: str):
    """Returns the output of a residual block, its shortcut by a 1x1 convolution where shapes differ."""
    shortcut = x
    if strides != 1 or x.shape[-1] != width:
        shortcut = _convolve(x, width, kernel=1, strides=strides, name=f"{name}_0")
    x = _convolve(x, width, strides=strides, name=f"{name}_1")
    x = keras.layers.Activation("relu", name=f"{name}_1_relu")(x)
    x = _convolve(x, width, name=f"{name}_2")
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return keras.layers.Activation("relu", name=f"{name}_out")(x)


def _convolve(x, width: int, *, name: str, kernel: int = 3, strides: int = 1):
    """Returns a convolution followed by batch normalisation, which makes a bias superfluous."""
    conv = keras.layers.Conv2D(width, kernel, strides, padding="same", use_bias=False, name=f"{name}_conv")
    return keras.layers.BatchNormalization(name=f"{name}_bn")(conv(x))


def _draw(masters: _Masters, which: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Returns the masters at `which` after each step, the last being the ink counts: see `render_steps`."""
    count = len(which)
    places = _distort(count, rng)
    with_pen = rng.random(count) < 0.5
    # Half are redrawn with a pen of one width, half keep the printed contrast of thick and thin strokes.
    level = np.where(with_pen, rng.uniform(2.0, 6.5, count), rng.uniform(-1.0, 3.5, count))
    drawn = np.empty((count, _SHEET, _SHEET), bool)
    for field, chosen in ((masters.pen, with_pen), (masters.outline, ~with_pen)):
        drawn[chosen] = _look_up(field, which[chosen], places[chosen]) < level[chosen, None, None]
    stretched = _stretch(drawn)
    even = _even_ink(stretched)
    upright = _set_upright(even)
    counted = upright.reshape(count, 8, 4, 8, 4).sum((2, 4)).astype(np.uint8)
    return drawn, stretched, even, upright, counted


def _distort(count: int, rng: np.random.Generator) -> np.ndarray:
    """Returns where on its master each pixel of a sheet looks: float32 (count, 2, sheet, sheet), y before x."""
    # Size and position don't matter: stretching to the ink box undoes them.
    line = (np.arange(_SHEET, dtype=np.float32) + 0.5) / _SHEET * 2 - 1
    sheet = np.stack(np.meshgrid(line, line, indexing="ij"))
    angle, slant, log_aspect = (rng.normal(0, sd, count) for sd in (0.12, 0.22, 0.15))
    cos, sin, aspect, zero = np.cos(angle), np.sin(angle), np.exp(log_aspect), np.zeros(count)
    rotation = np.array([[cos, sin], [-sin, cos]]).transpose(2, 0, 1)
    shape = np.array([[aspect, zero], [slant, 1 / aspect]]).transpose(2, 0, 1)
    places = np.einsum("nij,jyx->niyx", (shape @ rotation).astype(np.float32), sheet)
    # A perspective, and two smooth random fields for what one hand makes longer or rounder than another.
    tilt = rng.normal(0, 0.12, (count, 2)).astype(np.float32)
    places *= 1 + np.einsum("ni,iyx->nyx", tilt, sheet)[:, None]
    for knots, size in ((3, 0.10), (5, 0.05)):
        spline = _spline(knots)
        push = rng.normal(0, size, (count, 2, knots, knots)).astype(np.float32)
        places += spline @ push @ spline.T
    return (places + 1) * (_SIDE / 2) - 0.5


@functools.cache
def _spline(knots: int) -> np.ndarray:
    """Returns the cubic interpolation from knots to a line of the sheet: float32 (sheet, knots)."""
    return ndimage.zoom(np.eye(knots, dtype=np.float32), (_SHEET / knots, 1), order=3, grid_mode=True, mode="nearest")


def _look_up(field: np.ndarray, which: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Returns the field of each letter's master at its places, interpolated: (count, sheet, sheet)."""
    y, x = np.clip(places, 0, _SIDE - 1.001).swapaxes(0, 1)
    row, column = y.astype(np.int32), x.astype(np.int32)
    y, x = y - row, x - column
    at = which[:, None, None] * _SIDE**2 + row * _SIDE + column
    flat = field.reshape(-1)
    upper = flat[at] * (1 - x) + flat[at + 1] * x
    lower = flat[at + _SIDE] * (1 - x) + flat[at + _SIDE + 1] * x
    return upper * (1 - y) + lower * y


def _stretch(drawn: np.ndarray) -> np.ndarray:
    """Returns bool (count, 32, 32): each letter's ink box stretched to 20 columns and 32 rows, centred."""
    picks = []
    for ink, size in ((drawn.any(2), 32), (drawn.any(1), 20)):
        first, end = ink.argmax(1), _SHEET - ink[:, ::-1].argmax(1)
        picks.append((first[:, None] + (np.arange(size) + 0.5) / size * (end - first)[:, None]).astype(int))
    rows, columns = picks
    box = drawn[np.arange(len(drawn))[:, None, None], rows[:, :, None], columns[:, None, :]]
    return np.pad(box, ((0, 0), (0, 0), (6, 6)))


def _even_ink(bitmaps: np.ndarray) -> np.ndarray:
    """Returns the bitmaps with bold letters thinned and faint ones thickened, by NIST's numbers of pixels."""
    bitmaps, ink = bitmaps.copy(), bitmaps.sum((1, 2))
    cross = ndimage.generate_binary_structure(2, 1)[None]
    for change, chosen in (
        (ndimage.binary_erosion, ink > 412),
        (ndimage.binary_erosion, ink > 560),
        (ndimage.binary_dilation, ink < 256),
        (ndimage.binary_dilation, ink < 108),
    ):
        if chosen.any():
            bitmaps[chosen] = change(bitmaps[chosen], cross)
    return bitmaps


def _set_upright(bitmaps: np.ndarray) -> np.ndarray:
    """Returns the bitmaps with rows slid sideways so that the left edge is above itself near top and bottom."""
    # Two rows at each end are passed over, for their edge is noise.
    each, inked = np.arange(len(bitmaps)), bitmaps.any(2)
    top = np.minimum(inked.argmax(1) + 2, 31)
    bottom = np.maximum(29 - inked[:, ::-1].argmax(1), 0)
    lean = bitmaps[each, top].argmax(1) - bitmaps[each, bottom].argmax(1)
    slope = np.where(inked[each, top] & inked[each, bottom], lean / np.maximum(bottom - top, 1), 0)
    source = np.arange(32) - np.round((np.arange(32) - 16) * slope[:, None]).astype(int)[:, :, None]
    inside = (source >= 0) & (source < 32)
    return np.take_along_axis(bitmaps, np.clip(source, 0, 31), axis=2) & inside


@functools.cache
def _load_masters() -> _Masters:
    """Returns every letter in every face as two distance fields, from which strokes of any width are cut."""
    fonts, distance = Path(matplotlib.get_data_path(), "fonts", "ttf"), ndimage.distance_transform_edt
    outline, pen, labels = [], [], []
    for file, alphabet in FACES:
        font = FT2Font(fonts / file)
        font.set_size(150, 72)  # about 100 pixels for a capital
        for label, characters in enumerate(LETTERS):
            for character in characters:
                code = _find_code(font, character, alphabet)
                if code is None:
                    continue
                ink = _print(font, code)
                outline.append((distance(~ink) - distance(ink)).astype(np.float32))
                pen.append(distance(~_thin(ink)).astype(np.float32))
                labels.append(label)
    order, label = np.argsort(labels, kind="stable"), np.sort(labels)
    start = np.searchsorted(label, np.arange(len(LETTERS) + 1))
    return _Masters(np.stack(outline)[order], np.stack(pen)[order], label, start)


def _find_code(font: FT2Font, character: str, alphabet: str) -> int | None:
    """Returns where the font has the character, or None."""
    code = ord(character)
    if not character.isascii() and (alphabet != "A" or font.postscript_name.startswith("Cm")):
        return None
    if alphabet != "A":  # there, a follows Z at once
        code += ord(alphabet) - (ord("A") if character.isupper() else ord("a") - 26)
    return code if code in font.get_charmap() else None


def _print(font: FT2Font, code: int) -> np.ndarray:
    """Returns a printed character, its longer side 64 pixels, in the middle of a bool (side, side) canvas."""
    font.clear()
    font.set_text(chr(code), 0.0, flags=LoadFlags.NO_HINTING)
    font.draw_glyphs_to_bitmap(antialiased=True)
    image = Image.fromarray(np.asarray(font.get_image()))
    image = image.crop(image.point(lambda grey: 255 * (grey > 127)).getbbox())
    scale = _LONG / max(image.size)
    image = image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.BOX)
    canvas = Image.new("L", (_SIDE, _SIDE))
    canvas.paste(image, [(_SIDE - length) // 2 for length in image.size])
    return np.asarray(canvas) > 127


def _thin(ink: np.ndarray) -> np.ndarray:
    """Returns the line in the middle of the strokes (Zhang and Suen 1984, doi 10.1145/357994.358023)."""
    around = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))  # north, then clockwise
    while True:
        before = ink
        for spared in ((0, 2, 4, 6), (4, 6, 0, 2)):
            near = [np.roll(ink, shift, (0, 1)) for shift in around]
            count = sum(n.astype(int) for n in near)
            ends = sum((~near[k] & near[(k + 1) % 8]).astype(int) for k in range(8))
            north, east, south, west = (near[k] for k in spared)
            open_ = ~(east & south & (north | west))
            ink = ink & ~((count >= 2) & (count <= 6) & (ends == 1) & open_)
        if (ink == before).all():
            return ink
