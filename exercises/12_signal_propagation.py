"""Exercises of chapter 12, *Signal propagation*."""

import copy
import functools
import math
from collections import Counter
from itertools import groupby

import torch
from torch import Tensor, nn

from attntut import initialize_
from attntut.measure import token_cosine
from exercises.exercise import Choice, Code, Explain, Mend, Number

flat_map = Choice(
    number="12.1",
    title="A flat map, late",
    minutes=2,
    difficulty="easy",
    points=1,
    needs=("What alike tokens do to the map",),
    statement=(
        "You look into a fresh pre-LN model of 24 blocks of attention. All its $W_q$ and $W_k$ were drawn with the same "
        "σ. The attention maps of block 1 are uneven. Those of block 24 are nearly flat: their entropy is within 2 % of "
        "$\\ln n$. What do you conclude?"
    ),
    hint="On what does the variance of the logits in a row depend, besides σ?",
    options={
        "$W_q$ and $W_k$ of block 24 are too small and need a larger σ.": (
            "They have the σ of block 1, whose maps are uneven. What else goes into a logit?"
        ),
        "The stream is larger in block 24, and so its logits are larger.": (
            "What stands between the stream and the queries in pre-LN? And do larger logits make a map flatter?"
        ),
        "The skips have made each token's own part small.": (
            "What does a skip do to the own part? Is it small in itself, or beside something else?"
        ),
        "The tokens that block 24 reads are nearly alike.": "",
        "Block 24 has learned to look at all tokens.": "The model is fresh. What has it learned?",
        "Nothing. Without training every map is flat.": "Are the maps of block 1 flat? Has it been trained?",
    },
)

cubed_twice = Number(
    number="12.2",
    title="Two blocks without skips",
    minutes=4,
    difficulty="easy",
    points=2,
    needs=("Without skips: the difference is cubed",),
    statement=(
        "Blocks of attention without skips, each behind a LayerNorm, all matrices with $\\sigma^2 = 1/d$. The tokens have "
        "variance 1, an own part of $r = $ <<r>>, and differ in $N = $ <<N>> directions. How large is the own part after one "
        "block, and how large after two? Take it that the tokens still have variance 1 and still differ in $N$ directions "
        "after the first. Answer with two numbers. `1e-9` is a way to write one."
    ),
    hint="$r' = r^3/\\sqrt N$, and the second block reads the $r'$ that the first has written.",
    starter="answer = (..., ...)  # after one block, after two",
    parameters={"r": (0.2, 0.3, 0.25), "N": (16, 25, 9, 36)},
    solve=lambda r, N: (cube(r, N), cube(cube(r, N), N)),
    traps={
        "$r'^2$ is $r^6/N$. What stands in the denominator of $r'$?": (
            lambda r, N: (r**3 / N, (r**3 / N) ** 3 / N)
        ),
        "You have cubed it twice. What do the $N$ directions do, over which the difference is spread?": (
            lambda r, N: (r**3, r**9)
        ),
        "Is that the own part, or its square?": lambda r, N: (cube(r, N) ** 2, cube(cube(r, N), N) ** 2),
        "The first number is right. Does the second block shrink the own part by the same factor, or does it read a smaller one?": (
            lambda r, N: (cube(r, N), cube(r, N) ** 2 / r)
        ),
        "The first number is right. Where are the $N$ directions in the second block?": (
            lambda r, N: (cube(r, N), cube(r, N) ** 3)
        ),
        "How often does the own part stand in $\\delta_i'$: once in the value, and how often in the logit?": (
            lambda r, N: (r**2 / math.sqrt(N), (r**2 / math.sqrt(N)) ** 2 / math.sqrt(N))
        ),
        "Are the two numbers in the order that was asked for?": lambda r, N: (cube(cube(r, N), N), cube(r, N)),
    },
    ask="What is $r^3/\\sqrt N$, and what do you get when you put it in for $r$?",
)  # fmt: skip


def cube(r: float, N: int) -> float:
    """The own part after a block without a skip."""
    return r**3 / math.sqrt(N)


