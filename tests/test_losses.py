import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgcls_jax import losses

B, K = 7, 5


def reference_softmax(z, t, smoothing):
    t = t * (1 - smoothing) + smoothing / t.shape[1]
    z = z - z.max(1, keepdims=True)
    return -(t * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum(1)


def reference_sigmoid(z, t, smoothing):
    t = t * (1 - smoothing) + smoothing / t.shape[1]
    p = 1 / (1 + np.exp(-z))
    return -(t * np.log(p) + (1 - t) * np.log1p(-p)).sum(1)


REFERENCES = {"softmax_cross_entropy": reference_softmax, "sigmoid_binary_cross_entropy": reference_sigmoid}


def example(kind):
    """Logits [B,K] float64, targets as given, and the same targets [B,K] float64."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(B, K)) * 3
    if kind == "int":
        targets = rng.integers(0, K, B)
        return logits, targets.astype(np.int32), np.eye(K)[targets]
    targets = rng.dirichlet(np.ones(K), B)
    return logits, targets.astype(np.float32), targets


def test_every_loss_has_a_reference():
    assert set(losses.LOSSES) == set(REFERENCES)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize("name", losses.LOSSES)
def test_value_and_gradient_follow_the_float64_reference(name, kind, smoothing):
    logits, targets, dense = example(kind)
    reference, loss = REFERENCES[name], losses.LOSSES[name]

    def total(z):
        return loss(z, targets, label_smoothing=smoothing).sum()

    got = loss(jnp.asarray(logits, jnp.float32), targets, label_smoothing=smoothing)
    assert got.shape == (B,) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, reference(logits, dense, smoothing), rtol=1e-5)

    h, numeric = 1e-6, np.zeros((B, K))
    for b, k in np.ndindex(B, K):
        step = np.zeros((B, K))
        step[b, k] = h
        high, low = (reference(logits + s, dense, smoothing).sum() for s in (step, -step))
        numeric[b, k] = (high - low) / (2 * h)
    np.testing.assert_allclose(jax.grad(total)(jnp.asarray(logits, jnp.float32)), numeric, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_bfloat16_logits_are_computed_in_float32(name):
    logits, targets, _ = example("int")
    half = jnp.asarray(logits, jnp.bfloat16)
    got = losses.LOSSES[name](half, targets)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, losses.LOSSES[name](half.astype(jnp.float32), targets))


@pytest.mark.parametrize("name", losses.LOSSES)
def test_large_logits_stay_finite(name):
    logits = jnp.array([[1e4, -1e4, 0.0]])
    value, gradient = jax.value_and_grad(lambda z: losses.LOSSES[name](z, jnp.array([1])).sum())(logits)
    assert value == 2e4 if name == "softmax_cross_entropy" else value == pytest.approx(2e4 + np.log(2))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("targets", [np.zeros(B, np.float32), np.zeros((B, K + 1), np.float32), np.zeros((B, 1))])
def test_targets_of_another_shape_are_refused(targets):
    with pytest.raises(ValueError, match=r"targets must be \[B\] int or \[B,5\] float"):
        losses.softmax_cross_entropy(jnp.zeros((B, K)), jnp.asarray(targets, jnp.float32))
