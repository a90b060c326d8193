"""Exercises of chapter 10, *Width*."""

import functools
import math

import torch
from torch import Tensor, nn

from exercises.exercise import Choice, Code, Explain, Mend, Number, short

one_rises = Choice(
    number="10.1",
    title="One curve rises",
    minutes=3,
    difficulty="easy",
    points=1,
    needs=("The coordinate check",),
    statement=(
        "You have written μP yourself and check it: one step of Adam at widths 64 to 512, always with four heads. The output "
        "moves alike at every width. The stream does nearly, with an exponent of 0.2. The attention logits move almost three times as far at 512 as at "
        "64. What have you most likely forgotten?"
    ),
    hint="Which exponent is that? Put each mistake into the three formulas, and see which rows change.",
    options={
        "The readout is still drawn with $1/\\sqrt d$.": (
            "Which of the three quantities is a product with the readout? Does that one rise?"
        ),
        "The rates of $W_q$ and $W_k$ do not fall with the width.": (
            "Three is about $\\sqrt8$, an exponent of ½. With which exponent would the logits move at one rate for all widths?"
        ),
        "The rates of all hidden matrices do not fall with the width.": (
            "How much farther would the stream move at width 512, with the exponent 1?"
        ),
        "The embedding keeps its rate.": (
            "So it does in μP, too. How many entries does the sum have that a one-hot vector makes of a table?"
        ),
        "The logits are still divided by $\\sqrt{d_h}$.": "",
        "Nothing. A logit is a sum over $d_h$ entries, and there are more of them.": (
            "There are more, and they are aligned. Which factor of μP is made to undo just that?"
        ),
    },
)


def own_exponents(m: float, p: float, c: float, r: float) -> tuple[float, float]:
    """Exponents of logits and output, where queries have one size at every width."""
    a = 1 - p - m
    return a + 1 - c, max(a, a + 1 - r)


own_rule = Number(
    number="10.2",
    title="A rule of your own",
    minutes=5,
    difficulty="easy",
    points=2,
    needs=("Three exponents for each parametrization",),
    statement=(
        "You invent a parametrization. Its hidden matrices are multiplied by $m \\propto d^{-<<m>>}$ in the forward pass, and drawn such that "
        "queries have variance 1 at every width. The entries of the readout, with its multiplier, are $m\\sigma_r \\propto d^{-<<r>>}$. The "
        "logits have the factor $c \\propto d_h^{-<<c>>}$, and there are always four heads. The rates of hidden matrices and "
        "readout fall like $d^{-p}$. Which $p$ makes the stream move alike at every width? With which exponents do the "
        "attention logits and the output move then? Answer with three numbers."
    ),
    hint="Put $[m]$, $[c]$, $[q]$ and $[m\\sigma_r]$ into the three formulas. Two ways lead to a change of the output.",
    starter="answer = (..., ..., ...)  # p, logits, output",
    parameters={"m": (0.25, 0.75), "r": (1.5, 1.25, 1.75, 2.5), "c": (0.75, 0.5, 0.25)},
    solve=lambda m, r, c: (1 - m, *own_exponents(m, 1 - m, c, r)),
    traps={
        "With $p = 1$ the stream would move less in wider models. Which rate does $m$ stand for already?": (
            lambda m, r, c: (1, *own_exponents(m, 1, c, r))
        ),
        "The multiplier makes a step of $W$ smaller. Must the rates fall faster for it, or more slowly?": (
            lambda m, r, c: (1 + m, 1 - c, 0)
        ),
        "$p$ and logits are right. The readout's product with the change shrinks. What else moves the output?": (
            lambda m, r, c: (1 - m, 1 - c, 1 - r)
        ),
        "$p$ and output are right. A logit sums $d_h$ aligned terms. Where is that 1 among your exponents?": (
            lambda m, r, c: (1 - m, -c, 0)
        ),
        "$p$ and output are right. Does $c$ make the change of a logit larger in wider heads, or smaller?": (
            lambda m, r, c: (1 - m, 1 + c, 0)
        ),
    },
    ask="Which $p$ makes $1 - p + [m]$ zero? And what is left of the other two formulas when $a = 0$?",
)  # fmt: skip


def change(n: float, batch: float) -> float:
    """rms(Δy)/η."""
    return math.sqrt(2 / (math.pi * batch) * n * (n - 1) + n)


def farther(narrow: float, wide: float, size) -> tuple[float, float]:
    """Ratio of the sizes at two widths, and the power of the width that it looks like."""
    ratio = size(wide) / size(narrow)
    return short(ratio), short(math.log(ratio) / math.log(wide / narrow))


