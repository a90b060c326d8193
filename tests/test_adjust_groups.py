"""Parameter groups: every parameter in one, with the rates of the formulas."""

import pytest
import torch
from adjust_models import MODELS, ours

from attntut.adjust import acting_on, adjust, layer_lr_decay, mup_groups, qk_weight_decay
from attntut.anatomy.view import view
from attntut.init.width import learning_rates
from attntut.parts import QKNorm


@pytest.mark.parametrize(
    "name", [name for name in MODELS if name not in ("torch attention", "torch transformer", "T5")]
)
def test_the_rate_falls_with_the_distance_from_the_readout(name):
    model = MODELS[name]()
    groups = layer_lr_decay(model, lr=1.0, decay=0.5)
    held = [id(each) for group in groups for each in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    rates = {id(each): group["lr"] for group in groups for each in group["params"]}
    of_block = {}
    for key, parameter in model.named_parameters():
        number = next((part for part in key.split(".") if part.isdigit()), None)
        if number is not None:
            of_block.setdefault(int(number), set()).add(rates[id(parameter)])
    assert of_block == {0: {0.25}, 1: {0.5}}
    torch.optim.AdamW(groups).step()


def test_the_embedding_is_one_step_before_the_first_block():
    model = ours()
    rates = {id(p): group["lr"] for group in layer_lr_decay(model, lr=1.0, decay=0.1) for p in group["params"]}
    found = [rates[id(each)] for each in (model.embedding.weight, model.embedding.bias, model.positions)]
    assert found == pytest.approx([1e-3] * 3)
    assert rates[id(model.readout.weight)] == rates[id(model.final_norm.weight)] == 1


@pytest.mark.parametrize("changes", [dict(lr=-1), dict(decay=0), dict(decay=1.1)])
def test_what_cannot_be_is_refused(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must be a number"):
        layer_lr_decay(ours(), **dict(lr=1.0) | changes)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="it has no blocks in a list"):
        layer_lr_decay(torch.nn.MultiheadAttention(8, 2), lr=1.0)


@pytest.mark.parametrize("name", MODELS)
def test_rates_fall_with_the_width_where_a_sum_follows(name):
    model = MODELS[name]()
    groups = mup_groups(model, lr=0.1, base_width=8, weight_decay=0.3, force=True)
    held = [id(each) for group in groups for each in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    assert [group["lr"] for group in groups] == [0.05, 0.1]
    assert [group["weight_decay"] for group in groups] == pytest.approx([0.6, 0.3])
    slow = {id(each) for each in groups[0]["params"]}
    for entry in view(model).entries:
        is_slow = entry.role not in ("embedding", "position")
        assert (id(model.get_parameter(entry.parameter)) in slow) == is_slow, entry
    torch.optim.AdamW(groups).step()


def test_they_are_the_rates_of_the_law():
    model = ours(scale=1 / 4)
    ruled, groups = learning_rates(model, 0.1, base_width=8), mup_groups(model, lr=0.1, base_width=8)
    for one, other in zip(ruled, groups, strict=True):
        assert one["lr"] == other["lr"] and all(map(torch.equal, one["params"], other["params"]))
        assert "weight_decay" not in other


@pytest.mark.parametrize("make", [lambda model: mup_groups(model, lr=0.1, base_width=8), qk_weight_decay])
def test_an_adjusted_model_has_all_its_parameters_in_a_group(make):
    model = ours(scale=1 / 4)
    adjust(model, "sigma_reparam")
    first, second = make(model)
    assert len(first["params"]) + len(second["params"]) == len([*model.parameters()])
    assert any(each is model.blocks[0].attention.query.parametrizations.weight.original for each in first["params"])
    assert acting_on(model) == ("sigma_reparam",)


PACKED = ("ours, packed, post-LN", "torch attention", "torch encoder", "torch transformer", "GPT-2")


@pytest.mark.parametrize("name", MODELS)
def test_queries_and_keys_decay_and_nothing_else_does(name):
    model = MODELS[name]()
    if name in PACKED:
        with pytest.raises(ValueError, match=r"queries and keys have no parameters of their own, .* holds the value"):
            qk_weight_decay(model)
        return
    decayed, others = qk_weight_decay(model, weight_decay=0.5)
    named = {id(each): name for name, each in model.named_parameters()}
    roles = {entry.parameter: entry.role for entry in view(model).entries}
    assert {roles[named[id(each)]] for each in decayed["params"]} == {"query", "key"}
    assert not {roles.get(named[id(each)]) for each in others["params"]} & {"query", "key"}
    assert len(decayed["params"]) + len(others["params"]) == len(named)
    before = {key: each.detach().clone() for key, each in model.named_parameters()}
    for each in model.parameters():
        each.grad = torch.zeros_like(each)
    torch.optim.AdamW([decayed, others], lr=0.1).step()
    for key, each in model.named_parameters():
        factor = 0.95 if roles.get(key) in ("query", "key") else 1.0
        assert torch.allclose(each, factor * before[key])


@pytest.mark.parametrize("call, message", [
    (lambda: mup_groups(ours(scale=1 / 4), lr=0, base_width=8), "lr must be a number > 0"),
    (lambda: mup_groups(ours(scale=1 / 4), lr=1, base_width=0), "base_width must be an integer ≥ 1"),
    (lambda: mup_groups(ours(scale=1 / 4), lr=1, base_width=8, weight_decay=-1), "weight_decay must be a number ≥ 0"),
    (lambda: mup_groups(ours(), lr=1, base_width=8), r"'mup_groups' needs 1/d_head logits.*scale=0.5 instead of 0.25"),
    (lambda: qk_weight_decay(ours(parts=(QKNorm(),))), "'qk_weight_decay' clashes with the model's own QK-norm"),
    (lambda: qk_weight_decay(ours(), weight_decay=-1), "weight_decay must be a number ≥ 0"),
    (lambda: qk_weight_decay(ours(), others=-1), "others must be a number ≥ 0"),
    (lambda: qk_weight_decay(torch.nn.Linear(2, 2)), "model must contain attention"),
])  # fmt: skip
def test_what_groups_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_required_or_clashes_may_come_from_a_method_and_may_be_overlooked():
    model = ours()
    with adjust(model, "temperature"):  # 1/√d_head is 1/d_head then
        rates = [group["lr"] for group in mup_groups(model, lr=0.1, base_width=8)]
    assert rates == [group["lr"] for group in mup_groups(model, lr=0.1, base_width=8, force=True)]
    with adjust(model, "temperature", tau=3.0), pytest.raises(ValueError, match="needs 1/d_head logits"):
        mup_groups(model, lr=0.1, base_width=8)
    with adjust(model, "qk_norm"):
        with pytest.raises(ValueError, match="'qk_weight_decay' clashes with qk_norm, because the norm divides"):
            qk_weight_decay(model)
        assert len(qk_weight_decay(model, force=True)[0]["params"]) == 4
