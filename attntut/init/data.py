"""Scale by looking: run a batch through the model, measure, and correct."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attntut._checks import check_int, check_number
from attntut._restore import no_fast_path, restored_mode
from attntut.anatomy.view import Entry, ModelView, call, owner_of
from attntut.anatomy.weight import Weight
from attntut.init.fan import lecun_normal, xavier_uniform
from attntut.init.laws import Law, Orthogonal
from attntut.init.registry import law_outside_blocks, scheme
from attntut.transformer import TransformerBlock


def _scale_outputs(
    view: ModelView, generator: Any, *, batch: Any = None, tolerance: float = 0.1, rounds: int = 10
) -> None:
    check_number("tolerance", tolerance, low=0), check_int("rounds", rounds)

    def correct(entry: Entry, written: Callable[[], Tensor]) -> None:
        for _ in range(rounds):
            std = written().std().item()
            if abs(std - 1) <= tolerance:
                break
            if not 0 < std < math.inf:
                raise ValueError(
                    f"batch must give every projection something to measure: with it, the outputs of "
                    f"{entry.parameter} ({entry.weight.role}) have standard deviation {std}."
                )
            entry.matrix.view.div_(std)

    def on_the_way(entry: Entry) -> Callable[..., None]:
        return lambda _, args, kwargs: correct(entry, partial(_product, entry, args, kwargs))

    entries = [entry for entry in view.entries if not entry.weight.is_table]
    owners = {entry.parameter: owner_of(view.module, entry) for entry in entries}
    if _called(view.module, batch, owners.values()) == list(dict.fromkeys(owners.values())):  # once, in this order
        with contextlib.ExitStack() as stack:
            for entry in entries:
                hook = owners[entry.parameter].register_forward_pre_hook(on_the_way(entry), with_kwargs=True)
                stack.enter_context(hook)
            run(view.module, batch)
    else:
        for entry in entries:
            correct(entry, partial(output_of, view.module, entry, batch))


def _called(module: nn.Module, batch: Any, owners: Iterable[nn.Module]) -> list[nn.Module]:
    """Which of the linear layers a run calls, in order."""
    order: list[nn.Module] = []
    with contextlib.ExitStack() as stack:
        for owner in {each for each in owners if isinstance(each, nn.Linear)}:
            stack.enter_context(owner.register_forward_pre_hook(lambda layer, _: order.append(layer)))
        run(module, batch)
    return order


@scheme(
    formula=r"W = Q \text{ orthogonal}, \qquad W \leftarrow \frac{W}{\operatorname{std}(W X)} \text{ until } "
    r"|\operatorname{std}(W X) - 1| \le 0.1",
    cite="mishkin2016all",
    source="Mishkin & Matas (2016), algorithm 1, with the test of ducha-aiki/LSUV-pytorch, LSUV.py",
    why="Makes every layer write with variance 1 on your data, whatever the layers before it are.",
    requires=("batch",),
    finish=_scale_outputs,
    predicts=lambda weight: lecun_normal(weight).std(*weight.shape),
)
def lsuv(weight: Weight) -> Law:
    r"""Orthogonal matrices, each divided by the standard deviation of what it writes, first to last.

    X is what the layer reads when the batch has come through the layers before it. A linear layer needs one round; a
    layer within the tolerance is left alone. The paper's algorithm 1 tests :math:`|\operatorname{Var}(W X) - 1|`; its
    code tests the standard deviation, as here, and also moves biases so that outputs have mean 0, which is left out.
    The std that :meth:`~attntut.init.Scheme.predict` gives, :math:`1/\sqrt{\text{fan\_in}}`, is that for X of
    variance 1; after attention has averaged, X is smaller and W larger. Tables are N(0, 0.02²) and are not corrected:
    they sum nothing.

    The other options are those of the measurement: ``batch``, what the model is called with (a tuple: its arguments; a
    mapping: its keyword arguments); ``tolerance``; ``rounds``, at most for a layer.

    Example:
        >>> from attntut import Transformer, TransformerConfig
        >>> from attntut.init import initialize_
        >>> model, x = Transformer(TransformerConfig(n_classes=2, d_input=4), seed=0), 7 * torch.randn(32, 16, 4)
        >>> _ = initialize_(model, "lsuv", batch=x)
        >>> 0.9 < model.embed(x).std() < 1.1
        tensor(True)
    """
    return law_outside_blocks(weight) or Orthogonal()


def _set_skip_weights(view: ModelView, generator: Any, *, batch: Any = None) -> None:
    variance = 1.0  # of the sum of all branches so far

    def hook(block: TransformerBlock, name: str) -> Any:
        def before_the_sum(_: nn.Module, inputs: tuple[Tensor, ...], branch: Tensor) -> None:
            nonlocal variance
            getattr(block, f"{name}_skip").fill_(math.sqrt(variance))
            read, written = (each.var(correction=0).item() for each in (inputs[0], branch))
            variance = variance * read + written  # post-norm: a branch reads the stream

        return before_the_sum

    with contextlib.ExitStack() as stack:
        for module in view.module.modules():
            if isinstance(module, TransformerBlock) and module.config.skip_weights:
                stack.enter_context(module.attention.register_forward_hook(hook(module, "attention")))
                if module.config.d_ff:
                    stack.enter_context(module.feed_forward.register_forward_hook(hook(module, "feed_forward")))
        run(view.module, batch)


@scheme(
    formula=r"\operatorname{LN}(\omega_i \odot x + f_i(x)), \qquad \omega_i^2 = 1 + \sum_{j<i} \operatorname{Var} f_j",
    cite="liu2020understanding",
    source="Liu et al. (2020); LiyuanLucasLiu/Transformer-Clinic, fairseq/modules/transformer_layer.py",
    why="Post-norm adds every branch at full weight; weights on the skips restore the shares of a pre-norm model.",
    requires=("post-LN", "skip weights", "batch"),
    architecture=lambda n_layers: {"skip_weights": True},
    finish=_set_skip_weights,
)
def admin(weight: Weight) -> Law:
    r"""Xavier, and weights on the skips that count what the branches before have added.

    The norm makes :math:`\operatorname{Var} x = 1` from the second branch on, so that branch i weighs as much in the
    stream as it would without the norms, about 1/i. The authors call heavy weights on the branches, not vanishing
    gradients, the reason why post-norm models need a warm-up. The first sublayer's variance is that of the embedding,
    as in their code; with embeddings of variance 1 it is the 1 of the formula.

    The other option is ``batch``: what the model is called with while the variances are measured.

    Example:
        >>> from attntut import Transformer, TransformerConfig
        >>> from attntut.init import initialize_, schemes
        >>> config = TransformerConfig(n_classes=2, d_input=4, n_layers=4, **schemes()["admin"].architecture())
        >>> model = initialize_(Transformer(config, seed=0), "admin", batch=torch.randn(8, 16, 4))
        >>> first, last = model.blocks[0].attention_skip[0], model.blocks[3].feed_forward_skip[0]
        >>> first.item(), last.item() > 1.5
        (1.0, True)
    """
    return law_outside_blocks(weight) or xavier_uniform(weight)


def run(module: nn.Module, batch: Any) -> Any:
    """Call the model as for evaluation: no dropout, no gradients, and every part really called."""
    if batch is None:
        raise ValueError("batch must be what the model is called with, to measure its activations: got None.")
    with torch.no_grad(), restored_mode(module), no_fast_path():
        module.eval()
        return call(module, batch)


def output_of(module: nn.Module, entry: Entry, batch: Any) -> Tensor:
    """What one projection writes, all tokens and batches together."""
    owner = owner_of(module, entry)
    parent = module.get_submodule(entry.parameter.rpartition(".")[0].rpartition(".")[0])
    caught: list[Tensor] = []

    def from_inputs(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any], output: Any) -> None:
        if (written := _product(entry, args, kwargs)) is not None:
            caught.append(written)
        elif entry.weight.fan_out * entry.weight.fan_in == module.get_parameter(entry.parameter).numel():
            caught.append(output)  # a convolution

    def from_output(_: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)

    if isinstance(parent, nn.MultiheadAttention):  # torch's own never calls its projections
        hook = parent.register_forward_hook(from_output)
    else:
        hook = owner.register_forward_hook(from_inputs, with_kwargs=True)
    with hook:
        run(module, batch)
    if not caught:
        raise ValueError(
            f"batch must reach every projection: {entry.parameter} ({entry.role}) was not used, or is no layer."
        )
    return torch.cat([written.flatten() for written in caught])


def _product(entry: Entry, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
    """What a projection makes of its owner's arguments; None if it does not fit them."""
    read = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
    x = read[entry.role] if entry.role in read else next(iter(read.values()))
    return F.linear(x, entry.view, entry.bias) if x.shape[-1] == entry.weight.fan_in else None
