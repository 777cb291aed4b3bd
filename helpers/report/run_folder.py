"""What a run's folder holds, as far as it can be read, and how to repeat the run."""

import json
import shlex
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import yaml

from helpers.execution import read_executed
from helpers.parameters import declared_parameters


def read_metrics(run: Path) -> dict:
    """Returns what `metrics.json` of a run holds; empty before a notebook has written to it.

    The keys are `arms` (name -> test_accuracy, low and high of its 95 % interval as fractions, and optionally
    log_loss, seconds, trainable_weights), `study`, the same over several splits and seeds, if 04 was executed,
    `features`, what 02 says about them, and `answer`, a few plain sentences.
    """
    path = Path(run) / "metrics.json"
    return _read_json(path) if path.exists() else {}


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
    """A run's folder. A file that is missing is empty; so is one that cannot be read, and `notes` says so.

    Attributes:
        run: the folder.
        notes: a sentence for each file that could not be read, so far.
        metrics: `metrics.json`, see `read_metrics`.
        verdict: `verdict.json`, see helpers/study/README.md.
        parameters: `parameters.yaml`, what results were made with, by name.
        environments: `environment.json`, see `helpers.environment.add_environment`.
    """

    def __init__(self, run: str | Path):
        self.run, self.notes = Path(run), []
        self.metrics: dict = self._read("metrics.json", _read_json, {})
        self.verdict: dict = self._read("verdict.json", _read_json, {})
        self.parameters: dict = self._read("parameters.yaml", _read_yaml, {})
        self.environments: list[dict] = self._read("environment.json", _read_json, [])

    @property
    def commit(self) -> str:
        """The repository's commit when the run was executed last; empty if it is not known."""
        return next((e["commit"] for e in reversed(self.environments) if "commit" in e), "")

    @cached_property
    def images(self):
        """`images.csv`, a DataFrame: see `helpers.data`; None without it."""
        from helpers.data import load_images  # here: pandas and Pillow take a second, and few commands need them

        return self._read("images.csv", load_images, columns={"path", "label", "split"})

    @cached_property
    def problems(self):
        """`problems.csv`, a DataFrame: see `helpers.data.check_images`; None without it."""
        return self._read_table("problems.csv", {"path", "label", "problem", "severity", "action", "reason"})

    @cached_property
    def notebooks(self) -> dict:
        """The executed notebooks, by name, in their order."""
        found = {path: read_executed(path) for path in sorted(self.run.glob("[0-9][0-9]_*.ipynb"))}
        self.notes += [f"{path.name} cannot be read." for path, notebook in found.items() if notebook is None]
        return {path.stem: notebook for path, notebook in found.items() if notebook is not None}

    @cached_property
    def classes(self):
        """`classes.csv` of 05, a DataFrame of texts: see `helpers.evaluation.class_table`; None without it."""
        return self._read_table("classes.csv", {"class", "images", "recall", "recall_high", "taken_for"})

    @cached_property
    def mistakes(self):
        """`mistakes.csv` of 05, a DataFrame of texts: see `helpers.evaluation.find_mistakes`; None without it."""
        return self._read_table("mistakes.csv", {"path", "label", "predicted", "probability"})

    @cached_property
    def corruptions(self):
        """`corruptions.csv` of 05, a DataFrame of texts: see `corruption_table`; None without it."""
        return self._read_table("corruptions.csv", {"arm", "corruption", "severity", "accuracy"})

    def _read_table(self, name: str, columns: set[str]):
        from helpers.data.tables import read_texts

        return self._read(name, read_texts, columns=columns)

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
        """The parameters of the run's notebooks without `run_dir`, each once."""
        settings: dict[str, Setting] = {}
        for notebook in self.notebooks.values():
            values = notebook.metadata.get("papermill", {}).get("parameters", {})
            try:
                declared = declared_parameters(notebook)
            except (ValueError, SyntaxError):  # a notebook of another version
                continue
            for name, parameter in declared.items():
                setting = Setting(name, values.get(name, parameter.default), parameter.default, parameter.meaning)
                if name != "run_dir" and (setting.changed or name not in settings):
                    settings[name] = setting
        return list(settings.values())

    def _read(self, name: str, read, empty=None, *, columns: set[str] = frozenset()):
        path = self.run / name
        if not path.exists():
            return empty
        try:
            content = read(path)
            if columns <= set(content) if columns else isinstance(content, type(empty)):
                return content
        except (OSError, ValueError, yaml.YAMLError):
            pass
        self.notes.append(f"{name} cannot be read.")
        return empty


def _read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def _read_yaml(path: Path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _error(notebook) -> str:
    """Returns the error of an executed notebook's cell, or ""."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return f"In [{cell.execution_count}]: {output.ename}: {output.evalue}"
    return ""


def make_command(folder: RunFolder) -> str:
    """Returns the line for a shell that makes the same run again: `make run NAME=pets DATA='my photos'`."""
    changed = {setting.name.upper(): setting.value for setting in folder.settings if setting.changed}
    words = {"NAME": folder.run.name} | changed
    # make takes a "$" for the start of a variable's name
    return " ".join(["make run", *(f"{k}={shlex.quote(str(v).replace('$', '$$'))}" for k, v in words.items())])
