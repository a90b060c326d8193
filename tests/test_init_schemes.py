"""Every scheme, from the registry: what it draws, against numbers worked out by hand, and what it promises."""

import functools
import math
from pathlib import Path

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from attntut import MultiHeadAttention, Transformer, TransformerConfig, seeded
from attntut.anatomy.weight import BRANCH, Weight, weights
from attntut.init import initialize_, schemes, view
from attntut.init.laws import Constant, Identity, Law, Normal, Orthogonal, TruncNormal, Uniform
from attntut.measure import logit_statistics
from tests.init_expected import (
    EXPECTED,
    PLACE,
    SIZES,
    WRONG_VARIANTS,
    Expected,
    independent_disagreement,
    mismatch,
    structured_disagreement,
)

SHAPE = dict(n_classes=32, d_input=48, seq_len=40, d_model=64, n_heads=4, n_layers=2, d_ff=256)


@pytest.fixture(params=schemes())
def name(request) -> str:
    return request.param


def expected(name: str) -> Expected:
    if name not in EXPECTED:
        pytest.fail(f"{name} needs an entry in EXPECTED, worked out by hand, in tests/init_expected.py.")
    return EXPECTED[name]


@functools.cache
def initialized(name: str, seed: int = 0) -> Transformer:
    """A model that the scheme was made for."""
    scheme = schemes()[name]
    d_head = SHAPE["d_model"] // SHAPE["n_heads"]
    config = TransformerConfig(**SHAPE | scheme.architecture(SHAPE["n_layers"], d_head))
    options = {"batch": torch.randn(16, 40, 48, generator=seeded(9))} if "batch" in scheme.requires else {}
    confirmed = [each for each in scheme.requires if each == "learning rates by role"]
    return initialize_(Transformer(config, seed=1), name, generator=seeded(seed), force=confirmed, **options)


def misfit(drawn: Tensor, law: Law) -> str | None:
    """What of one drawn ``(fan_out, fan_in)`` matrix does not fit the law."""
    match law:
        case Constant(value):
            return None if (drawn == torch.tensor(value)).all() else f"not {value} everywhere"
        case Orthogonal(gain):
            return structured_disagreement(drawn, gain, is_identity=False)
        case Identity(gain):
            return structured_disagreement(drawn, gain, is_identity=True)
        case Normal(sigma):
            distribution = scipy.stats.norm(scale=sigma)
        case Uniform(bound):
            distribution = scipy.stats.uniform(-bound, 2 * bound)
        case TruncNormal(sigma, cut):
            distribution = scipy.stats.truncnorm(-cut, cut, scale=sigma)
        case _:
            return f"{law!r}: teach this test what draws from such a law look like"
    return independent_disagreement(drawn, distribution)


# ----- what is drawn -----


def test_the_law_of_every_role_is_the_one_worked_out_by_hand(name):
    scheme = schemes()[name]

    def law(weight: Weight) -> Law:
        """With the scale that it ends at, where something is done after the drawing."""
        begun = scheme.law(weight)
        std = begun.std(*weight.shape)
        return begun if scheme.predicts is None or not std else begun * (scheme.std(weight) / std)

    wrong = mismatch(expected(name), law)
    assert wrong is None, f"{name}, {wrong}"


@pytest.mark.parametrize(
    "name, wrong", [each[::2] for each in WRONG_VARIANTS], ids=[f"{n}: {w}" for n, w, _ in WRONG_VARIANTS]
)
def test_a_wrong_variant_is_noticed(name, wrong):
    assert mismatch(EXPECTED[name], wrong) is not None, "The check above would have let this mistake pass."


def test_every_scheme_has_a_wrong_variant(name):
    assert any(name == each for each, *_ in WRONG_VARIANTS), f"{name} needs an entry in WRONG_VARIANTS."


def test_the_tables_have_no_schemes_that_are_none():
    assert {*EXPECTED, *(each for each, *_ in WRONG_VARIANTS)} <= {*schemes()}


