"""Each measure against a number worked out by hand."""

import math

import pytest
import torch

from attntut import measure
from attntut.device import seeded

LOG2, LOG3 = math.log(2), math.log(3)


def close(measured, expected):
    torch.testing.assert_close(measured, torch.as_tensor(expected, dtype=measured.dtype), atol=1e-6, rtol=0)


def test_entropy_by_hand():
    weights = torch.tensor([[[0.5, 0.25, 0.25], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0, 0, 0]]])
    close(measure.attention_entropy(weights), [[1.5 * LOG2, 0, LOG3, 0]])
    close(measure.attention_entropy(weights, normalized=True), [[1.5 * LOG2 / LOG3, 0, 1, 0]])


def test_the_share_is_of_what_the_mask_allows():
    weights = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]])
    share = measure.attention_entropy(weights, normalized=True, mask=torch.ones(3, 3).tril().bool())
    assert share[0].isnan(), "One key is no choice: its share of ln 1 = 0 does not exist."
    close(share[1:], [1, 1])


@pytest.mark.parametrize("n", [2, 16, 300])
@pytest.mark.parametrize("std", [0.1, 1.0, 4.0, 64.0])
def test_the_entropy_of_gaussian_logits_is_that_of_many_draws(n, std):
    logits = std * torch.randn(400_000 // n, n, generator=seeded(0), dtype=torch.float64)
    entropies = measure.attention_entropy(torch.softmax(logits, dim=-1))
    error = (entropies.std() / len(entropies) ** 0.5).item()
    assert abs(measure.gaussian_entropy(std, n) - entropies.mean().item()) < 4 * error + 1e-6


def test_the_entropy_of_equal_logits_is_the_logarithm_of_their_number():
    assert measure.gaussian_entropy(0, 12) == pytest.approx(math.log(12), abs=1e-9)
    small = 0.05  # ln n − σ²/2 + σ²/(2n), up to σ⁴
    assert measure.gaussian_entropy(small, 12) == pytest.approx(math.log(12) - small**2 * 11 / 24, abs=small**4)


@pytest.mark.parametrize("n", [2, 16, 256])
@pytest.mark.parametrize("std", [90, 128, 1024])
def test_the_entropy_of_very_large_logits_falls_like_one_over_their_scale(n, std):
    logits = std * torch.randn(400_000 // n, n, generator=seeded(2), dtype=torch.float64)
    entropies = measure.attention_entropy(logits.softmax(dim=-1))
    error = entropies.std().item() / math.sqrt(len(entropies))
    assert abs(measure.gaussian_entropy(std, n) - entropies.mean().item()) < 4 * error + 0.001


def test_participation_is_the_variance_left_after_averaging():
    weights = torch.tensor([[0.5, 0.25, 0.25]])
    close(measure.participation(weights), [0.375])
    values = torch.randn(3, 200_000, generator=seeded(0))
    torch.testing.assert_close((weights @ values).var(), torch.tensor(0.375), rtol=0.02, atol=0)


def test_logit_statistics_by_hand():
    logits = torch.tensor([[[0.0, 2, -math.inf], [10, 11, 12]]])
    mean, std, largest = measure.logit_statistics(logits)
    close(mean, [7])  # 35 / 5
    close(std, [math.sqrt((1 + 1 + 1 + 0 + 1) / 5)])
    close(largest, [12])


def test_a_shift_of_a_row_changes_no_deviation():
    logits = torch.randn(2, 5, 7, generator=seeded(0))
    shifted = logits + 100 * torch.randn(2, 5, 1, generator=seeded(1))
    torch.testing.assert_close(
        measure.logit_statistics(logits).std, measure.logit_statistics(shifted).std, atol=1e-4, rtol=0
    )


def test_rank_residual_by_hand():
    x = torch.tensor([[1.0, 0], [1, 2]])  # mean (1, 1), residual ((0, −1), (0, 1))
    close(measure.rank_residual(x), math.sqrt(2))
    close(measure.rank_residual(x, relative=True), math.sqrt(2 / 6))
    close(measure.rank_residual(torch.ones(2, 4, 3)), [0, 0])


def test_token_cosine_by_hand():
    x = torch.tensor([[[1.0, 0], [0, 3], [2, 0]], [[1, 1], [2, 2], [-1, -1]]])
    close(measure.token_cosine(x), [1 / 3, -1 / 3])


def test_token_cosine_equals_the_double_sum():
    x = torch.randn(6, 5, generator=seeded(0))
    cosines = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1)
    close(measure.token_cosine(x), cosines[~torch.eye(6).bool()].mean())


def test_rms_by_hand():
    close(measure.rms(torch.tensor([[[3.0, -4]]])), math.sqrt(12.5))


def test_a_probe_reads_what_a_line_can_separate_and_nothing_else():
    x = torch.randn(4000, 3, generator=seeded(0))
    line, cross = (x[:, 0] > 0.5).long(), (x[:, 0] * x[:, 1] > 0).long()
    halves = lambda y: (x[:2000], y[:2000], x[2000:], y[2000:])  # noqa: E731
    assert measure.linear_probe(*halves(line)) > 0.85
    assert abs(measure.linear_probe(*halves(cross)) - 0.5) < 0.05


def test_a_probe_does_not_mind_scale_or_a_dead_coordinate():
    x = torch.randn(200, 3, generator=seeded(0))
    y = (x @ torch.tensor([1.0, -1, 2]) > 0).long()
    dead = torch.cat([100 * x + 7, torch.ones(200, 1)], dim=1)
    assert measure.linear_probe(x, y, x, y) == measure.linear_probe(dead, y, dead, y)


def test_numbers_kept_of_an_attention_by_hand():
    n, d = 6, 4
    q, k, v = (torch.randn(n, d, requires_grad=True) for _ in range(3))
    kept = measure.numbers_kept(lambda: torch.softmax(q @ k.mT, dim=-1) @ v)
    assert kept == n * n + 3 * n * d, "The weights, and the three factors of the products. Is a view counted twice?"
    assert measure.numbers_kept(lambda: q.detach() @ k.detach().mT) == 0


def test_the_gradient_by_distance_of_a_linear_recurrence_falls_by_its_factor():
    def read(x):  # h = 0.5 h + x
        h = x[:, 0]
        for t in range(1, x.shape[1]):
            h = 0.5 * h + x[:, t]
        return h[:, None]

    felt = measure.gradient_by_distance(read, torch.randn(3, 6, 4, generator=seeded(0)), seed=1)
    close(felt / felt[0], [0.5**distance for distance in range(6)])


def test_products_in_a_row_are_counted_along_the_longest_chain():
    W = torch.eye(3, requires_grad=True)
    x = torch.ones(5, 3)
    for _ in range(3000):  # more than Python's stack
        x = torch.tanh(x @ W)
    assert measure.products_in_a_row(x) == 3000
    assert measure.products_in_a_row(torch.softmax(x @ W @ x.T, dim=-1) @ x + x) == 3003
    assert measure.products_in_a_row(2 * W) == 0


def test_multiply_adds_are_those_of_the_products():
    n, d = 6, 4
    assert measure.multiply_adds(lambda: torch.nn.LSTM(d, d, batch_first=True), 1, n, d) == 8 * n * d**2
    assert measure.multiply_adds(lambda: torch.nn.Conv1d(d, d, 5, padding=2), 1, d, n) == 5 * n * d**2


def test_update_size_by_hand():
    close(measure.update_size(torch.zeros(2, 2), torch.tensor([[1.0, 1], [1, 3]])), math.sqrt(3))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: measure.attention_entropy(torch.randn(3, 3) * 9),
            ValueError,
            "weights must be probabilities.*not its input",
        ),
        (lambda: measure.gaussian_entropy(-1, 4), ValueError, "std must be a number ≥ 0: got -1"),
        (lambda: measure.gaussian_entropy(1, 0), ValueError, "n must be an integer ≥ 1: got 0"),
        (lambda: measure.attention_entropy([1.0]), TypeError, "weights must be a torch.Tensor: got list"),
        (lambda: measure.participation(torch.ones(2, 2).long()), TypeError, "weights must be a floating-point tensor"),
        (lambda: measure.logit_statistics(torch.ones(3)), ValueError, "logits must have at least 2 dimensions"),
        (lambda: measure.rank_residual(torch.ones(2)), ValueError, "x must have at least 2 dimensions"),
        (lambda: measure.token_cosine(torch.ones(1, 4)), ValueError, "at least two tokens"),
        (lambda: measure.rms(3.0), TypeError, "x must be a torch.Tensor: got float"),
        (
            lambda: measure.linear_probe(
                torch.ones(3, 2), torch.ones(2).long(), torch.ones(1, 2), torch.ones(1).long()
            ),
            ValueError,
            r"got \(3, 2\) with 2, and \(1, 2\) with 1",
        ),
        (lambda: measure.gradient_by_distance(lambda x: x, torch.ones(3, 2)), ValueError, "x must have 3 dimensions"),
        (lambda: measure.products_in_a_row(torch.ones(2)), ValueError, "output must come from something that requires"),
        (lambda: measure.update_size(torch.ones(2), torch.ones(3)), ValueError, r"one shape: got \(2,\) and \(3,\)"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
