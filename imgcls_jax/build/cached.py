"""Training batches of features that were computed once: for runs whose body is frozen and that augment nothing."""

from __future__ import annotations

from collections.abc import Iterator

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from imgcls_jax import objectives, optim_groups, sharding
from imgcls_jax.augment import device
from imgcls_jax.build.data import eval_batches, image_shape, open_train
from imgcls_jax.build.run import Run
from imgcls_jax.data import order
from imgcls_jax.objectives import Variables
from imgcls_jax.state import TrainState
from imgcls_jax.types import Batch, ConfigError, PyTree


def check_cache(config: ConfigDict, model: nn.Module, groups: optim_groups.Groups, params: PyTree) -> None:
    """Raises ConfigError where features that were computed once would not be those of every step."""
    a = config.augment
    random = [name for name in ("dropout", "drop_path") if getattr(model, name, 0)]
    needs = {
        'optimizer.freeze=("body",)': optim_groups.head_only(groups, params),
        "a model with one classifier": len(groups.heads) == 1,
        "augment.host_train=() and augment.device=()": not a.host_train and not a.device,
        f"model.{'=0.0 and model.'.join(random)}=0.0": not random,
        "objective.name='supervised'": config.objective.name == "supervised",
        "data.mix=()": not config.data.mix,
    }
    for need, met in needs.items():
        if not met:
            raise ConfigError(f"optimizer.cache_features needs {need}: set that, or optimizer.cache_features=False.")


class CachedBatches(Iterator[Batch]):
    """This process's rows of the training batches, the same records as `TrainBatches` has, endless.

    A batch is features [b,D] float32, label, mask, index, and image [b,H,W,C] uint8 of zeros, which nothing reads.
    """

    def __init__(self, records: Batch, the_order: order.AnyOrder, *, run: Run, start_step: int) -> None:
        self._records, self._order, self._step = records, the_order, start_step
        self._size = run.config.batch_size
        self._rows = np.asarray(sharding.local_rows(run.mesh, self._size), np.int64)
        self._blank = np.zeros((len(self._rows), *image_shape(run.config)), np.uint8)

    def __next__(self) -> Batch:
        index = self._order.indices(self._step * self._size + self._rows)
        self._step += 1
        return {**{name: rows[index] for name, rows in self._records.items()}, "index": index, "image": self._blank}

    def close(self) -> None:
        """Nothing is open."""


def cached_batches(run: Run, start_step: int, state: TrainState) -> CachedBatches:
    """The batches from `start_step` on, of the features that `state` has."""
    _, the_order = open_train(run.config, run.open_split)
    return CachedBatches(_records(run, state.variables()), the_order, run=run, start_step=start_step)


def _records(run: Run, variables: Variables) -> Batch:
    """features [N,D] float32, label and mask of the records of the training split, on every process."""
    d = run.config.data

    def step(variables: Variables, batch: Batch) -> Batch:
        images = device.normalise(device.to_float(batch["image"]), d.mean, d.std)
        found = objectives.forward(run.model, variables, images).features
        assert found is not None, "a model with one classifier marks what it is given (layers.PooledFeatures)"
        return {"features": found, "label": batch["label"], "mask": batch["mask"]}

    jitted = jax.jit(step, out_shardings=sharding.replicated(run.mesh))
    count, batches = eval_batches(run, d.train_split)
    pieces = [jax.tree.map(np.asarray, jitted(variables, batch)) for batch in batches]
    return {name: np.concatenate([piece[name] for piece in pieces])[:count] for name in pieces[0]}
