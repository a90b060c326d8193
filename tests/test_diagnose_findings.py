"""Faults planted in real architectures are found by name, and by nothing else; healthy models have no finding."""

import copy
import functools
import math
import re

import pytest
import torch
from torch import nn

from attntut import MultiHeadAttention, Transformer, TransformerConfig
from attntut.data import reverse
from attntut.diagnose import Report, diagnose
from attntut.diagnose.faults import SEVERITIES, faults, find, table
from attntut.diagnose.faults.facts import Facts
from attntut.init import initialize_, schemes
from attntut.train import train

transformers = pytest.importorskip("transformers", reason="Hugging Face models are not installed")

TOKENS_APART = 0.5 * (1 - 1 / (2 * math.pi))
TOKENS = torch.randint(40, (4, 32), generator=torch.Generator().manual_seed(0))
SMALL = dict(vocab_size=99, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128)
SPECIAL = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)


def stack(norm="pre", n_layers=3, scheme=None, **settings):
    shape = dict(n_classes=10, vocab_size=40, d_model=64, n_heads=4, seq_len=32, pooling="none")
    model = Transformer(TransformerConfig(n_layers=n_layers, norm=norm, **shape | settings), seed=0)
    generator = torch.Generator().manual_seed(0)
    return initialize_(model, scheme, generator=generator, force=True) if scheme else model


def torch_encoder(scheme="xavier_uniform", **settings):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, **settings)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    return initialize_(model, scheme, generator=torch.Generator().manual_seed(0)) if scheme else model


def bert(**settings):
    torch.manual_seed(0)
    return transformers.BertForMaskedLM(transformers.BertConfig(**SMALL | settings)).eval()


def gpt2(n_layers=3, d_model=64):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=99, n_embd=d_model, n_layer=n_layers, n_head=4, n_positions=64, **SPECIAL
    )
    return transformers.GPT2LMHeadModel(config).eval()


def hidden(x):
    return torch.randn(4, 32, 64, generator=torch.Generator().manual_seed(1)) if x is None else x


def loss(output):
    tensor = (
        next((output[key] for key in ("logits", "last_hidden_state") if key in output), None)
        if hasattr(output, "keys")
        else output
    )
    weights = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2))
    return (tensor * weights).mean()


def findings(model, inputs=TOKENS, loss=loss):
    return diagnose(model, inputs, loss=loss).findings


def names(found):
    return [finding.name for finding in found]


# ---- planted faults


def scaled_query(model, factor=10.0, parameter="attention.query.weight"):
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(parameter):
                weight.mul_(factor)
    return model


def scaled_in_proj(model):
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.in_proj_weight[:64].mul_(10)
    return model


def zeroed(model, *parameters):
    with torch.no_grad():
        for name in parameters:
            model.get_parameter(name).zero_()
    return model


def constant(model, value=0.05):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".attention." in name:
                parameter.fill_(value if parameter.ndim > 1 else 0)
    return model


def cloned(model):
    model.blocks[2] = copy.deepcopy(model.blocks[1])
    return model


def unscaled_gpt2():
    model = gpt2(n_layers=12, d_model=128)
    return scaled_query(model, factor=math.sqrt(2 * 12), parameter="c_proj.weight")


def poisoned(model, parameter):
    with torch.no_grad():
        model.get_parameter(parameter).view(-1)[0] = math.nan
    return model


def detached(model, name="blocks.1.attention.query"):
    model.get_submodule(name).register_forward_hook(lambda module, args, output: output.detach())
    return model


def two_loud_blocks():
    model = stack("none", 12, residual_scale=0.2)
    for block in (4, 9):
        scaled_query(model, 300.0, f"blocks.{block}.feed_forward.2.weight")
    return model


def loud(model, factor):
    """Every block multiplies the stream: its output grows with what comes in, as without a norm."""
    for block in model.blocks.values():
        block.norm = nn.Identity()
        scaled_query(block, factor, "out_proj.weight")
    return model


def twin(model):
    with torch.no_grad():
        model.blocks[1].attention.key.weight.copy_(model.blocks[1].attention.query.weight)
    return model


class Attention(nn.Module):
    """Attention by hand over ``(B, n, d)``, heads folded into the batch."""

    def __init__(self, d=64, n_heads=4, values=1.0):
        super().__init__()
        self.num_heads, self.values = n_heads, values
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d, d, bias=False) for _ in range(4))

    def forward(self, x, hidden=None):
        B, n, d = x.shape
        q, k, v = (
            p(each).view(B, n, self.num_heads, -1).transpose(1, 2).flatten(0, 1)  # (B·H, n, d_head)
            for p, each in ((self.q_proj, x), (self.k_proj, x), (self.v_proj, self.values * x))
        )
        logits = q @ k.mT / (d // self.num_heads) ** 0.5
        if hidden is not None:
            logits = logits.masked_fill(hidden, -math.inf)
        mixed = logits.softmax(-1) @ v
        return self.out_proj(mixed.unflatten(0, (B, -1)).transpose(1, 2).flatten(2))


class Residual(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(64), Attention(**settings)

    def forward(self, x, hidden=None):
        return x + self.attention(self.norm(x), hidden)


class Stack(nn.Module):
    """Blocks in a dictionary: their names hold no number."""

    def __init__(self, *settings):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleDict(
            {letter: Residual(**each) for letter, each in zip("abcdef", settings, strict=False)}
        )

    def forward(self, x, hidden=None):
        for block in self.blocks.values():
            x = block(x, hidden)
        return x


def last_row_hidden():
    """The last query sees nothing, and a loss that leaves it out."""
    hidden_ = torch.zeros(32, 32, dtype=torch.bool)
    hidden_[-1] = True
    return hidden_


def without_last_row(output):
    return loss(output[:, :-1])


def deep_encoder(n_layers=18, scheme=None):
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True) for _ in range(n_layers)]
    model = nn.TransformerEncoder(layers[0], n_layers, enable_nested_tensor=False)
    model.layers = nn.ModuleList(layers)
    return initialize_(model, scheme or "xavier_uniform", generator=torch.Generator().manual_seed(0))


