"""The page of all schemes: what an entry shows, and what fails the build."""

from __future__ import annotations

import doctest
import html
import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="the extra `book` is not installed")
pytest.importorskip("math_core", reason="the extra `book` is not installed")

from small_book import build_book
from sphinx.errors import ExtensionError

import attntut.init
from attntut.init import registry, schemes
from attntut.init.laws import Normal

ROOT = Path(__file__).resolve().parents[1]
EXTENSIONS = str(ROOT / "book" / "_ext")
sys.path.insert(0, EXTENSIONS)

from bookext import catalogue, drawn  # noqa: E402
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


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"formula": " "}, "deepnorm has no formula"),
        ({"source": ""}, "deepnorm has no source"),
        ({"why": ""}, "deepnorm has no reason"),
        ({"formula": r"\nonsense x"}, "deepnorm: this formula cannot be converted"),
        ({"cite": "nobody2099nothing"}, "deepnorm cites 'nobody2099nothing', which the bibliography does not have"),
    ],
    ids=["formula", "source", "why", "LaTeX", "cite"],
)
def test_an_entry_that_lacks_something_is_named(changes, message):
    found = schemes()
    assert not catalogue.problems_of(found, {scheme.cite for scheme in found.values()})
    broken = {**found, "deepnorm": replace(found["deepnorm"], **changes)}
    (problem,) = catalogue.problems_of(broken, {scheme.cite for scheme in found.values()})
    assert problem.startswith(message)


def test_the_pieces_of_a_formula_lose_nothing_but_the_gaps():
    for scheme in schemes().values():
        assert "quad" not in "".join(catalogue.pieces(scheme.formula)), scheme.name
        kept = re.sub(r"[\s,]", "", "".join(catalogue.pieces(scheme.formula)))
        assert kept == re.sub(r"\\q?quad|[\s,]", "", scheme.formula), scheme.name


def test_the_chapters_treat_schemes_that_exist():
    known = {*schemes(), *registry.FAMILIES}
    for page, treated in catalogue.CHAPTERS.items():
        assert not {*treated} - known, f"{page} treats what is no scheme and no family: { ({*treated} - known) }"


def test_every_family_has_a_summary():
    for family in registry.FAMILIES:
        summary = (import_module(f"attntut.init.{family}").__doc__ or "").split("\n\n")[0]
        assert len(summary) > 20, f"attntut/init/{family}.py should begin by saying what it holds."


def test_a_reference_to_the_code_leads_to_the_function():
    scheme = schemes()["deepnorm"]
    assert catalogue.code_of(scheme, None) == ("attntut.init.depth.deepnorm", "")
    name, address = catalogue.code_of(scheme, Repository("owner", "book"))
    start, line = address.split("#L")
    assert start == "https://github.com/owner/book/blob/main/attntut/init/depth.py"
    source = (ROOT / "attntut" / "init" / "depth.py").read_text(encoding="utf-8").splitlines()
    below = source[int(line) - 1 : int(line) + 12]
    assert below[0] == "@scheme(" and "def deepnorm(weight: Weight) -> Law:" in below


@pytest.mark.parametrize("logit_std", [0.0, 0.005, 1.0, 500.0])
def test_the_picture_stays_in_its_frame(logit_std):
    at = drawn.Pair(logit_std, logit_std), drawn.Pair(drawn.gaussian_entropy(logit_std), 2.0)
    picture = catalogue.picture(*at, n_keys=64)
    for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', picture):
        assert 6 < float(x) < 234 and 6 < float(y) < 86
    assert 'role="img"' in picture and "entropy 48% of ln n" in picture


def test_a_book_without_the_catalogue_needs_no_torch():
    code = "import sys, bookext.catalogue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=EXTENSIONS, check=False).returncode == 0


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

    def run(*shown, pages: dict[str, str] | None = None) -> tuple[str, str]:
        found = {scheme.name: scheme for scheme in shown}
        monkeypatch.setattr(attntut.init, "schemes", lambda: found)
        files = {
            "index.md": "# Book\n\n```{toctree}\n:glob:\n**\n```\n",
            "catalogue.md": "# Catalogue\n\n```{catalogue}\n```\n\n[one](#deepnorm)\n",
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
    unresolved = [line for line in warnings.splitlines() if "#deepnorm" not in line]
    assert not unresolved, "the entry's name is an anchor that links may name, and nothing else is amiss"
    assert len(re.findall(r"<article class=\"scheme\"", page)) == 2
    entry = page.split('id="deepnorm"')[1].split("</article>")[0]
    assert '<article class="scheme" data-family="depth" data-needs="post-LN|residual scale" id="deepnorm">' in page
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


def test_a_source_that_names_no_authors_gets_the_citation_in_front(build):
    page, _ = build(DEFAULT)
    assert "Paszke [ 2019 ]; torch.nn.Linear.reset_parameters" in text(page).replace(" ;", ";")


def test_links_to_chapters_and_code_that_exist(build, monkeypatch):
    monkeypatch.setattr(catalogue, "CHAPTERS", {"chapters/one": ("fan",), "chapters/none": ("fan", "depth")})
    monkeypatch.setattr(catalogue, "from_environment", lambda environment: Repository("owner", "book"))
    page, warnings = build(DEFAULT, DEEPNORM, pages={"chapters/one.md": "# The first chapter\n"})
    assert "chapters/none" not in page + warnings
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


def no_law(weight):
    raise ArithmeticError("there is no such weight")


@pytest.mark.parametrize(
    "broken, message",
    [
        (replace(DEEPNORM, formula=""), "deepnorm has no formula"),
        (replace(DEEPNORM, source=""), "deepnorm has no source"),
        (replace(DEEPNORM, cite="nobody"), "deepnorm cites 'nobody'"),
        (replace(DEEPNORM, function=no_law), "deepnorm has no measurement: ArithmeticError: there is no such weight"),
        (replace(DEEPNORM, predicts=lambda weight: 0.3), "deepnorm does not keep its promise: the weights of the role"),
        (replace(DEEPNORM, function=lambda weight: Normal(0.02)), "deepnorm does not keep its promise: the weights"),
    ],
    ids=["formula", "source", "citation", "measurement", "prediction", "draw"],
)
def test_a_catalogue_that_cannot_be_trusted_fails_the_build(build, monkeypatch, broken, message):
    with pytest.raises(ExtensionError, match="The catalogue cannot be shown") as caught:
        build(broken, DEFAULT)
    assert message in str(caught.value)
    assert "torch_default" not in str(caught.value)
