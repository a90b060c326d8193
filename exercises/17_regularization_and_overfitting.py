"""Exercises of chapter 17, *Regularization and overfitting*."""

import functools
import math

import torch
from torch import Tensor

from exercises.exercise import Choice, Code, Explain, Mend, Number

where_the_noise_is = Choice(
    number="17.1",
    title="Where the noise is",
    minutes=3,
    difficulty="easy",
    points=1,
    needs=("What attention dropout adds",),
    statement=(
        "A fresh head looks at 64 tokens, nearly evenly. The values have a cosine of 0.8. You drop attention with $p = 0.1$. Where is the noise large, beside the "
        "signal that it falls on?"
    ),
    hint="Put ρ = 0.8 and $P = 1/64$ into the two shares.",
    options={
        "In the head. The gradient of the logits averages over all keys.": (
            "What does the head average, and what does the softmax subtract on the way back?"
        ),
        "In the gradient of the logits. In the head it is averaged away.": "",
        "In both alike. It is $r = p/(1-p)$ of the signal.": (
            "For which cosine of the values are the two shares the same?"
        ),
        "In neither. Only a tenth of the weights is missing.": (
            "A tenth of what? How much of the gradient's signal is left when the common part of the values cancels?"
        ),
        "In neither. Dropout keeps the mean of both.": "It keeps the mean over the masks. Of how many masks is a step made?",
        "In the gradient of the logits, because it is divided by $1 - p$ and so gets larger.": (
            "Is the head not divided by the same number? What else tells the two apart?"
        ),
    },
)


def balance(lr: float, decay: float) -> float:
    return math.sqrt(lr / (2 * decay))


start_forgotten = Number(
    number="17.2",
    title="When the start is forgotten",
    minutes=5,
    difficulty="easy",
    points=2,
    needs=("What weight decay does",),
    statement=(
        "AdamW trains with $\\eta = $ <<lr>> and $\\lambda = $ <<decay>>, and the gradients are noise. Which RMS do the weights go to? And after "
        "how many steps is the difference between their mean square and its balance a <<part>>th of what it was at the start? Answer with two numbers."
    ),
    hint="The difference of the *mean square* falls like $e^{-2\\eta\\lambda t}$.",
    starter="answer = (..., ...)  # RMS, steps",
    parameters={"lr": (0.001, 0.004, 0.002), "decay": (0.1, 0.5, 0.2, 0.05), "part": (20, 100)},
    solve=lambda lr, decay, part: (balance(lr, decay), math.log(part) / (2 * lr * decay)),
    traps={
        "The steps are right. Is that the mean square, or its root?": (
            lambda lr, decay, part: (balance(lr, decay) ** 2, math.log(part) / (2 * lr * decay))
        ),
        "The steps are right. A step multiplies a weight by $1 - \\eta\\lambda$. By what does it multiply its square?": (
            lambda lr, decay, part: (math.sqrt(lr / decay), math.log(part) / (2 * lr * decay))
        ),
        "The steps are right. Does a larger λ make the weights larger?": (
            lambda lr, decay, part: (math.sqrt(2 * decay / lr), math.log(part) / (2 * lr * decay))
        ),
        "The steps are right. One step of Adam is short. Are the steps independent?": (
            lambda lr, decay, part: (balance(lr, decay) * math.sqrt(0.1 / 1.9), math.log(part) / (2 * lr * decay))
        ),
        "The RMS is right. At which rate does the mean square decay, if a weight decays at $\\eta\\lambda$?": (
            lambda lr, decay, part: (balance(lr, decay), math.log(part) / (lr * decay))
        ),
        "The RMS is right. After $1/(2\\eta\\lambda)$ steps which part of the difference is left?": (
            lambda lr, decay, part: (balance(lr, decay), 1 / (2 * lr * decay))
        ),
        "The RMS is right. To which base is the logarithm?": (
            lambda lr, decay, part: (balance(lr, decay), math.log10(part) / (2 * lr * decay))
        ),
        "The RMS is right. Which part is left, one half or the one that was asked for?": (
            lambda lr, decay, part: (balance(lr, decay), math.log(2) / (2 * lr * decay))
        ),
    },
    ask="What is $\\sqrt{\\eta/2\\lambda}$, and for which $t$ is $e^{-2\\eta\\lambda t}$ the part that was asked for?",
)  # fmt: skip


