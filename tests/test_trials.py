"""A study's trials: kept in a file, resumed, and shared by the workers of a Dask cluster, of which some die."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask
import pytest
from distributed import LocalCluster, WorkerPlugin

from helpers.study.trials import Trial, Trials

SETTINGS = {"images": "a1", "budget": "quick"}
WANTED = [
    Trial("race", "fine-tuned", "head", stage, rate, 3) for stage in ("conv3", "conv1") for rate in (1e-3, 1e-2)
]
WANTED += [Trial("final", "frozen", "head", seed=seed) for seed in range(1, 9)]


def result_of(trial: Trial) -> dict:
    """Returns what only depends on the trial, as every result of a study does."""
    return {"log_loss": trial.learning_rate + trial.seed + len(trial.stage) / 10, "outcome": "done"}


EXPECTED = {trial: result_of(trial) for trial in WANTED}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "study.jsonl"


def test_results_come_in_the_order_asked_for_and_are_kept(file):
    first = Trials(file, settings=SETTINGS)
    assert first.run(WANTED[:3], result_of) == {trial: result_of(trial) for trial in WANTED[:3]}
    assert first.done == WANTED[:3]
    again = Trials(file, settings=SETTINGS)
    found = again.run(WANTED, result_of)
    assert found == EXPECTED and list(found) == WANTED and again.done == WANTED[3:]
    assert list(Trials(file, settings=SETTINGS).results(WANTED[::-1])) == WANTED[::-1]


def test_a_trial_that_fails_is_recorded_and_the_others_go_on(file):
    def work(trial: Trial) -> dict:
        if trial == WANTED[1]:
            raise ValueError("activations that are not finite")
        return result_of(trial)

    found = Trials(file, settings=SETTINGS).run(WANTED[:3], work)
    assert found[WANTED[1]] == {"outcome": "failed: ValueError: activations that are not finite"}
    assert found[WANTED[2]] == result_of(WANTED[2])
    again = Trials(file, settings=SETTINGS)
    assert again.run(WANTED[:3], work) == found and again.done == []


def test_a_line_that_was_cut_off_costs_nothing_else(file):
    trials = Trials(file, settings=SETTINGS)
    trials.run(WANTED[:2], result_of)
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 20])  # a full disk, after which the same process goes on
    trials.run(WANTED[:4], result_of)
    with open(file, "ab") as journal:
        journal.write(b'{"trial": {"pha')  # a killed process
    again = Trials(file, settings=SETTINGS)
    assert again.run(WANTED[:4], result_of) == {trial: result_of(trial) for trial in WANTED[:4]}
    assert again.done == WANTED[1:2]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_stops_a_study_leaves_its_trial_to_be_done(file, error):
    def work(trial: Trial) -> dict:
        if trial == WANTED[1]:
            raise error
        return result_of(trial)

    with pytest.raises(type(error)):
        Trials(file, settings=SETTINGS).run(WANTED[:3], work)
    again = Trials(file, settings=SETTINGS)
    assert list(again.run(WANTED[:3], result_of)) == WANTED[:3] and again.done == WANTED[1:3]


def test_after_the_deadline_nothing_is_begun(file):
    deadline = time.monotonic() + 100
    found = Trials(file, settings=SETTINGS).run(
        WANTED, result_of, expected=lambda trial: 1e3 * trial.seed, deadline=deadline
    )
    assert list(found) == WANTED[:4]


def test_what_cannot_be_continued_is_refused(file):
    Trials(file, settings=SETTINGS).run(WANTED[:1], result_of)
    with pytest.raises(ValueError, match="images='a1', and 'b2' was asked for"):
        Trials(file, settings=SETTINGS | {"images": "b2"})
    file.write_bytes(file.read_bytes().replace(b'"result"', b'"resXlt"'))
    with pytest.raises(ValueError, match="line 2 of .*study.jsonl"):
        Trials(file, settings=SETTINGS)
    file.with_suffix(".journal").write_text("")
    with pytest.raises(ValueError, match="study.journal is a study by another version of this repository"):
        Trials(file, settings=SETTINGS)


# ---- a cluster


NO_NETWORKS = """
import sys
from pathlib import Path
from types import ModuleType
import helpers
study = sys.modules["helpers.study"] = ModuleType("helpers.study")  # trials need no network: no wait for TensorFlow
study.__path__ = [str(Path(helpers.__file__).parent / "study")]
"""


@pytest.fixture(scope="module")
def cluster():
    """Returns a function that starts a scheduler with workers, all processes of their own."""

    class NoNetworks(WorkerPlugin):
        def setup(self, worker, code: str = NO_NETWORKS) -> None:
            exec(code)

    options = {"threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(n_workers=2, **options) as started, started.get_client() as client:
        client.register_plugin(NoNetworks())
        yield started


def log_and(log: Path, then=lambda trial, count: time.sleep(0.05)):
    """Returns work for a worker: it notes its process and the trial, and calls `then` before the result is there."""
    wanted, result = WANTED, result_of

    def work(trial: Trial) -> dict:
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {wanted.index(trial)}\n")
        then(trial, len(log.read_text().splitlines()))
        return result(trial)

    return work


def begun(log: Path) -> list[tuple[int, int]]:
    """Returns process and number of each trial that was begun."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def test_workers_share_the_trials_and_what_a_dead_one_had_is_done_by_another(file, tmp_path, cluster):
    def die_once(trial: Trial, count: int) -> None:
        if count == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)

    log = tmp_path / "log"
    trials = Trials(file, settings=SETTINGS, cluster=cluster.scheduler_address)
    found = trials.run(WANTED, log_and(log, die_once))
    assert found == EXPECTED and list(found) == WANTED and sorted(map(str, trials.done)) == sorted(map(str, WANTED))
    numbers = [number for _, number in begun(log)]
    assert len({process for process, _ in begun(log)}) >= 2
    assert len(numbers) in (len(WANTED) + 1, len(WANTED) + 2), "only what was lost is done again"
    assert Trials(file, settings=SETTINGS).run(WANTED, result_of) == EXPECTED, "alone, it finds all of it done"


