"""Images in memory, as Fashion-MNIST's: gathered, copied to the device, cropped and flipped there; see input.py."""

from __future__ import annotations

import argparse

import jax
import numpy as np
from serve import serve

from imgcls_jax import sharding
from imgcls_jax.augment import device
from imgcls_jax.data import order, pipeline, sources
from imgcls_jax.types import Spec

OPS = (device.PadAndCrop(2), device.HorizontalFlip())


def main() -> None:
    """Serves batches that are on the device; with --augment cropped and flipped there, as the train step does it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--augment", action="store_true")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60_000, 28, 28, 1), np.uint8)
    labels = rng.integers(0, 10, 60_000).astype(np.int32)
    spec = Spec("arrays", 10, tuple("0123456789"), {"train": 60_000})
    iterator = pipeline.train_batches(
        sources.ArraySource(images, labels, spec),
        order=order.Order(len(images), 0),
        batch_size=args.batch_size,
        seed=0,
        start_step=0,
        rows=np.arange(args.batch_size),
        image_shape=(28, 28, 1),
    )
    mesh = sharding.make_mesh(data=-1, fsdp=1, model=1)
    key = jax.random.key(0)

    @jax.jit
    def augment(images: jax.Array, step: int) -> jax.Array:
        targets = jax.numpy.zeros((len(images), 10))
        return device.apply(OPS, device.to_float(images), targets, jax.random.fold_in(key, step))[0]

    step = 0

    def next_batch() -> int:
        nonlocal step
        batch = sharding.put_batch(mesh, args.batch_size, next(iterator))
        if args.augment:
            batch["image"] = augment(batch["image"], step)
        step += 1
        return len(jax.block_until_ready(batch)["image"])

    serve(next_batch, version=f"jax {jax.__version__}, {jax.devices()[0].device_kind}")


if __name__ == "__main__":
    main()
