"""Argument checks whose messages name the argument, its value and what was expected."""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


def check_int(name: str, value: object, *, low: int = 1, high: int | None = None) -> int:
    """Return ``value`` as an int, or say why it is none between ``low`` and ``high``.

    >>> check_int("n_heads", 4)
    4
    >>> check_int("n_heads", 0)
    Traceback (most recent call last):
    ...
    ValueError: n_heads must be an integer ≥ 1: got 0.
    """
    expected = f"an integer ≥ {low}" if high is None else f"an integer between {low} and {high}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be {expected}: got {value!r} ({type(value).__name__}).")
    number = int(value)
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {expected}: got {value!r}.")
    return number


def check_number(
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return ``value`` as a finite float in ``[low, high]``, without an end that is open.

    >>> check_number("lr", 0.1, low=0)
    0.1
    >>> check_number("share", 1, low=0, high=1, open_high=True)
    Traceback (most recent call last):
    ...
    ValueError: share must be a number ≥ 0 and < 1: got 1.
    """
    bounds = [f"{'>' if open_low else '≥'} {low:g}"] * (low > -math.inf)
    bounds += [f"{'<' if open_high else '≤'} {high:g}"] * (high < math.inf)
    expected = f"a number {' and '.join(bounds)}" if bounds else "a finite number"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {expected}: got {value!r} ({type(value).__name__}).")
    number = float(value)
    outside = not low <= number <= high or (open_low and number == low) or (open_high and number == high)
    if outside or not math.isfinite(number):
        raise ValueError(f"{name} must be {expected}: got {value!r}.")
    return number


def check_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``choices``, else name them and the nearest one.

    >>> check_choice("norm", "per", ["pre", "post", "none"])
    Traceback (most recent call last):
    ...
    ValueError: norm must be one of 'pre', 'post', 'none': got 'per'. Did you mean 'pre'?
    """
    known = list(choices)
    expected = ", ".join(map(repr, known))
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {expected}: got {value!r} ({type(value).__name__}).")
    if value not in known:
        raise ValueError(f"{name} must be one of {expected}: got {value!r}.{nearest(value, known)}")
    return value


def nearest(word: str, known: Iterable[str]) -> str:
    """A sentence for the end of a message, with the known word that is most like this one; empty if none is.

    >>> nearest("xavier", ["xavier_normal", "he"])
    " Did you mean 'xavier_normal'?"
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_options(owner: str, options: Iterable[str], known: Mapping[str, Any]) -> None:
    """Refuse an option that is not known; the message has the known ones with their defaults.

    >>> check_options("The scheme 'lecun'", {"gian": 2}, {"gain": 1.0})
    Traceback (most recent call last):
    ...
    ValueError: The scheme 'lecun' has no option 'gian'. Its options: gain=1.0. Did you mean 'gain'?
    """
    for name in options:
        if name not in known:
            shown = (
                option if default is inspect.Parameter.empty else f"{option}={default!r}"
                for option, default in known.items()
            )
            has = f"Its options: {', '.join(shown)}." if known else "It has no options."
            raise ValueError(f"{owner} has no option {name!r}. {has}{nearest(name, known)}")


def check_tensor(
    name: str, value: object, *, ndim: int | None = None, min_ndim: int | None = None, floating: bool = True
) -> Tensor:
    """Return ``value`` if it is a tensor of the wanted rank (and floating, unless told otherwise).

    >>> check_tensor("logits", Tensor([1, 2, 3]), min_ndim=2)
    Traceback (most recent call last):
    ...
    ValueError: logits must have at least 2 dimensions: got shape (3,).
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor: got {type(value).__name__}.")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions: got shape {tuple(value.shape)}.")
    if min_ndim is not None and value.ndim < min_ndim:
        raise ValueError(f"{name} must have at least {min_ndim} dimensions: got shape {tuple(value.shape)}.")
    if floating and not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be a floating-point tensor: got {value.dtype}.")
    return value
