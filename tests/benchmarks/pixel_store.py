"""An epoch over stored pixels, against an epoch that decodes every file anew; and the memory that it takes.

    python tests/benchmarks/pixel_store.py [--images 1000] [--repeats 5] [--sizes 2000 20000]

The same JPEG photos (smooth noise, 256 pixels along a side) are read as batches of 32 images of 224 x 224 pixels by
`keras.utils.image_dataset_from_directory` and by `make_dataset`, in turns in one process. The store has been written
before, and every file has been read once, so that neither waits for the disk.

The peak memory of one shuffled epoch is that of a fresh process, for stores of both sizes.
"""

import argparse
import hashlib
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from data_gate import peak_memory, timed, write_photos

import helpers
from helpers.data import load_pixels
from helpers.data.batches import make_dataset

SIZE, BATCH_SIZE = (224, 224), 32

EPOCH = """
import sys, pathlib, helpers, numpy, pandas
helpers.ROOT = pathlib.Path(sys.argv[1])
from helpers.data import load_pixels
from helpers.data.batches import make_dataset
pixels = load_pixels(pandas.read_csv(helpers.ROOT / "images.csv"), image_size=(224, 224))["train"]
assert sum(len(batch) for batch, _ in make_dataset(pixels, numpy.arange(len(pixels)), shuffle=0)) == len(pixels)
"""


def list_images(folder: Path) -> pd.DataFrame:
    """Returns the table of all files in the folder, as training images."""
    files = sorted(folder.rglob("*.*"))
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    paths, labels = [str(file) for file in files], [file.parent.name for file in files]
    return pd.DataFrame({"path": paths, "label": labels, "split": "train", "sha256": hashes})


def compare_epochs(folder: Path, *, count: int, repeats: int) -> None:
    """Prints the median seconds of an epoch both ways, and their ratio."""
    from helpers._keras import keras

    images = list_images(write_photos(folder, count))
    labels = images["label"].factorize(sort=True)[0]
    options = {"image_size": SIZE, "batch_size": BATCH_SIZE, "shuffle": False, "verbose": False}
    datasets = {
        "image_dataset_from_directory": keras.utils.image_dataset_from_directory(folder, **options),
        "make_dataset": make_dataset(load_pixels(images, image_size=SIZE)["train"], labels, batch_size=BATCH_SIZE),
    }
    seconds = {name: [] for name in datasets}
    for repeat in range(repeats + 1):
        for name, dataset in datasets.items():
            took = timed(lambda dataset=dataset: sum(len(batch) for batch, _ in dataset))
            if repeat:  # the first epoch also starts threads and fills the disk's cache
                seconds[name].append(took)
    print(f"{f'an epoch over {count:,} images':<34}{'seconds (median)':>18}{'images a second':>18}")
    for name, times in seconds.items():
        print(f"{name:<34}{median(times):>18.2f}{count / median(times):>18,.0f}")
    ratios = [decoded / stored for decoded, stored in zip(*seconds.values(), strict=True)]
    print(f"stored pixels are {median(ratios):.1f} times faster ({min(ratios):.1f} to {max(ratios):.1f})")


def compare_memory(folder: Path, sizes: list[int]) -> None:
    """Prints the peak memory of an epoch over stores of these sizes, of images that are quick to decode."""
    folder.mkdir()
    for index in range(max(sizes)):
        (folder / f"{index:06d}.ppm").write_bytes(b"P6 1 1 255\n" + index.to_bytes(3, "little"))
    images, peaks = list_images(folder), []
    for size in sizes:
        load_pixels(images[:size], image_size=SIZE)
        images[:size].to_csv(helpers.ROOT / "images.csv", index=False)
        peaks.append(peak_memory(EPOCH, helpers.ROOT))
    print(f"\n{'one epoch in a fresh process':<34}{'store, MB':>18}{'peak memory, MB':>18}")
    for size, peak in zip(sizes, peaks, strict=True):
        print(f"{f'{size:,} images':<34}{np.prod(SIZE) * size * 3 / 1e6:>18,.0f}{peak:>18,.0f}")
    print(f"{sizes[-1] / sizes[0]:.0f} times the images, {100 * (peaks[-1] / peaks[0] - 1):+.1f} % memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000, 20_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        helpers.ROOT = Path(folder)  # the stores lie below, and go with it
        compare_epochs(helpers.ROOT / "photos", count=options.images, repeats=options.repeats)
        compare_memory(helpers.ROOT / "squares", sorted(options.sizes))


if __name__ == "__main__":
    main()
