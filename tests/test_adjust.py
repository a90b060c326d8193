"""What holds for every method of `attntut.adjust`, whatever it does: undone to the bit, copied, loaded, documented."""

import copy
import inspect
import re
from dataclasses import replace

import pytest
import torch
from adjust_models import MODELS, D, H, encoder, inputs_of, ours, output
from torch import nn

from attntut import MultiHeadAttention, initialize_
from attntut.adjust import AttentionChange, acting_on, adjust, adjustment, adjustments, attention, registry
from attntut.adjust.handle import fitting, known_view
from attntut.device import own_randomness
from attntut.diagnose import diagnose
from attntut.diagnose.faults import faults
from attntut.init.requirements import REQUIREMENTS
from attntut.parts import Differential, GroupedQueries, Hypersphere, NormalizedResidual, SwiGLU

DIFFERENTIAL = ("qk_norm", "qk_l2_clip", "value_residual", "output_gate")  # see one attention, and there are two
ON_MODEL = [name for name, each in adjustments().items() if each.is_undoable]
GIVEN = {"optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.0)}  # what some methods must be given


def options(name, model):
    missing = [key for key, value in adjustments()[name].options.items() if value is inspect.Parameter.empty]
    return {key: GIVEN[key](model) for key in missing}


@pytest.fixture(scope="module")
def models():
    """Each model is made once, with its inputs; every test leaves it as it was."""
    torch.manual_seed(0)
    return {name: (make().eval(), inputs_of(name)) for name, make in MODELS.items()}


def everything(model):
    """All that a method could leave behind: names, objects, values, hooks, modes."""
    return [
        (
            name,
            type(each),
            {key: value for key, value in vars(each).items() if not key.startswith("_")},
            list(each._modules.items()),
            [(key, id(p), p if p is None else (p.requires_grad, p.tolist())) for key, p in each._parameters.items()],
            [(key, b if b is None else b.tolist()) for key, b in each._buffers.items()],
            [list(vars(each)[key].values()) for key in sorted(vars(each)) if key.endswith("_hooks")],
            sorted(vars(each)),
        )
        for name, each in model.named_modules()
    ] + list(model.state_dict())


def step(model, inputs, method):
    model.train()
    output(model, inputs).square().mean().backward()
    if "optimizer" in method:
        method["optimizer"].step()
    model.zero_grad()
    return model.eval()


BEFORE_THE_SUM = ("ours, packed, post-LN", "torch encoder", "torch transformer", "BERT", "BERT, sdpa")
ONE_BLOCK = ("torch attention", "torch transformer", "T5")
NO_NORM = "it has no norm of the stream"
REFUSED = {  # all that is, each with why, and in which of the models
    "value_residual": {"no stack of blocks has a second self-attention": ONE_BLOCK},
    "reinit_top_layers": {"its blocks are not known": ONE_BLOCK},
    "sandwich": {"needs pre-LN.*norm='post'": BEFORE_THE_SUM, "norm unknown": ("torch attention",)},
    "ln_scale": {"needs pre-LN.*norm='post'": BEFORE_THE_SUM, "norm unknown": ("torch attention",),
                 "no norm of the stream in a block after the first": ("T5",)},
    "rms_norm": {"no norm of the stream that is not an RMSNorm":
                 ("ours, modern", "torch attention", "Llama", "Llama, sdpa")},
    "scale_norm": {NO_NORM: ("torch attention",)},
    "dyt": {NO_NORM: ("torch attention",)},
    "embedding_rescale": {"no layer is known that embeds": ("torch attention", "torch encoder", "torch transformer")},
}  # fmt: skip


def refusal(name, model_name):
    return next((why for why, names in REFUSED.get(name, {}).items() if model_name in names), None)


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("name", ON_MODEL)
def test_it_is_undone_to_the_bit(models, name, model_name):
    model, inputs = models[model_name]
    before, expected = everything(model), output(model, inputs)
    method = options(name, model)
    if why := refusal(name, model_name):
        with pytest.raises(ValueError, match=f"^'{name}' .*{why}"):
            adjust(model, name, **method)
    else:
        handle = adjust(model, name, **method)
        assert acting_on(model) == (name,)
        step(model, inputs, method)
        handle.undo()
        handle.undo()  # does nothing
    assert everything(model) == before
    assert torch.equal(output(model, inputs), expected)


@pytest.mark.parametrize("model_name", MODELS)
def test_what_fits_is_what_can_be_applied(models, model_name):
    view = known_view(models[model_name][0], None, None, None)
    assert {*ON_MODEL} & {*fitting(view)} == {name for name in ON_MODEL if not refusal(name, model_name)}


def first_that_takes(name):
    for make, inputs in ((ours, inputs_of("ours")), (MODELS["ours, packed, post-LN"], inputs_of("ours"))):
        model = make().eval()
        try:
            return model, inputs, adjust(model, name, **options(name, model)), make
        except ValueError:
            continue
    pytest.skip("refused by these models")


@pytest.mark.parametrize("name", ON_MODEL)
def test_a_copy_stays_adjusted_and_the_original_can_be_undone(name):
    model, inputs, handle, _ = first_that_takes(name)
    expected, twin = output(model, inputs), copy.deepcopy(model)
    handle.undo()
    assert torch.equal(output(twin, inputs), expected)
    assert acting_on(twin) == (name,) and acting_on(model) == ()
    output(twin, inputs).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ON_MODEL)