def as_noisy(q: float, rho: float, n: float) -> tuple[float, float]:
    """r of the branches, and r of the attention that makes a flat head as noisy."""
    r = q / (1 - q)
    return r, r * (rho + (1 - rho) / n) * n


def share_of(r: float) -> float:
    """The p of an r."""
    return r / (1 + r)


as_much_noise = Number(
    number="17.3",
    title="As much noise as the branch",
    minutes=8,
    difficulty="medium",
    points=2,
    needs=("What attention dropout adds", "What dropout of the branches adds"),
    statement=(
        "You drop entries of a branch with the probability <<q>>, and want dropout of attention in its place, with the same noise beside the signal in what a head writes. The map is "
        "flat over <<n>> tokens, and the values have the cosine <<rho>>. Which $p$ does it take? And how large is the noise then, beside the signal, in the "
        "gradient of the logits? Predict two numbers."
    ),
    hint="Dropout of branches has the noise $r$, at any length. First find the $r$ of the attention, then its $p$.",
    starter="answer = (..., ...)  # p, noise over signal in the gradient",
    parameters={"q": (0.1, 0.2, 0.05), "rho": (0.5, 0.8), "n": (16, 64, 32, 8)},
    solve=lambda q, rho, n: (share_of(as_noisy(q, rho, n)[1]), as_noisy(q, rho, n)[1] / (1 - rho)),
    traps={
        "That is right where the values have nothing in common. What does a flat map do to the noise when they have?": (
            lambda q, rho, n: (q, as_noisy(q, rho, n)[0] / (1 - rho))
        ),
        "The second is right. Is the first the probability $p$, or $p/(1-p)$?": (
            lambda q, rho, n: (as_noisy(q, rho, n)[1], as_noisy(q, rho, n)[1] / (1 - rho))
        ),
        "Is the noise of the branch, beside its signal, the probability, or $r$?": (
            lambda q, rho, n: (share_of(as_noisy(q, rho, n)[1] * (1 - q)), as_noisy(q, rho, n)[1] * (1 - q) / (1 - rho))
        ),
        "The head averages some of the noise away. Must you drop less than in the branch, or more?": (
            lambda q, rho, n: (share_of(as_noisy(q, rho, n)[0] ** 2 / as_noisy(q, rho, n)[1]),
                               as_noisy(q, rho, n)[0] ** 2 / as_noisy(q, rho, n)[1] / (1 - rho))
        ),
        "$p$ is right. Does the common part of the values cancel in the signal of the gradient?": (
            lambda q, rho, n: (share_of(as_noisy(q, rho, n)[1]), as_noisy(q, rho, n)[1])
        ),
        "$p$ is right. Does a signal that has lost its common part make the share larger, or smaller?": (
            lambda q, rho, n: (share_of(as_noisy(q, rho, n)[1]), as_noisy(q, rho, n)[1] * (1 - rho))
        ),
        "$p$ is right. Whose $r$ stands in the noise of the gradient, the branch's or the attention's?": (
            lambda q, rho, n: (share_of(as_noisy(q, rho, n)[1]), as_noisy(q, rho, n)[0] / (1 - rho))
        ),
    },
    ask="For which $r$ is $rP/(\\rho + (1-\\rho)P)$ that of the branch, which $p$ belongs to it, and what is $r/(1-\\rho)$?",
)  # fmt: skip


def judged_by_others(scores, larger_is_better):
    scores = scores[:, ~scores.isnan().any(0)]
    signed = scores if larger_is_better else -scores
    others = signed.sum(0) - signed
    return scores.gather(1, others.argmax(1, keepdim=True))[:, 0]


def signed_scores(scores: Tensor, larger_is_better: bool, drop: bool = True) -> tuple[Tensor, Tensor]:
    """Scores without the settings that diverged, as they are and such that more is better."""
    scores = scores[:, ~scores.isnan().any(0)] if drop else scores
    return scores, scores if larger_is_better else -scores


def own_best(scores, larger_is_better):
    scores, signed = signed_scores(scores, larger_is_better)
    return scores.gather(1, signed.argmax(1, keepdim=True))[:, 0]


