"""One environment, described three times: pyproject.toml, requirements.txt, environment.yml."""

import ast
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from helpers import environment

ROOT = Path(__file__).resolve().parent.parent
CONDA_PYTHON = "3.12"  # environment.yml names one version of Python, requirements.txt serves three


def declared() -> dict[str, Requirement]:
    """Returns the direct dependencies in pyproject.toml, those of the tests included, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def pins(python: str) -> dict[str, str]:
    """Returns the versions in requirements.txt that hold for one version of Python on Linux, by name."""
    found = {}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if not line or line.startswith((" ", "#")):
            continue
        requirement = Requirement(line)
        about = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
        if requirement.marker is None or requirement.marker.evaluate(about):
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", f"{line}: expected a pin"
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{name} is pinned twice for Python {python}"
            found[name] = specifier.version
    return found


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = sum(project["optional-dependencies"].values(), project["dependencies"])
    known = {canonicalize_name(Requirement(line).name) for line in lines}
    providers = metadata.packages_distributions()
    for file in (ROOT / "helpers").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"helpers"}:
                given_by = {canonicalize_name(provider) for provider in providers.get(name, [name])}
                assert given_by & known, f"{file.name} imports {name}, which pyproject.toml does not declare"


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_every_dependency_is_pinned_within_its_range(python):
    pinned = pins(python)
    for name, requirement in declared().items():
        assert name in pinned, f"{name} is missing in requirements.txt: make lock"
        assert requirement.specifier.contains(pinned[name]), f"{requirement}, but {pinned[name]} is pinned"
    assert "setuptools" in pinned, "pip installs the package itself with it, without build isolation"


def test_environment_yml_has_the_same_versions_and_nothing_else_and_says_what_for():
    text = (ROOT / "environment.yml").read_text()
    *conda, pip = yaml.safe_load(text)["dependencies"]
    *packages, limits, own = pip["pip"]
    assert conda == [f"python={CONDA_PYTHON}", "pip"] and [limits, own] == ["-c requirements.txt", "-e ."]
    versions = {canonicalize_name(r.name): str(r.specifier) for r in map(Requirement, packages)}
    pinned = pins(CONDA_PYTHON)
    assert versions == {name: f"=={pinned[name]}" for name in declared()}
    assert [
        line for line in re.findall(r"^ +- [\w-]+==.*", text, re.MULTILINE) if not re.search(r"\s# \w+", line)
    ] == []


def test_binder_reads_environment_yml_and_the_devcontainer_has_what_make_makes():
    binders = ("binder", ".binder", "Dockerfile", "Project.toml", "default.nix", "DESCRIPTION")  # it takes them first
    assert [name for name in binders if (ROOT / name).exists()] == []
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    make = (ROOT / "Makefile").read_text()
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert SpecifierSet(requires).contains(container["image"].rpartition(":")[2])
    assert re.search(rf"^{container['postCreateCommand'].removeprefix('make ')}:", make, re.MULTILINE)
    interpreter = container["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    environment = re.search(r"^VENV \?= (\S+)", make, re.MULTILINE)[1]
    assert interpreter == "${containerWorkspaceFolder}/" + environment + "/bin/python"


def test_no_file_names_a_machine_or_a_registry():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    folders = "|".join(["root", "home", "work", "tmp", "Users"])
    machine = re.compile(rf"(?<![\w.~$)}}>/-])/({folders})/\w")
    registry = re.compile(r"https?://[^\s\"']*(/simple\b|pythonhosted|py" + "pi)|index" + "-url\\s*[=h]")
    files = [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]
    assert ROOT / "pyproject.toml" in files
    found = []
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        found += [f"{file}: {match[0]}" for pattern in (machine, registry) if (match := pattern.search(text))]
    assert found == []


def test_the_environment_of_a_run_is_described(tmp_path, monkeypatch):
    found = environment.describe_environment()
    assert {"python", "tensorflow", "keras", "system", "processor", "cores", "memory_gb"} <= set(found)
    assert found["keras"] == metadata.version("keras") and found["cores"] >= 1 and found["memory_gb"] > 0.1
    assert json.loads(json.dumps(found)) == found
    (tmp_path / "a.txt").write_text("a")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "a.txt"], [*identity, "commit", "-q", "-m", "a"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    commit = environment.describe_environment()["commit"]
    assert re.fullmatch("[0-9a-f]{40}", commit)
    (tmp_path / "a.txt").write_text("b")
    assert environment.describe_environment()["commit"] == f"{commit}-dirty"
    monkeypatch.setattr(environment, "ROOT", tmp_path / "below")  # a copy without history of its own
    assert "commit" not in environment.describe_environment()


def test_a_run_lists_each_environment_once():
    add, now = environment.add_environment, {"python": "3.11", "keras": "3.15"}
    (first,) = add([], now)
    assert first["since"].endswith("+00:00")
    (same,) = add([first], now | {"gpus": []})  # known once TensorFlow is there
    assert same == first | {"gpus": []} and add([same], now) == [same]
    before, other = add([same], now | {"keras": "3.16"})
    assert before == same and other["keras"] == "3.16"
    assert add([before, other], now) == [before, other]


def test_import_helpers_is_fast_and_light():
    def seconds(code: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        return time.perf_counter() - started

    bare = min(seconds("pass") for _ in range(3))
    assert min(seconds("import helpers") for _ in range(3)) - bare < 0.5
    heavy = {"tensorflow", "keras", "pandas", "numpy", "papermill", "nbconvert"}
    seconds(f"import sys, helpers, helpers.run; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)")


READMES = ["README.md", *(f"{folder}/README.md" for folder in ("data", "helpers", "notebooks", "tests"))]
READMES += [str(path.relative_to(ROOT)) for path in (ROOT / "helpers").glob("*/README.md")]


def test_links_lead_somewhere_and_the_front_page_is_one_screen_and_leads_to_all_others():
    for readme in READMES:
        links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / readme).read_text(encoding="utf-8"))
        assert [link for link in links if not (ROOT / readme).parent.joinpath(link).exists()] == [], readme
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1000
    assert all(f"]({readme})" in text for readme in READMES[1:])


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (["DATA=my photos", "NAME=x y", "STEPS=3"], {"-n x y", "-p data my photos", "-p steps 3"}),
        (["PARAMS=seed=3 patience=1", "BACKBON=x"], {"-p seed 3", "-p patience 1", "-p backbon x"}),
        ([], set()),
    ],
)
def test_make_run_hands_every_variable_on(tmp_path, variables, expected):
    """Also a mistyped one: the runner knows what it should have been."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s|" "$word"; done\n')
    python.chmod(0o755)
    (tmp_path / ".installed").touch()
    command = ["make", "--silent", "-o", str(tmp_path / ".installed"), "run", f"VENV={tmp_path}", *variables]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"DATA": "elsewhere"})
    assert done.returncode == 0, done.stderr
    start, *words = done.stdout.strip("|").split("|-")
    assert start == "-m|helpers.run"
    assert {"-" + word.replace("|", " ") for word in words} == expected