def test_its_state_can_be_loaded(name):
    model, inputs, _, make = first_that_takes(name)
    other = make().eval()
    adjust(other, name, **options(name, other))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    other.load_state_dict(model.state_dict())
    assert torch.equal(output(other, inputs), output(model, inputs))


@pytest.mark.parametrize("first, second", [("soft_cap", "branch_scale"), ("sigma_reparam", "soft_cap"),
                                           ("temperature", "soft_cap"), ("branch_scale", "sigma_reparam")])  # fmt: skip
@pytest.mark.parametrize("make", [ours, encoder])
def test_two_are_undone_in_any_order(first, second, make):
    model = make().eval()
    before = everything(model)
    for order in ((0, 1), (1, 0)):
        handles = [adjust(model, first), adjust(model, second)]
        for i in order:
            handles[i].undo()
        assert everything(model) == before


def test_two_parametrized_parameters_of_one_module_are_undone_in_any_order():
    model = nn.MultiheadAttention(D, H)
    before = list(model.state_dict())
    first = adjust(model, "sigma_reparam", on=["query"])
    with pytest.raises(ValueError, match="'sigma_reparam' acts on this model already"):
        adjust(model, "sigma_reparam", on=["output"])
    first.undo()
    assert list(model.state_dict()) == before


def test_what_was_built_upon_it_must_go_first():
    model = ours()
    handle = adjust(model, "sigma_reparam")
    nn.utils.parametrizations.spectral_norm(model.blocks[0].attention.query)
    with pytest.raises(RuntimeError, match=r"parametrized once more. Undo that first."):
        handle.undo()
    assert acting_on(model) == ("sigma_reparam",)


@pytest.mark.parametrize("name", ["soft_cap", "qk_norm"])
def test_a_forward_that_was_replaced_since_must_go_first(name):
    model, inputs = ours().eval(), inputs_of("ours")
    before, expected = everything(model), output(model, inputs)
    handle, last = adjust(model, name), model.blocks[1].attention
    adjusted, found = last.forward, output(model, inputs)
    last.forward = lambda *args, **kwargs: adjusted(*args, **kwargs)
    with pytest.raises(RuntimeError, match=r"the forward of blocks.1.attention was replaced since\. Undo that first"):
        handle.undo()
    assert acting_on(model) == (name,) and torch.equal(output(model, inputs), found)
    last.forward = adjusted
    handle.undo()
    assert everything(model) == before and torch.equal(output(model, inputs), expected)


@pytest.mark.parametrize("name", ["sigma_reparam", "weight_norm", "qk_clip"])
@pytest.mark.parametrize("first", ["spectral_norm", "weight_norm"])
def test_what_the_user_computes_already_is_refused(name, first):
    model = ours()
    method = options(name, model)
    getattr(nn.utils.parametrizations, first)(model.blocks[1].attention.key)
    before = everything(model)
    with pytest.raises(ValueError, match=f"'{name}' cannot be applied to Transformer: .*blocks.1.attention"):
        adjust(model, name, **method)
    assert everything(model) == before


@pytest.mark.parametrize("method", ["soft_cap", "qk_norm", "branch_scale"])
def test_a_model_and_a_part_of_it_know_of_each_other(method):
    model = ours()
    before = everything(model)
    for whole, part in ((model, model.blocks[0]), (model.blocks[0], model), (model, model.blocks[0].attention)):
        with adjust(whole, method):
            assert method in acting_on(part)
            with pytest.raises(ValueError, match=f"'{method}' acts on this model already"):
                adjust(part, method)
            if method == "soft_cap":
                with pytest.raises(ValueError, match="'qk_norm' clashes with soft_cap"):
                    adjust(part, "qk_norm")
                with pytest.raises(ValueError, match="'soft_cap' changes it already"):
                    attention.insert(model.blocks[0].attention, H, "soft_cap", AttentionChange())
    assert everything(model) == before


