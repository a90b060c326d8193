"""Exercises of chapter 4, *Compared with traditional attention*."""

import functools
import math

import torch
from torch import Tensor

from exercises.exercise import Choice, Code, Explain, Mend, Number

far_away = Choice(
    number="4.1",
    title="Far away, or one of many",
    minutes=2,
    difficulty="easy",
    points=1,
    needs=("The path: what the last token feels of the first",),
    statement=(
        "A fresh layer of self-attention, without positions and without a mask, reads 500 tokens. You measure the gradient "
        "of its last output at the first token. Then you put 500 further tokens *between* the two. What becomes of that "
        "gradient, on average?"
    ),
    hint="Two things have changed: how far the token stands, and how many tokens there are. Which of them does the layer notice?",
    options={
        "It stays what it was, because the path is one step still.": (
            "The distance does not count. But what is the weight on each token when there are twice as many?"
        ),
        "It falls to $0.644^{500}$ of what it was.": "That is the factor of an LSTM. Does attention pass the gradient on step by step?",
        "It falls to a quarter.": "The *work* grows as $n^2$. As what does the weight on one token fall?",
        "It becomes exactly 0.": "A stack of convolutions has a reach. Which token does attention leave out?",
        "It falls to one half.": "",
        "It falls to $1/\\sqrt2$ of what it was.": "Is the gradient at one token proportional to its weight, or to the root of its weight?",
    },
)

crossing = Number(
    number="4.2",
    title="Where the costs cross",
    minutes=4,
    difficulty="easy",
    points=2,
    needs=("The cost: count it",),
    statement=(
        "All widths are <<d>>. From how many tokens on does a self-attention layer take more multiply-adds than a "
        "convolution over <<k>> neighbours?"
    ),
    hint="Write down both counts, and divide by $nd$.",
    parameters={"k": (9, 7, 11, 13), "d": (768, 512, 1024)},
    solve=lambda k, d: (k - 4) * d / 2,
    traps={
        "Where did the four projections of attention go?": lambda k, d: k * d / 2,
        "Attention makes two products that have an $n^2$. Which are they, and did you count both?": lambda k, d: (
            (k - 4) * d
        ),
        "That is where attention meets an LSTM. How many matrices has a convolution?": lambda k, d: 2 * d,
        "The projections of attention are work, too. On which side of the equation do they stand?": (
            lambda k, d: (k + 4) * d / 2
        ),
        "Query and key are projected. What else is?": lambda k, d: (k - 2) * d / 2,
        "You divided by $nd$. Which of the terms has a $d$ left?": lambda k, d: (k - 4) / 2,
    },
    ask="What is left of $4nd^2 + 2n^2d$ and of $knd^2$ when you divide by $nd$?",
    wrong={"the wrong way round": lambda k, d: 2 * d / (k - 4)},
)

