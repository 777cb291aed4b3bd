"""The trials of a study: what has to be done and what is done, in this process or by the workers of a Dask cluster.

Each trial is one training, whose result depends on nothing else. So it does not matter which worker does it, or after
how many interruptions: the table is the same in the end.
"""

import hashlib
import json
import os
import pickle
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import count, islice, takewhile
from pathlib import Path

from tqdm import tqdm

import helpers
from helpers import progress_file, resolve_path

_VERSION = 3  # to be raised when trials are described or trained otherwise, and results are not comparable


@dataclass(frozen=True)
class Trial:
    """One training of an arm."""

    phase: str  # "plan", "race", "final", "labels" or "chosen"; "transfer" of the transferability experiment
    arm: str  # such as "frozen" or "fine-tuned"
    cut: str = ""  # where the layers that are taken end (`cut_points`); "" for none
    stage: str = ""  # the first stage that learns; "" where only the head does
    learning_rate: float = 0.0  # the highest of the schedule; 0 where nothing is trained
    steps: int = 0  # length of the training, in updates of the weights
    seed: int = 0  # of the split and of everything random; 0 for the run's own split
    fraction: float = 1.0  # of the training images of each class that are used (`keep_fraction`)

    def __str__(self) -> str:
        of_labels = f"{self.fraction:g} of the labels" if self.fraction < 1 else ""
        return " ".join(str(part) for part in (self.arm, self.cut, self.stage, self.learning_rate, of_labels) if part)


class Trials:
    """The trials of a study and their results, each kept in a file as soon as it is finished.

    Args:
        file: JSON lines, made if need be: the settings, then a trial and its result in each line.
        settings: plain values that the results depend on; a file of other ones is kept beside it, as
            `study-1.jsonl`, and found again when its settings are.
        cluster: "" for this process, a number of worker processes on this machine, or a Dask scheduler's address.
        failed_again: whether trials of the file that failed are to be done again.

    Attributes:
        done: trials that this object has added to the file.
    """

    def __init__(self, file: str | Path, *, settings: dict, cluster: str | int = "", failed_again: bool = False):
        self.file, self.done, self._client, self._package = resolve_path(file), [], None, ()
        settings = json.loads(json.dumps({"version": _VERSION} | settings, default=str))
        kept, self._finished = _read(self.file)
        if kept and (other := [name for name in settings if kept.get(name) != settings[name]]):
            siblings = sorted(self.file.parent.glob(f"{self.file.stem}-*{self.file.suffix}"))
            same = [path for path in siblings if _settings_match(path, settings)]
            names = (self.file.with_stem(f"{self.file.stem}-{number}") for number in count(1))
            beside, kept, self._finished = next(path for path in names if not path.exists()), {}, {}
            self.file.rename(beside)
            print(f"{self.file.name} was of other data or parameters ({', '.join(other)}): it is now {beside.name}.")
            if same:
                same[0].rename(self.file)
                kept, self._finished = _read(self.file)
        if not kept:
            self._append({"settings": settings})
        if failed_again:
            kept = self._finished.items()
            self._finished = {t: result for t, result in kept if not result.get("outcome", "").startswith("failed")}
        if cluster:
            self._client = _connect(str(cluster))
            weakref.finalize(self, self._client.close)

    def results(self, wanted: Iterable[Trial] | None = None) -> dict[Trial, dict]:
        """Returns the results of the trials that are finished, in the order asked for."""
        wanted = self._finished if wanted is None else wanted
        return {trial: self._finished[trial] for trial in wanted if trial in self._finished}

    def keep(self, trial: Trial, result: dict) -> dict:
        """Returns the result, plain values, as the file has it now."""
        self._append({"trial": asdict(trial), "result": result})
        self._finished[trial] = json.loads(json.dumps(result))
        self.done.append(trial)
        return self._finished[trial]

    def run(
        self,
        wanted: list[Trial],
        work: Callable[[Trial], dict],
        *,
        expected: Callable[[Trial], float] = lambda trial: 1.0,
        deadline: float = float("inf"),
        title: str = "",
    ) -> dict[Trial, dict]:
        """Returns the wanted trials' results, after doing those that are missing in this order, with a progress bar.

        Args:
            wanted, title: the trials, and what the bar calls them.
            work: from a trial to its result, plain values; the same in all calls, and picklable for a cluster. An
                exception is the trial's result (`outcome`), but for a full disk (OSError).
            expected: from a trial to the seconds that it will take.
            deadline: on `time.monotonic()`'s clock. No trial is begun that would end later: there are fewer results.
        """
        missing = [trial for trial in wanted if trial not in self._finished]
        form = "{desc} {percentage:3.0f}%|{bar}| {elapsed} elapsed, {remaining} left{postfix}"
        options = {"desc": title, "bar_format": form, "leave": False, "file": progress_file(), "delay": 1}
        with tqdm(total=sum(map(expected, wanted)), **options) as bar:
            bar.update(bar.total - sum(map(expected, missing)))
            in_time = takewhile(lambda trial: time.monotonic() + expected(trial) <= deadline, missing)
            for trial, result in (self._in_cluster if self._client else _one_by_one)(in_time, work, bar):
                self.keep(trial, result)
                bar.update(min(expected(trial), bar.total - bar.n))  # rounding may exceed the sum
        return self.results(wanted)

    def _append(self, line: dict) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        _whole_lines(self.file)
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _in_cluster(self, trials: Iterator[Trial], work: Callable[[Trial], dict], bar: tqdm):
        """Yields trials and their results as they come in; Dask begins a dead worker's trial again elsewhere."""
        from distributed import wait

        self._package, running = self._package or self._pack(work), {}
        try:
            while True:
                workers = max(len(self._client.scheduler_info(n_workers=-1)["workers"]), 1)
                # No more than can begin at once: a trial that waits could begin too late for the deadline.
                for trial in islice(trials, max(workers - len(running), 0)):
                    running[self._client.submit(_run_packed, *self._package, trial, pure=False)] = trial
                if not running:
                    return
                bar.set_postfix_str(f"{len(running)} running, {workers} workers")
                with suppress(TimeoutError), self._client.as_current():  # no longer: workers may have joined
                    wait(list(running), timeout=1, return_when="FIRST_COMPLETED")
                for future in [future for future in running if future.done()]:
                    yield running.pop(future), future.result()
        finally:
            self._client.cancel(list(running))

    def _pack(self, work: Callable[[Trial], dict]) -> tuple[str, str]:
        """Returns a file that each worker reads the work from, once, since a network is large; and its digest."""
        import cloudpickle

        content, file = cloudpickle.dumps((helpers.ROOT, work)), self.file.with_suffix(".pickle")
        file.write_bytes(content)
        weakref.finalize(self, file.unlink, missing_ok=True)
        return str(file), hashlib.sha256(content).hexdigest()


