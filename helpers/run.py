"""The pipeline: `python -m helpers.run` executes the numbered notebooks with papermill, and writes the report.

01 to 05, that is; with `--labels` also 06, which takes about as long as 04's final.

Each is executed once: the same command again resumes with the first notebook that has not finished. With other
parameters, those notebooks are executed again that they concern, and earlier results are kept.
"""

import argparse
import multiprocessing
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from helpers import ROOT, resolve_path, shown_path, wrapped
from helpers.execution import NotebookFailed, code_cells, execute, is_finished, progress_bar, read_executed
from helpers.parameters import (
    EMBEDDED,
    LETTERS,
    Parameter,
    choose_backbone,
    declared_parameters,
    describe_backbone,
    impossible_values,
    resolve_from_cwd,
    validate_parameters,
)
from helpers.records import Records, describe_differences
from helpers.report import COLUMNS, read_metrics, summary_rows, write_card, write_report

LABELS = "06_how_many_labels"
"""The notebook that is executed only when asked for."""


class UsageError(Exception):
    """The run cannot start as asked; the message is for the person, and nothing was written."""


@dataclass
class Step:
    """One notebook of the pipeline."""

    template: Path
    notebook: object  # the template's content
    declared: dict[str, Parameter]
    saved: Path | None = None  # the executed copy
    given: dict | None = None  # values by name, of those that it declares

    @property
    def values(self) -> dict:
        """What the notebook will work with: its defaults, and what was given instead."""
        return {name: p.default for name, p in self.declared.items() if name != "run_dir"} | self.given


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 a notebook failed, 2 refused before the start, 130 interrupted."""
    try:
        steps = _read_steps()
        declared = {name: parameter for step in steps for name, parameter in step.declared.items()}
        asked = _parser(declared).parse_args(arguments)
        steps = [step for step in steps if asked.labels or step.template.stem != LABELS]
        declared = {name: parameter for step in steps for name, parameter in step.declared.items()}
        values = _given_values(asked, declared)
        run = ROOT / "runs" / (asked.name or run_name(values, declared))
        chosen = _fill_in(run, steps, values)
        _check_values(_remaining(run, steps, _changes(run, steps)), chosen)
        run.mkdir(parents=True, exist_ok=True)
        with FileLock(run / ".lock", timeout=0):  # the system gives it back however this process ends
            if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and hasattr(signal, "pthread_sigmask"):  # by nohup
                # nbclient and kernels would listen again. Not earlier: starting another process undoes it.
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            return _run(run, steps)
    except (UsageError, Timeout) as refusal:
        if isinstance(refusal, Timeout):
            refusal = (
                f"Another run is writing to {shown_path(run)} at this moment. Wait for it, or choose another folder "
                "with NAME=... (-n)."
            )
        print(wrapped(str(refusal)), file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the first cell
        return 130


def run_name(values: dict, declared: dict[str, Parameter]) -> str:
    """Returns the name of a run that was given none: `digits`, `pets-ResNet50`."""
    values = {name: parameter.default for name, parameter in declared.items()} | values
    data = str(values.get("data", EMBEDDED))
    backbone = choose_backbone(values.get("backbone", ""), data)
    if data == EMBEDDED and backbone in ("", LETTERS):
        return EMBEDDED
    return "-".join(part for part in (data_name(data), Path(backbone.removesuffix(".keras")).name) if part)


def data_name(data: str) -> str:
    """Returns what a folder of images, a table or an archive is called in the names of runs."""
    source = resolve_path(data)
    return source.name.partition(".")[0] if source.is_file() else source.name


# ---- before it starts


def _fill_in(run: Path, steps: list[Step], values: dict) -> bool:
    """Gives each step its values: those given, else what it was executed with before in this run, else its defaults.

    Returns whether the network was chosen here, because none was named.
    """
    kept, chosen, data, data_before = {}, False, EMBEDDED, EMBEDDED
    for step in steps:
        step.saved = run / step.template.name
        before = Records(run).last_parameters(step.template.stem)
        data_before = before.get("data", data_before)
        if before.get("backbone") == choose_backbone("auto", data_before):  # the one for those images, not a wish
            before.pop("backbone")
        step.given = {name: value for name, value in (before | values).items() if name in step.declared}
        data = step.values.get("data", data)
        automatic = choose_backbone("auto", data)
        if step.values.get("backbone") == "auto":
            step.given["backbone"], chosen = automatic, True
        usual = {name: parameter.default for name, parameter in step.declared.items()} | {"backbone": automatic}
        kept |= {name: value for name, value in step.given.items() if name not in values and value != usual[name]}
    if kept:
        told = ", ".join(f"{name}={value!r}" for name, value in kept.items())
        print(wrapped(f"{shown_path(run)}: {told}, as before. (Name a parameter to change it.)"), file=sys.stderr)
    return chosen


def _read_steps() -> list[Step]:
    """Returns the numbered notebooks in their order."""
    import nbformat

    steps = []
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        try:
            notebook = nbformat.read(path, as_version=4)
            steps.append(Step(path, notebook, declared_parameters(notebook)))
        except (ValueError, SyntaxError) as error:
            raise UsageError(f"{shown_path(path)} cannot be executed: {error}") from None
    return steps


def _parser(declared: dict[str, Parameter]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.run",
        description="Executes the numbered notebooks in order and writes everything to one folder.\n"
        "The same command again resumes with the first notebook that has not finished; with other parameters, those\n"
        "notebooks are executed again that they concern, and earlier results are kept in earlier/.",
        epilog=_listed(declared),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-n", "--name", type=plain_name, help="the run's name, and its folder's")
    parser.add_argument("--labels", action="store_true", help="then 06, too: what more labels would bring")
    parser.add_argument("-p", nargs=2, metavar=("NAME", "VALUE"), help="a parameter", action="append", default=[])
    return parser


def plain_name(text: str) -> str:
    """Returns the name of a run, for argparse."""
    if not text or text.startswith(".") or "/" in text or "\\" in text:
        raise argparse.ArgumentTypeError(f"expected a plain name, such as pets-2. Received: {text!r}")
    return text


def _listed(declared: dict[str, Parameter]) -> str:
    return "\n".join(["parameters:", *(f"  {p}" for name, p in declared.items() if name != "run_dir")])


def _given_values(asked: argparse.Namespace, declared: dict[str, Parameter]) -> dict:
    try:
        values = validate_parameters(dict(asked.p), declared)
    except ValueError as error:
        known = f"{_listed(declared)}\n\n" if "no parameter" in str(error) else ""
        raise UsageError(f"{known}{error}\nNothing was started.") from None
    return {name: resolve_from_cwd(name, value, Path.cwd()) for name, value in values.items()}


def _check_values(steps: list[Step], chosen: bool) -> None:
    """Raises UsageError if values of these steps are wrong whatever the images are.

    They are checked in another process, whose memory is free again before the notebooks need it. If the network was
    `chosen` here, it is named.
    """
    values = {name: value for step in steps for name, value in step.values.items()}
    if chosen and values.get("backbone", LETTERS) != LETTERS:
        line = describe_backbone(*(values[name] for name in ("backbone", "weights", "image_size")))
        print(wrapped(line), file=sys.stderr)
    usual = {name: p.default for step in steps for name, p in step.declared.items()} | {"backbone": LETTERS}
    quietly = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_DFL)}  # Ctrl-C shows no traceback
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), **quietly) as pool:
        if problems := pool.submit(impossible_values, values, usual).result():
            raise UsageError("\n".join([*problems, "Nothing was started."]))


def _changes(run: Path, steps: list[Step]) -> dict[str, str]:
    """Returns the notebooks that have results of other parameters, or of another version, and what has changed."""
    asked, found = {name: value for step in steps for name, value in step.values.items()}, {}
    for step in steps:
        saved = read_executed(step.saved)
        finished = saved is not None and is_finished(saved)
        edited = finished and _sources(saved) != _sources(step.notebook)
        before = (_made_with(saved) if finished else {}) | Records(run).parameters(step.template.stem)
        if changed := describe_differences(before, asked | step.values) or ("edited cells" if edited else ""):
            found[step.template.stem] = changed
    return found


def _made_with(saved) -> dict:
    """Returns the values that a notebook was executed with."""
    values = {name: parameter.default for name, parameter in declared_parameters(saved).items()}
    values |= saved.metadata.papermill.get("parameters", {})
    return {name: value for name, value in values.items() if (name, value) != ("backbone", "auto")}  # undecided


def _sources(notebook) -> list[str]:
    return [cell.source for cell in code_cells(notebook)]


def _remaining(run: Path, steps: list[Step], changes: dict[str, str]) -> list[Step]:
    """Returns the steps that have not finished, and those that must be executed again because of the changes."""
    finished = {step.template.stem for step in steps if (saved := read_executed(step.saved)) and is_finished(saved)}
    anew = Records(run).made_of({step.template.stem for step in steps} - finished | set(changes))
    return [step for step in steps if step.template.stem in anew]


# ---- the run


def _run(run: Path, steps: list[Step]) -> int:
    """Executes what has not finished, writes the report, and returns the exit status."""
    changes = _changes(run, steps)
    remaining = _remaining(run, steps, changes)
    try:
        moved = Records(run).set_aside(changes)
    except OSError as error:
        raise UsageError(str(error)) from None
    if moved:
        print(wrapped(moved), file=sys.stderr)
    if done := _names(step for step in steps if step not in remaining):
        now = "nothing is left to do (for images that have changed since, choose another NAME)"
        now = f"resuming with {remaining[0].template.stem}" if remaining else now
        print(f"{shown_path(run)}: {done} finished before; {now}.", file=sys.stderr)
    try:
        with progress_bar([step.notebook for step in remaining]) as bar:
            for step in remaining:
                own = {"run_dir": f"runs/{run.name}"} if "run_dir" in step.declared else {}
                execute(step.template, step.saved, own | step.given, bar)
    except NotebookFailed as failure:
        return _describe_stop(run, steps, f"{failure}\n\nFix the problem and rerun the same command to resume.", 1)
    except KeyboardInterrupt:
        return _describe_stop(run, steps, "Interrupted. Rerun the same command to resume.", 130)
    print(f"\n{_table(read_metrics(run))}Report: {_write_documents(run)}")
    return 0


def _describe_stop(run: Path, steps: list[Step], why: str, status: int) -> int:
    """Returns the exit status, after saying why the run stopped, and what is kept."""
    done = _names(step for step in steps if (saved := read_executed(step.saved)) and is_finished(saved))
    kept = f"Finished and kept: {done}." if done else "No notebook has finished yet."
    print("\n" + wrapped(f"{why}\n{kept}\nReport so far: {_write_documents(run)}"), file=sys.stderr)
    return status


def _names(steps) -> str:
    return ", ".join(step.template.stem for step in steps)


def _write_documents(run: Path) -> str:
    """Returns the report's path to be shown, after writing it and, if there is a chosen model, its card."""
    if (run / "chosen.keras").exists():
        write_card(run)
    return shown_path(write_report(run))


def _table(metrics: dict) -> str:
    """Returns the arms in columns, and the answer below them; empty if no notebook has written metrics."""
    rows = [COLUMNS, *summary_rows(metrics)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    form = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    lines = [form.format(*row) for row in rows]
    table = "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]]) if rows[1:] else ""
    answers = [wrapped(metrics[name]) for name in ("answer", "labels") if metrics.get(name)]
    return "".join(part + "\n\n" for part in [table, *answers] if part)


if __name__ == "__main__":
    sys.exit(main())
