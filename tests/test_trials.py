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
def make(tmp_path):
    """Returns a function that opens the trials, always of the same file."""
    return lambda **options: Trials(tmp_path / "study.jsonl", **{"settings": SETTINGS} | options)


def fails(error: BaseException):
    """Returns work that raises this at the second trial."""

    def work(trial: Trial) -> dict:
        if trial == WANTED[1]:
            raise error
        return result_of(trial)

    return work


def test_results_come_in_the_order_asked_for_and_are_kept(make):
    first = make()
    assert first.run(WANTED[:3], result_of) == {trial: EXPECTED[trial] for trial in WANTED[:3]}
    again = make()
    found = again.run(WANTED, result_of)
    assert found == EXPECTED and list(found) == WANTED and [*first.done, *again.done] == WANTED
    assert list(make().results(WANTED[::-1])) == WANTED[::-1]


def test_a_trial_that_fails_is_recorded_and_the_others_go_on(make):
    work = fails(ValueError("activations that are not finite"))
    found = make().run(WANTED[:3], work)
    assert found[WANTED[1]] == {"outcome": "failed: ValueError: activations that are not finite"}
    assert found[WANTED[2]] == EXPECTED[WANTED[2]]
    again = make()
    assert again.run(WANTED[:3], work) == found and again.done == []


def test_a_line_that_was_cut_off_costs_nothing_else(make):
    trials = make()
    trials.run(WANTED[:2], result_of)
    whole = trials.file.read_bytes()
    trials.file.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 20])  # a full disk; the same process goes on
    trials.run(WANTED[:4], result_of)
    with open(trials.file, "ab") as journal:
        journal.write(b'{"trial": {"pha')  # a killed process
    again = make()
    assert again.run(WANTED[:4], result_of) == {trial: EXPECTED[trial] for trial in WANTED[:4]}
    assert again.done == WANTED[1:2]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_stops_a_study_leaves_its_trial_to_be_done(make, error):
    with pytest.raises(type(error)):
        make().run(WANTED[:3], fails(error))
    again = make()
    assert list(again.run(WANTED[:3], result_of)) == WANTED[:3] and again.done == WANTED[1:3]


def test_after_the_deadline_nothing_is_begun(make):
    options = {"expected": lambda trial: 1e3 * trial.seed, "deadline": time.monotonic() + 100}
    assert list(make().run(WANTED, result_of, **options)) == WANTED[:4]


def test_trials_of_other_settings_are_kept_beside_the_new_ones(make, capsys):
    first = make(settings=SETTINGS)
    first.run(WANTED[:1], result_of)
    kept = first.file.read_bytes()
    other = make(settings=SETTINGS | {"images": "b2"})
    beside = [first.file.with_stem(f"study-{number}") for number in (1, 2)]
    assert other.results() == {} and beside[0].read_bytes() == kept
    assert (
        capsys.readouterr().out == "study.jsonl was of other data or parameters (images): it is now study-1.jsonl.\n"
    )
    other.run(WANTED[:2], result_of)
    again = make(settings=SETTINGS)
    assert again.results() == first.results() and again.file.read_bytes() == kept, "the same settings go on"
    assert not beside[0].exists() and make(settings=SETTINGS | {"images": "b2"}).results() == other.results()


