"""What a notebook's cell tagged `parameters` declares, and whether given values fit it.

The cell is read with `ast`: `papermill.inspect_notebook` sees neither `int | None` nor a comment with an `=` in it.
"""

import ast
import difflib
import importlib
import os
import re
import sys
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from helpers import ROOT, resolve_path

EMBEDDED = "digits"
"""The value of `data` that means the embedded example and not a folder."""
LETTERS, PHOTOS = "data/letters.keras", "MobileNetV2"
"""The networks that `backbone="auto"` stands for: for the embedded example, and for anything else.

MobileNetV2 at its 224 pixels suits two cores: about 95 images a second forward and 38 in training (ResNet50: 20 and
6), and 94 to 96 % on the ants and bees.
"""

_RECIPE = ("learning_rate", "min_lr_factor", "steps", "batch_size", "augmentation", "class_weight")
_CHECKS = (  # what the notebooks read parameters with: the function, and those that it is given by name
    ("helpers.data.sources.find_data", ("data",)),
    ("helpers.data.checks.check_policy", ("on_problem",)),
    ("helpers.data.splits.check_shares", ("validation_fraction", "test_fraction", "images_per_class", "seed")),
    ("helpers.data.pixels.check_rule", ("resize",)),
    *(("helpers.training.fine_tuning.Recipe", (name,)) for name in _RECIPE),
    ("helpers.study.plan.read_budget", ("budget",)),
    ("helpers.study.plan.read_margin", ("margin",)),
    ("helpers.study.cluster.read_cluster", ("cluster",)),
    ("helpers.export.read_kinds", ("exports",)),
    ("helpers.parameters.check_folder", ("shifted",)),
    ("helpers.parameters.check_folder", ("new_images",)),
    ("helpers.backbones.load_backbone", ("backbone", "weights", "image_size", "preprocessing", "features_from")),
)

_CHECKED = {"int", "float", "str", "bool", "None", "list", "dict"}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `name: types = default  # meaning`."""

    name: str
    default: object
    types: tuple[str, ...]
    meaning: str = ""

    def __str__(self) -> str:
        comment = f"  # {self.meaning}" if self.meaning else ""
        return f"{self.name}: {' | '.join(self.types)} = {self.default!r}{comment}"


def declared_parameters(notebook) -> dict[str, Parameter]:
    """Returns the parameters that a notebook declares, by name, in their order; empty without such a cell.

    A line without a type, or with a default that is not a literal, is a ValueError.
    """
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    source = cells[0].source if cells else ""
    lines, declared = source.encode().splitlines(), {}
    for line in ast.parse(source).body:
        if not isinstance(line, ast.AnnAssign) or line.value is None:
            raise ValueError(f"Expected a parameter like `seed: int = 0`. Received `{ast.unparse(line)}`.")
        name, types = line.target.id, type_names(ast.unparse(line.annotation))
        try:
            default = ast.literal_eval(line.value)
        except ValueError:
            raise ValueError(
                f"Parameter {name} must have a literal as its default, and has {ast.unparse(line.value)}: a value "
                "derived from others belongs in a later cell."
            ) from None
        comment = lines[line.end_lineno - 1][line.end_col_offset :].decode()
        declared[name] = Parameter(name, default, types, comment.strip().lstrip("# "))
    return declared


def type_names(annotation: str) -> tuple[str, ...]:
    """Returns the types' names without what they hold: `list[int] | None` is a list or None."""
    return tuple(re.sub(r"\[.*?\]", "", annotation).split(" | "))


def choose_backbone(backbone: str, data: str | None = None) -> str:
    """Returns the network that the parameter names; for "auto", the one that suits `data` (see `PHOTOS`)."""
    if backbone != "auto":
        return str(backbone)
    return LETTERS if data == EMBEDDED else PHOTOS


def describe_backbone(backbone: str, weights: str | None, image_size: int) -> str:
    """Returns a line on the network: what it is, what is downloaded, and how to choose another."""
    about = "" if weights == "imagenet" else f", weights: {weights}"
    if backbone == LETTERS:
        about = ", pretrained on letters" + about
    elif backbone == PHOTOS and weights == "imagenet":
        about = f", {image_size or 224} pixels, ImageNet weights (9 MB, downloaded once)"
    return f"Network: {backbone}{about}. To choose another: the parameter `backbone` (make run BACKBONE=NAME)."