def test_a_module_imports_only_from_those_before_it():
    readme = (ROOT / "helpers" / "README.md").read_text(encoding="utf-8")
    paragraph = readme[readme.index("has a module per thing") : readme.index("A module imports only")]
    order = ["_keras", *re.findall(r"`(\w+)`", paragraph)]
    packages = {path.parent.name for path in (ROOT / "helpers").glob("*/__init__.py")}
    assert {path.stem for path in (ROOT / "helpers").glob("*.py")} | packages == {"__init__", *order}
    for position, name in enumerate(order):
        files = (ROOT / "helpers" / name).glob("*.py") if name in packages else [ROOT / "helpers" / f"{name}.py"]
        for file in files:
            used = re.findall(r"^\s*(?:from|import) helpers\.(\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert set(used) - {name} <= set(order[:position]), f"{file.name} of {name} imports {used}"


def test_nothing_outside_the_appendices_needs_them():
    for path in [*(ROOT / "helpers").rglob("*.py"), *(ROOT / "notebooks").glob("0*.ipynb")]:
        if path.parent.name != "appendices":
            assert "helpers.appendices" not in path.read_text(), path


def test_every_module_imports_without_what_only_unix_has():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "helpers").rglob("*.py")]
    code = f"""
import builtins, importlib
imports = builtins.__import__
def hidden(name, globals=None, *rest, **named):  # from our modules; libraries have others for other systems
    asking = (globals or {{}}).get("__name__", "")
    if asking.startswith("helpers") and name in ("fcntl", "resource", "pwd", "termios"):
        raise ImportError(name)
    return imports(name, globals, *rest, **named)
builtins.__import__ = hidden
for name in {[module.removesuffix(".__init__") for module in modules]}:
    importlib.import_module(name)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