needle_in_more_hay = Number(
    number="4.3",
    title="A longer haystack",
    minutes=6,
    difficulty="medium",
    points=2,
    needs=("Dilution: what happens as n grows",),
    statement=(
        "At <<n>> tokens a model gives its needle half of the weight. The other logits, the hay, have mean 0 and "
        "$\\sigma_s = 1$. Now the text becomes <<times>> times as long, and the hay stays of the same kind. By how much "
        "must the needle's logit rise to keep half of the weight? And how many times smaller does its weight become if its "
        "logit does not rise? Answer with two numbers."
    ),
    hint="At one half, $e^\\ell$ equals the sum over the hay. Call it 1. What is the weight when the hay has grown?",
    starter="answer = (..., ...)  # how much the logit must rise, how many times smaller the weight becomes",
    parameters={"n": (1024, 2048, 512), "times": (32, 16, 64, 8)},
    solve=lambda n, times: (math.log((times * n - 1) / (n - 1)), (1 + (times * n - 1) / (n - 1)) / 2),
    traps={
        "The sum over the hay grows by this factor. By how much does its logarithm?": (
            lambda n, times: (times, (1 + times) / 2)
        ),
        "Which logarithm undoes the exponential of the softmax?": lambda n, times: (math.log2(times), (1 + times) / 2),
        "Half of the sum is the needle itself. Does that half grow, too?": lambda n, times: (math.log(times), times),
        "Needle 1 and hay 1 give one half. From which weight does the needle fall, and to which?": (
            lambda n, times: (math.log(times), 1 + times)
        ),
        "By this number the weight is *multiplied*. How many times smaller does it become?": (
            lambda n, times: (math.log(times), 2 / (1 + times))
        ),
        "Is $\\sigma_s^2/2$ new in the longer text, or was it there before?": (
            lambda n, times: (math.log(times) + 0.5, (1 + times) / 2)
        ),
        "That is the whole lead in the longer text. By how much is it more than the lead before?": (
            lambda n, times: (math.log(times * n - 1) + 0.5, (1 + times) / 2)
        ),
    },
    ask="What is $\\ln(n - 1) + \\sigma_s^2/2$ at the two lengths? And what is 1 of 1 + 1, and of 1 + the hay that has grown?",
    wrong={"falls with the root": lambda n, times: (math.log(times), math.sqrt(times))},
)


def attend_longer(query, key, value, n_trained):
    factor = math.log(key.shape[-2]) / math.log(n_trained)
    logits = factor * (query @ key.mT) / math.sqrt(query.shape[-1])
    return torch.softmax(logits, dim=-1) @ value


def times(factor, query, key, value):
    return attend_longer(factor * query, key, value, max(2, key.shape[-2]))


def upside_down(query, key, value, n_trained):
    return times(math.log(n_trained) / math.log(max(key.shape[-2], 2)), query, key, value)


def counts_queries(query, key, value, n_trained):
    return times(math.log(query.shape[-2]) / math.log(n_trained), query, key, value)


def never_below_one(query, key, value, n_trained):
    return times(max(1, math.log(key.shape[-2]) / math.log(n_trained)), query, key, value)


def quotient_of_lengths(query, key, value, n_trained):
    return times(math.log(key.shape[-2] / n_trained) if key.shape[-2] != n_trained else 1, query, key, value)


def root_of_the_quotient(query, key, value, n_trained):
    return times(math.sqrt(key.shape[-2] / n_trained), query, key, value)


def only_the_new_length(query, key, value, n_trained):
    return times(math.log(key.shape[-2]), query, key, value)


def scaled_weights(query, key, value, n_trained):
    return times(1, query, key, value) * math.log(key.shape[-2]) / math.log(n_trained)


def longer_cases(seed: int) -> list[tuple]:
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for n, n_trained, batch in ((7, 7, ()), (9, 3, (2,)), (4, 64, ()), (1, 12, ())):
        shapes = ((6, 5), (n, 5), (n, 3))
        cases.append((*(2 * torch.randn(*batch, *shape, generator=generator) for shape in shapes), n_trained))
    return cases


def judge_longer(case, got, want):
    n, n_trained = case[1].shape[-2], case[3]
    assert isinstance(got, torch.Tensor) and got.shape == want.shape, "There is one output a query. How long is it?"
    got = got.to(want.dtype)
    assert got.isfinite().all() or n > 1, (
        "There is a single key, and ln 1 = 0. What are its weight and its output then?"
    )
    assert got.isfinite().all(), "Something is infinite or NaN. Which logarithm may be 0?"
    close = torch.allclose(got, want, atol=1e-4)
    assert close or n != n_trained, (
        "As many keys as in training should give ordinary attention. Is n the number of keys, and is the root still there?"
    )
    assert close or n < n_trained, (
        "9 keys instead of 3: ln 9 is twice ln 3. Are the logits doubled, and not the weights or the output?"
    )
    assert close or n == 1, (
        "4 keys instead of 64: ln 4 is a third of ln 64. Do you keep the factor from falling, or turn it round?"
    )
    assert close, "What is the weighted mean of a single value?"


