"""Training one model, and many at once: the same result, member by member, whatever happens to the others."""

import copy
import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import vmap

from attntut import Transformer, TransformerConfig
from attntut.adjust import z_loss
from attntut.adjust.schedules import InverseSqrt
from attntut.data import UNSCORED, Data, associative_recall, digits, reverse
from attntut.device import seeded
from attntut.train import Evaluation, History, scoring, train, train_many, vmapped
from attntut.train.ensemble import rectification

STEPS = 20


@pytest.fixture(scope="module")
def images():
    return digits(n_train=100, test_fraction=0.05).to(dtype=torch.float64)


@pytest.fixture(scope="module")
def tokens():
    return associative_recall(n_pairs=2, n_keys=4, n_values=3, n_train=100, n_test=20)


def image_model(seed=0, dtype=torch.float64, **options):
    config = TransformerConfig(**{**dict(n_classes=10, d_input=4, d_model=8, n_heads=2, d_ff=8, n_layers=1), **options})
    return Transformer(config, seed=seed).to(dtype)


def token_model(seed=0, **options):
    config = dict(n_classes=7, vocab_size=7, seq_len=5, d_model=8, n_heads=2, d_ff=8, n_layers=2, pooling="none")
    return Transformer(TransformerConfig(**{**config, **options}), seed=seed).double()


def blobs(n=24, seed=0):
    """Two Gaussians, hardly overlapping; one token an input."""
    generator = seeded(seed)
    y = torch.randint(2, (n,), generator=generator)
    x = torch.randn(n, 1, 3, generator=generator, dtype=torch.float64) + 3 * y[:, None, None]
    return Data("blobs", x, y, x, y, n_classes=2)


class Linear(nn.Module):
    """The smallest model that can be trained."""

    def __init__(self, seed=0, width=2):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, 3, generator=seeded(seed), dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(width, dtype=torch.float64))

    def forward(self, x):
        return x[:, 0] @ self.weight.mT + self.bias


def assert_same_weights(ones, many, atol=1e-8):
    for i, (one, other) in enumerate(zip(ones, many, strict=True)):
        for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=atol), (
                f"models[{i}].{name}: trained alone and among others, its weights differ by {(a - b).abs().max():.1e}."
            )


def assert_same_histories(ones, many):
    for i, (a, b) in enumerate(zip(ones, many, strict=True)):
        assert (a.lr, a.seed, a.diverged_at) == (b.lr, b.seed, b.diverged_at), f"Member {i}."
        assert torch.allclose(a.losses, b.losses, rtol=0, atol=1e-8, equal_nan=True), (
            f"The losses of member {i} differ."
        )
        assert [e.step for e in a.evaluations] == [e.step for e in b.evaluations]
        assert torch.allclose(torch.tensor(a.evaluations), torch.tensor(b.evaluations), rtol=0, atol=1e-6), (
            f"The evaluations of member {i} differ."
        )


