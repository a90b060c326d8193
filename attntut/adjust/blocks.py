"""Methods on branches and norms: hooks on the last matrix of a branch, or another module in the place of a norm."""

from __future__ import annotations

from typing import Any

from torch import nn

from attntut._checks import check_number
from attntut.adjust.handle import Patch
from attntut.adjust.registry import adjustment
from attntut.anatomy.weight import BRANCH_OUT


@adjustment(
    formula=r"x \leftarrow x + \frac{1}{\sqrt L}\, f(x)",
    cite="noci2022signal",
    source="Noci et al. (2022), section 3.2: α = 1/√L on each branch",
    why="The branches together add as much as one: the stream stays bounded at any depth, and tokens stay apart.",
    treats=("stream growing", "rank collapsing", "rank collapsing (slowly)", "depth scaling absent"),
    clashes={
        "residual scale": "the model scales its branches itself",
        "no residual": "without a skip connection beside it, the branch is all there is, and only shrinks",
    },
)
def branch_scale(patch: Patch, *, factor: float | None = None) -> None:
    """Multiply what each branch adds to the stream by one small number.

    Args:
        patch: of the model.
        factor: of every branch; by default 1/√L with the number of blocks of its stack.

    Example:
        >>> import torch
        >>> from attntut.adjust import adjust
        >>> model = nn.TransformerEncoderLayer(16, nhead=2, norm_first=True, batch_first=True, dropout=0)
        >>> x = torch.randn(4, 8, 16)
        >>> branches = model(x) - x
        >>> with adjust(model, "branch_scale", factor=0.0):
        ...     torch.equal(model(x), x)
        True
    """
    if factor is not None:
        check_number("factor", factor)
    done = set()
    for entry in patch.view.by_role(*BRANCH_OUT):
        owner, name = patch.owner(entry), entry.parameter.rpartition(".")[0]
        around = patch.model.get_submodule(name.rpartition(".")[0])
        if isinstance(around, nn.MultiheadAttention):  # it multiplies with the matrix, and does not call its layer
            owner = around
        elif not entry.parameter.endswith("weight") or {*owner._parameters} - {"weight", "bias"}:
            patch.refuse(f"{entry.parameter} is not in a layer of its own, whose result could be scaled")
        if owner not in done:
            done.add(owner)
            patch.hook(owner.register_forward_hook, Scaled(entry.weight.n_layers**-0.5 if factor is None else factor))


class Scaled:
    """A hook that multiplies what a module gives, or the first of several things that it gives."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return (self.factor * output[0], *output[1:]) if isinstance(output, tuple) else self.factor * output
