"""What the committed notebooks must and must not hold."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

from attntut.evidence import MIME
from tools import notebooks as tool

PATHS = tool.find([])
KILOBYTES = 600
LINES = 20
COLUMNS = 76
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|work|tmp|Users|opt|usr/lib|private|mnt)/\w|[A-Z]:\\\\?Users\\")

ROLE = re.compile(r"\{[\w:+-]+\}`")
MARKUP = re.compile(r":{3,}|^\(\S+\)=|\[\^|^\{.*\}$|\{\{|\$\$|</?\w+>|\]\(|\*\*", re.MULTILINE)
HTML = re.compile(r"<details>\n<summary>[^<>\n]+</summary>|</details>")

DECIMAL = re.compile(r"(?<![\w.^{/√−-])\d+\.\d+(?!\w|\.\d)")
NOT_MEASURED = re.compile(  # formulas, the article's and the book's own numbering, a table of what others reported
    r"\$\$?.*?\$\$?|\[[^\]]*\]\([^)]*\)|[Ee]xercise \d+\.\d|^\|[^\n]*\]\(https?:[^\n]*|^\*\*Exercise.*",
    re.DOTALL | re.MULTILINE,
)
READ_OFF = {"04": {"2.3", "3.6"}}  # numbers that no cell prints, of a formula beside them: Φ(m)ⁿ = ½ at n = 64 and 4096


def unsupported(notebook: nbformat.NotebookNode) -> list[str]:
    """Decimals in the prose and in alt texts that no cell printed, to the digits given, and none was given."""
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs(notebook)]
    alts = [text for text in texts if text.startswith("Figure")]
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    shown = " ".join([text for text in texts if not text.startswith("Figure")] + code)
    numbers = [float(number) for number in re.findall(r"\d+\.?\d*(?:e[-+]?\d+)?", shown)]
    prose = [NOT_MEASURED.sub(" ", cell.source) for cell in notebook.cells if cell.cell_type == "markdown"]
    return [
        number
        for number in re.findall(DECIMAL, "\n".join(prose + alts))
        if all(abs(float(number) - known) > 0.5001 * 10 ** -len(number.split(".")[1]) for known in numbers)
    ]


def raw_markup(markdown: str) -> list[str]:
    """What a viewer that knows CommonMark, tables, formulas and ``<details>``, and nothing else, shows as it stands."""
    found = []
    for token in MarkdownIt("commonmark").enable("table").use(dollarmath_plugin, allow_digits=False).parse(markdown):
        if token.type == "fence" and token.info.startswith("{"):
            found.append(f"```{token.info}")
        elif token.type == "html_block":
            found += [] if HTML.fullmatch(token.content.strip()) else [token.content]
        elif token.type == "inline":
            parts = token.children or []
            texts = [
                "`" if part.type == "code_inline" else part.content for part in parts if part.type != "math_inline"
            ]
            found += ROLE.findall("".join(texts))
            found += [hit for part in parts if part.type == "text" for hit in MARKUP.findall(part.content)]
            found += [part.content for part in parts if part.type == "html_inline"]
    return found


def unexecuted(notebook: nbformat.NotebookNode) -> list[int]:
    """Positions of code cells without a count, or with one out of order. nbval compares no cell without a count."""
    cells = [(position, cell) for position, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    return [position for count, (position, cell) in enumerate(cells, 1) if cell.execution_count != count]


def late_imports(notebook: nbformat.NotebookNode) -> list[str]:
    """Import statements anywhere but in the first code cell."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return [
        ast.unparse(node)
        for source in code[1:]
        for node in ast.walk(ast.parse(re.sub(r"^\s*[%!].*$", "pass", source, flags=re.MULTILINE)))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def displayed(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for output in outputs(notebook) if "data" in output]


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def test_every_code_cell_was_executed_in_order(notebook):
    assert not unexecuted(notebook), "Cells at these positions were not executed in order. Run nox -s notebooks."


def test_it_is_normalized(notebook, path):
    assert tool.dumps(tool.normalize(notebook)) == path.read_text(encoding="utf-8"), (
        "The notebook holds what a tool or a machine left in it. Run nox -s notebooks."
    )


