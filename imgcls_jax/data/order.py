"""The order of the training stream: a pure function of (seed, position)."""

from __future__ import annotations

import dataclasses
import functools
import threading

import numpy as np

_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Order:
    """Maps positions of an endless stream to records: position p is record perm(seed, p // N)[p % N].

    Every epoch, N positions, has each record once, in an order of its own.

    Attributes:
      num_examples: N, above 0.
      seed: any int.
    """

    num_examples: int
    seed: int

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """Record numbers, int64 of the shape of `positions`, int64 and not negative."""
        epochs, offsets = np.divmod(np.asarray(positions, np.int64), self.num_examples)
        records = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            records[here] = permutation(self.num_examples, self.seed, int(epoch))[offsets[here]]
        return records


def generator(seed: int, number: int, stream: int) -> np.random.Generator:
    """The random numbers that belong to `number` in one of several streams of a seed, in any process and thread.

    Philox is counter-based: the pair is its key and the stream the top word of its counter, so neither streams nor
    numbers can overlap (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11).
    """
    key = np.array([seed % 2**64, number], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], np.uint64)))


def permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch, read-only int64 [num_examples]; the last two are kept, for all threads together."""
    with _lock:  # or every thread that comes to a new epoch would make the same permutation
        return _permutation(num_examples, seed, epoch)


@functools.lru_cache(maxsize=2)
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    records = generator(seed, epoch, stream=0).permutation(num_examples)
    records.flags.writeable = False
    return records
