"""Plain Markdown becomes the book's own boxes and citations."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
import pytest

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "book" / "_ext")]

from small_book import Built, build_book  # noqa: E402

BIB = r"""
@misc{vaswani2017, title={A}, author={Vaswani, A. and Shazeer, N. and Parmar, N.}, year={2017}, eprint={1706.03762},
  url={https://example.org/attention}}
@misc{glorot2010, title={B}, author={Glorot, Xavier and Bengio, Yoshua}, year={2010}, doi={10.1/x_1}, eprint={1.2}}
@misc{cho2014, title={C}, author={van Merri{\"e}nboer, Bart}, year={2014}, eprint={1406.1078}}
@misc{old1986, title={D}, author={Old, O.}, year={1986}}
"""
VASWANI = "https://example.org/attention"


@pytest.fixture
def built(tmp_path):
    def build(text: str, *, name: str = "chapter.ipynb", outputs: tuple[str, ...] = ()) -> Built:
        shown = [nbformat.v4.new_output("display_data", data={"text/html": html}) for html in outputs]
        cells = [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell("1", outputs=shown)]
        about = {"language_info": {"name": "python", "pygments_lexer": "python"}}
        page = (
            nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata=about)) if name.endswith(".ipynb") else text
        )
        index = "# Book\n\n```{toctree}\nchapter\n```\n\n```{bibliography}\n```\n"
        return build_book(
            tmp_path,
            {name: page, "index.md": index, "references.bib": BIB},
            extensions=["myst_nb", "sphinxcontrib.bibtex", "bookext"],
            myst_enable_extensions=["dollarmath"],
            bibtex_bibfiles=["references.bib"],
            bibtex_reference_style="round",
        )

    return build


def text_of(html: str) -> str:
    body = html.partition("<main")[2].partition("</main>")[0] or html
    return " ".join(re.sub(r"<[^>]*>", "", body).split())


# --- hints -----------------------------------------------------------------------------------------------------------

HINT = """# T

**Exercise.** Do it.

<details>
<summary>Hint &amp; help</summary>

Try *this* and $x^2$:

- `a`

</details>

After."""


@pytest.mark.parametrize("name", ["chapter.ipynb", "chapter.md"])
def test_a_hint_folds_and_its_markdown_is_read(built, name):
    book = built(HINT, name=name)
    page = book.page("chapter")
    box = re.search(r"<details>(.*?)</details>", page, re.DOTALL).group(1)
    assert "<summary>Hint &amp; help</summary>" in box
    assert "<em>this</em>" in box and "<math" in box and "<li>" in box
    assert "After." not in box
    assert "After." in page
    assert page.count("</details>") == page.count("<details")
    assert not book.warnings


def test_two_hints_are_two_boxes(built):
    one = "<details>\n<summary>Hint</summary>\n\n{}\n\n</details>\n\n"
    page = built("# T\n\n" + one.format("One.") + one.format("Two.")).page("chapter")
    boxes = re.findall(r"<details>(.*?)</details>", page, re.DOTALL)
    assert [text_of(box) for box in boxes] == ["Hint One.", "Hint Two."]


def test_a_hint_that_does_not_end_is_a_warning(built):
    assert "has no </details>" in built("# T\n\n<details>\n<summary>Hint</summary>\n\nTry.</details>").warnings


def test_what_a_cell_shows_stays_as_it_is(built):
    shown = "<details><summary>All</summary><p>1</p></details>"
    assert shown in built("# T", outputs=(shown,)).page("chapter")


# --- notes -----------------------------------------------------------------------------------------------------------


def test_a_quote_that_begins_with_a_bold_sentence_is_a_note(built):
    page = built("# T\n\n> **A trap.** Read *this*.\n>\n> And $x$.").page("chapter")
    box = re.search(r'<div class="note admonition">(.*?)</div>', page, re.DOTALL).group(1)
    assert re.search(r'<p class="admonition-title">A trap</p>\s*<p>Read <em>this</em>\.</p>', box)
    assert "<math" in box
    assert "<blockquote" not in page


def test_a_title_alone_leaves_no_empty_paragraph(built):
    page = built("# T\n\n> **Is it so?**\n>\n> Yes.").page("chapter")
    assert re.search(r'<p class="admonition-title">Is it so\?</p>\s*<p>Yes\.</p>', page)


@pytest.mark.parametrize("quote", ["> All you need.", "> All **you** need.", "> **All** you need."])
def test_any_other_quote_stays_a_quote(built, quote):
    page = built(f"# T\n\n{quote}").page("chapter")
    assert "<blockquote" in page
    assert "admonition" not in text_of(page)


# --- citations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "link, shown, key",
    [
        (f"As [Vaswani et al. (2017)]({VASWANI}) say.", "As Vaswani et al. (2017) say.", "vaswani2017"),
        (f"So ([Vaswani et al., 2017]({VASWANI})).", "So (Vaswani et al., 2017).", "vaswani2017"),
        ("[Glorot and Bengio (2010)](https://doi.org/10.1/x_1) say", "Glorot and Bengio (2010) say", "glorot2010"),
        ("[van Merriënboer (2014)](https://arxiv.org/abs/1406.1078)", "van Merriënboer (2014)", "cho2014"),
        ("[van Merriënboer\n(2014)](https://arxiv.org/abs/1406.1078)", "van Merriënboer (2014)", "cho2014"),
    ],
)
def test_a_link_to_a_paper_is_a_citation(built, link, shown, key):
    book = built(f"# T\n\n{link}")
    page, index = book.page("chapter"), book.page("index")
    assert shown in text_of(page)
    assert 'href="https://' not in re.search(r"<h1>.*?</section>", page, re.DOTALL).group(0)
    target = re.search(r'href="index\.html#([^"]+)"', page.partition("<h1>")[2]).group(1)
    assert f'id="{target}"' in index, f"the citation of {key} does not lead to the bibliography"
    assert not book.warnings


def test_two_papers_share_parentheses(built):
    one, two = f"[Vaswani et al., 2017]({VASWANI})", "[Glorot and Bengio, 2010](https://doi.org/10.1/x_1)"
    book = built(f"# T\n\nSee ({one}; {two}, section 2).")
    assert "See (Vaswani et al., 2017; Glorot and Bengio, 2010, section 2)." in text_of(book.page("chapter"))


@pytest.mark.parametrize(
    "label", ["Vaswani et al. (2018)", "Vaswani (2017)", "Shazeer et al. (2017)", "Vaswani et al. 2017", "the paper"]
)
def test_a_label_that_names_another_paper_is_a_warning(built, label):
    warnings = built(f"# T\n\n[{label}]({VASWANI})").warnings
    assert f"is 'Vaswani et al. (2017)' or 'Vaswani et al., 2017', not '{label}'" in warnings


@pytest.mark.parametrize("label", ["Someone et al. (2020)", "Someone and Else, 2020"])
def test_a_paper_that_the_bibliography_lacks_is_a_warning(built, label):
    assert "the bibliography has no https://example.org/x" in built(f"# T\n\n[{label}](https://example.org/x)").warnings


def test_other_links_stay_links(built):
    book = built("# T\n\n[the code](https://example.org/code), [home](index.md), <https://example.org/y>")
    assert 'href="https://example.org/code"' in book.page("chapter")
    assert not book.warnings


# --- code and formulas -----------------------------------------------------------------------------------------------


def test_code_and_formulas_are_out_of_reach(built):
    link = f"[Vaswani et al. (2017)]({VASWANI})"
    fence = f"```text\n<details>\n<summary>Hint</summary>\n\n> **A.** b\n\n{link}\n\n</details>\n```"
    book = built(f"# T\n\n`{link}`\n\n{fence}\n\n$x > \\mathbf{{y}}.$")
    page = text_of(book.page("chapter"))
    assert page.count("[Vaswani et al. (2017)](https://example.org/attention)") == 2
    assert "&lt;details&gt;" in page
    assert "&gt; **A.** b" in page
    assert not book.warnings