def deep_llama(*scaled, n_layers=6, by_block=False):
    """Normal with 0.02, some matrices scaled by 1/√(2L), or by 1/√(2l) in block l."""
    torch.manual_seed(0)
    model = transformers.LlamaModel(transformers.LlamaConfig(**SMALL | dict(num_hidden_layers=n_layers))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.split(".")[-2] in scaled:
                weight.mul_((2 * (int(name.split(".")[1]) + 1 if by_block else n_layers)) ** -0.5)
    return model


BOTH_ENDS = ("value.weight", "value.bias", "output.weight")
NOBODY = torch.zeros(4, 32, dtype=torch.long)
FAULTY = {
    "W_q × 10, attntut": ("logits too large", lambda: (scaled_query(stack()), TOKENS)),
    "W_q × 10, causal post-LN": (
        "logits too large",
        lambda: (scaled_query(stack("post", is_causal=True, scheme="torch_default", positions="none")), TOKENS),
    ),
    "W_q × 10, packed torch": ("logits too large", lambda: (scaled_in_proj(torch_encoder()), hidden(None))),
    "W_q × 10, BERT": (
        "logits too large",
        lambda: (
            scaled_query(initialize_(bert(), "xavier_normal"), parameter="attention.self.query.weight"),
            dict(input_ids=TOKENS),
        ),
    ),
    "W_q = 0, attntut": (
        "attention uniform",
        lambda: (zeroed(stack(), "blocks.1.attention.query.weight", "blocks.1.attention.query.bias"), TOKENS),
    ),
    "W_q = 0, BERT": (
        "attention uniform",
        lambda: (zeroed(bert(), "bert.encoder.layer.1.attention.self.query.weight"), dict(input_ids=TOKENS)),
    ),
    "constant heads": ("heads identical", lambda: (constant(stack("none")), TOKENS)),
    "constant heads after a norm": ("heads identical", lambda: (constant(stack()), TOKENS)),
    "cloned layers": ("layers cloned", lambda: (cloned(stack()), TOKENS)),
    "He without norms": ("stream growing", lambda: (stack("none", 6, "kaiming_normal"), TOKENS)),
    "GPT-2 without depth scaling": ("depth scaling absent", lambda: (unscaled_gpt2(), dict(input_ids=TOKENS))),
    "a mask hides everything, attntut": (
        "mask hides everything",
        lambda: (stack(), dict(x=TOKENS, mask=NOBODY.bool()[:, None, None])),
    ),
    "a mask hides everything, torch": (
        "mask hides everything",
        lambda: (torch_encoder(), dict(src=hidden(None), src_key_padding_mask=~NOBODY.bool())),
    ),
    "a mask hides everything, GPT-2": (
        "mask hides everything",
        lambda: (gpt2(), dict(input_ids=TOKENS, attention_mask=NOBODY)),
    ),
    "NaN in a value matrix": ("not finite", lambda: (poisoned(stack(), "blocks.1.attention.value.weight"), TOKENS)),
    "NaN in a query matrix, GPT-2": (
        "not finite",
        lambda: (poisoned(gpt2(), "transformer.h.1.attn.c_attn.weight"), dict(input_ids=TOKENS)),
    ),
    "no skip connections": ("rank collapsing", lambda: (stack("post", 6, residual=False), TOKENS)),
    "He in a deep post-LN stack": ("rank collapsing", lambda: (stack("post", 12, "kaiming_normal"), TOKENS)),
    "a detached query": ("gradients vanishing", lambda: (detached(stack()), TOKENS)),
    "one matrix for query and key": ("query equals key", lambda: (twin(stack()), TOKENS)),
    "values from nothing": ("no gradient", lambda: (Stack({}, dict(values=0.0), {}), hidden(None))),
    "value and output zero": (
        "no gradient",
        lambda: (zeroed(stack(), *(f"blocks.2.attention.{each}" for each in BOTH_ENDS)), TOKENS),
    ),
    "a detached layer": ("no gradient", lambda: (detached(stack(), "blocks.0.attention"), TOKENS)),
    "one loud block": (
        "stream jumping",
        lambda: (scaled_query(stack(n_layers=6), 60.0, "blocks.3.attention.output.weight"), TOKENS),
    ),
    "two loud blocks of twelve, no norms": (
        "stream jumping",
        lambda: (two_loud_blocks(), TOKENS),
    ),
    "a deep post-norm stack": ("rank collapsing", lambda: (deep_encoder(), hidden(None))),
    "a stack in a dictionary, He": (
        "stream growing",
        lambda: (loud(Stack({}, {}, {}, {}), 12.0), hidden(None)),
    ),
    "1/√(2L) on up_proj": ("depth scaling misplaced", lambda: (deep_llama("o_proj", "up_proj"), TOKENS)),
    "1/√(2l) on up_proj and down_proj": (
        "depth scaling misplaced",
        lambda: (deep_llama("o_proj", "up_proj", "down_proj", by_block=True), TOKENS),
    ),
    "1/√(2L) on W_o only": ("depth scaling misplaced", lambda: (deep_llama("o_proj"), TOKENS)),
    "1/√(2L) on GPT-2's c_fc": (
        "depth scaling misplaced",
        lambda: (
            scaled_query(scaled_query(gpt2(6), 12**0.5, "mlp.c_proj.weight"), 12**-0.5, "c_fc.weight"),
            dict(input_ids=TOKENS),
        ),
    ),
    "nn.MultiheadAttention as it comes": (
        "packed query-key-value scale",
        lambda: (nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True), hidden(None)),
    ),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_planted_fault_is_found_by_name_and_by_nothing_else(fault):
    name, plant = FAULTY[fault]
    model, inputs = plant()
    found = findings(model, inputs)
    assert names(found) == [name], f"{fault}: {[str(each) for each in found]}"
    assert found[0].layers and found[0].layer


def test_gradients_that_are_nan_are_found_where_a_query_sees_nothing():
    """Heads are folded into the batch, and the stack has no output that is looked at there: only gradients are NaN."""
    report = diagnose(Attention(), (hidden(None), last_row_hidden()), loss=without_last_row)
    (found,) = report.findings
    assert (found.name, found.severity, found.fault) == (
        "gradients not finite",
        "error",
        "gradients not finite (masked rows)",
    )
    assert found.value == 2 and "(value, output)" in found.text
    inside = diagnose(Stack({}, {}), (hidden(None), last_row_hidden()), loss=without_last_row)
    assert names(inside.findings) == ["gradients not finite"], "The stream's NaN has the same cause."
    assert inside.findings[0].layer == "blocks.a.attention"
    unseen = diagnose(Stack({}, {}), (hidden(None), last_row_hidden()))
    assert names(unseen.findings) == ["mask hides some rows"], "Without a loss there is only the stream to tell."


def test_gradients_that_are_nan_by_themselves_are_found_where_they_begin():
    def root_of_zero(output):
        return loss(output) + (output * 0).sum().sqrt()

    (found,) = findings(stack(), loss=root_of_zero)
    assert (found.fault, found.layer) == ("gradients not finite", "blocks.2.attention")
    assert len(found.layers) == 3


def test_why_no_gradient_comes_is_said():
    for fault, part, severity in (
        ("values from nothing", "the values are 0", "warning"),
        ("value and output zero", "for ever", "error"),
        ("a detached layer", "never came", "note"),
    ):
        model, inputs = FAULTY[fault][1]()
        (found,) = findings(model, inputs)
        assert part in found.text and found.severity == severity, fault
    assert findings(zeroed(stack(), "blocks.2.attention.output.weight")) == [], "A zero output is a good start."
    assert findings(zeroed(stack(), "blocks.2.attention.value.weight")) == [], "And zero values are freed by a step."


def test_a_layer_without_gradient_is_found_in_a_model_without_a_list():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (MultiHeadAttention(64, 4) for _ in range(2))

        def forward(self, x):
            return x + self.second(x + self.first(x).detach())

    torch.manual_seed(0)
    model = Named()
    (found,) = findings(model, hidden(None))
    assert (found.name, found.layer) == ("no gradient", "first")
    assert findings(model, hidden(None), loss=lambda out: (out * 0).sum()) == [], (
        "Where nothing learns, none stands out."
    )


def test_the_block_that_jumps_is_named():
    model, inputs = FAULTY["one loud block"][1]()
    (found,) = findings(model, inputs)
    assert found.layer == "blocks.3" and "blocks.3 multiplies" in found.text
    (found,) = findings(two_loud_blocks())
    assert found.layers == ("blocks.4", "blocks.9")


@pytest.mark.parametrize("in_a_row", [True, False])
def test_blocks_that_are_in_no_list_are_a_stack_if_they_follow_on_each_other(in_a_row):
    class Named(nn.Module):
        def __init__(self, blocks):
            super().__init__()
            for i, block in enumerate(blocks):
                self.add_module(f"block{i}", block)

        def forward(self, x):
            outputs = [x]
            for block in self.children():
                outputs.append(block(outputs[-1 if in_a_row else 0]))
            return outputs[-1] if in_a_row else sum(outputs)

    model = Named(scaled_query(stack(n_layers=6), 60.0, "blocks.3.attention.output.weight").blocks)
    report = diagnose(model, hidden(None), loss=loss)
    assert [(each.name, each.layer) for each in report.findings] == [("stream jumping", "block3")] * in_a_row
    assert [each["layer"] for each in report.stream] == [f"block{i}" for i in range(6)] * in_a_row


def test_a_slow_collapse_is_mended_by_the_scheme_that_it_names():
    report = diagnose(deep_encoder(), hidden(None), loss=loss)
    (found,) = report.findings
    assert found.fault == "rank collapsing (slowly)" and 'initialize_(model, "ds_init")' in found.text
    assert "Scale the branches" not in found.text
    assert findings(deep_encoder(scheme="ds_init"), hidden(None)) == []
    assert find(Report(**vars(report) | dict(gradients=[]))) == [], "Without gradients nothing is claimed."
    for each in report.weights:
        each["drawn"] = False
    assert names(find(report)) == ["rank collapsing"], "Training does not excuse it."


def test_a_deep_model_of_zeros_is_judged():
    model = initialize_(Transformer(TransformerConfig(n_classes=2, d_input=4, n_layers=8)), "zeros")
    assert [each.name for each in diagnose(model, torch.randn(2, 6, 4)).findings] == ["attention uniform"]


def test_misplaced_depth_scaling_says_which_matrices():
    for scaled, part, severity in (
        (("o_proj", "up_proj"), "up_proj, which does not write into the stream, but not W_2", "warning"),
        (("o_proj", "up_proj", "down_proj"), "up_proj too", "note"),
        (("down_proj",), "W_2, but not W_o", "note"),
    ):
        (found,) = findings(deep_llama(*scaled), TOKENS)
        assert part in found.text and found.severity == severity
    for scaled in ((), ("o_proj", "down_proj")):
        assert findings(deep_llama(*scaled), TOKENS) == [] == findings(deep_llama(*scaled, by_block=True), TOKENS)
    assert findings(deep_llama("o_proj", "up_proj", n_layers=3), TOKENS) == [], "Not deep enough to tell."


def test_of_wide_matrices_only_a_part_was_counted():
    """256 of 4096 rows and columns: the measured ratio is 0.5 % off, far beyond the error of all entries (0.02 %)."""
    report = depth(rms=[1.0] * 6)
    wide = dict(fan_in=4096, fan_out=4096, std=0.02)
    roles = ("query", "key", "value", "output", "feed_forward_in", "feed_forward_out")
    report.weights = [record(f"blocks.{i}.attention", role, **wide) for i in range(6) for role in roles]
    for each in report.weights:
        if each["role"] == "feed_forward_in":
            each["std"] *= 12**-0.5 * 1.005
    assert names(find(report)) == ["depth scaling misplaced"]
    for each in report.weights:
        each["looks_like"] = ["a_scheme"]
    assert find(report) == [], "A scheme that accounts for all of them is no accident."


def test_torch_s_encoder_copies_its_layers_and_packs():
    assert names(findings(torch_encoder(scheme=None), hidden(None))) == [
        "layers cloned",
        "packed query-key-value scale",
    ]


def test_the_place_of_a_fault_is_named():
    found = findings(scaled_query(stack(), parameter="blocks.1.attention.query.weight"))
    assert found[0].layers == ("blocks.1.attention",)
    found = findings(poisoned(stack(), "blocks.1.attention.value.weight"))
    assert found[0].layer == "blocks.1.attention" and "value" in found[0].text
    found = findings(poisoned(stack(), "blocks.1.feed_forward.0.weight"))
    assert found[0].layer == "blocks.1", "NaN from a feed-forward network is seen where its block hands it on."
    found = findings(cloned(stack()))
    assert found[0].layers == ("blocks.2.attention",) and "blocks.1.attention" in found[0].text


def test_one_large_head_is_named():
    model = stack()
    with torch.no_grad():
        model.blocks[2].attention.query.weight[16:32].mul_(30)
    (found,) = findings(model)
    assert (found.name, found.layer, found.heads) == ("logits too large", "blocks.2.attention", (1,))


def test_both_matrices_zero_is_worse_than_one():
    one = zeroed(stack(), "blocks.1.attention.query.weight", "blocks.1.attention.query.bias")
    both = zeroed(copy.deepcopy(one), "blocks.1.attention.key.weight", "blocks.1.attention.key.bias")
    (warning,), (error,) = findings(one), findings(both)
    assert (warning.severity, error.severity) == ("warning", "error")
    assert "for ever" in error.text


def test_a_frozen_query_is_a_choice():
    model = stack()
    model.blocks[1].attention.query.weight.requires_grad_(False)
    assert findings(model) == []


def test_tokens_that_come_in_alike_are_not_called_a_collapse():
    found = findings(stack(positions="none"), torch.zeros(4, 32, dtype=torch.long))
    assert names(found) == ["attention uniform"] and "tokens alike" in found[0].text
    assert findings(llama()[0], torch.full((4, 32), 5)) == [], "Rotary positions set the logits apart, not the tokens."


class Distilled(nn.Module):
    """A teacher that begins as a copy of its student, as in BYOL and DINO."""

    def __init__(self):
        super().__init__()
        self.student = stack()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x):
        return self.student(x) * self.teacher(x)


