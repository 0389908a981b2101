"""The training batches on the devices: of records that are read, of those that stay there, of cached features."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from imgcls_jax import sharding
from imgcls_jax.build.cached import cached_batches
from imgcls_jax.build.data import LocalBatches, image_shape, open_train, put, train_batches
from imgcls_jax.build.run import Run
from imgcls_jax.data.arrays import ArraySource
from imgcls_jax.data.order import AnyOrder
from imgcls_jax.data.sources import Source
from imgcls_jax.state import TrainState
from imgcls_jax.types import Batch, ConfigError


class Batches(Protocol):
    """Global batches on the devices, endless; `close` frees what they were read with."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def close(self) -> None: ...


def batches_of(run: Run, start_step: int, state: TrainState) -> Batches:
    """The training batches from `start_step` on; with optimizer.cache_features of the features that `state` has."""
    if run.config.data.on_device:
        source, the_order = open_train(run.config, run.open_split)
        return ResidentBatches(_resident(run.config, source), the_order, run=run, start_step=start_step)
    if run.config.optimizer.cache_features:
        return PutBatches(cached_batches(run, start_step, state), run)
    return PutBatches(train_batches(run, start_step), run)


class PutBatches(Iterator[Batch]):
    """Batches that are put on the devices one by one."""

    def __init__(self, local: LocalBatches, run: Run) -> None:
        self._local, self._run = local, run

    def __next__(self) -> Batch:
        return put(self._run, self._run.config.batch_size, next(self._local))

    def close(self) -> None:
        """The iterator is of no use after that."""
        self._local.close()


class ResidentBatches(Iterator[Batch]):
    """The same batches as `PutBatches` of records that are read, taken from arrays that are on every device.

    A step sends B numbers to the devices in place of B images.
    """

    def __init__(self, source: ArraySource, the_order: AnyOrder, *, run: Run, start_step: int) -> None:
        self._order, self._step, self._size, self._mesh = the_order, start_step, run.config.batch_size, run.mesh
        self._rows = np.asarray(sharding.local_rows(run.mesh, self._size), np.int64)
        arrays = {"image": source.images, "label": source.targets}
        everywhere = sharding.replicated(run.mesh)
        self._arrays = {
            name: jax.make_array_from_callback(array.shape, everywhere, array.__getitem__)
            for name, array in arrays.items()
        }

        @partial(jax.jit, out_shardings=sharding.batch(run.mesh))
        def take(arrays: Batch, index: jax.Array) -> Batch:
            rows = {name: array[index] for name, array in arrays.items()}
            return {**rows, "mask": jnp.ones(index.shape, bool)}

        self._take = take

    def __next__(self) -> Batch:
        index = self._order.indices(self._step * self._size + self._rows).astype(np.int32)
        self._step += 1
        return self._take(self._arrays, sharding.put_batch(self._mesh, self._size, {"index": index})["index"])

    def close(self) -> None:
        """Nothing is open."""


def _resident(config: ConfigDict, source: Source) -> ArraySource:
    """The source, if its records can stay on the devices."""
    needs = {
        "a data set that is held in memory (digits, mnist, fashion_mnist, cifar10, arrays), without data.mix and "
        "data.pseudo_labels": isinstance(source, ArraySource),
        "augment.host_train=()": not config.augment.host_train,
        "data.unlabelled=''": not config.data.unlabelled,
        "optimizer.cache_features=False": not config.optimizer.cache_features,
    }
    for need, met in needs.items():
        if not met:
            raise ConfigError(f"data.on_device needs {need}: set that, or data.on_device=False.")
    assert isinstance(source, ArraySource)
    if source.images.shape[1:] != image_shape(config):
        raise ConfigError(
            f"data.on_device takes images as they are, {list(source.images.shape[1:])}, but the config has "
            f"{list(image_shape(config))} (data.image_size and channels): set that, or data.on_device=False."
        )
    return source
