"""The pipeline, on toy notebooks in a toy copy of the repository: no Keras, a second for each kernel."""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from filelock import FileLock
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from refresh import copy_tree

import helpers
from helpers.execution import is_finished, read_executed, without_progress_bars
from helpers.parameters import LETTERS, PHOTOS, Parameter, declared_parameters
from helpers.records import Records
from helpers.report import summary_rows
from helpers.run import Step, _fill_in, main, run_name

RUN_DIR = 'run_dir: str = "runs/digits"  # where results go\n'

LOAD = """\
from pathlib import Path
from tqdm import tqdm
from IPython.display import HTML
import sys
from helpers.notebook_run import Run
run = Run.open(globals(), "01_load_data")
run.path("images.csv").write_text("path,label")
for _ in tqdm(range(20), file=sys.stdout, leave=False, mininterval=0): pass
print("20 images", Path.cwd() == Path(sys.modules["helpers"].__file__).parent.parent)
HTML('<style scoped>td {}</style><table border="1"><tr><td>3</td><td>20</td></tr></table>')"""

TRAIN = """\
from helpers.notebook_run import Run
run = Run.open(globals(), "02_train")
run.path("images.csv", made_by="01_load_data")
if weights == "broken": raise ValueError("weights: expected a file.\\nReceived: broken.")
arm = dict(test_accuracy=0.94, low=0.92, high=0.96, seconds=2.5, trainable_weights=1200)
run.update_metrics(arms={"frozen": arm}, answer="Freeze: it is cheaper.")
None"""

COMPLAINTS = """\
import asyncio, logging, tornado.log
logging.getLogger("tornado.general").error("Uncaught exception in ZMQStream callback")
logging.getLogger("asyncio").error("Task destroyed")"""


def write_notebook(toy: Path, name: str, parameters: str, *code: str) -> None:
    cells = [new_markdown_cell("# A title?\n\nSee [02](02_train.ipynb) and [the package](../helpers/run.py).")]
    cells.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    for source in code:
        cells += [new_markdown_cell("## A step"), new_code_cell(source)]
    nbformat.write(new_notebook(cells=cells), toy / "notebooks" / f"{name}.ipynb")


def make_toy(folder: Path) -> Path:
    """Returns a repository with the package, two numbered notebooks and an appendix."""
    shutil.copytree(Path(helpers.__file__).parent, folder / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "notebooks").mkdir()
    loading = RUN_DIR + 'data: str = "digits"  # a folder of images\nseed: int = 0  # of the split'
    training = RUN_DIR + 'weights: str | None = "imagenet"  # a file, a=b\nrate: float = 1e-3  # of the head'
    write_notebook(folder, "01_load_data", loading, LOAD)
    write_notebook(folder, "02_train", training, TRAIN, COMPLAINTS)
    write_notebook(folder, "A1_appendix", "full: bool = False  # all of it", "1 / 0")
    return folder


@pytest.fixture
def toy(tmp_path) -> Path:
    return make_toy(tmp_path / "toy")