def test_a_frozen_teacher_is_no_clone():
    model = Distilled()
    assert findings(model) == []
    model.teacher.requires_grad_(True)
    assert names(findings(model)) == ["layers cloned"]


# ---- healthy models


@functools.cache
def trained():
    data = reverse(seq_len=8)
    config = TransformerConfig(n_classes=data.n_classes, vocab_size=10, seq_len=8, pooling="none")
    model = Transformer(config, seed=0)
    train(model, data, steps=150, lr=1e-2, batch_size=64, progress=False)
    return model, data.test_inputs[:32]


def torch_decoder():
    torch.manual_seed(0)
    layers = [nn.TransformerDecoderLayer(64, 4, 128, dropout=0.0, batch_first=True) for _ in range(3)]
    model = nn.TransformerDecoder(layers[0], 3)
    model.layers = nn.ModuleList(layers)
    causal = nn.Transformer.generate_square_subsequent_mask(16)
    initialize_(model, "xavier_uniform", generator=torch.Generator().manual_seed(0))
    return model, dict(tgt=hidden(None)[:, :16], memory=hidden(None), tgt_mask=causal, tgt_is_causal=True)


def whisper():
    torch.manual_seed(0)
    sizes = dict(d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)
    widths = dict(encoder_ffn_dim=128, decoder_ffn_dim=128, num_mel_bins=8, max_source_positions=24)
    config = transformers.WhisperConfig(vocab_size=99, decoder_start_token_id=1, **sizes, **widths, **SPECIAL)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    return model, dict(input_features=torch.randn(2, 8, 48), decoder_input_ids=TOKENS)


def t5():
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=99, d_model=64, d_kv=16, d_ff=128, num_layers=3, num_heads=4)
    return transformers.T5Model(config).eval(), dict(input_ids=TOKENS, decoder_input_ids=TOKENS)


def llama():
    torch.manual_seed(0)
    return transformers.LlamaModel(transformers.LlamaConfig(**SMALL, num_key_value_heads=2)).eval(), TOKENS


def vit():
    torch.manual_seed(0)
    sizes = {key: value for key, value in SMALL.items() if key != "vocab_size"}
    model = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=32, patch_size=8)).eval()
    return model, torch.randn(2, 3, 32, 32)


def left_padded():
    visible = torch.ones(4, 32, dtype=torch.long)
    visible[0, :10] = 0
    return gpt2(), dict(input_ids=TOKENS, attention_mask=visible)


