"""Exercises of chapter 3, *Joint representation and heads*."""

import math
from collections import Counter

import torch
from torch import Tensor, nn

from exercises.exercise import Choice, Code, Explain, Mend, Number

places_alike = Choice(
    number="3.1",
    title="Places alike",
    minutes=3,
    difficulty="easy",
    points=1,
    needs=("Order is not in it",),
    statement=(
        "A layer of attention without positions, with random matrices, reads the four letters `aaba`, first without a mask "
        "and then under a causal one. Which places, counted from 0, give the same output as some other place?"
    ),
    hint="For each place, write down its letter and the letters that it sees. How much weight does each *kind* of letter get?",
    options={
        "0, 1 and 3 without a mask; none under a causal mask": (
            "Under the mask, place 0 averages over one a and place 1 over two. What is the average of two equal vectors?"
        ),
        "0, 1 and 3 without a mask; the same under a causal mask": (
            "Under the mask, place 3 sees the b. Do the two places before it?"
        ),
        "0 and 1 without a mask; 0 and 1 under a causal mask": (
            "Without a mask every place sees the same four letters. In what does the last a differ from the first?"
        ),
        "none without a mask; none under a causal mask": (
            "Nothing tells this layer where a letter stands. Of what is its output made, without a mask?"
        ),
        "0, 1 and 3 without a mask; 0 and 1 under a causal mask": "",
        "all four without a mask; 0 and 1 under a causal mask": (
            "All see one bag, that is true. But does a b ask the same query as an a?"
        ),
    },
)


def dot(one: str, two: str) -> int:
    """The product of the letter counts of two words."""
    counts = Counter(two)
    return sum(counts[letter] for letter in one)


def cosine(one: str, two: str) -> float:
    return dot(one, two) / math.sqrt(dot(one, one) * dot(two, two))


def letters(word: str) -> str:
    return "".join(sorted(set(word)))


def cosine_added(one: str, two: str) -> float:
    share = {pair: dot(*pair) / (len(pair[0]) * len(pair[1])) for pair in ((one, two), (one, one), (two, two))}
    return (1 + share[one, two]) / math.sqrt((1 + share[one, one]) * (1 + share[two, two]))


last_letters = Number(
    number="3.2",
    title="Two last letters",
    minutes=4,
    difficulty="easy",
    points=2,
    needs=("One letter in two lines",),
    statement=(
        "The words *<<one>>* and *<<two>>* end with the same letter. A layer of attention with small logits, without "
        "positions, reads each of them. What is the cosine between the outputs at the two last letters, if the embeddings are "
        "wide and random?"
    ),
    hint="Count how often each letter occurs in each word.",
    parameters={
        "one": ("passion", "cheese", "apple", "settle", "science", "tension",
                "success", "mirror", "matter", "gertrude", "tomorrow", "silence"),
        "two": ("lesson", "coffee", "eagle", "bottle", "sense", "mission",
                "witness", "terror", "sister", "needle", "window", "steeple"),
    },
    solve=cosine,
    traps={
        "Did you count a letter that occurs twice only once? How often does its value enter the mean?": (
            lambda one, two: cosine(letters(one), letters(two))
        ),
        "That is the product of the counts. How long are the two vectors?": dot,
        "That is the product of two means. Is it a cosine already?": lambda one, two: dot(one, two) / len(one) / len(two),
        "Did you divide by the lengths, or by their squares?": (
            lambda one, two: dot(one, two) / (dot(one, one) * dot(two, two))
        ),
        "The two letters had one embedding before the layer. Of what are their outputs made?": lambda one, two: 1,
        "That is what a block gives, which adds the output to the letter. Is it asked for here?": cosine_added,
        "Does the last letter attend to itself, too?": lambda one, two: cosine(one[:-1], two[:-1]),
    },
    ask="What are $f^\\top f'$, $f^\\top f$ and $f'^\\top f'$ for the counts $f$ and $f'$ of the letters?",
)  # fmt: skip


def share_of_one_head(a: int, b: int, c: int, e: int) -> float:
    return max(a**2 + c**2, b**2 + e**2) / (a**2 + b**2 + c**2 + e**2)


