"""Files of 16 bits share one scale for the whole set; what cannot be read is refused with the reason."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from helpers.data import check_images, find_images, find_white, load_images, load_pixels, save_images, split_images
from helpers.data.checks import explain
from helpers.data.reading import choose_white, find_brightest, open_image, read_deep, read_image
from helpers.evaluation import shifted_table
from helpers.predict import predict_folder
from helpers.training import attach_head, compute_activations, fit_head, load_settings, save_model
from tests.networks import stage_network


def scene(seed: int, side: int = 48) -> np.ndarray:
    """Returns a grey image with large and small structures, float (side, side) from 0 to 1."""
    rng, total = np.random.default_rng(seed), np.zeros((side, side))
    for cells in (3, 6, 12, 24):
        total += np.kron(rng.random((cells, cells)), np.ones((side // cells, side // cells))) / cells
    return (total - total.min()) / np.ptp(total)


def write_scenes(folder: Path, *, largest: float | dict[int, float], count: int = 24, side: int = 48) -> Path:
    """Writes scenes of 16 bits in two classes; their values reach `largest`: one number, or by scene (0: others)."""
    for number in range(count):
        most = largest.get(number, largest[0]) if isinstance(largest, dict) else largest
        grey(scene(number, side) * most, folder / "ab"[number % 2] / f"{number:02d}.png")
    return folder


def grey(values: np.ndarray, path: Path, dtype: str = "uint16") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.round().astype(dtype)).save(path)


def png(values: np.ndarray) -> bytes:
    """Returns a PNG of 16 bits with 1 to 4 channels: Pillow writes one channel only."""
    height, width, channels = values.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def directory(entries: dict[int, tuple[str, list[int]]], at: int, *, order: str = "<", following: int = 0) -> bytes:
    """Returns a TIFF directory that lies at a position in the file: numbers of type H or I, or bytes (B), by tag."""
    fixed, behind = b"", b""
    for tag, (kind, numbers) in sorted(entries.items()):
        content = struct.pack(f"{order}{len(numbers)}{kind}", *map(int, numbers))
        fixed += struct.pack(f"{order}HHI", tag, {"B": 1, "H": 3, "I": 4}[kind], len(numbers))
        if len(content) <= 4:
            fixed += content.ljust(4, b"\0")
        else:
            fixed += struct.pack(f"{order}I", at + 2 + 12 * len(entries) + 4 + len(behind))
            behind += content
    return struct.pack(f"{order}H", len(entries)) + fixed + struct.pack(f"{order}I", following) + behind


def page(side: int, at: int, *, photometric: int = 2, channels: int = 3, **more) -> dict[int, tuple[str, list[int]]]:
    """Returns the entries of an uncompressed page of 8 bits whose pixels lie at a position."""
    size = ("I", [side * side * channels])
    entries = {256: ("H", [side]), 257: ("H", [side]), 258: ("H", [8] * channels), 259: ("H", [1]), 279: size}
    entries |= {262: ("H", [photometric]), 273: ("I", [at]), 277: ("H", [channels]), 278: ("H", [side])}
    return entries | {int(tag[1:]): value for tag, value in more.items()}


def tiff(
    values: np.ndarray, *, photometric: int = 2, apart: bool = False, order: str = "<", packed: bool = False, extra=()
) -> bytes:
    """Returns a TIFF of 8 or 16 bits."""
    height, width, channels = values.shape
    planes = [values[..., n] for n in range(channels)] if apart else [values]
    data = [plane.astype(values.dtype.newbyteorder(order)).tobytes() for plane in planes]
    data = [zlib.compress(content) for content in data] if packed else data
    sizes = [len(content) for content in data]
    entries = page(1, 8, photometric=photometric, channels=channels) | {
        256: ("H", [width]), 257: ("H", [height]), 258: ("H", [8 * values.itemsize] * channels), 278: ("H", [height]),
        259: ("H", [8 if packed else 1]), 273: ("I", 8 + np.cumsum([0, *sizes[:-1]])), 279: ("I", sizes),
        284: ("H", [1 + apart]),
    }  # fmt: skip
    entries |= {338: ("H", list(extra))} if extra else {}
    start = 8 + sum(sizes)
    header = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, start)
    return header + b"".join(data) + directory(entries, start, order=order)


def checked(folder: Path, **options):
    images, problems = check_images(find_images(folder), **options)
    return images, problems.set_index("problem")


# ---- one scale


@pytest.mark.parametrize("bits", [9, 12, 16])
def test_images_of_any_depth_are_the_images_of_eight_bits(root, bits):
    for number in range(24):
        eight, name = (255 * scene(number)).round(), f"{'ab'[number % 2]}/{number}.png"
        grey(eight * (2**bits - 1) / 255, root / "deep" / name)
        grey(eight, root / "plain" / name, "uint8")
    pixels = {}
    for folder in ("deep", "plain"):
        images, problems = checked(root / folder)
        assert len(images) == 24 and set(problems.index) <= {"bit depth"}
        assert ("white" in images) == (folder == "deep")
        save_images(split_images(images), root / f"{folder}.csv")
        images = load_images(root / f"{folder}.csv")
        pixels[folder] = load_pixels(images, image_size=(48, 48))["train"]
    assert pixels["deep"].white == 2**bits - 1
    np.testing.assert_array_equal(pixels["deep"][:], pixels["plain"][:])
    other = load_pixels(load_images(root / "deep.csv").assign(white=2**16 - 1), image_size=(48, 48))["train"]
    assert other.white == 2**16 - 1 and abs(other[:] * 2.0 ** (16 - bits) - pixels["deep"][:]).max() <= 2 ** (
        16 - bits
    )


@pytest.mark.parametrize("largest", [300, 1100, 9000, 40000])
def test_dim_images_are_neither_blank_nor_dark_and_copies_in_another_format_are_found(tmp_path, largest):
    write_scenes(tmp_path, largest=largest, side=96)
    grey(scene(0, 96) * largest, tmp_path / "a" / "copy.tif")
    images, problems = checked(tmp_path)
    assert len(images) == 25 and list(problems.index) == ["duplicate", "bit depth"]
    assert str(find_white(images)) in problems.at["bit depth", "reason"]
    assert all(np.asarray(read_image(path, white=find_white(images))).max() > 190 for path in images["path"])


def test_defects_and_one_odd_file_leave_the_scale_as_it_is_and_a_few_bright_ones_are_told(tmp_path):
    for number in range(24):
        values = scene(number) * 4095
        values[5, number], values[:, 30] = 65535, 65535  # a hot pixel and a hot column, in every file
        grey(values if number else scene(0) * 65535, tmp_path / "ab"[number % 2] / f"{number:02d}.png")
    images, problems = checked(tmp_path)
    assert find_white(images) == 4095 and len(images) == 24
    assert Path(problems.at["too bright", "path"]).name == "00.png"
    assert choose_white([900, 60000]) == 65535  # of two files, neither is odd
    assert choose_white([200]) == choose_white([90]) == 255 and find_brightest(np.array([[7, 9]])) == 9
    _, problems = checked(write_scenes(tmp_path / "dark", largest={0: 900, 3: 15000, 4: 16383, 17: 15000}))
    assert problems.at["too dark", "severity"] == "warning" and "a/04.png" in problems.at["too dark", "reason"]


def test_files_of_eight_bits_stay_as_they_are_and_depth_that_is_the_class_is_told(root):
    for number in range(30):
        eight, label = (255 * scene(number)).round(), "ab"[number % 2]
        path = root / label / f"{number}.png"
        grey(eight * 4095 / 255, path) if label == "b" else grey(eight, path, "uint8")
    images, problems = checked(root)
    assert "16 bits" in problems.at["bit depth", "reason"] and problems.at["shortcut", "action"] == "kept"
    assert problems.at["shortcut", "reason"].endswith("by its bit depth alone")
    pixels = load_pixels(images.assign(split="train"), image_size=(48, 48))["train"]
    for path, image in zip(images["path"], pixels, strict=True):
        np.testing.assert_array_equal(image[..., 0], (255 * scene(int(Path(path).stem))).round())
    by_two_bits = {number: 16383 if number % 2 else 65535 for number in range(40)}
    _, problems = checked(write_scenes(root / "deep", largest=by_two_bits, count=40))
    assert "bit depth" in problems.at["shortcut", "reason"]


def test_a_classifier_predicts_with_the_scale_that_it_learned_from(root):
    for number in range(40):
        values = scene(number) * 0.3 + (0.6 if number % 2 else 0)
        grey(values * 4095, root / "cells" / "ab"[number % 2] / f"{number:02d}.png")
    images, _ = checked(root / "cells")
    pixels = load_pixels(images.assign(split="train"), image_size=(8, 8))["train"]
    labels = (images["label"] == "b").to_numpy("int64")
    network = stage_network()
    model = attach_head(network, fit_head(compute_activations(network, pixels), labels), class_names=["a", "b"])
    save_model(model, "x.keras", class_names=["a", "b"], resize="crop", pixels=pixels, labels=labels)
    settings = load_settings("x.keras")
    assert settings["white"] == 4095
    dim = write_scenes(root / "dim", largest=0.2 * 4095, count=12)  # as a set of their own, these would be brighter
    table = predict_folder("x.keras", dim, output="predictions.csv")
    told = load_pixels(checked(dim, white=4095)[0].assign(split="test"), image_size=(8, 8))["test"]
    expected = compute_activations(model, told).max(axis=1)
    np.testing.assert_allclose(table["probability"], expected, atol=1e-5)
    correct = shifted_table({"x": model}, dim, **settings)["correct"][0]
    np.testing.assert_array_equal(correct, table["label"] == [Path(path).parent.name for path in table["path"]])


# ---- colours


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("apart", [False, True])
def test_both_bytes_of_colours_are_read(order, apart):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 4)).astype("uint16")
    for channels, options in ((3, {}), (4, {"extra": (2,)}), (4, {"extra": (0,)}), (3, {"photometric": 1})):
        for packed in (False, True):
            content = tiff(values[..., :channels], apart=apart, order=order, packed=packed, **options)
            if apart and (packed or options.get("photometric")):
                with pytest.raises(ValueError, match="bands"):
                    open_image(io.BytesIO(content))
                continue
            with open_image(io.BytesIO(content)) as image:
                deep = read_deep(image)
            np.testing.assert_array_equal(deep, values[..., : deep.shape[2]])


def test_colours_of_png_are_scaled_and_their_transparency_is_white():
    values = np.random.default_rng(1).integers(0, 4096, (6, 5, 3)).astype("uint16")
    expected = (values * 255.0 / 4095).round()
    for opaque in (4095, 65535):
        alpha = np.full((6, 5, 1), opaque, "uint16")
        alpha[:3] = 0
        for content, rows in ((png(values), 0), (png(np.dstack([values, alpha])), 3)):
            image = np.asarray(read_image(io.BytesIO(content), white=4095))
            np.testing.assert_array_equal(image[rows:], expected[rows:])
            assert (image[:rows] == 255).all()
    image = np.asarray(read_image(io.BytesIO(png(np.dstack([values[..., :1], alpha]))), white=4095))
    np.testing.assert_array_equal(image[3:, :, 2], expected[3:, :, 0])
    plain = (values // 16).astype("uint8")
    np.testing.assert_array_equal(read_image(io.BytesIO(tiff(plain, photometric=1, extra=(0, 0)))), plain)


# ---- what sets a class apart


def save_photos(folder: Path, sizes: dict[str, list[tuple[int, int]]], suffixes: dict[str, str]) -> None:
    for label, some in sizes.items():
        (folder / label).mkdir(parents=True)
        for number, size in enumerate(some):
            image = Image.fromarray((255 * scene(number + 100 * (label == "b"))).astype("uint8")).resize(tuple(size))
            image.save(folder / label / f"{number}.{suffixes.get(label, 'png')}")


def test_format_size_or_shape_that_goes_with_the_class_is_told(tmp_path):
    same, rng = [(64, 64)] * 16, np.random.default_rng(0)
    small, large = ([(side, side) for side in rng.integers(*limits, 16)] for limits in ((40, 60), (80, 120)))
    ordinary = {label: rng.integers(40, 120, (16, 2)).tolist() for label in "ab"}
    for name, sizes, suffixes in (
        ("file format", {"a": same, "b": same}, {"b": "jpg"}),
        ("size", {"a": small, "b": large}, {}),
        ("shape", {"a": [(80, 60)] * 16, "b": [(60, 80)] * 16}, {}),
        ("ordinary", ordinary, {}),
        ("few", {"a": same[:5], "b": same[:5]}, {"b": "jpg"}),
    ):
        save_photos(tmp_path / name, sizes, suffixes)
        _, problems = checked(tmp_path / name)
        assert ("shortcut" in problems.index) == (name not in ("ordinary", "few"))
        assert "shortcut" not in problems.index or f"by its {name}" in problems.at["shortcut", "reason"]


# ---- what is refused, and what is not


def raw_file(kind: str) -> bytes:
    """Returns a small preview with what makes a file a raw one behind it."""
    pixels = bytes(range(256)) * 12  # a preview of 32 x 32 pixels
    start = 8 + len(pixels)
    inner = page(64, 8, photometric=2 if kind == "larger" else 32803, channels=1)
    inner |= {258: ("H", [16]), 254: ("I", [0])}
    first = page(32, 8, t254=("I", [0 if kind in ("second page", "DNG") else 1]))
    if kind == "DNG":
        return b"II*\0" + struct.pack("<I", start) + pixels + directory(first | {50706: ("B", [1, 4, 0, 0])}, start)
    if kind == "only the sensor":
        return b"II*\0" + struct.pack("<I", start) + pixels + directory(inner, start)
    inner_at = start
    content = directory(inner, inner_at)
    start += len(content)
    first |= {} if kind == "second page" else {330: ("I", [inner_at])}
    content += directory(first, start, following=inner_at if kind == "second page" else 0)
    return b"II*\0" + struct.pack("<I", start) + pixels + content


def test_camera_raw_files_are_left_out_with_the_reason(tmp_path):
    kinds = ["sub-directory", "larger", "second page", "DNG", "only the sensor"]
    save_photos(tmp_path, {"a": [(64, 64)] * 12, "b": [(64, 64)] * 12}, {})
    for kind in kinds:
        (tmp_path / "a" / f"{kind}.tif").write_bytes(raw_file(kind))
        with pytest.raises(ValueError, match="raw file"):
            read_image(tmp_path / "a" / f"{kind}.tif")
    canon = bytearray(tiff(np.zeros((8, 8, 3), "uint8")))
    canon[8:10] = b"CR"
    (tmp_path / "a" / "x.cr2").write_bytes(canon)
    (tmp_path / "a" / "x.raf").write_bytes(b"FUJIFILMCCD-RAW 0201" + bytes(99))
    images, problems = checked(tmp_path)
    assert len(images) == 24 and list(problems.index) == ["not an image"] + ["unsupported"] * 6
    assert problems["reason"].str.contains("raw file.*export it").all()


def test_pages_thumbnails_pyramids_and_tiles_are_read():
    photo = Image.fromarray((255 * scene(0)).astype("uint8")).convert("RGB")
    small = photo.resize((16, 16))
    several = io.BytesIO()
    photo.save(several, "tiff", save_all=True, append_images=[small, photo.resize((96, 96))])
    pixels = np.asarray(photo).tobytes()
    inner_at = 8 + len(pixels)  # a pyramid: a smaller copy in a directory of its own, as thumbnails are kept, too
    inner = directory(page(16, 8, t254=("I", [1])), inner_at)
    first_at = inner_at + len(inner)
    pyramid = b"II*\0" + struct.pack("<I", first_at) + pixels + inner
    pyramid += directory(page(48, 8, t254=("I", [0]), t330=("I", [inner_at])), first_at)
    for content in (several.getvalue(), pyramid):
        np.testing.assert_array_equal(read_image(io.BytesIO(content)), photo)


def test_png_with_long_text_is_read_and_with_endless_text_is_not():
    photo = Image.fromarray((255 * scene(0)).astype("uint8"))
    for international in (False, True):
        buffer, about = io.BytesIO(), PngImagePlugin.PngInfo()
        (about.add_itxt if international else about.add_text)("workflow", "node " * 500_000, zip=True)
        photo.save(buffer, "png", pnginfo=about)
        np.testing.assert_array_equal(read_image(buffer), photo.convert("RGB"))
    buffer, about = io.BytesIO(), PngImagePlugin.PngInfo()
    about.add_text("bomb", "0" * (65 * 2**20), zip=True)
    photo.save(buffer, "png", pnginfo=about)
    with pytest.raises(ValueError) as caught:
        read_image(buffer)
    assert explain(caught.value, "x.png", buffer.getvalue())[0] == "damaged"


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
@pytest.mark.parametrize("apart", [False, True])
def test_multispectral_images_are_named(kind, apart):
    values = np.zeros((16, 16, 6), kind)
    for bands, options in ((4, {"photometric": 1, "extra": (0, 0, 0)}), (6, {"photometric": 1, "extra": (0,) * 5})):
        content = tiff(values[..., :bands], apart=apart, **options)
        with pytest.raises(ValueError, match=f"multispectral image of {bands} bands") as caught:
            read_image(io.BytesIO(content))
        assert explain(caught.value, "x.tif", content)[0] == "unsupported"


def test_white_is_zero_in_some_tiffs_of_16_bits(tmp_path):
    picture = np.tile(np.linspace(0, 4095, 64).astype("uint16"), (64, 1))
    for kind in (0, 1):
        Image.fromarray(picture).save(tmp_path / f"{kind}.tif", tiffinfo={262: kind})
    dark, light = (np.asarray(read_image(tmp_path / f"{kind}.tif", white=4095)) for kind in (1, 0))
    assert dark[0, 0, 0] == 0 and dark[0, -1, 0] == 255
    np.testing.assert_array_equal(light, 255 - dark)