largest_branch = Number(
    number="12.3",
    title="The largest branch",
    minutes=8,
    difficulty="medium",
    points=2,
    needs=("With skips: the shared part doubles", "A branch divided by √L"),
    statement=(
        "A post-LN model of <<L>> blocks of attention reads <<n>> independent tokens. $W_v$ and $W_o$ are drawn by He's rule, "
        "$\\sigma^2 = 2/d$, and attention is uniform. How large may the branch scale $\\alpha$ be, so that at the end not "
        "more than half of a token's variance is shared?"
    ),
    hint=(
        "By what do $W_v$ and $W_o$ together multiply the variance of $\\bar x$? Then the shared part grows by one and the same "
        "factor in each block. By what in all, from $1/n$ to the size of the own part?"
    ),
    parameters={"L": (12, 24, 16), "n": (64, 128, 256, 512)},
    solve=lambda L, n: math.sqrt(n ** (1 / L) - 1) / 2,
    traps={
        "That is right for LeCun's rule. What do two of He's matrices make of a variance of 1?": (
            lambda L, n: math.sqrt(n ** (1 / L) - 1)
        ),
        "There are two matrices on the way of a value. By what does each multiply the variance?": (
            lambda L, n: math.sqrt((n ** (1 / L) - 1) / 2)
        ),
        "Is that the factor of the variance, or of the branch?": lambda L, n: (n ** (1 / L) - 1) / 4,
        "The two matrices multiply the variance by 4. By what do they multiply the branch?": (
            lambda L, n: math.sqrt(n ** (1 / L) - 1) / 4
        ),
        "That scale holds the growth below $e$. By how much may the shared part grow here, when it starts at $1/n$?": (
            lambda L, n: 1 / math.sqrt(L)
        ),
        "That holds the growth below $e$, by He's rule. By how much may the shared part grow here?": (
            lambda L, n: 1 / math.sqrt(L) / 2
        ),
        "$(1 + x)^L$ is about $e^{Lx}$ for small $x$. Is $x$ small enough here?": lambda L, n: math.sqrt(math.log(n) / L) / 2,
        "The shared part grows from $1/n$ to about 1. Is it the variance that grows by $n$, or its root?": (
            lambda L, n: math.sqrt(n ** (2 / L) - 1) / 2
        ),
    },
    ask="What is $(1 + 4\\alpha^2)^L$, when the shared part begins at $1/n$ and ends as large as the own part?",
)  # fmt: skip


def products_after(products, attention, alpha, norm):
    def normed(products):
        rms = products.diagonal(dim1=-2, dim2=-1).sqrt()
        return products / (rms[..., :, None] * rms[..., None, :])

    read = normed(products) if norm == "pre" else products
    written = products + alpha**2 * attention @ read @ attention.mT
    return normed(written) if norm == "post" else written


def unit(products: Tensor, power: float = 0.5) -> Tensor:
    rms = products.diagonal(dim1=-2, dim2=-1) ** power
    return products / (rms[..., :, None] * rms[..., None, :])


def even_size(products: Tensor) -> Tensor:
    """Divided by the mean variance of all tokens."""
    return products / products.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None]


def as_it_is(products: Tensor) -> Tensor:
    return products


def block_of_products(mix=None, add=None, square=None, pre=unit, post=unit, past=as_it_is):
    """As the solution, with one step replaced."""

    def answer(products, attention, alpha, norm):
        read = pre(products) if norm == "pre" else products
        branch = (mix or (lambda K, A: A @ K @ A.mT))(read, attention)
        skip = past(products) if norm == "pre" else products
        written = (add or (lambda skip, branch: skip + branch))(skip, (square or (lambda a: a**2))(alpha) * branch)
        return post(written) if norm == "post" else written

    return answer


def swapped_norms(products, attention, alpha, norm):
    return products_after(products, attention, alpha, {"pre": "post", "post": "pre"}.get(norm, norm))


def one_matrix_for_all(products, attention, alpha, norm):
    """As if W were the identity."""
    step = torch.eye(products.shape[-1]) + alpha * attention
    read = unit(products) if norm == "pre" else products
    written = step @ read @ step.mT + products - read
    return unit(written) if norm == "post" else written


