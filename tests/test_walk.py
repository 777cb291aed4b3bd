"""The walk from 01 to 06, as papermill executes it: other data, every parameter, and what goes wrong."""

import json
import re
import shutil

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import yaml
from PIL import Image
from refresh import ROOT, copy_tree

from helpers.parameters import declared_parameters

NOTEBOOKS = ("01_load_data", "02_transfer_learning", "03_fine_tuning", "04_freeze_or_fine_tune", "05_use_the_model")
NOTEBOOKS += ("06_how_many_labels",)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return copy_tree(tmp_path_factory.mktemp("walk") / "repository")


@pytest.fixture(scope="module")
def backbone(tree):
    """A network of one's own that is not ours: scaled input, Sequential, no BatchNormalization, a classifier."""
    from helpers._keras import keras

    keras.utils.set_random_seed(0)
    convolutions = [keras.layers.Conv2D(8, 3, activation="relu", name=f"block{n}_conv") for n in (1, 2, 3)]
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled")
    classifier = keras.layers.Dense(7, activation="softmax", name="predictions")
    keras.Sequential([keras.Input((None, None, 3)), *convolutions, pooled, classifier]).save(tree / "own.keras")
    return "own.keras"


def walk(tree, names, parameters: dict, *, cwd=None, all_others: bool = False) -> None:
    """Executes notebooks as `papermill notebooks/NAME.ipynb out.ipynb -p ...` does, mostly in the root.

    With `all_others`, each of their parameters has to have another value than usual.
    """
    for name in names:
        template = tree / "notebooks" / f"{name}.ipynb"
        declared = declared_parameters(nbformat.read(template, as_version=4))
        given = {key: value for key, value in parameters.items() if key in declared}
        assert not all_others or all(given[key] != parameter.default for key, parameter in declared.items())
        options = {"cwd": cwd or tree, "progress_bar": False, "kernel_name": "python3"}
        papermill.execute_notebook(template, tree / f"executed_{name}.ipynb", parameters=given, **options)


def read_json(path):
    return json.loads(path.read_text())


@pytest.fixture(autouse=True)
def in_the_tree(tree, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tree))
    monkeypatch.setenv("TQDM_DISABLE", "1")


@pytest.fixture(scope="module")
def other_parameters(tree, backbone):
    values = {"run_dir": "runs/shapes", "data": "my shapes", "on_problem": "keep", "seed": 3}
    values |= {"validation_fraction": 0.3, "test_fraction": 0.4, "images_per_class": 12}
    values |= {"backbone": backbone, "weights": "None", "preprocessing": "unit", "features_from": "pooled"}
    values |= {"image_size": 20, "resize": "pad", "cut": "head", "unfreeze_from": "block3"}
    values["learning_rate"] = 0.0003  # low, so that it gets better than a start that is nearly perfect
    values |= {"min_lr_factor": 0.5, "augmentation": "flip", "steps": 12, "batch_size": 5, "class_weight": "balanced"}
    values |= {"budget": "standard", "margin": 2.5, "cluster": "1", "pairs": 3}
    values |= {"cam_stage": "block1", "cam_images": "35, 0", "corrupted_images": 12, "shifted": "my shapes"}
    return values | {"new_images": "my shapes/two", "exports": "savedmodel,onnx,litert"}


