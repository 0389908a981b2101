import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers import tiny_config

from imgcls_jax import build, losses, models, objectives, optim
from imgcls_jax import step as step_lib
from imgcls_jax.augment import device
from imgcls_jax.state import TrainState

MEAN, STD = (0.3,), (0.4,)


@pytest.fixture(scope="module")
def net():
    """A small network with batch norm, its state and a batch."""
    model = models.build("resnet20", num_classes=3, stage_sizes=(1,), width=4, zero_init_last=False)
    variables = dict(model.init(jax.random.key(0), jnp.zeros((1, 6, 6, 1)), train=False))
    params = variables.pop("params")
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (8, 6, 6, 1)).astype(np.uint8),
        "label": rng.integers(0, 3, 8).astype(np.int32),
        "mask": np.ones(8, bool),
    }
    return model, TrainState(jnp.int32(4), params, variables, optax.sgd(0.1).init(params), {}), batch


def make(model, **overrides):
    values = {
        "objective": objectives.supervised(model, losses.softmax_cross_entropy, aux_weight=0.3),
        "tx": optax.sgd(0.1),
        "learning_rate": lambda step: 0.1 * jnp.ones(()),
        "augmentations": (),
        "mean": MEAN,
        "std": STD,
        "num_classes": 3,
        "seed": 0,
        "accumulate_steps": 1,
        "average": None,
    }
    values |= overrides
    values["augmentations"] = {"labelled": values["augmentations"]}
    step = jax.jit(step_lib.make_train_step(**values))
    return partial(step, constants={})


def reference(model, state, batch):
    """The same step written straight down: loss, gradient and new statistics of one plain SGD step."""
    images = (batch["image"].astype(np.float32) / 255 - MEAN[0]) / STD[0]

    def loss(params):
        logits, new = model.apply({"params": params, **state.model_state}, images, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return (losses * batch["mask"]).sum() / batch["mask"].sum(), (logits, new)

    (value, (logits, new)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)
    return value, jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads), new, logits, grads