def test_nothing_went_to_stderr_and_nothing_failed(notebook):
    loud = [output for output in outputs(notebook) if output.get("name") == "stderr" or output.output_type == "error"]
    assert not loud, "A warning or an error is part of the committed output. What does it ask for?"


def test_no_widget_is_stored(notebook):
    assert "widgets" not in notebook.metadata
    kinds = {kind for output in displayed(notebook) for kind in output.data}
    assert not {kind for kind in kinds if "widget" in kind}, "Widgets need a kernel; the page needs a picture."


def test_no_path_of_a_machine(path):
    found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if MACHINE_PATH.search(line)]
    assert not found, f"A path of one machine is of no use on another: {found[:3]}"


def test_it_is_small(path):
    assert path.stat().st_size <= KILOBYTES * 1000, (
        f"{path.stat().st_size / 1000:.0f} KB; lower the dpi of the figures."
    )


def test_cells_are_short(notebook):
    long = {
        position: len(cell.source.splitlines())
        for position, cell in enumerate(notebook.cells)
        if cell.cell_type == "code" and len(cell.source.splitlines()) > LINES
    }
    assert not long, f"Cells of more than {LINES} lines, by position: {long}. What belongs into the package?"


def test_lines_of_code_fit_the_column(notebook):
    """At 76 columns nothing is cut off, neither in the book nor in JupyterLab."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    printed = [output.get("text", "") for output in outputs(notebook)]
    wide = [line for source in code + printed for line in source.splitlines() if len(line) > COLUMNS]
    assert not wide, f"{len(wide)} lines of code are wider than {COLUMNS} columns, the widest: {max(wide, key=len)!r}"


def test_every_viewer_can_show_its_markdown(notebook):
    """JupyterLab, an editor and a code host know no roles and no directives; the book's build makes them of links."""
    raw = {hit for cell in notebook.cells if cell.cell_type == "markdown" for hit in raw_markup(cell.source)}
    assert not raw, "Shown as it stands outside the book. See CONTRIBUTING.md for what to write instead."


def test_hints_end_where_they_begin(notebook):
    for cell in notebook.cells:
        assert cell.source.count("<details>") == cell.source.count("</details>"), cell.source[:200]


def test_cells_that_the_book_folds_are_folded_in_jupyterlab_and_colab(notebook):
    folded = [cell for cell in notebook.cells if "hide-input" in cell.metadata.get("tags", [])]
    assert all(cell.metadata.get("jupyter", {}).get("source_hidden") for cell in folded), "Run nox -s notebooks."
    assert all(cell.metadata.get("cellView") == "form" for cell in folded), "Run nox -s notebooks."


def test_imports_stand_in_the_first_code_cell(notebook):
    assert not late_imports(notebook)


def test_every_image_has_alt_text(notebook):
    pictures = [
        output for output in displayed(notebook) if {"image/png", "image/svg+xml", "image/jpeg"} & output.data.keys()
    ]
    missing = [
        output.data.get("text/plain", "an image")
        for output in pictures
        if not any(str(about.get("alt", "")).strip() for about in output.metadata.values() if isinstance(about, dict))
    ]
    assert not missing, (
        f"Images without metadata {{'image/png': {{'alt': …}}}}: {missing}. Use attntut.plots.show(…, alt=…)."
    )


def test_an_image_is_not_the_only_output(notebook):
    """nbval compares no images: a chapter that draws also prints."""
    kinds = {kind for output in displayed(notebook) for kind in output.data}
    if "image/png" in kinds:
        assert {MIME, "text/plain"} & kinds


def test_every_record_of_evidence_passed(notebook):
    records = [record for output in displayed(notebook) for record in output.data.get(MIME, [])]
    assert not [record["name"] for record in records if not (record["passed"] or record["explained"])]
    slugs = [record["slug"] for record in records]
    assert len(slugs) == len(set(slugs)), "Two comparisons of one chapter have the same name, so the same anchor."


