"""Do exports agree with Keras? The largest difference in a probability, size and speed, by network and kind.

    REAL_DATA_DIR=... python tests/benchmarks/exports.py [--random 96] [--only MobileNetV2 letters ...]

Each network gets a solved head, is saved, exported, loaded again by each runtime, and compared on 200 images that
chose nothing: MobileNetV2 with ImageNet's weights at 224 pixels on ants and bees and on flowers, the embedded network
on handwritten digits, and one network of each other family, with random weights, on flowers. A kind that cannot
express a network is a row, too, with the reason.

REAL_DATA_DIR names a folder with the photos and the weights; without it only the digits are compared.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

import helpers
from helpers import data
from helpers.backbones import keras, load_backbone
from helpers.export import KINDS, compare_exports, export_model
from helpers.training import attach_head, compute_activations, fit_head, save_model, set_seed

LETTERS = str(helpers.ROOT / "data" / "letters.keras")
FAMILIES = (
    "ResNet50 ResNet50V2 VGG16 InceptionV3 InceptionResNetV2 Xception DenseNet121 NASNetMobile MobileNet "
    "MobileNetV3Small EfficientNetB0 EfficientNetV2B0 ConvNeXtTiny"
).split()
"""One network for each family of keras.applications; MobileNetV2 has its weights."""


def load_vision_transformer(side: int) -> keras.Model:
    """Returns KerasHub's Vision Transformer of the size Ti/16, with random weights."""
    import keras_hub

    sizes = {"patch_size": 16, "num_layers": 12, "num_heads": 3, "hidden_dim": 192, "mlp_dim": 768}
    vit = keras_hub.models.ViTBackbone(image_shape=(side, side, 3), use_class_token=True, **sizes)
    with tempfile.TemporaryDirectory() as folder:
        vit.save_to_preset(folder)
        return load_backbone(f"hub:{folder}", preprocessing="tf")


def solved_classifier(network: keras.Model, source: str, file: Path):
    """Returns the test images, at most 200, after saving the network with a head solved on the others."""
    found = data.find_images(data.open_data(source))
    images = data.split_images(data.exclude_problems(*data.check_images(found)), test_fraction=0.5)
    pixels = data.load_pixels(images, image_size=network.input_shape[1:3])
    labels, names = data.encode_labels(images)
    head = fit_head(compute_activations(network, pixels["train"]), labels["train"])
    save_model(attach_head(network, head, class_names=names), file, class_names=names, resize="crop")
    return pixels["test"][:200]


def networks(real: str | None, side: int) -> Iterator[tuple[str, str, Callable]]:
    """Yields a name, a folder of images and what returns the network."""
    yield "letters", "digits", lambda: load_backbone(LETTERS)
    if real:
        photos, weights = Path(real).resolve() / "data", Path(real).resolve() / "weights"
        file = str(weights / "mobilenet_v2_1.0_224_notop.weights.h5")
        for folder in ("hymenoptera", "flowers"):
            yield "MobileNetV2", str(photos / folder), lambda: load_backbone("MobileNetV2", weights=file)
        for name in FAMILIES:
            yield name, str(photos / "flowers"), lambda name=name: load_backbone(name, weights=None, image_size=side)
        yield "ViT-Ti/16 (KerasHub)", str(photos / "flowers"), lambda: load_vision_transformer(224)


def compare(name: str, source: str, make: Callable) -> None:
    """Prints a line for Keras and each kind."""
    keras.backend.clear_session()
    set_seed(0)
    with tempfile.TemporaryDirectory() as empty:
        file = Path(empty) / "chosen.keras"
        images = solved_classifier(make(), source, file)
        exports, reasons = {}, {}
        for kind in KINDS:
            try:
                exports |= export_model(file, empty, kinds=[kind])
            except ValueError as error:
                reasons[kind] = str(error)
        table = compare_exports(file, exports, images)
    title = f"{name}, {Path(source).name}, {images.shape[1]} px"
    for row in table.itertuples():
        figures = f"{row.largest_difference:>12.1e}{row.same_class:>9.3f}{row.images:>8}{row.megabytes:>8.1f}"
        tqdm.write(f"{title:<42}{row.kind:<12}{figures}{1000 * row.seconds_per_image:>10.2f}")
    for kind, reason in reasons.items():
        tqdm.write(f"{title:<42}{kind:<12}{reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", type=int, default=96, help="pixels of the networks with random weights")
    parser.add_argument("--only", nargs="*", help="names of networks, all unless given")
    options = parser.parse_args()
    real = os.environ.get("REAL_DATA_DIR")
    if not real:
        print("REAL_DATA_DIR names no folder with photos and weights: only the embedded network is compared.")
    print(f"{'network':<42}{'kind':<12}{'difference':>12}{'class':>9}{'images':>8}{'MB':>8}{'ms/image':>10}")
    wanted = [row for row in networks(real, options.random) if not options.only or row[0] in options.only]
    for row in tqdm(wanted, leave=False):
        with tempfile.TemporaryDirectory() as store:
            helpers.ROOT = Path(store)
            compare(*row)


if __name__ == "__main__":
    main()