def best_for_all(scores, larger_is_better):
    scores, signed = signed_scores(scores, larger_is_better)
    return scores[:, signed.mean(0).argmax()]


def largest_always(scores, larger_is_better):
    return judged_by_others(scores, True)


def diverged_stay(scores, larger_is_better):
    scores, signed = signed_scores(scores, larger_is_better, drop=False)
    rows = [torch.cat([signed[:i], signed[i + 1 :]]).nanmean(0) for i in range(len(scores))]
    return torch.stack([scores[i, row.argmax()] for i, row in enumerate(rows)])


def diverged_by_others(scores, larger_is_better):
    """A setting is out only for those seeds whose others diverged."""
    scores, signed = signed_scores(scores, larger_is_better, drop=False)
    rows = [torch.cat([signed[:i], signed[i + 1 :]]).mean(0).nan_to_num(-1e9) for i in range(len(scores))]
    return torch.stack([scores[i, row.argmax()] for i, row in enumerate(rows)])


def others_mean(scores, larger_is_better):
    scores, signed = signed_scores(scores, larger_is_better)
    best = (signed.sum(0) - signed).amax(1) / (len(scores) - 1)
    return best if larger_is_better else -best


def by_the_next_seed(scores, larger_is_better):
    scores, signed = signed_scores(scores, larger_is_better)
    return scores.gather(1, signed.roll(-1, 0).argmax(1, keepdim=True))[:, 0]


def which_setting(scores, larger_is_better):
    scores, signed = signed_scores(scores, larger_is_better)
    return (signed.sum(0) - signed).argmax(1)


def settings_for_seeds(scores, larger_is_better):
    return judged_by_others(scores.mT, larger_is_better)


def score_cases(seed: int) -> list[tuple[Tensor, bool]]:
    generator = torch.Generator().manual_seed(seed)
    cases: list[tuple[Tensor, bool]] = []
    while len(cases) < 2:
        larger = not cases
        n_seeds, n_settings = ((5, 7), (6, 4))[len(cases)]
        scores = (0.5 + 0.1 * torch.randn(n_seeds, n_settings, generator=generator)).mul(1000).round() / 1000
        if larger:
            diverged = int(torch.randint(n_settings, (), generator=generator))
            scores[:, diverged] += 0.3
            scores[int(torch.randint(n_seeds, (), generator=generator)), diverged] = math.nan
        want = judged_by_others(scores, larger)
        rivals = (own_best, best_for_all, by_the_next_seed)
        signed = signed_scores(scores, larger)[1]
        top = (signed.sum(0) - signed).topk(2, dim=1).values
        if (top[:, 0] - top[:, 1]).min() > 0.02 and all((rival(scores, larger) != want).sum() > 1 for rival in rivals):
            cases.append((scores, larger))
    return cases


def judge_scores(case, got, want):
    scores, larger_is_better = case
    assert isinstance(got, torch.Tensor) and got.shape == want.shape, (
        "There is one number for each seed. Which axis of the table has the seeds?"
    )
    got = got.to(want.dtype)
    assert got.isfinite().all(), "Not all of these are numbers. Whose run diverged, and could its setting be chosen?"
    if torch.allclose(got, want, atol=1e-5):
        return
    own = (scores - got[:, None]).abs() < 1e-5
    assert own.any(1).all(), "Is each of your numbers a score that this seed's own runs have?"
    diverged = scores.isnan().any(0)
    assert not (own & diverged).any(), (
        "You have chosen a setting whose run diverged for one of the seeds. Is it in the race for the others?"
    )
    signed = (scores if larger_is_better else -scores)[:, ~diverged]
    best = signed.amax(1) * (1 if larger_is_better else -1)
    assert not torch.allclose(got, best, atol=1e-5), "Each seed has its own best run. Who was to choose its setting?"
    assert not own.all(0).any(), "All seeds have one setting. Has a seed's own score taken part in the choice?"
    assert larger_is_better, "Where more is better this is right. Which setting is best by a loss?"
    raise AssertionError("Which setting has the best mean over all seeds but this one?")


