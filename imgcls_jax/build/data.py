"""What a run reads: its data set, and the batches of training and of evaluation."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict

from imgcls_jax import augment, sharding
from imgcls_jax.augment import host
from imgcls_jax.build.run import Run
from imgcls_jax.data import inputs, order, pipeline, pseudo, sources
from imgcls_jax.data.sources import Source
from imgcls_jax.types import Batch, ConfigError, Spec


def build_data(
    config: ConfigDict, spec: Spec | None, data: Mapping[str, Source] | None
) -> tuple[Spec, Callable[[str], Source]]:
    """What is known of the data set that the group `data` names, and what opens its splits, each once."""
    d = config.data
    if data is None:
        spec = spec or sources.spec(d.name, data_dir=d.data_dir, positive_class=d.positive_class)
        return spec, cache(partial(sources.open_source, d.name, data_dir=d.data_dir, positive_class=d.positive_class))
    spec = sources.spec_of(data, positive_class=d.positive_class)
    if d.name != spec.name:  # config.json would name another data set than the run's
        raise ConfigError(f"data.name='{d.name}', but the data that was handed in is '{spec.name}': give it that name.")
    return spec, cache(partial(sources.from_splits, data, positive_class=d.positive_class))


def eval_split(config: ConfigDict, spec: Spec | None = None) -> str:
    """The split that training evaluates on; `spec` is asked of the data set if it is needed and not given."""
    if config.data.eval_split:
        return str(config.data.eval_split)
    return sources.eval_split(spec or sources.spec(config.data.name, data_dir=config.data.data_dir))


def open_train(config: ConfigDict, open_split: Callable[[str], Source]) -> tuple[Source, order.AnyOrder]:
    """What is trained on, and in which order; labels and weights are read only if the order depends on them."""
    d = config.data
    source = open_split(d.train_split)
    lengths: Sequence[int] = (len(source),)
    shares = (1.0, *(weight for _, weight in d.mix))
    if d.mix:
        names = [name for name, _ in d.mix]
        source = sources.mixture(source, names, data_dir=d.data_dir, positive_class=d.positive_class)
        lengths = source.lengths
    if d.pseudo_labels:
        labelled, source = source, pseudo.joined(source, pseudo.read(Path(d.pseudo_labels)), open_split)
        lengths, shares = (*lengths, len(source) - len(labelled)), (*shares, d.pseudo_ratio)
    the_order = order.make(
        d.sampling,
        lengths,
        seed=config.seed,
        labels=pseudo.class_numbers(source) if d.sampling == "balanced" else None,
        weights=source.weights() if d.sampling == "weighted" else None,
        shares=shares,
        repeats=d.repeats,
    )
    return source, order.FirstBatch(the_order, config.batch_size) if config.debug.overfit_batch else the_order


class LocalBatches(Protocol):
    """This process's rows of batches, as host arrays; `close` frees threads and processes."""

    def __next__(self) -> Batch: ...

    def close(self) -> None: ...


class TrainBatches(Iterator[Batch]):
    """This process's rows of the training batches, as host arrays; `close` frees threads and processes.

    A batch of an objective that learns from views of unlabelled images holds a batch for each view under its name.
    """

    def __init__(self, labelled: pipeline.BatchIterator, views: Mapping[str, pipeline.BatchIterator]) -> None:
        self._labelled, self._views = labelled, views

    def __next__(self) -> Batch:
        return {**next(self._labelled), **{name: next(batches) for name, batches in self._views.items()}}

    def close(self) -> None:
        """The iterator is of no use after that."""
        for batches in (self._labelled, *self._views.values()):
            batches.close()


def train_batches(run: Run, start_step: int) -> TrainBatches:
    """The training batches from `start_step` on."""
    c = run.config
    labelled, strong = (
        augment.parse(f"augment.{name}", c.augment[name], host.HOST, size=c.data.image_size)
        for name in ("host_train", "host_strong")
    )
    source, the_order = open_train(c, run.open_split)
    batches = _stream(run, source, the_order, c.batch_size, c.seed, start_step, labelled)
    views = {}
    if run.views:
        unlabelled = inputs.open_unlabelled(c.data.unlabelled, run.spec, run.open_split)
        # Seeds of their own: the positions of all the streams are the same numbers.
        order_seed, *seeds = (zlib.crc32(f"{c.seed}/{name}".encode()) for name in ("unlabelled", *run.views))
        of_views = order.make("uniform", (len(unlabelled),), seed=order_seed)
        transforms = {"weak": labelled, "strong": strong}
        size = c.batch_size * c.data.unlabelled_ratio
        for name, seed in zip(run.views, seeds, strict=True):
            views[name] = _stream(run, unlabelled, of_views, size, seed, start_step, transforms[name])
    return TrainBatches(batches, views)


