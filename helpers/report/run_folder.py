"""What a run's folder holds, as far as it can be read, and how to repeat the run."""

import json
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

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


def failure(notebook) -> str | None:
    """Returns why an executed notebook stopped, or None if no cell of it failed."""
    about = notebook.metadata.get("papermill", {})
    if not about.get("exception"):
        return None
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return f"In [{cell.execution_count}]: {output.ename}: {output.evalue}"
    return about.get("stopped", "It was interrupted.")


@dataclass(frozen=True)
class Setting:
    """A parameter of a notebook, and the value that the run was made with."""

    name: str
    value: object
    default: object
    meaning: str

    @property
    def shown(self) -> str:
        """The value as a text that can be seen."""
        return '""' if self.value == "" else str(self.value)

    @property
    def changed(self) -> bool:
        """Whether the value is another than the notebook's own."""
        return self.value != self.default


class Record:
    """A run's folder, read file by file as it is asked for.

    A file that is missing is empty; so is one that cannot be read, and `notes` says so: the run may have stopped
    half-way, have been copied in part, or be somebody else's.

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

        return self._table("images.csv", load_images, {"path", "label", "split"})

    @cached_property
    def problems(self):
        """`problems.csv`, a DataFrame: see `helpers.data.check_images`; None without it."""
        from helpers.data.tables import read_texts

        return self._table("problems.csv", read_texts, {"path", "problem", "severity", "action", "reason"})

    @cached_property
    def notebooks(self) -> dict:
        """The executed notebooks, by name, in their order."""
        found = {path: read_executed(path) for path in sorted(self.run.glob("[0-9][0-9]_*.ipynb"))}
        self.notes += [f"{path.name} cannot be read." for path, notebook in found.items() if notebook is None]
        return {path.stem: notebook for path, notebook in found.items() if notebook is not None}

    @property
    def failures(self) -> dict[str, str]:
        """Why notebooks stopped, by name."""
        return {name: why for name, notebook in self.notebooks.items() if (why := failure(notebook))}

    @cached_property
    def settings(self) -> dict[str, list[Setting]]:
        """The parameters of each notebook, in their order, without `run_dir`.

        Of a run whose notebooks were executed by hand, and do not lie in its folder, those of the repository's
        notebooks that the run has kept.
        """
        if self.notebooks:
            return {
                name: _settings(notebook, notebook.metadata.get("papermill", {}).get("parameters", {}))
                for name, notebook in self.notebooks.items()
            }
        templates = {path.stem: read_executed(path) for path in sorted(ROOT.glob("notebooks/[0-9][0-9]_*.ipynb"))}
        found = {name: _settings(notebook, self.parameters) for name, notebook in templates.items() if notebook}
        return {name: kept for name, own in found.items() if (kept := [s for s in own if s.name in self.parameters])}

    @property
    def changed(self) -> dict[str, object]:
        """The parameters that are not the notebooks' defaults, by name, each once."""
        return {s.name: s.value for own in self.settings.values() for s in own if s.changed}

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

    def _table(self, name: str, read, columns: set[str]):
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


# ---- how to repeat it


def make_command(record: Record) -> str:
    """Returns the line for a shell that makes the same run again: `make run NAME=pets DATA='my photos'`."""
    words = {"NAME": record.run.name} | {name.upper(): value for name, value in record.changed.items()}
    # make takes a "$" for the start of a variable's name
    return " ".join(["make run", *(f"{k}={shlex.quote(str(v).replace('$', '$$'))}" for k, v in words.items())])


def papermill_commands(record: Record) -> list[str]:
    """Returns the lines that make the same run again without make, one for each notebook."""
    folder = Path("runs") / record.run.name
    commands = []
    for name, settings in record.settings.items():
        words = ["papermill", f"notebooks/{name}.ipynb", f"{folder}/{name}.ipynb", "-r", "run_dir", str(folder)]
        for setting in settings:
            if setting.changed:
                words += _papermill_option(setting.name, setting.value)
        commands.append(shlex.join(words))
    return [shlex.join(["mkdir", "-p", str(folder)]), *commands] if commands else []


def _papermill_option(name: str, value) -> list[str]:
    """Returns the option that gives this value and no other: papermill takes the text "3" of a -p for a number."""
    if isinstance(value, str):
        return ["-r", name, value]
    if isinstance(value, (list, tuple, dict)):
        return ["-y", json.dumps({name: value})]
    return ["-p", name, str(value)]