longer_than_trained = Code(
    number="4.4",
    title="Longer than in training",
    minutes=15,
    difficulty="medium",
    points=3,
    needs=("4.3",),
    statement=(
        "A lead that was learned at $n_\\text{trained}$ tokens is too small for more. Write "
        "`attend_longer(query, key, value, n_trained)`, which multiplies the scaled logits by "
        "$\\ln n / \\ln n_\\text{trained}$, where $n$ is the number of keys, and returns the heads' outputs. Query and key "
        "are `(…, n_query, d_k)` and `(…, n, d_k)`, the value `(…, n, d_v)`. With $n = n_\\text{trained}$ it must equal "
        "ordinary attention; fewer keys make the logits smaller, and a single key must still work."
    ),
    hint="For one key the factor is zero. What are the weights of a single key, whatever its logit?",
    name="attend_longer",
    starter="def attend_longer(query, key, value, n_trained):\n    ...",
    make=longer_cases,
    compare=judge_longer,
    solution=attend_longer,
    wrong={
        "upside down": (upside_down, "doubled"),
        "counts queries": (counts_queries, "number of keys"),
        "no root": (lambda q, k, v, n: attend_longer(q * math.sqrt(q.shape[-1]), k, v, n), "root still there"),
        "no factor": (lambda q, k, v, n: times(1, q, k, v), "doubled"),
        "never below one": (never_below_one, "from falling"),
        "logarithm of the quotient": (quotient_of_lengths, "doubled"),
        "root of the quotient": (root_of_the_quotient, "doubled"),
        "not divided by ln n_trained": (only_the_new_length, "ordinary attention"),
        "scales the output": (scaled_weights, "not the weights or the output"),
    },
)


def attend_stream(query, blocks):
    largest = torch.full_like(query[..., :1], -math.inf)
    total = mixture = 0
    for key, value in blocks:
        logits = query @ key.mT / math.sqrt(query.shape[-1])
        larger = torch.maximum(largest, logits.amax(dim=-1, keepdim=True))
        weights, shrink = torch.exp(logits - larger), torch.exp(largest - larger)
        total = total * shrink + weights.sum(dim=-1, keepdim=True)
        mixture = mixture * shrink + weights @ value
        largest = larger
    return mixture / total


def scored(query, key):
    return query @ key.mT / math.sqrt(query.shape[-1])


def never_subtracts(query, blocks):
    total = mixture = 0
    for key, value in blocks:
        weights = scored(query, key).exp()
        total, mixture = total + weights.sum(-1, keepdim=True), mixture + weights @ value
    return mixture / total


def never_shrinks(query, blocks):
    total = mixture = 0
    for key, value in blocks:
        logits = scored(query, key)
        weights = (logits - logits.amax(-1, keepdim=True)).exp()
        total, mixture = total + weights.sum(-1, keepdim=True), mixture + weights @ value
    return mixture / total


def shrinks_the_total(query, blocks):
    total, mixture, largest = 0, 0, torch.full_like(query[..., :1], -math.inf)
    for key, value in blocks:
        logits = scored(query, key)
        larger = torch.maximum(largest, logits.amax(-1, keepdim=True))
        weights = (logits - larger).exp()
        total = total * (largest - larger).exp() + weights.sum(-1, keepdim=True)
        mixture, largest = mixture + weights @ value, larger
    return mixture / total


def largest_of_the_block(query, blocks):
    total, mixture, largest = 0, 0, torch.full_like(query[..., :1], -math.inf)
    for key, value in blocks:
        logits = scored(query, key)
        larger = logits.amax(-1, keepdim=True)
        weights, shrink = (logits - larger).exp(), (largest - larger).exp()
        total, mixture = total * shrink + weights.sum(-1, keepdim=True), mixture * shrink + weights @ value
        largest = larger
    return mixture / total