def _one_by_one(trials: Iterator[Trial], work: Callable[[Trial], dict], bar: tqdm):
    for trial in trials:
        bar.set_postfix_str(str(trial))
        yield trial, _outcome(work, trial)


def _outcome(work: Callable[[Trial], dict], trial: Trial) -> dict:
    try:
        return work(trial)
    except OSError:  # a full disk says nothing about the trial
        raise
    except Exception as error:  # too little memory, values that are not finite: that is a result, too
        return {"outcome": f"failed: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"}


def _run_packed(file: str, digest: str, trial: Trial) -> dict:
    """Returns a trial's result, in a worker."""
    return _outcome(_unpack(file, digest), trial)


@lru_cache(maxsize=1)
def _unpack(file: str, digest: str) -> Callable[[Trial], dict]:
    helpers.ROOT, work = pickle.loads(Path(file).read_bytes())  # a relative path means the same file as in the driver
    return work


def read_cluster(cluster: str) -> str:
    """Returns the value of `cluster`: "", a number of processes, or a scheduler's address; else a ValueError."""
    if cluster and "://" not in cluster and not (cluster.isdigit() and int(cluster)):
        raise ValueError(
            f'Expected `cluster` to be "", a number of processes or an address (tcp://...). Received {cluster!r}.'
        )
    return cluster


def _connect(cluster: str):
    """Returns the connection to a cluster; one on this machine is started now, and ends with the connection."""
    try:
        from distributed import Client
    except ImportError:
        raise ValueError("`cluster` needs Dask, which is not installed: pip install -e .[cluster]") from None
    if "://" not in read_cluster(cluster):
        threads = {"TF_NUM_INTRAOP_THREADS": str(max((os.cpu_count() or 1) // int(cluster), 1))}
        options = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None, "env": threads}
        return Client(n_workers=int(cluster), set_as_default=False, **options)
    try:
        return Client(cluster, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"There is no scheduler at {cluster}, which `cluster` names: {error}") from None


def _whole_lines(file: Path) -> list[bytes]:
    """Returns a file's lines; what a killed process or a full disk left of a last one is cut off."""
    content = file.read_bytes() if file.exists() else b""
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(file, end)
    return content[:end].splitlines()


def _settings_match(file: Path, settings: dict) -> bool:
    try:
        kept, _ = _read(file)
    except ValueError:  # another file of that name
        return False
    return bool(kept) and all(kept.get(name) == value for name, value in settings.items())


def _read(file: Path) -> tuple[dict, dict[Trial, dict]]:
    """Returns settings and results."""
    if (old := file.with_suffix(".journal")).exists():
        raise ValueError(f"{old} is a study by another version of this repository, and not comparable. Delete it.")
    settings, results = {}, {}
    for number, line in enumerate(_whole_lines(file), start=1):
        try:
            kept = json.loads(line)
            settings = settings or kept["settings"]
            if number > 1:
                results[Trial(**kept["trial"])] = kept["result"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"Expected a trial in line {number} of {file}. Delete this line to repeat it.") from None
    return settings, results
