"""Who does the trials of a study: this process, or the workers of a Dask cluster."""

import hashlib
import os
import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path

from tqdm import tqdm

import helpers


def read_cluster(cluster: str) -> str:
    """Returns the value of `cluster`: "", a number of processes, or a scheduler's address; else a ValueError."""
    if cluster and "://" not in cluster and not (cluster.isdigit() and int(cluster)):
        raise ValueError(
            f'Expected `cluster` to be "", a number of processes or an address (tcp://...). Received {cluster!r}.'
        )
    return cluster


def run_here(trials: Iterator, work: Callable, bar: tqdm):
    """Yields trials and their results, one after the other."""
    for trial in trials:
        bar.set_postfix_str(str(trial))
        yield trial, _outcome(work, trial)


def _outcome(work: Callable, trial) -> dict:
    try:
        return work(trial)
    except OSError:  # a full disk says nothing about the trial
        raise
    except Exception as error:  # too little memory, values that are not finite: that is a result, too
        return {"outcome": f"failed: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"}


class Cluster:
    """A number of worker processes on this machine, or those of a Dask scheduler at an address.

    Args:
        cluster: see `read_cluster`.
        file: where the workers find the work, for as long as this lives.
    """

    def __init__(self, cluster: str, file: Path):
        self._client, self._file, self._package = _connect(cluster), file, ()
        weakref.finalize(self, self._client.close)

    def run(self, trials: Iterator, work: Callable, bar: tqdm):
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

    def _pack(self, work: Callable) -> tuple[str, str]:
        """Returns a file that each worker reads the work from, once, since a network is large; and its digest."""
        import cloudpickle

        content, file = cloudpickle.dumps((helpers.ROOT, work)), self._file
        file.write_bytes(content)
        weakref.finalize(self, file.unlink, missing_ok=True)
        return str(file), hashlib.sha256(content).hexdigest()


def _run_packed(file: str, digest: str, trial) -> dict:
    """Returns a trial's result, in a worker."""
    return _outcome(_unpack(file, digest), trial)


@lru_cache(maxsize=1)
def _unpack(file: str, digest: str) -> Callable:
    helpers.ROOT, work = pickle.loads(Path(file).read_bytes())  # a relative path means the same file as in the driver
    return work


def _connect(cluster: str):
    """Returns the connection to a cluster; one on this machine is started now, and ends with the connection."""
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(
            '`cluster` needs Dask. To install it: python -m pip install -c requirements.txt -e ".[cluster]"'
        ) from None
    if "://" not in read_cluster(cluster):
        threads = {"TF_NUM_INTRAOP_THREADS": str(max((os.cpu_count() or 1) // int(cluster), 1))}
        options = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None, "env": threads}
        return Client(n_workers=int(cluster), set_as_default=False, **options)
    try:
        return Client(cluster, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"There is no scheduler at {cluster}, which `cluster` names: {error}") from None
