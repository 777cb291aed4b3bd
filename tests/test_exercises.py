"""What the notebooks ask their readers to try, and to answer: "Things to try" and "Questions"."""

import ast
import re
import shutil

import nbformat
import papermill
import pytest
from refresh import copy_tree, notebook_paths

from helpers.parameters import declared_parameters, impossible_values, validate_parameters

NUMBERED = [path for path in notebook_paths() if path.name[0].isdigit()]
ITEM = re.compile(
    r"^\d+\. (.*?)\n\n<details><summary>(.*?)</summary>\n\n(.*?)\n\n</details>$", re.MULTILINE | re.DOTALL
)
CHANGE = re.compile(r"\*\*`(\w+) = (.+?)`\*\*")


def items(path) -> list[str]:
    """Returns the numbered items of a notebook's last cell: what is asked, and the folded answer."""
    last = nbformat.read(path, as_version=4).cells[-1].source
    found = ITEM.findall(last)
    assert len(found) == len(re.findall(r"^\d+\. ", last, re.MULTILINE)), (
        f"{path.name}: each has an answer, folded away"
    )
    return found


EXERCISES = [
    pytest.param(path.stem, *CHANGE.match(asked).groups(), id=f"{path.stem[:2]} {CHANGE.match(asked)[0]}")
    for path in NUMBERED
    for asked, _, _ in items(path)
    if CHANGE.match(asked)
]


def test_there_are_things_to_try_and_ten_questions_and_each_has_an_answer():
    assert [path.stem for path in NUMBERED if not items(path)] == []
    assert {stem for stem, *_ in (param.values for param in EXERCISES)} == {path.stem for path in NUMBERED}
    asked = [question for path in NUMBERED for question, _, _ in items(path)]
    assert all("?" in question for question in asked) and len(asked) >= 20, asked
    assert all(len(answer) > 60 for path in NUMBERED for _, _, answer in items(path))


@pytest.mark.parametrize(("stem", "name", "value"), EXERCISES)
def test_an_exercise_changes_a_parameter_to_a_possible_value(stem, name, value):
    (path,) = [path for path in NUMBERED if path.stem == stem]
    declared, value = declared_parameters(nbformat.read(path, as_version=4)), ast.literal_eval(value)
    assert validate_parameters({name: value}, declared) == {name: value} != {name: declared[name].default}
    usual = {key: parameter.default for key, parameter in declared.items()}
    usual |= {"backbone": "data/letters.keras"} if "backbone" in usual else {}
    assert impossible_values(usual | {name: value}, usual) == []


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A copy of the repository with a run of all notebooks on the embedded example."""
    tree = copy_tree(tmp_path_factory.mktemp("exercises") / "repository")
    for path in NUMBERED:
        execute(tree, path.stem, {})
    return tree


def execute(tree, stem: str, parameters: dict, run: str = "digits") -> None:
    (tree / "runs" / run).mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tree))
        patch.setenv("TQDM_DISABLE", "1")
        options = {"cwd": tree, "progress_bar": False, "kernel_name": "python3"}
        saved, parameters = tree / "runs" / run / f"{stem}.ipynb", {"run_dir": f"runs/{run}"} | parameters
        papermill.execute_notebook(tree / "notebooks" / f"{stem}.ipynb", saved, parameters=parameters, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("stem", "name", "value"), EXERCISES)
def test_an_exercise_goes_through_and_earlier_results_are_kept(walked, stem, name, value):
    run = walked / "runs" / "again"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(walked / "runs" / "digits", run)
    before = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    execute(walked, stem, {name: ast.literal_eval(value)}, "again")
    earlier = {
        path.relative_to(run / "earlier" / "1") for path in (run / "earlier" / "1").rglob("*") if path.is_file()
    }
    assert earlier <= before and len(earlier) > 3
    now = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    assert before - now - earlier == set(), "nothing is lost"