def begins_with_zero(query, blocks):
    total, mixture, largest = 0, 0, torch.zeros_like(query[..., :1])
    for key, value in blocks:
        logits = scored(query, key)
        larger = torch.maximum(largest, logits.amax(-1, keepdim=True))
        weights, shrink = (logits - larger).exp(), (largest - larger).exp()
        total, mixture = total * shrink + weights.sum(-1, keepdim=True), mixture * shrink + weights @ value
        largest = larger
    return mixture / total


def mean_of_the_blocks(query, blocks):
    outputs = [torch.softmax(scored(query, key), -1) @ value for key, value in blocks]
    return sum(outputs) / len(outputs)


def keeps_the_blocks(query, blocks):
    keys, values = zip(*blocks, strict=True)
    return torch.softmax(scored(query, torch.cat(keys, dim=-2)), dim=-1) @ torch.cat(values, dim=-2)


def streams_without_root(query, blocks):
    return attend_stream(query * math.sqrt(query.shape[-1]), blocks)


def stream_cases(seed: int) -> list[tuple]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=generator)

    sizes = (4, 1, 6) if seed % 2 == 0 else (6, 1, 4)
    cases = [("one", normal(3, 5), normal(6, 5), normal(6, 7), (6,))]
    cases += [("several", normal(3, 5), normal(11, 5), normal(11, 7), sizes)]
    high = torch.tensor([0.0, 200, 100] if seed % 2 == 0 else [100.0, -100, 200])
    high = high.repeat_interleave(torch.tensor(sizes))[:, None]
    cases += [("high", normal(3, 5).abs() + 1, normal(11, 5) + high, normal(11, 7), sizes)]
    cases += [("low", normal(3, 5).abs() + 1, normal(4, 5) - 200, normal(4, 7), (4,))]
    return cases


def from_a_stream(answer, what, query, key, value, sizes):
    room = torch.empty(2, max(sizes), key.shape[-1]), torch.empty(2, max(sizes), value.shape[-1])

    def blocks():
        start = 0
        for size in sizes:
            for place, tensor in zip(room, (key, value), strict=True):
                place.fill_(math.nan)
                place[:, :size] = tensor[:, start : start + size]
            yield room[0][:, :size], room[1][:, :size]
            start += size
        for place in room:
            place.fill_(math.nan)

    return answer(query, blocks())


def judge_stream(case, got, want):
    what, query, key, value, sizes = case
    assert isinstance(got, torch.Tensor) and got.shape == want.shape, "There is one output a query. How long is it?"
    got = got.to(want.dtype)
    finite, close = got.isfinite().all(), torch.allclose(got, want, atol=1e-4)
    assert close or what != "one", (
        "A single block should give ordinary attention. Is the softmax complete, and is the product divided by the root?"
        if finite
        else "The logits are small, and yet something is NaN. Did you keep a block that had been overwritten?"
    )
    assert finite or what != "several", (
        "The logits are small, and yet something is NaN. Did you keep a block that had been overwritten?"
    )
    if not close and what == "several":
        logits = query @ key.mT / math.sqrt(query.shape[-1])
        parts = zip(logits.split(sizes, dim=-1), value.split(sizes, dim=-2), strict=True)
        mean = sum(torch.softmax(logit, dim=-1) @ part for logit, part in parts) / len(sizes)
        assert not torch.allclose(got, mean, atol=1e-4), (
            "One block has a single key, another has six. Should each block count alike in the mean?"
        )
    assert close or what != "several", (
        "A later block has a larger logit than those before. Which of the sums so far were made with the old one, and "
        "what must you multiply them by?"
    )
    assert close or what != "high", (
        "A logit may be several hundred here. Is the largest one *so far* subtracted, also when the next block has only "
        "smaller ones?"
    )
    assert close, "All logits are far below 0 here. With which largest logit do you begin?"