def train_both_ways(models, data, lrs, seeds, **options):
    """One by one and at once, from the same weights; returns ``(models, histories)`` of both."""
    ones, many = copy.deepcopy(models), copy.deepcopy(models)
    alone = [train(m, data, lr=lr, seed=seed, **options) for m, lr, seed in zip(ones, lrs, seeds, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # vmap warns where it falls back to a slow loop
        together = train_many(many, data, lrs=lrs, seeds=seeds, **options)
    return ones, alone, many, together


def unit_readout(parameters):
    weight = parameters["readout.weight"]
    weight.copy_(torch.nn.functional.normalize(weight, dim=-1))


VARIANTS = {
    "plain": dict(),
    "adam with decay": dict(optimizer="adam", weight_decay=0.1),
    "adamw, everything": dict(weight_decay=0.1, warmup=7, clip_norm=0.5, betas=(0.8, 0.95), eval_every=8),
    "sgd": dict(optimizer="sgd", weight_decay=0.01, momentum=0.9),
    "sgd without momentum": dict(optimizer="sgd"),
    "radam with decay": dict(optimizer="radam", weight_decay=0.1, betas=(0.9, 0.9)),
    "a schedule and a penalty": dict(schedule=InverseSqrt(warmup=7), penalty=partial(z_loss, coefficient=0.01)),
    "rates and a hook": dict(lr_factors={"readout.weight": 0.1, "readout.bias": 0.0}, after_step=unit_readout),
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_many_on_images_equal_one_by_one(images, options):
    models = [image_model(seed) for seed in range(3)]
    ones, alone, many, together = train_both_ways(
        models, images, [1e-3, 1e-2, 3e-2], [5, 6, 5], steps=STEPS, batch_size=8, **options
    )
    assert_same_weights(ones, many)
    assert_same_histories(alone, together)
    assert not torch.equal(many[0].readout.weight, models[0].readout.weight), "Nothing was trained."


@pytest.mark.parametrize(
    "shape", [{}, {"is_causal": True}, {"packed": True, "norm": "post"}, {"branch_gain": 0.5}], ids=str
)
def test_many_on_tokens_equal_one_by_one(tokens, shape):
    models = [token_model(seed, **shape) for seed in range(3)]
    ones, alone, many, together = train_both_ways(
        models, tokens, [1e-3, 1e-2, 3e-2], [0, 1, 2], steps=STEPS, batch_size=8, eval_every=10
    )
    assert_same_weights(ones, many)
    assert_same_histories(alone, together)


def test_a_factor_of_the_rate_and_a_change_after_the_step_reach_the_parameters_that_they_name():
    models, before = [Linear(i) for i in range(2)], [Linear(i) for i in range(2)]
    seen = []
    options = dict(steps=1, batch_size=8, lr_factors={"weight": 0.25})
    options["after_step"] = lambda parameters: seen.append(parameters["bias"].shape)
    train_many(models, blobs(), lrs=[0.1, 0.2], **options)
    for model, old, lr in zip(models, before, (0.1, 0.2), strict=True):
        slow, free = (model.weight - old.weight).abs().max().item(), (model.bias - old.bias).abs().max().item()
        assert (slow, free) == pytest.approx((lr / 4, lr), rel=1e-3), "Adam's first step is the rate, in every entry."
    train(models[0], blobs(), lr=0.1, **options)
    assert [len(shape) for shape in seen] == [2, 1], "In train_many each parameter has one more dimension."


@pytest.mark.parametrize("chunk", [1, 2, 4, 9])
def test_any_chunk_gives_the_same_result(images, chunk):
    models = [image_model(seed) for seed in range(4)]
    chunked = copy.deepcopy(models)
    whole = train_many(models, images, steps=5, lrs=1e-2, batch_size=8)
    parts = train_many(chunked, images, steps=5, lrs=1e-2, batch_size=8, chunk=chunk)
    assert_same_weights(models, chunked, atol=1e-10)
    assert_same_histories(whole, parts)


@pytest.mark.parametrize("n, chunk, parts", [(5, 2, 3), (5, 9, 1), (5, None, 1), (64, None, 2), (65, None, 3)])
def test_no_more_models_than_a_chunk_run_at_once(n, chunk, parts):
    calls = []

    class Counted(Linear):
        def forward(self, x):
            calls.append(self.training)
            return super().forward(x)

    train_many([Counted(i) for i in range(n)], blobs(), steps=2, lrs=0.1, batch_size=8, chunk=chunk)
    assert calls == [True, True, False] * parts, "Two steps and one evaluation for all models of a part together."


@pytest.mark.parametrize("short", [64, 1], ids=["short", "long"])
@pytest.mark.parametrize(
    "options", [{}, {"scale": 0.3}, {"is_causal": True}, {"attn_mask": torch.ones(5, 5).tril().bool()}], ids=str
)
def test_the_shortcuts_compute_what_torch_computes(options, short, monkeypatch):
    monkeypatch.setattr(vmapped, "SHORT", short)
    query, key, value = torch.randn(3, 2, 3, 4, 5, 6, dtype=torch.float64)  # models, batch, heads, tokens, d_head
    layer, x = nn.Linear(6, 7).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    attention = nn.functional.scaled_dot_product_attention
    expected = attention(query, key, value, **options), layer(x), layer(x[0, 0])
    with vmapped.fast_vmap(torch.device("cpu")):
        got = vmap(partial(attention, **options))(query, key, value), layer(x), layer(x[0, 0])
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


class Offset(nn.Module):
    """A bias is all that it learns: its weight, and what the weight sees, are the same for all models."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = torch.eye(2, 3).double(), nn.Parameter(torch.zeros(2).double())

    def forward(self, x):
        return nn.functional.linear(0 * x[:, 0], self.weight, self.bias)


def test_a_weight_that_all_models_share_is_no_obstacle():
    ones, _, many, _ = train_both_ways([Offset(), Offset()], blobs(), [0.1, 0.2], [0, 1], steps=3, batch_size=8)
    assert_same_weights(ones, many)


# divergence


def poisoned(width=2):
    """A model whose loss is infinite, since its weights are."""
    model = Linear(seed=9, width=width)
    with torch.no_grad():
        model.weight.fill_(math.inf)
    return model


def test_a_member_that_diverges_harms_no_other():
    models = [Linear(0), poisoned(), Linear(1)]
    ones, alone, many, together = train_both_ways(
        models, blobs(), [0.1, 0.1, 0.1], [0, 1, 2], steps=STEPS, batch_size=8, eval_every=6
    )
    assert [history.diverged_at for history in together] == [None, 0, None]
    assert_same_weights([ones[0], ones[2]], [many[0], many[2]])
    assert_same_histories([alone[0], alone[2]], [together[0], together[2]])
    assert torch.equal(many[1].weight, models[1].weight), "The weights of a diverged member must stay as they were."
    assert len(together[1].evaluations) == len(together[0].evaluations), "Curves of all members must have one length."


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_member_is_frozen_before_its_bad_step(optimizer):
    """Learning rate 30 sends the loss over the limit after some steps; 0.01 never does."""
    options = dict(steps=STEPS, batch_size=8, optimizer=optimizer, weight_decay=0.1, max_loss=20.0)
    lrs = [0.01, 30.0, 0.01]
    ones, alone, many, together = train_both_ways([Linear(i) for i in range(3)], blobs(), lrs, [0, 1, 2], **options)
    at = together[1].diverged_at
    assert at is not None and 0 < at < STEPS - 1, f"The test needs a divergence on the way: got {at}."
    assert [h.diverged_at for h in together] == [None, at, None] == [h.diverged_at for h in alone]
    assert together[1].losses[at] > 20 and together[1].losses[at + 1 :].isnan().all()
    assert_same_weights(ones, many)
    assert_same_histories(alone, together)

    shorter = Linear(1)
    train(shorter, blobs(), lr=30.0, seed=1, **{**options, "steps": at})
    assert_same_weights([shorter], [many[1]])


def test_a_gradient_that_is_not_finite_counts_as_a_divergence():
    """√ has an infinite slope at 0: a finite loss with a gradient of NaN."""

    class Root(Linear):
        def forward(self, x):
            return super().forward(x) + self.bias.abs().sqrt()

    models = [Root(0), Root(1)]
    with torch.no_grad():
        models[1].bias.fill_(1.0)
    ones, alone, many, together = train_both_ways(models, blobs(), [0.1, 0.1], [0, 0], steps=3, batch_size=8)
    assert [h.diverged_at for h in together] == [0, None] == [h.diverged_at for h in alone]
    assert together[0].losses[0].isfinite()
    assert_same_weights(ones, many)


def test_when_all_have_diverged_the_rest_is_skipped():
    histories = train_many([poisoned(), poisoned()], blobs(), steps=5, lrs=0.1, batch_size=8)
    assert [h.diverged_at for h in histories] == [0, 0]
    assert all(h.losses[1:].isnan().all() for h in histories)


# what training does


def test_training_learns_digits():
    data = digits()
    histories = train_many([image_model(s, torch.float32, d_model=16) for s in range(2)], data, steps=80, lrs=2e-2)
    assert all(history.final_accuracy > 0.35 for history in histories), histories
    assert all(history.losses[-20:].mean() < history.losses[:5].mean() / 1.2 for history in histories)


def test_the_first_step_of_adam_is_the_learning_rate():
    model, before = Linear(), Linear()
    train(model, blobs(), steps=1, lr=0.01, batch_size=8)
    change = (model.weight - before.weight).abs()
    assert torch.allclose(change, torch.full_like(change, 0.01), rtol=1e-5)


def test_warm_up_is_linear():
    model, before = Linear(), Linear()
    train(model, blobs(), steps=1, lr=0.01, batch_size=8, warmup=4)
    assert torch.allclose((model.weight - before.weight).abs().max(), torch.tensor(0.0025).double(), rtol=1e-5)


def test_radam_waits_and_then_is_rectified_as_in_torch():
    ours = [rectification(t, 0.999) for t in range(1, 200)]
    assert ours[:5] == [0.0] * 5 and ours == sorted(ours)
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.RAdam([weight], lr=1.0, eps=0.0)
    for factor in ours:
        before, weight.grad = weight.item(), torch.ones(1, dtype=torch.float64)
        optimizer.step()
        assert before - weight.item() == pytest.approx(factor or 1.0, abs=1e-10)  # m and √v of a constant are 1


def test_a_schedule_is_the_factor_of_the_rate():
    model, rates = Linear(), [0.5, 0.0, 2.0]
    seen = [model.weight.detach().clone()]
    after = dict(after_step=lambda parameters: seen.append(parameters["weight"].detach().clone()))
    train(model, blobs(), steps=3, lr=0.1, batch_size=8, optimizer="sgd", schedule=rates.__getitem__, **after)
    assert torch.equal(seen[1], seen[2]) and not torch.equal(seen[0], seen[1]) and not torch.equal(seen[2], seen[3])


def test_an_optimizer_of_ones_own_gets_the_model_and_its_rates_are_scheduled():
    given = []

    def two(model, lr):
        given.append((model, lr))
        return torch.optim.SGD([model.weight], lr=lr), torch.optim.SGD([model.bias], lr=0.0)

    model, plain = Linear(), Linear()
    bias = model.bias.detach().clone()
    options = dict(steps=3, batch_size=8, warmup=2)
    train(model, blobs(), lr=0.1, optimizer=two, **options)
    train(plain, blobs(), lr=0.1, optimizer="sgd", lr_factors={"bias": 0.0}, **options)
    assert given == [(model, 0.1)] and torch.equal(model.bias, bias) and model.weight.grad is None
    torch.testing.assert_close(model.weight, plain.weight, rtol=0, atol=0)


def test_the_penalty_is_part_of_what_is_minimized():
    plain, penalized = (train(Linear(), blobs(), steps=2, lr=0.1, batch_size=8, **options) for options in
                        ({}, {"penalty": lambda logits: 0 * logits.sum() + 3.0}))  # fmt: skip
    assert (penalized.losses - plain.losses).tolist() == pytest.approx([3.0, 3.0])
    assert penalized.final_loss == plain.final_loss


def test_clipping_bounds_the_step_of_sgd():
    model, before = Linear(), Linear()
    train(model, blobs(), steps=1, lr=1.0, batch_size=8, optimizer="sgd", clip_norm=1e-3)
    moved = math.hypot(*(torch.dist(a, b).item() for a, b in zip(model.parameters(), before.parameters(), strict=True)))
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_the_loss_is_torchs_with_and_without_unscored_targets():
    logits = torch.randn(4, 5, 7, dtype=torch.float64, requires_grad=True)
    for share in (0, 0.4):
        targets = torch.randint(7, (4, 5)).masked_fill(torch.rand(4, 5) < share, UNSCORED)
        expected = nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=UNSCORED)
        got = scoring.objective(logits, targets, 7)
        assert torch.allclose(got, expected, rtol=1e-12)
        assert torch.allclose(*(torch.autograd.grad(loss, logits)[0] for loss in (got, expected)), atol=1e-12)


class Table(nn.Module):
    """The same logits for every input: those of its positions."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))

    def forward(self, x):
        return self.logits.expand(len(x), *self.logits.shape)


def test_unscored_targets_teach_nothing():
    data = reverse(seq_len=3, vocab_size=4, n_train=16, n_test=16)
    targets = data.train_targets.clone()
    targets[:, 1:] = UNSCORED
    model = Table(torch.zeros(3, 4).tolist())
    partly = Data("partly", data.train_inputs, targets, data.test_inputs, targets, n_classes=4)
    train(model, partly, steps=3, lr=0.1, batch_size=16, optimizer="sgd")
    assert (model.logits[0] != 0).all() and (model.logits[1:] == 0).all(), "Is it the unscored positions that learn?"


def test_unscored_targets_count_nowhere():
    """Position 0 says class 1 with probability 3/6; it is right in 5 of 16, and position 1, unscored, in all."""
    x, y = torch.zeros(16, 2, dtype=torch.int64), torch.full((16, 2), UNSCORED)
    y[:, 0] = torch.tensor([1] * 5 + [0] * 11)
    y[3:5, 1] = 2
    data = Data("by hand", x, y, x, y, n_classes=4)
    for history in (
        train(Table([[0, math.log(3), 0, 0], [0, 0, 9, 0]]), data, steps=1, lr=0.0, batch_size=8),
        *train_many([Table([[0, math.log(3), 0, 0], [0, 0, 9, 0]])], data, steps=1, lrs=0.0, batch_size=8),
    ):
        assert history.final_accuracy == pytest.approx(7 / 18), "5 of 16, and 2 of 2."
        sure = math.log(1 + 3 * math.exp(-9))
        assert history.final_loss == pytest.approx((5 * math.log(2) + 11 * math.log(6) + 2 * sure) / 18)


def test_the_seed_decides_the_batches():
    data = blobs()
    first, again, other = (train(Linear(), data, steps=5, lr=0.1, batch_size=8, seed=s).losses for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_equal_seeds_see_equal_batches():
    histories = train_many([Linear(), Linear(), Linear()], blobs(), steps=5, lrs=0.1, seeds=[3, 3, 4], batch_size=8)
    assert torch.equal(histories[0].losses, histories[1].losses)
    assert not torch.equal(histories[0].losses, histories[2].losses)


def test_every_input_is_seen_once_in_a_pass():
    seen = []

    class Recorder(Linear):
        def forward(self, x):
            if self.training:
                seen.extend(x[:, 0, 0].tolist())
            return super().forward(x)

    data = blobs(n=24)
    train(Recorder(), data, steps=6, lr=0.1, batch_size=8)
    everything = sorted(data.train_inputs[:, 0, 0].tolist())
    assert sorted(seen[:24]) == everything and sorted(seen[24:]) == everything
    assert seen[:24] != seen[24:], "Every pass must have an order of its own."


def test_frozen_parameters_stay():
    models = [image_model(seed) for seed in range(2)]
    for model in models:
        model.embedding.requires_grad_(False)
    before = copy.deepcopy(models)
    data = digits(n_train=50, test_fraction=0.05)
    ones, alone, many, together = train_both_ways(
        models, data, [0.01, 0.02], [0, 1], steps=3, batch_size=8, weight_decay=0.1
    )
    assert_same_weights(ones, many)
    assert_same_histories(alone, together)
    for old, new in zip(before, many, strict=True):
        assert torch.equal(old.embedding.weight, new.embedding.weight), "A frozen parameter was trained."
        assert not torch.equal(old.readout.weight, new.readout.weight)
        assert not new.embedding.weight.requires_grad and new.readout.weight.requires_grad


def test_a_parameter_that_the_loss_ignores_decays_alike():
    class Idle(Linear):
        def __init__(self, seed):
            super().__init__(seed)
            self.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))

    ones, _, many, _ = train_both_ways(
        [Idle(0), Idle(1)], blobs(), [0.1, 0.2], [0, 1], steps=2, batch_size=8, weight_decay=0.5
    )
    assert_same_weights(ones, many)
    assert many[0].idle[0].item() == pytest.approx(0.95**2)


def test_dropout_differs_between_members_and_repeats_with_the_seed():
    class Dropping(Linear):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, 0.5, self.training))

    def run():
        return train_many([Dropping(), Dropping()], blobs(), steps=5, lrs=0.1, seeds=[0, 0], batch_size=8)

    first, second = run()
    assert not torch.equal(first.losses, second.losses), "Two members must not drop the same units."
    assert torch.equal(first.losses, run()[0].losses)


