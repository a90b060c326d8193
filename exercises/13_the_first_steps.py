"""Exercises of chapter 13, *The first steps*."""

import functools
import math

import torch
from torch import Tensor, nn

from exercises.exercise import Choice, Code, Explain, Mend, Number

signal_or_noise = Choice(
    number="13.1",
    title="Signal and noise, once",
    minutes=2,
    difficulty="easy",
    points=1,
    needs=("Adam's first step is the learning rate",),
    statement=(
        "In the first batch one weight has the gradient 0.5, and all batches would give it the same. Another has $10^{-5}$, "
        "and the next batch would give it something else. You train with torch's Adam, without a warm-up, and $\\eta = 0.001$. "
        "How far do the two weights move in the first step?"
    ),
    hint="What do $\\hat m_1$ and $\\hat v_1$ hold? And how large is $10^{-5}$ beside $\\epsilon$?",
    options={
        "The first moves 50 000 times as far as the second.": (
            "That is a step in proportion to the gradient. Which optimizer takes it? By what does Adam divide?"
        ),
        "The first by 0.001. The second hardly moves, because its gradient is noise.": (
            "How many gradients has Adam seen at $t = 1$? How could it tell noise from a signal?"
        ),
        "Both by 0.0001, because $m$ takes a tenth of the gradient.": (
            "$m_1$ is a tenth of the gradient. By what is it divided to give $\\hat m_1$?"
        ),
        "Both by 0.001.": "",
        "Both by 0.0032, because $(1 - \\beta_1)/\\sqrt{1 - \\beta_2}$ is 3.2.": (
            "That is the ratio of $m_1$ and $\\sqrt{v_1}$ as they are. What does the correction for the start do to each?"
        ),
        "The first by 0.001, and the second by half of that, because of $\\epsilon$.": (
            "How large would a gradient be that is halved by $\\epsilon = 10^{-8}$?"
        ),
    },
)

warmed_way = Number(
    number="13.2",
    title="What a warm-up leaves out",
    minutes=4,
    difficulty="easy",
    points=2,
    needs=("Schedules, and RAdam, as numbers",),
    statement=(
        "You train for <<T>> updates: a linear warm-up over $w = $ <<w>> of them, then a constant rate $\\eta$. How far can a weight "
        "move at most during the warm-up, in units of $\\eta$, if each full update moves it by $\\eta$? And which share of the "
        "longest way of all <<T>> updates without a warm-up is left out by it? Answer with two numbers."
    ),
    hint="$f_t = t/w$ for $t = 1, \\ldots, w$. Add up the $f_t$ for the first number, and the $1 - f_t$ for the second.",
    starter="answer = (..., ...)  # way in the warm-up over the rate, share left out",
    parameters={"w": (10, 20, 8, 16), "T": (100, 50, 200)},
    solve=lambda w, T: ((w + 1) / 2, (w - 1) / 2 / T),
    traps={
        "Half of $w$ is the area of the triangle. Which factor has the first update, and which one the last?": (
            lambda w, T: (w / 2, w / 2 / T)
        ),
        "That is the warm-up of transformers, which begins with 0. With which factor does this one begin?": (
            lambda w, T: ((w - 1) / 2, (w + 1) / 2 / T)
        ),
        "That is the way without a warm-up. By what are the first updates multiplied?": lambda w, T: (w, 0),
        "The first number is right. Is the second one a share of the warm-up, or of the whole run?": (
            lambda w, T: ((w + 1) / 2, (w - 1) / 2 / w)
        ),
        "The first number is right. Is the second one what the warm-up leaves out, or what it leaves?": (
            lambda w, T: ((w + 1) / 2, (w + 1) / 2 / T)
        ),
        "The first number is right. Are updates of the warm-up left out whole, or in part?": (
            lambda w, T: ((w + 1) / 2, w / T)
        ),
        "The first number is right. How many full updates are left out, and which share is it of all?": (
            lambda w, T: ((w + 1) / 2, (w - 1) / 2)
        ),
    },
    ask="What is $1/w + 2/w + \\ldots + 1$? And what is missing from $w$, divided by all updates?",
)  # fmt: skip


