"""report.html: one file that opens anywhere, made from what lies in a run's folder."""

import re
from datetime import datetime
from pathlib import Path

from helpers import ROOT, write_atomically
from helpers.environment import ORDER
from helpers.report.record import Record, make_command, papermill_commands
from helpers.report.summary import cost_table, describe_verdict_briefly, key_facts, result_table

TEMPLATE = Path(__file__).parent.parent / "templates" / "report"

FIGURES = {
    "plot_differences": "Fine-tuned minus frozen, pair by pair",
    "plot_depth": "Accuracy over the depth at which learning begins",
    "plot_costs": "Accuracy against cost",
    "plot_results": "The arms on one split",
}
"""Functions whose figures stand at the top, in this order, and what the figures show: those of the last notebook."""

MOST_ROWS = 30
"""Rows of a table about the data, from which on it is folded away."""

MOST_FILES = 200
"""Files that were left out and are named one by one."""


def write_report(run: Path) -> Path:
    """Returns the path of `report.html`: the verdict, figures, data, settings, costs; then each executed notebook.

    It loads nothing from the network, and is also written for a run that stopped half-way.
    """
    import jinja2
    from markupsafe import Markup

    record = Record(run)
    body, contents = _body(record.notebooks)
    settings = list({s.name: s for own in record.settings.values() for s in own}.values())
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    html = templates.get_template("page.html.j2").render(
        name=record.run.name,
        style=Markup(_style()),
        record=record,
        statement=describe_verdict_briefly(record.verdict),
        answer=record.verdict.get("explanation") or record.metrics.get("answer"),
        facts=key_facts(record),
        results=result_table(record),
        figures=_figures(record.notebooks),
        data=_data(record),
        settings=settings,
        changed=any(setting.changed for setting in settings),
        costs=cost_table(record),
        environments=[_environment_rows(environment) for environment in record.environments],
        durations=_durations(record.notebooks),
        command=make_command(record),
        commands=papermill_commands(record),
        date=_date(record),
        contents=contents,
        body=Markup(body),
    )
    return write_atomically(record.run / "report.html", html)


def _figures(notebooks: dict) -> list[dict]:
    """Returns caption, picture (PNG, base64) and description of the figures in the last notebook that has such."""
    for notebook in reversed(notebooks.values()):
        found = []
        for name, caption in FIGURES.items():
            called = re.compile(rf"\b{name}\(")
            cells = [cell for cell in notebook.cells if cell.cell_type == "code" and called.search(cell.source)]
            for output in (output for cell in cells for output in cell.outputs):
                if picture := output.get("data", {}).get("image/png"):
                    words = output.metadata.get("image/png", {}).get("alt", "")
                    found.append({"caption": caption, "picture": picture.replace("\n", ""), "words": words})
        if found:
            return found
    return []


def _data(record: Record) -> dict:
    """Returns the tables about the data as rows of texts: how many images, what was found, what was left out."""
    found = {"folded": False, "counts": [], "problems": [], "left_out": [], "more": 0}
    if record.images is not None:
        from helpers.data import count_images

        counts = count_images(record.images)
        found["counts"] = [(name, *(f"{n:,}" for n in row)) for name, *row in counts.itertuples()]
        found["columns"] = list(counts)
        found["folded"] = len(counts) > MOST_ROWS
        found["images"], found["classes"] = f"{len(record.images):,}", len(counts) - 1
    if record.problems is not None:
        from helpers.data import summarize_problems

        summary = summarize_problems(record.problems)
        found["problems"] = [tuple(map(str, row)) for row in summary[["severity", "action", "findings"]].itertuples()]
        left_out = record.problems[record.problems["action"] == "left out"]
        found["left_out"] = left_out[["path", "label", "reason"]].head(MOST_FILES).to_numpy().tolist()
        found["more"] = len(left_out) - len(found["left_out"])
    return found


