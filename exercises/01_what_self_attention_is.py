"""Exercises of chapter 1, *What self-attention is*."""

import math

import torch
from torch import Tensor, nn

from attntut.data import digits
from exercises.exercise import Choice, Code, Explain, Mend, Number

contrast = Choice(
    number="1.1",
    title="Twice the contrast",
    minutes=2,
    difficulty="easy",
    points=1,
    needs=("One layer, no parameters",),
    statement=(
        "You double the contrast of a digit: every pixel, whose mean over all digits is 0, is multiplied by 2. What "
        "happens in the layer without parameters?"
    ),
    hint="Write the logit of two patches once with $x_i$ and $x_j$, and once with $2x_i$ and $2x_j$.",
    options={
        "Nothing, because a softmax normalizes": (
            "A softmax does not notice a constant that is added to its logits. Does it notice a factor?"
        ),
        "The logits are twice as large, and the entropy of a row falls": (
            "A score is a product of two patches. How many of its factors have doubled?"
        ),
        "The logits and the weights are four times as large": "To what must the weights of one patch still sum?",
        "The logits are four times as large, and the entropy of a row falls": "",
        "The logits are four times as large, and the entropy of a row rises": (
            "Of two unequal logits, which one's exponential grows by the larger factor? Do the weights get more even?"
        ),
        "The logits stay, because the root that divides them doubles too": (
            "The root is that of the width. Has a patch more pixels now?"
        ),
    },
)


def weight_on_paper(d: int, ink: float) -> float:
    return 1 / (1 + math.exp(2 * math.sqrt(d) * ink**2))


ink_and_paper = Number(
    number="1.2",
    title="Ink and paper",
    minutes=4,
    difficulty="easy",
    points=2,
    needs=("One layer, no parameters",),
    statement=(
        "Without any parameters, a patch of <<d>> pixels, each of them <<ink>>, attends to two patches only: to itself and "
        "to an empty patch, whose pixels are all −<<ink>>. Which weight does it give to the *empty* one? Divide the "
        "scores by the root of the width, as in the chapter."
    ),
    hint="The two scores are $x^\\top x$ and $-x^\\top x$.",
    parameters={"d": (9, 16, 25), "ink": (0.5, 0.5, 0.4, 0.8, 0.7, 0.6, 0.7, 0.6, 0.5, 0.6, 0.4, 0.3)},
    solve=weight_on_paper,
    traps={
        "That is the weight on itself, or not? Which one is asked for?": lambda d, ink: 1 - weight_on_paper(d, ink),
        "By what must a score be divided before it is a logit?": lambda d, ink: 1 / (1 + math.exp(2 * d * ink**2)),
        "Did you divide by the width, or by its root?": lambda d, ink: 1 / (1 + math.exp(2 * ink**2)),
        "Paper would score 0 if its pixels were 0. What are they here?": (
            lambda d, ink: 1 / (1 + math.exp(math.sqrt(d) * ink**2))
        ),
        "Is that a weight, or the ratio of the two weights? To what do both sum?": (
            lambda d, ink: math.exp(-2 * math.sqrt(d) * ink**2)
        ),
        "That is the exponential of a logit. What is it divided by?": lambda d, ink: math.exp(-math.sqrt(d) * ink**2),
    },
    ask="What are the two logits, and what does the softmax make of their difference?",
    rtol=0.01,
    wrong={
        "even": lambda d, ink: 0.5,
        "pixels not squared": lambda d, ink: 1 / (1 + math.exp(2 * math.sqrt(d) * ink)),
    },
)


def commonest(pairs: int, n_values: int) -> float:
    """How often the commonest of so many values occurs, on average."""
    if pairs == 2:
        return 1 + 1 / n_values
    one, two = 1 / n_values**2, 3 * (n_values - 1) / n_values**2  # all three alike, just two alike
    return 3 * one + 2 * two + (1 - one - two)


