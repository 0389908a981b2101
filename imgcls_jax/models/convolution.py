"""Convolution, and the matrix product that is one of 1x1; on a CPU the gradients of their kernels are taken otherwise.

XLA computes that gradient as a convolution whose window is the whole image and whose input channels are the batch. On a
CPU this gets up to five times slower the more examples there are (3x3, 128 channels, 14x14 pixels, two cores: 256
examples at 20 GFLOP/s, 16 at a time at 80 to 100, the other two passes at 165): it is taken over slices of the batch.

A matrix product's is x^T dy; where it has more rows than columns the same as (dy^T x)^T is faster (6,272 examples, 512
to 128 features: 124 against 87 GFLOP/s).
"""

from __future__ import annotations

import functools

import jax
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]
SLICE = 16  # examples of a slice, the fastest on the whole
MOST_SLICES = 32  # each is an operation to compile: of larger batches the slices are larger


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolve(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads, groups: int) -> jax.Array:
    """x [B,H,W,C] with kernel [k,k,C/groups,F] -> [B,H',W',F]; `pads`: zeros ((above, below), (left, right))."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, pads: Pads, groups: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(x, kernel, stride, pads, groups), (x, kernel)


def _backward(
    stride: int, pads: Pads, groups: int, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    plain = functools.partial(convolve.fun, stride=stride, pads=pads, groups=groups)
    (dx,) = jax.vjp(lambda x: plain(x, kernel), x)[1](dy)

    def whole(x: jax.Array, dy: jax.Array) -> jax.Array:
        (found,) = jax.vjp(lambda kernel: plain(x, kernel), kernel)[1](dy)
        return found

    def sliced(x: jax.Array, dy: jax.Array) -> jax.Array:
        count = slices(len(x))
        # Every count-th example, not count-ths of the batch: so each device has an equal share of every slice.
        x, dy = (a.reshape(-1, count, *a.shape[1:]) for a in (x, dy))
        return functools.reduce(jax.numpy.add, (whole(x[:, i], dy[:, i]) for i in range(count)))

    return dx, lax.platform_dependent(x, dy, cpu=sliced, default=whole)


convolve.defvjp(_forward, _backward)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [N,C] with kernel [C,F] -> [N,F]."""
    return x @ kernel


def _product_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return product(x, kernel), (x, kernel)


def _product_backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    plain = lambda x, dy: x.T @ dy  # noqa: E731
    # The barrier keeps XLA from making of it what it is without.
    turned = lambda x, dy: lax.optimization_barrier(dy.T @ x).T  # noqa: E731
    on_cpu = turned if kernel.shape[0] > kernel.shape[1] else plain
    return dy @ kernel.T, lax.platform_dependent(x, dy, cpu=on_cpu, default=plain)


product.defvjp(_product_forward, _product_backward)


def slices(batch_size: int) -> int:
    """Into how many equal slices a batch goes: as many as have SLICE examples or more, at most MOST_SLICES."""
    most = min(batch_size // SLICE, MOST_SLICES)
    return next((count for count in range(most, 1, -1) if batch_size % count == 0), 1)