HEALTHY = {
    "attntut, pre-LN": lambda: (stack(), TOKENS),
    "attntut, post-LN, causal": lambda: (stack("post", is_causal=True), TOKENS),
    "attntut, without norms": lambda: (stack("none"), TOKENS),
    "attntut, pre-LN, Xavier, deep": lambda: (stack("pre", 7, "xavier_normal"), TOKENS),
    "attntut, post-LN, Xavier, 12 layers": lambda: (stack("post", 12, "xavier_normal"), TOKENS),
    "attntut, real-valued tokens": lambda: (stack(vocab_size=None, d_input=4), torch.randn(4, 32, 4)),
    "attntut, one token": lambda: (stack(), TOKENS[:, :1]),
    "attntut, two tokens, Xavier": lambda: (stack(scheme="xavier_normal"), TOKENS[:, :2]),
    "attntut, trained until it reverses": trained,
    "nn.TransformerEncoder, pre-LN": lambda: (torch_encoder(norm_first=True), hidden(None)),
    "nn.TransformerDecoder": torch_decoder,
    "BERT": lambda: (bert(), dict(input_ids=TOKENS)),
    "BERT, eager": lambda: (bert(attn_implementation="eager"), dict(input_ids=TOKENS)),
    "GPT-2, 12 layers": lambda: (gpt2(12, 128), dict(input_ids=TOKENS)),
    "GPT-2, padded on the left": left_padded,
    "Llama": llama,
    "T5": t5,
    "ViT": vit,
    "Whisper": whisper,
}


DEMONSTRATIONS = {
    "zeros": {"attention uniform"},
    "zero_query": {"attention uniform"},
    "identity": {"attention uniform"},
    "constant": {"heads identical"},
}


@pytest.mark.parametrize("name", schemes())
def test_a_scheme_of_the_catalogue_in_its_own_architecture_has_no_finding(name):
    """Except for those that are there to show what goes wrong, and for zero queries, which are found on purpose."""
    scheme = schemes()[name]
    model = stack(n_layers=2, d_model=32, **scheme.architecture(2, 8))
    batch = {"batch": TOKENS} if "batch" in scheme.requires else {}
    force = {"learning rates by role"} & set(scheme.requires)
    initialize_(model, name, generator=torch.Generator().manual_seed(0), force=force, **batch)
    assert set(names(findings(model, TOKENS[:2, :16]))) == DEMONSTRATIONS.get(name, set())


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_has_no_finding(name):
    model, inputs = HEALTHY[name]()
    report = diagnose(model, inputs, loss=loss)
    assert report.rows and report.weights, "Nothing was seen, so nothing was judged."
    assert [str(each) for each in report.findings] == []


def test_a_trained_model_is_sharper_than_any_draw_may_be():
    """Otherwise its having no finding would show nothing."""
    model, inputs = trained()
    assert max(row["logit_std"] for row in diagnose(model, inputs).rows) > math.sqrt(2 * math.log(8))


# ---- the rules by themselves


def row(layer="blocks.0.attention", head=0, **changes):
    usual = dict(n_query=32, n_key=32, calls=1, logit_mean=0.0, logit_std=0.5, logit_max=2.0, entropy=3.4)
    usual |= dict(entropy_share=0.97, max_weight=0.1, saturated=0.0, first=0.03, self=0.03, rank_residual=0.9)
    return dict(layer=layer, kind="self", head=head, **usual, token_cosine=0.1, non_finite=0, masked_rows=0) | changes


def record(layer="blocks.0.attention", role="query", **changes):
    usual = dict(shape=[64, 64], fan_in=64, fan_out=64, mean=0.0, std=0.125, looks_like=[], drawn=True, packed=False)
    return dict(layer=layer, role=role, **usual, clone_of=None, heads_alike=False, equals=None) | changes


def depth(cosines=None, rms=None, **changes):
    """A report of as many blocks as there are numbers."""
    cosines, rms = cosines or [0.1] * len(rms), rms or [1.0] * len(cosines)
    layers = [f"blocks.{i}.attention" for i in range(len(cosines))]
    return Report(
        rows=[row(layer) for layer in layers],
        weights=[record(layer, role, **changes) for layer in layers for role in ("query", "key", "value", "output")],
        stream=[
            dict(layer=f"blocks.{i}", rms=r, token_cosine=c) for i, (r, c) in enumerate(zip(rms, cosines, strict=True))
        ],
    )


@pytest.mark.parametrize("n", [8, 64, 512])
def test_fresh_logits_may_go_up_to_the_freezing_point(n):
    weights = [record(role=role) for role in ("query", "key")]
    critical = math.sqrt(2 * math.log(n))
    below, above = (
        Report(rows=[row(n_key=n, logit_std=critical * f, max_weight=0.5)], weights=weights) for f in (0.99, 1.01)
    )
    assert find(below) == []
    (found,) = find(above)
    assert found.name == "logits too large" and found.threshold == pytest.approx(critical)


def test_trained_logits_may_be_sharp_but_not_beyond_half_precision():
    weights = [record(role=role, drawn=False) for role in ("query", "key")]
    sharp = row(logit_std=8.0, logit_max=40.0, saturated=0.4)
    assert find(Report(rows=[sharp], weights=weights)) == []
    assert names(find(Report(rows=[sharp | dict(logit_max=300.0)], weights=weights))) == ["logits too large"]


def test_a_trained_model_may_have_one_frozen_layer_but_not_be_frozen():
    weights = [record(f"blocks.{i}.attention", role, drawn=False) for i in range(2) for role in ("query", "key")]
    rows = [row(f"blocks.{i}.attention", saturated=share) for i, share in enumerate((0.9, 0.0))]
    assert find(Report(rows=rows, weights=weights)) == []
    rows = [row(f"blocks.{i}.attention", saturated=0.9) for i in range(2)]
    (found,) = find(Report(rows=rows, weights=weights))
    assert found.name == "entropy collapsed" and len(found.layers) == 2


def test_tokens_may_lose_what_skips_and_unit_branches_take():
    slow, fast = ([1 - 0.9 * factor**i for i in range(8)] for factor in (TOKENS_APART * 1.05, TOKENS_APART * 0.95))
    assert find(depth(slow)) == []
    assert names(find(depth(fast))) == ["rank collapsing"]
    assert find(depth(fast, drawn=False)) == [], "What training makes of the tokens is not judged by a theory of draws."


def test_the_stream_may_double_twice_a_block():
    slow, fast = ([factor**i for i in range(6)] for factor in (1.95, 2.05))  # of the RMS
    assert find(depth(rms=slow)) == []
    assert names(find(depth(rms=fast))) == ["stream growing"]


def test_scaling_in_the_forward_pass_counts():
    growing = depth(rms=[math.sqrt(1 + 4 * i) for i in range(12)])
    for traits, expected in (({"residual_scale": 0.3}, []), ({"residual_scale": 1.0}, ["depth scaling absent"])):
        growing.model["traits"] = traits
        assert names(find(growing)) == expected


def test_depth_scaling_matters_only_when_deep_growing_and_unscaled():
    growing = [math.sqrt(1 + 4 * i) for i in range(12)]
    assert names(find(depth(rms=growing))) == ["depth scaling absent"]
    assert find(depth(rms=growing[:7])) == [], "Not deep."
    assert find(depth(rms=[math.sqrt(1 + i / 2) for i in range(12)])) == [], "Within Xiong's bound."
    report = depth(rms=growing)
    for each in report.weights:
        each["std"] /= math.sqrt(24) if each["role"] == "output" else 1
    assert find(report) == [], "Scaled."


@pytest.mark.parametrize(
    "norm, part", [("pre", "as in GPT-2"), ("sandwich", "they divide out"), (None, "where a norm follows each branch")]
)
def test_depth_scaling_is_told_where_it_does_something(norm, part):
    """Behind a branch, a norm takes the scale of W_o away: it is no remedy, and does not silence the finding."""
    report = depth(rms=[math.sqrt(1 + 4 * i) for i in range(12)])
    report.model["traits"] = dict(norm=norm)
    (found,) = find(report)
    for each in report.weights:
        each["std"] /= math.sqrt(24) if each["role"] == "output" else 1
    assert len(find(report)) == (norm == "sandwich")
    assert part in found.text and ("gpt2" in found.text) is (norm == "pre")


