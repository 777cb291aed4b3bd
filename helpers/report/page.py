"""report.html: one file that opens anywhere, made from what lies in a run's folder."""

import re
from datetime import datetime
from pathlib import Path

from helpers import ROOT, write_atomically
from helpers.environment import ORDER
from helpers.report.run_folder import RunFolder, chosen_arm, cost_table, make_command, points_interval, result_table

TEMPLATE = Path(__file__).parent.parent / "templates" / "report"

FIGURES = {
    "plot_differences": "Fine-tuned minus frozen, pair by pair",
    "plot_depth": "Accuracy over the depth at which learning begins",
    "plot_costs": "Accuracy against cost",
    "plot_results": "The arms on one split",
}
"""Functions whose figures stand at the top, in this order, and their captions: those of the last notebook."""

MOST_FILES = 200
"""Files that were left out and are named one by one."""


def write_report(run: Path) -> Path:
    """Returns the path of `report.html`: the verdict, figures, data, settings, costs; then each executed notebook.

    It loads nothing from the network, and is also written for a run that stopped half-way.
    """
    import jinja2
    from markupsafe import Markup

    folder = RunFolder(run)
    body, contents = _body(folder.notebooks)
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    durations = {name: about.get("duration") for name, about in folder.executions.items()}
    ends = [about["end_time"] for about in folder.executions.values() if about.get("end_time")]
    html = templates.get_template("page.html.j2").render(
        name=folder.run.name,
        style=Markup(_style()),
        folder=folder,
        chosen=chosen_arm(folder.verdict),
        interval=points_interval,
        results=result_table(folder.metrics),
        figures=_figures(folder.notebooks),
        data=_data(folder),
        costs=cost_table(folder.metrics),
        environments=[_environment_rows(environment) for environment in folder.environments],
        durations=_durations(durations),
        command=make_command(folder),
        date=datetime.fromisoformat(max(ends)) if ends else None,
        contents=contents,
        body=Markup(body),
    )
    return write_atomically(folder.run / "report.html", html)


def _figures(notebooks: dict) -> list[dict]:
    """Returns caption, picture (PNG, base64) and description of the figures in the last notebook that has such."""
    for notebook in reversed(notebooks.values()):
        found = []
        for name, caption in FIGURES.items():
            cells = [cell for cell in notebook.cells if cell.cell_type == "code" and f"{name}(" in cell.source]
            for output in (output for cell in cells for output in cell.outputs):
                if picture := output.get("data", {}).get("image/png"):
                    words = output.metadata.get("image/png", {}).get("alt", "")
                    found.append({"caption": caption, "picture": picture.replace("\n", ""), "words": words})
        if found:
            return found
    return []


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


def _style() -> str:
    from pygments.formatters import HtmlFormatter

    # of Pygments' styles these can be read on the page's own background behind code, in both colour schemes
    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("xcode", "lightbulb"))
    plain = ".highlight, .highlight pre { background: var(--shade) !important; }"
    sheet = (TEMPLATE / "style.css").read_text(encoding="utf-8")
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{plain}\n{sheet}"


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
