"""What a notebook's cell tagged `parameters` declares, and whether given values fit it.

The cell is read with `ast`, not with `papermill.inspect_notebook`: that matches lines by a pattern that sees
neither `weights: str | None = None` nor a comment with an `=` in it.
"""

import ast
import difflib
import importlib
import io
import os
import sys
import tokenize
from contextlib import redirect_stdout
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

_RECIPE = ("learning_rate", "lowest_rate", "steps", "batch_size", "augmentation", "class_weight")
_CHECKS = (  # what the notebooks read parameters with: the function, and those that it is given by name
    ("helpers.data.sources.find_data", ("data",)),
    ("helpers.data.checks.check_policy", ("on_problem",)),
    ("helpers.data.splits.check_shares", ("validation_fraction", "test_fraction", "images_per_class", "seed")),
    ("helpers.data.pixels.check_rule", ("resize",)),
    *(("helpers.training.fine_tuning.Recipe", (name,)) for name in _RECIPE),
    ("helpers.study.plan.read_budget", ("budget",)),
    ("helpers.study.plan.read_margin", ("margin",)),
    ("helpers.export.read_kinds", ("exports",)),
    ("helpers.parameters.check_folder", ("shifted",)),
    ("helpers.parameters.check_folder", ("new_images",)),
    ("helpers.backbones.load_backbone", ("backbone", "weights", "image_size", "preprocessing", "features_from")),
)