def noise(t: float, beta: float) -> float:
    """Mean square of Adam's update t when gradients are noise."""
    return (1 - beta) / (1 + beta) * (1 + beta**t) / (1 - beta**t)


def twice(of):
    """A number for update t, and the same for a late one."""
    return lambda t, beta, s: (of(noise(t, beta), s), of(noise(math.inf, beta), s))


shorter_updates = Number(
    number="13.3",
    title="Held still",
    minutes=6,
    difficulty="medium",
    points=2,
    needs=("Adam's first step is the learning rate",),
    statement=(
        "You hold a model still and give Adam one batch after the other. The share $s = $ <<s>> of a weight's mean square gradient is signal. "
        "$\\beta_1 = $ <<beta>>, and $\\beta_2$ is close to 1. Which RMS, over the rate, has update number <<t>>? And to which RMS do the updates "
        "fall in the long run? Predict two numbers."
    ),
    hint="$\\mathbb E\\,u_t^2 = s + (1-s)\\sum a_k^2$. What becomes of $\\beta_1^t$ in the long run?",
    starter="answer = (..., ...)  # RMS of this update, RMS in the long run",
    parameters={"t": (4, 3, 5, 2), "beta": (0.9, 0.8, 0.7), "s": (0.2, 0.3, 0.1, 0.25)},
    solve=twice(lambda S, s: math.sqrt(s + (1 - s) * S)),
    traps={
        "That is noise alone. What does an average do with what all batches have in common?": twice(lambda S, s: math.sqrt(S)),
        "Is that the RMS, or the mean square?": twice(lambda S, s: s + (1 - s) * S),
        "If $s$ is signal, how much is noise?": twice(lambda S, s: math.sqrt(s + S)),
        "Which of the two shares does the average shrink, $s$ or $1 - s$?": twice(lambda S, s: math.sqrt(1 - s + s * S)),
        "Is $s$ a share of the gradient, or of its mean square?": twice(lambda S, s: math.sqrt(s**2 + (1 - s**2) * S)),
        "Do signal and noise add, or do their squares?": twice(lambda S, s: math.sqrt(s) + math.sqrt((1 - s) * S)),
        "The second number is right. How many gradients has update $t$ seen, with its own?": (
            lambda t, beta, s: (
                math.sqrt(s + (1 - s) * noise(t - 1, beta)), math.sqrt(s + (1 - s) * noise(math.inf, beta)))
        ),
        "The first number is right. Does the signal fade in the long run?": (
            lambda t, beta, s: (math.sqrt(s + (1 - s) * noise(t, beta)), math.sqrt(noise(math.inf, beta)))
        ),
    },
    ask="What is $\\frac{1-\\beta_1}{1+\\beta_1} \\cdot \\frac{1+\\beta_1^t}{1-\\beta_1^t}$, and what is it for $t \\to \\infty$? Which share of the mean square does it multiply?",
)  # fmt: skip


def frozen_start(gradients, held, warmup, beta1, beta2, eps):
    m = v = torch.zeros_like(gradients[0])
    updates = []
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        u = m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps)
        if t > held:
            updates.append(min(1, (t - held) / warmup) * u)
    return torch.stack(updates)


def frozen_by(m_time=lambda t, held: t, v_time=lambda t, held: t, factor=None, fill="mv", inside=False, absolute=False):
    """As the solution, with one thing changed."""

    def answer(gradients, held, warmup, beta1, beta2, eps):
        m = v = torch.zeros_like(gradients[0])
        updates = []
        for t, g in enumerate(gradients, start=1):
            is_filled = {"m": t > held or "m" in fill, "v": t > held or "v" in fill}
            m = beta1 * m + (1 - beta1) * g if is_filled["m"] else m
            v = beta2 * v + (1 - beta2) * (g.abs() if absolute else g**2) if is_filled["v"] else v
            if t > held:
                first, second = m_time(t, held), v_time(t, held)
                top = m / (1 - beta1**first) if first else m
                square = v / (1 - beta2**second) if second else v
                root = square if absolute else (square + eps).sqrt() if inside else square.sqrt()
                f = (factor or (lambda t, held, w: min(1, (t - held) / w)))(t, held, warmup)
                updates.append(f * top / (root if inside else root + eps))
        return torch.stack(updates)

    return answer


