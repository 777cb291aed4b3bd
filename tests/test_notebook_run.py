"""A run's folder as the notebooks use it, and the parameters that they declare."""

import json
import re
import shutil
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


def open_run(folder, notebook="02_train", **values) -> Run:
    """Returns the run as a notebook opens it whose parameters have these values."""
    values = {"run_dir": folder, **values}
    types = dict.fromkeys(values, str) | {"seed": int, "epochs": int, "rate": float, "margin": float}
    return Run.open({"np": np, "__annotations__": types, **values}, notebook)


# ---- the folder


def test_a_run_takes_the_parameters_of_the_notebook(tmp_path):
    """Those declared with a type in the parameters cell, with the values that papermill's own cell gives them."""
    namespace = {"Path": Path}
    exec(f"run_dir: str = {str(tmp_path / 'x')!r}\nseed: int = 0\ndata: str = 'digits'", namespace)
    exec("seed = 3\nelse_ = 1", namespace)
    run = Run.open(namespace, "01")
    assert run.folder == tmp_path / "x" and run.parameters == {"seed": 3, "data": "digits"} and run.name == "x"
    with pytest.raises(ValueError, match="cell tagged `parameters` first"):
        Run.open({"Path": Path}, "01")


def test_what_is_saved_says_with_which_parameters(tmp_path):
    folder = tmp_path / "runs" / "x"
    run = open_run(folder, "01_load", seed=np.int64(3), data=Path("pets"))
    assert list(folder.iterdir()) == [], "nothing is noted before something is saved"
    run.save("a.csv", pd.DataFrame({"n": [1]}))
    open_run(folder, margin=2.0, cluster="2").update_metrics(answer="Yes.")
    kept = yaml.safe_load((folder / "parameters.yaml").read_text())
    assert kept == {"seed": 3, "data": "pets", "margin": 2.0, "cluster": "2"} == run.kept
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {"a.csv", "parameters.yaml", "environment.json", "notebooks.json", "metrics.json"}


# ---- executing a notebook again


@pytest.fixture
def walked(tmp_path):
    """A run in which each notebook has saved a file, and read what the others made: 01 <- 02 <- 03, and 01 <- 04."""
    open_run(tmp_path, "01_load", seed=0).save("images.json", 1)
    second = open_run(tmp_path, "02_train", rate=0.1)
    second.path("images.json", made_by="01_load")
    second.update_metrics(arms={"frozen": {"test_accuracy": 0.5}}, answer="Perhaps.")
    second.save("frozen.json", 2)
    (tmp_path / "chosen.onnx").write_text("an export")
    third = open_run(tmp_path, "03_use", margin=1.0, cluster="")
    third.path("frozen.json", made_by="02_train")
    third.path("chosen.keras").write_text("a network")
    third.update_metrics(arms={"tuned": {"test_accuracy": 0.6}}, answer="Yes.")
    open_run(tmp_path, "04_other", epochs=1).path("images.json", made_by="01_load")
    open_run(tmp_path, "04_other", epochs=1).save("other.json", 4)
    return tmp_path


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}


SHARED = {"metrics.json", "parameters.yaml", "notebooks.json"}


def test_with_other_parameters_earlier_results_and_what_was_made_of_them_are_kept_aside(walked, capsys):
    before = {name: (walked / name).read_bytes() for name in files(walked)}
    run = open_run(walked, "02_train", rate=0.2)
    assert files(walked) == set(before) and capsys.readouterr().out == "", "not before there are new results"
    run.save("frozen.json", 22)
    told = capsys.readouterr().out
    assert told.startswith("02_train with rate=0.2 instead of 0.1: earlier results were moved to ")
    assert told.endswith("earlier/1, with what was made of them by 03_use.\n")
    earlier = walked / "earlier" / "1"
    assert files(earlier) == SHARED | {"frozen.json", "chosen.keras", "chosen.onnx"}
    assert all((earlier / name).read_bytes() == before[name] for name in files(earlier))
    assert json.loads((walked / "frozen.json").read_text()) == 22 and (walked / "other.json").exists()
    assert run.metrics == {} and run.kept == {"seed": 0, "rate": 0.2, "epochs": 1}


def test_what_was_made_of_earlier_results_is_called_stale(walked):
    open_run(walked, "01_load", seed=5).save("images.json", 11)
    with pytest.raises(
        FileNotFoundError,
        match=r"chosen.keras of 03_use is stale, since 01_load was executed with seed=5 instead of 0; it is in .*"
        r"earlier/1. Execute 03_use again, with the same run_dir.",
    ):
        Run(walked).path("chosen.keras", made_by="03_use")
    run = open_run(walked, "03_use", margin=1.0)
    with pytest.raises(FileNotFoundError, match="frozen.json of 02_train is stale"):
        run.path("frozen.json", made_by="02_train")
    open_run(walked, "02_train", rate=0.1).save("frozen.json", 222)
    run.path("frozen.json", made_by="02_train")
    run.path("chosen.keras").write_text("anew")
    assert Run(walked).path("chosen.keras", made_by="03_use").read_text() == "anew"
    assert len(list((walked / "earlier").iterdir())) == 1


def test_the_same_parameters_again_move_nothing(walked, capsys):
    before = files(walked)
    open_run(walked, "01_load", seed=0).save("images.json", 1)
    open_run(walked, "03_use", margin=1.0, cluster="2").path("chosen.keras")
    assert files(walked) == before and capsys.readouterr().out == "", "who computes changes no result"


