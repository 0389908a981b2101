"""Image files through a model: read ahead in threads, in batches; one that cannot be read is named and not fatal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np

from imgcls_jax import build, dispatch, sharding
from imgcls_jax.data import files as files_lib
from imgcls_jax.types import Batch

# A batch of B images -> arrays [B,...].
Ask = Callable[[Batch], tuple[jax.Array, ...]]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What became of an image file.

    Attributes:
      path: of the file, as it was given.
      values: its row of each array; empty if it could not be read.
      error: why it could not be read; None if it could.
    """

    path: str
    values: tuple[np.ndarray, ...] = ()
    error: str | None = None


def answers(run: build.Run, files: Sequence[str], ask: Ask, batch_size: int) -> Iterator[list[Answer]]:
    """What `ask` says of image files, in their order, a batch at a time; images are made as in evaluation."""
    source = files_lib.unlabelled(files, run.spec)
    batches = build.read_once(run, source, batch_size=batch_size, on_error="skip", any_size=True)

    def rows(values: tuple[jax.Array, ...], index: np.ndarray, reasons: Mapping[int, str]) -> list[Answer]:
        found = zip(index.tolist(), *map(np.asarray, values), strict=True)
        return [
            Answer(files[i], error=reasons[i]) if i in reasons else Answer(files[i], tuple(row))
            for i, *row in found
            if i >= 0
        ]

    try:
        asked = ((ask(build.put(run, batch_size, batch)), batch["index"], batches.reasons) for batch in batches)
        for waiting in dispatch.one_late(asked):
            yield rows(*waiting)
    finally:
        batches.close()


def batch_size(run: build.Run, num_images: int, wanted: int | None = None) -> int:
    """`wanted`, or eval.batch_size, or less for a few images: one photo need not wait for 256.

    Raises:
      ConfigError: if `wanted`, the flag --batch_size, does not divide over the devices.
    """
    if wanted is not None:
        sharding.check_batch(run.mesh, "--batch_size", wanted)
        return wanted
    size = sharding.batch_parts(run.mesh)
    while size < num_images:  # by doubling, so that there are few programs to compile
        size *= 2
    return min(size, run.config.eval.batch_size)
