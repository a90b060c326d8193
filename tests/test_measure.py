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
    close(measure.rank_residual(x, norm="composite"), math.sqrt(2 * 1))
    close(measure.rank_residual(x, relative=True), math.sqrt(2 / 6))
    close(measure.rank_residual(x, norm="composite", relative=True), math.sqrt(2) / math.sqrt(2 * 3))
    close(measure.rank_residual(torch.ones(2, 4, 3)), [0, 0])


def test_token_cosine_by_hand():
    x = torch.tensor([[[1.0, 0], [0, 3], [2, 0]], [[1, 1], [2, 2], [-1, -1]]])
    close(measure.token_cosine(x), [1 / 3, -1 / 3])


def test_token_cosine_equals_the_double_sum():
    x = torch.randn(6, 5, generator=seeded(0))
    cosines = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1)
    close(measure.token_cosine(x), cosines[~torch.eye(6).bool()].mean())


def test_scale_by_depth():
    close(measure.rms_by_depth([torch.full((2, 3, 4), 2.0), torch.tensor([[[3.0, -4]]])]), [2, math.sqrt(12.5)])


def test_gradient_norms_add_up_over_a_role():
    parameters = {
        name: torch.nn.Parameter(torch.zeros(2))
        for name in [
            "blocks.0.attention.query.weight",
            "blocks.1.attention.query.weight",
            "blocks.0.attention.key.weight",
        ]
    }
    for parameter, gradient in zip(parameters.values(), [[3.0, 0], [0, 4.0]], strict=False):
        parameter.grad = torch.tensor(gradient)
    assert measure.gradient_norms(parameters.items()) == {"query": 5.0, "key": 0.0}
    assert measure.gradient_norms(parameters.items(), {"mine": ["*.1.*"]}) == {"mine": 4.0}


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
        (lambda: measure.attention_entropy([1.0]), TypeError, "weights must be a torch.Tensor: got list"),
        (lambda: measure.participation(torch.ones(2, 2).long()), TypeError, "weights must be a floating-point tensor"),
        (lambda: measure.logit_statistics(torch.ones(3)), ValueError, "logits must have at least 2 dimensions"),
        (lambda: measure.rank_residual(torch.ones(2, 2), norm="frobenious"), ValueError, "Did you mean 'frobenius'"),
        (lambda: measure.rank_residual(torch.ones(2)), ValueError, "x must have at least 2 dimensions"),
        (lambda: measure.token_cosine(torch.ones(1, 4)), ValueError, "at least two tokens"),
        (lambda: measure.rms(3.0), TypeError, "x must be a torch.Tensor: got float"),
        (lambda: measure.rms_by_depth([]), ValueError, "stream must hold at least one"),
        (lambda: measure.gradient_norms([("w", torch.ones(1))]), ValueError, "No parameter matches.*got w"),
        (lambda: measure.update_size(torch.ones(2), torch.ones(3)), ValueError, r"one shape: got \(2,\) and \(3,\)"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
