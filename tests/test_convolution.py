"""The convolution whose kernel gradient is taken over slices of the batch on a CPU, beside XLA's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from imgcls_jax.models import convolution, layers
from imgcls_jax.models.convolution import convolve, product, slices


def gradients(f, x, kernel, dy):
    """(value, gradient of x, gradient of the kernel)."""
    y, pullback = jax.vjp(f, x, kernel)
    return y, *pullback(dy)


@pytest.mark.parametrize(
    ("batch", "k", "stride", "groups"), [(48, 3, 1, 1), (34, 3, 2, 1), (32, 5, 2, 2), (7, 3, 1, 1)]
)
def test_it_equals_xla_with_both_gradients_exactly_on_small_integers(batch, k, stride, groups):
    rng = np.random.default_rng(0)
    whole = lambda *shape: jnp.asarray(rng.integers(-4, 5, shape), jnp.float32)  # noqa: E731
    x, kernel = whole(batch, 9, 8, 4), whole(k, k, 4 // groups, 6)
    pads = ((1, 0), (2, 1))
    ours = functools.partial(convolve, stride=stride, pads=pads, groups=groups)
    plain = functools.partial(convolve.fun, stride=stride, pads=pads, groups=groups)
    dy = whole(*jax.eval_shape(plain, x, kernel).shape)
    found, expected = (jax.jit(functools.partial(gradients, f))(x, kernel, dy) for f in (ours, plain))
    for mine, theirs in zip(found, expected, strict=True):
        assert np.abs(theirs).max() > 0
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("inputs", "outputs", "turned"),
    [
        ((24,), (8,), True),
        ((8,), (24,), False),
        ((8,), (3, 2, 4), False),
        ((6, 4), (8,), True),
        ((2, 3), (2, 3), False),
    ],
)
def test_a_product_equals_the_plain_one_with_both_gradients_exactly_on_small_integers(inputs, outputs, turned):
    rng = np.random.default_rng(0)
    whole = lambda *shape: jnp.asarray(rng.integers(-4, 5, shape), jnp.float32)  # noqa: E731
    x, kernel, dy = whole(5, 7, *inputs), whole(*inputs, *outputs), whole(5, 7, *outputs)
    ours = functools.partial(product, contract=len(inputs))
    plain = functools.partial(jnp.tensordot, axes=len(inputs))
    found, expected = (jax.jit(functools.partial(gradients, f))(x, kernel, dy) for f in (ours, plain))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    traced = jax.jit(functools.partial(gradients, ours)).trace(x, kernel, dy)
    for platform in ("cpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("optimization_barrier" in text) == (turned and platform == "cpu")


def test_slices_divide_the_batch_and_are_neither_small_nor_many():
    expected = {1: 1, 8: 1, 16: 1, 31: 1, 32: 2, 37: 1, 48: 3, 100: 5, 128: 8, 256: 16, 512: 32, 2048: 32}
    assert {n: slices(n) for n in expected} == expected
    for n in range(1, 700):
        assert n % slices(n) == 0 and slices(n) <= convolution.MOST_SLICES
        assert slices(n) == 1 or n // slices(n) >= convolution.SLICE


def test_only_on_a_cpu_are_there_slices():
    conv = layers.Conv(8, 3)
    x = jnp.zeros((64, 8, 8, 4))
    variables = conv.init(jax.random.key(0), x)
    step = jax.jit(jax.grad(lambda v, x: conv.apply(v, x).sum()))
    for platform, expected in (("cpu", slices(64)), ("cuda", 1), ("tpu", 1)):
        text = step.trace(variables, x).lower(lowering_platforms=(platform,)).as_text()
        # Nothing but the kernel's gradient is asked for, and the forward pass is not needed for it.
        assert text.count("stablehlo.convolution") == expected, platform


def test_a_batch_that_is_split_over_devices_is_not_gathered_for_it():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    step = jax.jit(
        jax.grad(lambda kernel, x: jnp.square(convolve(x, kernel, 1, ((1, 1), (1, 1)), 1)).sum()),
        in_shardings=(whole, rows),
        out_shardings=whole,
    )
    x, kernel = jax.random.normal(jax.random.key(0), (64, 6, 6, 4)), jax.random.normal(jax.random.key(1), (3, 3, 4, 4))
    compiled = step.lower(kernel, x).compile()
    assert "all-gather" not in compiled.as_text() and "all-to-all" not in compiled.as_text()
    assert "all-reduce" in compiled.as_text()
    one = jax.jit(jax.grad(lambda kernel, x: jnp.square(convolve.fun(x, kernel, 1, ((1, 1), (1, 1)), 1)).sum()))
    np.testing.assert_allclose(compiled(kernel, x), one(kernel, x), rtol=1e-4, atol=1e-2)