def product_cases(seed: int) -> list[tuple[Tensor, Tensor, float, str]]:
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for norm, shape in (("none", (3,)), ("none", (7, 2)), ("post", (4,)), ("pre", (2, 5)), ("post", (3, 2))):
        *batch, n = shape
        size = 0.5 + 2 * torch.rand(*batch, n, 1, generator=generator)
        tokens = size * torch.randn(*batch, n, 9, generator=generator)
        attention = torch.softmax(1.5 * torch.randn(*batch, n, n, generator=generator), dim=-1)
        alpha = round(0.4 + 0.5 * torch.rand((), generator=generator).item(), 2)
        cases.append((tokens @ tokens.mT / 9, attention, alpha, norm))
    return cases


def judge_products(case, got, want):
    products, attention, alpha, norm = case
    assert isinstance(got, torch.Tensor) and got.shape == want.shape, (
        "There is one number for each pair of tokens, in each sequence. Which shape is that?"
    )
    assert got.isfinite().all(), "Not all of these are numbers. By what do you divide, or of what do you take a root?"
    got = got.to(want.dtype)

    def same(a, b):
        return torch.allclose(a, b, rtol=1e-3, atol=1e-4)

    if same(got, want):
        return
    assert same(got, got.mT), (
        "The product of tokens i and j is that of j and i, and yours is not symmetric. How many of the two outputs average "
        "over the tokens?"
    )
    if norm == "post":
        assert same(got.diagonal(dim1=-2, dim2=-1), torch.ones(got.shape[:-1])), (
            "After a LayerNorm each token has variance 1. Is that what stands on your diagonal?"
        )
        raise AssertionError(
            "The diagonal is right. Does the LayerNorm of post-LN come before the addition, or after it?"
        )
    added, right = got - products, want - products
    assert not same(got, right), "Is the branch all that comes out? What does the skip carry past it?"
    assert not same(added * alpha, right) and not same(added * alpha**2, right), (
        "Both outputs of a pair are multiplied by α. Which power of it stands in their product?"
    )
    if norm == "none":
        crossed = alpha * (attention @ products + products @ attention.mT)
        assert not same(added, right + crossed), (
            "Which product do a token and W times a token have on average, when W is fresh and has mean 0?"
        )
        raise AssertionError(
            "Row i of the attention belongs to query i, and sums to 1. Which row weighs the tokens of output i, and which "
            "those of output j?"
        )
    raise AssertionError(
        "Without a norm and with post-LN this is right. What does the branch read in pre-LN, when each token is divided by its "
        "own RMS, and what goes past it as it is?"
    )


products_code = Code(
    number="12.4",
    title="Depth without a draw",
    minutes=15,
    difficulty="medium",
    points=3,
    needs=("With skips: the shared part doubles",),
    statement=(
        "How alike do *given* maps make the tokens? You need to draw no matrix for it. Let "
        "`products[i, j]` be $x_i^\\top x_j / d$, for all pairs of $n$ tokens, and let `attention` be the map of a block, "
        "$p_{ij}$, whose rows are queries. The block adds $\\alpha \\sum_j p_{ij} W x_j$ to token $i$. $W = W_o W_v$ is fresh, "
        "has mean 0, and keeps products on average, $\\mathbb{E}\\,(Wx)^\\top Wy = x^\\top y$. Write `products_after(products, attention, alpha, norm)`, which "
        'returns the products after the block, on average and for a large $d$. `norm` is `"none"`, `"pre"` or `"post"`. A LayerNorm divides each '
        "token by its own RMS (the mean over a token's entries is near 0; leave it out). Both tensors have the shape "
        "`(n, n)`, or `(B, n, n)` for a batch."
    ),
    hint=(
        "What is $\\frac1d\\,y_i^\\top y_j$ for $y_i = \\sum_k p_{ik} W x_k$, on average over $W$? The squares of the RMS stand "
        "on the diagonal of `products`. With $p_{ij} = 1/n$ and unrelated tokens you get the chapter's $m$ and $u$ back."
    ),
    name="products_after",
    starter="def products_after(products, attention, alpha, norm):\n    ...",
    make=product_cases,
    compare=judge_products,
    solution=products_after,
    wrong={
        "columns are queries": (block_of_products(mix=lambda K, A: A.mT @ K @ A), "weighs the tokens"),
        "one of the two averages": (block_of_products(mix=lambda K, A: A @ K), "symmetric"),
        "twice from one side": (block_of_products(mix=lambda K, A: A @ A @ K), "symmetric"),
        "the map times itself": (block_of_products(mix=lambda K, A: A @ A.mT), "weighs the tokens"),
        "α once": (block_of_products(square=lambda a: a), "Which power"),
        "no α": (block_of_products(square=lambda a: 1), "Which power"),
        "no skip": (block_of_products(add=lambda skip, branch: branch), "skip carry"),
        "the same W as in the skip": (one_matrix_for_all, "mean 0"),
        "no norm": (block_of_products(pre=as_it_is, post=as_it_is), "on your diagonal"),
        "post-LN without a norm": (block_of_products(post=as_it_is), "on your diagonal"),
        "pre-LN without a norm": (block_of_products(pre=as_it_is), "branch read"),
        "the norms swapped": (swapped_norms, "on your diagonal"),
        "one norm for all tokens": (block_of_products(pre=even_size, post=even_size), "on your diagonal"),
        "one norm for all tokens in pre-LN": (block_of_products(pre=even_size), "branch read"),
        "by the variance": (block_of_products(post=lambda K: unit(K, 1)), "on your diagonal"),
        "by the variance in pre-LN": (block_of_products(pre=lambda K: unit(K, 1)), "branch read"),
        "the skip behind the norm, too": (block_of_products(past=unit), "goes past it"),
        "post-LN before the addition": (
            lambda K, A, a, norm: products_after(unit(K) if norm == "post" else K, A, a, norm), "before the addition"),
    },
)  # fmt: skip