choose_code = Code(
    number="17.4",
    title="Chosen by the others",
    minutes=12,
    difficulty="medium",
    points=3,
    needs=("One hundred digits: what helps?",),
    statement=(
        "Judge a method on runs that did not choose its setting. `scores` has the shape `(n_seeds, n_settings)`: one run for each seed and each setting. Write "
        "`judged_by_others(scores, larger_is_better)`, which returns for each seed *its* score at the setting that has the best mean over all *other* seeds, in "
        "the shape `(n_seeds,)`. `larger_is_better` is true for an accuracy and false for a loss. A run that diverged is `nan`, and its setting is out of the race for all seeds."
    ),
    hint="The sum over the others is the sum over all minus one's own. `isnan`, `any`, `argmax` and `gather` are enough.",
    name="judged_by_others",
    starter="def judged_by_others(scores, larger_is_better):\n    ...",
    make=score_cases,
    compare=judge_scores,
    solution=judged_by_others,
    wrong={
        "the best of each seed": (own_best, "Who was to choose"),
        "the best mean of all": (best_for_all, "taken part"),
        "the largest always": (largest_always, "by a loss"),
        "diverged runs left out one by one": (diverged_stay, "diverged"),
        "diverged for the others alone": (diverged_by_others, "could its setting"),
        "the mean of the others": (others_mean, "own runs have"),
        "the next seed chooses": (by_the_next_seed, "best mean over all seeds but"),
        "the number of the setting": (which_setting, "own runs have"),
        "settings for seeds": (settings_for_seeds, "Which axis"),
    },
)  # fmt: skip


def dropout_noise(logits, values, upstream, p):
    weights, r = torch.softmax(logits, dim=-1), p / (1 - p)
    of_head = r * (weights[:, :, None] * values).square().sum(1)
    h = (values @ upstream[:, :, None])[:, :, 0]
    others = (weights * h).square().sum(1, keepdim=True)
    return of_head, r * weights**2 * ((1 - 2 * weights) * h**2 + others)


def noise_by(r=lambda p: p / (1 - p), head=None, bracket=None, power=1.0, attend=None, pull=2):
    """As the solution, with one step replaced."""

    def answer(logits, values, upstream, p):
        a = attend(logits) if attend else torch.softmax(logits, dim=-1)
        h = torch.einsum("bnd,bd->bn", values, upstream)
        of_head = (head or (lambda a, v: (a[:, :, None] * v).square().sum(1)))(a, values)
        of_all = (a * h).square().sum(1, keepdim=True)
        inside = (bracket or (lambda a, h, of_all: (1 - 2 * a) * h**2 + of_all))(a, h, of_all)
        return (r(p) * of_head) ** power, (r(p) * a**pull * inside) ** power

    return answer


def flat_power(a, v):
    """For values of size 1."""
    return a.square().sum(1, keepdim=True).expand(-1, v.shape[-1])


def noise_cases(seed: int) -> list[tuple[Tensor, Tensor, Tensor, float]]:
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for is_masked, (B, n, d) in ((False, (2, 4, 3)), (True, (3, 6, 5))):
        logits, values = torch.randn(B, n, generator=generator), torch.randn(B, n, d, generator=generator)
        if is_masked:
            logits[1, 2:4] = -math.inf
        p = round(0.1 + 0.3 * torch.rand((), generator=generator).item(), 2)
        cases.append((logits, 1 + values, torch.randn(B, d, generator=generator), p))
    return cases