def test_it_acts_on_the_weights_where_the_model_has_moved_them():
    model, inputs = ours(packed=True), {"x": torch.randn(2, 6, 5, dtype=torch.float64)}
    before = {name: each.double() for name, each in model.state_dict().items()}
    handle = adjust(model, "reinit_top_layers")
    model.double()
    handle.undo()
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())

    model.float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with adjust(model, "qk_clip", optimizer=optimizer, limit=0.01):
        output(model.double(), inputs)
        optimizer.step()
    packed = model.blocks[0].attention.in_proj.weight
    assert packed[: 2 * D].norm() < before["blocks.0.attention.in_proj.weight"][: 2 * D].norm()

    model.float()
    with adjust(model, "adaptive_clip", optimizer=optimizer, limit=0.5):
        for each in model.double().parameters():
            each.data.mul_(100)
            each.grad = each.detach().clone()
        optimizer.step()
    assert torch.allclose(packed.grad, 0.5 * packed)


def test_nothing_is_left_when_it_fails_half_way(models, monkeypatch):
    model, _ = models["ours"]
    before = everything(model)

    def half(patch):
        patch.keep(*patch.model.parameters())
        for each in patch.model.parameters():
            each.data.fill_(1)
        for name in ("soft_cap", "sigma_reparam", "branch_scale"):
            adjustments()[name].function(patch)
        raise KeyError("half-way")

    monkeypatch.setitem(
        registry._ADJUSTMENTS, "half_way", replace(adjustments()["soft_cap"], name="half_way", function=half)
    )
    with pytest.raises(KeyError, match="half-way"):
        adjust(model, "half_way")
    assert everything(model) == before


def test_a_forward_pass_that_fails_leaves_no_mode(models):
    model, inputs = models["ours"]
    before, expected = everything(model), output(model, inputs)
    with adjust(model, "soft_cap"), pytest.raises(ValueError, match="mask must broadcast"):
        model(inputs["x"], mask=torch.ones(3, 3, dtype=torch.bool))
    assert everything(model) == before and torch.equal(output(model, inputs), expected)
    with pytest.raises(KeyError), adjust(model, "soft_cap"):
        raise KeyError
    assert everything(model) == before


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks
def test_a_compiled_model_does_the_same():
    model, inputs = ours(n_layers=1).eval(), inputs_of("ours")
    adjust(model, "qk_norm"), adjust(model, "sigma_reparam", force=True)  # one inside attention, one elsewhere
    expected = output(model, inputs)
    gradients = torch.autograd.grad(expected.square().sum(), [*model.parameters()])
    compiled = torch.compile(model, backend="aot_eager")
    result = output(compiled, inputs)
    assert torch.allclose(result, expected, atol=1e-6)
    found = torch.autograd.grad(result.square().sum(), [*model.parameters()])
    assert all(map(torch.allclose, found, gradients, [1e-4] * len(found), [1e-5] * len(found)))
    torch.compiler.reset()  # or it looks again, at the next model of this class


def test_it_works_within_torch_func():
    model = ours(n_layers=1).eval()
    adjust(model, "qk_norm"), adjust(model, "temperature", tau=2.0)
    x, weights = torch.randn(3, 1, 6, 5), dict(model.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(model, weights, (x,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    alone = torch.func.grad(loss)(weights, x[1])
    assert all(torch.allclose(each[name][1], alone[name], atol=1e-5) for name in weights)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda model: adjust(model, "softcap"), ValueError, "got 'softcap'. Did you mean 'soft_cap'?"),
        (lambda model: adjust(model, "warmup"), ValueError, r"attntut.adjust.warmup\(…\)"),
        (lambda model: adjust(model, "soft_cap", limit=3), ValueError, r"no option 'limit'. Its options: cap=50.0"),
        (lambda model: adjust(model, "qk_clip"), TypeError, "needs optimizer=…"),
        (lambda model: adjust(model, "qk_clip", optimizer=3), TypeError, "optimizer must be a torch.optim.Optimizer"),
        (lambda model: adjust(model, "soft_cap", cap=0), ValueError, "cap must be a number > 0: got 0"),
        (lambda model: adjust(model, "qk_norm", norm="batch"), ValueError, "norm must be one of"),
        (lambda model: adjust(model, "sigma_reparam", on=["querry"]), ValueError, "Did you mean 'query'?"),
        (lambda model: adjust(model, "soft_cap", force=1), TypeError, "force must be True or False"),
        (lambda model: adjust(nn.Linear(2, 2), "soft_cap"), ValueError, "must contain attention"),
        (lambda model: adjust("model", "soft_cap"), TypeError, "model must be a torch.nn.Module: got str"),
    ],
)
def test_what_cannot_be_is_refused(models, call, error, message):
    model, _ = models["ours"]
    before = everything(model)
    with pytest.raises(error, match=message):
        call(model)
    assert everything(model) == before


