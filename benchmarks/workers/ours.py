"""This project's pipeline: random-resized crop and flip from any data set that `data.name` may say; see input.py."""

from __future__ import annotations

import argparse
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from serve import serve

from imgcls_jax import augment, sharding
from imgcls_jax.augment import host
from imgcls_jax.data import decode, jpeg, order, pipeline, sources


class Clock:
    """CPU seconds by part; of calls that are nested, the inner one counts for its own part only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._thread = threading.local()

    def time(self, part: str, function: Callable) -> Callable:
        """`function`, with the time of its calls added to `part`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            outer = getattr(self._thread, "inner", 0.0)
            self._thread.inner = 0.0
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                total = time.thread_time() - start
                self.seconds[part] = self.seconds.get(part, 0.0) + total - self._thread.inner
                self._thread.inner = outer + total

        return timed


@dataclasses.dataclass(frozen=True)
class TimedSource:
    """A source whose reads are timed."""

    source: Any
    clock: Clock

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return self.clock.time("read", self.source.__getitem__)(index)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)


def put_a_clock_on(transforms: list[Any], clock: Clock) -> None:
    """Times the decoder, and every method of the transformations, from now on."""
    decode.decode = clock.time("decode", decode.decode)
    for cls in {type(transform) for transform in transforms}:
        for name, method in list(vars(cls).items()):
            if callable(method) and (name == "__call__" or not name.startswith("_")):
                setattr(cls, name, clock.time("augment", method))


def main() -> None:
    """Serves batches on the host, as the peers do; with --shares from one thread, on the device and with a clock."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--data_dir")
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--num_threads", type=int, default=0)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--shares", action="store_true")
    args = parser.parse_args()
    source: Any = sources.open_source(args.data, "train", data_dir=args.data_dir)
    transforms = augment.parse("", ("random_resized_crop()", "flip()"), host.HOST, size=args.size)
    clock = Clock()
    put: Callable = lambda batch: batch  # noqa: E731
    if args.shares:
        args.num_threads, args.num_workers = 1, 0
        source = TimedSource(source, clock)
        put_a_clock_on(transforms, clock)
        mesh = sharding.make_mesh(data=-1, fsdp=1, model=1)
        put = clock.time("copy", lambda b: jax.block_until_ready(sharding.put_batch(mesh, args.batch_size, b)))
    iterator = pipeline.train_batches(
        source,
        order=order.Order(len(source), 0),
        batch_size=args.batch_size,
        seed=0,
        start_step=0,
        rows=np.arange(args.batch_size),
        image_shape=(args.size, args.size, 3),
        transforms=transforms,
        num_threads=args.num_threads,
        num_workers=args.num_workers,
    )
    version, compiled = f"jax {jax.__version__}", jpeg.available()
    serve(lambda: len(put(next(iterator))["image"]), clock.seconds, version=version, compiled_decoder=compiled)
    iterator.close()


if __name__ == "__main__":
    main()
