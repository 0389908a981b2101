"""Config -> objects. Nothing below this floor reads a config; nothing above it makes an object of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from imgcls_jax import augment, evaluate, losses, models, objectives, optim, pretrained, rng, sharding
from imgcls_jax import step as step_lib
from imgcls_jax.augment import device, host
from imgcls_jax.data import pipeline, sources
from imgcls_jax.state import TrainState
from imgcls_jax.types import Batch, ConfigError, PyTree, Spec, check_choice

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
MODEL_GROUP_OWN = ("name", "dtype")  # the other keys of the group override fields of the model


@dataclasses.dataclass(frozen=True)
class Run:
    """All the objects of a run; nothing here holds an array.

    Attributes:
      eval_split: the split that training evaluates on.
      headlines: names of the metrics that training logs of it.
      total_steps: optimizer steps of the whole run.
      steps_per_epoch: training examples / batch size, not rounded.
      abstract_state: TrainState of ShapeDtypeStructs, each with its sharding.
      init: () -> TrainState at step 0, made directly in its shards.
      init_from: variables -> the same with these in place of random ones.
      train_step, eval_step: jitted; the state given to train_step is donated.
    """

    config: ConfigDict
    spec: Spec
    mesh: Mesh
    model: nn.Module
    eval_split: str
    headlines: tuple[str, ...]
    total_steps: int
    steps_per_epoch: float
    abstract_state: TrainState
    init: Callable[[], TrainState]
    init_from: Callable[[dict[str, PyTree]], TrainState]
    train_step: Any
    eval_step: Any


def build(config: ConfigDict, spec: Spec | None = None) -> Run:
    """Builds everything but the data.

    Args:
      config: a locked config.
      spec: what is known of the data set; by default asked of the data set itself.

    Raises:
      ConfigError: for a value that makes no sense; UserError: for a missing data set.
    """
    spec = spec or sources.spec(config.data.name, data_dir=config.data.data_dir)
    mesh = sharding.make_mesh(data=config.sharding.data, fsdp=config.sharding.fsdp, model=config.sharding.model)
    _check(config, mesh, spec)
    steps_per_epoch = spec.splits[config.data.train_split] / config.batch_size
    total_steps = config.total_steps or max(1, round(config.total_epochs * steps_per_epoch))
    model = build_model(config, spec.num_classes)
    learning_rate = build_schedule(config, total_steps, steps_per_epoch)
    tx = build_optimizer(config, learning_rate)
    abstract, init, init_from = build_state(config, model, tx, mesh)
    check_choice("objective.name", config.objective.name, objectives.OBJECTIVES)
    train_step = step_lib.make_train_step(
        objective=objectives.OBJECTIVES[config.objective.name](
            model, build_loss(config), aux_weight=config.loss.aux_weight
        ),
        tx=tx,
        learning_rate=learning_rate,
        augmentations=augment.parse("augment.device", config.augment.device, device.DEVICE),
        mean=config.data.mean,
        std=config.data.std,
        num_classes=spec.num_classes,
        seed=config.seed,
        accumulate_steps=config.optimizer.accumulate_steps,
        ema_decay=config.optimizer.ema_decay,
    )
    eval_step = step_lib.make_eval_step(model=model, mean=config.data.mean, std=config.data.std, task=spec.task)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return Run(
        config=config,
        spec=spec,
        mesh=mesh,
        model=model,
        eval_split=eval_split(config, spec),
        headlines=evaluate.headlines(spec.task, config.eval.topk),
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        abstract_state=abstract,
        init=init,
        init_from=init_from,
        train_step=jax.jit(
            train_step,
            in_shardings=(shardings, sharding.batch(mesh)),
            out_shardings=(shardings, sharding.replicated(mesh)),
            donate_argnums=0,
        ),
        eval_step=jax.jit(eval_step, out_shardings=sharding.replicated(mesh)),
    )


def _check(config: ConfigDict, mesh: Mesh, spec: Spec) -> None:
    """Raises ConfigError for values that contradict each other."""
    sharding.check_batch(mesh, "batch_size", config.batch_size)
    sharding.check_batch(mesh, "eval.batch_size", config.eval.batch_size)
    if config.optimizer.accumulate_steps < 1 or config.batch_size % config.optimizer.accumulate_steps:
        raise ConfigError(
            f"optimizer.accumulate_steps={config.optimizer.accumulate_steps} does not divide "
            f"batch_size={config.batch_size}; choose a divisor."
        )
    sharding.check_batch(mesh, "batch_size / accumulate_steps", config.batch_size // config.optimizer.accumulate_steps)
    check_choice("data.train_split", config.data.train_split, spec.splits)
    if config.data.eval_split:
        check_choice("data.eval_split", config.data.eval_split, spec.splits)
    for key in ("mean", "std"):
        if len(config.data[key]) not in (1, config.data.channels):
            raise ConfigError(
                f"data.{key} has {len(config.data[key])} entries but data.channels={config.data.channels}; give one "
                "for all or one for each channel."
            )
    _check_metrics(config, spec)
    at_least_one = {
        "log_every_steps": config.log_every_steps,
        "eval.batch_size": config.eval.batch_size,
        "data.image_size": config.data.image_size,
    }
    for key, value in at_least_one.items():
        if value < 1:
            raise ConfigError(f"{key}={value} must be at least 1.")


def _check_metrics(config: ConfigDict, spec: Spec) -> None:
    """Raises ConfigError for a top-k or a best metric that cannot be."""
    if any(not isinstance(k, int) or k < 1 for k in config.eval.topk):
        raise ConfigError(f"eval.topk={config.eval.topk} must be whole numbers of at least 1, such as (1, 5).")
    if config.checkpoint.best_metric:
        larger_is_better = [m for m in evaluate.headlines(spec.task, config.eval.topk) if m not in ("nll", "ece")]
        averaged = [f"ema_{name}" for name in larger_is_better] if config.optimizer.ema_decay else []
        check_choice("checkpoint.best_metric", config.checkpoint.best_metric, larger_is_better + averaged)


def eval_split(config: ConfigDict, spec: Spec | None = None) -> str:
    """The split that training evaluates on; `spec` is asked of the data set if it is needed and not given."""
    if config.data.eval_split:
        return str(config.data.eval_split)
    return sources.eval_split(spec or sources.spec(config.data.name, data_dir=config.data.data_dir))


def build_model(config: ConfigDict, num_classes: int) -> nn.Module:
    """The model that the group `model` names, for `num_classes` classes."""
    check_choice("model.dtype", config.model.dtype, DTYPES)
    overrides = {k: v for k, v in config.model.items() if k not in MODEL_GROUP_OWN and v is not None}
    return models.build(config.model.name, num_classes=num_classes, dtype=DTYPES[config.model.dtype], **overrides)


def build_loss(config: ConfigDict) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(logits [B,K], targets [B,K]) -> loss [B]."""
    check_choice("loss.name", config.loss.name, losses.LOSSES)
    loss, smoothing = losses.LOSSES[config.loss.name], config.loss.label_smoothing
    return lambda logits, targets: loss(logits, targets, label_smoothing=smoothing)


