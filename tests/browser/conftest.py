"""A Chromium that Playwright drives, where there is one, and pictures of what it showed."""

import re
from pathlib import Path

import pytest
from readme import find_chromium

from helpers import ROOT

# What is looked at in a test is on this machine: a page that wants anything else does not get it.
ARGUMENTS = ("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",)


@pytest.fixture(scope="module")  # not the session: while it is there, an event loop is, and others start their own
def browser():
    """A Chromium without a window and without a network: the one in the variable CHROMIUM, or the installed one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: make install-browser")
    found = find_chromium()
    if not found:
        pytest.skip("Chromium is missing: on Debian and Ubuntu, apt install chromium; or name one in CHROMIUM")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def picture(request):
    """Returns a function that gives the path of a picture of this test, in `runs/.browser`."""
    folder = ROOT / "runs" / ".browser"
    folder.mkdir(parents=True, exist_ok=True)
    test = re.sub(r"\W+", "-", request.node.name).strip("-")

    def path(name: str) -> Path:
        return folder / f"{test}-{name}.png"

    return path