def shared_growth(blocks, gain):
    ways = {"": 1}
    for block in blocks:
        for product, many in list(ways.items()):
            ways[product + block] = ways.get(product + block, 0) + many
    return sum(many**2 * gain ** len(product) for product, many in ways.items())


def words(blocks: str) -> Counter[str]:
    """How often each product of matrices occurs."""
    found = Counter({"": 1})
    for block in blocks:
        found.update({word + block: many for word, many in list(found.items())})
    return found


def growth_by(weigh, word=lambda w: w):
    """Σ over products of ``weigh(how often, gain to the number of matrices)``."""

    def answer(blocks, gain):
        found: Counter[str] = Counter()
        for w, many in words(blocks).items():
            found[word(w)] += many
        return sum(weigh(many, gain ** len(w)) for w, many in found.items())

    return answer


def all_copies(blocks, gain):
    return shared_growth("A" * len(blocks), gain)


def by_neighbours(blocks, gain):
    return math.prod(shared_growth("".join(run), gain) for _, run in groupby(blocks))


def growth_cases(seed: int) -> list[tuple[str, float]]:
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for pattern in ("abcd", "aaaaa", "abbcacb", "ababab", "any"):
        if pattern == "any":
            pattern = "".join("abc"[i] for i in torch.randint(3, (9,), generator=generator))
        names = "".join(chr(65 + i) for i in torch.randperm(26, generator=generator)[:4].tolist())
        gain = round(0.1 + 0.4 * torch.rand((), generator=generator).item(), 3)
        cases.append((pattern.translate(str.maketrans("abcd", names)), gain))
    return cases


def judge_growth(case, got, want):
    blocks, gain = case
    if isinstance(got, torch.Tensor) and got.numel() == 1:
        got = got.item()
    assert type(got) in (int, float) and math.isfinite(got), "By which number does the shared part grow?"

    def same(x):
        return abs(got - x) <= 1e-4 * abs(x)

    if same(want):
        return
    n_blocks, kinds = len(blocks), sorted(set(blocks))
    copies = [sum(math.comb(n, k) ** 2 * gain**k for k in range(n + 1)) for n in map(blocks.count, kinds)]
    alike = sum(math.comb(n_blocks, k) ** 2 * gain**k for k in range(n_blocks + 1))
    assert not same(want - 1), "One of the products is made of no matrix at all. What does it keep?"
    assert not same(want**0.5), "Is that the growth of the variance, or of the length?"
    assert not any(same((1 + g) ** n_blocks) for g in (gain**2, gain**0.5)), (
        "No block shares a matrix here. Is `gain` what a matrix does to a variance, or to a length?"
    )
    assert not same((1 + gain) ** n_blocks), (
        "That is the growth in fresh blocks. Which products of matrices stand more than once in the sum, when blocks share?"
    )
    assert not same(alike), "That is the growth in copies of one block. Which of these blocks have different matrices?"
    if len(kinds) > 1:
        assert not same(math.prod(copies)), (
            "You took products of the same matrices for equal, in whatever order they stand. Is W_A W_B equal to W_B W_A?"
        )
    raise AssertionError(
        "Write down the eight products that the blocks ABA give. Which two are equal, and how long is their sum, beside the "
        "sum of two that are not? Can equal blocks that are no neighbours give equal products?"
    )