@pytest.mark.parametrize("many", [False, True])
def test_nothing_else_of_the_model_or_of_torch_is_touched(many):
    model = Linear()
    model.eval()
    state = torch.get_rng_state()
    if many:
        train_many([model], blobs(), steps=2, lrs=0.1, batch_size=8)
    else:
        train(model, blobs(), steps=2, lr=0.1, batch_size=8)
    assert not model.training, "The mode of the model changed."
    assert torch.equal(torch.get_rng_state(), state), "Training moved torch's global generator."
    assert model.weight.grad is None and model.weight.requires_grad and model.weight.is_leaf


@pytest.mark.parametrize("progress, drawn", [(None, False), (False, False), (True, True)])
def test_the_bar_is_silent_unless_asked_for(progress, drawn, capfd):
    train(Linear(), blobs(), steps=2, lr=0.1, batch_size=8, progress=progress)
    train_many([Linear()], blobs(), steps=2, lrs=0.1, batch_size=8, progress=progress)
    out, err = capfd.readouterr()
    assert bool(err) == drawn and not out


# History


def test_history_of_a_run():
    history = train(Linear(), blobs(), steps=5, lr=0.1, batch_size=8, eval_every=2)
    assert history.losses.shape == (5,) and history.losses.dtype == torch.float64
    assert [e.step for e in history.evaluations] == [0, 2, 4, 5]
    assert not history.diverged