def crossed(gradients, held, warmup, beta1, beta2, eps):
    return frozen_start(gradients, held, warmup, beta2, beta1, eps)


def whole_series(gradients, held, warmup, beta1, beta2, eps):
    return torch.cat([0 * gradients[:held], frozen_start(gradients, held, warmup, beta1, beta2, eps)])


def frozen_cases(seed: int) -> list[tuple[Tensor, int, int, float, float, float]]:
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for shape, held, warmup in (((3, 4), 0, 1), ((6, 2), 0, 4), ((7, 3), 2, 1), ((9, 2, 3), 3, 4)):
        gradients = torch.randn(shape, generator=generator)
        if held:
            gradients[: held + 1, 0] = 0  # a token that comes late
        beta1, beta2 = (round(low + 0.09 * torch.rand((), generator=generator).item(), 3) for low in (0.8, 0.9))
        eps = round(0.05 + 0.05 * torch.rand((), generator=generator).item(), 3)
        cases.append((gradients, held, warmup, beta1, beta2, eps))
    return cases


def judge_frozen(case, got, want):
    gradients, held, warmup, beta1, beta2, eps = case
    assert isinstance(got, torch.Tensor), "Is what comes back one tensor, with an update in each row?"
    assert got.shape == want.shape, (
        "There is one row for each gradient after the held ones, in the shape of a gradient. Which shape is that?"
    )
    assert got.isfinite().all(), "Some gradients are 0 for a while. By what do you divide there?"
    got = got.to(want.dtype)

    def same(a, b):
        return torch.allclose(a, b, rtol=1e-3, atol=1e-5)

    if same(got, want):
        return
    assert not same(got, -want), "Is the update that moves a weight by $-\\eta u$ asked for, or the move?"
    if held == 0 and warmup == 1:
        g = gradients[0]
        scale = (got * want).flatten(1).sum(1) / (want * want).flatten(1).sum(1)
        is_stretched = same(got[0], want[0]) and same(got, scale[:, None] * want)
        assert not same(got[1:], want[1:]) and not is_stretched, (
            "A warm-up of one update is none: from the first update on the factor is 1. Is it so with yours?"
        )
        assert same(got[0], want[0]), (
            "Look at your first update, with nothing held and no warm-up. What are $\\hat m_1$ and $\\hat v_1$, after the "
            "correction of *both* for their start, and what stands beside the root of $\\hat v_1$?"
        )
        assert not same(got[0], g / (g.abs() + eps)) or same(got[1], want[1]), (
            "Your first update is right, and the second is not. Which β belongs to which average, and which power of it to $t = 2$?"
        )
        raise AssertionError("Is each average β times itself plus (1 − β) times what is new?")
    if held == 0:
        assert same(got[warmup - 1 :], want[warmup - 1 :]), (
            "After the warm-up the factor is 1, and at its last update, too. Is it so with yours?"
        )
        raise AssertionError("Without a warm-up this is right. Which factor has update 1 of $w$, and which update 2?")
    if warmup == 1:
        raise AssertionError(
            "With nothing held this is right. Which averages do the held gradients fill? And at the first update after them, "
            "how many gradients does each average hold?"
        )
    raise AssertionError("Each part alone is right. From which update on does the warm-up count, when some are held?")