@pytest.mark.parametrize("width, std", [(32, "0.177"), (64, "0.125"), (768, "0.0361")])
def test_the_scheme_is_named_with_a_std_for_the_width(width, std):
    """With 0.02 a narrow model has next to nothing in its branches, and learns worse than without any factor."""
    report = depth(rms=[math.sqrt(1 + 4 * i) for i in range(12)], fan_in=width, fan_out=width, std=width**-0.5)
    report.model["traits"] = dict(norm="pre")
    (found,) = find(report)
    assert f'initialize_(model, "gpt2", std={std})' in found.text


def test_small_gradients_are_judged_by_theory():
    weights = [record(role=role) for role in ("query", "key", "value", "output")]
    stream = [dict(layer="blocks.0", rms=1.0, token_cosine=0.5)]
    expected = 0.5 * math.sqrt(1.5 / (32 * 0.5 + 0.5)) * 64 * 0.125**2 * (0.5 / (64 * 0.125**2 * math.sqrt(0.5)))

    def at(ratio):
        gradients = [dict(layer="blocks.0.attention", value=1.0, ratio_query=ratio, ratio_key=expected)]
        return find(Report(rows=[row()], weights=weights, stream=stream, gradients=gradients))

    assert at(expected / 4) == []
    (found,) = at(expected / 11)
    assert found.name == "gradients vanishing" and found.expected == pytest.approx(expected)


# ---- what is not known is not claimed


def test_nothing_is_claimed_of_weights_that_could_not_be_read():
    known = [record(role=role, drawn=False) for role in ("query", "key")]
    for weights, fault in (([], "weights unknown"), (known[:1], "weights unknown"), (known, "trained")):
        (found,) = find(Report(rows=[row(logit_max=300.0)], weights=weights))
        assert found.fault == f"logits too large ({fault})"
        assert ("have grown in training;" in found.text) is (fault == "trained")
        other = {"trained": "weights unknown", "weights unknown": "trained"}[fault]
        facts = Facts.of(Report(rows=[row(logit_max=300.0)], weights=weights))
        assert list(faults()[f"logits too large ({other})"].judge(facts)) == []
    flat = row(logit_std=0.0)
    for weights, part in (
        ([], "whether W_q or W_k is zero"),
        (known[:1], "whether W_k is zero"),
        (known, "is not zero"),
    ):
        (found,) = find(Report(rows=[flat], weights=weights))
        assert found.name == "attention uniform" and part in found.text
    (found,) = find(Report(rows=[row(non_finite=3)]))
    assert "could not be read: query, key, value" in found.text


# ---- rules on what other architectures record


def test_rows_that_see_nothing_are_named():
    pairs = [[(1, 0), (3, 7)], [(1, 0)]]
    rows = [row(head=head, masked_rows=2, masked_at=each) for head, each in enumerate(pairs)]
    gradients = [dict(layer="blocks.0.attention", query=math.nan, key=1.0, value=math.inf, output=None)]
    (found,) = find(Report(rows=rows, gradients=gradients))
    assert found.name == "gradients not finite" and found.value == 2
    assert "(query, value)" in found.text and "(sequence, query) (1, 0), (3, 7)." in found.text
    assert find(Report(rows=rows)) == [], "A kernel that gives such rows 0 is right."
    nobody = [each | dict(entropy=math.nan, masked_rows=32) for each in rows]
    assert names(find(Report(rows=nobody, gradients=gradients))) == ["mask hides everything"]


def test_nan_on_the_way_forward_comes_before_nan_on_the_way_back():
    gradients = [dict(layer=f"blocks.{i}.attention", query=math.nan, value=math.nan) for i in range(2)]
    rows = [row(f"blocks.{i}.attention", non_finite=5 * i) for i in range(2)]
    (found,) = find(Report(rows=rows, gradients=gradients))
    assert (found.name, found.layer) == ("not finite", "blocks.1.attention")


def test_without_known_matrices_the_stream_tells_where_gradients_are_nan():
    report = depth([0.1] * 3)
    report.weights = []
    for entry, gradient in zip(report.stream, (math.nan, math.nan, 1.0), strict=True):
        entry["gradient_rms"] = gradient
    (found,) = find(report)
    assert (found.name, found.layer, found.value) == ("gradients not finite", "blocks.1.attention", 2)
    report.rows[2] |= dict(masked_rows=1, masked_at=[(0, 5)])
    (found,) = find(report)
    assert found.layer == "blocks.2.attention" and "(0, 5)" in found.text


@pytest.mark.parametrize("fill", [-1e-9, 0.0, -1.0])
def test_a_mask_whose_fill_hides_nothing_is_named(fill):
    (found,) = find(Report(rows=[row(visible_fill=fill), row(head=1, visible_fill=None)]))
    assert (found.name, found.value, found.heads) == ("mask hides nothing", fill, (0,))
    assert "−∞" in found.text
    assert find(Report(rows=[row(visible_fill=None)])) == []


@pytest.mark.parametrize("is_masked_first", [True, False])
def test_a_mask_before_a_soft_cap_is_told_that_no_fill_helps(is_masked_first):
    class Capped(Dropped):
        def forward(self, x):
            query, key, value = self.heads(x)
            future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            logits = query @ key.mT / 4
            logits = logits.masked_fill(future, -1e9) if is_masked_first else logits
            logits = 5 * torch.tanh(logits / 5)
            logits = logits if is_masked_first else logits.masked_fill(future, -1e9)
            return (logits.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)

    torch.manual_seed(0)
    found = findings(Capped(is_told=True), hidden(None))
    assert names(found) == ["mask hides nothing"] * is_masked_first
    assert all("mask after it" in each.text and "−∞" not in each.text for each in found)


@pytest.mark.parametrize("axis", ["queries", "heads", "batch"])
def test_a_softmax_over_the_wrong_axis_is_named_and_nothing_else(axis):
    rows = [row(head=head, axis=axis, saturated=0.9, logit_std=9.0) for head in range(2)]
    weights = [record(role=role) for role in ("query", "key")]
    (found,) = find(Report(rows=rows, weights=weights))
    assert found.name == "softmax over the wrong axis" and f"over the {axis} instead of the keys" in found.text
    assert find(Report(rows=[row(axis="keys")], weights=weights)) == []


def adapter(name, end, std, layer="blocks.0.attention", **changes):
    usual = dict(parameter=f"{layer}.{name}.lora_{end}.weight", std=std, trainable=True, drawn=None)
    return record(layer, {"A": "adapter_in", "B": "adapter_out"}[end], **usual | changes)


@pytest.mark.parametrize(
    "first, second, dead",
    [
        (dict(std=0.1), dict(std=0.0), False),
        (dict(std=0.0), dict(std=0.1), False),
        (dict(std=0.0), dict(std=0.0), True),
        (dict(std=0.0, trainable=False), dict(std=0.1), True),
        (dict(std=0.1), dict(std=0.0, trainable=False), True),
        (dict(std=0.1, trainable=False), dict(std=0.0), False),
        (dict(std=0.0, mean=0.3), dict(std=0.0), False),
    ],
)
def test_adapters_that_no_gradient_reaches(first, second, dead):
    """Beside an adapter of the same layer that is well."""
    well = [adapter("v_proj", "A", 0.1), adapter("v_proj", "B", 0.0)]
    weights = [well[1], adapter("q_proj", "A", **first), adapter("q_proj", "B", **second), well[0]]
    found = find(Report(rows=[row(), row("blocks.1.attention")], weights=weights))
    assert names(found) == ["adapters without gradient"] * dead
    for each in found:
        assert each.severity == "error" and each.value == 1 and each.layers == ("blocks.0.attention",)
        assert "blocks.0.attention.q_proj.lora_A.weight" in each.text and "v_proj" not in each.text