def test_a_history_ends_with_its_last_evaluation():
    history = History(torch.zeros(9), (Evaluation(0, 2.0, 0.1), Evaluation(9, 0.5, 0.9)), 7, lr=0.1, seed=3)
    assert (history.final_loss, history.final_accuracy, history.diverged) == (0.5, 0.9, True)


@pytest.mark.parametrize("batch", [7, 128])
def test_evaluation_is_the_mean_over_the_whole_test_set(batch, monkeypatch):
    """The model says class 1 with probability 3/4; 15 of 24 are of class 1, the first 15."""
    monkeypatch.setattr(scoring, "EVAL_BATCH", batch)
    y = torch.tensor([1] * 15 + [0] * 9)
    data = Data("by hand", torch.zeros(24, 2), y, torch.zeros(24, 2), y, n_classes=2)
    (many,) = train_many([Table([0, math.log(3)])], data, steps=1, lrs=0.0, batch_size=8)
    for history in (train(Table([0, math.log(3)]), data, steps=1, lr=0.0, batch_size=8), many):
        assert history.final_accuracy == 15 / 24
        assert history.final_loss == pytest.approx((15 * math.log(4 / 3) + 9 * math.log(4)) / 24)


def test_repr_names_the_divergence():
    history = History(torch.tensor([math.nan]), (Evaluation(1, 2.0, 0.1),), 0, lr=0.1, seed=3)
    assert repr(history) == "History(steps=1, test loss 2.0000, accuracy 0.100, lr=0.1, seed=3, diverged at step 0)"


