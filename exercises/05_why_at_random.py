"""Exercises of chapter 5, *Why at random?*"""

import functools
import math

import torch
from torch import Tensor

from exercises.exercise import Choice, Code, Explain, Mend, Number

one_zero_matrix = Choice(
    number="5.1",
    title="A zero at the end",
    minutes=2,
    difficulty="easy",
    points=1,
    needs=("One zero matrix does not stay zero",),
    statement=(
        "A skip connection carries the input past a layer of attention. Its $W_o$ is zero, its $W_q$, $W_k$ and $W_v$ are "
        "random. Which of the four matrices have a gradient that is not zero at the first step?"
    ),
    hint="A gradient reaches the first three through $W_o$. What does the gradient of $W_o$ itself contain?",
    options={
        "all four": "The chain rule carries the gradient of $W_q$ through $W_o$. What is left of it there?",
        "$W_o$ alone": "",
        "$W_q$, $W_k$ and $W_v$": (
            "You chose those that are not zero themselves. Through which matrix must a gradient pass to reach them?"
        ),
        "$W_v$ and $W_o$": "The gradient of $W_v$ is $W_o^\\top$ times something. What is that product here?",
        "$W_q$ and $W_k$": "Their product makes the logits. Which matrix stands between the logits and the loss?",
        "none of them": (
            "The gradient of $W_o$ is the upstream gradient times what the heads give. Is one of the two zero?"
        ),
    },
)

