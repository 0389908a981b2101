"""The grammar of splits: "train", "train[:90%]", "train[10%:]", "train[:5000]", "train[100:200]", "train+validation".

The bounds are TFDS's: whole numbers of records or per cent of the split (rounded to the nearest record), from the
start or, when negative, from the end. Two slices that meet at the same bound share no record and leave none out.
"""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction

import numpy as np

from imgcls_jax.types import ConfigError, Spec, nearest

_BOUND = r"\s*(-?[0-9][0-9_]*(?:\.[0-9]+)?%|-?[0-9][0-9_]*)?\s*"
_PART = re.compile(rf"\s*([^\[\]+:]+?)\s*(?:\[{_BOUND}:{_BOUND}\])?\s*")

# Image folders say val, TFDS says validation, iNaturalist in TFDS says val again: one is taken for the other.
_ALSO = {"val": "validation", "validation": "val"}


@dataclasses.dataclass(frozen=True)
class Part:
    """The records start .. stop-1 of a whole split, in the order that slices are taken in."""

    split: str
    start: int
    stop: int


def parse(text: str, spec: Spec) -> tuple[Part, ...]:
    """The parts that a split names, in its order.

    Raises:
      ConfigError: the text is not of the grammar, a split is not known (naming the nearest), or a slice is empty or
        reaches beyond the split.
    """
    return tuple(_part(part, spec) for part in text.split("+"))


def num_records(text: str, spec: Spec) -> int:
    """How many records a split has. Raises as `parse` does."""
    return sum(part.stop - part.start for part in parse(text, spec))


def check(key: str, text: str, spec: Spec) -> None:
    """Raises ConfigError, naming the key or flag that the split came from, unless the data set has it."""
    try:
        parse(text, spec)
    except ConfigError as error:
        raise ConfigError(f"{key}='{text}': {error}") from error


def permutation(num_records: int) -> np.ndarray:
    """The order in which slices are taken of a split that is stored class by class; int64 [N], fixed for ever.

    Made of Philox's raw bits: of NumPy's promises, that they stay the same is the one that holds across versions.
    """
    return np.argsort(np.random.Philox(key=[0, 0]).random_raw(num_records), kind="stable")


def _part(text: str, spec: Spec) -> Part:
    match = _PART.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"'{text}' is not a split: write train, train[:90%], train[10%:], train[:5000], train[100:200], or several "
            "joined by +."
        )
    split, start, stop = match.groups()
    if split not in spec.splits and _ALSO.get(split) in spec.splits:
        split = _ALSO[split]
    if split not in spec.splits:
        raise ConfigError(
            f"{spec.name} has no split '{split}'{nearest(split, spec.splits)}; it has {', '.join(spec.splits)}."
        )
    total = spec.splits[split]
    first, last = _bound(start, total, 0), _bound(stop, total, total)
    if not (0 <= first <= total and 0 <= last <= total):
        raise ConfigError(f"'{text}' reaches beyond the split: {spec.name}:{split} has {total:,} records.")
    if first >= last and (start, stop) != (None, None):
        raise ConfigError(f"'{text}' has no records: {spec.name}:{split} has {total:,}.")
    return Part(split, first, last)


def _bound(text: str | None, total: int, default: int) -> int:
    if text is None:
        return default
    number = Fraction(text.rstrip("%").replace("_", ""))
    if text.startswith("-"):  # from the end, "-0" too
        number += 100 if text.endswith("%") else total
    return round(number * total / 100) if text.endswith("%") else int(number)
