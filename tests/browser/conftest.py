"""What the browser's tests share: Chromium from the PATH, and the built site on a local address."""

from __future__ import annotations

import contextlib
import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from built_book import BUILT, built_pages

from tools import axe, chromium

PREFIX = "/site"  # a published book does not lie at the root of its host; neither does this one


def pytest_report_header() -> str:
    return f"accessibility: {axe.about(axe.script())}"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder under ``PREFIX``, silently."""

    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".js": "text/javascript"}

    def translate_path(self, path: str) -> str:
        inside = path == PREFIX or path.startswith(PREFIX + "/")
        return super().translate_path(path.removeprefix(PREFIX) if inside else "/no-such-page")

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Many connections at once, and no complaint when a page is left early."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
    path = chromium.find()
    if path is None:
        pytest.skip("No Chromium on the PATH: install it (Debian: apt install chromium), or Chrome.")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=chromium.FLAGS)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    """The address of the built site, served from this machine; it ends without a slash."""
    if not built_pages():
        pytest.skip(f"The book is not built ({BUILT} has no pages): run `nox -s book` first.")
    server = Server(("127.0.0.1", 0), functools.partial(Handler, directory=str(BUILT)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}{PREFIX}"
    server.shutdown()
    server.server_close()


@dataclass
class Visit:
    """A page as the browser sees it: ``page`` is Playwright's."""

    name: str
    page: object
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    responses: list[object] = field(default_factory=list)


@contextlib.contextmanager
def opener(browser, site: str) -> Iterator[Callable[..., Visit]]:
    """Give a function that opens pages; they close at the end."""
    contexts = []

    def open_page(path: str, *, width: int = 1280, height: int = 900, scheme: str = "light", scripts: bool = True):
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            java_script_enabled=scripts,
            reduced_motion="reduce",
        )
        contexts.append(context)
        seen = Visit(path, context.new_page())
        seen.page.set_default_timeout(10_000)
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.on("response", lambda response: seen.responses.append(response))
        seen.page.on("pageerror", lambda error: seen.complaints.append(f"error: {error}"))
        seen.page.on("requestfailed", lambda request: seen.complaints.append(f"not loaded: {request.url}"))
        seen.page.on(
            "console",
            lambda message: (
                seen.complaints.append(f"{message.type}: {message.text}")
                if message.type in ("error", "warning")
                else None
            ),
        )
        seen.page.goto(f"{site}/{path}", wait_until="load")
        return seen

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def visit(browser, site: str) -> Iterator[Callable[..., Visit]]:
    """A function that opens a page of the site: ``visit("book/preface.html", width=390, scheme="dark")``."""
    with opener(browser, site) as open_page:
        yield open_page


@pytest.fixture
def visit_built(visit: Callable[..., Visit]) -> Callable[[str], Callable[..., Visit]]:
    """A function from a page, which must be built, to one that opens it at an address: ``("", width=390)``."""

    def at(page: str) -> Callable[..., Visit]:
        if not (BUILT / page).exists():
            pytest.skip(f"The book has no {page}: run `nox -s book` first.")
        return lambda address="", **options: visit(page + address, **options)

    return at


@pytest.fixture(scope="module", params=built_pages() or ["the book is not built"])
def desktop(request: pytest.FixtureRequest, browser, site: str) -> Iterator[Visit]:
    """Every page in turn, on a wide screen; tests share it and leave it as it was."""
    with opener(browser, site) as open_page:
        yield open_page(request.param)


@pytest.fixture(scope="module", params=built_pages() or ["the book is not built"])
def phone(request: pytest.FixtureRequest, browser, site: str) -> Iterator[Visit]:
    """Every page in turn, on a phone; tests share it and leave it as it was."""
    with opener(browser, site) as open_page:
        yield open_page(request.param, width=390, height=844)
