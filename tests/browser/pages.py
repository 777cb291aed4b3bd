"""What must not be found in a page that is read on a phone, on a desk, by day, by night and without eyes."""

import itertools
from collections.abc import Callable
from pathlib import Path

WIDTHS = {"phone": 390, "desktop": 1280}
WCAG_2_2_AA = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")
WIDER = """() => {
  const width = document.documentElement.clientWidth;
  const inside = node => node.parentElement && getComputedStyle(node.parentElement).overflowX !== "visible";
  return document.documentElement.scrollWidth <= width ? [] : [...document.querySelectorAll("body *")]
    .filter(node => node.getBoundingClientRect().right > width && !inside(node)).slice(0, 5)
    .map(node => `<${node.localName}> ${node.textContent.trim().slice(0, 60)}`).concat("the page");
}"""


def faults(browser, page_file: Path, picture: Callable[[str], Path]) -> list[str]:
    """Returns a line for each fault of an HTML file: what axe-core finds, what is too wide, what is loaded.

    Each width is looked at in light and in dark, with everything unfolded; the picture shows it as it opens.
    """
    found = []
    for (device, width), scheme in itertools.product(WIDTHS.items(), ("light", "dark")):
        with browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme) as context:
            page = context.new_page()
            requested = []
            page.on("request", lambda request, to=requested: to.append(request.url))
            page.goto(page_file.as_uri())
            page.screenshot(path=picture(f"{device}-{scheme}"), full_page=True)
            page.evaluate("() => document.querySelectorAll('details').forEach(part => { part.open = true; })")
            found += [f"{device}, {scheme}: wider than the screen: {what}" for what in page.evaluate(WIDER)]
            found += [f"{device}, {scheme}: {violation}" for violation in _violations(page)]
            loaded = [url for url in requested if url != page_file.as_uri() and not url.startswith("data:")]
            found += [f"{device}, {scheme}: loads {url}" for url in loaded]
    return found


def _violations(page) -> list[str]:
    """Returns a line for each element that breaks a rule: the rule, the element, why."""
    from axe_playwright_python.sync_playwright import Axe

    options = {"runOnly": {"type": "tag", "values": list(WCAG_2_2_AA)}, "resultTypes": ["violations"]}
    return [
        f"{violation['id']}: {' '.join(map(str, node['target']))}: {' '.join(node['failureSummary'].split())}"
        for violation in Axe().run(page, options=options).response["violations"]
        for node in violation["nodes"]
    ]
