"""The page of all methods of adjustment: what an entry shows, and what fails its build."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="the extra `book` is not installed")
pytest.importorskip("math_core", reason="the extra `book` is not installed")

from small_book import build_book
from test_catalogue import text

from attntut.adjust import adjustments, registry
from attntut.diagnose.faults import faults, table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from bookext import methods  # noqa: E402

PAGE = (ROOT / "book" / "adjustments.md").read_text(encoding="utf-8")
BIBLIOGRAPHY = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
FAULTS = "\n\n".join(f'<span id="{row["id"]}"></span>{row["finding"]}' for row in table())


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A function that builds a book with the catalogue of some methods (of all): its page, and the warnings."""
    for name in ("GITHUB_REPOSITORY", "GITHUB_SERVER_URL", "GITHUB_REF_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(methods, "CHAPTERS", {})

    def run(*shown) -> tuple[str, str]:
        if shown:
            monkeypatch.setattr(methods, "adjustments", lambda: {method.name: method for method in shown})
        outputs = [methods.head().data, *(methods.family(name).data for name in registry.FAMILIES)]
        built = build_book(
            tmp_path,
            {
                "index.md": "# Book\n\n[one](adjustments.md#soft_cap)\n\n```{toctree}\n:glob:\n**\n```\n",
                "adjustments.md": "\n\n".join(["# Catalogue", *outputs]),
                "diagnose.md": f"# Diagnosis\n\n{FAULTS}\n",
                "sources.md": "# Sources\n\n```{bibliography}\n```\n",
                "references.bib": BIBLIOGRAPHY,
            },
            extensions=["myst_nb", "sphinxcontrib.bibtex", "bookext"],
            bibtex_bibfiles=["references.bib"],
            bibtex_reference_style="author_year",
        )
        return built.page("adjustments"), built.warnings

    return run


def test_the_page_has_a_cell_for_every_family():
    shown = re.findall(
        r'^\(family-(\w+)\)=\n## \w+\n\n.{20,}\n\n```{code-cell}\n.*\nfamily\("(\w+)"\)\n', PAGE, re.MULTILINE
    )
    assert shown == [(family, family) for family in registry.FAMILIES]


def test_every_method_is_on_the_page_once_with_all_that_it_says(build):
    page, warnings = build()
    assert not warnings, "every citation, formula and link is known"
    assert re.findall(r'<article class="entry" [^>]*id="(\w+)"', page) == [*adjustments()]
    for name, method in adjustments().items():
        entry = page.split(f'id="{name}"')[1].split("</article>")[0]
        words = text(entry).replace("’", "'")
        assert method.why in words and method.call in words and f">{method.year}</span>" in entry
        assert 'display="block"' in entry and method.function.__module__ in words
        assert not method.cite or 'href="sources.html#' in entry
        for fault in method.treats:
            row = next(row for row in table() if row["finding"] == fault)
            assert f'href="diagnose.html#{row["id"]}"' in entry
        for other, why in method.conflicts.items():
            assert why in words and (other not in adjustments() or f'href="#{other}"' in entry)
        assert all(option in words for option in method.options)
        assert all(need in words for need in method.requires)
    assert "catalogue.js" in page and "catalogue.css" in page


def test_the_chapters_treat_methods_that_exist():
    known = {*adjustments(), *registry.FAMILIES}
    for page, treated in methods.CHAPTERS.items():
        assert not {*treated} - known, f"{page} treats what is no method and no family: { ({*treated} - known) }"
    assert methods.facts(adjustments()["noam"])["Chapter"] == "{doc}`/notebooks/13-the-first-steps`"


def test_a_clash_stands_with_both_methods():
    both = [methods.facts(adjustments()[name])["Clashes"] for name in ("qk_norm", "soft_cap")]
    assert "#soft_cap" in both[0] and "#qk_norm" in both[1]


def test_the_form_is_for_scripts_only_and_counts():
    page = methods.head().data
    form = page.split('<form class="catalogue-filter" hidden')[1].split("</form>")[0]
    present = {method.family for method in adjustments().values()}
    assert re.findall(r'name="family" value="(\w*)"', form) == ["", *(f for f in registry.FAMILIES if f in present)]
    treated = {fault for method in adjustments().values() for fault in method.treats}
    assert re.findall(r'<option value="([^"]*)"', form) == ["", "nothing", *(f for f in faults() if f in treated)]
    untreating = sum(not method.treats for method in adjustments().values())
    assert '<select name="treats">' in form and f"none ({untreating})" in form
    assert f'<p class="catalogue-count" role="status">{len(adjustments())} methods</p>' in page


def test_every_fault_has_a_place_of_its_own():
    identifiers = [row["id"] for row in table()]
    assert len({*identifiers}) == len(identifiers) and all(re.fullmatch(r"[\w-]+", each) for each in identifiers)
    assert "id=\\\"{fault['id']}\\\"" in (ROOT / "book" / "diagnose.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "changes, message",
    [(dict(cite="nobody2099nothing"), "nobody2099nothing"), (dict(formula=r"\nonsense x"), "cannot be converted")],
    ids=["citation", "LaTeX"],
)
def test_what_the_page_cannot_show_is_a_warning(build, changes, message):
    assert message in build(replace(adjustments()["soft_cap"], **changes))[1]


def test_a_fault_that_is_unknown_fails_its_cell():
    with pytest.raises(KeyError, match="no such fault"):
        methods.facts(replace(adjustments()["soft_cap"], treats=("no such fault",)))
