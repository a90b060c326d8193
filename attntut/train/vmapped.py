"""What is slow under vmap on a CPU, written in another way."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from attntut.attention import scaled_dot_product_attention

SHORT = 64  # tokens up to which writing the maps down costs no more than fusing them, and little memory


def fast_vmap(device: torch.device) -> AbstractContextManager[Any]:
    """On a CPU, replace what is slow under vmap."""
    return _ForAllModels() if device.type == "cpu" else nullcontext()


class _ForAllModels(TorchFunctionMode):
    """The same functions with fewer passes over memory, which is what a step of many models on a CPU waits for.

    Under vmap a bias is a pass of its own: here it is added in place. Fused attention has no batched form there, and
    where the maps are small, plain products of matrices are faster in any case.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and len(args) == 3 and args[2] is not None and args[0].ndim > 1:
            return _linear(*args)
        if func is F.scaled_dot_product_attention:
            plain = kwargs.get("attn_mask") is None and not (kwargs.get("dropout_p") or kwargs.get("enable_gqa"))
            if plain and len(args) == 3:
                return _attention(*args, kwargs.get("is_causal", False), kwargs.get("scale"))
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    product = x.flatten(end_dim=-2) @ weight.mT
    return product.add_(bias).view(*x.shape[:-1], -1)


def _attention(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float | None) -> Tensor:
    n, m = query.shape[-2], key.shape[-2]
    if n * m > SHORT**2:
        return _Fused.apply(query, key, value, is_causal, scale)
    return scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)[0]


class _Fused(torch.autograd.Function):
    """Fused attention for all models in one call; under vmap, autograd records what happens inside that call."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float | None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        *tensors, is_causal, scale = inputs
        every = [
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(tensors, in_dims, strict=False)
        ]
        query, key, value = (x.flatten(0, 1) for x in every)  # (M·B, H, T, d_head)
        output = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)
        return output.unflatten(0, (info.batch_size, -1)), 0
