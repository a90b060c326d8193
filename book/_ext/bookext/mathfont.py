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
from fontTools.ttLib import TTFont
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

NAME = "stix-two-math.woff2"
ALWAYS = "0123456789+-−=<>()[]{}|‖.,:;!/∗′√∑∏∫⏞⏟‾ˆ\u0302¯"
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


def narrow_radicals(font: TTFont, width: int = 850) -> None:
    """Make the tall forms of the root sign about as wide as the small one.

    A browser that follows MathML Core reserves, for a root within a line, the width of the widest form. In this font
    that leaves a hole of 0.4 em behind every small root.
    """
    variants, name = font["MATH"].table.MathVariants, font.getBestCmap().get(ord("√"))
    if name is None:
        return
    forms = variants.VertGlyphConstruction[variants.VertGlyphCoverage.glyphs.index(name)]
    names = {record.VariantGlyph for record in forms.MathGlyphVariantRecord} - {name}
    names |= {part.glyph for part in forms.GlyphAssembly.PartRecords} if forms.GlyphAssembly else set()
    shapes, metrics = font["glyf"], font["hmtx"]
    for tall in names:
        advance, bearing = metrics[tall]
        factor = width / advance
        shapes[tall].coordinates.scale((factor, 1))
        shapes[tall].recalcBounds(shapes)
        metrics[tall] = (width, round(bearing * factor))


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
    narrow_radicals(font)
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
