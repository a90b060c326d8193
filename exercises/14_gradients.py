"""Exercises of chapter 14, *Gradients*."""

import functools
import math

import torch
from torch import Tensor, nn

from exercises.exercise import Choice, Code, Explain, Mend, Number

flat_after = Choice(
    number="14.1",
    title="Flat for a while",
    minutes=2,
    difficulty="easy",
    points=1,
    needs=("The long part: $v$ is full",),
    statement=(
        "You train with Adam at its defaults and log the norm of the gradient. At step 20 000 it is 300 times the usual, and at step 20 001 it is "
        "usual again. The loss jumps a little at once, and then hardly falls for more than a thousand steps. The gradient stays "
        "usual all the while, and the rate is what it was. What holds the training up?"
    ),
    hint="Which of Adam's two averages remembers step 20 000 a thousand steps later?",
    options={
        "The bad step has thrown the weights so far away that they need a thousand steps back.": (
            "How far can one gradient move a weight under Adam, with all that follows from it?"
        ),
        "The first moment keeps moving the weights along the bad gradient.": (
            "What is left of a gradient in $m$ after 100 steps, with $\\beta_1 = 0.9$?"
        ),
        "The bad gradient stands in $v$, and every step is divided by its root.": "",
        "The bad batch has made weights NaN.": "Would the gradient be usual then, or finite at all?",
        "The gradient is usual in length, but its direction is noise now.": (
            "What has changed in the batches since step 20 001? And how long are the steps that are taken?"
        ),
        "Clipping shortens each gradient now.": "How long are they, beside those before step 20 000, which trained?",
    },
)


def whole(p: float, q: float, r: float) -> float:
    return math.hypot(p, q, r)


clipped_three = Number(
    number="14.2",
    title="One norm for all",
    minutes=3,
    difficulty="easy",
    points=2,
    needs=("Clipping by the norm",),
    statement=(
        "A model has three matrices, and their gradients have the lengths <<p>>, <<q>> and <<r>>. You clip the norm of the whole gradient to "
        "$c = $ <<c>> and take a step of SGD with $\\eta = 0.1$. How far does the third matrix move? And by which factor is the gradient of the first one multiplied? Answer with two numbers."
    ),
    hint="Squares of lengths add. There is one factor, and all three get it.",
    starter="answer = (..., ...)  # way of the third, factor of the first",
    parameters={"p": (2, 1, 4, 3), "q": (3, 4, 4, 4), "r": (6, 8, 7, 12), "c": (1.5, 0.5, 2.5)},
    solve=lambda p, q, r, c: (0.1 * r * c / whole(p, q, r), c / whole(p, q, r)),
    traps={
        "Do the lengths of the three gradients add, or their squares?": (
            lambda p, q, r, c: (0.1 * r * c / (p + q + r), c / (p + q + r))
        ),
        "You have clipped each matrix alone. Whose norm is clipped here?": lambda p, q, r, c: (0.1 * min(r, c), min(1, c / p)),
        "Is the longest gradient's length that of the whole?": lambda p, q, r, c: (0.1 * c, c / r),
        "Is the norm the sum of the squares, or its root?": (
            lambda p, q, r, c: (0.1 * r * c / whole(p, q, r) ** 2, c / whole(p, q, r) ** 2)
        ),
        "The factor is right. Does the step not have a rate?": (
            lambda p, q, r, c: (r * c / whole(p, q, r), c / whole(p, q, r))
        ),
        "The factor is right. Which of the three matrices is asked for?": (
            lambda p, q, r, c: (0.1 * p * c / whole(p, q, r), c / whole(p, q, r))
        ),
        "The factor is right. How far would the third matrix move without clipping, and what becomes of that?": (
            lambda p, q, r, c: (0.1 * c, c / whole(p, q, r))
        ),
        "Is a gradient that is too long multiplied by that, or divided?": (
            lambda p, q, r, c: (0.1 * r * whole(p, q, r) / c, whole(p, q, r) / c)
        ),
    },
    ask="What is $c$ over the root of the sum of the three squares? And what is a tenth of the third gradient, times that?",
)  # fmt: skip


def lost(k: float, beta: float, tau: float = 1, a: float | None = None) -> float:
    """Usual steps that a spike costs in a long run."""
    a = (1 - beta) * k**2 if a is None else a
    return tau * 2 / (1 - beta) * math.log((1 + math.sqrt(1 + a)) / 2)


def both(of):
    """The same for the spike as it comes, and for the clipped one."""
    return lambda k, beta, c: (of(k, beta), of(c, beta))


