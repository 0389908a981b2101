"""How a run is evaluated: what the model is shown of an image, and among which classes it chooses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imgcls_jax import augment, sharding
from imgcls_jax import step as step_lib
from imgcls_jax.augment import host, views
from imgcls_jax.build.run import Run
from imgcls_jax.types import ConfigError


def build_eval_step(
    config: ConfigDict,
    model: nn.Module,
    task: str,
    mesh: Mesh,
    *,
    tta: str | None = None,
    classes: Sequence[int] | None = None,
) -> Any:
    """The jitted eval step; its outputs are replicated, so that every process sees every example.

    Args:
      config: of the run.
      model: of the run.
      task: of the data set.
      mesh: of the run.
      tta: of `augment.views.VIEWS`; the probabilities are averaged. None: eval.tta.
      classes: as in `step.make_eval_step`.
    """
    d, tta = config.data, tta or config.eval.tta
    shown = {"views": partial(views.VIEWS[tta], size=d.image_size)} if tta else {}
    eval_step = step_lib.make_eval_step(model=model, mean=d.mean, std=d.std, task=task, classes=classes, **shown)
    return jax.jit(eval_step, out_shardings=sharding.replicated(mesh))


def with_eval_step(run: Run, *, tta: str | None = None, classes: Sequence[int] | None = None) -> Run:
    """The run with an eval step that asks the model several times about an image, or about some of its classes.

    Args:
      run: whose spec says the task and names the classes that are left.
      tta: as in `build_eval_step`. Crops are taken as in AlexNet's evaluation: of the central square of the image after
        its short side was resized to size / crop_pct, as `augment.host_eval` says; the plain evaluation sees the centre
        of that square, but for the rounding of half a pixel.
      classes: as in `step.make_eval_step`.

    Raises:
      ConfigError: the run's evaluation leaves nothing to crop from.
    """
    return dataclasses.replace(
        run,
        config=_uncropped(run.config, tta) if tta in views.CROPS else run.config,
        eval_step=build_eval_step(run.config, run.model, run.spec.task, run.mesh, tta=tta, classes=classes),
    )


def _uncropped(config: ConfigDict, tta: str) -> ConfigDict:
    """The config with images that are the square that crops are taken of, and not its centre."""
    calls = config.augment.host_eval
    ops = augment.parse("augment.host_eval", calls, host.HOST, size=config.data.image_size)
    if len(ops) != 1 or not isinstance(ops[0], host.ResizeCentreCrop):
        raise ConfigError(
            f"--tta={tta} takes crops of what resize_centre_crop cuts off, but this run's augment.host_eval is "
            f"{calls}: its evaluation shows the whole image; use --tta=flip."
        )
    side = ops[0].uncropped
    if side == ops[0].size:
        raise ConfigError(
            f"--tta={tta} takes crops of what resize_centre_crop cuts off, but with crop_pct={ops[0].crop_pct:g} that "
            "is nothing, and all crops would be one; use --tta=flip."
        )
    c = config.copy_and_resolve_references()
    with c.unlocked():
        c.data.image_size = side
        c.augment.host_eval = (f"resize_centre_crop({side}, crop_pct=1.0, interpolation='{ops[0].interpolation}')",)
    return c