best_guess = Number(
    number="1.3",
    title="The best guess",
    minutes=8,
    difficulty="medium",
    points=2,
    needs=("Is weighing better than averaging?",),
    statement=(
        "A model that averages reads <<pairs>> pairs of a key and a value, then one of the keys again, and must name its "
        "value. The keys differ; each value is drawn by itself, any of <<n_values>> numbers with equal chances. Predict "
        "how often the model is right if it makes the best guess. (Then draw some thousand sequences and count, if you like.)"
    ),
    hint="How often does the commonest value occur among the pairs? List the cases: all values differ, two are alike, …",
    parameters={"pairs": (2, 3, 3), "n_values": (8, 7, 4, 6)},
    solve=lambda pairs, n_values: commonest(pairs, n_values) / pairs,
    traps={
        "That guesses among the pairs. What if two of their values are the same?": lambda pairs, n_values: 1 / pairs,
        "It has seen which values occur. Why guess among all of them?": lambda pairs, n_values: 1 / n_values,
        "To be always right, it must know which value belongs to which key. Can a sum say that?": (
            lambda pairs, n_values: 1
        ),
        "That is how often the commonest value occurs. Of how many values is it one?": commonest,
        "That is how likely the values are to be all different. How often is the guess right then, and if they are not?": (
            lambda pairs, n_values: math.prod(1 - k / n_values for k in range(pairs))
        ),
    },
    ask="Which values can occur how often? How likely is each case, and how often is the guess right in it?",
    rtol=0.01,
    wrong={"two guesses at once": lambda pairs, n_values: 1 / (pairs * n_values)},
)


def hear_others(x):
    T, d = x.shape[-2:]
    logits = x @ x.mT / math.sqrt(d)  # (B, T, T)
    weights = torch.softmax(logits.masked_fill(torch.eye(T, dtype=torch.bool), -math.inf), dim=-1)
    return weights @ x, weights


