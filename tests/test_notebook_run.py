"""A run's folder as the notebooks use it, and the parameters that they declare."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_notebook

import helpers
from helpers import resolve_path, write_atomically
from helpers.data.tables import read_texts
from helpers.notebook_run import Run
from helpers.parameters import (
    LETTERS,
    PHOTOS,
    choose_backbone,
    declared_parameters,
    describe_backbone,
    impossible_values,
    resolve_from_cwd,
    validate_parameters,
)


def notebook(parameters: str):
    return new_notebook(cells=[new_code_cell(parameters, metadata={"tags": ["parameters"]})])


def open_run(folder, **values) -> Run:
    """Returns the run as a notebook opens it whose parameters have these values."""
    values = {"run_dir": folder, **values}
    types = dict.fromkeys(values, str) | {"seed": int, "epochs": int, "rate": float, "margin": float}
    return Run.open({"np": np, "__annotations__": types, **values})


# ---- the folder


def test_a_run_takes_the_parameters_of_the_notebook(tmp_path):
    """Those declared with a type in the parameters cell, with the values that papermill's own cell gives them."""
    namespace = {"Path": Path}
    exec(f"run_dir: str = {str(tmp_path / 'x')!r}\nseed: int = 0\ndata: str = 'digits'", namespace)
    exec("seed = 3\nelse_ = 1", namespace)
    run = Run.open(namespace)
    assert run.folder == tmp_path / "x" and run.parameters == {"seed": 3, "data": "digits"} and run.name == "x"
    with pytest.raises(ValueError, match="cell tagged `parameters` first"):
        Run.open({"Path": Path})


def test_a_run_keeps_parameters_and_refuses_others(tmp_path):
    folder = tmp_path / "runs" / "x"
    for parameters in ({"seed": np.int64(3), "data": Path("pets")}, {"seed": 3, "epochs": 5, "cluster": "2"}):
        open_run(folder, **parameters).keep_parameters()
    open_run(folder, margin=2.0, rate=0.1).keep_parameters("margin")
    kept = (folder / "parameters.yaml").read_bytes()
    assert yaml.safe_load(kept) == {"seed": 3, "data": "pets", "epochs": 5, "margin": 2.0, "cluster": "2"}
    with pytest.raises(ValueError, match="made with seed=3, and seed=4 was asked for: choose another folder"):
        open_run(folder, seed=4, rate=0.1)
    assert open_run(folder, rate=0.2).kept["seed"] == 3, "not kept before there are results"
    assert open_run(folder, cluster=""), "who computes changes no result"
    assert {path.name for path in folder.iterdir()} == {"parameters.yaml", "environment.json"}
    assert (folder / "parameters.yaml").read_bytes() == kept


def test_auto_is_the_network_that_suits_the_images(tmp_path):
    open_run(tmp_path, data="pets").keep_parameters()
    assert open_run(tmp_path, backbone="auto").parameters["backbone"] == PHOTOS
    assert open_run(tmp_path / "other", backbone="auto", data="digits").parameters["backbone"] == LETTERS
    assert choose_backbone("auto") == PHOTOS and choose_backbone("ResNet50", "digits") == "ResNet50"
    line = describe_backbone(PHOTOS, "imagenet", 96)
    assert "MobileNetV2, 96 pixels, ImageNet weights (9 MB" in line and "BACKBONE=" in line
    assert "letters" in describe_backbone(LETTERS, "imagenet", 0) and "MB" not in describe_backbone(PHOTOS, "x.h5", 0)


def test_what_papermill_makes_of_a_text_is_understood_or_named(root):
    """It makes numbers of 2024 and 60, and None of "None"."""
    assert open_run(2024, data=2024, budget=60, exports=None).folder == root / "2024"
    for seed in (1.0, None, "x"):
        with pytest.raises(ValueError, match=f"seed: expected int. Received: {seed!r}"):
            open_run(2024, seed=seed)
    open_run(2024, budget=60).keep_parameters()
    assert open_run(2024, budget="60"), "the runner's"


def test_a_missing_file_names_the_notebook_to_run(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Expected images.csv in .* Run 01_load_data first"):
        run.images()
    with pytest.raises(FileNotFoundError, match="Run 03_fine_tuning first"):
        run.classifier("fine_tuned")
    assert run.path("new.csv") == tmp_path / "new.csv"


def test_metrics_are_merged_by_arm_and_a_write_that_fails_leaves_the_old_file(tmp_path):
    run = Run(tmp_path)
    assert run.metrics == {}
    run.update_metrics(arms={"frozen": {"test_accuracy": np.float32(0.5), "trainable_weights": np.int64(7)}})
    run.update_metrics(arms={"fine-tuned": {"test_accuracy": 0.75}}, answer="Yes.")
    run.update_metrics(arms={"frozen": {"test_accuracy": 0.25}}, answer="No.")
    expected = {"answer": "No.", "arms": {"frozen": {"test_accuracy": 0.25}, "fine-tuned": {"test_accuracy": 0.75}}}
    assert run.metrics == expected
    with pytest.raises(TypeError):
        run.update_metrics(answer=object())
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "metrics.json", "half \ud800")
    assert json.loads((tmp_path / "metrics.json").read_text()) == expected and len(list(tmp_path.iterdir())) == 1


