r"""Formulas become MathML when the book is built: no script, no font from elsewhere, no jump while the page loads.

The converter is ``math-core``; it reports what it cannot convert, and the report is a warning of the build (an error
under ``-W``). Three habits of LaTeX authors are translated first: ``split`` inside a display, lines separated by
``\\`` without an environment, and numbered environments, whose numbers are Sphinx's.
"""

from __future__ import annotations

import html
import re
from functools import cache

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)

MACROS = {
    "argmax": r"\operatorname*{arg\,max}",
    "argmin": r"\operatorname*{arg\,min}",
    "substack": r"\begin{subarray}{c}#1\end{subarray}",
}
NUMBERED = re.compile(r"\\(begin|end)\{(equation|align|gather|multline|alignat|flalign|eqnarray)\}")


@cache
def _converter() -> LatexToMathML:
    return LatexToMathML(macros=MACROS, fancy_error=False)


def prepare(latex: str, *, display: bool) -> str:
    r"""Return ``latex`` with what the converter does not know rewritten.

    >>> prepare(r"a &= b \\ &= c", display=True)
    '\\begin{aligned}a &= b \\\\ &= c\\end{aligned}'
    >>> prepare(r"\begin{align}a &= b\end{align}", display=True)
    '\\begin{align*}a &= b\\end{align*}'
    """
    latex = latex.strip()
    if not display:
        return latex
    latex = NUMBERED.sub(r"\\\1{\2*}", latex.replace("{split}", "{aligned}"))
    if r"\begin" not in latex and (r"\\" in latex or re.search(r"(?<!\\)&", latex)):
        return rf"\begin{{aligned}}{latex}\end{{aligned}}"
    return latex


def to_mathml(latex: str, *, display: bool) -> str:
    r"""Return the MathML of a formula.

    Args:
        latex: the formula, without dollar signs.
        display: a displayed formula, not one within a line.

    Raises:
        ValueError: the formula cannot be converted; the message says where.

    >>> to_mathml(r"\sqrt{d_k}", display=False)
    '<math><msqrt><msub><mi>d</mi><mi>k</mi></msub></msqrt></math>'
    """
    try:
        return _converter().convert_with_local_state(prepare(latex, display=display), displaystyle=display)
    except LatexError as error:
        raise ValueError(f"this formula cannot be converted to MathML: {latex.strip()!r}: {error}") from error


def _render(node: nodes.math | nodes.math_block, *, display: bool) -> str:
    try:
        return to_mathml(node.astext(), display=display)
    except ValueError as error:
        logger.warning(str(error), location=node, type="mathml")
        return f"<code>{html.escape(node.astext())}</code>"


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    """A formula within a line."""
    self.body.append(_render(node, display=False))
    raise nodes.SkipNode


def visit_display(self: HTML5Translator, node: nodes.math_block) -> None:
    """A displayed formula: it scrolls within its own box, and its number stays in sight."""
    self.body.append(self.starttag(node, "div", CLASS="math notranslate"))
    self.body.append(f'<div class="math-box">{_render(node, display=True)}</div>')
    if node.get("number"):
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register the renderer; ``html_math_renderer: mathml`` chooses it."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