def close(a, b, rtol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


def test_a_step_is_the_step_written_down(net):
    model, state, batch = net
    value, params, new, logits, grads = reference(model, state, batch)
    got, logs = make(model)(state, batch)
    close(got.params, params)
    close(got.model_state, new)
    assert int(got.step) == 5
    assert float(logs["loss"]) == pytest.approx(float(value), rel=1e-6)
    assert float(logs["top1"]) == float((np.asarray(logits).argmax(-1) == batch["label"]).mean())
    assert float(logs["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)


def test_masked_examples_have_no_part_in_the_loss(net):
    model, state, batch = net
    batch = {**batch, "mask": np.arange(8) < 5}
    value, params, *_ = reference(model, state, batch)
    got, logs = make(model)(state, batch)
    assert float(logs["loss"]) == pytest.approx(float(value), rel=1e-6)
    close(got.params, params)


def test_masked_examples_have_no_label_and_no_part_in_top1(net):
    model, state, batch = net
    *_, logits, _ = reference(model, state, batch)
    prediction = np.asarray(logits).argmax(-1).astype(np.int32)
    # The right label where the mask is False, a wrong one elsewhere but in row 2.
    mask = np.arange(8) % 3 != 0
    label = np.where(mask & (np.arange(8) != 2), (prediction + 1) % 3, prediction).astype(np.int32)
    _, logs = make(model)(state, {**batch, "mask": mask, "label": label})
    assert float(logs["top1"]) == pytest.approx(1 / 5)


def test_what_is_mixed_with_a_masked_example_is_weighed_by_what_is_left_of_its_own(net):
    model, state, batch = net
    mask = np.arange(8) != 3
    image = np.where(mask[:, None, None, None], batch["image"], 0).astype(np.uint8)
    seen = {}

    def loss(variables, inputs, rngs, given):
        jax.debug.callback(lambda **x: seen.update(x), **inputs)
        supervised = objectives.supervised(model, losses.softmax_cross_entropy, aux_weight=0.3)
        return supervised.loss(variables, inputs, rngs, given)

    step = make(model, objective=objectives.Objective(loss), augmentations=[device.MixUp(1.0)])
    _, logs = step(state, {**batch, "image": image, "mask": mask})
    jax.effects_barrier()
    lam = seen["target"][4].sum()  # of the row that is mixed with the blank
    assert 0.5 < lam < 1
    np.testing.assert_allclose(seen["target"].sum(1), [1, 1, 1, 1 - lam, lam, 1, 1, 1], rtol=1e-5)
    images = image.astype(np.float32) / 255
    np.testing.assert_allclose(
        seen["image"] * STD[0] + MEAN[0], lam * images + (1 - lam) * np.roll(images, 1, 0), atol=1e-5
    )
    logits, _ = model.apply(
        {"params": state.params, **state.model_state}, seen["image"], train=True, mutable=["batch_stats"]
    )
    each = -(seen["target"] * jax.nn.log_softmax(logits)).sum(1)
    assert float(logs["loss"]) == pytest.approx(float(each[mask].mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("logits", "targets", "mask", "expected"),
    [
        ([[0, 1], [1, 0]], [[0.4, 0.6], [0.4, 0.6]], [1, 1], 0.5),  # mixed: the larger share
        ([[0, 2, 1], [2, 0, 1]], [[1, 1, 0], [0, 1, 1]], [1, 1], 0.5),  # several: any of them
        ([[0, 1], [1, 0]], [[0, 0], [1, 0]], [1, 1], 0.5),  # none: no right answer
        ([[0, 1], [1, 0]], [[0, 1], [0, 1]], [1, 0], 1.0),
        ([[0, 1]], [[0, 1]], [0], 0.0),
    ],
)
def test_top1(logits, targets, mask, expected):
    got = step_lib.top1(jnp.float32(logits), jnp.float32(targets), jnp.array(mask, bool))
    assert got.dtype == jnp.float32 and float(got) == expected


def test_several_labels_an_image_reach_the_loss(net):
    model, state, batch = net
    several = (np.random.default_rng(0).random((8, 3)) < 0.5).astype(np.float32)
    objective = objectives.supervised(model, losses.sigmoid_binary_cross_entropy, aux_weight=0.3)
    _, logs = make(model, objective=objective)(state, {**batch, "label": several})
    *_, logits, _ = reference(model, state, batch)
    probabilities = 1 / (1 + np.exp(-np.float64(logits)))
    expected = -np.log(np.where(several, probabilities, 1 - probabilities)).sum(1).mean()
    assert float(logs["loss"]) == pytest.approx(expected, rel=1e-5)


def test_accumulation_of_two_halves_is_the_mean_of_their_gradients(net):
    model, state, batch = net
    got, logs = make(model, accumulate_steps=2)(state, batch)
    halves, current = [], state
    for i in range(2):  # every second example: each device gives an equal share
        half = {k: v[i::2] for k, v in batch.items()}
        value, _, new, _, grads = reference(model, current, half)
        halves.append((value, grads))
        current = dataclasses.replace(current, model_state=new)
    grads = jax.tree.map(lambda a, b: (a + b) / 2, halves[0][1], halves[1][1])
    close(got.params, jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads))
    close(got.model_state, current.model_state)
    assert float(logs["loss"]) == pytest.approx(float(halves[0][0] + halves[1][0]) / 2, rel=1e-6)


def test_on_a_cpu_accumulation_is_no_loop(net):
    """XLA takes ten times as long there for gradients of convolutions inside one."""
    model, state, batch = net

    def loops(count):
        step = make(model, accumulate_steps=count)
        return step.func.lower(state, batch, {}).as_text().count("stablehlo.while")

    assert jax.default_backend() == "cpu" and loops(4) == loops(1)


def test_ema_moves_towards_parameters_and_statistics_by_one_minus_decay(net):
    model, state, batch = net
    ema = {"params": jax.tree.map(jnp.zeros_like, state.params), "model_state": state.model_state}
    got, _ = make(model, average=optim.ema(0.75))(dataclasses.replace(state, ema=ema), batch)
    close(got.ema["params"], jax.tree.map(lambda x: 0.25 * x, got.params))
    close(
        got.ema["model_state"],
        jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, state.model_state, got.model_state),
    )


@pytest.mark.parametrize("count", [1, 2])
def test_sam_takes_the_gradient_where_the_loss_is_worse_and_the_statistics_where_it_is(net, count):
    model, state, batch = net

    def gradient(params):
        """The mean over microbatches, and the new statistics, by the plain step."""
        step = make(model, accumulate_steps=count)
        got, logs = step(dataclasses.replace(state, params=params), batch)
        return jax.tree.map(lambda old, new: (old - new) / 0.1, params, got.params), got.model_state, logs

    grads, statistics, plain = gradient(state.params)
    norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in jax.tree.leaves(grads)))
    worse = jax.tree.map(lambda p, g: p + 0.2 * g / norm, state.params, grads)
    second, moved, there = gradient(worse)
    assert there["loss"] > plain["loss"] + 0.01
    tx = optim.sharpness_aware(optax.sgd(0.1), rho=0.2)
    got, logs = make(model, tx=tx, accumulate_steps=count)(
        dataclasses.replace(state, opt_state=tx.init(state.params)), batch
    )
    jax.tree.map(
        lambda new, p, g: np.testing.assert_allclose(new, p - 0.1 * g, atol=2e-5), got.params, state.params, second
    )
    close(got.model_state, statistics)
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (moved, statistics)), strict=True)) > 1e-4
    for name in plain:
        assert float(logs[name]) == pytest.approx(float(plain[name]), rel=1e-5)


