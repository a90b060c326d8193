"""The book's Sphinx extension: each module alone, and all of them in books of one or two pages."""

from __future__ import annotations

import doctest
import importlib
import json
import re
import sys
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="the extra `book` is not installed")
pytest.importorskip("math_core", reason="the extra `book` is not installed")

import nbformat
from bs4 import BeautifulSoup
from small_book import Built, build_book
from sphinx.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from bookext import MODULES, address, claims, figures, mathfont, mathml, questions, records, remedies, sheet, theme  # noqa: E402

from attntut.evidence import MIME, Evidence, Records  # noqa: E402
from attntut.exercises.public import records as shipped  # noqa: E402
from attntut.recommend import rules  # noqa: E402

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_run(module):
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert not found.failed


# --- a small book -----------------------------------------------------------------------------------------------------


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A function that builds a book: ``build({"index.md": "# Book"}, claims="…")``."""
    for name in ("GITHUB_REPOSITORY", "GITHUB_SERVER_URL", "GITHUB_REF_NAME", "BOOK_URL"):
        monkeypatch.delenv(name, raising=False)

    def run(files: dict[str, str], *, ledger: str = "[]", remedies: str = "[]", repository: str | None = None) -> Built:
        if repository:
            monkeypatch.setenv("GITHUB_REPOSITORY", repository)
        others = "\n".join(name.rsplit(".", 1)[0] for name in files if name != "index.md")
        toc = f"\n\n```{{toctree}}\n:hidden:\n{others}\n```\n" if others else ""
        pages = {"index.md": "# A book\n\nText.\n", **files}
        pages["index.md"] += toc
        return build_book(
            tmp_path,
            {**pages, "claims.yml": ledger, "remedies.yml": remedies},
            nb_mime_priority_overrides=[["html", "text/html", 0]],
            nb_ipywidgets_js={},
            myst_enable_extensions=["amsmath", "dollarmath", "colon_fence"],
            suppress_warnings=["mystnb.unknown_mime_type"],
            book_article="index",
            book_remedies="remedies.yml",
        )

    return run


def notebook(*outputs: dict, source: str = "x") -> str:
    """Return a notebook of one executed cell that displays ``outputs``: pairs of data and metadata."""
    cell = nbformat.v4.new_code_cell(source, execution_count=1)
    for output in outputs:
        data, metadata = output["data"], output.get("metadata", {})
        cell.outputs.append(nbformat.v4.new_output("display_data", data=data, metadata=metadata))
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Chapter"), cell])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.writes(book)


EXERCISES = """# Chapter

**Exercise 2.1** (1 minute, easy). Which?

```text
a report
```

- **a.** this
- **b.** that

**Exercise 2.2** (3 minutes, easy). How much?

And how much more?

<details>
<summary>Hint</summary>

Count.

</details>

**Exercise 2.4** (10 minutes, medium). Write it.