def test_the_prediction_is_the_one_worked_out_by_hand(name):
    sizes = dict(SIZES)
    prediction = schemes()[name].predict(sizes.pop("d_model"), sizes.pop("n_heads"), **sizes)
    table = expected(name)
    for role in BRANCH:
        assert prediction.std[role] == pytest.approx(getattr(table, role), rel=1e-4), role
    assert prediction.logit_std == pytest.approx(table.logits, rel=1e-4)


def test_a_model_gets_the_law_of_each_of_its_weights(name):
    """Also: layers are not clones, and biases have their law."""
    scheme = schemes()[name]
    seen = view(initialized(name))
    assert {entry.weight.role for entry in seen.entries} == {*weights(64, 4)}
    for entry in seen.entries:
        place = f"{entry.parameter}, {entry.weight.role}"
        assert entry.view.isfinite().all(), place
        if expected(name).final:
            law = scheme.law(entry.weight)
            assert (wrong := misfit(entry.view, law)) is None, f"{place}: {wrong}"
        if entry.bias is not None:
            law = scheme.bias(entry.weight)
            assert (wrong := misfit(entry.bias, law)) is None, f"{place}, bias: {wrong}"
    for role in BRANCH:
        one, other = seen.by_role(role)
        deterministic = isinstance(law := scheme.law(one.weight), Constant | Identity) and (
            scheme.std(one.weight) == law.std(*one.weight.shape)
        )
        assert torch.equal(one.view, other.view) == deterministic, f"The two layers' {role} are clones."


def test_the_logits_have_the_predicted_scale(name):
    scheme = schemes()[name]
    if "batch" in scheme.requires:
        pytest.skip("It depends on the batch.")
    ratios = []
    for seed in range(2):
        x, y = torch.randn(2, 1, 256, 64, generator=seeded(100 + seed))
        for layer, block in enumerate(initialized(name, seed).blocks, 1):
            predicted = scheme.predict(64, 4, n_layers=2, layer=layer, d_ff=256).logit_std
            measured = logit_statistics(block.attention.logits(x, y)).std.square().mean().sqrt().item()
            if predicted == 0:
                assert measured == 0
            else:
                ratios.append((measured / predicted) ** 2)
    if ratios:  # of 16 heads; the standard error is about 1 %
        assert math.sqrt(sum(ratios) / len(ratios)) == pytest.approx(1, abs=0.05)


def test_the_bibliography_has_what_is_cited(repository: Path, name):
    bibliography = (repository / "book" / "references.bib").read_text(encoding="utf-8")
    cite = schemes()[name].cite
    assert f"{{{cite}," in bibliography, f"{name} cites {cite}, which book/references.bib does not have."


def test_every_scheme_explains_itself(name):
    scheme = schemes()[name]
    doc = scheme.function.__doc__ or ""
    assert ">>> " in doc, "Show it at work."
    assert doc.count(scheme.formula) == doc.count(scheme.source) == 1, "The decorator brings them; do not repeat them."
    assert str(scheme.year) in scheme.cite + scheme.source, "Say what else is of that year than the work cited."
    for option in scheme.function.__kwdefaults__ or ():
        assert f"{option}:" in doc, f"The option {option} is not explained."


# ----- what is promised -----


def drawn(name: str, role: str, n: int, seed: int = 0, **options) -> Tensor:
    """``(n, fan_out, fan_in)``, in double precision."""
    weight = PLACE[role]
    law, generator = schemes()[name].law(weight, **options), seeded(seed)
    return torch.stack([law.fill_(torch.empty(weight.shape, dtype=torch.float64), generator) for _ in range(n)])


def factors(matrices: Tensor, *, relu: bool = False) -> tuple[Tensor, Tensor]:
    """By how much a layer multiplies the second moment of a signal, and that of a gradient, for each matrix."""
    fan_out, fan_in = matrices.shape[-2:]
    x = torch.randn(len(matrices), fan_in, 1, generator=seeded(1), dtype=torch.float64)
    gradient = torch.randn(len(matrices), fan_out, 1, generator=seeded(2), dtype=torch.float64)
    if relu:
        x = x.relu() * math.sqrt(2)  # what a ReLU leaves of a signal with second moment 2
    forward = (matrices @ x).square().mean((1, 2))
    return forward, (matrices.mT @ gradient).square().mean((1, 2))


