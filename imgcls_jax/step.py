"""The train step and the eval step: pure functions of (state, batch); the only value_and_grad in the project."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from imgcls_jax import optim, optim_groups, rng
from imgcls_jax.augment import device
from imgcls_jax.metrics.examples import ROWS, mean_prediction
from imgcls_jax.objectives import Given, Objective, Variables, given_features
from imgcls_jax.optim_groups import EVERYTHING, Groups
from imgcls_jax.state import TrainState
from imgcls_jax.types import Batch, PyTree

TrainStep = Callable[[TrainState, Batch, PyTree], tuple[TrainState, dict[str, jax.Array]]]
EvalStep = Callable[[Variables, Batch], dict[str, jax.Array]]

# Streams of random numbers that models draw from.
MODEL_STREAMS = ("dropout", "drop_path")


def one_hot(labels: jax.Array, num_classes: int) -> jax.Array:
    """labels [B] int or [B,K] float -> targets [B,K] float32."""
    return jax.nn.one_hot(labels, num_classes) if labels.ndim == 1 else labels.astype(jnp.float32)


def top1(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Share, [] float32, of the rows where mask is True whose highest logit is a class with the largest target.

    Targets are [B,K], mixed or of several labels; a row without any label has no right answer.
    """
    found = jnp.take_along_axis(targets, logits.argmax(-1, keepdims=True), axis=-1)[:, 0]
    correct = (found == targets.max(-1)) & (found > 0) & mask
    return correct.sum(dtype=jnp.float32) / jnp.maximum(mask.sum(), 1)


