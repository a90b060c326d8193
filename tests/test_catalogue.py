"""The page of all schemes: what an entry shows, and what fails its cell."""

from __future__ import annotations

import doctest
import html
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="the extra `book` is not installed")
pytest.importorskip("math_core", reason="the extra `book` is not installed")

from small_book import build_book

from attntut.init import registry, schemes
from attntut.init.laws import Normal

ROOT = Path(__file__).resolve().parents[1]
EXTENSIONS = str(ROOT / "book" / "_ext")
sys.path.insert(0, EXTENSIONS)

from bookext import catalogue, drawn, entries  # noqa: E402
from bookext.address import Repository  # noqa: E402


@pytest.mark.parametrize("module", [catalogue, drawn])
def test_the_examples_run(module):
    assert not doctest.testmod(module).failed


# ----- prediction and measurement -----


@pytest.mark.parametrize("name", schemes())
def test_a_drawn_model_is_as_predicted(name):
    found = drawn.draw(schemes()[name])
    assert not found.problems
    assert set(found.std) == set(catalogue.ROLES), "the page has a row for every role, and the model has them all"


def scaled(factor: float):
    """A law of Xavier's that is wrong by a factor."""
    xavier = schemes()["xavier_normal"]
    return lambda weight: xavier.law(weight) * factor


def promise(weight) -> float:
    return schemes()["lecun_normal"].std(weight)


@pytest.mark.parametrize(
    "changes, messages",
    [
        (dict(predicts=lambda weight: 1.04 * promise(weight)), ["the role query: measured is 0.9"]),
        (
            dict(predicts=lambda weight: promise(weight) * (1.1 if weight.layer == 6 else 1)),
            ["the role value in block 6: measured is 0.9"],
        ),
        (dict(predicts=lambda weight: 0.0 if weight.role == "output" else promise(weight)), ["the role output"]),
        (dict(predicts=lambda weight: float("nan")), ["the role query: measured is nan"]),
        (dict(predicts_logits=lambda query, key, scale: 1.1), ["the logits: measured is 0.9"]),
        (dict(predicts_logits=lambda query, key, scale: 0.0), ["the logits: measured is inf"]),
        (dict(predicts_logits=lambda query, key, scale: 2.0), ["the logits", "exp(entropy)"]),
    ],
    ids=["4 % off", "one block of six", "not zero", "no number", "logits", "no logits", "entropy"],
)
def test_a_wrong_prediction_is_noticed(changes, messages):
    problems = "\n".join(drawn.draw(replace(schemes()["lecun_normal"], **changes)).problems)
    for message in messages:
        assert message in problems


@pytest.mark.parametrize("factor", [2**-0.5, 0.95, 1.05, 2**0.5])
def test_a_wrong_draw_is_noticed(monkeypatch, factor):
    right = schemes()["xavier_normal"]
    wrong = replace(right, function=scaled(factor), predicts=lambda weight: right.std(weight))
    monkeypatch.setitem(registry.SCHEMES, "xavier_normal", wrong)
    assert any("the role query" in problem for problem in drawn.draw(wrong).problems)


def test_what_depends_on_the_batch_is_not_predicted():
    found = drawn.draw(schemes()["lsuv"]).std
    assert found["output"].predicted is None
    assert found["query"].predicted == pytest.approx(1 / 8)


# ----- what an entry is made of -----


def test_the_page_has_a_cell_for_every_family():
    page = (ROOT / "book" / "catalogue.md").read_text(encoding="utf-8")
    shown = re.findall(
        r'^\(family-(\w+)\)=\n## \w+\n\n.{20,}\n\n```{code-cell}\n.*\nfamily\("(\w+)"\)\n', page, re.MULTILINE
    )
    assert shown == [(family, family) for family in registry.FAMILIES]


def test_the_chapters_treat_schemes_that_exist():
    known = {*schemes(), *registry.FAMILIES}
    for page, treated in catalogue.CHAPTERS.items():
        assert not {*treated} - known, f"{page} treats what is no scheme and no family: { ({*treated} - known) }"


def test_a_reference_to_the_code_leads_to_the_function(monkeypatch):
    scheme = schemes()["deepnorm"]
    assert catalogue.facts(scheme)["Code"] == "`attntut.init.depth.deepnorm`"
    monkeypatch.setenv("GITHUB_REPOSITORY", "owner/book")
    start, line = re.fullmatch(r"\[`.*`\]\((.*)#L(\d+)\)", catalogue.facts(scheme)["Code"]).groups()
    assert start == "https://github.com/owner/book/blob/main/attntut/init/depth.py"
    source = (ROOT / "attntut" / "init" / "depth.py").read_text(encoding="utf-8").splitlines()
    below = source[int(line) - 1 : int(line) + 12]
    assert below[0] == "@scheme(" and "def deepnorm(weight: Weight) -> Law:" in below


@pytest.mark.parametrize(
    "name, source",
    [
        ("xavier_normal", "{cite:t}`glorot2010understanding`."),
        ("zeros", "a demonstration; {cite:t}`rumelhart1986learning` describe the problem."),
        (
            "torch_default",
            "{cite:t}`paszke2019pytorch`; torch.nn.Linear.reset_parameters; torch.nn.Embedding.reset_para…",
        ),
    ],
)
def test_the_citation_takes_the_place_of_authors_and_year(name, source):
    assert catalogue.facts(schemes()[name])["Source"].startswith(source.rstrip("…"))


@pytest.mark.parametrize("logit_std", [0.0, 0.005, 1.0, 500.0])
def test_the_picture_stays_in_its_frame(logit_std):
    assert 6 < float(catalogue.x(logit_std)) < 234
    assert 6 < float(catalogue.y(drawn.gaussian_entropy(logit_std))) < 86


