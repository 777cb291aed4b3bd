"""An epoch over stored pixels, against an epoch that decodes every file anew; and the memory that it takes.

    python tests/benchmarks/pixel_store.py [--images 1000] [--repeats 5] [--sizes 2000 20000]

The same JPEG photos (smooth noise, 256 to 500 pixels along a side) are read as batches of 32 images of 224 x 224
pixels by `keras.utils.image_dataset_from_directory` and by `make_dataset`, in turns in one process. The store has
been written before, and every file has been read once, so that neither waits for the disk.

The peak memory of one shuffled epoch is that of a fresh process, for stores of both sizes.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pandas as pd
from PIL import Image

import helpers
from helpers.data import load_pixels
from helpers.data.batches import make_dataset
from helpers.data.parallel import in_parallel

SIZE, BATCH_SIZE = (224, 224), 32


def write_photos(folder: Path, count: int) -> None:
    """Writes JPEG files in two class folders: smooth noise that takes 0.3 bytes a pixel, as photos do."""

    def write(index: int) -> None:
        rng = np.random.default_rng(index)
        width, height = (int(side) for side in rng.integers(256, 501, 2))
        layers = [rng.integers(0, 256, (cells, cells, 3), dtype="uint8") for cells in (4, 16, 64, 200)]
        large = [np.asarray(Image.fromarray(x).resize((width, height), Image.Resampling.BICUBIC)) for x in layers]
        photo = np.average(large, axis=0, weights=(4, 2, 1, 1)).astype("uint8")
        Image.fromarray(photo).save(folder / "ab"[index % 2] / f"{index:06d}.jpg", quality=90)

    for label in "ab":
        (folder / label).mkdir(parents=True)
    list(in_parallel(write, range(count), title="writing photos"))


def write_squares(folder: Path, count: int) -> None:
    """Writes as many different images of one pixel each: quick to decode, and as large as others when stored."""
    folder.mkdir(parents=True)
    for index in range(count):
        (folder / f"{index:06d}.ppm").write_bytes(b"P6 1 1 255\n" + index.to_bytes(3, "little"))


def list_images(folder: Path) -> pd.DataFrame:
    """Returns the table of all files in the folder, as training images."""
    rows = [
        (str(file), file.parent.name, "train", hashlib.sha256(file.read_bytes()).hexdigest())
        for file in sorted(folder.rglob("*.*"))
    ]
    return pd.DataFrame(rows, columns=["path", "label", "split", "sha256"])


def seconds_of_an_epoch(dataset, images: int) -> float:
    """Returns the time in which all batches were made and counted."""
    started = perf_counter()
    counted = sum(len(batch) for batch, _ in dataset)
    assert counted == images
    return perf_counter() - started


def compare_epochs(folder: Path, *, count: int, repeats: int) -> None:
    """Prints the median seconds of an epoch both ways, and their ratio."""
    from helpers._keras import keras

    write_photos(folder / "photos", count)
    images = list_images(folder / "photos")
    pixels = load_pixels(images, image_size=SIZE)["train"]
    datasets = {
        "image_dataset_from_directory": keras.utils.image_dataset_from_directory(
            folder / "photos", image_size=SIZE, batch_size=BATCH_SIZE, shuffle=False, verbose=False
        ),
        "make_dataset": make_dataset(pixels, (images["label"] == "b").to_numpy("int64"), batch_size=BATCH_SIZE),
    }
    seconds = {name: [] for name in datasets}
    for repeat in range(repeats + 1):
        for name, dataset in datasets.items():
            took = seconds_of_an_epoch(dataset, count)
            if repeat:  # the first epoch also starts threads and fills the disk's cache
                seconds[name].append(took)
    print(f"{f'an epoch over {count:,} images':<34}{'seconds (median)':>18}{'images a second':>18}")
    for name, times in seconds.items():
        print(f"{name:<34}{median(times):>18.2f}{count / median(times):>18,.0f}")
    ratios = [decoded / stored for decoded, stored in zip(*seconds.values(), strict=True)]
    print(
        f"stored pixels are {median(ratios):.1f} times faster (of {repeats}: {min(ratios):.1f} to {max(ratios):.1f})"
    )


def peak_of_an_epoch(images: pd.DataFrame) -> int:
    """Returns the peak memory of this process, in kB, after one shuffled epoch over the stored images."""
    pixels = load_pixels(images, image_size=SIZE)["train"]
    seconds_of_an_epoch(make_dataset(pixels, np.arange(len(pixels)), batch_size=BATCH_SIZE, shuffle=0), len(images))
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def compare_memory(folder: Path, sizes: list[int]) -> None:
    """Prints the peak memory of an epoch over stores of these sizes."""
    write_squares(folder / "squares", max(sizes))
    images = list_images(folder / "squares")
    peaks = []
    for size in sizes:
        load_pixels(images[:size], image_size=SIZE)
        images[:size].to_csv(folder / "images.csv", index=False)
        command = [sys.executable, __file__, "--epoch-below", str(folder)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | {"TQDM_DISABLE": "1"})
        peaks.append(int(done.stdout) / 1000)
    print(f"\n{'one epoch in a fresh process':<34}{'store, MB':>18}{'peak memory, MB':>18}")
    for size, peak in zip(sizes, peaks, strict=True):
        print(f"{f'{size:,} images':<34}{size * 224 * 224 * 3 / 1e6:>18,.0f}{peak:>18,.0f}")
    print(f"{sizes[-1] / sizes[0]:.0f} times the images, {100 * (peaks[-1] / peaks[0] - 1):+.1f} % memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--epoch-below", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.epoch_below:
        helpers.ROOT = options.epoch_below
        print(peak_of_an_epoch(pd.read_csv(options.epoch_below / "images.csv")))
        return
    with tempfile.TemporaryDirectory() as folder:
        helpers.ROOT = Path(folder)  # the stores lie below, and go with it
        compare_epochs(Path(folder), count=options.images, repeats=options.repeats)
        compare_memory(Path(folder), sorted(options.sizes))


if __name__ == "__main__":
    main()
