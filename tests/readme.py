"""Runs the embedded example and puts what came of it into README.md: `make readme`.

The run is a newcomer's: `python -m helpers.run` in a clean copy of the repository. What it prints replaces what
stands between the marks `<!-- result -->` and `<!-- /result -->`; its figure of accuracy against cost replaces
.github/result.png, and what stands between `<!-- picture -->` and `<!-- /picture -->`.

    python tests/readme.py
"""

import base64
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from refresh import ROOT, copy_tree

from helpers import write_atomically
from helpers.report.card import escape_markdown

PICTURE = ".github/result.png"
FIGURE = "Test accuracy with 95 % interval against training time"
"""How the description of the README's figure begins."""


def replace_between(text: str, name: str, content: str) -> str:
    """Returns the text with `content` between the marks of that name; ValueError if each is not there once."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if [text.count(start), text.count(end)] != [1, 1] or text.index(start) > text.index(end):
        raise ValueError(f"Expected {start} and then {end} in README.md, each once. Write them where it belongs.")
    before, _, rest = text.partition(start)
    return f"{before}{start}\n{content}\n{end}{rest.partition(end)[2]}"


def find_figure(notebook) -> tuple[bytes, str]:
    """Returns the README's figure, a PNG, and its description, from an executed 04; ValueError if it has not one."""
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    found = [o for o in shown if o.get("metadata", {}).get("image/png", {}).get("alt", "").startswith(FIGURE)]
    if len(found) != 1:
        raise ValueError(f"Expected one figure with a description that begins with {FIGURE!r}. Found {len(found)}.")
    return base64.b64decode(found[0].data["image/png"]), found[0].metadata["image/png"]["alt"]


def updated(readme: str, printed: str, description: str) -> str:
    """Returns the README with what the run printed, and with the description of its picture."""
    words = escape_markdown(re.sub(r" *Efficient:.*", "", description))
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
        executed = nbformat.read(tree / "runs" / "digits" / "04_freeze_or_fine_tune.ipynb", as_version=4)
    picture, description = find_figure(executed)
    text = updated((ROOT / "README.md").read_text(encoding="utf-8"), done.stdout, description)
    (ROOT / PICTURE).write_bytes(picture)
    write_atomically(ROOT / "README.md", text)
    print("README.md and its picture are those of this run.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