saved_steps = Number(
    number="14.3",
    title="What a bound saves",
    minutes=6,
    difficulty="medium",
    points=2,
    needs=("The long part: $v$ is full", "Clipping by the norm"),
    statement=(
        "Late in a long run of Adam with $\\beta_2 = $ <<beta>> one gradient is <<k>> times as long as the usual ones. How many usual steps does it cost? And "
        "how many would it cost if the norm were clipped to <<c>> times the usual length? Predict two numbers."
    ),
    hint="$a = (1-\\beta_2)k^2$ and $\\tau = 1/(1-\\beta_2)$. What does clipping make of $k$, and does anything else change?",
    starter="answer = (..., ...)  # as it comes, clipped",
    parameters={"beta": (0.99, 0.999, 0.98), "k": (200, 50, 100, 400), "c": (5, 4, 8, 6)},
    solve=lambda beta, k, c: (lost(k, beta), lost(c, beta)),
    traps={
        "How often does the logarithm stand for τ, once or twice?": lambda beta, k, c: (lost(k, beta) / 2, lost(c, beta) / 2),
        "Is $a$ in proportion to $k$, or to its square?": lambda beta, k, c: both(
            lambda k, beta: lost(k, beta, a=(1 - beta) * k))(k, beta, c),
        "Which share of the spike's square goes into $v$? Is it all of it?": lambda beta, k, c: both(
            lambda k, beta: lost(k, beta, a=k**2))(k, beta, c),
        "That is the time until $v$ is back. How much of a step is missing in the meantime?": lambda beta, k, c: both(
            lambda k, beta: math.log(1 + (1 - beta) * k**2) / (1 - beta))(k, beta, c),
        "Is that the natural logarithm?": lambda beta, k, c: (lost(k, beta) / math.log(10), lost(c, beta) / math.log(10)),
        "The first number is right. Is a clipped spike as long as a usual gradient?": lambda beta, k, c: (lost(k, beta), 0),
        "The first number is right. Is the second one what the clipped spike costs, or what clipping saves?": (
            lambda beta, k, c: (lost(k, beta), lost(k, beta) - lost(c, beta))
        ),
        "The first number is right. Does the clipped spike cost a part in proportion to its length?": (
            lambda beta, k, c: (lost(k, beta), lost(k, beta) * c / k)
        ),
    },
    ask="What is $2\\tau \\ln \\frac{1 + \\sqrt{1 + a}}{2}$, once with the $k$ of the spike and once with what clipping leaves of it?",
)  # fmt: skip


def clip_rows(weights, gradients, limit, eps, spared):
    clipped = {}
    for name, gradient in gradients.items():
        rows = gradient.flatten(1) if gradient.ndim > 1 else gradient[:, None]
        size = weights[name].flatten(1) if gradient.ndim > 1 else weights[name][:, None]
        bound = limit * size.norm(dim=1).clamp(min=eps)
        factor = (bound / rows.norm(dim=1).clamp(min=1e-12)).clamp(max=1)
        clipped[name] = gradient if name in spared else (factor[:, None] * rows).reshape(gradient.shape)
    return clipped


def rows_by(
    along=1, whole=False, floor=True, most=1.0, least=0.0, upside=False, spare=True, vectors="entries", root=True
):
    """As the solution, with one thing changed."""

    def length(x):
        if x.ndim == 1 and vectors == "entries":
            return x.abs()
        if whole or x.ndim == 1:
            return x.norm() if root else x.square().sum()
        x = x.flatten(1)
        return x.norm(dim=along, keepdim=True) if root else x.square().sum(dim=along, keepdim=True)

    def answer(weights, gradients, limit, eps, spared):
        clipped = {}
        for name, g in gradients.items():
            size = length(weights[name])
            bound = limit * (size.clamp(min=eps) if floor else size)
            factor = (length(g).clamp(min=1e-12) / bound if upside else bound / length(g).clamp(min=1e-12)).clamp(
                least, most
            )
            is_kept = (spare and name in spared) or (g.ndim == 1 and vectors == "kept")
            flat = g if g.ndim == 1 else g.flatten(1)
            clipped[name] = g if is_kept else (factor * flat).reshape(g.shape)
        return clipped

    return answer


def one_ratio(weights, gradients, limit, eps, spared):
    """One factor for the whole model."""
    size = math.sqrt(sum(w.square().sum().item() for w in weights.values()))
    long = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
    factor = min(1, limit * max(size, eps) / long)
    return {name: g if name in spared else factor * g for name, g in gradients.items()}


