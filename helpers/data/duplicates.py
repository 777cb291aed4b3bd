"""Which images show the same: a perceptual hash finds candidates, a comparison of thumbnails confirms them.

The hash is pHash (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010): 256 signs of
low frequencies. Among images of one subject (X-rays, say) those of different images are alike, too. So each candidate
is confirmed: of what the mean of all images leaves unexplained in one thumbnail's details, the other must explain
most, allowing for another brightness and contrast and for a small shift, stretch or turn.
"""

import numpy as np
from scipy.fft import dct
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from helpers.data.parallel import in_parallel

SIDE = 32  # pixels of a thumbnail, high and wide; images with a shorter side have too little detail to compare
MOST_BITS = 60  # of 256 in which candidates may differ: cropping 8 of 300 pixels changes 50, another photo over 80
LEAST_EXPLAINED = 0.8  # of what the mean leaves of a thumbnail's details, by the other one; other photos reach 0.6
_NEAREST = 16  # candidates followed up for each image: a bound on the work where all images look alike
_LOT = 64  # thumbnails, or pairs of them, that are in memory as floats at once
_LOW = 16
_BASIS = np.rint(4096 * dct(np.eye(SIDE), axis=0)[:_LOW])


def hash_thumbnails(thumbnails: np.ndarray) -> np.ndarray:
    """Returns the pHash of each, uint64 (count, 4), of uint8 (count, 32, 32): `imagehash.phash` but for ties."""
    # Whole numbers in float64 are exact, in any order: many coefficients of symmetric images are 0, and rounding
    # errors, which differ from machine to machine, would decide about their bits
    low = np.rint((_BASIS @ thumbnails.astype("float64") @ _BASIS.T) / 4096**2).reshape(len(thumbnails), _LOW * _LOW)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view("uint64")


def find_similar(thumbnails: np.ndarray, comparable: np.ndarray) -> np.ndarray:
    """Returns pairs of images that show the same, int64 (pairs, 3): two rows, and the bits in which they differ."""
    lots = [comparable[start : start + _LOT] for start in range(0, len(comparable), _LOT)]
    hashes = np.concatenate([np.empty((0, 4), "uint64"), *(hash_thumbnails(thumbnails[lot]) for lot in lots)])
    step = 1 + 2**16 // (1 + len(hashes))  # so that memory does not grow with the images
    starts = range(0, len(hashes), step)
    found = in_parallel(
        lambda start: _find_candidates(hashes, start, start + step), starts, title="comparing images", chunksize=1
    )
    pairs = np.concatenate([np.empty((0, 3), "int64"), *found])
    pairs[:, :2] = comparable[pairs[:, :2]]
    mean_image = _mean(thumbnails, comparable)

    def confirm(lot: np.ndarray) -> np.ndarray:
        one, other = thumbnails[lot[:, :2].T].astype("float32")
        return lot[_explained(one, other, mean_image) >= LEAST_EXPLAINED]

    lots = [pairs[start : start + _LOT] for start in range(0, len(pairs), _LOT)]
    confirmed = in_parallel(confirm, lots, title="comparing candidates", chunksize=1)
    return np.concatenate([np.empty((0, 3), "int64"), *confirmed])


def _mean(thumbnails: np.ndarray, comparable: np.ndarray) -> np.ndarray:
    """Returns the mean, (1, 32, 32), of up to 1,000 thumbnails, each at one brightness and contrast."""
    rows, total = comparable[:: max(-(-len(comparable) // 1000), 1)], np.zeros((1, SIDE, SIDE))
    for start in range(0, len(rows), _LOT):
        some = thumbnails[rows[start : start + _LOT]].astype("float32")
        some = some - some.mean(axis=(1, 2), keepdims=True)
        total += (some / some.std(axis=(1, 2), keepdims=True).clip(1)).sum(axis=0)
    return (total / max(len(rows), 1)).astype("float32")


def _find_candidates(hashes: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Returns at most `_NEAREST` later images for each of some images, (pairs, 3): row, row, bits."""
    mine, later, bits = hashes[start:stop, None], hashes[None, start:], 0
    for word in range(4):
        bits = bits + np.bitwise_count(mine[..., word] ^ later[..., word]).astype("uint16")
    rows, columns = np.nonzero(bits <= MOST_BITS)
    pairs = np.stack([rows + start, columns + start, bits[rows, columns]], axis=1).astype("int64")
    pairs = pairs[columns > rows]
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 2], pairs[:, 0]))]
    _, first, counts = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    rank = np.arange(len(pairs)) - np.repeat(first, counts)
    return pairs[rank < _NEAREST]


def _explained(one: np.ndarray, other: np.ndarray, mean_image: np.ndarray) -> np.ndarray:
    """Returns how much of what the mean image leaves one explains of the other, (pairs,) up to 1, the better way."""
    # between photos the mean explains nothing; X-rays, or pages of one form, are alike before any two are duplicates
    return np.maximum(
        1 - (1 - _explain(one, other)) / np.maximum(1 - _explain(mean_image, other), 1e-6),
        1 - (1 - _explain(other, one)) / np.maximum(1 - _explain(mean_image, one), 1e-6),
    )


def _explain(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Fits other = contrast * one + displacement * gradient, the displacement linear in x and y (least squares)."""
    one, other = gaussian_filter(one, (0, 0.7, 0.7)), gaussian_filter(other, (0, 0.7, 0.7))
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j].astype("float32")
    dy, dx = np.gradient(one, axis=(1, 2))
    target = _details(other)
    terms = np.stack([_details(term) for term in (one, dx, dx * x, dx * y, dy, dy * x, dy * y)], axis=1)
    products = terms @ terms.transpose(0, 2, 1)
    ridge = 1e-6 * np.trace(products, axis1=1, axis2=2)[:, None, None] + 1e-6  # also for an image without details
    right = terms @ target[:, :, None]
    weights = np.linalg.solve(products + ridge * np.eye(len(terms[0]), dtype="float32"), right)
    return (right * weights).sum(axis=(1, 2)) / np.maximum((target**2).sum(axis=1), 1e-6)


def _details(images: np.ndarray) -> np.ndarray:
    """Returns what a blur takes away, without the edge: (count, pixels)."""
    sharp = images - gaussian_filter(images, (0, 2, 2))
    return sharp[:, 2:-2, 2:-2].reshape(len(images), -1)


def group_pairs(count: int, pairs: np.ndarray) -> np.ndarray:
    """Returns a number for each of `count` images, int32: the same for images that pairs of rows connect."""
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1]
