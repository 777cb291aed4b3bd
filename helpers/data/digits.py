"""The embedded example: few handwritten digits, as a photograph would show them."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

TRAIN, TEST = 20, 80
"""Images of each digit to learn from, and to test."""


def write_digits(folder: Path) -> Path:
    """Writes 1000 of scikit-learn's digits, each changed by `photograph`, to folder/train and folder/test, once."""
    if folder.exists():
        return folder
    from sklearn.datasets import load_digits

    digits = load_digits()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    partial.chmod(0o755)
    for digit in range(10):
        chosen = np.random.default_rng([0, digit]).permutation(np.flatnonzero(digits.target == digit))
        for rank, index in enumerate(chosen[: TRAIN + TEST]):
            target = partial / ("train" if rank < TRAIN else "test") / str(digit)
            target.mkdir(parents=True, exist_ok=True)
            ink = digits.images[index] / 16  # 0..16 inked dots of each 4x4 block
            pixels = photograph(ink, np.random.default_rng([0, int(index)]))
            Image.fromarray(np.round(255 * pixels).astype("uint8")).save(target / f"{index:04d}.png")
    try:
        partial.rename(folder)  # all or nothing: an interrupted first run leaves no half set behind
    except OSError:
        if not folder.exists():  # otherwise another process was faster
            raise
        shutil.rmtree(partial)
    return folder


def photograph(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a digit (8, 8), 0 to 1, turned, moved, larger or smaller, perhaps bolder, in uneven light, with noise.

    How much was chosen with digits that are not among the 1000: enough that a network which never saw a photographed
    character has something to learn, and little enough that people still read most of them.
    """
    fine = ndimage.zoom(np.pad(ink, 2), 4, order=1, grid_mode=True, mode="nearest")  # 12x12 to 48x48
    angle, size, shift = np.deg2rad(rng.normal(0, 10)), np.exp(rng.normal(0, 0.12)), rng.normal(0, 2, 2)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / size
    middle = np.full(2, 23.5)
    fine = ndimage.affine_transform(fine, turn, middle - turn @ (middle + shift), order=1)
    if rng.random() < 0.5:
        fine = ndimage.grey_dilation(fine, size=(3, 3))
    coarse = fine[8:40, 8:40].reshape(8, 4, 8, 4).mean((1, 3))
    contrast, (down, across), dark = 1 - rng.uniform(0, 0.1), rng.normal(0, 0.03, 2), rng.uniform(0, 0.05)
    y, x = np.mgrid[-1:1:8j, -1:1:8j]
    lit = contrast * coarse + down * y + across * x + dark
    return np.clip(lit + rng.normal(0, 0.02, (8, 8)), 0, 1)
