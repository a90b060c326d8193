"""A report as text, as HTML, as a table and as a figure."""

import io
import json
import math

import matplotlib as mpl
import pytest
import torch
from bs4 import BeautifulSoup
from rich.console import Console
from rich.text import Text

from attntut import Transformer, TransformerConfig, plots
from attntut.diagnose import Report, diagnose, draw, render
from attntut.evidence import number

NASTY = '<script>alert("1")</script>&amp;'


def row(layer="blocks.0.attention", head=0, **changes):
    usual = dict(n_query=32, n_key=32, calls=1, logit_mean=0.0, logit_std=0.5, logit_max=2.0, entropy=3.4)
    usual |= dict(entropy_share=0.97, max_weight=0.1, saturated=0.0, first=0.03, self=0.03, rank_residual=0.9)
    return dict(layer=layer, kind="self", head=head, **usual, token_cosine=0.1, non_finite=0, masked_rows=0) | changes


@pytest.fixture(scope="module")
def ill():
    """A real report with findings, gradients and a stream."""
    torch.manual_seed(0)
    config = TransformerConfig(n_classes=5, vocab_size=20, seq_len=16, n_layers=3, pooling="none")
    model = Transformer(config, seed=0)
    with torch.no_grad():
        model.blocks[1].attention.query.weight.mul_(30)
        model.blocks[2].attention.query.weight.zero_(), model.blocks[2].attention.query.bias.zero_()
    return diagnose(model, torch.randint(20, (4, 16)), loss=lambda output: output.square().mean())


@pytest.fixture(scope="module")
def nasty():
    """Names that would be code in a page, and a finding about them."""
    rows = [row(NASTY + "." * 200, saturated=0.9), row("(function)", kind="cross", self=math.nan)]
    return Report(rows=rows, notes=[NASTY], model=dict(name=NASTY, parameters=10**9, steps=3))


@pytest.fixture(scope="module")
def page(ill):
    return BeautifulSoup(render.html(ill), "html.parser")


@pytest.mark.parametrize("width", [40, 53, 80, 120])
def test_no_line_is_longer_than_the_width(ill, nasty, width):
    for report in (ill, nasty, Report(), Report(notes=["x" * 500])):
        for shown in (render.text(report, width), render.comparison(report, report, width)):
            longest = max(shown.splitlines(), key=len, default="")
            assert len(longest) <= width, longest


def test_text_says_what_was_found_and_measured(ill):
    shown = render.text(ill, 100)
    assert shown.startswith("Transformer: 3 attention layers")
    assert "WARNING: logits too large in blocks.1.attention" in shown
    assert "WARNING: attention uniform in blocks.2.attention" in shown
    assert "Read: notebooks/06-the-gaussian.html" in shown
    table = shown[shown.index("layer  ") :].splitlines()
    assert [line.split()[0] for line in table[:4]] == [
        "layer",
        "blocks.0.attention",
        "blocks.1.attention",
        "blocks.2.attention",
    ]
    assert str(ill) == render.text(ill)


def test_the_most_important_columns_stay_where_there_is_little_room(ill):
    narrow, wide = (render.text(ill, width).split("layer  ")[-1].splitlines()[0] for width in (40, 120))
    assert "logit std" in narrow and "cosine" not in narrow
    assert "∇q/∇v" in wide and "cosine" in wide


def test_names_are_shown_in_full(nasty):
    """Where all columns do not fit beside them, the last ones go; where two do not, a name takes several lines."""
    layers = [f"decoder.block.{i}.layer.{j}.SelfAttention" for i in (0, 1) for j in (0, 1)]
    report = Report(rows=[row(layer) for layer in layers])
    lines = render.text(report, 62).splitlines()
    assert lines[4].split() == "layer heads keys logit std".split()
    assert [line.split()[0] for line in lines[5:]] == layers
    for width in (40, 60):
        shown = render.text(nasty, width).splitlines()
        start = next(i for i, line in enumerate(shown) if line.startswith("layer  "))
        column = shown[start].index("heads") - 2
        assert "".join(line[:column].rstrip() for line in shown[start + 1 :]).startswith(NASTY + "." * 200)


