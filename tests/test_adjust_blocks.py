"""Branch scale: by hand, at the right places, and what it does with depth."""

import pytest
import torch
from adjust_models import D, encoder, ours
from torch import nn

from attntut import Transformer, TransformerConfig
from attntut.adjust import adjust
from attntut.init import initialize_
from attntut.measure import token_cosine


@pytest.mark.parametrize("norm", ["pre", "post", "none", "sub"])
@pytest.mark.parametrize("factor", [None, 0.3])
def test_it_is_the_factor_of_our_own_config(norm, factor):
    own, plain = ours(norm=norm, residual_scale=2**-0.5 if factor is None else factor), ours(norm=norm)
    plain.load_state_dict(own.state_dict())
    x = torch.randn(2, 6, 5)
    assert not torch.allclose(plain(x), own(x), atol=1e-3)
    with adjust(plain, "branch_scale", factor=factor):
        assert torch.allclose(plain(x), own(x), atol=1e-6)


def test_torch_s_layers_are_scaled_at_both_branches():
    model, x = encoder(norm_first=True, dropout=0.0).eval(), torch.randn(2, 6, D)
    with adjust(model, "branch_scale", factor=0.0):
        assert torch.equal(model(x), x)
        with torch.no_grad():
            assert torch.equal(model(x), x)  # the fused path is off


def test_tokens_stay_apart_in_a_deep_model():
    torch.manual_seed(0)
    deep = Transformer(TransformerConfig(n_classes=2, d_input=64, d_model=64, d_ff=0, n_layers=24, norm="none",
                                         pooling="none", positions="none", seq_len=64))  # fmt: skip
    initialize_(deep, "xavier_normal")
    deep.embedding = nn.Identity()

    def cosine():
        return token_cosine(deep.trace(torch.randn(4, 64, 64)).stream[-1]).mean().item()

    alike = cosine()
    with adjust(deep, "branch_scale"):
        apart = cosine()
    assert alike > 0.9 and apart < 0.2  # 1 − α²-many times without, about 0.025 with 1/√L


def test_experts_in_one_tensor_are_refused():
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(vocab_size=20, hidden_size=16, intermediate_size=8, num_hidden_layers=1,
                                        num_attention_heads=2, num_key_value_heads=1, num_local_experts=2)  # fmt: skip
    with pytest.raises(ValueError, match="not in a layer of its own"):
        adjust(transformers.MixtralModel(config), "branch_scale")
