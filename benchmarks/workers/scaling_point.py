"""What one point of `benchmarks/scaling.py` costs: seconds by name, and the most memory that was resident; as JSON."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imgcls_jax import build, evaluate
from imgcls_jax import config as config_lib
from imgcls_jax.data import sources
from imgcls_jax.metrics import examples

BATCH = 64
VIT = {"patch_size": 4, "width": 64, "num_heads": 4}


def config_of(model: str, size: int = 32, **model_keys: Any) -> Any:
    """A run of a small model on arrays."""
    config = config_lib.base()
    config.model.update(name=model, **model_keys)
    config.data.update(name="arrays", image_size=size, channels=1)
    config.batch_size, config.total_steps, config.optimizer.name, config.optimizer.lr = BATCH, 10**6, "sgd", 1e-3
    return config


def arrays(count: int, size: int, num_classes: int) -> sources.ArraySource:
    """So many records that share the memory of one image, their labels in turn."""
    image = np.random.default_rng(0).integers(0, 256, (size, size, 1), np.uint8)
    labels = np.arange(count, dtype=np.int32) % num_classes
    return sources.from_arrays(
        np.broadcast_to(image, (count, *image.shape)),
        labels,
        class_names=tuple(f"class {i}" for i in range(num_classes)),
        weights=np.ones(count),
    )


def timed(function: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """(seconds, what it returned), when the device has done it too."""
    start = time.perf_counter()
    found = jax.block_until_ready(function(*args))
    return time.perf_counter() - start, found


def train(config: Any, num_classes: int = 10, seconds: float = 2.0) -> dict[str, float]:
    """first_step_s: with tracing and compilation; step_s: the median of the steps of some seconds, at least three."""
    source = arrays(config.batch_size, config.data.image_size, num_classes)
    run = build.build(config, data={"train": source, "test": source})
    batches, state = build.train_batches(run, 0), run.init()
    batch = build.put(run, config.batch_size, next(batches))
    batches.close()
    first, (state, _) = timed(run.train_step, state, batch, {})
    steps: list[float] = []
    while len(steps) < 3 or sum(steps) < seconds:
        took, (state, _) = timed(run.train_step, state, batch, {})
        steps.append(took)
    return {"first_step_s": first, "step_s": statistics.median(steps)}


def devices(count: int) -> dict[str, float]:
    """The same batch on more devices, which share the same cores."""
    assert jax.device_count() == count
    return train(config_of("resnet20"))


def batch(size: int) -> dict[str, float]:
    """A larger batch."""
    config = config_of("resnet20")
    config.batch_size = size
    return train(config)


def depth(blocks: int) -> dict[str, float]:
    """A deeper ViT, its blocks one by one, and one block scanned over the depth."""
    found = train(config_of("vit_tiny_patch16_224", depth=blocks, **VIT))
    scanned = train(config_of("vit_tiny_patch16_224", depth=blocks, scan=True, **VIT))
    return found | {f"scan_{name}": value for name, value in scanned.items()}


def classes(count: int) -> dict[str, float]:
    """More classes: a train step, and all metrics of 1,000 examples with what they leave on the disk."""
    found = train(config_of("vit_tiny_patch16_224", depth=2, **VIT), count)
    n = 1000
    names = tuple(f"class {i}" for i in range(count))
    rng = np.random.default_rng(0)

    def gather() -> examples.Examples:
        gatherer = examples.Gatherer("multiclass", names, n, keep_logits=True)
        step = jax.jit(examples.multiclass_rows)
        for start in range(0, n, 250):
            logits = jax.numpy.asarray(rng.standard_normal((250, count), np.float32))
            label = (np.arange(start, start + 250) * 7919 % count).astype(np.int32)
            rows = step(logits, label)
            gatherer.add({**rows, "label": label, "mask": np.ones(250, bool), "logits": logits})
        return gatherer.examples()

    found["evaluate_s"], gathered = timed(gather)
    found["report_s"], report = timed(lambda: evaluate.report(gathered, topk=(1, 5)))
    with tempfile.TemporaryDirectory() as folder:
        found["write_s"], _ = timed(
            lambda: evaluate.write(Path(folder), "test", gathered, report, data="arrays", split="test")
        )
    return found


def records(count: int) -> dict[str, float]:
    """More records: the first batch of each sampling, which makes its tables, and the next; what evaluation gathers."""
    found = {}
    source = arrays(count, 8, 10)
    for sampling in ("uniform", "balanced", "weighted"):
        config = config_of("vit_tiny_patch16_224", 8, depth=1, **VIT | {"patch_size": 2})
        config.data.sampling = sampling
        run = build.build(config, data={"train": source, "test": source})
        batches = build.train_batches(run, 0)
        found[f"{sampling}_first_batch_s"], _ = timed(next, batches)
        found[f"{sampling}_batch_s"] = statistics.median(timed(next, batches)[0] for _ in range(100))
        batches.close()

    def gather() -> None:
        gatherer = examples.Gatherer("multiclass", source.spec.class_names, count, keep_logits=True)
        rows: dict[str, type] = {"prediction": np.int32, "rank": np.int32}
        rows |= dict.fromkeys(("nll", "brier", "confidence"), np.float32)
        for start in range(0, count, 1000):
            size = min(1000, count - start)
            made: dict[str, np.ndarray] = {name: np.full(size, 0.5).astype(dtype) for name, dtype in rows.items()}
            made |= {"label": source.targets[start : start + size], "mask": np.ones(size, bool)}
            gatherer.add({**made, "logits": np.zeros((size, 10), np.float32)})
        evaluate.headline_values(gatherer.examples(), (1, 5))

    found["evaluate_s"], _ = timed(gather)
    return found


def manifest(count: int) -> dict[str, float]:
    """A longer manifest, as it is opened."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.csv"
        with path.open("w") as file:
            file.write("path,label,split\n")
            for i in range(count):
                file.write(f"photos/{i:09d}.jpg,class {i % 1000},{'test' if i % 10 == 0 else 'train'}\n")
        seconds, source = timed(lambda: sources.open_source(f"manifest:{path}", "train"))
        assert len(source) == count - -(-count // 10)
    return {"open_s": seconds}


AXES = {
    "devices": devices,
    "batch": batch,
    "depth": depth,
    "classes": classes,
    "records": records,
    "manifest": manifest,
}


def main() -> None:
    """Prints {"...": seconds, "memory_mib": ..., "start_mib": ...}; start_mib is what was resident before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("axis", choices=AXES)
    parser.add_argument("value", type=int)
    args = parser.parse_args()
    unit = 2**20 if sys.platform == "darwin" else 2**10
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    found = AXES[args.axis](args.value)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(json.dumps({**found, "memory_mib": peak, "start_mib": start}))


if __name__ == "__main__":
    main()