def test_a_worker_that_joins_late_helps(file, tmp_path, cluster):
    cluster.scale(1)
    while len(cluster.scheduler.workers) > 1:
        time.sleep(0.05)
    log, limit = tmp_path / "log", time.time() + 120

    def wait_for_another(trial: Trial, count: int) -> None:
        alone = True
        while count > 3 and alone and time.time() < limit:
            time.sleep(0.05)
            alone = len({line.split()[0] for line in log.read_text().splitlines()}) < 2

    threading.Timer(1.0, cluster.scale, [2]).start()
    trials = Trials(file, settings=SETTINGS, cluster=cluster.scheduler_address)
    assert trials.run(WANTED, log_and(log, wait_for_another)) == EXPECTED
    processes = [process for process, _ in begun(log)]
    assert len(set(processes[:4])) == 1 and len(set(processes)) == 2 and len(processes) == len(WANTED)


DRIVER = f"""{NO_NETWORKS}
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_trials import SETTINGS, WANTED, Trials, log_and
Trials(sys.argv[1], settings=SETTINGS, cluster=sys.argv[2]).run(WANTED, log_and(Path(sys.argv[3])))
"""


def test_a_driver_that_was_killed_goes_on_where_it_was(file, tmp_path, cluster):
    log = tmp_path / "log"
    arguments = [str(file), cluster.scheduler_address, str(log)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *arguments], env=environment)
    while not file.exists() or file.read_text().count('"result"') < 3:
        time.sleep(0.02)
        assert driver.poll() is None
    driver.kill()
    driver.wait()
    finished = file.read_text().count('"result"')
    trials = Trials(file, settings=SETTINGS, cluster=cluster.scheduler_address)
    assert trials.run(WANTED, log_and(log)) == EXPECTED
    assert len(trials.done) == len(WANTED) - finished
    assert len(begun(log)) <= len(WANTED) + 3, "what two workers had in hand is done again, and nothing else"


def test_errors_and_deadlines_of_a_cluster_are_those_of_one_process(file, tmp_path, cluster):
    def fail(trial: Trial, count: int) -> None:
        if trial.learning_rate == 1e-2:
            raise ValueError("activations that are not finite")
        if trial.seed == 8:
            raise OSError(28, "No space left on device")

    options = {"settings": SETTINGS, "cluster": cluster.scheduler_address}
    trials, work = Trials(file, **options), log_and(tmp_path / "log", fail)
    found = trials.run(WANTED[:4], work)
    assert [result["outcome"][:6] for result in found.values()] == ["done", "failed", "done", "failed"]
    deadline = time.monotonic() + 1000
    found = trials.run(WANTED, work, expected=lambda trial: 300 * trial.seed, deadline=deadline)
    assert list(found) == WANTED[:7]
    with pytest.raises(OSError, match="No space left"):
        trials.run(WANTED, work)
    assert list(Trials(file, **options).run(WANTED, result_of)) == WANTED


def test_a_cluster_that_is_none_is_refused(file):
    for wrong, message in [("three", "a number"), ("0", "a number"), ("tcp://localhost:1", "no scheduler")]:
        with pytest.raises(ValueError, match=message), dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
            Trials(file, settings=SETTINGS, cluster=wrong)


def test_dask_is_not_imported_without_a_cluster(file):
    code = f"""{NO_NETWORKS}
from helpers.study.trials import Trials, Trial
Trials({str(file)!r}, settings={SETTINGS!r}).run([Trial("race", "a")], lambda trial: {{}})
assert not {{"dask", "distributed"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