def _environment_rows(environment: dict) -> list[tuple[str, str]]:
    """Returns what an environment consists of, name and value, in a person's order."""
    order = sorted(environment, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    values = {name: environment[name] for name in order}
    texts = {name: ", ".join(map(str, v)) or "none" if isinstance(v, list) else str(v) for name, v in values.items()}
    return [(name.replace("_gb", ", GB"), text) for name, text in texts.items()]


def _durations(notebooks: dict) -> list[tuple[str, str]]:
    """Returns how long each notebook was executed, in words, and all of them together."""
    seconds = {name: nb.metadata.get("papermill", {}).get("duration") or 0.0 for name, nb in notebooks.items()}
    known = {name: value for name, value in seconds.items() if value}
    return [(name, _in_words(value)) for name, value in (known | {"all": sum(known.values())}).items() if known]


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _date(record: Record) -> str:
    """Returns the day on which the run was executed: "24 November 2026"; empty if nothing says so."""
    ends = [nb.metadata.get("papermill", {}).get("end_time") for nb in record.notebooks.values()]
    if not (known := [end for end in ends if end]):
        return ""
    day = datetime.fromisoformat(max(known))
    return f"{day.day} {day:%B %Y}"


def _style() -> str:
    from pygments.formatters import HtmlFormatter

    def colours(name: str) -> str:
        return HtmlFormatter(style=name).get_style_defs(".highlight")

    sheet = (TEMPLATE / "style.css").read_text(encoding="utf-8")
    # the page's own background behind code, in both colour schemes; of Pygments' styles these can be read on it
    plain = ".highlight, .highlight pre { background: var(--shade) !important; }"
    dark = f"@media (prefers-color-scheme: dark) {{\n{colours('lightbulb')}\n}}"
    return "\n".join([colours("xcode"), dark, plain, sheet])


def _body(notebooks: dict) -> tuple[str, list[dict]]:
    """Returns the notebooks as HTML sections, and the table of contents."""
    from bs4 import BeautifulSoup
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name=TEMPLATE.name,
        extra_template_basedirs=[str(TEMPLATE.parent)],
        exclude_anchor_links=True,
        embed_images=True,
    )
    sections, contents = [], []
    for stem, notebook in notebooks.items():
        notebook = notebook.copy()
        # papermill's own additions: the parameters stand in a table, a failure at the top of the page
        ours = {"injected-parameters", "papermill-error-cell-tag"}
        notebook.cells = [c for c in notebook.cells if not ours & set(c.metadata.get("tags", []))]
        here = {"metadata": {"path": str(ROOT / "notebooks")}}  # where pictures in the prose are looked for
        html, _ = exporter.from_notebook_node(notebook, resources=here)
        soup = BeautifulSoup(f'<section id="{stem}">{html}</section>', "html.parser")
        _keep_offline(soup, notebooks)
        contents.append(_headings(soup, stem))
        _describe_tables(soup)
        sections.append(str(soup))
    return "\n".join(sections), contents


def _headings(soup, stem: str) -> dict:
    """Returns the notebook's entry in the table of contents; its headings get ids and go down one level."""
    entry = {"id": stem, "title": stem, "sections": []}
    taken = set()
    for heading in soup.find_all(["h1", "h2", "h3", "h4", "h5"]):
        level, text = int(heading.name[1]), heading.get_text(" ", strip=True)
        heading.name = f"h{level + 1}"  # the page has an h1 of its own
        if level == 1 and entry["title"] == stem:
            entry["title"] = text
        elif level == 2:
            slug = f"{stem}-" + re.sub(r"\W+", "-", text.lower()).strip("-")
            heading["id"] = slug if slug not in taken else f"{slug}-{len(taken)}"
            taken.add(heading["id"])
            entry["sections"].append({"id": heading["id"], "title": text})
    return entry


def _describe_tables(soup) -> None:
    """Gives tables a caption and their headers a scope, for who hears them; what scrolls is reached by keyboard."""
    for table in soup.find_all("table"):
        for header in table.find_all("th"):
            if not header.get_text(strip=True):
                header.name = "td"  # a corner of pandas' tables
            else:
                header["scope"] = "col" if header.find_parent("thead") else "row"
        heading = table.find_previous(["h2", "h3", "h4"])
        if not table.find("caption"):
            caption = soup.new_tag("caption", attrs={"class": "unseen"})
            caption.string = heading.get_text(" ", strip=True) if heading else "Table"
            table.insert(0, caption)
        scrolls = {"class": "scrolls"}
        region = table.find_parent(attrs=scrolls) or table.wrap(soup.new_tag("div", attrs=scrolls))
        name = table.caption.get_text(" ", strip=True)
        region.attrs |= {"tabindex": "0", "role": "group", "aria-label": f"Table: {name}"}


def _keep_offline(soup, notebooks: dict) -> None:
    """Removes what would load something or is not valid here; turns links between notebooks into anchors."""
    for tag in soup.find_all(["script", "link", "iframe", "object", "embed"]):
        tag.decompose()
    for tag in soup.find_all("style", scoped=True):  # pandas puts one before every table
        tag.decompose()
    for tag in soup.find_all("table", border=True):
        del tag["border"]
    for tag in soup.find_all("img"):
        if not tag.get("src", "").startswith("data:"):
            tag.replace_with(f"[picture: {tag.get('alt') or tag.get('src')}]")
    for tag in soup.find_all("a", href=True):
        target = tag["href"].partition("#")[0]
        if target.endswith(".ipynb") and Path(target).stem in notebooks:
            tag["href"] = f"#{Path(target).stem}"
        elif not re.match(r"https?:|mailto:|#", tag["href"]):
            tag.unwrap()  # a file of the repository, which need not lie beside the report
