"""Puts badges into README.md that open your copy of this repository: `make badges`.

The copy is the one that the git remote `origin` names, or `make badges REPOSITORY=owner/name`.

    python tests/badges.py [owner/name]
"""

import re
import subprocess
import sys

from readme import replace_between
from refresh import ROOT

from helpers import write_atomically

FIRST = "notebooks/01_load_data.ipynb"
BADGES = {  # what it is: its picture and where it leads
    "Tests": ("https://github.com/{0}/actions/workflows/ci.yml/badge.svg", "https://github.com/{0}/actions"),
    "Open in Binder": (
        "https://mybinder.org/badge_logo.svg",
        "https://mybinder.org/v2/gh/{0}/main?urlpath=lab/tree/" + FIRST,
    ),
    "Open in Colab": (
        "https://colab.research.google.com/assets/colab-badge.svg",
        "https://colab.research.google.com/github/{0}/blob/main/" + FIRST,
    ),
    "Open in GitHub Codespaces": ("https://github.com/codespaces/badge.svg", "https://codespaces.new/{0}"),
}


def find_repository(text: str) -> str:
    """Returns `owner/name` from that, or from an address at GitHub; a ValueError for anything else."""
    match = re.fullmatch(r"(?:.*github\.com[:/])?([\w.-]+/[\w.-]+?)(?:\.git)?/?", text.strip())
    if not match:
        raise ValueError(f"Expected a repository at GitHub: make badges REPOSITORY=owner/name. Received: {text!r}")
    return match[1]


def badges(repository: str) -> str:
    """Returns the badges, a line of Markdown for each."""
    lines = (f"[![{name}]({picture})]({link})" for name, (picture, link) in BADGES.items())
    return "\n".join(lines).format(repository)


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 if README.md has the badges, 1 if nothing was changed."""
    remote = ["git", "remote", "get-url", "origin"]
    text = arguments[0] if arguments else subprocess.run(remote, cwd=ROOT, capture_output=True, text=True).stdout
    try:
        repository = find_repository(text)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    readme, notebooks = ROOT / "README.md", ROOT / "notebooks" / "README.md"
    write_atomically(readme, replace_between(readme.read_text(encoding="utf-8"), "badges", badges(repository)))
    write_atomically(notebooks, notebooks.read_text(encoding="utf-8").replace("OWNER/REPOSITORY", repository))
    print(f"README.md has the badges of {repository}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
