"""The gate against plain decoding: how much longer checking every file takes, and how much memory.

    python tests/benchmarks/data_gate.py [--images 10000] [--repeats 5]

Both read the same JPEG files of 256 x 256 pixels, photo-like and all different, in turns in one process. Decoding
is Pillow's, in as many threads as there are cores and in lots, its fastest way; the gate also hashes every file and
every picture, compares all pairs. Peak memory is that of fresh processes, for 2,000 images and for 20,000.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from PIL import Image

from helpers.data import check_images, find_images, summarize_problems

SIZE, LOT = 256, 16


def write_photos(folder: Path, count: int) -> Path:
    """Writes `count` photo-like JPEG files into ten class folders, those that are missing, and returns the folder."""

    def write(number: int) -> None:
        path = folder / f"class {number % 10}" / f"{number:06d}.jpg"
        if path.exists():
            return
        rng, total = np.random.default_rng(number), np.zeros((SIZE, SIZE, 3), "float32")
        for cells in (4, 8, 16, 32, 64, 128):  # the larger a structure, the stronger, as in photos
            coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype="uint8"))
            total += np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BILINEAR), "float32") / cells**0.7
        total -= total.min()
        Image.fromarray((255 / total.max() * total).astype("uint8")).save(path, quality=85)

    for label in range(10):
        (folder / f"class {label}").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(count)))
    return folder


def decode(paths: list[str]) -> None:
    def work(start: int) -> None:
        for path in paths[start : start + LOT]:
            with Image.open(path) as image:
                image.load()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, range(0, len(paths), LOT)))


def timed(function, *arguments) -> float:
    started = perf_counter()
    function(*arguments)
    return perf_counter() - started


def peak_memory(code: str, *arguments: object) -> float:
    """Returns the highest resident memory, in MB, of a process that runs the code (`sys.argv` are its arguments)."""
    # from /proc, since `ru_maxrss` begins with that of the process which starts it
    code += "\nprint(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ | {"TQDM_DISABLE": "1"})
    return int(done.stdout.split()[-1]) / 1000


CHECK = "import sys; from helpers.data import check_images, find_images; check_images(find_images(sys.argv[1]))"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        found = find_images(write_photos(Path(scratch) / "photos", asked.images))
        paths = found["path"].tolist()
        print(f"{len(paths)} JPEG files, {sum(map(os.path.getsize, paths)) / len(paths) / 1000:.1f} kB each")
        decode(paths), check_images(found)  # once, so that all files are in the system's cache
        ratios = []
        for _ in range(asked.repeats):
            plain, gate = timed(decode, paths), timed(check_images, found)
            ratios.append(gate / plain)
            print(f"decoding {plain:.2f} s, the gate {gate:.2f} s: {gate / plain:.2f} times as long")
        print(f"median ratio {median(ratios):.2f} (target: at most 1.5)")
        print(summarize_problems(check_images(found)[1]).to_string())
        peaks = []
        for count in (2_000, 20_000):
            folder = write_photos(Path(scratch) / str(count), count)
            peaks.append(median(peak_memory(CHECK, folder) for _ in range(3)))
            print(f"{count} images: peak memory {peaks[-1]:.0f} MB")
        print(f"growth {100 * (peaks[1] / peaks[0] - 1):.1f} % (target: below 10 %)")


if __name__ == "__main__":
    main()
