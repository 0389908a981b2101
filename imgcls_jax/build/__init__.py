"""Config -> objects. Nothing below this floor reads a config; nothing above it makes an object of a run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial

import jax
from ml_collections import ConfigDict

from imgcls_jax import evaluate, optim_groups, sharding
from imgcls_jax import step as step_lib
from imgcls_jax.build.batches import batches_of
from imgcls_jax.build.cached import check_cache
from imgcls_jax.build.checks import check, check_views
from imgcls_jax.build.data import (
    TrainBatches,
    build_data,
    eval_batches,
    eval_split,
    image_shape,
    open_train,
    put,
    read_image,
    read_once,
    train_batches,
)
from imgcls_jax.build.eval_step import build_eval_step, with_eval_step
from imgcls_jax.build.learning import (
    DTYPES,
    MODEL_GROUP_OWN,
    build_augmentations,
    build_average,
    build_groups,
    build_loss,
    build_model,
    build_objective,
    build_optimizer,
    build_schedule,
)
from imgcls_jax.build.overfit import overfitting
from imgcls_jax.build.run import Run
from imgcls_jax.build.state import build_state, first_state, initial_state, state_shardings
from imgcls_jax.build.teacher import build_teachers, read_teachers, with_teacher
from imgcls_jax.data import slices
from imgcls_jax.data.sources import Source
from imgcls_jax.types import Spec


def build(config: ConfigDict, spec: Spec | None = None, data: Mapping[str, Source] | None = None) -> Run:
    """Builds everything; no record is read, and no teacher that the config has what it must know of.

    Args:
      config: a locked config.
      spec: what is known of the data set; by default asked of the data set itself.
      data: the data set itself by split, if it is made in Python: {"train": sources.from_arrays(...), "test": ...}.

    Raises:
      ConfigError: for a value that makes no sense; UserError: for a missing data set.
    """
    if config.debug.overfit_batch:
        config = overfitting(config)
    spec, open_split = build_data(config, spec, data)
    mesh = sharding.make_mesh(data=config.sharding.data, fsdp=config.sharding.fsdp, model=config.sharding.model)
    check(config, mesh, spec)
    steps_per_epoch = slices.num_records(config.data.train_split, spec) / config.batch_size
    total_steps = config.total_steps or max(1, round(config.total_epochs * steps_per_epoch))
    model = build_model(config, spec.num_classes)
    learning_rate = build_schedule(config, total_steps, steps_per_epoch)
    groups = build_groups(config, total_steps)
    tx = build_optimizer(config, learning_rate, groups)
    config = with_teacher(config, spec, model)
    teachers = cache(partial(build_teachers, config, spec))
    loss = build_loss(config, spec, open_split)
    objective = build_objective(config, model, loss, lambda: [teacher.model for teacher in teachers()])
    check_views(config, objective.views)
    abstract, init, init_from = build_state(config, model, objective, tx, mesh)
    optim_groups.check(groups, abstract.params)
    if config.optimizer.cache_features:
        check_cache(config, model, groups, abstract.params)
    augmentations = build_augmentations(config)
    train_step = step_lib.make_train_step(
        objective=objective,
        tx=tx,
        learning_rate=learning_rate,
        augmentations=augmentations,
        mean=config.data.mean,
        std=config.data.std,
        num_classes=spec.num_classes,
        seed=config.seed,
        accumulate_steps=config.optimizer.accumulate_steps,
        average=build_average(config, total_steps),
        groups=groups,
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return Run(
        config=config,
        spec=spec,
        mesh=mesh,
        model=model,
        open_split=open_split,
        eval_split=eval_split(config, spec),
        headlines=evaluate.headlines(spec.task, config.eval.topk),
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        abstract_state=abstract,
        init=init,
        init_from=init_from,
        augment_step=jax.jit(
            step_lib.make_augment_step(
                augmentations=augmentations["labelled"], num_classes=spec.num_classes, seed=config.seed
            )
        ),
        views=objective.views,
        constants=(lambda: read_teachers(config, mesh, teachers())) if config.teacher["from"] else dict,
        train_step=jax.jit(
            train_step,
            in_shardings=(shardings, sharding.batch(mesh), None),
            out_shardings=(shardings, sharding.replicated(mesh)),
            donate_argnums=0,
        ),
        eval_step=build_eval_step(config, model, spec.task, mesh),
    )


__all__ = [
    "DTYPES",
    "MODEL_GROUP_OWN",
    "Run",
    "TrainBatches",
    "batches_of",
    "build",
    "build_augmentations",
    "build_average",
    "build_data",
    "build_eval_step",
    "build_groups",
    "build_loss",
    "build_model",
    "build_objective",
    "build_optimizer",
    "build_schedule",
    "build_state",
    "eval_batches",
    "eval_split",
    "first_state",
    "image_shape",
    "initial_state",
    "open_train",
    "put",
    "read_image",
    "read_once",
    "state_shardings",
    "train_batches",
    "with_eval_step",
]
