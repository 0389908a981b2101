"""Features of a whole split, by the model of a run or by a descriptor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from imgcls_jax import build, dispatch, sharding
from imgcls_jax.augment import device
from imgcls_jax.data.pipeline import Transform
from imgcls_jax.objectives import Variables
from imgcls_jax.representation import descriptors
from imgcls_jax.types import Batch, UserError

MAX_BYTES = 2**34  # of one split's features; ImageNet's training split has 10 GB of 2,048 features

Step = Callable[[Batch], dict[str, jax.Array]]
Describe = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of the examples of a split, in its order, without the records that were skipped.

    Attributes:
      values: [N,D] float32.
      labels: [N] int64.
    """

    values: np.ndarray
    labels: np.ndarray


def features_step(run: build.Run) -> Callable[[Variables, Batch], dict[str, jax.Array]]:
    """(variables, batch) -> {"value": pooled features [B,D] float32, "label", "mask"}, replicated; jitted.

    That is the model with `num_classes=0`, the input of its head; the head's parameters are not looked at. Images are
    made as evaluation makes them.
    """
    model, d = run.model.clone(num_classes=0), run.config.data

    def step(variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        images = device.normalise(device.to_float(batch["image"]), d.mean, d.std)
        value = model.apply(variables, images, train=False)
        return {"value": value, "label": batch["label"], "mask": batch["mask"]}

    return jax.jit(step, out_shardings=sharding.replicated(run.mesh))


def model_step(run: build.Run, variables: Variables) -> Step:
    """`features_step` of a model whose variables are given."""
    jitted = features_step(run)
    return lambda batch: jitted(variables, batch)


def image_step(run: build.Run) -> Step:
    """Batch -> {"value": its images [B,H,W,C] uint8, "label", "mask"}, replicated."""

    def step(batch: Batch) -> dict[str, jax.Array]:
        return {"value": batch["image"], "label": batch["label"], "mask": batch["mask"]}

    return jax.jit(step, out_shardings=sharding.replicated(run.mesh))


def stream(
    run: build.Run, split: str, step: Step, transforms: Sequence[Transform] = ()
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(values, labels) of the examples of a split, batch after batch, on the host; every example once.

    `transforms` are applied to each image after those of the config.
    """
    for rows in dispatch.one_late(map(step, build.eval_batches(run, split, transforms)[1])):
        mask = np.asarray(rows["mask"])
        yield np.asarray(rows["value"])[mask], np.asarray(rows["label"])[mask]


def extract(
    run: build.Run,
    split: str,
    step: Step,
    describe: Describe = lambda values: values,
    transforms: Sequence[Transform] = (),
) -> Features:
    """The features of a split: what `describe`, on the host, makes of what `step`, on the devices, makes of a batch.

    Equal on any number of devices and processes, but for the rounding of the model itself. Every process has them all.

    Raises:
      UserError: they do not fit in MAX_BYTES, one is not finite, or no example of the split can be read.
    """
    total = len(run.open_split(split))
    values, labels, done = None, np.zeros(total, np.int64), 0
    for raw, label in stream(run, split, step, transforms):
        if not len(raw):
            continue
        here = describe(raw)
        if values is None:
            _check_size(total, here.shape[1], split)
            values = np.zeros((total, here.shape[1]), np.float32)
        values[done : done + len(here)], labels[done : done + len(here)] = here, label
        done += len(here)
    if values is None:
        raise UserError(f"No example of {run.spec.name}:{split} could be read; there is nothing to probe.")
    check_finite(values[:done], f"{run.spec.name}:{split}")
    return Features(values[:done], labels[:done])


def check_finite(values: np.ndarray, where: str) -> None:
    """Raises UserError unless all features [N,D] of the examples of `where` are finite."""
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise UserError(
            f"{bad.size:,} of the {len(values):,} examples of {where} have features that are not finite, "
            f"example {bad[0]} first; a probe cannot use them: take another checkpoint, or model.dtype='float32'."
        )


def blocks(rows: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The rows of arrays [n,D] that come one after the other, in arrays [size,D] and a shorter last one."""
    waiting: list[np.ndarray] = []
    for some in rows:
        waiting.append(some)
        while sum(map(len, waiting)) >= size:
            joined = np.concatenate(waiting)
            yield joined[:size]
            waiting = [joined[size:]]
    rest = np.concatenate(waiting) if waiting else np.zeros((0, 0))
    if len(rest):
        yield rest


def _check_size(records: int, dimensions: int, split: str) -> None:
    size = 4 * records * dimensions
    if size > MAX_BYTES:
        raise UserError(
            f"The {dimensions:,} features of {records:,} examples take {size / 2**30:,.0f} GB, more than "
            f"{MAX_BYTES / 2**30:.0f}: probe a part of the split, such as {split}[:10%]."
        )


def visual_words(run: build.Run, split: str) -> descriptors.VisualWords:
    """The vocabulary of a split: words learned from SAMPLE_IMAGES of its images, evenly spread over it."""
    total = len(run.open_split(split))
    wanted = set(np.linspace(0, total - 1, min(total, descriptors.SAMPLE_IMAGES), dtype=int).tolist())

    def images() -> Iterator[np.ndarray]:
        position = 0
        for batch, _ in stream(run, split, image_step(run)):
            yield from (image for i, image in enumerate(batch, position) if i in wanted)
            position += len(batch)

    return descriptors.learn_words(images())