**Exercise 99.1** (1 minute, easy). There is none.
"""


def test_an_exercise_with_a_number_or_a_choice_can_be_answered_on_the_page(build):
    page = BeautifulSoup(build({"page.md": EXERCISES}).page("page"), "html.parser")
    forms = page.select("form.answer")
    assert [form.find_previous(id=re.compile("^exercise-"))["id"] for form in forms] == ["exercise-2-1", "exercise-2-2"]
    assert "a report" not in forms[0].text and forms[0].find_previous("pre").text.strip() == "a report"
    assert forms[1].find_previous("p").text == "And how much more?" and forms[1].find_next("summary")
    assert page.select_one("#exercise-2-4")
    assert not page.select_one("#exercise-99-1")
    labels = [label.get_text(" ", strip=True) for label in page.select("form label")]
    assert labels == ["a. this", "b. that", "Your answer to exercise 2.2"]
    assert len(page.select("fieldset > legend")) == 1


def test_the_map_lists_every_exercise_with_a_link(build):
    page = build({"page.md": "# Map\n\n```{exercise-map}\n```\n"}).page("page")
    rows = [
        [cell.get_text() for cell in row.select("td")] for row in BeautifulSoup(page, "html.parser").select("tbody tr")
    ]
    assert [row[0] for row in rows] == list(shipped())
    assert all(
        row[1:5] == [str(shipped()[row[0]][k]) for k in ("title", "kind", "minutes", "difficulty")] for row in rows
    )


def one(name: str, **values: object) -> dict:
    """Return the fields of a record."""
    said = {
        "kind": "predicted",
        "predicted": 1.0,
        "tolerance": "within 5 %",
        "low": None,
        "high": None,
        "n": 1,
        "unit": "",
    }
    return {"name": name, "slug": name, **said, "measured": 0.98, "passed": True, **values}


def evidence(name: str, **values: object) -> dict:
    """Return what a cell with one record displays."""
    return {"data": Records((Evidence(**one(name, **values)),))._repr_mimebundle_()}


LEDGER = """
- {id: C01, section: "1", text: One.}
- {id: C02, section: "2.1", text: Two., later: part III}
"""
CLAIMS_PAGE = {"ledger.md": "# Claims\n\n```{claims}\n```\n"}


# --- the claims -------------------------------------------------------------------------------------------------------


def test_a_chapter_has_the_number_of_its_file(build):
    names = ("02-two", "03-three", "12-twelve")
    toctree = "\n".join(f"notebooks/{name}" for name in names)
    pages = {f"notebooks/{name}.md": f"# {name}\n\n## Inside\n\nText.\n" for name in names}
    built = build({"index.md": f"# Book\n\n```{{toctree}}\n:numbered: 2\n{toctree}\n```\n", **pages})
    assert built.warnings == ""
    for name, number in zip(names, (2, 3, 12), strict=True):
        page = re.sub(r"<[^>]+>", "", built.page(f"notebooks/{name}"))
        assert f"{number}. {name}" in page and f"{number}.1. Inside" in page
    assert "12. 12-twelve" in re.sub(r"<[^>]+>", "", built.page("index"))


def test_the_ledger_shows_claim_verdict_numbers_and_link(build):
    record = evidence("a", claim="C01", low=0.9, high=1.06, n=5)
    built = build({**CLAIMS_PAGE, "chapter.ipynb": notebook(record)}, ledger=LEDGER)
    page = built.page("ledger")
    assert not built.warnings
    assert re.search(r'class="claim claim-holds[^"]*" id="c01"', page)
    assert 'href="chapter.html#evidence-a"' in page, "the link leads to the cell"
    assert "predicted 1 · measured 0.98 ± 0.08 · ✓ within 5 %, 5 seeds" in page
    assert 'id="evidence-a"' in built.page("chapter"), "the anchor is on the chapter's page"
    assert re.search(r'class="claim claim-later[^"]*" id="c02".*waits for part III', page, re.DOTALL)


def test_a_claim_with_evidence_that_waits_for_more_shows_both(build):
    built = build({**CLAIMS_PAGE, "chapter.ipynb": notebook(evidence("a", claim="C02"), evidence("b", claim="C01"))},
                  ledger=LEDGER)  # fmt: skip
    entry = built.page("ledger").split('id="c02"')[1]
    assert "evidence-a" in entry and "Waits for part III." in entry


@pytest.mark.parametrize(
    "found, message",
    [
        ([], "the claim C01 has no evidence"),
        ([evidence("a", claim="C01"), evidence("b", claim="C99")], "names the claim 'C99'; known: C01, C02"),
        ([evidence("a", claim="C01"), evidence("b", passed=False)], "the comparison 'b' (evidence-b) failed"),
        ([evidence("a", claim="C01"), evidence("b", claim="C01", supports=False)], "C01 holds in part: say `when=…`"),
        ([evidence("a", claim="C01"), evidence("a")], "2 comparisons have the name evidence-a"),
    ],
    ids=["no evidence", "unknown claim", "failed comparison", "no condition", "same name"],
)
def test_a_ledger_that_cannot_be_trusted_is_a_warning(build, found, message):
    built = build({**CLAIMS_PAGE, "chapter.ipynb": notebook(*found)}, ledger=LEDGER)
    assert message in built.warnings


@pytest.mark.parametrize("chapter, stale", [("09-nine", True), ("10-ten", False)])
def test_a_claim_does_not_wait_for_a_chapter_that_is_there(build, chapter, stale):
    ledger = LEDGER.replace("part III", "chapter 9")
    files = {**CLAIMS_PAGE, f"notebooks/{chapter}.ipynb": notebook(evidence("a", claim="C01"))}
    assert ("C02 waits for chapter 9, which is there" in build(files, ledger=ledger).warnings) == stale


def test_the_page_of_evidence_counts_the_kinds_and_lists_what_differs(build):
    found = [
        evidence("a"),
        evidence("b", passed=False, explained="positions count too"),
        evidence("c", kind="expected", predicted=None, tolerance="above 0"),
        evidence("d", kind="observed", predicted=None, tolerance="between 0 and 1"),
    ]
    built = build({"all.md": "# Evidence\n\n```{evidence}\n```\n", "chapter.ipynb": notebook(*found)}, ledger=LEDGER)
    assert not built.warnings, "An explained difference is no failure, and without a ledger no claim asks for evidence."
    page = built.page("all")
    assert "4 records. 2 were predicted by a formula: 1 agrees within its tolerance, and 1 differs" in page
    differ = page.split("Where theory and measurement differ")[1].split("</table>")[0]
    assert "evidence-b" in differ and "positions count too" in differ and "evidence-a" not in differ
    for record in "abcd":
        assert f'href="chapter.html#evidence-{record}"' in page


def test_a_record_is_named_in_a_sentence_with_its_numbers(build):
    found = [evidence("a", low=0.9, high=1.06, n=5), evidence("c", kind="observed", predicted=None)]
    text = "# Map\n\nSee {record}`9: a` and {record}`09-chapter: c`.\n"
    built = build({"map.md": text, "09-chapter.ipynb": notebook(*found)})
    assert not built.warnings
    page = BeautifulSoup(built.page("map"), "html.parser").get_text()
    assert "See a: 0.98 ± 0.08, predicted 1, 5 seeds and c: 0.98." in page
    assert 'href="09-chapter.html#evidence-a"' in built.page("map")


@pytest.mark.parametrize("named", ["9: d", "8: a"])
def test_a_record_that_is_not_there_fails_the_build(build, named):
    built = build({"map.md": f"# Map\n\n{{record}}`{named}`\n", "09-chapter.ipynb": notebook(evidence("a"))})
    assert f"no record {named!r}" in built.warnings and "map.md:3" in built.warnings


# --- what to remember -------------------------------------------------------------------------------------------------


def chapter(title: str, *cells: str) -> str:
    """Return a notebook of prose."""
    return nbformat.writes(
        nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_markdown_cell, (f"# {title}", *cells))])
    )


def test_the_sheet_has_the_list_of_every_chapter_and_nothing_else(build):
    files = {
        "sheet.md": "# Sheet\n\n```{sheet}\n```\n",
        "notebooks/12-twelve.ipynb": chapter(
            "Twelve", "Text.\n\n## What to remember\n\n- A $d$\n  and a half.\n- B.\n\nNext."
        ),
        "notebooks/02-two.ipynb": chapter("Two", "## What to remember\n\n- C.", "## Exercises\n\n- D."),
    }
    built = build(files)
    assert not built.warnings
    page = BeautifulSoup(built.page("sheet"), "html.parser").select_one("main article")
    heads = [(each.a.get_text(), each.a["href"]) for each in page.select("h2")]
    assert heads == [("2. Two", "notebooks/02-two.html"), ("12. Twelve", "notebooks/12-twelve.html")]
    assert [" ".join(each.get_text().split()) for each in page.select("li")] == ["C.", "A d and a half.", "B."]
    assert "Next" not in page.get_text()


@pytest.mark.parametrize("end", ["", "## What to remember\n\nProse.", "## Remember\n\n- A."])
def test_a_chapter_without_a_list_to_remember_fails_the_build(build, end):
    files = {"sheet.md": "# Sheet\n\n```{sheet}\n```\n", "notebooks/02-two.ipynb": chapter("Two", end, "- B.")}
    assert "notebooks/02-two has no list under a heading 'What to remember'" in build(files).warnings


def test_every_chapter_of_the_book_says_what_to_remember():
    found = {
        path.name: sheet.remembered(json.loads(path.read_bytes())) for path in (ROOT / "notebooks").glob("*.ipynb")
    }
    assert not [name for name, (title, points) in found.items() if not title or points.count("\n- ") < 2]


# --- the remedies -----------------------------------------------------------------------------------------------------

SYMPTOM = """
- symptom: It sinks
  see: One token gets all.
  faults: [attention sink]
  remedies:
    - of: sink
      records: ["9: a"]
      gain: lower