def test_a_terminal_gets_colours_and_text_none(ill, monkeypatch):
    """The same text everywhere, also where a terminal is forced upon it."""
    plain = render.text(ill, 72)
    for forced in ("", "1"):
        monkeypatch.setenv("FORCE_COLOR", forced)
        assert render.text(ill, 72) == plain and "\x1b" not in plain
        console = Console(file=io.StringIO(), width=72, color_system="standard" if forced else None)
        console.print(ill)
        shown = console.file.getvalue()
        assert ("\x1b[1;33mWARNING:\x1b[0m" in shown) == bool(forced)
        assert [line.rstrip() for line in Text.from_ansi(shown).plain.splitlines()] == plain.splitlines()


def test_text_of_a_model_without_attention():
    report = diagnose(torch.nn.Linear(2, 2), torch.ones(1, 2))
    shown = render.text(report)
    assert "no attention layers" in shown and "Note: No attention was seen" in shown.replace("\n  ", " ")


def test_html_is_escaped(nasty):
    page = BeautifulSoup(render.html(nasty), "html.parser")
    assert not page.find_all("script"), "A name of a layer became code."
    assert NASTY in page.get_text() and page.find("img")["alt"].count("<script>") == 1
    assert any(th.get_text().startswith(NASTY) for th in page.find_all("th"))


def test_html_is_one_element_and_asks_nothing_of_the_network(page):
    assert [each.name for each in page.children] == ["div"]
    for tag in page.find_all(True):
        for attribute in ("src", "href", "srcset", "data", "action"):
            value = tag.get(attribute, "data:")
            assert value.startswith("data:"), f"<{tag.name} {attribute}={value[:60]!r}> leads out of the page."
    assert not page.find_all(["link", "iframe", "script"])
    assert "url(" not in page.find("style").get_text() and "@import" not in page.find("style").get_text()


def test_html_has_a_table_in_its_own_scrolling_box(page):
    for table in page.find_all("table"):
        assert "scroll" in table.parent["class"] and table.parent["tabindex"] == "0" and table.parent["aria-label"]
    assert ".scroll {overflow-x: auto" in page.find("style").get_text()
    layers, heads = page.find_all("table")
    assert len(layers.find_all("tr")) == 1 + 3 and len(heads.find_all("tr")) == 1 + 3 * 4
    assert all(th["scope"] in ("row", "col") for th in page.find_all("th"))


def luminance(color):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in mpl.colors.to_rgb(color)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_html_takes_the_colours_of_the_page_or_brings_both(page):
    """Legible in the dark: text is inherited, and a badge has its own ground with a contrast of 4.5 at least."""
    style = page.find("style").get_text().strip().replace("\n", "")
    rules = dict(rule.strip().split(" {") for rule in style.split("}") if rule)
    for selector, body in rules.items():
        colors = [part.strip() for part in body.split(";") if part.strip().startswith("color:")]
        assert all(color == "color: inherit" for color in colors) or "background: #" in body, selector
    grounds = [body.split("background: ")[1] for selector, body in rules.items() if body.startswith("background: #")]
    grounds += [rules[".attntut-report .badge"].split("background: ")[1]]
    assert len(grounds) == 3
    assert min(1.05 / (luminance(ground) + 0.05) for ground in grounds) >= 4.5


def test_html_links_to_the_book_when_told_where_it_is(ill):
    page = BeautifulSoup(render.html(ill, book="..", figure=False), "html.parser")
    links = {a["href"] for a in page.find_all("a")}
    assert links == {f"../{finding.chapter}" for finding in ill.findings} and len(links) > 0
    assert not page.find_all("img")


def test_notebooks_show_the_html():
    report = Report(notes=["nothing"])
    assert report._repr_html_() == render.html(report)