def by_entries(weights, gradients, limit, eps, spared):
    return {
        name: g
        if name in spared
        else g.clamp(-limit * weights[name].abs().clamp(min=eps), limit * weights[name].abs().clamp(min=eps))
        for name, g in gradients.items()
    }


def without_spared(weights, gradients, limit, eps, spared):
    found = clip_rows(weights, gradients, limit, eps, spared)
    return {name: g for name, g in found.items() if name not in spared}


def first_axis_two(weights, gradients, limit, eps, spared):
    """A kernel's rows by its second axis alone."""
    found = clip_rows(weights, gradients, limit, eps, spared)
    for name, g in gradients.items():
        if g.ndim == 3:
            bound = limit * weights[name].norm(dim=1, keepdim=True).clamp(min=eps)
            found[name] = g * (bound / g.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    return found


def rows_cases(seed: int) -> list[tuple[dict, dict, float, float, set]]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"query": (4, 3), "patches": (5, 2, 3), "bias": (6,), "readout": (2, 7)}
    order = torch.randperm(26, generator=generator).tolist()
    names = {name: "w_" + chr(97 + order[i]) for i, name in enumerate(shapes)}
    weights = {names[n]: torch.randn(shape, generator=generator) for n, shape in shapes.items()}
    gradients = {}
    for name, w in weights.items():
        size = torch.logspace(-2, 1, len(w)).reshape(-1, *[1] * (w.ndim - 1))
        gradients[name] = size * torch.randn(w.shape, generator=generator)
    weights[names["query"]][2] = 0  # fresh, and so as small as ε says
    gradients[names["query"]][1] = 0
    limit = round(0.1 + 0.1 * torch.rand((), generator=generator).item(), 3)
    return [(weights, gradients, limit, 0.05, {names["readout"]})]


def judge_rows(case, got, want):
    weights, gradients, limit, eps, spared = case
    assert isinstance(got, dict) and set(got) == set(gradients), (
        "Is what comes back a dictionary, with the name of every gradient and no other?"
    )
    for name, g in got.items():
        assert isinstance(g, torch.Tensor) and g.shape == gradients[name].shape, (
            f"Which shape has the gradient of `{name}`, before and after it is clipped?"
        )
        assert g.isfinite().all(), (
            f"`{name}` has a row whose gradient is 0, or whose weights are. By what do you divide?"
        )

    def same(a, b):
        return torch.allclose(a.to(b.dtype), b, rtol=1e-3, atol=1e-6)

    if all(same(got[name], want[name]) for name in want):
        return
    for name in spared:
        assert same(got[name], gradients[name]), f"`{name}` is spared. What becomes of its gradient?"
    matrix, kernel, vector = (next(n for n, w in weights.items() if w.ndim == k and n not in spared) for k in (2, 3, 1))
    if not same(got[matrix], want[matrix]):
        new, old, w = got[matrix].to(weights[matrix].dtype), gradients[matrix], weights[matrix]
        assert not same(new, old), "Nothing was clipped. Which rows are longer than their bound?"
        assert bool((new.norm(dim=1) <= old.norm(dim=1) + 1e-5).all()), (
            "A row has become longer. What is the largest factor, and which of the two lengths stands in its denominator?"
        )
        direction = torch.cosine_similarity(new, old, dim=1)
        assert bool(
            ((direction - 1).abs() < 1e-4).logical_or(old.norm(dim=1) == 0).logical_or(new.norm(dim=1) == 0).all()
        ), (
            "A row has another direction now. How many factors does each row have, and over which axis is its length taken?"
        )
        zero = w.norm(dim=1) == 0
        assert not bool((new[zero] == 0).all()), (
            "A row of weights that is zero gets no gradient any more. Which length does ε give it?"
        )
        assert same(new[zero], want[matrix][zero]) or not same(new[~zero], want[matrix][~zero]), (
            "All rows are right but that of weight zero. Which length stands in its bound?"
        )
        raise AssertionError(
            "By which factor is row $i$ multiplied? Which length has *this* row of weights, and which one that of the gradient?"
        )
    assert same(got[kernel], want[kernel]), (
        f"Matrices are right. `{kernel}` has three axes. One row is what makes one output: which axes are summed in its length?"
    )
    raise AssertionError(f"`{vector}` is a vector, one number for each output. How long is the row of one output?")


