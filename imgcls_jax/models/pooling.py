"""Max pooling; on a CPU not as XLA does it, whose gradient alone was a tenth of a ResNet-50's training step there."""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp
from flax import linen as nn

Padding = tuple[tuple[int, int], tuple[int, int]]
NONE: Padding = ((0, 0), (0, 0))


def max_pool(x: jax.Array, window: int, stride: int, padding: Padding = NONE) -> jax.Array:
    """Largest value of each window [B,H,W,C] -> [B,H',W',C]; the padding counts as -inf, as torch has it.

    The gradient goes to the first largest value of a window, row by row. Values are those of `nn.max_pool` to the bit;
    where windows overlap the gradient is the same sum, in another order on a CPU.
    """
    if jax.default_backend() == "cpu":
        return _max_pool(x, window, stride, padding)
    return nn.max_pool(x, (window, window), strides=(stride, stride), padding=padding)


def _taps(x: jax.Array, window: int, stride: int, padding: Padding) -> list[list[jax.Array]]:
    """What lies under each place of the window: window x window arrays [B,H',W',C]."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    height, width = (size - window + 1 for size in x.shape[1:3])
    return [[x[:, i : i + height : stride, j : j + width : stride] for j in range(window)] for i in range(window)]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: jax.Array, window: int, stride: int, padding: Padding) -> jax.Array:
    return reduce(jnp.maximum, (tap for row in _taps(x, window, stride, padding) for tap in row))


def _forward(x: jax.Array, window: int, stride: int, padding: Padding) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = _max_pool(x, window, stride, padding)
    return y, (x, y)


def _backward(
    window: int, stride: int, padding: Padding, found: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array]:
    x, y = found
    taps = _taps(x, window, stride, padding)
    places = [(i, j) for i in range(window) for j in range(window)]
    first = jnp.full(y.shape, len(places), jnp.int16)
    for number, (i, j) in reversed(list(enumerate(places))):
        first = jnp.where(taps[i][j] == y, jnp.int16(number), first)
    columns = [[jnp.where(first == i * window + j, g, 0) for i in range(window)] for j in range(window)]
    columns = [_turns(column, 1, stride, x.shape[1], padding[0][0]) for column in columns]
    rows = [_turns(list(row), 2, stride, x.shape[2], padding[1][0]) for row in zip(*columns, strict=True)]
    both = jnp.stack([jnp.stack(row, 3) for row in rows], 2)  # [B, ceil(H/stride), stride, ceil(W/stride), stride, C]
    whole = both.reshape(len(x), both.shape[1] * stride, both.shape[3] * stride, -1)
    return (whole[:, : x.shape[1], : x.shape[2]],)


def _turns(parts: list[jax.Array], axis: int, stride: int, size: int, before: int) -> list[jax.Array]:
    """Adds what belongs to each place of the window along `axis` where it was taken from.

    Gives rows 0, stride, 2 stride, ... of the sum; rows 1, 1 + stride, ...; and so on.

    Row r lies under place i of window (r + before - i) / stride: the rows of one remainder are sums of shifted parts.
    """
    length, zero = -(-size // stride), jnp.zeros((), parts[0].dtype)
    found = []
    for remainder in range(stride):
        skipped, place = divmod(remainder + before, stride)
        total = jnp.zeros((*parts[0].shape[:axis], length, *parts[0].shape[axis + 1 :]), zero.dtype)
        for shift, part in enumerate(parts[place::stride], -skipped):
            pads = [(0, 0, 0)] * part.ndim
            pads[axis] = (shift, length - part.shape[axis] - shift, 0)
            total = total + jax.lax.pad(part, zero, pads)
        found.append(total)
    return found


_max_pool.defvjp(_forward, _backward)
