"""A table that a reader sorts and filters: its cells, its choices, and the page that it stands in."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from small_book import build_book

sys.path.append(str(Path(__file__).resolve().parents[1] / "book" / "_ext"))

from bookext import sortable

ROWS = [
    {"type": "gpt2", "norm": "pre", "looks": "gpt2", "std": 0.02, "more": 1},
    {"type": "bert", "norm": "post", "looks": "normal, llama", "std": 0.0201},
    {"type": "<b>", "norm": None, "looks": "normal", "std": float("nan")},
]
COLUMNS = {"type": "architecture", "norm": "norm", "looks": "looks like", "std": "σ"}


def shown() -> str:
    return sortable.table(ROWS, COLUMNS, caption="Some.", noun="types", choices=("norm", "looks")).data


def test_cells_stand_in_the_columns_order_and_are_no_markup():
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</th>(.*?)</tr>", shown())
    assert [name for name, _ in rows] == ["gpt2", "bert", "&lt;b&gt;"]
    assert re.findall("<td>(.*?)</td>", rows[0][1]) == ["pre", "gpt2", "0.02"], "what is not named is left out"
    assert re.findall("<td>(.*?)</td>", rows[2][1]) == ["–", "normal", "–"]
    assert re.findall(r'<th scope="col" data-key="(\w+)">(.*?)</th>', shown()) == [*COLUMNS.items()]


def test_a_choice_counts_each_of_a_cells_values():
    looks = shown().split('<select name="looks">')[1].split("</select>")[0]
    assert re.findall(r'value="(.*?)">(.*?)</option>', looks) == [
        ("", "all"), ("gpt2", "gpt2 (1)"), ("llama", "llama (1)"), ("normal", "normal (2)")
    ]  # fmt: skip
    norm = shown().split('<select name="norm">')[1].split("</select>")[0]
    assert norm.index("post (1)") < norm.index("pre (1)") < norm.index("– (1)"), "the missing stand last"


def test_a_choice_that_is_no_column_is_refused():
    with pytest.raises(ValueError, match="choices must be columns: got \\['sdt'\\]"):
        sortable.table(ROWS, COLUMNS, caption="Some.", choices=["std", "sdt"])


def test_the_form_is_for_scripts_only_and_the_page_loads_them(tmp_path):
    files = {"index.md": f"# Book\n\n{shown()}\n\n```{{toctree}}\nother\n```\n", "other.md": "# Other\n"}
    built = build_book(tmp_path, files)
    assert not built.warnings
    page = built.page("index")
    assert '<form class="sortable-filter" hidden' in page and ">3 types</p>" in page
    assert "sortable.js" in page and "sortable.css" in page and "sortable.js" not in built.page("other")
