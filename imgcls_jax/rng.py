"""Random numbers as a pure function of (seed, stream, step): nobody carries or splits a key."""

from __future__ import annotations

import zlib

import jax


def key(seed: int, stream: str, step: int | jax.Array = 0) -> jax.Array:
    """The key of a named stream at a step.

    Args:
      seed: the run's seed.
      stream: what the numbers are for: "init", "dropout", "drop_path", "augment", ...
      step: the step, which may be traced.

    Returns:
      A typed key array of shape []. Equal arguments give an equal key on any machine, process or device.
    """
    # crc32 rather than hash(): Python salts hash() anew in every process.
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()) & 0x7FFFFFFF), step)
