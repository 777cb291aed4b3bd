"""The pipeline, on toy notebooks in a toy copy of the repository: no Keras, a second for each kernel."""

import fcntl
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import helpers
from helpers import resolve_path, write_atomically
from helpers.data.tables import read_texts
from helpers.execution import Progress, is_finished, kernel_manager_class, read_executed, without_progress_bars
from helpers.parameters import (
    LETTERS,
    PHOTOS,
    checked_values,
    choose_backbone,
    declared_parameters,
    describe_backbone,
    fitting_values,
    from_here,
    impossible_values,
)
from helpers.report import summary_rows
from helpers.run import keep_parameters, open_run, read_metrics, require, run_name, save_table, update_metrics

LOAD = """\
from pathlib import Path
from tqdm import tqdm
from IPython.display import HTML
import sys, time
from helpers.run import keep_parameters, open_run
parameters = {"data": data, "seed": seed}
run = open_run(run_dir, parameters)
keep_parameters(run, parameters)
(run / "images.csv").write_text("path,label")
for _ in tqdm(range(20), file=sys.stdout, leave=False, mininterval=0): pass
print("20 images", Path.cwd() == Path(sys.modules["helpers"].__file__).parent.parent)
time.sleep(0.5)
HTML('<style scoped>td {}</style><table border="1"><tr><td>3</td><td>20</td></tr></table>')"""

TRAIN = """\
from helpers.run import keep_parameters, open_run, require, update_metrics
run = open_run(run_dir, {"weights": weights})
require(run, "images.csv", "01_load_data")
if weights == "broken": raise ValueError("weights: expected a file.\\nReceived: broken.")
keep_parameters(run, {"weights": weights})
arm = dict(test_accuracy=0.94, low=0.92, high=0.96, seconds=2.5, trainable_weights=1200)
update_metrics(run, arms={"frozen": arm}, answer="Freeze: it is cheaper.")
None"""

FIGURE = """\
import base64
from IPython.display import Image, display
pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
display(Image(base64.b64decode(pixel)), metadata={"image/png": {"alt": 'One <pixel> of "grey".'}})"""


