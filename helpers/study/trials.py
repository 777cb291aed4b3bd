"""The trials of a study: what has to be done, what is done, and by whom, in a storage of Optuna.

Each trial is one training: an arm, with the seed of its split, for so many epochs. Its result depends on nothing
else. So it does not matter which worker does it, or after how many interruptions: a study of one worker, of four, and
one that was killed and started again end with the same table.
"""

import json
import os
import platform
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import TqdmWarning, tqdm

from helpers import progress_file, resolve_path

HEARTBEAT = 10.0
"""Seconds between a worker's signs of life."""

SILENCE = 60.0
"""Seconds without one, after which its trial is given to another worker."""

_VERSION = 2
"""To be raised when trials are described or trained otherwise: their results are not comparable then."""

_ATTEMPTS = 6
"""How often a new database is tried: of workers that start together, one makes its tables."""


@dataclass(frozen=True)
class Trial:
    """One training of an arm.

    Attributes:
        phase: "plan", "race", "final" or "chosen"; "transfer" of the transferability experiment.
        arm: such as "frozen" or "fine-tuned".
        cut: where the layers that are taken end (`cut_points`); "" for none.
        stage: the first stage that learns; "" where only the head does.
        learning_rate: the highest of the schedule; 0 where nothing is trained.
        steps: length of the training, in updates of the weights.
        seed: of the split and of everything random; 0 for the run's own split.
    """

    phase: str
    arm: str
    cut: str = ""
    stage: str = ""
    learning_rate: float = 0.0
    steps: int = 0
    seed: int = 0

    def __str__(self) -> str:
        parts = [self.arm, self.cut, self.stage, f"{self.learning_rate:.3g}" if self.learning_rate else ""]
        return " ".join(part for part in parts if part)