rows_code = Code(
    number="14.4",
    title="Clipped row by row",
    minutes=12,
    difficulty="medium",
    points=3,
    needs=("A bound that knows the weights: adaptive clipping",),
    statement=(
        "Write adaptive clipping for a whole model. `clip_rows(weights, gradients, limit, eps, spared)` gets two dictionaries with the same names: of the weights, and of "
        "their gradients. The first axis of each tensor is that of the outputs, and a row is *all* that belongs to one output: of a matrix `(fan_out, fan_in)` a row as you know it, of a "
        "kernel `(fan_out, n, k)` a matrix `(n, k)`, and of a bias `(fan_out,)` one number. Each row $G_i$ is multiplied by $\\min(1, \\lambda \\max(\\lVert W_i\\rVert, "
        "\\epsilon) / \\lVert G_i\\rVert)$, with $\\lambda$ = `limit`. Those whose names are in the set `spared` stay as they are, as the readout does. A row of zeros stays zero. Return a dictionary of all "
        "gradients, in their shapes."
    ),
    hint="`x.reshape(len(x), -1)` makes rows of a tensor with any number of axes. A tensor that is divided by 0 has no finite entries.",
    name="clip_rows",
    starter="def clip_rows(weights, gradients, limit, eps, spared):\n    ...",
    make=rows_cases,
    compare=judge_rows,
    solution=clip_rows,
    wrong={
        "nothing": (lambda w, g, *rest: g, "Nothing was clipped"),
        "columns": (rows_by(along=0), "over which axis"),
        "each matrix as one": (rows_by(whole=True), "By which factor"),
        "one factor for all": (one_ratio, "By which factor"),
        "entry by entry": (by_entries, "another direction"),
        "no ε": (rows_by(floor=False), "Which length does ε"),
        "rows made longer, too": (rows_by(most=math.inf), "become longer"),
        "upside down": (rows_by(upside=True), "By which factor"),
        "squares": (rows_by(root=False), "By which factor"),
        "the readout, too": (rows_by(spare=False), "is spared"),
        "the readout left out": (without_spared, "and no other"),
        "biases as they are": (rows_by(vectors="kept"), "the row of one output"),
        "a bias as one row": (rows_by(vectors="one"), "the row of one output"),
        "kernels by one axis": (first_axis_two, "three axes"),
    },
)  # fmt: skip


def lamb_path(weight, gradients, lr, beta1, beta2, eps, decay):
    W, m, v = weight, torch.zeros_like(weight), torch.zeros_like(weight)
    path = []
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        u = m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps)
        u = u + decay * W * (u * W > 0)
        ratio = W.norm() / u.norm() if W.norm() > 0 and u.norm() > 0 else 1.0
        W = W - lr * ratio * u
        path.append(W)
    return torch.stack(path)


def lamb_by(mask=lambda u, W: u * W > 0, ratio=None, order="before", corrected=True, which="path", share="mean"):
    """As the solution, with one thing changed."""

    def answer(weight, gradients, lr, beta1, beta2, eps, decay):
        W, m, v, path = weight, torch.zeros_like(weight), torch.zeros_like(weight), []
        for t, g in enumerate(gradients, start=1):
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            first, second = (1 - beta1**t, 1 - beta2**t) if corrected else (1, 1)
            u = m / first / ((v / second).sqrt() + eps)
            shrink = decay * W * mask(u, W)
            step = u + shrink if order == "before" else u
            size = W.norm() if share == "mean" else weight.norm()
            times = (ratio or (lambda W, u: W.norm() / u.norm() if W.norm() > 0 and u.norm() > 0 else 1.0))(W, step)
            if share == "first":
                times = size / step.norm() if size > 0 else 1.0
            W = W - lr * times * step
            if order == "after":
                W = W - lr * shrink
            path.append(lr * times * step if which == "steps" else W)
        return path[-1] if which == "last" else torch.stack(path)

    return answer


def rows_alone(W, u):
    """One ratio for each row."""
    return W.norm(dim=1, keepdim=True) / u.norm(dim=1, keepdim=True) if W.norm() > 0 else 1.0


