"""The normalizer of notebooks, and what nbval is told not to compare."""

from __future__ import annotations

import base64
import io

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from tools import notebooks as tool
from tools.nbval_plugin import stable

PATTERNS = tool.sanitizers()
RECORD = {"name": "entropy", "predicted": 2.0, "measured": 2.01, "low": 1.9, "high": 2.1, "passed": True}
EVIDENCE = "application/vnd.attntut.evidence+json"


def png(value: int = 255, size: int = 8, dot: int | None = None) -> str:
    pixels = np.full((size, size, 3), value, np.uint8)
    if dot is not None:
        pixels[0, 0] = dot
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def shown(**data: object) -> nbformat.NotebookNode:
    kinds = {"text": "text/plain", "html": "text/html", "png": "image/png", "record": EVIDENCE}
    return new_output("display_data", data={kinds.get(key, key): value for key, value in data.items()})


def one_cell(*outputs: nbformat.NotebookNode, source: str = "f()", count: int = 1) -> nbformat.NotebookNode:
    return new_notebook(cells=[new_code_cell(source, outputs=list(outputs), execution_count=count)])


# --- normalize -----------------------------------------------------------------------------------------------------


def test_normalizing_twice_changes_nothing():
    notebook = one_cell(shown(text="a"), new_output("stream", name="stdout", text="b"), count=7)
    once = tool.normalize(notebook)
    assert tool.dumps(tool.normalize(once)) == tool.dumps(once)
    assert notebook.cells[0].execution_count == 7, "normalize must not change its argument"


def test_identifiers_follow_from_the_content():
    cells = [new_markdown_cell("Text"), new_code_cell("x"), new_code_cell("x")]
    again = [new_markdown_cell("Text"), new_markdown_cell("New"), new_code_cell("x"), new_code_cell("x")]
    first, second = (tool.normalize(new_notebook(cells=cells)) for cells in (cells, again))
    ids = [cell.id for cell in first.cells]
    assert ids == [cell.id for cell in second.cells if cell.source != "New"], "One new cell renamed others."
    assert len(set(ids)) == 3
    assert ids[2] == ids[1] + "-2"


def test_metadata_that_no_reader_needs_go():
    notebook = one_cell()
    notebook.metadata = nbformat.from_dict(
        {"widgets": {}, "language_info": {"version": "3.11.7"}, "vscode": 1, "mystnb": {"execution_timeout": 60}}
    )
    notebook.cells[0].metadata = nbformat.from_dict(
        {"execution": {"a": "2024"}, "scrolled": True, "tags": ["remove-cell"], "jupyter": {"source_hidden": True}}
    )
    normal = tool.normalize(notebook)
    assert normal.metadata.keys() == {"kernelspec", "language_info", "mystnb"}
    assert "version" not in normal.metadata.language_info
    assert normal.cells[0].metadata == {"tags": ["remove-cell"]}


def test_a_cell_that_the_book_folds_is_folded_everywhere():
    cells = [new_code_cell("f()", metadata={"tags": ["hide-input"]}), new_markdown_cell("T"), new_code_cell("g()")]
    normal = tool.normalize(new_notebook(cells=cells))
    folded = {"tags": ["hide-input"], "jupyter": {"source_hidden": True}, "cellView": "form"}
    assert [cell.metadata for cell in normal.cells] == [folded, {}, {}]
    normal.cells[0].metadata["tags"] = []
    assert tool.normalize(normal).cells[0].metadata == {}, "The fold must go with the tag."


def test_counts_run_from_one_and_an_unexecuted_cell_stays_so():
    cells = [new_code_cell("a", execution_count=5), new_code_cell("b"), new_code_cell("c", execution_count=9)]
    normal = tool.normalize(new_notebook(cells=cells))
    assert [cell.execution_count for cell in normal.cells] == [1, None, 2]


def test_widgets_and_the_data_of_explorers_go_and_the_picture_stays():
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    only_widget = new_output("display_data", data=view)
    explorer = new_output(
        "display_data",
        data={
            **view,
            "image/png": png(),
            "text/html": '<figure class="attntut-explorer">data</figure>',
            "text/plain": "x",
        },
        metadata={"image/png": {"alt": "A map"}},
    )
    evidence = shown(html='<table class="attntut-evidence">…</table>')
    normal = tool.normalize(one_cell(only_widget, explorer, evidence)).cells[0].outputs
    assert [set(output.data) for output in normal] == [{"image/png", "text/plain"}, {"text/html"}]
    assert normal[0].metadata == {"image/png": {"alt": "A map"}}


def test_pieces_of_a_stream_are_joined():
    pieces = [new_output("stream", name="stdout", text=text) for text in ("a\n", "b\n")]
    normal = tool.normalize(one_cell(pieces[0], shown(text="x"), pieces[1])).cells[0].outputs
    assert [output.get("text") for output in normal] == ["a\nb\n", None]


# --- keep what did not change ----------------------------------------------------------------------------------------

TABLE = "quantity   predicted   measured     agreement\nentropy   2   {} ± 0.1   ✓ within 5 %"