def test_a_clash_is_refused_unless_forced(models):
    model, _ = models["ours"]
    with adjust(model, "qk_norm"):
        with pytest.raises(ValueError, match="'soft_cap' clashes with qk_norm, because the logits are bounded"):
            adjust(model, "soft_cap")
        with adjust(model, "soft_cap", force=True):
            assert acting_on(model) == ("qk_norm", "soft_cap")


@pytest.mark.parametrize("name, part, what", [
    ("branch_scale", Hypersphere(), "sphere"), ("branch_scale", NormalizedResidual(), "normalized residual"),
    *((name, Differential(), "differential attention") for name in DIFFERENTIAL),
])  # fmt: skip
def test_a_clash_with_what_the_model_has_itself_is_refused(name, part, what):
    with pytest.raises(ValueError, match=f"'{name}' clashes with the model's own {what}"):
        adjust(ours(parts=(part,)), name)


def test_an_attention_alone_is_known_to_be_differential():
    model = MultiHeadAttention(D, H, parts=(Differential(),))
    for name in DIFFERENTIAL:
        with pytest.raises(ValueError, match=f"'{name}' clashes with the model's own differential attention"):
            adjust(model, name)
    with pytest.raises(ValueError, match="of d_head/2 channels: give tau=…"):
        adjust(model, "temperature")
    x = torch.randn(2, 6, D)
    with adjust(model, "temperature", tau=2.0):
        found = model(x)
    with torch.no_grad():
        model.query.weight.mul_(0.5), model.query.bias.mul_(0.5)
    assert torch.allclose(found, model(x), atol=1e-6)


@pytest.mark.parametrize("scheme, n_layers, is_scaled", [
    ("gpt2", 4, True), ("depth_index", 6, True), ("gpt2", 2, False), ("normal", 6, False), ("xavier_uniform", 6, False),
    ("lecun_normal", 6, False), ("kaiming_normal", 6, False), ("ln_scale", 6, False),
])  # fmt: skip
@pytest.mark.parametrize("changes", [{}, dict(packed=True), dict(parts=(GroupedQueries(2), SwiGLU()))])
def test_depth_scaled_weights_are_recognized_as_drawn(scheme, n_layers, is_scaled, changes):
    model = ours(n_layers=n_layers, **changes)
    initialize_(model, scheme, generator=torch.Generator().manual_seed(0), force=True)
    if not is_scaled:
        adjust(model, "ln_scale").undo()
        return
    with pytest.raises(ValueError, match="'ln_scale' clashes with the model's own depth-scaled weights"):
        adjust(model, "ln_scale")
    assert "ln_scale" not in fitting(known_view(model, None, None, None))
    adjust(model, "ln_scale", force=True).undo()
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.01 * torch.randn_like(each))
    adjust(model, "ln_scale")  # what was trained is not recognized


@pytest.mark.parametrize("seed", range(5))
def test_matrices_of_a_few_entries_are_not_called_depth_scaled(seed):
    with own_randomness(seed):
        layer = nn.TransformerEncoderLayer(4, nhead=2, norm_first=True, batch_first=True)
        model = nn.TransformerEncoder(layer, num_layers=4, enable_nested_tensor=False)
    with adjust(model, "ln_scale"):
        pass


@pytest.mark.parametrize("changes", [dict(residual_scale=0.5), dict(skip_scale=0.5)])
def test_a_model_that_scales_its_branches_itself_is_refused(changes):
    with pytest.raises(ValueError, match="'branch_scale' clashes with the model's own residual scale"):
        adjust(ours(**changes), "branch_scale")


@pytest.mark.parametrize("method, what, other", [
    ("qk_norm", "QK-norm", "qk_weight_decay"), ("output_gate", "output gate", "output_gate"), ("sink", "sink", "sink"),
    ("ln_scale", "LN/√l", "ln_scale"), ("dyt", "DyT", None),
])  # fmt: skip
def test_what_a_method_brings_is_what_the_model_has(method, what, other):
    model = ours()
    plain = diagnose(model, inputs_of("ours")).model["traits"]
    with adjust(model, method):
        report = diagnose(model, inputs_of("ours")).model
    trait, value = next(iter(REQUIREMENTS[what].wants.items()))
    assert report["traits"][trait] == value != plain.get(trait)
    assert other is None or other not in report["adjustable_by"]