growth_code = Code(
    number="12.5",
    title="Blocks that share matrices",
    minutes=25,
    difficulty="hard",
    points=4,
    needs=("What frameworks do",),
    statement=(
        "Some models use a block more than once: [ALBERT](https://arxiv.org/abs/1909.11942) has one for all depths, others repeat a few of them in turn. Between "
        "fresh blocks and copies there is much in between. Let attention be uniform, with a skip and without a norm. Write "
        "`shared_growth(blocks, gain)`. `blocks` is a string with one letter a block, from the first to the last: blocks with "
        "the same letter have the same $W$, the others were drawn independently. `gain` is the chapter's $a^2$. Return the "
        "factor by which the variance of the shared part grows, on average and for a large $d$: `\"ABCD\"` gives "
        "$(1 + a^2)^4$, and `\"AAAA\"` gives $\\sum_k \\binom4k^2 a^{2k}$. There are at most 12 blocks."
    ),
    hint=(
        "Multiply out $(I + aW_B)(I + aW_A)$. Each block gives either $I$ or its matrix, so $L$ blocks give $2^L$ products. Two "
        "different products of fresh matrices are uncorrelated, and each keeps lengths. What if the same product occurs $c$ "
        "times?"
    ),
    name="shared_growth",
    starter="def shared_growth(blocks, gain):\n    ...",
    make=growth_cases,
    compare=judge_growth,
    solution=shared_growth,
    wrong={
        "all fresh": (lambda blocks, gain: (1 + gain) ** len(blocks), "in fresh blocks"),
        "each product as often as it occurs": (growth_by(lambda many, g: many * g), "in fresh blocks"),
        "all copies": (all_copies, "copies of one block"),
        "in any order": (growth_by(lambda many, g: many**2 * g, lambda w: "".join(sorted(w))), "whatever order"),
        "neighbours only": (by_neighbours, "no neighbours"),
        "each product once": (growth_by(lambda many, g: g), "how long is their sum"),
        "the gain squared": (lambda blocks, gain: shared_growth(blocks, gain**2), "to a length"),
        "the root of the gain": (lambda blocks, gain: shared_growth(blocks, gain**0.5), "to a length"),
        "without the skip's own": (lambda blocks, gain: shared_growth(blocks, gain) - 1, "no matrix at all"),
        "the length": (lambda blocks, gain: shared_growth(blocks, gain) ** 0.5, "of the length"),
        "the largest power": (lambda blocks, gain: gain ** len(blocks), "how long is their sum"),
    },
    equivalent=("0) - many",),  # the sign of a product of odd length, which is squared
)  # fmt: skip


def mend(encoder):
    for layer in encoder.layers:
        torch.nn.init.xavier_uniform_(layer.self_attn.in_proj_weight)
        for linear in (layer.self_attn.out_proj, layer.linear1, layer.linear2):
            linear.reset_parameters()
        torch.nn.init.zeros_(layer.self_attn.out_proj.bias)


def reset_all(encoder: nn.Module) -> None:
    """Whatever has the method; attention's own has another name."""
    for module in encoder.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def everything_by_xavier(encoder: nn.Module) -> None:
    mend(encoder)
    for parameter in encoder.parameters():
        if parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)


def from_one_seed(encoder: nn.Module) -> None:
    for i in range(len(encoder.layers)):
        torch.manual_seed(0)
        single = nn.Module()
        single.layers = encoder.layers[i : i + 1]
        mend(single)