"""


@pytest.mark.parametrize(
    "interval, gain, said",
    [
        ((0.1, 0.3), "higher", "helps"),
        ((0.1, 0.3), "lower", "harms"),
        ((-0.3, -0.1), "lower", "helps"),
        ((-0.1, 0.3), "higher", "within the noise"),
        ((0.1, 0.3), "", "bounds it"),
    ],
)
def test_the_interval_of_a_difference_decides_what_a_remedy_did(interval, gain, said):
    low, high = interval
    record = records.Record(page="page", **one("a", measured=(low + high) / 2, low=low, high=high))
    assert remedies.verdict(record, gain, "bounds it") == said


def test_a_level_that_differs_from_its_formula_is_no_success():
    assert remedies.verdict(records.Record(page="page", **one("a", passed=False)), "", "bounds it") == "not as said"


def test_the_page_of_remedies_names_causes_records_and_what_was_not_measured(build):
    pages = {"index.md": "# R\n\n```{remedies}\n```\n", "09-chapter.ipynb": notebook(evidence("a", low=0.9, high=1.1))}
    built = build(pages, remedies=SYMPTOM)
    assert not built.warnings
    text = BeautifulSoup(built.page("index"), "html.parser").get_text()
    assert "harms" in text and "attention sink" in text and "a:" in text
    assert "not measured here:" in text and "softpick" in text.split("not measured here:")[1]
    assert "qk_norm" not in text, "It is made for another fault."


@pytest.mark.parametrize(
    "right, wrong, message",
    [
        ("attention sink", "attention drain", "names faults that diagnose does not know"),
        ("of: sink", "of: sinks", "'sinks' is neither a method nor a scheme"),
        ("lower", "down", "gain must be one of"),
        ("gain: lower", "says: ''", "must have one of gain and says"),
        ('["9: a"]', "[]", "'sink' of 'It sinks' has no record"),
        ("remedies:", "remedy:", r"remedies\.yml must be a list of symptoms"),
    ],
)
def test_a_remedy_that_cannot_be_trusted_is_refused(tmp_path, right, wrong, message):
    path = tmp_path / "remedies.yml"
    path.write_text(SYMPTOM.replace(right, wrong), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        remedies.read_symptoms(path)


def test_a_remedy_without_its_record_fails_the_build(build):
    pages = {"index.md": "# R\n\n```{remedies}\n```\n", "09-chapter.ipynb": notebook(evidence("b"))}
    assert "no record '9: a'" in build(pages, remedies=SYMPTOM).warnings


def test_a_book_without_the_ledger_asks_for_no_evidence(build):
    assert not build({"chapter.ipynb": notebook()}, ledger=LEDGER).warnings


def verdict(*found: dict) -> claims.Verdict:
    claim = claims.Claim("C01", "1", "One.", later="part III")
    (said,) = evidence("name")["data"][MIME]
    return claims.Verdict(claim, [records.Record(page="page", **said | record) for record in found])


@pytest.mark.parametrize(
    "found, kind, text",
    [
        ([], "later", "waits for part III"),
        ([{}], "holds", "holds"),
        ([{"when": "n is small"}], "holds", "holds"),
        ([{"supports": False}], "fails", "fails"),
        ([{"when": "n is small"}, {"supports": False, "when": "n is large"}], "mixed", "holds when n is small"),
        ([{"when": "a"}, {"when": "b"}, {"when": "a"}, {"supports": False}], "mixed", "holds when a; or when b"),
        ([{}, {"supports": False}], "mixed", "holds in part"),
    ],
)
def test_the_verdict_is_what_all_records_say(found, kind, text):
    assert (verdict(*found).kind, verdict(*found).text) == (kind, text)


def test_the_verdicts_are_counted():
    later = claims.Verdict(claims.Claim("C02", "1", "Two.", "part III"))
    expected = "Of 2 claims, 1 holds, none holds under a condition, and none fails. Waiting for more: C01, C02."
    assert claims.summarize([verdict({}), later]) == expected


def test_records_are_those_of_the_outputs():
    said = evidence("σ < 1 & “x's”", claim="C01", when='d > "4"')
    (record,) = records.read_records(json.loads(notebook({"data": {"text/plain": "1"}}, said)), "page")
    assert (record.page, record.name, record.when) == ("page", "σ < 1 & “x's”", 'd > "4"')
    assert record.anchor == f"evidence-{record.slug}"


@pytest.mark.parametrize("text", ["1", "- {id: C01}", "- {id: C01, section: '1', text: t, verdict: holds}", "- [a", ""])
def test_a_malformed_list_of_claims_is_refused(tmp_path, text):
    path = tmp_path / "claims.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"claims\.yml must be a list of claims"):
        claims.read_claims(path)


def test_a_claim_listed_twice_is_refused(tmp_path):
    path = tmp_path / "claims.yml"
    path.write_text("- {id: C01, section: '1', text: a}\n- {id: C01, section: '1', text: b}\n")
    with pytest.raises(ConfigError, match="the claim C01 2 times"):
        claims.read_claims(path)


def test_the_books_own_claims_are_fourteen_and_have_their_sections():
    found = claims.read_claims(ROOT / "book" / "claims.yml")
    article = (ROOT / "book" / "article.md").read_text(encoding="utf-8")
    assert [claim.id for claim in found] == [f"C{number:02d}" for number in range(1, 15)]
    missing = [claim.anchor for claim in found if f"({claim.anchor})=" not in article]
    assert not missing, f"book/article.md lacks these anchors: {missing}"


# --- formulas ---------------------------------------------------------------------------------------------------------

FORMULAS = [
    r"\operatorname{softmax}\!\left(\frac{QK^\top}{\sqrt{d_k}}\right) V",
    r"W_{ij} \sim \mathcal{N}\!\left(0,\; \frac{2\,g^2}{\text{fan\_in} + \text{fan\_out}}\right)",
    r"\omega_i^2 = 1 + \sum_{j<i} \operatorname{Var} f_j",
    r"\begin{aligned} a &= b \\ &= c + \frac{d}{e} \end{aligned}",
    r"\begin{align} a &= b \\ c &= d \end{align}",
    r"\begin{split} a &= b \\ c &= d \end{split}",
    r"\begin{pmatrix} 1 & \cdots \\ \vdots & \ddots \end{pmatrix}",
    r"\begin{cases} 1 & i = j \\ 0 & \text{otherwise} \end{cases}",
    r"\hat H = H / \ln n, \quad \lVert X - \mathbf{1}\bar x^\top \rVert_F",
    r"\underbrace{x^\top M x'}_{\text{logit}}, \; \mathbb{E}[\Sigma] \approx \argmax_x f",
    r"\sum_{\substack{i \\ j}} x",
    r"\left. \frac{\partial f}{\partial x} \right|_{x=0} \in \mathbb{R}^{n \times d}, \; \bm\theta",
]


@pytest.mark.parametrize("latex", FORMULAS)
def test_the_formulas_of_the_book_become_mathml(latex):
    found = mathml.to_mathml(latex, display=True)
    assert found.startswith('<math display="block"')
    assert "\\" not in re.sub(r"<[^>]*>", "", found), "no LaTeX is left"


@pytest.mark.parametrize("latex", [r"\unknown x", r"\frac{a", r"x_a_b", r"\begin{aligned} a", r"\text{fan_in}"])
def test_a_formula_that_cannot_be_converted_is_an_error(latex):
    with pytest.raises(ValueError, match="cannot be converted to MathML"):
        mathml.to_mathml(latex, display=True)


@pytest.mark.parametrize("wrong", ["$\\nonsense x$", "$$\n\\frac{a\n$$"])
def test_a_formula_that_cannot_be_converted_is_a_warning_of_the_build(build, wrong):
    assert "cannot be converted to MathML" in build({"index.md": f"# Book\n\n{wrong}\n"}).warnings


def test_equations_are_numbered_once_and_can_be_referred_to(build):
    text = "# Book\n\n$$\na = b\n$$ (first)\n\nBy {eq}`first`.\n\n\\begin{align}\nc &= d \\\\ e &= f\n\\end{align}\n"
    page = build({"index.md": text}).page("index")
    assert re.findall(r'class="eqno">\((\d)\)', page) == ["1", "2"]
    assert re.search(r'href="#equation-first"[^>]*>.*?\(?1\)?</', page)
    assert 'id="equation-first"' in page


def test_the_font_has_what_the_pages_use_and_little_else(build):
    built = build({"index.md": "# Book\n\n$\\hat\\sigma^2 \\le \\mathcal{N}(0, 1)$\n"})
    font = built.out / "_static" / mathfont.NAME
    assert not built.warnings
    assert font.stat().st_size < 40_000 < mathfont.source().stat().st_size
    from fontTools.ttLib import TTFont

    assert {ord("𝜎"), ord("≤"), ord("𝒩"), ord("0")} <= set(TTFont(font).getBestCmap())
    assert "MATH" in TTFont(font)
    assert "Open Font License" in TTFont(font)["name"].getDebugName(13), "the licence stays in the file"


def test_the_root_sign_has_a_form_for_every_height():
    """A browser takes the smallest that is tall enough: one too tall sits low, one too wide leaves a hole behind it."""
    from fontTools.ttLib import TTFont

    font = TTFont(BytesIO(mathfont.reduce({"√", "n"})[0]))
    variants = font["MATH"].table.MathVariants
    sign = font.getBestCmap()[ord("√")]
    forms = variants.VertGlyphConstruction[variants.VertGlyphCoverage.glyphs.index(sign)]
    names = [record.VariantGlyph for record in forms.MathGlyphVariantRecord]
    heights = [font["glyf"][name].yMax - font["glyf"][name].yMin for name in names]
    assert names[0] == sign and heights[0] <= 700, "√n is 0.7 em tall"
    assert heights[-1] >= 3800 and all(1 < b / a < 1.25 for a, b in pairwise(heights))
    for name in names:
        advance, bearing = font["hmtx"][name]
        glyph = font["glyf"][name]
        assert advance == mathfont.ROOT_WIDTH and bearing == glyph.xMin
        assert advance <= glyph.xMax <= advance + 60, "the bar begins on the tip of the sign"
    constants = font["MATH"].table.MathConstants
    assert constants.RadicalVerticalGap.Value >= 100, "what stands under the bar does not touch it"


def test_a_character_that_the_font_lacks_is_reported():
    assert mathfont.reduce({"a", "龘"})[1] == {"龘"}


# --- images -----------------------------------------------------------------------------------------------------------


def test_an_output_image_keeps_its_alternative_text(build):
    about = {"alt": 'Points < the "line"', "width": 480, "height": 300}
    picture = {"data": {"image/png": PNG}, "metadata": {"image/png": about}}
    built = build({"chapter.ipynb": notebook(picture)})
    assert 'alt="Points &lt; the &quot;line&quot;"' in built.page("chapter")
    assert 'loading="lazy"' in built.page("chapter") and 'width="1"' in built.page("chapter")
    assert 'style="' not in built.page("chapter").split("<main")[1], "a size in a style does not shrink with the page"
    assert not built.warnings


@pytest.mark.parametrize(
    "files",
    [
        {"chapter.ipynb": notebook({"data": {"image/png": PNG}})},
        {"chapter.ipynb": notebook({"data": {"text/html": f'<img src="data:image/png;base64,{PNG}">'}})},
        {"chapter.ipynb": notebook({"data": {"text/html": "<figure><svg><path/></svg></figure>"}})},
        {"chapter.md": "# Chapter\n\n![](picture.png)\n"},
    ],
    ids=["output", "html", "drawing", "markdown"],
)
def test_an_image_without_alternative_text_is_a_warning(build, tmp_path, files):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "picture.png").write_bytes(__import__("base64").b64decode(PNG))
    assert "without alternative text" in build(files).warnings


def test_a_sharper_picture_is_not_a_larger_one(tmp_path):
    image = pytest.importorskip("PIL.Image").new("RGB", (300, 150))
    image.save(tmp_path / "sharp.png", dpi=(150, 150))
    image.save(tmp_path / "plain.png")
    assert figures.size(tmp_path / "sharp.png") == (192, 96)
    assert figures.size(tmp_path / "plain.png") == (300, 150)


# --- pages ------------------------------------------------------------------------------------------------------------


def test_a_page_asks_no_other_host(build):
    page = build({"chapter.ipynb": notebook(evidence("a"))}).page("chapter")
    assert not re.findall(r'(?:src|href)="(?:https?:)?//[^"]*"', page)


def test_the_explorers_script_is_on_the_pages_that_have_one(build):
    explorer = {"data": {"text/html": '<figure class="attntut-explorer"></figure>'}}
    built = build({"chapter.ipynb": notebook(explorer)})
    assert "explorer.js" in built.page("chapter")
    assert "explorer.js" not in built.page("index")
    for path in theme.explorer_files():
        assert (built.out / "_static" / path.name).read_bytes() == path.read_bytes()


def test_a_link_to_a_label_of_another_page_arrives(build):
    files = {"index.md": "# Book\n\n[there](chapter.md#article-3-1)\n", "chapter.md": "# C\n\n(article-3-1)=\n## D\n"}
    built = build(files)
    assert not built.warnings
    assert 'href="chapter.html#article-3-1"' in built.page("index")
    assert 'id="article-3-1"' in built.page("chapter")
    files["index.md"] = "# Book\n\n[nowhere](chapter.md#article-9)\n"
    assert "local id not found" in build(files).warnings


def test_tables_scroll_in_their_own_box(build):
    page = build({"index.md": "# Book\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"}).page("index")
    assert re.search(r'<div class="table-box"><table\b.*?</table></div>', page, re.DOTALL)


def test_a_notebook_can_be_downloaded_and_a_page_of_prose_cannot(build):
    built = build({"chapter.ipynb": notebook()})
    (address_,) = re.findall(r'href="([^"]*)" download', built.page("chapter"))
    assert nbformat.read(built.out / address_, as_version=4).cells
    assert " download" not in built.page("index")


# --- the repository ---------------------------------------------------------------------------------------------------


def test_without_an_address_no_button_points_anywhere(build):
    page = build({"chapter.ipynb": notebook()}).page("chapter")
    for host in ("github", "colab", "mybinder"):
        assert host not in page
    assert "og:image" not in page and "canonical" not in page


def test_with_an_address_the_buttons_point_to_it(build):
    built = build({"chapter.ipynb": notebook()}, repository="someone/book")
    page = built.page("chapter")
    assert 'href="https://github.com/someone/book/blob/main/chapter.ipynb"' in page
    assert 'href="https://colab.research.google.com/github/someone/book/blob/published/chapter.ipynb"' in page
    assert 'href="https://mybinder.org/v2/gh/someone/book/main?urlpath=lab/tree/chapter.ipynb"' in page
    assert "https://github.com/someone/book/issues/new" in page
    assert 'content="https://someone.github.io/book/_static/title-card.png"' in page
    assert '<link rel="canonical" href="https://someone.github.io/book/chapter.html">' in page
    assert "colab" not in built.page("index"), "a page of prose cannot be run"


def test_a_branch_another_server_and_a_site_of_ones_own():
    found = address.from_environment(
        {"GITHUB_REPOSITORY": "Me/me.github.io", "GITHUB_REF_NAME": "v1", "GITHUB_SERVER_URL": "https://git.example/"}
    )
    assert found is not None
    assert found.site == "https://me.github.io/"
    assert found.buttons("a b.md")[0]["url"] == "https://git.example/Me/me.github.io/blob/v1/a%20b.md"


@pytest.mark.parametrize("value", ["book", "a/b/c", "https://github.com/a/b", "a b/c"])
def test_an_address_that_is_none_is_refused(value):
    with pytest.raises(ConfigError, match="owner/name"):
        address.from_environment({"GITHUB_REPOSITORY": value})


# --- the book's own files ---------------------------------------------------------------------------------------------


def test_every_entry_of_the_bibliography_is_whole():
    database = importlib.import_module("pybtex.database")
    entries = database.parse_file(str(ROOT / "book" / "references.bib")).entries
    for key, entry in entries.items():
        assert entry.persons.get("author") and {"title", "year"} <= set(entry.fields), key
        assert str(entry.fields["year"]) in key, f"{key}: the key names another year than {entry.fields['year']}"


def test_the_style_sheets_have_both_palettes():
    style = (ROOT / "book" / "_static" / "book.css").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:data-theme=\"dark\"\]|not\(\[data-theme\]\)) \{(.*?)\n *\}", style, re.DOTALL)
    assert len(blocks) == 2 and blocks[0].split() == blocks[1].split(), "the two dark palettes differ"
    assert '[data-theme="dark"] .highlight .k' in theme.highlighting()


def palettes(style: str, prefix: str) -> list[list[str]]:
    """The colours of a style sheet's palettes, in order."""
    colours = re.findall(rf"--{prefix}\d: (#[0-9a-fA-F]+);", style)
    return [[colour.lower() for colour in colours[i : i + 6]] for i in range(0, len(colours), 6)]


