"""The data sets: their shapes, their exact answers, and that they need nothing but what is installed."""

import socket
import sys
from importlib.resources import files

import pytest
import torch

from attntut import data as module
from attntut.data import (
    UNSCORED,
    Data,
    associative_recall,
    characters,
    copy,
    digits,
    reverse,
    to_images,
)

MAKERS = [digits, characters, reverse, copy, associative_recall]
SYNTHETIC = [reverse, copy, associative_recall]
CLASSES = {copy: (10,), associative_recall: (8, 16)}  # the separator, and the keys, are read but never written


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("A data set opened a socket: nothing may be downloaded.")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("make", MAKERS)
def test_every_set_loads_without_a_network(make, no_network):
    data = make()
    assert len(data.train_inputs) > len(data.test_inputs) > 0
    classes = torch.cat([data.train_targets.flatten(), data.test_targets.flatten()]).unique()
    assert classes[classes != UNSCORED].tolist() == list(range(*CLASSES.get(make, (data.n_classes,)))), (
        "Every class is asked for, and no other."
    )


@pytest.mark.parametrize("make", MAKERS)
def test_the_same_call_gives_the_same_data(make):
    first, second = make(), make()
    for name in ("train_inputs", "train_targets", "test_inputs", "test_targets"):
        assert torch.equal(getattr(first, name), getattr(second, name)), f"{name} changed between two equal calls."


@pytest.mark.parametrize("make", [digits, *SYNTHETIC])
def test_another_seed_gives_other_data(make):
    assert not torch.equal(make(seed=0).train_inputs, make(seed=1).train_inputs)


@pytest.mark.parametrize("make", [digits, *SYNTHETIC])
def test_the_global_generator_is_left_alone(make):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    make()
    assert torch.rand(1) == expected, "A data set drew from torch's global generator, and shifts what comes after it."


# digits


def test_digits_are_standardized_by_the_training_set_alone():
    data = digits()
    assert data.train_inputs.mean().abs() < 1e-5 and (data.train_inputs.std() - 1).abs() < 1e-5
    assert data.test_inputs.mean().abs() > 1e-5, "The test images took part in the mean."


def test_digits_hold_every_image_once():
    from sklearn.datasets import load_digits

    data = digits(patch=8)
    rows = torch.cat([data.train_inputs, data.test_inputs]).flatten(1)
    pixels = torch.tensor(load_digits().images, dtype=torch.float32).flatten(1)
    rows = (rows - rows.min()) / (rows.max() - rows.min()) * 16
    ours = sorted(tuple(row) for row in rows.round().int().tolist())
    assert ours == sorted(tuple(row) for row in pixels.int().tolist())
    assert torch.cat([data.train_targets, data.test_targets]).bincount().tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip


@pytest.mark.parametrize("patch, tokens", [(1, 64), (2, 16), (4, 4), (8, 1)])
def test_digits_in_patches(patch, tokens):
    assert digits(patch=patch).train_inputs.shape == (1348, tokens, patch**2)


def test_fewer_training_digits_and_the_same_test_set():
    few, all_ = digits(n_train=300), digits()
    assert len(few.train_inputs) == 300
    assert torch.equal(few.train_targets, all_.train_targets[:300])
    assert torch.equal(few.test_targets, all_.test_targets)


def test_patches_are_read_like_a_page():
    patches = torch.tensor([[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]])
    assert torch.equal(to_images(patches), torch.arange(16).view(1, 4, 4))


@pytest.mark.parametrize("call", [digits, lambda: to_images(torch.zeros(1, 4, 4))])
def test_without_einops_it_is_said_what_to_install(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "einops", None)
    with pytest.raises(ModuleNotFoundError, match=r"einops is not installed.*pip install 'attntut\[train\]'"):
        call()


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_the_image_is_the_same_whatever_the_patch(patch):
    whole = to_images(digits(patch=8).test_inputs)
    torch.testing.assert_close(to_images(digits(patch=patch).test_inputs), whole, atol=1e-5, rtol=0)


# tokens in another order


def test_shuffled_tokens_are_the_same_bag_in_another_order():
    x = torch.arange(2 * 50 * 3).view(2, 50, 3)
    y = module.shuffle_tokens(x, seed=0, keep=2)
    assert torch.equal(y[:, :2], x[:, :2])
    assert torch.equal(y.sort(dim=1).values, x), "Does each token keep its own numbers, and its own input?"
    assert not torch.equal(y[0] - x[0], y[1] - x[1]), "Every input has an order of its own."
    assert torch.equal(module.shuffle_tokens(x[..., 0], seed=0, keep=2), y[..., 0])