def one_for_all(encoder: nn.Module) -> None:
    mend(encoder)
    encoder.layers = nn.ModuleList([encoder.layers[0]] * len(encoder.layers))


def copied_again(encoder: nn.Module) -> None:
    mend(encoder)
    encoder.layers = nn.ModuleList(copy.deepcopy(encoder.layers[0]) for _ in encoder.layers)


def built_anew(encoder: nn.Module) -> None:
    """Fresh layers that forget how the first was configured."""
    old = encoder.layers[0]
    d_model, d_ff = old.linear1.in_features, old.linear1.out_features
    encoder.layers = nn.ModuleList(
        nn.TransformerEncoderLayer(d_model, 1, d_ff, 0.0, batch_first=True) for _ in encoder.layers
    )


@torch.no_grad()
def shaken(encoder: nn.Module) -> None:
    for parameter in encoder.parameters():
        if parameter.ndim == 2:
            parameter += 0.1 * parameter.std() * torch.randn_like(parameter)


@torch.no_grad()
def attention_only(encoder: nn.Module) -> None:
    for layer in encoder.layers:
        nn.init.xavier_uniform_(layer.self_attn.in_proj_weight)
        layer.self_attn.out_proj.reset_parameters()
        layer.self_attn.out_proj.bias.zero_()


def zero_after(change, *ends: str):
    def answer(encoder):
        change(encoder)
        for name, parameter in encoder.named_parameters():
            if name.endswith(ends):
                nn.init.zeros_(parameter)

    return answer


@torch.no_grad()
def from_zero_up(encoder: nn.Module) -> None:
    """The right σ on one side of 0."""
    mend(encoder)
    for parameter in encoder.parameters():
        if parameter.ndim == 2:
            parameter.uniform_(0, math.sqrt(12) * parameter.std().item())


@torch.no_grad()
def like_gpt2(encoder: nn.Module) -> None:
    mend(encoder)
    for parameter in encoder.parameters():
        if parameter.ndim == 2:
            parameter.normal_(0, 0.02)


def as_four_matrices(encoder: nn.Module) -> None:
    """Query, key and value each with its own fans."""
    mend(encoder)
    for layer in encoder.layers:
        for block in layer.self_attn.in_proj_weight.data.chunk(3):
            nn.init.xavier_uniform_(block)


def encoder_cases(seed: int) -> list[tuple[int, int, int, int, int]]:
    return [(24, 4, 60, 3, seed)]


def mended_encoder(answer, d_model, n_heads, d_ff, n_layers, seed):
    torch.manual_seed(seed)
    layer = torch.nn.TransformerEncoderLayer(d_model, n_heads, d_ff, 0.0, batch_first=True, norm_first=True)
    encoder = torch.nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
    answer(encoder)
    layers = list(encoder.layers)
    kinds = [(x.self_attn.num_heads, bool(x.norm_first)) for x in layers]
    every = [dict(x.named_parameters()) for x in layers]
    shapes = [{name: list(x.shape) for name, x in parameters.items()} for parameters in every]
    numbers = {}
    for name in every[0]:
        x = torch.stack([parameters[name].detach().flatten() for parameters in every])
        unit = torch.nn.functional.normalize(x - x.mean(dim=-1, keepdim=True), dim=-1)
        alike = (unit @ unit.mT - torch.eye(len(x))).abs().max()
        numbers[name] = (alike.item(), x.mean().item(), x.std().item())
    return kinds, shapes, numbers


