"""Explorers: a function of a few knobs, shown live with a kernel and on a static page without one.

The package knows nothing of what it shows. The function it is given returns named panels; Python rounds their
numbers, and one ES module (``explorer.js``) draws them, in JupyterLab and in the book alike.
"""

from attntut._extras import extra

with extra("jupyter"):
    from .core import Explorer
    from .page import assets
    from .panels import bars, heat_map, histogram, lines, number

__all__ = ["Explorer", "assets", "bars", "heat_map", "histogram", "lines", "number"]
