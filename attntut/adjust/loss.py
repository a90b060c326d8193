"""Terms of the loss: functions of logits or weights that give a scalar."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from attntut._checks import check_number, check_tensor
from attntut.adjust.attention import CHANGES, AttentionChange, _overrides
from attntut.adjust.handle import Handle, Patch, applied, fitting_view
from attntut.adjust.registry import adjustment
from attntut.anatomy.names import RolePatterns


@adjustment(
    formula=r"\zeta\, \overline{\log^2 Z}, \qquad Z = \sum_j e^{s_j}",
    cite="chowdhery2022palm",
    source="Chowdhery et al. (2022), PaLM, section 5: ζ = 1e-4; google-research/t5x, losses.py",
    why="A softmax does not see a number added to all its logits, so nothing keeps them from drifting; this does.",
)
def z_loss(logits: Tensor, *, coefficient: float = 1e-4, counts: Tensor | None = None) -> Tensor:
    """A term that holds the sum of the exponentials of the output's logits at 1.

    Args:
        logits: of the readout, ``(..., n_classes)``, before the softmax.
        coefficient: ζ.
        counts: ``(...)``, True at the tokens that count (those that have a label); all by default.

    Returns:
        A scalar, to be added to the mean cross-entropy.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [3.0, 3.0]])
        >>> round(z_loss(logits, coefficient=1.0).item(), 3)  # the mean of (ln 2)² and (3 + ln 2)²
        7.06
    """
    check_tensor("logits", logits, min_ndim=1), check_number("coefficient", coefficient, low=0)
    squares = logits.logsumexp(-1).square()
    if counts is not None:
        check_tensor("counts", counts, floating=False)
        if counts.dtype != torch.bool or counts.shape != squares.shape or not counts.any():
            raise ValueError(f"counts must be boolean, of shape {tuple(squares.shape)}, and True somewhere: got "
                             f"{counts.dtype}, {tuple(counts.shape)}, True at {int(counts.sum())}.")  # fmt: skip
        squares = squares[counts]
    return coefficient * squares.mean()


@adjustment(
    formula=r"\lambda\, \overline{(\hat H_h - H^*)^2}, \qquad \hat H_h = \overline{H / \ln n} \text{ of head } h",
    cite="zhai2023stabilizing",
    source="a plain penalty; that entropy collapses where training does is from Zhai et al. (2023)",
    why="The entropy of attention is asked for directly, so that no head falls to one key, or stays with all.",
    treats=("entropy collapsed",),
    clashes=dict.fromkeys(("sigmoid_attention", "sink", "softpick"), "it sees the weights of a softmax"),
)
def entropy_penalty(
    model: nn.Module,
    *,
    target: float = 0.5,
    coefficient: float = 0.01,
    inputs: Any = None,
    roles: RolePatterns | None = None,
    n_heads: int | None = None,
    force: bool = False,
) -> EntropyPenalty:
    """Watch the attention of a model, and give a term that draws the entropy of each head to a target.

    Of each head the mean over the batch and the queries counts, in parts of ln n, with n keys that a query may see; a
    query with one key does not count. Where a head has collapsed entirely, weights are 0 or 1 in floating point, and
    the gradient is 0: the term keeps entropy, it does not bring it back. Attention is written out meanwhile: the fused
    kernels do not tell their weights. Attention whose weights are no softmax is refused.

    Args:
        model: any model with attention.
        target: H*, from 0 (one key) to 1 (all keys alike).
        coefficient: λ.
        inputs, roles, n_heads: as in :func:`attntut.init.view`.
        force: as in :func:`attntut.adjust.adjust`.

    Returns:
        Call it after each forward pass, to get the term; ``undo()`` takes it away, and so does the end of a ``with``.

    Raises:
        ValueError: there is no attention that can be watched, or it is watched already.

    Example:
        >>> model, x = nn.MultiheadAttention(8, num_heads=2), torch.randn(5, 3, 8)
        >>> with entropy_penalty(model, target=1.0, coefficient=1.0) as penalty:
        ...     out, _ = model(0 * x, 0 * x, x)  # all keys alike
        ...     round(penalty().item(), 3)
        0.0
    """
    check_number("target", target, low=0, high=1), check_number("coefficient", coefficient, low=0)
    view = fitting_view("entropy_penalty", model, inputs, roles, n_heads, force=force)
    options = dict(target=target, coefficient=coefficient)
    return EntropyPenalty("entropy_penalty", model, options, applied("entropy_penalty", view, _watch))


def _watch(patch: Patch) -> None:
    patch.hook(patch.model.register_forward_pre_hook, _forget)
    for place in patch.attentions:
        others: Any = place.module._modules.get(CHANGES)
        if others is not None and any(_overrides(each, "weights") for each in others.values()):
            patch.refuse(f"the weights of {place.name or 'the model'} are no softmax: {', '.join(others)}")
        patch.attend(place, Entropies())


class EntropyPenalty(Handle):
    """What :func:`entropy_penalty` gives: a call gives the term of the last forward pass."""

    def __call__(self) -> Tensor:
        """The term: a scalar.

        Raises:
            RuntimeError: no query with several keys was seen since the last call.
        """
        seen = [entropy for each in _watching(self.model) for entropy in each.seen]
        if not seen:
            raise RuntimeError("entropy_penalty has seen no attention over several keys: run the model first.")
        _forget(self.model)
        share: Tensor = torch.cat(seen)
        return self.options["coefficient"] * (share - self.options["target"]).square().mean()


class Entropies(AttentionChange):
    """Remembers the mean entropy of each head, in parts of the largest, of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.visible = torch.zeros(0)

    def seen_logits(self, logits: Tensor, hidden: Tensor) -> Tensor:
        self.visible = (~hidden).sum(-1)  # (B, H, T)
        return logits

    def masked(self, logits: Tensor) -> Tensor:
        visible = self.visible
        several = visible > 1
        if several.any():
            known = logits.masked_fill(~several[..., None], 0.0)  # a row that is all hidden has no softmax
            known = known.log_softmax(-1)  # Categorical alone would round the sum of large ones
            share = Categorical(logits=known, validate_args=False).entropy() / visible.clamp(min=2).log()
            self.seen.append((share * several).sum((0, 2)) / several.sum((0, 2)).clamp(min=1))
        return logits


def _watching(model: nn.Module) -> list[Entropies]:
    return [each for each in model.modules() if isinstance(each, Entropies)]


def _forget(model: nn.Module, *_: Any) -> None:
    """A hook: what earlier forward passes told is gone."""
    for each in _watching(model):
        each.seen.clear()