def within_sampling_error(samples: Tensor, promised: float) -> bool:
    return abs(samples.mean().item() - promised) < 5 * samples.std().item() / math.sqrt(len(samples))


@pytest.mark.parametrize("name", ["lecun_normal", "lecun_uniform"])
@pytest.mark.parametrize("role", ["query", "feed_forward_in", "feed_forward_out"])
def test_lecun_keeps_the_variance_forward(name, role):
    forward, backward = factors(drawn(name, role, 200))
    assert within_sampling_error(forward, 1)
    assert role == "query" or not within_sampling_error(backward, 1), "Not square: a gradient cannot be kept as well."


@pytest.mark.parametrize("name", ["xavier_normal", "xavier_uniform"])
def test_xavier_keeps_both_on_average(name):
    forward, backward = factors(drawn(name, "feed_forward_in", 200))  # 64 → 256
    assert within_sampling_error(forward, 0.4) and within_sampling_error(backward, 1.6)
    assert within_sampling_error((forward + backward) / 2, 1)


@pytest.mark.parametrize("name", ["kaiming_normal", "kaiming_uniform"])
def test_he_keeps_the_second_moment_after_a_relu_and_doubles_it_without(name):
    assert within_sampling_error(factors(drawn(name, "feed_forward_out", 200), relu=True)[0], 2)
    assert within_sampling_error(factors(drawn(name, "feed_forward_out", 200))[0], 2)


def test_orthogonal_matrices_keep_every_length_and_others_do_not():
    x = torch.randn(64, 5, generator=seeded(0), dtype=torch.float64)
    for name, is_exact in (("orthogonal", True), ("xavier_normal", False)):
        deep = functools.reduce(torch.matmul, drawn(name, "query", 24))
        ratio = (deep @ x).norm(dim=0) / x.norm(dim=0)
        assert torch.allclose(ratio, torch.ones(5, dtype=torch.float64), atol=1e-12) == is_exact
        assert (torch.linalg.cond(deep) < 1 + 1e-9) == is_exact


def test_xavier_packed_is_what_torch_does():
    """Entry by entry of the same law: torch's own layers against the scheme's, and the scheme against torch's."""
    layer = nn.TransformerEncoderLayer(64, 4, dim_feedforward=256)
    fresh = {key: value.detach().clone() for key, value in layer.named_parameters()}
    initialize_(layer, "xavier_packed", generator=seeded(0))
    for key, value in layer.named_parameters():
        same = scipy.stats.ks_2samp(fresh[key].flatten(), value.detach().flatten()).pvalue
        assert same > 1e-4, f"{key}: torch's and the scheme's are not of one law."
    initialize_(layer, "xavier_uniform", generator=seeded(0))
    packed = layer.self_attn.in_proj_weight.detach().flatten()
    assert scipy.stats.ks_2samp(fresh["self_attn.in_proj_weight"].flatten(), packed).pvalue < 1e-9


def test_torch_default_is_what_torch_does():
    model = Transformer(TransformerConfig(**SHAPE | dict(positions="none")))
    fresh = {key: value.detach().clone() for key, value in model.named_parameters()}
    initialize_(model, "torch_default", generator=seeded(1))
    for key, value in model.named_parameters():
        assert scipy.stats.ks_2samp(fresh[key].flatten(), value.detach().flatten()).pvalue > 1e-4, key
        assert key.split(".")[-2].endswith("norm") or not torch.equal(fresh[key], value), f"{key} was not drawn again."


def test_trunc_normal_of_torch_cuts_at_absolute_numbers():
    theirs = nn.init.trunc_normal_(torch.empty(200_000), std=0.02, generator=seeded(0))
    assert theirs.abs().max() > 0.08, "At ±2, nothing is cut of a Gaussian of width 0.02."
    assert misfit(theirs, schemes()["vit"].law(PLACE["query"])) is None
    assert misfit(theirs, schemes()["trunc_normal"].law(PLACE["query"])) is not None
    assert misfit(theirs, schemes()["trunc_normal"].law(PLACE["query"], corrected=True)) is not None


# ----- symmetric and structured -----


