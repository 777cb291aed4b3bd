"""The memory that computing activations and an epoch of fine-tuning take, for few and for many images.

    python tests/benchmarks/training_memory.py [--sizes 2000 20000]

MobileNet (alpha 0.25, random weights) on noise of 64 x 64 pixels, unfrozen from a quarter of its cost on; the peak is
that of a fresh process. The images and their activations are several times larger than the memory that they take.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import helpers
from helpers.data.pixels import Pixels
from helpers.data.stores import write_store

SIDE = 64


def write_noise(file: Path, rows: int):
    """Returns the store of as many different images, newly written."""
    rng = np.random.default_rng(0)
    sizes = (min(500, rows - start) for start in range(0, rows, 500))
    batches = (rng.integers(0, 256, (size, SIDE, SIDE, 3), dtype="uint8") for size in sizes)
    return write_store(file, batches, shape=(SIDE, SIDE, 3), dtype="uint8", keys=list(map(str, range(rows))))


def train(folder: Path, rows: int) -> None:
    """Prints the size of images and activations and this process's peak memory, in MB."""
    from helpers._keras import keras
    from helpers.backbones import load_backbone
    from helpers.backbones.stages import stage_at
    from helpers.training import Recipe, attach_head, fine_tune, fit_head, load_activations, set_seed

    set_seed(0)
    store = write_noise(folder / "noise.npy", rows)
    pixels = {"train": Pixels(store, np.arange(rows)), "validation": Pixels(store, np.arange(0, rows, 10))}
    labels = {part: np.arange(len(array)) % 4 for part, array in pixels.items()}
    network = keras.applications.MobileNet((SIDE, SIDE, 3), alpha=0.25, include_top=False, weights=None)
    network.save(folder / "network.keras")
    network = load_backbone(str(folder / "network.keras"), preprocessing="tf")
    head = fit_head(load_activations(network, pixels["train"])[:1000], labels["train"][:1000], cs=(0.01,))
    model = attach_head(network, head, class_names=list("abcd"))
    stage = stage_at(model, 0.25)
    fine_tune(model, pixels, labels, recipe=Recipe(unfreeze_from=stage, epochs=1))
    stored = load_activations(network, pixels["train"], stage=stage)
    size = sum(np.prod(array.shape) * array.dtype.itemsize for array in (stored, pixels["train"]))
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    print(size / 1e6, int(peak) / 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--train-below", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train_below:
        helpers.ROOT = options.train_below
        train(options.train_below, options.sizes[0])
        return
    peaks = []
    print(f"{'in a fresh process':<22}{'images and activations, MB':>28}{'peak memory, MB':>18}")
    for size in sorted(options.sizes):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--train-below", folder, "--sizes", str(size)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        stored, peak = map(float, done.stdout.split()[-2:])
        peaks.append(peak)
        print(f"{f'{size:,} images':<22}{stored:>28,.0f}{peak:>18,.0f}", flush=True)
    print(f"the peak grows by a factor of {peaks[-1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
