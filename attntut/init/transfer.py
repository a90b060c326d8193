"""Starts from a trained model: low-rank adapters beside its matrices, and fewer key and value heads than it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from attntut._checks import check_choice, check_int, check_number
from attntut.anatomy.view import view
from attntut.attention import MultiHeadAttention
from attntut.parts import GroupedQueries
from attntut.transformer import Transformer, TransformerConfig

Pair = tuple[Tensor, Tensor]


# ----- low-rank adapters -----


class LowRank(nn.Module):
    r"""A frozen linear layer, and a trainable product of two narrow matrices beside it.

    .. math:: y = W x + b + \frac{\alpha}{r} B A x, \qquad A: (r, \text{fan\_in}), \quad B: (\text{fan\_out}, r)

    LoRA (Hu et al. 2021). A and B are drawn as :class:`torch.nn.Linear` draws; :func:`adapt_` fills them by a rule.

    Args:
        base: the layer; its parameters are frozen.
        rank: r.
        alpha: α; by default r, so that the factor of the product is 1.

    Example:
        >>> layer = LowRank(nn.Linear(8, 6), rank=2)
        >>> layer(torch.randn(5, 8)).shape, [name for name, p in layer.named_parameters() if p.requires_grad]
        (torch.Size([5, 6]), ['adapter_in.weight', 'adapter_out.weight'])
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float | None = None) -> None:
        super().__init__()
        check_int("rank", rank, high=min(base.weight.shape))
        self.scale = (rank if alpha is None else check_number("alpha", alpha, low=0, open_low=True)) / rank
        self.base = base.requires_grad_(False)
        self.adapter_in = nn.Linear(base.in_features, rank, bias=False)
        self.adapter_out = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, fan_in)`` to ``(…, fan_out)``."""
        return self.base(x) + self.scale * self.adapter_out(self.adapter_in(x))

    @property
    def product(self) -> Tensor:
        """What is added to the layer's matrix, (α/r) B A: ``(fan_out, fan_in)``."""
        return self.scale * self.adapter_out.weight @ self.adapter_in.weight


def _kaiming(W: Tensor, rank: int, generator: torch.Generator | None) -> Pair:
    bound = W.shape[1] ** -0.5  # kaiming_uniform_(a=√5)
    return W.new_empty(rank, W.shape[1]).uniform_(-bound, bound, generator=generator), W.new_zeros(W.shape[0], rank)


def _gaussian(W: Tensor, rank: int, generator: torch.Generator | None) -> Pair:
    return W.new_empty(rank, W.shape[1]).normal_(0, 1 / rank, generator=generator), W.new_zeros(W.shape[0], rank)


def _zero_in(W: Tensor, rank: int, generator: torch.Generator | None) -> Pair:
    bound = rank**-0.5
    return W.new_zeros(rank, W.shape[1]), W.new_empty(W.shape[0], rank).uniform_(-bound, bound, generator=generator)