def test_a_notebook_goes_by_an_earlier_ones_parameter(walked, capsys):
    run = open_run(walked, "04_other", epochs=1)
    assert run.adopt("rate", 0.7) == 0.1 and run.adopt("unknown", 3) == 3
    run.save("other.json", 4)
    open_run(walked, "02_train", rate=0.2).save("frozen.json", 2)
    assert (walked / "other.json").exists(), "02 has made nothing that 04 used"
    run = open_run(walked, "04_other", epochs=1)
    assert run.adopt("rate", 0.7) == 0.2
    capsys.readouterr()
    run.save("other.json", 44)
    assert "04_other with rate=0.2 instead of 0.1" in capsys.readouterr().out
    assert json.loads((walked / "earlier" / "2" / "other.json").read_text()) == 4


def test_results_of_what_is_not_there_any_more_are_not_saved(walked):
    late = open_run(walked, "03_use", margin=1.0)
    late.path("frozen.json", made_by="02_train")
    open_run(walked, "02_train", rate=0.2).save("frozen.json", 2)
    before = files(walked)
    with pytest.raises(ValueError, match="02_train was executed again .* Execute this notebook again from the top"):
        late.save("late.json", 1)
    assert files(walked) == before


def test_of_a_notebook_that_two_kernels_execute_the_older_one_saves_nothing(walked):
    old = open_run(walked, "03_use", margin=1.0)
    old.save("old.json", 1)
    open_run(walked, "03_use", margin=2.0).save("new.json", 1)
    with pytest.raises(ValueError, match="03_use was executed elsewhere, with other parameters"):
        old.save("old.json", 1)


def test_a_record_without_files_gives_way_too(tmp_path):
    open_run(tmp_path, "02_train", rate=0.1).update_metrics(answer="Yes.")
    open_run(tmp_path, "02_train", rate=0.2).save("frozen.json", 2)
    run = Run(tmp_path)
    assert (
        run.kept == {"rate": 0.2} and run.metrics == {} and run.records.last_parameters("02_train") == {"rate": 0.2}
    )


def test_what_cannot_be_moved_stays_as_it_was(walked, monkeypatch):
    before, move = files(walked), shutil.move

    def refuse(source, target):
        if str(source).endswith("chosen.onnx"):  # the last one
            raise PermissionError("open elsewhere")
        return move(source, target)

    monkeypatch.setattr(shutil, "move", refuse)
    with pytest.raises(OSError, match="Earlier results could not be moved to .*earlier.*open elsewhere"):
        open_run(walked, "02_train", rate=0.2).save("frozen.json", 2)
    assert before <= files(walked) and open_run(walked, "03_use").records.number("03_use")


def test_parameters_that_changed_after_the_run_was_opened_are_named(tmp_path):
    namespace = {"run_dir": tmp_path, "seed": 0, "__annotations__": {"run_dir": str, "seed": int}}
    run = Run.open(namespace, "01_load")
    namespace["seed"] = 1
    with pytest.raises(ValueError, match="changed: seed=1 instead of 0. Execute the cell with `Run.open` again"):
        run.save("a.json", 1)


def test_auto_is_the_network_that_suits_the_images(tmp_path):
    open_run(tmp_path, "01_load", data="pets").path("images.csv")
    assert open_run(tmp_path, backbone="auto").parameters["backbone"] == PHOTOS
    assert open_run(tmp_path / "other", backbone="auto", data="digits").parameters["backbone"] == LETTERS
    assert choose_backbone("auto") == PHOTOS and choose_backbone("ResNet50", "digits") == "ResNet50"
    line = describe_backbone(PHOTOS, "imagenet", 96)
    assert "MobileNetV2, 96 pixels, ImageNet weights (9 MB" in line and "BACKBONE=" in line
    assert "letters" in describe_backbone(LETTERS, "imagenet", 0) and "MB" not in describe_backbone(PHOTOS, "x.h5", 0)


def test_what_papermill_makes_of_a_text_is_understood_or_named(root):
    """It makes numbers of 2024 and 60, and None of "None"."""
    assert open_run(2024, data=2024, budget=60, exports=None).folder == root / "2024"
    values = {"budget": 60, "margin": 2, "weights": None, "data": "None"}
    assert open_run(2024, **values).parameters == values | {"budget": "60", "margin": 2.0}, "2 and 2.0 are the same"
    for seed in (1.0, None, "x"):
        with pytest.raises(ValueError, match=f"seed: expected int. Received: {seed!r}"):
            open_run(2024, seed=seed)


def test_a_missing_file_names_the_notebook_to_run(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Expected images.csv in .* Run 01_load_data first"):
        run.images()
    with pytest.raises(FileNotFoundError, match="Run 03_fine_tuning first"):
        run.classifier("fine_tuned")
    assert run.path("new.csv") == tmp_path / "new.csv"


def test_metrics_are_merged_by_arm_and_a_write_that_fails_leaves_the_old_file(tmp_path):
    run = open_run(tmp_path)
    assert run.metrics == {}
    run.update_metrics(arms={"frozen": {"test_accuracy": np.float32(0.5), "trainable_weights": np.int64(7)}})
    run.update_metrics(arms={"fine-tuned": {"test_accuracy": 0.75}}, answer="Yes.")
    run.update_metrics(arms={"frozen": {"test_accuracy": 0.25}}, answer="No.")
    expected = {"answer": "No.", "arms": {"frozen": {"test_accuracy": 0.25}, "fine-tuned": {"test_accuracy": 0.75}}}
    assert run.metrics == expected
    with pytest.raises(TypeError):
        run.update_metrics(answer=object())
    assert run.metrics == expected
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "metrics.json", "half \ud800")
    assert json.loads((tmp_path / "metrics.json").read_text()) == expected


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
