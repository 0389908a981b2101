"""The state of a run: its shapes, its shards, and how it begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from imgcls_jax import models, pretrained, rng, sharding, trees
from imgcls_jax.build.data import image_shape
from imgcls_jax.build.run import Run
from imgcls_jax.objectives import Objective
from imgcls_jax.state import TrainState
from imgcls_jax.types import PyTree


def build_state(
    config: ConfigDict, model: nn.Module, objective: Objective, tx: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, Callable[[], TrainState], Callable[[dict[str, PyTree]], TrainState]]:
    """Shapes by eval_shape, then shardings, then an init jitted with them: parameters never exist unsharded."""
    image = jnp.zeros((1, *image_shape(config)), jnp.float32)

    def init() -> TrainState:
        return init_from(dict(model.init(rng.key(config.seed, "init"), image, train=False)))

    def init_from(variables: dict[str, PyTree]) -> TrainState:
        variables = dict(variables)
        params = variables.pop("params")
        extra = objective.extra_params(rng.key(config.seed, "init_objective"))
        params = {**params, "objective": extra} if extra else params
        # A copy, not the same buffers: the state is donated, and a buffer can be donated once.
        averages = config.optimizer.ema_decay or config.optimizer.swa_start
        ema = jax.tree.map(jnp.copy, {"params": params, "model_state": variables}) if averages else {}
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


def first_state(run: Run, weights: pretrained.Weights | None) -> tuple[TrainState, pretrained.Report | None]:
    """The state at step 0 as the config has it: random and None, or that of `initial_state`.

    Args:
      run: of the config.
      weights: of config.init.from if they have been read.
    """
    source = run.config.init["from"]
    if not source:
        return run.init(), None
    return initial_state(run, weights or pretrained.read(source))


def initial_state(run: Run, weights: pretrained.Weights) -> tuple[TrainState, pretrained.Report]:
    """The state at step 0 with the model's variables from `weights`, and what became of each tensor.

    A classifier for other classes starts at zero (arXiv:2010.11929, section 3.2): at random, its large and wrong logits
    would first have to be unlearned, and would pull at the body meanwhile.

    Raises:
      UserError: if the weights are not this model's.
    """
    c = run.config
    variables, report = pretrained.fill(run.model, c.model.name, image_shape(c), weights, seed=c.seed)
    heads = models.variant(c.model.name).layout.heads
    new = tuple(f"{head}." for head in heads if any(name.startswith(f"{head}.") for name in report.reinitialised))
    variables["params"] = trees.map_with_path(
        lambda path, x: np.zeros_like(x) if path.replace("/", ".").startswith(new) else x, variables["params"]
    )
    return run.init_from(variables), report
