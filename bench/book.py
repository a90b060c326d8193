"""Chapters and pages: how long they run, what they weigh, how fast an explorer answers."""

from __future__ import annotations

import contextlib
import functools
import gzip
import http.server
import statistics
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

from bench.table import Row, seconds
from tools import chromium
from tools import notebooks as tool

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_build" / "html"
PACKED = (".woff2", ".png", ".jpg", ".gz")  # no server compresses these again

# Move every control of an explorer through all its steps, with layout; return milliseconds a step.
REDRAW = """
() => [...document.querySelectorAll("figure.attntut-explorer")].map((figure) => {
  const explorer = figure.explorer, times = [];
  for (let round = 0; round < 5; round++)
    for (const control of explorer.header.controls)
      control.labels.forEach((_, index) => {
        const start = performance.now();
        explorer.set(control.name, index);
        document.body.offsetHeight;
        times.push(performance.now() - start);
      });
  return times;
})
"""
WAKE = """
async () => {
  for (const figure of document.querySelectorAll("figure.attntut-explorer")) {
    figure.scrollIntoView();
    for (let wait = 0; !figure.explorer && wait < 200; wait++) await new Promise((done) => setTimeout(done, 25));
  }
}
"""


def chapters() -> list[Row]:
    """Seconds that each notebook runs, the start of its kernel included."""
    paths = tool.find([])
    if not paths:
        return [Row("Notebooks", "there are none")]

    def run(path: Path) -> None:
        tool.execute(nbformat.read(path, 4), path.parent)

    taken = seconds(*(functools.partial(run, path) for path in paths), repeats=2, warm_up=False)
    rows = [Row(f"Running `{path.name}`", f"{t:.1f} s", "≤ 20 s") for path, t in zip(paths, taken, strict=True)]
    return [*rows, Row("Running all notebooks", f"{sum(taken):.1f} s")]


def pages() -> list[Row]:
    """Weight of the first load of each chapter, and the time in which its explorers answer."""
    browser = chromium.find()
    if not (SITE / "index.html").exists():
        return [Row("Pages and explorers", "the site is not built: `nox -s book`")]
    if browser is None:
        return [Row("Pages and explorers", "no Chromium on the PATH")]
    from playwright.sync_api import sync_playwright

    rows = []
    times: list[float] = []
    with served(SITE) as address, sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=browser, args=chromium.FLAGS)
        for path in [*sorted(SITE.glob("notebooks/*.html")), SITE / "book" / "preface.html"]:
            if not path.exists():
                continue
            weight, steps = _visit(launched, f"{address}/{path.relative_to(SITE).as_posix()}")
            rows.append(Row(f"First load of `{path.name}`", f"{weight / 1000:.0f} KB", "≤ 500 KB"))
            times += steps
        launched.close()
    redraw = f"{statistics.median(times):.1f} ms (slowest {max(times):.0f} ms)" if times else "there is no explorer"
    return [*rows, Row("An explorer's step, layout included, median", redraw, "≤ 16 ms")]


def _visit(browser: Any, address: str) -> tuple[int, list[float]]:
    """Bytes of a page's first load, and milliseconds of every step of its explorers."""
    loaded: list[Any] = []

    def keep(response: Any) -> None:
        loaded.append(response)

    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.on("response", keep)
    page.goto(address, wait_until="networkidle")
    weight = sum(map(_weight, loaded))
    page.evaluate(WAKE)
    return weight, [taken for explorer in page.evaluate(REDRAW) for taken in explorer]


def _weight(response: Any) -> int:
    """Bytes of a response as a server sends it that compresses with gzip."""
    with contextlib.suppress(Exception):  # a redirect has no body
        body = response.body()
        return len(body if response.url.split("?")[0].endswith(PACKED) else gzip.compress(body, 9))
    return 0


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; yields its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