def of_batch(B: float, narrow: float, wide: float) -> tuple[float, float]:
    return farther(narrow, wide, lambda n: change(n, B))


large_batch = Number(
    number="10.3",
    title="A large batch",
    minutes=8,
    difficulty="medium",
    points=2,
    needs=("The prediction: one step of Adam",),
    statement=(
        "You train with <<B>> unrelated examples a step, and widen your layers from $n = $ <<narrow>> to <<wide>>. By which factor "
        "farther does the first step of Adam move $Wx$, at the same rate? And with which single power $p$ of the width, "
        "$\\eta \\propto n^{-p}$, would rates have to fall between just these two widths, so that it moves equally far? "
        "Predict two numbers."
    ),
    hint="Put both widths into the chapter's formula for a batch. For the second number: $(\\text{wide}/\\text{narrow})^p$ is the first one.",
    starter="answer = (..., ...)  # factor, p",
    parameters={"B": (512, 1024), "narrow": (64, 128, 32), "wide": (1024, 512, 2048, 768)},
    solve=of_batch,
    traps={
        "That is right for one example, or where the aligned part is all. Is it at the narrow width, with this batch?": (
            lambda B, narrow, wide: farther(narrow, wide, lambda n: n)
        ),
        "That is the random part alone. Where is the part that agrees with an example's own signs?": (
            lambda B, narrow, wide: farther(narrow, wide, math.sqrt)
        ),
        "Is that the ratio of two changes, or of their squares?": (
            lambda B, narrow, wide: farther(narrow, wide, lambda n: change(n, B) ** 2)
        ),
        "Do an aligned part and a random one add, or do their squares?": (
            lambda B, narrow, wide: farther(narrow, wide, lambda n: math.sqrt(2 / (math.pi * B)) * n + math.sqrt(n))
        ),
        "Is that how much farther the wide layer moves, or by what its rate must be multiplied?": (
            lambda B, narrow, wide: (short(1 / of_batch(B, narrow, wide)[0]), of_batch(B, narrow, wide)[1])
        ),
        "The factor is right. Its logarithm counts octaves. How many octaves apart are the widths?": (
            lambda B, narrow, wide: (of_batch(B, narrow, wide)[0], short(math.log2(of_batch(B, narrow, wide)[0])))
        ),
        "The factor is right. Is η to fall or to rise with the width, and is there a minus in $n^{-p}$ already?": (
            lambda B, narrow, wide: (of_batch(B, narrow, wide)[0], -of_batch(B, narrow, wide)[1])
        ),
    },
    ask="What is $\\frac{2}{\\pi B}n(n-1) + n$ at each of the two widths, and what is the root of the ratio?",
)  # fmt: skip


def rates(narrow, wide, tables, lr, weight_decay):
    groups = {}
    for name, shape in wide.items():
        is_summed = len(shape) == 2 and name not in tables
        times = shape[1] / narrow[name][1] if is_summed else 1
        groups[name] = (lr / times, weight_decay * times)
    return groups


def rates_by(times=None, group=lambda lr, decay, times: (lr / times, decay * times)):
    """As the solution, with another factor or another use of it."""

    def plain(name, old, new, tables):
        return new[1] / old[1] if len(new) == 2 and name not in tables else 1

    def answer(narrow, wide, tables, lr, weight_decay):
        found = {name: (times or plain)(name, narrow[name], wide[name], tables) for name in wide}
        return {name: group(lr, weight_decay, factor) for name, factor in found.items()}

    return answer


def of_width(narrow, wide, tables) -> float:
    """By what the width has grown, from a table."""
    name = sorted(tables)[0]
    return wide[name][1] / narrow[name][1]


def one_factor(everywhere: bool):
    """The width's factor for each matrix; or only where the fan-in has grown."""

    def answer(narrow, wide, tables, lr, weight_decay):
        factor = of_width(narrow, wide, tables)

        def times(name, old, new, tables):
            is_matrix = len(new) == 2 and name not in tables
            return factor if is_matrix and (everywhere or new[1] != old[1]) else 1

        return rates_by(times)(narrow, wide, tables, lr, weight_decay)

    return answer


