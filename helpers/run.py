"""A run's folder, and the pipeline that fills it: `python -m helpers.run`.

Notebooks call `open_run`, `require`, `keep_parameters` and `update_metrics`. The command line executes the
numbered notebooks with papermill, each once: a notebook that has finished is not executed again.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from helpers import ROOT, resolve_path, wrapped, write_atomically
from helpers.environment import add_environment, describe_environment
from helpers.execution import Progress, Stopped, code_cells, execute, is_finished, read_executed
from helpers.parameters import (
    EMBEDDED,
    LETTERS,
    Parameter,
    checked_values,
    choose_backbone,
    declared_parameters,
    describe_backbone,
    fitting_values,
    from_here,
    impossible_values,
)
from helpers.report import COLUMNS, RunFolder, read_metrics, summary_rows, write_card, write_report

CHOICES = "choose another folder (make run NAME=..., or another run_dir), or delete this one to start over"


# ---- what notebooks call


def open_run(run_dir: str | Path, parameters: dict) -> Path:
    """Returns the run's folder, made if need be, after making sure that it holds no results of other parameters.

    Args:
        run_dir: The folder; a relative path is counted from the repository's root.
        parameters: What the notebook was asked for: names and plain values.

    Raises:
        ValueError: A value is of another type than the notebooks declare, or results in the folder were made with
            another value of one of them.
    """
    run, declared = resolve_path(run_dir), _all_declared()
    fitting_values({name: value for name, value in _plain(parameters).items() if name in declared}, declared)
    if differences := _differences(kept_parameters(run), _plain(parameters)):
        raise ValueError(f"{_shown(run)} was made with {differences}: {CHOICES}.")
    run.mkdir(parents=True, exist_ok=True)
    return run


def keep_parameters(run: Path, parameters: dict) -> None:
    """Adds the parameters to the run's `parameters.yaml`: from now on, `open_run` refuses others.

    A notebook calls it right before it saves results. One that failed earlier has nothing to protect, so that
    a mistyped parameter can be corrected in the same folder. What the results were computed with, versions and
    machine, goes to `environment.json`.
    """
    kept = kept_parameters(run) | _plain(parameters)
    write_atomically(Path(run) / "parameters.yaml", yaml.safe_dump(kept, allow_unicode=True))
    environments = add_environment(RunFolder(run).environments, describe_environment())
    write_json(Path(run) / "environment.json", environments)


def require(run: Path, filename: str, made_by: str) -> Path:
    """Returns the path of a file of the run.

    Raises:
        FileNotFoundError: It isn't there, because the notebook `made_by` has not been executed.
    """
    path = Path(run) / filename
    if not path.exists():
        raise FileNotFoundError(
            f"Expected {filename} in {_shown(run)}, and it isn't there: {made_by} makes it. "
            f"Run {made_by} first, with the same run_dir."
        )
    return path


def update_metrics(run: Path, **sections) -> dict:
    """Returns the contents of `metrics.json`, after merging these sections into the file.

    A dict is merged by key, so that each notebook adds its own arms; anything else is replaced.
    """
    metrics = read_metrics(run)
    for name, section in sections.items():
        section = _plain(section)
        both = isinstance(section, dict) and isinstance(metrics.get(name), dict)
        metrics[name] = metrics[name] | section if both else section
    write_json(Path(run) / "metrics.json", metrics)
    return metrics


def save_table(table, path: Path) -> None:
    """Writes a DataFrame as CSV (UTF-8), whole or not at all: with an index that has a name, to five digits."""
    from helpers.data.tables import to_csv  # here: pandas takes a second, and few commands need it

    table = table.reset_index() if table.index.name else table
    write_atomically(Path(path), to_csv(table, float_format=_five_digits))


def _five_digits(number: float) -> str:
    return f"{number:.5g}" if abs(number) < 1e5 else f"{number:.0f}"


def write_json(path: Path, values: dict | list) -> None:
    """Writes plain values, NumPy's among them, in a form that people can read and that does not change of itself."""
    text = json.dumps(_plain(values), indent=2, sort_keys=True, ensure_ascii=False)
    write_atomically(Path(path), text + "\n")


def kept_parameters(run: str | Path) -> dict:
    """Returns what the run's results were made with so far: the contents of `parameters.yaml`, by name."""
    path = resolve_path(run) / "parameters.yaml"
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}


def _all_declared() -> dict[str, Parameter]:
    """Returns what any notebook declares, by name; one that somebody is just editing may be wrong."""
    import nbformat

    declared = {}
    for path in sorted(ROOT.glob("notebooks/*_*.ipynb")):
        with suppress(OSError, ValueError, SyntaxError, AttributeError):  # validating them all would take a second
            declared |= declared_parameters(nbformat.v4.reads(path.read_text(encoding="utf-8")))
    return {name: parameter for name, parameter in declared.items() if name != "run_dir"}


def _differences(before: dict, now: dict) -> str:
    """Returns `seed=0, and seed=1 was asked for` for each name that both have with different values."""
    return "; ".join(
        f"{name}={before[name]!r}, and {name}={now[name]!r} was asked for"
        for name in now
        if name in before and before[name] != now[name] and str(before[name]) != str(now[name])  # 60 minutes or "60"
    )