attention_from_a_stream = Code(
    number="4.5",
    title="Block by block",
    minutes=30,
    difficulty="hard",
    points=4,
    needs=("2.4", "What frameworks do"),
    statement=(
        "A fused kernel never holds the $n^2$ weights, because it goes through the keys block by block. Write "
        "`attend_stream(query, blocks)` with `query` of shape `(B, n_query, d_k)`. The iterator `blocks` gives pairs "
        "`(key, value)` of shapes `(B, m, d_k)` and `(B, m, d_v)`, where `m` differs from block to block. It can be "
        "gone through *once*, and each block is overwritten by the next, so you can't collect them. Return what attention "
        "over all keys gives: the softmax of $q^\\top k/\\sqrt{d_k}$, times the values, `(B, n_query, d_v)`. Logits of "
        "several hundred must not overflow."
    ),
    hint=(
        "Keep three things for each query: the largest logit so far, the sum of the exponentials and the weighted sum of "
        "the values. When a larger logit comes, the last two were made with the wrong one. What corrects them?"
    ),
    name="attend_stream",
    starter="def attend_stream(query, blocks):\n    for key, value in blocks:\n        ...",
    forbidden=frozenset({"cat", "concat", "concatenate", "stack", "vstack", "hstack", "dstack", "column_stack",
                         "scaled_dot_product_attention", "flex_attention"}),
    make=stream_cases,
    ask=from_a_stream,
    compare=judge_stream,
    solution=attend_stream,
    wrong={
        "subtracts nothing": (never_subtracts, "so far"),
        "each block by its own largest": (never_shrinks, "made with the old one"),
        "shrinks the total alone": (shrinks_the_total, "made with the old one"),
        "the largest of the block": (largest_of_the_block, "so far"),
        "begins with zero": (begins_with_zero, "do you begin"),
        "mean of the blocks": (mean_of_the_blocks, "count alike"),
        "keeps the blocks": (keeps_the_blocks, "overwritten"),
        "no root": (streams_without_root, "divided by the root"),
    },
    equivalent=("total = mixture = 1",),
)  # fmt: skip


# fmt: off
class Window(torch.nn.Module):
    """Attention that should look as far back as a convolution over `window`."""

    def __init__(self, d_model, n, window):
        super().__init__()
        self.window = window
        self.qkv = torch.nn.Linear(d_model, 3 * d_model)
        self.output = torch.nn.Linear(d_model, d_model)
        distance = torch.arange(n)[:, None] - torch.arange(n)
        visible = (distance > 0) & (distance <= window)
        self.register_buffer("visible", visible)  # (query, key)

    def forward(self, x):  # (B, n, d_model)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        logits = q @ k.mT / math.sqrt(q.shape[-1])
        logits = logits.masked_fill(~self.visible, -math.inf)
        return self.output(torch.softmax(logits, dim=-1) @ v)
# fmt: on


def mend(layer):
    place = torch.arange(len(layer.visible))
    distance = place[:, None] - place
    layer.visible = (distance >= 0) & (distance < layer.window)


def sees(rule):
    """A mend by a rule of distance and window."""

    def mend(layer):
        place = torch.arange(len(layer.visible))
        layer.visible = rule(place[:, None] - place, layer.window)

    return mend


def window_cases(seed: int) -> list[tuple[int, ...]]:
    return [(6, 11, 3, 4, seed), (4, 13, 5 + seed % 2, 2, seed + 1)]


def windows(answer, d_model, n, window, second, seed):
    generator = torch.Generator().manual_seed(seed)
    layers = [Window(d_model, n, width) for width in (window, second)]
    for layer in layers:
        layer.double()
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        answer(layer)
    x = torch.randn(1, n, d_model, generator=generator).double()
    others = x.repeat(n, 1, 1)  # in each of them one token is another
    others[range(n), range(n)] += 1 + torch.rand(n, d_model, generator=generator)
    with torch.no_grad():
        one = layers[0](x)[0]
        felt = (layers[0](others) - one).abs().amax(dim=-1).mT > 1e-9  # (output, input)
        both = torch.nn.Sequential(*layers)
        reach = (both(others) - both(x)).abs().amax(dim=-1).mT[-1] > 1e-9
    return one, felt, reach