def rate_cases(seed: int) -> list[tuple[dict, dict, set, float, float]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    cases = []
    for is_named in (True, False):
        d, vocab, inputs, classes = draw(20, 30), draw(90, 99), draw(11, 19), draw(3, 9)
        times, inner, d_ff = draw(3, 6), 2 * d + 3, 3 * d + 1
        widths = {"d": (d, times * d), "inner": (inner, times * inner), "d_ff": (d_ff, times * d_ff)}
        if not is_named:
            widths |= {"inner": (inner, 2 * inner), "d_ff": (d_ff, (times + 4) * d_ff + 5)}
        shapes = {
            "embedding": (vocab, "d"), "patches": ("d", inputs), "norm": ("d",), "query": ("inner", "d"),
            "output": ("d", "inner"), "up": ("d_ff", "d"),
            "down": ("d", "d_ff"), "readout": (classes, "d"),
        }  # fmt: skip
        names = dict(zip(shapes, shapes, strict=True))
        if not is_named:
            order = torch.randperm(26, generator=generator).tolist()
            names = {name: "w_" + chr(97 + order[i]) for i, name in enumerate(shapes)}
        narrow, wide = (
            {
                names[name]: tuple(widths[x][k] if isinstance(x, str) else x for x in shape)
                for name, shape in shapes.items()
            }
            for k in (0, 1)
        )
        lr, decay = draw(2, 9) / 1000, draw(5, 20) / 100
        cases.append((narrow, wide, {names["embedding"]}, lr, decay))
    return cases


def judge_rates(case, got, want):
    narrow, wide, tables, lr, decay = case
    assert isinstance(got, dict) and set(got) == set(wide), (
        "Is what comes back a dictionary, with the name of every parameter and no other?"
    )
    pairs = {}
    for name, pair in got.items():
        assert isinstance(pair, (tuple, list)) and len(pair) == 2, f"Which two numbers does the group of `{name}` get?"
        pair = [x.item() if isinstance(x, torch.Tensor) and x.numel() == 1 else x for x in pair]
        assert all(type(x) in (int, float) and math.isfinite(x) for x in pair), (
            f"Are rate and decay of `{name}` both numbers?"
        )
        pairs[name] = pair

    def near(a, b):
        return abs(a - b) <= 1e-4 * abs(b)

    for name, (rate, _) in pairs.items():
        if near(rate, want[name][0]):
            continue
        new, old = wide[name], narrow[name]
        assert len(new) == 2, f"`{name}` is a gain or a bias. Over how many of its entries does an output sum?"
        assert name not in tables, f"`{name}` is a table. Over how many entries does a sum run when a row is looked up?"
        assert new[1] != old[1], (
            f"How many numbers does each output of `{name}` sum in the narrow model, and in the wide one?"
        )
        times = new[1] / old[1]
        assert not near(rate, lr), (
            f"The rate of `{name}` is what it was. Over how many aligned terms does the wide one sum?"
        )
        assert not near(rate, lr * times), "If a sum has more aligned terms, must the rate be larger or smaller?"
        assert not near(rate, lr / times**0.5), "Does a sum of aligned terms grow like their number, or like its root?"
        assert not near(rate, lr / new[1]), "At which width was `lr` found? Which rate has a model that is no wider?"
        raise AssertionError(
            f"By which factor has the number of terms grown that each output of `{name}` sums? Is it the same for all matrices?"
        )
    for name, (rate, each) in pairs.items():
        if not near(each, want[name][1]):
            assert near(rate, lr) or not near(each, decay), (
                f"The rate of `{name}` is smaller now. What share does AdamW take, with the decay times the rate?"
            )
            raise AssertionError(
                f"All rates are right. What is the product of rate and decay of `{name}`, and what was it before?"
            )


rates_code = Code(
    number="10.4",
    title="Rates from two lists of shapes",
    minutes=12,
    difficulty="medium",
    points=3,
    needs=("What frameworks do",),
    statement=(
        "`learning_rates` has to find the roles of a model. Shapes are enough. You tuned `lr` and AdamW's `weight_decay` on a narrow model, and now "
        "there is a wide one. Write `rates(narrow, wide, tables, lr, weight_decay)`. `narrow` and `wide` are dictionaries with the same names: "
        "the name of a parameter → its shape, a tuple. A matrix is `(fan_out, fan_in)`, as torch keeps it, a gain or a bias "
        "is `(n,)`. `tables` is the set of the names that belong to an `nn.Embedding`, whose shape is `(rows, d)`. Return a dictionary: name → "
        "`(lr, weight_decay)` of this parameter in the wide model, for `torch.optim.AdamW`. A step on one example is to move the output of every "
        "matrix as far as in the narrow model, and one step's decay is to take the same share of every parameter as there. Where no "
        "sum has become longer, rate and decay stay. Widths need not all grow by the same factor."
    ),
    hint="$|\\Delta y_i| = \\sqrt{2/\\pi}\\,\\eta\\,n$. What is $n$ in a shape? And what is $n$ for a table, which reads one row?",
    name="rates",
    starter="def rates(narrow, wide, tables, lr, weight_decay):\n    ...",
    make=rate_cases,
    compare=judge_rates,
    solution=rates,
    wrong={
        "one rate for all": (rates_by(lambda *_: 1), "aligned terms does the wide one"),
        "tables, too": (
            rates_by(lambda name, old, new, tables: new[1] / old[1] if len(new) == 2 else 1), "is a table"),
        "vectors, too": (
            rates_by(lambda name, old, new, tables: 1 if name in tables else new[-1] / old[-1]), "gain or a bias"),
        "by the outputs": (
            rates_by(lambda name, old, new, tables: new[0] / old[0] if len(new) == 2 and name not in tables else 1),
            "in the narrow model"),
        "by all entries": (
            rates_by(lambda name, old, new, tables: math.prod(new) / math.prod(old) if len(new) == 2 and name not in tables else 1),
            "in the narrow model"),
        "the width's factor for every matrix": (one_factor(True), "in the narrow model"),
        "the width's factor where the fan-in grows": (one_factor(False), "same for all matrices"),
        "the root": (
            rates_by(lambda name, old, new, tables: (new[1] / old[1]) ** 0.5 if len(new) == 2 and name not in tables else 1),
            "or like its root"),
        "by the fan-in alone": (
            rates_by(lambda name, old, new, tables: new[1] if len(new) == 2 and name not in tables and new[1] != old[1] else 1),
            "At which width"),
        "faster": (rates_by(group=lambda lr, decay, times: (lr * times, decay / times)), "larger or smaller"),
        "the decay as it was": (rates_by(group=lambda lr, decay, times: (lr / times, decay)), "smaller now"),
        "the decay falls, too": (rates_by(group=lambda lr, decay, times: (lr / times, decay / times)), "product of rate"),
        "the decay by the square": (
            rates_by(group=lambda lr, decay, times: (lr / times, decay * times**2)), "product of rate"),
        "rates alone": (rates_by(group=lambda lr, decay, times: lr / times), "Which two numbers"),
    },
)  # fmt: skip


def without_multiplier(kind, weight, m, lr, weight_decay, eps):
    if kind == "sgd":
        return m * weight, m**2 * lr, weight_decay / m**2, eps
    power = 2 if kind == "adam" else 1
    return m * weight, m * lr, weight_decay / m**power, eps / m


POWERS = {  # of m, in the weight, the rate, the decay and ε
    "sgd": (1, 2, -2, 0),
    "adam": (1, 1, -2, -1),
    "adamw": (1, 1, -1, -1),
}


def by_powers(**changes: tuple[float, ...]):
    """As the solution, with other powers of m: ``of_all``, or by the kind of optimizer; None keeps what is right."""

    def answer(kind, weight, m, *numbers):
        asked = changes.get(kind, changes.get("of_all", (None,) * 4))
        powers = [p if q is None else q for p, q in zip(POWERS[kind], asked, strict=True)]
        return tuple(m**p * x for p, x in zip(powers, (weight, *numbers), strict=True))

    return answer


def multiplier_cases(seed: int) -> list[tuple[str, Tensor, float, float, float, float]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return round(low + (high - low) * torch.rand((), generator=generator).item(), 3)

    cases = []
    for kind, low, high, shape in (("adamw", 0.1, 0.3, (2, 3)), ("adam", 1.5, 3, (1, 4)), ("sgd", 0.2, 0.5, (3, 2))):
        weight = torch.randn(shape, generator=generator)
        eps = 0.0 if kind == "sgd" else draw(1, 9) * 1e-6
        cases.append((kind, weight, draw(low, high), draw(1, 9) / 1000, draw(0.05, 0.2), eps))
    return cases


def judge_multiplier(case, got, want):
    kind, weight, m, lr, decay, eps = case
    assert isinstance(got, tuple) and len(got) == 4, "Which four things are asked for, in one tuple?"
    W, *rest = got
    assert isinstance(W, torch.Tensor) and W.shape == weight.shape, "Which shape has a weight that gives the same y?"
    rest = [x.item() if isinstance(x, torch.Tensor) and x.numel() == 1 else x for x in rest]
    assert all(type(x) in (int, float) and math.isfinite(x) for x in rest), (
        "Are rate, decay and ε three numbers? For SGD, which has no ε, it stays 0."
    )
    assert torch.allclose(W.to(weight.dtype), m * weight, rtol=1e-4, atol=1e-6), (
        "The layer without the multiplier computes W x. Which W gives what m V x gives?"
    )

    def near(a, b):
        return abs(a - b) <= 1e-4 * abs(b)

    rate, share, small = rest
    if not near(rate, want[1]):
        assert not near(rate, lr), (
            f'For "{kind}" the rate is what it was. If V moves by some ΔV, by what does m V move?'
        )
        if kind == "sgd":
            assert not near(rate, m * lr), (
                "If V moves by ΔV, W moves by m ΔV: that is one m. How does the gradient at V differ from that at W?"
            )
        else:
            assert not near(rate, m**2 * lr), (
                f'For "{kind}" the gradient at V is m times that at W. What does Adam make of a factor in its gradient?'
            )
        raise AssertionError(
            f'How far does a step of "{kind}" move V? So how far does it move m V, and which rate moves W as far?'
        )
    if not near(small, want[3]):
        assert not near(small, eps), (
            "In $m\\,g/(|m\\,g| + ε)$, does the ratio of the gradient to ε stay as it was when W has the gradient g?"
        )
        raise AssertionError(
            "Divide numerator and denominator of $m\\,g/(|m\\,g| + ε)$ by m. What stands in the place of ε?"
        )
    if not near(share, want[2]):
        product = "the share of V that a step's decay takes is the product of rate and decay"
        if kind == "adamw":
            assert not near(share, decay), f"For AdamW {product}. What is it with the new rate?"
            raise AssertionError(f"For AdamW {product}. Which share of W does your step take, and which one should it?")
        assert not near(share, decay), (
            f'For "{kind}" the decay is what it was. What is λV in terms of W, and beside which gradient does it stand?'
        )
        if kind == "adam":
            raise AssertionError(
                "For Adam λV is added to the gradient, $m\\,g_W + λV$, and not to the step. Write V as W/m and take m out of the sum. What "
                "stands before W?"
            )
        raise AssertionError("For SGD a step takes ηλ of V. Which product must rate and decay of W have?")


multiplier_code = Code(
    number="10.5",
    title="A multiplier is more than a rate",
    minutes=25,
    difficulty="hard",
    points=4,
    needs=("What frameworks do", "10.4"),
    statement=(
        "A layer computes $y = m\\,Vx$ with a multiplier $m > 0$, and learns $V$. You want to train $W = mV$ in its place, without a "
        "multiplier, so that $y$ is the same after *every* step. Write `without_multiplier(kind, weight, m, lr, weight_decay, "
        "eps)`, which gets $V$, $m$, and $\\eta$, $\\lambda$ and $\\varepsilon$ of the optimizer of $V$. It returns "
        "`(weight, lr, weight_decay, eps)` for $W$ and the same kind of optimizer. `kind` is one of three. In torch a step without momentum is, with the "
        "gradient $g$ of the loss at $V$:\n\n"
        '- `"sgd"`: $V \\leftarrow V - \\eta\\,(g + \\lambda V)$. It has no $\\varepsilon$: you get 0 and return 0.\n'
        '- `"adam"`: $G = g + \\lambda V$ and $V \\leftarrow V - \\eta\\,G / (|G| + \\varepsilon)$.\n'
        '- `"adamw"`: $V \\leftarrow V - \\eta\\lambda V$, then $V \\leftarrow V - \\eta\\,g / (|g| + \\varepsilon)$.\n\n'
        "(Adam's are the first steps. Later ones have means over the steps in the place of $G$ and $|G|$, to which "
        "the same applies.)"
    ),
    hint=(
        "The gradient at $V$ is $m$ times the gradient at $W$. Multiply each rule by $m$, write $W$ for $mV$ everywhere, and compare with the same "
        "rule for $W$."
    ),
    name="without_multiplier",
    starter="def without_multiplier(kind, weight, m, lr, weight_decay, eps):\n    ...",
    make=multiplier_cases,
    compare=judge_multiplier,
    solution=without_multiplier,
    wrong={
        "the rate alone": (by_powers(of_all=(1, 1, 0, 0)), "ratio of the gradient to ε"),
        "no ε": (by_powers(adam=(1, 1, -2, 0), adamw=(1, 1, -1, 0)), "ratio of the gradient to ε"),
        "ε the other way": (by_powers(adam=(1, 1, -2, 1), adamw=(1, 1, -1, 1)), "in the place of ε"),
        "the weight as it was": (by_powers(of_all=(0, None, None, None)), "Which W gives"),
        "the weight divided": (by_powers(of_all=(-1, None, None, None)), "Which W gives"),
        "one rule for all, Adam's": (by_powers(sgd=(1, 1, -2, 0)), "from that at W"),
        "one rule for all, SGD's": (by_powers(of_all=(1, 2, -2, 0)), "a factor in its gradient"),
        "rate as it was": (by_powers(of_all=(1, 0, 0, 0)), "some ΔV"),
        "rate divided": (by_powers(of_all=(1, -1, 1, 0)), "moves W as far"),
        "AdamW's decay for Adam": (by_powers(adam=(1, 1, -1, -1)), "take m out of the sum"),
        "Adam's decay for AdamW": (by_powers(adamw=(1, 1, -2, -1)), "Which share of W"),
        "Adam's decay as it was": (by_powers(adam=(1, 1, 0, -1)), "beside which gradient"),
        "AdamW's decay as it was": (by_powers(adamw=(1, 1, 0, -1)), "with the new rate"),
        "SGD's decay as it was": (by_powers(sgd=(1, 2, 0, 0)), "beside which gradient"),
        "SGD's decay once": (by_powers(sgd=(1, 2, -1, 0)), "Which product"),
    },
)  # fmt: skip


# fmt: off
class UnitBlock(torch.nn.Module):
    """A pre-LN block with unit scaling: weights N(0, 1), multipliers."""

    def __init__(self, d_model, n_heads, d_head, d_ff):
        super().__init__()
        self.n_heads, inner = n_heads, n_heads * d_head
        shapes = {"query": (d_model, inner), "key": (d_model, inner),
                  "value": (d_model, inner), "output": (inner, d_model),
                  "up": (d_model, d_ff), "down": (d_ff, d_model)}
        self.multipliers = dict.fromkeys(shapes, 32**-0.5)
        for role, shape in shapes.items():
            layer = torch.nn.Linear(*shape, bias=False)
            torch.nn.init.normal_(layer.weight)
            self.add_module(role, layer)
        self.norm1 = torch.nn.LayerNorm(d_model)
        self.norm2 = torch.nn.LayerNorm(d_model)

    def forward(self, x):
        B, T, C = x.shape
        m, y = self.multipliers, self.norm1(x)
        q, k, v = (z.view(B, T, self.n_heads, -1).transpose(1, 2)
                   for z in (m["query"] * self.query(y),
                             m["key"] * self.key(y),
                             m["value"] * self.value(y)))
        logits = q @ k.mT / q.shape[-1] ** 0.5
        mix = torch.softmax(logits, dim=-1) @ v  # (B, H, T, d_head)
        mix = mix.transpose(1, 2).reshape(B, T, -1)
        x = x + m["output"] * self.output(mix)
        inside = torch.relu(m["up"] * self.up(self.norm2(x)))
        return x + m["down"] * self.down(inside)
# fmt: on


def mend(block):
    for role in block.multipliers:
        block.multipliers[role] = getattr(block, role).in_features ** -0.5


def multiplied(by, roles: str = "query key value output up down"):
    """Set some multipliers by a rule."""

    def answer(block):
        for role in roles.split():
            block.multipliers[role] = by(block, getattr(block, role))

    return answer


@torch.no_grad()
def in_the_weights(block: nn.Module) -> None:
    """The same function at the start, by smaller weights."""
    for layer in block.modules():
        if isinstance(layer, nn.Linear):
            layer.weight *= math.sqrt(32 / layer.in_features)


@torch.no_grad()
def query_divided(block: nn.Module) -> None:
    """What the report names."""
    block.query.weight *= 32 / block.query.in_features


@torch.no_grad()
def drawn_anew(block: nn.Module) -> None:
    """What the report names, for every matrix."""
    for parameter in block.parameters():
        if parameter.ndim == 2:
            nn.init.xavier_normal_(parameter)


@torch.no_grad()
def both(block: nn.Module) -> None:
    """Multipliers as they should be, and weights that are divided, too."""
    in_the_weights(block)
    mend(block)


def unit_cases(seed: int) -> list[tuple[int, int, int, int, int]]:
    generator = torch.Generator().manual_seed(seed)
    d_model, n_heads, d_head, d_ff = (
        int(torch.randint(low, high, (), generator=generator)) for low, high in ((21, 30), (2, 4), (17, 20), (60, 80))
    )
    return [(d_model, n_heads, d_head, d_ff, seed)]


def mended_block(answer, d_model, n_heads, d_head, d_ff, seed):
    torch.manual_seed(seed)
    block = UnitBlock(d_model, n_heads, d_head, d_ff)
    before = {name: parameter.detach().clone() for name, parameter in block.named_parameters()}
    answer(block)
    after = {name: parameter.detach() for name, parameter in block.named_parameters()}
    kept = {name: x.shape for name, x in after.items()} == {name: x.shape for name, x in before.items()}
    changed = [name for name in before if kept and not torch.equal(before[name], after[name])]
    return kept, changed, block.multipliers


def judge_unit_block(case, got, want):
    d_model, n_heads, d_head, d_ff = case[:4]
    assert isinstance(got, tuple) and len(got) == 3, "Is the block there still?"
    kept, changed, gains = got
    assert kept is True, "Which parameters had the block before? Are they all there still, in their shapes?"
    assert isinstance(gains, dict) and set(gains) == set(want[2]), "Which six multipliers had the block before?"
    gains = {role: m.item() if isinstance(m, torch.Tensor) and m.numel() == 1 else m for role, m in gains.items()}
    assert all(type(m) in (int, float) and math.isfinite(m) for m in gains.values()), "Are all multipliers numbers?"
    assert not changed, (
        "A weight was changed. Unit scaling keeps the variance of weights at 1. How far does a step of Adam move "
        "$y = m\\,Wx$ if the width is in W, and how far if it is in m?"
    )
    read = dict.fromkeys(gains, d_model) | {"output": n_heads * d_head, "down": d_ff}
    written = dict.fromkeys(gains, n_heads * d_head) | {"output": d_model, "up": d_ff, "down": d_model}

    def near(a, b):
        return abs(a / b - 1) < 1e-3

    def all_are(rule, sizes=read):
        return all(near(gains[role], rule(sizes[role])) for role in gains)

    wrong = [role for role in gains if not near(gains[role], want[2][role])]
    if not wrong:
        return
    old = [role for role in gains if near(gains[role], 32**-0.5)]
    assert len(old) < len(gains), "All multipliers are what they were. Does your function change the block in place?"
    assert not old, (
        f"The multiplier of `{old[0]}` is what it was. The report sees the logits. Which other maps have the same constant?"
    )
    assert not all_are(lambda n: n**0.5), "Does a map with more terms need a larger multiplier, or a smaller one?"
    assert not all_are(lambda n: 1 / n), "How does a sum of n random terms grow: like n, or like its root?"
    assert not all_are(lambda n: (32 * n) ** -0.5), "Is the old constant still in your product?"
    assert not all_are(lambda n: n**-0.5, written), (
        "These are the roots of the numbers of outputs. What does an output sum?"
    )
    raise AssertionError(f"How many numbers does `{wrong[0]}` read? Is that the same for all maps of the block?")


constant_multiplier = Mend(
    number="10.6",
    title="A constant that should have fallen",
    minutes=12,
    difficulty="medium",
    points=3,
    needs=("Three exponents for each parametrization", "What frameworks do"),
    statement=(
        "Somebody wrote `UnitBlock` for unit scaling at width 32, and left its multipliers as constants. Draw a `UnitBlock(256, 4, 64, 512)` and run "
        "`attntut.diagnose` on it, with `torch.randn(4, 16, 256)`. Read what it finds. It proposes to divide or to redraw weights, and that "
        "would silence it. But then the step of a hidden matrix would not be that of unit scaling any more. Write `mend(block)`, which makes unit "
        "scaling of any such block, in place: the parameters stay as they are, and only `block.multipliers` changes. Run `attntut.diagnose` again."
    ),
    hint="$m = 1/\\sqrt{f_\\text{in}}$, and the report sees only two of the six maps. Which `fan_in` has `down`, and which one `output`?",
    name="mend",
    starter="def mend(block):\n    ...",
    setup=(UnitBlock,),
    make=unit_cases,
    ask=mended_block,
    compare=judge_unit_block,
    solution=mend,
    wrong={
        "nothing": (lambda block: None, "All multipliers are what they were"),
        "in the weights": (in_the_weights, "if the width is in W"),
        "the report's remedy": (query_divided, "if the width is in W"),
        "drawn anew": (drawn_anew, "if the width is in W"),
        "in both": (both, "if the width is in W"),
        "query alone": (multiplied(lambda block, layer: 32**0.5 / layer.in_features, "query"), "Which other maps"),
        "query and key": (multiplied(lambda block, layer: layer.in_features**-0.5, "query key"), "Which other maps"),
        "attention alone": (
            multiplied(lambda block, layer: layer.in_features**-0.5, "query key value output"), "Which other maps"),
        "the width for all": (multiplied(lambda block, layer: block.query.in_features**-0.5), "that the same for all maps"),
        "the outputs": (multiplied(lambda block, layer: layer.out_features**-0.5), "numbers of outputs"),
        "no root": (multiplied(lambda block, layer: 1 / layer.in_features), "or like its root"),
        "the other way": (multiplied(lambda block, layer: layer.in_features**0.5), "larger multiplier"),
        "times the old one": (
            multiplied(lambda block, layer: 32**-0.5 * layer.in_features**-0.5), "old constant"),
        "the head's width": (
            multiplied(lambda block, layer: (block.query.out_features // block.n_heads) ** -0.5), "that the same for all maps"),
    },
)  # fmt: skip


# fmt: off
def behind_relu(n, batch):
    """W (n, n); x (batch, n) behind a ReLU; the gradients at W x."""
    torch.manual_seed(0)
    x = 2**0.5 * torch.relu(torch.randn(batch, n))
    upper = torch.randn(batch, n).sign()
    W = torch.randn(n, n) / n**0.5
    return W, x, upper
# fmt: on


@functools.cache
def relu_step(n: int, batch: int, lr: float = 1e-4, kind: str = "all") -> float:
    """How the first step of Adam changes Wx, on all examples or on the first alone."""
    with torch.random.fork_rng(devices=[]):
        _, x, upper = behind_relu(n, batch)
    if kind == "first":
        x, upper = x[:1], upper[:1]
    gradient = upper.mT @ x
    moved = lr * x @ gradient.sign().mT
    size = moved.abs().mean() if kind == "absolute" else moved.square().mean().sqrt()
    return short(size.item())


related_examples = Explain(
    number="10.7",
    title="Examples behind a ReLU",
    minutes=15,
    difficulty="medium",
    points=2,
    manual=3,
    needs=("The prediction: one step of Adam", "10.3"),
    statement=(
        "`behind_relu(n, batch)` gives a matrix, a batch of examples that come out of a ReLU, scaled so that their mean square is 1, and the "
        "gradients at $Wx$: the loss is the sum of all entries of `upper * (x @ W.mT)`. Take `n` = <<n>> and `batch` = <<batch>>. Predict by the chapter's formula for a batch, by which root "
        "mean square one step of `torch.optim.Adam` with $\\eta = 10^{-4}$ changes `x @ W.mT`. Then measure it. Answer with both "
        "numbers, and explain in two or three sentences why they differ. Would a batch four times as large halve the change?"
    ),
    hint="What do the entries of `x` have in common that are all ≥ 0? What is then the sign of $\\sum_b \\delta_{bi} x_{bj}$, for one $i$ and all $j$?",
    rubric=(
        "The prediction is η√(2n(n − 1)/(πB) + n) (1 point). Behind a ReLU the examples share a positive mean: they are not unrelated (cosine 1/π), so that the "
        "gradients of a row, Σ_b δ_bi x_bj, mostly have the sign of Σ_b δ_bi for all j, and this step is aligned with every example (1). So the "
        "aligned part does not fall like 1/√B: a batch four times as large leaves the change nearly as it was, about 0.26 ηn (1)."
    ),
    setup=(behind_relu,),
    parameters={"n": (1024, 768, 512), "batch": (128, 64, 192, 256)},
    solve=relu_step,
    traps={
        "That is the formula's number, or that of Gaussian inputs. What do the inputs of `behind_relu` give?": (
            lambda n, batch: short(1e-4 * change(n, batch))
        ),
        "That is the formula for one example. How many are there, and what is measured?": (
            lambda n, batch: short(1e-4 * n * math.sqrt(2 / math.pi))
        ),
        "That is a step on the first example alone. Over which examples does the loss sum?": (
            lambda n, batch: relu_step(n, batch, kind="first")
        ),
        "Which rate has torch's Adam if you do not give it one? Which one is asked for?": (
            lambda n, batch: relu_step(n, batch, lr=1e-3)
        ),
        "Is that the mean of the absolute values, or the root of the mean square?": (
            lambda n, batch: relu_step(n, batch, kind="absolute")
        ),
        "Is that the mean square, or its root?": lambda n, batch: short(relu_step(n, batch) ** 2),
    },
    ask="Is it `x @ W.mT` after one step minus the same before it, and the root of the mean square over all examples and entries?",
    rtol=0.02,
)  # fmt: skip

EXERCISES = [
    one_rises, own_rule, large_batch, rates_code, multiplier_code, constant_multiplier, related_examples,
]  # fmt: skip
