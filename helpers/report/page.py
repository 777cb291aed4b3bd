"""report.html: one file that opens anywhere: a page for who decides, and the details behind it."""

import base64
from datetime import datetime
from pathlib import Path

from PIL import Image

from helpers import write_atomically
from helpers.environment import ORDER
from helpers.report.advice import next_steps
from helpers.report.run_folder import RunFolder, chosen_arm, cost_table, make_command, points_interval, result_table

TEMPLATE = Path(__file__).parent.parent / "templates" / "report"

FIRST_PAGE = {
    "predictions": "Predictions on test images",
    "confusion": "What is mistaken for what",
    "mistakes": "The most confident mistakes",
}
DETAILS = {
    "differences": "Difference in accuracy, fine-tuned minus frozen, of each pair of trainings",
    "depth": "Accuracy by the first stage that learns",
    "costs": "Accuracy against cost",
    "labels": "Accuracy by number of labels",
    "stages": "The chosen network: which stages are taken, frozen and fine-tuned",
    "history": "Training curves of 03",
    "reliability": "Calibration: how often predictions of each probability are right",
    "corruptions": "Accuracy of 02's and 03's networks on corrupted images",
}
"""Figures that notebooks save (`Run.figure`) and their captions, in the report's order."""

MOST_FILES = 200
"""Files that were left out and are named one by one."""


def write_report(run: Path) -> Path:
    """Returns the path of `report.html`, made from what lies in the run's folder, also if the run stopped half-way.

    It loads nothing from the network. The executed notebooks are linked, and lie beside it.
    """
    import jinja2

    folder = RunFolder(run)
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    durations = {name: about.get("duration") for name, about in folder.executions.items()}
    ends = [about["end_time"] for about in folder.executions.values() if about.get("end_time")]
    html = templates.get_template("page.html.j2").render(
        name=folder.run.name,
        style=(TEMPLATE / "style.css").read_text(encoding="utf-8"),
        folder=folder,
        chosen=chosen_arm(folder.verdict),
        interval=points_interval,
        pictures=_figures(folder, FIRST_PAGE),
        steps=next_steps(folder),
        results=result_table(folder.metrics),
        figures=_figures(folder, DETAILS),
        data=_data(folder),
        costs=cost_table(folder.metrics),
        environments=[_environment_rows(environment) for environment in folder.environments],
        durations=_durations(durations),
        command=make_command(folder),
        date=datetime.fromisoformat(max(ends)) if ends else None,
    )
    return write_atomically(folder.run / "report.html", html)


def _figures(folder: RunFolder, captions: dict[str, str]) -> list[dict]:
    """Returns name, caption, picture (PNG, base64) and description of those figures that the run has saved."""
    found = []
    for name, caption in captions.items():
        path = folder.run / "figures" / f"{name}.png"
        if path.exists():
            with Image.open(path) as image:
                words = image.info.get("Description", caption)
            picture = base64.b64encode(path.read_bytes()).decode()
            found.append({"name": name, "caption": caption, "picture": picture, "words": words})
    return found


def _data(folder: RunFolder) -> dict:
    """Returns the tables about the data as rows of texts: how many images, what was found, what was left out."""
    from helpers.data import count_images, summarize_problems  # here: pandas takes a second

    found = {"counts": [], "problems": [], "left_out": []}
    if folder.images is not None:
        counts = count_images(folder.images)
        found["counts"] = [(name, *(f"{n:,}" for n in row)) for name, *row in counts.itertuples()]
        found["columns"] = list(counts)
    if folder.problems is not None:
        summary = summarize_problems(folder.problems)
        found["problems"] = [tuple(map(str, row)) for row in summary[["severity", "action", "findings"]].itertuples()]
        left_out = folder.problems[folder.problems["action"] == "left out"]
        found["left_out"] = left_out[["path", "label", "reason"]].head(MOST_FILES).to_numpy().tolist()
        found["more"] = len(left_out) - len(found["left_out"])
    return found


def _environment_rows(environment: dict) -> list[tuple[str, str]]:
    """Returns what an environment consists of, name and value, in a person's order."""
    rows = []
    for name in sorted(environment, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
        value = environment[name]
        text = ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
        rows.append((name.replace("_gb", ", GB"), text))
    return rows


def _durations(seconds: dict[str, float | None]) -> list[tuple[str, str]]:
    """Returns how long each notebook was executed, in words, and all of them together."""
    known = {name: value for name, value in seconds.items() if value}
    rows = known | {"all": sum(known.values())} if known else {}
    return [(name, f"{s:.0f} s" if s < 90 else f"{s / 60:.0f} min") for name, s in rows.items()]