def _plain(value):
    """Returns the value in the types that YAML and JSON know."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return _plain(value.tolist()) if hasattr(value, "tolist") else value  # NumPy's scalars and arrays


def _shown(path: Path) -> str:
    """Returns the path as a person at this prompt would type it."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


# ---- the pipeline


class Refused(Exception):
    """The run cannot start as asked; the message is for the person, and nothing was written."""


@dataclass
class Step:
    """One notebook of the pipeline."""

    template: Path
    saved: Path  # the executed copy
    notebook: object  # the template's content
    declared: dict[str, Parameter]
    given: dict  # values by name, of those that it declares

    @property
    def values(self) -> dict:
        """What the notebook will work with: its defaults, and what was given instead."""
        defaults = {name: p.default for name, p in self.declared.items() if name != "run_dir"}
        return defaults | self.given


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 a notebook failed, 2 refused before the start, 130 interrupted."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # by nohup; nbclient and kernels would listen again
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        templates = _templates()
        declared = {name: p for _, _, own in templates for name, p in own.items()}
        asked = _parser(declared).parse_args(arguments)
        values = _given_values(asked, declared)
        chosen = values.get("backbone", "auto") == "auto" and "backbone" in declared
        if chosen:
            values["backbone"] = choose_backbone("auto", values.get("data", EMBEDDED))
        runs = Path(asked.runs_dir).expanduser().absolute() if asked.runs_dir else ROOT / "runs"
        run = runs / (asked.name or run_name(values, declared))
        steps = [
            Step(path, run / path.name, notebook, own, {k: v for k, v in values.items() if k in own})
            for path, notebook, own in templates
        ]
        _check_values(_remaining(run, steps), chosen)
        with _locked(run):
            return _run(run, steps)
    except Refused as refusal:
        print(wrapped(str(refusal)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the first cell
        return 130


def run_name(values: dict, declared: dict[str, Parameter]) -> str:
    """Returns the name of a run that was given none: `digits`, `pets-ResNet50`."""

    def of(name: str, otherwise: str) -> str:
        return str(values.get(name, declared[name].default if name in declared else otherwise))

    backbone = choose_backbone(of("backbone", ""), of("data", EMBEDDED))
    if of("data", EMBEDDED) == EMBEDDED and backbone in ("", LETTERS):
        return EMBEDDED
    data = resolve_path(of("data", EMBEDDED))
    source = data.name.partition(".")[0] if data.is_file() else data.name  # a table's or an archive's, too
    stem = backbone.removesuffix(".keras")
    return "-".join(part for part in (source, Path(stem).name) if part)


def _templates() -> list[tuple]:
    """Returns the numbered notebooks in their order: path, content, declared parameters."""
    import nbformat

    paths = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        folder = _shown(ROOT / "notebooks")
        raise Refused(f"Expected notebooks named like 01_load_data.ipynb in {folder}, and found none.")
    templates = []
    for path in paths:
        try:
            notebook = nbformat.read(path, as_version=4)
            templates.append((path, notebook, declared_parameters(notebook)))
        except (ValueError, SyntaxError) as error:
            raise Refused(f"{_shown(path)} cannot be executed: {error}") from None
    return templates


def _parser(declared: dict[str, Parameter]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.run",
        description="Executes the numbered notebooks in order and writes everything to one folder.\n"
        "The same command again goes on from the first notebook that has not finished.",
        epilog=_listed(declared),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-n", "--name", type=_name, help="the run's name, and its folder's")
    several = {"action": "append", "default": []}
    parser.add_argument("-p", nargs=2, metavar=("NAME", "VALUE"), help="a parameter", **several)
    parser.add_argument("-f", metavar="FILE", help="a YAML file of parameters; -p has precedence", **several)
    parser.add_argument("--runs-dir", help="the folder in which the run's folder is made (default: runs)")
    return parser


def _name(text: str) -> str:
    if not text or text.startswith(".") or "/" in text or "\\" in text:
        raise argparse.ArgumentTypeError(f"expected a plain name, such as pets-2. Received: {text!r}")
    return text


def _listed(declared: dict[str, Parameter]) -> str:
    return "\n".join(["parameters:", *(f"  {p}" for name, p in declared.items() if name != "run_dir")])


def _given_values(asked: argparse.Namespace, declared: dict[str, Parameter]) -> dict:
    given = {}
    for file in asked.f:
        try:
            content = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise Refused(f"{file} cannot be read as a file of parameters: {error}") from None
        if not isinstance(content or {}, dict):
            raise Refused(f"{file}: expected lines of `name: value`. Received: {type(content).__name__}.")
        given |= content or {}
    given |= dict(asked.p)
    try:
        values = fitting_values(given, declared)
    except ValueError as error:
        known = f"{_listed(declared)}\n\n" if "no parameter" in str(error) else ""
        raise Refused(f"{known}{error}\nNothing was started.") from None
    return {name: from_here(name, value, Path.cwd()) for name, value in values.items()}


@contextmanager
def _locked(run: Path):
    """Keeps a second runner out of the folder; the system gives the lock back however this process ends."""
    import fcntl

    run.mkdir(parents=True, exist_ok=True)
    with open(run / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused(
                f"Another run is writing to {_shown(run)} at this moment. Wait for it, or choose another "
                "folder with NAME=... (-n)."
            ) from None
        yield


def _check_values(steps: list[Step], chosen: bool) -> None:
    """Has the values looked at in another process, whose memory is free again before the notebooks need it.

    Args:
        steps: what remains to be done.
        chosen: whether the network was not named, so that the person has to be told which one it is.

    Raises:
        Refused: Some are wrong, whatever the images are.
    """
    values = {name: value for step in steps for name, value in step.values.items()}
    if chosen and values.get("backbone", LETTERS) != LETTERS:
        line = describe_backbone(*(values[name] for name in ("backbone", "weights", "image_size")))
        print(wrapped(line), file=sys.stderr)
    usual = {name: p.default for step in steps for name, p in step.declared.items()} | {"backbone": LETTERS}
    if not (values := checked_values(values, usual)):
        return
    quietly = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_DFL)}  # Ctrl-C shows no traceback
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), **quietly) as pool:
        if problems := pool.submit(impossible_values, values).result():
            raise Refused("\n".join([*problems, "Nothing was started."]))


