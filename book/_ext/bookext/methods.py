"""The catalogue of methods of adjustment: the output of the cells of ``book/adjustments.md``, from the registry.

A formula that is no LaTeX, a citation that the bibliography does not have, or a fault that is not in the table of
``book/diagnose.md``, is a warning of the build.
"""

from __future__ import annotations

from collections.abc import Mapping

from IPython.display import HTML, Markdown

from attntut.adjust import Adjustment, adjustments
from attntut.adjust.registry import FAMILIES
from attntut.diagnose.faults import faults, table

from . import entries

CHAPTERS: Mapping[str, tuple[str, ...]] = {
    "notebooks/13-the-first-steps": ("schedules",),
    "notebooks/14-gradients": ("gradients", "lamb", "muon", "cautious_decay"),
    "notebooks/15-where-the-norm-goes": ("blocks",),
    "notebooks/16-taming-the-logits": (
        *("qk_norm", "qk_l2_clip", "output_gate", "logits", "sigma_reparam", "qk_clip", "qk_weight_decay", "loss"),
    ),
    "notebooks/17-regularization-and-overfitting": (
        *("qk_weight_decay", "cautious_decay", "layer_lr_decay", "reinit_top_layers"),
    ),
}
"""Page to the names of methods, or of whole families, that it treats."""


def head() -> HTML:
    """The form, and the number of methods."""
    treats = [(method, method.treats) for method in adjustments().values()]
    return HTML(entries.form(treats, FAMILIES, faults(), label="Treats", key="treats", noun="methods"))


def family(name: str) -> Markdown:
    """The entries of a family."""
    found = [method for method in adjustments().values() if method.family == name]
    return Markdown("\n".join(entries.entry(each, "treats", each.treats, facts(each)) for each in found))


def facts(method: Adjustment) -> dict[str, str]:
    """What stands in an entry's list, in Markdown."""
    rows = {row["finding"]: row["id"] for row in table()}
    treats = ", ".join(f"[{fault}](diagnose.md#{rows[fault]})" for fault in method.treats)
    return {
        "Apply": f"`{method.call}`",
        "Options": entries.options(method),
        "Treats": treats or "no fault that `diagnose` looks for.",
        "Needs": entries.needs(method),
        "Clashes": "\n\n".join(f"{_other(name)}: {why}." for name, why in method.conflicts.items()),
        "Source": entries.source(method),
        "Chapter": entries.chapters(method, CHAPTERS),
        "Code": entries.code(method),
    }


def _other(name: str) -> str:
    """Another method, or what the model itself may have."""
    return f'<a href="#{name}"><code>{name}</code></a>' if name in adjustments() else f"**{name}** of the model itself"