def build_schedule(config: ConfigDict, total_steps: int, steps_per_epoch: float) -> optim.Schedule:
    """Learning rate by step."""
    s = config.schedule
    check_choice("schedule.name", s.name, optim.SCHEDULES)
    warmup_steps = s.warmup_steps or round(s.warmup_epochs * steps_per_epoch)
    if warmup_steps >= total_steps and total_steps > 1:
        # A run cut short (total_steps=20 to try something) keeps the shape of its schedule.
        warmup_steps = total_steps // 10
    return optim.schedule(
        s.name,
        lr=config.optimizer.lr,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        steps_per_epoch=steps_per_epoch,
        end_factor=s.end_factor,
        boundaries=s.boundaries,
        decay_factor=s.decay_factor,
        decay_epochs=s.decay_epochs,
        timescale=s.timescale,
    )


def build_optimizer(config: ConfigDict, learning_rate: optim.Schedule) -> optax.GradientTransformation:
    """The group `optimizer` as one transformation."""
    o = config.optimizer
    check_choice("optimizer.name", o.name, optim.OPTIMIZERS)
    return optim.optimizer(
        o.name,
        learning_rate=learning_rate,
        weight_decay=o.weight_decay,
        decay_exclude=o.decay_exclude,
        momentum=o.momentum,
        nesterov=o.nesterov,
        b1=o.b1,
        b2=o.b2,
        eps=o.eps,
        clip_norm=o.clip_norm,
    )


