"""Convolution, and the product of a dense layer or a 1x1 convolution, their gradients taken otherwise on a CPU.

XLA computes the gradient of a kernel as a convolution whose window is the whole image and whose input channels are the
batch. On a CPU this gets up to five times slower the more examples there are (3x3, 128 channels, 14x14 pixels, two
cores: 256 examples at 20 GFLOP/s, 16 at a time at 80 to 100, the other two passes at 165): it is taken over slices of
the batch.

A matrix product's is x^T dy; where it has more rows than columns the same as (dy^T x)^T is faster (6,272 examples, 512
to 128 features: 124 against 87 GFLOP/s). With several axes in or out, as attention's, XLA takes twice as long for it as
for matrices.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
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
        return functools.reduce(jnp.add, (whole(x[:, i], dy[:, i]) for i in range(count)))

    return dx, lax.platform_dependent(x, dy, cpu=sliced, default=whole)


convolve.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, kernel: jax.Array, contract: int = 1) -> jax.Array:
    """The last `contract` axes of x [...,*C] with the first of kernel [*C,*F] -> [...,*F]."""
    return jnp.tensordot(x, kernel, axes=contract)


def _product_forward(x: jax.Array, kernel: jax.Array, contract: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Not `product` itself: policies of rematerialisation look for the primitive.
    return product.fun(x, kernel, contract), (x, kernel)


def _product_backward(contract: int, saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    def plain(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        dx, dkernel = jax.vjp(lambda x, kernel: jnp.tensordot(x, kernel, axes=contract), x, kernel)[1](dy)
        return dx, dkernel

    def of_matrices(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs = math.prod(kernel.shape[:contract])
        outputs = kernel.size // inputs
        rows, drows = x.reshape(-1, inputs), dy.reshape(-1, outputs)
        if inputs > outputs:  # the barrier keeps XLA from making of it what it is without
            dkernel = lax.optimization_barrier(drows.T @ rows).T
        else:
            dkernel = rows.T @ drows
        dx = drows @ kernel.reshape(inputs, outputs).T
        return dx.reshape(x.shape), dkernel.reshape(kernel.shape)

    # Elsewhere the axes stay apart: a device may have some heads of attention's kernels.
    dx, dkernel = lax.platform_dependent(*saved, dy, cpu=of_matrices, default=plain)
    return dx, dkernel


product.defvjp(_product_forward, _product_backward)


def slices(batch_size: int) -> int:
    """Into how many equal slices a batch goes: as many as have SLICE examples or more, at most MOST_SLICES."""
    most = min(batch_size // SLICE, MOST_SLICES)
    return next((count for count in range(most, 1, -1) if batch_size % count == 0), 1)