def test_clones_of_any_matrix_are_found_and_named_by_their_block():
    stream = [dict(layer=f"blocks.{i}", rms=1.0, token_cosine=0.1) for i in range(3)]
    rows = [row(f"blocks.{i}.attention") for i in range(3)]
    clone = dict(clone_of="blocks.0.attention")
    weights = [adapter("q", "A", 0.1, "blocks.1.attention", **clone)]
    weights += [record("blocks.2.mlp", "feed_forward_in", clone_of="blocks.0.mlp"), record("head", "readout")]
    (found,) = find(Report(rows=rows, weights=weights, stream=stream))
    assert found.name == "layers cloned" and found.layers == ("blocks.1.attention", "blocks.2.attention")
    assert "adapter_in: the same numbers as in blocks.0.attention" in found.text


@pytest.mark.parametrize(
    "traits, gain, told",
    [
        (dict(qk_norm=True, scale=1.0), 1, {"normalized, so", "by 1/√d_head = 0.25"}),
        (dict(qk_norm=True, scale=0.25), 1, {"normalized, so", "what else multiplies"}),
        (dict(scale=1.0), 1, {"are multiplied by 1:"}),
        (dict(scale=0.25), 8**0.5, {"Divide W_q by 8, or draw"}),
        (dict(scale=0.25), 1, {"would get 1 from W_q and W_k"}),
        ({}, 1, {"would get 1 from W_q and W_k, times 1/√d_head = 0.25"}),
        ({}, 8**0.5, {"Divide W_q by 8, or draw"}),
    ],
)
def test_the_remedy_for_large_logits_fits_the_model(traits, gain, told):
    weights = [record(role=role, std=0.125 * gain) for role in ("query", "key")]
    rows = [row(head=head, logit_std=8.0, max_weight=0.9) for head in range(4)]
    (found,) = find(Report(rows=rows, weights=weights, model=dict(traits=traits)))
    parts = {
        "normalized, so",
        "by 1/√d_head",
        "what else multiplies",
        "are multiplied by 1:",
        "Divide W_q",
        "would get",
    }
    assert {part for part in parts if part in found.text} == {p for p in parts if any(p in each for each in told)}
    assert all(each in found.text for each in told)


def test_a_tied_embedding_of_unit_variance_makes_large_logits():
    def tied(std, readout_scale=1.0):
        model = stack(n_classes=40, readout_scale=readout_scale)
        model.readout.weight = model.embedding.weight
        model.embedding.weight.data *= std / model.embedding.weight.std(correction=0)
        return model

    threshold = math.sqrt(2 * math.log(40))
    (found,) = findings(tied(1.0))
    assert (found.name, found.layer) == ("tied embedding drawn for one use", "embedding")
    assert (found.value, found.threshold) == pytest.approx((8.0, threshold))
    assert findings(tied(0.02)) == [] == findings(tied(1.0, readout_scale=1 / 8))
    assert findings(tied(threshold / 8 * 0.99)) == [] != findings(tied(threshold / 8 * 1.01))
    assert findings(scaled_query(stack(n_classes=40), 50, "embedding.weight")) == [], "It is no read-out."
    report = diagnose(tied(1.0), TOKENS)
    for each in report.weights:
        each["drawn"] = False
    assert find(report) == [], "What was learned was not drawn."


def test_a_tied_embedding_is_seen_in_models_of_others():
    model = gpt2()
    with torch.no_grad():
        model.transformer.wte.weight.normal_(generator=torch.Generator().manual_seed(0))
    (found,) = findings(model, dict(input_ids=TOKENS))
    assert found.name == "tied embedding drawn for one use" and found.value == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize("family", ["T5", "LongT5"])
def test_a_tied_embedding_is_well_where_its_read_out_is_scaled(family):
    config = getattr(transformers, f"{family}Config")
    config = config(vocab_size=99, d_model=64, d_kv=16, d_ff=128, num_heads=4, num_layers=2, decoder_start_token_id=0)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config).eval()
    assert findings(model, dict(input_ids=TOKENS, decoder_input_ids=TOKENS)) == []


def alibi(name, n_heads=8):
    torch.manual_seed(0)
    tokens = torch.randint(3, 99, (2, 256))
    sizes = dict(vocab_size=99, hidden_size=64, n_layer=2, n_head=n_heads)
    if name == "Bloom":
        return transformers.BloomModel(transformers.BloomConfig(**sizes)).eval(), tokens
    sizes = dict(vocab_size=99, d_model=64, n_layers=2, n_heads=n_heads, max_seq_len=512)
    return transformers.MptModel(transformers.MptConfig(**sizes)).eval(), tokens


@pytest.mark.parametrize("name", ["Bloom", "Mpt"])
def test_a_penalty_on_distance_is_no_fault(name):
    """Over 256 keys its std is 26 in the steepest head, and no key has more than 0.4 of the weight."""
    model, tokens = alibi(name)
    assert findings(model, tokens) == []
    with torch.no_grad():
        for parameter, weight in model.named_parameters():
            if "qkv" in parameter.lower() or "query_key_value" in parameter:
                weight.mul_(30)
    assert names(findings(model, tokens)) == ["logits too large"], "Beside the penalty, matrices are still judged."


def test_logits_that_a_bias_makes_large_are_judged_by_what_they_do():
    weights = [record(role=role, std=0.02) for role in ("query", "key")]
    for largest, expected in ((0.37, []), (0.38, ["logits too large"])):
        found = find(Report(rows=[row(logit_std=8.0, max_weight=largest)], weights=weights))
        assert names(found) == expected


def test_one_visible_key_leaves_nothing_to_weigh():
    visible = torch.zeros(4, 32, dtype=torch.long)
    visible[:, 0] = 1
    assert findings(bert(), dict(input_ids=TOKENS, attention_mask=visible)) == []