def start(toy: Path, *arguments: str, cwd: str = ".", **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(toy), "COLUMNS": "100"}
    options |= {"cwd": toy / cwd, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", "helpers.run", *arguments], text=True, **options)


def run(toy: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    process = start(toy, *arguments, **options)
    printed, told = process.communicate(timeout=300)
    assert "Traceback" not in printed + told
    return subprocess.CompletedProcess(process.args, process.returncode, printed, told)


def contents(toy: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (toy / "runs").rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A toy whose pipeline went through from a subfolder, although the user's kernel of the usual name is broken."""
    toy = make_toy(tmp_path_factory.mktemp("finished") / "toy")
    spec = toy / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["false"], "display_name": "broken", "language": "python"}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_DATA_DIR", str(toy / "jupyter"))
        return toy, run(toy, "-p", "rate", "0.01", cwd="notebooks")


# ---- the whole pipeline


def test_it_goes_through(finished):
    toy, done = finished
    folder = toy / "runs" / "digits"
    assert done.returncode == 0, done.stderr
    assert "frozen          0.940  0.920 to 0.960      2.5              1,200" in done.stdout
    assert done.stdout.endswith(f"\n\nFreeze: it is cheaper.\n\nReport: {folder / 'report.html'}\n")
    made = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    notebooks = {"01_load_data.ipynb", "02_train.ipynb"}  # no appendix
    made -= {"notebooks.json", "environment.json"}
    assert made == notebooks | {"images.csv", "metrics.json", "parameters.yaml", "report.html"}
    kept = yaml.safe_load((folder / "parameters.yaml").read_text())
    assert kept == {"data": "digits", "seed": 0, "weights": "imagenet", "rate": 0.01}
    (environment,) = json.loads((folder / "environment.json").read_text())
    assert environment["python"] == platform.python_version() and "commit" not in environment


def test_notebooks_are_executed_from_the_root_and_stored_without_noise(finished):
    """Neither progress bars nor the kernels' own complaints are stored or reach the terminal."""
    toy, done = finished
    stored = nbformat.read(toy / "runs" / "digits" / "01_load_data.ipynb", as_version=4)
    assert stored.cells[-1].outputs[0].text == "20 images True\n"
    assert nbformat.read(toy / "runs" / "digits" / "02_train.ipynb", as_version=4).cells[-1].outputs == []
    assert "ZMQStream" not in done.stdout + done.stderr and "destroyed" not in done.stderr


def test_what_has_finished_is_not_executed_again(finished):
    toy, _ = finished
    before = contents(toy)
    again = run(toy, "-p", "rate", "1e-2", "-p", "seed", "0")
    assert again.returncode == 0 and "nothing is left to do" in again.stderr
    assert "1,200" in again.stdout and "Report: runs/digits/report.html" in again.stdout
    assert contents(toy) == before


def test_the_report_has_the_run_in_it_and_opens_offline(finished):
    html = (finished[0] / "runs" / "digits" / "report.html").read_text()
    assert not any(word in html for word in ("<script", "<link", "<iframe", "@import", "url("))
    page = BeautifulSoup(html, "html.parser")
    assert all(tag["src"].startswith("data:") for tag in page.find_all(src=True))
    assert page.title.text == "Freeze or fine-tune? digits"
    assert page.find(class_="answer").text == "Freeze: it is cheaper."
    summary, parameters = (page.find(id=name).find_parent("section").table for name in ("results", "settings"))
    assert [c.text for c in summary.tbody.find_all(["th", "td"])][:2] == ["frozen", "0.940"]
    rows = {row.th.text: [c.text for c in row.find_all("td")] for row in parameters.tbody.find_all("tr")}
    assert rows["rate"] == ["0.01", "of the head"] and rows["weights"][1] == "a file, a=b"
    assert page.find(class_="failure") is None
    links = [tag["href"] for tag in page.find_all("a") if tag["href"].endswith(".ipynb")]
    assert links == ["01_load_data.ipynb", "02_train.ipynb"]
    assert "make run NAME=digits RATE=0.01\n" in page.find(id="repeat").find_next("pre").text + "\n"


def test_how_many_labels_is_asked_only_on_request_and_then_nothing_else_is_done(toy):
    write_notebook(toy, "06_how_many_labels", RUN_DIR, "print('labels')")
    assert run(toy).returncode == 0
    folder = toy / "runs" / "digits"
    assert not (folder / "06_how_many_labels.ipynb").exists()
    asked = run(toy, "--labels")
    assert "01_load_data, 02_train finished before; resuming with 06_how_many_labels" in " ".join(
        asked.stderr.split()
    )
    assert is_finished(read_executed(folder / "06_how_many_labels.ipynb"))
    assert "make labels NAME=digits" in (folder / "report.html").read_text()
    assert "nothing is left to do" in run(toy).stderr


# ---- other parameters


def test_other_parameters_go_on_from_the_notebook_that_they_concern_and_nothing_is_lost(toy):
    assert run(toy).returncode == 0
    folder, first = toy / "runs" / "digits", contents(toy)
    other = run(toy, "-p", "rate", "0.01")
    told = " ".join(other.stderr.split())
    assert other.returncode == 0, told
    assert "02_train with rate=0.01 instead of 0.001: earlier results were moved to runs/digits/earlier/1." in told
    assert "01_load_data finished before; resuming with 02_train" in told
    assert (folder / "01_load_data.ipynb").read_bytes() == first[folder / "01_load_data.ipynb"]
    earlier = {path.relative_to(folder / "earlier" / "1") for path in contents(toy) if "earlier" in path.parts}
    names = ("02_train.ipynb", "metrics.json", "notebooks.json", "parameters.yaml", "report.html")
    assert earlier == {Path(name) for name in names}
    assert all((folder / "earlier" / "1" / name).read_bytes() == first[folder / name] for name in names)
    other = run(toy, "-p", "rate", "0.01", "-p", "seed", "1")
    told = " ".join(other.stderr.split())
    assert other.returncode == 0 and "01_load_data with seed=1 instead of 0: earlier results were moved to" in told
    assert "digits/earlier/2, with what was made of them by 02_train." in told and "finished before" not in told
    assert (folder / "earlier" / "2" / "images.csv").exists() and (folder / "images.csv").exists()
    kept = yaml.safe_load((folder / "parameters.yaml").read_text())
    assert kept == {"data": "digits", "seed": 1, "weights": "imagenet", "rate": 0.01}
    for arguments in (("-p", "rate", "0.01", "-p", "seed", "1"), (), ("-p", "seed", "1")):
        told = run(toy, *arguments).stderr
        assert "nothing is left to do" in told, "what is not named stays"
        assert ("rate=0.01" in told) == ("rate" not in arguments) and not (folder / "earlier" / "3").exists()


def test_other_images_get_the_network_that_suits_them_and_a_named_one_stays(tmp_path):
    def network(**values) -> str:
        steps = [Step(Path("01.ipynb"), None, {"data": Parameter("data", "digits", ("str",))})]
        steps.append(Step(Path("02.ipynb"), None, {"backbone": Parameter("backbone", "auto", ("str",))}))
        _fill_in(tmp_path, steps, values)
        return steps[1].values["backbone"]

    Records(tmp_path).begin("01", {"data": "digits"})
    Records(tmp_path).begin("02", {"backbone": LETTERS})
    assert network() == LETTERS and network(data="pets") == PHOTOS
    Records(tmp_path).change("02", parameters={"backbone": "ResNet50"})
    assert network() == network(data="pets") == "ResNet50"


def test_wrong_values_are_named_before_anything_is_moved(toy):
    assert run(toy).returncode == 0
    before = contents(toy)
    refused = run(toy, "-p", "data", "no/such/folder", "-n", "digits")
    assert refused.returncode == 2 and "no/such/folder" in refused.stderr and contents(toy) == before


def test_an_edited_notebook_is_executed_again(toy):
    assert run(toy).returncode == 0
    path = toy / "notebooks" / "02_train.ipynb"
    path.write_text(path.read_text().replace("cheaper", "simpler"))
    again = run(toy)
    assert again.returncode == 0 and "02_train with edited cells: earlier results were moved" in again.stderr
    assert "Freeze: it is simpler." in again.stdout and "cheaper" not in again.stdout


# ---- what goes wrong on the way


def test_a_failing_cell_is_named_and_the_run_resumes_once_the_problem_is_fixed(toy):
    failed = run(toy, "-n", "mine", "-p", "weights", "broken")
    assert failed.returncode == 1
    assert '02_train stopped in In [3], at `if weights == "broken": raise' in " ".join(failed.stderr.split())
    assert "ValueError: weights: expected a file.\nReceived: broken.\n" in failed.stderr
    assert "kept: 01_load_data." in failed.stderr and "runs/mine/report.html" in failed.stderr
    assert "02_train did not finish." in (toy / "runs" / "mine" / "report.html").read_text()
    first = (toy / "runs" / "mine" / "01_load_data.ipynb").read_bytes()
    better = run(toy, "-n", "mine", "-p", "weights", "None")
    assert better.returncode == 0 and "resuming with 02_train" in better.stderr, better.stderr
    assert (toy / "runs" / "mine" / "01_load_data.ipynb").read_bytes() == first
    assert yaml.safe_load((toy / "runs" / "mine" / "parameters.yaml").read_text())["weights"] is None
    assert 'class="failure"' not in (toy / "runs" / "mine" / "report.html").read_text()


def test_a_dead_kernel_is_explained_and_counts_as_unfinished(toy):
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    write_notebook(toy, "01_load_data", "seed: int = 0  # any", kill)
    died = run(toy, "-n", "x")
    assert died.returncode == 1 and "01_load_data stopped" in died.stderr
    assert "memory" in died.stderr and "No notebook has finished" in died.stderr
    assert not is_finished(read_executed(toy / "runs" / "x" / "01_load_data.ipynb"))
    assert "memory" in (toy / "runs" / "x" / "report.html").read_text()


def test_an_interruption_keeps_what_has_finished(toy):
    write_notebook(toy, "02_train", RUN_DIR, "open(run_dir + '/on', 'w')", "import time; time.sleep(60)")
    process, deadline = start(toy), time.monotonic() + 120
    while not (toy / "runs" / "digits" / "on").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted." in errors and "kept: 01_load_data." in errors and "Traceback" not in errors
    about = nbformat.read(toy / "runs" / "digits" / "02_train.ipynb", as_version=4).metadata.papermill
    assert about.exception is True  # so that it is executed again


def test_an_interruption_that_is_ignored_at_the_start_stays_ignored(toy):
    code = "import os, signal\n[os.kill(process, signal.SIGINT) for process in (os.getppid(), os.getpid())]"
    (toy / "notebooks" / "02_train.ipynb").unlink()
    write_notebook(toy, "01_load_data", RUN_DIR, code, "import time; time.sleep(0.5)")
    done = run(toy, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert done.returncode == 0, done.stderr


def test_two_runs_cannot_write_to_one_folder(toy):
    folder = toy / "runs" / "digits"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        second = run(toy)
    assert second.returncode == 2 and "Another run is writing to runs/digits" in second.stderr
    assert {path.name for path in folder.iterdir()} <= {".lock"}


# ---- what is refused before anything starts


def test_all_wrong_parameters_are_reported_together(toy):
    refused = run(toy, *"-p sead 1 -p rate fast -p seed 1.5 -p full True -p run_dir x".split())
    known, _, told = refused.stderr.partition("There is no parameter sead. Did you mean seed?")
    assert refused.returncode == 2 and "seed: int = 0  # of the split" in known
    assert "rate: expected float" in told and "seed: expected int" in told
    assert "no parameter full" in told and "run_dir is set by the runner" in told  # full is of an appendix
    assert not (toy / "runs").exists()


@pytest.mark.parametrize("arguments", [["-n", "a/b"], ["-n", ".."], ["-x"]])
def test_wrong_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


def test_values_and_weights_are_checked_before_anything_starts(make_images, tmp_path):
    tree, images = copy_tree(tmp_path / "repository"), make_images(tmp_path / "pets", {"a": 3, "b": 3})
    options = {"cwd": tree, "capture_output": True, "text": True, "timeout": 600}
    options["env"] = os.environ | {"PYTHONPATH": str(tree), "COLUMNS": "1000"}
    options["env"] |= {"KERAS_HOME": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9"}  # offline
    command = [sys.executable, "-m", "helpers.run", "-p", "data", str(images), "-p", "shifted", "no/such/folder"]
    refused = subprocess.run(command, **options)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    for told in ("ImageNet weights (9 MB", "no/such/folder. Check the spelling", "Nothing was started."):
        assert told in " ".join(refused.stderr.split())
    refused = subprocess.run(command[:-3], **options)
    assert refused.returncode == 2 and "could not be downloaded" in refused.stderr
    assert not (tree / "runs").exists()


def test_a_run_is_named_after_what_it_is_made_of(tmp_path):
    cell = new_code_cell('data: str = "digits"\nbackbone: str = "auto"', metadata={"tags": ["parameters"]})
    known = declared_parameters(new_notebook(cells=[cell]))
    assert run_name({}, known) == run_name({"backbone": LETTERS}, known) == "digits"
    assert run_name({"backbone": "ResNet50"}, known) == "digits-ResNet50"
    assert run_name({"data": "a/my pets"}, known) == "my pets-MobileNetV2"
    assert run_name({"data": "a/pets", "backbone": "b/own.keras"}, known) == "pets-own"
    for name in ("pets.csv", "pets.tar.gz"):
        (tmp_path / name).touch()
        assert run_name({"data": str(tmp_path / name)}, known) == "pets-MobileNetV2"


# ---- what is shown


def test_the_summary_has_a_row_for_each_arm_from_cheap_to_dear():
    arm = {"test_accuracy": 0.25, "low": 0.2, "high": 0.3}
    arms = {"another": arm, "fine-tuned": arm | {"seconds": 2.34, "trainable_weights": 1200}, "frozen": arm}
    plain = ("0.250", "0.200 to 0.300", "–", "–")
    tuned = ("fine-tuned", "0.250", "0.200 to 0.300", "2.3", "1,200")
    assert summary_rows({"arms": arms}) == [("frozen", *plain), tuned, ("another", *plain)]
    study = {"from scratch": {"test_accuracy": 0.5}, "frozen": arm}
    several = [("from scratch", "0.500", "–", "–", "–"), ("frozen", *plain)]
    assert summary_rows({"arms": arms, "study": study}) == several, "instead of those of one split"
    assert summary_rows({}) == []


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
    if by_the_runner:
        monkeypatch.setenv("BARS_ON_STDOUT", "1")
    bar = "list(tqdm(range(30), 'a bar', file=progress_file(), leave=False, mininterval=0))"
    imports = "from tqdm import tqdm; from helpers import progress_file"
    sources = [f"{imports}; print('before')\n{bar}\n{bar}\nprint('after')", f"{bar}; 1 / 0"]
    notebook = new_notebook(cells=list(map(new_code_cell, sources)))
    NotebookClient(notebook, allow_errors=True, kernel_name="python3").execute()
    found = [output.get("text", output.get("data")) for output in notebook.cells[0].outputs]
    if by_the_runner:
        assert "a bar:  50%|" in "".join(found)
        without_progress_bars(notebook)
        assert [output.text for output in notebook.cells[0].outputs] == ["before\nafter\n"]
    else:
        assert found == ["before\n", {"text/plain": ""}, "after\n"]
        assert [output.output_type for output in notebook.cells[1].outputs] == ["display_data", "error"]