def test_what_cannot_be_continued_is_refused(make):
    trials = make()
    trials.run(WANTED[:1], result_of)
    trials.file.write_bytes(trials.file.read_bytes().replace(b'"result"', b'"resXlt"'))
    with pytest.raises(ValueError, match="line 2 of .*study.jsonl"):
        make()
    trials.file.with_suffix(".journal").write_text("")
    with pytest.raises(ValueError, match="study.journal is a study by another version of this repository"):
        make()


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
    """A scheduler with workers, all processes of their own."""

    class NoNetworks(WorkerPlugin):
        def setup(self, worker, code: str = NO_NETWORKS) -> None:
            exec(code)

    options = {"threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with LocalCluster(n_workers=2, **options) as started, started.get_client() as client:
        client.register_plugin(NoNetworks())
        yield started


@pytest.fixture
def shared(make, cluster):
    return make(cluster=cluster.scheduler_address)


def log_and(log: Path, then=lambda trial, count: time.sleep(0.05)):
    """Returns work for a worker: it notes its process and the trial, and calls `then` before the result is there."""
    wanted, result = WANTED, result_of

    def work(trial: Trial) -> dict:
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {wanted.index(trial)}\n")
        then(trial, len(log.read_text().splitlines()))
        return result(trial)

    return work


def processes(log: Path) -> list[str]:
    """Returns, of each trial that was begun, the process that did."""
    return [line.split()[0] for line in log.read_text().splitlines()]


def test_workers_share_the_trials_and_what_a_dead_one_had_is_done_by_another(make, shared, tmp_path):
    def die_once(trial: Trial, count: int) -> None:
        if count == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)

    found = shared.run(WANTED, log_and(tmp_path / "log", die_once))
    assert found == EXPECTED and list(found) == WANTED and sorted(map(str, shared.done)) == sorted(map(str, WANTED))
    begun = processes(tmp_path / "log")
    assert len(set(begun)) >= 2
    assert len(begun) in (len(WANTED) + 1, len(WANTED) + 2), "only what was lost is done again"
    assert make().run(WANTED, result_of) == EXPECTED, "alone, it finds all of it done"


def test_a_worker_that_joins_late_helps(shared, tmp_path, cluster):
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
    assert shared.run(WANTED, log_and(log, wait_for_another)) == EXPECTED
    begun = processes(log)
    assert len(set(begun[:4])) == 1 and len(set(begun)) == 2 and len(begun) == len(WANTED)


DRIVER = f"""{NO_NETWORKS}
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_trials import SETTINGS, WANTED, Trials, log_and
Trials(sys.argv[1], settings=SETTINGS, cluster=sys.argv[2]).run(WANTED, log_and(Path(sys.argv[3])))
"""


def test_a_driver_that_was_killed_goes_on_where_it_was(make, tmp_path, cluster):
    file, log = tmp_path / "study.jsonl", tmp_path / "log"
    command = [sys.executable, "-c", DRIVER, str(file), cluster.scheduler_address, str(log)]
    driver = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)})
    while not file.exists() or file.read_text().count('"result"') < 3:
        time.sleep(0.02)
        assert driver.poll() is None
    driver.kill()
    driver.wait()
    finished = file.read_text().count('"result"')
    trials = make(cluster=cluster.scheduler_address)
    assert trials.run(WANTED, log_and(log)) == EXPECTED
    assert len(trials.done) == len(WANTED) - finished
    assert len(processes(log)) <= len(WANTED) + 3, "what two workers had in hand is done again, and nothing else"


def test_errors_and_deadlines_of_a_cluster_are_those_of_one_process(make, shared, tmp_path):
    def fail(trial: Trial, count: int) -> None:
        if trial.learning_rate == 1e-2:
            raise ValueError("activations that are not finite")
        if trial.seed == 8:
            raise OSError(28, "No space left on device")

    work = log_and(tmp_path / "log", fail)
    found = shared.run(WANTED[:4], work)
    assert [result["outcome"][:6] for result in found.values()] == ["done", "failed", "done", "failed"]
    options = {"expected": lambda trial: 300 * trial.seed, "deadline": time.monotonic() + 1000}
    assert list(shared.run(WANTED, work, **options)) == WANTED[:7]
    with pytest.raises(OSError, match="No space left"):
        shared.run(WANTED, work)
    assert list(make().run(WANTED, result_of)) == WANTED


@pytest.mark.parametrize(("wrong", "told"), [("three", "number"), ("0", "number"), ("tcp://localhost:1", "no sched")])
def test_a_cluster_that_is_none_is_refused(make, wrong, told):
    with pytest.raises(ValueError, match=told), dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        make(cluster=wrong)


def test_dask_is_not_imported_without_a_cluster(tmp_path):
    code = f"""{NO_NETWORKS}
from helpers.study.trials import Trials, Trial
Trials({str(tmp_path / "study.jsonl")!r}, settings={{}}).run([Trial("race", "a")], lambda trial: {{}})
assert not {{"dask", "distributed"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