four_neighbours = Number(
    number="3.3",
    title="Four neighbours",
    minutes=8,
    difficulty="medium",
    points=2,
    needs=("Two heads can look at two places",),
    statement=(
        "The target of the edge detector is now\n\n"
        "$$\ny_t = <<a>> \\cdot x_{t-2} - <<b>> \\cdot x_{t-1} + <<c>> \\cdot x_{t+1} - <<e>> \\cdot x_{t+2}\n$$\n\n"
        "on independent Gaussian inputs. One head looks by place only, and its matrices multiply a value by $g$, as in the "
        "chapter. Which share of the variance of $y_t$ can it explain at most? Derive it. (Then you may train such a head: "
        "change the target in `explained`.)"
    ),
    hint="Redo the bound: the error is $\\sum_k (g p_k - a_k)^2$ over four places, with $p_k \\ge 0$. Which terms can $g > 0$ make zero?",
    parameters={"a": (5, 1, 2, 1, 5, 2), "b": (2, 2, 1, 3, 3, 5), "c": (1, 5, 3, 5, 1, 3), "e": (3, 2, 5, 2, 2, 1)},
    solve=share_of_one_head,
    traps={
        "Must one head give all its weight to one place?": (
            lambda a, b, c, e: max(a, b, c, e) ** 2 / (a**2 + b**2 + c**2 + e**2)
        ),
        "That is the bound for two neighbours of one size. What is it when the four are not alike?": (
            lambda a, b, c, e: 1 / 2
        ),
        "That is the share of what the head must give up. Or could it choose better which sign to serve?": (
            lambda a, b, c, e: 1 - share_of_one_head(a, b, c, e)
        ),
        "Weights are not negative, and all values pass one matrix. How does a single head subtract?": (
            lambda a, b, c, e: 1
        ),
        "A share of the variance is asked for. How does the variance of a term depend on its coefficient?": (
            lambda a, b, c, e: max(a + c, b + e) / (a + b + c + e)
        ),
        "Must the head weigh its two places evenly?": (
            lambda a, b, c, e: max(a + c, b + e) ** 2 / 2 / (a**2 + b**2 + c**2 + e**2)
        ),
    },
    ask="Which terms of the error can be zero at once, for a positive and for a negative $g$? And what is the variance of $y_t$?",
    wrong={
        "nothing": lambda a, b, c, e: 0.25,
        "the two largest, whatever their sign": (
            lambda a, b, c, e: sum(sorted((a**2, b**2, c**2, e**2))[2:]) / (a**2 + b**2 + c**2 + e**2)
        ),
        "sums before squares": (
            lambda a, b, c, e: max((a + c) ** 2, (b + e) ** 2) / ((a + c) ** 2 + (b + e) ** 2)
        ),
    },
)  # fmt: skip


def added_by_heads(heads, weight, bias):
    n_heads, d_head = heads.shape[1], heads.shape[3]
    columns = weight.view(-1, n_heads, d_head).transpose(0, 1)  # (h, d, d_head)
    return heads @ columns.mT + bias / n_heads


def with_columns(heads: Tensor, columns: Tensor, bias: Tensor) -> Tensor:
    """What heads add that meet these parts of the output matrix, (h, d, d_head)."""
    return heads @ columns.mT + bias / heads.shape[1]