@pytest.mark.parametrize("n", [2, 32])
def test_in_bfloat16_similar_tokens_are_not_taken_for_equal_ones(n):
    model = stack("post", 12, "xavier_normal").bfloat16()
    found = findings(model, TOKENS[:, :n], lambda output: loss(output.float()))
    assert found == []
    zeros = torch.zeros(4, 32, dtype=torch.long)
    alike = findings(stack(positions="none").bfloat16(), zeros, lambda output: loss(output.float()))
    assert names(alike) == ["attention uniform"]


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_identical_heads_are_found_however_many_share_a_key(n_kv_heads):
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=n_kv_heads)
    model = transformers.LlamaModel(config).eval()
    assert findings(model) == []
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weight.copy_(weight[:16].repeat(len(weight) // 16, 1))
    assert names(findings(model)) == ["heads identical"]


@pytest.mark.parametrize("statistic, where", [("first", "the first token"), ("sink", "columns that belong to no key")])
def test_a_sink_is_noted_in_trained_layers(statistic, where):
    weights = [record(role=role, drawn=False) for role in ("query", "key")]
    rows = [row(head=head, **{statistic: share}) for head, share in enumerate((0.9, 0.4))]
    (found,) = find(Report(rows=rows, weights=weights))
    assert (found.name, found.severity, found.heads) == ("attention sink", "note", (0,))
    assert where in found.quantity and found.value == pytest.approx(0.65)
    assert (
        find(Report(rows=[rows[1]], weights=weights))
        == []
        == find(Report(rows=[rows[0] | {"n_key": 8}], weights=weights))
    )
    gated = find(Report(rows=rows, weights=weights, model=dict(traits=dict(output_gate=True))))
    assert "output gate" not in gated[0].text


def test_an_extra_logit_that_begins_too_large_is_no_collapse():
    rows = [row(sink=0.99, saturated=0.9, first=0.0)]
    fresh = [record(role=role, drawn=True) for role in ("query", "key")]
    (found,) = find(Report(rows=rows, weights=fresh))
    assert found.name == "attention sink" and "near 0" in found.text
    assert find(Report(rows=[row(first=0.9)], weights=fresh)) == [], "A fresh layer may look at its first token."


def test_a_soft_cap_that_holds_logits_down_is_noted():
    weights = [record(role=role, drawn=False) for role in ("query", "key")]
    for largest, expected in ((47.0, []), (48.0, ["soft-cap reached"])):  # 50·√0.9 = 47.4
        report = Report(rows=[row(logit_max=largest)], weights=weights, model=dict(traits=dict(soft_cap=50.0)))
        assert names(find(report)) == expected


def test_the_scale_of_packed_matrices_is_judged_by_all_of_them():
    packed = dict(std=math.sqrt(2 / 256), packed=True)
    layers = [f"blocks.{i}.attention" for i in range(2)]

    def judged(**second):
        weights = [
            record(layer, role, **packed | changes)
            for layer, changes in zip(layers, ({}, second), strict=True)
            for role in ("query", "key", "value")
        ]
        return find(Report(rows=[row(layer) for layer in layers], weights=weights))

    assert names(judged()) == ["packed query-key-value scale"]
    assert judged(std=0.125) == [], "A draw that is right in one block is no packed scale in the other."
    named = dict(looks_like=["fairseq", "some_scheme"])
    assert names(judged(**named)) == ["packed query-key-value scale"], "No scheme accounts for both."
    packed |= named
    assert judged() == []


def test_small_tokens_may_grow_until_normalized_branches_have_made_them_large():
    growing = depth(rms=[0.05, 0.25, 1.2])
    assert find(growing) == []
    growing.model["traits"] = dict(norm="none")
    assert names(find(growing)) == ["stream growing"]


def test_a_jump_must_stand_out_from_the_growth_around_it():
    def variances(*factors):
        report = depth(rms=[math.sqrt(math.prod(factors[: i + 1])) for i in range(len(factors))])
        report.model["traits"] = dict(norm="none")
        return names(find(report))

    assert variances(1, 2, 2, 7.9, 2) == [] and variances(1, 2, 2, 8.1, 2) == ["stream jumping"]
    assert variances(1, 1, 1, 4.1, 1) == ["stream jumping"] and variances(1, 1, 1, 3.9, 1) == []
    assert variances(1, 5, 5, 5, 5) == ["stream growing"]


def with_gradients(last, n_layers=3, **changes):
    """A report whose last layer has these gradients, and the others healthy ones."""
    report = depth([0.1] * n_layers, trainable=True)
    healthy = dict(query=0.3, key=0.3, value=1.0, output=1.0, ratio_query=0.3, ratio_key=0.3)
    gradients = [healthy] * (n_layers - 1) + [last]
    report.gradients = [dict(layer=f"blocks.{i}.attention") | each for i, each in enumerate(gradients)]
    for each in report.weights[-4:]:
        each |= changes.get(each["role"], {})
    return report


def test_both_matrices_may_have_small_gradients():
    """A loss of the mean makes the value's large; of a class token that starts at zero, the other two are small."""
    small = dict(query=1e-3, key=1e-3, value=1.0, output=1.0, ratio_query=1e-3, ratio_key=1e-3)
    assert find(with_gradients(small)) == []
    assert names(find(with_gradients(small | dict(ratio_key=0.3)))) == ["gradients vanishing"]
    assert names(find(with_gradients(small | dict(ratio_query=1e-7, ratio_key=1e-7)))) == ["gradients vanishing"]


def test_a_loss_of_the_mean_is_no_fault():
    """Unlike tokens whose gradients are alike: that of W_v adds up, and those of W_q and W_k fall below a tenth."""
    model = torch_encoder(norm_first=True)
    for end in ("self_attn.out_proj.weight", "linear2.weight"):
        scaled_query(model, 0.01, end)
    x = torch.randn(2, 512, 64, generator=torch.Generator().manual_seed(3))
    assert findings(model, x, lambda output: loss(output.mean(1))) == []


def test_a_loss_that_sees_one_key_is_a_fault():
    """Of the first query of a causal model; rounding leaves a gradient that is 0 in theory."""
    model = stack(scheme="xavier_normal", is_causal=True)
    assert names(findings(model, loss=lambda output: loss(output[:, :1]))) == ["gradients vanishing"]
    assert findings(model, loss=lambda output: loss(output[:, -1:])) == []


def test_gradients_that_a_first_step_frees_are_no_fault():
    none = dict(query=0.0, key=0.0, value=1.0, output=0.0, ratio_query=0.0, ratio_key=0.0)
    assert names(find(with_gradients(none))) == ["gradients vanishing"]
    assert find(with_gradients(none, value=dict(std=0.0))) == []
    dead = dict(query=0.0, key=0.0, value=0.0, output=0.0)
    assert names(find(with_gradients(dead))) == ["no gradient"]
    gated = with_gradients(dead)
    gated.model["traits"] = dict(branch_gain=0.0)
    assert find(gated) == [] == find(with_gradients(dead, output=dict(std=0.0)))


def test_tokens_that_start_alike_because_nothing_came_in_are_no_collapse():
    alike = depth([1 - 1e-7] * 4)
    assert names(find(alike)) == ["rank collapsing"]
    alike.rows[0]["rank_residual"] = math.nan  # the values are 0, as in DETR's decoder; its logits are of the positions
    assert find(alike) == []


class Dropped(nn.Module):
    """Attention whose dropout is torch's own argument, which knows of no mode."""

    def __init__(self, is_told):
        super().__init__()
        self.is_told, self.query, self.key, self.value = is_told, *(nn.Linear(64, 64) for _ in range(3))

    def heads(self, x):
        return [each(x).unflatten(-1, (4, 16)).transpose(1, 2) for each in (self.query, self.key, self.value)]

    def forward(self, x):
        p = 0.1 if self.training or not self.is_told else 0.0
        return nn.functional.scaled_dot_product_attention(*self.heads(x), dropout_p=p).transpose(1, 2).flatten(2)


def test_dropout_that_eval_does_not_switch_off_is_found():
    torch.manual_seed(0)
    model, told = Dropped(is_told=False), Dropped(is_told=True)
    assert findings(model, hidden(None)) == findings(told, hidden(None)) == []  # both train
    (found,) = findings(model.eval(), hidden(None))
    assert (found.name, found.severity, found.layer) == ("random in evaluation", "note", "(model)")
    assert findings(told.eval(), hidden(None)) == []
    left = torch_encoder().eval()
    assert findings(left, hidden(None)) == []
    left.layers[1].dropout1 = nn.Dropout(0.1)
    assert names(findings(left, hidden(None))) == ["random in evaluation"]
    assert names(findings(lambda x: model(x), hidden(None))) == [], "of a function no mode is known"


def test_a_cause_hides_its_consequences():
    rows = [row(logit_std=9.0, saturated=0.8, max_weight=0.9)]
    weights = [record(role=role) for role in ("query", "key")]
    assert names(find(Report(rows=rows, weights=weights))) == ["logits too large"]
    known = {*faults(), *(fault.name for fault in faults().values())}
    assert {effect for fault in faults().values() for effect in fault.explains} <= known


def test_the_worst_comes_first():
    rows = [
        row(logit_std=3.0, max_weight=0.5),
        row("blocks.1.attention", masked_rows=9, entropy=math.nan, logit_std=math.nan),
    ]
    weights = [record(role=role) for role in ("query", "key")]
    found = find(Report(rows=rows, weights=weights))
    assert [each.severity for each in found] == ["error", "warning"]
    assert [SEVERITIES.index(each.severity) for each in found] == [0, 1]


def test_without_weights_only_what_needs_none_is_judged():
    assert find(Report(rows=[row(logit_std=9.0)])) == []
    assert names(find(Report(rows=[row(saturated=0.9)]))) == ["entropy collapsed"]
    assert find(Report()) == []


def test_findings_survive_json():
    report = diagnose(cloned(stack()), TOKENS)
    assert find(Report.from_json(report.to_json())) == find(report) != []


@pytest.mark.parametrize("fault", faults())
def test_chapters_and_their_sections_exist(fault, repository):
    page, _, anchor = faults()[fault].chapter.partition("#")
    notebook = (repository / page).with_suffix(".ipynb")
    assert notebook.exists(), f"{fault} sends readers to {page}, which is not in the book."
    headings = re.findall(r'"##+ ([^"]*?)(?:\\n)?"', notebook.read_text(encoding="utf-8"))
    slugs = {re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") for heading in headings}
    assert not anchor or anchor in slugs, f"{page} has no section {anchor}, but {sorted(slugs)}."


def test_schemes_that_findings_recommend_exist():
    recommended = {name for row in table() for name in re.findall(r'initialize_\(model, "(\w+)"', row["remedies"])}
    assert recommended and recommended <= set(schemes())


def test_the_table_says_of_each_fault_its_rule_its_thresholds_and_their_source():
    rows = {row["finding"]: row for row in table()}
    assert rows.keys() == faults().keys()
    assert all(row["rule"] and row["source"] and "{" not in row["source"] for row in rows.values())
    assert rows["gradients vanishing"]["thresholds"].startswith("below_theory = 10 (in 36 healthy settings")
    assert r"$> \sqrt{2 \ln n}$" in rows["logits too large"]["rule"]
    for fault in faults().values():
        assert all(threshold.source for threshold in fault.thresholds.values()), fault.key


def test_bad_arguments():
    with pytest.raises(TypeError, match="report must be a Report: got dict"):
        find({})


def test_a_rule_fits_a_cell_of_a_table():
    assert not [row["finding"] for row in table() if "|" in row["rule"] or "\n" in row["rule"]]


def test_uniform_attention_is_put_down_to_its_cause():
    attention, x = torch.nn.MultiheadAttention(32, 4, batch_first=True), torch.randn(2, 8, 32)
    with torch.no_grad():
        attention.in_proj_weight[:64] *= 1e-8
    (finding,) = (each for each in diagnose(attention, (x, x, x)).findings if "uniform" in each.name)
    assert "because W_q and W_k are so small" in finding.text and "Are all the tokens alike" not in finding.text
    alike = x[:, :1].expand(-1, 8, -1)
    attention = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    (finding,) = (each for each in diagnose(attention, (alike,) * 3).findings if "uniform" in each.name)
    assert "Are all the tokens alike" in finding.text


def test_the_math_of_a_rule_can_be_set():
    for row in table():
        for formula in re.findall(r"\$([^$]+)\$", row["rule"]):
            assert not re.search(r"\\text\{[^}]*(?<!\\)_", formula), f"{row['finding']}: an underscore in text is \\_."


def test_both_matrices_zero_are_dead_also_where_a_bias_sets_the_logits_apart():
    """The attention is not uniform then, as positions make it."""
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=99, d_model=64, d_kv=16, d_ff=128, num_layers=3, num_heads=4)
    model = transformers.T5EncoderModel(config).eval()
    place = "encoder.block.1.layer.0.SelfAttention"
    zeroed(model, f"{place}.q.weight")
    assert findings(model) == [], "One alone is freed by a step."
    (found,) = findings(zeroed(model, f"{place}.k.weight"))
    assert (found.name, found.severity, found.layers) == ("gradients vanishing", "error", (place,))
    assert "for ever" in found.text and "detached" not in found.text


def test_heads_that_hand_on_nothing_need_not_have_zero_values():
    """Weights that were rounded after the softmax are zero."""

    class Rounded(Attention):
        def forward(self, x, hidden=None):
            q, k, v = (each(x) for each in (self.q_proj, self.k_proj, self.v_proj))
            return self.out_proj((q @ k.mT / 64**0.5).softmax(-1).mul(0).add(0) @ v)

    (found,) = findings(Rounded(), hidden(None))
    assert found.fault == "no gradient (zero values)" and "or the weights have become so" in found.text


def test_logits_that_training_has_made_are_not_taken_for_a_draw():
    """No singular value tells yet that W_q and W_k were trained, but the gains of norms do."""
    weights = [record(role=role) for role in ("query", "key")]  # of std 0.125: logits of std 1
    for moved, large, expected in (
        (0.0, {}, ["logits too large"]),
        (0.01, {}, ["logits too large"]),
        (0.02, {}, []),
        (math.nan, {}, ["logits too large"]),
        (0.02, dict(logit_max=300.0), ["logits too large"]),
    ):
        sharp = row(logit_std=4.0, saturated=0.2, max_weight=0.6) | large
        assert names(find(Report(rows=[sharp], weights=weights, model=dict(gain_std=moved)))) == expected
    weights[0]["std"] *= 10
    found = find(Report(rows=[row(logit_std=10.0, max_weight=0.9)], weights=weights, model=dict(gain_std=0.02)))
    assert names(found) == ["logits too large"], "Their size makes them so."


def test_a_small_model_that_learned_has_no_finding():
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=20, d_model=48, d_kv=12, d_ff=96, num_layers=2, num_heads=4)
    model = transformers.T5EncoderModel(config).eval()
    read, tokens = nn.Linear(48, 20), torch.randint(20, (16, 12))
    optimizer = torch.optim.AdamW([*model.parameters(), *read.parameters()], lr=1e-2)

    def reversal(output):
        return nn.functional.cross_entropy(read(output.last_hidden_state).flatten(0, 1), tokens.flip(1).flatten())

    fresh = diagnose(model, tokens).model["gain_std"]
    for _ in range(60):
        optimizer.zero_grad()
        value = reversal(model(tokens))
        value.backward()
        optimizer.step()
    report = diagnose(model, tokens, reversal)
    assert value < 0.5 and fresh == 0 < report.model["gain_std"]
    assert max(each["logit_std"] for each in report.rows) > math.sqrt(2 * math.log(12))
    assert report.findings == []


class Rooted(nn.Module):
    """A projection that is multiplied with the root of its width instead of divided, in several ways."""

    def __init__(self, way):
        super().__init__()
        self.way, self.num_heads = way, 2
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(32, 32, bias=False) for _ in range(3))
        for each in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.orthogonal_(each.weight)

    def forward(self, x):
        q, k, v = (each(x).unflatten(-1, (2, 16)).transpose(1, 2) for each in (self.q_proj, self.k_proj, self.v_proj))
        if self.way == "fused":
            return nn.functional.scaled_dot_product_attention(q * 4, k, v, scale=1.0)
        if self.way == "queries":
            return ((q / torch.tensor(0.25)) @ k.mT).softmax(-1) @ v
        if self.way == "in place":
            return (q @ k.mT).mul_(16).div_(4).softmax(-1) @ v
        if self.way == "vector":
            return ((q * torch.full((16,), 4.0)) @ k.mT).softmax(-1) @ v
        return (q @ k.mT * 4).softmax(-1) @ v


@pytest.mark.parametrize("way", ["fused", "queries", "in place", "logits", "vector"])
def test_what_the_logits_are_multiplied_with_is_seen_or_said_to_be_unknown(way):
    torch.manual_seed(0)
    report = diagnose(Rooted(way), torch.randn(4, 24, 32), loss)
    (found,) = report.findings
    scales = {row["scale"] for row in report.rows}
    if way == "vector":
        assert all(map(math.isnan, scales)) and "it is unknown" in found.text
    else:
        assert scales == {4.0} and "The logits are multiplied by 4:" in found.text


def test_attention_that_the_graph_does_not_hold_is_known_by_names_and_said():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = bert().bert.encoder.layer[0].attention

        def forward(self, x):
            with torch.no_grad():
                y = self.attention(x)[0]
            return x * 2 + y

    model = Detached()
    report = diagnose(model, hidden(None))
    assert {each["role"] for each in report.weights} >= {"query", "key", "value"}
    assert any("No attention is in the graph" in note for note in report.notes)