def with_itself(x: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.softmax(x @ x.mT / math.sqrt(x.shape[-1]), dim=-1)
    return weights @ x, weights


def removed_after(x: Tensor) -> tuple[Tensor, Tensor]:
    weights = with_itself(x)[1] * (1 - torch.eye(x.shape[-2]))
    return weights @ x, weights


def divided_again(x: Tensor) -> tuple[Tensor, Tensor]:
    weights = removed_after(x)[1]
    weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights @ x, weights


def those_before(x: Tensor) -> tuple[Tensor, Tensor]:
    logits = x @ x.mT / math.sqrt(x.shape[-1])
    weights = torch.softmax(logits.masked_fill(torch.ones_like(logits).triu() > 0, -math.inf), dim=-1)
    return weights @ x, weights


def own_logit(x: Tensor, value: float) -> tuple[Tensor, Tensor]:
    own = torch.eye(x.shape[-2], dtype=torch.bool)
    weights = torch.softmax((x @ x.mT / math.sqrt(x.shape[-1])).masked_fill(own, value), dim=-1)
    return weights @ x, weights


def with_logits_times(x: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    weights = hear_others(x * math.sqrt(factor))[1]
    return weights @ x, weights


def columns_for_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    weights = hear_others(x)[1].mT
    return weights @ x, weights


def patch_cases(seed: int) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    opposite = 30 * torch.randn(4, 1, 3, generator=generator)
    plain = [torch.randn(*shape, generator=generator) for shape in ((2, 5, 3), (3, 4, 7))]
    return [*((x,) for x in plain), (torch.cat([opposite, -opposite], dim=1),)]


def judge_hear_others(case, got, want):
    assert isinstance(got, (tuple, list)) and len(got) == 2, (
        "The outputs and the weights are asked for, in this order. What does your function return?"
    )
    assert all(isinstance(g, torch.Tensor) and g.shape == w.shape for g, w in zip(got, want, strict=True)), (
        "There is one output a token and one weight a pair of tokens. Which two shapes result, and in which order?"
    )
    output, weights = (g.double() for g in got)
    assert weights.isfinite().all(), (
        "Some weights are NaN. Does each token hear another one, and by what do you divide when it gives the others 0?"
    )
    assert (weights.diagonal(0, -2, -1) == 0).all(), (
        "A token still hears itself. Which logit has weight 0, however low the others are?"
    )
    ones = torch.ones(weights.shape[:-1], dtype=torch.double)
    if not torch.allclose(weights.sum(dim=-1), ones, atol=1e-4):
        assert not torch.allclose(weights.sum(dim=-2), ones, atol=1e-4), (
            "The columns sum to 1, and the rows do not. Whose weights should sum to 1?"
        )
        raise AssertionError("The weights of a token no longer sum to 1. Was the token itself removed too late?")
    assert torch.allclose(weights, want[1].double(), atol=1e-4), (
        "The rows sum to 1, but they are too even or too uneven. Are the scores divided by the root of the width?"
    )
    assert torch.allclose(output, want[0].double(), atol=1e-4), (
        "The weights are right. Is each output the average under its token's own row of them?"
    )


others_only = Code(
    number="1.4",
    title="Hear the others only",
    minutes=10,
    difficulty="medium",
    points=3,
    needs=("1.2",),
    statement=(
        "Write `hear_others(x)`, the layer without parameters for `x` of shape `(B, T, d)`, but such that no token attends "
        "to *itself*. It returns the outputs `(B, T, d)` and the weights `(B, T, T)`. A token must get no weight of its own "
        "even if all others are its opposite."
    ),
    hint="A weight that must be zero has a logit of $-\\infty$. Where must it be set, before or after the softmax?",
    name="hear_others",
    starter="def hear_others(x):\n    return ...  # outputs, weights",
    make=patch_cases,
    compare=judge_hear_others,
    solution=hear_others,
    wrong={
        "hears itself": (with_itself, "still hears itself"),
        "a logit of zero": (lambda x: own_logit(x, 0), "still hears itself"),
        "a logit that is not low enough": (lambda x: own_logit(x, -100), "however low"),
        "removed after the softmax": (removed_after, "removed too late"),
        "removed, then divided again": (divided_again, "by what do you divide"),
        "those before it only": (those_before, "Does each token hear another one"),
        "not divided by the root": (lambda x: with_logits_times(x, math.sqrt(x.shape[-1])), "root of the width"),
        "root of the number of tokens": (
            lambda x: with_logits_times(x, math.sqrt(x.shape[-1] / x.shape[-2])),
            "root of the width",
        ),
        "columns for rows": (columns_for_rows, "Whose weights"),
        "averages with the columns": (lambda x: (hear_others(x)[1].mT @ x, hear_others(x)[1]), "own row"),
        "weights only": (lambda x: hear_others(x)[1], "What does your function return"),
    },
)


def recall_by_hand(tokens, vocab_size):
    keys, question = tokens[:, :-1:2], tokens[:, -1:]
    fits = keys == question  # (B, m)
    fits = (fits | ~fits.any(dim=1, keepdim=True)).float()
    weights = torch.zeros(tokens.shape)
    weights[:, 1::2] = fits / fits.sum(dim=1, keepdim=True)
    table = torch.eye(vocab_size)[tokens]  # (B, 2m + 1, vocab_size)
    return weights, (weights[:, None] @ table).squeeze(1)


def from_weights(tokens: Tensor, vocab_size: int, weights: Tensor) -> tuple[Tensor, Tensor]:
    return weights, (weights[:, None] @ torch.eye(vocab_size)[tokens]).squeeze(1)


def after_every_equal_token(tokens: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    fits = torch.zeros(tokens.shape)
    fits[:, 1:] = (tokens[:, :-1] == tokens[:, -1:]).float()
    return from_weights(tokens, vocab_size, fits / fits.sum(dim=1, keepdim=True))


def looks_at_the_key(tokens: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    weights = recall_by_hand(tokens, vocab_size)[0]
    return from_weights(tokens, vocab_size, weights.roll(-1, dims=1))


def one_pair(tokens: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    first = recall_by_hand(tokens, vocab_size)[0].argmax(dim=1)
    return from_weights(tokens, vocab_size, torch.eye(tokens.shape[1])[first])


def only_fitting(tokens: Tensor, nan: float | None = None) -> Tensor:
    weights = torch.zeros(tokens.shape)
    fits = (tokens[:, :-1:2] == tokens[:, -1:]).float()
    weights[:, 1::2] = fits / fits.sum(dim=1, keepdim=True)
    return weights if nan is None else weights.nan_to_num(nan)


def averages_the_values(tokens: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    weights = torch.zeros(tokens.shape)
    weights[:, 1::2] = 2 / (tokens.shape[1] - 1)
    return from_weights(tokens, vocab_size, weights)


def written_over(tokens: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    weights = recall_by_hand(tokens, vocab_size)[0]
    return weights, torch.zeros(len(tokens), vocab_size).scatter(1, tokens[:, 1::2], weights[:, 1::2])


def table_of_keys(tokens: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    weights = recall_by_hand(tokens, vocab_size)[0]
    return weights, from_weights(tokens.roll(1, dims=1), vocab_size, weights)[1]


def unshared(tokens: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    return from_weights(tokens, vocab_size, (recall_by_hand(tokens, vocab_size)[0] > 0).float())


def recall_cases(seed: int) -> list[tuple[Tensor, int]]:
    """In row 0 three pairs fit and two of their values are alike; in row 2 none fits; values look like the question."""
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for rows, pairs, vocab_size in ((3, 4, 11), (4, 5, 7)):
        keys = torch.stack([torch.randperm(vocab_size, generator=generator)[:pairs] for _ in range(rows)])
        values = torch.randint(vocab_size, (rows, pairs), generator=generator)
        question = keys[:, 1].clone()
        keys[0, 0], keys[0, 3] = question[0], question[0]
        values[0, 0] = values[0, 3]
        values[0, 1] = (values[0, 3] + 1) % vocab_size
        values[1, 2], values[2, 3] = question[1], question[2]
        keys[2, 1] = keys[2, 0]
        tokens = torch.stack([keys, values], dim=-1).flatten(1)
        cases.append((torch.cat([tokens, question[:, None]], dim=1), vocab_size))
    return cases


def judge_recall(case, got, want):
    assert isinstance(got, (tuple, list)) and len(got) == 2, "Weights and a table are asked for. What do you return?"
    assert all(isinstance(g, torch.Tensor) and g.shape == w.shape for g, w in zip(got, want, strict=True)), (
        "The question has one weight a token, itself included, and the table one entry a token of the vocabulary. "
        "Which two shapes result?"
    )
    weights, table = (g.double() for g in got)
    right = want[0].double()
    assert weights.isfinite().all(), "In one sequence no pair fits. By what do you divide there?"
    assert (weights[:, ::2] == 0).all(), (
        "A token that is no value has weight. Which tokens are keys, whatever their number, and where do values stand?"
    )
    assert (weights.sum(dim=1) - 1).abs().max() < 1e-4, (
        "The weights of a question do not sum to 1. What if several pairs fit, and what if none does?"
    )
    seen = ((weights > 1e-4) & (right > 0)).sum(dim=1)
    assert (seen == (right > 0).sum(dim=1)).all(), "Several pairs fit, or none. Do all that should share the weight?"
    assert torch.allclose(weights, right, atol=1e-4), (
        "Which values have weight although another key stands before them?"
    )
    assert torch.allclose(table, want[1].double(), atol=1e-4), (
        "The weights are right, the table is not. Which token's one-hot vector does a weight multiply, and how much does a "
        "number receive that is the value of two pairs?"
    )


what_was_found = Code(
    number="1.5",
    title="Recall by hand",
    minutes=20,
    difficulty="hard",
    points=4,
    needs=("1.3", "Is weighing better than averaging?"),
    statement=(
        "Write `recall_by_hand(tokens, vocab_size)`: what the two layers of the chapter learn on recall, without training. "
        "`tokens`, integers of shape `(B, 2m + 1)`, are in each row `m` pairs of a key and a value, and then the question. "
        "Here a key may stand in several pairs, and a value may be the same number as a key. Return the weights "
        "`(B, 2m + 1)` of the question in the second layer: equal for every value whose key is the question, and 0 for all "
        "other tokens. If no key is the question, all `m` values get the same weight. Return with them the average of the "
        "one-hot vectors of the tokens under these weights, `(B, vocab_size)`."
    ),
    hint="Where do the keys stand, and where the values? `torch.eye(vocab_size)[tokens]` has the one-hot vectors.",
    name="recall_by_hand",
    starter="def recall_by_hand(tokens, vocab_size):\n    return ...  # weights, table",
    make=recall_cases,
    compare=judge_recall,
    solution=recall_by_hand,
    wrong={
        "after every equal token": (after_every_equal_token, "Which tokens are keys"),
        "looks at the key": (looks_at_the_key, "where do values stand"),
        "first pair only": (one_pair, "Several pairs fit"),
        "divides by nothing": (lambda t, n: from_weights(t, n, only_fitting(t)), "By what do you divide"),
        "zero where nothing fits": (lambda t, n: from_weights(t, n, only_fitting(t, 0)), "what if none does"),
        "not shared": (unshared, "do not sum to 1"),
        "averages": (averages_the_values, "another key"),
        "written over": (written_over, "value of two pairs"),
        "a table of the keys": (table_of_keys, "one-hot vector"),
        "table only": (lambda t, n: recall_by_hand(t, n)[1], "What do you return"),
    },
    equivalent=("tokens[:, :-2:2]",),  # the question stands alone at the end
)


# fmt: off
class Leaky(torch.nn.Module):
    """Causal attention through whose mask the future leaks."""

    def __init__(self, d_model, n_heads, seq_len):
        super().__init__()
        self.n_heads, self.fill = n_heads, -1e-9
        for role in ("query", "key", "value", "output"):
            self.add_module(role, torch.nn.Linear(d_model, d_model))
        hidden = torch.ones(seq_len, seq_len, dtype=torch.bool).triu()
        self.register_buffer("hidden", hidden)  # True is hidden

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (f(x).view(B, T, self.n_heads, -1).transpose(1, 2)
                   for f in (self.query, self.key, self.value))
        logits = q @ k.mT / math.sqrt(q.shape[-1])  # (B, H, T, T)
        logits = logits.masked_fill(self.hidden[:T, :T], self.fill)
        mix = torch.softmax(logits, dim=-1) @ v
        return self.output(mix.transpose(1, 2).reshape(B, T, C))
# fmt: on


def mend(layer):
    layer.fill = -math.inf
    layer.hidden.fill_diagonal_(False)


def mended_so(layer: nn.Module, fill: float, hidden: Tensor | None = None) -> None:
    layer.fill = fill
    if hidden is not None:
        layer.hidden.copy_(hidden)


def all_pairs(layer: nn.Module) -> Tensor:
    return torch.ones_like(layer.hidden)


def without_weights(layer: nn.Module) -> None:
    mend(layer)
    with torch.no_grad():
        layer.query.weight.zero_(), layer.query.bias.zero_()


def leaky_cases(seed: int) -> list[tuple[int, int, int, int]]:
    return [(12, 3, 8, seed), (20, 4, 9, seed + 1)]


def mended_mask(answer, d_model, n_heads, seq_len, seed):
    torch.manual_seed(seed)
    layer = Leaky(d_model, n_heads, seq_len)
    x = torch.randn(2, seq_len - 2, d_model)
    other_end = x.clone()
    other_end[:, 4:] += 100 * torch.randn(2, seq_len - 6, d_model)
    before, broken = [p.detach().clone() for p in layer.parameters()], layer(x)
    answer(layer)
    output, after = layer(x), list(layer.parameters())
    kept = len(after) == len(before) and all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    leak = (layer(other_end) - output)[:, :4].abs().max().item()
    return {"same": torch.equal(output, broken), "weights kept": kept, "output": output, "leak": leak}


def judge_mended_mask(case, got, want):
    assert isinstance(got, dict) and set(got) == set(want), "Which parts does the layer have after the mending?"
    output, right = got["output"], want["output"].double()
    assert got["same"] is False, "Nothing was changed. Does your function change the layer in place?"
    assert got["weights kept"] is True, "A weight is not what it was. Is the fault in what is learned, or in the mask?"
    assert isinstance(output, torch.Tensor) and output.shape == right.shape, "There is one output a token. How wide?"
    output = output.double()
    assert output.isfinite().all(), (
        "A token gets NaN. Which one sees nothing now, and what may each token see besides those before it?"
    )
    assert isinstance(got["leak"], float) and got["leak"] < 1e-5, (
        "Another end of the sequence still changes its beginning. How much weight does a hidden key keep, and which "
        "pairs are hidden?"
    )
    assert torch.allclose(output, right, atol=1e-4), (
        "Nothing of the future is seen any more. Does each token see itself, and all that stands before it?"
    )


leaking_future = Mend(
    number="1.6",
    title="The leaking future",
    minutes=15,
    difficulty="medium",
    points=3,
    needs=("In language: who reads what",),
    statement=(
        "A reader of characters with the layer `Leaky(d_model, n_heads, seq_len)` has a loss in training that is too good "
        "to be true, because it looks at the character that it should predict. Draw a `Leaky(32, 4, 16)` and run "
        "`attntut.diagnose(layer, x, lambda y: y.square().mean())` on random `x` of shape `(4, 16, 32)`. Mend what it "
        "finds, and run it *again*. Then write `mend(layer)`, which changes such a layer in place so that it is causal as in "
        "the chapter, whatever its sizes. Its weights stay as they are, and you may not edit the class."
    ),
    hint="A mask has two parts: *which* pairs it hides, and *what* it writes there. Print `layer.hidden` for four tokens.",
    name="mend",
    starter="def mend(layer):\n    ...",
    setup=(Leaky,),
    make=leaky_cases,
    ask=mended_mask,
    compare=judge_mended_mask,
    solution=mend,
    wrong={
        "nothing": (lambda m: None, "Nothing was changed"),
        "minus infinity only": (lambda m: mended_so(m, -math.inf), "sees nothing"),
        "large, and its own place hidden": (lambda m: mended_so(m, -1e9), "which pairs are hidden"),
        "its own place only": (lambda m: mended_so(m, m.fill, all_pairs(m).triu(1)), "hidden key keep"),
        "not large enough": (lambda m: mended_so(m, -5.0, all_pairs(m).triu(1)), "hidden key keep"),
        "hides the past": (lambda m: mended_so(m, -math.inf, all_pairs(m).tril(-1)), "which pairs are hidden"),
        "no mask": (lambda m: mended_so(m, m.fill, all_pairs(m) < 0), "which pairs are hidden"),
        "one place too far": (lambda m: mended_so(m, -math.inf, all_pairs(m).triu(2)), "which pairs are hidden"),
        "itself only": (
            lambda m: mended_so(m, -math.inf, all_pairs(m) ^ torch.eye(len(m.hidden), dtype=torch.bool)),
            "all that stands before",
        ),
        "asleep": (without_weights, "A weight is not"),
        "a new layer": (lambda m: Leaky(m.query.in_features, m.n_heads, len(m.hidden)), "in place"),
    },
)


def weight_on_ink(digit: int, *, paper: bool = True, from_ink: bool = False, width: int = 4) -> float:
    """The mean weight that a patch gives to inked ones, with pixels that are 0 on paper."""
    data = digits()
    patches = data.test_inputs[data.test_targets == digit]
    inked = patches.mean(dim=-1) > 0
    x = patches - data.test_inputs.min() if paper else patches
    weights = torch.softmax(x @ x.mT / math.sqrt(width), dim=-1)
    return (weights * inked[:, None]).sum(dim=-1)[inked if from_ink else ~inked].mean().item()


def share_of_ink(digit: int) -> float:
    data = digits()
    return (data.test_inputs[data.test_targets == digit].mean(dim=-1) > 0).float().mean().item()


paper_is_zero = Explain(
    number="1.7",
    title="Paper is zero",
    minutes=15,
    difficulty="medium",
    points=2,
    manual=3,
    needs=("1.2", "One layer, no parameters"),
    statement=(
        "In the chapter paper is negative, and an empty patch gives little weight to the inked ones. Shift the pixels of "
        "the test set so that paper is 0: `x = patches - patches.min()`, with `patches = digits().test_inputs`. Take the "
        "images of the digit <<digit>>, and call a patch inked as before, by its mean *before* the shift. Which weight do "
        "the empty patches give to all inked patches together, on average? Predict it, supposing that an empty patch now "
        "scores 0 with everybody. Then measure it with the layer without parameters, and explain in two or three "
        "sentences why the measured weight is larger than in the chapter, and why it is not what you predicted."
    ),
    hint=(
        "Equal logits give equal weights, so what share of the patches is inked? And is every patch blank whose mean was "
        "negative? Which sign has its score with dark ink now?"
    ),
    rubric=(
        "The prediction is the share of inked patches among the images of this digit, 0.40 to 0.49 (1 point). Paper is no "
        "longer like paper: a blank patch scores 0 with all and weighs them evenly (1). But many patches that count as "
        "empty have faint ink; all scores are positive now and the largest are those with the darkest patches, so they "
        "give these more (1)."
    ),
    setup=("from attntut.data import digits",),
    parameters={"digit": (4, 0, 1, 2, 3, 5, 6, 7, 8, 9)},
    solve=weight_on_ink,
    traps={
        "That is the share of inked patches, as you may have predicted it. What does the layer give?": share_of_ink,
        "Is paper 0 in your images, or still negative?": lambda digit: weight_on_ink(digit, paper=False),
        "That is what the inked patches give. Who asks here?": lambda digit: weight_on_ink(digit, from_ink=True),
        "Are the scores divided by the root of the width?": lambda digit: weight_on_ink(digit, width=1),
        "Did you divide by the width, or by its root?": lambda digit: weight_on_ink(digit, width=16),
    },
    ask=(
        "Are only this digit's images of the test set in it? Is x shifted, and inked not? And is the weight summed over "
        "the inked patches, and averaged over the empty ones that ask?"
    ),
    rtol=0.01,
)

EXERCISES = [
    contrast, ink_and_paper, best_guess, others_only, what_was_found, leaking_future, paper_is_zero,
]  # fmt: skip