def rows_for_columns(heads: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    h, d_head = heads.shape[1], heads.shape[3]
    return with_columns(heads, weight.view(h, d_head, -1).mT, bias)


def interleaved(heads: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    h, d_head = heads.shape[1], heads.shape[3]
    return with_columns(heads, weight.view(-1, d_head, h).movedim(2, 0), bias)


def even_shares(heads: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    total = added_by_heads(heads, weight, bias).sum(dim=1, keepdim=True)
    return (total / heads.shape[1]).expand(-1, heads.shape[1], -1, -1)


def bias_of_the_first(heads: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    shares = added_by_heads(heads, weight, 0 * bias)
    shares[:, 0] += bias
    return shares


def bias_times(factor: float, heads: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return added_by_heads(heads, weight, factor * bias)


def heads_in_turn(heads: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return added_by_heads(heads, weight, bias).transpose(1, 2)


def heads_cases(seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((5, 3, 4, 2, 6), (3, 2, 4, 5, 10))  # B, h, n, d_head, d
    return [
        tuple(torch.randn(*shape, generator=generator) for shape in ((B, h, n, d_head), (d, d), (d,)))
        for B, h, n, d_head, d in shapes
    ]


def judge_heads(case, got, want):
    heads, weight, bias = case
    assert isinstance(got, torch.Tensor) and got.shape == want.shape, (
        "Every head adds to every token a vector as wide as the stream. Which shape results, and which dimension is the "
        "heads'?"
    )
    got = got.double()
    missing = (want.sum(dim=1) - got.sum(dim=1)).reshape(-1, len(bias))
    if missing.abs().max() > 1e-4:
        same = torch.allclose(missing, missing[0].expand_as(missing), atol=1e-4)
        assert not same, "All tokens lack the same vector, or have it too often. How often is the bias added?"
        raise AssertionError(
            "The heads together do not give the layer's output. Joined in order, which columns of the matrix does each "
            "head meet?"
        )
    apart = (got - want).transpose(1, 2).reshape(-1, heads.shape[1], len(bias))
    assert apart.abs().max() < 1e-4 or not torch.allclose(apart, apart[0].expand_as(apart), atol=1e-4), (
        "The sum is right, but the heads have unequal parts of the bias. How is it to be shared?"
    )
    assert apart.abs().max() < 1e-4, (
        "The sum is right, the shares are not. What would the layer give if all other heads gave 0?"
    )


what_each_adds = Code(
    number="3.4",
    title="What each head adds",
    minutes=12,
    difficulty="medium",
    points=3,
    needs=("The whole model in 40 lines",),
    statement=(
        "The output matrix mixes the joined heads, but its product with them is a *sum* over the heads. Write "
        "`added_by_heads(heads, weight, bias)`, which takes it apart: `heads` of shape `(B, h, n, d_head)` is what "
        "`Attention` of this chapter computes under this name, and `weight`, `(d, d)`, and `bias`, `(d,)`, are those of its "
        "`output`, a `nn.Linear`. Return `(B, h, n, d)`: what each head adds to the stream of each token. Every head gets an "
        "equal part of the bias, so that the sum over the heads is the output of the layer."
    ),
    hint="`nn.Linear` computes $W_o x + b$. Write $W_o$ as blocks of columns, and $x$ as the heads, one below the other.",
    name="added_by_heads",
    starter="def added_by_heads(heads, weight, bias):\n    ...",
    make=heads_cases,
    compare=judge_heads,
    solution=added_by_heads,
    wrong={
        "rows for columns": (rows_for_columns, "which columns"),
        "the transposed matrix": (lambda x, w, b: added_by_heads(x, w.mT.contiguous(), b), "which columns"),
        "interleaved": (interleaved, "which columns"),
        "the whole bias for each": (lambda x, w, b: bias_times(x.shape[1], x, w, b), "How often is the bias"),
        "no bias": (lambda x, w, b: bias_times(0, x, w, b), "How often is the bias"),
        "the bias to the first": (bias_of_the_first, "parts of the bias"),
        "even shares": (even_shares, "all other heads"),
        "the output only": (lambda x, w, b: added_by_heads(x, w, b).sum(dim=1), "Which shape"),
        "heads in the place of tokens": (heads_in_turn, "Which shape"),
    },
)


def is_equivariant(layer, x):
    y = layer(x)
    for _ in range(5):
        order = torch.randperm(x.shape[1])
        difference = layer(x[:, order]) - y[:, order]
        if difference.abs().max() > 1e-4 * y.abs().max():
            return False
    return True


def holds_for(layer, x: Tensor, *orders: Tensor, limit: float = 1e-4) -> bool:
    y = layer(x)
    return all((layer(x[:, order]) - y[:, order]).abs().max() <= limit * y.abs().max() for order in orders)


def some_orders(x: Tensor, dim: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randperm(x.shape[dim], generator=generator) for _ in range(10)]


def shift_only(layer, x: Tensor) -> bool:
    return holds_for(layer, x, *(torch.arange(x.shape[1]).roll(k) for k in range(x.shape[1])))


def two_tokens_only(layer, x: Tensor) -> bool:
    return holds_for(layer, x, torch.tensor([1, 0, *range(2, x.shape[1])]))


def invariant(layer, x: Tensor) -> bool:
    return all((layer(x[:, order]) - layer(x)).abs().max() < 1e-4 * layer(x).abs().max() for order in some_orders(x))


def to_the_last_bit(layer, x: Tensor) -> bool:
    return all(torch.equal(layer(x[:, order]), layer(x)[:, order]) for order in some_orders(x))


def absolutely(layer, x: Tensor) -> bool:
    return all((layer(x[:, order]) - layer(x)[:, order]).abs().max() < 1e-4 for order in some_orders(x))


def by_torchs_limits(layer, x: Tensor) -> bool:
    return all(torch.allclose(layer(x[:, order]), layer(x)[:, order]) for order in some_orders(x))


def largest_without_abs(layer, x: Tensor) -> bool:
    y = layer(x)
    return all((layer(x[:, order]) - y[:, order]).max() <= 1e-4 * y.max() for order in some_orders(x))


def sequences_reordered(layer, x: Tensor) -> bool:
    return all(torch.allclose(layer(x[order]), layer(x)[order]) for order in some_orders(x, dim=0))


def layer_cases(seed: int) -> list[tuple[Tensor, float, int]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {(3, 7, 5): 1.0, (2, 9, 4): 1e5, (4, 6, 3): 1e-6}
    return [(torch.randn(*shape, generator=generator), scale, seed) for shape, scale in shapes.items()]


def verdicts(answer, x, scale, seed):
    n, d = x.shape[1:]
    matrices = torch.randn(3, d, d, generator=torch.Generator().manual_seed(seed)) / math.sqrt(d)
    future = torch.full((n, n), -math.inf).triu(1)
    middle = (torch.arange(n) == n // 2).float()[:, None]

    def attention(x, mask):
        query, key, value = (x @ matrix for matrix in matrices)
        return torch.softmax(query @ key.mT / math.sqrt(d) + mask, dim=-1) @ value

    layers = {
        "each alone": lambda x: -3 * x.abs(),
        "attention": lambda x: attention(x, 0 * future.tril()),
        "positions": lambda x: x + torch.linspace(-1, 1, n)[:, None],
        "causal": lambda x: attention(x, future),
        "circle": lambda x: x / 2 + (x.roll(1, dims=1) + x.roll(-1, dims=1)) / 4,
        "faint": lambda x: x + 0.02 * middle,
        "rough": lambda x: x + 1e-5 * middle,
    }
    return {name: answer(lambda x, f=f: scale * f(x), x.clone()) for name, f in layers.items()}


def judge_verdicts(case, got, want):
    assert isinstance(got, dict) and set(got) == set(want), "What does your function return for each layer?"
    told = {}
    for name, verdict in got.items():
        if isinstance(verdict, torch.Tensor) and verdict.dtype == torch.bool and verdict.numel() == 1:
            verdict = verdict.item()
        assert verdict is True or verdict is False, "Is it True or False that a layer is equivariant?"
        told[name] = verdict
    if case[1] != 1:
        assert told == want, (
            "The outputs of this layer are all very large, or very small. When is a difference between them small?"
        )
    assert told["each alone"], (
        "This layer treats each token alone, and no output is above 0. With what do you compare, and which one is the largest?"
    )
    assert told["attention"], (
        "Attention without a mask. How exactly can two sums agree whose terms are in another order?"
    )
    assert told["rough"], "The outputs agree here to five digits. Which differences does the exercise call rounding?"
    assert not told["positions"], (
        "This layer adds to each token a vector of its place. Which dimension did you reorder?"
    )
    assert not told["causal"], "This layer has a causal mask. Which tokens changed places, and with what is compared?"
    assert not told["circle"], (
        "This convolution runs around a circle, so it commutes with reversals and with shifts. Which other orders are there?"
    )
    assert not told["faint"], (
        "This layer treats one token, in the middle, a little differently. Which tokens moved, and which difference do you "
        "allow?"
    )


order_unseen = Code(
    number="3.5",
    title="Does it see the order?",
    minutes=20,
    difficulty="hard",
    points=4,
    needs=("3.1", "Order is not in it"),
    statement=(
        "Write `is_equivariant(layer, x)`, which tests on the input `x` of shape `(B, n, d)` whether reordering the tokens "
        "before the layer gives the same as reordering them after it; return `True` or `False`. `layer` is any function of "
        "`x` that keeps its shape. It may see the order in one place only, or keep some orders and not others: a circular "
        "convolution with a symmetric kernel does. Its outputs may be of any scale. What is below $10^{-4}$ of the "
        "largest output is rounding."
    ),
    hint="Such a convolution commutes with reversals and with shifts. Which orders would you try, if you knew nothing of the layer?",
    name="is_equivariant",
    starter="def is_equivariant(layer, x):\n    ...",
    make=layer_cases,
    ask=verdicts,
    compare=judge_verdicts,
    solution=is_equivariant,
    wrong={
        "reversal only": (lambda f, x: holds_for(f, x, torch.arange(x.shape[1]).flip(0)), "reversals and with shifts"),
        "shifts only": (shift_only, "reversals and with shifts"),
        "two tokens only": (two_tokens_only, "Which tokens moved"),
        "nearly": (lambda f, x: holds_for(f, x, *some_orders(x), limit=0.05), "which difference do you"),
        "invariance": (invariant, "With what do you compare"),
        "to the last bit": (to_the_last_bit, "How exactly"),
        "sequences for tokens": (sequences_reordered, "Which dimension"),
        "one limit for all scales": (absolutely, "very large, or very small"),
        "torch's limits": (by_torchs_limits, "call rounding"),
        "no absolute values": (largest_without_abs, "which one is the largest"),
        "a number": (lambda f, x: (f(x.flip(1)) - f(x).flip(1)).abs().max().item(), "True or False"),
    },
    equivalent=("range(6)",),
)


# fmt: off
class Competing(torch.nn.Module):
    """An attention layer of several heads, with a slip."""

    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        for role in ("query", "key", "value", "output"):
            self.add_module(role, torch.nn.Linear(d_model, d_model))

    def forward(self, x):
        B, n, d = x.shape
        q, k, v = (f(x).view(B, n, self.n_heads, -1).transpose(1, 2)
                   for f in (self.query, self.key, self.value))
        logits = q @ k.mT / math.sqrt(q.shape[-1])  # (B, h, n, n)
        heads = torch.softmax(logits, dim=1) @ v
        return self.output(heads.transpose(1, 2).flatten(2))  # (B, n, d)
# fmt: on


def mend(layer):
    mended = torch.nn.MultiheadAttention(layer.output.in_features, layer.n_heads, batch_first=True)
    parts = (layer.query, layer.key, layer.value)
    with torch.no_grad():
        mended.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        mended.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        mended.out_proj.weight.copy_(layer.output.weight)
        mended.out_proj.bias.copy_(layer.output.bias)
    return mended


def built(layer: nn.Module, n_heads: int | None = None, batch_first: bool = True, order: tuple[int, ...] = (0, 1, 2)):
    """The mended layer with another number of heads, another axis, or its three parts in another order."""
    right = mend(layer)
    other = nn.MultiheadAttention(right.embed_dim, n_heads or right.num_heads, batch_first=batch_first)
    other.load_state_dict(right.state_dict())
    with torch.no_grad():
        for parameter in (other.in_proj_weight, other.in_proj_bias):
            parameter.copy_(torch.cat([parameter.chunk(3)[k] for k in order]))
    return other


def after(layer: nn.Module, change) -> nn.Module:
    mended = mend(layer)
    with torch.no_grad():
        change(mended)
    return mended


def transpose_parts(mended: nn.Module) -> None:
    mended.in_proj_weight.copy_(torch.cat([part.mT for part in mended.in_proj_weight.chunk(3)]))


def new_output(mended: nn.Module) -> None:
    mended.out_proj.reset_parameters()


def sizes_of_layers(seed: int) -> list[tuple[int, ...]]:
    return [(5, 4, 6, 3, seed), (3, 4, 10, 2, seed + 1)]  # B, n, d_model, n_heads


def torchs_layer(answer, B, n, d_model, n_heads, seed):
    torch.manual_seed(seed)
    layer = Competing(d_model, n_heads)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    x = torch.randn(B, n, d_model)
    other = torch.cat([x[:-1], torch.randn(1, n, d_model)])
    mended = answer(layer)
    if not isinstance(mended, torch.nn.MultiheadAttention):
        return None
    output = mended(x, x, x)[0]
    moved = (mended(other, other, other)[0] - output)[0].abs().max().item()
    return {"output": output, "moved": moved, "heads": mended.num_heads, "parts": dict(mended.named_parameters())}


def judge_torchs_layer(case, got, want):
    assert isinstance(got, dict) and set(got) == set(want), (
        "The slip is in the class, so the layer is built anew. Of which class of torch is what you return?"
    )
    output, parts = got["output"], got["parts"]
    assert isinstance(output, torch.Tensor) and output.shape == want["output"].shape, "Which shape has the output?"
    assert isinstance(got["moved"], float) and got["moved"] < 1e-5, (
        "The first sequence changes when the last one does. Which axis does torch take for the sequence?"
    )
    assert type(got["heads"]) is int and got["heads"] == want["heads"], "In how many ways did the layer look at once?"
    same = {
        name: isinstance(parts, dict)
        and isinstance(parts.get(name), torch.Tensor)
        and parts[name].shape == right.shape
        and torch.allclose(parts[name].double(), right.double(), atol=1e-5)
        for name, right in want["parts"].items()
    }
    right = torch.allclose(output.double(), want["output"].double(), atol=1e-4)
    assert right or same["in_proj_weight"], (
        "torch keeps query, key and value in one matrix. In which order, and is each as nn.Linear keeps it?"
    )
    assert right or same["in_proj_bias"], "The three weights are right. Query, key and value are W x + b. Where is b?"
    assert right or (same["out_proj.weight"] and same["out_proj.bias"]), (
        "The heads are right. What mixes them when they are joined, and what does it add?"
    )
    assert right, "The weights are right and the output is not. What else does torch's layer do with them?"


heads_compete = Mend(
    number="3.6",
    title="Heads that compete",
    minutes=15,
    difficulty="medium",
    points=3,
    needs=("The whole model in 40 lines", "What frameworks do"),
    statement=(
        "The layer of this chapter was written once more, with a slip. Draw a `Competing(32, 4)` and run "
        "`attntut.diagnose(layer, x, lambda y: y.square().mean())` on random `x` of shape `(5, 16, 32)`. What does it find? "
        "The class cannot be changed, but its weights are to be kept. Write `mend(layer)`, which returns a "
        "`torch.nn.MultiheadAttention` with copies of all its weights and biases, such that `mend(layer)(x, x, x)[0]` is "
        "what the layer should have computed for `x` of shape `(B, n, d_model)`. To be sure, run "
        "`attntut.diagnose(mend(layer), (x, x, x), lambda y: y[0].square().mean())`: how many heads and how many keys does "
        "its table count now?"
    ),
    hint="Print `dict(torch.nn.MultiheadAttention(32, 4).named_parameters())`. The rows of `in_proj_weight` are those of query, key and value, one below the other.",
    name="mend",
    starter="def mend(layer):\n    ...",
    setup=(Competing,),
    make=sizes_of_layers,
    ask=torchs_layer,
    compare=judge_torchs_layer,
    solution=mend,
    wrong={
        "the batch for the sequence": (lambda m: built(m, batch_first=False), "Which axis"),
        "one head": (lambda m: built(m, n_heads=1), "In how many ways"),
        "key before query": (lambda m: built(m, order=(1, 0, 2)), "In which order"),
        "value first": (lambda m: built(m, order=(2, 0, 1)), "In which order"),
        "transposed": (lambda m: after(m, transpose_parts), "as nn.Linear keeps it"),
        "not copied": (lambda m: nn.MultiheadAttention(m.output.in_features, m.n_heads, batch_first=True), "In which order"),
        "no biases": (lambda m: after(m, lambda new: new.in_proj_bias.zero_()), "Where is b"),
        "output not copied": (lambda m: after(m, new_output), "What mixes them"),
        "output without its bias": (lambda m: after(m, lambda new: new.out_proj.bias.zero_()), "what does it add"),
        "the layer itself": (lambda m: m, "which class of torch"),
        "nothing returned": (lambda m: None, "which class of torch"),
    },
)  # fmt: skip


def head_logits(h: int, n: int, sigma: float) -> Tensor:
    return sigma * torch.randn(1000, h, n, generator=torch.Generator().manual_seed(0))


def keys_shown(weights: Tensor) -> float:
    """The exponential of a row's entropy, averaged over the rows."""
    return (-torch.special.xlogy(weights, weights).sum(dim=-1)).exp().mean().item()


def keys_of_a_head(h: int, n: int, sigma: float) -> float:
    return keys_shown(torch.softmax(head_logits(h, n, sigma), dim=-1))


def keys_of_the_mean(h: int, n: int, sigma: float) -> float:
    return keys_shown(torch.softmax(head_logits(h, n, sigma), dim=-1).mean(dim=1))


mean_map = Explain(
    number="3.7",
    title="What the mean map shows",
    minutes=15,
    difficulty="medium",
    points=2,
    manual=3,
    needs=("What frameworks do",),
    statement=(
        "Each of <<h>> heads has logits over <<n>> keys, independent Gaussians of standard deviation <<sigma>>. The number "
        "of keys that a row of weights *shows* is the exponential of its entropy in nats. Draw 1000 rows for every head, "
        "and measure how many keys a row shows on average in a single head. From this number, predict how many the average "
        "of the <<h>> heads' weights shows, if no two heads look at the same key. Then measure that too. Give the second "
        "measurement, and explain in two or three sentences why it is larger than that of a head, and why it is not what "
        "you predicted."
    ),
    hint="Which rows would show $h$ times as many keys as one head? Can there be so many keys? And may two heads look at one key?",
    rubric=(
        "The prediction is h times the number of a single head (1 point). The heads choose different keys, so their mean is "
        "more even than each of them: entropy is concave (1). But they choose independently, so that some keys are chosen by "
        "several heads, their weights pile up, and there are only n keys to be shown (1)."
    ),
    parameters={"h": (4, 8, 4, 8, 8, 4), "n": (64, 64, 64, 64, 128, 128), "sigma": (2.5, 2.5, 3.0, 3.0, 3.0, 3.0)},
    solve=keys_of_the_mean,
    traps={
        "That is what a single head shows. What does the average of their weights show?": keys_of_a_head,
        "That is the prediction, if no two heads share a key. What do 1000 rows give?": (
            lambda h, n, sigma: h * keys_of_a_head(h, n, sigma)
        ),
        "That is the entropy. How many equal weights have it?": (
            lambda h, n, sigma: math.log(keys_of_the_mean(h, n, sigma))
        ),
        "Did you average the logits, or the weights?": (
            lambda h, n, sigma: keys_shown(torch.softmax(head_logits(h, n, sigma).mean(dim=1), dim=-1))
        ),
        "Here every key is shown. Are the logits alike, or did you average over the draws instead of the heads?": lambda h, n, sigma: n,
    },
    ask="Is the softmax taken in each head, are its weights averaged over the heads, and is the entropy −Σ p ln p one of a row?",
    rtol=0.05,
)  # fmt: skip

EXERCISES = [
    places_alike, last_letters, four_neighbours, what_each_adds, order_unseen, heads_compete, mean_map,
]  # fmt: skip