def judge_windows(case, got, want):
    n, window = case[1:3]
    alike = isinstance(got, tuple) and len(got) == len(want)
    alike = alike and all(isinstance(x, torch.Tensor) for x in got)
    alike = alike and all(x.shape == y.shape and x.dtype == y.dtype for x, y in zip(got, want, strict=True))
    assert alike, "One output a token comes out of this layer. What did you change in it?"
    one, felt, reach = got
    assert one.isfinite().all(), "Some query may see no key, and its row is NaN. Which tokens may the first one see?"
    distance = torch.arange(n)[:, None] - torch.arange(n)
    assert not felt[distance < 0].any(), "A token feels one that comes after it. Is a distance negative here?"
    assert felt[distance == 0].all(), "A convolution sees the token itself as well. Which tokens here do not?"
    far = distance[felt].max()
    assert far < window, "A convolution over `window` neighbours counts the token itself. How far back does it look?"
    assert far == window - 1 and torch.equal(felt, want[1]), (
        "The layer looks less far back than the convolution, or skips a token. Which distances does a window hold?"
    )
    assert torch.equal(reach, want[2]), (
        "One layer is right, and two of different windows have another reach than two convolutions. Which window did you take?"
    )
    assert torch.allclose(one, want[0], atol=1e-4), (
        "Each token sees the right ones. Has something else than the mask changed?"
    )


def only_the_first(layer):
    layer.visible[0, 0] = True


def every_row_sees_itself(layer):
    layer.visible |= torch.eye(len(layer.visible), dtype=torch.bool)


def of_fixed_width(layer):
    place = torch.arange(len(layer.visible))
    distance = place[:, None] - place
    layer.visible = (distance >= 0) & (distance < 3)


def silences_the_output(layer):
    mend(layer)
    torch.nn.init.zeros_(layer.output.bias)


lost_window = Mend(
    number="4.6",
    title="A window with two faults",
    minutes=15,
    difficulty="medium",
    points=3,
    needs=("The path: what the last token feels of the first",),
    statement=(
        "A layer `Window(d_model, n, window)` should see what a causal convolution over `window` neighbours sees: the token "
        "itself and those before it, `window` tokens in all. Then $L$ such layers reach back $L\\,(k-1)$ tokens for a "
        "window of $k$. Draw one, and read what `attntut.diagnose(layer, x, loss)` finds, with random tokens `x` of shape "
        "`(B, n, d_model)` and `loss = lambda y: y.square().mean()`. The finding has one cause, but the mask has two faults. "
        "Write `mend(layer)`, which mends the mask of a layer of any window in place, and changes nothing else."
    ),
    hint="Write down which distances $i - j$ a window of 3 should hold, and which the code takes. What does token 0 see?",
    name="mend",
    starter="def mend(layer):\n    ...",
    setup=(Window,),
    make=window_cases,
    ask=windows,
    compare=judge_windows,
    solution=mend,
    wrong={
        "nothing": (lambda layer: None, "may see no key"),
        "only the first token": (only_the_first, "sees the token itself"),
        "sees itself, one too many": (every_row_sees_itself, "counts the token itself"),
        "looks ahead": (sees(lambda far, window: far.abs() < window), "comes after it"),
        "everything before": (sees(lambda far, window: far >= 0), "counts the token itself"),
        "shorter by one": (sees(lambda far, window: (far >= 0) & (far < window - 1)), "less far back"),
        "keys for queries": (sees(lambda far, window: (far <= 0) & (far > -window)), "comes after it"),
        "one width for all": (of_fixed_width, "Which window"),
        "changes a bias": (silences_the_output, "something else"),
    },
)


