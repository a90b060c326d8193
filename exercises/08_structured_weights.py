"""Exercises of chapter 8, *Structured weights*."""

import math

import torch
from torch import Tensor, nn

from exercises.exercise import Choice, Code, Explain, Mend, Number

fair_test = Choice(
    number="8.1",
    title="A fair test",
    minutes=4,
    difficulty="easy",
    points=1,
    needs=("Does a structure train better? 300 digits",),
    statement=(
        "You fit $W_q$ to $W_k$ in a new way, and after training your model is ahead of the usual start, $\\sigma = 0.02$. "
        "At your width the new entries are larger than 0.02, some matrices more than others. To which start must you "
        "compare it to learn whether it is the *structure* that helps?"
    ),
    hint="Two causes are mixed here. Which start has one of them, and not the other?",
    options={
        "$\\sigma = 0.02$ again, with ten times as many seeds": (
            "More seeds make the interval narrow. What differs between the two starts, besides the structure?"
        ),
        "$\\sigma = 0.02$ again, each start at its own best learning rate": (
            "You need that anyway. Does a learning rate give two starts the same logits before the first step?"
        ),
        "the new one, with the entries of each matrix in a random order": "",
        "the new one, with all entries of all its matrices shuffled together": (
            "Entries move from the large matrices to the small ones. Which σ has each of them then?"
        ),
        "the new one, with the rows of $W_q$ and of $W_k$ in the same random order within each head": (
            "A head's $W_q^\\top W_k$ is a sum over its rows. What does a common order of the rows change in it?"
        ),
        "the new one, trained three times as long": (
            "This tells whether the lead lasts. Which comparison tells where it comes from?"
        ),
    },
)

mixed_stack = Number(
    number="8.2",
    title="A stack of two kinds",
    minutes=4,
    difficulty="easy",
    points=2,
    needs=("One skip connection takes most of the advantage away",),
    statement=(
        "Follow a token that attends only to itself through <<blocks>> wide blocks of attention alone, each with a skip "
        "and no norm. In <<gaussian>> of the blocks, wherever they stand, value and output are drawn by Xavier's rule, in "
        "the others they are orthogonal. Which share of the directions is in use after all of them?"
    ),
    hint="What is added along a chain: the shares, their inverses, or something else?",
    parameters={"blocks": (13, 16, 17, 20), "gaussian": (4, 2, 3)},
    solve=lambda blocks, gaussian: 1 / (1 + gaussian + (blocks - gaussian) / 2),
    traps={
        "Those are the ν of chains without skips. What does the skip make of a Gaussian, and of an orthogonal block?": (
            lambda blocks, gaussian: 1 / (1 + 2 * gaussian)
        ),
        "Which of the two kinds has the larger ν, and how many blocks are of that kind?": (
            lambda blocks, gaussian: 1 / (1 + blocks - gaussian + gaussian / 2)
        ),
        "You multiplied the shares of the blocks. Is that what the law of independent factors says?": (
            lambda blocks, gaussian: (1 / 2) ** gaussian * (2 / 3) ** (blocks - gaussian)
        ),
        "Is that the ν of the whole chain, or the share of its directions?": (
            lambda blocks, gaussian: gaussian + (blocks - gaussian) / 2
        ),
        "What would your formula give for a chain with a ν of 0?": (
            lambda blocks, gaussian: 1 / (gaussian + (blocks - gaussian) / 2)
        ),
        "Right angles alone keep every direction. Do they still, beside a skip?": (
            lambda blocks, gaussian: 1 / (1 + gaussian)
        ),
        "That is the share if every block is drawn by Xavier's rule. Which ν has an orthogonal one?": (
            lambda blocks, gaussian: 1 / (1 + blocks)
        ),
    },
    ask="What is the ν of a block of each kind, what is their sum over all blocks, and what is the share?",
)  # fmt: skip


def after_blocks(blocks: int, orthogonal: float, gaussian: float) -> tuple[float, float]:
    """Shares after a number of blocks with these ν."""
    return 1 / (1 + blocks * orthogonal), 1 / (1 + blocks * gaussian)


def of_gain(g: float) -> tuple[float, float]:
    """ν of I + g Z, where Z is a product of two orthogonal, or of two Gaussian matrices."""
    return 2 * g**2 / (1 + g**2) ** 2, 2 * g**2 / (1 + g**2)


