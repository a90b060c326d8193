"""What the weights tell by themselves: scale, origin, copies, and whether they were learned."""

import math

import pytest
import torch
from torch import nn

from attntut import MultiHeadAttention, Transformer, TransformerConfig
from attntut.anatomy import look
from attntut.anatomy.weight import BRANCH
from attntut.diagnose import Report
from attntut.diagnose.weights import SIGMAS, Statistics, _cut, describe, fill, is_drawn, law
from attntut.init import initialize_, schemes


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model_of(name, **settings):
    scheme = schemes()[name]
    shape = dict(n_classes=10, vocab_size=40, d_model=64, n_heads=4, seq_len=16, n_layers=3, pooling="none")
    model = Transformer(TransformerConfig(**shape | scheme.architecture(3, 16) | settings), seed=0)
    return initialize_(model, name, generator=generator(), force={"learning rates by role"} & set(scheme.requires))


PREDICTABLE = [name for name, scheme in schemes().items() if "batch" not in scheme.requires]


@pytest.mark.parametrize("name", PREDICTABLE)
def test_every_scheme_is_recognized(name):
    records, _ = describe(look(model_of(name)))
    inside = [each for each in records if each["role"] in BRANCH]
    missed = [(each["layer"], each["role"], each["std"]) for each in inside if name not in each["looks_like"]]
    assert not missed, f"{name} made these weights, and is not among those that they look like."


def test_what_agrees_with_all_weights_comes_first():
    records, _ = describe(look(model_of("gpt2")))
    query = next(each for each in records if each["role"] == "query")
    assert query["looks_like"][0] == "gpt2", "N(0, 0.02²) fits the query too, but not the outputs."
    assert "gpt2_released" in query["looks_like"]
    assert "bert" not in query["looks_like"], "BERT's is cut at two standard deviations."


def test_uniform_and_normal_orthogonal_and_normal_are_told_apart():
    for name, other in (
        ("xavier_uniform", "xavier_normal"),
        ("xavier_normal", "xavier_uniform"),
        ("orthogonal", "lecun_normal"),
        ("lecun_normal", "orthogonal"),
    ):
        records, _ = describe(look(model_of(name)))
        assert all(other not in each["looks_like"] for each in records), f"{name} is taken for {other}."


@pytest.mark.parametrize("factor, expected", [(0.0, True), (SIGMAS * 0.9, True), (SIGMAS * 1.3, False)])
def test_the_tolerance_is_the_sampling_error(factor, expected):
    attention = initialize_(MultiHeadAttention(64, 4), "xavier_normal", generator=generator())
    w = attention.query.weight.data
    w *= 64**-0.5 * (1 + factor / math.sqrt(2 * w.numel())) / w.std(correction=0)
    assert ("xavier_normal" in describe(look(attention))[0][0]["looks_like"]) is expected


def test_statistics_by_hand():
    measured = Statistics.of(torch.tensor([[0.0, 2.0], [4.0, 2.0]]))
    assert measured == pytest.approx((2.0, math.sqrt(2), 4.0, 2.0, 4, False, 0.0))
    assert Statistics.of(torch.full((3, 3), 0.1)).std == 0, "A constant has no spread, whatever rounding says."
    assert math.isnan(Statistics.of(torch.tensor([[math.nan, 1.0]])).std)


@pytest.mark.parametrize("shape", [(16, 16), (64, 64), (16, 64), (64, 16)])
@pytest.mark.parametrize("draw", [torch.randn, torch.rand])
def test_draws_of_any_scale_count_as_drawn(shape, draw):
    for seed in range(50):
        w = draw(*shape, generator=generator(seed))
        w[:8] *= 30  # one large head
        assert is_drawn(1e3 * w, 8)


