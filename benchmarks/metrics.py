"""Time and memory of all metrics over synthetic logits.

python benchmarks/metrics.py [--examples=50000] [--classes=1000] [--task=multiclass]
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator

import jax
import numpy as np

from imgcls_jax import evaluate
from imgcls_jax.metrics.examples import ROWS
from imgcls_jax.types import Batch, Spec

BATCH = 256


def batches(n: int, k: int, task: str) -> Iterator[Batch]:
    """Random logits that know something of the labels; the last batch is padded."""
    rng = np.random.default_rng(0)
    for start in range(0, n, BATCH):
        logits = rng.standard_normal((BATCH, k), np.float32)
        if task == "multiclass":
            labels = rng.integers(0, k, BATCH).astype(np.int32)
            logits[np.arange(BATCH), labels] += 3
        else:
            labels = (rng.random((BATCH, k)) < 3 / k).astype(np.float32)
            logits += 3 * labels - 2
        yield {"logits": logits, "label": labels, "mask": np.arange(start, start + BATCH) < n}


def main() -> None:
    """Prints one line for each stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--task", choices=tuple(ROWS), default="multiclass")
    args = parser.parse_args()
    n, k = args.examples, args.classes
    spec = Spec("synthetic", k, tuple(f"class {i}" for i in range(k)), {"test": n}, args.task)
    step = jax.jit(lambda _, batch: {**ROWS[args.task](batch["logits"], batch["label"]), **batch})

    def stage(name: str, started: tuple[float, float]) -> None:
        wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name:8} {wall:6.1f} s, {cpu:6.1f} s of CPU; at most {memory:.2f} GiB so far")

    started = time.perf_counter(), time.process_time()
    found = evaluate.evaluate(step, {}, batches(n, k, args.task), spec=spec, num_records=n, keep_logits=True)
    stage("rows", started)
    started = time.perf_counter(), time.process_time()
    report = evaluate.report(found, topk=(1, 5))
    text = evaluate.to_json(report)
    stage("metrics", started)
    print(f"{len(report)} keys, {len(text) / 2**20:.1f} MiB of JSON")


if __name__ == "__main__":
    main()
