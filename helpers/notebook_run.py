"""The run that a notebook belongs to: its parameters, what earlier notebooks have saved, and where it saves."""

import json
from pathlib import Path

import yaml

from helpers import resolve_path, shown_path, write_atomically
from helpers.environment import add_environment, describe_environment
from helpers.parameters import Parameter, choose_backbone, type_names, validate_parameters
from helpers.records import Records, describe_differences
from helpers.report import RunFolder, read_metrics

_MADE_BY = {"frozen": "02_transfer_learning", "fine_tuned": "03_fine_tuning", "chosen": "04_freeze_or_fine_tune"}


class Run:
    """The folder that the notebooks of a run share, and the parameters of one of them.

    A notebook may be executed again with other parameters. As soon as it saves something, its earlier results, and
    what later notebooks made of them, move to `earlier/1`, `earlier/2`, ... in the folder (`Records`).

    Attributes:
        folder: an absolute path; its last part is the run's `name`.
        notebook: the notebook's name; "" for who only reads.
        parameters: name to plain value, as the notebook declares them, without `run_dir`. Where `backbone` is "auto",
            this is the network that it stands for.
        records: which notebook made what.
    """

    def __init__(self, folder: str | Path, notebook: str = "", parameters: dict | None = None):
        self.folder, self.notebook, self.parameters = resolve_path(folder), notebook, plain(parameters or {})
        self.name, self.records = self.folder.name, Records(self.folder)
        self._adopted, self._used, self._number = {}, {}, 0
        self._namespace, self._given = {}, {}

    @classmethod
    def open(cls, namespace: dict, notebook: str) -> "Run":
        """Returns the run that a notebook belongs to, and makes its folder if need be.

        A value of another type than declared is a ValueError.

        Args:
            namespace: the notebook's `globals()`. Its parameters are the names that were declared with a type.
            notebook: its name, such as "03_fine_tuning".
        """
        types = namespace.get("__annotations__", {})
        values = {name: namespace[name] for name in types if name in namespace}
        if "run_dir" not in values:
            raise ValueError(
                'Expected a cell of parameters such as `run_dir: str = "runs/digits"`. Received none with a type. '
                "Execute the cell tagged `parameters` first."
            )
        run = cls(values.pop("run_dir"), notebook, values)
        run._namespace, run._given = namespace, run.parameters.copy()
        declared = {name: _parameter(name, types[name]) for name in values}
        converted = validate_parameters(run.parameters, declared)
        texts = {name for name, value in values.items() if value is None or isinstance(value, str)}  # as they are
        run.parameters |= {name: value for name, value in converted.items() if name not in texts}
        if run.parameters.get("backbone") == "auto":
            run.parameters["backbone"] = choose_backbone("auto", (run.kept | run.parameters).get("data"))
        run.folder.mkdir(parents=True, exist_ok=True)
        return run

    @property
    def kept(self) -> dict:
        """The parameters of all results in the folder: the contents of `parameters.yaml`, by name."""
        path = self.folder / "parameters.yaml"
        return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}

    def adopt(self, name: str, default):
        """Returns an earlier notebook's parameter, else the default. From now on it is one of this notebook, too."""
        self._adopted[name] = self.kept.get(name, default)
        return self._adopted[name]

    @property
    def metrics(self) -> dict:
        """The contents of `metrics.json`: see `helpers.report.read_metrics`."""
        return read_metrics(self.folder)

    def set_seed(self) -> None:
        """Makes everything random that follows repeatable, from the parameter `seed`."""
        from helpers.training import set_seed  # here, as below: TensorFlow takes seconds, and 01 needs none

        set_seed(self.parameters["seed"])

    def path(self, filename: str, made_by: str = "") -> Path:
        """Returns the path of a file in the folder, which this notebook makes, or the notebook `made_by` has made.

        A FileNotFoundError if it has not, or if its results were moved because they are stale.
        """
        path = self.folder / filename
        if not made_by:
            self._begin(filename)
        elif not path.exists():
            where, old = shown_path(self.folder), self.records.read().get(made_by, {})
            if "stale" in old:
                raise FileNotFoundError(
                    f"{filename} of {made_by} is stale, since {old['stale']}; it is in {where}/{old['folder']}. "
                    f"Execute {made_by} again, with the same run_dir."
                )
            raise FileNotFoundError(
                f"Expected {filename} in {where}, and it isn't there: {made_by} makes it. "
                f"Run {made_by} first, with the same run_dir."
            )
        else:
            self._used.setdefault(made_by, self.records.number(made_by))
        return path

    def _begin(self, *files: str) -> None:
        """Notes that the notebook makes these files; before the first one, earlier results are moved."""
        if not self.notebook:
            return
        now = {name: plain(self._namespace[name]) for name in self._given}
        opened = {name: value for name, value in self._given.items() if now[name] != self.parameters[name]}
        if changes := describe_differences(opened, now):
            raise ValueError(f"Parameters have changed: {changes}. Execute the cell with `Run.open` again.")
        for name, number in self._used.items():
            if self.records.number(name) != number:
                raise ValueError(
                    f"{name} was executed again with other parameters since this notebook read its results. "
                    "Execute this notebook again from the top."
                )
        if self._number and self.records.number(self.notebook) != self._number:
            raise ValueError(
                f"{self.notebook} was executed elsewhere, with other parameters. Execute it again from the top."
            )
        if not self._number:
            before = self.records.parameters(self.notebook)
            if changes := describe_differences(before, self.parameters | self._adopted):
                print(self.records.set_aside({self.notebook: changes}))
            self._number = self.records.begin(self.notebook, self.parameters)
            environments = add_environment(RunFolder(self.folder).environments, describe_environment())
            write_atomically(self.folder / "environment.json", _json(environments))
        self.records.change(self.notebook, uses=self._used, adopted=self._adopted, files=files)

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

    def read(self, filename: str, made_by: str) -> dict:
        """Returns the contents of a JSON file that an earlier notebook has made: see `path`."""
        return json.loads(self.path(filename, made_by=made_by).read_text(encoding="utf-8"))

    # ---- what this notebook saves

    def save(self, filename: str, content) -> None:
        """Writes a file, whole or not at all: a DataFrame as CSV, other plain values as JSON.

        A CSV is UTF-8, has numbers of five digits, and the table's index if that has a name.
        """
        if filename.endswith(".csv"):
            from helpers.data.tables import to_csv

            text = to_csv(content.reset_index() if content.index.name else content, float_format=_five_digits)
        else:
            text = _json(content)
        write_atomically(self.path(filename), text)

    def add_to(self, filename: str, made_by: str, **sections) -> None:
        """Writes these keys into a JSON file of an earlier notebook, whose file it remains."""
        self._begin()
        content = self.read(filename, made_by) | sections
        write_atomically(self.folder / filename, _json(content))

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
        self._begin()
        self.records.change(self.notebook, metrics=plain(sections))
        return self.metrics


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


def _json(content) -> str:
    return json.dumps(plain(content), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _five_digits(number: float) -> str:
    return f"{number:.5g}" if abs(number) < 1e5 else f"{number:.0f}"
