"""Whose a work directory is, and what a run in it starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from imgcls_jax import atomic, models, pretrained
from imgcls_jax import config as config_lib
from imgcls_jax.checkpoint import Checkpointer
from imgcls_jax.models.variant import Preprocessing
from imgcls_jax.state import TrainState
from imgcls_jax.types import ConfigError, PyTree, UserError


def starting_point(config: ConfigDict, workdir: Path) -> tuple[ConfigDict, pretrained.Weights | None]:
    """The config with the preprocessing of the weights it starts from, and the weights if they had to be read for it.

    A run that is continued has both in its work directory already, and which checkpoint of its teacher it began with.
    """
    path = workdir / "config.json"
    if config.teacher["from"] and path.exists():
        config = _same_teacher(config, config_lib.read(path))
    source, wanted = config.init["from"], config.init.preprocessing
    if not source or not wanted:
        return config, None
    if path.exists():
        saved = config_lib.read(path)
        if saved.init["from"] == source and saved.data.channels == config.data.channels:
            with config.unlocked():
                config.data.mean, config.data.std = saved.data.mean, saved.data.std
                config.augment.host_eval = saved.augment.host_eval
            return config, None
    weights = pretrained.read(source)
    preprocessing = weights.preprocessing or models.variant(config.model.name).preprocessing
    return with_preprocessing(config, preprocessing), weights


def _same_teacher(config: ConfigDict, saved: ConfigDict) -> ConfigDict:
    """The config with what the run found of its teacher when it began, where it does not say otherwise."""
    if saved.teacher["from"] != config.teacher["from"]:
        return config  # which `claim` refuses
    c = config.copy_and_resolve_references()
    with c.unlocked():
        c.teacher.steps = c.teacher.steps or saved.teacher.steps
        c.teacher.features = c.teacher.features or saved.teacher.features
    return c


def with_preprocessing(config: ConfigDict, preprocessing: Preprocessing) -> ConfigDict:
    """The config with mean, standard deviation, crop and filter of evaluation as some weights were trained with.

    Grey images get the means of the three channels' values. The image size stays the config's, and so does an
    evaluation that is anything but `resize_centre_crop`.
    """
    c = config.copy_and_resolve_references()
    with c.unlocked():
        for key in ("mean", "std"):
            values = getattr(preprocessing, key)
            c.data[key] = values if len(values) == c.data.channels else (sum(values) / len(values),)
        if len(c.augment.host_eval) == 1 and c.augment.host_eval[0].startswith("resize_centre_crop("):
            p = preprocessing
            call = f"resize_centre_crop(crop_pct={p.crop_pct}, interpolation='{p.interpolation}')"
            c.augment.host_eval = (call,)
    return c


def claim(config: ConfigDict, workdir: Path) -> None:
    """Makes the work directory this config's, or refuses.

    Raises:
      ConfigError: if it belongs to a run whose config differs in a key that changes the result.
    """
    path = workdir / "config.json"
    if path.exists():
        changed = config_lib.differences(config_lib.read(path), config)
        if changed:
            raise ConfigError(
                f"{workdir} holds a run with another config ({'; '.join(changed)}); use another --workdir, or the "
                "config it was started with."
            )
    if jax.process_index() == 0:
        with atomic.replacing(path) as temporary:
            temporary.write_text(config_lib.to_json(config))


def restore_variables(
    abstract: TrainState, workdir: Path, step: int | None, *, ema: bool
) -> tuple[int, dict[str, PyTree]]:
    """(step, variables) of one checkpoint of a run: the newest if `step` is None; averaged ones with `ema`.

    Raises:
      UserError: if there is no such checkpoint or it is damaged; ConfigError: if the run kept no average.
    """
    checkpointer = Checkpointer(workdir / "checkpoints", read_only=True)
    steps = checkpointer.steps()
    if not steps or (step is not None and step not in steps):
        have = f"there are {steps}" if steps else "there are none yet"
        raise UserError(f"No checkpoint {'of step ' + str(step) if step else ''} in {workdir / 'checkpoints'}: {have}.")
    step = steps[-1] if step is None else step
    unread = {"params": None, "model_state": None} if ema else {"ema": None}
    try:
        state = checkpointer.restore(dataclasses.replace(abstract, opt_state=None, **unread), step)
    except Exception as error:  # Orbax raises a dozen types for damaged files
        raise UserError(
            f"Checkpoint {step} in {workdir} is damaged ({error}); pass another --step of {steps}."
        ) from error
    finally:
        checkpointer.close()
    return step, state.variables(ema=ema)


def restore_average(abstract: TrainState, workdir: Path, steps: Sequence[int], *, ema: bool) -> dict[str, PyTree]:
    """The mean of the variables of several checkpoints of a run: a uniform model soup (arXiv:2203.05482).

    Batch normalisation's running statistics are averaged like the parameters, not measured again: for checkpoints of
    one run that is close, but they are not the statistics of the averaged parameters.

    Raises:
      As `restore_variables`.
    """
    _, mean = restore_variables(abstract, workdir, steps[0], ema=ema)
    for number, step in enumerate(steps[1:], 2):  # one at a time, so that memory holds two however many there are
        _, variables = restore_variables(abstract, workdir, step, ema=ema)
        mean = jax.tree.map(lambda m, v, n=number: m + (v - m) / n, mean, variables)
    return mean