def test_the_figure_brings_its_alternative_text(ill):
    figure = ill.plot()
    assert isinstance(figure, mpl.figure.Figure)
    data, metadata = figure._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == figure.alt and data["text/plain"] == f"Figure: {figure.alt}"
    layers = ill.layers()
    assert f"by layer: {', '.join(number(each['logit_std']) for each in layers)}." in figure.alt
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")] == [
        "Entropy share",
        "Std of the logits",
        "Stream after each block",
        "Gradient ratio",
    ]
    assert figure.axes[0].images[0].get_array().shape == (3, 4)


def test_titles_of_the_figure_have_room(ill):
    """In the book the font is the page's, which may be wider than the one that the figure was laid out with."""
    figure = ill.plot()
    figure.draw_without_rendering()
    titles = {axes.get_title(loc="left") for axes in figure.axes} - {""}
    drawn = figure.findobj(lambda artist: isinstance(artist, mpl.text.Text) and artist.get_text() in titles)
    boxes = [title.get_window_extent() for title in drawn]
    assert len(boxes) == 4 and all(box.x0 + 1.15 * box.width <= figure.bbox.width for box in boxes)


def test_a_figure_of_many_layers_gives_the_course_in_few_words():
    rows = [row(f"blocks.{i}.attention", head, logit_std=i / 10) for i in range(24) for head in range(16)]
    figure = draw.plot(Report(rows=rows))
    assert (
        isinstance(figure, draw.Drawing)
        and "from 0 to 2.3 (0 to 2.3, mean 1.15)" in figure.alt
        and len(figure.alt) < 400
    )
    assert len(plots.png(figure)) < 200_000


def test_a_figure_of_layers_with_unlike_heads_leaves_gaps():
    figure = draw.plot(Report(rows=[row("a", entropy_share=0.25), row("b"), row("b", 1)]))
    shares = figure.axes[0].images[0].get_array()
    assert shares.tolist() == [[0.25, None], [0.97, 0.97]], "A masked entry is None in a list."


def test_a_figure_of_nothing_but_nan_is_drawn():
    rows = [row(logit_std=math.nan, entropy_share=math.nan)]
    figure = draw.plot(Report(rows=rows, stream=[dict(layer="0", rms=math.nan, token_cosine=math.nan)]))
    assert "no number" in figure.alt and plots.png(figure)[:4] == b"\x89PNG"


def test_a_frame_has_a_row_per_head(ill):
    frame, rows = ill.frame(), ill.table()
    assert list(frame.columns) == list(rows[0])
    for column in ("layer", "kind", "head", "n_key", "logit_std"):
        assert frame[column].tolist() == [row[column] for row in rows]
    means = frame.groupby("layer", sort=False)["logit_std"].mean()
    assert means.tolist() == pytest.approx([layer["logit_std"] for layer in ill.layers()])


def test_comparison_shows_before_and_after():
    before, after = (Report(rows=[row(logit_std=std, saturated=share)]) for std, share in ((0.5, 0.0), (8.0, 0.9)))
    shown = render.comparison(before, after, 100, ("as it comes", "changed"))
    assert "0.5 → 8" in shown
    assert "as it comes: no findings" in shown and "changed: entropy collapsed (warning)" in shown


def test_a_report_read_back_shows_the_same(ill):
    again = Report.from_json(ill.to_json())
    assert render.text(again) == render.text(ill) and json.loads(ill.to_json())["format"] == 1


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: render.text({}), TypeError, "report must be a Report: got dict"),
        (lambda: render.text(Report(), 39), ValueError, "width must be an integer ≥ 40: got 39"),
        (lambda: render.text(Report(), 80.5), TypeError, "width must be an integer"),
        (lambda: render.html([]), TypeError, "report must be a Report: got list"),
        (lambda: render.html(Report(), book=3), TypeError, "book must be an address or None: got int"),
        (lambda: render.comparison(Report(), {}), TypeError, "report must be a Report: got dict"),
        (lambda: draw.plot({}), TypeError, "report must be a Report: got dict"),
        (lambda: draw.plot(Report()), ValueError, "at least one attention layer"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
