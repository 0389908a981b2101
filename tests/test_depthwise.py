"""Depthwise convolution as shifted products equals XLA's, with its gradients, on all strides and paddings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgcls_jax.models import layers
from imgcls_jax.models.depthwise import depthwise


def xla(x, kernel, stride, pads):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("pads", [((0, 0), (0, 0)), ((1, 1), (1, 1)), ((0, 1), (1, 2)), ((2, 2), (2, 2))])
def test_it_equals_xla_with_both_gradients(k, stride, pads):
    if max(max(p) for p in pads) >= k:
        pads = ((k - 1, k - 1), (0, k - 1))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 9, 3)).astype(np.float32)
    kernel = rng.standard_normal((k, k, 1, 3)).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def run(f, x, kernel):
        y, pullback = jax.vjp(lambda x, kernel: f(x, kernel, stride, pads), x, kernel)
        return y, pullback(jnp.sin(y + 1))

    got, expected = run(depthwise, x, kernel), run(xla, x, kernel)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), got, expected)


def test_on_a_cpu_there_is_no_convolution_in_the_program_and_on_a_gpu_there_is():
    conv = layers.Conv(4, 3, groups=4)
    x = jnp.zeros((1, 8, 8, 4))
    variables = conv.init(jax.random.key(0), x)
    step = jax.jit(jax.grad(lambda v, x: conv.apply(v, x).sum()))
    for platform, expected in (("cpu", False), ("cuda", True), ("tpu", True)):
        text = step.trace(variables, x).lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) == expected, platform


def test_bfloat16_is_accumulated_in_float32():
    x, kernel = jnp.ones((1, 30, 30, 1), jnp.bfloat16), jnp.full((5, 5, 1, 1), 0.01, jnp.bfloat16)
    y = depthwise(x, kernel, 1, ((0, 0), (0, 0)))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(y), 25 * float(kernel[0, 0, 0, 0]), rtol=4e-3)
    (dkernel,) = (jax.grad(lambda k: depthwise(x, k, 1, ((0, 0), (0, 0))).astype(jnp.float32).sum())(kernel)[0, 0, 0],)
    np.testing.assert_allclose(np.float32(dkernel), 26 * 26, rtol=4e-3)
