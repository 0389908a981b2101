"""Max pooling as it is done on a CPU, beside flax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imgcls_jax.models.pooling import max_pool


@pytest.mark.parametrize(
    ("window", "stride", "padding", "size"),
    [
        (3, 2, ((1, 1), (1, 1)), (12, 9)),
        (3, 2, ((0, 1), (0, 0)), (8, 11)),
        (3, 2, ((0, 0), (0, 0)), (13, 6)),
        (3, 1, ((1, 1), (1, 1)), (5, 6)),
        (2, 2, ((0, 0), (0, 0)), (7, 8)),
        (2, 3, ((0, 0), (1, 0)), (8, 9)),
    ],
)
def test_values_and_gradient_are_flax_s_with_ties_too(window, stride, padding, size):
    """Small integers tie in nearly every window; integer gradients make sums exact in any order."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(-2, 3, (2, *size, 3)), jnp.float32)
    plain = lambda x: nn.max_pool(x, (window, window), strides=(stride, stride), padding=padding)  # noqa: E731
    expected, back = jax.vjp(plain, x)
    g = jnp.asarray(rng.integers(-9, 10, expected.shape), jnp.float32)
    found, mine = jax.vjp(lambda x: max_pool(x, window, stride, padding), x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(mine(g)[0], back(g)[0])
    assert jax.default_backend() == "cpu" and len({*np.asarray(expected).ravel()}) > 1


def test_other_dtypes_keep_theirs_and_the_gradient_is_that_of_finite_differences():
    x = jax.random.permutation(jax.random.key(0), jnp.arange(98.0)).reshape(1, 7, 7, 2)  # no ties, steps of 1
    half, back = jax.vjp(lambda x: max_pool(x, 3, 2, ((1, 1), (1, 1))), x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16 and back(half)[0].dtype == jnp.bfloat16
    pooled = lambda x: jnp.sin(max_pool(x, 3, 2, ((1, 1), (1, 1)))).sum()  # noqa: E731
    gradient, h = jax.grad(pooled)(x), 1e-2
    for index in [(0, 0, 0, 0), (0, 3, 3, 1), (0, 6, 6, 0), (0, 2, 5, 1)]:
        slope = (pooled(x.at[index].add(h)) - pooled(x.at[index].add(-h))) / (2 * h)
        np.testing.assert_allclose(gradient[index], slope, atol=5e-3)