# ----- the page -----

BIBLIOGRAPHY = """
@book{wang2022deepnet, author = {Wang, Hongyu and Ma, Shuming and Wei, F}, title = {D}, year = {2022}, publisher = {P}}
@book{paszke2019pytorch, author = {Paszke, Adam}, title = {P}, year = {2019}, publisher = {P}}
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A function that builds a book with a catalogue of a few schemes: its page, and the warnings."""
    for name in ("GITHUB_REPOSITORY", "GITHUB_SERVER_URL", "GITHUB_REF_NAME"):
        monkeypatch.delenv(name, raising=False)

    monkeypatch.setattr(catalogue, "CHAPTERS", {})

    def run(*shown, pages: dict[str, str] | None = None) -> tuple[str, str]:
        monkeypatch.setattr(catalogue, "schemes", lambda: {scheme.name: scheme for scheme in shown})
        outputs = [catalogue.head().data, *(catalogue.family(name).data for name in registry.FAMILIES)]
        files = {
            "index.md": "# Book\n\n[one](catalogue.md#deepnorm)\n\n```{toctree}\n:glob:\n**\n```\n",
            "catalogue.md": "\n\n".join(["# Catalogue", *outputs]),
            "sources.md": "# Sources\n\n```{bibliography}\n```\n",
            "references.bib": BIBLIOGRAPHY,
            **(pages or {}),
        }
        built = build_book(
            tmp_path,
            files,
            extensions=["myst_nb", "sphinxcontrib.bibtex", "bookext"],
            bibtex_bibfiles=["references.bib"],
            bibtex_reference_style="author_year",
        )
        return built.page("catalogue"), built.warnings

    return run


DEEPNORM, DEFAULT = schemes()["deepnorm"], schemes()["torch_default"]


def text(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_the_page_shows_what_the_registry_says(build):
    page, warnings = build(DEEPNORM, DEFAULT)
    assert not warnings, "the entry's name is an anchor that links may name, and nothing else is amiss"
    assert len(re.findall(r"<article class=\"entry\"", page)) == 2
    entry = page.split('id="deepnorm"')[1].split("</article>")[0]
    assert '<article class="entry" data-family="depth" data-needs="post-LN|residual scale" id="deepnorm">' in page
    assert "<h3><code>deepnorm</code>" in entry and ">2022</span>" in entry
    assert entry.count('<math display="block"') == 2, "the two parts of the formula"
    words = text(entry)
    assert DEEPNORM.why in words
    for need in DEEPNORM.requires:
        assert need in words
    assert "its scale makes up for the gradients" in words, "the reason of a requirement"
    assert re.search(r'Wang <em>et al.</em> \[<a [^>]*href="sources.html#[^"]+"[^>]*>2022</a>', entry)
    assert "figure 2 and section 4" in words and words.count("2022") == 2, "the words of the source have no second year"
    assert re.search(r"value 0\.0475 0\.04[78]\d?", words), "predicted and measured"
    assert re.search(r"logits 1\.00 (1\.0|0\.9)\d", words) and re.search(r"entropy, nats 3\.\d\d 3\.\d\d", words)
    assert 'role="img" aria-label="Spread of the logits' in entry
    assert "attntut.init.depth.deepnorm" in words and "https://" not in entry, "no address of the code is known"
    assert "Chapter" not in words, "no chapter treats it"
    assert "catalogue.js" in page and "catalogue.css" in page


def test_links_to_chapters_and_code_that_exist(build, monkeypatch):
    monkeypatch.setattr(catalogue, "CHAPTERS", {"chapters/one": ("fan",)})
    monkeypatch.setattr(entries, "from_environment", lambda environment: Repository("owner", "book"))
    page, warnings = build(DEFAULT, DEEPNORM, pages={"chapters/one.md": "# The first chapter\n"})
    assert not warnings
    entry = page.split('id="torch_default"')[1].split("</article>")[0]
    assert 'href="chapters/one.html"' in entry and "The first chapter" in entry
    assert 'href="https://github.com/owner/book/blob/main/attntut/init/fan.py#L' in entry


def test_the_form_is_for_scripts_only_and_counts(build):
    page, _ = build(DEEPNORM, DEFAULT)
    form = page.split('<form class="catalogue-filter" hidden')[1].split("</form>")[0]
    assert [*re.findall(r'name="family" value="(\w*)"', form)] == ["", "fan", "depth"]
    assert [*re.findall(r'<option value="([^"]*)"', form)] == ["", "nothing", "post-LN", "residual scale"]
    assert "depth (1)" in form and "none (1)" in form
    assert '<p class="catalogue-count" role="status">2 schemes</p>' in page


@pytest.mark.parametrize(
    "changes",
    [dict(predicts=lambda weight: 0.3), dict(function=lambda weight: Normal(0.02))],
    ids=["prediction", "draw"],
)
def test_a_scheme_that_does_not_keep_its_promise_fails_its_cell(changes):
    with pytest.raises(ArithmeticError, match="deepnorm does not keep its promise: the weights of the role"):
        catalogue.entry(replace(DEEPNORM, **changes))


@pytest.mark.parametrize(
    "changes, message",
    [(dict(cite="wang2099nothing"), "wang2099nothing"), (dict(formula=r"\nonsense x"), "cannot be converted")],
    ids=["citation", "LaTeX"],
)
def test_what_the_page_cannot_show_is_a_warning(build, changes, message):
    assert message in build(replace(DEEPNORM, **changes))[1]
