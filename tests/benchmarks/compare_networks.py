"""What a comparison of networks costs beyond their forward passes.

    REAL_DATA_DIR=... python tests/benchmarks/compare_networks.py [--networks "MobileNetV2=None,ResNet50=None,..."]

MobileNetV2, MobileNet (a quarter as wide) and SqueezeNet, or other networks, as `make compare` takes them (random
weights take as long as others), on 500 flowers at 224 pixels, decoded beforehand. In turns, in one process: each
network is loaded and passes over the images once; and `rank_networks`, from loading the networks to the table, with
nothing kept. Printed is the ratio of their medians.

REAL_DATA_DIR names a folder with the photos and the weights.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from network_ranks import networks

import helpers
from helpers.backbones import load_backbone
from helpers.data import check_images, exclude_problems, find_images, load_pixels, split_images
from helpers.networks import rank_networks, read_candidates
from helpers.training import compute_activations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--size", type=int, default=224, help="of the images, pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", default="", help="instead of the three small ones")
    options = parser.parse_args()
    if not os.environ.get("REAL_DATA_DIR"):
        print("Left out: REAL_DATA_DIR names no folder with photos and weights.")
        return
    real = Path(os.environ["REAL_DATA_DIR"]).resolve()
    helpers.ROOT = Path(tempfile.mkdtemp())
    try:
        candidates = list(networks(real / "weights", helpers.ROOT, options.size).values())[:3]
        candidates = read_candidates(options.networks) if options.networks else candidates
        images = exclude_problems(*check_images(find_images(real / "data" / "flowers")))
        images = split_images(images.groupby("label").head(options.images // 5).reset_index(drop=True))
        pixels = load_pixels(images, image_size=(options.size, options.size))
        everything = np.concatenate([np.asarray(part) for part in pixels.values()])
        passes, comparisons = [], []
        for _ in range(options.rounds):
            started = perf_counter()
            for one in candidates:
                own = {"weights": one.weights, "preprocessing": one.preprocessing, "image_size": options.size}
                compute_activations(load_backbone(one.backbone, **own), everything)
            passes.append(perf_counter() - started)
            shutil.rmtree(helpers.ROOT / "runs" / ".activations", ignore_errors=True)
            started = perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                rank_networks(images, candidates, file=Path(folder) / "networks.jsonl", image_size=options.size)
            comparisons.append(perf_counter() - started)
            print(f"forward passes {passes[-1]:.1f} s, comparison {comparisons[-1]:.1f} s", flush=True)
        ratio = median(comparisons) / median(passes)
        print(
            f"{len(images)} images, {options.size} px, three networks: the comparison takes {ratio:.2f} times as long"
        )
    finally:
        shutil.rmtree(helpers.ROOT)


if __name__ == "__main__":
    main()
