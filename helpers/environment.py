"""What a run is computed with, recorded together with its results: versions, processor, memory."""

import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from helpers import ROOT

PACKAGES = ("tensorflow", "keras", "numpy", "scikit-learn", "pillow", "freeze-or-fine-tune")
"""Those on which results depend, and ours."""

ORDER = ("since", "python", *PACKAGES, "system", "processor", "cores", "memory_gb", "gpus", "commit")
"""Display order; the file is sorted by name."""


def describe_environment() -> dict:
    """Returns what this process computes with, in plain values, by the names in `ORDER`.

    Gpus (their names) are among them if this process has started TensorFlow, and the repository's commit (`-dirty`
    behind it if a file was changed since) if git knows it.
    """
    import psutil

    found = {"python": platform.python_version(), "system": platform.platform(terse=True), "processor": _processor()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    found["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found["memory_gb"] = round(psutil.virtual_memory().total / 1e9, 1)
    if tensorflow := sys.modules.get("tensorflow"):  # not imported for this: it takes seconds, and 01 does without it
        gpus = tensorflow.config.list_physical_devices("GPU")
        details = tensorflow.config.experimental.get_device_details
        found["gpus"] = [details(gpu).get("device_name", gpu.name) for gpu in gpus]
    if commit := _commit():
        found["commit"] = commit
    return found


def add_environment(known: list[dict], now: dict) -> list[dict]:
    """Returns a run's environments, with the one of `describe_environment` added if it is another one."""
    for number, before in enumerate(known):
        if all(before[name] == value for name, value in now.items() if name in before):
            return [*known[:number], before | now, *known[number + 1 :]]
    return [*known, {"since": datetime.now(UTC).isoformat(timespec="seconds"), **now}]


def _processor() -> str:
    with suppress(OSError):
        if named := re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE):
            return named[1]
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Returns the repository's commit; empty where the folder is a copy without history, or there is no git."""
    if (ROOT / ".git").exists():  # git would look for a repository around it
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        with suppress(OSError, subprocess.TimeoutExpired):
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20).stdout.strip()
    return ""