# bad arguments

BAD = [
    (dict(steps=0), ValueError, "steps must be an integer ≥ 1: got 0"),
    (dict(batch_size=0), ValueError, "batch_size must be an integer ≥ 1: got 0"),
    (dict(batch_size=25), ValueError, "batch_size must be at most 24, the size of the training set: got 25"),
    (dict(optimizer="adamx"), ValueError, "optimizer must be one of .* got 'adamx'. Did you mean 'adam"),
    (dict(weight_decay=-1), ValueError, "weight_decay must be a number ≥ 0: got -1"),
    (dict(momentum=0.9), ValueError, "momentum must be 0 unless optimizer is 'sgd'"),
    (dict(betas=0.9), TypeError, "betas must be a pair of numbers: got 0.9"),
    (dict(betas=(0.9, 1.0)), ValueError, r"betas\[1\] must be a number ≥ 0 and < 1: got 1.0"),
    (dict(warmup=-1), ValueError, "warmup must be an integer ≥ 0: got -1"),
    (dict(schedule=3), TypeError, "schedule must be a function: got 3"),
    (dict(penalty=0.1), TypeError, r"penalty must be a function: got 0\.1"),
    (dict(warmup=2, schedule=len), ValueError, "warmup must be 0 where there is a schedule, which has its own: got 2"),
    (dict(optimizer=len, momentum=0.9), ValueError, "momentum must be left out where optimizer is a function"),
    (dict(clip_norm=0), ValueError, "clip_norm must be a number > 0: got 0"),
    (dict(max_loss=0), ValueError, "max_loss must be a number > 0: got 0"),
    (dict(max_loss="big"), TypeError, "max_loss must be a number > 0: got 'big'"),
    (dict(max_loss=math.nan), ValueError, "max_loss must be a number > 0: got nan"),
    (dict(batchsize=8), TypeError, "unexpected keyword argument 'batchsize'"),
    (dict(eval_every=0), ValueError, "eval_every must be an integer ≥ 1: got 0"),
    (dict(lr_factors={"weight": -1.0}), ValueError, r"lr_factors\['weight'\] must be a number ≥ 0: got -1"),
    (dict(lr_factors={"wieght": 1.0}), ValueError, "lr_factors must be one of .* got 'wieght'"),
    (dict(data=[1]), TypeError, r"data must be an attntut\.data\.Data: got list"),
]


