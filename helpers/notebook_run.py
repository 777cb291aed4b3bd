"""The run that a notebook belongs to: its parameters, what earlier notebooks have saved, and where it saves."""

import json
import os
from pathlib import Path

import yaml

from helpers import resolve_path, write_atomically
from helpers.environment import add_environment, describe_environment
from helpers.parameters import Parameter, choose_backbone, type_names, validate_parameters
from helpers.report import RunFolder, read_metrics

CHOICES = "choose another folder (make run NAME=..., or another run_dir), or delete this one to start over"

_WITHOUT_EFFECT = {"cluster"}  # parameters that change no result: other values of them are not refused

_MADE_BY = {"frozen": "02_transfer_learning", "fine_tuned": "03_fine_tuning", "chosen": "04_freeze_or_fine_tune"}


class Run:
    """The folder that the notebooks of a run share, and the parameters of one of them.

    Attributes:
        folder: an absolute path; its last part is the run's `name`.
        parameters: name to plain value, as the notebook declares them, without `run_dir`. Where `backbone` is "auto",
            this is the network that it stands for.
    """

    def __init__(self, folder: str | Path, parameters: dict | None = None):
        self.folder, self.parameters = resolve_path(folder), plain(parameters or {})
        self.name = self.folder.name

    @classmethod
    def open(cls, namespace: dict) -> "Run":
        """Returns the run that a notebook belongs to, and makes its folder if need be.

        A value of another type than declared is a ValueError, and so are results in the folder of another value.

        Args:
            namespace: the notebook's `globals()`. Its parameters are the names that were declared with a type.
        """
        types = namespace.get("__annotations__", {})
        values = {name: namespace[name] for name in types if name in namespace}
        if "run_dir" not in values:
            raise ValueError(
                'Expected a cell of parameters such as `run_dir: str = "runs/digits"`. Received none with a type. '
                "Execute the cell tagged `parameters` first."
            )
        run = cls(values.pop("run_dir"), values)
        validate_parameters(run.parameters, {name: _parameter(name, types[name]) for name in values})
        kept = run.kept
        if run.parameters.get("backbone") == "auto":
            run.parameters["backbone"] = choose_backbone("auto", (kept | run.parameters).get("data"))
        if differences := describe_differences(kept, run.parameters):
            raise ValueError(f"{shown_path(run.folder)} was made with {differences}: {CHOICES}.")
        run.folder.mkdir(parents=True, exist_ok=True)
        return run

    @property
    def kept(self) -> dict:
        """What all results in the folder were made with so far: the contents of `parameters.yaml`, by name."""
        path = self.folder / "parameters.yaml"
        return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}

    @property
    def metrics(self) -> dict:
        """The contents of `metrics.json`: see `helpers.report.read_metrics`."""
        return read_metrics(self.folder)

    def set_seed(self) -> None:
        """Makes everything random that follows repeatable, from the parameter `seed`."""
        from helpers.training import set_seed  # here, as below: TensorFlow takes seconds, and 01 needs none

        set_seed(self.parameters["seed"])

    def path(self, filename: str, made_by: str = "") -> Path:
        """Returns the path of a file in the folder; a FileNotFoundError if the notebook `made_by` has not made it."""
        path = self.folder / filename
        if made_by and not path.exists():
            raise FileNotFoundError(
                f"Expected {filename} in {shown_path(self.folder)}, and it isn't there: {made_by} makes it. "
                f"Run {made_by} first, with the same run_dir."
            )
        return path

    # ---- what earlier notebooks have left

    def images(self):
        """Returns the table of images that 01 made, a DataFrame: see `helpers.data`."""
        from helpers.data import load_images

        return load_images(self.path("images.csv", made_by="01_load_data"))

    def labels(self) -> tuple[dict, list[str]]:
        """Returns the labels, part to int64 (images,), and the class names that the numbers stand for."""
        from helpers.data import encode_labels

        return encode_labels(self.images())

    def pixels(self, model, *, resize: str) -> dict:
        """Returns the images at the model's size, part to uint8 (images, height, width, 3): see `load_pixels`."""
        from helpers.data import load_pixels

        return load_pixels(self.images(), image_size=model.input_shape[1:3], resize=resize)

    def classifier(self, name: str) -> tuple:
        """Returns the Keras model "frozen", "fine_tuned" or "chosen", and its settings: see `load_classifier`."""
        from helpers.training import load_classifier

        return load_classifier(self.path(f"{name}.keras", made_by=_MADE_BY[name]))

    # ---- what this notebook saves

    def keep_parameters(self, *names: str) -> None:
        """Adds parameters, all or those named, to `parameters.yaml`: from now on, `open` refuses other values.

        A notebook calls it right before it saves results: until then, a mistyped parameter can be corrected. Versions
        and machine go to `environment.json`.
        """
        kept = self.kept | {name: self.parameters[name] for name in names or self.parameters}
        write_atomically(self.path("parameters.yaml"), yaml.safe_dump(kept, allow_unicode=True))
        self.save("environment.json", add_environment(RunFolder(self.folder).environments, describe_environment()))

    def save(self, filename: str, content) -> None:
        """Writes a file, whole or not at all: a DataFrame as CSV, other plain values as JSON.

        A CSV is UTF-8, has numbers of five digits, and the table's index if that has a name.
        """
        if filename.endswith(".csv"):
            from helpers.data.tables import to_csv

            text = to_csv(content.reset_index() if content.index.name else content, float_format=_five_digits)
        else:
            text = json.dumps(plain(content), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        write_atomically(self.path(filename), text)

    def figure(self, name: str, figure):
        """Returns the figure, after saving it with its description as `figures/<name>.png`, for the report."""
        path = self.path(f"figures/{name}.png")
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=120, metadata={"Description": figure.description})
        return figure

    def save_classifier(self, name: str, model, **settings) -> None:
        """Saves a Keras model as `<name>.keras`: `settings` are those of `helpers.training.save_model`."""
        from helpers.training import save_model

        save_model(model, self.path(f"{name}.keras"), **settings)

    def update_metrics(self, **sections) -> dict:
        """Returns the contents of `metrics.json`, after merging these sections into the file.

        A dict is merged by key, so that each notebook adds its own arms; anything else is replaced.
        """
        metrics = self.metrics
        for name, section in plain(sections).items():
            both = isinstance(section, dict) and isinstance(metrics.get(name), dict)
            metrics[name] = metrics[name] | section if both else section
        self.save("metrics.json", metrics)
        return metrics


def describe_differences(before: dict, now: dict) -> str:
    """Returns `seed=0, and seed=1 was asked for` for each name that both have with values of another effect."""
    return "; ".join(
        f"{name}={before[name]!r}, and {name}={now[name]!r} was asked for"
        for name in before.keys() & now.keys() - _WITHOUT_EFFECT
        if str(before[name]) != str(now[name])  # 60 minutes or "60"
    )


def shown_path(path: Path) -> str:
    """Returns the path as a person at this prompt would type it."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def plain(value):
    """Returns the value in the types that YAML and JSON know."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return plain(value.tolist()) if hasattr(value, "tolist") else value  # NumPy's scalars and arrays


def _parameter(name: str, annotation) -> Parameter:
    """Returns a parameter of this type; papermill makes None of a text "None", so a text may be None."""
    types = type_names(getattr(annotation, "__name__", str(annotation)))
    return Parameter(name, "" if "str" in types else None, types)


def _five_digits(number: float) -> str:
    return f"{number:.5g}" if abs(number) < 1e5 else f"{number:.0f}"