def microbatches(batch: Batch, count: int) -> Batch:
    """[B, ...] -> [count, B / count, ...]; every microbatch takes an equal share of each device's examples."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1), batch)


def value_and_grad(
    objective: Objective,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    given: Given,
    groups: Groups = EVERYTHING,
    stage: int = 0,
) -> tuple[jax.Array, PyTree, dict[str, Any]]:
    """Mean loss [] over the examples whose mask is True, its gradient, and the objective's aux.

    The gradient of parameters that do not train at step `stage`, one of `groups.stages`, is 0.
    """
    rngs = {name: jax.random.fold_in(key, i) for i, name in enumerate(MODEL_STREAMS)}

    def mean_loss(params: PyTree) -> tuple[jax.Array, dict[str, Any]]:
        with optim_groups.frozen(groups, stage, params) as params, given_features(batch.get("features")):
            loss, aux = objective.loss({"params": params, **state.model_state}, batch, rngs, given)
        return (loss * batch["mask"]).sum() / jnp.maximum(batch["mask"].sum(), 1), aux

    (loss, aux), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    return loss, grads, aux


def accumulated(
    objective: Objective,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    given: Given,
    count: int,
    groups: Groups = EVERYTHING,
    stage: int = 0,
) -> tuple[jax.Array, PyTree, dict[str, Any]]:
    """`value_and_grad` over `count` microbatches, one after the other, their losses and gradients averaged.

    BN statistics are those of the microbatches, updated in turn.
    """
    if count == 1:
        return value_and_grad(objective, state, batch, key, given, groups, stage)

    def body(carry: Any, xs: Any) -> tuple[Any, tuple[jax.Array, dict[str, jax.Array]]]:
        model_state, total, grads = carry
        i, micro = xs
        before = dataclasses.replace(state, model_state=model_state)
        loss, g, aux = value_and_grad(objective, before, micro, jax.random.fold_in(key, i), given, groups, stage)
        return (aux["model_state"], total + loss / count, jax.tree.map(lambda a, b: a + b / count, grads, g)), (
            aux["logits"],
            aux["logs"],
        )

    zero = (state.model_state, jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
    # XLA on a CPU takes ten times as long for gradients of convolutions inside a loop: there it is written out.
    unroll = count if jax.default_backend() == "cpu" else 1
    (model_state, loss, grads), (logits, logs) = jax.lax.scan(
        body, zero, (jnp.arange(count), microbatches(batch, count)), unroll=unroll
    )
    logits = logits.swapaxes(0, 1).reshape(-1, logits.shape[-1])  # back to the order of the batch
    return loss, grads, {"model_state": model_state, "logits": logits, "logs": jax.tree.map(jnp.mean, logs)}


def make_augment_step(
    *, augmentations: Sequence[device.DeviceOp], num_classes: int, seed: int
) -> Callable[[Batch, jax.Array], tuple[jax.Array, jax.Array]]:
    """(batch with image [B,H,W,C] uint8, step) -> what a step learns from: (images, targets).

    Images are [B,H,W,C] float32 in units of 0..1 pixels, targets [B,K] float32, zeros where mask is False.
    """

    def augment_step(batch: Batch, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        return device.apply(
            augmentations,
            device.to_float(batch["image"]),
            one_hot(batch["label"], num_classes) * batch["mask"][:, None],
            rng.key(seed, "augment", step),
        )

    return augment_step


def make_train_step(
    *,
    objective: Objective,
    tx: optax.GradientTransformation,
    learning_rate: Callable[[jax.Array], jax.Array],
    augmentations: Mapping[str, Sequence[device.DeviceOp]],
    mean: Sequence[float],
    std: Sequence[float],
    num_classes: int,
    seed: int,
    accumulate_steps: int,
    average: Callable[[jax.Array], Any] | None,
    groups: Groups = EVERYTHING,
) -> TrainStep:
    """(state, batch with image [B,H,W,C] uint8, constants) -> (next state, logs), each log float32 [].

    The logs are loss, top1, lr, grad_norm and those of the objective. For each of the objective's views the batch has a
    batch of its own under that name, of image [U,H,W,C] uint8 and mask [U]; `augmentations` has what is done on the
    device to the labelled images, under "labelled", and to each view. A batch with features [B,D] float32, those that
    the frozen body has for its images, is learned from by the head alone; its images are not looked at. `constants` is
    what the objective is given of arrays that do not change.

    Normalisation and augmentation happen here, on the device; random numbers follow from (seed, state.step). top1 is
    measured in training mode, against the class with the largest share where labels are mixed. Rows whose mask is False
    have no label and no part in loss and top1.

    What `groups` freezes stays bit for bit what it is, its batch norm's statistics and averages too. Where that changes
    during the run, the forward and backward pass is compiled once for each stage, and the step takes one of them.

    The gradient is taken where `optim.gradient_params` says. loss, top1, grad_norm, the objective's logs and the new
    batch norm statistics are of that gradient; SAM's second one, with the same random numbers, is for `tx` alone.
    `average` says how far the state's average goes towards the new weights after the step; None: there is none.
    """
    augment_step = make_augment_step(augmentations=augmentations["labelled"], num_classes=num_classes, seed=seed)

    def view(name: str, batch: Batch, step: jax.Array) -> Batch:
        images, nothing = device.to_float(batch["image"]), jnp.zeros((len(batch["mask"]), num_classes))
        images, _ = device.apply(augmentations[name], images, nothing, rng.key(seed, f"augment_{name}", step))
        return {"image": device.normalise(images, mean, std), "mask": batch["mask"]}

    update = optax.with_extra_args_support(tx).update

    def at_stage(step: jax.Array, learn: Callable[[int], Any]) -> Any:
        if len(groups.stages) == 1:
            return learn(0)
        return jax.lax.switch(optim_groups.stage_of(groups, step), [partial(learn, at) for at in groups.stages])

    def train_step(state: TrainState, batch: Batch, constants: PyTree) -> tuple[TrainState, dict[str, jax.Array]]:
        images, targets = augment_step(batch, state.step)
        inputs = {"image": device.normalise(images, mean, std), "target": targets, "mask": batch["mask"]}
        if "features" in batch:
            inputs["features"] = batch["features"]
        inputs |= {name: view(name, batch[name], state.step) for name in objective.views}
        key = rng.key(seed, "model", state.step)
        given = {"step": state.step, "ema": state.variables(ema=True) if average else {}, **constants}

        def learn(params: PyTree) -> tuple[jax.Array, PyTree, dict[str, Any]]:
            there = dataclasses.replace(state, params=params)
            return at_stage(
                state.step, lambda at: accumulated(objective, there, inputs, key, given, accumulate_steps, groups, at)
            )

        loss, grads, aux = learn(optim.gradient_params(state.params, state.opt_state))
        updates, opt_state = update(grads, state.opt_state, state.params, grad_fn=lambda params, _: learn(params)[1])
        hold = partial(optim_groups.hold, groups, state.step, state.params)
        new = {"params": optax.apply_updates(state.params, updates), "model_state": aux["model_state"]}
        new = hold({"params": state.params, "model_state": state.model_state}, new)
        ema = state.ema
        if average:
            rate = average(state.step)
            ema = hold(ema, jax.tree.map(lambda old, x: old + rate * (x - old), ema, new))
        logs = {
            "loss": loss,
            "top1": top1(aux["logits"], targets, batch["mask"]),
            "lr": learning_rate(state.step).astype(jnp.float32),
            "grad_norm": optax.tree.norm(grads),
            **aux["logs"],
        }
        return TrainState(state.step + 1, new["params"], new["model_state"], opt_state, ema), logs

    return train_step


def make_eval_step(
    *,
    model: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    task: str = "multiclass",
    views: Callable[[jax.Array], Sequence[jax.Array]] = lambda images: (images,),
    classes: Sequence[int] | None = None,
) -> EvalStep:
    """(variables, batch with image [B,H,W,C] uint8) -> the arrays that `metrics.examples.Gatherer.add` takes.

    Those are the rows of the task (`metrics.examples.ROWS`), label and mask as they came, and logits [B,K] float32.

    Args:
      model: to evaluate.
      mean: of the data.
      std: of the data.
      task: a key of `metrics.examples.ROWS`.
      views: what the model is shown of images [B,H,W,C]: one batch or several of equal shapes (`augment.views`); of
        several, the probabilities are averaged.
      classes: numbers of the K classes that are to choose among; the logits of the others are left out. None: all.
    """
    chosen = None if classes is None else np.asarray(classes, np.int32)

    def eval_step(variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        def ask(images: jax.Array) -> jax.Array:
            logits: jax.Array = model.apply(variables, images, train=False)  # type: ignore[assignment]
            return logits if chosen is None else logits[:, chosen]

        several = views(device.normalise(device.to_float(batch["image"]), mean, std))
        if len(several) == 1:
            logits = ask(several[0])
        else:
            logits = mean_prediction(jax.lax.map(ask, jnp.stack(several)), task)  # compiled once, whatever their number
        rows = ROWS[task](logits, batch["label"])
        return {**rows, "logits": logits.astype(jnp.float32), "label": batch["label"], "mask": batch["mask"]}

    return eval_step