def judge_encoder(case, got, want):
    assert isinstance(got, tuple) and len(got) == 3, "Has the encoder its layers still?"
    kinds, shapes, numbers = got
    assert isinstance(kinds, list) and len(kinds) == len(want[0]), "How many layers had the encoder before?"
    assert kinds == want[0], (
        "The layers have another number of heads, or their norms elsewhere. How was the layer configured that was copied?"
    )
    assert shapes == want[1], "Which parameters had each layer before, and in which shapes?"
    assert isinstance(numbers, dict) and set(numbers) == set(want[2]), "Which parameters had each layer before?"
    assert all(isinstance(x, tuple) and len(x) == 3 for x in numbers.values()), "Are all the parameters tensors?"
    assert all(math.isfinite(y) for x in numbers.values() for y in x), "Are all the entries numbers?"
    for name, (_, mean, std) in numbers.items():
        if want[2][name][2] == 0:
            assert std == 0 and abs(mean - want[2][name][1]) < 1e-6, (
                f"`{name}` was the same number throughout in the layer as it comes, and is no longer. Which function of "
                "torch drew it?"
            )
    for name, (off, _, std) in numbers.items():
        if want[2][name][2] > 0:
            assert std > 0, f"`{name}` has no random numbers. Does torch draw it?"
            assert off < (0.3 if name.endswith("weight") else 0.9), (
                f"`{name}` is still nearly the same in two layers. Is it drawn anew in each of them, and by which function?"
            )
    for name, (_, mean, std) in numbers.items():
        if want[2][name][2] > 0:
            near = 0.1 if name.endswith("weight") else 0.6
            assert abs(std / want[2][name][2] - 1) < near and abs(mean) < 2 * near * std, (
                f"The layers are independent, but mean and σ of `{name}` are no longer those of the layer as it comes. By "
                "which rule, and for which shape, does torch draw it?"
            )


copied_layers = Mend(
    number="12.6",
    title="Twelve times the same layer",
    minutes=15,
    difficulty="medium",
    points=3,
    needs=("What frameworks do",),
    statement=(
        "Build an encoder of twelve layers with `nn.TransformerEncoder`, as below, and run `attntut.diagnose` on it, with "
        "`torch.randn(4, 16, 64)`. Read which matrices it finds, and in which layers. Then write `mend(encoder)`, which makes "
        "of any such encoder one whose layers were drawn independently. The remedy that the report names changes the σ as well. "
        "Here each parameter is to keep the mean and the σ that torch gives it in a new `nn.TransformerEncoderLayer`, the "
        "biases, too: what is drawn there is drawn, and what is constant there is constant. Change the layers in place or put new ones into `encoder.layers`, but keep their number, their "
        "shapes and their configuration. Do not set a seed.\n\n"
        "```python\n"
        "layer = torch.nn.TransformerEncoderLayer(\n"
        "    64, 4, 128, dropout=0, batch_first=True)\n"
        "encoder = torch.nn.TransformerEncoder(\n"
        "    layer, 12, enable_nested_tensor=False)\n"
        "```"
    ),
    hint=(
        "`reset_parameters` draws an `nn.Linear` anew, with its bias. Print the `named_parameters` of one new layer and look at "
        "their standard deviations. Which of them belong to no `nn.Linear`? And which bias does attention set to 0?"
    ),
    name="mend",
    starter="def mend(encoder):\n    ...",
    forbidden=frozenset({"manual_seed", "set_rng_state"}),
    make=encoder_cases,
    ask=mended_encoder,
    compare=judge_encoder,
    solution=mend,
    wrong={
        "nothing": (lambda encoder: None, "nearly the same in two layers"),
        "what can be reset": (reset_all, "no longer. Which function"),
        "what can be reset, and the bias": (zero_after(reset_all, "out_proj.bias"), "nearly the same in two layers"),
        "every matrix by Xavier": (everything_by_xavier, "which rule"),
        "one seed": (from_one_seed, "nearly the same in two layers"),
        "one layer for all": (one_for_all, "nearly the same in two layers"),
        "copied again": (copied_again, "nearly the same in two layers"),
        "another layer": (built_anew, "How was the layer configured"),
        "a little noise": (shaken, "nearly the same in two layers"),
        "attention only": (attention_only, "nearly the same in two layers"),
        "no biases": (zero_after(mend, "bias"), "has no random numbers"),
        "the report's remedy": (lambda encoder: initialize_(encoder, "xavier_uniform"), "has no random numbers"),
        "from zero up": (from_zero_up, "which rule"),
        "σ = 0.02": (like_gpt2, "which rule"),
        "three blocks": (as_four_matrices, "for which shape"),
        "fewer layers": (lambda encoder: encoder.layers.pop(0), "How many layers"),
    },
)  # fmt: skip