smaller_branch = Number(
    number="8.3",
    title="A smaller branch",
    minutes=12,
    difficulty="medium",
    points=3,
    needs=("8.2", "One skip connection takes most of the advantage away"),
    statement=(
        "Multiply the output projection of every block by $g$ = <<g>>, so that a block is $I + gZ$. $Z = W_o W_v$ is as in "
        "the chapter: wide, with random directions and a mean square singular value of 1. Derive the ν of such a block, and "
        "predict the share of the directions that is in use after <<blocks>> of them: first with orthogonal $W_v$ and "
        "$W_o$, then with Gaussian ones."
    ),
    hint=(
        "Write $G = gZ$. Its mean $s^2$ is $g^2$ and its mean $s^4$ is $g^4 m$. In $\\overline{s^4} = 1 + 2 + 2 + m$ two terms "
        "are of second order in $Z$, and one is of fourth order."
    ),
    starter="answer = (..., ...)  # orthogonal, Gaussian",
    parameters={"g": (0.5, 0.6, 0.4, 0.3), "blocks": (12, 8, 24)},
    solve=lambda g, blocks: after_blocks(blocks, *of_gain(g)),
    traps={
        "How often does $g$ stand in the terms of second order in $Z$, and how often in that of fourth order?": (
            lambda g, blocks: after_blocks(blocks, *of_gain(math.sqrt(g)))
        ),
        "The mean of $s^2$ is no longer 2. By what must the mean of $s^4$ be divided?": (
            lambda g, blocks: after_blocks(blocks, 4 * g**2 + g**4, 4 * g**2 + 3 * g**4)
        ),
        "Which of the two comes first, and which of them has the larger $m$?": (
            lambda g, blocks: after_blocks(blocks, *of_gain(g)[::-1])
        ),
        "Those are the shares of $g = 1$. What does a small branch change of the stream?": (
            lambda g, blocks: after_blocks(blocks, 1 / 2, 1)
        ),
        "You multiplied the ν of $g = 1$ by $g^2$. Is that what follows for $I + gZ$?": (
            lambda g, blocks: after_blocks(blocks, g**2 / 2, g**2)
        ),
        "That is what one block leaves. What do all of them?": lambda g, blocks: after_blocks(1, *of_gain(g)),
        "The second formula has one Gaussian matrix in a block. Of how many is $Z$ the product?": (
            lambda g, blocks: after_blocks(
                blocks, of_gain(g)[0], (1 + 4 * g**2 + 2 * g**4) / (1 + g**2) ** 2 - 1
            )
        ),
        "Those are the shares without a skip, where $g$ does not matter. What does the skip add to $gZ$?": (
            lambda g, blocks: after_blocks(blocks, 0, 2)
        ),
    },
    ask="With $\\overline{s^2} = 1 + g^2$, what is $\\overline{s^4}$ for each of the two $m$, and what is the ν of all blocks?",
)  # fmt: skip


def logits_seen(W_q, W_k, n_heads, covariance):
    d_head = len(W_q) // n_heads
    query, key = (W.unflatten(0, (n_heads, d_head)) for W in (W_q, W_k))
    M = query.mT @ key
    own = (M * covariance).sum(dim=(1, 2)) / math.sqrt(d_head)
    square = (M * (covariance @ M @ covariance)).sum(dim=(1, 2))
    return own, torch.sqrt(square / d_head)


def seen_by(own=None, square=None, root=None, split=None):
    """As the solution, with one step replaced."""

    def answer(W_q, W_k, n_heads, S):
        M_q, M_k = ((split or (lambda W, h: W.unflatten(0, (h, -1))))(W, n_heads) for W in (W_q, W_k))
        M = M_q.mT @ M_k
        divisor = root(len(W_q), n_heads, len(S)) if root else math.sqrt(len(W_q) / n_heads)
        others = (square or (lambda M, S: trace(M @ S @ M.mT @ S)))(M, S)
        return (own or (lambda M, S: trace(M @ S)))(M, S) / divisor, others.abs().sqrt() / divisor

    return answer


def trace(M: Tensor) -> Tensor:
    return M.diagonal(dim1=-2, dim2=-1).sum(-1)


def each_variance_one(W_q, W_k, n_heads, covariance):
    return logits_seen(W_q, W_k, n_heads, torch.eye(len(covariance)))


def all_heads_at_once(W_q, W_k, n_heads, covariance):
    own, std = logits_seen(W_q, W_k, 1, covariance)
    return own.expand(n_heads), std.expand(n_heads)