def write_notebook(path: Path, title: str, parameters: str, *code: str) -> None:
    cells = [new_markdown_cell(f"# {title}\n\nSee [02](02_train.ipynb) and [the package](../helpers/run.py).")]
    cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    for source in code:
        cells += [new_markdown_cell("## A step"), new_code_cell(source)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A copy of the package, so that its repository root is the toy's."""
    folder = tmp_path_factory.mktemp("package") / "helpers"
    shutil.copytree(Path(helpers.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def make_toy(folder: Path, package: Path) -> Path:
    shutil.copytree(package, folder / "helpers")
    run_dir = 'run_dir: str = "runs/digits"  # where results go\n'
    write_notebook(
        folder / "notebooks" / "01_load_data.ipynb",
        "What is there?",
        run_dir + 'data: str = "digits"  # a folder of images\nseed: int = 0  # of the split',
        LOAD,
    )
    write_notebook(
        folder / "notebooks" / "02_train.ipynb",
        "How good is it?",
        run_dir + 'weights: str | None = "imagenet"  # a file, a=b\nrate: float = 1e-3  # of the head',
        TRAIN,
        FIGURE,
    )
    write_notebook(folder / "notebooks" / "A1_appendix.ipynb", "Why?", "full: bool = False  # all of it", "1 / 0")
    return folder


@pytest.fixture
def toy(tmp_path, package) -> Path:
    return make_toy(tmp_path / "toy", package)


def command(toy: Path, *arguments: str, cwd: str = ".") -> dict:
    return {
        "args": [sys.executable, "-m", "helpers.run", *arguments],
        "cwd": toy / cwd,
        "env": os.environ | {"PYTHONPATH": str(toy), "COLUMNS": "100"},
        "text": True,
    }


def run(toy: Path, *arguments: str, cwd: str = ".") -> subprocess.CompletedProcess:
    done = subprocess.run(**command(toy, *arguments, cwd=cwd), capture_output=True, timeout=120)
    assert "Traceback" not in done.stdout + done.stderr
    return done


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, package):
    """A toy whose pipeline went through from a subfolder, although a broken kernel has the usual name."""
    toy = make_toy(tmp_path_factory.mktemp("finished") / "toy", package)
    spec = toy / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["false"], "display_name": "broken", "language": "python"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(toy / "jupyter"))
        return toy, run(toy, "-p", "rate", "0.01", cwd="notebooks")


# ---- the whole pipeline


def test_it_goes_through(finished):
    toy, done = finished
    assert done.returncode == 0, done.stderr
    row = "frozen          0.940  0.920 to 0.960      2.5              1,200"
    assert row in done.stdout
    report = toy / "runs" / "digits" / "report.html"
    assert done.stdout.endswith(f"\n\nFreeze: it is cheaper.\n\nReport: {report}\n")
    made = {path.name for path in (toy / "runs" / "digits").iterdir()} - {".lock"}
    notebooks = {"01_load_data.ipynb", "02_train.ipynb"}  # no appendix
    assert made == notebooks | {"images.csv", "metrics.json", "parameters.yaml", "environment.json", "report.html"}
    kept = yaml.safe_load((toy / "runs" / "digits" / "parameters.yaml").read_text())
    assert kept == {"data": "digits", "seed": 0, "weights": "imagenet"}
    (environment,) = json.loads((toy / "runs" / "digits" / "environment.json").read_text())
    assert environment["python"] == platform.python_version() and "commit" not in environment


def test_notebooks_are_executed_from_the_root_and_stored_without_progress_bars(finished):
    stored = nbformat.read(finished[0] / "runs" / "digits" / "01_load_data.ipynb", as_version=4)
    assert stored.cells[-1].outputs[0].text == "20 images True\n"


def test_what_has_finished_is_not_executed_again(finished):
    toy, _ = finished
    before = contents(toy / "runs")
    again = run(toy, "-p", "rate", "1e-2", "-p", "seed", "0")
    assert again.returncode == 0
    assert "nothing is left to do" in again.stderr
    assert "1,200" in again.stdout and "Report: runs/digits/report.html" in again.stdout
    assert contents(toy / "runs") == before


@pytest.mark.parametrize("given", [("-p", "rate", "0.1"), ("-p", "seed", "1"), ("-f", "seed.yaml"), ()])
def test_other_parameters_are_refused_and_nothing_is_touched(finished, given):
    toy, _ = finished
    (toy / "seed.yaml").write_text("seed: 2\n")
    before = contents(toy / "runs")
    refused = run(toy, *given)
    assert refused.returncode == 2
    assert re.search(r"made with (rate=0.01, and rate=0.\d+|seed=0, and seed=[12]) was asked for", refused.stderr)
    assert "NAME=..." in " ".join(refused.stderr.split())
    assert contents(toy / "runs") == before


def test_an_edited_notebook_is_refused(finished):
    toy, _ = finished
    path = toy / "notebooks" / "01_load_data.ipynb"
    before, runs = path.read_text(), contents(toy / "runs")
    path.write_text(before.replace("20 images", "21 images"))
    try:
        refused = run(toy, "-p", "rate", "0.01")
    finally:
        path.write_text(before)
    assert refused.returncode == 2 and "01_load_data.ipynb has been edited" in refused.stderr
    assert contents(toy / "runs") == runs


def test_durations_of_an_earlier_run_weigh_the_cells(finished):
    toy, _ = finished
    notebooks = {"01_load_data": nbformat.read(toy / "notebooks" / "01_load_data.ipynb", as_version=4)}
    with Progress(notebooks, toy / "runs") as progress:
        first, loading = progress._weights["01_load_data"]
        assert first < 0.5 < loading
    with Progress(notebooks, toy / "nowhere") as progress:
        assert progress._weights["01_load_data"] == [1.0, 1.0]


def test_the_report_opens_offline(finished):
    html = (finished[0] / "runs" / "digits" / "report.html").read_text()
    assert html.startswith('<!DOCTYPE html>\n<html lang="en">') and html.count("<h1") == 1
    assert "<title>Freeze or fine-tune? digits</title>" in html
    assert 'name="viewport"' in html and "@media print" in html
    assert re.findall(r"<(?:script|link|iframe)\b", html) == []
    assert all(src.startswith("data:") for src in re.findall(r'\bsrc="([^"]*)"', html))
    assert "@import" not in html and "url(" not in html


def test_the_report_has_everything_in_its_place(finished):
    from bs4 import BeautifulSoup

    page = BeautifulSoup((finished[0] / "runs" / "digits" / "report.html").read_text(), "html.parser")
    assert page.find(class_="answer").text == "Freeze: it is cheaper."
    summary, parameters, cost, *_ = page.main.find_all("table")
    assert [c.text for c in summary.tbody.find_all(["th", "td"])][:2] == ["frozen", "0.940"]
    rows = {row.th.text: [c.text for c in row.find_all("td")] for row in parameters.tbody.find_all("tr")}
    assert rows["rate"] == ["0.01", "of the head"] and rows["weights"][1] == "a file, a=b"
    assert [b.text for b in parameters.find_all("strong")] == ["0.01"]
    assert [c.text for c in cost.tbody.find_all("td")] == ["2.5", "1,200"]
    contents = page.find("nav", attrs={"aria-label": "Notebooks"})
    assert [a["href"] for a in contents.find_all("a")][:2] == ["#01_load_data", "#01_load_data-a-step"]
    targets = {tag["id"] for tag in page.find_all(id=True)}
    assert {a["href"][1:] for a in page.find_all("a")} <= targets  # links lead somewhere
    assert len(targets) == len(page.find_all(id=True))
    assert len(page.find_all("style")) == 1 and page.find_all("table", border=True) == []
    assert page.img["alt"] == 'One <pixel> of "grey".'
    assert page.find(id="01_load_data").table.find_all("td")[-1].text == "20"
    assert len(page.find_all("details", class_="code")) == 5 and "injected" not in page.text
    assert "make run NAME=digits RATE=0.01\n" in page.find(id="repeat").find_next("pre").text + "\n"
    assert page.find(class_="failure") is None


# ---- what goes wrong on the way


def test_a_failing_cell_is_named_and_the_run_goes_on_once_the_cause_is_removed(toy):
    failed = run(toy, "-n", "mine", "-p", "weights", "broken")
    assert failed.returncode == 1
    assert '02_train stopped in In [3], at `if weights == "broken": raise' in " ".join(failed.stderr.split())
    assert "ValueError: weights: expected a file.\nReceived: broken.\n" in failed.stderr
    assert "kept: 01_load_data." in failed.stderr and "runs/mine/report.html" in failed.stderr
    report = (toy / "runs" / "mine" / "report.html").read_text()
    assert "02_train did not finish." in report.split('id="data"')[0].split('id="settings"')[0]
    first = (toy / "runs" / "mine" / "01_load_data.ipynb").read_bytes()

    better = run(toy, "-n", "mine", "-p", "weights", "None")
    assert better.returncode == 0, better.stderr
    assert "going on with 02_train" in better.stderr
    assert (toy / "runs" / "mine" / "01_load_data.ipynb").read_bytes() == first
    assert yaml.safe_load((toy / "runs" / "mine" / "parameters.yaml").read_text())["weights"] is None
    assert 'class="failure"' not in (toy / "runs" / "mine" / "report.html").read_text()


def test_results_of_a_notebook_that_failed_later_are_protected(toy):
    path = toy / "notebooks" / "01_load_data.ipynb"
    path.write_text(path.read_text().replace("time.sleep(0.5)", "raise KeyError(0)"))
    assert run(toy).returncode == 1
    before = contents(toy / "runs")
    refused = run(toy, "-p", "seed", "1")
    assert refused.returncode == 2 and "seed=0, and seed=1 was asked for" in refused.stderr
    assert contents(toy / "runs") == before


def test_a_dead_kernel_is_explained_and_counts_as_unfinished(toy):
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    write_notebook(toy / "notebooks" / "01_load_data.ipynb", "Dead?", "seed: int = 0  # any", kill)
    died = run(toy, "--runs-dir", "elsewhere", "-n", "x")
    assert died.returncode == 1 and "01_load_data stopped" in died.stderr
    assert "memory" in died.stderr and "No notebook has finished" in died.stderr
    assert not is_finished(read_executed(toy / "elsewhere" / "x" / "01_load_data.ipynb"))
    assert "memory" in (toy / "elsewhere" / "x" / "report.html").read_text()


def test_the_kernels_own_complaints_at_its_end_do_not_reach_the_terminal(toy):
    complain = "logging.getLogger('tornado.general').error('Uncaught exception in ZMQStream callback')"
    code = f"import asyncio, logging, tornado.log\n{complain}\nlogging.getLogger('asyncio').error('Task destroyed')"
    write_notebook(toy / "notebooks" / "02_train.ipynb", "Loud?", 'run_dir: str = ""  # where', code)
    done = run(toy)
    saved = (toy / "runs" / "digits" / "02_train.ipynb").read_text()
    assert done.returncode == 0 and "ZMQStream" not in done.stdout + done.stderr
    assert '"output_type": "stream"' not in saved and "destroyed" not in done.stderr


def test_an_interruption_keeps_what_has_finished(toy):
    write_notebook(
        toy / "notebooks" / "02_train.ipynb", "Long?", 'run_dir: str = ""  # where',
        "open(run_dir + '/on', 'w')", "import time; time.sleep(60)",
    )  # fmt: skip
    process = subprocess.Popen(**command(toy), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (toy / "runs" / "digits" / "on").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Interrupted." in errors and "kept: 01_load_data." in errors and "Traceback" not in errors
    about = nbformat.read(toy / "runs" / "digits" / "02_train.ipynb", as_version=4).metadata.papermill
    assert about.exception is True  # so that it is executed again


def test_an_interruption_that_is_ignored_at_the_start_stays_ignored(toy):
    code = "import os, signal, time\n[os.kill(process, signal.SIGINT) for process in (os.getppid(), os.getpid())]"
    write_notebook(
        toy / "notebooks" / "02_train.ipynb", "Deaf?", 'run_dir: str = ""  # where', code, "time.sleep(0.5)"
    )
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    done = subprocess.run(**command(toy), **ignore, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_two_runs_cannot_write_to_one_folder(toy):
    folder = toy / "runs" / "digits"
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        second = run(toy)
    assert second.returncode == 2 and "Another run is writing to runs/digits" in second.stderr
    assert [path.name for path in folder.iterdir()] == [".lock"]


# ---- what is refused before anything starts


def test_all_wrong_parameters_are_reported_together(toy):
    arguments = "-p sead 1 -p rate fast -p seed 1.5 -p full True -p run_dir x".split()
    refused = run(toy, *arguments)
    assert refused.returncode == 2
    assert "no parameter sead. Did you mean seed?" in refused.stderr
    assert "rate: expected float. Received: 'fast'" in refused.stderr
    assert "seed: expected int. Received: '1.5'" in refused.stderr
    assert "no parameter full" in refused.stderr  # of an appendix
    assert "run_dir is set by the runner" in refused.stderr
    assert "seed: int = 0  # of the split" in refused.stderr.split("no parameter sead")[0]  # what there is, first
    assert not (toy / "runs").exists()


@pytest.mark.parametrize("arguments", [("-n", "a/b"), ("-n", "..", "-h"[:0] or "-p"), ("-f", "none.yaml"), ("-x",)])
def test_wrong_usage_exits_with_2(toy, arguments):
    assert run(toy, *arguments).returncode == 2


DECLARED = """\
whole: int = 1  # meaning = one
part: float = 0.5
word: str = "a"
maybe: str | None = None
flag: bool = False
size: "Optional[int]" = None
either: int | str = "auto"
many: list[int] = [1, 2]
untyped = 3
free = None
nothing: str = ""
weights: str = "imagenet"
"""


def declared():
    return declared_parameters(new_notebook(cells=[new_code_cell(DECLARED, metadata={"tags": ["parameters"]})]))


def test_parameters_are_read_as_declared():
    assert declared()["whole"].meaning == "meaning = one"
    assert declared()["maybe"].types == ("str", "None")
    assert declared()["size"].types == ("int", "None")
    assert declared()["many"].default == [1, 2]
    assert declared()["untyped"].types == ("int",)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("whole", "7", 7), ("part", "7", 7.0), ("part", "1e-4", 1e-4), ("word", "1e5", "1e5"),
        ("word", "", ""), ("word", "None", "None"), ("maybe", "None", None), ("maybe", "null", None),
        ("maybe", "1e5", "1e5"),
        ("flag", "true", True), ("flag", "False", False), ("size", "64", 64), ("size", "None", None),
        ("either", "8", 8), ("either", "auto", "auto"), ("many", "[3, 4]", [3, 4]), ("untyped", "5", 5),
        ("free", "x", "x"), ("part", 2, 2.0), ("maybe", None, None), ("word", 5, "5"), ("word", 2.5, "2.5"),
        ("nothing", None, ""), ("nothing", "None", ""), ("nothing", "", ""), ("weights", None, "None"),
    ],
)  # fmt: skip
def test_texts_become_the_declared_types(name, text, value):
    (found,) = fitting_values({name: text}, declared()).values()
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("whole", "7.5"),
        ("whole", "true"),
        ("part", "x"),
        ("flag", "1"),
        ("word", True),
        ("word", None),
        ("many", "3"),
    ],
)
def test_other_types_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected .* Received: "):
        fitting_values({name: value}, declared())