frozen_code = Code(
    number="13.4",
    title="A frozen start",
    minutes=15,
    difficulty="medium",
    points=3,
    needs=("Adam's first step is the learning rate", "Who needs a warm-up? Stored runs"),
    statement=(
        "Write Adam with both remedies of the chapter. `frozen_start(gradients, held, warmup, beta1, beta2, eps)` gets the gradients of "
        "$T$ batches, a tensor of shape `(T, ...)`. While the first `held` of them come in, the weights stand still and only the averages "
        "fill. Then the weights move, with a linear warm-up over the next `warmup` updates (`warmup` ≥ 1). Return $f_t u_t$ of each update that moves the "
        "weights, so that $\\Delta w = -\\eta f_t u_t$, in a tensor of shape `(T - held, ...)`. Write it without `torch.optim`."
    ),
    hint="$t$ in $1 - \\beta^t$ counts what the averages have seen. The warm-up counts what has moved.",
    name="frozen_start",
    starter="def frozen_start(gradients, held, warmup, beta1, beta2, eps):\n    ...",
    forbidden=frozenset({"Adam", "AdamW", "RAdam", "NAdam", "optim"}),
    make=frozen_cases,
    compare=judge_frozen,
    solution=frozen_start,
    wrong={
        "no correction": (frozen_by(lambda t, held: 0, lambda t, held: 0), "of *both*"),
        "m alone corrected": (frozen_by(v_time=lambda t, held: 0), "of *both*"),
        "v alone corrected": (frozen_by(m_time=lambda t, held: 0), "of *both*"),
        "ε in the root": (frozen_by(inside=True), "beside the root"),
        "the betas swapped": (crossed, "Which β"),
        "corrected once for all": (frozen_by(lambda t, held: 1, lambda t, held: 1), "Which β"),
        "of absolute values": (frozen_by(absolute=True), "Which β"),
        "the held rows, too": (whole_series, "Which shape"),
        "no warm-up": (frozen_by(factor=lambda t, held, w: 1), "Which factor"),
        "a warm-up from 0": (frozen_by(factor=lambda t, held, w: min(1, (t - held - 1) / w)), "factor is 1"),
        "a warm-up without an end": (frozen_by(factor=lambda t, held, w: (t - held) / w), "factor is 1"),
        "a warm-up that counts the held": (frozen_by(factor=lambda t, held, w: min(1, t / w)), "From which update on"),
        "the held forgotten": (
            frozen_by(lambda t, held: t - held, lambda t, held: t - held, fill=""), "fill"),
        "only v filled": (frozen_by(m_time=lambda t, held: t - held, fill="v"), "fill"),
        "filled, and corrected as if not": (
            frozen_by(lambda t, held: t - held, lambda t, held: t - held), "how many gradients"),
        "the move": (lambda *case: -frozen_start(*case), "or the move"),
    },
    equivalent=("zeros_like(gradients[1])",),  # of the same shape
)  # fmt: skip


def noise_way(factors, beta1, signal, held):
    shares = [0.0] * (held + len(factors))
    for t, factor in enumerate(factors, start=held + 1):
        for k in range(t):
            shares[k] += factor * (1 - beta1) * beta1 ** (t - 1 - k) / (1 - beta1**t)
    noise = sum(share**2 for share in shares)
    return math.sqrt(signal * sum(factors) ** 2 + (1 - signal) * noise)


def way_by(of_held=lambda held: held, share=lambda s: s, is_corrected=True, join="shares", power=0.5):
    """As the solution, with one thing changed."""

    def answer(factors, beta1, signal, held):
        held, s, T = of_held(held), share(signal), len(factors)
        rows = []
        for t in range(held + 1, held + T + 1):
            a = torch.zeros(held + T, dtype=torch.float64)
            a[:t] = (1 - beta1) * beta1 ** torch.arange(t - 1, -1, -1, dtype=torch.float64)
            rows.append(a / (1 - beta1**t if is_corrected else 1))
        f, a = torch.tensor(factors, dtype=torch.float64), torch.stack(rows)
        noise = {
            "shares": (f @ a).square().sum(),
            "squares": f.square() @ a.square().sum(dim=1),
            "sizes": (f @ a.square().sum(dim=1).sqrt()).square(),
            "fresh": f.square().sum(),
        }[join]
        steady = f.square().sum() if join == "squares" else f.sum().square()
        return (s * steady + (1 - s) * noise).item() ** power

    return answer


