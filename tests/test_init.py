"""The machinery of `attntut.init`: laws, the register, one call that plans before it writes, and what it refuses."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from attntut import MultiHeadAttention, Transformer, TransformerConfig
from attntut.anatomy.blocks import is_norm
from attntut.anatomy.parameters import listing
from attntut.anatomy.weight import ROLES, weights
from attntut.device import seeded
from attntut.init import Scheme, Weight, initialize_, registry, schemes, view
from attntut.init.laws import Constant, Identity, Law, Normal, Orthogonal, TruncNormal, Uniform
from attntut.init.registry import find_scheme, law_outside_blocks, scheme
from attntut.init.requirements import REQUIREMENTS, check_requirements

LAWS = [
    Constant(0.3),
    Normal(0.1),
    Uniform(0.2),
    TruncNormal(0.1),
    TruncNormal(0.1, cut=0.2),
    Orthogonal(1.5),
    Identity(-2.0),
]
DATA = dict(
    family="plain", formula="W = 0", cite="", source="nowhere", year=2000, why="To test."
)  # what every scheme must say


def nameless(weight):
    return Normal(1.0)


def small(**changes) -> Transformer:
    config = dict(n_classes=3, d_input=5, seq_len=6, d_model=16, n_heads=4, n_layers=3, d_ff=24)
    return Transformer(TransformerConfig(**config | changes), seed=0)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    after = module.state_dict()
    return {name for name, tensor in before.items() if not (tensor.is_meta or torch.equal(tensor, after[name]))}


@pytest.fixture
def register(monkeypatch):
    """A copy of the register that the test may add to."""
    monkeypatch.setattr(registry, "SCHEMES", dict(registry.SCHEMES))


# --- laws


@pytest.mark.parametrize("law", LAWS, ids=repr)
@pytest.mark.parametrize("layout", ["dense", "transposed", "block", "half"])
def test_a_law_fills_any_layout_with_what_it_promises(law, layout):
    fan_out, fan_in = 96, 160
    tensor = {
        "dense": lambda: torch.empty(fan_out, fan_in),
        "transposed": lambda: torch.empty(fan_in, fan_out).mT,
        "block": lambda: torch.full((fan_in, 3 * fan_out), 7.0)[:, fan_out : 2 * fan_out].mT,
        "half": lambda: torch.empty(fan_out, fan_in, dtype=torch.bfloat16),
    }[layout]()
    assert law.fill_(tensor, seeded(0)) is tensor
    entries = tensor.float()
    error = 5 / math.sqrt(2 * entries.numel()) + 0.01
    spread = entries.sub(law.mean).square().mean().sqrt().item()
    assert math.isclose(spread, law.std(fan_out, fan_in), rel_tol=error, abs_tol=1e-3 if layout == "half" else 1e-7)
    if law.support is not None:
        assert entries.abs().max() <= law.support * 1.005
    if layout == "block":
        assert (tensor._base[:, :fan_out] == 7).all() and (tensor._base[:, 2 * fan_out :] == 7).all(), (
            "The neighbours of a packed block were written."
        )


@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_a_factor_scales_the_draw(law):
    plain, scaled = (each.fill_(torch.empty(8, 12), seeded(0)) for each in (law, law * 0.5))
    torch.testing.assert_close(scaled, plain / 2)
    assert math.isclose((law * 0.5).std(8, 12), law.std(8, 12) / 2)


def test_of_std_undoes_the_cut():
    for law in (Uniform.of_std(0.02), TruncNormal.of_std(0.02), TruncNormal.of_std(0.02, cut=1.0)):
        assert math.isclose(law.std(8, 8), 0.02)
    assert math.isclose(TruncNormal(1.0, cut=1e-2).std(1, 1), 1e-2 / math.sqrt(3), rel_tol=1e-3)  # nearly uniform


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Normal(-1), "sigma must be a number ≥ 0: got -1"),
        (lambda: Uniform(math.inf), "bound must be"),
        (lambda: TruncNormal(1.0, cut=0), "cut must be a number > 0"),
        (lambda: Normal(1.0) * -1, "factor must be a number ≥ 0"),
        (lambda: Orthogonal().fill_(torch.empty(4)), r"fills matrices: got shape \(4,\)"),
        (lambda: Identity().fill_(torch.empty(4)), r"fills matrices: got shape \(4,\)"),
        (lambda: Weight("q", fan_in=8, fan_out=8, d_model=8, n_heads=2), "role must be one of"),
        (lambda: Weight("query", fan_in=0, fan_out=8, d_model=8, n_heads=2), "fan_in must be an integer ≥ 1"),
        (
            lambda: Weight("query", 8, 8, d_model=8, n_heads=2, layer=3, n_layers=2),
            "layer must be an integer between 1 and 2",
        ),
        (lambda: Weight("query", 8, 8, d_model=8, n_heads=3), "n_heads must divide d_model"),
        (lambda: Weight("query", 8, 8, d_model=8, n_heads=2, stack="middle"), "stack must be one of"),
        (lambda: weights(8, 2, d_ff=0), "d_ff must be an integer ≥ 1"),
        (lambda: scheme(**DATA | {"family": "fans"})(nameless), "family must be one of.*Did you mean 'fan'"),
        (lambda: scheme(**DATA | {"source": " "})(nameless), "source must say something"),
        (lambda: scheme(**DATA | {"year": None})(nameless), "year must be given where cite has none: got cite=''"),
        (lambda: scheme(**DATA, requires=("post-ln",))(nameless), "requires must be one of.*Did you mean 'post-LN'"),
        (
            lambda: scheme(**DATA)(schemes()["xavier_normal"].function),
            "'xavier_normal' exists already, in the family 'fan'",
        ),
        (lambda: find_scheme("xavier_norml"), "Did you mean 'xavier_normal'"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_names_and_listings():
    assert is_norm(nn.BatchNorm1d(3)) and is_norm(nn.LayerNorm((2, 3))) and not is_norm(nn.Linear(3, 3))
    assert listing([]) == "none" and listing("abc", 3) == "a, b, c" and listing("abcd", 3) == "a, b, c and 1 more"


# --- the register


def test_the_register_is_in_order_and_read_only():
    families = [each.family for each in schemes().values()]
    assert families == sorted(families, key=registry.FAMILIES.index)
    assert all(name == each.name == each.function.__name__ for name, each in schemes().items())
    with pytest.raises(TypeError):
        schemes()["mine"] = None


def test_one_function_makes_a_scheme(register):
    @scheme(**DATA, requires=("post-LN", "unscaled logits"), architecture=lambda n_layers: {"skip_scale": n_layers / 2})
    def mine(weight: Weight, *, std: float = 0.5) -> Law:
        return law_outside_blocks(weight) or Normal(std * weight.layer)

    added = schemes()["mine"]
    assert added.options == {"std": 0.5}
    assert added.architecture(n_layers=6, d_head=4) == {"norm": "post", "scale": 1.0, "skip_scale": 3.0}
    prediction = added.predict(16, 4, n_layers=3, layer=2, std=0.25)
    assert set(prediction.std) == set(ROLES) and prediction.std["query"] == 0.5
    assert math.isclose(prediction.logit_std, 1.0 * math.sqrt(4) * 16 * 0.5**2)
    assert math.isclose(added.predict(16, 4, layer=1, scale=-0.1).logit_std, 0.1 * math.sqrt(4) * 16 * 0.5**2)


def test_help_shows_what_the_decorator_says(register):
    @scheme(**DATA | {"cite": "who1999what", "year": None}, requires=("post-LN", "unscaled logits"))
    def mine(weight: Weight) -> Law:
        """Zero, or nearly.

        More about it.

        Example:
            >>> 1
        """
        return Normal(0.1)

    assert mine.__doc__ == (
        "Zero, or nearly.\n\n.. math:: W = 0\n\nTo test.\n\nSource: nowhere.\n\nRequires: post-LN, unscaled logits.\n\n"
        "More about it.\n\nExample:\n    >>> 1\n"
    )
    assert schemes()["mine"].year == 1999, "By default, that of the work cited."


def test_a_scheme_that_is_given_is_used_as_it_is():
    """Also when another of its name is registered, or none is."""
    wider = dataclasses.replace(schemes()["normal"], function=lambda weight: Constant(0.5))
    assert find_scheme(wider) is wider
    mine = Scheme(name="mine", function=lambda weight: Constant(0.25), requires=(), **DATA)
    for given, value in ((wider, 0.5), (mine, 0.25)):
        assert (initialize_(MultiHeadAttention(8, 2), given).query.weight == value).all()


def test_the_predicted_logits_of_what_all_entries_share(register):
    """Keys and queries with a mean: the product of the means adds up over the head, and is no noise."""

    class Shifted(Normal):
        mean = 0.1

    @scheme(**DATA)
    def shifted(weight: Weight) -> Law:
        return Shifted(0.2)

    d_model, d_head = 64, 16
    draw = lambda seed: 0.1 + 0.2 * torch.randn(400, d_head, d_model, generator=seeded(seed))  # noqa: E731
    product = draw(0).mT @ draw(1) / math.sqrt(d_head)
    measured = product.square().sum((-2, -1)).mean().sqrt().item()
    assert math.isclose(schemes()["shifted"].predict(d_model, 4).logit_std, measured, rel_tol=0.03)


def test_options_reach_the_function_that_knows_them(register):
    heard = {}

    def finish(seen, generator, *, rounds=3):
        heard.update(rounds=rounds, generator=generator, entries=len(seen.entries))

    def bias(weight, *, shift=0.5):
        return Constant(shift)

    @scheme(**DATA, finish=finish, bias=bias, predicts=lambda weight, *, std=1.0: 3 * std)
    def busy(weight: Weight, *, std: float = 1.0) -> Law:
        return Normal(std)

    generator = seeded(0)
    model = initialize_(MultiHeadAttention(8, 2), "busy", generator=generator, rounds=5, shift=0.25, std=0.0)
    assert schemes()["busy"].options == {"std": 1.0, "shift": 0.5, "rounds": 3}
    assert heard == {"rounds": 5, "generator": generator, "entries": 4}
    assert (model.query.bias == 0.25).all() and (model.query.weight == 0).all()
    assert schemes()["busy"].predict(8, 2, std=2.0).std["query"] == 6.0


# --- one call


def test_the_norms_the_biases_and_the_gains():
    model = small(branch_gain=0.3)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.3)
    initialize_(model, "normal")
    for name, parameter in model.named_parameters():
        wanted = {"gain": 0.3, "bias": 0.0, "norm.weight": 1.0}
        for ending, value in wanted.items():
            if name.endswith(ending):
                assert (parameter == value).all(), f"{name} must be {value}."
    assert model.blocks[1].attention.query.weight.std() > 0


@pytest.mark.parametrize("packed", [False, True])
def test_reproducible_and_quiet(packed):
    one, two = small(packed=packed), small(packed=packed)
    before = torch.get_rng_state()
    assert initialize_(one, "xavier_uniform", generator=seeded(5)) is one
    initialize_(two, "xavier_uniform", generator=seeded(5))
    assert torch.equal(torch.get_rng_state(), before), "The global generator was used although another was given."
    assert not changed(one, state(two))
    initialize_(two, "xavier_uniform", generator=seeded(6))
    assert "blocks.0.attention.output.weight" in changed(one, state(two))
    torch.manual_seed(3), initialize_(one, "normal")
    torch.manual_seed(3), initialize_(two, "normal")
    assert not changed(one, state(two)), "Without a generator, torch's global one decides."


def test_layers_are_never_clones():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), 3)
    assert torch.equal(model.layers[0].linear1.weight, model.layers[1].linear1.weight), "torch copies its first layer"
    initialize_(model, "xavier_normal")
    views = [entry.view for entry in view(model).entries]
    for i, one in enumerate(views):
        assert not any(one.shape == other.shape and torch.equal(one, other) for other in views[:i])


def test_frozen_parameters_are_filled_and_stay_frozen():
    attention = MultiHeadAttention(8, 2).requires_grad_(False)
    before = state(attention)
    initialize_(attention, "normal")
    assert "query.weight" in changed(attention, before)
    assert not any(parameter.requires_grad for parameter in attention.parameters())


def test_a_filled_model_still_learns():
    model = initialize_(small(), "xavier_normal", generator=seeded(0))
    model(torch.randn(2, 6, 5)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_finish_never_touches_the_global_generator(register):
    @scheme(**DATA, finish=lambda seen, generator: torch.rand(3))
    def careless(weight: Weight) -> Law:
        return Normal(0.1)

    attention, before = MultiHeadAttention(8, 2), torch.get_rng_state()
    initialize_(attention, "careless", generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), before)


# --- patterns for other names


class Other(nn.Module):
    """Attention under names of its own."""

    def __init__(self, n_heads=2):
        super().__init__()
        self.attn = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("q_lin", "k_lin", "v_lin", "o_lin")})
        self.head = nn.Linear(8, 3)
        self.wave = nn.Parameter(torch.ones(4, 4, 4))
        if n_heads:
            self.n_heads = n_heads


ROLES_OF_OTHER = {
    "query": "*.q_lin.weight",
    "key": "*.k_lin.weight",
    "value": "*.v_lin.weight",
    "output": ["*.o_lin.*"],
    "readout": "head.weight",
    "keep": "wave",
}


def test_patterns_give_roles_to_other_names():
    model = Other()
    seen = view(model, roles=ROLES_OF_OTHER)
    found = [(each.weight.role, each.parameter) for each in seen.entries]
    assert found == [
        ("query", "attn.q_lin.weight"),
        ("key", "attn.k_lin.weight"),
        ("value", "attn.v_lin.weight"),
        ("output", "attn.o_lin.weight"),
        ("readout", "head.weight"),
    ]
    assert seen.kept == ("wave",) and [each.name for each in seen.attention] == ["attn"]
    assert seen.attention[0].output.parameter == "attn.o_lin.weight"
    initialize_(model, "zeros", roles=ROLES_OF_OTHER)
    assert (model.wave == 1).all() and all((each.view == 0).all() for each in seen.entries[:4])


def test_a_tuple_of_roles_is_packed_in_that_order():
    model = nn.ModuleDict({"qkv": nn.Linear(8, 24), "proj": nn.Linear(8, 8)})
    seen = view(model, roles={("key", "query", "value"): "qkv.weight", "output": "proj.weight"}, n_heads=2)
    assert [each.weight.role for each in seen.entries] == ["key", "query", "value", "output"]
    for place, each in enumerate(seen.entries[:3]):
        assert each.view.data_ptr() == model["qkv"].weight[8 * place :].data_ptr()
        assert each.bias.data_ptr() == model["qkv"].bias[8 * place :].data_ptr()


def test_two_attentions_in_one_model_are_told_apart_by_their_patterns():
    roles = ROLES_OF_OTHER | {("query", "key", "value"): "head.weight", "readout": ()}  # three rows, one a role
    seen = view(Other(n_heads=0), roles=roles, n_heads=1)
    assert [each.weight.role for each in seen.entries if each.parameter == "head.weight"] == ["query", "key", "value"]
    assert [each.weight.fan_out for each in seen.by_role("key")] == [8, 1]


def test_what_is_kept_is_kept():
    model = initialize_(nn.TransformerEncoderLayer(8, 2, 12), "normal")
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.3)
    initialize_(model, "normal", roles={"keep": ["*bias", "linear1.*"]})
    assert (model.linear1.weight == 0.3).all() and (model.self_attn.in_proj_bias == 0.3).all()
    assert (model.norm1.weight == 1).all() and (model.norm1.bias == 0.3).all() and model.linear2.weight.std() > 0


@pytest.mark.parametrize(
    "roles, n_heads, message",
    [
        (
            ROLES_OF_OTHER | {"output": "*.out_lin.weight"},
            2,
            r"these match none: '\*.out_lin.weight'.*attn.o_lin",
        ),
        (
            {k: v for k, v in ROLES_OF_OTHER.items() if k != "readout"},
            2,
            r'none is known for head.weight \(3, 8\).*roles=\{"readout"',
        ),
        (ROLES_OF_OTHER, None, "The number of heads of attn is not known.*n_heads=…"),
        (
            ROLES_OF_OTHER,
            3,
            "n_heads must divide the width of the queries: got n_heads=3, and attn.q_lin.weight writes 8",
        ),
        (ROLES_OF_OTHER, 0, "n_heads must be an integer ≥ 1: got 0"),
        (ROLES_OF_OTHER | {"quary": "*"}, 2, "a role in roles must be one of.*Did you mean 'query'"),
        (ROLES_OF_OTHER | {"key": "*.q_lin.weight"}, 2, "attn.q_lin.weight must have one role"),
        (ROLES_OF_OTHER | {"keep": "head.bias", "embedding": "wave", "position": "wave"}, 2, "wave must have one role"),
        (
            ROLES_OF_OTHER | {"keep": "head.bias", "readout": ["wave", "head.weight"]},
            2,
            "wave must be a matrix.*readout",
        ),
        ({"keep": "wave"}, 2, "module must contain attention, and none is known in Other"),
        (
            ROLES_OF_OTHER | {("query", "key"): "head.weight", "readout": ()},
            2,
            "head.weight must hold 2 projections of one size",
        ),
    ],
)
def test_patterns_that_cannot_be_meant(roles, n_heads, message):
    model = Other(n_heads=0)
    before = state(model)
    with pytest.raises(ValueError, match=message):
        initialize_(model, "normal", roles=roles, n_heads=n_heads)
    assert not changed(model, before)


@pytest.mark.parametrize("roles", [["*.weight"], {"query": 3}, {"query": [3]}])
def test_patterns_of_the_wrong_kind(roles):
    with pytest.raises(TypeError, match="roles"):
        view(Other(), roles=roles)


# --- what is refused, and leaves no trace


def on_another_device() -> torch.Generator:
    class Elsewhere(torch.Generator):
        device = torch.device("cuda")

    return Elsewhere()


def with_meta_parameter() -> nn.Module:
    model = small()
    model.blocks[2].attention.value.to("meta")
    return model


def with_integer_parameter() -> nn.Module:
    model = small()
    model.readout.weight = nn.Parameter(torch.ones(3, 16, dtype=torch.int8), requires_grad=False)
    return model


@pytest.mark.parametrize(
    "make, arguments, error, message",
    [
        (
            lambda: nn.Linear(3, 3),
            dict(scheme="normal"),
            ValueError,
            "module must contain attention.*Linear.*matrices: weight",
        ),
        (lambda: nn.ReLU(), dict(scheme="normal"), ValueError, "Its matrices: none"),
        (small, dict(scheme="xavier_norm"), ValueError, "scheme must be one of.*Did you mean 'xavier_normal'"),
        (small, dict(scheme=3), TypeError, "scheme must be one of"),
        (
            small,
            dict(scheme="normal", sdt=0.1),
            ValueError,
            "'normal' has no option 'sdt'. Its options: std=0.02. Did you mean 'std'",
        ),
        (small, dict(scheme="zeros", std=0.1), ValueError, "'zeros' has no option 'std'. It has no options"),
        (small, dict(scheme="normal", std=-0.1), ValueError, "must be a number ≥ 0: got -0.1"),
        (
            small,
            dict(scheme="normal", generator=7),
            TypeError,
            r"generator must be a torch.Generator: got 7.*manual_seed",
        ),
        (small, dict(scheme="normal", generator=on_another_device()), ValueError, "it is on cuda.*is on cpu"),
        (
            with_meta_parameter,
            dict(scheme="normal"),
            ValueError,
            "blocks.2.attention.value.weight must have memory.*meta",
        ),
        (with_integer_parameter, dict(scheme="normal"), TypeError, "readout.weight must be a floating-point.*int8"),
        (
            small,
            dict(scheme="lsuv"),
            ValueError,
            "'lsuv' needs batch, because it measures activations.*No batch|no batch",
        ),
        (small, dict(scheme="lsuv", batch=torch.ones(2, 6, 4)), ValueError, "x must have shape"),
        (
            small,
            dict(scheme="deepnorm"),
            ValueError,
            "needs post-LN, because.*norm='pre' instead of 'post'.*residual scale",
        ),
        (small, dict(scheme="t5"), ValueError, "needs unscaled logits, because.*scale=0.5 instead of 1.0.*force=True"),
        (small, dict(scheme="normal", force="post-LN"), ValueError, "force must be one of"),
        (small, dict(scheme="normal", force=3), TypeError, "force must be True, False, or names"),
    ],
)
def test_errors_leave_no_trace(make, arguments, error, message):
    model = make()
    before = state(model)
    random = torch.get_rng_state()
    with pytest.raises(error, match=message):
        initialize_(model, **arguments)
    assert not changed(model, before), "Something was written before the error was found."
    if arguments["scheme"] != "lsuv":  # which has drawn when it runs the batch
        assert torch.equal(torch.get_rng_state(), random)


def test_no_module():
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module: got dict"):
        view({})


def test_a_failure_after_the_draw_is_undone(register):
    def finish(seen, generator):
        raise RuntimeError("stop")

    @scheme(**DATA, finish=finish)
    def failing(weight: Weight) -> Law:
        return Normal(0.1)

    model = small()
    before = state(model)
    with pytest.raises(RuntimeError, match="stop"):
        initialize_(model, "failing")
    assert not changed(model, before)


def test_a_scheme_that_forgets_a_role(register):
    @scheme(**DATA)
    def forgetful(weight: Weight) -> Law:
        return None if weight.role == "readout" else Normal(0.1)

    model = small()
    before = state(model)
    with pytest.raises(TypeError, match="'forgetful' must give a Law for the role 'readout': got None"):
        initialize_(model, "forgetful")
    assert not changed(model, before)


# --- requirements


@pytest.mark.parametrize("name", [name for name, each in schemes().items() if each.requires])
def test_a_scheme_accepts_the_architecture_it_asks_for_and_no_other(name):
    asked = schemes()[name]
    settings = asked.architecture(n_layers=3, d_head=4)
    options = {"batch": torch.randn(4, 6, 5, generator=seeded(0))} if "batch" in asked.requires else {}
    confirmed = {"learning rates by role"} & set(asked.requires)
    initialize_(small(**settings), name, force=confirmed, **options)
    if settings:
        wrong = small(norm="none" if settings.get("norm") != "none" else "pre")
        with pytest.raises(ValueError, match=f"'{name}' needs"):
            initialize_(wrong, name, force=confirmed, **options)
    if confirmed or options:
        with pytest.raises(ValueError, match=f"'{name}' needs"):
            initialize_(small(**settings), name)


def test_one_requirement_can_be_overlooked_by_name():
    model = small(norm="post")
    with pytest.raises(ValueError, match="needs residual scale"):
        initialize_(model, "deepnorm", force="post-LN")
    initialize_(model, "deepnorm", force=["residual scale"])
    initialize_(small(), "deepnorm", force=True)


def test_sub_ln_is_a_kind_of_pre_ln_and_not_the_other_way_round():
    for norm, met in (("pre", True), ("sub", True), ("post", False), (None, False)):
        assert REQUIREMENTS["pre-LN"].holds(norm, "pre") is met
    assert not REQUIREMENTS["sub-LN"].holds("pre", "sub")


def test_what_is_not_known_is_not_taken_for_granted():
    with pytest.raises(ValueError, match="norm unknown, or none"):
        check_requirements("t_fixup", ["no norm"], {}, {"norm": "none"}, {})