# fmt: off
def causal_stack(n, n_blocks, d=256, draws=8):
    """Tokens after blocks with even, causal maps, (draws, n, d)."""
    torch.manual_seed(0)
    tokens = torch.randn(draws, n, d)
    even = torch.ones(n, n).tril()
    even = even / even.sum(dim=-1, keepdim=True)
    for _ in range(n_blocks):
        W = torch.randn(draws, d, d) / d**0.5
        tokens = tokens + even @ tokens @ W.mT
    return tokens
# fmt: on


@functools.cache
def tokens_of_stack(n: int, n_blocks: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        return causal_stack(n, n_blocks)


def uniform_cosine(n: int, n_blocks: int) -> float:
    """The chapter's formula, for a skip without a norm."""
    m, u = 2**n_blocks / n, 1 - 1 / n
    return (n * m - m - u) / ((n - 1) * (m + u))


def without_lengths(n: int, n_blocks: int) -> float:
    """Products that are divided by one mean square, and not each by its own two lengths."""
    x = tokens_of_stack(n, n_blocks)
    squares = x.square().sum((-2, -1))
    return ((x.sum(-2).square().sum(-1) - squares) / (n - 1) / squares).mean().item()


causal = Explain(
    number="12.7",
    title="With a causal mask",
    minutes=20,
    difficulty="hard",
    points=2,
    manual=3,
    needs=("With skips: the shared part doubles",),
    statement=(
        "Where the chapter has skips, every token sees all others. What changes when token $i$ sees the tokens 1 to $i$ alone? The function "
        "below passes <<n>> independent tokens through <<n_blocks>> blocks with a skip and without a norm, in which each token "
        "attends evenly to all that it may see, and returns the tokens of eight such stacks. First predict their mean cosine "
        "by the chapter's formula, which knows of no mask. Then measure it with `token_cosine` of `attntut.measure`, averaged "
        "over the eight stacks. Answer with both, and explain the difference in two or three sentences. What does the first "
        "token attend to, how large is it at the end, and in whose average is it?"
    ),
    hint=(
        "The formula has $m = 2^L/n$ and $u = 1 - 1/n$. The mean of $i$ independent tokens has the variance $1/i$. Look at "
        "`tokens.square().mean(dim=(0, 2))`, the variance of each token."
    ),
    rubric=(
        "The prediction is the formula's, with m = 2^L/n (1 point). Token i averages i tokens, not n, so what the early ones "
        "receive has the variance 1/i, which is more than 1/n (1). The first token attends to itself alone, so its variance "
        "doubles in every block, and every other token has it in its average: what the tokens come to share is the first few "
        "of them, and the cosine is higher (1)."
    ),
    setup=(causal_stack,),
    parameters={"n": (64, 160, 256, 96), "n_blocks": (6, 5, 7)},
    solve=lambda n, n_blocks: token_cosine(tokens_of_stack(n, n_blocks)).mean().item(),
    traps={
        "That is the formula's number, for tokens that see all others. What do the stacks give?": uniform_cosine,
        "Each product is divided by the two lengths of its pair. By what did you divide?": without_lengths,
        "How alike are they, or how different?": (
            lambda n, n_blocks: 1 - token_cosine(tokens_of_stack(n, n_blocks)).mean().item()
        ),
        "Is that the cosine of neighbours, or of all pairs of tokens?": (
            lambda n, n_blocks: nn.functional.cosine_similarity(
                tokens_of_stack(n, n_blocks)[:, 1:], tokens_of_stack(n, n_blocks)[:, :-1], dim=-1).mean().item()
        ),
        "Is that the cosine of all pairs of tokens, or with the first alone?": (
            lambda n, n_blocks: nn.functional.cosine_similarity(
                tokens_of_stack(n, n_blocks)[:, 1:], tokens_of_stack(n, n_blocks)[:, :1], dim=-1).mean().item()
        ),
        "Which dimension of what comes back holds the tokens? Did you compare the stacks with each other?": (
            lambda n, n_blocks: token_cosine(tokens_of_stack(n, n_blocks).mT).mean().item()
        ),
    },
    ask="Is it the mean over all pairs of different tokens and all eight stacks, for this n and this number of blocks?",
    rtol=0.015,
)  # fmt: skip

EXERCISES = [
    flat_map, cubed_twice, largest_branch, products_code, growth_code, copied_layers, causal,
]  # fmt: skip