def _run(run: Path, steps: list[Step]) -> int:
    remaining = _remaining(run, steps)
    if done := _names(step for step in steps if step not in remaining):
        goes_on = (
            f"going on with {remaining[0].template.stem}"
            if remaining
            else "nothing is left to do (for images that have changed since, choose another NAME)"
        )
        print(f"{_shown(run)}: {done} finished before; {goes_on}.", file=sys.stderr)
    try:
        if remaining:
            _execute(run, remaining)
    except Stopped as stop:
        return _tell(run, steps, str(stop), status=1)
    except KeyboardInterrupt:
        return _tell(run, steps, "Interrupted.", status=130)
    print(f"\n{_table(read_metrics(run))}Report: {_shown(_write_documents(run))}")
    return 0


def _tell(run: Path, steps: list[Step], why: str, *, status: int) -> int:
    """Returns the exit status, after saying why the run stopped, what is kept and how to go on."""
    done = _names(step for step in steps if (saved := read_executed(step.saved)) and is_finished(saved))
    kept = f"Finished and kept: {done}. " if done else "No notebook has finished yet. "
    again = "Give the same command again" if status == 130 else "Remove the cause, and give the command again"
    goes_on = f"{again}: it goes on where this one stopped"
    report = f"Report so far: {_shown(_write_documents(run))}"
    print("\n" + wrapped(f"{why}\n\n{kept}{goes_on}.\n{report}"), file=sys.stderr)
    return status


def _write_documents(run: Path) -> Path:
    """Returns the report's path, after writing it, and the model card if there is a model to describe."""
    if (run / "chosen.keras").exists():
        write_card(run)
    return write_report(run)


def _names(steps) -> str:
    return ", ".join(step.template.stem for step in steps)


def _remaining(run: Path, steps: list[Step]) -> list[Step]:
    """Returns the steps from the first unfinished one on.

    Raises:
        Refused: The folder holds results of other parameters or of another version of a notebook.
    """
    asked = {name: value for step in steps for name, value in step.values.items()}
    if differences := _differences(kept_parameters(run), asked):
        raise Refused(f"{_shown(run)} was made with {differences}: {CHOICES}.")
    for number, step in enumerate(steps):
        saved = read_executed(step.saved)
        if saved is None or not is_finished(saved):
            return steps[number:]
        before = {name: p.default for name, p in declared_parameters(saved).items()}
        before |= saved.metadata.papermill.get("parameters", {})
        if before.get("backbone") == "auto":  # by plain papermill; which one it was, the kept parameters say
            before.pop("backbone")
        if differences := _differences(before, step.values):
            raise Refused(f"{_shown(step.saved)} was made with {differences}: {CHOICES}.")
        if _code(saved) != _code(step.notebook):
            changed = f"{step.template.name} has been edited since {_shown(step.saved)} was made from it"
            raise Refused(f"{changed}: {CHOICES}.")
    return []


def _code(notebook) -> list[str]:
    return [cell.source for cell in code_cells(notebook)]


def _execute(run: Path, steps: list[Step]) -> None:
    with Progress({step.template.stem: step.notebook for step in steps}, run.parent) as progress:
        for step in steps:
            run_dir = str(run.relative_to(ROOT) if run.is_relative_to(ROOT) else run)
            own = {"run_dir": run_dir} if "run_dir" in step.declared else {}
            execute(step.template, step.saved, own | step.given, progress)


def _table(metrics: dict) -> str:
    """Returns the arms in columns, and the answer below them; empty if no notebook has written metrics."""
    rows = [COLUMNS, *summary_rows(metrics)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    table = "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]]) if rows[1:] else ""
    return "".join(part + "\n\n" for part in [table, wrapped(metrics.get("answer", ""))] if part)


if __name__ == "__main__":
    sys.exit(main())