def judge_noise(case, got, want):
    logits = case[0]
    assert isinstance(got, (tuple, list)) and len(got) == 2, "What two tensors does the function return?"
    for one, right in zip(got, want, strict=True):
        assert isinstance(one, torch.Tensor) and one.shape == right.shape, (
            "The head has one variance for each of its $d$ entries, and the logits one for each key. Which shapes are these?"
        )
        assert not one.is_complex() and one.isfinite().all(), (
            "Not all of these are numbers. What do you do with a logit of −∞?"
        )
    head, pull = (one.to(right.dtype) for one, right in zip(got, want, strict=True))

    def near(a, b):
        return torch.allclose(a, b, rtol=1e-3, atol=1e-6)

    if near(head, want[0]) and near(pull, want[1]):
        return
    assert not near(head, want[0].sqrt()), "Is that the variance, or its root?"
    share = head.sum() / want[0].sum()
    assert near(head, want[0]) or not near(head, share * want[0]), (
        "The head's variances are right but for one factor. What is the variance of $m_j/(1-p)$, for a mask that is 1 with probability $1 - p$?"
    )
    assert near(head, want[0]), (
        "Look at the head first. A term is $m_j a_j v_j/(1-p)$, where $a_j$ is behind the softmax. What is its variance, for each entry of $v_j$?"
    )
    hidden = logits.isinf()
    assert not pull[hidden].any(), (
        "A key with the logit −∞ has the weight 0. What is the gradient of its logit, with any mask?"
    )
    assert not (pull <= want[1] + 1e-6).all(), (
        "The head is right, and the gradient too small. Does the mask of another key change the gradient of logit $j$, and how often stands $a_j$ before the bracket?"
    )
    assert not (pull >= want[1] - 1e-6).all(), (
        "The head is right, and the gradient too large. The mask of key $j$ stands twice in its own bracket. Do these two add, or do they subtract?"
    )
    raise AssertionError(
        "The head is right. Write the bracket of $\\partial/\\partial s_j$ as a sum over masks. Which factor has $m_j$, which one has $m_k$, and which of the $h$ goes with it?"
    )


noise_code = Code(
    number="17.5",
    title="The noise of one row",
    minutes=20,
    difficulty="hard",
    points=4,
    needs=("What attention dropout adds", "17.1"),
    statement=(
        "The chapter has the noise of dropout on average. What is it for *given* rows? Write `dropout_noise(logits, values, upstream, p)`. A row has the `logits` "
        "$s_j$ of $n$ keys, and there are $B$ rows: `(B, n)`. Their `values` are $v_j$, `(B, n, d)`, and `upstream` is the gradient $g$ at the head, `(B, d)`. "
        "Weights are dropped with the probability `p`, each by itself. Return two tensors with variances over the masks: of each entry of the head, `(B, d)`, and of each $\\partial/\\partial s_j$, "
        "`(B, n)`. Both are exact, and nothing is drawn. A logit may be $-\\infty$: such a key is not seen."
    ),
    hint=(
        "The masks are independent, so collect what multiplies each one, and sum squares. In $\\partial/\\partial s_j$ the mask $m_j$ has the factor $a_j (1 - a_j) h_j$, and another $m_k$ has "
        "$-a_j a_k h_k$."
    ),
    name="dropout_noise",
    starter="def dropout_noise(logits, values, upstream, p):\n    ...",
    make=noise_cases,
    compare=judge_noise,
    solution=dropout_noise,
    equivalent=("dim=1)",),
    wrong={
        "values of size 1": (noise_by(head=flat_power), "Look at the head"),
        "weights not squared": (noise_by(head=lambda a, v: (a[:, :, None] * v.square()).sum(1)), "Look at the head"),
        "no softmax": (noise_by(attend=lambda s: s.exp()), "Look at the head"),
        "p": (noise_by(r=lambda p: p), "one factor"),
        "the variance of a mask": (noise_by(r=lambda p: p * (1 - p)), "one factor"),
        "the mean square": (noise_by(r=lambda p: 1 / (1 - p)), "one factor"),
        "the root": (noise_by(power=0.5), "or its root"),
        "own mask alone": (noise_by(bracket=lambda a, h, of_all: ((1 - a) * h) ** 2), "mask of another key"),
        "as if independent": (noise_by(bracket=lambda a, h, of_all: h**2 + of_all), "Do these two add"),
        "own h for all": (
            noise_by(bracket=lambda a, h, of_all: (1 - 2 * a + a.square().sum(1, keepdim=True)) * h**2), "which of the $h$"),
        "one weight before the bracket": (noise_by(pull=1), "Do these two add"),
        "signs that add": (noise_by(bracket=lambda a, h, of_all: (1 + 2 * a) * h**2 + of_all), "Do these two add"),
    },
)  # fmt: skip