@pytest.mark.parametrize(
    "old, new, same",
    [
        (shown(text="1.5"), shown(text="1.5"), True),
        (shown(text="1.5"), shown(text="1.6"), False),
        (shown(text="loss ≈ 1.5000"), shown(text="loss ≈ 1.5001"), True),
        (shown(text="loss ≈ 1.5"), shown(text="loss ≈ 1.6"), False),
        (shown(text="object at 0x7f00aa11"), shown(text="object at 0x7e11bb22"), True),
        (shown(text=TABLE.format("2.01")), shown(text=TABLE.format("2.0101")), True),
        (shown(text=TABLE.format("2.01")), shown(text=TABLE.format("2.05")), False),
        (shown(record=[RECORD]), shown(record=[{**RECORD, "measured": 2.01001}]), True),
        (shown(record=[RECORD]), shown(record=[{**RECORD, "measured": 2.05}]), False),
        (shown(record=[RECORD]), shown(record=[{**RECORD, "predicted": 2.1}]), False),
        (shown(record=[RECORD]), shown(record=[RECORD, RECORD]), False),
        (shown(png=png()), shown(png=png(dot=240)), True),
        (shown(png=png()), shown(png=png(200)), False),
        (shown(png=png()), shown(png=png(size=9)), False),
        (shown(png=png(), text="1.5"), shown(png=png(dot=240), text="1.6"), False),
        (shown(png=png()), shown(text="1.5"), False),
        (new_output("stream", name="stdout", text="a"), new_output("stream", name="stdout", text="a"), True),
        (new_output("stream", name="stdout", text="a"), new_output("stream", name="stderr", text="a"), False),
    ],
)
def test_the_old_output_stays_only_where_nothing_changed(old, new, same):
    result = tool.keep_unchanged(one_cell(new), one_cell(old)).cells[0].outputs
    assert result == [old if same else new]


def test_a_changed_cell_keeps_nothing():
    old, new = one_cell(shown(png=png()), source="f()"), one_cell(shown(png=png(dot=240)), source="g()")
    assert tool.keep_unchanged(new, old).cells[0].outputs == new.cells[0].outputs


# --- execute -------------------------------------------------------------------------------------------------------


def test_execution_fails_on_a_cells_error_and_leaves_the_file(tmp_path):
    path = tmp_path / "wrong.ipynb"
    path.write_text(tool.dumps(tool.normalize(new_notebook(cells=[new_code_cell("1 / 0")]))), encoding="utf-8")
    before = path.read_text(encoding="utf-8")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        tool.update(path)
    assert path.read_text(encoding="utf-8") == before


def test_an_edit_that_was_made_meanwhile_is_kept(tmp_path):
    path = tmp_path / "edited.ipynb"
    source = f"open({str(path)!r}, 'a').write(' ')"
    path.write_text(tool.dumps(new_notebook(cells=[new_code_cell(source)])), encoding="utf-8")
    before = path.read_text(encoding="utf-8")
    with pytest.raises(RuntimeError, match="was edited while it ran"):
        tool.update(path)
    assert path.read_text(encoding="utf-8") == before + " "


def test_a_second_execution_changes_nothing(tmp_path):
    path = tmp_path / "right.ipynb"
    source = "import os, time\nprint(os.environ['ATTNTUT_EXPLORER'])\nprint(f'≈ {100 + time.time() % 0.01}')\nobject()"
    path.write_text(tool.dumps(new_notebook(cells=[new_code_cell(source)])), encoding="utf-8")
    assert tool.update(path)[0]
    assert not tool.update(path)[0]
    assert nbformat.read(path, 4).cells[0].outputs[0].text.startswith("picture\n")


@pytest.mark.parametrize("name", ["99", "nothing.ipynb"])
def test_an_unknown_notebook_is_named(name):
    with pytest.raises(SystemExit, match=f"No notebook begins with '{name}'"):
        tool.find([name])


# --- sanitize ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "one, other",
    [
        (TABLE.format("0.98"), TABLE.format("1.0234")),
        ("loss ≈ 0.123, accuracy ≈ 93 %", "loss ≈ -1.2e-03, accuracy ≈ 9.5 %"),
        ("0.1 ≈ 12.5 ± 0.3", "0.1 ≈ 12.49 ± 0.25"),
        ("≈nan", "≈ 4"),
        ("<object at 0x7f1234567890>", "<object at 0x7fabcdefabcd>"),
        ('<table class="attntut-evidence"><td>1</td></table>', '<table class="attntut-evidence"><td>2\n3</td></table>'),
    ],
)
def test_measured_digits_are_not_compared(one, other):
    assert tool.sanitize(one, PATTERNS) == tool.sanitize(other, PATTERNS)


@pytest.mark.parametrize(
    "one, other",
    [
        ("a table: " + TABLE.format("1"), "a table: " + TABLE.format("2")),
        ("a ≈ 1, b = 2", "a ≈ 1, b = 3"),
        ("a ≈ 1 and 2", "a ≈ 1 and 3"),
        ("we measured 5 things", "we measured 6 things"),
    ],
)
def test_everything_else_is_compared(one, other):
    assert tool.sanitize(one, PATTERNS) != tool.sanitize(other, PATTERNS)


@pytest.mark.parametrize(
    "change", [{"measured": 3.0}, {"low": 0}, {"high": 9}, {"predicted": 2.00001}, {"at_least": 1.9}]
)
def test_the_digits_of_a_record_are_not_compared(change):
    assert stable([RECORD]) == stable([{**RECORD, **change}])


@pytest.mark.parametrize(
    "change", [{"predicted": 2.01}, {"name": "x"}, {"passed": False}, {"predicted": None}, {"more": 1}]
)
def test_the_rest_of_a_record_is_compared(change):
    assert stable([RECORD]) != stable([{**RECORD, **change}])


def test_the_sanitize_file_can_be_read_in_any_locale():
    assert tool.SANITIZE.read_bytes().isascii(), "nbval opens it in the locale's encoding; write \\u2248 instead of ≈."