def gradients(model: Transformer, *, steps: int = 0, lr: float = 1e-2) -> dict[str, Tensor]:
    """Of the matrices inside the blocks, after some steps of Adam."""
    generator = seeded(3)
    x, label = torch.randn(32, 40, 48, generator=generator), torch.randint(32, (32,), generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps + 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), label).backward()
        if _ < steps:
            optimizer.step()
    return {entry.weight.role: model.get_parameter(entry.parameter).grad for entry in view(model).entries}


def fresh(name: str, **config) -> Transformer:
    return initialize_(Transformer(TransformerConfig(**SHAPE | config)), name, generator=seeded(0))


@pytest.mark.parametrize("norm", ["pre", "none"])
def test_zeros_are_a_saddle_that_training_does_not_leave(norm):
    model = fresh("zeros", norm=norm)
    moved = gradients(model, steps=3)
    for role in BRANCH:
        assert (moved[role] == 0).all(), role
    for entry in view(model).by_role(*BRANCH):
        assert (entry.view == 0).all(), entry.parameter


def test_zero_query_blocks_the_key_for_one_step():
    first = gradients(fresh("zero_query"))
    assert (first["key"] == 0).all() and first["query"].abs().max() > 0
    assert gradients(fresh("zero_query"), steps=1)["key"].abs().max() > 0


def test_zero_output_makes_every_block_the_identity_and_leaves_it_at_once():
    trace = fresh("zero_output").trace(torch.randn(2, 40, 48, generator=seeded(0)))
    assert all(torch.equal(trace.stream[0], each) for each in trace.stream)
    first = gradients(fresh("zero_output"))
    assert first["output"].abs().max() > 0 and first["feed_forward_out"].abs().max() > 0
    assert (first["value"] == 0).all() and (first["feed_forward_in"] == 0).all()


@pytest.mark.parametrize("norm", ["pre", "none"])
def test_constant_heads_stay_one_head(norm):
    model = fresh("constant", norm=norm)
    gradients(model, steps=5)
    for attention in view(model).attention:
        heads = attention.query.view.unflatten(0, (4, 16))
        assert torch.allclose(heads, heads[:1].expand_as(heads), atol=1e-7), "The heads parted."
        assert torch.linalg.matrix_rank(attention.query.view, atol=1e-6) <= 1
    x = torch.randn(2, 40, 48, generator=seeded(0))
    silent = fresh("constant", norm=norm).trace(x).attention_logits[0].abs().max().item() < 1e-6
    assert silent == (norm == "pre"), "A normalized token sums to 0, and a constant matrix reads nothing but the sum."


def test_identity_attention_gives_every_token_the_mean():
    attention = initialize_(MultiHeadAttention(64, 4), "identity")
    x = torch.randn(2, 7, 64, generator=seeded(0))
    torch.testing.assert_close(attention(x), x.mean(1, keepdim=True).expand_as(x))