_CHECKED = {"int", "float", "str", "bool", "None", "list", "dict", "tuple"}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `name: types = default  # meaning`."""

    name: str
    default: object
    types: tuple[str, ...]
    meaning: str

    def __str__(self) -> str:
        comment = f"  # {self.meaning}" if self.meaning else ""
        return f"{self.name}: {' | '.join(self.types)} = {self.default!r}{comment}"


def declared_parameters(notebook) -> dict[str, Parameter]:
    """Returns the parameters that a notebook declares, by name, in their order; empty without such a cell.

    Raises:
        ValueError: A default is not a literal.
    """
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    source = cells[0].source if cells else ""
    comments = {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    declared = {}
    for line in ast.parse(source).body:
        target = line.target if isinstance(line, ast.AnnAssign) else getattr(line, "targets", [None])[0]
        if not isinstance(target, ast.Name) or line.value is None:
            continue
        try:
            default = ast.literal_eval(line.value)
        except ValueError:
            raise ValueError(
                f"Parameter {target.id} must have a literal as its default, and has "
                f"{ast.unparse(line.value)}: a value derived from others belongs in a later cell."
            ) from None
        if isinstance(line, ast.AnnAssign):
            types = _type_names(line.annotation)
        else:  # a bare None says nothing about what else it may be
            types = ("Any",) if default is None else (_type_name(default),)
        declared[target.id] = Parameter(target.id, default, types, comments.get(line.end_lineno, ""))
    return declared


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
    return f"Network: {backbone}{about}. To choose another: BACKBONE=NAME."


def check_folder(**named: str) -> None:
    """Makes sure that the folder of images that a parameter names is there; "" names none.

    Raises:
        FileNotFoundError: with the name of the parameter.
    """
    for name, path in named.items():
        if path and not resolve_path(path).exists():
            raise FileNotFoundError(
                f"The parameter `{name}` should name a folder of images. Received {path!r}, but there is no "
                f"{resolve_path(path)}. Check the spelling."
            )


def checked_values(values: dict, usual: dict) -> dict:
    """Returns the values that `impossible_values` has to look at: those of checks with one that is not the usual.

    Args:
        values: by name.
        usual: values that need no check, such as defaults.
    """
    groups = [names for _, names in _CHECKS if set(names) <= set(values)]
    return {
        name: values[name] for names in groups if any(values[name] != usual[name] for name in names) for name in names
    }


def impossible_values(values: dict) -> list[str]:
    """Returns what the notebooks would say about values that are wrong whatever the images are, a message each.

    They are read by the notebooks' own functions. The network is loaded, so that weights that have to be downloaded
    are there when they are needed, unless another value is wrong.
    """
    problems = []
    for path, names in _CHECKS:
        if not set(names) <= set(values):
            continue
        given = {name: values[name] for name in names}
        if problems and given.get("weights") == "imagenet":
            given["weights"] = None
        module, _, function = path.rpartition(".")
        try:
            with redirect_stdout(sys.stderr):  # Keras shows how a download gets on
                getattr(importlib.import_module(module), function)(**given)
        except (ValueError, OSError, ImportError, RuntimeError) as error:
            problems.append(str(error))
    return problems


def fitting_values(given: dict, declared: dict[str, Parameter]) -> dict:
    """Returns the given values by name, texts converted to the declared types.

    Args:
        given: Values by name. A text is what somebody typed; other values come from a YAML file.
        declared: What the notebooks declare.

    Raises:
        ValueError: With one line for each unknown parameter and each value of a wrong type.
    """
    values, problems = {}, []
    for name, value in given.items():
        if name == "run_dir":
            problems.append("run_dir is set by the runner: choose it with NAME=... (-n) or --runs-dir.")
        elif name not in declared:
            nearest = difflib.get_close_matches(name, declared, n=1, cutoff=0.3)
            hint = f" Did you mean {nearest[0]}?" if nearest else ""
            problems.append(f"There is no parameter {name}.{hint}")
        else:
            try:
                values[name] = _converted(value, declared[name])
            except ValueError:
                expected = " or ".join(declared[name].types)
                problems.append(f"{name}: expected {expected}. Received: {value!r} ({_type_name(value)}).")
    if problems:
        raise ValueError("\n".join(problems))
    return values


def from_here(name: str, value, here: Path):
    """Returns the value with a path parameter's path counted from the folder `here`, if it exists there.

    A path inside the repository comes back relative to its root: the run can then move with the repository,
    and is the same run wherever it was started from.
    """
    is_path = {
        "data": value != EMBEDDED,
        "weights": value != "imagenet",
        "backbone": str(value).endswith(".keras"),
        "shifted": True,
        "new_images": True,
    }
    if not isinstance(value, str) or not value or not is_path.get(name, False):
        return value
    path = here / Path(value).expanduser()
    if not path.exists() and not value.startswith("~"):
        return value
    path = Path(os.path.abspath(path))  # not resolve(): a link keeps the name that the person gave it
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _type_name(value) -> str:
    return "None" if value is None else type(value).__name__


def _type_names(annotation: ast.expr) -> tuple[str, ...]:
    match annotation:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _type_names(left) + _type_names(right)
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            return (*_type_names(inner), "None")
        case ast.Constant(value=str(text)):
            return _type_names(ast.parse(text, mode="eval").body)
        case ast.Subscript(value=outer):
            return _type_names(outer)
    return (ast.unparse(annotation),)


def _converted(value, parameter: Parameter):
    """Returns the value as one of the declared types; a text is taken as it is only where no other type fits it."""
    types = parameter.types
    if value in (None, "None") and (parameter.default == "" or parameter.name == "exports"):
        return ""
    if value is None and parameter.name == "weights":  # papermill's None
        return "None"
    if not isinstance(value, str):
        return _checked(value, types)
    for kind in (int, float):  # first: YAML 1.1 reads 1e-4 as a text
        if kind.__name__ in types:
            try:
                return kind(value)
            except ValueError:
                pass
    if "None" in types and value == "None":  # YAML's is null, papermill's and Python's is None
        return None
    try:
        return _checked(yaml.safe_load(value), tuple(t for t in types if t != "str"))
    except (ValueError, yaml.YAMLError):
        return _checked(value, types)


def _checked(value, types: tuple[str, ...]):
    name = _type_name(value)
    if name == "int" and "int" not in types and "float" in types:
        return float(value)
    if name in types or not _CHECKED.issuperset(types):
        return value
    if name == "list" and "tuple" in types:  # YAML knows no tuples
        return value
    if name in ("int", "float") and "str" in types:  # papermill and YAML make numbers of minutes and of 2024/
        return str(value)
    raise ValueError
