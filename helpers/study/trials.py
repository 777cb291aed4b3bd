"""The trials of a study: what has to be done and what is done; each result is kept as it comes.

Each trial is one training, whose result depends on nothing else. So it does not matter which worker does it, or after
how many interruptions: the table is the same in the end.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import count, takewhile
from pathlib import Path

from tqdm import tqdm

from helpers import progress_file, resolve_path
from helpers.study.cluster import Cluster, run_here

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
        self.file, self.done = resolve_path(file), []
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
        self._cluster = Cluster(str(cluster), self.file.with_suffix(".pickle")) if cluster else None

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
            for trial, result in (self._cluster.run if self._cluster else run_here)(in_time, work, bar):
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
