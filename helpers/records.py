"""Which notebook of a run made what, with which parameters, and from whose results: the file `notebooks.json`.

A notebook that is executed again with other parameters begins anew. What it had made, and what other notebooks had
made of that, moves to `earlier/1`, `earlier/2`, ... in the run's folder, so that the folder holds only results that
belong together, and nothing is lost.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import yaml
from filelock import FileLock

from helpers import shown_path, write_atomically
from helpers.execution import is_finished, read_executed

_WITHOUT_EFFECT = {"cluster"}  # parameters that change no result
_SUMMARIES = ("metrics.json", "parameters.yaml", "notebooks.json")  # of all notebooks together


class Records:
    """What is known about the notebooks of a run, by name: read from the file at each call, since others write, too.

    A record holds `parameters`; `adopted`, those of an earlier notebook that it went by; `uses`, the notebooks whose
    files it read, and their `number` at that time; its own `number`, a new one whenever it begins anew; `files`; and
    `metrics`, its part of `metrics.json`. If its results were moved, `stale` says why, `folder` where to, and
    `before` what its parameters were.
    """

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / "notebooks.json"
        self._lock = FileLock(folder / ".notebooks.lock")

    def read(self) -> dict[str, dict]:
        """Returns all records, in the notebooks' order."""
        found = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        return dict(sorted(found.items()))

    def parameters(self, notebook: str) -> dict:
        """Returns what a notebook's results were made with; empty if it has none."""
        record = self.read().get(notebook, {})
        return record.get("parameters", {}) | record.get("adopted", {})

    def last_parameters(self, notebook: str) -> dict:
        """Returns what a notebook was executed with last, also if its results were moved; empty if it never was."""
        record = self.read().get(notebook, {})
        return record.get("before", record.get("parameters", {}))

    def number(self, notebook: str) -> int:
        """Returns the number of the notebook's present results; 0 if it has none."""
        record = self.read().get(notebook, {})
        return 0 if "stale" in record else record.get("number", 0)

    def begin(self, notebook: str, parameters: dict) -> int:
        """Returns the number of results that begin, or go on if the notebook has some with these parameters."""
        with self._lock:
            records = self.read()
            record = records.get(notebook, {"stale": ""})
            if "stale" in record:
                number = 1 + max((other["number"] for other in records.values()), default=0)
                record = {"number": number, "parameters": parameters, "uses": {}, "files": [], "metrics": {}}
                self._write(records | {notebook: record})
            return record["number"]

    def change(self, notebook: str, **additions) -> None:
        """Adds to a notebook's record: a dict is merged by key, two levels deep; a list gets what it lacks."""
        with self._lock:
            records = self.read()
            record = records[notebook]
            for key, added in additions.items():
                if isinstance(added, dict):
                    record[key] = merge(record.get(key, {}), added)
                else:
                    record[key] = list(dict.fromkeys([*record[key], *added]))
            self._write(records)

    def made_of(self, notebooks: Iterable[str]) -> set[str]:
        """Returns these notebooks and all that have read their results, or results of those."""
        found, records = set(notebooks), self.read()
        while more := {n for n, record in records.items() if found & set(record.get("uses", {}))} - found:
            found |= more
        return found

    def set_aside(self, changed: dict[str, str]) -> str:
        """Moves what notebooks have made, and what was made of that; returns a sentence on it, or "".

        Args:
            changed: notebooks, and what has changed, such as "seed=1 instead of 0".
        """
        with self._lock:
            return self._set_aside(changed)

    def _set_aside(self, changed: dict[str, str]) -> str:
        records, names = self.read(), sorted(self.made_of(changed))
        paths = [path for name in names for path in self._files(name, records.get(name, {}))]
        if not paths and not any(self.number(name) for name in names):
            return ""
        number = 1
        while (folder := self.folder / "earlier" / str(number)).exists():
            number += 1
        folder.mkdir(parents=True)
        for name in _SUMMARIES:
            if (self.folder / name).exists():
                shutil.copy(self.folder / name, folder / name)
        report = self.folder / "report.html"  # of everything, by the runner
        self._move([*paths, report] if report.exists() else paths, folder)
        why = "; ".join(f"{name} was executed with {change}" for name, change in changed.items())
        for name in names:
            old = records.get(name, {})
            records[name] = {"stale": why, "folder": f"earlier/{number}", "number": old.get("number", 0)}
            records[name]["before"] = old.get("before", old.get("parameters", {}))
        for name in ("metrics.json", "parameters.yaml"):
            (self.folder / name).unlink(missing_ok=True)
        self._write(records)
        told = "; ".join(f"{name} with {change}" for name, change in changed.items())
        told += f": earlier results were moved to {shown_path(folder)}"
        stale = ", ".join(name for name in names if name not in changed)
        return f"{told}, with what was made of them by {stale}." if stale else f"{told}."

    def _move(self, paths: list[Path], folder: Path) -> None:
        """Moves the files, executed notebooks first, so that these count as unfinished; or none of them."""
        moved = []
        try:
            for path in sorted(paths, key=lambda path: path.suffix != ".ipynb"):
                target = folder / path.relative_to(self.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, target)
                moved.append((target, path))
        except OSError as error:
            for target, path in moved:
                shutil.move(target, path)
            raise OSError(f"Earlier results could not be moved to {shown_path(folder)}: {error}.") from error

    def _files(self, notebook: str, record: dict) -> list[Path]:
        """Returns what there is of the files that a notebook has made, and its executed copy, if that is finished."""
        files = [self.folder / name for name in record.get("files", [])]
        # A classifier's exports have its name.
        exports = [path for file in files if file.suffix == ".keras" for path in file.parent.glob(f"{file.stem}.*")]
        copy = self.folder / f"{notebook}.ipynb"
        executed = read_executed(copy)  # one that is under way now is none of the earlier results
        copies = [copy] if executed is not None and is_finished(executed) else []
        return [path for path in dict.fromkeys(files + exports + copies) if path.exists()]

    def _write(self, records: dict) -> None:
        """Writes the file, and the parameters and metrics of all notebooks together."""
        records = dict(sorted(records.items()))
        write_atomically(self.file, json.dumps(records, indent=2, ensure_ascii=False) + "\n")
        metrics = _read_json(self.folder / "metrics.json")
        parameters = _read_yaml(self.folder / "parameters.yaml")
        for record in records.values():
            metrics = merge(metrics, record.get("metrics", {}))
            parameters |= record.get("parameters", {})
        if metrics:
            text = json.dumps(metrics, indent=2, sort_keys=True, ensure_ascii=False)
            write_atomically(self.folder / "metrics.json", text + "\n")
        if parameters:
            write_atomically(self.folder / "parameters.yaml", yaml.safe_dump(parameters, allow_unicode=True))


def merge(old: dict, new: dict) -> dict:
    """Returns both, of a name that both have the new value; two dicts of one name are merged by key."""
    both = {name for name, value in new.items() if isinstance(value, dict) and isinstance(old.get(name), dict)}
    return old | {name: old[name] | value if name in both else value for name, value in new.items()}


def describe_differences(before: dict, now: dict) -> str:
    """Returns `seed=1 instead of 0` for each name that both have with values of another effect."""
    return ", ".join(
        f"{name}={now[name]!r} instead of {before[name]!r}"
        for name in before
        if name in now and name not in _WITHOUT_EFFECT and str(before[name]) != str(now[name])  # 60 minutes or "60"
    )


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _read_yaml(path: Path) -> dict:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}