def test_a_direction_that_sticks_out_counts_as_learned():
    w = torch.randn(64, 64, generator=generator())  # largest singular value about 16
    u, v = (nn.functional.normalize(torch.randn(64, generator=generator(i)), dim=0) for i in (1, 2))
    assert is_drawn(w + 4 * torch.outer(u, v)), "A small one drowns."
    assert not is_drawn(w + 24 * torch.outer(u, v))


def test_special_matrices_are_not_learned():
    for w in (torch.zeros(8, 8), torch.full((8, 8), 0.3), torch.eye(8), nn.init.orthogonal_(torch.empty(8, 8))):
        assert is_drawn(w)
    assert is_drawn(torch.full((8, 8), math.nan)), "NaN is another finding's business."


def test_a_shared_layer_is_no_clone():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    shared, copied = nn.ModuleList([block, block]), nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    assert not any(each["clone_of"] for each in describe(look(shared))[0])
    clones = [(each["layer"], each["role"], each["clone_of"]) for each in describe(look(copied))[0] if each["clone_of"]]
    attention = [("layers.1.self_attn", role, "layers.0.self_attn") for role in ("query", "key", "value", "output")]
    pairs = {"feed_forward_in": "linear1", "feed_forward_out": "linear2"}
    others = [(f"layers.1.{name}", role, f"layers.0.{name}") for role, name in pairs.items()]
    assert sorted(clones) == sorted(attention + others), "Clones are looked for among all matrices."


def test_constants_and_identities_are_no_clones():
    for name in ("zeros", "constant"):
        assert not any(each["clone_of"] for each in describe(look(model_of(name)))[0])
    clones = {each["role"] for each in describe(look(model_of("identity")))[0] if each["clone_of"]}
    assert not clones


def test_packed_and_separate_matrices_give_equal_records():
    torch.manual_seed(0)
    separate, packed = MultiHeadAttention(32, 4), MultiHeadAttention(32, 4, packed=True)
    with torch.no_grad():
        weights = [getattr(separate, role).weight for role in ("query", "key", "value")]
        packed.in_proj.weight.copy_(torch.cat(weights))
        packed.output.weight.copy_(separate.output.weight)
    ours, theirs = (describe(look(each))[0] for each in (separate, packed))
    assert [each["packed"] for each in theirs] == [True, True, True, False]
    for a, b in zip(ours, theirs, strict=True):
        differing = {key for key in a if a[key] != b[key]} - {"packed", "parameter", "looks_like"}
        assert not differing


def test_equal_heads_and_equal_matrices():
    attention = MultiHeadAttention(16, 4)
    with torch.no_grad():
        attention.query.weight.copy_(attention.query.weight[:4].repeat(4, 1))
        attention.key.weight.copy_(attention.query.weight)
    query, key, value, _ = describe(look(attention))[0]
    assert (query["heads_alike"], key["heads_alike"], value["heads_alike"]) == (True, True, None)
    assert (query["equals"], key["equals"]) == ("key", None)