def test_every_parameter_at_another_value(tree, tmp_path, make_images, other_parameters):
    """And in a folder that is not the repository's, as in Colab: whatever is relative counts from the root."""
    for file in make_images(tree / "my shapes", {"one": 30, "two": 30, "three": 30}, size=24).rglob("*.png"):
        Image.open(file).crop((0, 0, 24, 16)).save(file)  # not square, so that the rule `resize` matters
    (tree / "my shapes" / "two" / "damaged.png").write_bytes(b"\x89PNG")
    walk(tree, NOTEBOOKS, other_parameters, cwd=tmp_path, all_others=True)
    assert list(tmp_path.iterdir()) == []
    run = tree / "runs" / "shapes"
    kept = yaml.safe_load((run / "parameters.yaml").read_text())
    assert kept == {key: value for key, value in other_parameters.items() if key != "run_dir"}
    images = pd.read_csv(run / "images.csv")
    assert images.groupby("split").size().to_dict() == {"train": 24, "validation": 12, "test": 36}
    assert "damaged.png" in json.dumps(nbformat.read(tree / "executed_01_load_data.ipynb", as_version=4))
    metrics = read_json(run / "metrics.json")
    assert set(metrics["arms"]) == {"majority class", "raw pixels", "frozen", "fine-tuned"}
    assert metrics["arms"]["fine-tuned"]["trainable_weights"] == 8 * 8 * 9 + 8 + 8 * 3 + 3
    assert metrics["arms"]["frozen"]["trainable_weights"] == 8 * 3 + 3
    assert metrics["arms"]["majority class"]["test_accuracy"] == pytest.approx(1 / 3)
    assert metrics["arms"]["frozen"]["test_accuracy"] > 0.9, "the classes differ in brightness"
    assert "36 held-out test images" in metrics["answer"]
    assert metrics["features"].startswith("8 features: the output of 'pooled'. What follows it is left out: pred")
    check_study(run, metrics)
    check_labels(run, metrics)
    predictions = pd.read_csv(run / "predictions.csv", dtype="string").fillna("")
    assert len(predictions) == 31 and predictions["label"].value_counts()["two"] > 25
    assert predictions.loc[predictions["problem"] != "", "path"].tolist() == ["my shapes/two/damaged.png"]
    assert pd.read_csv(run / "corruptions.csv")["images"].unique().tolist() == [12]
    names = ["one", "three", "two"]
    assert pd.read_csv(run / "classes.csv")["class"].tolist() == names
    mistakes, shift = (pd.read_csv(run / f"{name}.csv") for name in ("mistakes", "shift"))
    assert set(mistakes["label"]) | set(mistakes["predicted"]) <= set(names)
    assert shift["folder"].tolist() == ["my shapes"] and shift["images"].tolist() == [90]
    digits = re.compile(r"\d\.\d{9}")
    assert [table.name for table in run.glob("*.csv") if digits.search(table.read_text())] == []
    exports = {"chosen.savedmodel", "chosen.onnx", "chosen.tflite"}
    assert {path.name for path in run.glob("chosen.*")} == {"chosen.keras"} | exports
    assert (run / "study.jsonl").read_text().count('"result"') > 20


def check_labels(run, metrics: dict) -> None:
    """Makes sure that 06 took over what 04 was executed with, and trained nothing with all labels again."""
    verdict, table = read_json(run / "verdict.json"), pd.read_csv(run / "labels.csv")
    assert table["labels"].tolist() == [6, 12, 24, 48] * 2 and table["extrapolated"].sum() == 2
    assert verdict["labels"]["margin"] == 0.025 and verdict["labels"]["labels"] == [6, 12, 24]
    assert metrics["labels"].startswith(verdict["labels"]["headline"])
    assert read_json(run / "labels.json") == verdict["labels"] and verdict["labels"]["verdict"] == verdict["headline"]
    adopted = read_json(run / "notebooks.json")["06_how_many_labels"]["adopted"]
    assert adopted == {"min_lr_factor": 0.5, "augmentation": "flip", "batch_size": 5, "class_weight": "balanced"}
    trials = [json.loads(line).get("trial", {}) for line in (run / "study.jsonl").read_text().splitlines()]
    assert not list(run.glob("study-*.jsonl")), "06 went on in 04's file"
    seeds = [trial["seed"] for trial in trials if trial.get("phase") == "labels"]
    assert sorted(seeds) == [seed for seed in (1, 2, 3) for _ in range(2 * 2)], "two arms with two numbers of labels"


def check_study(run, metrics: dict) -> None:
    """Makes sure that 04 was executed with the other parameters."""
    verdict = read_json(run / "verdict.json")
    assert verdict["paragraph"] == metrics["answer"] and verdict["margin"] == 0.025
    assert set(verdict["arms"]) == set(metrics["study"]) >= {*metrics["arms"]} | {"from scratch"}
    pairs = pd.read_csv(run / "final.csv").groupby("arm").size()
    assert pairs["frozen"] == pairs["fine-tuned"] in (4, 6) and pairs["from scratch"] == 2
    race = pd.read_csv(run / "race.csv")
    assert set(race["steps"]) == {60, 200} and set(race["splits"]) == {1, 3}
    last = race[race["rung"] == 2]
    assert ((last["stage"] == "block3") & (last["learning_rate"] == 0.0003)).any(), "03's arm takes part to the end"
    assert pd.read_csv(run / "probe.csv")["cut"].tolist()[-1] == "head"


