"""Runs the embedded example and puts what came of it into README.md: `make readme`.

The run is a newcomer's: `python -m helpers.run` in a clean copy of the repository. What it prints replaces what
stands between the marks `<!-- result -->` and `<!-- /result -->`; the first page of its report, as it is printed,
replaces .github/report.png, and the recommendation is the picture's alternative in words.

    python tests/readme.py
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from refresh import ROOT, copy_tree

from helpers import write_atomically
from helpers.report.card import escape_markdown

PICTURE = ".github/report.png"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PAGE = {"width": 794, "height": 1123}  # A4 at 96 pixels an inch


def replace_between(text: str, name: str, content: str) -> str:
    """Returns the text with `content` between the marks of that name; ValueError if each is not there once."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if [text.count(start), text.count(end)] != [1, 1] or text.index(start) > text.index(end):
        raise ValueError(f"Expected {start} and then {end} in README.md, each once. Write them where it belongs.")
    before, _, rest = text.partition(start)
    return f"{before}{start}\n{content}\n{end}{rest.partition(end)[2]}"


def find_chromium() -> str | None:
    """Returns the browser in the variable CHROMIUM, or the one that is installed."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUMS)), None)


def photograph(report: Path, picture: Path) -> None:
    """Writes a picture, a PNG, of the first page of a report as it is printed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport=PAGE, color_scheme="light")
        page.emulate_media(media="print")
        page.goto(report.as_uri())
        page.add_style_tag(content="body { padding: 12mm 15mm !important; } .details { visibility: hidden; }")
        page.screenshot(path=picture, clip={"x": 0, "y": 0} | PAGE)
        browser.close()


def updated(readme: str, printed: str, headline: str) -> str:
    """Returns the README with what the run printed, and with what its report recommends."""
    words = escape_markdown(f"The first page of the report. {headline}")
    readme = replace_between(readme, "picture", f"![{words}]({PICTURE})")
    return replace_between(readme, "result", f"```\n{printed.strip()}\n```")


def main() -> int:
    """Returns the exit status: 0 if README.md and its picture are those of the new run, 1 if nothing was changed."""
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(Path(folder) / "repository")
        environment = os.environ | {"PYTHONPATH": str(tree), "COLUMNS": "100"}
        options = {"cwd": tree, "env": environment, "stdout": subprocess.PIPE, "text": True}
        done = subprocess.run([sys.executable, "-m", "helpers.run"], **options)
        if done.returncode:
            print("Nothing was changed.", file=sys.stderr)
            return 1
        run = tree / "runs" / "digits"
        photograph(run / "report.html", ROOT / PICTURE)
        headline = json.loads((run / "verdict.json").read_text(encoding="utf-8"))["headline"]
    text = updated((ROOT / "README.md").read_text(encoding="utf-8"), done.stdout, headline)
    write_atomically(ROOT / "README.md", text)
    print("README.md and its picture are those of this run.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