def test_nothing_is_changed_and_no_random_number_drawn():
    model = model_of("xavier_normal")
    before = {name: each.clone() for name, each in model.state_dict().items()}
    state = torch.get_rng_state()
    describe(look(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())


def test_what_cannot_be_read_is_noted():
    report = fill(Report(), look(nn.Linear(2, 2)))
    assert report.weights == [] and report.notes[0].startswith("Weights: no attention is known in Linear")
    with torch.device("meta"):
        report = fill(Report(), look(MultiHeadAttention(8, 2)))
    assert report.weights == [] and "meta device" in report.notes[0]


def test_matrices_of_unknown_role_are_passed_over():
    model = nn.ModuleDict({"attention": MultiHeadAttention(8, 2), "other": nn.Bilinear(2, 3, 4)})
    assert len(describe(look(model))[0]) == 4


def trunc_normal_(w, **options):
    return nn.init.trunc_normal_(w, generator=generator(), **options)


DRAWS = {
    "normal": lambda w: w.normal_(0, 0.3, generator=generator()),
    "uniform": lambda w: w.uniform_(-1, 1, generator=generator()),
    "normal, cut at 1σ": lambda w: trunc_normal_(w, std=2.0),
    "normal, cut at 2σ": lambda w: trunc_normal_(w, std=0.02, a=-0.04, b=0.04),
    "normal, cut at 3σ": lambda w: trunc_normal_(w, std=0.02, a=-0.06, b=0.06),
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_law_of_a_draw_is_named(name):
    measured = [Statistics.of(DRAWS[name](torch.empty(192, 192)) * scale) for scale in (1.0, 0.1)]
    assert law(measured) == name


@pytest.mark.parametrize("scale", [1e18, 1e-30])
def test_memory_that_was_never_drawn_is_measured_however_large_or_small(scale):
    model = nn.MultiheadAttention(64, 4)
    for parameter in (model.in_proj_weight, model.out_proj.weight):
        parameter.data.normal_(generator=generator()).mul_(scale)
    records, _ = describe(look(model))
    assert {record["law"] for record in records} == {"normal"}
    assert all(record["std"] == pytest.approx(scale, rel=0.1) for record in records)


def test_a_cut_at_a_hundred_sigma_cannot_be_told_from_none():
    """The share beyond 2σ: 4.55 %; of what is cut at 2σ, Φ tells 3.46 % beyond two of the 0.88 σ that are left."""
    whole, cut = (Statistics.of(trunc_normal_(torch.empty(256, 256), std=0.02, a=-b, b=b)) for b in (2.0, 0.04))
    assert law([whole]) == "normal"
    for measured, share in ((whole, math.erfc(math.sqrt(2))), (cut, 0.0346)):
        assert measured.beyond == pytest.approx(share, abs=4 * math.sqrt(share / measured.entries))
    assert _cut(2.0) == pytest.approx((cut.largest / cut.std, cut.kurtosis), rel=0.01)


def test_no_law_is_claimed_of_other_draws_or_of_few_entries():
    heavy = torch.empty(64, 64).exponential_(generator=generator())
    learned = torch.randn(64, 64, generator=generator())
    learned += 3 * torch.outer(learned[0], learned[1])
    for w in (heavy, learned, torch.eye(64), torch.zeros(64, 64), torch.randn(15, 15), heavy * 0 + math.nan):
        assert law([Statistics.of(w)]) is None
    assert law([]) is None


class CallsTruncNormal(nn.TransformerEncoderLayer):
    """This file calls ``trunc_normal_``; the model may have been drawn otherwise since."""

    def __init__(self, std=0.02, **options):
        super().__init__(64, 4, 128, batch_first=True)
        for each in self.parameters():
            if each.ndim > 1:
                trunc_normal_(each, std=std, **options)


def test_a_truncation_that_cuts_nothing_is_noted_where_code_promises_one():
    def notes(module):
        return [note for note in fill(Report(), look(module)).notes if "cuts nothing" in note]

    (note,) = notes(CallsTruncNormal())
    assert __name__ in note and "100σ" in note and "of 6 matrices" in note and "(4.6%)" in note
    assert notes(CallsTruncNormal(a=-0.04, b=0.04)) == [] == notes(CallsTruncNormal(std=1.0))
    plain = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    assert notes(plain) == [], "Uniform; and torch's code is not searched."
    for each in plain.parameters():
        nn.init.normal_(each, std=0.02)
    assert notes(plain) == [], "Nobody said that it should be cut."
    uniform = CallsTruncNormal()
    for each in uniform.parameters():
        nn.init.uniform_(each, -0.02, 0.02)
    assert notes(uniform) == []
    trained = CallsTruncNormal()
    with torch.no_grad():
        trained.self_attn.in_proj_weight[:64] += 0.1 * torch.randn(64, 1) * torch.randn(1, 64)
    assert notes(trained) == [], "Of what was learned, the law says nothing about the draw."
