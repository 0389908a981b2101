"""Keeping the device busy: a step is dispatched at once, and what it gives is taken a batch later."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def one_late(results: Iterable[T]) -> Iterator[T]:
    """The same results, each only when the next has been asked for.

    Whoever reads a result waits for its step; the device meanwhile has the next one to work on.
    """
    iterator = iter(results)
    for waiting in iterator:
        for result in iterator:
            yield waiting
            waiting = result
        yield waiting