def way_cases(seed: int) -> list[tuple[list[float], float, float, int]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return round(low + (high - low) * torch.rand((), generator=generator).item(), 3)

    def factors(T):
        return [draw(0.1, 1) for _ in range(T)]

    return [
        ([1.0, 1.0], draw(0.5, 0.8), 0.0, 0),
        (factors(5), draw(0.6, 0.9), 0.0, 0),
        (factors(6), draw(0.6, 0.9), 0.0, 3),
        (factors(4), draw(0.6, 0.9), draw(0.1, 0.6), 7),
    ]


def judge_way(case, got, want):
    factors, beta, signal, held = case
    got = got.item() if isinstance(got, torch.Tensor) and got.numel() == 1 else got
    assert type(got) in (int, float) and math.isfinite(got), "Is what comes back one number?"

    def near(a, b):
        return abs(a - b) <= 1e-3 * abs(b)

    if near(got, want):
        return
    assert not near(got, want**2), "Is that the mean square of the way, or its RMS?"
    sizes = []
    for t in range(held + 1, held + len(factors) + 1):
        sizes.append((1 - beta) / (1 + beta) * (1 + beta**t) / (1 - beta**t))
    if signal == 0:
        alone = sum(f**2 * size for f, size in zip(factors, sizes, strict=True))
        assert not near(got, alone**0.5) and not near(got, alone), (
            "These are the updates' mean squares, added. Are updates 1 and 2 independent, and in how many of them is $g_1$?"
        )
        assert not near(got, sum(f * size**0.5 for f, size in zip(factors, sizes, strict=True))), (
            "These are the updates' RMS, added. Do all updates of noise have the same sign?"
        )
    if held == 0 and len(factors) == 2:
        raise AssertionError(
            "Take two updates with the factor 1. What stands before $g_1$ in $u_1 + u_2$, with the correction by $1 - β^t$, and what before $g_2$?"
        )
    if held == 0:
        raise AssertionError(
            "With all factors 1 this is right. In which updates does gradient $k$ stand, and by which factor is each of them multiplied?"
        )
    if signal == 0:
        raise AssertionError(
            "With nothing held this is right. The held gradients move nothing when they come. Do they stand in later "
            "updates? And which $t$ has the first update that moves?"
        )
    raise AssertionError(
        "For noise alone this is right. How far does a steady gradient go, whose square is the share $s$, when each update is "
        "$f_t$ of it? And what share of the mean square is left for the noise?"
    )


way_code = Code(
    number="13.5",
    title="How far does noise go?",
    minutes=25,
    difficulty="hard",
    points=4,
    needs=("Adam's first step is the learning rate", "13.4"),
    statement=(
        "The chapter gives the size of one update. Updates that follow each other are not independent: they share gradients. How far have $T$ of them moved a weight "
        "in all? Let the second moment be known, $\\hat v_t = \\mathbb E\\,g^2 = 1$ and $\\epsilon = 0$, so that $u_t = \\hat m_t$. Gradients "
        "are independent from step to step, up to their mean, whose square is the share `signal` of $\\mathbb E\\,g^2$. `held` gradients fill $m$ first, while the weight stands still. "
        "Then come $T$ updates with the factors $f$ of a schedule, the list `factors`. Write `noise_way(factors, beta1, signal, held)`, which returns the RMS "
        "of the whole way over the rate, $\\sqrt{\\mathbb E\\,(\\sum_t f_t \\hat m_t)^2}$, as a float. Draw nothing."
    ),
    hint=(
        "Write the way as $\\sum_k c_k g_k$. Which updates put something into $c_k$, with which weight $a_k$? The mean square of a sum of "
        "independent terms with mean 0 is the sum of theirs. For a constant $g$ all $\\hat m_t$ are $g$."
    ),
    name="noise_way",
    starter="def noise_way(factors, beta1, signal, held):\n    ...",
    forbidden=frozenset({"rand", "randn", "normal", "normal_"}),
    make=way_cases,
    compare=judge_way,
    solution=noise_way,
    wrong={
        "independent updates": (way_by(join="squares"), "in how many of them is"),
        "RMS added": (way_by(join="sizes"), "the same sign"),
        "full updates": (way_by(join="fresh"), "Take two updates"),
        "no correction": (way_by(is_corrected=False), "with the correction"),
        "mean square": (way_by(power=1), "or its RMS"),
        "no factors": (lambda f, *rest: noise_way([1] * len(f), *rest), "With all factors 1"),
        "held forgotten": (way_by(of_held=lambda held: 0), "With nothing held"),
        "one held too many": (way_by(of_held=lambda held: held + bool(held)), "which $t$"),
        "no signal": (way_by(share=lambda s: 0), "a steady gradient"),
        "share of the size": (way_by(share=lambda s: s**2), "a steady gradient"),
        "the other share": (way_by(share=lambda s: 1 - s if s else 0), "a steady gradient"),
        "signal beside all the noise": (
            lambda f, b, s, h: math.hypot(s**0.5 * sum(f), noise_way(f, b, 0, h)), "is left for the noise"),
        "signal like noise": (
            lambda f, b, s, h: math.sqrt(s * sum(x**2 for x in f) + (1 - s) * noise_way(f, b, 0, h) ** 2), "a steady gradient"),
    },
    equivalent=("shares[k] -= ",),  # they are squared
)  # fmt: skip


# fmt: off
class Silent(torch.nn.Module):
    """A pre-LN block that was to be the identity at the start."""

    def __init__(self, d_model, n_heads, d_head, d_ff):
        super().__init__()
        self.n_heads, inner = n_heads, n_heads * d_head
        shapes = {"query": (d_model, inner), "key": (d_model, inner),
                  "value": (d_model, inner), "output": (inner, d_model),
                  "up": (d_model, d_ff), "down": (d_ff, d_model)}
        for role, shape in shapes.items():
            layer = torch.nn.Linear(*shape, bias=False)
            torch.nn.init.normal_(layer.weight, 0, shape[0] ** -0.5)
            self.add_module(role, layer)
        for layer in (self.value, self.output, self.up, self.down):
            torch.nn.init.zeros_(layer.weight)
        self.norm1 = torch.nn.LayerNorm(d_model)
        self.norm2 = torch.nn.LayerNorm(d_model)

    def forward(self, x):
        B, T, _ = x.shape
        y = self.norm1(x)
        q, k, v = (layer(y).view(B, T, self.n_heads, -1).transpose(1, 2)
                   for layer in (self.query, self.key, self.value))
        logits = q @ k.mT / q.shape[-1] ** 0.5
        mix = torch.softmax(logits, dim=-1) @ v  # (B, H, T, d_head)
        x = x + self.output(mix.transpose(1, 2).reshape(B, T, -1))
        return x + self.down(torch.relu(self.up(self.norm2(x))))
# fmt: on


def mend(block):
    for layer in (block.value, block.up):
        torch.nn.init.normal_(layer.weight, 0, layer.in_features**-0.5)


def drawn(*roles: str, sigma=lambda layer: layer.in_features**-0.5):
    """Draw some matrices."""

    def answer(block):
        for role in roles:
            layer = getattr(block, role)
            nn.init.normal_(layer.weight, 0, sigma(layer))

    return answer


def silent_cases(seed: int) -> list[tuple[int, int, int, int, int]]:
    generator = torch.Generator().manual_seed(seed)
    ranges = ((40, 50), (2, 4), (15, 19), (90, 110))
    return [(*(int(torch.randint(low, high, (), generator=generator)) for low, high in ranges), seed)]


def mended_silent(answer, d_model, n_heads, d_head, d_ff, seed):
    torch.manual_seed(seed)
    block = Silent(d_model, n_heads, d_head, d_ff)
    before = {name: p.detach().clone() for name, p in block.named_parameters()}
    answer(block)
    after = dict(block.named_parameters())
    if [(n, p.shape) for n, p in after.items()] != [(n, p.shape) for n, p in before.items()]:
        return None
    kept = {name: torch.equal(p, before[name]) for name, p in after.items()}
    spread = {name: (p.mean().item(), p.std().item()) for name, p in after.items() if p.ndim == 2}
    x = torch.randn(3, 5, d_model)
    silent = torch.equal(block(x), x)
    optimizer, moved = torch.optim.Adam(block.parameters(), lr=1e-3), {}
    for _ in range(2):
        optimizer.zero_grad()
        (block(x) * x.roll(1, 1)).sum().backward()
        old = {name: p.detach().clone() for name, p in block.named_parameters()}
        optimizer.step()
        for name, p in block.named_parameters():
            moved.setdefault(name, []).append(bool((p != old[name]).any()))
    return kept, spread, silent, moved


def judge_silent(case, got, want):
    d_model = case[0]
    assert isinstance(got, tuple) and len(got) == 4, (
        "Which parameters had the block before? Are they there, in their shapes?"
    )
    kept, spread, silent, moved = got
    assert not all(kept.values()), "All weights are what they were. Does your function change the block in place?"
    for name in ("query.weight", "key.weight", "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
        assert kept[name], f"`{name}` was changed. Was it ill?"
    assert silent, (
        "The block changes its input at the start, and was to be the identity. Of two matrices in a row, how many may be other than zero?"
    )
    for name in ("output.weight", "down.weight"):
        assert kept[name], f"`{name}` is other than zero now. Which of the two matrices of a branch is to learn first?"
    assert moved["output.weight"][0], (
        "No matrix of the attention moves in the first step. What is the gradient of $W_o$, and of what is it a product?"
    )
    assert moved["down.weight"][0], (
        "The attention learns. The report looks at attention alone. Which other two matrices are both zero, each the factor of the other's gradient?"
    )
    for name in ("value.weight", "up.weight"):
        mean, std = spread[name]
        assert abs(mean) < 0.1 * d_model**-0.5 and abs(std * d_model**0.5 - 1) < 0.1, (
            f"The branches learn. What are mean and σ of `{name}`, and what are those that the other matrices have here, over their fan_in?"
        )
    assert all(any(steps) for steps in moved.values()), "Does every matrix of the block move within two steps?"


silent_block = Mend(
    number="13.6",
    title="A step of length zero",
    minutes=10,
    difficulty="medium",
    points=3,
    needs=("Adam's first step is the learning rate",),
    statement=(
        "Adam's first step has the length of the rate, whatever the gradient. Not quite: if $g = 0$, then $u_1 = 0$. Somebody "
        "wanted blocks that are the identity at the start, so that the first steps do no harm. Draw a `Silent(64, 4, 16, 96)` and run "
        "`attntut.diagnose(block, x, lambda y: (y * x.roll(1, 1)).sum())` on `x = torch.randn(4, 16, 64)`. Read what it finds, and look where it does not. Write "
        "`mend(block)`, which mends any such block in place. At the start the block is to remain the identity, exactly. In the first step of "
        "Adam the two matrices that write to the stream move, and from the second on all matrices. What you draw has $\\sigma^2 = 1/f_\\text{in}$. What is not ill stays."
    ),
    hint="$\\nabla W_o$ has the mixed values as a factor, and $\\nabla W_v$ has $W_o$. Which of them must be other than zero? The same holds for $W_1$ and $W_2$.",
    name="mend",
    starter="def mend(block):\n    ...",
    setup=(Silent,),
    make=silent_cases,
    ask=mended_silent,
    compare=judge_silent,
    solution=mend,
    wrong={
        "nothing": (lambda block: None, "in place"),
        "all four": (drawn("value", "output", "up", "down"), "how many may be"),
        "the attention alone": (drawn("value"), "Which other two matrices"),
        "the network alone": (drawn("up"), "of what is it a product"),
        "the other ends": (drawn("output", "down"), "to learn first"),
        "one of each": (drawn("value", "down"), "to learn first"),
        "a little noise on all": (drawn("value", "output", "up", "down", sigma=lambda _: 1e-3), "how many may be"),
        "σ = 0.02": (drawn("value", "up", sigma=lambda _: 0.02), "mean and σ"),
        "the outputs": (drawn("value", "up", sigma=lambda layer: layer.out_features**-0.5), "mean and σ"),
        "He's rule": (drawn("value", "up", sigma=lambda layer: (2 / layer.in_features) ** 0.5), "mean and σ"),
        "ones": (lambda block: [nn.init.ones_(layer.weight) for layer in (block.value, block.up)], "mean and σ"),
        "everything that reads": (drawn("query", "key", "value", "up"), "Was it ill"),
    },
)  # fmt: skip


# fmt: off
def two_batches(batch, d=64, n_classes=10):
    """Inputs (2, batch, d) and labels (2, batch), of one teacher."""
    torch.manual_seed(0)
    teacher = torch.randn(d, n_classes)
    x = torch.randn(2, batch, d)
    return x, (x @ teacher).argmax(dim=-1)
# fmt: on


@functools.cache
def step_of_two(batch: int, part: float, on: int = 1) -> float:
    """Share of the loss that is lost on a batch by a step for the first."""
    with torch.random.fork_rng(devices=[]):
        x, y = two_batches(batch)
    W = torch.zeros(64, 10, requires_grad=True)
    loss = nn.functional.cross_entropy(x[0] @ W, y[0])
    (g,) = torch.autograd.grad(loss, W)
    reach = loss / g.abs().sum()
    after = nn.functional.cross_entropy(x[on] @ (-part * reach * g.sign()), y[on])
    return float(f"{(1 - after / loss).item():.4g}")


other_batch = Explain(
    number="13.7",
    title="On another batch",
    minutes=15,
    difficulty="medium",
    points=2,
    manual=3,
    needs=("What a step of this size does to the loss",),
    statement=(
        "The first step of Adam goes by one batch. What does it do for another? `two_batches(batch)` gives two batches with the labels of one "
        "teacher. Take `batch` = <<batch>>, logits `x @ W` with $W = 0$, and the mean cross entropy. Take one step $-\\eta \\operatorname{sign} g$ on the "
        "*first* batch, with $\\eta$ = <<part>> of its reach. First predict by the chapter which share of its loss the first batch loses. Then "
        "measure which share of its loss the *second* batch loses. Answer with both, and explain in two or three sentences why they differ. What would "
        "batches ten times as large change?"
    ),
    hint=(
        "With $W = 0$ both losses are $\\ln 10$. On the second batch, first order: $-\\eta \\sum_w g'_w \\operatorname{sign} g_w$. For how many weights have $g$ and $g'$ the same sign?"
    ),
    rubric=(
        "The prediction is the part itself, for the first batch (1 point). On the second batch a weight gains |g′| only where the two gradients have the "
        "same sign; where the gradient is mostly noise the sign is right little more often than not, and the step is as long there as anywhere, "
        "so a much smaller share is lost (1). A larger batch has less noise beside the signal, so more signs are those of the other batch, and its share comes nearer to "
        "that of its own (1)."
    ),
    setup=(two_batches,),
    parameters={"batch": (256, 64, 512, 1024), "part": (0.1, 0.4, 0.15)},
    solve=step_of_two,
    traps={
        "That is what the first order promises for the batch of the step. What does the other one lose?": lambda batch, part: part,
        "That is the first batch's own loss. On which one do you measure?": lambda batch, part: step_of_two(batch, part, on=0),
        "Is that the loss that is lost, or its share of the whole?": (
            lambda batch, part: step_of_two(batch, part) * math.log(10)
        ),
        "Is that what is lost, or what is left?": lambda batch, part: 1 - step_of_two(batch, part),
        "Is your rate a part of $\\mathcal L / \\lVert g\\rVert_1$, or of $1 / \\lVert g\\rVert_1$?": (
            lambda batch, part: step_of_two(batch, part / math.log(10))
        ),
        "Has the loss become larger or smaller? Which of the two do you subtract?": lambda batch, part: -step_of_two(batch, part),
        "That is a step of the whole reach. Which part of it is asked for?": lambda batch, part: step_of_two(batch, 1.0),
    },
    ask="Is it (loss before − loss after) / loss before on `x[1]`, after one step by the sign of the gradient on `x[0]`?",
    rtol=0.02,
)  # fmt: skip

EXERCISES = [
    signal_or_noise, warmed_way, shorter_updates, frozen_code, way_code, silent_block, other_batch,
]  # fmt: skip
