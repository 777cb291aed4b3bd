"""The run's report: one HTML file that opens anywhere, made from the executed notebooks."""

import json
import re
from pathlib import Path

from helpers import ROOT, write_atomically
from helpers.execution import read_executed
from helpers.parameters import declared_parameters

COLUMNS = ("arm", "test accuracy", "95 % interval", "seconds", "trainable weights")

TEMPLATE = Path(__file__).parent / "templates" / "report"


def read_metrics(run: Path) -> dict:
    """Returns what `metrics.json` of a run holds; empty before a notebook has written to it.

    The keys are `arms` (name -> test_accuracy, low and high of its 95 % interval as fractions, and optionally
    log_loss, seconds, trainable_weights), `study`, the same over several splits and seeds, if 04 was executed, and
    `answer`, a few plain sentences.
    """
    path = Path(run) / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def summary_rows(metrics: dict) -> list[tuple[str, ...]]:
    """Returns a row of texts for each arm, in the order of `helpers.evaluation.ARMS`, with the columns of `COLUMNS`.

    Where 04 has results over several splits and seeds, they stand for those of 02 and 03.
    """
    from helpers.evaluation import ARMS, results_table  # here: SciPy takes a second, and most commands need no table

    arms = metrics.get("study") or metrics.get("arms", {})
    order = [name for name in ARMS if name in arms] + [name for name in arms if name not in ARMS]
    table = results_table({name: arms[name] for name in order})
    return [(row[0], *(text or "–" for text in row[1:])) for row in table.itertuples()]


def write_report(run: Path) -> Path:
    """Returns the path of `report.html`: summary, parameters, contents, then each executed notebook.

    It loads nothing from the network, and is also written for a run that stopped half-way.
    """
    import jinja2
    from markupsafe import Markup

    run = Path(run)
    paths = sorted(run.glob("[0-9][0-9]_*.ipynb"))
    notebooks = {path.stem: notebook for path in paths if (notebook := read_executed(path))}
    body, contents = _body(notebooks)
    metrics = read_metrics(run)
    parameters = _parameter_rows(notebooks)
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True)
    html = templates.get_template("page.html.j2").render(
        title=f"Freeze or fine-tune? {run.name}",
        name=run.name,
        style=Markup(_style()),
        failures={stem: why for stem, notebook in notebooks.items() if (why := failure(notebook))},
        answer=metrics.get("answer"),
        columns=COLUMNS,
        rows=summary_rows(metrics),
        parameters=parameters,
        changed=any(row["changed"] for row in parameters),
        contents=contents,
        body=Markup(body),
    )
    return write_atomically(run / "report.html", html)


def failure(notebook) -> str | None:
    """Returns why an executed notebook stopped, or None if no cell of it failed."""
    about = notebook.metadata.get("papermill", {})
    if not about.get("exception"):
        return None
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                return f"In [{cell.execution_count}]: {output.ename}: {output.evalue}"
    return about.get("stopped", "It was interrupted.")


def _parameter_rows(notebooks: dict) -> list[dict]:
    rows = {}
    for notebook in notebooks.values():
        injected = notebook.metadata.get("papermill", {}).get("parameters", {})
        for parameter in declared_parameters(notebook).values():
            value = injected.get(parameter.name, parameter.default)
            if parameter.name != "run_dir":
                rows[parameter.name] = {
                    "name": parameter.name,
                    "value": str(value),
                    "meaning": parameter.meaning,
                    "changed": value != parameter.default,
                }
    return list(rows.values())


def _style() -> str:
    from pygments.formatters import HtmlFormatter

    def colours(name: str) -> str:
        return HtmlFormatter(style=name).get_style_defs(".highlight")

    sheet = (TEMPLATE / "style.css").read_text(encoding="utf-8")
    # the page's own background behind code, in both colour schemes
    plain = ".highlight, .highlight pre { background: var(--shade) !important; }"
    dark = f"@media (prefers-color-scheme: dark) {{\n{colours('github-dark')}\n}}"
    return "\n".join([colours("default"), dark, plain, sheet])


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