def lamb_cases(seed: int) -> list[tuple[Tensor, Tensor, float, float, float, float, float]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return round(low + (high - low) * torch.rand((), generator=generator).item(), 3)

    cases = []
    for shape, T, decay in (((3, 4), 1, 0.0), ((2, 5), 4, 0.0), ((4, 3), 3, draw(0.5, 0.9)), ((2, 3), 4, 0.3)):
        weight = torch.randn(shape, generator=generator) * (0 if shape == (2, 3) else draw(2, 5))
        gradients = torch.randn(T, *shape, generator=generator)
        if shape == (2, 3):
            gradients[0] = 0
        cases.append((weight, gradients, draw(0.05, 0.2), draw(0.6, 0.8), draw(0.85, 0.95), draw(0.1, 0.2), decay))
    return cases


def judge_lamb(case, got, want):
    weight, gradients, lr, beta1, beta2, eps, decay = case
    assert isinstance(got, torch.Tensor) and got.shape == want.shape, (
        "There is one matrix after each gradient. Which shape have all of them together?"
    )
    assert got.isfinite().all(), (
        "Not all of these are numbers. Which ratio do you give a weight of zeros, or a step of zeros?"
    )
    got = got.to(want.dtype)

    def same(a, b):
        return torch.allclose(a, b, rtol=1e-3, atol=1e-4)

    if same(got, want):
        return
    if weight.norm() == 0:
        raise AssertionError(
            "Weights that are not zero are right. What does your function do with a matrix that is zero, and with a step that is? Which ratio is 1 there?"
        )
    moved, right = got[0] - weight, want[0] - weight
    cosine = torch.cosine_similarity(moved.flatten(), right.flatten(), dim=0)
    if decay == 0:
        if not same(got[0], want[0]):
            assert not same(got[0], weight - want[0]), "These are the steps. What are the weights after each of them?"
            assert cosine > -0.99, "Does the step go along the gradient, or against it?"
            assert cosine > 0.999, (
                "The first step has another direction than Adam's. How do $m$ and $v$ go into $u$, corrected for their start, and how many trust ratios has a matrix?"
            )
            raise AssertionError(
                "The first step has Adam's direction. Which share of the length of the weights is it to have?"
            )
        raise AssertionError(
            "The first step is right. Whose length is in the trust ratio of the second, and which power of β corrects $m$ and $v$ there?"
        )
    g = gradients[0]
    u = g / (g.abs() + eps) + decay * weight
    plain = weight - lr * weight.norm() / u.norm() * u
    assert not same(got[0], plain), (
        "That is a decay of all entries. Which entries does the step make smaller anyway, if the weights move by $-u$?"
    )
    u = g / (g.abs() + eps)
    assert not same(got[0], weight - lr * weight.norm() / u.norm() * u), (
        "Without decay this is right, and with it nothing changes. Where is $\\lambda W$?"
    )
    assert abs(moved.norm() - lr * weight.norm()) < 1e-3 * weight.norm(), (
        "A step is to change the matrix by the share η of its length, with the decay in it. Is it added before the ratio is taken, or after?"
    )
    raise AssertionError(
        "Without decay this is right. In which entries has $u$ the sign of $W$, and what is added there?"
    )


lamb_code = Code(
    number="14.5",
    title="LAMB with a careful decay",
    minutes=20,
    difficulty="hard",
    points=4,
    needs=("Steps of even size: LAMB and Muon", "Decay that does not work against the loss"),
    statement=(
        "Write LAMB for one matrix, with cautious decay. `lamb_path(weight, gradients, lr, beta1, beta2, eps, decay)` gets $W$, of shape `(fan_out, fan_in)`, and the "
        "gradients of $T$ steps, `(T, fan_out, fan_in)`. In each step $u = \\hat m_t / (\\sqrt{\\hat v_t} + \\epsilon)$ is Adam's, and $\\lambda W$ is added "
        "to it in those entries alone which the step makes smaller anyway. Then this sum gets the length of $W$ as it is before the step, and $W$ moves by $-\\eta$ times "
        "it. Where $W$ or the sum is zero throughout, the trust ratio is 1. Return the weights after each step, `(T, fan_out, fan_in)`. Write it without `torch.optim`."
    ),
    hint="The weights move by $-u$. An entry of $W$ shrinks if $u$ has its sign. Which comes first, the decay or the length?",
    name="lamb_path",
    starter="def lamb_path(weight, gradients, lr, beta1, beta2, eps, decay):\n    ...",
    forbidden=frozenset({"optim", "lamb", "cautious_decay"}),
    make=lamb_cases,
    compare=judge_lamb,
    solution=lamb_path,
    wrong={
        "Adam": (lamb_by(ratio=lambda W, u: 1.0), "Which share of the length"),
        "the step's own length": (lamb_by(ratio=lambda W, u: 1 / u.norm()), "Which share of the length"),
        "the ratio upside down": (lamb_by(ratio=lambda W, u: u.norm() / W.norm()), "Which share of the length"),
        "row by row": (lamb_by(ratio=rows_alone), "how many trust ratios"),
        "uphill": (lambda w, g, *rest: lamb_path(w, -g, *rest), "or against it"),
        "the first length for all": (lamb_by(share="first"), "Whose length"),
        "no correction": (lamb_by(corrected=False), "another direction"),
        "plain decay": (lamb_by(mask=lambda u, W: torch.ones_like(W)), "a decay of all entries"),
        "decay where it works against the step": (lamb_by(mask=lambda u, W: u * W < 0), "has $u$ the sign of $W$"),
        "no decay": (lamb_by(mask=lambda u, W: torch.zeros_like(W)), "Where is"),
        "decay after the ratio": (lamb_by(order="after"), "before the ratio"),
        "no ratio for zeros": (lamb_by(ratio=lambda W, u: W.norm() / u.norm()), "a weight of zeros"),
        "a zero that stays": (lamb_by(ratio=lambda W, u: W.norm() / u.norm().clamp(min=1e-9)), "a matrix that is zero"),
        "the last alone": (lamb_by(which="last"), "Which shape"),
        "the steps": (lamb_by(which="steps"), "These are the steps"),
    },
    equivalent=("(u / W > 0)",),
)  # fmt: skip


# fmt: off
class Uneven(torch.nn.Module):
    """Attention whose query and key grow unlike, head by head."""

    def __init__(self, d_model, n_heads, d_head):
        super().__init__()
        self.n_heads, inner = n_heads, n_heads * d_head
        self.query = torch.nn.Linear(d_model, inner)
        self.key = torch.nn.Linear(d_model, inner)
        self.value = torch.nn.Linear(d_model, inner)
        self.output = torch.nn.Linear(inner, d_model)
        for layer in (self.query, self.key, self.value, self.output):
            torch.nn.init.normal_(layer.weight, 0, layer.in_features**-0.5)
            torch.nn.init.normal_(layer.bias, 0, 0.1)
        factor = torch.logspace(1, 2, n_heads).repeat_interleave(d_head)
        with torch.no_grad():
            self.query.weight *= factor[:, None]
            self.query.bias *= factor
            self.key.weight /= factor[:, None]
            self.key.bias /= factor

    def forward(self, x):
        B, T, _ = x.shape
        q, k, v = (layer(x).view(B, T, self.n_heads, -1).transpose(1, 2)
                   for layer in (self.query, self.key, self.value))
        logits = q @ k.mT / q.shape[-1] ** 0.5
        mix = torch.softmax(logits, dim=-1) @ v  # (B, H, T, d_head)
        return self.output(mix.transpose(1, 2).reshape(B, T, -1))
# fmt: on


@torch.no_grad()
def mend(layer):
    query, key = (part.weight.reshape(layer.n_heads, -1).norm(dim=1) for part in (layer.query, layer.key))
    factor = (key / query).sqrt().repeat_interleave(len(layer.query.bias) // layer.n_heads)
    layer.query.weight *= factor[:, None]
    layer.query.bias *= factor
    layer.key.weight /= factor[:, None]
    layer.key.bias /= factor


def evened(power=0.5, heads=True, biases=True, keys=True, by=None):
    """As the solution, with one thing changed."""

    @torch.no_grad()
    def answer(layer):
        parts = layer.n_heads if heads else 1
        norms = [x.reshape(parts, -1).norm(dim=1) for x in (layer.query.weight, layer.key.weight)]
        ratio = (by or (lambda q, k: k / q))(*norms) ** power
        factor = ratio.repeat_interleave(len(layer.query.bias) // parts)
        layer.query.weight *= factor[:, None]
        layer.key.weight /= factor[:, None] if keys else 1
        if biases:
            layer.query.bias *= factor
            layer.key.bias /= factor if keys else 1

    return answer


@torch.no_grad()
def unscaled(layer: nn.Module) -> None:
    """The factor of the class taken back: nearly even."""
    factor = torch.logspace(1, 2, layer.n_heads).repeat_interleave(len(layer.query.bias) // layer.n_heads)
    layer.query.weight /= factor[:, None]
    layer.query.bias /= factor
    layer.key.weight *= factor[:, None]
    layer.key.bias *= factor


def drawn_anew(layer: nn.Module) -> None:
    for part in (layer.query, layer.key):
        nn.init.normal_(part.weight, 0, part.in_features**-0.5)


@torch.no_grad()
def exchanged(layer: nn.Module) -> None:
    layer.query, layer.key = layer.key, layer.query


def uneven_cases(seed: int) -> list[tuple[int, int, int, int]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((20, 28), (2, 5), (6, 12)))
    return [(*sizes, seed)]


def mended_uneven(answer, d_model, n_heads, d_head, seed):
    torch.manual_seed(seed)
    layer, x = Uneven(d_model, n_heads, d_head), torch.randn(3, 5, d_model)

    def logits():
        q, k = (part(x).view(3, 5, n_heads, -1).transpose(1, 2) for part in (layer.query, layer.key))
        return (q @ k.mT).detach()

    before, was = logits(), {name: p.detach().clone() for name, p in layer.named_parameters()}
    answer(layer)
    now = dict(layer.named_parameters())
    if {n: p.shape for n, p in now.items()} != {n: p.shape for n, p in was.items()}:
        return None
    changed = [n for n, p in now.items() if not torch.equal(p, was[n])]
    norms = [p.detach().view(n_heads, -1).norm(dim=1) for p in (layer.query.weight, layer.key.weight)]
    apart = (logits() - before).square().mean().sqrt() / before.square().mean().sqrt()
    old = [was[n].view(n_heads, -1).norm(dim=1) for n in ("query.weight", "key.weight")]
    return (
        changed,
        (norms[0] / norms[1]).tolist(),
        (old[0] / old[1]).tolist(),
        apart.item(),
        (norms[0] * norms[1] / old[0] / old[1]).tolist(),
    )


def judge_uneven(case, got, want):
    assert isinstance(got, tuple) and len(got) == 5, (
        "Which parameters had the layer before? Are they there, in their shapes?"
    )
    changed, ratio, old, apart, product = got
    assert changed, "All parameters are what they were. Does your function change the layer in place?"
    extra = [name for name in changed if name.split(".")[0] not in ("query", "key")]
    assert not extra, f"`{extra[0]}` was changed. Of which two matrices does the report show uneven gradients?"
    assert all(math.isfinite(r) for r in ratio), "Are all weights numbers still?"
    even = all(abs(r - 1) < 1e-3 for r in ratio)
    assert not all(abs(r * o - 1) < 1e-2 for r, o in zip(ratio, old, strict=True)), (
        "Now the keys are long and the queries short. How far must a factor go so that they meet?"
    )
    assert any(abs(p - 1) > 1e-3 for p in product) or apart < 1e-3, (
        "The matrices would make the same products, but the logits have changed. What else do queries and keys consist of?"
    )
    assert apart < 1e-3, (
        "The logits have changed. If you multiply the queries of a head by something, what must become of its keys?"
    )
    assert not all(0.7 < r < 1.4 for r in ratio) or even, (
        "The logits are the same and the heads nearly even. How long is each $W_q^h$ really, and how long its $W_k^h$?"
    )
    assert even, (
        "The logits are the same, but in some head $W_q$ and $W_k$ are not equally long. Is it one factor for all heads?"
    )


uneven_mend = Mend(
    number="14.6",
    title="Even without a step",
    minutes=15,
    difficulty="medium",
    points=3,
    needs=("Which uneven starts does an even step mend?",),
    statement=(
        "Draw an `Uneven(64, 4, 16)` and run `attntut.diagnose(layer, x, lambda y: y.square().mean())` on `x = torch.randn(4, 16, 64)`. "
        "It has no finding, for the logits are as they should be. But look at the columns ∇q/∇v and ∇k/∇v. Under SGD this $W_q$ would hardly learn. Under LAMB "
        "every matrix would change by the share η, however long it is. A product of two matrices can be made even without any optimizer. Write `mend(layer)`, which changes query and "
        "key of any such layer in place, such that no logit changes, and $W_q$ and $W_k$ (weights without biases, as Frobenius norms) are equally "
        "long in each head. The rows of head $h$ are `h * d_head` to `(h + 1) * d_head`. Run `diagnose` again."
    ),
    hint="Multiply by $c_h$ what makes the queries of head $h$, and divide by it what makes its keys. For which $c_h$ are $c\\,\\lVert W_q\\rVert$ and $\\lVert W_k\\rVert / c$ equal?",
    name="mend",
    starter="def mend(layer):\n    ...",
    setup=(Uneven,),
    make=uneven_cases,
    ask=mended_uneven,
    compare=judge_uneven,
    solution=mend,
    wrong={
        "nothing": (lambda layer: None, "in place"),
        "queries alone": (evened(1.0, keys=False), "what must become of its keys"),
        "the ratio without a root": (evened(1.0), "so that they meet"),
        "exchanged": (exchanged, "so that they meet"),
        "one factor for all heads": (evened(heads=False), "one factor for all heads"),
        "no biases": (evened(biases=False), "What else do queries"),
        "the factor of the class": (unscaled, "nearly even"),
        "drawn anew": (drawn_anew, "logits have changed"),
        "the wrong way": (evened(by=lambda q, k: q / k), "one factor for all heads"),
        "both to length one": (
            lambda layer: [part.weight.data.div_(part.weight.norm()) for part in (layer.query, layer.key)], "what must become"),
        "the values, too": (
            lambda layer: (mend(layer), layer.value.weight.data.mul_(2)), "Of which two matrices"),
    },
)  # fmt: skip


# fmt: off
def two_spikes(k, gap, before=200, n=1000):
    """Gradients (T, n): spikes at `before` and `before + gap`; signs."""
    torch.manual_seed(0)
    usual = torch.randn(before + gap + 1, n)
    signs = torch.randn(2, n).sign()
    usual[before], usual[before + gap] = k * signs[0], k * signs[1]
    return usual, signs
# fmt: on


@functools.cache
def second_spike(k: int, gap: int, which: int = 1, beta2: float = 0.999, optimizer: str = "Adam") -> float:
    """How far a spike of two moves the weights along its own sign in its own step, over the rate."""
    with torch.random.fork_rng(devices=[]):
        gradients, signs = two_spikes(k, gap)
    weight = nn.Parameter(torch.zeros(gradients.shape[1]))
    kinds = {
        "Adam": lambda: torch.optim.Adam([weight], lr=1.0, betas=(0.9, beta2)),
        "SGD": lambda: torch.optim.SGD([weight], lr=1.0),
    }
    made, moved = kinds[optimizer](), []
    for gradient in gradients:
        old, weight.grad = weight.detach().clone(), gradient.clone()
        made.step()
        moved.append(old - weight.detach())
    step = moved[200 + gap * which]
    return float(f"{(step @ signs[which]).item() / len(step):.4g}")


def alone(k: float, seen: float, beta2: float = 0.999) -> float:
    """The chapter's first step of a spike, with no other before it."""
    a = (1 - beta2) * k**2 / (1 - beta2 ** (seen + 1))
    return 0.1 * k / math.sqrt(1 + a)


again = Explain(
    number="14.7",
    title="A second bad batch",
    minutes=15,
    difficulty="medium",
    points=2,
    manual=3,
    needs=("What one spike does under SGD and under Adam", "The long part: $v$ is full"),
    statement=(
        "Bad batches seldom come alone. `two_spikes(k, gap)` gives usual gradients with two spikes of the same length in them, <<gap>> steps apart, each "
        "with signs of its own. Take `k` = <<k>> and give them to `torch.optim.Adam` with `lr=1`, $\\beta_1 = 0.9$ and $\\beta_2 = 0.999$, for a weight of zeros. First predict by the "
        "chapter's formula how far the *second* spike moves the weights in its own step, as if it were the first (200 + <<gap>> usual steps before it). Then measure it: minus the mean over "
        "the weights of step times sign of the second spike. Answer with both, and explain in two or three sentences why they differ. Is a bad batch that "
        "comes again the smaller harm, then, when you also count the usual steps that are lost?"
    ),
    hint="What is in $v$ when the second spike comes, besides usual squares? How much larger is $v$ than with one spike?",
    rubric=(
        "The prediction is (1 − β₁)k/√(1 + a₀) with s = 200 + gap, about √((1 − β₂^(s+1))/(1 − β₂))/10 (1 point). The first spike is in v still, nearly whole, for 1000 steps "
        "are its memory: v holds two spikes, so the second moves the weights by about 1/√2 of that (1). It is no smaller harm: v is twice as full, and later usual steps are shorter by 1/√2 "
        "once more, so still more of them are lost (1)."
    ),
    setup=(two_spikes,),
    parameters={"gap": (40, 60, 100, 80), "k": (1000, 500, 2000)},
    solve=lambda gap, k: second_spike(k, gap),
    traps={
        "That is the formula's number, for a spike that comes alone. What does Adam do here?": lambda gap, k: alone(k, 200 + gap),
        "That is the first of the two spikes. Which one is asked for?": lambda gap, k: second_spike(k, gap, which=0),
        "In which direction does the weight move when the gradient is positive? Where is the minus?": (
            lambda gap, k: -second_spike(k, gap)
        ),
        "Which $\\beta_2$ did you give to Adam?": lambda gap, k: second_spike(k, gap, beta2=0.95),
        "That is SGD's step. Which optimizer is asked for?": lambda gap, k: second_spike(k, gap, optimizer="SGD"),
        "That is the bound of a long run. How many steps came before the second spike?": lambda gap, k: 0.1 / math.sqrt(0.001),
    },
    ask="Is it the step at number 200 + gap (from 0), times the second row of the signs, the mean over all weights, with the other sign?",
    rtol=0.02,
)  # fmt: skip

EXERCISES = [
    flat_after, clipped_three, saved_steps, rows_code, lamb_code, uneven_mend, again,
]  # fmt: skip
