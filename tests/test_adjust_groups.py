"""Parameter groups and schedules: ordinary objects of torch, with the rates of the formulas."""

import pytest
import torch
from adjust_models import MODELS, ours

from attntut.adjust import layer_lr_decay, warmup


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
    with pytest.raises(ValueError, match="must have blocks in a list"):
        layer_lr_decay(torch.nn.MultiheadAttention(8, 2), lr=1.0)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_warm_up_is_a_line(steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3.0)
    scheduler, rates = warmup(optimizer, steps=steps), []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([3 * min(1, t / steps) for t in range(1, 9)])


def test_its_state_is_torch_s():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = warmup(optimizer, steps=4)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    state = scheduler.state_dict()
    warmup(optimizer, steps=4).load_state_dict(state)
    with pytest.raises(ValueError, match="steps must be an integer ≥ 1"):
        warmup(optimizer, steps=0)
