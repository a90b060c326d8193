"""The font of the formulas: STIX Two Math, reduced to the characters that the book uses.

Browsers draw MathML well only with a font that has a MATH table, and many systems have none. The font comes from the
package ``ziamath``; its licence is the SIL Open Font License 1.1, and the notice stays in the font's name table.
"""

from __future__ import annotations

import html
import io
import re
import unicodedata
from importlib.resources import files
from pathlib import Path

from fontTools import subset
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont
from fontTools.ttLib.tables import otTables
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

NAME = "stix-two-math.woff2"
ALWAYS = "0123456789+-−=<>()[]{}|‖.,:;!/∗′√∑∏∫⏞⏟‾ˆ\u0302¯"

# The root sign: an outline of height 1 after that of the font, whose tip ends under the beginning of the bar.
ROOT = (
    *((667, 1.0), (731, 1.0), (413, 0.0), (371, 0.0), (138, 0.492), (34, 0.458), (18, 0.482)),
    *((177, 0.575), (197, 0.575), (395, 0.145), (399, 0.145)),
)
ROOT_WIDTH, ROOT_GAP = 690, 140  # thousandths of an em
THICKNESS = 52  # of bars of roots and fractions: one pixel in running text; the font's 68 are now one, now two
ROOT_HEIGHTS = (700, 860, 1020, 1200, 1400, 1650, 1950, 2300, 2700, 3200, 3800)
ACCEPTED_MISSING = {"\u2061", "\u2062", "\u2063", "\u2064"}  # invisible operators: browsers draw nothing


def source() -> Path:
    """Return the whole font's path."""
    return Path(str(files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf"))


def italic(letter: str) -> str:
    """Return the mathematical italic form that browsers give to a one-letter ``<mi>``.

    >>> italic("d"), italic("h"), italic("σ"), italic("1")
    ('𝑑', 'ℎ', '𝜎', '1')
    """
    if letter == "h":
        return "ℎ"
    try:
        kind, base = unicodedata.name(letter).split(" LETTER ")
        kind = {"LATIN SMALL": "SMALL", "LATIN CAPITAL": "CAPITAL"}.get(kind, kind.removeprefix("GREEK "))
        return unicodedata.lookup(f"MATHEMATICAL ITALIC {kind} {base}")
    except (ValueError, KeyError):
        return letter


def characters(page: str) -> set[str]:
    """Return the characters that the formulas of an HTML page need.

    >>> sorted(characters("<p>no</p><math><mi>d</mi><mo>&lt;</mo></math>"))
    ['<', 'd', '𝑑']
    """
    used: set[str] = set()
    for formula in re.findall(r"<math.*?</math>", page, flags=re.DOTALL):
        used |= set(html.unescape(re.sub(r"<[^>]*>", "", formula)))
    return {c for c in used | {italic(c) for c in used} if not c.isspace()}


def draw_radicals(font: TTFont) -> None:
    """Replace the forms of the root sign by :data:`ROOT` in many heights, and give its bar room and thinness.

    Browsers that follow MathML Core hang the smallest form that is tall enough on the bar; what is too much of it comes
    out below the line, and in this font even the smallest is 1.2 em tall. They reserve the width of the widest form,
    which leaves a hole behind the narrower ones. And they draw the bar on whole pixels, so a form that ends in a piece
    of bar of its own shows a step.
    """
    sign = font.getBestCmap().get(ord("√"))
    if sign is None:
        return
    constants, variants = font["MATH"].table.MathConstants, font["MATH"].table.MathVariants
    forms = variants.VertGlyphConstruction[variants.VertGlyphCoverage.glyphs.index(sign)]
    forms.GlyphAssembly, forms.MathGlyphVariantRecord = None, []
    for height in ROOT_HEIGHTS:
        name = sign if not forms.MathGlyphVariantRecord else f"{sign}.{height}"
        pen = TTGlyphPen(None)
        first, *others = [(x, round(constants.AxisHeight.Value + (y - 0.5) * height)) for x, y in ROOT]
        pen.moveTo(first)
        for point in others:
            pen.lineTo(point)
        pen.closePath()
        font["glyf"][name] = pen.glyph()
        font["hmtx"][name] = (ROOT_WIDTH, min(x for x, _ in ROOT))
        record = otTables.MathGlyphVariantRecord()
        record.VariantGlyph, record.AdvanceMeasurement = name, height
        forms.MathGlyphVariantRecord.append(record)
    constants.RadicalVerticalGap.Value = ROOT_GAP
    for rule in (constants.RadicalRuleThickness, constants.FractionRuleThickness):
        rule.Value = THICKNESS


def reduce(used: set[str]) -> tuple[bytes, set[str]]:
    """Return the font with ``used`` only, as woff2, and the characters that the font lacks."""
    font = TTFont(source())
    lacking = {c for c in used if ord(c) not in font.getBestCmap() and not unicodedata.category(c).startswith("M")}
    options = subset.Options(flavor="woff2", layout_features=["ssty", "dtls", "flac", "ccmp", "mark", "mkmk"])
    options.hinting = False
    options.name_IDs = [0, 1, 2, 3, 4, 5, 6, 7, 13, 14]
    options.drop_tables += ["DSIG", "GPOS"]
    options.ignore_missing_unicodes = True
    subsetter = subset.Subsetter(options)
    subsetter.populate(text="".join(sorted(used)))
    subsetter.subset(font)
    draw_radicals(font)
    font.flavor = "woff2"
    buffer = io.BytesIO()
    font.save(buffer)
    return buffer.getvalue(), lacking - ACCEPTED_MISSING


def write(app: Sphinx, exception: Exception | None) -> None:
    """Write the font beside the other static files, when all pages are written."""
    if exception or app.builder.format != "html":
        return
    used = set(ALWAYS)
    for page in Path(app.outdir).rglob("*.html"):
        used |= characters(page.read_text(encoding="utf-8"))
    data, lacking = reduce(used)
    if lacking:
        logger.warning("the math font lacks %s", " ".join(f"{c!r} (U+{ord(c):04X})" for c in sorted(lacking)))
    target = Path(app.outdir) / "_static" / NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


def setup(app: Sphinx) -> None:
    """Write the font at the end of the build."""
    app.connect("build-finished", write)
