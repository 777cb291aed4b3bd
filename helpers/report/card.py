"""chosen.md, the model card beside the chosen classifier: what the run knows about it, and what nobody recorded.

Its sections are those of Mitchell et al. (2019, arXiv 1810.03993).
"""

import hashlib
import json
import re
import zipfile
from pathlib import Path

from helpers import write_atomically
from helpers.report.run_folder import RunFolder, chosen_arm, cost_table, make_command, points_interval, result_table

TEMPLATE = Path(__file__).parent.parent / "templates" / "card"

TABLES = ("classes.csv", "corruptions_compared.csv", "shift.csv")
"""Tables of a run that go into its card where they exist."""

MOST_CLASSES = 100
"""Classes up to which each has a row."""

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&#$@!{}^]|:(?=\S))")


def write_card(run: Path) -> Path:
    """Returns the path of `chosen.md`, the model card of the run's `chosen.keras`, filled from the run's files.

    Raises a FileNotFoundError without `chosen.keras`, a ValueError if `save_model` has not written it.
    """
    from markupsafe import Markup

    from helpers.data import count_images  # here: pandas takes a second, and few commands need it

    folder = RunFolder(run)
    file, problems = folder.run / "chosen.keras", folder.problems
    model = _read_model(file)
    counts = [] if folder.images is None else list(count_images(folder.images).itertuples())
    found = None if problems is None else problems.groupby(["problem", "action"], sort=False).size()
    text = _template().render(
        name=folder.run.name,
        file=Markup(repr(f"runs/{folder.run.name}/{file.name}")),
        verdict=folder.verdict,
        labels=folder.labels,
        metrics=folder.metrics,
        model=model,
        outputs=list(enumerate(model["class_names"])),
        chosen=chosen_arm(folder.verdict),
        parameters={setting.name: setting.value for setting in folder.settings} | folder.parameters,
        fingerprint=_digest(folder.run / "images.csv") if counts else "",
        counts=counts if len(counts) <= MOST_CLASSES + 1 else counts[-1:],
        smallest=min((row.test for row in counts[:-1]), default=0),
        problems=None if found is None else [(*what, count) for what, count in found.items()],
        results=result_table(folder.metrics),
        costs=cost_table(folder.metrics),
        interval=points_interval,
        tables={name: _read_table(folder.run / name) for name in TABLES if (folder.run / name).exists()},
        environment=(folder.environments or [{}])[-1],
        commit=folder.commit,
        command=Markup(make_command(folder)),
    )
    return write_atomically(folder.run / "chosen.md", text)


def _template():
    """Returns the card's template; what is filled in is text, unless it is said to be Markdown."""
    import jinja2
    from markupsafe import Markup

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE),
        trim_blocks=True,
        lstrip_blocks=True,
        # names of classes and files are anybody's
        finalize=lambda value: value if isinstance(value, Markup) else escape_markdown(str(value)),
    )
    templates.globals["table"] = lambda columns, rows: Markup(_table(columns, rows))
    return templates.get_template("chosen.md.j2")


def escape_markdown(text: str) -> str:
    r"""Returns Markdown, on one line, that shows this text: nothing in it is a mark, a tag or a link.

    >>> print(escape_markdown("a_b <i>|"))
    a\_b \<i\>\|
    """
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _table(columns, rows) -> str:
    lines = [[escape_markdown(str(cell)) for cell in row] for row in (columns, *rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _read_model(path: Path) -> dict:
    """Returns what the file says without being loaded, which would take TensorFlow: settings, size, dates, digest."""
    try:
        with zipfile.ZipFile(path) as archive:
            settings, about, graph = (
                json.loads(archive.read(f"{name}.json")) for name in ("classifier", "metadata", "config")
            )
    except (KeyError, zipfile.BadZipFile):
        raise ValueError(f"Expected a classifier saved by 04. {path} holds no class names.") from None
    height, width = graph["config"]["layers"][0]["config"]["batch_shape"][1:3]
    found = {"height": height, "width": width, "keras": about["keras_version"], "digest": _digest(path)}
    found |= {"saved": about["date_saved"].partition("@")[0], "megabytes": f"{path.stat().st_size / 1e6:.1f}"}
    return {"white": None} | settings | found


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_table(path: Path) -> tuple[list, list]:
    """Returns columns and rows of a table that another step wrote, fractions rounded."""
    from helpers.data.tables import read_texts

    table = read_texts(path)
    for name in table.columns.difference(["class", "taken_for", "corruption", "folder"]):  # a name may be "1.50"
        table[name] = [f"{float(text):.3f}" if "." in text else text for text in table[name]]
    return list(table), table.to_numpy().tolist()