# characters


def test_the_text_is_the_play_and_nothing_else():
    text = files("attntut").joinpath("corpus/hamlet.txt").read_bytes()
    assert b"To be, or not to be,--that is the question:--" in text
    assert text.isascii() and len(text) <= 200_000
    for word in (b"gutenberg", b"etext", b"copyright", b"trademark"):
        assert word not in text.lower(), f"The corpus must be the play alone, but says {word!r}."


@pytest.mark.parametrize("name, load", [("hamlet.txt", characters), ("digits.csv.gz", digits)])
def test_a_changed_corpus_is_refused(name, load, monkeypatch):
    assert module.CORPUS_SHA256[name] in files("attntut").joinpath("corpus/README.md").read_text(encoding="utf-8")
    monkeypatch.setitem(module.CORPUS_SHA256, name, "0" * 64)
    with pytest.raises(RuntimeError, match=rf"corpus/{name} is not the file .* expected SHA-256 000"):
        load()


def test_the_target_of_a_character_is_the_next_one():
    data = characters(seq_len=16)
    for part in ("train", "test"):
        x, y = getattr(data, f"{part}_inputs"), getattr(data, f"{part}_targets")
        assert torch.equal(x[:, 1:], y[:, :-1])
        assert torch.equal(x[1:, 0], y[:-1, -1]), "A window must begin with the last target of the one before."


def test_no_character_is_in_both_parts():
    data = characters(seq_len=32)
    last = data.decode(data.train_targets[-1])
    first = data.decode(data.test_inputs[0])
    play = files("attntut").joinpath("corpus/hamlet.txt").read_text(encoding="ascii")
    assert play.index(last) + len(last) <= play.index(first), "The last training window reaches into the test part."


def test_encode_and_decode_are_inverse():
    data = characters()
    assert data.decode(data.encode(data.alphabet)) == data.alphabet
    assert data.n_classes == len(data.alphabet) == 65


# synthetic tasks


def both(data):
    return torch.cat([data.train_inputs, data.test_inputs]), torch.cat([data.train_targets, data.test_targets])


@pytest.mark.parametrize("make", SYNTHETIC)
def test_no_sequence_comes_twice(make):
    inputs, _ = both(make())
    assert len(inputs) == 2500
    assert len(inputs.unique(dim=0)) == 2500, "A sequence came twice: a test answer may have been seen in training."


def test_reverse_has_the_exact_answer():
    inputs, targets = both(reverse(seq_len=7, vocab_size=5))
    assert [row[::-1] for row in inputs.tolist()] == targets.tolist()
    assert inputs.unique().tolist() == list(range(5))


def test_copy_has_the_exact_answer():
    data = copy(length=5, vocab_size=6)
    assert data.n_classes == 7
    for x, y in zip(*(part.tolist() for part in both(data)), strict=True):
        word = x[:5]
        assert x == [*word, 6, *word[:-1]]
        assert y == [UNSCORED] * 5 + word
        assert 6 not in word


def test_associative_recall_has_the_exact_answer():
    data = associative_recall(n_pairs=3, n_keys=5, n_values=4)
    assert data.n_classes == 9
    for x, y in zip(*(part.tolist() for part in both(data)), strict=True):
        keys, values = x[0:6:2], x[1:6:2]
        assert len(set(keys)) == 3 and all(key < 5 for key in keys) and all(5 <= value < 9 for value in values)
        assert y == [UNSCORED] * 6 + [dict(zip(keys, values, strict=True))[x[-1]]]


def test_all_sequences_of_a_small_task_can_be_asked_for():
    data = reverse(seq_len=3, vocab_size=2, n_train=6, n_test=2)
    assert len(both(data)[0].unique(dim=0)) == 8


# Data


def coin(**changes):
    x, y = torch.randn(6, 3, 2), torch.tensor([0, 1, 0, 1, 0, UNSCORED])
    arguments = {"train_inputs": x, "train_targets": y, "test_inputs": x, "test_targets": y, "n_classes": 2}
    return Data("coin", **{**arguments, **changes})


