"""A study's trials: shared by workers, taken over from dead ones, each done once, in files and in a database."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from helpers.study import trials as module
from helpers.study.trials import Trial, Trials

SETTINGS = {"images": "a1", "budget": "quick"}
WANTED = [
    Trial("race", "fine-tuned", "head", stage, rate, 3) for stage in ("conv3", "conv1") for rate in (1e-3, 1e-2)
]
WANTED += [Trial("final", "frozen", "head", seed=seed) for seed in range(1, 9)]

WORKER = """
import sys, time
from pathlib import Path
from types import ModuleType
import helpers
study = sys.modules["helpers.study"] = ModuleType("helpers.study")  # trials need no network: no wait for TensorFlow
study.__path__ = [str(Path(helpers.__file__).parent / "study")]
from helpers.study import trials as module
from helpers.study.trials import Trial, Trials
sys.path.insert(0, {tests!r})
from test_trials import SETTINGS, WANTED, result_of
log, pause = Path(sys.argv[2]), float(sys.argv[3])
module.HEARTBEAT, module.SILENCE = 0.2, 5.0

def work(trial):
    with open(log, "a") as file:
        file.write(str(WANTED.index(trial)) + "\\n")
    time.sleep(pause)
    return result_of(trial)

trials = Trials(sys.argv[1], name=log.parent.name, settings=SETTINGS)
found = trials.run(WANTED, work)
assert found == {{trial: result_of(trial) for trial in WANTED}} and list(found) == WANTED
"""


def result_of(trial: Trial) -> dict:
    """Returns what only depends on the trial, as every result of a study does."""
    return {"log_loss": trial.learning_rate + trial.seed + len(trial.stage) / 10, "outcome": "done"}


def start_worker(storage, log: Path, *, pause: float = 0.2) -> subprocess.Popen:
    script = WORKER.format(tests=str(Path(__file__).parent))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "TQDM_DISABLE": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", script, str(storage), str(log), str(pause)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(worker: subprocess.Popen) -> None:
    _, errors = worker.communicate(timeout=300)
    assert worker.returncode == 0, errors[-3000:]


def begun(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.exists() else []


@pytest.fixture(scope="module")
def postgresql():
    """The URL of a server of its own."""
    programs = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
    programs = Path(shutil.which("initdb")).parent if shutil.which("initdb") else programs
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp())  # pytest's folders are closed to other users, and too long for a socket
    as_user = []
    if os.getuid() == 0:  # the server refuses to be root
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    data = folder / "data"

    def call(program: str, *arguments: str) -> None:
        command = [*as_user, str((programs / program).resolve()), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)

    call("initdb", "-D", str(data), "-A", "trust", "-U", "worker")
    call(
        "pg_ctl",
        "-D",
        str(data),
        "-w",
        "-l",
        str(folder / "log"),
        "-o",
        f"-c listen_addresses='' -k {folder}",
        "start",
    )
    yield f"postgresql://worker@/postgres?host={folder}"
    call("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture(params=["journal", "postgresql"])
def storage(request, tmp_path):
    if request.param == "journal":
        return str(tmp_path / "study.journal")
    return request.getfixturevalue("postgresql")


def test_results_come_in_the_order_asked_for_and_are_kept(tmp_path):
    storage = tmp_path / "study.journal"
    first = Trials(storage, name="study", settings=SETTINGS)
    assert first.run(WANTED[:3], result_of) == {trial: result_of(trial) for trial in WANTED[:3]}
    assert first.done == WANTED[:3]
    again = Trials(storage, name="study", settings=SETTINGS)
    found = again.run(WANTED, result_of)
    assert list(found) == WANTED and again.done == WANTED[3:]
    assert Trials(storage, name="study", settings=SETTINGS).results(WANTED[::-1]) == dict(reversed(found.items()))


def test_optunas_own_tools_see_stages_rates_and_losses(tmp_path):
    trials = Trials(tmp_path / "study.journal", name="study", settings=SETTINGS)
    trials.run(WANTED[:2], result_of)
    table = trials.study.trials_dataframe()
    assert table["params_learning_rate"].tolist() == [1e-3, 1e-2]
    assert table["value"].tolist() == [result_of(trial)["log_loss"] for trial in WANTED[:2]]


def test_a_trial_that_fails_is_recorded_and_the_others_go_on(tmp_path):
    def work(trial: Trial) -> dict:
        if trial == WANTED[1]:
            raise ValueError("activations that are not finite")
        return result_of(trial)

    trials = Trials(tmp_path / "study.journal", name="study", settings=SETTINGS)
    found = trials.run(WANTED[:3], work)
    assert found[WANTED[1]] == {"outcome": "failed: ValueError: activations that are not finite"}
    assert found[WANTED[2]] == result_of(WANTED[2])
    again = Trials(tmp_path / "study.journal", name="study", settings=SETTINGS)
    assert again.run(WANTED[:3], work) == found and again.done == []


def test_a_line_that_was_cut_off_costs_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SILENCE", 1.0)  # the process that began what the line ended is this one, and alive
    storage = tmp_path / "study.journal"
    Trials(storage, name="study", settings=SETTINGS).run(WANTED[:2], result_of)
    whole = storage.read_bytes()
    storage.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 20])  # a full disk, or a killed process
    for wanted in (WANTED[:2], WANTED[:4]):
        found = Trials(storage, name="study", settings=SETTINGS).run(wanted, result_of)
        assert found == {trial: result_of(trial) for trial in wanted}


def test_another_steps_trial_is_left_alone(tmp_path):
    trials = Trials(tmp_path / "study.journal", name="study", settings=SETTINGS)
    trials._enqueue(WANTED[:2])  # by a worker that is further on
    found = trials.run(WANTED[2:3], result_of)
    assert list(found) == trials.done == WANTED[2:3]
    assert set(trials.run(WANTED[:2], result_of)) == set(WANTED[:2])


def test_a_failure_that_is_not_to_be_kept_is_raised_and_tried_again(tmp_path):
    def work(trial: Trial) -> dict:
        raise ValueError("too few minutes")

    trials = Trials(tmp_path / "study.journal", name="study", settings=SETTINGS)
    with pytest.raises(ValueError, match="too few minutes"):
        trials.run(WANTED[:1], work, keep_failures=False)
    assert trials.run(WANTED[:1], result_of)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_stops_a_study_leaves_its_trial_to_be_done(tmp_path, error):
    def work(trial: Trial) -> dict:
        if trial == WANTED[1]:
            raise error
        return result_of(trial)

    trials = Trials(tmp_path / "study.journal", name="study", settings=SETTINGS)
    with pytest.raises(type(error)):
        trials.run(WANTED[:3], work)
    again = Trials(tmp_path / "study.journal", name="study", settings=SETTINGS)
    assert list(again.run(WANTED[:3], result_of)) == WANTED[:3]
    assert set(again.done) == set(WANTED[1:3])


def test_after_the_deadline_nothing_is_begun(tmp_path):
    trials = Trials(tmp_path / "study.journal", name="study", settings=SETTINGS)
    deadline = time.monotonic() + 100
    found = trials.run(WANTED, result_of, expected=lambda trial: 1e3 * trial.seed, deadline=deadline)
    assert list(found) == WANTED[:4]


def test_a_storage_of_other_data_is_refused(tmp_path):
    Trials(tmp_path / "study.journal", name="study", settings=SETTINGS)
    with pytest.raises(ValueError, match="other data or parameters: images='a1', and 'b2' was asked for. Choose"):
        Trials(tmp_path / "study.journal", name="study", settings=SETTINGS | {"images": "b2"})


def test_of_two_workers_that_begin_together_with_other_data_one_goes_on(tmp_path):
    first = Trials(tmp_path / "study.journal", name="study", settings=SETTINGS)
    second = Trials(tmp_path / "study.journal", name="study", settings=SETTINGS)
    second._settings = second._settings | {"images": "b2"}  # both saw an empty storage, and this one wrote last
    second.study.set_user_attr("settings", second._settings)
    with pytest.raises(ValueError, match="other data or parameters: images='b2', and 'a1' was asked for"):
        first.run(WANTED[:1], result_of)
    assert list(second.run(WANTED[:1], result_of)) == WANTED[:1]


def test_a_storage_that_cannot_be_used_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ATTEMPTS", 1)
    with pytest.raises(ValueError, match="postgresql://me@localhost:1/none cannot be reached: .*refused"):
        Trials("postgresql://me@localhost:1/none", name="study", settings={})
    with pytest.raises(ValueError, match="cannot be used|cannot be reached"):
        Trials("/proc/none/study.journal", name="study", settings={})
    (tmp_path / "text").write_text("not a journal\n")
    with pytest.raises(ValueError, match="text is no journal file of Optuna"):
        Trials(tmp_path / "text", name="study", settings={})


def test_a_password_in_a_parameter_is_refused_and_not_repeated():
    with pytest.raises(
        ValueError, match="without a password.* Name postgresql://me@host/db, .*PGPASSWORD"
    ) as refused:
        Trials("postgresql://me:secret@host/db", name="study", settings={})
    assert "secret" not in str(refused.value)
    with pytest.raises(ValueError, match="without a password"):
        Trials("postgresql:///db?user=me&password=secret", name="study", settings={})


@pytest.mark.parametrize(("workers", "storage"), [(2, "journal"), (4, "postgresql")], indirect=["storage"])
def test_workers_share_the_trials_and_none_is_done_twice(storage, workers, tmp_path):
    log = tmp_path / "log"
    started = [start_worker(storage, log, pause=0.5) for _ in range(workers)]
    for worker in started:
        ended(worker)
    assert sorted(begun(log)) == list(range(len(WANTED)))


def test_a_dead_workers_trial_is_taken_over(storage, tmp_path):
    log = tmp_path / "log"
    killed = start_worker(storage, log, pause=60.0)
    while not begun(log):
        time.sleep(0.1)
        assert killed.poll() is None, killed.communicate()[1][-2000:]
    helper = start_worker(storage, log, pause=0.05)
    while len(begun(log)) < len(WANTED):  # it does all others, and then waits for the last one
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    ended(helper)
    assert sorted(begun(log)) == sorted([*range(len(WANTED)), begun(log)[0]])


@pytest.mark.parametrize("elsewhere", [("platform.node", "another-machine"), ("os.readlink", "pid:[1]")])
def test_a_worker_of_another_machine_or_container_is_dead_when_it_is_silent(elsewhere, tmp_path, monkeypatch):
    trials = Trials(tmp_path / "study.journal", name="study", settings=SETTINGS)
    trials._enqueue(WANTED[:1])
    with monkeypatch.context() as there:
        name, answer = elsewhere
        there.setattr(name, lambda *path: answer)
        there.setattr("os.getpid", lambda: 999_999_999)  # there is no process of this number here
        trials._claim(set(WANTED))
    monkeypatch.setattr(module, "SILENCE", 0.5)
    started = time.monotonic()
    assert list(trials.run(WANTED[:1], result_of)) == WANTED[:1]
    assert time.monotonic() - started > 0.5


def test_a_trial_that_two_workers_added_is_done_once(tmp_path):
    trials = Trials(tmp_path / "study.journal", name="study", settings=SETTINGS)
    trials._enqueue(WANTED[:2])
    kept = [json.loads(trial.user_attrs["trial"]) for trial in trials.study.trials]
    for values in kept:  # as another worker does at the same moment
        trials.study.enqueue_trial({}, user_attrs={"trial": json.dumps(values)})
    trials.run(WANTED[:3], result_of)
    assert trials.done == WANTED[:3]