# --- the checks themselves ----------------------------------------------------------------------------------------


def test_a_number_in_the_prose_is_one_that_a_cell_gave(notebook, path):
    missing = set(unsupported(notebook)) - READ_OFF.get(path.name[:2], set())
    assert not missing, f"No cell of {path.name} gives {sorted(missing)}. What did the last run measure?"


def code(source: str, count: int | None, **more: object) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(source, execution_count=count, **more)


def made(*cells: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=list(cells))


@pytest.mark.parametrize(
    "counts, wrong",
    [((1, 2, 3), []), ((1, None, 2), [1, 2]), ((1, 3, 2), [1, 2]), ((2, 3, 4), [0, 1, 2]), ((None,), [0])],
)
def test_a_cell_that_was_not_executed_is_noticed(counts, wrong):
    assert unexecuted(made(*(code("1", count) for count in counts))) == wrong


def test_late_imports_are_noticed():
    notebook = made(code("import math", 1), code("x = 1\nfrom torch import nn", 2), code("%timeit x\nimport json", 3))
    assert late_imports(notebook) == ["from torch import nn", "import json"]


@pytest.mark.parametrize(
    "markdown, raw",
    [
        ("So {cite:p}`raffel2020`.", ["{cite:p}`"]),
        ("See {ref}`there <label>`.", ["{ref}`"]),
        (":::{admonition} Hint\n:class: dropdown\nTry.\n:::", [":::", ":::"]),
        ("```{note}\nTry.\n```", ["```{note}"]),
        ("~~~{note}\nTry.\n~~~", ["```{note}"]),
        ("(label)=\n# Title", ["(label)="]),
        ("A note.[^1]", ["[^"]),
        ("<div>a</div>", ["<div>a</div>"]),
        ("a <sub>b</sub>", ["<sub>", "</sub>"]),
        ("<details><summary>Hint</summary>Try.</details>", ["<details><summary>Hint</summary>Try.</details>"]),
        ("<details>\n<summary>H</summary>\nTry.\n</details>", ["<details>\n<summary>H</summary>\nTry.\n</details>"]),
        ("not ** bold **", ["**", "**"]),
        ("$$\na\n", ["$$"]),
    ],
)  # fmt: skip
def test_raw_markup_is_noticed(markdown, raw):
    assert raw_markup(markdown) == raw


@pytest.mark.parametrize(
    "markdown",
    [
        "[Raffel et al. (2020)](https://arxiv.org/abs/1910.10683), **bold**, `{cite}`, `:::`, $a_{*}b_{*}$, {1, 2}",
        "<details>\n<summary>Hint</summary>\n\nTry *this*.\n\n</details>",
        "> **A trap.** Text",
        "$$\n\\begin{aligned} a &= b \\\\ c &= d \\end{aligned}\n$$",
        "| a | b |\n| --- | --- |\n| 1 | **2** |",
        "```python\n:::{note}\n```",
        "![a drawing](../book/diagrams/block.svg)",
    ],
)
def test_plain_markdown_is_left_alone(markdown):
    assert raw_markup(markdown) == []


@pytest.mark.parametrize("text", ["/home/jane/x", 'File "/root/x.py"', "/tmp/ipykernel_12/3.py", "C:\\Users\\jane"])
def test_a_path_of_a_machine_is_noticed(text):
    assert MACHINE_PATH.search(json.dumps(text))


@pytest.mark.parametrize("text", ["https://arxiv.org/abs/1706.03762", "12 tokens/work item", "attntut/tools"])
def test_other_slashes_are_no_path_of_a_machine(text):
    assert not MACHINE_PATH.search(text)


@pytest.mark.parametrize(
    "prose, missing",
    [("It gains 0.98.", []), ("It gains 0.99.", ["0.99"]), ("With $0.99$, exercise 1.5, [0.7](there.md).", [])],
)
def test_a_stale_number_is_noticed(prose, missing):
    cell = code("print(gain)", 1)
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="gain 0.9841\n")]
    assert unsupported(made(nbformat.v4.new_markdown_cell(prose), cell)) == missing