def check_folder(**named: str) -> None:
    """Raises FileNotFoundError where the folder of images that a parameter names is missing; "" names none."""
    for name, path in named.items():
        if path and not resolve_path(path).exists():
            raise FileNotFoundError(
                f"The parameter `{name}` should name a folder of images. Received {path!r}, but there is no "
                f"{resolve_path(path)}. Check the spelling."
            )


def impossible_values(values: dict, usual: dict) -> list[str]:
    """Returns a message for each value that is wrong whatever the images are, as the notebooks would say it.

    Only values that are not the usual ones are looked at. If all before it are right, the network is loaded: weights
    are downloaded now.
    """
    problems = []
    for path, names in _CHECKS:
        if not set(names) <= set(values) or all(values[name] == usual.get(name) for name in names):
            continue
        given = {name: values[name] for name in names}
        if problems and given.get("weights") == "imagenet":
            given["weights"] = None
        module, _, function = path.rpartition(".")
        try:
            with redirect_stdout(sys.stderr):  # Keras shows a download's progress
                getattr(importlib.import_module(module), function)(**given)
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            problems.append(str(error))
    return problems


def validate_parameters(given: dict, declared: dict[str, Parameter]) -> dict:
    """Returns the given values by name, texts that somebody typed converted to the declared types.

    A ValueError has a line for each unknown parameter and each value of a wrong type.
    """
    values, problems = {}, []
    for name, value in given.items():
        if name == "run_dir":
            problems.append("run_dir is set by the runner: choose it with NAME=... (-n).")
        elif name not in declared:
            nearest = difflib.get_close_matches(name, declared, n=1, cutoff=0.3)
            problems.append(f"There is no parameter {name}." + (f" Did you mean {nearest[0]}?" if nearest else ""))
        else:
            try:
                values[name] = _converted(value, declared[name])
            except ValueError:
                expected = " or ".join(declared[name].types)
                problems.append(f"{name}: expected {expected}. Received: {value!r} ({_type_name(value)}).")
    if problems:
        raise ValueError("\n".join(problems))
    return values


def resolve_from_cwd(name: str, value, here: Path):
    """Returns the value, with the path in a parameter that holds one resolved from the folder `here`, if it exists.

    A path inside the repository comes back relative to its root, so that the run can move with the repository.
    """
    paths = {"data": value != EMBEDDED, "weights": value != "imagenet", "shifted": True, "new_images": True}
    paths["backbone"] = str(value).endswith(".keras")
    if not isinstance(value, str) or value in ("", "None") or not paths.get(name):
        return value
    path = here / Path(value).expanduser()
    if not path.exists() and not value.startswith("~"):
        return value
    path = Path(os.path.abspath(path))  # not resolve(): a link keeps the name that the person gave it
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _type_name(value) -> str:
    return "None" if value is None else type(value).__name__


def _converted(value, parameter: Parameter):
    """Returns the value as one of the declared types; a text is taken as it is only where no other type fits it."""
    types = parameter.types
    if value in (None, "None") and (parameter.default == "" or parameter.name == "exports"):
        return ""
    if value is None and parameter.name == "weights":  # papermill's None
        return "None"
    if isinstance(value, str):
        for kind in (int, float):  # first: YAML 1.1 reads 1e-4 as a text
            if kind.__name__ in types:
                with suppress(ValueError):
                    return kind(value)
        if "None" in types and value == "None":  # YAML's is null, papermill's and Python's is None
            return None
        with suppress(ValueError, yaml.YAMLError):
            return _checked(yaml.safe_load(value), tuple(t for t in types if t != "str"))
    return _checked(value, types)


def _checked(value, types: tuple[str, ...]):
    name = _type_name(value)
    if name == "int" and "int" not in types and "float" in types:
        return float(value)
    if name in types or not _CHECKED.issuperset(types):
        return value
    if name in ("int", "float") and "str" in types:  # papermill and YAML make numbers of minutes and of 2024/
        return str(value)
    raise ValueError