def seen_cases(seed: int) -> list[tuple[Tensor, Tensor, int, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for n_heads, d_head, d_model, kind in ((1, 3, 5, "one"), (3, 2, 7, "one"), (2, 4, 6, "each"), (4, 3, 10, "full")):
        W_q, W_k, noise = (
            torch.randn(rows, d_model, generator=generator) for rows in (n_heads * d_head, n_heads * d_head, d_model)
        )
        covariance = {
            "one": torch.eye(d_model),
            "each": torch.diag(0.3 + 3 * torch.rand(d_model, generator=generator)),
            "full": noise @ noise.mT / d_model + 0.2 * torch.eye(d_model),
        }[kind]
        cases.append((W_q, W_k, n_heads, covariance))
    return cases


def judge_seen(case, got, want):
    W_q, W_k, n_heads, covariance = case
    two = isinstance(got, (tuple, list)) and len(got) == 2 and all(isinstance(x, torch.Tensor) for x in got)
    assert two, "Are these two tensors, the own logits and the standard deviations of the others?"
    assert all(x.shape == (n_heads,) and x.is_floating_point() for x in got), (
        f"There are {n_heads} heads. Does each of the two tensors hold one number a head?"
    )
    assert all(x.isfinite().all() for x in got), (
        "A number is not finite. Of what did you take the root, and can it be negative?"
    )

    def close(x, y):
        return torch.allclose(x.double(), y.double(), rtol=1e-3, atol=1e-5)

    (own, std), d_head, d_model = got, len(W_q) // n_heads, len(covariance)
    if close(own, want[0]) and close(std, want[1]):
        return
    if n_heads == 1:
        for power, question in (
            (d_head**0.5, "What does attention divide a product of query and key by?"),
            ((d_head / d_model) ** 0.5, "That is the root of d_model. How wide is what one head multiplies?"),
            (d_head**-0.5, "Did you divide by the root, or by what stands under it?"),
        ):
            assert not (close(own, want[0] * power) and close(std, want[1] * power)), question
        assert close(own, want[0]), (
            "With independent numbers of variance 1, which entries of M are left in the mean of xᵀMx?"
        )
        assert not close(std, want[1] ** 2), "Is that the variance of the other logits, or its root?"
        M = W_q.mT @ W_k
        assert not close(std, (M @ M).trace().abs().sqrt()[None] / d_head**0.5), (
            "You multiplied M by itself. Is M symmetric? Whose trace is the sum of the squared entries?"
        )
        raise AssertionError(
            "The own logit is right. A logit of two tokens is a sum over all entries of M: what is its variance?"
        )
    if torch.equal(covariance, torch.eye(d_model)):
        raise AssertionError("One head is right, several are not. Which rows of W_q and W_k belong to which head?")
    if torch.equal(covariance, torch.diag(covariance.diagonal())):
        assert close(own, want[0]), (
            "The numbers of a token have different variances now. Which of them does a diagonal entry of M meet?"
        )
        raise AssertionError(
            "The own logit is right, with variances that differ. Two tokens meet in another logit: whose variances stand "
            "in it, and where?"
        )
    assert close(own, want[0]), (
        "It is right where the covariance is diagonal. What is the mean of x₁x₂, and which entry of M does it meet?"
    )
    raise AssertionError(
        "It is right where the covariance is diagonal. In the mean of (xᵀMy)², which two entries does a covariance join, and "
        "where does M stand transposed?"
    )


logits_code = Code(
    number="8.4",
    title="Logits before the softmax",
    minutes=15,
    difficulty="medium",
    points=3,
    needs=("Only mimetic changes the logits",),
    statement=(
        "The chapter predicts logits for tokens whose numbers are independent, with variance 1. Tokens of a real model are "
        "not like that. Let them have mean 0 and the covariance $\\Sigma$, $\\mathbb{E}\\,xx^\\top = \\Sigma$, and let "
        "different tokens be independent of each other. Write `logits_seen(W_q, W_k, n_heads, covariance)`. Both matrices "
        "are `(n_heads * d_head, d_model)`, with the heads one below the other, and `d_head` need not be "
        "`d_model / n_heads`. `covariance` is `(d_model, d_model)`. Return two tensors of shape `(n_heads,)`, computed and not "
        "drawn: the mean logit of a token for itself, and the standard deviation of the logits for other tokens."
    ),
    hint=(
        "$\\mathbb{E}\\,x^\\top M x = \\sum_{ab} M_{ab}\\,\\mathbb{E}[x_a x_b]$. For two tokens fix $x$ first: which variance has "
        "$(M^\\top x)^\\top y$? Then take the mean over $x$."
    ),
    name="logits_seen",
    starter="def logits_seen(W_q, W_k, n_heads, covariance):\n    ...",
    make=seen_cases,
    compare=judge_seen,
    solution=logits_seen,
    wrong={
        "no root": (seen_by(root=lambda rows, h, d: 1), "divide a product"),
        "root of d_model": (seen_by(root=lambda rows, h, d: math.sqrt(d)), "root of d_model"),
        "no root over d_head": (seen_by(root=lambda rows, h, d: rows / h), "stands under it"),
        "d_model over heads": (seen_by(root=lambda rows, h, d: math.sqrt(d // h)), "root of d_model"),
        "variance": (
            lambda *case: tuple(x**power for x, power in zip(logits_seen(*case), (1, 2), strict=True)), "or its root"),
        "M twice": (seen_by(square=lambda M, S: trace(M @ S @ M @ S)), "Is M symmetric"),
        "sum of all entries": (seen_by(own=lambda M, S: (M @ S).sum((1, 2))), "which entries of M are left"),
        "norm of the spectrum": (
            seen_by(square=lambda M, S: torch.linalg.matrix_norm(M @ S, 2) ** 2), "over all entries of M"),
        "interleaved heads": (
            seen_by(split=lambda W, h: W.unflatten(0, (-1, h)).transpose(0, 1)), "belong to which head"),
        "all heads at once": (all_heads_at_once, "belong to which head"),
        "variance 1": (each_variance_one, "diagonal entry of M meet"),
        "the diagonal only": (
            lambda q, k, h, S: logits_seen(q, k, h, torch.diag(S.diagonal())), "mean of x₁x₂"),
        "covariance on one side": (seen_by(square=lambda M, S: trace(M @ S @ M.mT)), "whose variances"),
        "covariance beside M": (seen_by(square=lambda M, S: trace(M @ S @ S @ M.mT)), "whose variances"),
        "diagonal for the others": (
            seen_by(square=lambda M, S: trace(M @ torch.diag(S.diagonal()) @ M.mT @ torch.diag(S.diagonal()))),
            "does a covariance join"),
        "one tensor": (lambda *case: torch.stack(logits_seen(*case)), "two tensors"),
        "mean over heads": (lambda *case: tuple(x.mean() for x in logits_seen(*case)), "one number a head"),
    },
)  # fmt: skip


def log_condition(factors):
    product = inverse = torch.eye(len(factors[0]), dtype=torch.float64)
    total = 0.0
    for W, V in zip(factors, torch.linalg.inv(torch.stack(factors)), strict=True):
        product, inverse = W @ product, inverse @ V
        lengths = product.norm().item(), inverse.norm().item()
        product, inverse = product / lengths[0], inverse / lengths[1]
        total += math.log(lengths[0]) + math.log(lengths[1])
    ends = torch.linalg.matrix_norm(torch.stack([product, inverse]), 2)
    return total + ends.log().sum().item()


def multiplied(factors: list[Tensor]) -> Tensor:
    product = torch.eye(len(factors[0]), dtype=torch.float64)
    for W in factors:
        product = W @ product
    return product


def spectral(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix, 2)


def by_inverses(factors):
    return (spectral(multiplied(factors)) * spectral(multiplied([torch.linalg.inv(W) for W in factors[::-1]]))).log()


def inverses_in_the_same_order(factors):
    return (spectral(multiplied(factors)) * spectral(multiplied([torch.linalg.inv(W) for W in factors]))).log()


def by_frobenius(factors):
    return (multiplied(factors).norm() * multiplied([torch.linalg.inv(W) for W in factors[::-1]]).norm()).log()


def by_triangles(factors):
    frame, logs = torch.eye(len(factors[0]), dtype=torch.float64), 0.0
    for W in factors:
        frame, R = torch.linalg.qr(W @ frame)
        logs = logs + R.diagonal().abs().log()
    return logs.max() - logs.min()


def logs_not_kept(factors):
    product = inverse = torch.eye(len(factors[0]), dtype=torch.float64)
    for W in factors:
        product, inverse = W @ product, inverse @ torch.linalg.inv(W)
        product, inverse = product / product.norm(), inverse / inverse.norm()
    return (spectral(product) * spectral(inverse)).log()


def one_scale_for_all(factors):
    scale = factors[0].norm()
    return torch.linalg.cond(multiplied([W / scale for W in factors])).log()


def by_the_chapter(factors):
    L, d = len(factors), len(factors[0])
    return (math.log(math.e * (L + 0.5)) + L * (math.log(d) + 1.27)) / 2


def condition_cases(seed: int) -> list[tuple[int, int, float, int]]:
    return [(1, 5, 1.0, seed), (3, 4, 1.0, seed), (28, 8, 1.0, seed), (52, 6, 1e7, seed)]


def condition_of_chain(answer, depth, d, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(depth, d, d, generator=generator, dtype=torch.float64)
    try:
        return answer([scale * draw for draw in draws])
    except torch.linalg.LinAlgError:  # of what is not finite, or singular in float64
        return math.nan


def judge_condition(case, got, want):
    depth, d, scale, seed = case
    if isinstance(got, torch.Tensor) and got.numel() == 1:
        got = got.item()
    assert type(got) in (int, float), "Is what comes back one number?"
    if not math.isfinite(got):
        assert scale == 1, (
            f"{depth} factors, with entries near {scale:g}. What becomes too large or too small for a float64 on the way, and "
            "does κ depend on a number in front of a matrix?"
        )
        assert depth <= 3, (
            "The result is not finite, or the product had no inverse. How far below the largest singular value can a "
            "float64 still see one?"
        )
        raise AssertionError("The result is not finite. Of what did you take the logarithm?")

    def close(x, y):
        return abs(x - y) < 1e-3 + 1e-5 * abs(y)

    if close(got, want):
        return
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(depth, d, d, generator=generator, dtype=torch.float64)
    if depth == 1:
        W = draws[0]
        assert not close(got, math.exp(want)), "Is that κ, or its logarithm?"
        assert not close(got, want / math.log(10)), "To which base is your logarithm?"
        assert not close(got, 2 * want), "Is κ a quotient of singular values, or of their squares?"
        assert not close(got, (W.norm() * torch.linalg.inv(W).norm()).log().item()), (
            "That is made of Frobenius norms. Which norm of the inverse is 1/s_min?"
        )
        raise AssertionError("For a single factor, what are its largest and its smallest singular value?")
    if depth == 3:
        assert not close(got, sum(torch.linalg.cond(W).log().item() for W in draws)), (
            "You added the ln κ of the factors. Do the worst directions of one factor meet those of the next?"
        )
        assert not close(got, torch.linalg.cond(draws[0] @ draws[1] @ draws[2]).log().item()), (
            "Which factor comes first on the way of a token? On which side of it does the next one stand?"
        )
        raise AssertionError(
            "One factor is right, three are not. In which order do the factors stand in the product, and in its inverse?"
        )
    if scale == 1:
        assert got > want, (
            f"Three factors are right, and {depth} are not. How far below the largest singular value can a float64 still see "
            "one? Which matrix has 1/s_min as its largest?"
        )
        raise AssertionError(
            f"Three factors are right, and {depth} are not. What did you add once a factor, or too often?"
        )
    raise AssertionError(
        "It is right where entries are near 1. What does a number in front of every factor do to κ, and did you keep the "
        "logarithm of everything that you divided by?"
    )


condition_code = Code(
    number="8.5",
    title="A condition number that no float holds",
    minutes=20,
    difficulty="hard",
    points=4,
    needs=("What the variance leaves open: how far the singular values lie apart",),
    statement=(
        "Write `log_condition(factors)`. `factors` is a list of square, invertible tensors of one shape `(d, d)` in float64, "
        "and a token meets `factors[0]` first. Return $\\ln\\kappa$ of their product, a number, right to a thousandth, for a "
        "chain of any length. An SVD of the product is not enough: its smallest singular values are lost. Neither is the "
        "way of the chapter, when there are 52 factors with entries near ten million, because the product itself is then "
        "beyond the largest float64, $1.8\\cdot10^{308}$."
    ),
    hint=(
        "$\\ln\\kappa = \\ln\\lVert P\\rVert_2 + \\ln\\lVert P^{-1}\\rVert_2$. After each factor you may divide either product by "
        "a number, if you remember the number's logarithm."
    ),
    name="log_condition",
    starter="def log_condition(factors):\n    ...",
    make=condition_cases,
    ask=condition_of_chain,
    compare=judge_condition,
    solution=log_condition,
    wrong={
        "an SVD of the product": (lambda factors: torch.linalg.cond(multiplied(factors)).log(), "still see one"),
        "the inverse of the product": (
            lambda factors: (spectral(multiplied(factors)) * spectral(torch.linalg.pinv(multiplied(factors)))).log(),
            "still see one"),
        "the way of the chapter": (by_inverses, "too large or too small"),
        "one scale for all": (one_scale_for_all, "still see one"),
        "inverses in the same order": (inverses_in_the_same_order, "and in its inverse"),
        "the last factor first": (lambda factors: log_condition(factors[::-1]), "comes first"),
        "ln κ of the factors": (
            lambda factors: sum(torch.linalg.cond(W).log().item() for W in factors), "added the ln κ"),
        "Frobenius": (by_frobenius, "Which norm of the inverse"),
        "base 10": (lambda factors: log_condition(factors) / math.log(10), "which base"),
        "of the squares": (lambda factors: 2 * log_condition(factors), "or of their squares"),
        "κ itself": (lambda factors: math.exp(min(log_condition(factors), 700)), "or its logarithm"),
        "diagonals of R": (by_triangles, "single factor"),
        "logarithms not kept": (logs_not_kept, "single factor"),
        "the prediction of the chapter": (by_the_chapter, "single factor"),
        "the largest only": (lambda factors: spectral(multiplied(factors)).log(), "single factor"),
    },
)  # fmt: skip


# fmt: off
class Fitted(torch.nn.Module):
    """A head has M = 0.7 (Z + I), and W_o W_v = 0.4 (Z - I)."""

    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads, d_head = n_heads, d_model // n_heads
        for role in ("query", "key", "value", "output"):
            square = torch.nn.Linear(d_model, d_model, bias=False)
            self.add_module(role, square)
        with torch.no_grad():
            for q, k in zip(self.query.weight.split(d_head),
                            self.key.weight.split(d_head), strict=True):
                left, right = self.factors(0.7, +1, d_model)
                q.copy_(left.mT[:d_head])
                k.copy_(right[:d_head])
            left, right = self.factors(0.4, -1, d_model)
            self.output.weight.copy_(left)
            self.value.weight.copy_(right)

    def factors(self, scale, sign, d):
        Z = torch.randn(d, d) / d**0.5
        U, s, Vt = torch.linalg.svd(scale * (Z + sign * torch.eye(d)))
        return U * s, s[:, None] * Vt

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (f(x).view(B, T, self.n_heads, -1).transpose(1, 2)
                   for f in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
        return self.output((weights @ v).transpose(1, 2).reshape(B, T, C))
# fmt: on


def mend(layer):
    with torch.no_grad():
        for part in (layer.query, layer.key, layer.value):
            part.weight /= part.weight.norm(dim=1, keepdim=True).sqrt()
        layer.output.weight /= layer.output.weight.norm(dim=0, keepdim=True).sqrt()


@torch.no_grad()
def divided(layer: nn.Module, dims: dict[str, int], power: float = 0.5) -> None:
    """Divide rows (dim 1) or columns (dim 0) by a power of their length."""
    for role, dim in dims.items():
        weight = getattr(layer, role).weight
        weight /= weight.norm(dim=dim, keepdim=True) ** power


@torch.no_grad()
def each_entry(layer: nn.Module, change) -> None:
    for weight in layer.parameters():
        weight.copy_(change(weight))


@torch.no_grad()
def the_advice(layer: nn.Module) -> None:
    layer.query.weight /= 3.1


@torch.no_grad()
def drawn_by_xavier(layer: nn.Module) -> None:
    for weight in layer.parameters():
        nn.init.xavier_normal_(weight)


@torch.no_grad()
def all_at_once(layer: nn.Module) -> None:
    """The singular values of the whole matrices, not those of a head."""
    for weight in layer.parameters():
        U, s, Vt = torch.linalg.svd(weight)
        weight.copy_(U * s.sqrt() @ Vt)


@torch.no_grad()
def one_side_negative(layer: nn.Module) -> None:
    mend(layer)
    layer.key.weight.neg_()


def fitted_cases(seed: int) -> list[tuple[int, int, int]]:
    return [(12, 3, seed), (8, 2, seed + 1)]


def mended_factors(answer, d_model, n_heads, seed):
    torch.manual_seed(seed)
    layer = Fitted(d_model, n_heads)
    old = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    answer(layer)
    new = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    found = {}
    for name in sorted(old):
        if name not in new or new[name].shape != old[name].shape:
            continue
        for along, dim in (("row", 1), ("column", 0)):  # each as a multiple of what it was, and what is left beside it
            times = (new[name] * old[name]).sum(dim, keepdim=True) / old[name].square().sum(dim, keepdim=True)
            beside = (new[name] - times * old[name]).norm() / new[name].norm()
            found[name.split(".")[0], along] = (times.flatten(), beside.item())
    return sorted(new), found


def judge_factors(case, got, want):
    assert isinstance(got, tuple) and len(got) == 2 and isinstance(got[1], dict), "Is the layer there still?"
    names, found = got
    assert names == want[0] and set(found) == set(want[1]), (
        "Which parameters had the layer before? Are they all there still, in their shapes?"
    )
    assert all(times.isfinite().all() and math.isfinite(beside) for times, beside in found.values()), (
        "A matrix holds something that is no number. By what did you divide?"
    )

    def is_as_it_was(role):
        times, beside = found[role, "row"]
        return beside < 1e-5 and torch.allclose(times, torch.ones(len(times)), atol=1e-5)

    roles = ("query", "key", "value", "output")
    right = {role: "column" if role == "output" else "row" for role in roles}
    left_alone = [role for role in roles if is_as_it_was(role)]
    assert len(left_alone) < 4, "Nothing was changed. Does your function change the layer in place?"
    assert not {"value", "output"} <= set(left_alone), (
        "Value and output are as they were. Are they made by another function than query and key?"
    )
    assert not left_alone, f"The {left_alone[0]} is as it was. On which side of a product belong the roots?"
    for role in roles:
        other = "row" if role == "output" else "column"
        times, beside = found[role, right[role]]
        if beside > 1e-2:
            assert found[role, other][1] > 1e-2, (
                f"In the {role} the {other}s were multiplied. Does a singular value stand in a row of it, or in a column?"
            )
            raise AssertionError(
                f"The {role} has other directions than before. What should stay of U and V, and what should change?"
            )
    for role in roles:
        times, wanted = found[role, right[role]][0], want[1][role, right[role]][0]
        if torch.allclose(
            times.abs() / wanted**2, 1 / wanted, rtol=1e-2, atol=1e-2
        ):  # the lengths, as float32 has them
            continue
        assert (times / times[0] - 1).abs().max() > 1e-3, (
            f"All of the {role} was multiplied by one number. Which number must be changed in each singular value?"
        )
        assert not torch.allclose(times.abs(), wanted**2, rtol=1e-2), (
            f"The {role} has no singular values any more: all its {right[role]}s have length 1. What should the product be?"
        )
        assert not torch.allclose(times.abs(), 1 / wanted, rtol=1e-2), (
            f"The singular values of the {role} have grown apart. Do you divide by the root, or multiply?"
        )
        raise AssertionError(
            f"The directions of the {role} are right, and their lengths are not. What are they, if two of them make one "
            "singular value?"
        )
    for left, right_side in (("query", "key"), ("output", "value")):
        signs = found[left, right[left]][0].sign() * found[right_side, right[right_side]][0].sign()
        assert (signs > 0).all(), (
            f"The product of {left} and {right_side} has changed its sign. Which one did you turn?"
        )


twice_the_values = Mend(
    number="8.6",
    title="Singular values, twice",
    minutes=15,
    difficulty="medium",
    points=3,
    needs=("Only mimetic changes the logits",),
    statement=(
        "`Fitted` should be drawn by mimetic initialization. Build `Fitted(128, 4)` and run `attntut.diagnose` on it, with "
        "`torch.randn(4, 32, 128)`. The finding names the symptom, and its advice treats only the query. What is the "
        "cause, and what else has it spoilt? Write `mend(layer)`, which mends a `Fitted` of any size in place. Draw nothing "
        "anew: every head keeps its $Z$ and its directions, and the two sides of a product share its singular values equally. "
        "Then run `attntut.diagnose` again."
    ),
    hint=(
        "In a wide $Z + I$ the largest singular value is $\\sqrt{27/4} \\approx 2.6$. Which one should $M$ of a head have, and "
        "which has it? How long is a row of `query`, and how long is a column of `output`?"
    ),
    name="mend",
    starter="def mend(layer):\n    ...",
    setup=(Fitted,),
    make=fitted_cases,
    ask=mended_factors,
    compare=judge_factors,
    solution=mend,
    wrong={
        "the advice": (the_advice, "Value and output"),
        "query and key only": (lambda m: divided(m, {"query": 1, "key": 1}), "Value and output"),
        "all on one side": (lambda m: divided(m, {"query": 1, "value": 1}, 1), "On which side"),
        "rows of the output": (
            lambda m: divided(m, {"query": 1, "key": 1, "value": 1, "output": 1}), "in a row of it"),
        "columns of all": (
            lambda m: divided(m, {"query": 0, "key": 0, "value": 0, "output": 0}), "in a row of it"),
        "lengths of 1": (
            lambda m: divided(m, {"query": 1, "key": 1, "value": 1, "output": 0}, 1), "length 1"),
        "multiplied": (
            lambda m: divided(m, {"query": 1, "key": 1, "value": 1, "output": 0}, -0.5), "or multiply"),
        "a quarter": (
            lambda m: divided(m, {"query": 1, "key": 1, "value": 1, "output": 0}, 0.25), "two of them make one"),
        "one number a matrix": (
            lambda m: each_entry(m, lambda w: w / w.norm(dim=1).mean().sqrt()), "by one number"),
        "roots of the entries": (lambda m: each_entry(m, lambda w: w.sign() * w.abs().sqrt()), "other directions"),
        "drawn anew": (drawn_by_xavier, "other directions"),
        "heads together": (all_at_once, "other directions"),
        "a sign": (one_side_negative, "changed its sign"),
        "nothing": (lambda m: None, "Nothing was changed"),
        "a copy": (lambda m: mend(Fitted(12, 3)), "Nothing was changed"),
    },
)  # fmt: skip


# fmt: off
def turn(seed):
    """An orthogonal matrix of width 128."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.init.orthogonal_(torch.empty(128, 128).double(),
                                     generator=generator)


def share(matrix):
    """Share of the directions that a matrix uses."""
    gram = matrix @ matrix.mT
    return (gram.trace() ** 2 / gram.square().sum() / len(gram)).item()
# fmt: on


def looped(blocks: int, skip: float = 1.0, of=share) -> float:
    """Mean over eight seeds of what a block leaves that is used again and again."""
    block = (skip * torch.eye(128).double() + turn(seed) for seed in range(8))
    return sum(of(torch.linalg.matrix_power(each, blocks)) for each in block) / 8


def of_stretches(matrix: Tensor) -> float:
    s = torch.linalg.svdvals(matrix)
    return (s.mean() ** 2 / s.square().mean()).item()


used_again = Explain(
    number="8.7",
    title="The same block again",
    minutes=15,
    difficulty="medium",
    points=2,
    manual=3,
    needs=("8.2", "One skip connection takes most of the advantage away"),
    statement=(
        "Some models apply one block again and again, with the same weights. Let the block be $I + Q$, where $Q$ is "
        "`turn(seed)`, and apply it <<blocks>> times. First predict the share of the directions in use by the sum of the ν, "
        "as if every block had a $Q$ of its own. Then measure the share of $(I + Q)^L$ for $L$ = <<blocks>>, as a mean over "
        "the seeds 0 to 7. Answer with both numbers. Explain in two or three sentences which assumption of the sum fails, "
        "and which directions are still in use."
    ),
    hint=(
        "`torch.linalg.matrix_power`. An orthogonal matrix turns planes by angles $\\theta$. By what does $I + Q$ stretch such "
        "a plane, and what becomes of it when the same plane is met again?"
    ),
    rubric=(
        "The prediction is 1/(1 + L/2) (1 point). The sum needs factors whose directions are random and independent; here "
        "every factor has the same invariant planes, so stretches multiply in place, (2 cos θ/2)^L, and do not meet new "
        "directions (1). Those that Q nearly leaves alone stay in use: angles up to about 1/√L, so that the share falls like "
        "√(2/(πL)), more slowly than 2/L (1)."
    ),
    setup=(turn, share),
    parameters={"blocks": (12, 16, 24, 10, 20, 14)},
    solve=lambda blocks: looped(blocks),
    traps={
        "That is the number of the sum. What do the eight matrices give?": lambda blocks: 1 / (1 + blocks / 2),
        "That is the share after a single block. How often is it applied?": lambda blocks: looped(1),
        "All directions are in use. Where is the skip?": lambda blocks: looped(blocks, skip=0),
        "Did you multiply the matrix by its transpose, or take the power? How long is the chain that you measured?": (
            lambda blocks: looped(2 * blocks)
        ),
        "That is larger than a share can be. By what is the number of directions divided?": (
            lambda blocks: 128 * looped(blocks)
        ),
        "Is the share made of the singular values, or of their squares?": (
            lambda blocks: looped(blocks, of=of_stretches)
        ),
        "Is that the ν of the chain, or its share?": lambda blocks: 1 / looped(blocks) - 1,
    },
    ask="Is it `share` of the matrix power of I + turn(seed), with this exponent, and the mean over the seeds 0 to 7?",
    rtol=0.02,
)  # fmt: skip

EXERCISES = [
    fair_test, mixed_stack, smaller_branch, logits_code, condition_code, twice_the_values, used_again,
]  # fmt: skip