@pytest.mark.parametrize("arguments, error, message", BAD)
@pytest.mark.parametrize("many", [False, True])
def test_bad_arguments_of_both(arguments, error, message, many):
    arguments = {"data": blobs(), "steps": 1, "batch_size": 8, **arguments}
    with pytest.raises(error, match=message):
        train_many([Linear()], lrs=0.1, **arguments) if many else train(Linear(), lr=0.1, **arguments)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(model=torch.zeros(1)), TypeError, r"model must be a torch\.nn\.Module: got Tensor"),
        (dict(model=nn.ReLU()), ValueError, "model must have a parameter that requires a gradient: ReLU has none"),
        (dict(lr=-0.1), ValueError, "lr must be a number ≥ 0: got -0.1"),
        (dict(lr="0.1"), TypeError, "lr must be a number"),
        (dict(seed=-1), ValueError, "seed must be an integer ≥ 0: got -1"),
        (
            dict(model=Linear(width=1)),
            ValueError,
            r"logits of shape \(8, 2\) for targets of shape \(8,\): got \(8, 1\)",
        ),
    ],
)
def test_bad_arguments_of_train(arguments, error, message):
    arguments = {"model": Linear(), "data": blobs(), "steps": 1, "lr": 0.1, "batch_size": 8, **arguments}
    with pytest.raises(error, match=message):
        train(**arguments)


