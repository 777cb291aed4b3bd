"""What a run's folder holds, as far as it can be read, and how to repeat the run."""

import json
import shlex
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import yaml

from helpers import ROOT
from helpers.execution import read_executed
from helpers.parameters import declared_parameters


def read_metrics(run: Path) -> dict:
    """Returns what `metrics.json` of a run holds; empty before a notebook has written to it.

    The keys are `arms` (name -> test_accuracy, low and high of its 95 % interval as fractions, and optionally
    log_loss, seconds, trainable_weights), `study`, the same over several splits and seeds, if 04 was executed,
    `features`, what 02 says about them, and `answer`, a few plain sentences.
    """
    path = Path(run) / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


class Setting(NamedTuple):
    """A parameter of a notebook, and the value that the run was made with."""

    name: str
    value: object
    default: object
    meaning: str

    @property
    def changed(self) -> bool:
        """Whether the value is another than the notebook's own."""
        return self.value != self.default


class RunFolder:
    """A run's folder, read file by file as it is asked for.

    A file that is missing is empty; so is one that cannot be read, and `notes` says so: the run may have stopped
    half-way, or have been copied in part.

    Attributes:
        run: the folder.
        notes: a sentence for each file that could not be read, so far.
    """

    def __init__(self, run: str | Path):
        self.run, self.notes = Path(run), []

    @cached_property
    def metrics(self) -> dict:
        """`metrics.json`: see `read_metrics`."""
        return self._read("metrics.json", json.loads, {})

    @cached_property
    def verdict(self) -> dict:
        """`verdict.json`, which helpers/study/README.md describes."""
        return self._read("verdict.json", json.loads, {})

    @cached_property
    def parameters(self) -> dict:
        """`parameters.yaml`: what results were made with, by name."""
        return self._read("parameters.yaml", yaml.safe_load, {})

    @cached_property
    def environments(self) -> list[dict]:
        """`environment.json`: see `helpers.environment.add_environment`."""
        return self._read("environment.json", json.loads, [])

    @property
    def commit(self) -> str:
        """The repository's commit when the run was executed last; empty if it is not known."""
        return next((e["commit"] for e in reversed(self.environments) if "commit" in e), "")

    @cached_property
    def images(self):
        """`images.csv`, a DataFrame: see `helpers.data`; None without it."""
        from helpers.data import load_images  # here: pandas and Pillow take a second, and few commands need them

        return self._read_table("images.csv", load_images, {"path", "label", "split"})

    @cached_property
    def problems(self):
        """`problems.csv`, a DataFrame: see `helpers.data.check_images`; None without it."""
        from helpers.data.tables import read_texts

        return self._read_table("problems.csv", read_texts, {"path", "problem", "severity", "action", "reason"})

    @cached_property
    def notebooks(self) -> dict:
        """The executed notebooks, by name, in their order."""
        found = {path: read_executed(path) for path in sorted(self.run.glob("[0-9][0-9]_*.ipynb"))}
        self.notes += [f"{path.name} cannot be read." for path, notebook in found.items() if notebook is None]
        return {path.stem: notebook for path, notebook in found.items() if notebook is not None}

    @property
    def failures(self) -> dict[str, str]:
        """Why notebooks stopped, by name."""
        found = {}
        for name, notebook in self.notebooks.items():
            about = notebook.metadata.get("papermill", {})
            if about.get("exception"):
                found[name] = _error(notebook) or about.get("stopped", "It was interrupted.")
        return found

    @cached_property
    def settings(self) -> list[Setting]:
        """The parameters of the run's notebooks without `run_dir`, each once.

        Of a run whose notebooks do not lie in its folder, as they were executed by hand, those that it has kept.
        """
        if self.notebooks:
            found = [
                _settings(notebook, notebook.metadata.get("papermill", {}).get("parameters", {}))
                for notebook in self.notebooks.values()
            ]
        else:
            templates = (read_executed(path) for path in sorted(ROOT.glob("notebooks/[0-9][0-9]_*.ipynb")))
            found = [_settings(notebook, self.parameters) for notebook in templates if notebook]
            found = [[setting for setting in own if setting.name in self.parameters] for own in found]
        settings: dict[str, Setting] = {}
        for setting in (setting for own in found for setting in own):
            if setting.changed or setting.name not in settings:
                settings[setting.name] = setting
        return list(settings.values())

    def _read(self, name: str, parse, empty):
        path = self.run / name
        if not path.exists():
            return empty
        try:
            content = parse(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            content = None
        if isinstance(content, type(empty)):
            return content
        self.notes.append(f"{name} cannot be read.")
        return empty

    def _read_table(self, name: str, read, columns: set[str]):
        path = self.run / name
        if not path.exists():
            return None
        try:
            table = read(path)
        except (OSError, ValueError):
            table = None
        if table is not None and columns <= set(table):
            return table
        self.notes.append(f"{name} cannot be read.")
        return None


def _error(notebook) -> str:
    """Returns the error of an executed notebook's cell, or ""."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return f"In [{cell.execution_count}]: {output.ename}: {output.evalue}"
    return ""


def _settings(notebook, values: dict) -> list[Setting]:
    try:
        declared = declared_parameters(notebook)
    except (ValueError, SyntaxError):  # a notebook of another version
        return []
    return [
        Setting(name, values.get(name, parameter.default), parameter.default, parameter.meaning)
        for name, parameter in declared.items()
        if name != "run_dir"
    ]


def make_command(folder: RunFolder) -> str:
    """Returns the line for a shell that makes the same run again: `make run NAME=pets DATA='my photos'`."""
    changed = {setting.name.upper(): setting.value for setting in folder.settings if setting.changed}
    words = {"NAME": folder.run.name} | changed
    # make takes a "$" for the start of a variable's name
    return " ".join(["make run", *(f"{k}={shlex.quote(str(v).replace('$', '$$'))}" for k, v in words.items())])
