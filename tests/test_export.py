"""Every export is the classifier: the same probabilities by its own runtime, whole or not at all, or it says why."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow
from networks import call, coloured_images, random_images, residual_network, stage_network

from helpers.backbones import keras, load_backbone
from helpers.data import check_images, find_images, load_pixels, split_images
from helpers.export import FORMATS, KINDS, compare_exports, export_model, load_export, main
from helpers.training import attach_head, compute_activations, fit_head, load_classifier, save_model

ROOT = Path(__file__).resolve().parent.parent
NAMES = ["ants", "bées, or 🐝", 'quo"ted\nname']


def solved_classifier(file: Path, network=None) -> Path:
    """Saves the network with a solved head for three colours, and returns the file."""
    images, labels = coloured_images(30)
    network = network or stage_network()
    head = fit_head(compute_activations(network, images), labels, cs=(0.1,))
    save_model(attach_head(network, head, class_names=NAMES), file, class_names=NAMES, resize="pad")
    return file


def residual() -> keras.Model:
    keras.utils.set_random_seed(3)
    network = residual_network(dtype="uint8")
    return keras.Model(network.inputs, keras.layers.GlobalAveragePooling2D()(network.outputs[0]))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    return solved_classifier(tmp_path_factory.mktemp("run") / "chosen.keras")


@pytest.fixture(scope="module")
def exports(classifier) -> dict[str, Path]:
    return export_model(classifier, classifier.parent / "exports")


# ---- the same


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_for_any_number_of_images(classifier, exports, kind):
    predict, settings = load_export(exports[kind])
    assert settings == {"class_names": NAMES, "resize": "pad", "white": 65535}
    model, images = load_classifier(classifier)[0], coloured_images(33)[0]
    expected = call(model, images)
    assert np.ptp(expected[:, 0]) > 0.1, "images that it does not tell apart would agree by themselves"
    for count in (1, 32, 2, 33):
        probabilities = predict(images[:count])
        assert probabilities.dtype == "float32" and probabilities.shape == (count, 3)
        np.testing.assert_allclose(probabilities, expected[:count], atol=1e-6)


def test_tensorflow_serving_finds_a_signature_with_names(exports):
    """The names in the other kinds are those in the README's snippets."""
    served = tensorflow.saved_model.load(str(exports["savedmodel"])).signatures["serving_default"]
    (spec,) = served.structured_input_signature[1].values()
    assert (spec.name, spec.dtype, spec.shape.as_list()) == ("images", "uint8", [None, 8, 8, 3])
    assert list(served.structured_outputs) == ["probabilities"]


@keras.saving.register_keras_serializable("tests")
class Holding(keras.layers.Layer):
    """Adds a constant that it holds as a tensor, as KerasHub's Vision Transformers do."""

    def build(self, shape):
        self.constant = keras.ops.arange(shape[-1], dtype="float32")

    def call(self, inputs):
        return inputs + keras.ops.cos(self.constant)


