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


def test_counts_are_how_often_each_class_is_met():
    labels = np.array([0, 2, 2, 0, 4])
    assert losses.class_counts(labels, 6, np.ones(5)).tolist() == [2, 0, 2, 0, 1, 0]
    assert losses.class_counts(labels, 6, np.array([0.5, 1, 2, 0.5, 1])).tolist() == [1, 0, 3, 0, 1, 0]
    several = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0]], np.float32)
    assert losses.class_counts(several, 3, np.array([1.0, 1.0, 2.0])).tolist() == [3, 2, 1]


def test_inverse_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.random.default_rng(0).choice(4, 1000, p=[0.7, 0.2, 0.09, 0.01])
    weights = losses.class_weights(np.bincount(labels), "inverse", 0.0)
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.arange(4), y=labels), rtol=1e-6)
    assert weights.dtype == np.float32 and weights[labels].mean() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("beta", [0.9, 0.99, 0.999, 0.9999])
def test_effective_weights_are_the_papers_formula(beta):
    counts = np.array([5000, 1200, 70, 3])  # and the paper's code, written down: beta ** n, mean over classes 1
    paper = (1.0 - beta) / (1.0 - np.power(beta, counts))
    paper = paper / paper.sum() * 4
    weights = losses.class_weights(counts, "effective", beta)
    np.testing.assert_allclose(weights / weights[0], paper / paper[0], rtol=1e-5)
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1, rel=1e-6)


def test_effective_weights_lie_between_equal_and_inverse():
    counts = np.array([1e6, 300, 1])
    np.testing.assert_array_equal(losses.class_weights(counts, "effective", 0.0), 1)
    near = losses.class_weights(counts, "effective", 1 - 1e-12)
    np.testing.assert_allclose(near, losses.class_weights(counts, "inverse", 0.0), rtol=1e-5)


def test_a_class_without_examples_has_weight_one_and_no_say_in_the_others():
    for kind in losses.CLASS_WEIGHTS:
        weights = losses.class_weights(np.array([0, 10, 30, 0]), kind, 0.99)
        assert weights[0] == weights[3] == 1
        np.testing.assert_array_equal(weights[1:3], losses.class_weights(np.array([10, 30]), kind, 0.99))
    with pytest.raises(ValueError, match="inverse or effective"):
        losses.class_weights(np.ones(2), "inverted", 0.0)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_weighted_multiplies_each_loss_by_the_weight_of_its_class_or_of_its_mixed_classes(name):
    weights = np.float32([0.1, 0.5, 1, 2, 3])
    logits, _, dense = example("int")
    mixed = 0.75 * dense + 0.25 * np.roll(dense, 1, 0)
    classes = dense.argmax(1)
    for targets, factor in (
        (dense, weights[classes]),
        (mixed, 0.75 * weights[classes] + 0.25 * weights[np.roll(classes, 1)]),
    ):
        got = losses.weighted(losses.LOSSES[name], weights)(jnp.float32(logits), jnp.float32(targets))
        np.testing.assert_allclose(got, factor * REFERENCES[name](logits, targets, 0.0), rtol=1e-5)


def test_class_weights_of_the_sigmoid_weigh_the_terms_of_the_sum():
    logits, _, _ = example("float")
    several = (np.random.default_rng(1).random((B, K)) < 0.4).astype(np.float32)
    weights = np.float32([0.1, 0.5, 1, 2, 3])
    got = losses.sigmoid_binary_cross_entropy(jnp.float32(logits), several, class_weights=weights)
    p = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(got, -(weights * np.log(np.where(several, p, 1 - p))).sum(1), rtol=1e-5)


@pytest.mark.parametrize("targets", [np.zeros(B, np.float32), np.zeros((B, K + 1), np.float32), np.zeros((B, 1))])
def test_targets_of_another_shape_are_refused(targets):
    with pytest.raises(ValueError, match=r"targets must be \[B\] int or \[B,5\] float"):
        losses.softmax_cross_entropy(jnp.zeros((B, K)), jnp.asarray(targets, jnp.float32))