def test_lookahead_takes_the_gradients_at_the_fast_weights(net):
    model, state, batch = net
    tx = optim.lookahead(optax.sgd(0.1), period=2, step_size=0.5)
    plain, ahead = make(model), make(model, tx=tx)
    fast, slow = state, dataclasses.replace(state, opt_state=tx.init(state.params))
    for _ in range(2):
        (fast, _), (slow, _) = plain(fast, batch), ahead(slow, batch)
    close(slow.params, jax.tree.map(lambda first, last: (first + last) / 2, state.params, fast.params))
    close(slow.model_state, fast.model_state)


def test_random_numbers_follow_from_the_step_alone():
    run = build.build(tiny_config(**{"augment.device": ()}))
    batch = build.put(run, 16, next(build.train_batches(run, 0)))
    step_type = run.abstract_state.step

    def norm(step):
        state = dataclasses.replace(run.init(), step=jax.device_put(jnp.int32(step), step_type.sharding))
        return float(run.train_step(state, batch, {})[1]["grad_norm"])  # the loss is log K: the head starts at zero

    first, again, other = norm(3), norm(3), norm(4)
    assert first == again
    assert first != other  # dropout and stochastic depth drew other numbers


def test_eval_step_sees_no_randomness_and_running_statistics(net):
    model, state, batch = net
    step = jax.jit(step_lib.make_eval_step(model=model, mean=MEAN, std=STD))
    rows = step(state.variables(), batch)
    images = (batch["image"].astype(np.float32) / 255 - MEAN[0]) / STD[0]
    logits = model.apply(state.variables(), images, train=False)
    np.testing.assert_array_equal(rows["prediction"], np.asarray(logits).argmax(-1))
    np.testing.assert_allclose(
        rows["nll"], optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]), rtol=1e-5
    )


class TwoHeads(nn.Module):
    """Logits, and in training those of an auxiliary classifier."""

    @nn.compact
    def __call__(self, images, *, train):
        x = images.reshape(images.shape[0], -1)
        if train:
            self.sow("aux_logits", "second", nn.Dense(3, name="aux")(x), init_fn=lambda: None, reduce_fn=lambda _, y: y)
        return nn.Dense(3, name="head")(x)


def test_auxiliary_classifiers_add_their_weighted_losses_and_leave_no_state(net):
    _, _, batch = net
    rng = np.random.default_rng(1)
    params = {
        name: {"kernel": rng.standard_normal((36, 3)), "bias": rng.standard_normal(3)} for name in ("head", "aux")
    }
    params = jax.tree.map(jnp.float32, params)
    inputs = {"image": jnp.float32(rng.standard_normal((8, 6, 6, 1))), "target": jax.nn.one_hot(batch["label"], 3)}
    objective = objectives.supervised(TwoHeads(), losses.softmax_cross_entropy, aux_weight=0.25)
    loss, aux = objective.loss({"params": params}, inputs, {}, {})
    flat = np.float64(inputs["image"]).reshape(8, -1)
    expected = 0.0
    for name, weight in (("head", 1.0), ("aux", 0.25)):
        logits = flat @ np.float64(params[name]["kernel"]) + np.float64(params[name]["bias"])
        log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        expected = expected - weight * log_probs[np.arange(8), batch["label"]]
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert aux["model_state"] == {}