# fmt: off
class Frozen(torch.nn.Module):
    """Attention whose queries and keys are not to be trained."""

    def __init__(self, d_model, n_heads, d_head):
        super().__init__()
        self.n_heads, inner = n_heads, n_heads * d_head
        shapes = {"query": (d_model, inner), "key": (d_model, inner),
                  "value": (d_model, inner), "output": (inner, d_model)}
        for role, shape in shapes.items():
            layer = torch.nn.Linear(*shape, bias=False)
            torch.nn.init.normal_(layer.weight, 0, shape[0] ** -0.5)
            self.add_module(role, layer)

    def forward(self, x):
        B, T, _ = x.shape
        q, k, v = (layer(x).view(B, T, self.n_heads, -1).transpose(1, 2)
                   for layer in (self.query, self.key, self.value))
        logits = q @ k.mT / q.shape[-1] ** 0.5
        mix = torch.softmax(logits, dim=-1) @ v  # (B, H, T, d_head)
        return self.output(mix.transpose(1, 2).reshape(B, T, -1))


def train_frozen(layer, optimizer, steps):
    """Steps of noise; queries and keys get a gradient of zeros."""
    for _ in range(steps):
        optimizer.zero_grad()
        for name, p in layer.named_parameters():
            if p.requires_grad:
                moves = name.startswith(("value", "output"))
                p.grad = torch.randn_like(p) * moves
        optimizer.step()
# fmt: on


def mend(layer, optimizer):
    (group,) = optimizer.param_groups
    frozen = [layer.query.weight, layer.key.weight]
    for weight in frozen:
        with torch.no_grad():
            weight /= (1 - group["lr"] * group["weight_decay"]) ** optimizer.state[weight]["step"]
        weight.requires_grad = False
        weight.grad = None


def restored_by(factor=None, of=("query", "key"), stop="frozen", draw=False):
    """Undo the decay by a factor, and stop it for some."""

    def answer(layer, optimizer):
        (group,) = optimizer.param_groups
        lr, decay = group["lr"], group["weight_decay"]
        for role in of:
            weight = getattr(layer, role).weight
            steps = float(optimizer.state[weight]["step"])
            with torch.no_grad():
                if draw:
                    weight.normal_(0, weight.shape[1] ** -0.5)
                else:
                    weight *= (factor or (lambda lr, decay, t: (1 - lr * decay) ** -t))(lr, decay, steps)
        if stop == "decay":
            group["weight_decay"] = 0.0
        elif stop == "rate":
            group["lr"] = 0.0
        elif stop == "frozen":
            for role in ("query", "key"):
                getattr(layer, role).weight.requires_grad = False
                getattr(layer, role).weight.grad = None

    return answer


def own_group(layer, optimizer):
    """A right answer of another kind."""
    (group,) = optimizer.param_groups
    restored_by(stop="none")(layer, optimizer)
    frozen = [layer.query.weight, layer.key.weight]
    group["params"] = [layer.value.weight, layer.output.weight]
    optimizer.add_param_group({"params": frozen, "weight_decay": 0.0})