def test_data_can_be_moved():
    moved = coin().to("cpu", torch.float64)
    assert moved.train_inputs.dtype == moved.test_inputs.dtype == torch.float64
    assert moved.train_targets.dtype == torch.int64
    assert reverse().to(dtype=torch.float64).train_inputs.dtype == torch.int64, "Tokens must stay integers."
    assert characters().to("cpu").alphabet == characters().alphabet


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"n_classes": 0}, ValueError, "n_classes must be an integer ≥ 1: got 0"),
        ({"n_classes": 1}, ValueError, "train_targets must lie between 0 and 0"),
        ({"train_targets": torch.full((6,), -1)}, ValueError, "train_targets must lie between 0 and 1"),
        ({"test_targets": torch.full((6,), UNSCORED)}, ValueError, "test_targets must lie .* but not everywhere"),
        ({"train_inputs": [1, 2]}, TypeError, r"train_inputs must be a torch\.Tensor: got list"),
        ({"train_targets": torch.zeros(6)}, TypeError, r"train_targets must have dtype torch\.int64"),
        ({"train_inputs": torch.zeros(6, 3, dtype=torch.int32)}, TypeError, "train_inputs must be floating-point or"),
        ({"train_targets": torch.zeros(5).long()}, ValueError, r"train_targets must have shape \(6,\) or \(6, 3\)"),
        ({"test_inputs": torch.zeros(6, 4, 2)}, ValueError, "test_inputs must have the shape of train_inputs"),
        (
            {"train_inputs": torch.zeros(0, 3, 2), "train_targets": torch.zeros(0).long()},
            ValueError,
            "at least one row",
        ),
    ],
)
def test_data_that_does_not_fit_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        coin(**changes)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: digits(patch=3), ValueError, "patch must divide 8, the side of an image: got 3. Take 1, 2, 4 or 8"),
        (lambda: digits(patch=2.0), TypeError, "patch must be an integer"),
        (lambda: digits(test_fraction=0), ValueError, "test_fraction must be a number > 0 and < 1: got 0"),
        (lambda: characters(test_fraction=1), ValueError, "test_fraction must be a number > 0 and < 1: got 1"),
        (lambda: digits(n_train=2000), ValueError, "n_train must be an integer between 1 and 1348: got 2000"),
        (lambda: digits(seed=-1), ValueError, "seed must be an integer ≥ 0"),
        (lambda: to_images([1]), TypeError, r"patches must be a torch\.Tensor"),
        (lambda: to_images(torch.zeros(1, 3, 4)), ValueError, r"squares: got \(1, 3, 4\)"),
        (lambda: characters(seq_len=0), ValueError, "seq_len must be an integer ≥ 1: got 0"),
        (lambda: characters(seq_len=20_000), ValueError, "seq_len must be less than 17392"),
        (lambda: characters(test_fraction="0.1"), TypeError, "test_fraction must be a number > 0 and < 1: got '0.1'"),
        (lambda: characters().encode("naïve"), ValueError, "text must use the alphabet .* only: got 'ï'"),
        (lambda: characters().encode(3), TypeError, "text must be a str: got int"),
        (lambda: characters().decode([65]), ValueError, "tokens must be one row of integers between 0 and 64"),
        (lambda: reverse().decode([1]), ValueError, "decode needs data whose tokens are characters: 'reverse' has no"),
        (lambda: reverse().encode("a"), ValueError, "encode needs data whose tokens are characters"),
        (lambda: digits().to(dtype=torch.int64), TypeError, "dtype must be a floating-point dtype"),
        (lambda: reverse(vocab_size=1), ValueError, "vocab_size must be an integer ≥ 2: got 1"),
        (lambda: reverse(n_train=0), ValueError, "n_train must be an integer ≥ 1: got 0"),
        (lambda: reverse(seq_len=2), ValueError, "n_train \\+ n_test must be at most 100, .* got 2500"),
        (lambda: copy(length=0), ValueError, "length must be an integer ≥ 1: got 0"),
        (lambda: copy(n_test=1.5), TypeError, "n_test must be an integer"),
        (lambda: associative_recall(n_pairs=9), ValueError, "n_pairs must be an integer between 1 and 8: got 9"),
        (lambda: associative_recall(n_values=1), ValueError, "n_values must be an integer ≥ 2: got 1"),
        (lambda: associative_recall(n_pairs=1), ValueError, "must be at most 64"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
