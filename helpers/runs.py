"""The runs side by side: `python -m helpers.runs`."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from helpers import resolve_path
from helpers.report.run_folder import RunFolder, chosen_arm

COLUMNS = ("name", "data", "backbone", "verdict", "accuracy", "low", "high", "seconds", "date", "note")


def list_runs(folder: str | Path = "runs") -> pd.DataFrame:
    """Returns a DataFrame with a row for each folder in a folder of runs, the newest first; none if it is missing.

    The columns are name, data, backbone, verdict (see helpers/study/README.md), accuracy of the chosen arm, low and
    high of its 95 % interval (fractions, NaN before the verdict), seconds (of its training), date (UTC, of the first
    results) and note: what is missing or damaged. Accuracies can be compared on the same test images only.
    """
    folder = resolve_path(folder)
    paths = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    rows = [_row(path) for path in paths if not path.name.startswith(".")]
    table = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(COLUMNS[4:8], float))
    table["date"] = pd.to_datetime(table["date"], utc=True)
    return table.sort_values(["date", "name"], ascending=[False, True], ignore_index=True)


def _row(path: Path) -> dict:
    record = RunFolder(path)
    row = {"name": path.name, "data": "", "backbone": "", "verdict": "", "date": pd.NaT}
    try:
        since = record.environments[0]["since"] if record.environments else ""
        changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        row["date"] = pd.Timestamp(since).tz_convert("UTC") if since else pd.Timestamp(changed)
        row |= {name: str(record.parameters.get(name, "")) for name in ("data", "backbone")}
        row["verdict"] = str(record.verdict["verdict"]) if record.verdict else ""
        if arm := chosen_arm(record.verdict):
            row |= {"accuracy": float(arm["test_accuracy"]), "seconds": float(arm["seconds"])}
            row |= {end: float(arm[end]) for end in ("low", "high") if end in arm}
        return row | {"note": " ".join([*record.notes, *_missing(record)])}
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        note = f"It holds files that this version does not understand ({type(error).__name__}: {error})."
        return row | {"note": note}


def _missing(record: RunFolder) -> list[str]:
    if record.verdict:
        return [f"The study is not complete: {record.verdict['stopped']}."] if record.verdict.get("stopped") else []
    if failures := record.failures:
        return [f"{name} did not finish." for name in failures]
    if not (record.parameters or record.notebooks):
        if (record.run / "networks.jsonl").exists():
            return ["A comparison of networks: make compare."]
        return [] if record.notes else ["It is no run."]
    return ["No verdict yet: 04_freeze_or_fine_tune makes it."]


def describe_runs(runs: pd.DataFrame) -> str:
    """Returns the table of `list_runs` for a terminal, with the notes below it."""
    shown = runs.drop(columns=["low", "high", "note"])
    accuracies = runs[["accuracy", "low", "high"]].itertuples(index=False)
    shown["accuracy"] = [
        f"{one:.3f} ({low:.3f} to {high:.3f})".replace(" (nan to nan)", "") for one, low, high in accuracies
    ]
    shown["seconds"] = [f"{seconds:.1f}" for seconds in runs["seconds"]]
    shown["date"] = runs["date"].dt.strftime("%Y-%m-%d")
    shown = shown.fillna("").replace({"accuracy": "nan", "seconds": "nan"}, "")
    notes = [f"{name}: {note}" for name, note in zip(runs["name"], runs["note"], strict=True) if note]
    return "\n".join([shown.to_string(index=False), *([""] if notes else []), *notes])


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m helpers.runs", description="Lists the runs, the newest first.")
    parser.parse_args(arguments)
    runs = list_runs()
    print(describe_runs(runs) if len(runs) else "There are no runs yet: make run makes one.")


if __name__ == "__main__":
    main()