# fmt: off
def percent(forget_bias, d, biases=True, size=0.1, near=20, far=70):
    """By how many percent the gradient at a token falls, a step back."""
    falls = []
    for seed in range(4):
        torch.manual_seed(seed)
        layer = torch.nn.LSTM(d, d, batch_first=True).double()
        with torch.no_grad():  # torch's order of the gates: i, f, g, o
            for bias in (layer.bias_ih_l0, layer.bias_hh_l0):
                bias *= biases
            layer.bias_ih_l0[d : 2 * d] += forget_bias
        x = size * torch.randn(4, 80, d, dtype=torch.float64)
        x.requires_grad_()
        u = torch.randn(4, d, dtype=torch.float64)
        layer(x)[0][:, -1].backward(u)
        felt = x.grad.norm(dim=-1).mean(dim=0).flip(0)  # by distance
        falls.append((felt[far] / felt[near]).item() ** (1 / (far - near)))
    return 100 * (1 - sum(falls) / len(falls))
# fmt: on


@functools.cache
def measured(forget_bias: float, d: int, biases: bool = True, size: float = 0.1) -> float:
    with torch.random.fork_rng(devices=[]):
        return percent(forget_bias, d, biases, size)


def predicted(forget_bias: float) -> float:
    return 100 * (1 - 1 / (1 + math.exp(-forget_bias)) - 1 / (4 * math.sqrt(3)))


long_memory = Explain(
    number="4.7",
    title="A long memory",
    minutes=20,
    difficulty="hard",
    points=2,
    manual=3,
    needs=("The path: what the last token feels of the first",),
    statement=(
        "An LSTM of width <<d>> gets <<forget_bias>> added to the bias of its forget gates. By how many percent should the "
        "gradient fall with each token, by the chapter's formula for small inputs? Then measure it with "
        "`percent(<<forget_bias>>, <<d>>)`. Answer with both numbers, in percent. Explain which assumption gives way when the "
        "memory is long; `percent(…, biases=False)` and `percent(…, size=0.001)` help to tell."
    ),
    hint="Are smaller inputs enough to keep the state $c$ small? What else is added to it at each step, and how much of it does a long memory collect?",
    rubric=(
        "The prediction is 100 (1 − σ(b) − 1/(4√3)) (1 point). Smaller inputs change little, while zero biases take away "
        "half of the difference or more, so it is the biases (1): at each step they add the same to the state, which a "
        "long memory collects, so that c is no longer small, its tanh is no longer steep, and h < c/2 (1)."
    ),
    setup=(percent,),
    parameters={"forget_bias": (1.7, 1.65, 1.6, 1.55), "d": (64, 48, 56)},
    solve=measured,
    traps={
        "That is the formula's number. What does the LSTM do?": lambda forget_bias, d: predicted(forget_bias),
        "That is what is left. By how much does it fall?": lambda forget_bias, d: 100 - measured(forget_bias, d),
        "Is that a percentage, or a share?": lambda forget_bias, d: measured(forget_bias, d) / 100,
        "You set all other biases to zero. Does torch?": lambda forget_bias, d: measured(forget_bias, d, False),
        "That is an LSTM as torch makes it. Where is the forget bias?": lambda forget_bias, d: measured(0, d),
        "That is one minus the forget gate alone. What did `percent` give?": (
            lambda forget_bias, d: 100 / (1 + math.exp(forget_bias))
        ),
    },
    ask="Is it the number that `percent` gives with this forget bias and this width, and nothing else changed?",
    rtol=0.02,
    wrong={"unit inputs": lambda forget_bias, d: measured(forget_bias, d, size=1.0)},
)

EXERCISES = [
    far_away, crossing, needle_in_more_hay, longer_than_trained, attention_from_a_stream, lost_window, long_memory,
]  # fmt: skip