def test_a_derived_default_is_refused():
    cell = new_code_cell("a: int = 1\nb: int = 2 * a", metadata={"tags": ["parameters"]})
    with pytest.raises(ValueError, match="b must have a literal"):
        declared_parameters(new_notebook(cells=[cell]))


def test_paths_count_from_where_the_person_stands(tmp_path, monkeypatch):
    (tmp_path / "my pets").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert from_here("data", "my pets", tmp_path) == str(tmp_path / "my pets")
    assert from_here("data", "~/my pets", helpers.ROOT) == str(tmp_path / "my pets")
    assert from_here("data", "data", helpers.ROOT) == "data"  # in the repository: relative to its root
    assert from_here("data", "../helpers", helpers.ROOT / "tests") == "helpers"
    for name, value in [
        ("data", "digits"),
        ("weights", "imagenet"),
        ("backbone", "ResNet50"),
        ("word", "my pets"),
    ]:
        (tmp_path / value).mkdir(exist_ok=True)
        assert from_here(name, value, tmp_path) == value


def test_auto_is_a_network_that_suits_the_images():
    assert choose_backbone("auto", "digits") == LETTERS
    assert choose_backbone("auto", "pets") == choose_backbone("auto") == PHOTOS
    assert choose_backbone("ResNet50", "digits") == "ResNet50"
    line = describe_backbone(PHOTOS, "imagenet", 96)
    assert "MobileNetV2, 96 pixels, ImageNet weights (9 MB" in line and "BACKBONE=" in line
    assert "letters" in describe_backbone(LETTERS, "imagenet", 0) and "MB" not in describe_backbone(PHOTOS, "x.h5", 0)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"data": "nowhere"}, "`data` .* there is no .*nowhere"),
        ({"on_problem": "drop"}, "`on_problem`.*'drop'"),
        (
            {"validation_fraction": 1.5, "test_fraction": 0.2, "images_per_class": 0, "seed": 0},
            "`validation_fraction`",
        ),
        ({"resize": "croop"}, "`resize`.*'croop'"),
        ({"augmentation": "flop"}, "`augmentation`.*'flop'"),
        ({"steps": 0}, "`steps` above 0"),
        ({"budget": "fast"}, "`budget`.*'fast'"),
        ({"margin": 0.0}, "`margin`"),
        ({"exports": "savedmodel,onxx"}, "`exports`.*'onxx'. Did you mean onnx"),
        ({"shifted": "nowhere"}, "`shifted` .* there is no .*nowhere"),
        ({"new_images": "nowhere"}, "`new_images` .* there is no .*nowhere"),
        ({"backbone": "ResNet5O"}, "Did you mean 'ResNet50'"),
        ({"backbone": "a/my.h5"}, r"load_model\('a/my.h5', compile=False\).save\('a/my.keras'\)"),
        ({"backbone": "no.keras"}, "`backbone` .* there is no file .*no.keras"),
        ({"backbone": "MobileNet", "weights": "no.weights.h5"}, "`weights` .* there is no file .*no.weights.h5"),
        ({"backbone": "MobileNet", "weights": "None", "preprocessing": "x"}, "`preprocessing`"),
    ],
)
def test_what_is_wrong_whatever_the_images_are_is_told_as_the_notebooks_do(wrong, told):
    network = {"weights": "imagenet", "image_size": 0, "preprocessing": "auto", "features_from": "auto"}
    network = network if "backbone" in wrong else {}
    (problem,) = impossible_values(network | wrong)
    assert re.search(told, problem, re.DOTALL)
    (first, *rest) = impossible_values({"budget": "x", "margin": -1.0} | network | wrong)
    assert len(rest) >= 1 and "`budget`" in first + rest[0]