def test_an_output_without_shape_is_refused():
    class Pair(Linear):
        def forward(self, x):
            return super().forward(x), None

    with pytest.raises(ValueError, match=r"model must return logits .* got tuple"):
        train(Pair(), blobs(), steps=1, lr=0.1, batch_size=8)


TWO = [Linear(0), Linear(1)]


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(models=Linear()), TypeError, r"models must be a sequence of torch\.nn\.Module: got Linear"),
        (dict(models=3), TypeError, "models must be a sequence"),
        (dict(models=[]), ValueError, "models must hold at least one model: got none"),
        (dict(models=[TWO[0], 3]), TypeError, r"models\[1\] must be a torch\.nn\.Module: got int"),
        (dict(models=[TWO[0], TWO[0]]), ValueError, r"models must be different objects: models\[1\] came before"),
        (dict(lrs=[0.1]), ValueError, "lrs must hold one number per model, 2 in all: got 1"),
        (dict(lrs=[0.1, -1]), ValueError, r"lrs\[1\] must be a number ≥ 0: got -1"),
        (dict(lrs="ab"), TypeError, "lrs must hold one number per model: got 'ab'"),
        (dict(seeds=3), TypeError, "seeds must hold one number per model: got 3"),
        (dict(seeds=[0, 1.5]), TypeError, r"seeds\[1\] must be an integer"),
        (dict(optimizer=len), TypeError, "optimizer must be a name in train_many"),
        (dict(chunk=0), ValueError, "chunk must be an integer ≥ 1: got 0"),
    ],
)
def test_bad_arguments_of_train_many(arguments, error, message):
    arguments = {"models": TWO, "data": blobs(), "steps": 1, "lrs": 0.1, "batch_size": 8, **arguments}
    with pytest.raises(error, match=message):
        train_many(**arguments)


def widened(model):
    model.more = nn.Parameter(torch.zeros(2))
    return model


def frozen(model):
    model.readout.bias.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    "other, message",
    [
        (Linear(), "the type is Transformer in models\\[0\\] and Linear in models\\[2\\]"),
        (image_model(n_layers=2), "'config.n_layers' is 1 in models\\[0\\] and 2 in models\\[2\\]"),
        (widened(image_model()), r"parameter 'more' is missing in models\[0\] and \(2,\) .* in models\[2\]"),
        (image_model(d_ff=16), r"parameter 'blocks.0.feed_forward.0.weight' is \(8, 8\) .* and \(16, 8\)"),
        (image_model(dtype=torch.float32), "parameter 'positions' is .* torch.float64 on cpu .* torch.float32 on cpu"),
        (frozen(image_model()), "parameter 'readout.bias' is .* on cpu in models.* on cpu, frozen in"),
        (image_model(norm="post"), "parameter 'final_norm.weight' is .* and missing in models"),
        (image_model(residual_scale=0.5), "'config.residual_scale' is 1.0 in models\\[0\\] and 0.5 in models\\[2\\]"),
        (image_model(activation="relu"), "'config.activation' is gelu in models\\[0\\] and relu in models\\[2\\]"),
    ],
)
def test_models_of_another_shape_are_refused(images, other, message):
    with pytest.raises(ValueError, match=f"models must differ in the values of their weights only: {message}"):
        train_many([image_model(0), image_model(1), other], images, steps=1, lrs=0.1)
