"""Small data sets that need no download: real images, a real text, and tasks whose answers are known exactly."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from attntut._checks import check_int, check_number, check_tensor
from attntut._extras import extra
from attntut.device import seeded

UNSCORED = -100
"""The target of a position that no loss and no accuracy counts; torch's default ``ignore_index``."""

CORPUS_SHA256 = {
    "digits.csv.gz": "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
    "hamlet.txt": "0d2173a3f51fdd29850625a16bdf6d0b742317e2d0adf6cdf94dde4cbf7e9115",
}
"""The files in ``attntut/corpus``, where its README says whence they come, and their SHA-256."""


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Inputs and targets, split into a training set and a test set.

    Args:
        name: what it is called in tables and figures.
        train_inputs: real tokens ``(N, T, d_input)``, or integer tokens ``(N, T)``.
        train_targets: int64, one class an input, ``(N,)``, or a token, ``(N, T)``; ``-100`` where nothing is scored.
        test_inputs, test_targets: the same, with an N of their own.
        n_classes: targets lie in ``0 … n_classes − 1``.
        alphabet: the character of every integer token, if the tokens are characters.

    Raises:
        TypeError: an input is no tensor, or targets are not int64.
        ValueError: shapes do not fit, a set is empty, or a target is out of range.

    Example:
        >>> x, y = torch.randn(6, 3, 2), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> Data("coin", x[:4], y[:4], x[4:], y[4:], n_classes=2)
        Data('coin': train 4, test 2, inputs (3, 2) float32, n_classes=2)
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    n_classes: int
    alphabet: str = ""

    def __post_init__(self) -> None:
        check_int("n_classes", self.n_classes)
        for part in ("train", "test"):
            inputs = check_tensor(f"{part}_inputs", getattr(self, f"{part}_inputs"), min_ndim=2, floating=False)
            targets = check_tensor(f"{part}_targets", getattr(self, f"{part}_targets"), min_ndim=1, floating=False)
            if targets.dtype != torch.int64:
                raise TypeError(f"{part}_targets must have dtype torch.int64: got {targets.dtype}.")
            if not inputs.is_floating_point() and inputs.dtype != torch.int64:
                raise TypeError(f"{part}_inputs must be floating-point or torch.int64: got {inputs.dtype}.")
            n, T = inputs.shape[:2]
            if n == 0 or targets.shape not in ((n,), (n, T)):
                raise ValueError(
                    f"{part}_targets must have shape ({n},) or ({n}, {T}), and at least one row, "
                    f"to fit {part}_inputs {tuple(inputs.shape)}: got {tuple(targets.shape)}."
                )
            scored = targets[targets != UNSCORED]
            if scored.numel() == 0 or scored.min() < 0 or scored.max() >= self.n_classes:
                raise ValueError(
                    f"{part}_targets must lie between 0 and {self.n_classes - 1} (or be {UNSCORED} where unscored, "
                    f"but not everywhere): got values from {targets.min()} to {targets.max()}."
                )
        if self.train_inputs.shape[1:] != self.test_inputs.shape[1:]:
            raise ValueError(
                "test_inputs must have the shape of train_inputs but for the first dimension: "
                f"got {tuple(self.test_inputs.shape)} and {tuple(self.train_inputs.shape)}."
            )

    def __repr__(self) -> str:
        x = self.train_inputs
        kind = f"{tuple(x.shape[1:])} {str(x.dtype).removeprefix('torch.')}"
        n, m = len(x), len(self.test_inputs)
        return f"Data({self.name!r}: train {n}, test {m}, inputs {kind}, n_classes={self.n_classes})"

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Data:
        """The same data on another device, real-valued inputs in another dtype.

        Example:
            >>> digits().to(dtype=torch.float64).train_inputs.dtype
            torch.float64
        """
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point dtype: got {dtype}.")
        moved = {}
        for name in ("train_inputs", "train_targets", "test_inputs", "test_targets"):
            tensor = getattr(self, name)
            moved[name] = tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
        return dataclasses.replace(self, **moved)

    def decode(self, tokens: Tensor | Iterable[int]) -> str:
        """The characters of a row of integer tokens.

        Example:
            >>> characters(seq_len=26).decode(characters(seq_len=26).train_inputs[0])
            'HAMLET, PRINCE OF DENMARK\\n'
        """
        row = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        n = len(self._letters("decode"))
        if not isinstance(row, list) or not all(isinstance(token, int) and 0 <= token < n for token in row):
            raise ValueError(f"tokens must be one row of integers between 0 and {n - 1}: got {row!r}.")
        return "".join(self.alphabet[token] for token in row)

    def encode(self, text: str) -> Tensor:
        """The integer tokens of a text, ``(len(text),)``.

        Example:
            >>> data = characters()
            >>> data.decode(data.encode("To be, or not to be"))
            'To be, or not to be'
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a str: got {type(text).__name__}.")
        unknown = sorted(set(text) - set(self._letters("encode")))
        if unknown:
            raise ValueError(f"text must use the alphabet {self.alphabet!r} only: got {''.join(unknown)!r}.")
        return torch.tensor([self.alphabet.index(character) for character in text], dtype=torch.int64)

    def _letters(self, function: str) -> str:
        if not self.alphabet:
            raise ValueError(f"{function} needs data whose tokens are characters: {self.name!r} has no alphabet.")
        return self.alphabet


def digits(*, patch: int = 2, test_fraction: float = 0.25, n_train: int | None = None, seed: int = 0) -> Data:
    """Handwritten digits, 8 × 8 pixels each, as a sequence of square patches.

    The 1797 images are the test part of "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak 1998, UCI,
    CC BY 4.0), as scikit-learn has them; they lie in the package. They are shuffled, split, and standardized by one
    mean and one standard deviation, those of all pixels of the training images.

    Args:
        patch: side of a patch in pixels: 1, 2, 4 or 8, which makes 64, 16, 4 or 1 tokens of width ``patch²``.
        test_fraction: the share of the 1797 images that is kept for the test, between 0 and 1.
        n_train: keep that many training images only; all by default.
        seed: of the shuffle. The same seed, the same split.

    Raises:
        RuntimeError: the file in the package is not the one this book was written with.

    Example:
        >>> digits()
        Data('digits': train 1348, test 449, inputs (16, 4) float32, n_classes=10)
    """
    check_int("patch", patch)
    if 8 % patch:
        raise ValueError(f"patch must divide 8, the side of an image: got {patch}. Take 1, 2, 4 or 8.")
    check_number("test_fraction", test_fraction, low=0, high=1, open_low=True, open_high=True)
    generator = seeded(seed)
    with extra("train"):
        from einops import rearrange
    lines = gzip.decompress(_corpus("digits.csv.gz")).decode("ascii").splitlines()
    table = torch.tensor(np.loadtxt(lines, delimiter=",", dtype=np.int64))  # (1797, 65): pixels from 0 to 16, the digit
    pixels = dict(h=8 // patch, p=patch, w=8 // patch, q=patch)
    inputs = rearrange(table[:, :64].float(), "n (h p w q) -> n (h w) (p q)", **pixels)  # (1797, T, patch²)
    targets = table[:, 64].contiguous()
    n = len(inputs)
    n_test = min(max(round(test_fraction * n), 1), n - 1)
    order = torch.randperm(n, generator=generator)
    test, train = order[:n_test], order[n_test:]
    if n_train is not None:
        train = train[: check_int("n_train", n_train, high=len(train))]
    mean, std = inputs[train].mean(), inputs[train].std()
    inputs = (inputs - mean) / std
    return Data("digits", inputs[train], targets[train], inputs[test], targets[test], n_classes=10)


def to_images(patches: Tensor) -> Tensor:
    """Put the patches of a square image, which lie left to right, then top to bottom, together again.

    Of ``(N, T, patch²)``, where T is a square, it makes ``(N, side, side)`` with ``side = √T · patch``.

    Example:
        >>> to_images(torch.arange(16).view(1, 4, 4))[0]
        tensor([[ 0,  1,  4,  5],
                [ 2,  3,  6,  7],
                [ 8,  9, 12, 13],
                [10, 11, 14, 15]])
    """
    _, T, pixels = check_tensor("patches", patches, ndim=3, floating=False).shape
    across, patch = math.isqrt(T), math.isqrt(pixels)
    if across**2 != T or patch**2 != pixels:
        raise ValueError(
            f"patches must have shape (N, T, pixels) where T and pixels are squares: got {tuple(patches.shape)}."
        )
    with extra("train"):
        from einops import rearrange
    return rearrange(patches, "n (h w) (p q) -> n (h p) (w q)", h=across, p=patch)


def shuffle_tokens(inputs: Tensor, *, seed: int, keep: int = 0) -> Tensor:
    """Put the tokens of every input, ``(N, T, …)``, in a random order of its own: the bag stays, its order goes.

    The first ``keep`` tokens stay where they are.

    Example:
        >>> shuffle_tokens(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), seed=0, keep=1)
        tensor([[1, 3, 4, 2],
                [5, 7, 6, 8]])
    """
    check_tensor("inputs", inputs, min_ndim=2, floating=False)
    check_int("keep", keep, low=0, high=inputs.shape[1])
    place = torch.rand(inputs.shape[:2], generator=seeded(seed))  # (N, T)
    place[:, :keep] = torch.arange(keep) - keep  # before all others
    order = place.argsort(dim=1).to(inputs.device)
    return inputs.take_along_dim(order.view(*order.shape, *[1] * (inputs.ndim - 2)), dim=1)


def characters(*, seq_len: int = 64, test_fraction: float = 0.1) -> Data:
    """Shakespeare's *Hamlet*, one token a character; the target of each is the next one.

    The text is in the public domain and lies in the package (``attntut/corpus``, with its provenance). The test set is
    the end of the play, so no test window overlaps a training window.

    Args:
        seq_len: T, the length of a window; the next one starts where it ends.
        test_fraction: the share of the text that is kept for the test, between 0 and 1.

    Raises:
        RuntimeError: the text in the package is not the one this book was written with.

    Example:
        >>> data = characters(seq_len=64)
        >>> data
        Data('characters': train 2445, test 271, inputs (64,) int64, n_classes=65)
        >>> data.decode(data.train_targets[0][:24])
        'AMLET, PRINCE OF DENMARK'
    """
    check_int("seq_len", seq_len)
    check_number("test_fraction", test_fraction, low=0, high=1, open_low=True, open_high=True)
    letters, indices = np.unique(np.frombuffer(_corpus("hamlet.txt"), np.uint8), return_inverse=True)
    alphabet, tokens = letters.tobytes().decode("ascii"), torch.tensor(indices, dtype=torch.int64)
    cut = round(len(tokens) * (1 - test_fraction))
    shortest = min(cut, len(tokens) - cut)
    if seq_len >= shortest:
        raise ValueError(
            f"seq_len must be less than {shortest}, the length of the smaller part of the text: got {seq_len}."
        )
    windows = (part.unfold(0, seq_len + 1, seq_len) for part in (tokens[:cut], tokens[cut:]))  # (N, T + 1)
    x, y, test_x, test_y = (part.contiguous() for each in windows for part in (each[:, :-1], each[:, 1:]))
    return Data("characters", x, y, test_x, test_y, n_classes=len(alphabet), alphabet=alphabet)


def reverse(*, seq_len: int = 8, vocab_size: int = 10, n_train: int = 2000, n_test: int = 500, seed: int = 0) -> Data:
    """Read a sequence of symbols, write it backwards.

    Token ``t`` must find token ``T − 1 − t``: by position alone, whatever it says. No test sequence is in the
    training set.

    Args:
        seq_len: T.
        vocab_size: number of different symbols.
        n_train, n_test: number of sequences in the training set and in the test set.
        seed: of the random numbers.

    Example:
        >>> data = reverse(seq_len=4)
        >>> data.train_inputs[0], data.train_targets[0]
        (tensor([4, 9, 3, 0]), tensor([0, 3, 9, 4]))
    """
    check_int("seq_len", seq_len)
    words = _words(seq_len, vocab_size, n_train, n_test, seed)
    return _split("reverse", words, words.flip(1), n_train, vocab_size)


def copy(*, length: int = 8, vocab_size: int = 10, n_train: int = 2000, n_test: int = 500, seed: int = 0) -> Data:
    """Read a word up to a separator, then write it again: the smallest task for a causal model.

    The word is followed by the separator, token ``vocab_size``, and by itself without its last symbol. From the
    separator on, every position must predict the symbol ``length`` steps before the next one. The positions
    within the word are not scored, since nobody can know how it goes on. No test word is in the training set.

    Args:
        length: of the word; the sequences have ``2·length`` tokens.
        vocab_size: number of different symbols, the separator not counted.
        n_train, n_test, seed: as in :func:`reverse`.

    Example:
        >>> data = copy(length=4)
        >>> data.train_inputs[0]
        tensor([ 4,  9,  3,  0, 10,  4,  9,  3])
        >>> data.train_targets[0]
        tensor([-100, -100, -100, -100,    4,    9,    3,    0])
    """
    check_int("length", length)
    words = _words(length, vocab_size, n_train, n_test, seed)
    separator = words.new_full((len(words), 1), vocab_size)
    inputs = torch.cat([words, separator, words[:, :-1]], dim=1)  # (N, 2·length)
    targets = torch.cat([torch.full_like(words, UNSCORED), words], dim=1)
    return _split("copy", inputs, targets, n_train, vocab_size + 1)


def associative_recall(
    *, n_pairs: int = 4, n_keys: int = 8, n_values: int = 8, n_train: int = 2000, n_test: int = 500, seed: int = 0
) -> Data:
    """Read pairs of a key and a value, then one of the keys again: which value went with it?

    It takes two steps of attention: a value must learn which key precedes it, and the question must find that key
    (Ba et al. 2016, section 4.1, in a shorter form). The keys of a sequence differ; values may repeat. The last token
    alone is scored. No test sequence is in the training set.

    Args:
        n_pairs: pairs in a sequence, at most ``n_keys``; a sequence has ``2·n_pairs + 1`` tokens.
        n_keys: the keys are the tokens ``0 … n_keys − 1``.
        n_values: the values are the tokens ``n_keys … n_keys + n_values − 1``.
        n_train, n_test, seed: as in :func:`reverse`.

    Example:
        >>> data = associative_recall(n_pairs=2)
        >>> data.train_inputs[0]                  # key 2 goes with 12, key 3 with 8; and key 2?
        tensor([ 2, 12,  3,  8,  2])
        >>> data.train_targets[0]
        tensor([-100, -100, -100, -100,   12])
    """
    check_int("n_keys", n_keys, low=2), check_int("n_values", n_values, low=2)
    check_int("n_pairs", n_pairs, high=n_keys)

    def sequences(n: int, generator: torch.Generator) -> Tensor:
        keys = torch.rand(n, n_keys, generator=generator).argsort(dim=1)[:, :n_pairs]
        values = torch.randint(n_keys, n_keys + n_values, (n, n_pairs), generator=generator)
        question = keys.gather(1, torch.randint(n_pairs, (n, 1), generator=generator))
        return torch.cat([torch.stack([keys, values], dim=2).flatten(1), question], dim=1)  # (n, 2·n_pairs + 1)

    capacity = n_pairs * n_values**n_pairs * math.perm(n_keys, n_pairs)
    inputs = _distinct(sequences, n_train, n_test, capacity, seed)
    asked = inputs[:, 0:-1:2] == inputs[:, -1:]  # (N, n_pairs), one True a row
    targets = torch.full_like(inputs, UNSCORED)
    targets[:, -1] = inputs[:, 1::2][asked]
    return _split("associative recall", inputs, targets, n_train, n_keys + n_values)


def _split(name: str, inputs: Tensor, targets: Tensor, n_train: int, n_classes: int) -> Data:
    return Data(name, inputs[:n_train], targets[:n_train], inputs[n_train:], targets[n_train:], n_classes)


def _words(length: int, vocab_size: int, n_train: int, n_test: int, seed: int) -> Tensor:
    """Different sequences of symbols drawn uniformly, ``(n_train + n_test, length)``."""
    check_int("vocab_size", vocab_size, low=2)

    def sequences(n: int, generator: torch.Generator) -> Tensor:
        return torch.randint(vocab_size, (n, length), generator=generator)

    return _distinct(sequences, n_train, n_test, vocab_size**length, seed)


def _distinct(
    sequences: Callable[[int, torch.Generator], Tensor], n_train: int, n_test: int, capacity: int, seed: int
) -> Tensor:
    """The first ``n_train + n_test`` different rows that ``sequences`` draws, in the order in which they came."""
    n = check_int("n_train", n_train) + check_int("n_test", n_test)
    if n > capacity:
        raise ValueError(
            f"n_train + n_test must be at most {capacity}, the number of different sequences of this shape: got {n}."
        )
    generator, rows = seeded(seed), dict[tuple[int, ...], None]()
    while len(rows) < n:
        rows.update(dict.fromkeys(map(tuple, sequences(n, generator).tolist())))
    return torch.tensor(list(rows)[:n], dtype=torch.int64)


def _corpus(name: str) -> bytes:
    raw = files("attntut").joinpath("corpus", name).read_bytes()
    if name.endswith(".txt"):
        raw = raw.replace(b"\r\n", b"\n")  # a checkout may change line ends
    digest = hashlib.sha256(raw).hexdigest()
    if digest != CORPUS_SHA256[name]:
        raise RuntimeError(
            f"attntut/corpus/{name} is not the file this book was written with: expected SHA-256 "
            f"{CORPUS_SHA256[name]}, got {digest}. Install the package again."
        )
    return raw