def varied_network() -> keras.Model:
    """What other families are made of: random layers, normalisations, activations, convolutions, attention."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    x = images = keras.Input((8, 8, 3), dtype="uint8", name="images")
    for random in (layers.RandomFlip(), layers.RandomRotation(0.1), layers.RandomContrast(0.2)):
        x = random(x)
    for random in (layers.RandomBrightness(0.2), layers.GaussianNoise(1.0), layers.SpatialDropout2D(0.5)):
        x = random(x)
    x = layers.Rescaling([1 / 58, 1 / 57, 1 / 57], [-2.1, -2.0, -1.8])(keras.ops.flip(x, axis=-1))
    x = layers.Conv2D(8, 3, strides=2, activation="gelu")(layers.ZeroPadding2D(1)(x))
    x = layers.SeparableConv2D(8, 3, padding="same", activation="hard_swish")(layers.LayerNormalization()(x))
    x = layers.Activation("silu")(layers.DepthwiseConv2D(3, padding="same")(layers.GroupNormalization(2)(x)))
    squeezed = layers.GlobalAveragePooling2D(keepdims=True)(x)
    x = layers.Multiply()([x, layers.Conv2D(8, 1, activation="sigmoid")(squeezed)])
    x = layers.Concatenate()([layers.UpSampling2D(2)(layers.MaxPooling2D(2)(x)), layers.PReLU()(x)])
    x = Holding(name="positions")(layers.Reshape((16, 16))(x))
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4)(x, x)])
    x = layers.Dropout(0.5)(layers.UnitNormalization()(x))
    return keras.Model(images, layers.GlobalAveragePooling1D()(x))


def test_layers_of_other_families_agree_and_what_is_random_in_training_does_nothing(tmp_path):
    file = solved_classifier(tmp_path / "x.keras", varied_network())
    table = compare_exports(file, export_model(file, tmp_path), coloured_images(40)[0])
    assert list(table["kind"]) == ["keras", *KINDS]
    assert (table["largest_difference"] < 1e-5).all() and (table["same_class"] == 1).all()


def test_a_layer_in_half_precision_is_named(tmp_path):
    images = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Conv2D(8, 3, name="convolution", dtype="mixed_float16")(keras.layers.Rescaling(1 / 255)(images))
    network = keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))
    file = solved_classifier(tmp_path / "x.keras", network)
    with pytest.raises(ValueError, match=r"x\.tflite was not written.*convolution.*mixed_float16"):
        export_model(file, tmp_path, kinds="litert")


# ---- comparing


def test_the_table_tells_how_far_an_export_is_from_keras(classifier, exports, tmp_path):
    other = solved_classifier(tmp_path / "other.keras", residual())
    strange = export_model(other, tmp_path, kinds=["onnx"])["onnx"]
    images = coloured_images(40, seed=1)[0]
    table = compare_exports(classifier, [exports["litert"], strange], images).set_index("file")
    differences = np.abs(call(load_classifier(classifier)[0], images) - call(load_classifier(other)[0], images))
    assert list(table["kind"]) == ["keras", "litert", "onnx"]
    assert table.loc["chosen.keras", "largest_difference"] == 0
    assert table.loc["chosen.tflite", "largest_difference"] < 1e-6
    assert table.loc["other.onnx", "largest_difference"] == pytest.approx(differences.max(), rel=1e-3)
    assert table.loc["chosen.tflite", "same_class"] == 1 > table.loc["other.onnx", "same_class"]
    assert table.loc["other.onnx", "megabytes"] == pytest.approx(strange.stat().st_size / 1e6)
    assert (table["images"] == 40).all() and (table["seconds_per_image"] > 0).all()


# ---- whole or not at all


def test_a_second_export_takes_the_place_of_the_first(exports, tmp_path):
    folder, other = tmp_path / "out", solved_classifier(tmp_path / "chosen.keras", residual())
    shutil.copytree(exports["onnx"].parent, folder)
    written, images = export_model(other, folder), random_images(4)
    expected = call(load_classifier(other)[0], images)
    assert np.abs(load_export(exports["onnx"])[0](images) - expected).max() > 0.01
    for path in written.values():
        np.testing.assert_allclose(load_export(path)[0](images), expected, atol=1e-5)
    assert sorted(folder.iterdir()) == sorted(written.values()) and len(written) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_export_keeps_the_older_one(classifier, exports, monkeypatch, kind):
    folder = exports["onnx"].parent
    before = contents(folder)

    def interrupted(self, file, **options):
        file = file / "variables" if kind == "savedmodel" else file
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, "export", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_model(classifier, folder, kinds=[kind])
    assert contents(folder) == before and sorted(folder.iterdir()) == sorted(exports.values())


def test_an_export_that_gives_something_else_does_not_get_its_name(classifier, tmp_path, monkeypatch):
    export = keras.Model.export

    def changed(self, *args, **kwargs):
        head = self.layers[-1].get_layer("head")
        weights = head.get_weights()
        head.set_weights([kernel * 1.01 for kernel in weights])
        export(self, *args, **kwargs)
        head.set_weights(weights)

    monkeypatch.setattr(keras.Model, "export", changed)
    with pytest.raises(ValueError, match="other probabilities") as refused:
        export_model(classifier, tmp_path)
    names = [line.split()[0] for line in str(refused.value).splitlines()]
    assert names == [f"chosen{format.suffix}" for format in FORMATS.values()] and list(tmp_path.iterdir()) == []


# ---- what cannot be done


@pytest.mark.parametrize("kinds", [["onnx", "onxx"], "savedmodel, onxx"])
def test_unknown_kinds(classifier, tmp_path, kinds):
    with pytest.raises(ValueError, match="savedmodel, onnx, litert.*'onxx'"):
        export_model(classifier, tmp_path / "new", kinds=kinds)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kinds", ["", " ,", None, "None", []])
def test_no_kind(classifier, tmp_path, kinds):
    assert export_model(classifier, tmp_path / "new", kinds=kinds) == {} and not (tmp_path / "new").exists()


@pytest.mark.parametrize(("kind", "package"), [("onnx", "onnxruntime"), ("litert", "ai_edge_litert")])
def test_what_is_not_installed_is_named_with_the_command(classifier, exports, tmp_path, monkeypatch, kind, package):
    for name in [name for name in sys.modules if name.partition(".")[0] == package] or [package]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf'needs the package {package}, .*pip install .*-e "\.\[export\]"'):
        export_model(classifier, tmp_path, kinds=["savedmodel", kind])
    assert [path.suffix for path in tmp_path.iterdir()] == [".savedmodel"], "the others are written"
    with pytest.raises(ImportError, match=package):
        load_export(exports[kind])


def test_the_extra_has_what_the_formats_need():
    import tomllib
    from importlib.metadata import packages_distributions

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    needed = {package.partition(".")[0] for format in FORMATS.values() for package in format.packages}
    distributions = packages_distributions()
    assert {distributions[package][0] for package in needed} == set(project["export"]) <= set(project["test"])


def test_a_layer_that_a_format_cannot_express_is_named(tmp_path):
    layers, file = keras.layers, tmp_path / "x.keras"
    images = keras.Input((8, 8, 3), dtype="uint8", name="images")
    x = layers.Resizing(4, 4, interpolation="lanczos3", name="smaller")(layers.Rescaling(1 / 255)(images))
    x = layers.Dense(3, activation="softmax", name="probabilities")(layers.Flatten()(x))
    save_model(keras.Model(images, x), file, class_names=NAMES, resize="crop")
    with pytest.raises(ValueError, match=r"x\.onnx .*smaller \(Resizing(.*\n)+x\.tflite .*smaller \(Resizing"):
        export_model(file, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x.savedmodel"], "a failure does not lose it"


def test_files_that_are_no_whole_classifiers(classifier, tmp_path):
    (tmp_path / "half.keras").write_bytes(classifier.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="half.keras"):
        export_model(tmp_path / "half.keras", tmp_path / "out")
    stage_network().save(tmp_path / "bare.keras")
    with pytest.raises(ValueError, match="bare.keras holds no class names"):
        export_model(tmp_path / "bare.keras", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_export_is_named(exports, tmp_path, kind):
    path = tmp_path / exports[kind].name
    if kind == "savedmodel":
        path.mkdir()
    else:
        path.write_bytes(exports[kind].read_bytes()[:500])
    with pytest.raises(ValueError, match=f"cannot load .*{path.name}"):
        load_export(path)


# ---- the command line, and the README


def test_the_command_line(classifier, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.keras").write_bytes(classifier.read_bytes())
    assert main(["mine.keras", "-o", "out", "--kinds", "savedmodel, onnx"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["out/mine.savedmodel", "out/mine.onnx"]
    assert re.fullmatch(r"\d+\.\d MB", lines[1].split("  ")[1])
    for arguments, word in (
        (["none.keras", "-o", "out"], "none.keras"),
        (["mine.keras", "-o", "out", "--kinds", "x"], "'x'"),
        (["mine.keras", "-o", "mine.keras"], "mine.keras"),
    ):
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and word in printed.err and "Traceback" not in printed.err


def test_the_readmes_snippets_run_and_give_the_same(classifier, exports, tmp_path):
    """Each in a fresh process, in the exports' folder, without this package."""
    readme = (ROOT / "helpers" / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## Exports") :].split("\n## ")[0]
    ours, *others = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(others) == len(KINDS) and "helpers" in ours
    images = coloured_images(5)[0]
    np.save(tmp_path / "images.npy", images)
    expected = call(load_classifier(classifier)[0], images)
    for snippet in others:
        assert "helpers" not in snippet
        code = (
            f"import os, numpy, json\nimages = numpy.load({str(tmp_path / 'images.npy')!r})\n{snippet}\n"
            f"os.chdir({str(tmp_path)!r})\nnumpy.save('out.npy', probabilities)\n"
            "open('names.json', 'w').write(json.dumps(settings['class_names']))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=exports["onnx"].parent, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)
        assert json.loads((tmp_path / "names.json").read_text()) == NAMES


# ---- real ones


def test_200_real_photos(real_data, root):
    """MobileNetV2 at 96 pixels with a solved head, ants and bees."""
    checked, _ = check_images(find_images(real_data / "data" / "hymenoptera" / "train"))
    images = split_images(checked, test_fraction=0.85)
    pixels = load_pixels(images, image_size=(96, 96))
    weights = real_data / "weights" / "mobilenet_v2_1.0_224_notop.weights.h5"
    network = load_backbone("MobileNetV2", weights=str(weights), image_size=96)
    labels = (images.loc[images["split"] == "train", "label"] == "bees").to_numpy().astype(int)
    head, names = fit_head(compute_activations(network, pixels["train"]), labels), ["ants", "bees"]
    file = root / "ants.keras"
    save_model(attach_head(network, head, class_names=names), file, class_names=names, resize="crop")
    table = compare_exports(file, export_model(file, root / "exports"), pixels["test"][:200])
    assert list(table["kind"]) == ["keras", *KINDS] and (table["images"] == 200).all()
    assert (table["largest_difference"] < 1e-4).all() and (table["same_class"] == 1).all()