@pytest.mark.parametrize("n_heads", [1, 2, 4, 8])
def test_the_predictions_of_mimetic_are_those_of_a_noisy_identity(n_heads):
    """Against the singular values of one wide matrix; of all of them, the mean is 5/4 and the mean square 2."""
    d = 512
    prediction = schemes()["mimetic"].predict(d, n_heads, query_key=1.0)
    predicted = prediction.std["query"] ** 2 * d, prediction.logit_std  # mean and root mean square of the largest
    noise = torch.randn(d, d, generator=seeded(0), dtype=torch.float64) / math.sqrt(d)
    for sign in (1, -1):
        largest = torch.linalg.svdvals(noise + sign * torch.eye(d))[: d // n_heads]
        assert predicted == pytest.approx((largest.mean().item(), largest.square().mean().sqrt().item()), rel=5e-3)
    if n_heads == 1:
        assert predicted == pytest.approx((5 / 4, math.sqrt(2)), rel=1e-4)


def mimetic_misfit(attention: MultiHeadAttention) -> str | None:
    """None if the products are noisy identities of strength 0.7 and −0.4, in factors of equal size."""
    query, key = (p.weight.detach().double().unflatten(0, (4, -1)) for p in (attention.query, attention.key))
    product = query.mT @ key  # (heads, d_model, d_model)
    size = torch.linalg.svdvals(product)[:, : query.shape[1]]
    if not math.isclose(size.mean(), 0.7 * 2.11847, rel_tol=0.02):
        return f"mean singular value of a head {size.mean():.3f}, expected {0.7 * 2.11847:.3f}"
    if not torch.allclose(query.square().sum(-1), key.square().sum(-1), rtol=1e-4):
        return "queries and keys are not of one size"
    trace = product.diagonal(dim1=1, dim2=2).mean()
    if not math.isclose(trace, 0.7 * 0.4503, abs_tol=0.03):
        return f"mean diagonal of a head {trace:.3f}, expected {0.7 * 0.4503:.3f}"
    if torch.allclose(product[0], product[1]):
        return "two heads are one"
    product = attention.output.weight.detach().double() @ attention.value.weight.detach().double()
    noise = product + 0.4 * torch.eye(len(product))
    return independent_disagreement(noise, scipy.stats.norm(scale=0.4 / math.sqrt(len(product))))


def test_mimetic_products_are_noisy_identities():
    for seed in range(3):
        wrong = mimetic_misfit(initialize_(MultiHeadAttention(128, 4), "mimetic", generator=seeded(seed)))
        assert wrong is None, wrong


MIMETIC_WRONG = {
    "no root of the singular values": lambda a: [p.weight.data.mul_(1.2) for p in (a.query, a.key)],
    "all to one side": lambda a: (a.query.weight.data.mul_(2), a.key.weight.data.div_(2)),
    "sign of the value": lambda a: a.value.weight.data.neg_(),
    "transposed output": lambda a: a.output.weight.data.copy_(a.output.weight.data.mT.clone()),
    "pairs not drawn together": lambda a: a.key.weight.data.copy_(a.key.weight.data[torch.randperm(128)]),
    "one noise for all heads": lambda a: [
        p.weight.data.copy_(p.weight.data[:32].repeat(4, 1)) for p in (a.query, a.key)
    ],
    "0.7 and 0.4 swapped": lambda a: initialize_(a, "mimetic", query_key=0.4, value_output=0.7),
}


@pytest.mark.parametrize("wrong", MIMETIC_WRONG)
def test_a_wrong_mimetic_pair_is_noticed(wrong):
    attention = initialize_(MultiHeadAttention(128, 4), "mimetic", generator=seeded(0))
    MIMETIC_WRONG[wrong](attention)
    assert mimetic_misfit(attention) is not None


def test_mimetic_refuses_what_it_cannot_fit_and_leaves_it_as_it_was():
    attention = nn.MultiheadAttention(64, 4, kdim=32, vdim=32)
    before = {key: value.clone() for key, value in attention.state_dict().items()}
    with pytest.raises(ValueError, match=r"mimetic fits .* of shape \(64, 64\): got .* key \(64, 32\)"):
        initialize_(attention, "mimetic", force=True)
    assert all(torch.equal(value, before[key]) for key, value in attention.state_dict().items())


def test_mimetic_leaves_cross_attention_to_the_usual_law():
    model = initialize_(nn.Transformer(64, 4, 1, 1, 256, batch_first=True), "mimetic", generator=seeded(0))
    for attention in view(model).attention:
        fitted = (attention.output.view @ attention.value.view).diagonal().mean().item()
        assert fitted == pytest.approx(0 if attention.query.weight.is_cross else -0.4, abs=0.05)


@pytest.mark.parametrize(
    "name, options",
    [
        ("normal", {"std": -1}),
        ("uniform", {"bound": -1}),
        ("trunc_normal", {"cut": 0}),
        ("trunc_normal", {"std": "0.02"}),
        ("lecun_normal", {"gain": -1}),
        ("xavier_uniform", {"gain": math.nan}),
        ("orthogonal", {"gain": -1}),
        ("constant", {"value": math.inf}),
        ("mimetic", {"query_key": -0.7}),
    ],
)
def test_an_option_out_of_range_is_refused(name, options):
    with pytest.raises((ValueError, TypeError), match=r"must be a .*number"):
        schemes()[name].law(PLACE["query"], **options)