def _stream(
    run: Run,
    source: Source,
    the_order: order.AnyOrder,
    batch_size: int,
    seed: int,
    start_step: int,
    transforms: Sequence[pipeline.Transform],
) -> pipeline.BatchIterator:
    c = run.config
    return pipeline.train_batches(
        source,
        order=the_order,
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        rows=sharding.local_rows(run.mesh, batch_size),
        image_shape=image_shape(c),
        transforms=transforms,
        num_threads=c.data.num_threads,
        num_workers=c.data.num_workers,
        on_error=c.data.on_error,
        max_megapixels=c.data.max_megapixels,
    )


def eval_batches(run: Run, split: str, transforms: Sequence[pipeline.Transform] = ()) -> tuple[int, Iterator[Batch]]:
    """(number of records, global batches of a whole split, padded and masked, on the device).

    `transforms` are applied to each image after those of the config.
    """
    c = run.config
    source = run.open_split(split)
    local = read_once(run, source, transforms, batch_size=c.eval.batch_size, on_error=c.data.on_error)
    return len(source), (put(run, c.eval.batch_size, batch) for batch in local)


def read_once(
    run: Run,
    source: Source,
    transforms: Sequence[pipeline.Transform] = (),
    *,
    batch_size: int,
    on_error: str,
    any_size: bool = False,
) -> pipeline.BatchIterator:
    """This process's rows of every record of a source once, made as evaluation makes them, as host arrays.

    `transforms` are applied to each image after those of evaluation. With `any_size`, an image that is still of another
    size after `augment.host_eval` (of a data set whose images are of one size it asks nothing) is resized by its short
    side, and its centre taken.
    """
    c = run.config
    return pipeline.eval_batches(
        source,
        batch_size=batch_size,
        rows=sharding.local_rows(run.mesh, batch_size),
        image_shape=image_shape(c),
        transforms=[*_eval_transforms(c, any_size=any_size), *transforms],
        num_threads=c.data.num_threads,
        on_error=on_error,
        max_megapixels=c.data.max_megapixels,
    )


def read_image(run: Run, source: Source, index: int) -> np.ndarray:
    """One record's image, uint8 [H,W,C], as `read_once` makes it with `any_size`; at once, in this thread.

    Raises:
      BadRecordError: naming the record; its cause says no more than the reason.
    """
    c = run.config
    transforms, rows = tuple(_eval_transforms(c, any_size=True)), np.array([index])
    reader = pipeline.Reader(source, None, 1, rows, image_shape(c), transforms, 0, "raise", c.data.max_megapixels)
    image: np.ndarray = reader.read(0, slice(None))["image"][0]
    return image


def _eval_transforms(config: ConfigDict, *, any_size: bool) -> list[pipeline.Transform]:
    calls = (*config.augment.host_eval, *(["resize_centre_crop(crop_pct=1.0)"] if any_size else []))
    return augment.parse("augment.host_eval", calls, host.HOST, size=config.data.image_size)


def put(run: Run, batch_size: int, local: dict[str, Any]) -> Batch:
    """The process's rows as a global batch on the devices, without what the step does not read; views alike."""
    views = {name: local[name] for name in run.views if name in local}
    rows = {name: array for name, array in local.items() if name != "index" and name not in views}
    unlabelled = batch_size * run.config.data.unlabelled_ratio
    return {
        **sharding.put_batch(run.mesh, batch_size, rows),
        **{
            name: sharding.put_batch(run.mesh, unlabelled, {key: view[key] for key in ("image", "mask")})
            for name, view in views.items()
        },
    }


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """(H, W, C) of what the model sees."""
    return config.data.image_size, config.data.image_size, config.data.channels
