"""What the schemes of the families data, depth and width promise of a whole model, and wrong variants that break it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attntut import Transformer, TransformerConfig
from attntut.anatomy.weight import BRANCH, weights
from attntut.device import seeded
from attntut.init import data, initialize_, schemes, view
from attntut.init.data import output_of
from attntut.init.depth import LINEAR_PATH, deepnorm_constants
from attntut.init.width import learning_rates
from attntut.measure import rms, token_cosine, update_size

DEPTHS = [2, 4, 8]
ENDS = [2, 16]  # a longer lever, where seeds differ more than depths


def build(n_layers=2, d=32, **options):
    config = dict(n_classes=10, d_input=8, seq_len=8, d_model=d, n_heads=4, n_layers=n_layers)
    return Transformer(TransformerConfig(**config | options), seed=0)


def built_for(name, n_layers=2, d=32, **options):
    """A model of the architecture that a scheme asks for, not yet initialized by it."""
    return build(n_layers, d, **schemes()[name].architecture(n_layers, d_head=d // 4) | options)


def examples(seed=0, n=8):
    generator = seeded(100 + seed)
    return torch.randn(n, 8, 8, generator=generator), torch.randint(10, (n,), generator=generator)


def slope(sizes, values):
    """The power of the sizes that the values grow with."""
    x, y = (torch.tensor(each, dtype=torch.float64).log() for each in (sizes, values))
    return (((x - x.mean()) * y).sum() / (x - x.mean()).square().sum()).item()


def mean_over_seeds(function, sizes, seeds=3):
    return [sum(function(size, seed) for seed in range(seeds)) / seeds for size in sizes]


def step_of_sgd(model, seed, lr=0.01, roles=LINEAR_PATH):
    """How much one step on the matrices of some roles changes the output: |ΔF|."""
    x, y = examples(seed)
    before = model(x)
    F.cross_entropy(before, y).backward()
    names = {entry.parameter for entry in view(model).by_role(*roles)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names:
                parameter -= lr * parameter.grad
        return update_size(before.detach(), model(x)).item()


# --- data -------------------------------------------------------------------------------------------------------------


def worst_std(model, x):
    stds = [output_of(model, entry, x).std().item() for entry in view(model).entries if not entry.weight.is_table]
    return max(abs(std - 1) for std in stds)


@pytest.mark.parametrize(
    "options", [dict(), dict(packed=True), dict(norm="none"), dict(norm="post", activation="relu")]
)
def test_lsuv_makes_every_output_unit_in_one_round(options):
    model, (x, _) = build(4, **options), examples()
    initialize_(model, "lsuv", batch=3 * x, generator=seeded(1), rounds=1)
    assert worst_std(model, 3 * x) <= 0.1
    initialize_(model, "orthogonal", generator=seeded(1))
    assert worst_std(model, 3 * x) > 0.3, "Without the correction, the check must fail."


@pytest.mark.parametrize("options", [dict(), dict(packed=True)])
def test_lsuv_in_one_run_is_lsuv_layer_by_layer(options, monkeypatch):
    (x, _), drawn = examples(), []
    for called in (data._called, lambda *_: []):  # an order that is no model's: one run a layer
        monkeypatch.setattr(data, "_called", called)
        drawn.append(initialize_(build(3, **options), "lsuv", batch=3 * x, generator=seeded(1)).state_dict())
    assert all(torch.equal(weight, drawn[1][name]) for name, weight in drawn[0].items())


@pytest.mark.parametrize("training", [True, False])
def test_lsuv_reaches_the_projections_that_torch_never_calls(training):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.5).train(training)
    x = 5 * torch.randn(16, 8, 32, generator=seeded(0))
    initialize_(layer, "lsuv", batch=x)
    assert layer.training == training
    layer.eval()
    q, k, v = F.linear(x, layer.self_attn.in_proj_weight).chunk(3, -1)
    for written in (q, k, v, layer.self_attn(x, x, x)[0]):
        assert abs(written.std() - 1) <= 0.1


def test_lsuv_leaves_within_the_tolerance_alone():
    model, (x, _) = build(), examples()
    initialize_(model, "lsuv", batch=x, generator=seeded(0), tolerance=1000)
    expected = initialize_(build(), "orthogonal", generator=seeded(0))
    assert torch.equal(model.readout.weight, expected.readout.weight)


def test_lsuv_takes_several_arguments_and_names():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x, context):
            return self.attention(x, key=context, value=context)[0]

    x, context = torch.randn(4, 8, 32, generator=seeded(0)), 10 * torch.randn(4, 8, 32, generator=seeded(1))
    for batch in ((x, context), {"context": context, "x": x}):
        model = initialize_(Pair(), "lsuv", batch=batch)
        q, k, _ = model.attention.in_proj_weight.chunk(3)
        assert abs((x @ q.mT).std() - 1) < 0.1 and abs((context @ k.mT).std() - 1) < 0.1


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(), "'lsuv' needs batch"),
        (dict(force=True), "batch must be what the model is called with"),
        (dict(batch=torch.zeros(2, 8, 8)), "have standard deviation 0.0"),
        (dict(batch=torch.zeros(2, 8, 8), tolerance=-1), "tolerance must be a number ≥ 0"),
        (dict(batch=torch.zeros(2, 8, 8), rounds=0), "rounds must be an integer ≥ 1"),
        (dict(batch=torch.zeros(2, 8, 5)), "x must have shape"),
    ],
)
def test_lsuv_refuses_what_it_cannot_measure_and_writes_nothing(options, message):
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        initialize_(model, "lsuv", **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def branch_variances(model, x):
    """Variance of the embedding and of every branch, in order."""
    found = [model.embed(x).var(correction=0).item()]
    hooks = [
        branch.register_forward_hook(lambda _, inputs, output: found.append(output.var(correction=0).item()))
        for block in model.blocks
        for branch in (block.attention, block.feed_forward)
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return torch.tensor(found)


def skips(model):
    return torch.stack([skip for block in model.blocks for skip in (block.attention_skip, block.feed_forward_skip)])


def test_admin_counts_the_variance_of_the_branches_before():
    model, (x, _) = built_for("admin", 6), examples()
    initialize_(model, "admin", batch=x, generator=seeded(0))
    omega = skips(model)
    assert (omega == omega[:, :1]).all(), "one number for all channels"
    with torch.no_grad():
        variances = branch_variances(model, x)
    right = variances[:-1].cumsum(0).sqrt()
    right[0] = 1
    torch.testing.assert_close(omega[:, 0], right, atol=2e-3, rtol=0)
    wrong = {
        "standard deviations for variances": variances[:-1].sqrt().cumsum(0),
        "root forgotten": variances[:-1].cumsum(0),
        "its own branch counted": variances.cumsum(0)[1:].sqrt(),
        "the last branch only": (1 + variances[1:]).sqrt(),
        "left at 1": torch.ones(12),
    }
    for name, values in wrong.items():
        assert (values - omega[:, 0])[1:].abs().max() > 0.05, name


def test_admin_keeps_what_a_perturbation_does_below_post_norm():
    def disturbance(n_layers, seed, skip):
        model, (x, _) = built_for("admin", n_layers), examples(seed)
        initialize_(model, "admin", batch=x, generator=seeded(seed))
        generator = seeded(seed)
        with torch.no_grad():
            if not skip:
                for gain in view(model).gains.values():
                    gain.fill_(1.0)
            before = model.trace(x).stream[-1]
            for entry in view(model).by_role(*BRANCH):
                entry.view.add_(0.01 * entry.view.std() * torch.randn(entry.view.shape, generator=generator))
            return update_size(before, model.trace(x).stream[-1]).item() ** 2

    with_weights, without = (
        slope(DEPTHS, mean_over_seeds(lambda n, seed, on=on: disturbance(n, seed, on), DEPTHS)) for on in (True, False)
    )
    assert with_weights < 1 < without, f"log L against L: {with_weights:.2f} against {without:.2f}"


# --- depth ------------------------------------------------------------------------------------------------------------


def growth(n_layers, seed, factor=None, name="gpt2"):
    """What the blocks add to the variance of the stream, the last matrices multiplied by ``factor(layer, L)``."""
    model, (x, _) = build(n_layers), examples(seed)
    options = dict(std=32**-0.5) if name in ("gpt2", "normal") else {}
    initialize_(model, name, generator=seeded(seed), **options)
    with torch.no_grad():
        if factor is not None:
            for entry in view(model).by_role("output", "feed_forward_out"):
                entry.view.mul_(factor(entry.weight.layer, n_layers))
        stream = model.trace(x).stream
    return (rms(stream[-1]).square() - rms(stream[0]).square()).item()


def test_gpt2_keeps_the_stream_bounded_and_wrong_depths_do_not():
    assert abs(slope(DEPTHS, mean_over_seeds(growth, DEPTHS))) < 0.2
    wrong = {
        "not scaled": lambda layer, L: 1,
        "l for L": lambda layer, L: (2 * layer) ** -0.5,
        "1/L": lambda layer, L: 1 / (2 * L),
        "fourth root": lambda layer, L: (2 * L) ** -0.25,
    }
    for why, factor in wrong.items():
        values = mean_over_seeds(lambda n, seed, f=factor: growth(n, seed, f, "normal"), DEPTHS, seeds=2)
        assert abs(slope(DEPTHS, values)) > 0.2, why


def test_wang_lets_the_branches_fade_with_the_depth():
    fall = slope(DEPTHS, mean_over_seeds(lambda n, seed: growth(n, seed, name="wang"), DEPTHS))
    assert -1.3 < fall < -0.7, "2L branches of variance 1/L²"


def test_depth_scaled_branches_keep_tokens_apart():
    def cosine(n_layers, seed, **options):
        model, (x, _) = built_for("depth_scaled", n_layers, d=64, d_ff=0, norm="none", **options), examples(seed)
        initialize_(model, "depth_scaled", generator=seeded(seed), force=bool(options))
        with torch.no_grad():
            return token_cosine(model.trace(x).stream[-1]).mean().item()

    scaled = mean_over_seeds(cosine, [4, 16])
    plain = mean_over_seeds(lambda n, seed: cosine(n, seed, residual_scale=1.0), [4, 16])
    wrong = mean_over_seeds(lambda n, seed: cosine(n, seed, residual_scale=n**-0.25), [4, 16])
    assert max(scaled) < 0.35 and abs(scaled[1] - scaled[0]) < 0.1
    assert plain[1] > 0.9 and wrong[1] > scaled[1] + 0.2


def test_ds_init_keeps_gradients_alike_through_post_norm():
    def first_over_last(name, seed, **options):
        model, (x, y) = build(8, norm="post"), examples(seed)
        initialize_(model, name, generator=seeded(seed), **options)
        stream = model.trace(x).stream[1:]
        loss = F.cross_entropy(model.read(stream[-1]), y)
        first, last = torch.autograd.grad(loss, (stream[0], stream[-1]))
        return (first.norm() / last.norm()).item()

    plain, paper, code = (
        sum(first_over_last(name, seed, **options) for seed in range(4)) / 4
        for name, options in (("xavier_uniform", {}), ("ds_init", {}), ("ds_init", {"as_in": "code"}))
    )
    assert abs(paper - 1) < 0.35, f"gradient at the first block over that at the last: {paper:.2f}"
    assert paper + 0.15 < code < plain - 0.3, "the code does half of what the paper says"


@pytest.mark.parametrize("n_layers", [1, 6, 100])
def test_deepnorm_constants_meet_their_bounds(n_layers):
    alpha, beta = deepnorm_constants(n_layers)
    assert 2 * n_layers * 2 * beta**2 / alpha**2 == pytest.approx(1)

    def both(encoder_constant):
        n, m = 6, n_layers
        alpha_e, beta_e = deepnorm_constants(0, n_encoder=n, n_decoder=m, stack="encoder")
        alpha_d, beta_d = deepnorm_constants(0, n_encoder=n, n_decoder=m, stack="decoder")
        beta_e *= encoder_constant / 0.87
        assert 3 * m * 2 * beta_d**2 / alpha_d**2 == pytest.approx(1)
        return m * beta_d**2 / alpha_d * 4 * n * beta_e**2 / alpha_e**2

    assert both(0.87) == pytest.approx(1, abs=0.02)
    assert both(1.15) > 1.7, "the constant in the released code"


def test_deepnorm_bounds_the_update_and_wrong_constants_do_not():
    def update(n_layers, seed, weights="deepnorm", **options):
        model = built_for("deepnorm", n_layers, **options)
        initialize_(model, weights, generator=seeded(seed), force=True)
        return step_of_sgd(model, seed)

    def power(**options):
        how = lambda n: {key: value(n) if callable(value) else value for key, value in options.items()}  # noqa: E731
        return slope(ENDS, mean_over_seeds(lambda n, seed: update(n, seed, **how(n)), ENDS, seeds=2))

    right = power()
    assert abs(right) < 0.25, f"|ΔF| ~ L^{right:.2f}"
    wrong = {
        "post-norm without α and β": dict(weights="xavier_normal", skip_scale=1.0),
        "α on the branch": dict(skip_scale=1.0, residual_scale=lambda n: (2 * n) ** 0.25),
        "α forgotten": dict(skip_scale=1.0),
        "½ for ¼": dict(skip_scale=lambda n: (2 * n) ** 0.5),
    }
    for why, options in wrong.items():
        assert abs(power(**options)) > 0.25, why


def test_t_fixup_bounds_the_update_without_a_norm():
    def update(n_layers, seed, gain=lambda L: 1.0):
        model = built_for("t_fixup", n_layers, positions="none")
        initialize_(model, "t_fixup", generator=seeded(seed))
        for entry in view(model).by_role(*LINEAR_PATH):
            entry.view.mul_(gain(n_layers))
        return step_of_sgd(model, seed)

    assert abs(slope(ENDS, mean_over_seeds(update, ENDS, seeds=2))) < 0.3
    wrong = {
        "Xavier": lambda L: L**0.25 / 0.67,
        "L^−⅛": lambda L: L**0.125,
        "½ for ¼": lambda L: L**-0.25,
    }
    for why, gain in wrong.items():
        values = mean_over_seeds(lambda n, seed, g=gain: update(n, seed, g), ENDS, seeds=2)
        assert not all(map(math.isfinite, values)) or abs(slope(ENDS, values)) > 0.3, why


def test_fixup_starts_as_the_identity_and_only_the_ends_learn_first():
    model, (x, y) = built_for("fixup", 4), examples()
    initialize_(model, "fixup", generator=seeded(0))
    trace = model.trace(x)
    assert torch.equal(trace.stream[0], trace.stream[-1]) and not trace.logits.any()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    moved = []
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        moved.append({e.weight.role for e in view(model).entries if model.get_parameter(e.parameter).grad.any()})
        optimizer.step()
    assert moved[0] == {"readout"}
    assert moved[1] == {"readout", "embedding", "position", "output", "feed_forward_out"}
    assert "value" in moved[2] and "feed_forward_in" in moved[2]


@pytest.mark.parametrize("name", ["rezero", "skip_init"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_zero_gain_makes_blocks_the_identity_and_only_gains_learn_first(name, packed):
    model, (x, y) = built_for(name, 4, packed=packed, branch_gain=0.7), examples()
    initialize_(model, name, generator=seeded(0))
    trace = model.trace(x)
    assert torch.equal(trace.stream[0], trace.stream[-1])
    F.cross_entropy(trace.logits, y).backward()
    seen = view(model)
    assert not any(model.get_parameter(entry.parameter).grad.any() for entry in seen.by_role(*BRANCH))
    assert all(gain.grad.abs() > 0 for gain in seen.gains.values()) and len(seen.gains) == 8
    with torch.no_grad():
        next(iter(seen.gains.values())).fill_(1e-3)
    assert not torch.equal(*model.trace(x).stream[::4]), "a gain that is not 0 must show"


@pytest.mark.parametrize("name", ["skip_init", "layer_scale"])
def test_the_gain_is_an_option(name):
    model = built_for(name)
    initialize_(model, name, gain=0.25)
    assert all((gain == 0.25).all() for gain in view(model).gains.values())
    with pytest.raises(TypeError, match="gain must be a finite number"):
        initialize_(model, name, gain="small")


def test_layer_scale_is_nearly_the_identity_one_factor_a_channel():
    model, (x, _) = built_for("layer_scale", 4), examples()
    initialize_(model, "layer_scale", generator=seeded(0))
    stream = model.trace(x).stream
    assert 0 < rms(stream[-1] - stream[0]) < 1e-3
    assert {gain.shape for gain in view(model).gains.values()} == {(32,)}


def test_the_norm_of_sub_ln_takes_its_gain_out():
    x, _ = examples()

    def change(norm):
        model = build(4, norm=norm, activation="relu", bias=False)
        initialize_(model, "sub_ln", generator=seeded(0), force=True)
        with torch.no_grad():
            before = model.trace(x).stream[-1]
            for entry in view(model).by_role("value", "feed_forward_in"):
                entry.view.mul_(2)
            return update_size(before, model.trace(x).stream[-1]).item()

    assert change("sub") < 1e-3
    assert change("pre") > 0.1


@pytest.mark.parametrize(
    "name, role, place, gain",
    [
        # 12 encoder and 6 decoder blocks; gain over Xavier's
        ("t_fixup", "value", dict(stack="encoder", n_layers=12), 0.67 * 12**-0.25),
        ("t_fixup", "value", dict(stack="decoder", n_layers=6), 54**-0.25),
        ("t_fixup", "output", dict(stack="decoder", n_layers=6, is_cross=True), 54**-0.25),
        ("deepnorm", "value", dict(stack="encoder", n_layers=12), 0.87 * (12**4 * 6) ** (-1 / 16)),
        ("deepnorm", "value", dict(stack="decoder", n_layers=6), 72**-0.25),
        ("deepnorm", "output", dict(stack="decoder", n_layers=6, is_cross=True), 72**-0.25),
        ("sub_ln", "value", dict(stack="encoder", n_layers=12), math.sqrt(math.log(18) * math.log(24) / 3)),
        ("sub_ln", "value", dict(stack="decoder", n_layers=6), math.sqrt(math.log(18))),
        ("sub_ln", "value", dict(stack="decoder", n_layers=6, is_cross=True), 1),
        ("fixup", "query", dict(stack="encoder", n_layers=12), 42 ** (-1 / 6)),
        ("fixup", "feed_forward_in", dict(stack="decoder", n_layers=6), 42**-0.5),
        ("ds_init", "value", dict(stack="decoder", n_layers=6, layer=4), 0.5),
    ],
)
def test_two_stacks(name, role, place, gain):
    weight = weights(64, 4)[role].replace(n_encoder=12, n_decoder=6, **place)
    xavier = math.sqrt(2 / (weight.fan_in + weight.fan_out))
    assert schemes()[name].std(weight) / xavier == pytest.approx(gain)


def test_gpt2_counts_the_branches_of_the_stack():
    output = weights(64, 4, n_layers=6)["output"]
    in_decoder = output.replace(stack="decoder", n_encoder=6, n_decoder=6)
    assert schemes()["gpt2"].std(output) == pytest.approx(0.02 * 12**-0.5)
    assert schemes()["gpt2"].std(in_decoder) == pytest.approx(0.02 * 18**-0.5)


def test_embeddings_without_a_norm_have_the_paper_s_scale():
    table = weights(64, 4, n_layers=6)["embedding"]
    real = table.replace(fan_in=8, is_table=False)
    assert schemes()["fixup"].std(table) == pytest.approx(1 / 8)
    assert schemes()["t_fixup"].std(table) == pytest.approx(54**-0.25 / 8)
    assert schemes()["t_fixup"].std(real) * 8**0.5 == pytest.approx(54**-0.25 / 8), "the same tokens from real inputs"


def test_ds_init_refuses_other_sources():
    with pytest.raises(ValueError, match=r"as_in must be one of 'paper', 'code': got 'codes'\. Did you mean 'code'"):
        initialize_(build(norm="post"), "ds_init", as_in="codes")


# --- width ------------------------------------------------------------------------------------------------------------

WIDTHS = [32, 64, 128, 256]


def coordinates(d, seed, *, scheme="mup", rates="mup", scale=None):
    """How far four steps of Adam move output, logits and stream."""
    model = build(1, d, scale=4 / d if scale is None else scale(d))
    options = dict(zero_query=True) if scheme == "mup" else {}
    initialize_(model, scheme, generator=seeded(seed), force=True, **options)
    groups = learning_rates(model, 0.01, base_width=32) if rates == "mup" else model.parameters()
    optimizer, (x, y) = torch.optim.Adam(groups, lr=0.01), examples(seed)
    with torch.no_grad():
        before = model.trace(x)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        after = model.trace(x)
    pairs = zip((before.logits, before.attention_logits[0], before.stream[-1]),
                (after.logits, after.attention_logits[0], after.stream[-1]), strict=True)  # fmt: skip
    return torch.tensor([update_size(a, b).item() for a, b in pairs])


def powers(**options):
    sizes = torch.stack(mean_over_seeds(lambda d, seed: coordinates(d, seed, **options), WIDTHS, seeds=2))
    return [slope(WIDTHS, column.tolist()) for column in sizes.T]


def test_mup_moves_every_width_alike_and_its_wrong_variants_do_not():
    output, logits, stream = powers()
    assert abs(output) < 0.1 and abs(stream) < 0.1, "output and stream must move alike at every width"
    assert -0.4 < logits < 0.1, "the logits must not move more in a wider model"
    output, logits, stream = powers(scheme="lecun_normal", rates="one", scale=lambda d: (4 / d) ** 0.5)
    assert min(output, logits, stream) > 0.3, "the standard parametrization grows with the width"
    assert min(powers(rates="one")) > 0.3, "one learning rate for all"
    assert powers(scale=lambda d: (4 / d) ** 0.5)[1] > 0.15, "1/√d_head for 1/d_head"


def test_mup_without_zeros_starts_with_small_outputs():
    model = build(d=256, scale=1 / 64)
    initialize_(model, "mup", zero_readout=False, force=True, generator=seeded(0))
    assert model.readout.weight.std().item() == pytest.approx(1 / 256, rel=0.1)
    initialize_(model, "mup", zero_query=True, force=True)
    assert not model.readout.weight.any() and not model.blocks[0].attention.query.weight.any()


@pytest.mark.parametrize("options", [dict(), dict(packed=True), dict(d_input=None, vocab_size=7)])
def test_learning_rates_hold_every_parameter_once(options):
    model = build(d=128, **options)
    slow, fast = learning_rates(model, 0.02, base_width=32)
    assert (slow["lr"], fast["lr"]) == (0.005, 0.02)
    ids = [id(p) for group in (slow, fast) for p in group["params"]]
    assert sorted(ids) == sorted(map(id, model.parameters()))
    names = {name for name, p in model.named_parameters() if id(p) in set(map(id, slow["params"]))}
    assert "readout.weight" in names and "embedding.weight" not in names
    assert all(name.endswith(".weight") and "norm" not in name for name in names)
    assert len(names) == 1 + 2 * (4 if options.get("packed") else 6)
    torch.optim.AdamW([slow, fast])


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(lr=0, base_width=32), ValueError, "lr must be a number > 0: got 0"),
        (dict(lr=0.1, base_width=32.0), TypeError, "base_width must be an integer ≥ 1"),
        (dict(lr=0.1, base_width=0), ValueError, "base_width must be an integer ≥ 1"),
    ],
)
def test_learning_rates_refuse_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        learning_rates(build(), **options)


def linear_factors(model):
    """The factors that each linear layer puts on signals and on gradients, the latter over √(fan_out/fan_in)."""
    factors = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            x = torch.randn(512, layer.in_features, generator=seeded(1)).requires_grad_()
            y = layer(x)
            y.backward(torch.randn(y.shape, generator=seeded(2)))
            shape = math.sqrt(layer.out_features / layer.in_features)
            factors[name] = (rms(y.detach()).item(), rms(x.grad).item() / shape)
    return factors


@pytest.mark.parametrize("packed", [False, True])
def test_unit_scaling_keeps_signals_and_gradients_unit(packed):
    model = built_for("unit_scaling", d=64, packed=packed)
    initialize_(model, "unit_scaling", generator=seeded(0))
    for name, (forward, backward) in linear_factors(model).items():
        assert forward == pytest.approx(1, abs=0.15) and backward == pytest.approx(1, abs=0.15), name
    assert not any(
        param.requires_grad and abs(param.std() - 1) > 0.2 for param in model.readout.parameters() if param.ndim > 1
    )
    initialize_(model, "lecun_normal", generator=seeded(0))
    forward, backward = linear_factors(model)["blocks.0.feed_forward.0"]
    assert forward < 0.3 and backward < 0.3, "1/√fan_in in the weights and in the model is once too often"


def test_unit_scaling_needs_its_factor():
    model = build(d=64)
    initialize_(model, "unit_scaling", generator=seeded(0), force=True)
    assert linear_factors(model)["blocks.0.attention.query"][0] > 5


def spectral_errors(model):
    matrices = [entry for entry in view(model).entries if not entry.weight.is_table]
    norms = [torch.linalg.matrix_norm(entry.view, ord=2).item() for entry in matrices]
    return [
        abs(norm * math.sqrt(each.weight.fan_in / each.weight.fan_out) - 1)
        for norm, each in zip(norms, matrices, strict=True)
    ]


def test_spectral_norms():
    model = build(d=128)
    initialize_(model, "spectral", generator=seeded(0), force=True)
    assert max(spectral_errors(model)) < 0.1
    initialize_(model, "spectral", exact=True, generator=seeded(0), force=True)
    assert max(spectral_errors(model)) < 1e-5
    for wrong in ("lecun_normal", "xavier_normal", "orthogonal"):
        initialize_(model, wrong, generator=seeded(0))
        assert max(spectral_errors(model)) > 0.2, wrong


# --- what is asked of the model ---------------------------------------------------------------------------------------

FAMILIES = ("data", "depth", "width")
DEMANDING = [name for name, scheme in schemes().items() if scheme.family in FAMILIES and scheme.requires]
LACKS = {  # a model without what the scheme needs
    "gpt2": dict(norm="post"),
    "depth_index": dict(norm="post"),
    "layer_scale": dict(norm="pre"),
    "sub_ln": dict(norm="pre"),
    "depth_scaled": dict(residual_scale=0.9),
    "deepnorm": dict(norm="post", residual_scale=1.7),
    "admin": dict(norm="post"),
    "rezero": dict(norm="none"),
    "skip_init": dict(norm="none"),
}


@pytest.mark.parametrize("name", DEMANDING)
def test_a_model_of_the_right_architecture_is_welcome(name):
    scheme = schemes()[name]
    batch = {"batch": examples()[0]} if "batch" in scheme.requires else {}
    untold = [each for each in scheme.requires if each == "learning rates by role"]
    model = built_for(name, 4)
    initialize_(model, name, generator=seeded(0), force=untold, **batch)
    assert all(p.isfinite().all() for p in model.parameters())
    other = initialize_(built_for(name, 4), name, generator=seeded(0), force=untold, **batch)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", DEMANDING)
def test_a_model_that_lacks_something_is_refused_with_the_reason(name):
    model = build(4, **LACKS.get(name, {}))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=f"The scheme '{name}' needs .*, because "):
        initialize_(model, name)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_deepnorm_needs_the_alpha_of_this_depth():
    shallow = built_for("deepnorm", 2)
    deep = build(8, norm="post", skip_scale=shallow.config.skip_scale)
    with pytest.raises(ValueError, match=r"skip_scale=1\.41.* instead of 2"):
        initialize_(deep, "deepnorm")