def test_a_saved_table_names_its_rows_and_has_numbers_to_be_read(tmp_path):
    names = ["1.50", "NA", 'x,"y"', "b\r"]
    table = pd.DataFrame({"a": [0.9738562091503268, 1131722.5, 3e-05, np.nan], "n": range(4)}, index=names)
    Run(tmp_path).save("a.csv", table.rename_axis("class"))
    found = read_texts(tmp_path / "a.csv")
    assert list(found) == ["class", "a", "n"] and found["class"].tolist() == names
    assert found["a"].tolist() == ["0.97386", "1131722", "3e-05", ""] and found["n"].tolist() == list("0123")
    Run(tmp_path).save("b.csv", table)
    assert list(read_texts(tmp_path / "b.csv")) == ["a", "n"], "rows that are only numbered need no column"


def test_relative_paths_are_resolved_from_the_root_or_on_the_command_line_from_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_path("data/digits") == helpers.ROOT / "data" / "digits"
    assert resolve_path("~/pets") == tmp_path / "pets" and resolve_path(tmp_path) == tmp_path
    (tmp_path / "my pets").mkdir()
    assert resolve_from_cwd("data", "my pets", tmp_path) == str(tmp_path / "my pets")
    assert resolve_from_cwd("data", "~/my pets", helpers.ROOT) == str(tmp_path / "my pets")
    assert resolve_from_cwd("data", "../helpers", helpers.ROOT / "tests") == "helpers"  # relative to the root
    for name, value in {"data": "digits", "weights": "imagenet", "backbone": "ResNet50", "word": "my pets"}.items():
        (tmp_path / value).mkdir(exist_ok=True)
        assert resolve_from_cwd(name, value, tmp_path) == value


# ---- parameters

DECLARED = declared_parameters(
    notebook("""\
whole: int = 1  # meaning = one
part: float = 0.5
word: str = "a # b"  # größer
maybe: str | None = None
flag: bool = False
either: int | str = "auto"
many: list[int] = [1, 2]
nothing: str = ""
weights: str = "imagenet"
""")
)


def test_parameters_are_read_as_declared():
    assert DECLARED["whole"].meaning == "meaning = one" and DECLARED["many"].default == [1, 2]
    assert DECLARED["word"].meaning == "größer" and DECLARED["part"].meaning == ""
    assert DECLARED["maybe"].types == ("str", "None") and DECLARED["many"].types == ("list",)
    for line in ("b: int = 2 * a", "b = 2"):  # derived, or without a type
        with pytest.raises(ValueError, match=r"\bb\b"):
            declared_parameters(notebook(f"a: int = 1\n{line}"))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("whole", "7", 7), ("part", "7", 7.0), ("part", "1e-4", 1e-4), ("word", "1e5", "1e5"),
        ("word", "", ""), ("word", "None", "None"), ("maybe", "None", None), ("maybe", "null", None),
        ("maybe", "1e5", "1e5"), ("flag", "true", True), ("flag", "False", False),
        ("either", "8", 8), ("either", "auto", "auto"), ("many", "[3, 4]", [3, 4]),
        ("part", 2, 2.0), ("maybe", None, None), ("word", 5, "5"), ("word", 2.5, "2.5"),
        ("nothing", None, ""), ("nothing", "None", ""), ("nothing", "", ""), ("weights", None, "None"),
    ],
)  # fmt: skip
def test_texts_become_the_declared_types(name, text, value):
    (found,) = validate_parameters({name: text}, DECLARED).values()
    assert found == value and type(found) is type(value)


WRONG = [("whole", "7.5"), ("whole", "true"), ("part", "x"), ("flag", "1"), ("word", True), ("word", None)]


@pytest.mark.parametrize(("name", "value"), [*WRONG, ("many", "3")])
def test_other_types_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected .* Received: "):
        validate_parameters({name: value}, DECLARED)


FRACTIONS = {"validation_fraction": 0.5, "test_fraction": 0.2, "images_per_class": 0, "seed": 0}
NETWORK = {"weights": "imagenet", "image_size": 0, "preprocessing": "auto", "features_from": "auto"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": "nowhere"}, "`data` .* there is no .*nowhere"),
        ({"on_problem": "drop"}, "`on_problem`.*'drop'"),
        (FRACTIONS | {"test_fraction": 1.5}, "`test_fraction`"),
        ({"resize": "croop"}, "`resize`.*'croop'"),
        ({"steps": 0}, "`steps` above 0"),
        ({"budget": "fast"}, "`budget`.*'fast'"),
        ({"margin": 0.0}, "`margin`"),
        ({"cluster": "four"}, "`cluster`"),
        ({"exports": "savedmodel,onxx"}, "`exports`.*'onxx'. Did you mean onnx"),
        ({"shifted": "nowhere"}, "`shifted` .* there is no .*nowhere"),
        ({"backbone": "ResNet5O"}, "Did you mean 'ResNet50'"),
        ({"backbone": "a/my.h5"}, r"load_model\('a/my.h5', compile=False\).save\('a/my.keras'\)"),
        ({"backbone": "no.keras"}, "`backbone`.*no.keras"),
        ({"backbone": "MobileNet", "weights": "no.weights.h5"}, "`weights`.*no.weights.h5"),
        ({"backbone": "MobileNet", "weights": "None", "preprocessing": "x"}, "`preprocessing`"),
    ],
)
def test_what_is_wrong_whatever_the_images_are_is_said_as_the_notebooks_do(wrong, message):
    (problem,) = impossible_values((NETWORK if "backbone" in wrong else {}) | wrong, {})
    assert re.search(message, problem, re.DOTALL)


def test_only_what_was_changed_is_looked_at_and_all_problems_are_named():
    usual = NETWORK | {"budget": "fast", "backbone": "no.keras"}
    assert impossible_values(usual | {"unknown": 1}, usual) == []
    assert len(impossible_values(usual | {"budget": "x", "margin": -1.0, "weights": "None"}, usual)) == 3