class Trials:
    """The trials that the workers of one study share.

    Args:
        storage: the path of a journal file, made if need be, or the URL of a database, such as
            "postgresql://user@host/name". All workers name the same one.
        name: the study's, in the storage.
        settings: plain values that the results depend on.

    Attributes:
        study: Optuna's.
        done: trials that this object has carried out.
        seconds_in_storage: what reading and writing took, waiting for locks included.

    Raises:
        ValueError: the storage cannot be used, or holds a study of this name with other settings.
    """

    def __init__(self, storage: str | Path, *, name: str, settings: dict):
        self.done: list[Trial] = []
        self.seconds_in_storage = 0.0
        self._watched: dict[int, tuple] = {}
        self._storage, self._name = storage, name
        self._settings = json.loads(json.dumps({"version": _VERSION} | settings, default=str))
        self.study = _open(str(storage), name)
        with self._storing():
            if "settings" not in self.study.user_attrs:
                self.study.set_user_attr("settings", self._settings)
        self._check_settings()

    def results(self, wanted: Iterable[Trial] | None = None) -> dict[Trial, dict]:
        """Returns the results of the trials that are finished, in the order asked for."""
        with self._storing():
            finished = {
                _trial(kept): json.loads(kept.user_attrs["result"])
                for kept in self.study.get_trials(deepcopy=False)
                if "result" in kept.user_attrs and kept.state.is_finished()
            }
        return finished if wanted is None else {trial: finished[trial] for trial in wanted if trial in finished}

    def run(
        self,
        wanted: list[Trial],
        work: Callable[[Trial], dict],
        *,
        expected: Callable[[Trial], float] = lambda trial: 1.0,
        deadline: float = float("inf"),
        keep_failures: bool = True,
        title: str = "",
    ) -> dict[Trial, dict]:
        """Returns the results of all wanted trials, after doing what other workers do not do.

        The state is kept after each trial. A trial that fails is recorded with the reason, and the others go on.

        Args:
            wanted: in the order in which they are begun.
            work: from a trial to its result, plain values.
            expected: from a trial to the seconds that it will take, for the time left.
            deadline: on `time.monotonic()`'s clock. No trial is begun that would not end before it.
            keep_failures: a trial that fails is recorded, and not begun again. Otherwise its error is raised.
            title: of the progress bar.

        Returns:
            Fewer results than wanted after the deadline.

        Raises:
            KeyboardInterrupt: on Ctrl-C. What is finished is kept.
            OSError: the storage, or what the work writes, has no space.
        """
        self._check_settings()
        total = sum(map(expected, wanted))
        form = "{desc} {percentage:3.0f}%|{bar}| {elapsed} elapsed, {remaining} left{postfix}"
        with tqdm(total=total, desc=title, bar_format=form, leave=False, file=progress_file(), delay=1) as bar:
            while True:
                found = self.results(wanted)
                bar.update(sum(map(expected, found)) - bar.n)
                if len(found) == len(wanted):
                    return found
                self._release_dead()
                self._enqueue([trial for trial in wanted if trial not in found])
                upcoming = next((trial for trial in wanted if trial not in found), None)
                if time.monotonic() + expected(upcoming) > deadline:
                    return found
                claimed = self._claim(set(wanted))
                if claimed is None:  # others are at work on the rest
                    time.sleep(1.0)
                    continue
                bar.set_postfix_str(str(_trial(claimed)))
                self._work_on(claimed, work, keep_failures)

    def _check_settings(self) -> None:
        """Refuses a study of something else. Of two workers that begin together, the last one's settings count."""
        with self._storing():
            kept = self.study.user_attrs["settings"]
        if kept.get("version") != _VERSION:
            raise ValueError(
                f"The storage {_shown(self._storage)} holds a study by another version of this repository, whose "
                f"results are not comparable. Delete it, or choose another `run_dir` or another `storage`."
            )
        if kept != self._settings:
            differing = [key for key in self._settings if kept.get(key) != self._settings[key]]
            wanted = self._settings
            shown = ", ".join(f"{key}={kept.get(key)!r}, and {wanted[key]!r} was asked for" for key in differing)
            raise ValueError(
                f"The storage {_shown(self._storage)} holds a study {self._name!r} of other data or parameters: "
                f"{shown}. Choose another `run_dir` or another `storage`, or delete this one."
            )

    # ---- one trial

    def _work_on(self, claimed, work: Callable[[Trial], dict], keep_failures: bool) -> None:
        from optuna.trial import TrialState

        trial = _trial(claimed)
        with self._signs_of_life(claimed):
            try:
                result, state = work(trial), TrialState.COMPLETE
            except BaseException as error:
                if not keep_failures or isinstance(error, OSError) or not isinstance(error, Exception):
                    with suppress(Exception):  # it is begun again by whoever comes next
                        self.study.tell(claimed.number, state=TrialState.FAIL)
                    raise
                # too little memory, values that are not finite: that is a result, too
                reason = next(iter(str(error).splitlines()), "")
                result, state = {"outcome": f"failed: {type(error).__name__}: {reason}"}, TrialState.FAIL
        self.done.append(trial)
        with self._storing(), suppress(ValueError, RuntimeError):  # it was taken for dead, and another was faster
            claimed.set_user_attr("result", json.dumps(result))
            value = result.get("log_loss", float("inf"))  # what has none is not the best in Optuna's tools
            self.study.tell(claimed.number, value if state == TrialState.COMPLETE else None, state=state)

    @contextmanager
    def _signs_of_life(self, claimed):
        stop = threading.Event()

        def beat():
            count = 0
            while not stop.wait(HEARTBEAT):
                count += 1
                with suppress(Exception):  # the next one may come through
                    claimed.set_user_attr("heartbeat", count)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    # ---- who does what

    def _enqueue(self, missing: list[Trial]) -> None:
        """Adds the trials that are not there yet."""
        from optuna.trial import TrialState, create_trial

        with self._storing():
            kept = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))
            there = {_trial(other) for other in kept}
            for trial in missing:
                if trial not in there:
                    values = {name: value for name, value in asdict(trial).items() if value not in ("", 0)}
                    self.study.add_trial(
                        create_trial(
                            state=TrialState.WAITING,
                            params={name: value for name, value in values.items() if name in _ranges()},
                            distributions={name: r for name, r in _ranges().items() if name in values},
                            user_attrs={"trial": json.dumps(asdict(trial))},
                        )
                    )

    def _claim(self, wanted: set[Trial]):
        """Returns a waiting trial, now this worker's, or None. Of two that are equal, the first counts."""
        from optuna.trial import TrialState

        with self._storing():
            waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if not any(_trial(other) in wanted for other in waiting):
                return None
            claimed = self.study.ask()
            known = _trial(claimed) in wanted
            twice = known and any(
                _trial(other) == _trial(claimed)
                and (other.number < claimed.number or other.state.is_finished())
                and (other.state != TrialState.FAIL or "result" in other.user_attrs)
                for other in self.study.get_trials(deepcopy=False)
                if other.number != claimed.number and "trial" in other.user_attrs
            )
            if not known or twice:  # it is another step's, or another worker added it at the same moment
                self.study.tell(claimed.number, state=TrialState.FAIL)
                return None
            claimed.set_user_attr("worker", f"{_here()}:{os.getpid()}")
            return claimed

    def _release_dead(self) -> None:
        """Lets go of trials whose worker has died: they are begun again."""
        from optuna.trial import TrialState

        with self._storing():
            for other in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                sign = other.user_attrs.get("heartbeat"), other.user_attrs.get("worker")
                before, since = self._watched.get(other.number, (None, 0.0))
                if before != (sign,):
                    before, since = (sign,), time.monotonic()
                self._watched[other.number] = before, since
                if _is_gone(sign[1]) or time.monotonic() - since > SILENCE:
                    with suppress(ValueError, RuntimeError):  # it ended at this moment, or another worker did this
                        self.study.tell(other.number, state=TrialState.FAIL)

    @contextmanager
    def _storing(self):
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds_in_storage += time.perf_counter() - started