def test_05_loses_nothing_if_an_export_fails(tree, other_parameters):
    """And what it had made with other formats is kept, too."""
    run, tables = tree / "runs" / "again", {"classes.csv", "mistakes.csv", "corruptions.csv", "shift.csv"}
    shutil.copytree(tree / "runs" / "shapes", run)
    with pytest.raises(papermill.PapermillExecutionError, match="Did you mean onnx"):
        walk(tree, NOTEBOOKS[4:5], other_parameters | {"run_dir": "runs/again", "exports": "onxx"})
    earlier = {path.name for path in (run / "earlier" / "1").iterdir()}
    for names in ({path.name for path in run.iterdir()}, earlier):
        assert tables | {"predictions.csv", "figures"} <= names
    assert (run / "chosen.keras").exists() and "chosen.keras" not in earlier


@pytest.mark.parametrize(("name", "arm"), [("frozen", "frozen"), ("fine_tuned", "fine-tuned")])
def test_a_saved_model_and_its_settings_give_from_files_what_was_evaluated(tree, name, arm):
    from helpers._keras import keras
    from helpers.data import encode_labels, load_images, read_pixels
    from helpers.evaluation import evaluate
    from helpers.training import load_settings

    run = tree / "runs" / "shapes"
    settings = load_settings(run / f"{name}.keras")
    assert settings == {"class_names": ["one", "three", "two"], "resize": "pad", "white": 65535}
    assert settings == load_settings(run / "chosen.keras")
    model = keras.models.load_model(run / f"{name}.keras")
    images = load_images(run / "images.csv")
    labels, _ = encode_labels(images)
    paths = [tree / path for path in images.loc[images["split"] == "test", "path"]]

    def score(resize: str) -> dict[str, float]:
        pixels = np.stack([read_pixels(path, model.input_shape[1:3], resize=resize) for path in paths])
        return evaluate(model.predict(pixels, verbose=0), labels["test"])

    recorded = read_json(run / "metrics.json")["arms"][arm]
    given = score(settings["resize"])
    assert given == pytest.approx({key: recorded[key] for key in given}, rel=1e-4)
    assert score("crop")["log_loss"] != pytest.approx(recorded["log_loss"], rel=1e-2), "another rule, other answers"


def test_03_takes_size_and_rule_from_02_and_changes_only_what_was_unfrozen(tree):
    """And finds the images that 02 decoded, although the rows of a store say nothing about a split."""
    from helpers._keras import keras

    stores = sorted(path.name.split("-", 1)[1] for path in (tree / "runs" / ".pixels").glob("*.npy"))
    assert stores == 2 * ["20x20-pad.npy"]  # the other one has 05's shifted images
    files = [tree / "runs" / "shapes" / f"{name}.keras" for name in ("frozen", "fine_tuned", "chosen")]
    models = [keras.models.load_model(file) for file in files]
    assert {(model.output_shape, model.inputs[0].dtype) for model in models} == {((None, 3), "uint8")}
    pairs = zip(models[0].weights, models[1].weights, strict=True)
    changed = {before.path for before, after in pairs if not np.array_equal(before, after)}
    assert changed == {"block3_conv/bias", "block3_conv/kernel", "head/bias", "head/kernel"}


def test_how_transferable_on_ones_own_images(tree, make_images):
    """A2 with every parameter at another value: five classes, of which two are B, and the network with BatchNorm."""
    make_images(tree / "five classes", dict.fromkeys("abcde", 20), size=20)
    (tree / "five classes" / "a" / "damaged.png").write_bytes(b"\x89PNG")
    run, parameters = (
        tree / "runs" / "halves",
        {"run_dir": "runs/halves", "data": "five classes", "half_b": ["b", "d"]},
    )
    parameters |= {"splits": 2, "networks": ["batch_norm"], "boundaries": [5], "image_size": 16}
    parameters |= {"images_per_class": 10, "epochs": 2, "learning_rate": 0.01, "batch_size": 16, "seed": 4}
    walk(tree, ["A2_how_transferable"], parameters, all_others=True)
    results = pd.read_csv(run / "results.csv")
    assert len(results) == 2 * 8 and results["outcome"].str.startswith("all").all()
    assert set(results["network"]) == {"batch_norm"} and set(results["n"]) == {0, 5}
    assert pd.read_csv(run / "problems.csv")["path"].tolist() == ["five classes/a/damaged.png"]
    assert yaml.safe_load((run / "parameters.yaml").read_text())["half_b"] == ["b", "d"]


