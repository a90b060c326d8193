"""JupyterLab: an explorer, where moving a control calls the function for any value, and the chapters as they open."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import nbformat
import pytest

from tools.notebooks import find

pytestmark = [pytest.mark.browser, pytest.mark.lab]

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import ipywidgets as widgets
from attntut.explorer import Explorer, heat_map, number

def square(x=3.0):
    if x == 5:
        raise RuntimeError("five is right out")
    table = [[x, 2 * x], [3 * x, 4 * x]]
    return {"Square": number(x * x, digits=6), "Table": heat_map(table, xlabel="key", ylabel="query")}

Explorer(square, title="A square", alt="9", x=widgets.FloatSlider(value=3, min=0, max=5, step=0.25))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab as ``nox -s lab`` starts it, on a copy of the chapters and of one notebook: the address of a file."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed: pip install jupyterlab")
    folder = tmp_path_factory.mktemp("lab")
    cell = {"cell_type": "code", "id": "one", "metadata": {}, "execution_count": None, "outputs": [], "source": CODE}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    for name in ("book", "notebooks"):
        shutil.copytree(ROOT / name, folder / "root" / name)
    (folder / "root" / "notebooks" / "explorer.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    settings = folder / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}', encoding="utf-8")  # else cells out of sight are not in the page
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {k: v for k, v in os.environ.items() if k != "ATTNTUT_EXPLORER" and not k.startswith("JUPYTER_")}
    for name in ("CONFIG", "DATA", "RUNTIME"):
        environment[f"JUPYTER_{name}_DIR"] = str(folder / name.lower())
    environment["JUPYTERLAB_SETTINGS_DIR"] = str(folder / "settings")
    arguments = [
        "--no-browser",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=",
        "--ip=127.0.0.1",
    ]
    arguments += [f"--ServerApp.root_dir={folder / 'root'}", "--ServerApp.password=", "--allow-root"]
    arguments += ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    log = (folder / "log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *arguments], env=environment, cwd=folder, stdout=log, stderr=log
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=2).close()
                break
            except OSError:
                if server.poll() is not None:
                    break
                time.sleep(0.5)
        else:
            pytest.fail(f"JupyterLab did not start: {(folder / 'log').read_text()[-2000:]}")
        if server.poll() is not None:
            pytest.fail(f"JupyterLab ended: {(folder / 'log').read_text()[-2000:]}")
        yield f"{address}/doc/tree/notebooks/{{}}?reset"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def opened(context, address):
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(address)
    page.wait_for_selector(".jp-CodeCell .cm-content", state="attached")
    page.get_by_text("| Idle").wait_for()  # else JupyterLab asks which kernel to run with
    return page


@pytest.fixture(scope="module")
def page(browser, lab):
    """The notebook, with all cells run."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = opened(context, lab.format("explorer.ipynb"))
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_selector('[data-panel="Square"] .ax-value')
    yield page
    context.close()


def wait_for(page, text):
    page.wait_for_function(
        "(text) => document.querySelector('[data-panel=\"Square\"] .ax-value')?.textContent === text", arg=text
    )


def handle(page):
    return page.locator(".widget-slider .noUi-handle")


def test_the_default_state_is_drawn(page):
    wait_for(page, "9.00000")
    assert page.locator('[data-panel="Table"] canvas').evaluate("c => [c.width, c.height]") == [2, 2]


def test_a_step_of_the_keyboard_calls_the_function(page):
    handle(page).focus()
    page.keyboard.press("ArrowRight")
    wait_for(page, "10.5625")


def test_a_value_between_the_steps_calls_the_function(page):
    field = page.locator(".widget-slider .widget-readout")
    field.click()
    page.keyboard.press("Control+A")
    page.keyboard.type("1.5")
    page.keyboard.press("Enter")
    wait_for(page, "2.25000")


def test_the_arrow_keys_read_cells_and_stay_in_the_map(page):
    plot = page.locator('[data-panel="Table"] .ax-plot')
    plot.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    readout = page.locator('[data-panel="Table"] .ax-readout').inner_text()
    assert readout.startswith("query 1, key 1: "), f"the arrow keys went to the notebook instead: {readout!r}"
    assert plot.evaluate("p => p === document.activeElement")


def test_an_error_of_the_function_is_shown_and_passes(page):
    handle(page).focus()
    page.keyboard.press("End")
    alert = page.locator(".ax-error strong")
    alert.wait_for()
    assert alert.inner_text() == "RuntimeError: five is right out"
    page.get_by_role("button", name="Reset").click()
    wait_for(page, "9.00000")
    assert page.locator(".ax-error strong").count() == 0


def test_it_follows_the_theme(page):
    color = "getComputedStyle(document.querySelector('.attntut-explorer')).getPropertyValue('--ax-0').trim()"
    assert page.evaluate(color) == "#0072b2"
    page.evaluate("document.body.dataset.jpThemeLight = 'false'")
    assert page.evaluate(color) == "#56b4e9"
    page.evaluate("document.body.dataset.jpThemeLight = 'true'")


# --- the chapters, as they are opened --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=find([]), ids=lambda path: path.stem)
def chapter(request, browser, lab):
    """A chapter that was not run yet, and the notebook that it shows."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = opened(context, lab.format(request.param.name))
    yield page, nbformat.read(request.param, 4)
    context.close()


def test_a_chapter_shows_no_raw_markup(chapter):
    page, _ = chapter
    style = page.add_style_tag(content=":is(pre, code) { display: none !important }")  # there, ** is a power
    text = "\n".join(page.locator(".jp-MarkdownOutput").all_inner_texts())
    style.evaluate("e => e.remove()")
    assert len(text) > 2000
    assert not re.findall(r"\{\w+:?\w*\}`|:::|</?\w+>|\]\(|\*\*", text)


def test_its_hints_are_folded(chapter):
    page, notebook = chapter
    hints = sum(cell.source.count("<details>") for cell in notebook.cells if cell.cell_type == "markdown")
    assert page.locator(".jp-MarkdownOutput details").count() == hints
    assert hints
    assert page.locator(".jp-MarkdownOutput details[open]").count() == 0


def test_cells_that_only_draw_are_folded(chapter):
    page, notebook = chapter
    folded = [cell for cell in notebook.cells if "hide-input" in cell.metadata.get("tags", [])]
    assert page.locator(".jp-CodeCell .jp-InputPlaceholder").count() == len(folded)


def test_its_drawings_and_figures_are_shown_and_fit(chapter):
    page, _ = chapter
    script = (
        "all => all.filter(i => !i.complete || !i.naturalWidth || i.clientWidth > 760).map(i => [i.alt, i.clientWidth])"
    )
    assert page.locator(".jp-Notebook img").evaluate_all(script) == []


def test_its_links_lead_to_files_that_are_there(chapter):
    page, _ = chapter
    script = "all => all.map(a => decodeURI(new URL(a.href).pathname)).filter(p => p.includes('/files/'))"
    paths = page.locator(".jp-MarkdownOutput a[href]").evaluate_all(script)
    assert paths, "JupyterLab found none of the files that the chapter links to."
    assert [path for path in paths if not (ROOT / path.partition("/files/")[2]).exists()] == []