def _trial(kept) -> Trial:
    """Returns what one of Optuna's trials is about."""
    return Trial(**json.loads(kept.user_attrs["trial"])) if "trial" in kept.user_attrs else Trial("", "")


def _ranges() -> dict:
    """Returns the parameters that Optuna's own tools show."""
    from optuna.distributions import FloatDistribution, IntDistribution

    return {
        "learning_rate": FloatDistribution(1e-12, 1e32, log=True),
        "steps": IntDistribution(1, 10_000_000),
        "seed": IntDistribution(0, 2**32),
    }


def _here() -> str:
    """Returns what tells processes with numbers of their own apart: the machine, and the container on it."""
    with suppress(OSError):
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"  # Linux
    return platform.node()


def _is_gone(worker: str | None) -> bool:
    """Whether a worker of this machine has ended. Of one elsewhere, its silence alone tells."""
    host, _, process = (worker or "").rpartition(":")
    if host != _here():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's, and alive
        pass
    return False


def _open(storage: str, name: str):
    """Returns Optuna's study in a journal file or a database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # it looks for widgets, which are not used here
        import optuna
    from optuna.samplers import RandomSampler
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options = {"study_name": name, "load_if_exists": True, "sampler": RandomSampler(seed=0)}
    if "://" not in storage:
        path = resolve_path(storage)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _mend(path)
            return optuna.create_study(storage=JournalStorage(JournalFileBackend(str(path))), **options)
        except OSError as error:
            raise ValueError(f"The storage {_shown(storage)} cannot be used: {error}") from None
        except (ValueError, KeyError) as error:
            raise ValueError(f"The storage {_shown(storage)} is no journal file of Optuna: {error}") from None
    if _shown(storage) != storage:
        raise ValueError(
            f"Expected `storage` without a password: parameters are written into executed notebooks. Name "
            f"{_shown(storage)}, and set the environment variable PGPASSWORD (or use a .pgpass file)."
        )
    url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", storage)
    for attempt in range(_ATTEMPTS):
        try:
            return optuna.create_study(storage=RDBStorage(url), **options)
        except ImportError as error:
            raise ValueError(
                f"The storage {_shown(storage)} needs a driver that is not installed ({error}). For PostgreSQL: "
                f"pip install -e .[postgresql]"
            ) from None
        except Exception as error:  # SQLAlchemy and each driver have kinds of their own
            problem = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
            time.sleep(0.2 * attempt)
    raise ValueError(f"The storage {_shown(storage)} cannot be reached: {problem}")


def _mend(path: Path) -> None:
    """Cuts off a line that was not written to its end, by a full disk or a killed process: the next would join it."""
    from optuna.storages.journal import JournalFileSymlinkLock

    if not path.exists() or not path.stat().st_size:
        return
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        with open(path, "r+b") as file:
            content = file.read()
            if not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _shown(storage: str | Path) -> str:
    """Returns the storage without a password."""
    return re.sub(r"(://[^:@/]*):[^@]*@", r"\1@", re.sub(r"([?&]password=)[^&]*", "", str(storage)))