ranks = Number(
    number="5.2",
    title="Bands in two matrices",
    minutes=4,
    difficulty="easy",
    points=2,
    needs=("The argument",),
    statement=(
        "A layer of width <<d>> has <<n_heads>> heads. Its query, key and value matrices start constant, its output matrix "
        "at random, and all its biases at zero. It has been trained for a while by Adam, without dropout. What is the "
        "largest possible rank of $W_q$, and what is that of $W_v$? Answer with two numbers."
    ),
    hint="Which exchanges change no weight of the start? For $W_v$ the columns of $W_o$ take part.",
    starter="answer = (..., ...)  # rank of W_q, rank of W_v",
    parameters={"d": (96, 192, 240), "n_heads": (8, 4, 6, 12)},
    solve=lambda d, n_heads: (n_heads, d),
    traps={
        "Two units of one head start alike in $W_q$ and in $W_k$. What could tell them apart?": lambda d, n_heads: (
            d,
            d,
        ),
        "The output matrix is random. Whom does it tell apart?": lambda d, n_heads: (1, d),
        "Exchanging two rows of $W_v$ takes two columns of $W_o$ along. Are these alike?": (
            lambda d, n_heads: (n_heads, n_heads)
        ),
        "That is how many units a head has. Do the units of a head differ, or the heads?": (
            lambda d, n_heads: (d // n_heads, d)
        ),
        "One of the four matrices is random. Can nothing learn from that?": lambda d, n_heads: (1, 1),
        "Which of the two matrices meets $W_o$? Are the numbers in the order that was asked for?": (
            lambda d, n_heads: (d, n_heads)
        ),
    },
    ask="How many different rows can $W_q$ have, and how many $W_v$? Which exchanges of rows leave the start as it is?",
    rtol=0.001,
    wrong={
        "units twice": lambda d, n_heads: (d // n_heads, d // n_heads),
        "one less": lambda d, n_heads: (n_heads, d - 1),
    },
)

far_enough_apart = Number(
    number="5.3",
    title="As different as you like",
    minutes=6,
    difficulty="medium",
    points=2,
    needs=("Does it make the model more diverse?",),
    statement=(
        "Your layer has width <<d>> and reads tokens of unit variance. For which $\\sigma$ of the query and the key matrix "
        "would one head have to move <<share>> of its attention, on average, to become another? (Predict it by the formula "
        "for small logits; then `head_difference` of the chapter lets you measure it.)"
    ),
    hint="The total variation is $\\sigma_s/\\sqrt\\pi$, and $\\sigma_s = d\\,\\sigma^2$.",
    parameters={"d": (256, 144, 400), "share": (0.1, 0.05, 0.08, 0.02)},
    solve=lambda d, share: math.sqrt(share * math.sqrt(math.pi) / d),
    traps={
        "That is the deviation of the logits. Which one of the weights makes it?": lambda d, share: (
            share * math.sqrt(math.pi)
        ),
        "Where is the $\\sqrt\\pi$ of the total variation?": lambda d, share: math.sqrt(share / d),
        "Does $\\sigma_s$ grow with $d$, or with its root?": lambda d, share: math.sqrt(share * math.sqrt(math.pi / d)),
        "Is that $\\sigma$, or its square?": lambda d, share: share * math.sqrt(math.pi) / d,
        "Which side of $\\sigma_s/\\sqrt\\pi$ does the root of π stand on when you solve for $\\sigma_s$?": (
            lambda d, share: math.sqrt(share / math.sqrt(math.pi) / d)
        ),
        "A total variation is *half* the sum of $|p_j - p_j'|$. Where is your half?": (
            lambda d, share: math.sqrt(share * math.sqrt(math.pi) / 2 / d)
        ),
        "Two heads differ by the difference of *two* logits. What is its standard deviation?": (
            lambda d, share: math.sqrt(share * math.sqrt(2 * math.pi) / d)
        ),
    },
    ask="What is $\\sigma_s$ for this total variation? And what is $\\sigma$ when $d\\,\\sigma^2$ is that?",
    rtol=0.01,
    wrong={"the root of d as width": lambda d, share: math.sqrt(share * math.sqrt(math.pi)) / d},
)


def draw(roles, d_model, seed):
    generator = torch.Generator().manual_seed(seed)
    return {role: torch.randn(d_model, d_model, generator=generator) / math.sqrt(d_model) for role in roles}


def seeds_each(roles, d_model, seed):
    return {role: draw([role], d_model, seed)[role] for role in roles}


def seeds_torch(roles, d_model, seed):
    torch.manual_seed(seed)
    return {role: torch.randn(d_model, d_model) / math.sqrt(d_model) for role in roles}


def without_seed(roles, d_model, seed):
    return draw(roles, d_model, torch.Generator().seed())


def next_seeds(roles, d_model, seed):
    return {role: draw([role], d_model, seed + index)[role] for index, role in enumerate(roles)}


def for_one_width(roles, d_model, seed):
    return {role: matrix * math.sqrt(d_model) / 8 for role, matrix in draw(roles, d_model, seed).items()}


def uniform(roles, d_model, seed):
    generator, bound = torch.Generator().manual_seed(seed), math.sqrt(3 / d_model)
    return {role: torch.empty(d_model, d_model).uniform_(-bound, bound, generator=generator) for role in roles}


def orthogonal(roles, d_model, seed):
    generator = torch.Generator().manual_seed(seed)
    return {role: torch.nn.init.orthogonal_(torch.empty(d_model, d_model), generator=generator) for role in roles}


def variance_for_deviation(roles, d_model, seed):
    return {role: matrix / math.sqrt(d_model) for role, matrix in draw(roles, d_model, seed).items()}


def draw_cases(seed: int) -> list[tuple]:
    return [(["query", "key", "value", "output"], 10, 3 + 7 * seed), ([0, 1], 13, 5 + 11 * seed)]


def three_draws(answer, roles, d_model, seed):
    calls = [answer(list(roles), d_model, s) for s in (seed, seed, seed + 1)]
    after = torch.rand(3)
    if not all(isinstance(call, dict) for call in calls):
        return calls[0]
    rows = [{role: matrix[:1] for role, matrix in call.items()} for call in calls[1:]]
    return dict(calls[0]), *rows, after


def judge_draw(case, got, want):
    roles, d_model, _ = case
    whole = isinstance(got, tuple) and len(got) == 4 and isinstance(got[3], torch.Tensor)
    whole = whole and all(isinstance(drawn, dict) and set(drawn) == set(roles) for drawn in got[:3])
    assert whole, "Is there a dictionary, with one matrix for each role and under its name?"
    for drawn, rows in zip(got[:3], (d_model, 1, 1), strict=True):
        square = all(isinstance(w, torch.Tensor) and w.shape == (rows, d_model) for w in drawn.values())
        assert square, "A projection takes d_model numbers to d_model. Which shape has its matrix?"
        assert all(w.is_floating_point() and w.isfinite().all() for w in drawn.values()), (
            "Is every weight a finite number?"
        )
    first, again, other = ([drawn[role].double() for role in roles] for drawn in got[:3])
    same = all(torch.equal(one[:1], two) for one, two in zip(first, again, strict=True))
    assert same, "The same seed gave two answers. Where does the seed go?"
    flat = torch.stack([matrix.flatten() for matrix in first])
    cosines = torch.nn.functional.normalize(flat, dim=-1)
    alike = (cosines @ cosines.T).fill_diagonal_(0).abs().max()
    assert alike < 0.6, "Two roles have the same matrix. How often is a generator made?"
    assert got[3].shape == want[3].shape and got[3].dtype == want[3].dtype and torch.equal(got[3], want[3]), (
        "torch.rand gives other numbers after your function than it would have given. Whose generator did you use?"
    )
    meets = [[torch.allclose(one[:1], two) for two in other] for one in first]
    assert not any(row[k] for k, row in enumerate(meets)), "Another seed gave the same matrix. Is the seed used?"
    assert not any(map(any, meets)), (
        "A role has the matrix that another role gets from the next seed. Is that not the trap again?"
    )
    lengths = torch.stack(first).norm(dim=-1)
    assert lengths.std() > 0.1 * lengths.mean(), "All rows have one length. Is every weight drawn by itself?"
    numbers = flat.flatten() * math.sqrt(d_model)
    rms = numbers.square().mean().sqrt()
    assert abs(rms - 1) < 5 / math.sqrt(2 * len(numbers)), (
        "The variance is 1/d_model. What is then the standard deviation, for this width?"
    )
    assert numbers.abs().max() > 1.9 * rms, "No weight is two standard deviations out. Is it a Gaussian?"


draw_once = Code(
    number="5.4",
    title="Reproducible, without the trap",
    minutes=10,
    difficulty="medium",
    points=3,
    needs=("The article's code, and a trap in it",),
    statement=(
        "Write `draw(roles, d_model, seed)`. It gets a list of roles, names or numbers of which no two are alike, and "
        "returns a dictionary from each role to a `(d_model, d_model)` tensor from $\\mathcal N(0, 1/d_\\text{model})$. "
        "The same seed gives the same tensors, the next seed gives others, and no two roles get the same one. Torch's "
        "global generator is left as it was. (Do without `hash`, which gives a string another number in each process.)"
    ),
    hint="One generator for all roles, made from the seed inside the function. Why is this not the trap?",
    name="draw",
    starter="def draw(roles, d_model, seed):\n    ...",
    forbidden=frozenset({"hash"}),
    make=draw_cases,
    ask=three_draws,
    compare=judge_draw,
    solution=draw,
    wrong={
        "the trap": (seeds_each, "How often"),
        "the global generator": (seeds_torch, "Whose generator"),
        "no seed": (without_seed, "Where does the seed go"),
        "always one seed": (lambda roles, d_model, seed: draw(roles, d_model, 0), "Is the seed used"),
        "seed + 1, + 2, …": (next_seeds, "the trap again"),
        "variance for deviation": (variance_for_deviation, "standard deviation"),
        "for one width": (for_one_width, "for this width"),
        "uniform": (uniform, "a Gaussian"),
        "orthogonal": (orthogonal, "drawn by itself"),
        "a list": (lambda roles, d_model, seed: list(draw(roles, d_model, seed).values()), "a dictionary"),
    },
)


def swap_heads(state, i, j, n_heads):
    order = list(range(n_heads))
    order[i], order[j] = j, i
    swapped = {}
    for name, tensor in state.items():
        if name == "output.bias":
            swapped[name] = tensor.clone()
        else:
            axis = 1 if name == "output.weight" else 0
            heads = tensor.chunk(n_heads, dim=axis)
            swapped[name] = torch.cat([heads[head] for head in order], dim=axis)
    return swapped


def swap_rows_everywhere(state, i, j, n_heads):
    pretended = {"query.weight" if n == "output.weight" else n: t for n, t in state.items() if n[0] == "o"}
    return {**swap_heads(state, i, j, n_heads), "output.weight": swap_heads(pretended, i, j, n_heads)["query.weight"]}


def swap_output_bias(state, i, j, n_heads):
    bias = swap_heads({"query.bias": state["output.bias"]}, i, j, n_heads)["query.bias"]
    return {**swap_heads(state, i, j, n_heads), "output.bias": bias}


def swap_all_but(*kept):
    def swap(state, i, j, n_heads):
        return {**swap_heads(state, i, j, n_heads), **{name: state[name].clone() for name in kept}}

    return swap


def swap_single_rows(state, i, j, n_heads):
    swapped = {name: tensor.clone() for name, tensor in state.items()}
    for name, tensor in state.items():
        rows = swapped[name].mT if name == "output.weight" else swapped[name]
        rows[[i, j]] = (tensor.mT if name == "output.weight" else tensor)[[j, i]]
    return swapped


def swap_by_width_of_query(state, i, j, n_heads):
    d_head = len(state["query.bias"]) // n_heads
    swapped = swap_heads(state, i, j, n_heads)
    for name in ("value.weight", "value.bias"):
        swapped[name] = state[name].clone()
        a, b = (slice(head * d_head, (head + 1) * d_head) for head in (i, j))
        if len(state[name][a]) == len(state[name][b]):
            swapped[name][a], swapped[name][b] = state[name][b], state[name][a]
    return swapped


def shift_heads(state, i, j, n_heads):
    swapped = swap_heads(state, i, j, n_heads)
    for k in range(n_heads - 1):
        swapped = swap_heads(swapped, k, k + 1, n_heads)
    return swapped


def swap_in_place(state, i, j, n_heads):
    for name, tensor in swap_heads(state, i, j, n_heads).items():
        state[name].copy_(tensor)
    return state


def state_cases(seed: int) -> list[tuple]:
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for n_heads, d_head, d_value, d_in, d_out, i, j in ((3, 2, 4, 5, 9, 0, 2), (4, 3, 2, 5, 7, 3, 1)):
        shapes = {"query": (n_heads * d_head, d_in), "key": (n_heads * d_head, d_in)}
        shapes |= {"value": (n_heads * d_value, d_in), "output": (d_out, n_heads * d_value)}
        state = {}
        for role, shape in shapes.items():
            state[f"{role}.weight"] = torch.randn(shape, generator=generator)
            state[f"{role}.bias"] = torch.randn(shape[0], generator=generator)
        cases.append((state, i, j, n_heads))
    return cases


def swapped_state(answer, state, i, j, n_heads):
    given = {name: tensor.clone() for name, tensor in state.items()}
    swapped = answer(given, i, j, n_heads)
    return swapped, [name for name, tensor in state.items() if (given[name] != tensor).any()]


def judge_swapped(case, got, want):
    state, i, j, n_heads = case
    assert isinstance(got, tuple) and len(got) == 2, "What does your function return?"
    new, changed = got
    whole = isinstance(new, dict) and set(new) == set(state)
    whole = whole and all(isinstance(t, torch.Tensor) and t.dtype == state[name].dtype for name, t in new.items())
    assert whole, "Are there eight tensors, by the names that came in?"
    assert changed == [], "What became of the tensors that came in?"
    assert all(new[name].shape == t.shape for name, t in state.items()), (
        "A layer whose heads have changed places has the shapes that it had. Which tensor has another one?"
    )
    for role in ("query", "key", "value"):
        before, after = (each[f"{role}.weight"].unflatten(0, (n_heads, -1)) for each in (state, new))
        assert not torch.equal(before, after), (
            "A head's rows of a matrix are where they were. Which matrices write a head?"
        )
        size = before.shape[1]
        if role == "value" and size != state["query.bias"].shape[0] // n_heads:
            assert torch.equal(after[i], before[j]) and torch.equal(after[j], before[i]), (
                "A head of W_v has another width than one of W_q here. How many rows has it?"
            )
        assert torch.equal(after[i], before[j]) and torch.equal(after[j], before[i]), (
            "The two heads have not changed places. Which rows are a head, and which ones have you moved?"
        )
        others = [k for k in range(n_heads) if k not in (i, j)]
        assert torch.equal(after[others], before[others]), "A head that should stay where it is has moved. Why?"
        assert torch.equal(new[f"{role}.bias"], want[0][f"{role}.bias"]), (
            "A row of a matrix has moved without its bias. Which number does each number of a bias belong to?"
        )
    assert torch.equal(new["output.weight"], want[0]["output.weight"]), (
        "The function has changed. The output matrix *reads* the heads: are they its rows or its columns?"
    )
    assert torch.equal(new["output.bias"], want[0]["output.bias"]), (
        "The bias of the output is added when all heads are summed. Which head does it belong to?"
    )


exchange_of_heads = Code(
    number="5.5",
    title="Two heads change places",
    minutes=20,
    difficulty="hard",
    points=4,
    needs=("The argument",),
    statement=(
        "Write `swap_heads(state, i, j, n_heads)`. It gets the dictionary that `layer.state_dict()` gives for a layer with "
        "four linear maps: `query.weight`, `query.bias`, and the same of `key`, `value` and `output`. As in `nn.Linear`, a "
        "weight has a row for each number that it gives. Head 0 has the first `d_head` rows of $W_q$ and $W_k$, head 1 the "
        "next ones, and so on; in $W_v$ a head may have another number of rows. Return a new dictionary in which heads `i` "
        "and `j` have changed places everywhere, so that the layer computes the same function. What came in stays as it was."
    ),
    hint="Three of the matrices write the heads: a head is a slice of their rows. What is it in the matrix that *reads* the heads?",
    name="swap_heads",
    starter="def swap_heads(state, i, j, n_heads):\n    ...",
    make=state_cases,
    ask=swapped_state,
    compare=judge_swapped,
    solution=swap_heads,
    wrong={
        "rows of the output": (swap_rows_everywhere, "rows or its columns"),
        "without the output": (swap_all_but("output.weight"), "rows or its columns"),
        "the output's bias too": (swap_output_bias, "Which head does it belong to"),
        "without biases": (swap_all_but("query.bias", "key.bias", "value.bias"), "without its bias"),
        "without the value": (swap_all_but("value.weight", "value.bias", "output.weight"), "write a head"),
        "one unit each": (swap_single_rows, "Which rows are a head"),
        "the query's width for the value": (swap_by_width_of_query, "How many rows"),
        "the first and the last": (lambda state, i, j, n: swap_heads(state, 0, n - 1, n), "Which rows are a head"),
        "all are shifted": (shift_heads, "changed places"),
        "in place": (swap_in_place, "came in"),
        "nothing": (lambda state, i, j, n_heads: {n: t.clone() for n, t in state.items()}, "write a head"),
    },
)  # fmt: skip


# fmt: off
def drawn(fan_out, fan_in):
    """A Gaussian linear map that keeps the variance of its input."""
    rng = torch.Generator().manual_seed(1)
    linear = torch.nn.Linear(fan_in, fan_out)
    torch.nn.init.normal_(linear.weight, std=fan_in**-0.5, generator=rng)
    return linear


class Attention(torch.nn.Module):
    """Attention whose values may have another width than its queries."""

    def __init__(self, d_model, n_heads, d_value):
        super().__init__()
        self.n_heads = n_heads
        self.query = drawn(d_model, d_model)
        self.key = drawn(d_model, d_model)
        self.value = drawn(n_heads * d_value, d_model)
        self.output = drawn(d_model, n_heads * d_value)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (f(x).view(B, T, self.n_heads, -1).transpose(1, 2)
                   for f in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
        return self.output((weights @ v).transpose(1, 2).flatten(2))


class Reader(torch.nn.Module):
    """Some layers of attention after a table of positions."""

    def __init__(self, d_model, n_heads, d_value, n_layers, n):
        super().__init__()
        self.positions = torch.nn.Parameter(torch.randn(n, d_model))
        self.layers = torch.nn.ModuleList(
            Attention(d_model, n_heads, d_value) for _ in range(n_layers))

    def forward(self, x):  # (B, n, d_model)
        x = x + self.positions
        for layer in self.layers:
            x = x + layer(torch.nn.functional.layer_norm(x, x.shape[-1:]))
        return x
# fmt: on


def mend(reader, generator):
    for layer in reader.layers:
        for linear in (layer.query, layer.key, layer.value, layer.output):
            torch.nn.init.normal_(linear.weight, std=linear.in_features**-0.5, generator=generator)


def redraw(matrices, generator=None, std=lambda matrix: matrix.shape[1] ** -0.5) -> None:
    with torch.no_grad():
        for matrix in matrices:
            matrix.normal_(0, std(matrix), generator=generator)


def matrices(reader, roles=("query", "key", "value", "output"), layers=slice(None)) -> list[Tensor]:
    return [getattr(layer, role).weight for layer in reader.layers[layers] for role in roles]


def one_generator_each(reader, generator):
    for matrix in matrices(reader):
        redraw([matrix], torch.Generator().manual_seed(generator.initial_seed()))


def same_numbers_in_each_layer(reader, generator):
    for layer in range(len(reader.layers)):
        generator.manual_seed(generator.initial_seed())
        redraw(matrices(reader, layers=slice(layer, layer + 1)), generator)


def resets(reader, generator):
    for layer in reader.layers:
        for linear in (layer.query, layer.key, layer.value, layer.output):
            linear.reset_parameters()


def reader_cases(seed: int) -> list[tuple[int, ...]]:
    return [(6, 3, 7, 2, 5, 10 * seed), (4, 2, 5, 1, 3, 10 * seed + 5)]


def mended_reader(answer, d_model, n_heads, d_value, n_layers, n, seed):
    torch.manual_seed(seed)
    reader, other = (Reader(d_model, n_heads, d_value, n_layers, n) for _ in range(2))
    kept = {name: p.detach().clone() for name, p in reader.named_parameters() if not name.endswith("weight")}
    answer(reader, torch.Generator().manual_seed(seed + 2))
    answer(other, torch.Generator().manual_seed(seed + 3))
    row = other.layers[0].key.weight[:1].detach()
    return kept, {name: p.detach() for name, p in reader.named_parameters()}, row, torch.rand(3)


def judge_reader(case, got, want):
    assert isinstance(got, tuple) and len(got) == 4, "What became of the reader?"
    parts = [isinstance(part, dict) and set(part) == set(right) for part, right in zip(got[:2], want[:2], strict=True)]
    assert all(parts), "Which parameters had the reader before? Has it them still?"
    pairs = [(got[part][name], want[part][name]) for part in (0, 1) for name in want[part]]
    pairs += [(got[2], want[2]), (got[3], want[3])]
    tensors = all(isinstance(x, torch.Tensor) and x.shape == y.shape and x.dtype == y.dtype for x, y in pairs)
    assert tensors, "Which shapes had the parameters of the reader before? Have they them still?"
    kept, after, row, rest = got
    weights = {name: after[name] for name in after if name.endswith("weight")}
    same = [torch.equal(weight, drawn(*weight.shape).weight) for weight in weights.values()]
    assert not all(same), "Nothing was drawn anew. Does your function change the matrices in place?"
    others = [name for name in kept if not torch.equal(kept[name], after[name])]
    assert not others, "Something has changed that the seed had not spoilt. Which tensors did `drawn` fill?"
    beginnings = [weight.flatten()[: min(w.numel() for w in weights.values())] for weight in weights.values()]
    cosines = torch.corrcoef(torch.stack(beginnings)).fill_diagonal_(0)
    assert cosines.isfinite().all(), "Some matrix is constant, or holds no number. Is it drawn at random?"
    assert not any(same) and cosines.abs().max() < 0.9, (
        "Two matrices hold the same numbers still. Which roles, and which layers, were drawn from one seed?"
    )
    assert torch.equal(rest, want[3]), "Torch's global generator has moved. From which one should you draw?"
    assert not torch.allclose(row, after["layers.0.key.weight"][:1]), (
        "Another generator gave the same matrices. Which one did you draw from?"
    )
    for role in ("query", "key", "value", "output"):
        own = torch.stack([weight for name, weight in weights.items() if role in name])
        rms = own.square().mean().sqrt() * math.sqrt(own.shape[-1])
        assert abs(rms - 1) < 5 / math.sqrt(2 * own.numel()), (
            "The scale of a matrix is not what it was. By the root of which of its two sizes did `drawn` divide?"
        )


one_seed = Mend(
    number="5.6",
    title="One seed for all",
    minutes=15,
    difficulty="medium",
    points=3,
    needs=("5.4", "The article's code, and a trap in it"),
    statement=(
        "Build `reader = Reader(64, 4, 24, 2, 10)` and run `attntut.diagnose` on it with random tokens `x` of shape "
        "`(B, 10, 64)`. Its two findings have one cause, which has spoilt more than they name. Write "
        "`mend(reader, generator)`, which draws in place, from the generator that it gets, all that was drawn wrongly in a "
        "reader of any size. The scale of each matrix stays what it was meant to be, and nothing else changes."
    ),
    hint="Which of the tensors of a reader did `drawn` fill, and with which standard deviation? What is the fan-in of the output matrix?",
    name="mend",
    starter="def mend(reader, generator):\n    ...",
    setup=(drawn, Attention, Reader),
    make=reader_cases,
    ask=mended_reader,
    compare=judge_reader,
    solution=mend,
    wrong={
        "nothing": (lambda reader, generator: None, "Nothing was drawn"),
        "keys alone": (lambda reader, g: redraw(matrices(reader, ["key"]), g), "Which roles"),
        "queries and keys": (lambda reader, g: redraw(matrices(reader, ["query", "key"]), g), "Which roles"),
        "the second layer": (lambda reader, g: redraw(matrices(reader, layers=slice(1, 2)), g), "Which roles"),
        "a generator each": (one_generator_each, "Which roles"),
        "the same in each layer": (same_numbers_in_each_layer, "Which roles"),
        "positions too": (lambda reader, g: redraw([p for p in reader.parameters() if p.ndim == 2], g), "spoilt"),
        "biases too": (resets, "spoilt"),
        "global generator": (lambda reader, g: redraw(matrices(reader)), "global generator"),
        "a generator of its own": (lambda r, g: redraw(matrices(r), torch.Generator().manual_seed(7)), "Another generator"),
        "fan_out": (lambda r, g: redraw(matrices(r), g, lambda w: w.shape[0] ** -0.5), "By the root of which"),
        "unit weights": (lambda r, g: redraw(matrices(r), g, lambda w: 1), "By the root of which"),
    },
)  # fmt: skip


# fmt: off
def own_weight(d, n_heads, n):
    """Mean weight of a token on itself, with one matrix for W_q and W_k."""
    rng, total = torch.Generator().manual_seed(0), 0
    for _ in range(100):
        W = torch.randn(d, d, generator=rng) / math.sqrt(d)
        x = torch.randn(n, d, generator=rng)
        q = (x @ W.T).view(n, n_heads, -1).transpose(0, 1)
        logits = q @ q.mT / math.sqrt(q.shape[-1])  # (n_heads, n, n)
        weights = torch.softmax(logits, dim=-1)
        total += weights.diagonal(dim1=-2, dim2=-1).mean().item()
    return total / 100
# fmt: on


measured = functools.cache(own_weight)


def predicted(d: int, n_heads: int, n: int, variance: float = 1.0) -> float:
    """By the chapter's formula, with means for the own logit and for the variance of the others."""
    d_head = d / n_heads
    lead = math.sqrt(d_head) - math.log(n - 1) - variance * (1 + d_head / d) / 2
    return 1 / (1 + math.exp(-lead))


weight_on_itself = Explain(
    number="5.7",
    title="A mean of weights",
    minutes=20,
    difficulty="hard",
    points=2,
    manual=3,
    needs=("The article's code, and a trap in it",),
    statement=(
        "Somebody draws with the trap, so that $W_q = W_k$, with $\\sigma^2 = 1/d$, a width of <<d>> and *four* heads. <<n>> "
        "tokens of unit variance come in. Predict the weight $p_{ii}$ of a token on itself: put the *means* of $s_{ii}$ and "
        "of $v_i$ into the chapter's formula. Then measure it with `own_weight(<<d>>, 4, <<n>>)`. Answer with both weights. "
        "The two differ, and on the same side whatever the seed: explain why. (Measure how far the $s_{ii}$ scatter.)"
    ),
    hint="The chapter's prediction is the mean of sigmoids over many tokens, and yours is the sigmoid of a mean. How is a sigmoid bent above one half?",
    rubric=(
        "The prediction is sigmoid(√d_h − ln(n − 1) − (1 + d_h/d)/2) with d_h = d/4 (1 point). The own logits scatter by "
        "about 1.6 around √d_h, from token to token (1). Above one half the sigmoid bends downwards, so a token with a "
        "smaller own logit loses more weight than one with a larger one gains, and the mean of the weights is below the "
        "weight at the mean (1). (The scatter of v_i explains little of it.)"
    ),
    setup=(own_weight,),
    parameters={"d": (144, 100, 196), "n": (64, 48, 32, 40)},
    solve=lambda d, n: measured(d, 4, n),
    traps={
        "That is what the formula gives for the means. What do the tokens give?": lambda d, n: predicted(d, 4, n),
        "Is that a prediction? And what has become of the variance of the other logits?": lambda d, n: predicted(d, 4, n, 0),
        "How many heads has the layer, and how wide is each?": lambda d, n: measured(d, 1, n),
        "That is the weight where query and key are drawn apart. Are they here?": lambda d, n: 1 / n,
        "That is what the other tokens get. What does a token give itself?": lambda d, n: 1 - measured(d, 4, n),
        "Is that a weight, or a percentage?": lambda d, n: 100 * measured(d, 4, n),
    },
    ask="Is it the number that `own_weight` gives for this width, four heads and so many tokens?",
    wrong={"as many tokens as the width": lambda d, n: measured(d, 4, d)},
)  # fmt: skip

EXERCISES = [
    one_zero_matrix, ranks, far_enough_apart, draw_once, exchange_of_heads, one_seed, weight_on_itself,
]  # fmt: skip