def frozen_cases(seed: int) -> list[tuple[int, int, int, float, float, int, int]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    return [(draw(20, 26), draw(2, 4), draw(6, 10), draw(30, 50) / 1000, draw(15, 25) / 10, draw(25, 40), seed)]


def mended_frozen(answer, d_model, n_heads, d_head, lr, decay, steps, seed):
    torch.manual_seed(seed)
    layer = Frozen(d_model, n_heads, d_head)
    fresh = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = torch.optim.AdamW(layer.parameters(), lr=lr, weight_decay=decay)
    train_frozen(layer, optimizer, steps)
    trained = {name: p.detach().clone() for name, p in layer.named_parameters()}
    answer(layer, optimizer)
    after = {name: p.detach().clone() for name, p in layer.named_parameters()}
    if {name: p.shape for name, p in after.items()} != {name: p.shape for name, p in fresh.items()}:
        return None
    factors = {role: (after[f"{role}.weight"] / fresh[f"{role}.weight"]).aminmax() for role in ("query", "key")}
    factors = {role: (low.item(), high.item()) for role, (low, high) in factors.items()}
    others = {role: torch.equal(after[f"{role}.weight"], trained[f"{role}.weight"]) for role in ("value", "output")}
    train_frozen(layer, optimizer, 5)
    last = {name: p.detach().clone() for name, p in layer.named_parameters()}
    kept = {role: torch.equal(last[f"{role}.weight"], after[f"{role}.weight"]) for role in ("query", "key")}
    groups = {id(p): (float(g["lr"]), float(g["weight_decay"])) for g in optimizer.param_groups for p in g["params"]}
    trains = {
        role: groups.get(id(getattr(layer, role).weight)) == (lr, decay)
        and not torch.equal(last[f"{role}.weight"], after[f"{role}.weight"])
        for role in ("value", "output")
    }
    return factors, others, kept, trains


def judge_frozen(case, got, want):
    lr, decay, steps = case[3:6]
    assert isinstance(got, tuple) and len(got) == 4, (
        "Which parameters had the layer before? Are they there, in their shapes?"
    )
    factors, others, kept, trains = got
    left = (1 - lr * decay) ** steps
    assert all(others.values()), "Values or outputs were changed. They were trained. What was ill with them?"
    for role, (low, high) in factors.items():
        assert high - low < 1e-3 * abs(high) + 1e-6, (
            f"`{role}` has other directions than before. Has the decay changed the direction of a matrix, or its size alone?"
        )
    sizes = {role: high for role, (low, high) in factors.items()}

    def all_are(value, roles=("query", "key")):
        return all(abs(sizes[role] / value - 1) < 1e-3 for role in roles)

    if not all_are(1):
        assert not all_are(left), "Queries and keys are as small as they were. Which part of them has each step taken?"
        assert not (all_are(1, ["query"]) or all_are(1, ["key"])), (
            "One of the two matrices is as small as before, or other than it was. Which?"
        )
        assert not all_are(1 / left), (
            "That undoes the decay of the logits in each of the two matrices. How many of them stand in a logit?"
        )
        assert not all_are(left**2), "They have become smaller still. Which way does the factor go?"
        assert not all_are(left * math.exp(lr * decay * steps)), (
            "Nearly. A step takes exactly the part $\\eta\\lambda$. Is $(1 - \\eta\\lambda)^t$ the same as $e^{-\\eta\\lambda t}$?"
        )
        raise AssertionError(
            "By which factor have $\\eta$, $\\lambda$ and the steps that the optimizer has counted made a matrix smaller?"
        )
    assert all(kept.values()), (
        "They are as large as at the start, and shrink again in the next steps. What does AdamW do with a weight whose gradient is 0?"
    )
    assert all(trains.values()), (
        "Queries and keys stay now. What of values and outputs, which should go on to train and to decay as before?"
    )


frozen_layer = Mend(
    number="17.6",
    title="Frozen, and melting",
    minutes=12,
    difficulty="medium",
    points=3,
    needs=("What weight decay does",),
    statement=(
        "Somebody wanted to train values and outputs alone, and set the gradients of queries and keys to 0. Draw a `Frozen(64, 4, 16)` with the optimizer "
        "`torch.optim.AdamW(layer.parameters(), lr=0.05, weight_decay=2.0)`, run `train_frozen(layer, optimizer, 80)`, and then `attntut.diagnose(layer, torch.randn(4, 32, 64))`. Read "
        "what it finds. Why is it so? It proposes to draw both again, but then they would not be those that were to be kept. Write `mend(layer, optimizer)`, in place. It gives queries and keys back as they were at the start, from what the optimizer knows, and sees to it that further calls of "
        "`train_frozen` leave them alone, to the last digit. Values and outputs stay as they are, and go on to train and to decay. The optimizer has one group, and any rate and λ."
    ),
    hint=(
        "`optimizer.param_groups[0]` has `lr` and `weight_decay`, and `optimizer.state[weight][\"step\"]` counts the steps. What does "
        "`train_frozen` do with a parameter that asks for no gradient?"
    ),
    name="mend",
    starter="def mend(layer, optimizer):\n    ...",
    setup=(Frozen, train_frozen),
    make=frozen_cases,
    ask=mended_frozen,
    compare=judge_frozen,
    solution=mend,
    wrong={
        "nothing": (lambda layer, optimizer: None, "as small as they were"),
        "frozen, not restored": (restored_by(of=()), "as small as they were"),
        "restored, not frozen": (restored_by(stop="none"), "shrink again"),
        "no decay for anyone": (restored_by(stop="decay"), "values and outputs"),
        "no rate for anyone": (restored_by(stop="rate"), "values and outputs"),
        "queries alone": (restored_by(of=("query",)), "One of the two"),
        "the logits' factor for each": (restored_by(lambda lr, decay, t: (1 - lr * decay) ** (-2 * t)), "stand in a logit"),
        "the other way": (restored_by(lambda lr, decay, t: (1 - lr * decay) ** t), "Which way"),
        "the exponential": (restored_by(lambda lr, decay, t: math.exp(lr * decay * t)), "the same as"),
        "the page's steps": (restored_by(lambda lr, decay, t: 0.9**-80), "By which factor"),
        "drawn anew": (restored_by(draw=True), "directions"),
        "everything restored": (restored_by(of=("query", "key", "value", "output")), "They were trained"),
    },
)  # fmt: skip


# fmt: off
def repeated(times, steps=2000, size=1000):
    """Gradients of noise (steps, size), each `times` in a row."""
    torch.manual_seed(0)
    fresh = torch.randn(-(-steps // times), size)
    return fresh.repeat_interleave(times, dim=0)[:steps]
# fmt: on


@functools.cache
def sizes_of_walk(times: int, decay: float) -> Tensor:
    """RMS and mean absolute value of weights in the last 500 steps."""
    with torch.random.fork_rng(devices=[]):
        gradients = repeated(times)
    w = torch.zeros(gradients.shape[1], requires_grad=True)
    optimizer, sizes = torch.optim.AdamW([w], lr=0.01, weight_decay=decay), []
    for step, gradient in enumerate(gradients):
        w.grad = gradient
        optimizer.step()
        if step >= len(gradients) - 500:
            sizes.append(torch.stack([w.detach().square().mean().sqrt(), w.detach().abs().mean()]))
    return torch.stack(sizes).mean(0)


def last_size(times: int, decay: float, kind: int = 0) -> float:
    return float(f"{sizes_of_walk(times, decay)[kind].item():.4g}")


gradients_again = Explain(
    number="17.7",
    title="The same gradient again",
    minutes=15,
    difficulty="medium",
    points=2,
    manual=3,
    needs=("What weight decay does", "17.2"),
    statement=(
        "`repeated(times)` gives noise for gradients, where each gradient comes `times` times in a row. Train a thousand weights with it, from zeros, by "
        "`torch.optim.AdamW` with $\\eta = 0.01$ and $\\lambda = $ <<decay>>, with `times` = <<times>>. Predict by the chapter's formula for the balance which RMS they reach. Then measure it: the mean over the last 500 "
        "of the 2000 steps. Answer with both numbers, and explain in two or three sentences why they differ. Momentum makes neighbouring steps alike, too. Why does that not change "
        "the balance, and this does?"
    ),
    hint="What is the variance of the sum of all gradients of a hundred steps, with and without the repetition? And what does a running mean do to the sum?",
    rubric=(
        "The prediction is √(η/2λ) (1 point). A sum of T gradients, each k times in a row, has T/k independent terms of variance k², so the variance kT in place of T: the "
        "mean square in balance is k times as large and the RMS √k times (1). Momentum spreads each gradient over many steps with weights that add up to 1, so the sum over many "
        "steps is what it was; the repetition adds the same number k times, so the gradients themselves are not independent (1)."
    ),
    setup=(repeated,),
    parameters={"times": (5, 3, 8, 10), "decay": (0.2, 0.15, 0.25)},
    solve=last_size,
    traps={
        "That is the formula, for gradients that come once. What do you measure?": (
            lambda times, decay: balance(0.01, decay)
        ),
        "Does each gradient come several times in your run, or once?": lambda times, decay: last_size(1, decay),
        "Is that the root of the mean square, or the mean of the absolute values?": (
            lambda times, decay: last_size(times, decay, kind=1)
        ),
        "Is that the mean square, or its root?": lambda times, decay: last_size(times, decay) ** 2,
        "Which λ has torch's AdamW if you do not give it one? Which one is asked for?": (
            lambda times, decay: last_size(times, 0.01)
        ),
        "If a gradient comes k times, is it the mean square that grows by k, or the RMS?": (
            lambda times, decay: balance(0.01, decay) * times
        ),
    },
    ask="Is it AdamW from zeros, a row of gradients a step, and the RMS over the weights, averaged over the last 500 steps?",
    rtol=0.02,
)  # fmt: skip

EXERCISES = [
    where_the_noise_is, start_forgotten, as_much_noise, choose_code, noise_code, frozen_layer, gradients_again,
]  # fmt: skip