def build_state(
    config: ConfigDict, model: nn.Module, tx: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, Callable[[], TrainState], Callable[[dict[str, PyTree]], TrainState]]:
    """Shapes by eval_shape, then shardings, then an init jitted with them: parameters never exist unsharded."""
    image = jnp.zeros((1, *image_shape(config)), jnp.float32)

    def init() -> TrainState:
        return init_from(dict(model.init(rng.key(config.seed, "init"), image, train=False)))

    def init_from(variables: dict[str, PyTree]) -> TrainState:
        variables = dict(variables)
        params = variables.pop("params")
        # A copy, not the same buffers: the state is donated, and a buffer can be donated once.
        ema = jax.tree.map(jnp.copy, {"params": params, "model_state": variables}) if config.optimizer.ema_decay else {}
        return TrainState(jnp.zeros((), jnp.int32), params, variables, tx.init(params), ema)

    shapes = jax.eval_shape(init)
    shardings = state_shardings(shapes, config.sharding.rules, mesh)
    abstract = jax.tree.map(lambda s, sh: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sh), shapes, shardings)
    return abstract, jax.jit(init, out_shardings=shardings), jax.jit(init_from, out_shardings=shardings)


def state_shardings(shapes: TrainState, rules: Any, mesh: Mesh) -> TrainState:
    """A TrainState of NamedShardings: parameters by the rules, their copies alike, all else replicated."""
    params = sharding.params_shardings(shapes.params, rules, mesh)
    like = lambda tree: sharding.like_params(tree, shapes.params, params, mesh)  # noqa: E731
    replicated: NamedSharding = sharding.replicated(mesh)
    return TrainState(
        step=replicated,
        params=params,
        model_state=jax.tree.map(lambda _: replicated, shapes.model_state),
        opt_state=like(shapes.opt_state),
        ema=like(shapes.ema),
    )


def initial_state(run: Run, weights: pretrained.Weights) -> tuple[TrainState, pretrained.Report]:
    """The state at step 0 with the model's variables from `weights`, and what became of each tensor.

    Raises:
      UserError: if the weights are not this model's.
    """
    c = run.config
    variables, report = pretrained.fill(run.model, c.model.name, image_shape(c), weights, seed=c.seed)
    return run.init_from(variables), report


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """(H, W, C) of what the model sees."""
    return config.data.image_size, config.data.image_size, config.data.channels


def train_batches(run: Run, start_step: int) -> pipeline.BatchIterator:
    """This process's rows of the training batches from `start_step` on, as host arrays."""
    c = run.config
    return pipeline.train_batches(
        sources.open_source(c.data.name, c.data.train_split, data_dir=c.data.data_dir),
        batch_size=c.batch_size,
        seed=c.seed,
        start_step=start_step,
        rows=sharding.local_rows(run.mesh, c.batch_size),
        image_shape=image_shape(c),
        transforms=augment.parse("augment.host_train", c.augment.host_train, host.HOST, size=c.data.image_size),
        num_threads=c.data.num_threads,
        num_workers=c.data.num_workers,
    )


def eval_batches(run: Run, split: str) -> tuple[int, Iterator[Batch]]:
    """(number of records, global batches of a whole split, padded and masked, on the device)."""
    c = run.config
    source = sources.open_source(c.data.name, split, data_dir=c.data.data_dir)
    local = pipeline.eval_batches(
        source,
        batch_size=c.eval.batch_size,
        rows=sharding.local_rows(run.mesh, c.eval.batch_size),
        image_shape=image_shape(c),
        transforms=augment.parse("augment.host_eval", c.augment.host_eval, host.HOST, size=c.data.image_size),
        num_threads=c.data.num_threads,
    )
    return len(source), (put(run, c.eval.batch_size, batch) for batch in local)


def put(run: Run, batch_size: int, local: dict[str, np.ndarray]) -> Batch:
    """The process's rows as a global batch on the devices, without what the step does not read."""
    return sharding.put_batch(run.mesh, batch_size, {k: v for k, v in local.items() if k != "index"})
