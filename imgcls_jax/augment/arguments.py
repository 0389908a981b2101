"""Checks of what a config may hand to a transformation: a ValueError says which argument is wrong, and why."""

from __future__ import annotations

import math
from collections.abc import Iterable

# A number of grey levels for all channels, or one for each.
Fill = int | tuple[int, ...]
# How the operations that move pixels read between them.
SAMPLINGS = ("nearest", "bilinear")


def check(good: bool, message: str) -> None:
    """Raises ValueError with `message` unless `good`."""
    if not good:
        raise ValueError(message)


def check_probability(p: float) -> None:
    """Raises ValueError unless `p` is in 0 to 1."""
    check(0 <= p <= 1, f"p is {p}: it must be in 0 to 1")


def check_whole(name: str, value: int, low: int, high: int | None = None) -> None:
    """Raises ValueError unless `value` is an int of at least `low` and, where `high` is given, at most `high`."""
    upper = "" if high is None else f", at most {high}"
    good = isinstance(value, int) and low <= value and (high is None or value <= high)
    check(good, f"{name} is {value!r}: it must be a whole number, at least {low}{upper}")


def check_rising(name: str, pair: tuple[float, float], most: float = math.inf) -> None:
    """Raises ValueError unless `pair` is two numbers above 0, the second not below the first and not above `most`."""
    good = isinstance(pair, (tuple, list)) and len(pair) == 2 and 0 < pair[0] <= pair[1] <= most
    upper = "" if most == math.inf else f", at most {most:g}"
    check(good, f"{name} is {pair!r}: it must be a rising pair of numbers, above 0{upper}")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    check(value in tuple(choices), f"{name} is {value!r}: it must be one of {', '.join(choices)}")


def check_fill(fill: Fill) -> None:
    """Raises ValueError unless `fill` is grey levels in 0 to 255, one for all channels or a tuple with one for each."""
    levels = fill if isinstance(fill, tuple) else (fill,)
    good = bool(levels) and all(isinstance(level, int) and 0 <= level <= 255 for level in levels)
    check(good, f"fill is {fill!r}: it must be a whole number in 0 to 255, or a tuple of them, one a channel")


def check_sampling(interpolation: str, fill: Fill) -> None:
    """Raises ValueError for what `geometry.affine` does not take."""
    check_choice("interpolation", interpolation, SAMPLINGS)
    check_fill(fill)


def interval(
    name: str, value: float | tuple[float, float], centre: float, low: float, high: float
) -> tuple[float, float]:
    """The range that torchvision's transformations draw from: a pair as it is, a number v as centre - v to centre + v.

    Args:
      name: of the argument, for the message.
      value: the number or the pair.
      centre: the value that changes nothing.
      low: least allowed; the lower end made of a number is cut off here.
      high: largest allowed.

    Raises:
      ValueError: for a falling pair, a negative number, or an end outside low to high.
    """
    if isinstance(value, (tuple, list)):
        check(len(value) == 2, f"{name} is {value}: it must be a number or a pair")
        ends = (value[0], value[1])
    else:
        check(value >= 0, f"{name} is {value}: it must not be negative")
        ends = (max(low, centre - value), centre + value)
    check(low <= ends[0] <= ends[1] <= high, f"{name} is {value}: its range must be rising, in {low:g} to {high:g}")
    return ends