def test_pages_figures_diagrams_and_explorers_share_one_palette():
    from attntut import explorer, plots

    read = lambda path: path.read_text(encoding="utf-8")  # noqa: E731
    book, drawings = read(ROOT / "book" / "_static" / "book.css"), read(ROOT / "book" / "diagrams" / "style.css")
    day, night, unset, printed = palettes(book, "c")
    assert night == unset and printed == day
    assert palettes(drawings, "c") == [day, night]
    assert palettes(read(Path(explorer.__file__).with_name("explorer.css")), "ax-") == [day, night]
    assert [*plots.COLORS] == day
    for colour, name in plots.VARIABLES.items():
        short = "#fff" if colour == "#ffffff" else colour
        assert f"{name}: {short};" in book.split("}")[1], f"{name} is another colour by day than in attntut.plots"
    both = [re.findall(r"--(?:text|muted|paper|panel|line|accent): #\w+;", style) for style in (drawings, book)]
    assert both[0] == both[1][: len(both[0])], "a drawing that is seen alone has other colours than the page"


def test_the_map_is_drawn_from_the_rules_and_asks_for_their_records(build, monkeypatch):
    rule = dict(take=["t5"], why="Take `t5` and `soft_cap`:", more="{record}`9: a`.")
    tables = [
        dict(id="first", title="Which?", bullets=True, answer=[dict(say="This.", go="second")]),
        dict(id="second", title="What?", answer=[dict(say="That.", rule=[rule], go="first"), dict(text="Nothing.")]),
        dict(id="last", title="Never", numbered=False, answer=[dict(rule=[dict(why="No `initialize_`.")])]),
    ]
    made = tuple(rules.read(tables))
    monkeypatch.setattr(questions, "questions", lambda: made)
    files = {
        "map.md": "# Map\n\n```{questions}\n```\n\n## After\n",
        "catalogue.md": "# C\n\n(t5)=\n## T5\n",
        "adjustments.md": "# A\n\n(soft_cap)=\n## S\n",
        "09-chapter.ipynb": notebook(evidence("a")),
    }
    built = build(files)
    assert not built.warnings
    page = BeautifulSoup(built.page("map"), "html.parser")
    headings = [heading.find(string=True) for heading in page.select("h2")]
    assert headings == ["1. Which?", "2. What?", "Never", "After"]
    (bullet,) = [each.get_text() for each in page.select("li") if "This." in each.get_text()]
    assert " ".join(bullet.split()) == "This. Question 2."
    assert "That. Take t5 and soft_cap: a: 0.98, predicted 1. Go on with question 1." in page.get_text()
    linked = {each.get_text(): each["href"] for each in page.select("p a")}
    assert linked["a"] == "09-chapter.html#evidence-a" and linked["question 1"] == "#map-first"
    assert linked["t5"].startswith("catalogue.html#") and linked["soft_cap"].startswith("adjustments.html#")
    assert "initialize_" not in linked
    missing = build(files | {"09-chapter.ipynb": notebook(evidence("b"))})
    assert "no record '9: a'" in missing.warnings and "map.md" in missing.warnings
