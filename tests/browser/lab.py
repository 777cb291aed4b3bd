"""A real JupyterLab, and a notebook in it that is worked with as a person does: by menu, mouse and keyboard."""

import json
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
from refresh import environment

SCREEN = {"width": 1400, "height": 900}
TALLEST = 16_000  # pixels that Chromium draws at once
SETTINGS = {
    "notebook-extension/tracker": {"recordTiming": True},  # how long each cell takes, into the saved notebook
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},  # asks for no network
}
CLEARED = """() => [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")]
  .every(prompt => !/[\\d*]/.test(prompt.textContent))"""
ENDED = """() => {
  const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map(prompt => prompt.textContent);
  const kernel = document.querySelector(".jp-Notebook-ExecutionIndicator")?.dataset.status;
  return kernel === "idle" && prompts.some(text => /\\d/.test(text)) && !prompts.some(text => text.includes("*"));
}"""
# Progress bars come and go: what they said is noted while they are there, as the highest per cent by code cell.
WATCH_BARS = """() => {
  window.bars = {};
  new MutationObserver(changes => changes.forEach(({target}) => {
    const node = target.nodeType === Node.ELEMENT_NODE ? target : target.parentElement;
    const cell = node?.closest(".jp-OutputArea") && node.closest(".jp-CodeCell");
    for (const [, percent] of cell ? node.textContent.matchAll(/(\\d+)%\\|/g) : []) {
      const number = [...document.querySelectorAll(".jp-CodeCell")].indexOf(cell);
      window.bars[number] = Math.max(window.bars[number] ?? 0, Number(percent));
    }
  })).observe(document.querySelector(".jp-Notebook"), {subtree: true, childList: true, characterData: true});
}"""


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab."""

    tree: Path  # the copy of the repository that it shows
    address: str
    token: str

    def ask(self, path: str, method: str = "GET"):
        """Returns what its interface for programs answers, None where that is nothing."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.address}/api/{path}", headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or "null")

    def end_kernels(self) -> None:
        """Ends all kernels: each holds a TensorFlow of its own."""
        for kernel in self.ask("kernels"):
            self.ask(f"kernels/{kernel['id']}", "DELETE")


@contextmanager
def serve_lab(tree: Path) -> Iterator[Lab]:
    """Yields a JupyterLab in this environment over a copied tree, with its own settings; it is ended afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lab, own = Lab(tree, f"http://127.0.0.1:{port}", secrets.token_hex(16)), tree.parent / "jupyter"
    for name, settings in SETTINGS.items():
        file = own / "lab" / "user-settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(settings))
    variables = environment(tree) | {f"JUPYTER_{kind}_DIR": str(own) for kind in ("CONFIG", "DATA", "RUNTIME")}
    variables["JUPYTER_TOKEN"] = lab.token
    del variables["TQDM_DISABLE"]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    command += [f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={tree}"]
    log = tree.parent / "jupyterlab.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(command, cwd=tree, env=variables, stdout=output, stderr=output)
    try:
        wait_until(lambda: answers(lab), 60, f"JupyterLab did not start: {log} says why")
        yield lab
        lab.end_kernels()
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def answers(lab: Lab) -> bool:
    try:
        return lab.ask("status") is not None
    except (urllib.error.URLError, ConnectionError):
        return False


def wait_until(is_done: Callable[[], bool], seconds: float, failure: str) -> None:
    deadline = time.monotonic() + seconds
    while not is_done():
        assert time.monotonic() < deadline, failure
        time.sleep(0.2)


class NotebookPage:
    """A notebook that is open in a browser's tab."""

    def __init__(self, page, lab: Lab, name: str):
        """Opens it, and waits until its kernel is there."""
        self.page, self.file = page, lab.tree / "notebooks" / name
        page.goto(f"{lab.address}/lab/tree/notebooks/{name}?reset&token={lab.token}")
        page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for(timeout=120_000)
        page.evaluate(WATCH_BARS)

    def choose(self, menu: str, item: str) -> None:
        """Chooses an item of a menu."""
        self.page.locator(".lm-MenuBar-item", has_text=menu).first.click()
        self.page.locator(".lm-Menu-item").get_by_text(item, exact=True).click()

    def start_all(self) -> None:
        """Clears all outputs, so that those that come are new ones, and starts all cells."""
        self.choose("Edit", "Clear Outputs of All Cells")
        self.page.wait_for_function(CLEARED)
        self.page.evaluate("() => { window.bars = {}; }")
        self.choose("Run", "Run All Cells")

    def wait(self, *, minutes: float) -> None:
        """Waits until no cell is being executed, nor waits for it."""
        self.page.wait_for_function(ENDED, timeout=minutes * 60_000, polling=500)

    def type_parameters(self, values: dict) -> None:
        """Types other values into the cell of parameters, each in its line."""
        for name, value in values.items():
            line = self.page.locator(".jp-CodeCell .cm-line", has_text=re.compile(rf"^{name}: .* = ")).first
            before, _, comment = line.text_content().partition("  # ")
            line.click(position={"x": 3, "y": 8})
            self.page.keyboard.press("Home")
            self.page.keyboard.press("Shift+End")
            self.page.keyboard.type(f"{before.partition(' = ')[0]} = {json.dumps(value)}  # {comment}")

    def bars(self) -> dict[int, int]:
        """Returns the highest per cent of the progress bars seen so far, by number of the code cell, from 0."""
        return {int(number): percent for number, percent in self.page.evaluate("() => window.bars").items()}

    def texts(self, kind: str) -> list[str]:
        """Returns the texts of outputs of a kind, such as `stderr` or `error`."""
        kind = f"application/vnd.jupyter.{kind}"
        return self.page.locator(f'.jp-OutputArea-output[data-mime-type="{kind}"]').all_inner_texts()

    def figures(self) -> int:
        """Returns how many figures can be seen: pictures in outputs that the browser has decoded."""
        images = self.page.locator(".jp-OutputArea-output img")
        return sum(images.nth(number).evaluate("image => image.naturalWidth > 0") for number in range(images.count()))

    def save(self):
        """Returns the notebook as JupyterLab saves it."""
        before = self.file.stat().st_mtime_ns
        self.page.keyboard.press("Control+s")
        wait_until(lambda: self.file.stat().st_mtime_ns != before, 30, f"{self.file.name} was not saved")
        return nbformat.read(self.file, as_version=4)

    def show_all(self, path: Path) -> None:
        """Takes a picture of the whole notebook, as on a very tall screen."""
        panel = self.page.locator(".jp-WindowedPanel-outer").first
        height = panel.evaluate("panel => panel.scrollHeight")
        self.page.set_viewport_size(SCREEN | {"height": min(int(height) + 200, TALLEST)})
        panel.evaluate("panel => panel.scrollTo(0, 0)")
        self.page.wait_for_timeout(500)
        self.page.screenshot(path=path)
        self.page.set_viewport_size(SCREEN)