def _orthogonal(W: Tensor, rank: int, generator: torch.Generator | None) -> Pair:
    if rank % 2:
        raise ValueError(f"rank must be even for the start 'orthogonal', half for A and half for B: got {rank}.")
    turn = torch.linalg.qr(W.new_empty(rank, rank).normal_(generator=generator)).Q
    right, left = (W.new_empty(size, rank // 2).normal_(0, 0.1, generator=generator) for size in W.shape[::-1])
    return (right @ turn[0::2]).mT, left @ turn[1::2]


def _pissa(W: Tensor, rank: int, generator: torch.Generator | None) -> Pair:
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    root = S[:rank].sqrt()
    return root[:, None] * Vh[:rank], U[:, :rank] * root


def _olora(W: Tensor, rank: int, generator: torch.Generator | None) -> Pair:
    Q, R = torch.linalg.qr(W)
    return R[:rank], Q[:, :rank]


STARTS: dict[str, Callable[[Tensor, int, torch.Generator | None], Pair]] = {
    "kaiming": _kaiming,
    "gaussian": _gaussian,
    "zero in": _zero_in,
    "orthogonal": _orthogonal,
    "pissa": _pissa,
    "olora": _olora,
}
FROM_WEIGHT = ("pissa", "olora")  # their product is taken out of the frozen matrix


def adapt_(
    model: nn.Module,
    start: str = "kaiming",
    *,
    rank: int = 4,
    alpha: float | None = None,
    roles: tuple[str, ...] = ("query", "value"),
    generator: torch.Generator | None = None,
) -> nn.Module:
    r"""Freeze a trained model, and put a low-rank adapter beside its matrices of some roles, in place.

    The model computes what it did, to rounding; only the adapters require a gradient.

    ========== ============================ =============================== =======================================
    start      A                            B                               the frozen matrix
    ========== ============================ =============================== =======================================
    kaiming    uniform, variance 1/(3 d)    0                               W
    gaussian   N(0, 1/r²)                   0                               W
    zero in    0                            uniform, variance 1/(3 r)       W
    orthogonal 0.1 (N Q_odd)ᵀ               0.1 N Q_even                    W; B A = 0, as rows of Q are orthogonal
    pissa      √Σ Vᵀ, the r largest         U √Σ, the r largest             W − B A
    olora      the first r rows of R        the first r columns of Q        W − (α/r) B A
    ========== ============================ =============================== =======================================

    Here d is the fan-in, N has standard normal entries, Q in the fourth row is a random orthogonal (r, r), in the last
    one W = Q R. The rules are those of peft 0.21, ``LoraLayer``: its default is "kaiming", and only its "pissa" divides
    Σ by α/r. Its "orthogonal" has no orthogonal matrix. "zero in" is Init[B] of Hayou et al. (2024). Sources: Hu et al.
    (2021), Meng et al. (2024), Büyükakyüz (2024).

    Args:
        model: as in :func:`~attntut.init.view`; each of these roles must be a :class:`torch.nn.Linear` of its own.
        rank, alpha: as in :class:`LowRank`.
        roles: which matrices get an adapter; query and value, as in Hu et al.'s experiments.

    Raises:
        ValueError: an unknown start or role, an odd rank for "orthogonal", a rank above a matrix's, or a role that is
            packed with others. The model is then as it was.

    Example:
        >>> model, x = Transformer(TransformerConfig(n_classes=2, d_input=4), seed=0), torch.randn(3, 16, 4)
        >>> before = model(x)
        >>> _ = adapt_(model, "pissa", rank=2)
        >>> torch.allclose(model(x), before, atol=1e-5), type(model.blocks[0].attention.value).__name__
        (True, 'LowRank')
    """
    rule = STARTS[check_choice("start", start, STARTS)]
    bases: dict[str, nn.Linear] = {}
    for entry in view(model).by_role(*roles):
        name = entry.parameter.rpartition(".")[0]
        base = model.get_submodule(name)
        if not isinstance(base, nn.Linear) or base.weight.shape != entry.weight.shape:
            raise ValueError(f"roles must be linear layers of their own: {entry.role} is in {entry.parameter}.")
        check_int("rank", rank, high=min(base.weight.shape))
        bases[name] = base
    with torch.no_grad():
        pairs = [rule(base.weight, rank, generator) for base in bases.values()]
        layers = [LowRank(base, rank, alpha).to(base.weight) for base in bases.values()]
        model.requires_grad_(False)
        for name, layer, (A, B) in zip(bases, layers, pairs, strict=True):
            root = layer.scale**-0.5 if start == "pissa" else 1.0
            layer.adapter_in.weight.copy_(root * A), layer.adapter_out.weight.copy_(root * B)
            layer.adapter_in.requires_grad_(True), layer.adapter_out.requires_grad_(True)
            if start in FROM_WEIGHT:
                layer.base.weight.sub_(layer.product)
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, layer)
    return model


# ----- fewer key and value heads -----

POOLS = ("mean", "first", "random")


@torch.no_grad()
def grouped(
    model: Transformer, n_kv_heads: int, how: str = "mean", *, generator: torch.Generator | None = None
) -> Transformer:
    r"""A copy of a trained model in which neighbouring heads share one key head and one value head.

    .. math:: \text{mean: } \bar W = \frac1g \sum_{h=1}^{g} W_h, \qquad \text{first: } W_1, \qquad
              \text{random: } \mathcal N(0, \operatorname{mean} W_h^2)

    Ainslie et al. (2023), who compare the three. With the mean, the squared error of the weights,
    :math:`\sum_h \lVert \bar W - W_h \rVert^2`, is the least possible, and half of what it is for one of the heads
    chosen at random, whatever the heads are.

    Args:
        model: has one key head a query head, and its projections apart.
        n_kv_heads: the number of groups; must divide ``n_heads``.
        how: where a group's matrices (and biases) come from; new random ones are as large as the trained ones.
        generator: of the random ones.

    Raises:
        ValueError: an unknown ``how``, a number that does not divide, or a model that is packed or grouped already.

    Example:
        >>> model = Transformer(TransformerConfig(n_classes=2, d_input=4, d_model=8, n_heads=4), seed=0)
        >>> grouped(model, 2).blocks[0].attention.key.weight.shape
        torch.Size([4, 8])
    """
    check_choice("how", how, POOLS)
    config = _ungrouped(model, n_kv_heads)
    copy = Transformer(dataclasses.replace(config, parts=(*config.parts, GroupedQueries(n_kv_heads))), seed=0)
    states = copy.state_dict()
    for name, tensor in model.state_dict().items():
        *_, layer, _ = f"..{name}".split(".")
        if layer in ("key", "value"):
            heads = tensor.unflatten(0, (n_kv_heads, config.n_heads // n_kv_heads, -1))  # (groups, g, d_head, …)
            tensor = heads.mean(dim=1) if how == "mean" else heads[:, 0]
            if how == "random":
                tensor = heads.square().mean().sqrt() * torch.empty_like(tensor).normal_(generator=generator)
            tensor = tensor.flatten(0, 1)
        states[name].copy_(tensor)
    return copy


@torch.no_grad()
def align_heads_(model: Transformer, n_kv_heads: int, roles: tuple[str, ...] = ("key", "value")) -> Transformer:
    r"""Turn every head's basis so that its key and value matrices are as near as can be to the first of its group.

    .. math:: W_h \leftarrow R W_h, \quad R = U V^\top, \qquad U \Sigma V^\top = W_1 W_h^\top

    The queries of the head are turned with its keys, and the columns of the output that read it with its values, so
    that the model computes what it did, to rounding. The mean of the turned heads keeps more of each. Procrustes'
    problem; Jin et al. (2025) turn heads for this purpose.

    Args:
        model: as in :func:`grouped`, without rotary positions and QK-norm where keys are turned: these tell the
            channels of a head apart.
        n_kv_heads: the number of groups.
        roles: ``"key"``, ``"value"`` or both.

    Example:
        >>> model, x = Transformer(TransformerConfig(n_classes=2, d_input=4), seed=0), torch.randn(3, 16, 4)
        >>> torch.allclose(model(x), align_heads_(model, 2)(x), atol=1e-5)
        True
    """
    config = _ungrouped(model, n_kv_heads)
    for role in roles:
        check_choice("roles", role, ("key", "value"))
    for part in config.parts if "key" in roles else ():
        if part.slot in ("rotary", "qk_norm"):
            raise ValueError(f"Keys must not be turned where their channels are told apart: got {part}.")
    for attention in (each for each in model.modules() if isinstance(each, MultiHeadAttention)):
        for role in roles:
            layer = getattr(attention, role)
            bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
            whole = torch.cat([layer.weight, bias[:, None]], dim=1)
            heads = whole.unflatten(0, (config.n_heads, -1))  # (heads, d_head, fan_in + 1)
            firsts = heads[:: config.n_heads // n_kv_heads].repeat_interleave(config.n_heads // n_kv_heads, dim=0)
            U, _, Vh = torch.linalg.svd(firsts @ heads.mT)
            turn = U @ Vh  # (heads, d_head, d_head)
            for each in (layer, attention.query) if role == "key" else (layer,):
                each.weight.copy_((turn @ each.weight.unflatten(0, (config.n_heads, -1))).flatten(0, 1))
                if each.bias is not None:
                    each.bias.copy_((turn @ each.bias.view(config.n_heads, -1, 1)).flatten())
            if role == "value":
                columns = attention.output.weight.unflatten(1, (config.n_heads, -1)).transpose(0, 1)
                attention.output.weight.copy_((columns @ turn.mT).transpose(0, 1).flatten(1))
    return model


def _ungrouped(model: object, n_kv_heads: int) -> TransformerConfig:
    if not isinstance(model, Transformer):
        raise TypeError(f"model must be an attntut.Transformer: got {type(model).__name__}.")
    config = model.config
    if config.packed or any(part.slot == "heads" for part in config.parts):
        raise ValueError("model must keep query, key and value apart, and have a key head a query head.")
    if config.n_heads % check_int("n_kv_heads", n_kv_heads):
        raise ValueError(f"n_kv_heads must divide n_heads={config.n_heads}: got n_kv_heads={n_kv_heads}.")
    return config