def test_only_what_was_changed_is_looked_at():
    usual = {"budget": "quick", "weights": "imagenet", "image_size": 0, "preprocessing": "auto", "backbone": LETTERS}
    usual["features_from"] = "auto"
    assert checked_values(usual | {"unknown": 1}, usual) == {}
    assert checked_values(usual | {"budget": "60"}, usual) == {"budget": "60"}
    assert checked_values(usual | {"weights": "None"}, usual).keys() == usual.keys() - {"budget"}


def own_images(make_images, tmp_path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs the repository's own notebooks on a folder of images, without a network."""
    folder = make_images(tmp_path / "pets", {"a": 3, "b": 3})
    offline = {"KERAS_HOME": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9", "COLUMNS": "1000"}
    asked = ["-p", "data", str(folder), "--runs-dir", str(tmp_path / "runs"), *arguments]
    return subprocess.run(
        [sys.executable, "-m", "helpers.run", *asked], env=os.environ | offline, cwd=helpers.ROOT,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_network_that_cannot_be_downloaded_is_told_before_anything_starts(make_images, tmp_path):
    refused = own_images(make_images, tmp_path)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "Network: MobileNetV2, 224 pixels, ImageNet weights (9 MB" in refused.stderr
    assert "could not be downloaded" in refused.stderr and "make run WEIGHTS=path" in refused.stderr
    assert not (tmp_path / "runs").exists()


def test_values_are_checked_before_anything_starts(make_images, tmp_path):
    refused = own_images(make_images, tmp_path, "-p", "budget", "fast", "-p", "backbone", "ResNet5O")
    assert refused.returncode == 2 and refused.stderr.endswith("Nothing was started.\n")
    assert "'fast'" in refused.stderr and "Did you mean 'ResNet50'" in refused.stderr
    assert not (tmp_path / "runs").exists() and "Network:" not in refused.stderr


def test_a_run_is_named_after_what_it_is_made_of(tmp_path):
    cell = new_code_cell('data: str = "digits"\nbackbone: str = "auto"')
    cell.metadata.tags = ["parameters"]
    known = declared_parameters(new_notebook(cells=[cell]))
    assert run_name({}, known) == "digits"
    assert run_name({"backbone": "ResNet50"}, known) == "digits-ResNet50"
    assert run_name({"backbone": LETTERS}, known) == "digits"
    assert run_name({"data": "a/my pets"}, known) == "my pets-MobileNetV2"
    assert run_name({"data": "a/pets", "backbone": "b/own.keras"}, known) == "pets-own"
    for name in ("pets.csv", "pets.tar.gz"):
        (tmp_path / name).touch()
        assert run_name({"data": str(tmp_path / name)}, known) == "pets-MobileNetV2"


# ---- what notebooks call


def test_a_run_keeps_parameters_and_refuses_others(tmp_path):
    run_dir = tmp_path / "runs" / "x"
    for parameters in ({"seed": np.int64(3), "data": Path("pets")}, {"seed": 3, "epochs": 5}):
        assert open_run(run_dir, parameters) == run_dir
        keep_parameters(run_dir, parameters)
    kept = (run_dir / "parameters.yaml").read_bytes()
    assert yaml.safe_load(kept) == {"seed": 3, "data": "pets", "epochs": 5}
    with pytest.raises(ValueError, match="made with seed=3, and seed=4 was asked for: choose another folder"):
        open_run(run_dir, {"seed": 4, "rate": 0.1})
    assert open_run(run_dir, {"rate": 0.1}) == run_dir, "not kept before there are results"
    assert set(contents(run_dir)) == {"parameters.yaml", "environment.json"}
    assert (run_dir / "parameters.yaml").read_bytes() == kept


def test_what_papermill_makes_of_a_text_is_understood_or_named(root, monkeypatch):
    """It makes numbers of 2024 and 60, and None of "None"."""
    parameters = 'data: str = "digits"\nseed: int = 0\nbudget: str = "quick"\nexports: str = "onnx"'
    write_notebook(root / "notebooks" / "01_any.ipynb", "Any?", parameters, "None")
    monkeypatch.setattr("helpers.run.ROOT", root)
    assert open_run(2024, {"data": 2024, "budget": 60, "exports": None}) == root / "2024"
    for seed in (1.0, None, "x"):
        with pytest.raises(ValueError, match=f"seed: expected int. Received: {seed!r}"):
            open_run(2024, {"seed": seed})
    keep_parameters(root / "2024", {"budget": 60})
    assert open_run(2024, {"budget": "60"}), "the runner's"


def test_require_names_the_notebook_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Expected images.csv in .* Run 01_load_data first"):
        require(tmp_path, "images.csv", "01_load_data")
    (tmp_path / "images.csv").touch()
    assert require(tmp_path, "images.csv", "01_load_data") == tmp_path / "images.csv"


def test_metrics_are_merged_by_arm(tmp_path):
    assert read_metrics(tmp_path) == {}
    update_metrics(tmp_path, arms={"frozen": {"test_accuracy": np.float32(0.5), "trainable_weights": np.int64(7)}})
    update_metrics(tmp_path, arms={"fine-tuned": {"test_accuracy": 0.75}}, answer="Yes.")
    update_metrics(tmp_path, arms={"frozen": {"test_accuracy": 0.25}}, answer="No.")
    frozen, tuned = {"test_accuracy": 0.25}, {"test_accuracy": 0.75}
    assert read_metrics(tmp_path) == {"answer": "No.", "arms": {"frozen": frozen, "fine-tuned": tuned}}


def test_the_summary_has_a_row_for_each_arm_from_cheap_to_dear():
    arm = {"test_accuracy": 0.25, "low": 0.2, "high": 0.3}
    arms = {"another": arm, "fine-tuned": arm | {"seconds": 2.34, "trainable_weights": 1200}, "frozen": arm}
    assert summary_rows({"arms": arms}) == [
        ("frozen", "0.250", "0.200 to 0.300", "–", "–"),
        ("fine-tuned", "0.250", "0.200 to 0.300", "2.3", "1,200"),
        ("another", "0.250", "0.200 to 0.300", "–", "–"),
    ]
    assert summary_rows({}) == []


def test_arms_of_several_splits_stand_for_those_of_one():
    one = {"test_accuracy": 0.25, "low": 0.2, "high": 0.3}
    several = {"from scratch": {"test_accuracy": 0.5}, "frozen": one | {"test_accuracy": 0.26, "seconds": 1.0}}
    rows = summary_rows({"arms": {"frozen": one}, "study": several})
    assert rows == [("from scratch", "0.500", "–", "–", "–"), ("frozen", "0.260", "0.200 to 0.300", "1.0", "–")]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    update_metrics(tmp_path, answer="Yes.")
    before = contents(tmp_path)
    with pytest.raises(TypeError):
        update_metrics(tmp_path, answer=object())
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "metrics.json", "half \ud800")
    assert contents(tmp_path) == before


def test_relative_paths_count_from_the_root(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_path("data/digits") == helpers.ROOT / "data" / "digits"
    assert resolve_path("~/pets") == tmp_path / "pets"
    assert resolve_path(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("texts", "settled"),
    [
        (["\r  0%|   | 0/2", "\r 50%|#  | 1/2", "\r          \r"], ""),
        (["start\n", "\r100%|###| 2/2 [00:00<00:00]\n", "end\n"], "start\nend\n"),
        (["\r 10%|", "\r        \r", "done\n"], "done\n"),
        (["accuracy 95%|5 wrong\n", "a\r\nb\n", "no end"], "accuracy 95%|5 wrong\na\nb\nno end"),
        (["a: 0%|  | 0/2\x1b[A\r 50%| | 1/2\n"], ""),
    ],
)
def test_progress_bars_are_left_out(texts, settled):
    cell = new_code_cell("x", outputs=[new_output("stream", text=text) for text in texts])
    (cleaned,) = without_progress_bars(new_notebook(cells=[cell])).cells
    assert "".join(output.text for output in cleaned.outputs) == settled
    assert len(cleaned.outputs) == bool(settled)


@pytest.mark.parametrize("by_the_runner", [False, True])
def test_a_bar_leaves_an_empty_line_in_a_notebook_that_is_executed_without_the_runner(monkeypatch, by_the_runner):
    monkeypatch.setenv("PYTHONPATH", str(Path(helpers.__file__).parent.parent))
    monkeypatch.delenv("TQDM_DISABLE")
    bar = "list(tqdm(range(30), 'a bar', file=progress_file(), leave=False, mininterval=0))"
    source = (
        f"from tqdm import tqdm; from helpers import progress_file; print('before')\n{bar}\n{bar}\nprint('after')"
    )
    notebook = new_notebook(cells=[new_code_cell(source), new_code_cell(f"{bar}; 1 / 0")])
    kernel = {"kernel_manager_class": kernel_manager_class()} if by_the_runner else {"kernel_name": "python3"}
    NotebookClient(notebook, allow_errors=True, **kernel).execute()
    found = [output.get("text", output.get("data")) for output in notebook.cells[0].outputs]
    if by_the_runner:
        assert "a bar:  50%|" in "".join(found)
        without_progress_bars(notebook)
        assert [output.text for output in notebook.cells[0].outputs] == ["before\nafter\n"]
    else:
        assert found == ["before\n", {"text/plain": ""}, "after\n"]
        assert [output.output_type for output in notebook.cells[1].outputs] == ["display_data", "error"]


def test_a_saved_table_names_its_rows_and_has_numbers_to_be_read(tmp_path):
    names = ["1.50", "NA", 'x,"y"', "b\r"]
    table = pd.DataFrame({"a": [0.9738562091503268, 1131722.5, 3e-05, np.nan], "n": range(4)}, index=names)
    save_table(table.rename_axis("class"), tmp_path / "a.csv")
    found = read_texts(tmp_path / "a.csv")
    assert list(found) == ["class", "a", "n"] and found["class"].tolist() == names
    assert found["a"].tolist() == ["0.97386", "1131722", "3e-05", ""] and found["n"].tolist() == list("0123")
    save_table(table, tmp_path / "b.csv")
    assert list(read_texts(tmp_path / "b.csv")) == ["a", "n"], "rows that are only numbered need no column"
