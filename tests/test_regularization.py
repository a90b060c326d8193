"""The sweep over regularization: its decay is torch's, its dropout keeps the mean, its starts are what they say."""

import copy

import pytest
import torch

from attntut.adjust import cautious_decay, qk_weight_decay
from attntut.data import digits
from attntut.sweeps import regularization as lab
from attntut.train import train, train_many
from attntut.transformer import Transformer


def config(method, strength, **more):
    return {"images": 100, "method": method, "strength": strength, "lr": 0.01, "seed": 0} | more


def decays(model, strength, name):
    """What torch and the library make of a decay, by an optimizer of one model."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    groups = {
        "decay": lambda: [{"params": matrices, "weight_decay": strength}],
        "cautious": lambda: [{"params": matrices, "weight_decay": strength}],
        "query-key": lambda: qk_weight_decay(model, weight_decay=strength),
    }[name]()
    if name != "query-key":
        groups.append({"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    return cautious_decay(optimizer) if name == "cautious" else optimizer


@pytest.mark.parametrize("method", lab.DECAYS)
def test_the_decay_of_many_models_is_that_of_one(method):
    configs = [config("plain", 0.0), config(method, 2.0)]
    start, models = Transformer(lab.SMALL, seed=0), [Transformer(lab.SMALL, seed=0) for _ in configs]
    data = digits(patch=4, n_train=100)
    hook = lab.Decay(models, configs)
    train_many(models, data, lrs=0.01, seeds=[0, 0], steps=5, batch_size=20, after_step=hook, progress=False)
    for model, strength in zip(models, (0.0, 2.0), strict=True):
        alone = copy.deepcopy(start)
        make = (lambda model, lr: decays(model, 2.0, method)) if strength else "adamw"
        train(alone, data, lr=0.01, steps=5, batch_size=20, optimizer=make, progress=False)
        for (name, mine), theirs in zip(alone.named_parameters(), model.parameters(), strict=True):
            if name.endswith("key.bias"):
                continue  # its gradient is rounding alone, which Adam enlarges
            assert torch.allclose(mine, theirs, atol=2e-5), (
                f"{name}: is the decay taken from the weight before the step?"
            )


@pytest.mark.parametrize("where", ["attention", "branches"])
def test_dropout_keeps_the_mean_and_evaluation_knows_none(where):
    torch.manual_seed(0)
    plain = Transformer(lab.SMALL, seed=0)
    model, x = lab.with_dropout(copy.deepcopy(plain), **{where: 0.3}), torch.randn(1, 4, 16)
    assert torch.allclose(model.eval()(x), plain(x), atol=1e-6)
    block, h = model.train().blocks[0], torch.randn(1, 4, 32)
    mean = block.attention(h.expand(4000, 4, 32)).mean(0)
    wanted = plain.blocks[0].attention(h)[0]
    assert torch.allclose(mean, wanted, atol=0.03 if where == "attention" else 0.05)
    assert not torch.allclose(block.attention(h), wanted[None], atol=1e-3)


def test_a_probability_of_their_own_for_each_of_many_models():
    models = [lab.start(config("attention", p)) for p in (0.0, 0.5)]
    plain = lab.start(config("plain", 0.0))
    data = digits(patch=4, n_train=100)
    histories = train_many(models, data, lrs=0.01, seeds=[0, 0], steps=3, batch_size=20, progress=False)
    losses = train(plain, data, lr=0.01, steps=3, batch_size=20, progress=False).losses
    assert torch.allclose(histories[0].losses, losses, atol=1e-5)
    assert not torch.allclose(histories[1].losses, losses, atol=1e-3)


def test_new_top_blocks_leave_the_others_as_they_were_trained():
    before = dict(lab.pretrained().named_parameters())
    model = lab.fine_tuned_start(config("top", 1.0))
    for name, parameter in model.named_parameters():
        changed = not torch.equal(parameter, before[name])
        matrix_above = parameter.ndim > 1 and name.startswith(("blocks.3", "readout"))
        assert changed or not matrix_above, name
        assert not changed or name.startswith(("blocks.3", "readout")), name


def test_runs_of_a_job_go_together():
    for seed, is_drop in ((0, False), (1, True)):
        group = [c for c in lab.SWEEP.configs if lab.shape(c) == (100, seed, is_drop)]
        assert len(group) <= lab.SWEEP.at_once, "The decay must see all models of a job."
        assert {c["method"] in lab.DROPS for c in group} == {is_drop}
