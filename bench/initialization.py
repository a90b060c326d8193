"""What it costs to initialize a model by name, against the model's own initialization."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch

from attntut.init import initialize_
from bench.table import Row, seconds

SCHEMES = ("gpt2", "xavier_uniform", "trunc_normal")


def initialization() -> list[Row]:
    """``initialize_`` over what Hugging Face's GPT-2 small does to itself."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import GPT2Config, GPT2LMHeadModel  # seconds of import, for this part alone

    model: Any = GPT2LMHeadModel(GPT2Config())
    own_way = partial(model.apply, model._init_weights)  # init_weights() itself draws nothing a second time
    weight = model.transformer.h[0].mlp.c_fc.weight
    for name, initialize in {"the model": own_way, "initialize_": partial(initialize_, model, "gpt2")}.items():
        before = weight.detach().clone()
        initialize()
        assert not torch.equal(weight, before), f"{name} drew nothing: what does the ratio say then?"
    own, *ours = seconds(own_way, *(partial(initialize_, model, name) for name in SCHEMES), repeats=5)
    ratios = ", ".join(f"`{name}` {taken / own:.2f}×" for name, taken in zip(SCHEMES, ours, strict=True))
    what = f"`initialize_` over the model's own initialization, GPT-2 small ({model.num_parameters() / 1e6:.0f} M)"
    return [Row(what, f"{ratios} ({own:.1f} s)", "≤ 1×")]
