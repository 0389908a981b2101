"""Depthwise convolution: one k x k kernel a channel.

XLA's own is right everywhere and fast on accelerators, but on a CPU it is tens of times slower than k*k shifted
multiplications (and its gradients are slower still), so there it is those. Same numbers but for rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from imgcls_jax.models.convolution import Pads


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """x [B,H,W,C] with kernel [k,k,1,C] -> [B,H',W',C] in x's dtype; `pads`: zeros ((above, below), (left, right))."""
    ours = functools.partial(_shifted, stride=stride, pads=pads)
    xla = functools.partial(_convolved, stride=stride, pads=pads)
    result: jax.Array = lax.platform_dependent(x, kernel, cpu=ours, default=xla)
    return result


def _forward(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return depthwise(x, kernel, stride, pads), (x, kernel)


def _backward(stride: int, pads: Pads, saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, ...]:
    def xla(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, ...]:
        gradients: tuple[jax.Array, ...] = jax.vjp(lambda *a: _convolved(*a, stride=stride, pads=pads), x, kernel)[1](
            dy
        )
        return gradients

    ours = functools.partial(_shifted_gradients, stride=stride, pads=pads)
    result: tuple[jax.Array, ...] = lax.platform_dependent(*saved, dy, cpu=ours, default=xla)
    return result


depthwise.defvjp(_forward, _backward)


def _convolved(x: jax.Array, kernel: jax.Array, *, stride: int, pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _taps(x: jax.Array, k: int, stride: int, height: int, width: int) -> Iterator[jax.Array]:
    """For each of the k*k places of a kernel, what it sees of the padded x: [B,height,width,C]."""
    batch, _, _, channels = x.shape
    for i in range(k):
        for j in range(k):
            end = (batch, i + (height - 1) * stride + 1, j + (width - 1) * stride + 1, channels)
            yield lax.slice(x, (0, i, j, 0), end, (1, stride, stride, 1))


def _shifted(x: jax.Array, kernel: jax.Array, *, stride: int, pads: Pads) -> jax.Array:
    """The convolution as a sum of k*k products, accumulated in float32."""
    k = kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = ((side - k) // stride + 1 for side in padded.shape[1:3])
    weights = kernel.reshape(k * k, -1).astype(jnp.float32)
    taps = _taps(padded, k, stride, height, width)
    return sum(tap * w for tap, w in zip(taps, weights, strict=True)).astype(x.dtype)


def _shifted_gradients(
    x: jax.Array, kernel: jax.Array, dy: jax.Array, *, stride: int, pads: Pads
) -> tuple[jax.Array, jax.Array]:
    """Gradients of `_shifted`: the kernel turned round for x's; for the kernel's, a sum of products for each place."""
    k = kernel.shape[0]
    height, width = dy.shape[1:3]
    # dy with stride - 1 zeros between its places and what is needed around it to get x's size back.
    around = []
    for side, out, (before, after) in zip(x.shape[1:3], (height, width), pads, strict=True):
        left_over = side + before + after - k - (out - 1) * stride
        around.append((k - 1 - before, k - 1 - after + left_over, stride - 1))
    spread = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *around, (0, 0, 0)))
    dx = _shifted(spread, kernel[::-1, ::-1], stride=1, pads=((0, 0), (0, 0)))
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    products = (tap * dy.astype(jnp.float32) for tap in _taps(padded, k, stride, height, width))
    dkernel = jnp.stack([product.sum((0, 1, 2)) for product in products]).reshape(kernel.shape)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)
