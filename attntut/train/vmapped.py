"""What is slow under vmap on a CPU, done for all models in one call."""

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
    with _ForAllModels() if device.type == "cpu" else nullcontext():
        yield


class _ForAllModels(TorchFunctionMode):
    """The same functions with fewer passes over memory, which is what a step of a stack on a CPU waits for.

    Under vmap, a bias or the weight of a norm is a pass of its own, and fused attention has no batched form: vmap loops
    over the models. Written for all models at once, a bias comes with the product, and without a mask the models are
    one more batch.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and len(args) == 3 and args[2] is not None:
            return _Linear.apply(*args)
        if func is F.layer_norm and len(args) == 5 and args[2] is not None and args[3] is not None:
            return _LayerNorm.apply(*args)
        if func is F.scaled_dot_product_attention:
            plain = kwargs.get("attn_mask") is None and not (kwargs.get("dropout_p") or kwargs.get("enable_gqa"))
            if plain and len(args) == 3:
                return _Attention.apply(*args, kwargs.get("is_causal", False), kwargs.get("scale"))
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


class _ForAll(torch.autograd.Function):
    """A function with a form for all models; under vmap, autograd records what happens inside that form."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep."""


class _Linear(_ForAll):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Tensor) -> tuple[Tensor, int]:
        x, weight, bias = _models_first(info, in_dims, inputs)  # (M, …, fan_in), (M, fan_out, fan_in), (M, fan_out)
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        return torch.baddbmm(bias[:, None], rows, weight.mT).view(*x.shape[:-1], -1), 0


class _LayerNorm(_ForAll):
    @staticmethod
    def forward(x: Tensor, shape: tuple[int, ...], weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, shape, weight, bias, eps)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> tuple[Tensor, int]:
        x, weight, bias = _models_first(info, (in_dims[0], in_dims[2], in_dims[3]), (x, weight, bias))
        each = (len(x), *[1] * (x.ndim - 1 - len(shape)), *shape)
        return torch.addcmul(bias.view(each), F.layer_norm(x, shape, eps=eps), weight.view(each)), 0


class _Attention(_ForAll):
    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float | None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        *tensors, is_causal, scale = inputs
        query, key, value = (x.flatten(0, 1) for x in _models_first(info, in_dims, tensors))  # (M·B, H, T, d_head)
        output = F.scaled_dot_product_attention(query, key, value, is_causal=is_causal, scale=scale)
        return output.unflatten(0, (info.batch_size, -1)), 0


def _models_first(info: Any, in_dims: Any, tensors: Any) -> Iterator[Tensor]:
    for x, dim in zip(tensors, in_dims, strict=False):
        yield x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