def test_pretraining_on_ones_own_unlabelled_images(tree, make_images, backbone):
    """A3 with every parameter at another value; it saves a network for 02 that knows no test image of 01's."""
    folder = make_images(tree / "unlabelled", {"this year": 40, "last year": 30}, size=20)
    (folder / "damaged.png").write_bytes(b"\x89PNG")
    make_images(tree / "labelled", {"a": 10, "b": 10}, size=20, seed=1)
    files = sorted((tree / "labelled").rglob("*.png"))
    for number, file in enumerate(files):  # the labelled ones lie among the others, too
        shutil.copy(file, folder / f"copy-{number}.png")
    walk(tree, NOTEBOOKS[:1], {"run_dir": "runs/few", "data": "labelled"})
    parameters = {"run_dir": "runs/own network", "images": "unlabelled", "labelled_run": "runs/few"}
    parameters |= {"backbone": backbone, "weights": "None", "preprocessing": "unit", "features_from": "pooled"}
    parameters |= {"image_size": 16, "unfreeze_from": "block3", "augmentation": "crop,rotate", "epochs": 2}
    parameters |= {"learning_rate": 0.01, "batch_size": 4, "temperature": 0.5, "seed": 4}
    parameters["full"] = True  # no letters: then it changes nothing
    before = (tree / "data" / "letters_without_labels.keras").read_bytes()
    # In notebooks/, as in JupyterLab: relative paths count from the root.
    walk(tree, ["A3_pretrain_without_labels"], parameters, cwd=tree / "notebooks", all_others=True)
    assert (tree / "data" / "letters_without_labels.keras").read_bytes() == before
    run = tree / "runs" / "own network"
    about = yaml.safe_load((run / "network.yaml").read_text())
    tested = (pd.read_csv(tree / "runs" / "few" / "images.csv")["split"] == "test").sum()
    assert about["train"] + about["validation"] == 40 + 30 + len(files) - tested
    assert about["augmentation"] == "crop,rotate" and about["candidates"] == 7 and about["weights"] == "None"
    problems = pd.read_csv(run / "problems.csv").set_index("path")["action"]
    assert problems["unlabelled/damaged.png"] == "left out" and (problems == "left out").sum() == 1 + tested
    assert not (run / "training.npz").exists()
    walk(tree, NOTEBOOKS[1:2], {"run_dir": "runs/few", "backbone": "runs/own network/network.keras"})
    assert "frozen" in read_json(tree / "runs" / "few" / "metrics.json")["arms"]


def test_real_photos_and_imagenet_weights(tree, real_data):
    """Ants and bees with MobileNetV2: features that are worth something, on images that nobody drew."""
    weights = real_data / "weights" / "mobilenet_v2_1.0_224_notop.weights.h5"
    parameters = {"run_dir": "runs/ants", "data": str(real_data / "data" / "hymenoptera"), "backbone": "MobileNetV2"}
    walk(tree, NOTEBOOKS[:2], parameters | {"weights": str(weights)})
    arms = read_json(tree / "runs" / "ants" / "metrics.json")["arms"]
    assert (pd.read_csv(tree / "runs" / "ants" / "images.csv")["split"] == "test").sum() == 153
    assert arms["frozen"]["test_accuracy"] >= 0.95 and arms["frozen"]["low"] > arms["raw pixels"]["high"]


def test_imagenet_photos_are_recognised(real_data):
    """The preprocessing is the one that the weights were trained with: most photos get their own class."""
    from helpers._keras import keras
    from helpers.backbones.preprocessing import preprocess
    from helpers.data import read_pixels

    weights = real_data / "weights" / "mobilenet_v2_1.0_224_top.weights.h5"
    network = keras.applications.MobileNetV2(weights=str(weights))
    folders = sorted((real_data / "data" / "imagenet_samples").iterdir())
    pixels = np.stack([read_pixels(next(folder.iterdir()), (224, 224)) for folder in folders])
    images = keras.Input((224, 224, 3), dtype="uint8")
    model = keras.Model(images, network(preprocess(images, "tf")))
    predicted = model.predict(pixels, verbose=0).argmax(axis=1)
    assert (predicted == 4 * np.arange(len(folders))).mean() > 0.8


def test_the_repository_was_not_touched():
    assert not (ROOT / "runs" / "shapes").exists()
