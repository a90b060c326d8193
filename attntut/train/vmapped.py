"""What is slow under vmap on a CPU, done otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode


@contextmanager
def fast_vmap(device: torch.device) -> Iterator[None]:
    """On a CPU, replace what is slow under vmap."""
    with _FewerPasses() if device.type == "cpu" else nullcontext():
        yield


class _FewerPasses(TorchFunctionMode):
    """The same functions with fewer passes over memory, which is what a step of a stack on a CPU waits for.

    A batched ``linear`` makes a new tensor to add the bias. Fused attention has no batched form, and vmap loops over
    the models; without a mask, the models are one more batch.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and len(args) == 3 and args[2] is not None:
            x, weight, bias = args
            return (x @ weight.mT).add_(bias)
        if func is F.scaled_dot_product_attention:
            plain = kwargs.get("attn_mask") is None and not (kwargs.get("dropout_p") or kwargs.get("enable_gqa"))
            if plain and len(args) == 3:
                return _AttentionOfAll.apply(*args, kwargs.get("is_causal", False), kwargs.get("scale"))
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


class _AttentionOfAll(torch.autograd.Function):
    """Unmasked or causal attention, for all models in one call of the fused kernel."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float | None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep: under vmap, autograd records the call inside."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        *tensors, is_causal, scale = inputs
        together = [
            (x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)
            for x, dim in zip(tensors, in_dims, strict=False)
        ]  # (M·B, H, T, d_head)
        query, key, value = together
        output = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)
        return output.unflatten(0, (info.batch_size, -1)), 0