def test_a_clash_names_the_method_that_brings_it_once():
    (message,) = {adjustments()["qk_weight_decay"].objection(["qk_norm"], traits) for traits in ({}, {"qk_norm": True})}
    assert message.startswith("'qk_weight_decay' clashes with qk_norm, because the norm divides")
    assert message.count("because") == 1


def test_what_no_name_tells_is_listened_for():
    pytest.importorskip("transformers")
    from adjust_models import GROUPED, hugging_face

    qwen, gemma = (hugging_face(f"{name}Model", **GROUPED, head_dim=4) for name in ("Qwen3", "Gemma2"))
    before = everything(qwen)
    for name in ("qk_norm", "soft_cap"):
        with pytest.raises(ValueError, match=f"'{name}' clashes with the model's own QK-norm"):
            adjust(qwen, name)
    with pytest.raises(ValueError, match="'branch_scale' clashes with the model's own sandwich norms"):
        adjust(gemma, "branch_scale")
    for name in ("sandwich", "ln_scale"):
        adjust(qwen, name).undo()
        with pytest.raises(ValueError, match=f"'{name}' needs pre-LN.*norm='sandwich' instead of 'pre'"):
            adjust(gemma, name)
    assert everything(qwen) == before
    for name in ("soft_cap", "qk_clip"):
        with pytest.raises(ValueError, match=f"'{name}' clashes with the model's own soft cap"):
            adjust(gemma, name, **options(name, gemma))


@pytest.mark.parametrize("make, refused", [
    (lambda: MODELS["ours, packed, post-LN"](), {"qk_weight_decay", "sandwich", "ln_scale", "mup_groups"}),
    (lambda: ours(scale=1 / 4), set()),
    (lambda: MultiHeadAttention(D, H, parts=(Differential(),)),
     {*DIFFERENTIAL, "temperature", "sandwich", "ln_scale", "mup_groups", "rms_norm", "scale_norm", "dyt",
      "reinit_top_layers", "layer_lr_decay", "embedding_rescale"}),
])  # fmt: skip
def test_what_fits_is_not_refused(make, refused):
    view = known_view(make(), None, None, None)
    assert {*adjustments()} - {*fitting(view)} == refused


def test_no_clip_measures_what_a_cap_has_bent():
    model = ours()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with adjust(model, "soft_cap"), pytest.raises(ValueError, match="'qk_clip' clashes with soft_cap"):
        adjust(model, "qk_clip", optimizer=optimizer)
    with adjust(model, "qk_clip", optimizer=optimizer), pytest.raises(ValueError, match="'soft_cap' clashes with qk_c"):
        adjust(model, "soft_cap")


def test_an_attention_that_cannot_be_seen_says_so():
    class Hidden(nn.MultiheadAttention):
        def forward(self, query, key, value):
            return value, None

    model = Hidden(D, H)
    adjust(model, "soft_cap")
    with pytest.raises(RuntimeError, match=r"neither was seen\. Undo the adjustment"):
        model(*[torch.randn(3, 2, D)] * 3)
    model = Hidden(D, H)
    before = everything(model)
    with pytest.raises((ValueError, RuntimeError), match=r"inputs tell the roles|neither was seen"):
        adjust(model, "soft_cap", inputs=(torch.randn(3, 2, D),) * 3)
    assert everything(model) == before


# ---- what each says of itself


@pytest.mark.parametrize("name", adjustments())
def test_it_says_what_it_is(name, repository):
    each = adjustments()[name]
    assert set(each.treats) <= set(faults()), "treats names the faults of attntut.diagnose"
    assert set(each.requires) <= set(REQUIREMENTS)
    assert set(each.clashes) <= {*adjustments(), *REQUIREMENTS}
    assert not each.cite or f"{{{each.cite}," in (repository / "book" / "references.bib").read_text(encoding="utf-8")
    text = each.function.__doc__
    for what in ("Example:", ">>>", each.formula, each.source, *(f"{option}" for option in each.options)):
        assert what in text
    assert each.why.endswith(".") and 1900 < each.year < 2100


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(formula=" "), "formula must say something"),
        (dict(requires=("pre-NL",)), "Did you mean 'pre-LN'?"),
        (dict(cite=""), "year must be given"),
    ],
)
def test_a_method_that_does_not_say_what_it_is_is_refused(changes, message):
    said = dict(formula="x", cite="paper2000", source="a paper", why="A test.")
    with pytest.raises(ValueError, match=re.escape(message)):
        adjustment(**said | changes)(lambda patch: None)
